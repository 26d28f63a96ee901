"""The summary of a grid, against numbers that can be computed by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from qvec_cli.results import summary
from qvec_cli.results.matrix import Matrix, parse, pool
from qvec_cli.results.records import Record
from qvec_cli.specs import Grid

N = 100


def score(right: int) -> dict[str, Any]:
    return {"n": N, "n_correct": right, "top1": right / N}


def receiver(name: str, ptq: int, qat: int | None = None) -> dict[str, Any]:
    rows = {"fp": 90, "ptq": ptq} | ({"qat": qat} if qat is not None else {})
    use = {"fp": "none", "ptq": "none", "qat": "receiver_labels"}
    baselines = {k: {"test": score(v), "data_use": use[k]} for k, v in rows.items()}
    return {"kind": "receiver", "receiver": name, "baselines": baselines}


def cell(
    name: str, donor: str, unit: int, val: int, oracle: int | None, null: str | None = None
) -> dict[str, Any]:
    return {
        "kind": "cell",
        "receiver": name,
        "donor": donor,
        "null": null,
        "diagonal": name == donor,
        "curve": [{"lambda": 0.0, "val": score(9)}],
        "fixed": [{"lambda": 1.0, "test": score(unit), "data_use": "none"}],
        "chosen": {"val": {"lambda": 0.5, "test": score(val), "data_use": "receiver_labels"}},
        "oracle": {"lambda": 0.25, "test": score(oracle)} if oracle is not None else None,
    }


def matrix(lines: list[dict[str, Any]]) -> Matrix:
    names = {x["receiver"] for x in lines if "receiver" in x}
    donors = {x["donor"] for x in lines if "donor" in x} | names
    member = {"digest": "0", "images": {"val": N, "test": N}}
    run = {
        "kind": "run",
        "schema": 1,
        "grid": Grid(2).to_json(),
        "method": "rtn",
        "lambdas": [0.0],
        "fixed": [1.0],
        "oracle": True,
        "seed": 0,
        "batch_size": 1,
        "receivers": dict.fromkeys(sorted(names), member),
        "donors": {name: {"digest": "0"} for name in sorted(donors)},
    }
    return parse(Record(f"grid:{n}", line) for n, line in enumerate([run, *lines]))


def summarise(runs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    return summary.summarise(pool([matrix(lines) for lines in runs]))


LINES = [
    receiver("a", 20, 60),
    cell("a", "a", 58, 59, 60),
    cell("a", "b", 30, 34, 36),
    cell("a", "c", 18, 20, 24),
    cell("a", "b", 21, 21, 22, "random"),
    receiver("b", 40, 80),
    cell("b", "b", 79, 80, 81),
    cell("b", "a", 60, 62, 62),
    cell("b", "c", 30, 40, 42),
]


def test_means_are_over_receivers_and_leave_the_diagonal_and_nulls_out() -> None:
    unit = summarise([LINES])["ways"]["lambda 1"]
    assert unit["pairs"] == 4
    assert unit["mean"] == pytest.approx(((0.10 - 0.02) / 2 + (0.20 - 0.10) / 2) / 2)
    assert unit["median"] == pytest.approx((0.10 - 0.02) / 2)
    assert (unit["least"], unit["most"]) == (pytest.approx(-0.10), pytest.approx(0.20))
    assert unit["top1"] == pytest.approx((0.24 + 0.45) / 2)


def test_a_win_and_a_loss_are_beyond_one_standard_error_of_the_difference() -> None:
    rates = summarise([LINES])["ways"]["lambda 1"]["rates"]
    pairs = [(20, 30), (20, 18), (40, 60), (40, 30)]
    errors = [math.sqrt((p * (N - p) + q * (N - q)) / N**3) for p, q in pairs]
    gains = [(q - p) / N for p, q in pairs]
    assert rates["win"] == sum(g > e for g, e in zip(gains, errors, strict=True)) / 4 == 0.5
    assert rates["loss"] == sum(g < -e for g, e in zip(gains, errors, strict=True)) / 4 == 0.25
    assert rates["better"] == 0.5


def test_the_gap_closed_is_the_share_of_what_own_qat_gains() -> None:
    ways = summarise([LINES])["ways"]
    assert ways["lambda 1"]["gap_closed"]["share"] == pytest.approx(0.045 / 0.40)
    low, high = ways["lambda 1"]["gap_closed"]["interval"]
    assert low == pytest.approx(0.04 / 0.40)
    assert high == pytest.approx(0.05 / 0.40)


def test_regret_is_what_the_best_lambda_on_test_would_have_given_more() -> None:
    ways = summarise([LINES])["ways"]
    lost = [0.06, 0.06, 0.02, 0.12]
    assert ways["lambda 1"]["regret"]["mean"] == pytest.approx(sum(lost) / 4)
    assert ways["lambda 1"]["regret"]["most"] == pytest.approx(0.12)
    assert ways["lambda 1"]["regret"]["share"] == pytest.approx(
        sum(lost) / (0.16 + 0.04 + 0.22 + 0.02)
    )
    assert ways["oracle"]["regret"]["mean"] == 0


def test_the_own_vector_and_nulls_have_rows_of_their_own() -> None:
    found = summarise([LINES])
    assert found["own_vector"]["lambda 1"] == pytest.approx((0.38 + 0.39) / 2)
    assert found["nulls"]["random"]["lambda 1"]["mean"] == pytest.approx(0.01)


def test_donors_are_ranked_by_their_mean_gain() -> None:
    donors = summarise([LINES])["donors"]["lambda 1"]
    assert [*donors] == ["a", "b", "c"]
    assert donors["c"] == pytest.approx((-0.02 - 0.10) / 2)


def test_baselines_are_means_over_the_receivers_that_have_them() -> None:
    lines = [receiver("a", 20, 60), receiver("b", 40), *LINES[1:2]]
    baselines = summarise([lines])["baselines"]
    assert baselines["ptq"] == {"top1": pytest.approx(0.3), "receivers": 2, "data_use": ["none"]}
    assert baselines["qat"]["receivers"] == 1
    assert baselines["qat"]["data_use"] == ["receiver_labels"]


def test_seeds_are_pooled_by_counts() -> None:
    other = [receiver("a", 30), cell("a", "b", 50, 50, 50)]
    first = [receiver("a", 20), cell("a", "b", 30, 30, 30)]
    pooled = summarise([first, other])
    assert pooled["runs"] == 2
    assert pooled["ways"]["lambda 1"]["mean"] == pytest.approx((0.10 + 0.20) / 2)
    assert pooled["ways"]["lambda 1"]["pairs"] == 1
    twice = summarise([LINES, LINES])["ways"]["val"]
    assert {k: v for k, v in twice.items() if k != "rates"} == {
        k: v for k, v in summarise([LINES])["ways"]["val"].items() if k != "rates"
    }


def test_without_the_oracle_there_is_no_regret() -> None:
    lines = [receiver("a", 20), cell("a", "b", 30, 30, None)]
    found = summarise([lines])
    assert set(found["ways"]) == {"lambda 1", "val"}
    assert found["ways"]["val"]["regret"] is None
    assert found["ways"]["val"]["gap_closed"] is None
    assert found["ways"]["val"]["interval"] is None


def test_alignment_is_set_against_the_gains_of_tasks_on_both_sides() -> None:
    names = ["a", "b", "c", "d"]
    gains = {("a", "b"): 1, ("a", "c"): 2, ("a", "d"): 3, ("b", "a"): 4, ("b", "c"): 5}
    gains |= {("b", "d"): 6, ("c", "a"): 7, ("c", "b"): 8, ("c", "d"): 9, ("d", "a"): 10}
    gains |= {("d", "b"): 11, ("d", "c"): 12}
    cosine = [[1.0 if r == d else gains[r, d] / 20 for d in names] for r in names]
    lines = [receiver(name, 20) for name in names]
    lines += [cell(r, d, 20 + gain, 20, 40) for (r, d), gain in gains.items()]
    lines += [{"kind": "alignment", "donors": names, "global": cosine, "rows": cosine}]
    found = summarise([lines])["alignment"]["global"]
    assert found["lambda 1"]["spearman"] == pytest.approx(1)
    assert found["val"] == {"spearman": None, "p": None}
    assert 0 < found["lambda 1"]["p"] < 0.1
    assert found["mean"] == pytest.approx(6.5 / 20)
