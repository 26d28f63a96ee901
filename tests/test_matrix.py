"""The file of a transfer grid: what is in it comes out, and what is wrong in it is named."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from samples import LAMBDAS, TASKS, grid_lines, text

from qvec_cli.errors import CheckpointError, MismatchError, QvecError
from qvec_cli.results.matrix import Matrix, lines_of, parse

Lines = list[dict[str, Any]]


def matrix(lines: Lines) -> Matrix:
    return parse(lines_of(text(lines), "g.jsonl"))


def find(lines: Lines, kind: str) -> dict[str, Any]:
    return next(line for line in lines if line["kind"] == kind)


def test_every_number_of_the_file_is_in_the_matrix() -> None:
    lines = grid_lines()
    found = matrix(lines)
    assert (list(found.receivers), list(found.donors)) == ([*TASKS[:3]], [*TASKS[:3]])
    for line in lines:
        if line["kind"] == "receiver":
            for key, row in line["baselines"].items():
                kept = found.baselines[line["receiver"]][key]
                assert kept.test.top1 == row["test"]["top1"]
                assert kept.use == row["data_use"]
        if line["kind"] == "cell":
            cell = found.cells[line["receiver"], line["donor"], line["null"]]
            for point, kept_point in zip(line["curve"], cell.curve, strict=True):
                assert kept_point.lam == point["lambda"]
                assert kept_point.val.n_correct == point["val"]["n_correct"]
                assert kept_point.test
                assert kept_point.test.n_correct == point["test"]["n_correct"]
            assert cell.chosen["val"].lam == line["chosen"]["val"]["lambda"]
            assert cell.fixed[0].test.top1 == line["fixed"][0]["test"]["top1"]
            assert cell.oracle
            assert cell.oracle.lam == line["oracle"]["lambda"]
    assert found.lambdas == LAMBDAS
    assert found.alignment
    assert found.alignment.whole[0][0] == 1


def test_diagonals_and_nulls_are_no_transfers() -> None:
    found = matrix(grid_lines())
    assert {cell.null for cell in found.cells.values()} == {None, "random"}
    assert len(found.transfers) == 6
    assert all(cell.receiver != cell.donor for cell in found.transfers)


def test_the_order_of_the_lines_does_not_count() -> None:
    lines = grid_lines()
    mixed = lines[:]
    random.Random(1).shuffle(mixed)
    assert list(matrix(mixed).cells.items()) == list(matrix(lines).cells.items())


def test_shards_of_one_run_are_one_grid_wherever_they_ran() -> None:
    lines = grid_lines()
    other = copy.deepcopy(lines[0])
    other["environment"]["torch"] = "9.9"
    other["receivers"][TASKS[0]]["model"] = "elsewhere.st"
    assert matrix([*lines[:9], other, *lines[5:]]).cells == matrix(lines).cells


def change(path: tuple[Any, ...], value: object, kind: str = "cell") -> Callable[[Lines], None]:
    def changed(lines: Lines) -> None:
        place: Any = find(lines, kind)
        for step in path[:-1]:
            place = place[step]
        if value is None:
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return changed


def of_another_run(key: str, value: object) -> Callable[[Lines], None]:
    return lambda lines: lines.append({**lines[0], key: value})


FAULTS: dict[str, tuple[str, Callable[[Lines], None]]] = {
    "a kind that nobody writes": ("kind: invalid value 'sell'", change(("kind",), "sell")),
    "no kind": ("has no kind", change(("kind",), None)),
    "no run": ("no line of kind run", lambda lines: lines.pop(0) and None),
    "a newer schema": ("newer qvec", change(("schema",), 2, "run")),
    "a receiver that the run lacks": ("'x' is none of the run's", change(("receiver",), "x")),
    "a donor that the run lacks": ("'x' is none of the run's", change(("donor",), "x")),
    "no baselines": ("the baselines of cars stand nowhere", lambda lines: lines.pop(1) and None),
    "no float": ("baselines has no fp", change(("baselines", "fp"), None, "receiver")),
    "no plain rounding": ("baselines has no ptq", change(("baselines", "ptq"), None, "receiver")),
    "a grid that nobody knows": (
        "baselines.ptq.grid.scale: invalid enum value 'odd'",
        change(("baselines", "ptq", "grid", "scale"), "odd", "receiver"),
    ),
    "a share that is not that of its counts": (
        "fixed[0].test: top1 is not",
        change(("fixed", 0, "test", "top1"), 0.123),
    ),
    "more right than there are": (
        "of 2377 images",
        change(("fixed", 0, "test", "n_correct"), 9_999),
    ),
    "counts that are no numbers": (
        "fixed[0].test.n: expected int, got str",
        change(("fixed", 0, "test", "n"), "many"),
    ),
    "no images": ("fixed[0].test.n: expected int >= 1", change(("fixed", 0, "test", "n"), 0)),
    "truth for a number": (
        "fixed[0].test.n: expected int, got bool",
        change(("fixed", 0, "test", "n"), True),
    ),
    "another number of images": (
        "a score of 10 test images",
        change(("fixed", 0, "test"), {"n": 10, "n_correct": 5, "top1": 0.5}),
    ),
    "a use that nobody knows": (
        "fixed[0].data_use: invalid enum value 'some'",
        change(("fixed", 0, "data_use"), "some"),
    ),
    "lambdas that do not ascend": (
        "do not hold the lambdas of the run",
        change(("curve", 1, "lambda"), 9.0),
    ),
    "no lambda 0": ("do not hold the lambdas of the run", change(("curve", 0, "lambda"), -1.0)),
    "a diagonal that is no truth": (
        "diagonal: expected bool, got str",
        change(("diagonal",), "yes"),
    ),
    "cosines of too few": ("no table of 3 x 3", change(("global",), [[1.0]], "alignment")),
    "a row of cosines that is short": (
        "no table of 3 x 3",
        change(("global", 0), [1.0], "alignment"),
    ),
    "a key more in a grid": (
        "baselines.ptq.grid: object contains unknown field later",
        change(("baselines", "ptq", "grid", "later"), 1, "receiver"),
    ),
    "a member without its digest": (
        "receivers.dtd: has no digest",
        change(("receivers", "dtd", "digest"), None, "run"),
    ),
    "another grid": ("grid bits 3 vs 2", of_another_run("grid", {"bits": 2})),
    "other lambdas": ("lambdas", of_another_run("lambdas", [0.0])),
    "other donors": ("donors cars differs", of_another_run("donors", {})),
    "one cell twice": (
        "cars from cars stands twice",
        lambda lines: lines.append({**find(lines, "cell"), "diagonal": False}),
    ),
}


def test_a_line_that_is_wrong_is_named_with_the_path_of_its_fault() -> None:
    whole = json.dumps(grid_lines())
    for name, (message, damage) in FAULTS.items():
        lines = json.loads(whole)  # nothing shared
        damage(lines)
        with pytest.raises(QvecError) as fault:
            matrix(lines)
        assert message in str(fault.value), name
        assert str(fault.value).startswith("g.jsonl:"), name


def test_a_broken_line_is_named_with_its_number() -> None:
    rows = text(grid_lines()).splitlines()
    rows[2] = rows[2][:-5]
    with pytest.raises(CheckpointError, match=r"^g\.jsonl:3: is not JSON"):
        parse(lines_of("\n".join(rows) + "\n", "g.jsonl"))


@pytest.mark.parametrize("cut", [1, 40])
def test_a_last_line_that_is_cut_off_is_for_resume_to_mend(cut: int) -> None:
    whole = text(grid_lines())
    with pytest.raises(CheckpointError, match="the last line is cut off") as fault:
        parse(lines_of(whole[: -1 - cut], "g.jsonl"))
    assert "--resume" in str(fault.value.hint)


def test_a_last_line_without_its_end_is_a_line() -> None:
    whole = text(grid_lines())
    assert parse(lines_of(whole[:-1], "g")).cells == parse(lines_of(whole, "g")).cells


def test_json_that_is_no_object_is_no_line() -> None:
    for row in ("[1]", "3", '"a"', "null"):
        with pytest.raises(CheckpointError, match=r"g\.jsonl:1: is no JSON object"):
            list(lines_of(f"{row}\n{{}}\n", "g.jsonl"))


def test_numbers_that_are_none_are_refused() -> None:
    for word in ("NaN", "Infinity", "-Infinity", "1e999"):
        lines = text(grid_lines()).replace('"lambda": 0.15', f'"lambda": {word}', 1)
        with pytest.raises(CheckpointError, match=r"g\.jsonl:\d+: is not JSON"):
            parse(lines_of(lines, "g.jsonl"))


def test_what_a_newer_writer_adds_is_passed_over() -> None:
    lines = grid_lines()
    more = [{**line, "later": {"a": [1]}} for line in lines]
    assert matrix(more).cells == matrix(lines).cells


def test_a_run_of_another_grid_is_refused_with_the_way_out() -> None:
    lines = grid_lines()
    with pytest.raises(MismatchError) as fault:
        matrix([*lines, *grid_lines(seed=1)])
    assert "one run at a time" in str(fault.value.hint)


def test_a_nested_bomb_is_no_json() -> None:
    with pytest.raises(CheckpointError, match="is not JSON"):
        list(lines_of("[" * 200_000 + "\n{}\n", "g.jsonl"))
    assert json.loads("[[]]") == [[]]
