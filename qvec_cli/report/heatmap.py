"""The figure heatmap: what each donor gives each receiver over plain rounding, in colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qvec_cli.report import grid_words
from qvec_cli.report.canvas import (
    INK,
    LAMBDA,
    SMALL,
    SOFT,
    Drawing,
    FigureOptions,
    Sheet,
    ink_on,
    name,
    signed,
    styled,
    two_lines,
    words_width,
    wrapped,
)
from qvec_cli.results.documents import ResultFiles
from qvec_cli.results.matrix import Matrix
from qvec_cli.results.records import difference_error
from qvec_cli.specs import DataUse

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Array = np.ndarray[Any, np.dtype[Any]]


GAINS: Final = "RdBu"
"""Red loses, blue gains; told apart with every kind of colour vision, and by the sign besides."""


NUMBERED: Final = 22
"""Rows or columns up to which cells show their number."""


_ROOMY: Final = 12
"""Rows or columns up to which there is room for a decimal."""


_MEAN: Final = "mean"


_GAP: Final = 0.25
"""Of a row, between the receivers and their means."""


_WIDEST: Final = 12.6
"""Inches that panels may take beside each other."""


@dataclass(frozen=True, slots=True)
class HeatmapPanel:
    """One way of choosing lambda."""

    title: str
    note: str  # what it has used
    gains: Array  # [receivers, donors], points; NaN where a cell has not run
    errors: Array  # their standard errors, points
    marks: tuple[tuple[str, ...], ...] = ()  # a small word for each cell, such as its lambda


@dataclass(frozen=True, slots=True)
class Heat:
    """A whole figure."""

    title: str
    subtitle: str
    receivers: tuple[str, ...]
    donors: tuple[str, ...]
    panels: tuple[HeatmapPanel, ...]
    diagonal: Array  # bool [receivers, donors]: a receiver's own vector
    columns: tuple[str, ...]  # what stands in ``levels``
    levels: Array  # [receivers, columns], top-1 in %; NaN where there is none
    footnote: str = ""


@dataclass(frozen=True, slots=True)
class _HeatmapSizes:
    """Inches."""

    cell: tuple[float, float]  # width, height
    left: float  # names of receivers
    head: float  # names of donors and of levels, above the cells
    slot: float  # a panel and the gap behind it
    levels: float
    across: int  # panels beside each other
    down: int

    @classmethod
    def of(cls, heat: Heat) -> _HeatmapSizes:
        columns = len(heat.donors)
        count = max(columns, len(heat.receivers))
        cell = (0.46, 0.36) if count <= _ROOMY else (0.29, 0.25)
        cell = cell if count <= NUMBERED else (0.14, 0.14)
        left = words_width([*map(name, heat.receivers), _MEAN]) + 0.3
        names = [line for text in heat.columns for line in two_lines(text).split("\n")]
        head = words_width([*map(name, heat.donors), *names]) + 0.08
        titles = words_width([p.title for p in heat.panels], 9.5)  # 8.5 points, bold
        slot = max(columns * cell[0], titles, words_width([p.note for p in heat.panels])) + 0.25
        levels = max(len(heat.columns) * max(cell[0], 0.36), 0.6)
        across = int((_WIDEST - left - levels) // slot)
        across = min(max(across, 1), len(heat.panels))
        return cls(cell, left, head, slot, levels, across, -(-len(heat.panels) // across))


def draw_heatmap(files: ResultFiles, _: FigureOptions) -> Drawing:
    """The heatmap of a grid."""
    matrix = files.matrix
    assert matrix is not None
    heat = heat_of(matrix)
    facts = {**grid_words.matrix_facts(matrix), "panels": [panel.title for panel in heat.panels]}
    return Drawing(
        heatmap(heat), f"{heat.title}. {heat.subtitle}.", facts, grid_words.grid_use(matrix)
    )


def heat_of(matrix: Matrix) -> Heat:
    """Gains of every donor on every receiver: a panel for each fixed lambda and each selector."""
    receivers, donors = tuple(matrix.receivers), tuple(matrix.donors)
    panels = [
        _panel_of(matrix, grid_words.fixed_name(lam), grid_words.at_fixed(place))
        for place, lam in enumerate(matrix.fixed)
    ]
    panels += [
        _panel_of(matrix, grid_words.chosen_name(key), grid_words.at_chosen(key), noted=True)
        for key in matrix.selectors
    ]
    keys = grid_words.baseline_keys(matrix)
    levels = [[_percent(matrix, name, key) for key in keys] for name in receivers]
    own = [[_is_own(matrix, r, d) for d in donors] for r in receivers]
    return Heat(
        title="What a donor's vector gives a receiver, over plain rounding",
        subtitle=f"{grid_words.subtitle(matrix)}; rows: receivers, columns: donors",
        receivers=receivers,
        donors=donors,
        panels=tuple(panels),
        diagonal=np.array(own),
        columns=tuple(grid_words.baseline_name(matrix, key) for key in keys),
        levels=np.array(levels, dtype=float),
        footnote=_footnote(matrix),
    )


def _panel_of(
    matrix: Matrix, title: str, pick: grid_words.Chooser, *, noted: bool = False
) -> HeatmapPanel:
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
    return HeatmapPanel(title, grid_words.used(uses), gains, errors, marks)


def _percent(matrix: Matrix, receiver: str, key: str) -> float:
    row = matrix.baselines.get(receiver, {}).get(key)
    return 100 * row.test.top1 if row else math.nan


def _is_own(matrix: Matrix, receiver: str, donor: str) -> bool:
    cell = matrix.get(receiver, donor)
    return cell.diagonal if cell else receiver == donor


def _footnote(matrix: Matrix) -> str:
    """What the marks of the figure mean, of those that are in it."""
    words = ["bold: further from 0 than one standard error of the difference"]
    if matrix.selectors:
        chosen = f"the median of the chosen {LAMBDA}" if matrix.runs > 1 else f"the chosen {LAMBDA}"
        words.append(f"small: {chosen}, where it is another")
    if any(cell.diagonal for cell in matrix.cells.values()):
        words.append("outlined: a receiver's own vector, the ceiling, in no mean")
    measured = sum(cell.null is None for cell in matrix.cells.values())
    counts = {len(rows) for rows in matrix.baselines.values()} | {
        len(grid_words.baseline_keys(matrix))
    }
    if measured < len(matrix.receivers) * len(matrix.donors) or len(counts) > 1:
        words.append("hatched: not measured")
    return "; ".join(words)


@styled
def heatmap(heat: Heat) -> Figure:
    """Rows are receivers, columns donors; one shared scale whose middle is no change."""
    sizes = _HeatmapSizes.of(heat)
    rows, columns = len(heat.receivers), len(heat.donors)
    wide, tall = columns * sizes.cell[0], (rows + 1 + _GAP) * sizes.cell[1]
    top, step = 0.62, sizes.head + 0.65 + tall
    width = sizes.left + sizes.across * sizes.slot + 0.1 + sizes.levels + 0.15
    width = max(width, words_width([heat.title], 11) + 0.3, words_width([heat.subtitle]) + 0.3, 5)
    notes = wrapped(heat.footnote, width - 0.3, SMALL)
    below = top + sizes.down * step
    sheet = Sheet(width, below + 0.5 + 0.14 * len(notes) + 0.1)
    sheet.write(0.15, 0.12, heat.title, fontsize=10, fontweight="bold")
    sheet.write(0.15, 0.34, heat.subtitle, fontsize=7.5, color=SOFT)
    limit = _limit(heat.panels)
    for place, panel in enumerate(heat.panels):
        row, column = divmod(place, sizes.across)
        left, upper = sizes.left + column * sizes.slot, top + row * step
        _title(sheet, left, upper, panel.title, panel.note)
        axes = sheet.axes(left, upper + sizes.head + 0.4, wide, tall)
        _gains(axes, heat, panel, limit, named=column == 0)
    left = sizes.left + sizes.across * sizes.slot + 0.1
    _title(sheet, left, top, "top-1, %", "")
    _levels(sheet.axes(left, top + sizes.head + 0.4, sizes.levels, rows * sizes.cell[1]), heat)
    _scale(sheet, sizes.left, below, limit)
    for place, line in enumerate(notes):
        sheet.write(0.15, below + 0.5 + 0.14 * place, line, fontsize=SMALL, color=SOFT)
    return sheet.figure


def _title(sheet: Sheet, left: float, top: float, title: str, note: str) -> None:
    sheet.write(left, top, title, fontsize=8.5, fontweight="bold")
    sheet.write(left, top + 0.16, note, fontsize=7.5, color=SOFT)


def _limit(panels: Sequence[HeatmapPanel]) -> float:
    """The end of the shared scale, points: that of the largest change."""
    sizes = [np.abs(p.gains[np.isfinite(p.gains)]).max(initial=0.0) for p in panels]
    return float(max(*sizes, 1.0))


def _gains(axes: Axes, heat: Heat, panel: HeatmapPanel, limit: float, *, named: bool) -> None:
    """A panel, and below it what each donor came to on the other receivers."""
    import matplotlib as mpl

    rows, columns = panel.gains.shape
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows + 0.75, -0.5))
    paint = Paint(mpl.colormaps[GAINS], mpl.colors.Normalize(-limit, limit))
    means, last = _means(panel.gains, heat.diagonal), rows + _GAP
    for values, first in ((panel.gains, 0.0), (means[None], last)):
        paint.cells(axes, values, first)
    if max(rows, columns) <= NUMBERED:
        _numbers(axes, panel, paint)
        _mean_numbers(axes, means, last, paint, roomy=max(rows, columns) <= _ROOMY)
    for r, c in np.argwhere(heat.diagonal):
        box = mpl.patches.Rectangle((c - 0.46, r - 0.46), 0.92, 0.92, fill=False, ec=INK, lw=1.1)
        axes.add_patch(box)
    labels = [*map(name, heat.receivers), _MEAN] if named else []
    _frame(axes, list(map(name, heat.donors)), labels, [*range(rows), last])


@dataclass(frozen=True, slots=True)
class Paint:
    """Numbers to colours."""

    colours: Any
    scale: Any

    def cells(self, axes: Axes, values: Array, first: float) -> None:
        """Squares whose first row is centred there; what has not been measured is hatched."""
        rows, columns = values.shape
        edges = np.arange(columns + 1) - 0.5, np.arange(rows + 1) + first - 0.5
        shown = np.ma.masked_invalid(values)
        axes.pcolormesh(
            *edges, shown, cmap=self.colours, norm=self.scale, edgecolors="white", linewidth=0.6
        )
        _hatch(axes, [(r + first, c) for r, c in np.argwhere(np.isnan(values))])

    def ink(self, value: float) -> str:
        """What to write with on a number's colour."""
        return ink_on(self.colours(self.scale(value)))


def _means(gains: Array, diagonal: Array) -> Array:
    """Each donor's mean over other receivers; NaN unless all of them have run."""
    others = np.where(diagonal, 0.0, gains)
    counts = (~diagonal).sum(axis=0)
    return np.where(counts > 0, others.sum(axis=0) / np.maximum(counts, 1), np.nan)


def _numbers(axes: Axes, panel: HeatmapPanel, paint: Paint) -> None:
    roomy = max(panel.gains.shape) <= _ROOMY
    for r, c in np.argwhere(np.isfinite(panel.gains)):
        gain = panel.gains[r, c]
        note = panel.marks[r][c] if panel.marks else ""
        style: dict[str, Any] = {"ha": "center", "va": "center", "color": paint.ink(gain)}
        weight = "bold" if abs(gain) > panel.errors[r, c] else "normal"
        rise, size = 0.14 if note else 0.0, 7.5 if roomy else 5.8
        axes.text(
            c, r - rise, signed(gain, decimal=roomy), fontsize=size, fontweight=weight, **style
        )
        if note:
            axes.text(c, r + 0.27, note, fontsize=5.5 if roomy else 4.3, **style)


def _mean_numbers(axes: Axes, means: Array, row: float, paint: Paint, *, roomy: bool) -> None:
    for c in map(int, np.flatnonzero(np.isfinite(means))):
        style: dict[str, Any] = {"ha": "center", "va": "center", "color": paint.ink(means[c])}
        axes.text(c, row, signed(means[c], decimal=roomy), fontsize=7.5 if roomy else 5.8, **style)


def _hatch(axes: Axes, places: Sequence[tuple[float, float]]) -> None:
    from matplotlib.patches import Rectangle

    for r, c in places:
        corner = (c - 0.5, r - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fc="#f4f4f4", ec="#9a9a9a", hatch="////", lw=0))


def _frame(axes: Axes, columns: list[str], rows: list[str], places: Sequence[float]) -> None:
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(columns)), columns, rotation=90, va="bottom", ha="center")
    axes.set_yticks(places[: len(rows)], rows)
    axes.tick_params(length=0, pad=3)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _levels(axes: Axes, heat: Heat) -> None:
    """What gains are measured against, in % of the receiver's test images."""
    import matplotlib as mpl

    rows, columns = heat.levels.shape
    greys = mpl.colors.LinearSegmentedColormap.from_list("levels", ["#ffffff", "#b9b9b9"])
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    Paint(greys, mpl.colors.Normalize(0, 100)).cells(axes, heat.levels, 0)
    size = 7.5 if rows <= _ROOMY else 6.0
    for r, c in np.argwhere(np.isfinite(heat.levels)):
        text = f"{heat.levels[r, c]:.1f}"
        axes.text(c, r, text, fontsize=size, ha="center", va="center", color=INK)
    _frame(axes, list(map(two_lines, heat.columns)), [], [])


def _scale(sheet: Sheet, left: float, top: float, limit: float) -> None:
    import matplotlib as mpl

    axes = sheet.axes(left, top, 2.2, 0.11)
    axes.pcolormesh(
        np.linspace(-limit, limit, 129), [0, 1], np.linspace(-limit, limit, 128)[None], cmap=GAINS
    )
    axes.set_yticks([])
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5, symmetric=True))
    axes.tick_params(axis="x", labelsize=6.5, length=2)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("points of top-1 above plain rounding", fontsize=6.5, labelpad=1)
