"""Baselines and ways to choose lambda of a transfer grid, in the words of figures and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from qvec_cli.report.canvas import LAMBDA, counts, number
from qvec_cli.results.documents import BarLabel, Document, WayRecord, WaysTable
from qvec_cli.results.matrix import FLOAT, OWN_QAT, PLAIN, Cell, Matrix
from qvec_cli.results.metrics_document import ComparedResults
from qvec_cli.results.records import ChosenLambda, TransferResults
from qvec_cli.results.summary import CROSSED, ORACLE
from qvec_cli.specs import DataUse, Use
from qvec_cli.tame import counted

_WORDS: Final = {
    DataUse.NONE: "no receiver data",
    DataUse.PROXY_IMAGES: "images of others",
    DataUse.RECEIVER_IMAGES: "its images",
    DataUse.RECEIVER_LABELS: "its labels",
}
"""The receiver data that a number used, in a figure's words."""

_CHOICES: Final = {"val": DataUse.RECEIVER_LABELS, "agreement": DataUse.PROXY_IMAGES}
"""The receiver data that a choice of lambda needs; None: nobody can make it."""

Chooser = Callable[[Cell], ChosenLambda | None]


def subtitle(matrix: Matrix) -> str:
    """Grid, how codes are chosen, how much has run, on how many images."""
    facts = matrix_facts(matrix)
    pairs = facts["cells"] + facts["missing"]
    some = f"{facts['cells']} of " if facts["missing"] else ""
    cells = f"{some}{counted(pairs, 'pair')}"
    cells += f" of {matrix.runs} runs" if matrix.runs > 1 else ""
    n = counts([matrix.plain(name).n for name in matrix.baselines])
    return f"{matrix.grid}, {matrix.method}; {cells}; top-1 on test, n = {n} images a receiver"


def baseline_keys(matrix: Matrix) -> tuple[str, ...]:
    """Baselines in the order of the file, the receiver's own QAT last."""
    keys = {key: None for rows in matrix.baselines.values() for key in rows}
    return tuple(sorted(keys, key=lambda key: key == OWN_QAT))


def baseline_use(matrix: Matrix, key: str) -> DataUse:
    """The most of a receiver's data that a baseline used."""
    return most(rows[key].use for rows in matrix.baselines.values() if key in rows)


def baseline_name(matrix: Matrix, key: str) -> str:
    """A baseline in a figure's words, with the receiver data that it used, if any."""
    use = baseline_use(matrix, key)
    words = f" ({_WORDS[use]})" if use is not DataUse.NONE else ""
    return _without_vector(key, matrix.method) + words


def _without_vector(key: str, method: str) -> str:
    known = {FLOAT: "float", PLAIN: f"{method.upper()}, this grid", OWN_QAT: "own QAT"}
    return known.get(key, key)


def chosen_name(key: str) -> str:
    """A selector in words."""
    return f"{LAMBDA} chosen on validation" if key == "val" else f"{LAMBDA} by {key}"


def lambda_name(key: str) -> str:
    """A way to choose lambda by the summary's key."""
    if key.startswith("lambda "):
        return f"{LAMBDA} = {number(float(key.removeprefix('lambda ')))}"
    best = {ORACLE: "best on test", CROSSED: "best on test, cross-fitted"}
    return f"{LAMBDA} {best[key]}" if key in best else chosen_name(key)


def table_of(document: Document[TransferResults]) -> WaysTable:
    """A grid's summary as a table of ways; what is chosen on test is no bar."""
    summary, rows = document.results.summary, []
    for key, mean in summary.baselines.items():
        rows.append(WayRecord(_without_vector(key, document.method), mean.top1, most(mean.use)))
    for key, gain in summary.ways.items():
        use = DataUse.NONE if key.startswith("lambda ") else _CHOICES.get(key)
        closed = gain.gap_closed
        share, ends = (closed.share, closed.interval) if closed else (None, None)
        name = f"vector, {lambda_name(key)}"
        rows.append(WayRecord(name, gain.top1, use, share, ends, gain.rates.loss))
    known = "float" if FLOAT in summary.baselines else None
    shown = [row.way for row in rows if row.way != known and row.data_use]
    title = f"{document.grid}, {document.method}, {counted(summary.receivers, 'receiver')}"
    return WaysTable(title, tuple(rows), tuple(BarLabel(way, way) for way in shown), known)


def split_of(results: ComparedResults) -> str | None:
    """The split on which grids were compared; None: there were no images."""
    splits = ("val", "test", "train")
    return next((s for s in splits for row in results.compared if getattr(row, s)), None)


def choosers(matrix: Matrix) -> list[tuple[str, Chooser]]:
    """Every way to choose lambda, as words and as what picks a cell's answer: fixed ones first."""

    def fixed(lam: float) -> Chooser:
        return lambda cell: next((row for row in cell.fixed if row.lam == lam), None)

    def by(key: str) -> Chooser:
        return lambda cell: cell.chosen.get(key)

    unchosen = [(f"{LAMBDA} = {number(lam)}", fixed(lam)) for lam in matrix.fixed]
    return unchosen + [(chosen_name(key), by(key)) for key in matrix.selectors]


def most(uses: Iterable[DataUse]) -> DataUse:
    """The most receiver data of several uses."""
    return max(uses, key=list(DataUse).index, default=DataUse.NONE)


def used(uses: Iterable[DataUse]) -> str:
    """The most receiver data of several uses, in words."""
    return _WORDS[most(uses)]


def matrix_facts(matrix: Matrix) -> dict[str, Any]:
    """How much of a grid there is."""
    pairs = sum(cell.null is None for cell in matrix.cells.values())
    receivers, donors = len(matrix.receivers), len(matrix.donors)
    missing = receivers * donors - pairs
    return {"receivers": receivers, "donors": donors, "cells": pairs, "missing": missing}


def grid_use(matrix: Matrix, receiver: str | None = None) -> Use:
    """The most receiver data that a number of a grid used, and the images of those shown."""
    shown = [receiver] if receiver else list(matrix.receivers)
    uses = [row.use for name in shown for row in matrix.baselines.get(name, {}).values()]
    cells = [cell for cell in matrix.cells.values() if cell.receiver in shown]
    uses += [choice.use for cell in cells for choice in cell.chosen.values()]
    images = sum(matrix.receivers[name].images.get("val", 0) for name in shown)
    return Use(most(uses), {"val": images} if "val" in matrix.selectors else {})
