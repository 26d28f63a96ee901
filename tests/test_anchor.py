"""quantize with a vector to start from and with the float network's outputs to aim at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Drawer, call
from safetensors.numpy import load_file, save_file

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.specs import Target

SMALL = ("--bits", 3, "--device", "cpu", "--batch-size", 16)
CALIB = ("--calib-samples", 24, "--calib")
WAYS: dict[str, tuple[str, ...]] = {
    "rtn": (),
    "hqq": ("--scale", "hqq", "--cross-grid", "--fake"),
    "gptq": ("--method", "gptq", "--fake"),
    "awq": ("--method", "awq"),
    "corrected": ("--bias-correction",),
}


def equal(first: Path, second: Path) -> bool:
    ours, theirs = load_file(first), load_file(second)
    return ours.keys() == theirs.keys() and all(
        ours[n].dtype == theirs[n].dtype and np.array_equal(ours[n], theirs[n]) for n in ours
    )


def flags(name: str, drawer: Drawer) -> tuple[object, ...]:
    images = () if name in ("rtn", "hqq") else (*CALIB, drawer.donor_data)
    return (*SMALL, *WAYS[name], *images)


@pytest.mark.parametrize("name", WAYS)
def test_an_anchor_is_patch_and_then_quantize(name: str, drawer: Drawer, tmp_path: Path) -> None:
    patched, steps, once = (tmp_path / f"{n}.st" for n in ("patched", "steps", "once"))
    call("patch", drawer.receiver, drawer.rho, "--lambda", 0.5, "-o", patched)
    two = call("quantize", patched, *flags(name, drawer), "-o", steps, "--json").json
    one = call("quantize", drawer.receiver, *flags(name, drawer), "--anchor", drawer.rho,
               "--lambda", 0.5, "-o", once, "--json").json  # fmt: skip
    assert equal(steps, once)
    assert one["results"]["digest"] == two["results"]["digest"]
    assert one["results"]["sqnr_db"] == two["results"]["sqnr_db"]
    assert one["data_use"] == two["data_use"]
    assert one["parameters"]["lambda"] == 0.5
    with Checkpoint(steps) as first, Checkpoint(once) as second:
        assert first.card is not None
        assert second.card is not None
        assert (first.card.role, first.card.quant) == (second.card.role, second.card.quant)


def test_at_lambda_0_there_is_no_anchor(drawer: Drawer, tmp_path: Path) -> None:
    """Not even where each layer is to give the receiver's outputs."""
    args = ("quantize", drawer.receiver, *flags("gptq", drawer), "--symmetric", "--target",
            Target.FLOAT)  # fmt: skip
    call(*args, "-o", tmp_path / "plain.st")
    call(*args, "--anchor", drawer.rho, "--lambda", 0, "-o", tmp_path / "zero.st")
    assert equal(tmp_path / "plain.st", tmp_path / "zero.st")


def test_an_anchors_lambda_is_1_unless_told_and_its_lineage_tells_it(
    drawer: Drawer, tmp_path: Path
) -> None:
    out = tmp_path / "q.st"
    found = call("quantize", drawer.receiver, "--anchor", drawer.rho, "-o", out, "--json").json
    assert [i["kind"] for i in found["inputs"]] == ["checkpoint", "vector"]
    assert found["data_use"]["level"] == "none"
    assert found["parameters"]["grid"]["bits"] == 3  # the vector's own
    lineage = call("inspect", out, "--lineage", "--json").json["results"]["provenance"]
    assert lineage["lambda"] == 1
    assert [parent["as"] for parent in lineage["parents"]] == ["model", "rho"]
    assert "quantize at lambda 1" in call("inspect", out, "--lineage").out


def test_a_model_with_its_own_vector_has_cost_its_labels(drawer: Drawer, tmp_path: Path) -> None:
    args = ("quantize", drawer.donor, "--anchor", drawer.rho, "-o", tmp_path / "q.st")
    assert call(*args, "--json").json["data_use"]["level"] == "receiver_labels"


def test_the_grid_of_a_sweep_comes_with_its_lambda(drawer: Drawer, tmp_path: Path) -> None:
    sweep, patched, steps, once = (tmp_path / n for n in ("s.json", "p.st", "two.st", "one.st"))
    call("sweep-lambda", drawer.receiver, drawer.rho, "--data", drawer.receiver_data, "--bits", 2,
         "--cross-grid", "--lambdas", "0,0.5", "--device", "cpu", "-o", sweep)  # fmt: skip
    call("patch", drawer.receiver, drawer.rho, "--lambda", sweep, "-o", patched)
    two = call("quantize", patched, "-o", steps, "--json").json
    args = ("quantize", drawer.receiver, "--anchor", drawer.rho, "--lambda", sweep)
    one = call(*args, "-o", once, "--json").json
    assert equal(steps, once)
    assert one["parameters"]["grid"] == two["parameters"]["grid"]
    assert one["parameters"]["grid"]["bits"] == 2
    assert one["data_use"] == two["data_use"]


def test_the_grid_of_a_sweep_counts_beside_bits_where_the_vector_has_none(
    drawer: Drawer, tmp_path: Path
) -> None:
    bare = [tmp_path / f"{name}.safetensors" for name in ("donor", "qat")]
    for path, source in zip(bare, (drawer.donor, drawer.donor_qat), strict=True):
        save_file(load_file(source), path)
    rho, sweep = tmp_path / "rho.st", tmp_path / "s.json"
    call("extract", *bare, "-o", rho)
    flags = ("--lambdas", "0.5", "--device", "cpu", "-o", sweep)
    call("sweep-lambda", drawer.receiver, rho, "--data", drawer.receiver_data, "--bits", 2, *flags)
    call("patch", drawer.receiver, rho, "--lambda", sweep, "-o", tmp_path / "p.st")
    args = ("quantize", drawer.receiver, "--anchor", rho, "--lambda", sweep, "--bits", 2)
    once = call(*args, "-o", tmp_path / "one.st")
    assert "was made for no grid" not in once.err
    call("quantize", tmp_path / "p.st", "--bits", 2, "-o", tmp_path / "two.st")
    assert equal(tmp_path / "one.st", tmp_path / "two.st")


def test_the_float_networks_outputs_are_another_target(drawer: Drawer, tmp_path: Path) -> None:
    args = ("quantize", drawer.receiver, *SMALL, "--method", "gptq", *CALIB, drawer.donor_data)
    for name, more in {
        "plain": (),
        "quantized": ("--target", "quantized"),
        "float": ("--target", "float"),
        "anchored": ("--target", "float", "--anchor", drawer.rho, "--lambda", 0.5),
        "corrected": ("--target", "float", "--bias-correction"),
    }.items():
        done = call(*args, *more, "-o", tmp_path / f"{name}.st", "--json").json
        told = done["parameters"]["calibration"].get("target")
        assert told == ("float" if "float" in more else None)
    files = {path.stem: path.read_bytes() for path in tmp_path.iterdir()}
    assert files["plain"] == files["quantized"]
    assert len(set(files.values())) == 4


def test_corrected_biases_restore_the_means_of_the_receiver_that_was_not_patched(
    drawer: Drawer, tmp_path: Path
) -> None:
    from test_calibration import _mean_outputs

    out = tmp_path / "f.st"
    results = call("quantize", drawer.receiver, *flags("gptq", drawer)[:-1], drawer.receiver_data,
                   "--target", "float", "--bias-correction", "--anchor", drawer.rho, "--lambda",
                   0.5, "--fake", "-o", out, "--json").json["results"]  # fmt: skip
    ours, theirs = (_mean_outputs(path, drawer) for path in (out, drawer.receiver))
    for name in results["quantized"]:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4 * abs(theirs[name]).max())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--method", "awq", "--calib", "DATA", "--target", "float"), "is not for --method awq"),
        (("--calib", "DATA", "--target", "float"), "--target float is not for --method rtn"),
        (("--method", "gptq", "--target", "float"), "--target float needs images: --calib"),
        (("--lambda", "0.5"), "--lambda goes with --anchor"),
        (("--anchor", "RHO", "--lambda", "x"), "lambda 'x' is not a number"),
        (("--anchor", "RECEIVER"), "receiver.st: is a checkpoint, a vector belongs here"),
        (("--anchor", "nowhere.st"), "nowhere.st: no such file"),
        (("--anchor", "RHO", "--bits", "2"), "was made for 3-bit channel absmax, not for 2-bit"),
        (("--compare", "--anchor", "RHO"), "--anchor does not go with --compare"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    args: tuple[str, ...], said: str, drawer: Drawer, tmp_path: Path
) -> None:
    files = {"DATA": drawer.donor_data, "RHO": drawer.rho, "RECEIVER": drawer.receiver}
    typed = [str(files.get(word, word)) for word in args]
    for dry in ([], ["--dry-run"]):
        to = [] if "--compare" in args else ["-o", tmp_path / "q.st"]
        if to == [] and dry:
            continue
        found = call("quantize", drawer.receiver, *typed, *dry, *to, code=None)
        assert found.code in {1, 2}
        assert len(found.errors) == 1
        assert said in found.errors[0]
    assert list(tmp_path.iterdir()) == []


def test_a_vector_from_another_base_is_refused(drawer: Drawer, tmp_path: Path) -> None:
    """The base itself began with numbers of its own."""
    out = tmp_path / "q.st"
    (said,) = call("quantize", drawer.base, "--anchor", drawer.rho, "-o", out, code=1).errors
    assert "come from different bases" in said
    assert not out.exists()


def test_a_plan_with_an_anchor_foretells_the_size(drawer: Drawer, tmp_path: Path) -> None:
    out = tmp_path / "q.st"
    args = ("quantize", drawer.receiver, "--anchor", drawer.rho, "-o", out)
    plan = call(*args, "--dry-run", "--json").json["results"]["plan"]
    assert not out.exists()
    call(*args)
    assert plan["bytes_out"] == out.stat().st_size
    fates = {tensor["name"]: tensor["fate"] for tensor in plan["tensors"]}
    assert fates["norm.weight"] == "patched: no target"
    assert fates["head.weight"] == "kept: the classifier's"


def test_a_bare_file_is_anchored_too(drawer: Drawer, tmp_path: Path) -> None:
    """Without a card its base cannot be checked, and a note says so."""
    from safetensors.numpy import save_file

    theta = tmp_path / "theta.st"
    save_file(load_file(drawer.receiver), theta)
    found = call("quantize", theta, "--anchor", drawer.rho, "-o", tmp_path / "q.st")
    assert "its base cannot be checked" in found.err
