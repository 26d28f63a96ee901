"""Runs of one grid with other seeds, taken together cell by cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean, median

from qvec_cli.results.matrix import (
    Cell,
    ChosenLambda,
    CosineRecord,
    DonorScore,
    Matrix,
    Measured,
    Point,
)
from qvec_cli.results.records import Score


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
    receivers = {
        name: replace(
            receiver,
            trained_images=_mean([run.receivers[name].trained_images for run in runs]),
        )
        for name, receiver in first.receivers.items()
    }
    donors = {
        name: replace(
            donor, trained_images=_mean([run.donors[name].trained_images for run in runs])
        )
        for name, donor in first.donors.items()
    }
    return replace(
        first,
        receivers=receivers,
        donors=donors,
        baselines=baselines,
        cells={key: cell for key, cell in cells.items() if cell.receiver in baselines},
        alignment=_alignment(runs),
        runs=sum(run.runs for run in runs),
    )


def _question(matrix: Matrix) -> tuple[object, ...]:
    settings = matrix.grid, matrix.method, matrix.lambdas, matrix.fixed
    told = [matrix.run["receivers"][name] for name in matrix.receivers]
    keys = ("data_digest", "images", "targets", "network", "recipe")
    members = [[each.get(key) for key in keys] for each in told]
    return (*settings, tuple(matrix.receivers), tuple(matrix.donors), members)


def _cell(cells: Sequence[Cell]) -> Cell:
    first = cells[0]
    selectors = [key for key in first.chosen if all(key in cell.chosen for cell in cells)]
    oracles = [cell.oracle for cell in cells if cell.oracle]
    whole = len(oracles) == len(cells)
    return replace(
        first,
        diagonal=any(cell.diagonal for cell in cells),
        curve=tuple(map(_point, zip(*(cell.curve for cell in cells), strict=True))),
        fixed=tuple(map(_choice, zip(*(cell.fixed for cell in cells), strict=True))),
        chosen={key: _choice([cell.chosen[key] for cell in cells]) for key in selectors},
        oracle=(median(o[0] for o in oracles), _score(o[1] for o in oracles)) if whole else None,
        score=_donor_score(cells),
    )


def _point(points: Sequence[Point]) -> Point:
    tests = [point.test for point in points if point.test]
    test = _score(tests) if len(tests) == len(points) else None
    far = [point.distance for point in points if point.distance is not None]
    distance = fmean(far) if len(far) == len(points) else None
    return Point(points[0].lam, _score(point.val for point in points), test, distance)


def _donor_score(cells: Sequence[Cell]) -> DonorScore | None:
    found = [cell.score for cell in cells if cell.score]
    if len(found) < len(cells):
        return None
    return DonorScore(fmean(s.removed for s in found), fmean(s.explained for s in found))


def _choice(choices: Sequence[ChosenLambda]) -> ChosenLambda:
    vals = [choice.val for choice in choices if choice.val]
    return ChosenLambda(
        median(choice.lam for choice in choices),
        _score(choice.test for choice in choices),
        max((choice.use for choice in choices), key=[*type(choices[0].use)].index),
        _score(vals) if len(vals) == len(choices) else None,
    )


def _measured(rows: Sequence[Measured]) -> Measured:
    use = max((row.use for row in rows), key=[*type(rows[0].use)].index)
    return Measured(_score(row.test for row in rows), use, rows[0].grid)


def _score(scores: Iterable[Score]) -> Score:
    """The mean over runs; its error stays that of one run's images, which are the same ones."""
    found = tuple(scores)
    return Score(found[0].n, fmean(score.n_correct for score in found))


def _mean(numbers: Sequence[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return round(fmean(known)) if len(known) == len(numbers) else None


def _alignment(runs: Sequence[Matrix]) -> CosineRecord | None:
    tables = [run.alignment for run in runs if run.alignment]
    if len(tables) < len(runs):
        return None
    return replace(
        tables[0],
        whole=_averaged([table.whole for table in tables]),
        rows=_averaged([table.rows for table in tables]),
    )


def _averaged(tables: Sequence[Sequence[Sequence[float]]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(fmean, zip(*rows, strict=True))) for rows in zip(*tables, strict=True))
