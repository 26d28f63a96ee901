"""export: other programs see the very model that qvec sees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from conftest import MODEL, Drawer, call, hearing, light, one_bar
from onnx import numpy_helper
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import load_file
from test_matmulnbits import read

from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.write import write
from qvec_cli.export import export, graph
from qvec_cli.export import onnx as onnx_export
from qvec_cli.inputs.files import model_of
from qvec_cli.inputs.foreign import load_packed
from qvec_cli.inputs.network import load_network
from qvec_cli.model import build
from qvec_cli.outputs.metrics import SCHEMA_FILE
from qvec_cli.quant.qtensor import packed_weights

DEIT = {"img_size": 32, "args": {"depth": 1, "embed_dim": 64, "num_heads": 2}}
SWIN = {"img_size": 56, "args": {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2]}}
COAT = {"embed_dims": [16] * 4, "serial_depths": [1] * 4, "parallel_depth": 1, "num_heads": 8}
MODELS: dict[str, build.NetworkOptions] = {
    "vit": build.NetworkOptions("test_vit", 4, img_size=32, args={"depth": 1}),
    "deit": build.NetworkOptions("deit_tiny_distilled_patch16_224", 4, **DEIT),
    "swin": build.NetworkOptions("swin_tiny_patch4_window7_224", 4, **SWIN),
    "grey": build.NetworkOptions("test_vit", 4, img_size=32, in_chans=1, args={"depth": 1}),
    "coat": build.NetworkOptions(
        "coat_tiny", 4, img_size=32, args=COAT
    ),  # modules in several places
    "two channels": build.NetworkOptions("test_vit", 4, img_size=32, in_chans=2, args={"depth": 1}),
}


def made(name: str, path: Path) -> Path:
    """A checkpoint of a pico network whose numbers are all drawn, so that its logits are large."""
    torch.manual_seed(0)
    network, model = build.create(MODELS[name])
    state: dict[str, torch.Tensor] = {}
    kept: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for part, tensor in network.state_dict().items():
        if kept.setdefault(tensor.data_ptr(), part) != part:
            aliases[part] = kept[tensor.data_ptr()]
        else:
            state[part] = torch.randn(tensor.shape) / 8 if tensor.is_floating_point() else tensor
    dtypes = {torch.float32: "F32", torch.int64: "I64"}
    plan = {name: Entry(dtypes[tensor.dtype], (*tensor.shape,)) for name, tensor in state.items()}
    blocks = ((name, [tensor.numpy().reshape(-1)]) for name, tensor in state.items())
    card = Card(Kind.CHECKPOINT, role="fp", model=model.to_json(), aliases=aliases)
    write(path, plan, blocks, card, force=False)
    return path


def network_of(path: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    with Checkpoint(path) as checkpoint:
        model = model_of(checkpoint)
        return load_network(checkpoint, model, "cpu").eval(), model


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


CASES: dict[str, tuple[str, tuple[object, ...]]] = {
    "grey 8 bits, asymmetric groups": ("grey", ("--bits", 8, "--group-size", 16, "--asymmetric")),
    "deit, float": ("deit", ()),
    "swin 3 bits, tensor": (
        *("swin",),
        ("--bits", 3, "--granularity", "tensor", "--asymmetric", "--scale-dtype", "float16"),
    ),
    "vit 2 bits": ("vit", ("--bits", 2, "--scale", "mse-full")),
    "swin 4 bits, half scales": ("swin", ("--bits", 4, "--scale-dtype", "float16")),
    "coat 3 bits": ("coat", ("--bits", 3)),
    "vit, a width a layer": ("vit", ("--bits", 4.5, "--head-bits", 8, "--bits-for", "*.fc1.*=2")),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_onnxruntime_gives_the_logits_of_qvec_and_the_file_holds_its_codes(
    case: str, tmp_path: Path
) -> None:
    name, flags = CASES[case]
    source, out = made(name, tmp_path / "m.st"), tmp_path / "m.onnx"
    if flags:
        source = tmp_path / "q.st"
        call("quantize", tmp_path / "m.st", *flags, "-o", source)
    document = call("export", source, "-o", out, "--json").json
    jsonschema.validate(document, json.loads(SCHEMA_FILE.read_text()))
    results = document["results"]
    assert results["check"]["max_abs_diff"] <= 1e-5 * results["check"]["max_abs_logit"]
    assert (results["bytes_after"], results["left"]) == (out.stat().st_size, [])

    network, model = network_of(source)
    running = session(out)
    for count in (1, 7):
        images = torch.randn(count, *model.pretrained_cfg["input_size"])
        with torch.inference_mode():
            ours = network(images).numpy()
        (theirs,) = running.run(None, {"pixel_values": images.numpy()})
        assert np.abs(theirs - ours).max() <= 1e-5 * np.abs(ours).max()
        assert np.array_equal(theirs.argmax(1), ours.argmax(1))

    with Checkpoint(source) as checkpoint:
        assert set(results["quantized"]) == set(packed_weights(checkpoint))
        found = held_weights(out)
        for weight in results["quantized"]:
            packed = load_packed(checkpoint, weight)
            names = [weight, *(n for n, kept in checkpoint.aliases.items() if kept == weight)]
            arrays = next(found[name] for name in names if name in found)
            held = read(arrays, *packed.codes.shape, packed.grid)
            assert np.array_equal(held, packed.weight()), weight


def held_weights(path: Path) -> dict[str, dict[str, Any]]:
    """The arrays of each MatMulNBits by the weight's name; equal ones may go by one name."""
    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {
        node.input[1].removesuffix("_codes"): {
            part: constants[name]
            for part, name in zip(("codes", "scales", "zero_points"), node.input[1:], strict=False)
        }
        for node in graph.node
        if node.op_type == "MatMulNBits"
    }


@pytest.fixture(scope="module")
def packed(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained receiver at 3 bits."""
    path = tmp_path_factory.mktemp("packed") / "receiver_w3.st"
    call("quantize", drawer.receiver, "--bits", 3, "-o", path)
    return path


@pytest.fixture(scope="module")
def exported(packed: Path) -> Path:
    call("export", packed, "-o", packed.with_suffix(".onnx"))
    return packed.with_suffix(".onnx")


@pytest.fixture(scope="module")
def faint(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The receiver's images behind so much noise that some cannot be told."""
    folder = tmp_path_factory.mktemp("faint")
    rng = np.random.default_rng(0)
    for path in sorted(drawer.receiver_data.glob("*/*/*.png")):
        pixels = 0.2 * np.asarray(Image.open(path)) + 0.8 * rng.integers(0, 256, (32, 32, 3))
        target = folder / path.relative_to(drawer.receiver_data)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(target)
    return folder


def test_top1_on_images_is_that_of_eval_with_what_the_file_says_of_itself(
    faint: Path, packed: Path, exported: Path
) -> None:
    """Whoever has only the file and images finds preprocessing and classes in its metadata."""
    running = session(exported)
    facts = running.get_modelmeta().custom_metadata_map
    mean, std, classes, model = (
        json.loads(facts[key]) for key in ("mean", "std", "classes", "timm")
    )
    data = timm.data.resolve_data_config(pretrained_cfg=model["pretrained_cfg"])
    assert (list(data["mean"]), list(data["std"])) == (mean, std)
    transform = timm.data.create_transform(**data)
    right = count = 0
    for path in sorted((faint / "test").glob("*/*.png")):
        batch = transform(Image.open(path))[None].numpy()
        (logits,) = running.run(None, {"pixel_values": batch})
        right += classes[int(logits.argmax())] == path.parent.name
        count += 1
    score = call("eval", packed, "--data", faint, "--json").json["results"]
    assert (right, count) == (score["n_correct"], score["n"])
    assert count > right > count / 4


def test_the_metadata_name_the_checkpoint_and_its_grid(packed: Path, exported: Path) -> None:
    facts = session(exported).get_modelmeta().custom_metadata_map
    with Checkpoint(packed) as checkpoint:
        assert checkpoint.card is not None
        assert facts["qvec.digest"] == checkpoint.settle()
        assert json.loads(facts["qvec.grid"]) == checkpoint.card.quant
        assert json.loads(facts["timm"]) == checkpoint.card.model


@pytest.mark.slow
def test_another_process_folder_and_stream_give_the_same_bytes(
    packed: Path, exported: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "qvec_cli", "export", "-", "-o", "-", "--to", "onnx"]
    env = {**os.environ, "PYTHONHASHSEED": "5", "OMP_NUM_THREADS": "2"}
    with packed.open("rb") as file:
        done = subprocess.run(
            command, stdin=file, capture_output=True, check=True, env=env, cwd=tmp_path
        )
    assert done.stdout == exported.read_bytes()
    assert b"logits of 4 random images" in done.stderr
    for word in (str(packed.parent), str(Path.home()), "site-packages", ".py"):
        assert word.encode() not in done.stdout


@pytest.mark.parametrize("name", MODELS)
def test_timm_makes_the_very_network_of_the_folder(name: str, tmp_path: Path) -> None:
    call("quantize", made(name, tmp_path / "m.st"), "--bits", 3, "-o", tmp_path / "q.st")
    for source in ("m.st", "q.st"):
        out = tmp_path / f"{source}.timm"
        with hearing() as heard:
            document = call("export", tmp_path / source, "-o", out, "--to", "timm", "--json").json
        one_bar(heard, 2)
        jsonschema.validate(document, json.loads(SCHEMA_FILE.read_text()))
        assert document["results"]["check"]["max_abs_diff"] == 0
        assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors"}
        assert all(t.dtype != torch.float16 for t in load_file(out / "model.safetensors").values())
        network, model = network_of(tmp_path / source)
        theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
        images = torch.randn(5, *model.pretrained_cfg["input_size"])
        with torch.inference_mode():
            assert torch.equal(theirs(images), network(images))
        for key in ("mean", "std", "input_size", "crop_pct", "interpolation"):
            told = theirs.pretrained_cfg[key]
            assert (list(told) if isinstance(told, tuple) else told) == model.pretrained_cfg[key]


def test_a_folder_for_timm_is_a_checkpoint_of_qvec_with_its_classes(
    drawer: Drawer, packed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "folder"
    said = call("export", packed, "-o", out, "--to", "timm").err
    assert "timm has no packed weights: 24 become float32" in said
    assert json.loads((out / "config.json").read_text())["label_names"] == ["a", "b", "c", "d"]
    scores = [
        call("eval", path, "--data", drawer.receiver_data, "--json").json["results"]
        for path in (packed, out)
    ]
    assert scores[0]["loss"] == scores[1]["loss"]
    again = call("quantize", out, "--bits", 3, "-o", tmp_path / "x.st", code=1)
    assert "is quantized already" in again.errors[0]
    assert "made by: qvec" in call("inspect", out, "--lineage").out


def known(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph that was made before, which takes torch some seconds to make."""
    made = graph.Graph(exported.read_bytes(), ())
    monkeypatch.setattr(graph, "export", lambda *_: made)


def test_logits_that_would_be_others_are_a_fault_and_nothing_is_written(
    packed: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(exported, monkeypatch)
    monkeypatch.setattr(onnx_export, "BOUND", 1e-12)
    refused = call("export", packed, "-o", tmp_path / "x.onnx", code=1)
    assert "its logits on random images would be off by" in refused.errors[0]
    old = tmp_path / "old"
    call("export", packed, "-o", old, "--to", "timm")
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    real = build.from_folder

    def other(folder: Path) -> Any:
        network = real(folder)
        with torch.no_grad():
            next(network.parameters()).add_(1e-3)
        return network

    monkeypatch.setattr(build, "from_folder", other)
    for name, force in (("new", ()), ("old", ("--force",))):
        args = ("export", packed, "-o", tmp_path / name, "--to", "timm", *force)
        refused = call(*args, code=1)
        assert "its logits on random images would be off by" in refused.errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    call("export", packed, "-o", tmp_path / "new", "--to", "timm", "--no-check")


def test_a_folder_for_timm_is_made_replaced_by_force_and_loses_no_file_of_others(
    packed: Path, tmp_path: Path
) -> None:
    args = ("export", packed, "--to", "timm", "--no-check", "-o")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    call(*args, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    folder = tmp_path / "empty"
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(made) == ["config.json", "model.safetensors"]
    (folder / "thesis.tex").write_text("mine")
    (folder / "config.json").write_text("{}")
    assert "config.json: exists" in call(*args, folder, code=1).errors[0]
    call(*args, folder, "--force")
    made["thesis.tex"] = b"mine"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == made


def test_targets_that_cannot_be_folders_are_refused_before_any_work(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    refused = {"file": "is no folder", "nowhere/out": "its folder does not exist"}
    for name, reason in {**refused, "-": "no stream can take"}.items():
        found = call("export", packed, "-o", name, "--to", "timm", "--force", code=None)
        assert found.code in {1, 2}
        assert reason in found.errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_without_the_extra_the_hint_names_it(
    missing: str, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == missing else True)
    refused = call("export", packed, "-o", tmp_path / "x.onnx", code=1)
    assert refused.errors == [f"error: the package {missing} is not installed"]
    assert "hint: pip install 'qvec[onnx]'" in refused.err


def test_without_onnxruntime_a_file_is_written_and_said_not_to_be_run(
    packed: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(exported, monkeypatch)
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    with hearing() as heard:
        shown = call("export", packed, "-o", tmp_path / "x.onnx", "--json")
    one_bar(heard, 10)
    assert [label for label, *_ in heard] == [
        *("part 1/3: graph", "part 2/3: check", "part 3/3: file", "written")
    ]
    assert "onnxruntime is not installed: the file is not run" in shown.err
    assert shown.json["results"]["check"] is None
    assert (tmp_path / "x.onnx").read_bytes() == exported.read_bytes()


def test_refusals_come_before_torch_and_before_any_work(
    drawer: Drawer, packed: Path, tmp_path: Path
) -> None:
    grouped = tmp_path / "g8.st"
    call("quantize", drawer.receiver, "--bits", 3, "--group-size", 8, "-o", grouped)
    out = tmp_path / "x.onnx"
    foreign = tmp_path / "foreign"
    call("export", packed, "-o", foreign, "--to", "timm")
    with Checkpoint(packed) as checkpoint:
        arrays = {name: np.array(checkpoint.array(name)) for name in checkpoint}
    save_file(arrays, foreign / "model.safetensors")  # without a card, as other tools write
    refusals: list[tuple[int, str, tuple[object, ...]]] = [
        (1, "g8.st: groups of 8 do not fit onnxruntime", (grouped, "-o", out)),
        (1, "weight_packed: packed by another tool", (foreign, "-o", out)),
        (2, "does not tell the format", (packed, "-o", tmp_path / "x")),
        (1, "exists", (packed, "-o", grouped, "--to", "onnx")),
        (1, "is no folder", (packed, "-o", grouped, "--to", "timm")),
        (1, "is a vector, not a model", (drawer.rho, "-o", out)),
        (1, "no such file", (tmp_path / "nothing.st", "-o", out)),
    ]
    for code, reason, args in refusals:
        found, heavy, said = light("export", *args)
        assert (found, heavy) == (code, [])
        assert reason in said[0], said
    assert {path.name for path in tmp_path.iterdir()} == {"g8.st", "foreign"}
    call("export", grouped, "-o", tmp_path / "g8", "--to", "timm")


def test_a_plan_says_what_becomes_of_each_weight(packed: Path, tmp_path: Path) -> None:
    for to, fate in (("onnx", "MatMulNBits: 4 bits, blocks of 64"), ("timm", "on the grid 3-bit")):
        plan = call(
            *("export", packed, "-o", tmp_path / "x", "--to", to, "--dry-run", "--json")
        ).json["results"]["plan"]
        fates = {tensor["name"]: tensor["fate"] for tensor in plan["tensors"]}
        assert fate in fates["blocks.0.attn.qkv.weight_packed"]
        assert fates["head.weight"] == "float32"
    assert list(tmp_path.iterdir()) == []


def test_a_bare_file_is_exported_under_the_name_that_the_user_gives_it(
    drawer: Drawer, tmp_path: Path
) -> None:
    bare, out = tmp_path / "bare.st", tmp_path / "x"
    save_file({n: t.numpy() for n, t in load_file(drawer.receiver).items()}, bare)
    args = ("export", bare, "-o", out, "--to", "timm", "--json")
    refused = call(*args, code=1)
    assert "does not say its architecture" in refused.errors[0]
    found = call(*args, "--model", MODEL[0], "--img-size", 32).json
    assert found["results"]["check"]["max_abs_diff"] == 0
