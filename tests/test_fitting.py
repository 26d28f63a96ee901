"""Coefficients by least squares: planted ones come back, and one vector has a closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qvec_cli.selection.choose import fit
from qvec_cli.selection.trial import log_softmax

Array = np.ndarray[Any, np.dtype[Any]]

IMAGES, CLASSES, INPUTS = 40, 5, 7
RNG = np.random.default_rng(0)
SHOWN = RNG.standard_normal((IMAGES, INPUTS))
THETA = RNG.standard_normal((INPUTS, CLASSES))
CHANCES = np.exp(log_softmax(SHOWN @ THETA))


def vectors(count: int) -> Array:
    return RNG.standard_normal((count, INPUTS, CLASSES))


def whitened(logits: Array) -> Array:
    """By the square root of diag(p) - p p^T of each image, from its eigenvalues."""
    found = []
    for row, chance in zip(logits, CHANCES, strict=True):
        values, axes = np.linalg.eigh(np.diag(chance) - np.outer(chance, chance))
        root = axes @ np.diag(np.sqrt(np.maximum(values, 0))) @ axes.T
        found.append(root @ row)
    return np.concatenate(found)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_planted_coefficients_come_back_on_a_linear_network(count: int) -> None:
    """Quantization that has moved the weights by a mixture of the vectors is undone by it."""
    rhos, mix = vectors(count), RNG.uniform(-1, 2, count)
    damaged = THETA - np.tensordot(mix, rhos, axes=1)
    changes = np.stack([SHOWN @ (damaged + rho) - SHOWN @ damaged for rho in rhos])
    found = fit(changes, SHOWN @ damaged - SHOWN @ THETA, CHANCES, ridge=0)
    assert np.allclose(found.mix, mix)
    assert found.explained == pytest.approx(1)


@pytest.mark.parametrize("count", [1, 3])
def test_the_fit_is_least_squares_in_the_metric(count: int) -> None:
    changes = RNG.standard_normal((count, IMAGES, CLASSES))
    damage = RNG.standard_normal((IMAGES, CLASSES))
    columns = np.stack([whitened(change) for change in changes], axis=1)
    wanted = whitened(damage)
    mix, (left,), *_ = np.linalg.lstsq(columns, -wanted, rcond=None)
    found = fit(changes, damage, CHANCES, ridge=0)
    assert np.allclose(found.mix, mix)
    assert found.explained == pytest.approx(1 - left / (wanted @ wanted))


def test_one_vectors_coefficient_has_a_closed_form() -> None:
    change, damage = RNG.standard_normal((2, IMAGES, CLASSES))
    u, e = whitened(change), whitened(damage)
    found = fit(change[None], damage, CHANCES, ridge=0)
    assert found.mix == pytest.approx([-(u @ e) / (u @ u)])
    assert found.explained == pytest.approx((u @ e) ** 2 / (u @ u) / (e @ e))


@pytest.mark.parametrize("ridge", [0, 0.01, 1])
@pytest.mark.parametrize("seed", range(5))
def test_what_is_explained_is_a_share(seed: int, ridge: float) -> None:
    rng = np.random.default_rng(seed)
    changes, damage = rng.standard_normal((3, IMAGES, CLASSES)), rng.standard_normal((40, 5))
    assert 0 <= fit(changes, damage, CHANCES, ridge=ridge).explained <= 1


def test_a_ridge_shrinks() -> None:
    changes, damage = RNG.standard_normal((3, IMAGES, CLASSES)), RNG.standard_normal((40, 5))
    lengths = [
        float(np.linalg.norm(fit(changes, damage, CHANCES, ridge=r).mix)) for r in (0, 0.1, 1, 10)
    ]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] < 0.2 * lengths[0]


@pytest.mark.parametrize("ridge", [0, 0.01])
@pytest.mark.parametrize("still", ["changes", "damage", "both"])
def test_nothing_to_change_and_nothing_to_recover_give_zeros(still: str, ridge: float) -> None:
    changes, damage = RNG.standard_normal((2, IMAGES, CLASSES)), RNG.standard_normal((40, 5))
    found = fit(changes * (still == "damage"), damage * (still == "changes"), CHANCES, ridge=ridge)
    assert np.array_equal(found.mix, [0, 0])
    assert found.explained == 0


def test_what_moves_all_logits_alike_counts_for_nothing() -> None:
    changes, damage = RNG.standard_normal((1, IMAGES, CLASSES)), RNG.standard_normal((40, 5))
    shift = RNG.standard_normal((IMAGES, 1)) * 100
    plain, moved = fit(changes, damage, CHANCES), fit(changes + shift, damage - shift, CHANCES)
    assert np.allclose(plain.mix, moved.mix)
    assert plain.explained == pytest.approx(moved.explained)


def test_half_the_square_in_the_metric_is_the_divergence_of_small_changes() -> None:
    logits = SHOWN @ THETA
    small = 1e-3 * RNG.standard_normal((IMAGES, CLASSES))
    ours, theirs = log_softmax(logits), log_softmax(logits + small)
    divergence = (np.exp(ours) * (ours - theirs)).sum(axis=1)
    squares = np.square(whitened(small).reshape(IMAGES, CLASSES)).sum(axis=1)
    assert np.allclose(squares / 2, divergence, rtol=0.01)
