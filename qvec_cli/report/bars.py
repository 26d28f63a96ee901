"""The figure bars: the accuracy of each way to low bits, coloured by the receiver data it used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qvec_cli.errors import MismatchError, SpecError
from qvec_cli.report.canvas import (
    COLOURS,
    INK,
    SOFT,
    Drawing,
    FigureOptions,
    Sheet,
    name,
    styled,
    words_width,
)
from qvec_cli.report.ways import SAYS
from qvec_cli.results.documents import Document, ResultFiles, WaysDocument, WaysTable, stem
from qvec_cli.results.metrics_schema import EvalResults
from qvec_cli.specs import DataUse, spent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_FILLS: Final = dict(zip(DataUse, (COLOURS[0], COLOURS[5], COLOURS[1], COLOURS[3]), strict=True))
"""The colour of each level of receiver data."""


_STEP: Final = 0.3
"""Inches from one bar to the next."""


_POINTS: Final = 9.5
"""Of words and numbers: a page shows the figure at its own size."""


_LONGEST: Final = 40
"""Letters of a label."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One way."""

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
    """A whole figure."""

    title: str
    panels: tuple[BarPanel, ...]


def draw_bars(files: ResultFiles, _: FigureOptions) -> Drawing:
    """The bars of a table of ways, or of the evaluations of some files.

    Raises:
        SpecError: several tables, or one without bars.
        MismatchError: evaluations on several data sets or splits.
    """
    tables, evaluations = files.of(WaysDocument), files.of(EvalResults)
    if len(tables) > 1:
        raise SpecError(f"{tables[1].file}: bars show one table of ways at a time")
    chart = chart_of(tables[0]) if tables else chart_of_evaluations(evaluations)
    words = "; ".join(f"{bar.label} {100 * bar.top1:.1f}" for p in chart.panels for bar in p.bars)
    facts = {"bars": sum(len(panel.bars) for panel in chart.panels)}
    uses = [tables[0].use] if tables else [row.use for row in evaluations]
    return Drawing(bars(chart), f"{chart.title}. Top-1 in %: {words}.", facts, spent(*uses))


def chart_of(document: Document[WaysDocument]) -> BarChart:
    """A panel for each table that has bars.

    Raises:
        SpecError: no table has.
    """
    panels = [_panel_of(table) for table in document.results.tables if table.bars]
    if not panels:
        raise SpecError(f"{document.file}: no table says which of its ways are bars")
    return BarChart(document.results.title, tuple(panels))


def _panel_of(table: WaysTable) -> BarPanel:
    ways = {row.way: row for row in table.ways}
    shown = [(bar.label, ways[bar.way]) for bar in table.bars]
    line = (table.reference, ways[table.reference].top1) if table.reference else None
    drawn = (Bar(label, row.top1, row.data_use or DataUse.NONE) for label, row in shown)
    return BarPanel(table.title, tuple(drawn), line)


def chart_of_evaluations(evaluations: Sequence[Document[EvalResults]]) -> BarChart:
    """A bar for each file that was evaluated; the one that is float is a line beside others.

    Raises:
        MismatchError: another data set or split than the first.
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
    panel = BarPanel(
        f"{stem(first.inputs[-1].path)}, {first.results.split}, n = {n:,} images",
        tuple(Bar(_label(row), row.results.top1, row.use.level) for row in shown),
        (_label(line), line.results.top1) if line else None,
    )
    return BarChart("Top-1 accuracy", (panel,))


def _images(row: Document[EvalResults]) -> tuple[str | None, str]:
    return row.inputs[-1].digest, row.results.split


def _label(row: Document[EvalResults]) -> str:
    """The name of the metrics file, or of the model where the metrics come down a pipe."""
    return row.name if row.file == "-" else Path(row.file).stem


@styled
def bars(chart: BarChart) -> Figure:
    """Horizontal bars with their numbers, one panel below the other, one scale, one legend."""
    rows = [bar for panel in chart.panels for bar in panel.bars]
    left = words_width([name(bar.label, _LONGEST) for bar in rows], _POINTS) + 0.3
    width = max(7.6, left + 4.0, words_width([chart.title], 13) + 0.3)
    uses = [use for use in DataUse if use in {bar.use for bar in rows}]
    heights = [_STEP * len(panel.bars) for panel in chart.panels]
    sheet = Sheet(width, 0.5 + sum(heights) + 0.55 * len(heights) + 0.75)
    sheet.write(0.15, 0.14, chart.title, fontsize=12, fontweight="bold")
    shares = [bar.top1 for bar in rows] + [p.line[1] for p in chart.panels if p.line]
    top, most = 0.48, min(100.0, 115 * max(shares) + 1)
    for panel, height in zip(chart.panels, heights, strict=True):
        sheet.write(0.15, top, panel.title, fontsize=_POINTS, color=SOFT)
        axes = sheet.axes(left, top + 0.45, width - left - 0.75, height)
        axes.set(xlim=(0, most), ylim=(len(panel.bars) - 0.5, -0.5))
        _panel(axes, panel)
        top += height + 0.55
    _legend(sheet, top + 0.4, uses)
    return sheet.figure


def _panel(axes: Axes, panel: BarPanel) -> None:
    for place, bar in enumerate(panel.bars):
        axes.barh(place, 100 * bar.top1, height=0.72, color=_FILLS[bar.use])
        text = f"{100 * bar.top1:.1f}"
        axes.annotate(
            text, (100 * bar.top1, place), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=_POINTS,
            bbox={"boxstyle": "square,pad=0.12", "fc": "white", "ec": "none"}, zorder=4,
        )  # fmt: skip
    axes.set_yticks(range(len(panel.bars)), [name(bar.label, _LONGEST) for bar in panel.bars])
    axes.tick_params(axis="y", length=0, labelsize=_POINTS)
    axes.tick_params(axis="x", labelsize=8, length=2)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel("top-1, %", fontsize=8, labelpad=1)
    if panel.line:
        label, share = panel.line
        axes.axvline(100 * share, color=INK, lw=1.1, ls=(0, (4, 2)), zorder=3)
        axes.annotate(
            f"{name(label, _LONGEST)} {100 * share:.1f}", (100 * share, 1),
            xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
            ha="center", va="bottom", fontsize=_POINTS,
        )  # fmt: skip


def _legend(sheet: Sheet, top: float, uses: Sequence[DataUse]) -> None:
    """What the colours are, left to right."""
    from matplotlib.patches import Rectangle

    left = 0.15
    for use in uses:
        corner = left / sheet.width, 1 - (top + 0.13) / sheet.height
        size = 0.2 / sheet.width, 0.13 / sheet.height
        figure = sheet.figure
        figure.add_artist(
            Rectangle(corner, *size, color=_FILLS[use], lw=0, transform=figure.transFigure)
        )
        sheet.write(left + 0.27, top - 0.02, SAYS[use], fontsize=_POINTS)
        left += 0.27 + words_width([SAYS[use]], _POINTS) + 0.3
