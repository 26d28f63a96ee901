"""The numbers of a transfer grid as tables, each with what it has used of the receiver's data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, Final

from qvec_cli.report import grid_words
from qvec_cli.report.canvas import LAMBDA, signed
from qvec_cli.report.page import Table
from qvec_cli.results.matrix import Cell, Matrix
from qvec_cli.results.records import ChosenLambda, Point, Score
from qvec_cli.results.summary import ORACLE, gain_cells, summarise
from qvec_cli.specs import DataUse

NONE: Final = "-"
"""What has not been measured."""


def tables_of(matrix: Matrix) -> Iterator[Table]:
    """Every number of a grid, the ones that people ask for first."""
    yield _gains(summarise(matrix))
    yield _summary(matrix)
    yield _donors(matrix)
    yield from _pairs(matrix)
    yield from _nulls(matrix)
    yield from _alignment(matrix)
    yield from _curves(matrix)
    yield from _distances(matrix)
    yield _uses(matrix)
    yield from _provenance(matrix)


def percent(score: Score) -> str:
    """Top-1 in percent."""
    return f"{100 * score.top1:.2f}"


def accuracy(score: Score) -> str:
    """Top-1 in percent with its standard error and counts."""
    return (
        f"{percent(score)} \N{PLUS-MINUS SIGN} {100 * score.standard_error:.2f} "
        f"({score.n_correct:g}/{score.n})"
    )


def _gain(matrix: Matrix, cell: Cell, choice: ChosenLambda) -> float:
    return 100 * matrix.gain(cell.receiver, choice.test)


def _gains(facts: Mapping[str, Any]) -> Table:
    """What transfer prints at its end: gains of vectors, and of nulls that carry nothing."""
    head = ("way", "mean", "95 %", "median", "wins", "losses", "gap closed", "regret")
    rows = gain_cells(facts, _way, signed)
    return Table(
        "With a vector: points of top-1 on test above plain rounding, over all pairs",
        head,
        tuple((*row, *[NONE] * (len(head) - len(row))) for row in rows),
        "The mean is one of receivers' means, its interval a bootstrap over receivers. Wins and "
        "losses are pairs further from 0 than one standard error of the difference; the gap is "
        "what the receivers' own QAT gains; the regret is against the best on test.",
    )


def _way(name: str) -> str:
    """A way to choose lambda, which the summary calls by its key."""
    if name.startswith("lambda "):
        return f"{LAMBDA} = {name.removeprefix('lambda ')}"
    return f"{LAMBDA} best on test" if name == ORACLE else grid_words.chosen_name(name)


def _summary(matrix: Matrix) -> Table:
    keys, pickers = grid_words.baseline_keys(matrix), grid_words.ways(matrix)
    rows, shares = [], []
    for name, baselines in matrix.baselines.items():
        levels = [[baselines[key].test] if key in baselines else [] for key in keys]
        cells = [cell for cell in matrix.transfers if cell.receiver == name]
        patched = [[c.test for cell in cells if (c := pick(cell))] for _, pick in pickers]
        rows.append((name, f"{matrix.plain(name).n:,}", *map(_spread, (*levels, *patched))))
        shares.append([[100 * score.top1 for score in scores] for scores in (*levels, *patched)])
    columns = zip(*shares, strict=True)
    means = [f"{fmean(map(fmean, c)):.2f}" if all(c) else NONE for c in columns]
    heads = [f"vector, {label} ({_used_by(matrix, pick)})" for label, pick in pickers]
    return Table(
        "Each receiver: top-1 on test, %",
        ("receiver", "n", *(grid_words.baseline_name(matrix, key) for key in keys), *heads),
        (*rows, ("mean", "", *means)),
        "Vectors: the mean over donors other than the receiver's own, and in brackets the least "
        "and the largest. What stands in brackets in the head is what the number has used of the "
        "receiver's data beyond its own fine-tuning; without brackets, nothing.",
    )


def _spread(scores: Sequence[Score]) -> str:
    """The mean of some accuracies in percent, and their ends if they are several."""
    if not scores:
        return NONE
    shares = [100 * score.top1 for score in scores]
    ends = f" ({min(shares):.2f} to {max(shares):.2f})" if len(shares) > 1 else ""
    return f"{fmean(shares):.2f}{ends}"


def _used_by(matrix: Matrix, pick: grid_words.Chooser) -> str:
    return grid_words.used(choice.use for cell in matrix.transfers if (choice := pick(cell)))


def _donors(matrix: Matrix) -> Table:
    pickers = grid_words.ways(matrix)
    rows = []
    for name, donor in matrix.donors.items():
        cells = [cell for cell in matrix.transfers if cell.donor == name]
        trained = f"{donor.trained_images:,}" if donor.trained_images is not None else NONE
        rows.append((name, trained, *_mean_gains(matrix, cells, pickers)))
    head = ["donor", "images its QAT was trained on"]
    for label, _ in pickers:
        head += [f"mean gain, {label}", "better than rounding"]
    rows.append(("all pairs", "", *_mean_gains(matrix, matrix.transfers, pickers)))
    return Table(
        "Each donor: points of top-1 above plain rounding, on other receivers",
        tuple(head),
        tuple(rows),
        "A tie is no win; a receiver's own vector counts nowhere. The mean of all pairs is not the "
        "one above, which counts each receiver once.",
    )


def _mean_gains(
    matrix: Matrix, cells: Sequence[Cell], pickers: Sequence[tuple[str, grid_words.Chooser]]
) -> Iterator[str]:
    for _, pick in pickers:
        gains = [_gain(matrix, cell, choice) for cell in cells if (choice := pick(cell))]
        yield signed(fmean(gains)) if gains else NONE
        yield f"{sum(gain > 0 for gain in gains)} of {len(gains)}" if gains else NONE


def _pairs(matrix: Matrix) -> Iterator[Table]:
    for label, pick in grid_words.ways(matrix):
        yield _pair_table(matrix, f"{label} ({_used_by(matrix, pick)})", pick)
    if any(cell.oracle for cell in matrix.cells.values()):
        yield _pair_table(matrix, f"{LAMBDA} that is best on test, which nobody can know", _best)


def _best(cell: Cell) -> ChosenLambda | None:
    if cell.oracle is None:
        return None
    return ChosenLambda(cell.oracle.lam, cell.oracle.test, DataUse.RECEIVER_LABELS)


def _pair_table(matrix: Matrix, label: str, pick: grid_words.Chooser) -> Table:
    rows = []
    for receiver in matrix.receivers:
        cells = [matrix.get(receiver, donor) for donor in matrix.donors]
        rows.append((receiver, *(_pair(matrix, cell, pick) for cell in cells)))
    return Table(
        f"Each pair, {label}: top-1 on test in %, and points above plain rounding",
        ("receiver, from", *matrix.donors),
        tuple(rows),
        f"own: a receiver's own vector. @: the {LAMBDA}, where it does not stand above.",
        folded=True,
    )


def _pair(matrix: Matrix, cell: Cell | None, pick: grid_words.Chooser) -> str:
    choice = pick(cell) if cell else None
    if cell is None or choice is None:
        return NONE
    own = " own" if cell.diagonal else ""
    return f"{_answer(matrix, cell, choice)}{own}"


def _answer(matrix: Matrix, cell: Cell, choice: ChosenLambda) -> str:
    at = f" @ {choice.lam:g}" if choice not in cell.fixed else ""
    return f"{percent(choice.test)} ({signed(_gain(matrix, cell, choice))}){at}"


def _nulls(matrix: Matrix) -> Iterator[Table]:
    """Vectors of the same norm that carry nothing: what a gain must be larger than."""
    cells = [cell for cell in matrix.cells.values() if cell.null]
    if not cells:
        return
    pickers = grid_words.ways(matrix)
    rows = []
    for cell in cells:
        choices = [pick(cell) for _, pick in pickers]
        shown = [_answer(matrix, cell, choice) if choice else NONE for choice in choices]
        rows.append((str(cell.null), cell.donor, cell.receiver, *shown))
    yield Table(
        "Vectors of the same norm that carry nothing",
        ("null", "norm of", "receiver", *(label for label, _ in pickers)),
        tuple(rows),
        folded=True,
    )


def _alignment(matrix: Matrix) -> Iterator[Table]:
    cosines = matrix.alignment
    if cosines is None:
        return
    for words, table in (
        ("of everything at once", cosines.whole),
        ("mean over rows", cosines.rows),
    ):
        yield Table(
            f"Cosines between the donors' vectors, {words}",
            ("donor", *cosines.donors),
            tuple(
                (name, *(f"{value:.4f}" for value in row))
                for name, row in zip(cosines.donors, table, strict=True)
            ),
            folded=True,
        )


def _curves(matrix: Matrix) -> Iterator[Table]:
    split: dict[str, Callable[[Point], Score | None]] = {
        "validation": lambda point: point.val,
        "test": lambda point: point.test,
    }
    lambdas = sorted({point.lam for cell in matrix.cells.values() for point in cell.curve})
    for name, pick in split.items():
        rows = []
        for cell in matrix.cells.values():
            scores = {point.lam: pick(point) for point in cell.curve}
            shown = [scores.get(lam) for lam in lambdas]
            if any(shown):
                rows.append((_label(cell), *(percent(score) if score else NONE for score in shown)))
        if rows:
            yield Table(
                f"Each curve: top-1 on {name}, %, by {LAMBDA}",
                ("pair", *(f"{lam:g}" for lam in lambdas)),
                tuple(rows),
                folded=True,
            )


def _distances(matrix: Matrix) -> Iterator[Table]:
    """What lambda by agreement was chosen by."""
    lambdas = sorted({point.lam for cell in matrix.cells.values() for point in cell.curve})
    rows = []
    for cell in matrix.cells.values():
        far = {point.lam: point.distance for point in cell.curve}
        if cell.score is None:
            continue
        shares = (f"{100 * share:.1f}" for share in (cell.score.removed, cell.score.explained))
        numbers = (far.get(lam) for lam in lambdas)
        cells = (NONE if number is None else f"{number:.4g}" for number in numbers)
        rows.append((_label(cell), matrix.measures.get(cell.receiver, NONE), *shares, *cells))
    if rows:
        yield Table(
            f"Each curve: distance to the float answers on proxy images, by {LAMBDA}",
            ("pair", "measure", "removed, %", "explained, %", *(f"{lam:g}" for lam in lambdas)),
            tuple(rows),
            f"Removed: the share of the damage at {LAMBDA} = 0 that is gone at the {LAMBDA} chosen "
            "by agreement. Explained: what one coefficient would cancel, were changes linear.",
            folded=True,
        )


def _label(cell: Cell) -> str:
    return f"{cell.receiver} from {cell.donor}{f', {cell.null}' if cell.null else ''}"


def _uses(matrix: Matrix) -> Table:
    keys = grid_words.baseline_keys(matrix)
    rows = [
        (
            grid_words.baseline_name(matrix, key).split(" (", maxsplit=1)[0],
            max(
                (levels[key].use for levels in matrix.baselines.values() if key in levels),
                key=list(DataUse).index,
            ),
        )
        for key in keys
    ]
    for label, pick in grid_words.ways(matrix):
        uses = [choice.use for cell in matrix.transfers if (choice := pick(cell))]
        rows.append((f"vector, {label}", max(uses, key=list(DataUse).index, default=DataUse.NONE)))
    return Table(
        "What each number has used of the receiver's data",
        ("number", "data_use"),
        tuple((name, str(use)) for name, use in rows),
    )


def _provenance(matrix: Matrix) -> Iterator[Table]:
    run = matrix.run
    parts = ("receivers", "donors", "environment", "kind")
    which = f", the first of {matrix.runs} runs" if matrix.runs > 1 else ""
    yield Table(
        f"How it was run{which}",
        ("setting", "value"),
        tuple((key, compact_json(run[key])) for key in run if key not in parts),
        folded=True,
    )
    for part in parts[:-1]:
        members = run.get(part, {})
        rows = [
            (name, key, compact_json(value))
            for name, facts in members.items()
            for key, value in (facts if isinstance(facts, dict) else {"": facts}).items()
        ]
        yield Table(
            f"Where it comes from: {part}{which}", ("of", "what", "value"), tuple(rows), folded=True
        )


def compact_json(value: Any) -> str:
    """A setting as text; a string is itself."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
