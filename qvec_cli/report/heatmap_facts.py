"""What each donor gives each receiver over plain rounding: the facts of the heatmap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np

from qvec_cli.report.canvas import LAMBDA
from qvec_cli.report.heatmap import Heat, HeatmapPanel
from qvec_cli.results.matrix import FLOAT, OWN_QAT, PLAIN, Cell, ChosenLambda, Matrix
from qvec_cli.results.records import difference_error
from qvec_cli.specs import DataUse

SAYS: Final = {
    DataUse.NONE: "no receiver data",
    DataUse.PROXY_IMAGES: "images of others",
    DataUse.RECEIVER_IMAGES: "its images",
    DataUse.RECEIVER_LABELS: "its labels",
}
"""What of the receiver's data a number has used, in a figure's words."""


Chooser = Callable[[Cell], ChosenLambda | None]


def heat_of(matrix: Matrix) -> Heat:
    """Gains of every donor on every receiver: a panel for each fixed lambda and each selector."""
    receivers, donors = tuple(matrix.receivers), tuple(matrix.donors)
    panels = [
        _panel(matrix, fixed_name(lam), at_fixed(place)) for place, lam in enumerate(matrix.fixed)
    ]
    panels += [
        _panel(matrix, chosen_name(key), at_chosen(key), noted=True) for key in matrix.selectors
    ]
    keys = baseline_keys(matrix)
    levels = [[_percent(matrix, name, key) for key in keys] for name in receivers]
    own = [[_is_own(matrix, r, d) for d in donors] for r in receivers]
    return Heat(
        title="What a donor's vector gives a receiver, over plain rounding",
        subtitle=f"{subtitle(matrix)}; rows: receivers, columns: donors",
        receivers=receivers,
        donors=donors,
        panels=tuple(panels),
        diagonal=np.array(own),
        columns=tuple(baseline_name(matrix, key) for key in keys),
        levels=np.array(levels, dtype=float),
        footnote=_marks(matrix),
    )


def subtitle(matrix: Matrix) -> str:
    """Grid, how codes are chosen, how much has run, on how many images."""
    sizes = [matrix.plain(name).n for name in matrix.baselines]
    n = f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"
    held = sum(cell.null is None for cell in matrix.cells.values())
    pairs = len(matrix.receivers) * len(matrix.donors)
    some = "" if held == pairs else f"{held} of "
    cells = f"{some}{pairs} pair{'s' if pairs > 1 else ''}"
    cells += f" of {matrix.runs} runs" if matrix.runs > 1 else ""
    return f"{matrix.grid}, {matrix.method}; {cells}; top-1 on test, n = {n} images a receiver"


def baseline_keys(matrix: Matrix) -> tuple[str, ...]:
    """Baselines in the order of the file, the receiver's own QAT last."""
    keys = {key: None for rows in matrix.baselines.values() for key in rows}
    return tuple(sorted(keys, key=lambda key: key == OWN_QAT))


def baseline_name(matrix: Matrix, key: str) -> str:
    """A baseline in a figure's words, with what it has used of the receiver's data, if anything."""
    known = {FLOAT: "float", PLAIN: f"{matrix.method.upper()}, this grid", OWN_QAT: "own QAT"}
    uses = [rows[key].use for rows in matrix.baselines.values() if key in rows]
    use = max(uses, key=list(DataUse).index)
    return known.get(key, key) + (f" ({SAYS[use]})" if use is not DataUse.NONE else "")


def fixed_name(lam: float) -> str:
    """A lambda that nobody chose."""
    return f"{LAMBDA} = {lam:g}"


def chosen_name(key: str) -> str:
    """A selector in words."""
    return f"{LAMBDA} chosen on validation" if key == "val" else f"{LAMBDA} by {key}"


def at_fixed(place: int) -> Chooser:
    """What a cell came to at one of the run's fixed lambdas."""
    return lambda cell: cell.fixed[place] if place < len(cell.fixed) else None


def at_chosen(key: str) -> Chooser:
    """What a cell came to at the lambda of a selector."""
    return lambda cell: cell.chosen.get(key)


def _panel(matrix: Matrix, title: str, pick: Chooser, *, noted: bool = False) -> HeatmapPanel:
    shape = len(matrix.receivers), len(matrix.donors)
    gains, errors = np.full(shape, np.nan), np.full(shape, np.nan)
    notes = [["" for _ in matrix.donors] for _ in matrix.receivers]
    uses: list[DataUse] = []
    for r, receiver in enumerate(matrix.receivers):
        for d, donor in enumerate(matrix.donors):
            cell = matrix.get(receiver, donor)
            choice = pick(cell) if cell else None
            if choice is None:
                continue
            gains[r, d] = 100 * matrix.gain(receiver, choice.test)
            errors[r, d] = 100 * difference_error(choice.test, matrix.plain(receiver))
            if cell and cell.transfer:  # a receiver's own vector has cost its labels
                uses.append(choice.use)
            if noted and choice.lam not in matrix.fixed:
                notes[r][d] = f"{choice.lam:g}"
    marks = tuple(map(tuple, notes)) if noted else ()
    return HeatmapPanel(title, used(uses), gains, errors, marks)


def used(uses: Iterable[DataUse]) -> str:
    """The most that any of some numbers has used, in words."""
    return SAYS[max(uses, key=list(DataUse).index, default=DataUse.NONE)]


def _percent(matrix: Matrix, receiver: str, key: str) -> float:
    row = matrix.baselines.get(receiver, {}).get(key)
    return 100 * row.test.top1 if row else math.nan


def _is_own(matrix: Matrix, receiver: str, donor: str) -> bool:
    cell = matrix.get(receiver, donor)
    return cell.diagonal if cell else receiver == donor


def _marks(matrix: Matrix) -> str:
    """What the marks of the figure mean, of those that are in it."""
    words = ["bold: further from 0 than one standard error of the difference"]
    if matrix.selectors:
        chosen = f"the median of the chosen {LAMBDA}" if matrix.runs > 1 else f"the chosen {LAMBDA}"
        words.append(f"small: {chosen}, where it is another")
    if any(cell.diagonal for cell in matrix.cells.values()):
        words.append("outlined: a receiver's own vector, the ceiling, in no mean")
    held = sum(cell.null is None for cell in matrix.cells.values())
    counts = {len(rows) for rows in matrix.baselines.values()} | {len(baseline_keys(matrix))}
    if held < len(matrix.receivers) * len(matrix.donors) or len(counts) > 1:
        words.append("hatched: not measured")
    return "; ".join(words)
