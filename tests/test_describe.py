"""inspect: says what a file is, and never more than it knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Drawer, call
from safetensors.numpy import load_file, save_file


def test_it_knows_every_kind_of_file(drawer: Drawer, tmp_path: Path) -> None:
    call("quantize", drawer.receiver, "--bits", 3, "-o", tmp_path / "q.st")
    kinds = {drawer.donor: "checkpoint", drawer.rho: "vector", tmp_path / "q.st": "quantized"}
    found = {path: call("inspect", path, "--json").json["results"] for path in kinds}
    assert {path: results["kind"] for path, results in found.items()} == kinds
    receiver = call("inspect", drawer.receiver, "--json").json["results"]
    assert found[tmp_path / "q.st"]["parameters"] == receiver["parameters"]


def test_norms_are_those_of_the_tensors(drawer: Drawer) -> None:
    arrays = load_file(drawer.rho)
    for tensor in call("inspect", drawer.rho, "--json").json["results"]["tensors"]:
        array = arrays[tensor["name"]]
        assert tensor["shape"] == list(array.shape)
        assert tensor["norm"] == pytest.approx(float(np.linalg.norm(array)), rel=1e-5)
        assert tensor["not_finite"] == 0


def test_a_card_is_told_in_words(drawer: Drawer) -> None:
    shown = call("inspect", drawer.rho).out
    for words in (
        "vector: 78 tensors",
        "architecture: test_vit",
        "grid: 3-bit channel absmax",
        "targets: 24 weights",
        "made by: qvec",
        "from: donor donor.st (checkpoint, ",
        "from: donor_qat donor_qat.st (checkpoint, ",
    ):
        assert words in shown


def test_a_bare_file_is_a_checkpoint_without_a_card(tmp_path: Path) -> None:
    save_file({"w": np.ones((2, 2), np.float32)}, tmp_path / "bare.st", {"format": "pt"})
    shown = call("inspect", tmp_path / "bare.st")
    assert "no qvec card" in shown.out
    assert "w\tF32\t[2, 2]\t2" in shown.out


def test_tensors_that_are_not_finite_are_counted_not_refused(tmp_path: Path) -> None:
    array = np.array([3.0, np.nan, 4.0, np.inf], np.float32)
    save_file({"w": array, "codes": np.arange(3, dtype=np.int32)}, tmp_path / "bad.st")
    codes, w = sorted(
        call("inspect", tmp_path / "bad.st", "--json").json["results"]["tensors"],
        key=lambda tensor: str(tensor["name"]),
    )
    assert (w["norm"], w["not_finite"]) == (5.0, 2)
    assert "norm" not in codes
    assert "2 not finite" in call("inspect", tmp_path / "bad.st").out


def test_a_run_that_was_cut_off_can_be_looked_at(drawer: Drawer, tmp_path: Path) -> None:
    from conftest import FAST

    args = ("--data", drawer.donor_data, "-o", tmp_path / "x.st", *FAST, "--lr", "1e30")
    call("finetune", drawer.base, *args, code=1)
    shown = call("inspect", tmp_path / "x.st.state")
    assert shown.out.startswith("train-state: ")
