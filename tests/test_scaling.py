"""The choice of lambda from distances: the least, and 0 without a sure gain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvec_cli.selection.choose import GUARD, LEAST, NEGATIVE, Average, choose_lambda, removed

LAMBDAS = (*NEGATIVE, 0.0, 0.25, 0.5, 1.0)
Array = np.ndarray[Any, np.dtype[Any]]


def drawn(seed: int, means: tuple[float, ...], n: int = 64, spread: float = 0.1) -> list[Array]:
    """Distances of n images at each lambda, around a mean that is exact."""
    rng = np.random.default_rng(seed)
    noise = [rng.standard_normal(n) for _ in means]
    return [m + spread * (x - x.mean()) for m, x in zip(means, noise, strict=True)]


@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(0, 10_000))
@settings(max_examples=200, deadline=None)
def test_the_order_of_the_images_does_not_matter(seed: int, n: int, other: int) -> None:
    rng = np.random.default_rng(seed)
    distances = [np.exp(rng.standard_normal(n) * 3) * rng.uniform(0.5, 1) for _ in LAMBDAS]
    order = np.random.default_rng(other).permutation(n)
    turned = [values[order] for values in distances]
    assert choose_lambda(LAMBDAS, distances) == choose_lambda(LAMBDAS, turned)
    assert [*map(Average.of, distances)] == [*map(Average.of, turned)]


@given(st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_the_choice_is_zero_or_surely_better_than_zero(seed: int) -> None:
    rng = np.random.default_rng(seed)
    distances = [rng.uniform(0, 1, 30) + rng.uniform(0, 0.3) for _ in LAMBDAS]
    place = choose_lambda(LAMBDAS, distances)
    if LAMBDAS[place] != 0:
        gain = Average.of(distances[LAMBDAS.index(0.0)] - distances[place])
        assert gain.mean > GUARD * gain.standard_error


def test_the_least_is_taken_and_of_equal_ones_the_smaller() -> None:
    distances = drawn(0, (3, 3, 2, 1.5, 1.001, 1.0))
    assert LAMBDAS[choose_lambda(LAMBDAS, distances)] == 1.0
    distances[4] = distances[5]
    assert LAMBDAS[choose_lambda(LAMBDAS, distances)] == 0.5


def test_the_error_is_that_of_the_difference_image_by_image() -> None:
    """Images differ far more among themselves than one does between two lambdas."""
    hard = np.random.default_rng(0).exponential(10, 64)
    shifts = (3, 3, 2, 1.5, 1.1, 1.0)
    distances = [hard + values for values in drawn(1, shifts, spread=0.01)]
    assert LAMBDAS[choose_lambda(LAMBDAS, distances)] == 1.0


def test_a_negative_lambda_can_win() -> None:
    distances = drawn(0, (1, 1.5, 2, 2, 2, 2))
    assert LAMBDAS[choose_lambda(LAMBDAS, distances)] == -0.5


def test_where_the_signs_tie_the_better_one_is_taken() -> None:
    lambdas = (-0.25, 0.0, 0.25)
    for means, wanted in (((1.0, 2, 1.001), -0.25), ((1.001, 2, 1.0), 0.25)):
        assert lambdas[choose_lambda(lambdas, drawn(0, means))] == wanted


def test_a_gain_that_is_sure_and_small_leaves_plain_quantization() -> None:
    """In a collapsed network any nudge removes a little of the damage."""
    for share, wanted in ((LEAST * 0.9, 0.0), (LEAST * 1.1, 1.0)):
        distances = drawn(0, (2, 2, 1, 1, 1, 1 - share), spread=0.001)
        assert LAMBDAS[choose_lambda(LAMBDAS, distances)] == wanted


def test_a_vector_that_harms_leaves_plain_quantization() -> None:
    assert LAMBDAS[choose_lambda(LAMBDAS, drawn(0, (2, 1.5, 1, 1.5, 2, 3)))] == 0


@pytest.mark.parametrize("values", [0.0, 0.7])
def test_damage_that_no_lambda_changes_leaves_plain_quantization(values: float) -> None:
    assert LAMBDAS[choose_lambda(LAMBDAS, [np.full(8, values)] * len(LAMBDAS))] == 0


def test_distances_that_are_drawn_alike_leave_plain_quantization_nearly_always() -> None:
    """A null direction changes each image at random."""
    kept = [LAMBDAS[choose_lambda(LAMBDAS, alike(seed))] == 0 for seed in range(400)]
    assert np.mean(kept) > 0.9


def alike(seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    hard = rng.exponential(1, 128)
    return [hard * np.exp(0.3 * rng.standard_normal(128)) for _ in LAMBDAS]


def test_an_average_is_the_textbook_one() -> None:
    values = np.random.default_rng(0).standard_normal(50)
    found = Average.of(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(values.std(ddof=1) / 50**0.5)


@pytest.mark.parametrize(
    ("after", "before", "share"), [(0, 2, 1), (2, 2, 0), (1, 2, 0.5), (3, 2, -0.5), (1, 0, 0)]
)
def test_what_is_removed_is_a_share_of_the_damage(after: int, before: int, share: float) -> None:
    assert removed(np.full(4, after), np.full(4, before)) == share
