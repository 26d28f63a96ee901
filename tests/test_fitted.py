"""combine --fit and patch --lambda auto: coefficients and lambdas chosen without labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Drawer, Planted, Result, call
from safetensors.numpy import load_file

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.write import write
from qvec_cli.cli.options import LAMBDAS

IMAGES = ("--proxy-samples", 40, "--device", "cpu", "--batch-size", 40, "--proxy")


def fit(drawer: Drawer, planted: Planted, *rhos: Path, out: Path, more: Any = ()) -> Result:
    flags = ("--fit", "--receiver", drawer.receiver, *IMAGES, planted.pictures)
    return call("combine", *rhos, *flags, *more, "-o", out, "--json", code=None)


def other_numbers(path: Path, out: Path, change: Any) -> Path:
    """A vector with other numbers and the same card."""
    with Checkpoint(path) as rho:
        assert rho.card
        changed = change({name: rho.finite(name) for name in rho})
        blocks = ((name, [block.reshape(-1)]) for name, block in changed.items())
        write(out, dict(rho.items()), blocks, rho.card, force=False)
    return out


@pytest.fixture(scope="module")
def swapped(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What repairs the receiver, and the same with the other sign: their mean is nothing."""
    root = tmp_path_factory.mktemp("swapped")

    def back(rho: dict[str, Any]) -> dict[str, Any]:
        return {name: -block for name, block in rho.items()}

    def less(rho: dict[str, Any]) -> dict[str, Any]:
        return {name: 0.5 * block for name, block in rho.items()}

    against = other_numbers(planted.whole, root / "against.st", back)
    return other_numbers(planted.whole, root / "half.st", less), against


@pytest.fixture(scope="module")
def found(
    drawer: Drawer,
    planted: Planted,
    swapped: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("fitted") / "fit.st"
    return fit(drawer, planted, *swapped, out=out).json, out


def test_a_planted_repair_is_found_where_the_mean_does_harm(
    found: tuple[dict[str, Any], Path], planted: Planted
) -> None:
    """The mean of half the repair and of its opposite points away from it."""
    told = found[0]["results"]["fit"]
    half, against = told["coefficients"]
    assert half > 0 > against
    assert told["taken"] == "fit" or told["times"] < 0  # backwards along the mean is the same way
    assert 0 < told["explained"] <= 1
    assert 0 < told["removed"] <= 1
    ours, whole = load_file(found[1]), load_file(planted.whole)
    dot = sum(float((ours[name] * whole[name]).sum()) for name in whole)
    norms = [sum(float(np.square(x[name]).sum()) for name in whole) ** 0.5 for x in (ours, whole)]
    assert dot / np.prod(norms) > 0.999
    assert 0.3 < norms[0] / norms[1] < 2


def test_the_vector_is_the_weighted_sum_of_its_coefficients(
    found: tuple[dict[str, Any], Path], swapped: tuple[Path, Path], tmp_path: Path
) -> None:
    document, out = found
    mix = ",".join(map(repr, document["results"]["mix"]))
    by_hand = tmp_path / "by_hand.st"
    call("combine", *swapped, "--rule", "weighted", "--mix", mix, "-o", by_hand)
    ours, theirs = load_file(out), load_file(by_hand)
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_the_card_says_for_whom_and_at_what_cost(
    found: tuple[dict[str, Any], Path], drawer: Drawer
) -> None:
    document, out = found
    assert document["data_use"] == {"level": "proxy_images", "counts": {"proxy": 40}}
    with Checkpoint(out) as rho, Checkpoint(drawer.receiver) as theta:
        assert rho.card
        lineage = rho.card.provenance
        assert lineage["data_use"] == "proxy_images"
        assert lineage["fit"]["receiver"] == {"name": "receiver.st", "digest": theta.stated}
        assert lineage["fit"]["grid"]["bits"] == 2
        assert lineage["fit"]["proxies"]["n"] == 40
    patched = out.with_name("patched.st")
    shown = call("patch", drawer.receiver, out, "-o", patched, "--force", "--json")
    assert shown.json["data_use"]["level"] == "proxy_images"
    assert "was fitted to" not in shown.err


def test_a_fit_for_another_receiver_is_noted(
    found: tuple[dict[str, Any], Path], drawer: Drawer, tmp_path: Path
) -> None:
    args = ("patch", drawer.donor, found[1], "--cross-grid", "-o", tmp_path / "p.st")
    said = f"was fitted to receiver.st, not to {drawer.donor}"
    assert said in call(*args).err


def test_where_the_fit_is_no_better_the_mean_is_taken(
    drawer: Drawer, planted: Planted, tmp_path: Path
) -> None:
    """Of one vector they are the same."""
    out = tmp_path / "fit.st"
    told = fit(drawer, planted, planted.whole, out=out).json["results"]
    assert told["fit"]["taken"] == "mean"
    lam = told["fit"]["times"]
    assert told["mix"] == [lam]
    ours, whole = load_file(out), load_file(planted.whole)
    for name in whole:
        np.testing.assert_allclose(ours[name], lam * whole[name], rtol=1e-6)


def test_the_same_command_gives_the_same_bytes(
    found: tuple[dict[str, Any], Path],
    drawer: Drawer,
    planted: Planted,
    swapped: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    fit(drawer, planted, *swapped, out=tmp_path / "again.st")
    assert (tmp_path / "again.st").read_bytes() == found[1].read_bytes()


def test_vectors_that_do_nothing_are_no_combination(
    drawer: Drawer, planted: Planted, tmp_path: Path
) -> None:
    def nothing(rho: dict[str, Any]) -> dict[str, Any]:
        return {name: np.full_like(block, 1e-12) for name, block in rho.items()}

    weak = other_numbers(planted.whole, tmp_path / "weak.st", nothing)
    done = fit(drawer, planted, weak, out=tmp_path / "fit.st")
    assert done.code == 1
    (said,) = done.errors
    assert "no combination of the vectors is surely better than plain quantization" in said
    assert "2-bit channel absmax" in said
    assert "qvec quantize --compare" in done.err
    assert not (tmp_path / "fit.st").exists()


def test_a_dry_run_writes_nothing(drawer: Drawer, planted: Planted, tmp_path: Path) -> None:
    out = tmp_path / "fit.st"
    done = fit(drawer, planted, *planted.parts, out=out, more=("--dry-run",))
    assert done.code == 0
    assert "plan" in done.json["results"]
    assert list(tmp_path.iterdir()) == []


COMBINE: dict[str, tuple[tuple[str, ...], str]] = {
    "no receiver": (("--fit", "--proxy", "noise"), "--fit needs --receiver"),
    "no proxy": (("--fit", "--receiver", "R"), "--proxy is missing"),
    "a rule": (("--fit", "--receiver", "R", "--proxy", "noise", "--rule", "ties"), "--rule does"),
    "a mix": (("--fit", "--receiver", "R", "--proxy", "noise", "--mix", "1,2"), "--mix goes with"),
    "weighted": (
        ("--fit", "--receiver", "R", "--proxy", "noise", "--rule", "weighted", "--mix", "1,2"),
        "--rule does not go with --fit",
    ),
    "no fit": (("--receiver", "R"), "--receiver goes with --fit"),
    "bits alone": (("--bits", "2"), "--bits goes with --fit"),
    "another grid": (
        ("--fit", "--receiver", "R", "--proxy", "noise", "--bits", "3"),
        "was made for 2-bit channel absmax, not for 3-bit",
    ),
    "no such receiver": (("--fit", "--receiver", "nowhere.st", "--proxy", "noise"), "nowhere.st"),
    "no model": (("--fit", "--receiver", "RHO", "--proxy", "noise"), "is a vector"),
}
PATCH: dict[str, tuple[tuple[str, ...], str]] = {
    "no proxy": (("--lambda", "auto"), "--proxy is missing"),
    "proxy and a number": (("--lambda", "1", "--proxy", "noise"), "--proxy goes with --lambda"),
    "bits and a number": (("--bits", "2"), "--bits goes with --lambda auto"),
    "another grid": (
        ("--lambda", "auto", "--proxy", "noise", "--bits", "3"),
        "was made for 2-bit channel absmax, not for 3-bit",
    ),
    "no images": (("--lambda", "auto", "--proxy", "nowhere"), "nowhere"),
}


@pytest.mark.parametrize("fault", [*COMBINE, *(f"patch: {name}" for name in PATCH)])
def test_a_mistake_costs_a_line_and_no_file(
    fault: str, drawer: Drawer, planted: Planted, tmp_path: Path
) -> None:
    start: tuple[object, ...] = ("combine", *planted.parts)
    words, said = COMBINE.get(fault, ((), ""))
    if fault.startswith("patch: "):
        words, said = PATCH[fault.removeprefix("patch: ")]
        start = ("patch", drawer.receiver, planted.whole)
    files = {"R": drawer.receiver, "RHO": drawer.rho}
    for dry in ((), ("--dry-run",)):
        args = [files.get(word, word) for word in words]
        done = call(*start, *args, *dry, "-o", tmp_path / "out.st", code=None)
        assert done.code in {1, 2}
        (line,) = done.errors
        assert said in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("parts", [(), ("--parts", "mlp")])
def test_lambda_auto_is_the_sweeps_choice(
    parts: tuple[str, ...], drawer: Drawer, planted: Planted, tmp_path: Path
) -> None:
    """With --parts, as if the vector held no others."""
    auto, by_hand, sweep = (tmp_path / name for name in ("auto.st", "by_hand.st", "sweep.json"))
    images = (*IMAGES, planted.pictures)
    args = ("patch", drawer.receiver, planted.whole, *parts, "-o")
    done = call(*args, auto, "--lambda", "auto", *images, "--json").json
    rho = planted.whole
    if parts:
        rho = tmp_path / "part.st"
        call("combine", planted.whole, *parts, "-o", rho)
    flags = ("--objective", "agreement", "--lambdas", LAMBDAS)
    call("sweep-lambda", drawer.receiver, rho, *flags, *images, "-o", sweep)
    chosen = json.loads(sweep.read_text())["results"]
    lam = chosen["chosen"]["lambda"]
    assert done["results"]["lambda"] == lam
    assert done["results"]["curve"] == chosen["curve"]
    call(*args, by_hand, "--lambda", lam)
    ours, theirs = load_file(auto), load_file(by_hand)
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert (lam != 0) or parts


def test_lambda_auto_is_told_on_the_card(drawer: Drawer, planted: Planted, tmp_path: Path) -> None:
    out = tmp_path / "auto.st"
    args = ("patch", drawer.receiver, planted.whole, "--lambda", "auto", *IMAGES, planted.pictures)
    plan = call(*args, "-o", out, "--dry-run", "--json").json
    assert plan["parameters"]["lambda"] == "auto"
    assert not out.exists()
    done = call(*args, "-o", out, "--json").json
    assert done["data_use"] == {"level": "proxy_images", "counts": {"proxy": 40}}
    with Checkpoint(out) as patched:
        assert patched.card
        lineage = patched.card.provenance
        assert (lineage["data_use"], lineage["objective"]) == ("proxy_images", "agreement")
        assert lineage["lambda"] == done["results"]["lambda"]
        assert patched.card.quant
        assert patched.card.quant["bits"] == 2


def test_lambda_auto_leaves_a_null_direction_alone(
    drawer: Drawer, planted: Planted, tmp_path: Path
) -> None:
    """On a grid so fine that there is nothing to repair."""
    out = tmp_path / "auto.st"
    args = ("--lambda", "auto", "--bits", 8, "--cross-grid", *IMAGES, planted.pictures)
    done = call("patch", drawer.receiver, planted.whole, *args, "-o", out, "--json").json
    assert done["results"]["lambda"] == 0
    ours, theirs = load_file(out), load_file(drawer.receiver)
    assert all((ours[name] == theirs[name]).all() for name in theirs)
