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
    shown = call("inspect", tmp_path / "bare.st", "--tensors")
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


def test_verify_finds_a_flipped_bit_anywhere_in_the_data(drawer: Drawer, tmp_path: Path) -> None:
    digest = call("inspect", drawer.rho, "--json").json["results"]["digest"]
    assert call("inspect", drawer.rho, "--verify", "--json").json["results"]["verified"] == digest
    whole = drawer.rho.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in (start, (start + len(whole)) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        (tmp_path / "rho.st").write_bytes(damaged)
        refused = call("inspect", tmp_path / "rho.st", "--verify", code=1)
        assert "the file is damaged, or was edited" in refused.errors[0]
        assert "(not that of its card: edited since)" in call("inspect", tmp_path / "rho.st").out


def test_a_damaged_input_makes_no_output(drawer: Drawer, tmp_path: Path) -> None:
    for name in ("receiver", "rho"):
        damaged = bytearray(getattr(drawer, name).read_bytes())
        damaged[-3] ^= 1
        (tmp_path / f"{name}.st").write_bytes(damaged)
    for receiver, rho in (("receiver.st", drawer.rho), (drawer.receiver, "rho.st")):
        refused = call("patch", tmp_path / receiver, tmp_path / rho, "-o", tmp_path / "p", code=1)
        assert "the file is damaged, or was edited" in refused.errors[0]
    bits = ("--bits", 3, "-o", tmp_path / "p")
    call("quantize", tmp_path / "receiver.st", *bits, code=1)
    data = ("--data", drawer.receiver_data)
    call("eval", tmp_path / "receiver.st", *data, code=1)
    call("sweep-lambda", tmp_path / "receiver.st", drawer.rho, *data, "-o", tmp_path / "p", code=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["receiver.st", "rho.st"]


def test_what_cannot_be_verified_is_not_said_to_hold(tmp_path: Path) -> None:
    save_file({"w": np.ones(2, np.float32)}, tmp_path / "bare.st")
    assert "nothing to verify" in call("inspect", tmp_path / "bare.st", "--verify", code=1).err
    assert "not known" in call("inspect", tmp_path / "bare.st", "--lineage", code=1).err


def test_the_family_tree_goes_back_to_the_base_without_reading_tensors(
    drawer: Drawer, tmp_path: Path
) -> None:
    whole = bytearray(drawer.rho.read_bytes())
    whole[-4:] = b"\xff" * 4
    (tmp_path / "rho.st").write_bytes(whole)
    shown = call("inspect", tmp_path / "rho.st", "--lineage").out.splitlines()
    assert shown[0].startswith("vector ")
    assert shown[1].startswith("base: ")
    for line in (
        "from: donor donor.st (checkpoint, ",
        "from: donor_qat donor_qat.st (checkpoint, ",
        "  from: base base.st (checkpoint, ",
    ):
        assert any(found.startswith(line) for found in shown)


def test_every_parent_is_named_by_the_digest_of_its_contents(
    drawer: Drawer, tmp_path: Path
) -> None:
    """Of files with cards and without, though their digests are only known when all is read."""
    save_file(load_file(drawer.receiver), tmp_path / "bare.st")
    call("patch", tmp_path / "bare.st", drawer.rho, "-o", tmp_path / "p.st")
    call("extract", drawer.donor, drawer.donor_qat, "-o", tmp_path / "rho.st")
    parents = {"p.st": (drawer.receiver, drawer.rho), "rho.st": (drawer.donor, drawer.donor_qat)}
    for child, files in parents.items():
        tree = call("inspect", tmp_path / child, "--lineage", "--json").json["results"]
        told = [parent["digest"] for parent in tree["provenance"]["parents"]]
        found = [call("inspect", f, "--json").json["results"]["digest"] for f in files]
        assert told == found
