"""Baselines and ways to choose lambda of a transfer grid, in the words of figures and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from qvec_cli.report.canvas import LAMBDA
from qvec_cli.results.matrix import FLOAT, OWN_QAT, PLAIN, Cell, Matrix
from qvec_cli.results.records import ChosenLambda
from qvec_cli.specs import DataUse, Use

USE_WORDS: Final = {
    DataUse.NONE: "no receiver data",
    DataUse.PROXY_IMAGES: "images of others",
    DataUse.RECEIVER_IMAGES: "its images",
    DataUse.RECEIVER_LABELS: "its labels",
}
"""The receiver data that a number used, in a figure's words."""


Chooser = Callable[[Cell], ChosenLambda | None]


def subtitle(matrix: Matrix) -> str:
    """Grid, how codes are chosen, how much has run, on how many images."""
    sizes = [matrix.plain(name).n for name in matrix.baselines]
    n = f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"
    measured = sum(cell.null is None for cell in matrix.cells.values())
    pairs = len(matrix.receivers) * len(matrix.donors)
    some = "" if measured == pairs else f"{measured} of "
    cells = f"{some}{pairs} pair{'s' if pairs > 1 else ''}"
    cells += f" of {matrix.runs} runs" if matrix.runs > 1 else ""
    return f"{matrix.grid}, {matrix.method}; {cells}; top-1 on test, n = {n} images a receiver"


def baseline_keys(matrix: Matrix) -> tuple[str, ...]:
    """Baselines in the order of the file, the receiver's own QAT last."""
    keys = {key: None for rows in matrix.baselines.values() for key in rows}
    return tuple(sorted(keys, key=lambda key: key == OWN_QAT))


def baseline_name(matrix: Matrix, key: str) -> str:
    """A baseline in a figure's words, with what it has used of the receiver's data, if anything."""
    known = {FLOAT: "float", PLAIN: f"{matrix.method.upper()}, this grid", OWN_QAT: "own QAT"}
    uses = [rows[key].use for rows in matrix.baselines.values() if key in rows]
    use = max(uses, key=list(DataUse).index)
    return known.get(key, key) + (f" ({USE_WORDS[use]})" if use is not DataUse.NONE else "")


def fixed_name(lam: float) -> str:
    """A lambda that nobody chose."""
    return f"{LAMBDA} = {lam:g}"


def chosen_name(key: str) -> str:
    """A selector in words."""
    return f"{LAMBDA} chosen on validation" if key == "val" else f"{LAMBDA} by {key}"


def at_fixed(place: int) -> Chooser:
    """What a cell came to at one of the run's fixed lambdas."""
    return lambda cell: cell.fixed[place] if place < len(cell.fixed) else None


def at_chosen(key: str) -> Chooser:
    """What a cell came to at the lambda of a selector."""
    return lambda cell: cell.chosen.get(key)


def ways(matrix: Matrix) -> list[tuple[str, Chooser]]:
    """Every way to choose lambda, as words and as what picks a cell's answer."""
    fixed = [(fixed_name(lam), at_fixed(place)) for place, lam in enumerate(matrix.fixed)]
    return fixed + [(chosen_name(key), at_chosen(key)) for key in matrix.selectors]


def used(uses: Iterable[DataUse]) -> str:
    """The most that any of some numbers has used, in words."""
    return USE_WORDS[max(uses, key=list(DataUse).index, default=DataUse.NONE)]


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


def grid_use(matrix: Matrix, receiver: str | None = None) -> Use:
    """What the numbers of a grid have used: the most of any, and the images of those shown."""
    shown = [receiver] if receiver else list(matrix.receivers)
    uses = [row.use for name in shown for row in matrix.baselines.get(name, {}).values()]
    cells = [cell for cell in matrix.cells.values() if cell.receiver in shown]
    uses += [choice.use for cell in cells for choice in cell.chosen.values()]
    level = max(uses, key=list(DataUse).index, default=DataUse.NONE)
    labelled = "val" in matrix.selectors
    images = sum(matrix.receivers[name].images.get("val", 0) for name in shown)
    return Use(level, {"val": images} if labelled else {})
