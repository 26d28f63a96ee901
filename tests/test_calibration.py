"""quantize with images: what is written, what it says it has cost, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import NETWORKS, Drawer, bare, call
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors
from test_calibrate import listen
from test_export import made

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.inputs import network as networks
from qvec_cli.inputs.files import model_of
from qvec_cli.inputs.images import Proxies, open_for
from qvec_cli.inputs.network import load_network
from qvec_cli.model.build import normalise
from qvec_cli.quant.methods import QUANTIZERS
from qvec_cli.quant.qtensor import sqnr_db
from qvec_cli.specs import Loading, Method, Silence

CALIBRATED = [method for method in Method if QUANTIZERS[method].calibrated]
every_method = pytest.mark.parametrize("method", CALIBRATED)
SMALL = ("--bits", 3, "--symmetric", "--calib-samples", 24, "--batch-size", 16, "--device", "cpu")


@pytest.mark.parametrize(
    ("method", "grid"),
    [("gptq", ("--scale", "mse-full")), ("awq", ("--asymmetric",))],
    ids=["gptq", "awq"],
)
def test_a_calibrated_file_is_a_packed_file_like_any_other(
    method: str, grid: tuple[str, ...], drawer: Drawer, tmp_path: Path
) -> None:
    out, fake = tmp_path / "q.st", tmp_path / "f.st"
    args = ("quantize", drawer.receiver, *SMALL, "--method", method, *grid)
    images = ("--calib", drawer.receiver_data)
    results = call(*args, *images, "-o", out, "--json").json
    call(*args, *images, "-o", fake, "--fake")
    assert [found["samples"] for found in results["parameters"]["calibration"]["images"]] == [24]
    assert results["data_use"] == {"level": "receiver_images", "counts": {"train": 24}}
    first = call("eval", out, "--data", drawer.receiver_data, "--json").json["results"]
    second = call("eval", fake, "--data", drawer.receiver_data, "--json").json["results"]
    assert (first["n_correct"], first["loss"]) == (second["n_correct"], second["loss"])
    assert len(results["results"]["sqnr_db"]) == len(results["results"]["quantized"]) == 24


@every_method
def test_the_same_images_give_the_same_bytes(
    method: Method, drawer: Drawer, tmp_path: Path
) -> None:
    args = ("quantize", drawer.receiver, *SMALL, "--method", method)
    for name in ("a.st", "b.st"):
        call(*args, "--calib", drawer.receiver_data, "-o", tmp_path / name)
    assert (tmp_path / "a.st").read_bytes() == (tmp_path / "b.st").read_bytes()


@every_method
def test_it_differs_from_rounding_and_only_where_it_says(
    method: Method, drawer: Drawer, tmp_path: Path
) -> None:
    out = tmp_path / "f.st"
    results = call(
        "quantize", drawer.receiver, *SMALL, "--method", method, "--fake",
        "--calib", drawer.receiver_data, "-o", out, "--json",
    ).json["results"]  # fmt: skip
    before, after = load_file(drawer.receiver), load_file(out)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {*results["quantized"], *results["changed"]}
    if not results["changed"]:  # else ratios are those of weights that factors went into
        for name, ratio in results["sqnr_db"].items():
            assert ratio == pytest.approx(sqnr_db(before[name], after[name]))
    norms = {
        f"blocks.{i}.norm{n}.{p}" for i in range(6) for n in (1, 2) for p in ("weight", "bias")
    }
    assert set(results["changed"]) == (norms if method is Method.AWQ else set())


@pytest.mark.parametrize("method", Method)
def test_corrected_biases_give_each_layer_the_mean_output_of_the_float_network(
    method: Method, drawer: Drawer, tmp_path: Path
) -> None:
    out = tmp_path / "f.st"
    results = call(
        "quantize", drawer.receiver, *SMALL, "--method", method, "--fake", "--bias-correction",
        "--calib", drawer.receiver_data, "-o", out, "--json",
    ).json["results"]  # fmt: skip
    biases = {name.removesuffix("weight") + "bias" for name in results["quantized"]}
    assert biases <= set(results["changed"])
    ours, theirs = (_mean_outputs(path, drawer) for path in (out, drawer.receiver))
    for name in results["quantized"]:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4 * abs(theirs[name]).max())


def test_layers_without_a_bias_are_counted(
    drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, size, args = NETWORKS["vit"]
    monkeypatch.setitem(NETWORKS, "bias-free", (name, size, {**args, "qkv_bias": False}))
    theta, out = tmp_path / "theta.st", tmp_path / "q.st"
    found = call("quantize", theta, *bare("bias-free", theta), *SMALL, "--bias-correction",
                 "--calib", drawer.receiver_data, "-o", out, "--json")  # fmt: skip
    assert "2 of 8 layers have no bias to correct" in found.err
    assert len(found.json["results"]["changed"]) == 6


def _mean_outputs(path: Path, drawer: Drawer) -> dict[str, np.ndarray]:
    """Of every linear layer, biases included, on the calibration images."""
    with Checkpoint(path) as checkpoint, Checkpoint(drawer.receiver) as theta:
        model = model_of(theta)
        network = load_network(checkpoint, model, "cpu").eval()
        examples = open_for(theta, model, str(drawer.receiver_data), Loading(), Silence())
        images, _ = examples.decoded("train", Silence())
    order = torch.randperm(108, generator=torch.Generator().manual_seed(0))
    seen = listen(network, [*normalise(model)(images[order[:24]]).split(16)])
    found = {}
    for name, weight in network.named_parameters():
        tokens = [x.reshape(-1, x.shape[-1]).double() for used, x in seen if used is weight]
        if tokens:
            bias = network.get_parameter(name.removesuffix("weight") + "bias")
            mean = torch.cat(tokens).mean(0)
            found[name] = (weight.double() @ mean + bias).detach().numpy()
    return found


def test_other_images_than_the_receivers_are_proxies(drawer: Drawer, tmp_path: Path) -> None:
    args = ("quantize", drawer.receiver, *SMALL, "--method", "gptq")
    out = tmp_path / "q.st"
    found = call(*args, "--calib", drawer.donor_data, "-o", out, "--json").json
    assert found["data_use"] == {"level": "proxy_images", "counts": {"proxy": 24}}
    measured = call("eval", out, "--data", drawer.receiver_data, "--json").json
    assert measured["data_use"]["level"] == "proxy_images"
    lineage = call("inspect", out, "--lineage", "--json").json["results"]["provenance"]
    (images,) = lineage["calibration"]["images"]
    assert (lineage["method"], images["name"]) == ("gptq", "bars3")


def test_several_data_sets_share_the_samples(
    drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is decoded is the first half of one and the second of the other, as each alone gives."""
    seen: list[torch.Tensor] = []

    def kept(pool: Proxies, listener: Silence) -> torch.Tensor:
        seen.append(decoded(pool, listener))
        return seen[-1]

    decoded = Proxies.decoded
    monkeypatch.setattr(Proxies, "decoded", kept)
    args = ("quantize", drawer.receiver, "--bits", 3, "--method", "gptq", "--device", "cpu")
    named = [("--calib", drawer.donor_data), ("--calib", "noise")]
    for samples, words in ((15, (*named[0], *named[1])), (8, named[0]), (7, named[1])):
        out = tmp_path / f"{samples}.st"
        found = call(*args, *words, "--calib-samples", samples, "-o", out, "--json").json
        if samples == 15:
            images = found["parameters"]["calibration"]["images"]
            assert [(i["name"], i["samples"]) for i in images] == [("bars3", 8), ("noise", 7)]
            assert found["data_use"] == {
                "level": "proxy_images",
                "counts": {"proxy": 8, "noise": 7},
            }
            assert [i["path"] for i in found["inputs"][1:]] == [str(drawer.donor_data), "noise"]
    assert torch.equal(seen[0], torch.cat(seen[1:]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--calib", "DONOR", "--calib", "DONOR"), "stands twice"),
        (("--calib", "DONOR", "--calib", "noise", "--calib-samples", 1), "1 a data set at least"),
        (("--calib", "DONOR", "--calib", "nowhere"), "nowhere"),
    ],
)
def test_data_sets_that_do_not_go_together_cost_a_line(
    words: tuple[object, ...], said: str, drawer: Drawer, tmp_path: Path
) -> None:
    given = [drawer.donor_data if word == "DONOR" else word for word in words]
    args = ("quantize", drawer.receiver, "--bits", 3, "--method", "gptq", *given)
    found = call(*args, "-o", tmp_path / "q.st", code=None)
    assert found.code in {1, 2}
    assert said in found.errors[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--method", "gptq"), "--method gptq needs images: --calib is missing"),
        (("--method", "awq"), "--method awq needs images: --calib is missing"),
        (("--draw", 1), "--draw needs images: --calib is missing"),
        (("--diversify",), "--diversify needs images: --calib is missing"),
        (("--method", "rtn", "--calib", "DATA"), "--calib is of no use to --method rtn"),
        (("--bias-correction",), "--bias-correction needs images"),
        (("--calib-samples", "9"), "--calib-samples needs images"),
        (("--split", "test"), "--split goes with --data"),
        (("--method", "gptq", "--calib", "nowhere/"), "nowhere/: no such folder"),
        (("--method", "mse"), "--method 'mse' is none of rtn, gptq, awq"),
        (
            ("--method", "gptq", "--calib", "DATA", "--targets", "patch_embed.proj.weight"),
            "matches no matrix",
        ),
        (("--method", "gptq", "--calib", "DATA", "--targets", "pos*"), "matches no matrix"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    args: tuple[str, ...], said: str, drawer: Drawer, tmp_path: Path
) -> None:
    typed = [str(drawer.receiver_data) if word == "DATA" else word for word in args]
    for dry in ([], ["--dry-run"]):
        found = call("quantize", drawer.receiver, "--bits", 3, *typed, *dry, "-o",
                     tmp_path / "q.st", code=None)  # fmt: skip
        assert found.code in {1, 2}
        assert len(found.errors) == 1
        assert said in found.errors[0]
    assert list(tmp_path.iterdir()) == []


@every_method
def test_a_sweep_takes_no_method_with_images(
    method: Method, drawer: Drawer, tmp_path: Path
) -> None:
    args = ("sweep-lambda", drawer.receiver, drawer.rho, "--data", drawer.receiver_data)
    found = call(*args, "--method", method, "-o", tmp_path / "s.json", code=2)
    assert f"--method {method} needs calibration images" in found.errors[0]


def test_a_plan_foretells_the_size(drawer: Drawer, tmp_path: Path) -> None:
    out = tmp_path / "q.st"
    args = ("quantize", drawer.receiver, *SMALL, "--method", "gptq", "--calib")
    plan = call(*args, drawer.receiver_data, "-o", out, "--dry-run", "--json").json
    assert not out.exists()
    call(*args, drawer.receiver_data, "-o", out)
    assert plan["results"]["plan"]["bytes_out"] == out.stat().st_size
    assert plan["results"]["plan"]["images"] == {"train": 24}


def test_a_linear_weight_by_name_alone_is_not_enough(drawer: Drawer, tmp_path: Path) -> None:
    """The head is a linear layer too, and a user may name it."""
    out = tmp_path / "q.st"
    call("quantize", drawer.receiver, *SMALL, "--method", "gptq", "--calib", drawer.receiver_data,
         "--targets", "head.weight", "--targets", "*.qkv.weight", "-o", out)  # fmt: skip
    with Checkpoint(out) as packed:
        assert "head.weight_packed" in packed
        assert "blocks.0.attn.proj.weight" in packed


def test_images_are_the_receivers_own_where_no_card_tells(drawer: Drawer, tmp_path: Path) -> None:
    theta = tmp_path / "theta.st"
    found = call("quantize", theta, *bare("vit", theta), *SMALL, "--method", "gptq", "--calib",
                 drawer.donor_data, "-o", tmp_path / "q.st", "--json").json  # fmt: skip
    assert found["data_use"] == {"level": "receiver_images", "counts": {"train": 24}}


def test_what_a_model_has_cost_before_is_not_forgotten(drawer: Drawer, tmp_path: Path) -> None:
    """A receiver that was patched with its own vector has cost its labels."""
    rho, patched = tmp_path / "rho.st", tmp_path / "patched.st"
    call("extract", drawer.donor, drawer.donor_qat, "-o", rho)
    call("patch", drawer.donor, rho, "--lambda", 1, "-o", patched)
    found = call("quantize", patched, *SMALL, "--method", "gptq", "--calib", drawer.receiver_data,
                 "-o", tmp_path / "q.st", "--json").json  # fmt: skip
    assert found["data_use"]["level"] == "receiver_labels"
    assert found["data_use"]["counts"]["proxy"] == 24


def test_more_images_than_there_are_cannot_be_had(drawer: Drawer, tmp_path: Path) -> None:
    args = ("quantize", drawer.receiver, *SMALL, "--calib-samples", 9999, "--method", "gptq")
    out = tmp_path / "q.st"
    found = call(*args, "--calib", drawer.receiver_data, "-o", out, "--json").json
    assert found["data_use"]["counts"] == {"train": 108}
    assert found["parameters"]["calibration"]["images"][0]["samples"] == 108


def test_awq_clips_no_layer_that_makes_queries_and_keys(drawer: Drawer, tmp_path: Path) -> None:
    out = tmp_path / "f.st"
    call("quantize", drawer.receiver, *SMALL, "--method", "awq", "--fake",
         "--calib", drawer.receiver_data, "-o", out)  # fmt: skip
    before, after = load_file(drawer.receiver), load_file(out)
    clipped = {}
    for layer, norm in (("attn.qkv", "norm1"), ("mlp.fc1", "norm2")):
        weight, bias = f"blocks.0.{layer}.weight", f"blocks.0.{norm}.bias"
        by = before[bias] / after[bias]
        shrunk = abs(after[weight]).max(axis=1) / abs(before[weight] * by).max(axis=1)
        clipped[layer] = bool((shrunk < 0.99).any())
    assert clipped == {"attn.qkv": False, "mlp.fc1": True}


CHANGING = [("--method", "awq"), ("--method", "gptq", "--bias-correction"), ("--bias-correction",)]


@pytest.mark.parametrize(
    ("args", "dtype"),
    [*zip(CHANGING, (torch.float16, torch.bfloat16, torch.float64), strict=True)],
    ids=str,
)
def test_the_network_that_was_calibrated_is_the_one_that_is_written(
    args: tuple[str, ...],
    dtype: torch.dtype,
    drawer: Drawer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the file holds biases and norms in another number format than it computes in."""
    theta, out, loaded = tmp_path / "theta.st", tmp_path / "f.st", []
    flags = bare("vit", theta)
    save_tensors({n: t.to(dtype) for n, t in load_tensors(theta).items()}, theta)

    def listening(*given: Any) -> Any:
        loaded.append(load_network(*given))
        return loaded[-1]

    monkeypatch.setattr(networks, "load_network", listening)
    results = call("quantize", theta, *flags, *SMALL, *args, "--calib", drawer.receiver_data,
                   "--fake", "-o", out, "--json").json["results"]  # fmt: skip
    assert results["changed"]
    (network,), written = loaded, load_tensors(out)
    assert not network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, written[name].float()), name
        assert written[name].dtype == (dtype if name not in results["quantized"] else torch.float32)


@pytest.mark.parametrize("args", [*CHANGING, ("--method", "gptq")], ids=str)
def test_inputs_that_overflow_are_refused_by_the_layers_name(
    args: tuple[str, ...], drawer: Drawer, tmp_path: Path
) -> None:
    theta, out = tmp_path / "theta.st", tmp_path / "q.st"
    flags = bare("vit", theta)
    tensors = load_tensors(theta)
    tensors["blocks.0.mlp.fc1.weight"] *= 1e30
    save_tensors(tensors, theta)
    found = call("quantize", theta, *flags, *SMALL, *args, "--calib", drawer.receiver_data,
                 "-o", out, code=1)  # fmt: skip
    (said,) = found.errors
    assert "theta.st: blocks.0.mlp.fc2.weight: its inputs on the calibration images" in said
    assert not out.exists()


def test_a_bias_beyond_the_files_number_format_is_refused(drawer: Drawer, tmp_path: Path) -> None:
    theta, out = tmp_path / "theta.st", tmp_path / "q.st"
    flags = bare("vit", theta)
    tensors = load_tensors(theta)
    tensors["blocks.0.mlp.fc2.weight"] *= 1e5
    tensors["blocks.0.mlp.fc2.bias"] += 6.5e4
    save_tensors({name: tensor.half() for name, tensor in tensors.items()}, theta)
    found = call("quantize", theta, *flags, *SMALL, "--bias-correction", "--calib",
                 drawer.receiver_data, "-o", out, code=1)  # fmt: skip
    (said,) = found.errors
    assert "theta.st: blocks.0.mlp.fc2.bias: overflows F16" in said
    assert not out.exists()


def test_a_plan_is_refused_where_the_network_has_no_such_layer(
    drawer: Drawer, tmp_path: Path
) -> None:
    theta, out = tmp_path / "theta.st", tmp_path / "q.st"
    args = ("quantize", theta, *bare("swin", theta), *SMALL, "--method", "gptq", "-o", out,
            "--calib", drawer.receiver_data, "--targets", "*bias_table")  # fmt: skip
    for dry in ([], ["--dry-run"]):
        (said,) = call(*args, *dry, code=1).errors
        assert "relative_position_bias_table: is not the weight of a linear layer" in said


def test_a_layer_that_is_used_thrice_is_refused_by_file_and_name(
    drawer: Drawer, tmp_path: Path
) -> None:
    theta, out = made("coat", tmp_path / "theta.st"), tmp_path / "q.st"
    args = (
        "quantize",
        theta,
        *SMALL,
        "--method",
        "awq",
        "--calib",
        drawer.receiver_data,
        "-o",
        out,
    )
    (said,) = call(*args, code=1).errors
    assert said.startswith(f"error: {theta}: parallel_blocks.0.mlp2.fc1.weight: is used 3 times")
    assert call(*args, "--targets", "serial*").code == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_plan_is_refused_where_the_device_is_missing(drawer: Drawer, tmp_path: Path) -> None:
    args = ("quantize", drawer.receiver, "--bits", 3, "--method", "gptq", "--device", "cuda",
            "--calib", drawer.receiver_data, "-o", tmp_path / "q.st")  # fmt: skip
    for dry in ([], ["--dry-run"]):
        (said,) = call(*args, *dry, code=1).errors
        assert said.startswith("error: --device cuda")


def test_a_part_of_the_receivers_images_is_the_receivers_too(
    drawer: Drawer, tmp_path: Path
) -> None:
    """It has another digest, but the receiver's classes."""
    part = tmp_path / "part"
    for name in ("a", "b", "c", "d"):
        (part / "train" / name).mkdir(parents=True)
        for image in sorted((drawer.receiver_data / "train" / name).iterdir())[:5]:
            (part / "train" / name / image.name).write_bytes(image.read_bytes())
    found = call("quantize", drawer.receiver, *SMALL, "--method", "gptq", "--calib", part,
                 "-o", tmp_path / "q.st", "--json").json  # fmt: skip
    assert found["data_use"]["level"] == "receiver_images"
