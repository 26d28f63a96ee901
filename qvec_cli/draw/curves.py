"""Accuracy over lambda: what was seen on validation, and what it came to on test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qvec_cli.draw.canvas import (
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


@dataclass(frozen=True, slots=True)
class Trace:
    """One vector on one receiver."""

    name: str  # of at most ``DISTINCT`` in a figure
    val: tuple[tuple[float, Counts], ...]  # by lambda, ascending
    test: tuple[tuple[float, Counts], ...]  # where it was measured
    chosen: float | None = None
    own: bool = False  # the receiver's own vector


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line."""

    name: str
    top1: float  # share
    kind: str  # float, plain or qat


@dataclass(frozen=True, slots=True)
class Panel:
    """One receiver."""

    title: str
    traces: tuple[Trace, ...]
    levels: tuple[Level, ...]


@dataclass(frozen=True, slots=True)
class Curves:
    """A whole figure."""

    title: str
    subtitle: str
    panels: tuple[Panel, ...]
    shared: bool = False  # one scale of accuracy for all panels


@styled
def curves(given: Curves) -> Figure:
    """One panel a receiver; its curves in colours that are the same in all panels."""
    names = list(dict.fromkeys(t.name for panel in given.panels for t in panel.traces))
    labels = [f"{level.name} 100.0" for panel in given.panels for level in panel.levels]
    side = words_width(labels, SMALL) + 0.12
    across = min(len(given.panels), 3)
    down = -(-len(given.panels) // across)
    wide, tall = (4.6, 3.0) if across == 1 else (2.7, 2.1)
    slot = 0.55 + wide + side
    width = max(0.1 + across * slot + 0.1, words_width([given.title], 11) + 0.3)
    keys = wrapped(_key(given), width - 0.3, SMALL)
    first = 0.85 if any(panel.title for panel in given.panels) else 0.65
    height = first - 0.25 + down * (tall + 0.8)
    rows = _legend_rows(names, width) if len(names) > 1 else []
    sheet = Sheet(width, height + 0.17 * len(rows) + 0.14 * len(keys) + 0.15)
    sheet.write(0.15, 0.12, given.title, fontsize=10, fontweight="bold")
    sheet.write(0.15, 0.34, given.subtitle, fontsize=7.5, color=SOFT)
    colours = {text: COLOURS[place % len(COLOURS)] for place, text in enumerate(names)}
    limits = _limits(given.panels) if given.shared else None
    for place, panel in enumerate(given.panels):
        row, column = divmod(place, across)
        left, top = 0.6 + column * slot, first + row * (tall + 0.8)
        axes = sheet.axes(left, top, wide, tall)
        _panel(axes, panel, colours, limits or _limits([panel]))
    for place, entries in enumerate(rows):
        _legend(sheet, height + 0.17 * place, entries, colours)
    for place, line in enumerate(keys):
        top = height + 0.17 * len(rows) + 0.03 + 0.14 * place
        sheet.write(0.15, top, line, fontsize=SMALL, color=SOFT)
    return sheet.figure


def wilson(right: float, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (E. B. Wilson 1927): it never leaves [0, 1]."""
    share, z2 = right / of, _Z * _Z / of
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z / (1 + z2) * math.sqrt(share * (1 - share) / of + z2 / (4 * of))
    low, high = min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))
    return low, high  # 0 and 1 are ends themselves, which rounding would miss


def _limits(panels: Sequence[Panel]) -> tuple[float, float]:
    """Percent, so that every band, point and line is inside."""
    ends = [100 * level.top1 for panel in panels for level in panel.levels]
    for trace in (t for panel in panels for t in panel.traces):
        ends += [100 * end for _, counts in (*trace.val, *trace.test) for end in wilson(*counts)]
    low, high = min(ends), max(ends)
    space = 0.04 * max(high - low, 1)
    return low - space, high + space


def _panel(axes: Axes, panel: Panel, colours: dict[str, str], limits: tuple[float, float]) -> None:
    lambdas = [lam for trace in panel.traces for lam, _ in trace.val]
    low, high = min(*lambdas, 0.0), max(*lambdas, 1.0)
    space = 0.03 * (high - low)
    axes.set(xlim=(low - space, high + space), ylim=limits)
    axes.axvline(1, color=FAINT, lw=0.8, ls=":", zorder=0)
    axes.set_title(name(panel.title, 34), loc="left", fontweight="bold", pad=5)
    axes.set_xlabel(LAMBDA, labelpad=1)
    axes.set_ylabel("top-1, %")
    for trace in panel.traces:
        _trace(axes, trace, colours[trace.name], banded=len(panel.traces) <= _BANDED)
    _levels(axes, panel.levels, limits)


def _trace(axes: Axes, trace: Trace, colour: str, *, banded: bool) -> None:
    lambdas = np.array([lam for lam, _ in trace.val])
    shares = np.array([100 * right / of for _, (right, of) in trace.val])
    style: dict[str, Any] = {"ls": (0, (5, 1.5))} if trace.own else {}
    axes.plot(lambdas, shares, color=colour, lw=1.4, zorder=3, **style)
    if banded:
        band = 100 * np.array([wilson(*counts) for _, counts in trace.val])
        axes.fill_between(lambdas, band[:, 0], band[:, 1], color=colour, alpha=0.15, lw=0, zorder=1)
    if trace.chosen is not None:
        axes.axvline(trace.chosen, color=colour, lw=0.8, alpha=0.55, zorder=0)
    for lam, (right, of) in trace.test:
        share, ends = 100 * right / of, wilson(right, of)
        picked = lam == trace.chosen
        arms = [[share - 100 * ends[0]], [100 * ends[1] - share]]
        axes.errorbar(
            [lam],
            [share],
            yerr=arms if banded else None,
            fmt="D" if picked else "o",
            ms=5 if picked else 4,
            mfc=colour if picked else "white",
            mec=colour,
            ecolor=colour,
            elinewidth=0.9,
            zorder=4,
        )


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


def _key(given: Curves) -> str:
    """What lines, bands and marks are."""
    traces = [trace for panel in given.panels for trace in panel.traces]
    banded = any(len(panel.traces) <= _BANDED for panel in given.panels)
    words = [f"line: validation, on which {LAMBDA} is chosen"]
    if any(trace.own for trace in traces):
        words.append("dashed: the receiver's own vector")
    if any(trace.test for trace in traces):
        words.append(f"circle: test; filled diamond: test at the chosen {LAMBDA}")
    if banded:
        words.append("band and whiskers: 95 % Wilson interval")
    words.append(f"vertical: the chosen {LAMBDA}; dotted: {LAMBDA} = 1")
    words.append("horizontal: accuracies on test")
    return "; ".join(words)


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
