"""Drawing of the figure curve: accuracy over lambda, and below it distance to float answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qvec_cli.report.canvas import (
    COLOURS,
    FAINT,
    INK,
    LAMBDA,
    SMALL,
    SOFT,
    Sheet,
    name,
    styled,
    words_width,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Counts = tuple[float, int]
"""Right ones, and of how many."""


_Z: Final = 1.959963984540054
"""The normal quantile of 95 %."""


DISTINCT: Final = len(COLOURS)
"""Names that colours can tell apart; a figure of more has a panel for each."""


_BANDED: Final = 3
"""Curves of a panel up to which each has its band; more bands would hide each other."""


_LINES: Final[dict[str, dict[str, Any]]] = {
    "float": {"color": INK, "ls": "-", "lw": 0.9},
    "plain": {"color": SOFT, "ls": (0, (4, 2)), "lw": 0.9},
    "qat": {"color": "#7a5fa8", "ls": (0, (6, 1.5, 1.5, 1.5)), "lw": 1.0},
}


_HEIGHT: Final = 0.85
"""Inches of the strip."""


_GAP: Final = 0.12
"""Inches between it and what stands above."""


@dataclass(frozen=True, slots=True)
class DistanceCurve:
    """The distances of one vector on one receiver, on proxy images."""

    points: tuple[tuple[float, float, float], ...]  # lambda, mean, standard error or 0; ascending
    chosen: float | None = None  # the lambda that was chosen by them


@dataclass(frozen=True, slots=True)
class Trace:
    """One vector on one receiver."""

    name: str  # of at most ``DISTINCT`` in a figure
    val: tuple[tuple[float, Counts], ...]  # by lambda, ascending; empty without labels
    test: tuple[tuple[float, Counts], ...]  # where it was measured
    chosen: float | None = None
    own: bool = False  # the receiver's own vector
    distances: DistanceCurve | None = None  # distances to the float answers

    def mark(self, lam: float) -> str:
        """What stands for test at a lambda."""
        if lam == self.chosen:
            return "D"
        return "v" if self.distances and lam == self.distances.chosen else "o"

    @property
    def lambdas(self) -> tuple[float, ...]:
        """Where it was measured."""
        return tuple(
            lam for lam, *_ in self.val or (self.distances.points if self.distances else ())
        )


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line."""

    name: str
    top1: float  # share
    kind: str  # float, plain or qat


@dataclass(frozen=True, slots=True)
class CurvePanel:
    """One receiver."""

    title: str
    traces: tuple[Trace, ...]
    levels: tuple[Level, ...]
    measure: str = ""  # of distances

    @property
    def labelled(self) -> bool:
        """Whether there are accuracies."""
        return any(trace.val for trace in self.traces)

    @property
    def judged(self) -> bool:
        """Whether there are distances."""
        return any(trace.distances for trace in self.traces)


@dataclass(frozen=True, slots=True)
class Curves:
    """A whole figure."""

    title: str
    subtitle: str
    panels: tuple[CurvePanel, ...]
    shared: bool = False  # one scale of accuracy for all panels


@styled
def curves(content: Curves) -> Figure:
    """One panel a receiver; its curves in colours that are the same in all panels."""
    names = list(dict.fromkeys(t.name for panel in content.panels for t in panel.traces))
    labels = [f"{level.name} 100.0" for panel in content.panels for level in panel.levels]
    side = words_width(labels, SMALL) + 0.12
    across = min(len(content.panels), 3)
    down = -(-len(content.panels) // across)
    sizes = _CurveSizes.of(content, across)
    tall, slot = sizes.whole, 0.55 + sizes.wide + side
    width = max(0.1 + across * slot + 0.1, words_width([content.title], 11) + 0.3)
    keys = wrapped(_key(content), width - 0.3, SMALL)
    first = 0.85 if any(panel.title for panel in content.panels) else 0.65
    height = first - 0.25 + down * (tall + 0.8)
    rows = _legend_rows(names, width) if len(names) > 1 else []
    sheet = Sheet(width, height + 0.17 * len(rows) + 0.14 * len(keys) + 0.15)
    sheet.write(0.15, 0.12, content.title, fontsize=10, fontweight="bold")
    sheet.write(0.15, 0.34, content.subtitle, fontsize=7.5, color=SOFT)
    colours = {text: COLOURS[place % len(COLOURS)] for place, text in enumerate(names)}
    limits = _limits(content.panels) if content.shared else None
    for place, panel in enumerate(content.panels):
        row, column = divmod(place, across)
        left, top = 0.6 + column * slot, first + row * (tall + 0.8)
        _slot(sheet, (left, top), sizes, panel, (colours, limits))
    for place, entries in enumerate(rows):
        _legend(sheet, height + 0.17 * place, entries, colours)
    for place, line in enumerate(keys):
        top = height + 0.17 * len(rows) + 0.03 + 0.14 * place
        sheet.write(0.15, top, line, fontsize=SMALL, color=SOFT)
    return sheet.figure


@dataclass(frozen=True, slots=True)
class _CurveSizes:
    """Inches of a panel, which are the same for all panels of a figure."""

    wide: float
    tall: float  # of accuracies, 0 where there are none
    below: float  # of distances, 0 where there are none

    @classmethod
    def of(cls, content: Curves, across: int) -> _CurveSizes:
        """Panels that share the width of a page are smaller; distances alone get all the room."""
        wide, tall = (4.6, 3.0) if across == 1 else (2.7, 2.1)
        labelled = any(panel.labelled for panel in content.panels)
        judged = any(panel.judged for panel in content.panels)
        return cls(wide, tall if labelled else 0, (_HEIGHT if labelled else tall) if judged else 0)

    @property
    def whole(self) -> float:
        """From the top of accuracies to the bottom of distances."""
        return self.tall + self.below + (_GAP if self.tall and self.below else 0)


def _slot(
    sheet: Sheet,
    corner: tuple[float, float],
    sizes: _CurveSizes,
    panel: CurvePanel,
    shared: tuple[dict[str, str], tuple[float, float] | None],
) -> None:
    """Accuracies, and under them distances on the same axis of lambda."""
    (left, top), (colours, limits) = corner, shared
    rows = []
    if sizes.tall:
        rows.append(sheet.axes(left, top, sizes.wide, sizes.tall))
        _panel(rows[0], panel, colours, limits or _limits([panel]))
    if sizes.below:
        place = top + sizes.whole - sizes.below
        rows.append(sheet.axes(left, place, sizes.wide, sizes.below))
        shown = [(t.distances, colours[t.name], _style(t)) for t in panel.traces if t.distances]
        label = panel.measure or "distance"
        _distances(rows[-1], shown, label, banded=len(panel.traces) <= _BANDED)
    for axes in rows:
        axes.set_xlim(_reach(panel))
    for axes in rows[:-1]:
        axes.tick_params(labelbottom=False)
        axes.set_xlabel("")
    rows[0].set_title(name(panel.title, 34), loc="left", fontweight="bold", pad=5)


def _reach(panel: CurvePanel) -> tuple[float, float]:
    """Where an axis of lambda begins and ends."""
    lambdas = [lam for trace in panel.traces for lam in trace.lambdas]
    low, high = min(*lambdas, 0.0), max(*lambdas, 1.0)
    space = 0.03 * (high - low)
    return low - space, high + space


def _style(trace: Trace) -> dict[str, Any]:
    return {"ls": (0, (5, 1.5))} if trace.own else {}


def wilson(right: float, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (E. B. Wilson 1927): it never leaves [0, 1]."""
    share, z2 = right / of, _Z * _Z / of
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z / (1 + z2) * math.sqrt(share * (1 - share) / of + z2 / (4 * of))
    low, high = min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))
    return low, high  # 0 and 1 are ends themselves, which rounding would miss


def _limits(panels: Sequence[CurvePanel]) -> tuple[float, float]:
    """Percent, so that every band, point and line is inside."""
    ends = [100 * level.top1 for panel in panels for level in panel.levels]
    for trace in (t for panel in panels for t in panel.traces):
        ends += [100 * end for _, counts in (*trace.val, *trace.test) for end in wilson(*counts)]
    low, high = min(ends, default=0), max(ends, default=100)
    space = 0.04 * max(high - low, 1)
    return low - space, high + space


def _panel(
    axes: Axes, panel: CurvePanel, colours: dict[str, str], limits: tuple[float, float]
) -> None:
    axes.set(ylim=limits)
    axes.axvline(1, color=FAINT, lw=0.8, ls=":", zorder=0)
    axes.set_xlabel(LAMBDA, labelpad=1)
    axes.set_ylabel("top-1, %")
    for trace in panel.traces:
        _trace(axes, trace, colours[trace.name], banded=len(panel.traces) <= _BANDED)
    _levels(axes, panel.levels, limits)


def _trace(axes: Axes, trace: Trace, colour: str, *, banded: bool) -> None:
    lambdas = np.array([lam for lam, _ in trace.val])
    shares = np.array([100 * right / of for _, (right, of) in trace.val])
    axes.plot(lambdas, shares, color=colour, lw=1.4, zorder=3, **_style(trace))
    if banded and trace.val:
        band = 100 * np.array([wilson(*counts) for _, counts in trace.val])
        axes.fill_between(lambdas, band[:, 0], band[:, 1], color=colour, alpha=0.15, lw=0, zorder=1)
    if trace.chosen is not None:
        axes.axvline(trace.chosen, color=colour, lw=0.8, alpha=0.55, zorder=0)
    for lam, (right, of) in trace.test:
        share, ends = 100 * right / of, wilson(right, of)
        picked, mark = lam == trace.chosen, trace.mark(lam)
        arms = [[share - 100 * ends[0]], [100 * ends[1] - share]]
        axes.errorbar(
            [lam],
            [share],
            yerr=arms if banded else None,
            fmt=mark,
            ms=4 if mark == "o" else 5,
            mfc=colour if picked else "white",
            mec=colour,
            ecolor=colour,
            elinewidth=0.9,
            zorder=4,
        )


def _distances(
    axes: Axes,
    shown: Sequence[tuple[DistanceCurve, str, dict[str, Any]]],
    label: str,
    *,
    banded: bool,
) -> None:
    """Draws distances.

    Args:
        axes: the strip; its limits over lambda are set by whoever shares them.
        shown: distances, their colour, and what else lines have.
        label: in what they are measured.
        banded: whether standard errors are shown.
    """
    axes.axvline(1, color=FAINT, lw=0.8, ls=":", zorder=0)
    for distances, colour, style in shown:
        lambdas, means, errors = np.array(distances.points).T
        axes.plot(lambdas, means, color=colour, lw=1.2, zorder=3, **style)
        if banded and errors.any():
            low, high = means - errors, means + errors
            axes.fill_between(lambdas, low, high, color=colour, alpha=0.15, lw=0, zorder=1)
        if distances.chosen is not None:
            mean = means[list(lambdas).index(distances.chosen)]
            axes.plot([distances.chosen], [mean], marker="v", ms=5, color=colour, zorder=4)
    axes.set_ylabel(label)
    axes.set_xlabel(LAMBDA, labelpad=1)
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="y", nbins=4)


def _levels(axes: Axes, levels: Sequence[Level], limits: tuple[float, float]) -> None:
    """Lines whose names stand beside them, moved apart where they would touch."""
    height = axes.bbox.height / 100  # inches, at the style's dots per inch
    least = (limits[1] - limits[0]) * 0.125 / height
    ordered = sorted(levels, key=lambda level: level.top1)
    places = [100 * level.top1 for level in ordered]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + least)
    for i in range(len(places) - 1, -1, -1):
        ceiling = limits[1] if i + 1 == len(places) else places[i + 1] - least
        places[i] = min(places[i], ceiling)
    for level, place in zip(ordered, places, strict=True):
        style = _LINES[level.kind]
        axes.axhline(100 * level.top1, zorder=2, **style)
        axes.annotate(
            f"{level.name} {100 * level.top1:.1f}",
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
            color=style["color"],
            annotation_clip=False,
        )


def _key(content: Curves) -> str:
    """What lines, bands and marks are."""
    traces = [trace for panel in content.panels for trace in panel.traces]
    banded = any(len(panel.traces) <= _BANDED for panel in content.panels)
    labelled = any(panel.labelled for panel in content.panels)
    words = []
    if labelled:
        how = f", on which {LAMBDA} is chosen" if any(t.chosen is not None for t in traces) else ""
        words.append(f"line: validation{how}")
    if any(trace.own for trace in traces):
        words.append("dashed: the receiver's own vector")
    if any(trace.test for trace in traces):
        words.append(_key_marks(traces))
    if banded and labelled:
        words.append("band and whiskers: 95 % Wilson interval")
    if any(trace.chosen is not None for trace in traces):
        words.append(f"vertical: the chosen {LAMBDA}")
    words.append(f"dotted: {LAMBDA} = 1")
    if any(panel.levels for panel in content.panels):
        words.append("horizontal: accuracies on test")
    if any(panel.judged for panel in content.panels):
        words += _key_below(traces, labelled=labelled)
    return "; ".join(words)


def _key_marks(traces: Sequence[Trace]) -> str:
    """What stands for test."""
    marks = {trace.mark(lam) for trace in traces for lam, _ in trace.test}
    words = {
        "o": "circle: test",
        "D": f"filled diamond: test at the chosen {LAMBDA}",
        "v": f"triangle: test at the {LAMBDA} that is chosen without labels",
    }
    return "; ".join(text for mark, text in words.items() if mark in marks)


def _key_below(traces: Sequence[Trace], *, labelled: bool) -> Iterator[str]:
    """What is drawn of distances."""
    yield f"{'below' if labelled else 'line'}: distance to the float answers on proxy images"
    if any(error for trace in traces if trace.distances for *_, error in trace.distances.points):
        yield "its band: one standard error"
    yield f"its triangle: the {LAMBDA} that it chooses without labels"


def _legend_rows(names: Sequence[str], width: float) -> list[list[tuple[float, str]]]:
    """Where each name of the legend stands, left to right, in as many rows as it takes."""
    rows: list[list[tuple[float, str]]] = []
    left = width
    for text in names:
        needed = 0.3 + words_width([name(text)], 7.5) + 0.2
        if left + needed > width - 0.15:
            rows.append([])
            left = 0.15
        rows[-1].append((left, text))
        left += needed
    return rows


def _legend(
    sheet: Sheet, top: float, entries: Sequence[tuple[float, str]], colours: dict[str, str]
) -> None:
    from matplotlib.lines import Line2D

    for left, text in entries:
        xs = [left / sheet.width, (left + 0.24) / sheet.width]
        y = 1 - (top + 0.06) / sheet.height
        line = Line2D(xs, [y, y], color=colours[text], lw=1.6, transform=sheet.figure.transFigure)
        sheet.figure.add_artist(line)
        sheet.write(left + 0.3, top, name(text), fontsize=7.5)
