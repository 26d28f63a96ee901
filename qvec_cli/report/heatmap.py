"""The figure heatmap: what each donor gives each receiver over plain rounding, in colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qvec_cli.report import canvas, ways
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


@dataclass(frozen=True, slots=True)
class HeatmapPanel:
    """One way of choosing lambda."""

    title: str
    note: str  # the receiver data that the choice used
    gains: Array  # [receivers, donors], points; NaN where a cell has not run
    errors: Array  # their standard errors, points
    marks: tuple[tuple[str, ...], ...] = ()  # a small word for each cell, such as its lambda


@dataclass(frozen=True, slots=True)
class Heat:
    """All that a heatmap of receivers by donors shows."""

    title: str
    subtitle: str
    receivers: tuple[str, ...]
    donors: tuple[str, ...]
    panels: tuple[HeatmapPanel, ...]
    diagonal: Array  # bool [receivers, donors]: a receiver's own vector
    columns: tuple[str, ...]  # names of the columns of ``levels``
    levels: Array  # [receivers, columns], top-1 in %; NaN where there is none
    limit: float  # points at the ends of the colours
    footnote: str


def draw_heatmap(files: ResultFiles, _: canvas.FigureOptions) -> canvas.Drawing:
    """The heatmap of a grid."""
    matrix = files.matrix
    assert matrix is not None
    heat = heat_of(matrix)
    facts = {**ways.matrix_facts(matrix), "panels": [panel.title for panel in heat.panels]}
    words = f"{heat.title}. {heat.subtitle}."
    return canvas.Drawing(heatmap(heat), words, facts, ways.grid_use(matrix))


def heat_of(matrix: Matrix) -> Heat:
    """Gains of every donor on every receiver: a panel for each fixed lambda and each selector."""
    receivers, donors = tuple(matrix.receivers), tuple(matrix.donors)
    own = np.array(
        [[c.diagonal if (c := matrix.get(r, d)) else r == d for d in donors] for r in receivers]
    )
    keys, rows = ways.baseline_keys(matrix), [matrix.baselines.get(r, {}) for r in receivers]
    levels = [[100 * row[key].test.top1 if key in row else np.nan for key in keys] for row in rows]
    panels = tuple(
        _panel_of(matrix, title, pick, marked=place >= len(matrix.fixed))
        for place, (title, pick) in enumerate(ways.choosers(matrix))
    )
    counted = own if own.all() else ~own  # own vectors would make all other pairs pale
    largest, most = (
        max(float(np.nanmax(np.abs(panel.gains[pairs]), initial=1.0)) for panel in panels)
        for pairs in (counted, np.full_like(own, fill_value=True))
    )
    return Heat(
        title="What a donor's vector gives a receiver, over plain rounding",
        subtitle=f"{ways.subtitle(matrix)}; rows: receivers, columns: donors",
        receivers=receivers,
        donors=donors,
        panels=panels,
        diagonal=own,
        columns=tuple(ways.baseline_name(matrix, key) for key in keys),
        levels=np.array(levels),
        limit=largest,
        footnote=_footnote(matrix, clipped=most > largest),
    )


def _panel_of(matrix: Matrix, title: str, pick: ways.Chooser, *, marked: bool) -> HeatmapPanel:
    shape = len(matrix.receivers), len(matrix.donors)
    gains, errors = np.full(shape, np.nan), np.full(shape, np.nan)
    marks = [["" for _ in matrix.donors] for _ in matrix.receivers]
    uses: list[DataUse] = []
    for r, receiver in enumerate(matrix.receivers):
        for d, donor in enumerate(matrix.donors):
            cell = matrix.get(receiver, donor)
            choice = pick(cell) if cell else None
            if cell is None or choice is None:
                continue
            gains[r, d] = 100 * matrix.gain(receiver, choice.test)
            errors[r, d] = 100 * difference_error(choice.test, matrix.plain(receiver))
            if cell.transfer:  # a receiver's own vector used its labels
                uses.append(choice.use)
            if marked and choice.lam not in matrix.fixed:
                marks[r][d] = canvas.number(choice.lam)
    return HeatmapPanel(title, ways.used(uses), gains, errors, tuple(map(tuple, marks)))


def _footnote(matrix: Matrix, *, clipped: bool) -> str:
    """What the marks of the figure mean, of those that are in it."""
    words = ["bold: further from 0 than one standard error of the difference"]
    if matrix.selectors:
        median = "the median of " if matrix.runs > 1 else ""
        words.append(f"small: {median}the chosen {canvas.LAMBDA}, where it is another")
    if any(cell.diagonal for cell in matrix.cells.values()):
        words.append("outlined: a receiver's own vector, the ceiling, in no mean")
    if clipped:
        words.append("cut corner: an own vector beyond the scale, which is that of all other pairs")
    counts = {len(rows) for rows in matrix.baselines.values()} | {len(ways.baseline_keys(matrix))}
    if ways.matrix_facts(matrix)["missing"] or len(counts) > 1:
        words.append("hatched: not measured")
    return "; ".join(words)


def _sizes(heat: Heat) -> tuple[tuple[float, float], float, float]:
    """Inches: a cell, names of receivers, a panel with the gap behind it."""
    wide, name = canvas.words_width, canvas.name
    count = max(len(heat.donors), len(heat.receivers))
    cell = (0.46, 0.36) if count <= _ROOMY else (0.29, 0.25)
    cell = cell if count <= NUMBERED else (0.14, 0.14)
    left = wide([*map(name, heat.receivers), _MEAN]) + 0.3
    titles = wide([p.title for p in heat.panels], 9.5)  # 8.5 points, bold
    notes = wide([panel.note for panel in heat.panels])
    return cell, left, max(len(heat.donors) * cell[0], titles, notes) + 0.25


@canvas.style()
def heatmap(heat: Heat) -> Figure:
    """Rows are receivers, columns donors; one shared scale whose middle is no change.

    Panels stand below each other where they would be too wide side by side; top-1 comes last.
    """
    cell, side, slot = _sizes(heat)
    rows = len(heat.receivers)
    levels = max(len(heat.columns) * max(cell[0], 0.36), 0.6)
    across = min(max(int((canvas.WIDEST - side) // slot), 1), len(heat.panels))
    lines = -(-len(heat.panels) // across)
    apart = side + len(heat.panels) * slot + levels > canvas.WIDEST  # top-1 in a line of its own
    right = side if apart else side + across * slot
    names = [line for text in heat.columns for line in canvas.two_lines(text).split("\n")]
    heads = [canvas.words_width([*map(canvas.name, heat.donors)]), canvas.words_width(names)]
    heads = [head + 0.48 for head in (heads if apart else [max(heads)] * 2)]
    wide, tall = len(heat.donors) * cell[0], (rows + 1 + _GAP) * cell[1]
    step = heads[0] + tall + 0.25
    last = 0.62 + (lines * step if apart else 0.0)
    below = last + heads[1] + rows * cell[1] + 0.25 if apart else 0.62 + lines * step
    width = max(side + across * slot, right + levels + 0.15, 5)
    sheet = canvas.Sheet(width, below + 0.5, heat.title, heat.subtitle, heat.footnote)
    paint = Paint(GAINS, -heat.limit, heat.limit)
    for place, panel in enumerate(heat.panels):
        left, upper = side + place % across * slot, 0.62 + place // across * step
        sheet.write(left, upper + 0.16, panel.note, fontsize=7.5, color=canvas.SOFT)
        sheet.write(left, upper, panel.title, fontsize=8.5, fontweight="bold")
        axes = sheet.axes(left, upper + heads[0], wide, tall)
        _gains(axes, heat, panel, paint, named=place % across == 0)
    sheet.write(right, last, "top-1, %", fontsize=8.5, fontweight="bold")
    _levels(sheet.axes(right, last + heads[1], levels, rows * cell[1]), heat, named=apart)
    paint.bar(sheet.axes(side, below, 2.2, 0.11), "points of top-1 above plain rounding")
    return sheet.figure


class Paint:
    """Numbers from low to high as the colours of a colour map, by its name."""

    def __init__(self, colours: str, low: float, high: float) -> None:
        import matplotlib as mpl

        self.low, self.high = low, high
        self.colours, self.scale = mpl.colormaps[colours], mpl.colors.Normalize(low, high)

    def cells(self, axes: Axes, values: Array, first: float = 0.0) -> None:
        """Squares whose first row is centred there; what has not been measured is hatched."""
        from matplotlib.patches import Rectangle

        rows, columns = values.shape
        edges = np.arange(columns + 1) - 0.5, np.arange(rows + 1) + first - 0.5
        squares = axes.pcolormesh(*edges, np.ma.masked_invalid(values), norm=self.scale)
        squares.set(cmap=self.colours, edgecolors="white", linewidth=0.6)
        for r, c in np.argwhere(np.isnan(values)):
            corner = c - 0.5, r + first - 0.5
            axes.add_patch(Rectangle(corner, 1, 1, fc="#f4f4f4", ec="#9a9a9a", hatch="////", lw=0))

    def write(
        self, axes: Axes, place: tuple[float, float], value: float, text: str, **properties: Any
    ) -> None:
        """A word in the cell of a value, at a row and a column, that stands out from its colour."""
        ink = canvas.ink_on(self.colours(self.scale(value)))
        axes.text(place[1], place[0], text, ha="center", va="center", color=ink, **properties)

    def bar(self, axes: Axes, label: str) -> None:
        """All colours and their numbers."""
        edges = np.linspace(self.low, self.high, 129)
        axes.pcolormesh(edges, [0, 1], edges[None, :-1], cmap=self.colours)
        axes.set_yticks([])
        axes.tick_params(labelsize=6.5, length=2)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(label, fontsize=6.5, labelpad=1)


def _gains(axes: Axes, heat: Heat, panel: HeatmapPanel, paint: Paint, *, named: bool) -> None:
    """A panel, and below it the mean of each donor over the other receivers."""
    from matplotlib.patches import Polygon, Rectangle

    rows, columns = panel.gains.shape
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows + 0.75, -0.5))
    others = np.ma.array(panel.gains, mask=heat.diagonal)
    means, last = others.mean(axis=0).filled(np.nan), rows + _GAP  # NaN unless all have run
    paint.cells(axes, panel.gains)
    paint.cells(axes, means[None], last)
    if max(rows, columns) <= NUMBERED:
        _numbers(axes, panel, means, paint)
    for r, c in np.argwhere(heat.diagonal):
        corner = c - 0.46, r - 0.46
        axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, ec=canvas.INK, lw=1.1))
        if abs(panel.gains[r, c]) > paint.high:
            corners = [(c + x, r + y) for x, y in ((0.46, -0.46), (0.3, -0.46), (0.46, -0.26))]
            axes.add_patch(Polygon(corners, fc="white", ec=canvas.INK, lw=0.8))
    labels = [*map(canvas.name, heat.receivers), _MEAN] if named else []
    axes.set_yticks([*range(rows), last] if named else [], labels)
    _frame(axes, list(map(canvas.name, heat.donors)))


def _numbers(axes: Axes, panel: HeatmapPanel, means: Array, paint: Paint) -> None:
    """Gains above their marks, bold beyond a standard error; then the means."""
    roomy = max(panel.gains.shape) <= _ROOMY
    size, small = (7.5, 5.5) if roomy else (5.8, 4.3)
    for r, c in np.argwhere(np.isfinite(panel.gains)):
        gain, mark = panel.gains[r, c], panel.marks[r][c]
        weight = "bold" if abs(gain) > panel.errors[r, c] else "normal"
        text, rise = canvas.signed(gain, decimal=roomy), 0.14 if mark else 0.0
        paint.write(axes, (r - rise, c), gain, text, fontsize=size, fontweight=weight)
        if mark:
            paint.write(axes, (r + 0.27, c), gain, mark, fontsize=small)
    for c in map(int, np.flatnonzero(np.isfinite(means))):
        text = canvas.signed(means[c], decimal=roomy)
        paint.write(axes, (len(panel.gains) + _GAP, c), means[c], text, fontsize=size)


def _levels(axes: Axes, heat: Heat, *, named: bool) -> None:
    """What gains are measured against, in % of the receiver's test images."""
    rows, columns = heat.levels.shape
    paint = Paint("Greys", 0, 250)  # up to a light grey
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    paint.cells(axes, heat.levels)
    for r, c in np.argwhere(np.isfinite(heat.levels)):
        share = heat.levels[r, c]
        paint.write(axes, (r, c), share, f"{share:.1f}", fontsize=7.5 if rows <= _ROOMY else 6.0)
    axes.set_yticks(range(rows) if named else [], map(canvas.name, heat.receivers) if named else [])
    _frame(axes, list(map(canvas.two_lines, heat.columns)))


def _frame(axes: Axes, columns: list[str]) -> None:
    """Names above the columns, and neither lines nor ticks."""
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(columns)), columns, rotation=90, va="bottom", ha="center")
    axes.tick_params(length=0, pad=3)
    axes.spines[:].set_visible(False)
