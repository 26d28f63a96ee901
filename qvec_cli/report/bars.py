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
    ink_on,
    name,
    styled,
    words_width,
)
from qvec_cli.results.documents import Document, ResultFiles, WaysDocument, WaysTable, stem
from qvec_cli.results.metrics_document import EvalResults
from qvec_cli.specs import DataUse, spent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_FILLS: Final = dict(zip(DataUse, (COLOURS[0], COLOURS[5], COLOURS[1], COLOURS[3]), strict=True))
"""The colour of each level of receiver data."""


_WORDS: Final = {
    DataUse.NONE: "no receiver data",
    DataUse.PROXY_IMAGES: "images of other tasks",
    DataUse.RECEIVER_IMAGES: "the receiver's images",
    DataUse.RECEIVER_LABELS: "the receiver's labels",
}


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


@styled
def bars(chart: BarChart) -> Figure:
    """Horizontal bars with their numbers, one panel below the other, one scale, one legend."""
    rows = [bar for panel in chart.panels for bar in panel.bars]
    left = words_width([name(bar.label, _LONGEST) for bar in rows], _POINTS) + 0.3
    width = max(7.6, left + 4.0, words_width([chart.title], 13) + 0.3)
    heads = [0.5 if len(chart.panels) > 1 else 0.25] * len(chart.panels)
    sheet = Sheet(width, 1.3 + sum(heads) + _STEP * len(rows) + 0.2 * (len(heads) - 1))
    sheet.write(0.15, 0.14, chart.title, fontsize=12, fontweight="bold")
    shares = [bar.top1 for bar in rows] + [p.line[1] for p in chart.panels if p.line]
    top, most = 0.45, min(100.0, 104 * max(shares) + 1)
    for panel, head in zip(chart.panels, heads, strict=True):
        if len(chart.panels) > 1:
            sheet.write(0.15, top, panel.title, fontsize=_POINTS, color=SOFT)
        height = _STEP * len(panel.bars)
        axes = sheet.axes(left, top + head, width - left - 0.45, height)
        axes.set(xlim=(0, most), ylim=(len(panel.bars) - 0.5, -0.5))
        _panel(axes, panel, most)
        top += head + height + 0.2
    _legend(sheet, top + 0.35, [use for use in DataUse if use in {bar.use for bar in rows}])
    return sheet.figure


def _panel(axes: Axes, panel: BarPanel, most: float) -> None:
    for place, bar in enumerate(panel.bars):
        share, fill = 100 * bar.top1, _FILLS[bar.use]
        inside = share > 0.1 * most  # where no line can cross the number
        axes.barh(place, share, height=0.74, color=fill)
        axes.annotate(
            f"{share:.1f}",
            (share, place),
            xytext=(-4 if inside else 4, -0.5),
            textcoords="offset points",
            ha="right" if inside else "left",
            va="center",
            fontsize=_POINTS,
            color=_ink(fill) if inside else INK,
        )
    axes.set_yticks(range(len(panel.bars)), [name(bar.label, _LONGEST) for bar in panel.bars])
    axes.tick_params(axis="y", length=0, labelsize=_POINTS)
    axes.tick_params(axis="x", labelsize=8, length=2)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel("top-1, %", fontsize=8, labelpad=1)
    if panel.line:
        label, top1 = panel.line
        axes.axvline(100 * top1, color=INK, lw=1.1, ls=(0, (4, 2)), zorder=3)
        axes.annotate(
            f"{name(label, _LONGEST)} {100 * top1:.1f}",
            (100 * top1, 1),
            xycoords=("data", "axes fraction"),
            xytext=(14, 3),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=_POINTS,
        )


def _ink(fill: str) -> str:
    from matplotlib.colors import to_rgb

    return ink_on(to_rgb(fill))


def _legend(sheet: Sheet, top: float, uses: Sequence[DataUse]) -> None:
    """What the colours are, left to right."""
    from matplotlib.patches import Rectangle

    left, figure = 0.15, sheet.figure
    for use in uses:
        corner = left / sheet.width, 1 - (top + 0.14) / sheet.height
        size = 0.2 / sheet.width, 0.13 / sheet.height
        swatch = Rectangle(corner, *size, color=_FILLS[use], lw=0, transform=figure.transFigure)
        figure.add_artist(swatch)
        sheet.write(left + 0.27, top, _WORDS[use], fontsize=_POINTS)
        left += 0.27 + words_width([_WORDS[use]], _POINTS) + 0.3
