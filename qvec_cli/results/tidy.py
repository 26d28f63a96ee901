"""Every measurement in files of results as a row of one table, for pandas and its like."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from msgspec import Struct, structs

from qvec_cli.checkpoint.replace import replacing
from qvec_cli.results import metrics_document as metrics
from qvec_cli.results.documents import Document, ResultFiles, stem
from qvec_cli.results.matrix import PLAIN, Cell, Matrix
from qvec_cli.results.records import ChosenLambda, Measured, Point, Score
from qvec_cli.specs import DataUse

CURVE: Final = "curve"
FIXED: Final = "fixed"
"""Ways of lambdas that nobody chose."""


class Row(Struct, frozen=True):
    """One accuracy of one model on one split; None and "" where a column does not apply."""

    file: str
    receiver: str
    donor: str
    null: str
    seed: int | None  # of the null vectors
    lam: float | None
    way: str  # a baseline, curve, fixed, or what has chosen lambda
    split: str
    n: int
    correct: float  # a mean over runs is not whole
    top1: float
    data_use: DataUse | None  # None: nobody can take the way, which is the best on test
    bits: int | None  # None: float

    @property
    def score(self) -> Score:
        """The counts."""
        return Score(self.n, self.correct, self.top1)


COLUMNS: Final = tuple("lambda" if name == "lam" else name for name in Row.__struct_fields__)


def rows(files: ResultFiles) -> Iterator[Row]:
    """The measurements of all files, in their order: grids, run by run, and then documents."""
    for name, matrix in files.runs:
        yield from of_matrix(name, matrix)
    for document in files.documents:
        yield from _of_document(document)


def write_table(path: Path, table: Iterator[Row], *, force: bool) -> None:
    """Writes rows as CSV with a head.

    Raises CheckpointError: a file that exists, or cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(map(structs.astuple, table))
    with replacing(path, force=force) as file:
        file.write(text.getvalue().encode("utf-8", "backslashreplace"))


def _row(score: Score, use: DataUse | None, bits: int | None, **where: Any) -> Row:
    """A row; ``where`` has the columns that say what was measured."""
    blank = {"donor": "", "null": "", "seed": None, "lam": None}
    counts = {"n": score.n, "correct": score.n_correct, "top1": score.top1}
    return Row(**{**blank, **where, **counts, "data_use": use, "bits": bits})


def of_matrix(file: str, matrix: Matrix) -> Iterator[Row]:
    """Baselines of every receiver, then every cell: its curve and what was chosen on it."""
    for receiver, baselines in matrix.baselines.items():
        for way, measured in baselines.items():
            bits = measured.grid.bits if measured.grid else None
            where = {"file": file, "receiver": receiver, "way": way, "split": "test"}
            yield _row(measured.test, measured.use, bits, **where)
    for cell in matrix.cells.values():
        yield from _of_cell(file, matrix, cell)


def _of_cell(file: str, matrix: Matrix, cell: Cell) -> Iterator[Row]:
    seed = matrix.run.get("seed") if cell.null else None
    where: dict[str, Any] = {"file": file, "receiver": cell.receiver, "donor": cell.donor}
    where |= {"null": cell.null or "", "seed": seed}
    before, bits = matrix.baselines[cell.receiver][PLAIN].use, matrix.grid.bits
    yield from _of_curve(cell.curve, before, bits, where)
    choices = [(FIXED, choice) for choice in cell.fixed] + list(cell.chosen.items())
    for way, choice in choices:
        yield from _of_choice(choice, bits, {**where, "way": way})
    if (best := cell.oracle) is not None:
        at = {**where, "lam": best.lam, "way": "oracle", "split": "test"}
        yield _row(best.test, None, bits, **at)
        if best.crossed:
            yield _row(best.crossed, None, bits, **{**at, "way": "crossed", "lam": None})


def _of_curve(
    curve: tuple[Point, ...], use: DataUse, bits: int, where: dict[str, Any]
) -> Iterator[Row]:
    for point in curve:
        for split, score in (("val", point.val), ("test", point.test)):
            if score:
                at = {**where, "lam": point.lam, "way": CURVE, "split": split}
                yield _row(score, use, bits, **at)


def _of_choice(choice: ChosenLambda, bits: int, where: dict[str, Any]) -> Iterator[Row]:
    for split, score in (("val", choice.val), ("test", choice.test)):
        if score:
            yield _row(score, choice.use, bits, **where, lam=choice.lam, split=split)


def _of_document(document: Document[Any]) -> Iterator[Row]:
    """The accuracies of one command's results; none, of those that measure none."""
    results = document.results
    where: dict[str, Any] = {"file": document.file, "split": "test"}
    if document.inputs:
        where["receiver"] = document.name
    if isinstance(results, metrics.EvalResults):
        bits, where["split"] = results.grid.bits if results.grid else None, results.split
        yield _row(_score(results), document.use.level, bits, **where, way="eval")
    elif isinstance(results, metrics.ComparedResults):
        yield from _of_grids(results, document, where)
    elif isinstance(results, metrics.AdviceResults):
        yield from _of_advice(results, where)
    elif isinstance(results, metrics.SweepResults):
        yield from _of_sweep(results, document, where)


def _of_advice(results: metrics.AdviceResults, where: dict[str, Any]) -> Iterator[Row]:
    if results.fp:
        yield _row(results.fp, DataUse.NONE, None, **where, way="fp")
    for tried in results.candidates:
        if tried.test:
            use, bits = tried.data_use.level, tried.grid.bits
            yield _row(tried.test, use, bits, **where, way=tried.name)


def _of_sweep(
    results: metrics.SweepResults, document: Document[Any], where: dict[str, Any]
) -> Iterator[Row]:
    bits, where = document.grid.bits, {**where, "donor": stem(document.inputs[1].path)}
    alone: dict[str, Measured] = {"fp": results.baselines.fp, "ptq": results.baselines.ptq}
    for way, measured in alone.items():
        width = None if way == "fp" else bits
        yield _row(measured.test, measured.use, width, **{**where, "donor": ""}, way=way)
    yield from _of_curve(results.curve, results.baselines.ptq.use, bits, where)
    del where["split"]
    if results.zero_shot:
        yield from _of_choice(results.zero_shot, bits, {**where, "way": FIXED})
    yield from _of_choice(results.chosen, bits, {**where, "way": "val"})


def _of_grids(
    results: metrics.ComparedResults, document: Document[Any], where: dict[str, Any]
) -> Iterator[Row]:
    use, parameters = document.use.level, document.parameters
    where["split"] = parameters.get("split", "")
    if results.fp:
        yield _row(results.fp, use, None, **where, way="fp")
    for grid in results.compared:
        if grid.measured:
            yield _row(grid.measured, use, parameters.get("bits"), **where, way=grid.name)


def _score(results: metrics.EvalResults) -> Score:
    return Score(results.n, results.n_correct, results.top1)
