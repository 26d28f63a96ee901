"""How far answers are from the float ones, over lambda: a strip below accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qvec_cli.report.canvas import FAINT, LAMBDA

if TYPE_CHECKING:
    from matplotlib.axes import Axes


HEIGHT: Final = 0.85
"""Inches of the strip."""


GAP: Final = 0.12
"""Inches between it and what stands above."""


@dataclass(frozen=True, slots=True)
class Far:
    """The distances of one vector on one receiver, on proxy images."""

    points: tuple[tuple[float, float, float], ...]  # lambda, mean, standard error or 0; ascending
    chosen: float | None = None  # the lambda that was chosen by them


def far_below(
    axes: Axes, shown: Sequence[tuple[Far, str, dict[str, Any]]], label: str, *, banded: bool
) -> None:
    """Draws distances.

    Args:
        axes: the strip; its limits over lambda are set by whoever shares them.
        shown: distances, their colour, and what else lines have.
        label: in what they are measured.
        banded: whether standard errors are shown.
    """
    axes.axvline(1, color=FAINT, lw=0.8, ls=":", zorder=0)
    for far, colour, style in shown:
        lambdas, means, errors = np.array(far.points).T
        axes.plot(lambdas, means, color=colour, lw=1.2, zorder=3, **style)
        if banded and errors.any():
            low, high = means - errors, means + errors
            axes.fill_between(lambdas, low, high, color=colour, alpha=0.15, lw=0, zorder=1)
        if far.chosen is not None:
            mean = means[list(lambdas).index(far.chosen)]
            axes.plot([far.chosen], [mean], marker="v", ms=5, color=colour, zorder=4)
    axes.set_ylabel(label)
    axes.set_xlabel(LAMBDA, labelpad=1)
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="y", nbins=4)
