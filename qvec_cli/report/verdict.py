"""What a page opens with: of all ways that were measured the best, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from statistics import fmean
from typing import Any, Final

from qvec_cli.report import ways
from qvec_cli.report.bars import images_of
from qvec_cli.report.canvas import LAMBDA, number, signed
from qvec_cli.report.tables import NONE, Table
from qvec_cli.results import metrics_document as metrics
from qvec_cli.results.documents import Document, ResultFiles, WaysDocument, WaysTable, stem
from qvec_cli.results.matrix import FLOAT, Matrix
from qvec_cli.results.records import TransferResults
from qvec_cli.specs import DataUse


@dataclass(frozen=True, slots=True)
class BestWay:
    """One way to a low-bit model."""

    of: str  # the model, or the grid and its receivers
    way: str
    size: str
    use: DataUse
    top1: float | None  # share; None: not measured
    fp: float | None  # of the float model
    kept: float | None = None  # share of the float answers

    @property
    def share(self) -> float:
        """What ways are compared by."""
        return self.kept or 0.0 if self.top1 is None else self.top1

    @property
    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        top1 = NONE if self.top1 is None else f"{100 * self.top1:.1f}"
        points = NONE if self.kept is None else f"keeps {self.kept:.1%} of its answers"
        if self.top1 is not None and self.fp is not None:
            points = signed(100 * (self.top1 - self.fp))
        return self.of, self.way, top1, points, self.size, self.use


def verdicts(files: ResultFiles) -> Table | None:
    """The best way of each grid, model and set of images; None: nothing was measured.

    A way that used more of the receiver's data has a row only where it is better.
    """
    rows: list[BestWay] = []
    for kind, of in _KINDS.items():
        documents: Iterable[Any] = files.matrices if kind is Matrix else files.of(kind)
        measured = sorted(of(documents), key=attrgetter("of"))  # sweeps of a model are several
        for _, group in groupby(measured, attrgetter("of")):
            rows += best([*group])
    if not rows:
        return None
    head = ("of", "best way", "top-1, %", "points from float", "size", "receiver data used")
    note = "More receiver data is named only where it gives more: the last row of each is the best."
    several = len({row.of for row in rows}) < len(rows)
    return Table("The best way", head, [row.cells for row in rows], note if several else "")


def best(rows: list[BestWay]) -> Iterator[BestWay]:
    """The best way of each amount of receiver data that is better than all with less."""
    most = 0.0
    for use in DataUse:
        top = max((row for row in rows if row.use is use), key=attrgetter("share"), default=None)
        if top and top.share > most:
            most = top.share
            yield top


def _of_matrix(matrix: Matrix) -> Iterator[BestWay]:
    """Means over the receivers of a grid, of what all of them have."""
    names = list(matrix.baselines)
    many = f"{len(names)} receivers" if len(names) > 1 else names[0]
    of, size = f"{many}, {matrix.grid}", f"{matrix.grid.bits} bits"
    fp = fmean(matrix.baselines[name][FLOAT].test.top1 for name in names)
    for key in ways.baseline_keys(matrix):
        rows = [matrix.baselines[name][key] for name in names if key in matrix.baselines[name]]
        if key != FLOAT and len(rows) == len(names):
            top1, use = fmean(row.test.top1 for row in rows), ways.baseline_use(matrix, key)
            yield BestWay(of, ways.baseline_name(matrix, key), size, use, top1, fp)
    for label, pick in ways.choosers(matrix):
        choices = [
            [choice for c in matrix.transfers if c.receiver == name and (choice := pick(c))]
            for name in names
        ]
        if all(choices):
            top1 = fmean(fmean(choice.test.top1 for choice in row) for row in choices)
            use = ways.most(choice.use for row in choices for choice in row)
            yield BestWay(of, f"vector, {label}, mean of donors", size, use, top1, fp)


def _of_table(table: WaysTable) -> Iterator[BestWay]:
    """The ways of a table that someone can take."""
    known = {row.way: row.top1 for row in table.ways}
    fp = known.get(table.reference) if table.reference else None
    for row in table.ways:
        if table.bars and row.way != table.reference and row.data_use is not None:
            yield BestWay(table.title, row.way, NONE, row.data_use, row.top1, fp)


def _of_study(document: Document[WaysDocument]) -> Iterator[BestWay]:
    for table in document.results.tables:
        yield from _of_table(table)


def _of_advice(document: Document[metrics.AdviceResults]) -> Iterator[BestWay]:
    results = document.results
    fp = results.fp.top1 if results.fp else None
    for row in results.candidates:
        if row.name == results.chosen:
            top1 = row.test.top1 if row.test else None
            way = f"{results.decision} ({results.sure}): {row.name}"
            size, use = f"{row.bits_per_weight:.2f} bits a weight", row.data_use.level
            yield BestWay(document.name, way, size, use, top1, fp, row.kept)


def _of_comparison(document: Document[metrics.ComparedResults]) -> Iterator[BestWay]:
    fp = document.results.fp.top1 if document.results.fp else None
    for row in document.results.compared:
        if row.measured:
            size, top1 = f"{row.bits_per_weight:.2f} bits a weight", row.measured.top1
            yield BestWay(document.name, row.name, size, DataUse.NONE, top1, fp)


def _of_sweep(document: Document[metrics.SweepResults]) -> Iterator[BestWay]:
    results, of = document.results, f"{document.name}, {document.grid}"
    fp, vector = results.baselines.fp.test.top1, stem(document.inputs[1].path)
    size, plain = f"{document.grid.bits} bits", results.baselines.ptq
    yield BestWay(of, "plain rounding", size, plain.use, plain.test.top1, fp)
    for row in filter(None, (results.zero_shot, results.chosen)):
        way = f"{vector}, {LAMBDA} = {number(row.lam)}"
        yield BestWay(of, way, size, row.use, row.test.top1, fp)


def _of_evaluations(documents: Sequence[Document[metrics.EvalResults]]) -> Iterator[BestWay]:
    for images in dict.fromkeys(map(images_of, documents)):
        rows = [row for row in documents if images_of(row) == images]
        floats = [row.results.top1 for row in rows if row.results.grid is None]
        fp = floats[0] if len(floats) == 1 else None
        for row in rows:
            if grid := row.results.grid:
                of, size = f"{stem(row.inputs[-1].path)}, {row.results.split}", f"{grid.bits} bits"
                yield BestWay(of, row.label, size, row.use.level, row.results.top1, fp)


Of = Callable[[Any], Iterator[BestWay]]


def _each(of: Of) -> Of:
    """The ways of every document of a kind."""
    return lambda documents: (row for document in documents for row in of(document))


_KINDS: Final[Mapping[type[Any], Of]] = {
    metrics.AdviceResults: _each(_of_advice),
    Matrix: _each(_of_matrix),
    TransferResults: _each(lambda document: _of_table(ways.table_of(document))),
    WaysDocument: _each(_of_study),
    metrics.SweepResults: _each(_of_sweep),
    metrics.ComparedResults: _each(_of_comparison),
    metrics.EvalResults: _of_evaluations,
}
