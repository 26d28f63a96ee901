"""What accuracy costs: one panel of ways and what they take, one of when a vector has paid off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qvec_cli.report.canvas import (
    COLOURS,
    INK,
    SMALL,
    SOFT,
    Sheet,
    compact,
    name,
    styled,
    two_lines,
    words_width,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Array = np.ndarray[Any, np.dtype[Any]]


_COLOURS: Final = {"grid": SOFT, "named": COLOURS[4], "patched": COLOURS[0], "qat": COLOURS[6]}

_MARKS: Final = {"grid": "s", "named": "^", "patched": "o", "qat": "D"}


@dataclass(frozen=True, slots=True)
class Way:
    """One way to a low-bit receiver."""

    name: str
    kind: str  # grid, named, patched or qat
    costs: tuple[float, ...]  # of training for each receiver; 0: none
    top1: tuple[float, ...]  # shares, of the same receivers


@dataclass(frozen=True, slots=True)
class Plane:
    """A whole figure."""

    title: str
    subtitle: str
    unit: str  # of costs, in words
    ways: tuple[Way, ...]
    fp: float  # mean share of the float receivers
    costs: tuple[float, ...]  # of each receiver's own QAT
    donor: tuple[str, float, float, float]  # name; its cost, the least and the largest of all
    words: str  # what the second panel says


@styled
def plane(given: Plane) -> Figure:
    """Left accuracy over cost, right cost over the number of receivers."""
    free = [way for way in given.ways if not any(way.costs)]
    taught = [way for way in given.ways if any(way.costs)]
    slots = 0.38 * len(free) + 0.2
    lines = [line for way in free for line in two_lines(way.name).split("\n")]
    tall, foot = 2.7, words_width(lines) + 0.2
    below = 0.85 + tall + max(foot, 0.6)
    left = 0.65 + slots + 0.1 + 1.9
    width = max(left + 1.2 + 3.0 + 0.2, words_width([given.title], 11) + 0.3)
    notes = wrapped(_KEY, width - 0.3, SMALL)
    told = wrapped(given.words, 3.4, SMALL)
    below = max(below, 0.85 + tall + 0.55 + 0.14 * len(told))
    sheet = Sheet(width, below + 0.14 * len(notes) + 0.12)
    sheet.write(0.15, 0.12, given.title, fontsize=10, fontweight="bold")
    sheet.write(0.15, 0.34, given.subtitle, fontsize=7.5, color=SOFT)
    limits = _limits(given)
    axes = sheet.axes(0.65, 0.85, slots, tall)
    _free(axes, free, given, limits)
    _taught(sheet.axes(0.65 + slots + 0.1, 0.85, 1.9, tall), taught, given, limits)
    _amortised(sheet.axes(left + 1.2, 0.85, 3.0, tall), given)
    for place, line in enumerate(told):
        sheet.write(left + 0.75, 0.85 + tall + 0.5 + 0.14 * place, line, fontsize=SMALL)
    for place, line in enumerate(notes):
        sheet.write(0.15, below + 0.14 * place, line, fontsize=SMALL, color=SOFT)
    return sheet.figure


_KEY: Final = (
    "large: mean over receivers; faint: each receiver; line: float; "
    "band on the right: receivers that come cheapest first to costliest first"
)


def _limits(given: Plane) -> tuple[float, float]:
    shares = [100 * share for way in given.ways for share in way.top1] + [100 * given.fp]
    space = 0.05 * max(max(shares) - min(shares), 1)
    return min(shares) - space, max(shares) + space


def _points(axes: Axes, way: Way, places: Sequence[float], middle: float) -> None:
    colour, mark = _COLOURS[way.kind], _MARKS[way.kind]
    shares = [100 * share for share in way.top1]
    if len(shares) > 1:
        axes.plot(places, shares, mark, ms=3, color=colour, alpha=0.3, mew=0, zorder=2)
    axes.plot([middle], [np.mean(shares)], mark, ms=7, color=colour, mec="white", zorder=3)


def _free(axes: Axes, ways: Sequence[Way], given: Plane, limits: tuple[float, float]) -> None:
    """Ways that train nothing for the receiver stand side by side at zero."""
    axes.set(xlim=(-0.6, len(ways) - 0.4), ylim=limits)
    axes.axhline(100 * given.fp, color=INK, lw=0.9, zorder=1)
    for place, way in enumerate(ways):
        _points(axes, way, [place] * len(way.top1), place)
    axes.set_xticks(range(len(ways)), [two_lines(way.name) for way in ways], rotation=90)
    axes.set_ylabel("top-1 on test, %")
    axes.set_title("no training", loc="left", fontweight="bold")
    axes.tick_params(axis="x", length=0)


def _taught(axes: Axes, ways: Sequence[Way], given: Plane, limits: tuple[float, float]) -> None:
    costs = [cost for way in ways for cost in way.costs if cost > 0] or [1.0, 10.0]
    axes.set_xscale("log")
    axes.set(xlim=(min(costs) / 1.8, max(costs) * 1.8), ylim=limits)
    axes.axhline(100 * given.fp, color=INK, lw=0.9, zorder=1)
    for way in ways:
        _points(axes, way, way.costs, float(np.exp(np.mean(np.log(way.costs)))))
        low = 100 * min(way.top1)
        place = float(np.exp(np.mean(np.log(way.costs))))
        axes.annotate(
            two_lines(way.name),
            (place, low),
            xytext=(0, -6),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=SMALL,
            color=_COLOURS[way.kind],
        )
    axes.annotate(
        f"float {100 * given.fp:.1f}",
        (1, 100 * given.fp),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=SMALL,
    )
    _counted(axes.xaxis, log=True)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.set_xlabel(f"{given.unit} for the receiver", labelpad=2)
    axes.set_title("its own training", loc="left", fontweight="bold")


def _amortised(axes: Axes, given: Plane) -> None:
    """Cumulative cost of a QAT for each receiver, and of one donor's for all."""
    from matplotlib.ticker import MaxNLocator

    costs = np.array(given.costs)
    counts = np.arange(len(costs) + 1)
    ordered = np.concatenate([[0], np.cumsum(np.sort(costs))])
    reverse = np.concatenate([[0], np.cumsum(np.sort(costs)[::-1])])
    label, cost, low, high = given.donor
    qat, vector = _COLOURS["qat"], _COLOURS["patched"]
    axes.fill_between(counts, ordered, reverse, color=qat, alpha=0.18, lw=0)
    axes.plot(counts, counts * costs.mean(), color=qat, lw=1.5)
    if low < high:
        axes.axhspan(low, high, color=vector, alpha=0.1, lw=0)
    axes.axhline(cost, color=vector, lw=1.5)
    even = cost / costs.mean()
    if even <= len(costs):
        axes.plot([even, even], [0, cost], color=SOFT, lw=0.9, ls=":", zorder=1)
        axes.plot([even], [cost], "o", ms=6, mfc="white", mec=INK, zorder=4)
    top = 1.12 * max(float(counts[-1] * costs.mean()), cost, high)
    axes.set(xlim=(0, len(costs) * 1.02), ylim=(0, top))
    axes.text(
        len(costs) * 1.01, cost, name(label), ha="right", va="bottom", fontsize=SMALL, color=vector
    )
    axes.annotate(
        "QAT of each",
        (len(costs), counts[-1] * costs.mean()),
        xytext=(-4, 4),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=SMALL,
        color=qat,
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("receivers", labelpad=2)
    axes.set_ylabel(given.unit)
    axes.set_title("one vector for all", loc="left", fontweight="bold")
    _counted(axes.yaxis)


def _counted(axis: Any, *, log: bool = False) -> None:
    """Ticks of costs in three digits."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    if log:
        low, high = axis.get_view_interval()
        subs = (1.0, 2.0, 5.0) if high < 20 * low else (1.0, 3.0) if high < 500 * low else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_minor_formatter(NullFormatter())


def crossing(costs: Sequence[float], bar: float) -> int | None:
    """How many of some costs, in their order, reach a sum; None: all of them do not."""
    total = 0.0
    for count, cost in enumerate(costs, start=1):
        total += cost
        if total >= bar and not math.isclose(total, 0):
            return count
    return None
