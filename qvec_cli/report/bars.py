"""The figure bars: what each way to low bits keeps, coloured by the receiver data it used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.errors import MismatchError, SpecError
from qvec_cli.report import canvas, ways
from qvec_cli.results.documents import Document, ResultFiles, WaysDocument, WaysTable, stem
from qvec_cli.results.metrics_document import AdviceResults, ComparedResults, EvalResults
from qvec_cli.results.records import TransferResults
from qvec_cli.specs import DataUse, spent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEGEND: Final = {
    DataUse.NONE: ("no receiver data", canvas.COLOURS[0]),
    DataUse.PROXY_IMAGES: ("images of other tasks", canvas.COLOURS[5]),
    DataUse.RECEIVER_IMAGES: ("the receiver's images", canvas.COLOURS[1]),
    DataUse.RECEIVER_LABELS: ("the receiver's labels", canvas.COLOURS[3]),
}
"""Each level of receiver data in words, and its colour."""

_STEP: Final = 0.3
"""Inches from one bar to the next."""

_POINTS: Final = 9.5
"""Of words and numbers: a page shows the figure at its own size."""

_BROKEN: Final = 8.0
"""Of labels in two lines, and of bits."""

_LONGEST: Final = 40
"""Letters of a line of a label."""


@dataclass(frozen=True, slots=True)
class Bar:
    """The bar of one way to low bits."""

    label: str
    value: float  # in the unit of the axis
    use: DataUse
    bits: float = 0.0  # of a weight; 0: not known
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class BarPanel:
    """Bars that are compared with each other, in their order."""

    title: str
    bars: tuple[Bar, ...]
    line: tuple[str, float] | None = None  # what they are measured against, such as float
    axis: str = "top-1, %"


@dataclass(frozen=True, slots=True)
class BarChart:
    """All that a figure of bars shows."""

    title: str
    panels: tuple[BarPanel, ...]


def draw_bars(files: ResultFiles, _: canvas.FigureOptions) -> canvas.Drawing:
    """The bars of the one kind of documents that the files hold.

    Raises SpecError: several tables, or nothing that can be a bar; MismatchError: evaluations on
    several data sets or splits.
    """
    kind = next(kind for kind in CHARTS if files.of(kind))
    documents = files.of(kind)
    chart = CHARTS[kind](documents)
    axes = dict.fromkeys(panel.axis for panel in chart.panels)
    words = [", ".join(f"{row.label} {_number(row)}" for row in p.bars) for p in chart.panels]
    if len(words) > 1:
        words = [f"{p.title}: {text}" for p, text in zip(chart.panels, words, strict=True)]
    text = f"{chart.title}. Bars: {', '.join(axes)}: {'; '.join(words)}."
    facts = {"bars": sum(len(panel.bars) for panel in chart.panels)}
    return canvas.Drawing(bars(chart), text, facts, spent(*(row.use for row in documents)))


def chart_of(documents: Sequence[Document[WaysDocument]]) -> BarChart:
    """A panel for each table that has bars. Raises SpecError: no table has, or several files."""
    if len(documents) > 1:
        raise SpecError(f"{documents[1].file}: bars show one table of ways at a time")
    (document,) = documents
    panels = [_panel_of(table) for table in document.results.tables if table.bars]
    if not panels:
        raise SpecError(f"{document.file}: no table says which of its ways are bars")
    return BarChart(document.results.title, tuple(panels))


def _panel_of(table: WaysTable) -> BarPanel:
    known = {row.way: row for row in table.ways}
    rows = [(bar.label, known[bar.way]) for bar in table.bars]
    shown = (Bar(label, 100 * row.top1, row.data_use or DataUse.NONE) for label, row in rows)
    line = (table.reference, 100 * known[table.reference].top1) if table.reference else None
    return BarPanel(table.title, tuple(shown), line)


def chart_of_summaries(documents: Sequence[Document[TransferResults]]) -> BarChart:
    """A panel for each grid: the mean over its receivers of every way that someone can take."""
    panels = tuple(_panel_of(ways.table_of(document)) for document in documents)
    return BarChart("Ways to low bits, means over receivers", panels)


def chart_of_advice(documents: Sequence[Document[AdviceResults]]) -> BarChart:
    """A panel for each receiver: what every candidate keeps of its answers, the best first."""
    panels = []
    for document in documents:
        results = document.results
        rows = tuple(
            Bar(
                row.name,
                100 * row.kept,
                row.data_use.level,
                row.bits_per_weight,
                row.name == results.chosen,
            )
            for row in sorted(results.candidates, key=lambda row: row.distance)
        )
        title = f"{document.name}: {results.decision} ({results.sure})"
        panels.append(BarPanel(title, rows, axis="float answers kept on proxy images, %"))
    title = panels[0].title if len(panels) == 1 else f"{len(panels)} receivers"
    return BarChart(f"What qvec advise found: {title}", tuple(panels))


def chart_of_grids(documents: Sequence[Document[ComparedResults]]) -> BarChart:
    """A panel for each checkpoint: top-1 on every grid, or signal to noise without images."""
    panels = []
    for document in documents:
        results = document.results
        scored = ways.split_of(results)
        axis = f"top-1 on {scored}, %" if scored else "signal to quantization noise, dB"
        values = [
            (row, 100 * row.measured.top1 if row.measured else None if scored else row.sqnr_db)
            for row in results.compared
        ]
        rows = tuple(
            Bar(row.name, value, DataUse.NONE, row.bits_per_weight)
            for row, value in values
            if value is not None
        )
        if not rows:
            raise SpecError(f"{document.file}: tells neither top-1 nor noise of a grid")
        line = ("float", 100 * results.fp.top1) if results.fp else None
        panels.append(BarPanel(document.name, rows, line, axis))
    title = panels[0].title if len(panels) == 1 else f"{len(panels)} checkpoints"
    return BarChart(f"Grids without data, side by side: {title}", tuple(panels))


def chart_of_evaluations(evaluations: Sequence[Document[EvalResults]]) -> BarChart:
    """A bar for each file that was evaluated; the one that is float is a line beside others.

    Raises MismatchError: another data set or split than the first.
    """
    first = evaluations[0]
    for other in evaluations[1:]:
        if _images(other) != _images(first):
            raise MismatchError(
                f"{other.file}: is of other images than {first.file}",
                hint="Draw the evaluations of one split of one data set at a time.",
            )
    floats = [row for row in evaluations if row.results.grid is None]
    line = floats[0] if len(floats) == 1 and len(evaluations) > 1 else None
    shown = [row for row in evaluations if row is not line]
    n = first.results.n
    title = f"{stem(first.inputs[-1].path)}, {first.results.split}, n = {n:,} images"
    panel = BarPanel(
        title,
        tuple(Bar(row.label, 100 * row.results.top1, row.use.level, _bits(row)) for row in shown),
        (line.label, 100 * line.results.top1) if line else None,
    )
    return BarChart(f"Top-1 accuracy, {title}", (panel,))


def _bits(row: Document[EvalResults]) -> float:
    return row.results.grid.bits if row.results.grid else 0.0


def _images(row: Document[EvalResults]) -> tuple[str | None, str]:
    return row.inputs[-1].digest, row.results.split


CHARTS: Final[Mapping[type[Any], Callable[[Any], BarChart]]] = {
    WaysDocument: chart_of,
    AdviceResults: chart_of_advice,
    TransferResults: chart_of_summaries,
    ComparedResults: chart_of_grids,
    EvalResults: chart_of_evaluations,
}
"""What bars are drawn from, and how."""


def evaluations(files: ResultFiles) -> list[list[Document[EvalResults]]]:
    """All evaluations, by the images that they are of."""
    documents = files.of(EvalResults)
    images = dict.fromkeys(map(_images, documents))
    return [[row for row in documents if _images(row) == one] for one in images]


def groups(files: ResultFiles, kind: type[Any]) -> list[list[Any]]:
    """The documents of a kind that a page shows together: evaluations of the same images."""
    documents = files.of(kind)
    if kind is EvalResults:
        return [part for part in evaluations(files) if len(part) > 1]
    if kind is WaysDocument:
        return [[row] for row in documents if any(table.bars for table in row.results.tables)]
    return [[document] for document in documents]


@canvas.style()
def bars(chart: BarChart) -> Figure:
    """Horizontal bars with their numbers, one panel below the other, one legend.

    Panels of one axis share its scale; what a weight takes stands at the right.
    """
    rows = [bar for panel in chart.panels for bar in panel.bars]
    several = len(chart.panels) > 1
    lines = [line for bar in rows for line in _short(bar.label).split("\n")]
    points = _BROKEN if len(lines) > len(rows) else _POINTS
    left = canvas.words_width(lines, points) + 0.3
    margin = 0.85 if any(bar.bits for bar in rows) else 0.45
    head = 0.55 if several else 0.25
    uses = {bar.use for bar in rows}
    shown = [entry for use, entry in _LEGEND.items() if use in uses]
    gap = 0.3 if several else 0.2
    below = 0.8 + 0.2 * -(-len(shown) // 3)
    height = below + (head + gap) * len(chart.panels) + _STEP * len(rows)
    notes = "framed: what is advised" if any(bar.chosen for bar in rows) else ""
    sheet = canvas.Sheet(max(6.6, left + 2.9 + margin), height, chart.title, "", notes)
    top = 0.45
    for panel in chart.panels:
        if several:
            sheet.write(0.15, top + 0.05, panel.title, fontsize=_POINTS, color=canvas.SOFT)
        tall = _STEP * len(panel.bars)
        place = sheet.axes(left, top + head, sheet.width - left - margin, tall)
        _panel(place, panel, _scale([p for p in chart.panels if p.axis == panel.axis]), points)
        top += head + tall + gap
    sheet.legend(top + 0.35, shown, min(len(shown), 3), _POINTS)
    return sheet.figure


def _short(label: str) -> str:
    return canvas.two_lines(label, 100, _LONGEST)


def _scale(panels: Sequence[BarPanel]) -> tuple[float, float]:
    """Where the axis begins and ends: at 0, or below it where a ratio is."""
    values = [bar.value for panel in panels for bar in panel.bars]
    values += [panel.line[1] for panel in panels if panel.line]
    most = 1.04 * max(*values, 0.0) + 1
    return min(*values, 0.0) * 1.04, min(100.0, most) if "%" in panels[0].axis else most


def _panel(axes: Axes, panel: BarPanel, ends: tuple[float, float], points: float) -> None:
    axes.set(xlim=ends, ylim=(len(panel.bars) - 0.5, -0.5))
    for place, bar in enumerate(panel.bars):
        fill = _LEGEND[bar.use][1]
        inside = bar.value > ends[0] + 0.15 * (ends[1] - ends[0])  # where no line can cross it
        edge = 1.6 if bar.chosen else 0.0
        axes.barh(place, bar.value, height=0.74, color=fill, edgecolor=canvas.INK, linewidth=edge)
        ink, shift, align = (
            (canvas.ink_on(fill), -4, "right") if inside else (canvas.INK, 4, "left")
        )
        look = {"ha": align, "va": "center", "fontsize": _POINTS, "color": ink}
        at = max(bar.value, 0.0)
        canvas.beside(axes, _number(bar), (at, place), (shift, -0.5), **look)
    _column(axes, panel)
    axes.set_yticks(range(len(panel.bars)), [_short(bar.label) for bar in panel.bars])
    axes.tick_params(axis="y", length=0, labelsize=points)
    axes.tick_params(axis="x", labelsize=8, length=2)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel(panel.axis, labelpad=1)
    if panel.line:
        value, text = panel.line[1], f"{canvas.name(panel.line[0], _LONGEST)} {panel.line[1]:.1f}"
        axes.axvline(value, color=canvas.INK, lw=1.1, ls=(0, (4, 2)), zorder=3)
        canvas.beside(axes, text, (value, -0.5), (14, 3), ha="right", fontsize=_POINTS)


def _number(bar: Bar) -> str:
    return canvas.number(bar.value, ".1f")


def _column(axes: Axes, panel: BarPanel) -> None:
    """A column of what a weight takes."""
    column = {"xycoords": ("axes fraction", "data"), "ha": "right", "fontsize": _BROKEN}
    for place, bar in enumerate(panel.bars):
        if bar.bits:
            shift, look = (46, 0), {**column, "va": "center", "color": canvas.SOFT}
            canvas.beside(axes, f"{bar.bits:.3g}", (1, place), shift, **look)
    if any(bar.bits for bar in panel.bars):
        canvas.beside(axes, "bits", (1, -0.5), (46, 3), **column)
