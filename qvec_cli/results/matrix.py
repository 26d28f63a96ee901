"""The file of a transfer grid, read whole: receivers, donors, and what each pair came to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from qvec_cli.errors import CheckpointError, MismatchError
from qvec_cli.results.journal import differences
from qvec_cli.results.records import Record, Score, decode
from qvec_cli.specs import DataUse, Grid

K = TypeVar("K")

V = TypeVar("V")


SCHEMA: Final = 1
"""The version of the lines that is read."""


FLOAT: Final = "fp"

PLAIN: Final = "ptq"

OWN_QAT: Final = "qat"
"""Baselines that have a name of their own; plain rounding is on the run's grid."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A score on test and what of the receiver's data it has cost."""

    test: Score
    use: DataUse
    grid: Grid | None = None  # of a baseline, unless it is float


@dataclass(frozen=True, slots=True)
class Point:
    """One lambda of a curve; on test only if the run was asked for the oracle."""

    lam: float
    val: Score
    test: Score | None
    distance: float | None = None  # to the float answers, on proxy images


@dataclass(frozen=True, slots=True)
class ChosenLambda:
    """A lambda that somebody or something chose, and what it came to."""

    lam: float
    test: Score
    use: DataUse
    val: Score | None = None


@dataclass(frozen=True, slots=True)
class DonorScore:
    """What a vector does about the damage of quantization, without labels."""

    removed: float  # share that is gone at the chosen lambda
    explained: float  # share that one coefficient would cancel, were changes linear


@dataclass(frozen=True, slots=True)
class Cell:
    """One donor's vector, or a null of it that carries nothing, on one receiver."""

    receiver: str
    donor: str
    null: str | None
    diagonal: bool  # the donor is the receiver's own twin: the ceiling, and no transfer
    curve: tuple[Point, ...]  # ascending, 0 in it
    fixed: tuple[ChosenLambda, ...]  # at the run's fixed lambdas
    chosen: Mapping[str, ChosenLambda]  # by selector
    oracle: tuple[float, Score] | None
    score: DonorScore | None = None  # without labels, on proxy images

    @property
    def transfer(self) -> bool:
        """Whether the cell counts in statistics of transfer."""
        return not self.diagonal and self.null is None


@dataclass(frozen=True, slots=True)
class ReceiverRecord:
    """A receiver of the run."""

    name: str
    digest: str
    images: Mapping[str, int]  # by split
    trained_images: int | None  # what its own QAT costs, epochs x training images
    qat: str | None  # digest of its own QAT twin


@dataclass(frozen=True, slots=True)
class DonorRecord:
    """A donor of the run."""

    name: str
    digest: str  # of its vector
    trained_images: int | None  # what its QAT has cost


@dataclass(frozen=True, slots=True)
class CosineRecord:
    """Cosines between the donors' vectors over the quantized weights."""

    donors: tuple[str, ...]
    whole: tuple[tuple[float, ...], ...]  # of everything at once
    rows: tuple[tuple[float, ...], ...]  # mean of row-wise ones


@dataclass(frozen=True, slots=True)
class Matrix:
    """A grid of donors and receivers, as far as it has run."""

    run: Mapping[str, Any]  # its first run line, whole
    grid: Grid
    method: str
    lambdas: tuple[float, ...]
    fixed: tuple[float, ...]
    receivers: Mapping[str, ReceiverRecord]
    donors: Mapping[str, DonorRecord]
    baselines: Mapping[str, Mapping[str, Measured]]  # by receiver and key; fp and ptq always
    cells: Mapping[tuple[str, str, str | None], Cell]  # by receiver, donor, null
    alignment: CosineRecord | None
    runs: int = 1  # that its scores count together
    measures: Mapping[str, str] = field(default_factory=dict)  # of distances, by receiver

    def get(self, receiver: str, donor: str, null: str | None = None) -> Cell | None:
        """A cell, if it has run."""
        return self.cells.get((receiver, donor, null))

    @property
    def transfers(self) -> tuple[Cell, ...]:
        """The cells that count: no diagonal, no null."""
        return tuple(cell for cell in self.cells.values() if cell.transfer)

    @property
    def selectors(self) -> tuple[str, ...]:
        """How lambdas were chosen, in the order in which the file has them; val comes first."""
        found = {key: None for cell in self.cells.values() for key in cell.chosen}
        return tuple(sorted(found, key=lambda key: key != "val"))

    def plain(self, receiver: str) -> Score:
        """Plain rounding of a receiver, which every gain is measured against."""
        return self.baselines[receiver][PLAIN].test

    def gain(self, receiver: str, test: Score) -> float:
        """Top-1 on test above plain rounding, a share."""
        return test.top1 - self.plain(receiver).top1


def parse(lines: Iterable[Record]) -> Matrix:
    """A grid from its lines, in any order, those of several shards too.

    Raises:
        CheckpointError: a line that is not what the format says, no line of the run, or a
            receiver without its baselines.
        MismatchError: lines of two runs, or two different answers for one cell.
    """
    kinds: dict[str, list[Record]] = {"run": [], "receiver": [], "cell": [], "alignment": []}
    for line in lines:
        kind = line.text("kind")
        if kind not in kinds:
            raise line.fault(f"kind {kind!r} is none of {', '.join(kinds)}")
        kinds[kind].append(line)
    if not kinds["run"]:
        where = next((line.where for found in kinds.values() for line in found), "the grid")
        raise CheckpointError(f"{where}: no line of kind run: which grid this is is not known")
    first = kinds["run"][0]
    for line in kinds["run"][1:]:
        _require_same_run(first, line)
    _require_schema(first)
    receivers = {name: _receiver(name, found) for name, found in first.records("receivers")}
    donors = {name: _donor(name, found) for name, found in first.records("donors")}
    baselines = _once(_baselines(line, receivers) for line in kinds["receiver"])
    matrix = Matrix(
        run=first.value,
        grid=first.grid(),
        method=first.text("method"),
        lambdas=first.numbers("lambdas"),
        fixed=first.numbers("fixed"),
        receivers=receivers,
        donors=donors,
        baselines={name: baselines[name] for name in receivers if name in baselines},
        cells={},
        alignment=_alignment(kinds["alignment"][-1]) if kinds["alignment"] else None,
        measures={
            line.text("receiver"): line.record("proxies").text("measure")
            for line in kinds["receiver"]
            if "proxies" in line
        },
    )
    if not matrix.baselines:
        raise first.fault("is of a run that has not measured anything yet")
    cells = _once(_cell(line, matrix) for line in kinds["cell"])
    rows, columns = list(receivers), list(donors)
    order = sorted(cells.items(), key=lambda c: _place(c[0], rows, columns))
    return replace(matrix, cells=dict(order))


def lines_of(text: str, name: str) -> Iterator[Record]:
    """The lines of a file; the last one must be whole, since they are appended one by one.

    Raises:
        CheckpointError: a line that is no JSON object.
    """
    rows = text.split("\n")
    for place, row in enumerate(rows, start=1):
        if not row.strip():
            continue
        where = f"{name}:{place}"
        try:
            yield decode(row, where)
        except CheckpointError:
            if place < len(rows):
                raise
            raise CheckpointError(
                f"{where}: the last line is cut off",
                hint="qvec transfer GRID.yaml -o FILE --resume finishes what was interrupted.",
            ) from None


def _place(
    key: tuple[str, str, str | None], rows: list[str], columns: list[str]
) -> tuple[str, int, int]:
    """Cells in the order of the run, whatever that of the lines; nulls after those that count."""
    return key[2] or "", rows.index(key[0]), columns.index(key[1])


def _require_schema(run: Record) -> None:
    if (schema := run.whole("schema")) != SCHEMA:
        raise run.fault(f"was written by a newer qvec: its schema is {schema}, not {SCHEMA}")


def _require_same_run(first: Record, other: Record) -> None:
    """Refuses lines of another run; where it ran, and under which paths, may differ."""
    if fields := differences(first.value, other.value):
        raise MismatchError(
            f"{other.where}: is of another run than {first.where}: {fields[0]}",
            hint="Draw one run at a time.",
        )


def same_run(first: Record, other: Record) -> bool:
    """Whether two run lines are of one run."""
    return not differences(first.value, other.value)


def _receiver(name: str, record: Record) -> ReceiverRecord:
    images = record.record("images")
    trained = record.whole("trained_images") if "trained_images" in record else None
    qat = record.record("qat").text("digest") if "qat" in record else None
    counts = {split: images.whole(split, 1) for split in images.value}
    return ReceiverRecord(name, record.text("digest"), counts, trained, qat)


def _donor(name: str, record: Record) -> DonorRecord:
    trained = record.whole("trained_images") if "trained_images" in record else None
    return DonorRecord(name, record.text("digest"), trained)


def _once(pairs: Iterable[tuple[K, V, Record]]) -> dict[K, V]:
    """The pairs as a mapping; what stands twice, as in shards that overlap, must be the same."""
    found: dict[K, V] = {}
    for key, value, line in pairs:
        if found.setdefault(key, value) != value:
            names = " from ".join(filter(None, key)) if isinstance(key, tuple) else str(key)
            raise MismatchError(f"{line.where}: {names} stands twice with different numbers")
    return found


def _baselines(
    line: Record, receivers: Mapping[str, ReceiverRecord]
) -> tuple[str, dict[str, Measured], Record]:
    name = _known(line, "receiver", receivers)
    found = {
        key: Measured(
            Score.of(row.record("test")), row.use(), row.grid() if "grid" in row else None
        )
        for key, row in line.records("baselines")
    }
    for key in (FLOAT, PLAIN):
        if key not in found:
            raise line.fault(f"baselines has no {key}")
    return name, found, line


def _cell(line: Record, run: Matrix) -> tuple[tuple[str, str, str | None], Cell, Record]:
    receiver, donor = _known(line, "receiver", run.receivers), _known(line, "donor", run.donors)
    if receiver not in run.baselines:
        raise line.fault(f"the baselines of {receiver} stand nowhere")
    null = line.text("null") if "null" in line else None
    curve = tuple(_point(point) for point in line.listed("curve"))
    lambdas = [point.lam for point in curve]
    fixed = tuple(choice_of(row) for row in line.listed("fixed"))
    if lambdas != [*run.lambdas] or [choice.lam for choice in fixed] != [*run.fixed]:
        raise line.fault("curve and fixed do not hold the lambdas of the run")
    oracle = line.record("oracle") if "oracle" in line else None
    cell = Cell(
        receiver,
        donor,
        null,
        line.flag("diagonal"),
        curve,
        fixed,
        {key: choice_of(row) for key, row in line.records("chosen")},
        (oracle.number("lambda"), Score.of(oracle.record("test"))) if oracle else None,
        _donor_score(line.record("score")) if "score" in line else None,
    )
    _require_counts(line, cell, run.receivers[receiver].images)
    return (receiver, donor, null), cell, line


def _require_counts(line: Record, cell: Cell, images: Mapping[str, int]) -> None:
    """Every score of a cell is of all images of its split."""
    tests = [p.test for p in cell.curve] + [c.test for c in (*cell.fixed, *cell.chosen.values())]
    for split, scores in (("val", [point.val for point in cell.curve]), ("test", tests)):
        if wrong := {score.n for score in scores if score} - {images.get(split)}:
            raise line.fault(f"a score of {min(wrong)} {split} images, of {images.get(split)}")


def _known(line: Record, key: str, names: Mapping[str, object]) -> str:
    name = line.text(key)
    if name not in names:
        raise line.fault(f"{key} {name!r} is none of the run's")
    return name


def _point(row: Record) -> Point:
    test = Score.of(row.record("test")) if "test" in row else None
    distance = row.number("distance") if "distance" in row else None
    return Point(row.number("lambda"), Score.of(row.record("val")), test, distance)


def _donor_score(row: Record) -> DonorScore:
    return DonorScore(row.number("removed"), row.number("explained"))


def choice_of(row: Record) -> ChosenLambda:
    """A lambda and what it came to."""
    val = Score.of(row.record("val")) if "val" in row else None
    return ChosenLambda(row.number("lambda"), Score.of(row.record("test")), row.use(), val)


def _alignment(line: Record) -> CosineRecord:
    donors = line.texts("donors")
    return CosineRecord(
        donors, _square(line, "global", len(donors)), _square(line, "rows", len(donors))
    )


def _square(line: Record, key: str, size: int) -> tuple[tuple[float, ...], ...]:
    rows = line.value.get(key)
    if not isinstance(rows, list) or len(rows) != size:
        raise line.fault(f"{key} is no table of {size} x {size} cosines")
    inner = Record(line.where, {str(place): row for place, row in enumerate(rows)}, f"{key}.")
    table = tuple(inner.numbers(place) for place in inner.value)
    if any(len(row) != size for row in table):
        raise line.fault(f"{key} is no table of {size} x {size} cosines")
    return table
