"""Runs of one grid with other seeds, taken together cell by cell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import TypeVar

from msgspec import structs

from qvec_cli.results.matrix import (
    Cell,
    CosineRecord,
    DonorRecord,
    Matrix,
    Oracle,
    ReceiverRecord,
)
from qvec_cli.results.records import ChosenLambda, DonorScore, Measured, Point, Score
from qvec_cli.specs import DataUse

Member = TypeVar("Member", ReceiverRecord, DonorRecord)


def pooled(matrices: Iterable[Matrix]) -> tuple[Matrix, ...]:
    """One matrix for each grid: runs that ask the same of the same names are taken together."""
    groups: list[list[Matrix]] = []
    for matrix in matrices:
        group = next((known for known in groups if alike(known[0], matrix)), None)
        if group is None:
            groups.append([matrix])
        else:
            group.append(matrix)
    return tuple(map(pool, groups))


def alike(first: Matrix, other: Matrix) -> bool:
    """Whether two runs ask the same of the same data with models that were trained alike.

    Only seeds may differ: a model that is in both would count twice.
    """
    pairs = [(first.receivers[name], other.receivers.get(name)) for name in first.receivers]
    seeds = all(theirs and ours.digest != theirs.digest for ours, theirs in pairs)
    return seeds and _question(first) == _question(other)


def pool(runs: Sequence[Matrix]) -> Matrix:
    """One matrix of the mean scores of all runs; a cell that one lacks is missing.

    A selector's lambda is the median of the runs' own. Cosines and costs are means.
    """
    first, *others = runs
    if not others:
        return first
    cells = {
        key: _cell([run.cells[key] for run in runs])
        for key in first.cells
        if all(key in run.cells for run in others)
    }
    baselines = {
        name: {
            key: _measured([run.baselines[name][key] for run in runs])
            for key in rows
            if all(key in run.baselines.get(name, {}) for run in others)
        }
        for name, rows in first.baselines.items()
        if all(name in run.baselines for run in others)
    }
    return replace(
        first,
        receivers=_members([run.receivers for run in runs]),
        donors=_members([run.donors for run in runs]),
        baselines=baselines,
        cells={key: cell for key, cell in cells.items() if cell.receiver in baselines},
        alignment=_alignment(runs),
        runs=sum(run.runs for run in runs),
    )


def _question(matrix: Matrix) -> tuple[object, ...]:
    settings = matrix.grid, matrix.method, matrix.lambdas, matrix.fixed
    receivers = [matrix.run["receivers"][name] for name in matrix.receivers]
    keys = ("data_digest", "images", "targets", "network", "recipe")
    members = [[receiver.get(key) for key in keys] for receiver in receivers]
    return (*settings, tuple(matrix.receivers), tuple(matrix.donors), members)


def _members(runs: Sequence[Mapping[str, Member]]) -> dict[str, Member]:
    """The members of the first run, each with its mean cost of training."""
    pooled_members = {}
    for name, member in runs[0].items():
        costs = [run[name].trained_images for run in runs]
        known = [cost for cost in costs if cost is not None]
        mean = round(fmean(known)) if len(known) == len(costs) else None
        pooled_members[name] = structs.replace(member, trained_images=mean)
    return pooled_members


def _cell(cells: Sequence[Cell]) -> Cell:
    first = cells[0]
    selectors = [key for key in first.chosen if all(key in cell.chosen for cell in cells)]
    oracles = [cell.oracle for cell in cells if cell.oracle]
    scores = [cell.score for cell in cells if cell.score]
    return structs.replace(
        first,
        diagonal=any(cell.diagonal for cell in cells),
        curve=tuple(map(_point, zip(*(cell.curve for cell in cells), strict=True))),
        fixed=tuple(map(_choice, zip(*(cell.fixed for cell in cells), strict=True))),
        chosen={key: _choice([cell.chosen[key] for cell in cells]) for key in selectors},
        oracle=Oracle(median(o.lam for o in oracles), _score(o.test for o in oracles))
        if len(oracles) == len(cells)
        else None,
        score=DonorScore(fmean(s.removed for s in scores), fmean(s.explained for s in scores))
        if len(scores) == len(cells)
        else None,
    )


def _point(points: Sequence[Point]) -> Point:
    tests = [point.test for point in points if point.test]
    distances = [point.distance for point in points if point.distance is not None]
    return Point(
        points[0].lam,
        _score(point.val for point in points),
        _score(tests) if len(tests) == len(points) else None,
        fmean(distances) if len(distances) == len(points) else None,
    )


def _choice(choices: Sequence[ChosenLambda]) -> ChosenLambda:
    vals = [choice.val for choice in choices if choice.val]
    return ChosenLambda(
        median(choice.lam for choice in choices),
        _score(choice.test for choice in choices),
        _most(choice.use for choice in choices),
        _score(vals) if len(vals) == len(choices) else None,
    )


def _measured(rows: Sequence[Measured]) -> Measured:
    return Measured(_score(row.test for row in rows), _most(row.use for row in rows), rows[0].grid)


def _most(uses: Iterable[DataUse]) -> DataUse:
    return max(uses, key=list(DataUse).index)


def _score(scores: Iterable[Score]) -> Score:
    """The mean over runs; its error stays that of one run's images, which are the same ones."""
    parts = tuple(scores)
    return Score.of(parts[0].n, fmean(score.n_correct for score in parts))


def _alignment(runs: Sequence[Matrix]) -> CosineRecord | None:
    tables = [run.alignment for run in runs if run.alignment]
    if len(tables) < len(runs):
        return None
    return structs.replace(
        tables[0],
        whole=_averaged([table.whole for table in tables]),
        rows=_averaged([table.rows for table in tables]),
    )


def _averaged(tables: Sequence[Sequence[Sequence[float]]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(fmean, zip(*rows, strict=True))) for rows in zip(*tables, strict=True))
