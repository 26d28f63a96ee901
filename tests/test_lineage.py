"""What cards say along a chain of files: costs never get lost, and identities never get mixed."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FAST, Drawer, call
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from qvec_cli.data.datasets import open_task
from qvec_cli.specs import DataUse

ORDER = list(DataUse)


def use(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = call("inspect", path, "--json").json["data_use"]
    return found


@pytest.fixture(scope="module")
def chosen(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A receiver patched at a lambda that was chosen on labels, at 2 bits."""
    folder = tmp_path_factory.mktemp("chosen")
    args = (drawer.receiver, drawer.rho, "--data", drawer.receiver_data, "--bits", 2)
    call("sweep-lambda", *args, "--cross-grid", "--lambdas", "0,0.5", "-o", folder / "sweep.json")
    patched = folder / "chosen.st"
    call("patch", drawer.receiver, drawer.rho, "-l", folder / "sweep.json", "-o", patched)
    return patched


def test_a_cost_is_never_forgotten_along_a_chain(
    chosen: Path, drawer: Drawer, tmp_path: Path
) -> None:
    labels = {"level": "receiver_labels", "counts": {"val": 12}}
    again, packed = tmp_path / "again.st", tmp_path / "packed.st"
    call("patch", chosen, drawer.rho, "-l", 1, "--cross-grid", "-o", again)
    call("quantize", again, "-o", packed)
    assert [use(path) for path in (chosen, again, packed)] == [labels] * 3
    data = ("--data", drawer.receiver_data, "--json")
    assert call("eval", packed, *data).json["data_use"] == labels


def test_a_vector_of_the_receivers_own_qat_has_cost_its_labels(
    drawer: Drawer, tmp_path: Path
) -> None:
    patched = tmp_path / "p.st"
    call("patch", drawer.donor, drawer.rho, "-o", patched)
    assert use(patched) == {"level": "receiver_labels", "counts": {"train": 81, "val": 9}}
    call("patch", drawer.receiver, drawer.rho, "-o", patched, "--force")
    assert use(patched)["level"] == "none"


def test_the_receivers_own_qat_counts_its_labels(drawer: Drawer) -> None:
    assert use(drawer.donor_qat) == {"level": "receiver_labels", "counts": {"train": 81, "val": 9}}


def test_a_sweep_of_what_has_cost_labels_says_so_in_every_row(
    chosen: Path, drawer: Drawer, tmp_path: Path
) -> None:
    args = (chosen, drawer.rho, "--data", drawer.receiver_data, "--lambdas", "0,1", "--json")
    results = call("sweep-lambda", *args, "--cross-grid", "-o", tmp_path / "s.json").json["results"]
    rows = [results["zero_shot"], results["chosen"], *results["baselines"].values()]
    assert {row["data_use"] for row in rows} == {"receiver_labels"}


def test_the_grid_that_a_lambda_was_chosen_for_is_the_models(
    chosen: Path, drawer: Drawer, tmp_path: Path
) -> None:
    """The vector was made for 3 bits, the sweep was at 2."""
    made = call("quantize", chosen, "-o", tmp_path / "q.st", "--json").json
    assert made["parameters"]["grid"]["bits"] == 2


def test_the_family_of_a_file_reaches_back_to_the_base(chosen: Path, tmp_path: Path) -> None:
    call("quantize", chosen, "-o", tmp_path / "q.st")
    shown = call("inspect", tmp_path / "q.st").out
    for words in ("qvec", "at lambda", "rho rho.st", "donor_qat donor_qat.st", "base base.st"):
        assert words in shown


def test_a_vector_that_is_applied_again_is_noticed(
    chosen: Path, drawer: Drawer, tmp_path: Path
) -> None:
    result = call("patch", chosen, drawer.rho, "--cross-grid", "-o", tmp_path / "p.st")
    assert "was patched with" in result.err


def test_a_fake_quantized_file_is_no_receiver(drawer: Drawer, tmp_path: Path) -> None:
    fake = tmp_path / "fake.st"
    call("quantize", drawer.receiver, "--bits", 3, "--preset", "paper", "--fake", "-o", fake)
    data = ("--data", drawer.receiver_data)
    for args in (("patch", fake, drawer.rho), ("sweep-lambda", fake, drawer.rho, *data)):
        result = call(*args, "-o", tmp_path / "x.json", code=1)
        assert "is quantized already, to 3-bit channel absmax" in result.errors[0]


def edited(source: Path, target: Path) -> Path:
    """A file whose card still tells of the weights that it had."""
    arrays = load_file(source)
    arrays["norm.weight"] = arrays["norm.weight"] + np.float32(1)
    with safe_open(source, "np") as file:
        save_file(arrays, target, file.metadata())
    return target


def test_an_edited_file_is_not_taken_for_what_its_card_says(
    chosen: Path, drawer: Drawer, tmp_path: Path
) -> None:
    other = edited(drawer.receiver, tmp_path / "edited.st")
    assert "not that of its card" in call("inspect", other).out
    sweep = chosen.with_name("sweep.json")
    result = call("patch", other, drawer.rho, "-l", sweep, "-o", tmp_path / "p.st", code=1)
    assert "not those that its card tells of" in result.errors[0]


def elsewhere(source: Path, target: Path, *, rotate: bool) -> Path:
    """The same images in a folder of the same name, or with their labels moved on by one."""
    shutil.copytree(source, target)
    if rotate:
        for split in ("train", "test"):
            names = sorted(path.name for path in (target / split).iterdir())
            (target / split / names[-1]).rename(target / split / "moving")
            for old, new in reversed(list(pairwise(names))):
                (target / split / old).rename(target / split / new)
            (target / split / "moving").rename(target / split / names[0])
        one = next((target / "train").glob("*/*.png"))
        one.rename(one.with_name("another name.png"))
    return target


def test_a_data_set_is_known_by_its_contents_and_not_by_its_place(
    drawer: Drawer, tmp_path: Path
) -> None:
    here = open_task(str(drawer.receiver_data), None).digest
    name = drawer.receiver_data.name
    moved = elsewhere(drawer.receiver_data, tmp_path / "a" / name, rotate=False)
    other = elsewhere(drawer.receiver_data, tmp_path / "b" / name, rotate=True)
    assert open_task(str(moved), None).digest == here
    assert open_task(str(other), None).digest != here


def test_a_sweep_does_not_go_on_with_other_images(
    drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qvec_cli.selection import trial

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    args = (drawer.receiver, drawer.rho, "-o", tmp_path / "s.json", "--lambdas", "0,1")
    monkeypatch.setattr(trial.Trial, "float_score", cut)
    call("sweep-lambda", *args, "--data", drawer.receiver_data, code=130)
    monkeypatch.undo()
    name = drawer.receiver_data.name
    other = elsewhere(drawer.receiver_data, tmp_path / "b" / name, rotate=True)
    result = call("sweep-lambda", *args, "--data", other, "--resume", code=1)
    assert "is of another run: data differs" in result.errors[0]


def test_twins_of_different_images_are_refused_or_get_a_note(
    drawer: Drawer, tmp_path: Path
) -> None:
    name = drawer.donor_data.name
    other = elsewhere(drawer.donor_data, tmp_path / "b" / name, rotate=True)
    call("train-qat", drawer.base, "--data", other, *FAST, "-o", tmp_path / "q.st")
    pair = (drawer.donor, tmp_path / "q.st", "-o", tmp_path / "rho.st")
    assert "rho would hold the difference of the tasks" in call("extract", *pair, code=1).err
    result = call("extract", *pair, "--cross-data")
    assert "the twins were trained differently (data digest" in result.err


def test_bare_donors_help_a_receiver_with_a_card_and_say_what_is_not_known(
    drawer: Drawer, tmp_path: Path
) -> None:
    for name in ("donor", "donor_qat"):
        save_file(load_file(getattr(drawer, name)), tmp_path / f"{name}.st")
    rho = tmp_path / "rho.st"
    made = call("extract", tmp_path / "donor.st", tmp_path / "donor_qat.st", "-o", rho)
    assert "mind their order" in made.err
    used = call("patch", drawer.receiver, rho, "-o", tmp_path / "p.st")
    assert "does not say its base" in used.err


@pytest.mark.parametrize(
    "provenance",
    [{"data_use": "foo"}, {"counts": [1]}, {"counts": {"val": -1}}, {"parents": [3]}],
    ids=str,
)
def test_a_damaged_card_is_a_line_at_most(
    provenance: dict[str, Any], drawer: Drawer, tmp_path: Path
) -> None:
    with safe_open(drawer.donor, "np") as file:
        metadata = {**file.metadata(), "qvec.provenance": json.dumps(provenance)}
    save_file(load_file(drawer.donor), tmp_path / "x.st", metadata)
    for args in (("inspect", tmp_path / "x.st"), ("quantize", tmp_path / "x.st", "--bits", 3)):
        out = ("-o", tmp_path / "q.st", "--force") if args[0] == "quantize" else ()
        result = call(*args, *out, code=None)
        assert result.code == (0 if "parents" in provenance else 1)


def test_a_vector_is_recognised_through_whatever_came_between(
    drawer: Drawer, tmp_path: Path
) -> None:
    other = tmp_path / "other.st"
    args = ("--data", drawer.donor_data, "-o", tmp_path / "qat.st", *FAST, "--bits", 3)
    call("train-qat", drawer.base, *args, "--smoothing", 0.1)
    call("extract", drawer.donor, tmp_path / "qat.st", "-o", other)
    paths = [drawer.receiver, *(tmp_path / f"{i}.st" for i in range(3))]
    steps = (drawer.rho, other, drawer.rho)
    said = [
        "was patched with" in call("patch", paths[i], rho, "-o", paths[i + 1]).err
        for i, rho in enumerate(steps)
    ]
    assert said == [False, False, True]


def test_two_grids_are_crossed_only_when_asked(
    chosen: Path, drawer: Drawer, tmp_path: Path
) -> None:
    """The receiver was patched for 2 bits, the vector was made for 3."""
    data = ("--data", drawer.receiver_data, "--lambdas", "0")
    for args in (("patch", chosen, drawer.rho), ("sweep-lambda", chosen, drawer.rho, *data)):
        out = tmp_path / f"{args[0]}.json"
        refused = call(*args, "-o", out, code=1)
        words = ("chosen.st was made for 2-bit channel absmax", "rho.st for 3-bit channel absmax")
        assert [word for word in words if word not in refused.errors[0]] == []
        assert "--cross-grid" in refused.err
        call(*args, "--cross-grid", "-o", out)
