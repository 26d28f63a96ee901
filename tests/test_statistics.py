"""Intervals whose units are tasks, and rank correlations, against scipy and by enumeration."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from qvec_cli.results import summary
from qvec_cli.results.summary import chance, interval, ranks, spearman

RNG = np.random.default_rng(0)
TIED = RNG.integers(0, 6, 40).astype(float)
OTHER = TIED + RNG.integers(0, 9, 40)


def test_ranks_of_ties_are_their_mean() -> None:
    assert np.array_equal(ranks(TIED), stats.rankdata(TIED))


def test_spearman_is_scipys() -> None:
    assert spearman(TIED, OTHER) == pytest.approx(stats.spearmanr(TIED, OTHER).statistic)
    assert spearman(TIED, -TIED) == pytest.approx(-1)
    assert spearman(TIED, np.ones(40)) is None


def test_the_interval_of_means_is_scipys_bootstrap() -> None:
    values = RNG.standard_normal(12)
    low, high = interval([[value] for value in values]) or (0, 0)
    reference = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert low == pytest.approx(reference.low, abs=0.03)
    assert high == pytest.approx(reference.high, abs=0.03)


def test_the_units_are_tasks_and_not_pairs() -> None:
    wide = interval([[0.0] * 50, [1.0] * 50])
    assert wide == [0, 1]
    assert interval([[0.0, 0.0], [1.0]]) == [0, 1]


def test_fewer_than_two_units_have_no_interval() -> None:
    assert interval([[1.0, 2.0, 3.0]]) is None


def test_a_ratio_of_sums_that_is_everywhere_the_same_has_no_width() -> None:
    low, high = interval([[1.0], [2.0], [4.0]], over=[2.0, 4.0, 8.0]) or (0, 0)
    assert low == pytest.approx(0.5)
    assert high == pytest.approx(0.5)


@pytest.mark.parametrize("over", [[0.0, 1.0], [-1.0, 2.0], [0.0, 0.0]])
def test_a_ratio_whose_lower_part_can_vanish_has_no_interval(over: list[float]) -> None:
    assert interval([[1.0], [2.0]], over=over) is None


def enumerated(score: np.ndarray, gain: np.ndarray) -> float:
    """The share of all relabellings that correlate as much."""
    off = ~np.eye(len(score), dtype=bool)
    found = abs(stats.spearmanr(score[off], gain[off]).statistic)
    drawn = [
        abs(stats.spearmanr(score[np.ix_(p, p)][off], gain[off]).statistic)
        for p in permutations(range(len(score)))
    ]
    return float(np.mean([value >= found - 1e-9 for value in drawn]))


@pytest.mark.parametrize("seed", range(4))
def test_the_chance_is_the_share_of_relabelled_tasks_that_correlate_as_much(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score = rng.standard_normal((5, 5))
    gain = score * (seed % 2) + rng.standard_normal((5, 5))
    assert chance(score, gain) == pytest.approx(enumerated(score, gain), abs=0.02)


def test_without_four_tasks_or_with_a_hole_there_is_no_chance() -> None:
    square = RNG.standard_normal((5, 5))
    holed = square.copy()
    holed[0, 1] = np.nan
    assert chance(square, holed) is None
    assert chance(square[:3, :3], square[:3, :3]) is None
    assert chance(np.ones((5, 5)), square) is None


def test_the_same_numbers_give_the_same_interval_and_chance() -> None:
    square, gain = RNG.standard_normal((5, 5)), RNG.standard_normal((5, 5))
    assert chance(square, gain) == chance(square, gain)
    assert interval([[1.0], [2.0]]) == interval([[1.0], [2.0]])
    assert summary.DRAWS == 10_000
