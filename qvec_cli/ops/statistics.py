"""Means with intervals, and rank correlations with their chance: tasks are the units, not pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

DRAWS: Final = 10_000
"""Resamples and permutations."""

SEED: Final = 2038
"""Of both; the paper's."""


def interval(
    units: Sequence[Sequence[float]], *, over: Sequence[float] | None = None
) -> list[float] | None:
    """The 95 % bootstrap interval of a mean of means, or of a ratio of two sums.

    Args:
        units: what each unit (a receiver) has, one number a pair; whole units are drawn.
        over: what each unit's mean is divided by in sum, for a ratio.

    Returns:
        The 2.5 % and 97.5 % points of ``DRAWS`` resamples; None for fewer than two units, and
        for a ratio whose lower part is not above 0 in each of them.
    """
    means = np.array([np.mean(unit) for unit in units])
    if len(means) < 2:
        return None
    drawn = np.random.default_rng(SEED).integers(len(means), size=(DRAWS, len(means)))
    found = means[drawn].mean(axis=1)
    if over is not None:
        parts = np.asarray(over)[drawn].mean(axis=1)
        if parts.min() <= 0:
            return None
        found = found / parts
    return [float(point) for point in np.quantile(found, (0.025, 0.975))]


def ranks(values: Array) -> Array:
    """Ranks from 1, of ties their mean."""
    order = np.argsort(values, kind="stable")
    placed = np.empty(len(values))
    placed[order] = np.arange(1, len(values) + 1)
    _, group = np.unique(values, return_inverse=True)
    return (np.bincount(group, placed) / np.bincount(group))[group]


def spearman(first: Array, second: Array) -> float | None:
    """Spearman's rank correlation; None where one side does not vary."""
    ours, theirs = ranks(first), ranks(second)
    ours, theirs = ours - ours.mean(), theirs - theirs.mean()
    scale = float(np.sqrt((ours @ ours) * (theirs @ theirs)))
    return float(ours @ theirs) / scale if scale > 0 else None


def chance(score: Array, gain: Array) -> float | None:
    """How often a relabelling of the tasks correlates as much: the p-value of ``spearman``.

    A quadratic assignment test: rows and columns of ``score`` are permuted together, so that
    what pairs of one task have in common is kept; two-sided, (1 + as much) / (1 + draws).

    Args:
        score: [n, n], of every ordered pair of tasks.
        gain: [n, n], in the same order; the diagonals are left out.

    Returns:
        None for fewer than four tasks, a gain that is missing, or a side that does not vary.
    """
    off = ~np.eye(len(score), dtype=bool)
    if len(score) < 4 or np.isnan(gain[off]).any():
        return None
    placed, goal = np.zeros(score.shape), ranks(gain[off])
    placed[off] = ranks(score[off])  # a permutation moves ranks about, and leaves them as they are
    goal, middle = goal - goal.mean(), placed[off].mean()
    found = abs(float((placed[off] - middle) @ goal))
    if found == 0:
        return None
    rng, as_much = np.random.default_rng(SEED), 0
    for _ in range(DRAWS):
        order = rng.permutation(len(score))
        drawn = placed[np.ix_(order, order)][off]
        as_much += abs(float((drawn - middle) @ goal)) >= found * (1 - 1e-12)
    return (1 + as_much) / (1 + DRAWS)
