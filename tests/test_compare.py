"""inspect A B: what two files have in common, against plain numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Drawer, call
from safetensors.numpy import load_file, save_file


def compared(first: Path, second: Path) -> dict[str, Any]:
    found: dict[str, Any] = call("inspect", first, second, "--json").json["results"]
    return found


def test_a_file_is_the_same_as_itself_whatever_its_card(drawer: Drawer, tmp_path: Path) -> None:
    save_file(load_file(drawer.donor), tmp_path / "bare.st")
    found = compared(drawer.donor, tmp_path / "bare.st")
    assert found["same"]
    assert found["norm"] == 0
    shown = call("inspect", drawer.donor, tmp_path / "bare.st").out
    assert shown == "the same 80 tensors in both\n"


def test_norms_of_the_difference_are_numpys(drawer: Drawer) -> None:
    found = compared(drawer.donor, drawer.donor_qat)
    a, b = load_file(drawer.donor), load_file(drawer.donor_qat)
    assert not found["same"]
    for row in found["tensors"]:
        difference = b[row["name"]] - a[row["name"]]
        assert row["norm"] == pytest.approx(float(np.linalg.norm(difference)), rel=1e-5)
        assert row["unequal"] == int((difference != 0).sum())
    whole = np.concatenate([(b[n] - a[n]).reshape(-1) for n in a])
    size = np.concatenate([a[n].reshape(-1) for n in a])
    assert found["norm"] == pytest.approx(float(np.linalg.norm(whole)), rel=1e-5)
    share = np.linalg.norm(whole) / np.linalg.norm(size)
    assert found["relative_norm"] == pytest.approx(float(share), rel=1e-5)


def test_names_shapes_and_formats_are_compared(tmp_path: Path) -> None:
    shared = {"kept": np.ones(3, np.float32), "codes": np.arange(4, dtype=np.int32)}
    one = {**shared, "left": np.ones(1, np.float32), "shape": np.ones((2, 3), np.float32)}
    two = {**shared, "right": np.ones(1, np.float32), "shape": np.ones((3, 2), np.float32)}
    two["codes"] = np.array([0, 1, 2, 9], np.int32)
    two["kept"] = two["kept"].astype(np.float16)
    save_file(one, tmp_path / "a.st")
    save_file(two, tmp_path / "b.st")
    found = compared(tmp_path / "a.st", tmp_path / "b.st")
    shown = call("inspect", tmp_path / "a.st", tmp_path / "b.st").out
    assert "3 tensors in both, 1 of them of other shapes; of the rest the norm" in shown
    assert (found["only_in_first"], found["only_in_second"]) == (["left"], ["right"])
    rows = {row["name"]: row for row in found["tensors"]}
    assert rows["codes"]["unequal"] == 1
    assert rows["kept"] == {
        "name": "kept",
        "dtype": ["F32", "F16"],
        "shape": [[3], [3]],
        "unequal": 0,
        "norm": 0.0,
        "relative_norm": 0.0,
    }
    assert "unequal" not in rows["shape"]
    shown = call("inspect", tmp_path / "a.st", tmp_path / "b.st").out
    assert "only in the first: left" in shown
    assert "shape\tF32\t[2, 3] vs [3, 2]\t-\t-" in shown
    assert "codes\tI32\t[4]\t1\t-" in shown


def test_weights_that_are_not_finite_are_compared_too(tmp_path: Path) -> None:
    bad = np.array([np.nan, np.inf, 1], np.float32)
    save_file({"w": bad}, tmp_path / "a.st")
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "b.st")
    found = compared(tmp_path / "a.st", tmp_path / "b.st")
    assert found["tensors"][0]["unequal"] == 2
    assert found["norm"] is None
    assert "not finite" in call("inspect", tmp_path / "a.st", tmp_path / "b.st").out


def test_one_question_at_a_time(drawer: Drawer) -> None:
    for flags in (("--verify", "--lineage"), ("--verify", drawer.rho), (drawer.rho, "--lineage")):
        assert "ask one" in call("inspect", drawer.donor, *flags, code=2).errors[0]
