"""Which figure some files of results make, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from qvec_cli.errors import QvecError, SpecError
from qvec_cli.ops.documents import Found
from qvec_cli.ops.gains import heat_of
from qvec_cli.ops.matrix import Matrix
from qvec_cli.specs import Cost, DataUse, FigureKind, Use


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asks of a figure."""

    kind: FigureKind | None = None
    receiver: str | None = None
    donor: str | None = None
    cost: Cost = Cost.IMAGES


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure, and what is told of it."""

    kind: FigureKind
    figure: Any  # matplotlib's, which only the room draw knows
    words: str  # what it shows, for those who do not see it
    facts: Mapping[str, Any] = field(default_factory=dict)
    use: Use = Use()  # noqa: RUF009 - frozen


def require_drawing(command: str) -> None:
    """Refuses a command whose libraries are not installed.

    Raises:
        QvecError: matplotlib or jinja2 is missing.
    """
    from importlib.util import find_spec

    for name in ("matplotlib", "jinja2"):
        if find_spec(name) is None:
            raise QvecError(
                f"{command}: the package {name} is not installed", hint="pip install 'qvec[plot]'"
            )


def _heatmap(found: Found, wish: Wish) -> Drawn:
    from qvec_cli.draw.heatmap import heatmap

    matrix = _matrix(found)
    heat = heat_of(matrix)
    facts = {**matrix_facts(matrix), "panels": [panel.title for panel in heat.panels]}
    return Drawn(
        FigureKind.HEATMAP, heatmap(heat), f"{heat.title}: {heat.subtitle}", facts, grid_use(matrix)
    )


def _matrix(found: Found) -> Matrix:
    assert found.matrix is not None
    return found.matrix


def matrix_facts(matrix: Matrix) -> dict[str, Any]:
    """How much of a grid there is."""
    pairs = sum(cell.null is None for cell in matrix.cells.values())
    sizes = len(matrix.receivers), len(matrix.donors)
    return {
        "receivers": sizes[0],
        "donors": sizes[1],
        "cells": pairs,
        "missing": sizes[0] * sizes[1] - pairs,
    }


def grid_use(matrix: Matrix) -> Use:
    """What the numbers of a grid have used: the most of any, and images over all receivers."""
    uses = [row.use for found in matrix.baselines.values() for row in found.values()]
    uses += [choice.use for cell in matrix.cells.values() for choice in cell.chosen.values()]
    level = max(uses, key=list(DataUse).index, default=DataUse.NONE)
    labelled = "val" in matrix.selectors
    images = sum(r.images.get("val", 0) for r in matrix.receivers.values())
    return Use(level, {"val": images} if labelled else {})


_FIGURES: Final[Mapping[FigureKind, Callable[[Found, Wish], Drawn]]] = {
    FigureKind.HEATMAP: _heatmap,
}


def drawn(found: Found, wish: Wish) -> Drawn:
    """The figure that is wished for, or that the files make.

    Raises:
        SpecError: files that make no such figure.
    """
    kind = wish.kind or FigureKind.HEATMAP
    if kind not in _FIGURES or found.matrix is None:
        raise SpecError(f"--figure {kind} cannot be drawn from these files")
    return _FIGURES[kind](found, wish)
