"""What a transfer grid comes to: gains, losses, regret, donors, and what explains them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from statistics import fmean, median
from typing import Any, Final

import numpy as np

from qvec_cli.results.matrix import OWN_QAT, PLAIN, Cell, Matrix
from qvec_cli.results.records import Score, difference_error

Facts = dict[str, Any]
Take = Callable[[Cell], Score | None]

ORACLE: Final = "oracle"
"""The lambda that is best on test, which nobody can choose."""

CROSSED: Final = "crossed"
"""The same, cross-fitted, so that it does not flatter itself: regret is measured against it."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a vector has changed on a receiver at one way to choose lambda."""

    receiver: str
    donor: str
    before: Score  # of plain rounding
    after: Score

    @property
    def gain(self) -> float:
        """In shares of the test images."""
        return self.after.top1 - self.before.top1

    @property
    def error(self) -> float:
        """Standard error of the gain."""
        return difference_error(self.before, self.after)


def summarise(matrix: Matrix) -> Facts:
    """Statistics over the cells of a grid; shares of test images, and of pairs.

    Own vectors (the diagonal) and null vectors are kept out of all but their own rows.
    """
    cells, gap = list(matrix.cells.values()), _gap(matrix)
    others = [cell for cell in cells if not cell.diagonal]
    own = [cell for cell in cells if cell.diagonal and cell.null is None]
    ways = _ways(matrix)
    by_kind = {
        kind: {
            way: measured
            for way, take in ways.items()
            if (measured := _changes([c for c in others if c.null == kind], matrix, take))
        }
        for kind in dict.fromkeys(cell.null for cell in others)
    }
    changes = by_kind.get(None, {})
    best = changes.get(CROSSED, changes.get(ORACLE))
    return {
        "runs": matrix.runs,
        "receivers": len(matrix.baselines),
        "baselines": _baselines(matrix),
        "ways": {way: _statistics(c, gap, best) for way, c in changes.items()},
        "own_vector": {
            way: fmean(gains) if (gains := [c.gain for c in _changes(own, matrix, take)]) else None
            for way, take in ways.items()
        },
        "nulls": {
            kind: {way: _statistics(c, gap, None) for way, c in of_kind.items()}
            for kind, of_kind in by_kind.items()
            if kind is not None
        },
        "donors": {way: _by(c, attrgetter("donor")) for way, c in changes.items()},
        "per_receiver": {way: _by(c, attrgetter("receiver")) for way, c in changes.items()},
        "donor_score": _donor_score([c for c in others if c.null is None], best),
        "alignment": _alignment(matrix, changes),
    }


def gain_cells(
    facts: Mapping[str, Any], words: Callable[[str], str], points: Callable[[float], str]
) -> Iterator[tuple[str, ...]]:
    """A summary's gains as rows of text: name, mean, interval, median, wins, losses, gap, regret.

    The vectors, then the nulls of ``summarise``; last, in two cells, what receivers' own vectors
    gain. ``words`` names a way to choose lambda by its key, ``points`` writes top-1 with its sign.
    """
    rows = [(words(way), row) for way, row in facts["ways"].items()]
    for kind, ways in facts["nulls"].items():
        rows += [(f"null {kind}, {words(way)}", row) for way, row in ways.items()]
    for name, row in rows:
        ends, closed, regret = row["interval"], row["gap_closed"], row["regret"]
        yield (
            name,
            points(100 * row["mean"]),
            " to ".join(points(100 * end) for end in ends) if ends else "-",
            points(100 * row["median"]),
            f"{row['rates']['win']:.0%}",
            f"{row['rates']['loss']:.0%}",
            f"{closed['share']:.0%}" if closed else "-",
            f"{100 * regret['mean']:.1f}" if regret else "-",
        )
    for way, gain in facts["own_vector"].items():
        if gain is not None:
            yield f"own vector, {words(way)}", points(100 * gain)


def _ways(matrix: Matrix) -> dict[str, Take]:
    """The ways to choose lambda that all cells know, by name; each picks a score of a cell.

    A cell has none at a fixed lambda at which its network is not finite.
    """
    cells, ways = matrix.cells.values(), dict[str, Take]()
    for lam in matrix.fixed:
        ways[f"lambda {lam:g}"] = partial(_fixed, lam)
    for name in matrix.selectors:
        if all(name in cell.chosen for cell in cells):
            ways[name] = partial(_chosen, name)
    if all(cell.oracle for cell in cells):
        ways[ORACLE] = attrgetter("oracle.test")
    if all(cell.oracle and cell.oracle.crossed for cell in cells):
        ways[CROSSED] = attrgetter("oracle.crossed")
    return ways


def _fixed(lam: float, cell: Cell) -> Score | None:
    return next((row.test for row in cell.fixed if row.lam == lam), None)


def _chosen(name: str, cell: Cell) -> Score:
    return cell.chosen[name].test


def _changes(cells: Iterable[Cell], matrix: Matrix, take: Take) -> list[Change]:
    scores = ((cell, take(cell)) for cell in cells)
    return [
        Change(c.receiver, c.donor, matrix.plain(c.receiver), score) for c, score in scores if score
    ]


def _statistics(
    changes: Sequence[Change], gap: Mapping[str, float], best: Sequence[Change] | None
) -> Facts:
    """What a way to choose lambda is worth; a mean is one of receivers' means."""
    units: dict[str, list[Change]] = defaultdict(list)
    for change in changes:
        units[change.receiver].append(change)
    gains = {name: [c.gain for c in unit] for name, unit in units.items()}
    every = [c.gain for c in changes]
    return {
        "pairs": len(changes),
        "mean": fmean(map(fmean, gains.values())),
        "interval": interval([*gains.values()]),
        "median": median(every),
        "least": min(every),
        "most": max(every),
        "rates": {
            "win": fmean(c.gain > c.error for c in changes),
            "loss": fmean(c.gain < -c.error for c in changes),
            "better": fmean(c.gain > 0 for c in changes),
        },
        "top1": fmean(fmean(c.after.top1 for c in unit) for unit in units.values()),
        "gap_closed": _closed(gains, gap),
        "regret": _regret(changes, best),
    }


def _closed(gains: Mapping[str, Sequence[float]], gap: Mapping[str, float]) -> Facts | None:
    """Mean gain as a share of what the receivers' own QAT gains, over those that have one."""
    known = [name for name in gains if name in gap]
    total = fmean(gap[name] for name in known) if known else 0.0
    if total <= 0:
        return None
    units = [gains[name] for name in known]
    return {
        "share": fmean(map(fmean, units)) / total,
        "interval": interval(units, over=[gap[name] for name in known]),
        "receivers": len(known),
    }


def _regret(changes: Sequence[Change], best: Sequence[Change] | None) -> Facts | None:
    """What the best lambda on test would have given more, in all and as a share of its gain."""
    if best is None:
        return None
    tops = {(top.receiver, top.donor): top.gain for top in best}
    known = [(tops[change.receiver, change.donor], change.gain) for change in changes]
    lost = [top - gain for top, gain in known]
    gain = fmean(top for top, _ in known)
    share = fmean(lost) / gain if gain > 0 else None
    return {"mean": fmean(lost), "most": max(lost), "share": share}


def _gap(matrix: Matrix) -> dict[str, float]:
    """What each receiver's own QAT gains over plain rounding, where there is one."""
    return {
        name: rows[OWN_QAT].test.top1 - rows[PLAIN].test.top1
        for name, rows in matrix.baselines.items()
        if OWN_QAT in rows
    }


def _baselines(matrix: Matrix) -> Facts:
    """Mean top-1 over receivers of what needs no donor, and what of their data it used."""
    means = {}
    for key in dict.fromkeys(key for rows in matrix.baselines.values() for key in rows):
        rows = [each[key] for each in matrix.baselines.values() if key in each]
        means[key] = {
            "top1": fmean(row.test.top1 for row in rows),
            "receivers": len(rows),
            "data_use": sorted({row.use for row in rows}),
        }
    return means


def _by(changes: Sequence[Change], name: Callable[[Change], str]) -> Facts:
    """Mean gain of each member, the best first."""
    groups: dict[str, list[float]] = defaultdict(list)
    for change in changes:
        groups[name(change)].append(change.gain)
    means = {member: fmean(gains) for member, gains in groups.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def _donor_score(cells: Sequence[Cell], best: Sequence[Change] | None) -> Facts | None:
    """How donors' scores, made without labels, rank pairs by what the best lambda on test gains.

    Over all pairs, and as the mean over receivers of each one's own ranking of its donors.
    """
    if best is None or len(cells) < 3 or not all(cell.score for cell in cells):
        return None
    gains = np.array([change.gain for change in best])
    names = np.array([cell.receiver for cell in cells])
    facts: Facts = {}
    for kind in ("removed", "explained"):
        score = np.array([getattr(cell.score, kind) for cell in cells])
        within = [
            spearman(score[names == name], gains[names == name])
            for name in dict.fromkeys(names)
            if (names == name).sum() > 2
        ]
        known = [rank for rank in within if rank is not None]
        facts[kind] = {
            "spearman": spearman(score, gains),
            "within_receivers": fmean(known) if known else None,
        }
    return facts


def _alignment(matrix: Matrix, changes: Mapping[str, Sequence[Change]]) -> Facts | None:
    """Whether vectors that point the receiver's own way gain more; tasks on both sides count."""
    if matrix.alignment is None:
        return None
    names = matrix.alignment.donors
    place = {name: index for index, name in enumerate(names)}
    facts: Facts = {}
    for kind, table in (("global", matrix.alignment.whole), ("rows", matrix.alignment.rows)):
        cosine = np.array(table)
        off = ~np.eye(len(names), dtype=bool)
        facts[kind] = {"mean": float(cosine[off].mean()) if len(names) > 1 else None}
        for way, rows in changes.items():
            gain = np.full(cosine.shape, np.nan)
            for change in rows:
                if change.receiver in place and change.donor in place:
                    gain[place[change.receiver], place[change.donor]] = change.gain
            facts[kind][way] = _explained(cosine, gain)
    return facts


def _explained(cosine: Any, gain: Any) -> Facts | None:
    kept = ~np.eye(len(cosine), dtype=bool) & ~np.isnan(gain)
    if kept.sum() < 3:
        return None
    return {"spearman": spearman(cosine[kept], gain[kept]), "p": chance(cosine, gain)}


Array = np.ndarray[Any, np.dtype[Any]]

DRAWS: Final = 10_000
"""Resamples and permutations."""

SEED: Final = 2038
"""Of both; the paper's."""


def interval(
    units: Sequence[Sequence[float]], *, over: Sequence[float] | None = None
) -> list[float] | None:
    """The 95 % bootstrap interval of a mean of means, or of a ratio of two sums.

    Whole units (receivers, with a number a pair) are drawn; ``over`` is what each unit's mean is
    divided by in sum, for a ratio. Returns the 2.5 % and 97.5 % points of ``DRAWS`` resamples; None
    for fewer than two units, and for a ratio whose lower part is not above 0 in each of them.
    """
    means = np.array([np.mean(unit) for unit in units])
    if len(means) < 2:
        return None
    drawn = np.random.default_rng(SEED).integers(len(means), size=(DRAWS, len(means)))
    resampled = means[drawn].mean(axis=1)
    if over is not None:
        parts = np.asarray(over)[drawn].mean(axis=1)
        if parts.min() <= 0:
            return None
        resampled = resampled / parts
    return [float(point) for point in np.quantile(resampled, (0.025, 0.975))]


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
    observed = abs(float((placed[off] - middle) @ goal))
    if observed == 0:
        return None
    rng, as_much = np.random.default_rng(SEED), 0
    for _ in range(DRAWS):
        order = rng.permutation(len(score))
        drawn = placed[np.ix_(order, order)][off]
        as_much += abs(float((drawn - middle) @ goal)) >= observed * (1 - 1e-12)
    return (1 + as_much) / (1 + DRAWS)
