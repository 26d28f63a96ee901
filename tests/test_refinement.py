"""quantize --refine: what moves, what does not, and that it is never for the worse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Drawer, bare, call, hearing, one_bar
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.inputs.files import model_of
from qvec_cli.inputs.images import open_for
from qvec_cli.inputs.network import load_network
from qvec_cli.learn import distill as module
from qvec_cli.learn.distill import DistillOptions, TeacherOutputs, distance, distill
from qvec_cli.model.build import normalise
from qvec_cli.specs import Loading, Silence

SMALL = ("--bits", 3, "--device", "cpu", "--batch-size", 16)
STEPS = ("--refine", 20, "--proxy-samples", 48, "--proxy")
WAYS: dict[str, tuple[object, ...]] = {
    "rtn": ("--symmetric",),
    "zero points, float16": ("--asymmetric", "--scale-dtype", "float16"),
    "awq": ("--method", "awq", "--group-size", 16, "--symmetric"),
    "corrected": ("--bias-correction", "--granularity", "tensor", "--symmetric"),
}


def flags(way: str, drawer: Drawer) -> tuple[object, ...]:
    images = ("--calib-samples", 24, "--calib", drawer.donor_data)
    return (*SMALL, *WAYS[way], *(images if way in ("awq", "corrected") else ()))


@pytest.mark.parametrize("way", WAYS)
def test_codes_stay_and_scales_biases_and_norms_move(
    way: str, drawer: Drawer, tmp_path: Path
) -> None:
    plain, refined = tmp_path / "plain.st", tmp_path / "refined.st"
    args = ("quantize", drawer.receiver, *flags(way, drawer), "--bits", 2)
    call(*args, "-o", plain)
    found = call(*args, *STEPS, drawer.donor_data, "-o", refined, "--json").json
    told = found["results"]["refinement"]
    assert told["kept"]
    assert told["held_back"]["after"] < told["held_back"]["before"]
    assert (told["held_back"]["images"], told["learned_from"]) == (12, 36)
    before, after = load_file(plain), load_file(refined)
    assert before.keys() == after.keys()
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    weights = found["results"]["quantized"]
    fixed = {f"{n}{part}" for n in weights for part in ("_packed", "_shape", "_zero_point")}
    assert moved.isdisjoint({*fixed, "head.weight", "head.bias", "pos_embed"})
    assert moved.isdisjoint(name for name in before if name.startswith("patch_embed.proj.weight"))
    assert {f"{name}_scale" for name in weights} <= moved
    vectors = moved - {f"{name}_scale" for name in weights}
    assert vectors
    assert vectors <= set(found["results"]["changed"])
    assert all(before[name].ndim == 1 for name in vectors)
    assert all(before[name].dtype == after[name].dtype for name in before)


def _distance(path: Path, drawer: Drawer, images: Path, places: slice) -> float:
    """KL to the receiver on some of the images that are drawn."""
    with Checkpoint(path) as checkpoint, Checkpoint(drawer.receiver) as theta:
        model = model_of(theta)
        networks = [load_network(each, model, "cpu").eval() for each in (checkpoint, theta)]
        own = drawer.donor if images == drawer.donor_data else drawer.receiver
        with Checkpoint(own) as named:
            examples = open_for(named, model, str(images), Loading(), Silence())
            decoded, _ = examples.decoded("train", Silence())
    order = torch.randperm(len(decoded), generator=torch.Generator().manual_seed(0))
    inputs = normalise(model)(decoded[order[places]])
    with torch.no_grad():
        ours, theirs = (network(inputs).double().log_softmax(1) for network in networks)
    return float((theirs.exp() * (theirs - ours)).sum(1).mean())


def test_what_is_told_of_the_images_held_back_is_that_of_the_file(
    drawer: Drawer, tmp_path: Path
) -> None:
    out = tmp_path / "q.st"
    args = ("quantize", drawer.receiver, *flags("zero points, float16", drawer), "-o", out)
    found = call(*args, *STEPS, drawer.donor_data, "--json").json
    told = found["results"]["refinement"]
    assert told["loss"] == "kl"
    measured = _distance(out, drawer, drawer.donor_data, slice(3, 48, 4))
    assert told["held_back"]["after"] == pytest.approx(measured, rel=1e-4, abs=1e-7)
    assert found["data_use"] == {"level": "proxy_images", "counts": {"proxy": 48}}
    assert found["inputs"][1]["kind"] == "data"
    lineage = call("inspect", out, "--lineage", "--json").json["results"]["provenance"]
    assert lineage["refinement"]["steps"] == 20
    assert lineage["refinement"]["images"][0]["samples"] == 48


def test_it_is_the_receiver_that_was_not_patched_that_teaches(
    drawer: Drawer, tmp_path: Path
) -> None:
    out = tmp_path / "q.st"
    args = ("quantize", drawer.receiver, *SMALL, "--anchor", drawer.rho, "--lambda", 0.5)
    told = call(*args, *STEPS, drawer.donor_data, "-o", out, "--json").json["results"]["refinement"]
    measured = _distance(out, drawer, drawer.donor_data, slice(3, 48, 4))
    assert told["held_back"]["after"] == pytest.approx(measured, rel=1e-4, abs=1e-7)


def test_without_proxies_the_images_of_calibration_serve(drawer: Drawer, tmp_path: Path) -> None:
    args = ("--refine", 2, "--calib", drawer.receiver_data, "--calib-samples", 24)
    for way in (("--method", "gptq"), ()):
        with hearing() as heard:
            done = call("quantize", drawer.receiver, *SMALL, *way, *args, "-o", tmp_path / "q.st",
                        "--force", "--json").json  # fmt: skip
        layers = len(done["results"]["quantized"])
        one_bar(heard, layers + 2, 0 if way else 1)
        labels = [label for label, *_ in heard]
        assert (labels.count(f"layer {layers}/{layers}"), labels[-1]) == (1, "refine 2/2")
        assert done["data_use"] == {"level": "receiver_images", "counts": {"train": 24}}
        assert ("calibration" in done["parameters"]) == bool(way)
        assert len(done["inputs"]) == 2


def test_proxies_beside_calibration_images_are_counted_too(drawer: Drawer, tmp_path: Path) -> None:
    done = call("quantize", drawer.receiver, *SMALL, "--method", "gptq", "--calib-samples", 24,
                "--calib", drawer.receiver_data, "--refine", 2, "--proxy", drawer.donor_data,
                "-o", tmp_path / "q.st", "--json").json  # fmt: skip
    counts = {"train": 24, "proxy": 81}
    assert done["data_use"] == {"level": "receiver_images", "counts": counts}
    assert [i["kind"] for i in done["inputs"]] == ["checkpoint", "data", "data"]


def test_noise_is_nobodys_images(drawer: Drawer, tmp_path: Path) -> None:
    """As calibration and as proxies; several data sets share the images, and all are held back."""
    args = ("quantize", drawer.receiver, *SMALL, "--method", "gptq", "--calib", "noise",
            "--calib-samples", 16, "--refine", 2, "--proxy-samples", 16)  # fmt: skip
    out = tmp_path / "q.st"
    found = call(*args, "--proxy", "noise", "-o", out, "--json").json
    assert found["data_use"] == {"level": "none", "counts": {"noise": 16}}
    mixed = ("--proxy", "noise", "--proxy", drawer.donor_data, "-o", out, "--force", "--json")
    found = call(*args, *mixed).json
    assert found["data_use"]["level"] == "proxy_images"
    assert found["results"]["refinement"]["held_back"]["images"] == 4
    assert len(found["inputs"]) == 4  # of noise, two parts


def test_the_same_images_give_the_same_bytes(drawer: Drawer, tmp_path: Path) -> None:
    args = ("quantize", drawer.receiver, *SMALL, *STEPS, drawer.donor_data)
    for name in ("a.st", "b.st"):
        call(*args, "-o", tmp_path / name)
    assert (tmp_path / "a.st").read_bytes() == (tmp_path / "b.st").read_bytes()


def _worse(*given: Any, **more: Any) -> Any:
    """A lesson that has gone wrong."""
    return {name: value + 3 for name, value in distill(*given, **more).items()}


def _broken(*given: Any, **more: Any) -> Any:
    return {name: value + float("nan") for name, value in distill(*given, **more).items()}


def _idle(*given: Any, **more: Any) -> Any:
    return dict(given[2])


@pytest.mark.parametrize(
    ("lesson", "way"),
    [(_worse, "rtn"), (_broken, "rtn"), (_idle, "awq")],
    ids=["worse", "broken", "idle"],
)
def test_what_does_not_help_is_not_kept(
    lesson: Any, way: str, drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, refined = tmp_path / "plain.st", tmp_path / "refined.st"
    args = ("quantize", drawer.receiver, *flags(way, drawer))
    first = call(*args, "-o", plain, "--json").json["results"]
    monkeypatch.setattr(module, "distill", lesson)
    found = call(*args, *STEPS, drawer.donor_data, "-o", refined, "--json")
    assert "refinement has not helped on the images held back" in found.err
    assert not found.json["results"]["refinement"]["kept"]
    before, after = load_file(plain), load_file(refined)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert found.json["results"]["sqnr_db"] == first["sqnr_db"]
    shown = call(*args, *STEPS, drawer.donor_data, "-o", refined, "--force").out
    assert ": not kept" in shown


def test_a_head_of_few_classes_is_taught_by_its_logits(drawer: Drawer, tmp_path: Path) -> None:
    done = call("quantize", drawer.donor, *SMALL, *STEPS, drawer.receiver_data,
                "-o", tmp_path / "q.st", "--json").json  # fmt: skip
    assert done["results"]["refinement"]["loss"] == "logit_error"
    assert done["results"]["refinement"]["kept"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_vectors_keep_the_number_format_of_the_file(
    dtype: torch.dtype, drawer: Drawer, tmp_path: Path
) -> None:
    theta, out = tmp_path / "theta.st", tmp_path / "q.st"
    told = bare("vit", theta)
    save_tensors({n: t.to(dtype) for n, t in load_tensors(theta).items()}, theta)
    call("quantize", theta, *told, *SMALL, *STEPS, drawer.donor_data, "-o", out)
    kept = {n: t.dtype for n, t in load_tensors(out).items() if t.is_floating_point()}
    assert {d for n, d in kept.items() if not n.endswith("_scale")} == {dtype}


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_a_network_is_at_no_distance_from_itself(classes: int) -> None:
    logits = torch.randn(9, classes, generator=torch.Generator().manual_seed(0))
    assert float(distance(logits, logits)) == pytest.approx(0, abs=1e-7)
    assert float(distance(logits + torch.arange(classes), logits)) > 0


def test_distillation_finds_the_factor_that_was_hidden() -> None:
    """One linear layer, taught by itself with half its weight."""
    network = torch.nn.Linear(6, 5, bias=False)
    images = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = network(images) / 2
    examples = TeacherOutputs(images, wanted, lambda x: x, 16)
    weight = network.weight.detach().clone()
    moved = distill(
        network, examples, {"weight": torch.zeros(1)},
        lambda free: {"weight": weight * free["weight"].exp()}, DistillOptions(300, lr=0.02),
    )  # fmt: skip
    assert float(moved["weight"].exp()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(network.weight, weight)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--refine", "5"), "--refine needs images: --proxy and --calib are missing"),
        (("--refine", "0", "--proxy", "DATA"), "--refine must be at least 1 step, got 0"),
        (("--refine", "-3", "--proxy", "DATA"), "--refine must be at least 1 step, got -3"),
        (("--proxy", "DATA"), "--proxy goes with --refine"),
        (("--proxy-samples", "9"), "--proxy-samples goes with --refine"),
        (("--refine", "5", "--proxy-samples", "9"), "--proxy-samples needs images"),
        (("--refine", "5", "--proxy", "nowhere/"), "nowhere/: no such folder"),
        (
            ("--refine", "5", "--proxy", "DATA", "--proxy-samples", "3"),
            "--refine needs 4 images or more, here are 3",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    args: tuple[str, ...], said: str, drawer: Drawer, tmp_path: Path
) -> None:
    typed = [str(drawer.donor_data) if word == "DATA" else word for word in args]
    for dry in ([], ["--dry-run"]):
        found = call("quantize", drawer.receiver, "--bits", 3, *typed, *dry, "-o",
                     tmp_path / "q.st", code=None)  # fmt: skip
        assert found.code in {1, 2}
        assert len(found.errors) == 1
        assert said in found.errors[0]
    assert list(tmp_path.iterdir()) == []


def test_a_plan_foretells_the_size(drawer: Drawer, tmp_path: Path) -> None:
    out = tmp_path / "q.st"
    args = ("quantize", drawer.receiver, *SMALL, *STEPS, drawer.donor_data, "-o", out)
    plan = call(*args, "--dry-run", "--json").json["results"]["plan"]
    assert not out.exists()
    assert plan["images"] == {"proxy": 48}
    call(*args)
    assert plan["bytes_out"] == out.stat().st_size
