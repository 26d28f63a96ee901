"""Finished lines survive a kill, and join only what is of the same run."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from qvec_cli.errors import CheckpointError, MismatchError
from qvec_cli.transfer.journal import Journal, encoded, parse

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


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_torn_last_line_costs_that_line_alone(cut: int, part: Path, tmp_path: Path) -> None:
    part.write_bytes(part.read_bytes() + encoded(CELLS[2])[:-cut])
    journal = Journal(tmp_path / "state", RUN)
    journal.take(part, torn=True)
    assert [journal.get(cell) for cell in CELLS] == [*CELLS[:2], None]
    with pytest.raises(CheckpointError, match=r"part\.jsonl:4: the last line is not whole"):
        Journal(tmp_path / "state", RUN).take(part)


def test_order_is_that_of_the_work_and_not_of_the_parts(part: Path, tmp_path: Path) -> None:
    with Journal(tmp_path / "state", RUN) as journal:
        journal.start()
        journal.add(CELLS[2])
        journal.take(part)
    assert [*journal.ordered(CELLS)] == [RUN, *CELLS]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("lambdas", [0.0]),
        ("receivers/model/digest", "other"),
        ("receivers/model/qat", None),
        ("receivers/model/qat/digest", "other"),
        ("receivers/model/baselines/path/digest", "other"),
        ("receivers/model/baselines/more", {"path": "p", "digest": "d"}),
        ("receivers/more", {}),
        ("donors/rho/digest", "other"),
        ("new", 1),
    ],
)
def test_a_part_of_another_run_is_refused_by_what_differs(
    place: str, value: object, part: Path, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "state", change(RUN, place, value))
    with pytest.raises(MismatchError) as caught:
        journal.take(part)
    assert f"its {place.replace('/', ' ')}" in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("version", "2"),
        ("environment", {"torch": "3"}),
        ("environment/torch", "3"),
        ("receivers/model/model", "elsewhere/a.st"),
        ("receivers/model/data", "elsewhere/x"),
        ("receivers/model/qat/path", "elsewhere/q.st"),
        ("receivers/model/baselines/path/path", "elsewhere/p.st"),
        ("donors/rho/rho", "elsewhere/r.st"),
    ],
)
def test_programs_and_places_may_differ(
    place: str, value: object, part: Path, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "state", change(RUN, place, value))
    journal.take(part)
    assert journal.get(CELLS[1]) == CELLS[1]


@pytest.mark.parametrize(
    "text", ["[]", "{}", "no", '{"kind": 3}', "[" * 100_000, '{"kind": "cell", "loss": NaN}']
)
def test_a_line_that_is_none_is_named(text: str, part: Path) -> None:
    part.write_bytes(encoded(RUN) + text.encode() + b"\n")
    with pytest.raises(CheckpointError, match=r"part\.jsonl:2: is no"):
        parse(part)


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


def test_a_run_that_is_refused_before_it_starts_leaves_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path / "state", RUN):
        pass
    assert not [*tmp_path.iterdir()]


def test_lines_are_json_without_nan() -> None:
    assert json.loads(encoded(RUN)) == RUN
    with pytest.raises(ValueError, match="not JSON compliant"):
        encoded({"kind": "cell", "loss": float("nan")})
