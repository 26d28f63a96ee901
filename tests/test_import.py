"""One door: the files that people have, taken for what they are, and refused where they are not."""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import Drawer, Result, call
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import SpecError
from qvec_cli.model.build import NetworkOptions
from qvec_cli.model.recognise import recognise
from qvec_cli.pipeline.train_request import TrainRequest, stored_model
from qvec_cli.specs import Loading, Recipe

State = dict[str, torch.Tensor]
DIGITS = {"class_to_idx": {"a": 0, "b": 1, "c": 2, "d": 3}}


def right_in_timm(state: State, data: Path, **preparation: Any) -> int:
    """Test images that a plain timm loop has right: nothing of qvec takes part."""
    network = timm.create_model("test_vit", num_classes=4, img_size=32)
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    network.eval()
    config = resolve_data_config({"input_size": (3, 32, 32)}, model=network) | preparation
    prepare = create_transform(**config, is_training=False)
    right = 0
    for label, folder in enumerate(sorted((data / "test").iterdir())):
        pictures = [prepare(Image.open(path)) for path in sorted(folder.iterdir())]
        with torch.inference_mode():
            right += int((network(torch.stack(pictures)).argmax(1) == label).sum())
    return right


def spoiled(state: State) -> State:
    """Weights that nobody should take."""
    return {name: torch.randn_like(tensor) for name, tensor in state.items()}


def as_state_dict(state: State, path: Path) -> Path:
    torch.save(state, path / "weights.pth")
    return path / "weights.pth"


def as_timm(state: State, path: Path) -> Path:
    """What timm's train.py saves: the average is good, the last weights are not."""
    arguments = argparse.Namespace(model="test_vit", img_size=32, num_classes=4, mean=None, gp=None)
    arguments.interpolation, arguments.crop_pct, arguments.model_kwargs = "", None, {}
    saved = {"epoch": 9, "arch": "test_vit", "state_dict": spoiled(state), "version": 2}
    saved |= {"args": arguments, "state_dict_ema": state, "metric": np.float64(81.25)}
    torch.save(saved | {"optimizer": {"state": {}, "param_groups": []}}, path / "best.pth.tar")
    return path / "best.pth.tar"


def as_lightning(state: State, path: Path) -> Path:
    inside = {f"model.{name}": tensor for name, tensor in state.items()}
    saved = {"state_dict": inside | {"criterion.weight": torch.ones(4)}, "epoch": 3}
    saved |= {"hyper_parameters": {"lr": 0.1}, "callbacks": {"best": np.float32(0.9)}}
    torch.save(saved, path / "epoch=3.ckpt")
    return path


def prefixed(prefix: str) -> Callable[[State, Path], Path]:
    def write(state: State, path: Path) -> Path:
        return as_state_dict({f"{prefix}{name}": t for name, t in state.items()}, path)

    return write


def as_accelerate(state: State, path: Path) -> Path:
    """A folder of save_state: weights beside what else a run needs."""
    save_file(state, path / "model.safetensors")
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        torch.save({"state": {}, "param_groups": []}, path / name)
    return path


def as_average(state: State, path: Path) -> Path:
    network = timm.create_model("test_vit", num_classes=4, img_size=32)
    network.load_state_dict(state)
    return as_state_dict(torch.optim.swa_utils.AveragedModel(network).state_dict(), path)


def as_shards(state: State, path: Path) -> Path:
    names = list(state)
    parts = [names[::2], names[1::2]]
    files = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    for file, part in zip(files, parts, strict=True):
        save_file({name: state[name] for name in part}, path / file, {"format": "pt"})
    table = {n: file for file, part in zip(files, parts, strict=True) for n in part}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return path


def as_halves(state: State, path: Path) -> Path:
    return as_state_dict({name: tensor.half() for name, tensor in state.items()}, path)


def as_dino(state: State, path: Path) -> Path:
    saved = {"student": {f"module.{n}": t for n, t in spoiled(state).items()}, "epoch": 9}
    saved |= {"teacher": {f"backbone.{name}": tensor for name, tensor in state.items()}}
    torch.save(saved | {"args": argparse.Namespace(arch="vit_small")}, path / "checkpoint.pth")
    return path / "checkpoint.pth"


FILES: dict[str, tuple[Callable[[State, Path], Path], tuple[str, ...]]] = {
    "a state dict": (as_state_dict, ()),
    "timm's training script with an average": (as_timm, ()),
    "Lightning with a weighted loss": (as_lightning, ()),
    "DDP": (prefixed("module."), ()),
    "torch.compile": (prefixed("_orig_mod."), ()),
    "accelerate": (as_accelerate, ()),
    "an averaged model": (as_average, ()),
    "shards": (as_shards, ()),
    "half precision": (as_halves, ()),
    "a student and a teacher": (as_dino, ("--weights-key", "teacher")),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_as_people_have_it_is_as_good_as_in_timm(
    case: str, drawer: Drawer, tmp_path: Path
) -> None:
    """Two commands: import, eval."""
    write, flags = FILES[case]
    state = load_file(drawer.receiver)
    file, out = write(state, tmp_path), tmp_path / "imported.st"
    call("import", file, *flags, "-o", out)
    result = call("eval", out, "--data", drawer.receiver_data, "--json").json["results"]
    weights = {n: t.half() for n, t in state.items()} if case == "half precision" else state
    assert result["n_correct"] == right_in_timm(weights, drawer.receiver_data)


@pytest.mark.slow
@pytest.mark.parametrize("case", FILES)
def test_a_file_as_people_have_it_is_brought_to_three_bits(
    case: str, drawer: Drawer, tmp_path: Path
) -> None:
    """Import, advise, eval: what advise writes is as good as what it makes of our own file."""
    write, flags = FILES[case]
    out, low, ours = (tmp_path / name for name in ("imported.st", "w3.st", "ours.st"))
    file = write(load_file(drawer.receiver), tmp_path)
    call("import", file, *flags, "-o", out)
    for source, target in ((out, low), (drawer.receiver, ours)):
        call("advise", source, "--bits", 3, "--refine", 0, "-o", target)
    scores = [
        call("eval", path, "--data", drawer.receiver_data, "--json").json["results"]["n_correct"]
        for path in (low, ours)
    ]
    assert abs(scores[0] - scores[1]) <= (2 if case == "half precision" else 0)


@pytest.mark.slow
def test_advise_takes_what_import_has_written(drawer: Drawer, tmp_path: Path) -> None:
    out, low = tmp_path / "imported.st", tmp_path / "w3.st"
    call("import", as_timm(load_file(drawer.receiver), tmp_path), "-o", out)
    result = call("advise", out, "--bits", 3, "--refine", 0, "-o", low)
    assert "decision: " in result.out
    with Checkpoint(low) as packed, Checkpoint(drawer.receiver) as theta:
        assert packed.card.targets == theta.card.targets


# --- what the file tells, and what it does not ----------------------------------------------------


def notes(result: Result) -> str:
    return "\n".join(line for line in result.err.splitlines() if line.startswith("note: "))


def imported(path: Path, *flags: object) -> tuple[Result, dict[str, Any]]:
    result = call("import", path, *flags, "-o", path.with_name("out.st"), "--force", "--json")
    return result, result.json["results"]


def network(name: str, path: Path, **args: Any) -> Path:
    torch.manual_seed(0)
    state = timm.create_model(name, **args).state_dict()
    torch.save(state, path / "x.pth")
    return path / "x.pth"


def test_shapes_tell_network_size_channels_and_classes(tmp_path: Path) -> None:
    cases: dict[str, dict[str, Any]] = {
        "vit_tiny_patch16_224": {"img_size": 64, "num_classes": 5},
        "test_vit": {"img_size": 32, "in_chans": 1, "num_classes": 3},
        "test_vit2": {"num_classes": 2},
        "test_convnext": {"num_classes": 4, "in_chans": 1},
    }
    for name, args in cases.items():
        result, facts = imported(network(name, tmp_path, **args))
        model = facts["model"]
        side = args.get("img_size") or timm.create_model(name).pretrained_cfg["input_size"][1]
        assert model["architecture"] == name
        assert model["pretrained_cfg"]["input_size"] == [args.get("in_chans", 3), side, side]
        assert model["num_classes"] == args["num_classes"]
        assert f"{name} at {side} px" in notes(result)
        assert "no tensor tells the size" in notes(result) or name != "test_convnext"


def test_of_several_networks_that_fit_all_are_listed_and_none_is_taken(tmp_path: Path) -> None:
    file = network("test_efficientnet_gn", tmp_path, num_classes=3)
    result = call("import", file, "-o", tmp_path / "x.st", code=1)
    assert "compute differently" in result.err
    for name in ("test_efficientnet_gn", "test_efficientnet_ln"):
        assert name in result.err
    assert "--model NAME" in result.err
    call("import", file, "--model", "test_efficientnet_ln", "-o", tmp_path / "x.st")


def test_networks_that_compute_the_same_are_told_apart_from_those_that_do_not() -> None:
    """The table of names against networks: same state, same image, same logits or not."""
    with torch.device("meta"):
        shapes = timm.create_model("vit_tiny_patch16_224", num_classes=2).state_dict()
    (names,) = recognise({name: tuple(tensor.shape) for name, tensor in shapes.items()})
    assert names[0] == "vit_tiny_patch16_224"
    assert {"deit_tiny_patch16_224", "vit_tiny_patch16_384"} < {*names}
    torch.manual_seed(0)
    ours = timm.create_model(names[0], num_classes=2, img_size=32).eval()
    image = torch.randn(1, 3, 32, 32)
    for name in names[1:]:
        theirs = timm.create_model(name, num_classes=2, img_size=32).eval()
        theirs.load_state_dict(ours.state_dict())
        assert torch.equal(theirs(image), ours(image)), name


def test_widths_that_are_none_of_timms_are_told_by_the_nearest_name(tmp_path: Path) -> None:
    args = {"embed_dim": 96, "depth": 2, "num_heads": 3, "patch_size": 4, "img_size": 28}
    file = network("vit_tiny_patch16_224", tmp_path, num_classes=5, in_chans=1, **args)
    assert "no network of timm" in call("import", file, "-o", tmp_path / "y.st", code=1).err
    name = ("--model", "vit_tiny_patch16_224")
    result = call("import", file, *name, "-o", tmp_path / "y.st", code=2)
    assert "--model-arg num_heads=N" in result.err
    _, facts = imported(file, *name, "--model-arg", "num_heads=3")
    assert facts["model"]["model_args"] == {**args, "in_chans": 1}
    assert facts["model"]["pretrained_cfg"]["input_size"] == [1, 28, 28]


def test_a_training_scripts_arguments_count_and_flags_overrule_them(
    drawer: Drawer, tmp_path: Path
) -> None:
    state = load_file(drawer.receiver)
    said = {"mean": (0.1, 0.2, 0.3), "std": (0.9, 0.8, 0.7), "interpolation": "nearest"}
    arguments = argparse.Namespace(**said, crop_pct=0.5, img_size=None, num_classes=None)
    file = tmp_path / "x.pth"
    torch.save({"arch": "test_vit", "args": arguments, "state_dict": state}, file)
    result, facts = imported(file)
    data = facts["model"]["pretrained_cfg"]
    assert "its training script says test_vit" in notes(result)
    assert "images are prepared as timm has it" not in notes(result)
    assert data["mean"] == [0.1, 0.2, 0.3]
    assert (data["interpolation"], data["crop_pct"]) == ("nearest", 0.5)
    _, facts = imported(file, "--mean", "0.5,0.5,0.5", "--crop-pct", 1)
    assert facts["model"]["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5]
    assert facts["model"]["pretrained_cfg"]["std"] == [0.9, 0.8, 0.7]
    assert facts["model"]["pretrained_cfg"]["crop_pct"] == 1


def test_what_timm_has_for_a_name_is_said_and_another_word_is_measured(
    drawer: Drawer, tmp_path: Path
) -> None:
    """In import and wherever a bare file is measured; the numbers are those of timm's loop."""
    state, data = load_file(drawer.receiver), drawer.receiver_data
    file = as_state_dict(state, tmp_path)
    odd = ("--mean", "0.9,0.1,0.4", "--std", "0.3,0.2,0.9", "--interpolation", "nearest")
    words = {"mean": (0.9, 0.1, 0.4), "std": (0.3, 0.2, 0.9), "interpolation": "nearest"}
    seen = set()
    for flags, preparation in (((), {}), (odd, words)):
        direct = call("eval", file, "--model", "test_vit", *flags, "--data", data, "--json")
        assert "images are prepared as timm has it for test_vit" in notes(direct)
        through, _ = imported(file, *flags)
        assert "images are prepared as timm has it for test_vit" in notes(through)
        again = call("eval", tmp_path / "out.st", "--data", data, "--json")
        right = right_in_timm(state, data, **preparation)
        for result in (direct, again):
            assert result.json["results"]["n_correct"] == right
        seen.add(right)
    whole = ("--crop-pct", "0.95", *odd)
    assert "images are prepared" not in notes(imported(file, *whole)[0])


def test_classes_are_those_of_the_list_or_of_config_json(drawer: Drawer, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("d\nc\nb\na\n")
    file = as_state_dict(load_file(drawer.receiver), tmp_path)
    _, facts = imported(file, "--class-map", tmp_path / "classes.txt")
    assert facts["classes"] == ["d", "c", "b", "a"]
    (tmp_path / "classes.txt").write_text("a\nb\n")
    wrong = ("--class-map", tmp_path / "classes.txt", "-o", tmp_path / "y.st")
    assert "has 2 classes" in call("import", file, *wrong, code=1).err
    call("export", drawer.receiver, "--to", "timm", "-o", tmp_path / "timm")
    folder = tmp_path / "timm"
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    _, facts = imported(folder)
    assert facts["classes"] == ["a", "b", "c", "d"]
    assert facts["model"]["architecture"] == "test_vit"


def test_a_file_is_brought_to_another_size_and_other_channels_as_timm_does(tmp_path: Path) -> None:
    file = network("test_vit", tmp_path, img_size=32, num_classes=3)
    state = torch.load(file, weights_only=True)
    result, facts = imported(file, "--img-size", 64, "--in-chans", 1)
    assert "position embeddings resampled" in notes(result)
    assert facts["model"]["pretrained_cfg"]["input_size"] == [1, 64, 64]
    grown = timm.create_model("test_vit", img_size=64, in_chans=1, num_classes=3)
    theirs = timm.models.vision_transformer.checkpoint_filter_fn(dict(state), grown)
    ours = load_file(tmp_path / "out.st")
    assert torch.equal(ours["pos_embed"], theirs["pos_embed"])
    stem = state["patch_embed.proj.weight"].sum(1, keepdim=True)
    assert torch.equal(ours["patch_embed.proj.weight"], stem)


def test_import_refuses_what_needs_no_door_or_has_none(drawer: Drawer, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "x.st")
    assert "has a card already" in call("import", drawer.receiver, *out, code=1).err
    torch.save({"w": torch.ones(2, 2)}, tmp_path / "w.pth")
    assert "no network of timm" in call("import", tmp_path / "w.pth", *out, code=1).err
    file = as_state_dict(load_file(drawer.receiver), tmp_path)
    wrong = call("import", file, "--model", "test_vit2", *out, code=1)
    assert "do not fit the network" in wrong.err
    assert "hf-hub:ORG/NAME" in call("import", "hf-hub:nothing", *out, code=1).err
    for flag, value in (("--mean", "much"), ("--std", "0,1,1"), ("--mean", "0.5,1"), ("--std", "")):
        assert flag in call("import", file, flag, value, *out, code=2).errors[0]
    assert not (tmp_path / "x.st").exists()


def test_every_command_that_builds_a_network_takes_the_same_flags(drawer: Drawer) -> None:
    commands = ("import", "eval", "quantize", "moments", "export", "advise", "sweep-lambda")
    flags = ("--model ", "--model-arg", "--img-size", "--in-chans", "--num-classes", "--mean")
    flags += ("--std", "--interpolation", "--crop-pct", "--use-ema", "--weights-key")
    for command in (*commands, "transfer", "patch", "combine"):
        text = call(command, "--help").out
        assert [flag for flag in flags if flag not in text] == [], command


def test_a_bare_receiver_goes_through_every_command(drawer: Drawer, tmp_path: Path) -> None:
    """The same as with a card: lambda, coefficients and accuracies."""
    file = as_state_dict(load_file(drawer.receiver), tmp_path)
    named, noise = ("--model", "test_vit"), ("--proxy", "noise", "--proxy-samples", 16)
    out = tmp_path / "o.st"
    found = []
    for receiver, flags in ((drawer.receiver, ()), (file, named)):
        lines = {
            "patch": ("patch", receiver, drawer.rho, "--lambda", "auto", *noise, *flags),
            "combine": (*("combine", drawer.rho, "--fit", "--receiver", receiver, *noise, *flags),),
        }
        for line in lines.values():
            result = call(*line, "-o", out, "--force", "--json", code=None)
            found.append(result.json["results"].get("lambda") if result.code == 0 else result.err)
        sweep = ("sweep-lambda", receiver, drawer.rho, "--data", drawer.receiver_data)
        sweep += ("--lambdas", "0,1", *flags, "-o", out, "--force", "--json")
        points = call(*sweep).json["results"]["curve"]
        found.append([point["val"]["n_correct"] for point in points])
    assert found[0] == found[3]
    assert found[2] == found[5]


# --- what is in a file, and what is not -----------------------------------------------------------


def test_the_way_to_a_network_is_in_the_hint(drawer: Drawer, tmp_path: Path) -> None:
    file = as_state_dict(load_file(drawer.receiver), tmp_path)
    for line in (
        ("eval", file, "--data", drawer.receiver_data),
        ("advise", file, "--bits", 3),
        ("patch", file, drawer.rho, "--lambda", "auto", "--proxy", "noise", "-o", tmp_path / "o"),
        ("sweep-lambda", file, drawer.rho, "--data", drawer.receiver_data, "-o", tmp_path / "o"),
    ):
        result = call(*line, code=1)
        assert "does not say its architecture" in result.err
        assert "qvec import FILE -o NEW.st" in result.err


def test_harmless_things_beside_the_weights_are_passed_over(tmp_path: Path) -> None:
    beside = {
        "best_acc": np.float64(0.9),
        "count": np.int64(3),
        "confusion": np.arange(10_000.0).reshape(100, 100),
        "started": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        "blob": bytes(range(256)) * 4,
        "where": Path("runs/1"),
    }
    state = {"a.weight": torch.randn(40, 50)}
    for old in (False, True):
        file = tmp_path / f"{old}.pth"
        torch.save({"state_dict": state, **beside}, file, _use_new_zipfile_serialization=not old)
        with Checkpoint(file) as ours:
            assert np.array_equal(ours.array("a.weight"), state["a.weight"].numpy())


def test_training_takes_the_same_words_for_its_images(drawer: Drawer, tmp_path: Path) -> None:
    words = NetworkOptions(mean=(0.1, 0.2, 0.3), interpolation="nearest", crop_pct=0.5)
    request = TrainRequest(
        str(drawer.base), "images", tmp_path / "x.st", Recipe(), Loading(), network=words
    )
    with Checkpoint(drawer.base) as base:
        data = stored_model(request, base, 3).pretrained_cfg
        before = base.card.model["pretrained_cfg"] if base.card.model else {}
        assert data == before | {
            "mean": [0.1, 0.2, 0.3],
            "interpolation": "nearest",
            "crop_pct": 0.5,
            "num_classes": 3,
        }
        wrong = replace(request, network=NetworkOptions(mean=(0.1,)))
        with pytest.raises(SpecError, match="--mean has 1 numbers for 3 channels"):
            stored_model(wrong, base, 3)


# --- what users and attackers have found ----------------------------------------------------------


def test_odd_arguments_of_a_training_script_are_taken_or_left(
    drawer: Drawer, tmp_path: Path
) -> None:
    """What timm's own script may hold, and what another's may."""
    state = load_file(drawer.receiver)
    cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "test_vit": ({"crop_pct": 1, "mean": [0.3]}, {"crop_pct": 1, "mean": [0.3] * 3}),
        "hf-hub:timm/test_vit.r160_in1k": ({"std": [0.1, 0.2, 0.3]}, {"std": [0.1, 0.2, 0.3]}),
        "none_of_timms": ({"interpolation": "nearest"}, {"interpolation": "nearest"}),
        "timm/test_vit": ({"interpolation": "", "model_kwargs": {"img_size": 32}, "gp": "avg"}, {}),
        "a/test_vit": ({"mean": ["a"], "std": None, "crop_pct": float("nan"), "img_size": "x"}, {}),
    }
    for arch, (said, wanted) in cases.items():
        file = tmp_path / "x.pth"
        torch.save({"arch": arch, "args": argparse.Namespace(**said), "state_dict": state}, file)
        _, facts = imported(file)
        data = facts["model"]["pretrained_cfg"]
        assert {key: data[key] for key in wanted} == wanted, arch
        assert facts["model"]["architecture"] == "test_vit"
        call("eval", file.with_name("out.st"), "--data", drawer.receiver_data)
    flat = argparse.Namespace(input_size=[3, 32, 48])
    torch.save({"arch": "test_vit", "args": flat, "state_dict": state}, tmp_path / "x.pth")
    out = ("-o", tmp_path / "y.st")
    assert "32 x 48 px" in call("import", tmp_path / "x.pth", *out, code=1).err


def test_a_folder_is_taken_at_its_word(drawer: Drawer, tmp_path: Path) -> None:
    """The order of its classes and the mode of its crop, with and without the door."""
    folder, data = tmp_path / "timm", drawer.receiver_data
    call("export", drawer.receiver, "--to", "timm", "-o", folder)
    state = load_file(folder / "model.safetensors")
    save_file(state, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    right = call("eval", folder, "--data", data, "--json").json["results"]["n_correct"]
    config["label_names"] = ["b", "a", "d", "c"]
    config["pretrained_cfg"] |= {"crop_mode": "border", "crop_pct": 0.5, "mean": [0.1, 0.9, 0.4]}
    (folder / "config.json").write_text(json.dumps(config))
    words = {"crop_mode": "border", "crop_pct": 0.5, "mean": (0.1, 0.9, 0.4)}
    mirrored = {
        name: tensor[[1, 0, 3, 2]] if name.startswith("head.") else tensor
        for name, tensor in state.items()
    }
    wanted = right_in_timm(mirrored, data, **words)
    call("import", folder, "-o", tmp_path / "x.st")
    for path in (folder, tmp_path / "x.st"):
        result = call("eval", path, "--data", data, "--json").json["results"]
        assert result["n_correct"] == wanted
    assert wanted != right
    for key, value in (("mean", None), ("std", ["a"]), ("crop_pct", -1), ("interpolation", "x")):
        config["pretrained_cfg"][key] = value
        (folder / "config.json").write_text(json.dumps(config))
        assert call("import", folder, "-o", tmp_path / "y.st", code=None).code in (0, 1)
        assert call("eval", folder, "--data", data, code=1).errors


def test_a_head_is_named_where_no_network_tells_it_and_nowhere_else(
    drawer: Drawer, tmp_path: Path
) -> None:
    file, out = as_state_dict(load_file(drawer.receiver), tmp_path), tmp_path / "o.st"
    for line in (
        ("quantize", drawer.receiver, "--bits", 3),
        ("quantize", file, "--model", "test_vit", "--bits", 3),
        ("patch", drawer.receiver, drawer.rho),
        ("extract", drawer.donor, drawer.donor_qat),
    ):
        for flag in (("--head", "blocks.0.*"), ("--no-head",)):
            assert "tells its classifier" in call(*line, *flag, "-o", out, code=1).err
    args = ("quantize", file, "--head", "blocks.0.*", "--bits", 3, "-o", out, "--json")
    results = call(*args).json["results"]
    assert not [name for name in results["quantized"] if name.startswith("blocks.0.")]


def test_an_imported_file_is_a_donor_and_a_base(drawer: Drawer, tmp_path: Path) -> None:
    donor, qat = (tmp_path / name for name in ("donor.st", "qat.st"))
    call("import", as_state_dict(load_file(drawer.donor), tmp_path), "-o", donor)
    call("extract", donor, drawer.donor_qat, "-o", tmp_path / "rho.st")
    ours, theirs = load_file(tmp_path / "rho.st"), load_file(drawer.rho)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    swapped = ("extract", drawer.donor_qat, donor, "-o", qat)
    assert "role" in call(*swapped, code=1).err


def test_a_named_vit_and_a_file_that_is_none_are_told_apart(tmp_path: Path) -> None:
    for name, state in (("a", {"head.weight": torch.ones(2, 2)}), ("b", {})):
        torch.save(state, tmp_path / f"{name}.pth")
        args = ("import", tmp_path / f"{name}.pth", "--model", "test_vit", "-o", tmp_path / "x.st")
        assert len(call(*args, code=1).errors) == 1


def test_transfer_takes_the_weights_that_are_asked_for(drawer: Drawer, tmp_path: Path) -> None:
    state = load_file(drawer.receiver)
    saved = {"state_dict": state, "state_dict_ema": spoiled(state), "arch": "test_vit"}
    torch.save(saved, tmp_path / "r.pth")
    found = []
    for model, flags in ((drawer.receiver, ()), (tmp_path / "r.pth", ("--no-use-ema",))):
        grid = tmp_path / "grid.yaml"
        receiver = f"{{model: {model}, data: {drawer.receiver_data}}}"
        grid.write_text(f"receivers: {{r: {receiver}}}\ndonors: {{d: {drawer.rho}}}\n")
        out = tmp_path / "grid.jsonl"
        call("transfer", grid, "--lambdas", "0,1", *flags, "-o", out, "--force")
        lines = map(json.loads, out.read_text().splitlines())
        found.append(
            [
                [point["val"]["n_correct"] for point in line["curve"]]
                for line in lines
                if line["kind"] == "cell"
            ]
        )
    assert found[0] == found[1]
