"""sweep-lambda: its curve is what the files would give, and its choice follows the rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Drawer, call

from qvec_cli.checkpoint.replace import unfinished
from qvec_cli.selection import trial
from qvec_cli.selection.by_labels import choose

LAMBDAS = "0:1.5:0.75"


def sweep(drawer: Drawer, out: Path, *extra: object, code: int = 0) -> Any:
    args = (drawer.receiver, drawer.rho, "--data", drawer.receiver_data, "-o", out)
    return call("sweep-lambda", *args, "--lambdas", LAMBDAS, "--device", "cpu", *extra, code=code)


def without_speed(document: Any) -> Any:
    if isinstance(document, dict):
        return {k: without_speed(v) for k, v in document.items() if k != "images_per_second"}
    return [without_speed(v) for v in document] if isinstance(document, list) else document


@pytest.fixture(scope="module")
def swept(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("sweep") / "sweep.json"
    sweep(drawer, out, "--bits", 2, "--cross-grid")
    document: dict[str, Any] = json.loads(out.read_text())
    return document


@pytest.mark.parametrize("lam", [0, 0.75, 1.5])
def test_every_point_is_what_patch_quantize_and_eval_give(
    lam: float, drawer: Drawer, swept: dict[str, Any], tmp_path: Path
) -> None:
    patched, packed = tmp_path / "p.st", tmp_path / "q.st"
    call("patch", drawer.receiver, drawer.rho, "-l", lam, "-o", patched)
    call("quantize", patched, "--bits", 2, "--cross-grid", "-o", packed)
    evaluated = call(
        *("eval", packed, "--data", drawer.receiver_data, "--split", "val"),
        *("--device", "cpu", "--json"),
    ).json["results"]
    point = next(p for p in swept["results"]["curve"] if p["lambda"] == lam)
    for key in ("n", "n_correct", "n_correct_top5", "loss"):
        assert point["val"][key] == evaluated[key]


def test_the_json_holds_the_curve_the_choice_zero_shot_and_what_they_cost(
    swept: dict[str, Any],
) -> None:
    results = swept["results"]
    assert [point["lambda"] for point in results["curve"]] == [0, 0.75, 1.5]
    assert results["zero_shot"]["lambda"] == 1
    assert results["zero_shot"]["data_use"] == "none"
    assert results["chosen"]["data_use"] == "receiver_labels"
    assert results["chosen"] == {
        **choose(results["curve"]),
        **{key: results["chosen"][key] for key in ("test", "data_use")},
    }
    assert results["baselines"]["ptq"]["lambda"] == 0
    assert swept["data_use"] == {"level": "receiver_labels", "counts": {"val": 12}}


def test_float_and_zero_shot_are_what_eval_gives(
    drawer: Drawer, swept: dict[str, Any], tmp_path: Path
) -> None:
    call("patch", drawer.receiver, drawer.rho, "-o", tmp_path / "p.st")
    call("quantize", tmp_path / "p.st", "--bits", 2, "--cross-grid", "-o", tmp_path / "q.st")
    pairs = {
        drawer.receiver: swept["results"]["baselines"]["fp"],
        tmp_path / "q.st": swept["results"]["zero_shot"],
    }
    for path, row in pairs.items():
        flags = ("--data", drawer.receiver_data, "--device", "cpu", "--json")
        assert call("eval", path, *flags).json["results"]["loss"] == row["test"]["loss"]


def point(lam: float, right: int) -> dict[str, Any]:
    return {"lambda": lam, "val": {"n_correct": right}}


@pytest.mark.parametrize(
    ("curve", "chosen"),
    [
        ([(0, 5), (0.5, 7), (1, 6)], 0.5),
        ([(0, 7), (0.5, 7), (1, 7)], 0),
        ([(-0.5, 7), (0.5, 7), (1, 7)], 0.5),
        ([(-0.5, 8), (0, 7), (0.5, 7)], -0.5),
        ([(0.3, 7), (-0.2, 7), (1, 7)], -0.2),
    ],
)
def test_most_right_wins_and_ties_go_to_the_smaller_lambda(
    curve: list[tuple[float, int]], chosen: float
) -> None:
    assert choose([point(*pair) for pair in curve])["lambda"] == chosen


def test_zero_is_always_a_candidate(drawer: Drawer, tmp_path: Path) -> None:
    args = (drawer.receiver, drawer.rho, "--data", drawer.receiver_data, "--json")
    result = call("sweep-lambda", *args, "--lambdas", "0.5", "-o", tmp_path / "s.json")
    assert [p["lambda"] for p in result.json["results"]["curve"]] == [0, 0.5]


def test_without_bits_the_vectors_own_grid_counts(drawer: Drawer, tmp_path: Path) -> None:
    document = sweep(drawer, tmp_path / "s.json", "--json").json
    assert document["parameters"]["grid"]["bits"] == 3
    other = sweep(drawer, tmp_path / "t.json", "--bits", 4, code=1)
    assert "was made for 3-bit channel absmax, not for 4-bit channel absmax" in other.errors[0]


def test_a_sweep_cut_off_goes_on_where_it_was(
    drawer: Drawer, swept: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, taken = trial.Trial.score, []

    def counted(self: trial.Trial, lam: float, split: str) -> Any:
        if len(taken) == 2:
            raise KeyboardInterrupt
        taken.append(lam)
        return score(self, lam, split)

    monkeypatch.setattr(trial.Trial, "score", counted)
    out = tmp_path / "sweep.json"
    sweep(drawer, out, "--bits", 2, "--cross-grid", code=130)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json.state"]
    assert (
        "an unfinished run is there" in sweep(drawer, out, "--bits", 2, "--cross-grid", code=1).err
    )
    again = sweep(drawer, out, "--bits", 3, "--resume", code=1)
    assert "is of another run: grid bits 2 vs 3" in again.err

    done: list[float] = []
    monkeypatch.setattr(
        trial.Trial,
        "score",
        lambda self, lam, split: (done.append(lam), score(self, lam, split))[1],
    )
    state = unfinished(out).read_text()
    for text in (state, as_one_document(state)):
        unfinished(out).write_text(text)
        sweep(drawer, out, "--bits", 2, "--cross-grid", "--resume", "--force")
        assert taken == [0, 0.75]
        assert done[0] == 1.5
        results = json.loads(out.read_text())["results"]
        assert without_speed(results) == without_speed(swept["results"])
        assert not unfinished(out).exists()
        done.clear()
    before = out.stat()
    again = sweep(drawer, out, "--bits", 2, "--cross-grid", "--resume")
    assert "done already" in again.err
    refused = sweep(drawer, out, "--bits", 3, "--resume", code=1)
    assert "is of another run: parameters grid bits 2 vs 3" in refused.err
    assert (out.stat(), done) == (before, [])


def as_one_document(journal: str) -> str:
    """What qvec 0.1 left of a sweep that was cut off: indented JSON."""
    header, *lines = map(json.loads, journal.splitlines())
    run = {key: value for key, value in header.items() if key not in ("kind", "command")}
    names = [line.pop("name") for line in lines]
    assert [line.pop("kind") for line in lines] == ["score"] * 2
    document = {"run": run, "scores": dict(zip(names, lines, strict=True))}
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def test_a_broken_state_is_named(drawer: Drawer, tmp_path: Path) -> None:
    out = tmp_path / "sweep.json"
    unfinished(out).write_text("x\n")
    assert "is not JSON" in sweep(drawer, out, "--resume", code=1).errors[0]
    sweep(drawer, out, "--force")


def test_patch_takes_the_choice_and_its_cost_from_the_sweep(
    drawer: Drawer, swept: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps(swept))
    patched = tmp_path / "p.st"
    flags = ("-l", path, "-o", patched, "--json")
    document = call("patch", drawer.receiver, drawer.rho, *flags).json
    assert document["results"]["lambda"] == swept["results"]["chosen"]["lambda"]
    assert document["data_use"] == swept["data_use"]
    call("quantize", patched, "--bits", 2, "--cross-grid", "-o", tmp_path / "q.st")
    flags = ("--data", drawer.receiver_data, "--json")
    assert call("eval", tmp_path / "q.st", *flags).json["data_use"] == swept["data_use"]
    other = call("patch", drawer.donor, drawer.rho, "-l", path, "-o", tmp_path / "x.st", code=1)
    assert "was chosen for other files" in other.errors[0]
