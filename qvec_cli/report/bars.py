"""The figure bars: the accuracy of each way to low bits, coloured by the receiver data it used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qvec_cli.errors import MismatchError, SpecError
from qvec_cli.report import canvas
from qvec_cli.results.documents import Document, ResultFiles, WaysDocument, stem
from qvec_cli.results.metrics_document import EvalResults
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

_LONGEST: Final = 40
"""Letters of a label."""


@dataclass(frozen=True, slots=True)
class Bar:
    """The bar of one way to low bits."""

    label: str
    top1: float  # share
    use: DataUse


@dataclass(frozen=True, slots=True)
class BarPanel:
    """Bars that are compared with each other, in their order."""

    title: str
    bars: tuple[Bar, ...]
    line: tuple[str, float] | None = None  # what they are measured against, such as float


@dataclass(frozen=True, slots=True)
class BarChart:
    """All that a figure of bars shows."""

    title: str
    panels: tuple[BarPanel, ...]


def draw_bars(files: ResultFiles, _: canvas.FigureOptions) -> canvas.Drawing:
    """The bars of a table of ways, or of the evaluations of some files.

    Raises SpecError: several tables, or one without bars; MismatchError: evaluations on several
    data sets or splits.
    """
    tables, evaluations = files.of(WaysDocument), files.of(EvalResults)
    if len(tables) > 1:
        raise SpecError(f"{tables[1].file}: bars show one table of ways at a time")
    chart = chart_of(tables[0]) if tables else chart_of_evaluations(evaluations)
    words = "; ".join(f"{bar.label} {100 * bar.top1:.1f}" for p in chart.panels for bar in p.bars)
    facts = {"bars": sum(len(panel.bars) for panel in chart.panels)}
    uses = [tables[0].use] if tables else [row.use for row in evaluations]
    return canvas.Drawing(bars(chart), f"{chart.title}. Top-1 in %: {words}.", facts, spent(*uses))


def chart_of(document: Document[WaysDocument]) -> BarChart:
    """A panel for each table that has bars. Raises SpecError: no table has."""
    panels = []
    for table in document.results.tables:
        if table.bars:
            ways = {row.way: row for row in table.ways}
            rows = [(bar.label, ways[bar.way]) for bar in table.bars]
            shown = (Bar(label, row.top1, row.data_use or DataUse.NONE) for label, row in rows)
            line = (table.reference, ways[table.reference].top1) if table.reference else None
            panels.append(BarPanel(table.title, tuple(shown), line))
    if not panels:
        raise SpecError(f"{document.file}: no table says which of its ways are bars")
    return BarChart(document.results.title, tuple(panels))


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
        tuple(Bar(_label(row), row.results.top1, row.use.level) for row in shown),
        (_label(line), line.results.top1) if line else None,
    )
    return BarChart(f"Top-1 accuracy, {title}", (panel,))


def _images(row: Document[EvalResults]) -> tuple[str | None, str]:
    return row.inputs[-1].digest, row.results.split


def _label(row: Document[EvalResults]) -> str:
    """The name of the metrics file, or of the model where the metrics come down a pipe."""
    return row.name if row.file == "-" else Path(row.file).stem


@canvas.style()
def bars(chart: BarChart) -> Figure:
    """Horizontal bars with their numbers, one panel below the other, one scale, one legend."""
    rows = [bar for panel in chart.panels for bar in panel.bars]
    several = len(chart.panels) > 1
    left = canvas.words_width([_short(bar.label) for bar in rows], _POINTS) + 0.3
    head = 0.5 if several else 0.25
    height = 0.95 + (head + 0.2) * len(chart.panels) + _STEP * len(rows)
    sheet = canvas.Sheet(max(7.6, left + 4.0), height, chart.title)
    shares = [bar.top1 for bar in rows] + [p.line[1] for p in chart.panels if p.line]
    top, most = 0.45, min(100.0, 104 * max(shares) + 1)
    for panel in chart.panels:
        if several:
            sheet.write(0.15, top, panel.title, fontsize=_POINTS, color=canvas.SOFT)
        tall = _STEP * len(panel.bars)
        _panel(sheet.axes(left, top + head, sheet.width - left - 0.45, tall), panel, most)
        top += head + tall + 0.2
    uses = {bar.use for bar in rows}
    shown = [entry for use, entry in _LEGEND.items() if use in uses]
    sheet.legend(top + 0.35, shown, len(shown), _POINTS)
    return sheet.figure


def _short(label: str) -> str:
    return canvas.name(label, _LONGEST)


def _panel(axes: Axes, panel: BarPanel, most: float) -> None:
    axes.set(xlim=(0, most), ylim=(len(panel.bars) - 0.5, -0.5))
    for place, bar in enumerate(panel.bars):
        share, fill = 100 * bar.top1, _LEGEND[bar.use][1]
        inside = share > 0.1 * most  # where no line can cross the number
        axes.barh(place, share, height=0.74, color=fill)
        ink, shift, align = (
            (canvas.ink_on(fill), -4, "right") if inside else (canvas.INK, 4, "left")
        )
        look = {"ha": align, "va": "center", "fontsize": _POINTS, "color": ink}
        canvas.beside(axes, f"{share:.1f}", (share, place), (shift, -0.5), **look)
    axes.set_yticks(range(len(panel.bars)), [_short(bar.label) for bar in panel.bars])
    axes.tick_params(axis="y", length=0, labelsize=_POINTS)
    axes.tick_params(axis="x", labelsize=8, length=2)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel("top-1, %", labelpad=1)
    if panel.line:
        share, text = 100 * panel.line[1], f"{_short(panel.line[0])} {100 * panel.line[1]:.1f}"
        axes.axvline(share, color=canvas.INK, lw=1.1, ls=(0, (4, 2)), zorder=3)
        canvas.beside(axes, text, (share, -0.5), (14, 3), ha="right", fontsize=_POINTS)
