"""Many curves over lambda as one: the middle of all pairs, their spread, and what was chosen."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qvec_cli.report.canvas import (
    COLOURS,
    FAINT,
    INK,
    LAMBDA,
    SMALL,
    SOFT,
    Sheet,
    styled,
    words_width,
    wrapped,
)
from qvec_cli.report.distance_strip import GAP, HEIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Spread:
    """A whole figure; gains in points over lambda 0 of the same split."""

    title: str
    subtitle: str
    lambdas: Array  # ascending
    val: Array  # [pairs, lambdas]
    test: Array | None  # the same, where every lambda was measured on test
    own: Array  # [receivers with their own vector, lambdas], on validation
    chosen: tuple[float, ...]  # one a pair
    left: Array | None = None  # [pairs, lambdas], distance to the float answers over that at 0
    agreed: tuple[float, ...] = ()  # chosen by it, one a pair


@styled
def spread(given: Spread) -> Figure:
    """Left the curves, right how often each lambda was chosen."""
    width = max(7.6, words_width([given.title], 11) + 0.3, words_width([given.subtitle]) + 0.3)
    notes = wrapped(_key(given), width - 0.3, SMALL)
    more = GAP + HEIGHT + 0.15 if given.left is not None else 0
    sheet = Sheet(width, 4.0 + more + 0.14 * len(notes) + 0.1)
    sheet.write(0.15, 0.12, given.title, fontsize=10, fontweight="bold")
    sheet.write(0.15, 0.34, given.subtitle, fontsize=7.5, color=SOFT)
    above = sheet.axes(0.65, 0.9, width - 4.15, 2.65)
    _curves(above, given)
    right = sheet.axes(width - 2.75, 0.9, 2.5, 2.65)
    _chosen(right, given.lambdas, given.chosen, f"{LAMBDA} that pairs chose on validation")
    if given.left is not None:
        above.tick_params(labelbottom=False)
        above.set_xlabel("")
        _left(sheet.axes(0.65, 3.55 + GAP, width - 4.15, HEIGHT + 0.15), given)
        title = f"{LAMBDA} that pairs chose without labels"
        _chosen(
            sheet.axes(width - 2.75, 4.15, 2.5, HEIGHT - 0.33), given.lambdas, given.agreed, title
        )
    for place, line in enumerate(notes):
        sheet.write(0.15, 3.98 + more + 0.14 * place, line, fontsize=SMALL, color=SOFT)
    return sheet.figure


def _left(axes: Axes, given: Spread) -> None:
    """The share of quantization's damage that is left, on proxy images."""
    assert given.left is not None
    axes.axhline(1, color=SOFT, lw=0.8)
    axes.axvline(1, color=SOFT, lw=0.8, ls=":")
    low, middle, high = np.quantile(given.left, [0.25, 0.5, 0.75], axis=0)
    axes.fill_between(given.lambdas, low, high, color=COLOURS[0], alpha=0.2, lw=0)
    axes.plot(given.lambdas, middle, color=COLOURS[0], lw=1.4)
    axes.set_xlabel(LAMBDA, labelpad=1)
    axes.set_ylabel("damage left")
    axes.margins(x=0.02)
    axes.set_ylim(0, 1.05 * max(1.2, min(float(high.max()), 3)))
    axes.locator_params(axis="y", nbins=4)


def _curves(axes: Axes, given: Spread) -> None:
    axes.axhline(0, color=SOFT, lw=0.8)
    axes.axvline(1, color=SOFT, lw=0.8, ls=":")
    faint = max(0.08, min(0.5, 12 / max(len(given.val), 1)))
    axes.plot(given.lambdas, given.val.T, color="#8a8a8a", lw=0.5, alpha=faint, zorder=1)
    low, middle, high = np.quantile(given.val, [0.25, 0.5, 0.75], axis=0)
    axes.fill_between(given.lambdas, low, high, color=COLOURS[0], alpha=0.2, lw=0, zorder=2)
    axes.plot(given.lambdas, middle, color=COLOURS[0], lw=1.8, zorder=4)
    if given.test is not None:
        axes.plot(
            given.lambdas,
            np.median(given.test, axis=0),
            "o",
            ms=3.5,
            mfc="white",
            mec=INK,
            zorder=5,
        )
    if len(given.own):
        style: dict[str, Any] = {"color": COLOURS[1], "lw": 1.3, "ls": (0, (5, 1.5)), "zorder": 3}
        axes.plot(given.lambdas, np.median(given.own, axis=0), **style)
    axes.set_xlabel(LAMBDA, labelpad=1)
    axes.set_ylabel(f"points of top-1 above {LAMBDA} = 0")
    axes.set_title(f"{len(given.val)} pairs", loc="left", fontweight="bold")
    axes.margins(x=0.02)


def _chosen(axes: Axes, lambdas: Array, chosen: tuple[float, ...], title: str) -> None:
    counts = Counter(chosen)
    places = np.arange(len(lambdas))
    heights = [counts[float(lam)] for lam in lambdas]
    colours = [COLOURS[2] if lam == 1 else COLOURS[0] for lam in lambdas]
    axes.bar(places, heights, width=0.8, color=colours, alpha=0.75)
    for place, height in enumerate(heights):
        if height:
            axes.text(place, height, str(height), ha="center", va="bottom", fontsize=SMALL)
    step = -(-len(places) // 16)
    axes.set_xticks(places[::step], [f"{lam:g}" for lam in lambdas[::step]], rotation=90)
    axes.set_ylim(0, 1.12 * max(*heights, 1))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.tick_params(axis="x", colors=FAINT, labelcolor=INK)


def _key(given: Spread) -> str:
    words = ["line: median over pairs, on validation", "band: their middle half", "grey: each pair"]
    if given.test is not None:
        words.append("circles: median on test")
    if len(given.own):
        own = (
            "a receiver's own vector"
            if len(given.own) == 1
            else f"median of {len(given.own)} own vectors"
        )
        words.append(f"dashed: {own}, the ceiling")
    green = "dotted, green" if 1.0 in given.chosen else "dotted"
    words.append(f"{green}: {LAMBDA} = 1, which needs no data")
    if given.left is not None:
        words.append(
            "below: distance to the float answers on proxy images, as a share of that at "
            f"{LAMBDA} = 0, median and middle half"
        )
    return "; ".join(words)
