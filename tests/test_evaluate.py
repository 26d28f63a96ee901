"""eval: counts that an independent loop gives, on any file that a network can be read from."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import Drawer, Result, call, draw
from PIL import Image
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.inputs.files import model_of
from qvec_cli.inputs.network import load_network
from qvec_cli.learn.forward import measure

SPECS = [
    *[("--bits", bits) for bits in range(2, 9)],
    ("--bits", 3, "--granularity", "tensor"),
    ("--bits", 3, "--granularity", "group", "--group-size", 16),
]


def by_hand(path: Path, data: Path, classes: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels from timm and PIL alone."""
    network = timm.create_model("test_vit", num_classes=len(classes), img_size=32)
    network.load_state_dict(load_torch(path))
    network.eval()
    config = timm.data.resolve_data_config({"input_size": (3, 32, 32)}, model=network)
    transform = timm.data.create_transform(**config)
    logits, labels = [], []
    for label, name in enumerate(classes):
        for file in sorted((data / "test" / name).iterdir()):
            with Image.open(file) as image, torch.no_grad():
                logits.append(network(transform(image.convert("RGB"))[None])[0])
            labels.append(label)
    return torch.stack(logits), torch.tensor(labels)


def test_the_counts_are_those_of_a_plain_loop(drawer: Drawer) -> None:
    results = call("eval", drawer.receiver, "--data", drawer.receiver_data, "--json").json[
        "results"
    ]
    logits, labels = by_hand(drawer.receiver, drawer.receiver_data, ["a", "b", "c", "d"])
    assert results["n"] == len(labels) == 48
    assert results["n_correct"] == int((logits.argmax(1) == labels).sum())
    assert results["loss"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5
    )


def test_top_5_of_fewer_classes_is_everything(drawer: Drawer) -> None:
    results = call("eval", drawer.donor, "--data", drawer.donor_data, "--json").json["results"]
    assert results["top5"] == 1.0


def test_top_5_counts_the_five_highest() -> None:
    logits = torch.eye(12).repeat(2, 1) + 0.1 * torch.arange(12)
    labels = torch.arange(24) % 11

    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.none = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return logits[x[:, 0, 0, 0].long()]

    images = torch.arange(24, dtype=torch.uint8).view(-1, 1, 1, 1)
    score = measure(Fixed(), images, labels, normalise=lambda x: x.float(), batch_size=5)
    order = logits.argsort(1, descending=True)
    assert score.n_correct == int((order[:, 0] == labels).sum())
    assert score.n_correct_top5 == int((order[:, :5] == labels[:, None]).any(1).sum())
    assert 0 < score.n_correct < score.n_correct_top5 < 24


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: " ".join(map(str, s)))
def test_packed_and_fake_give_the_same_logits_bit_for_bit(
    spec: tuple[object, ...], drawer: Drawer, tmp_path: Path
) -> None:
    call("quantize", drawer.receiver, *spec, "-o", tmp_path / "packed.st")
    call("quantize", drawer.receiver, *spec, "--fake", "-o", tmp_path / "fake.st")
    images = torch.rand(5, 3, 32, 32)
    logits = []
    for name in ("packed.st", "fake.st"):
        with Checkpoint(tmp_path / name) as checkpoint, torch.no_grad():
            network = load_network(checkpoint, model_of(checkpoint), "cpu").eval()
            logits.append(network(images))
    assert torch.equal(*logits)
    assert not torch.equal(logits[0], torch.zeros_like(logits[0]))


def test_the_quantized_forward_of_training_is_the_quantized_file(
    drawer: Drawer, tmp_path: Path
) -> None:
    """The number trained is the number shipped."""
    from conftest import FAST

    metrics, packed = tmp_path / "qat.json", tmp_path / "packed.st"
    flags = ("--data", drawer.donor_data, *FAST, "-o", tmp_path / "q.st", "--metrics", metrics)
    trained = call("train-qat", drawer.base, *flags, "--json").json["results"]["val"]
    call("quantize", tmp_path / "q.st", "-o", packed)
    args = ("--data", drawer.donor_data, "--split", "val", "--batch-size", 16, "--json")
    for key, path in (("quantized", packed), ("float", tmp_path / "q.st")):
        measured = call("eval", path, *args).json["results"]
        assert measured["loss"] == trained[key]["loss"]
        assert measured["n_correct"] == trained[key]["n_correct"]


def bare(drawer: Drawer, tmp_path: Path) -> Path:
    save_file(load_file(drawer.receiver), tmp_path / "bare.safetensors")
    return tmp_path / "bare.safetensors"


def test_a_bare_file_needs_the_name_of_its_network(drawer: Drawer, tmp_path: Path) -> None:
    path, data = bare(drawer, tmp_path), ("--data", drawer.receiver_data)
    refused = call("eval", path, *data, code=1)
    assert "does not say its architecture" in refused.errors[0]
    named = ("--model", "test_vit", "--img-size", 32, "--json")
    ours = call("eval", path, *data, *named).json["results"]
    theirs = call("eval", drawer.receiver, *data, "--json").json["results"]
    assert ours["loss"] == theirs["loss"]
    wrong = call("eval", path, *data, "--model", "test_vit2", "--img-size", 32, code=1)
    assert "do not fit the network" in wrong.errors[0]


def renamed(drawer: Drawer, folder: Path, names: dict[str, str]) -> Path:
    shutil.copytree(drawer.receiver_data, folder)
    for split in ("train", "test"):
        for old, new in reversed(names.items()):
            (folder / split / old).rename(folder / split / new)
    return folder


def test_classes_are_matched_by_name_and_not_by_place(drawer: Drawer, tmp_path: Path) -> None:
    """A head that was trained in another order of classes keeps it."""
    data = renamed(drawer, tmp_path / "data", {"a": "z"})
    arrays = load_file(drawer.receiver)
    for name in ("head.weight", "head.bias"):
        arrays[name] = np.roll(arrays[name], -1, axis=0)  # a, b, c, d becomes b, c, d, z
    save_file(arrays, tmp_path / "rolled.st")
    flags = ("--model", "test_vit", "--img-size", 32, "--json")
    expected = call("eval", drawer.receiver, "--data", drawer.receiver_data, "--json").json
    rolled = call("eval", tmp_path / "rolled.st", "--data", data, *flags).json
    assert rolled["results"]["n_correct"] == expected["results"]["n_correct"]
    refused = call("eval", drawer.receiver, "--data", data, code=1)
    assert "it does not know 'z'" in refused.errors[0]


def test_classes_are_matched_however_unicode_composes_their_names(
    drawer: Drawer, tmp_path: Path
) -> None:
    """Of two that look alike, each is matched with its equal first."""
    flags = ("--model", "test_vit", "--img-size", 32, "--json", "--class-map", tmp_path / "names")
    path, apart, whole = bare(drawer, tmp_path), "e\u0301", "\u00e9"
    expected = call("eval", drawer.receiver, "--data", drawer.receiver_data, "--json").json
    (tmp_path / "names").write_text(f"a\n{whole}\nc\nd\n", encoding="utf-8")
    data = renamed(drawer, tmp_path / "data", {"b": apart})
    found = call("eval", path, "--data", data, *flags).json
    assert found["results"]["n_correct"] == expected["results"]["n_correct"]
    shutil.rmtree(data / "train" / "d")
    shutil.rmtree(data / "test" / "d")
    (tmp_path / "names").write_text(f"a\n{apart}\nc\n{whole}\n", encoding="utf-8")
    assert call("eval", path, "--data", data, *flags).json["results"]["n"] == 36


def test_two_usual_orders_of_classes_ask_for_a_list(drawer: Drawer, tmp_path: Path) -> None:
    names = {"a": "c2", "b": "c10", "c": "d", "d": "e"}
    data = renamed(drawer, tmp_path / "data", names)
    path = bare(drawer, tmp_path)
    flags = ("--data", data, "--model", "test_vit", "--img-size", 32)
    refused = call("eval", path, *flags, code=1)
    assert "they have two usual orders" in refused.errors[0]
    assert "--class-map" in refused.err
    (tmp_path / "classes.txt").write_text("".join(f"{new}\n" for new in names.values()))
    found = call("eval", path, *flags, "--class-map", tmp_path / "classes.txt", "--json").json
    expected = call("eval", drawer.receiver, "--data", drawer.receiver_data, "--json").json
    assert found["results"]["n_correct"] == expected["results"]["n_correct"]
    missing = call("eval", path, *flags, "--class-map", tmp_path / "nothing.txt", code=1)
    assert "nothing.txt" in missing.errors[0]


def test_weights_that_are_no_numbers_are_named(drawer: Drawer, tmp_path: Path) -> None:
    raw = bytearray(drawer.donor.read_bytes())
    with Checkpoint(drawer.donor) as checkpoint:
        start = checkpoint["norm.weight"].start
    raw[start : start + 4] = np.float32(np.nan).tobytes()
    (tmp_path / "x.st").write_bytes(raw)
    result = call("eval", tmp_path / "x.st", "--data", drawer.donor_data, code=1)
    assert "norm.weight: nan at element 0" in result.errors[0]


def test_packed_parts_that_do_not_belong_together_are_refused(
    drawer: Drawer, tmp_path: Path
) -> None:
    from qvec_cli.checkpoint.write import write

    call("quantize", drawer.receiver, "--bits", 3, "-o", tmp_path / "q.st")
    with Checkpoint(tmp_path / "q.st") as packed:
        name = "blocks.0.attn.qkv.weight_scale"
        plan = {n: e for n, e in packed.items() if n != name}
        card = packed.card
        assert card is not None
        write(tmp_path / "m.st", plan, ((n, packed.blocks(n)) for n in plan), card, force=False)
    result = call("eval", tmp_path / "m.st", "--data", drawer.receiver_data, code=1)
    assert f"{name} is missing" in result.errors[0]


def test_a_device_that_is_not_here_is_a_fault(drawer: Drawer) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = call("eval", drawer.donor, "--data", drawer.donor_data, "--device", "cuda", code=1)
    assert "--device cuda" in result.errors[0]
    assert "--device cpu" in result.err


def test_a_device_that_torch_does_not_have_costs_a_line(drawer: Drawer) -> None:
    if torch.backends.mps.is_available():
        pytest.skip("there is one")
    result = call("eval", drawer.donor, "--data", drawer.donor_data, "--device", "mps", code=1)
    assert result.errors == ["error: --device mps: this torch and this machine have no such device"]
    assert result.err.count("\n") == 2


def test_only_the_splits_that_are_used_must_be_usable(drawer: Drawer, tmp_path: Path) -> None:
    """Four training images, and a class of test without any."""
    data = draw(tmp_path / "data", ("a", "b", "c", "d"), 1, 5, seed=1)
    out = ("-o", tmp_path / "out.st", "--json", "--device", "cpu")
    ours = call("eval", drawer.receiver, "--data", data, "--json").json["results"]
    copy = shutil.copytree(data, tmp_path / "copy", ignore=shutil.ignore_patterns("train"))
    again = call("eval", drawer.receiver, "--data", copy, "--json").json["results"]
    assert [again[key] for key in ("n", "loss")] == [20, ours["loss"]]
    given = call("moments", drawer.receiver, "--data", data, "--split", "train", *out).json
    assert given["results"]["images"] == 4
    calibration = ("--bits", 3, "--calib", data, "--bias-correction", "--dry-run", "--force")
    assert call("quantize", drawer.receiver, *calibration, *out).code == 0
    training = ("finetune", drawer.base, "--data", data, "--dry-run", "-o", tmp_path / "tuned.st")
    refused = call(*training, code=1)
    assert "4 images is too small to draw a tenth of it for validation" in refused.errors[0]
    (data / "train").rename(tmp_path / "few")
    (data / "test").rename(data / "train")
    (data / "test" / "a").mkdir(parents=True)
    assert call(*training).code == 0
    refused = call("eval", drawer.receiver, "--data", data, code=1)
    assert f"{data / 'test' / 'a'}: this class has no image" in refused.errors[0]


def noted(result: Result, word: str) -> int:
    return sum(word in line for line in result.err.splitlines() if line.startswith("note: "))


def test_every_command_tells_once_what_it_leaves_out_of_a_data_set(
    drawer: Drawer, tmp_path: Path
) -> None:
    data = shutil.copytree(drawer.receiver_data, tmp_path / "data")
    for folder in data.glob("*/*"):
        (folder / "boxes.json").touch()
    left_out = f"{data}: left out 8 files: 8 .json"
    labelled, proxies, out = ("--data", data), ("--proxy", data), ("-o", tmp_path / "out.st")
    (tmp_path / "grid.yaml").write_text(
        f"receivers: {{r: {{model: {drawer.receiver}, data: {data}}}}}\n"
        f"donors: {{d: {{rho: {drawer.rho}}}}}\n"
    )
    for command in (
        ("eval", drawer.receiver, *labelled),
        ("finetune", drawer.base, *labelled, *out),
        ("train-qat", drawer.base, *labelled, *out, "--bits", 3),
        (
            "quantize",
            drawer.receiver,
            *out,
            "--method",
            "gptq",
            "--calib",
            data,
            "--refine",
            1,
            "--bits",
            3,
        ),
        ("quantize", drawer.receiver, *out, "--refine", 1, *proxies, "--bits", 3),
        ("moments", drawer.receiver, *labelled, *out),
        ("sweep-lambda", drawer.receiver, drawer.rho, *labelled, *out),
        ("patch", drawer.receiver, drawer.rho, *out, "--lambda", "auto", *proxies),
        ("advise", drawer.receiver, "--bits", 3, *labelled, *proxies, "--proxy-samples", 16, *out),
        ("transfer", tmp_path / "grid.yaml", "-o", tmp_path / "grid.jsonl"),
    ):
        result = call(*command, "--dry-run", code=None)
        assert result.code == 0, (command, result)
        assert noted(result, left_out) == 1, (command, result.err)


def test_what_exif_turns_is_told_once_for_both_splits_and_measured_as_it_is(
    drawer: Drawer, tmp_path: Path
) -> None:
    data = shutil.copytree(drawer.receiver_data, tmp_path / "data")
    exif = Image.Exif()
    exif[0x0112] = 6
    for file in data.glob("t*/a/*.png"):
        with Image.open(file) as image:
            image.save(file, exif=exif)
    swept = tmp_path / "swept.json"
    flags = ("--lambdas", "0,1", "-o", swept, "--json", "--force")
    plain, turned = (
        call("sweep-lambda", drawer.receiver, drawer.rho, "--data", folder, *flags)
        for folder in (drawer.receiver_data, data)
    )
    assert noted(plain, "EXIF") == 0
    assert noted(turned, "EXIF") == 1
    assert [point["val"]["n_correct"] for point in turned.json["results"]["curve"]] == [
        point["val"]["n_correct"] for point in plain.json["results"]["curve"]
    ]


def test_a_split_may_lack_a_class(drawer: Drawer, tmp_path: Path) -> None:
    data = draw(tmp_path / "data", ("a", "b", "c", "d"), 1, 2, seed=1)
    shutil.rmtree(data / "train")
    shutil.rmtree(data / "test" / "c")
    assert call("eval", drawer.receiver, "--data", data, "--json").json["results"]["n"] == 6


def test_a_packed_file_tells_what_it_saves(drawer: Drawer, tmp_path: Path) -> None:
    packed, fake = tmp_path / "q.st", tmp_path / "f.st"
    call("quantize", drawer.receiver, "--bits", 3, "-o", packed)
    call("quantize", drawer.receiver, "--bits", 3, "--fake", "-o", fake)
    found, plain = (
        call("eval", path, "--data", drawer.receiver_data, "--json").json["results"]["cost"]
        for path in (packed, fake)
    )
    assert found["file_bytes"] == packed.stat().st_size
    tensors = sum(array.nbytes for array in load_file(fake).values())
    assert found["float_bytes"] == plain["float_bytes"] == tensors
    assert found["memory_bytes"] == plain["memory_bytes"] == tensors
    assert (found["packed"], plain["packed"]) == (24, 0)
    said = call("eval", packed, "--data", drawer.receiver_data).out
    assert "disk: " in said
    assert "weights are unpacked" in said
    assert "disk: " not in call("eval", fake, "--data", drawer.receiver_data).out
