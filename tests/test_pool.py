"""Runs of one grid taken together: scores are means, and what one run lacks is missing."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
from samples import grid_lines

from qvec_cli.results.matrix import Cell, Matrix, alike, parse, pool, pooled
from qvec_cli.results.records import Record

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


def test_every_score_of_a_cell_is_the_mean_of_the_runs_on_the_images_of_one() -> None:
    for key, whole in pool(RUNS).cells.items():
        require_means(whole, [run.cells[key] for run in RUNS])


def require_means(whole: Cell, parts: list[Cell]) -> None:
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
    pairs.append((whole.oracle.test, [part.oracle.test for part in parts if part.oracle]))
    for ours, theirs in pairs:
        assert ours
        assert {score.n for score in theirs if score} == {ours.n}
        assert ours.top1 == pytest.approx(fmean(score.top1 for score in theirs if score))


def test_a_chosen_lambda_is_the_median_of_the_runs() -> None:
    key = next(iter(RUNS[0].cells))
    lambdas = sorted(run.cells[key].chosen["val"].lam for run in RUNS)
    assert pool(RUNS).cells[key].chosen["val"].lam == lambdas[1]


def test_baselines_and_costs_are_means_too() -> None:
    whole = pool(RUNS)
    assert whole.runs == 3
    for name in NAMES:
        assert whole.plain(name).top1 == pytest.approx(fmean(r.plain(name).top1 for r in RUNS))
        assert whole.receivers[name].images == RUNS[0].receivers[name].images
        costs = [run.donors[name].trained_images or 0 for run in RUNS]
        assert whole.donors[name].trained_images == round(sum(costs) / 3)


def test_the_same_images_in_three_runs_are_no_more_images() -> None:
    """Or a gain within the noise of one test set would become a win by repeating it."""
    name = NAMES[0]
    error, top1 = pool(RUNS).plain(name).standard_error, pool(RUNS).plain(name).top1
    assert error == pytest.approx((top1 * (1 - top1) / RUNS[0].plain(name).n) ** 0.5)


def test_cosines_are_means() -> None:
    found = [run.alignment for run in RUNS]
    whole = pool(RUNS).alignment
    assert whole
    means = [table.whole[0][1] for table in found if table]
    assert whole.whole[0][1] == pytest.approx(sum(means) / 3)


def test_a_cell_that_one_run_lacks_is_missing() -> None:
    short = lines(1)
    gone = next(i for i, line in enumerate(short) if line["kind"] == "cell")
    name = short.pop(gone)
    whole = pool([RUNS[0], matrix(short)])
    assert whole.get(name["receiver"], name["donor"]) is None
    assert len(whole.cells) == len(RUNS[0].cells) - 1


def changed(**facts: Any) -> list[dict[str, Any]]:
    made = lines(1)
    for each in made[0]["receivers"].values():
        each.update(facts)
    return made


def fixed_twice() -> list[dict[str, Any]]:
    made = lines(1, fixed=[1.0, 0.5])
    for line in made:
        if line["kind"] == "cell":
            line["fixed"] += [{**line["fixed"][0], "lambda": 0.5}]
    return made


OTHERS = {
    "another grid": lines(1, grid={**lines(0)[0]["grid"], "bits": 2}),
    "another method": lines(1, method="mse"),
    "another fixed lambda": fixed_twice(),
    "another network": changed(network={"architecture": "other"}),
    "another recipe": changed(recipe={"epochs": 1}),
    "other targets": changed(targets=["x"]),
    "other data": changed(data_digest="1" * 64),
    "the same models again": lines(0, batch_size=7),
}


def test_other_questions_are_not_taken_together() -> None:
    for name, rows in OTHERS.items():
        found = pooled([RUNS[0], matrix(rows), RUNS[2]])
        assert [m.runs for m in found] == [2, 1], name
        assert not alike(RUNS[0], matrix(rows)), name
