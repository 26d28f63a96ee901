"""Runs of one grid taken together: counts add up, and what one run lacks is missing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from samples import grid_lines

from qvec_cli.ops.matrix import Matrix, parse
from qvec_cli.ops.pool import alike, pool, pooled
from qvec_cli.ops.records import Record

NAMES = ("cars", "dtd", "eurosat")


def lines(seed: int, **changes: Any) -> list[dict[str, Any]]:
    made = grid_lines(receivers=NAMES, donors=NAMES, seed=seed)
    made[0] |= changes
    return made


def matrix(made: list[dict[str, Any]]) -> Matrix:
    return parse(Record(f"g:{n}", line) for n, line in enumerate(made))


RUNS = [matrix(lines(seed)) for seed in (0, 1, 2)]


def test_one_run_is_itself() -> None:
    assert pool(RUNS[:1]) is RUNS[0]


@pytest.mark.parametrize("key", [*RUNS[0].cells])
def test_every_score_of_a_cell_counts_the_images_of_all_runs(key: Any) -> None:
    whole, parts = pool(RUNS).cells[key], [run.cells[key] for run in RUNS]
    pairs = [
        (whole.fixed[0].test, [part.fixed[0].test for part in parts]),
        (whole.chosen["val"].test, [part.chosen["val"].test for part in parts]),
        (whole.chosen["val"].val, [part.chosen["val"].val for part in parts]),
        *(
            (point.val, [part.curve[place].val for part in parts])
            for place, point in enumerate(whole.curve)
        ),
        *(
            (point.test, [part.curve[place].test for part in parts])
            for place, point in enumerate(whole.curve)
        ),
    ]
    assert whole.oracle
    pairs.append((whole.oracle[1], [part.oracle[1] for part in parts if part.oracle]))
    for ours, theirs in pairs:
        assert ours
        assert ours.n == sum(score.n for score in theirs if score)
        assert ours.n_correct == sum(score.n_correct for score in theirs if score)


def test_a_chosen_lambda_is_the_median_of_the_runs() -> None:
    key = next(iter(RUNS[0].cells))
    lambdas = sorted(run.cells[key].chosen["val"].lam for run in RUNS)
    assert pool(RUNS).cells[key].chosen["val"].lam == lambdas[1]


def test_baselines_images_and_costs_go_together_too() -> None:
    whole = pool(RUNS)
    assert whole.runs == 3
    for name in NAMES:
        assert whole.plain(name).n == sum(run.plain(name).n for run in RUNS)
        images = [run.receivers[name].images["test"] for run in RUNS]
        assert whole.receivers[name].images["test"] == sum(images)
        costs = [run.donors[name].trained_images or 0 for run in RUNS]
        assert whole.donors[name].trained_images == round(sum(costs) / 3)


def test_cosines_are_means() -> None:
    found = [run.alignment for run in RUNS]
    whole = pool(RUNS).alignment
    assert whole
    means = [table.whole[0][1] for table in found if table]
    assert whole.whole[0][1] == pytest.approx(sum(means) / 3)


def test_pooling_in_steps_is_pooling_at_once() -> None:
    whole, steps = pool(RUNS), pool([pool(RUNS[:2]), RUNS[2]])
    assert steps.runs == whole.runs
    key = next(iter(whole.cells))
    assert steps.cells[key].fixed == whole.cells[key].fixed
    assert steps.baselines == whole.baselines


def test_a_cell_that_one_run_lacks_is_missing() -> None:
    short = lines(1)
    gone = next(i for i, line in enumerate(short) if line["kind"] == "cell")
    name = short.pop(gone)
    whole = pool([RUNS[0], matrix(short)])
    assert whole.get(name["receiver"], name["donor"]) is None
    assert len(whole.cells) == len(RUNS[0].cells) - 1


@pytest.mark.parametrize(
    "change",
    [{"grid": {**lines(0)[0]["grid"], "bits": 2}}, {"method": "mse"}, {"fixed": [1.0, 0.5]}],
    ids=str,
)
def test_other_questions_are_not_taken_together(change: dict[str, Any]) -> None:
    other = copy.deepcopy(lines(1, **change))
    if "fixed" in change:
        for line in other:
            if line["kind"] == "cell":
                line["fixed"] += [{**line["fixed"][0], "lambda": 0.5}]
    found = pooled([RUNS[0], matrix(other), RUNS[2]])
    assert [m.runs for m in found] == [2, 1]
    assert not alike(RUNS[0], matrix(other))
