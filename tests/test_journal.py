"""Finished lines survive a kill, and join only what is of the same run."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qvec_cli.errors import CheckpointError, MismatchError
from qvec_cli.results.journal import Journal, differences, encoded, parse
from qvec_cli.specs import Silence

RUN: dict[str, Any] = {
    "kind": "run",
    "version": "1",
    "lambdas": [0.0, 1.0],
    "environment": {"torch": "2"},
    "receivers": {
        "model": {
            "model": "a.st",
            "digest": "d1",
            "data": "x",
            "qat": {"path": "q.st", "digest": "d2"},
            "baselines": {"path": {"path": "p.st", "digest": "d3"}},
        }
    },
    "donors": {"rho": {"rho": "r.st", "digest": "d4"}},
}
CELLS = [{"kind": "cell", "receiver": "model", "donor": d, "null": None} for d in ("a", "b", "c")]


def change(run: dict[str, Any], place: str, value: object) -> dict[str, Any]:
    changed = copy.deepcopy(run)
    *path, last = place.split("/")
    inner = changed
    for part in path:
        inner = inner[part]
    inner[last] = value
    return changed


@pytest.fixture
def part(tmp_path: Path) -> Path:
    path = tmp_path / "part.jsonl"
    path.write_bytes(b"".join(map(encoded, (RUN, *CELLS[:2]))))
    return path


def test_lines_are_kept_at_once_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with Journal(path, RUN) as journal:
        journal.start()
        for number, cell in enumerate(CELLS[:2], start=2):
            journal.add({**cell, "value": number})
            assert len(path.read_bytes().splitlines()) == number
    again = Journal(path, RUN)
    again.take(path)
    assert again.get(CELLS[1]) == {**CELLS[1], "value": 3}
    assert again.get(CELLS[2]) is None


def resume(journal: Journal, path: Path) -> list[dict[str, Any]] | None:
    return journal.resume(path, force=False, listener=Silence())


def test_a_torn_last_line_costs_that_line_alone(part: Path, tmp_path: Path) -> None:
    whole, last = part.read_bytes(), encoded(CELLS[2])
    for cut in range(1, len(last)):
        part.write_bytes(whole + last[:-cut])
        journal = Journal(tmp_path / "state", RUN)
        resume(journal, part)
        assert [journal.get(cell) for cell in CELLS] == [*CELLS[:2], None]
        with pytest.raises(CheckpointError, match=r"part\.jsonl:4: the last line is not whole"):
            Journal(tmp_path / "state", RUN).take(part)


def test_order_is_that_of_the_work_and_not_of_the_parts(part: Path, tmp_path: Path) -> None:
    with Journal(tmp_path / "state", RUN) as journal:
        journal.start()
        journal.add(CELLS[2])
        journal.take(part)
    assert [*journal.ordered(CELLS)] == [RUN, *CELLS]


OTHERS: dict[str, object] = {
    "lambdas": [0.0],
    "receivers/model/digest": "other",
    "receivers/model/qat": None,
    "receivers/model/qat/digest": "other",
    "receivers/model/baselines/path/digest": "other",
    "receivers/model/baselines/more": {"path": "p", "digest": "d"},
    "receivers/more": {},
    "donors/rho/digest": "d" * 64,
    "new": 1,
}
SAME: dict[str, object] = {
    "version": "2",
    "environment": {"torch": "3"},
    "environment/torch": "3",
    "receivers/model/model": "elsewhere/a.st",
    "receivers/model/data": "elsewhere/x",
    "receivers/model/qat/path": "elsewhere/q.st",
    "receivers/model/baselines/path/path": "elsewhere/p.st",
    "donors/rho/rho": "elsewhere/r.st",
}


def test_another_run_is_refused_by_what_differs_and_with_force_left(
    part: Path, tmp_path: Path
) -> None:
    for place, value in OTHERS.items():
        journal = Journal(tmp_path / "state", change(RUN, place, value))
        for join in (journal.take, partial(resume, journal)):
            with pytest.raises(MismatchError) as caught:
                join(part)
            assert f"is of another run: {place.replace('/', ' ')} " in str(caught.value)
        assert journal.resume(part, force=True, listener=Silence()) is None
        assert journal.get(CELLS[0]) is None
    assert differences({"seed": 0, "digest": "a" * 64}, {"seed": 5, "digest": "b" * 64}) == [
        "digest differs",
        "seed 0 vs 5",
    ]


def test_programs_and_places_may_differ(part: Path, tmp_path: Path) -> None:
    for place, value in SAME.items():
        journal = Journal(tmp_path / "state", change(RUN, place, value))
        journal.take(part)
        assert journal.get(CELLS[1]) == CELLS[1], place


def test_a_line_that_is_none_is_named(part: Path) -> None:
    broken = ("[]", "{}", "no", '{"kind": 3}', "[" * 100_000, '{"kind": "cell", "loss": NaN}')
    for text in broken:
        part.write_bytes(encoded(RUN) + text.encode() + b"\n")
        with pytest.raises(CheckpointError, match=r"part\.jsonl:2: is no"):
            parse(part)


def test_what_an_older_qvec_left_of_a_sweep_are_lines(part: Path) -> None:
    """One indented document, which was written anew after each score."""
    score = {"n": 12, "n_correct": 11, "top1": 11 / 12, "loss": 0.25}
    run = {"receiver": "d1", "rho": "d2", "grid": {"bits": 2}, "device": "cpu"}
    old = {"run": run, "scores": {"val at 0.0": score, "test of float": {**score, "n": 24}}}
    part.write_text(json.dumps(old, indent=2, sort_keys=True) + "\n")
    assert parse(part, torn=True) == [
        {"kind": "run", "command": "sweep-lambda", **run},
        {"kind": "score", "name": "test of float", **score, "n": 24},
        {"kind": "score", "name": "val at 0.0", **score},
    ]
    part.write_text('{\n  "run": {}')
    with pytest.raises(CheckpointError, match="is not JSON"):
        parse(part, torn=True)


def test_lines_without_a_configuration_are_refused(part: Path, tmp_path: Path) -> None:
    part.write_bytes(encoded(CELLS[0]))
    with pytest.raises(CheckpointError, match="does not say what run it is of"):
        Journal(tmp_path / "state", RUN).take(part)


def test_two_runs_cannot_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with Journal(path, RUN) as first:
        first.start()
        with pytest.raises(CheckpointError, match="another run is writing to it"):
            Journal(path, change(RUN, "lambdas", [0.0])).__enter__()
        first.add(CELLS[0])
    with Journal(path, RUN) as second:
        second.take(path)
        assert second.get(CELLS[0])


def test_a_run_that_finishes_no_line_leaves_no_journal_and_loses_none(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with Journal(state, RUN):
        pass
    assert not state.exists()
    with Journal(state, RUN) as journal:
        journal.start()
        assert state.exists()
    assert not state.exists()
    state.write_bytes(encoded(RUN) + encoded(CELLS[0]))
    with Journal(state, change(RUN, "new", 1)) as journal, pytest.raises(MismatchError):
        resume(journal, state)
    assert parse(state) == [RUN, CELLS[0]]


def test_lines_are_json_without_nan() -> None:
    assert json.loads(encoded(RUN)) == RUN
    with pytest.raises(ValueError, match="not JSON compliant"):
        encoded({"kind": "cell", "loss": float("nan")})
