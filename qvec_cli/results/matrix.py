"""A transfer grid, read whole from its lines, and runs of one with other seeds, taken together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct, structs

from qvec_cli.errors import CheckpointError, MismatchError
from qvec_cli.results.journal import differences
from qvec_cli.results.records import (
    ChosenLambda,
    Count,
    DonorScore,
    GridRecord,
    Measured,
    Name,
    Point,
    Positive,
    Record,
    Score,
    SkippedLambda,
    decode,
)
from qvec_cli.specs import DataUse, Grid

K = TypeVar("K")
V = TypeVar("V")
AtLambda = TypeVar("AtLambda", Point, ChosenLambda)
Member = TypeVar("Member", "ReceiverRecord", "DonorRecord")

CellKey = tuple[str, str, str | None]
"""Receiver, donor, null."""

SCHEMA: Final = 1
"""The version of the lines that is read."""

FLOAT: Final = "fp"
PLAIN: Final = "ptq"

OWN_QAT: Final = "qat"
"""Baselines that have a name of their own; plain rounding is on the run's grid."""


class Oracle(Struct, frozen=True):
    """The lambda that is best on test, which nobody could choose."""

    lam: float = msgspec.field(name="lambda")
    test: Score
    crossed: Score | None = None  # chosen on each half of the images, scored on the other


class Cell(Struct, frozen=True, tag_field="kind", tag="cell"):
    """One donor's vector, or a null of it that carries nothing, on one receiver."""

    receiver: str
    donor: str
    diagonal: bool  # the donor is the receiver's own twin: the ceiling, and no transfer
    curve: tuple[Point, ...]  # at the run's lambdas, ascending, 0 among them
    fixed: tuple[ChosenLambda, ...]  # at the run's fixed lambdas
    chosen: dict[str, ChosenLambda]  # by selector
    null: str | None = None
    oracle: Oracle | None = None
    score: DonorScore | None = None  # without labels, on proxy images
    skipped: tuple[SkippedLambda, ...] = ()  # of the run's lambdas, those in neither

    @property
    def key(self) -> CellKey:
        """What names the cell."""
        return self.receiver, self.donor, self.null

    @property
    def transfer(self) -> bool:
        """Whether the cell counts in statistics of transfer."""
        return not self.diagonal and self.null is None


class QatTwin(Struct, frozen=True):
    """A receiver's own QAT."""

    digest: str


class ReceiverRecord(Struct, frozen=True):
    """A receiver of the run."""

    digest: Name
    images: dict[str, Positive]  # by split
    trained_images: Count | None = None  # of its own QAT: epochs x training images
    qat: QatTwin | None = None


class DonorRecord(Struct, frozen=True):
    """A donor of the run."""

    digest: Name  # of its vector
    trained_images: Count | None = None  # of its QAT


class RunLine(Struct, frozen=True, tag_field="kind", tag="run"):
    """Which grid a file is of."""

    grid: GridRecord
    method: Name
    lambdas: tuple[float, ...]
    fixed: tuple[float, ...]
    receivers: dict[str, ReceiverRecord]
    donors: dict[str, DonorRecord]


class ProxiesUsed(Struct, frozen=True):
    """The images without labels that a receiver's distances were measured on."""

    measure: Name


class ReceiverLine(Struct, frozen=True, tag_field="kind", tag="receiver"):
    """The scores of a receiver without any donor's vector."""

    receiver: str
    baselines: dict[str, Measured]
    proxies: ProxiesUsed | None = None

    def __post_init__(self) -> None:
        for key in (FLOAT, PLAIN):
            if key not in self.baselines:
                raise ValueError(f"baselines has no {key}")


class CosineRecord(Struct, frozen=True, tag_field="kind", tag="alignment"):
    """Cosines between the donors' vectors over the quantized weights."""

    donors: tuple[str, ...]
    whole: tuple[tuple[float, ...], ...] = msgspec.field(name="global")  # of everything at once
    rows: tuple[tuple[float, ...], ...]  # means of row-wise ones

    def __post_init__(self) -> None:
        size = len(self.donors)
        for key, table in (("global", self.whole), ("rows", self.rows)):
            if [len(row) for row in table] != [size] * size:
                raise ValueError(f"{key} is no table of {size} x {size} cosines")


Line = RunLine | ReceiverLine | Cell | CosineRecord

_LINE: Final[Any] = Line
"""The same as a value, which decides by the key kind."""


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
    cells: Mapping[CellKey, Cell]
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
        keys = {key: None for cell in self.cells.values() for key in cell.chosen}
        return tuple(sorted(keys, key=lambda key: key != "val"))

    def plain(self, receiver: str) -> Score:
        """Plain rounding of a receiver, which every gain is measured against."""
        return self.baselines[receiver][PLAIN].test

    def gain(self, receiver: str, test: Score) -> float:
        """Top-1 on test above plain rounding, a share."""
        return test.top1 - self.plain(receiver).top1


def parse(lines: Iterable[Record]) -> Matrix:
    """A grid from its lines, in any order, those of several shards too.

    Raises CheckpointError: a line that is not what the format says, no line of the run, or a
    receiver without its baselines; MismatchError: lines of two runs, or two different answers for
    one cell.
    """
    records = list(lines)
    runs = [record for record in records if record.value.get("kind") == "run"]
    if not runs:
        where = records[0].where if records else "the grid"
        raise CheckpointError(f"{where}: no line of kind run: which grid this is is not known")
    for record in runs[1:]:
        _require_same_run(runs[0], record)
    if (schema := runs[0].value.get("schema")) != SCHEMA:
        raise runs[0].fault(f"was written by a newer qvec: its schema is {schema}, not {SCHEMA}")
    run = runs[0].decoded(RunLine)
    decoded: list[tuple[Record, Line]] = [(record, record.decoded(_LINE)) for record in records]
    known = [(record, line) for record, line in decoded if isinstance(line, ReceiverLine)]
    baselines = _once(
        (_receiver(record, line, run), line.baselines, record) for record, line in known
    )
    if not baselines:
        raise runs[0].fault("is of a run that has not measured anything yet")
    cells = _once(
        (line.key, _checked(record, line, run, baselines), record)
        for record, line in decoded
        if isinstance(line, Cell)
    )
    rows, columns = list(run.receivers), list(run.donors)
    order = sorted(cells, key=lambda key: (key[2] or "", rows.index(key[0]), columns.index(key[1])))
    cosines = [line for _, line in decoded if isinstance(line, CosineRecord)]
    return Matrix(
        run=runs[0].value,
        grid=run.grid.grid,
        method=run.method,
        lambdas=run.lambdas,
        fixed=run.fixed,
        receivers=run.receivers,
        donors=run.donors,
        baselines={name: baselines[name] for name in rows if name in baselines},
        cells={key: cells[key] for key in order},
        alignment=cosines[-1] if cosines else None,
        measures={line.receiver: line.proxies.measure for _, line in known if line.proxies},
    )


def lines_of(text: str, name: str) -> Iterator[Record]:
    """The lines of a file; CheckpointError where one, the last too, is no whole JSON object."""
    rows = text.split("\n")
    for place, row in enumerate(rows, start=1):
        if not row.strip():
            continue
        where = f"{name}:{place}"
        try:
            yield decode(row, where)
        except CheckpointError:
            if place < len(rows) or len(rows) == 1:
                raise
            raise CheckpointError(
                f"{where}: the last line is cut off",
                hint="qvec transfer GRID.yaml -o FILE --resume finishes what was interrupted.",
            ) from None


def _require_same_run(first: Record, other: Record) -> None:
    """Refuses lines of another run; where it ran, and under which paths, may differ."""
    if fields := differences(first.value, other.value):
        raise MismatchError(
            f"{other.where}: is of another run than {first.where}: {fields[0]}",
            hint="Draw one run at a time.",
        )


def _once(pairs: Iterable[tuple[K, V, Record]]) -> dict[K, V]:
    """The pairs as a mapping; what stands twice, as in shards that overlap, must be the same."""
    unique: dict[K, V] = {}
    for key, value, line in pairs:
        if unique.setdefault(key, value) != value:
            names = " from ".join(filter(None, key)) if isinstance(key, tuple) else str(key)
            raise MismatchError(f"{line.where}: {names} stands twice with different numbers")
    return unique


def _receiver(record: Record, line: ReceiverLine | Cell, run: RunLine) -> str:
    if line.receiver not in run.receivers:
        raise record.fault(f"receiver {line.receiver!r} is none of the run's")
    return line.receiver


def _checked(record: Record, cell: Cell, run: RunLine, baselines: Mapping[str, object]) -> Cell:
    """A cell whose names, lambdas and numbers of images are those of the run."""
    name = _receiver(record, cell, run)
    if cell.donor not in run.donors:
        raise record.fault(f"donor {cell.donor!r} is none of the run's")
    if name not in baselines:
        raise record.fault(f"the baselines of {name} stand nowhere")
    lambdas = tuple(point.lam for point in cell.curve), tuple(row.lam for row in cell.fixed)
    lost = {row.lam for row in cell.skipped} - {0}
    wanted = (tuple(lam for lam in asked if lam not in lost) for asked in (run.lambdas, run.fixed))
    if lambdas != tuple(wanted):
        raise record.fault("curve and fixed do not hold the lambdas of the run")
    images = run.receivers[name].images
    tests = [p.test for p in cell.curve] + [c.test for c in (*cell.fixed, *cell.chosen.values())]
    for split, scores in (("val", [point.val for point in cell.curve]), ("test", tests)):
        if wrong := {score.n for score in scores if score} - {images.get(split)}:
            raise record.fault(f"a score of {min(wrong)} {split} images, of {images.get(split)}")
    return cell


def pooled(matrices: Iterable[Matrix]) -> tuple[Matrix, ...]:
    """One matrix for each grid: runs that ask the same of the same names are taken together."""
    groups: list[list[Matrix]] = []
    for matrix in matrices:
        group = next((known for known in groups if alike(known[0], matrix)), None)
        if group is None:
            groups.append([matrix])
        else:
            group.append(matrix)
    return tuple(map(pool, groups))


def alike(first: Matrix, other: Matrix) -> bool:
    """Whether two runs ask the same of the same data with models that were trained alike.

    Only seeds may differ: a model that is in both would count twice.
    """
    pairs = [(first.receivers[name], other.receivers.get(name)) for name in first.receivers]
    seeds = all(theirs and ours.digest != theirs.digest for ours, theirs in pairs)
    return seeds and _question(first) == _question(other)


def pool(runs: Sequence[Matrix]) -> Matrix:
    """One matrix of the mean scores of all runs; a cell that one lacks is missing.

    A selector's lambda is the median of the runs' own. Cosines and costs are means.
    """
    first, *others = runs
    if not others:
        return first
    cells = {
        key: _mean_cell([run.cells[key] for run in runs])
        for key in first.cells
        if all(key in run.cells for run in others)
    }
    baselines = {
        name: {
            key: _mean_baseline([run.baselines[name][key] for run in runs])
            for key in rows
            if all(key in run.baselines.get(name, {}) for run in others)
        }
        for name, rows in first.baselines.items()
        if all(name in run.baselines for run in others)
    }
    return replace(
        first,
        receivers=_mean_members([run.receivers for run in runs]),
        donors=_mean_members([run.donors for run in runs]),
        baselines=baselines,
        cells={key: cell for key, cell in cells.items() if cell.receiver in baselines},
        alignment=_mean_alignment(runs),
        runs=sum(run.runs for run in runs),
    )


def _question(matrix: Matrix) -> tuple[object, ...]:
    settings = matrix.grid, matrix.method, matrix.lambdas, matrix.fixed
    receivers = [matrix.run["receivers"][name] for name in matrix.receivers]
    keys = ("data_digest", "images", "targets", "network", "recipe")
    members = [[receiver.get(key) for key in keys] for receiver in receivers]
    return (*settings, tuple(matrix.receivers), tuple(matrix.donors), members)


def _mean_members(runs: Sequence[Mapping[str, Member]]) -> dict[str, Member]:
    """The members of the first run, each with its mean cost of training."""
    pooled_members = {}
    for name, member in runs[0].items():
        costs = [run[name].trained_images for run in runs]
        known = [cost for cost in costs if cost is not None]
        mean = round(fmean(known)) if len(known) == len(costs) else None
        pooled_members[name] = structs.replace(member, trained_images=mean)
    return pooled_members


def _mean_cell(cells: Sequence[Cell]) -> Cell:
    first = cells[0]
    selectors = [key for key in first.chosen if all(key in cell.chosen for cell in cells)]
    oracles = [cell.oracle for cell in cells if cell.oracle]
    scores = [cell.score for cell in cells if cell.score]
    return structs.replace(
        first,
        diagonal=any(cell.diagonal for cell in cells),
        curve=tuple(map(_mean_point, _aligned(cell.curve for cell in cells))),
        fixed=tuple(map(_mean_choice, _aligned(cell.fixed for cell in cells))),
        chosen={key: _mean_choice([cell.chosen[key] for cell in cells]) for key in selectors},
        oracle=_mean_oracle(oracles) if len(oracles) == len(cells) else None,
        score=DonorScore(fmean(s.removed for s in scores), fmean(s.explained for s in scores))
        if len(scores) == len(cells)
        else None,
    )


def _mean_oracle(oracles: Sequence[Oracle]) -> Oracle:
    crossed = [oracle.crossed for oracle in oracles if oracle.crossed]
    return Oracle(
        median(oracle.lam for oracle in oracles),
        _mean_score(oracle.test for oracle in oracles),
        _mean_score(crossed) if len(crossed) == len(oracles) else None,
    )


def _aligned(curves: Iterable[Sequence[AtLambda]]) -> Iterator[list[AtLambda]]:
    """What several curves have at each lambda that none of them lacks."""
    by_lambda: list[dict[float, AtLambda]] = [{row.lam: row for row in curve} for curve in curves]
    for lam in by_lambda[0]:
        if all(lam in rows for rows in by_lambda):
            yield [rows[lam] for rows in by_lambda]


def _mean_point(points: Sequence[Point]) -> Point:
    tests = [point.test for point in points if point.test]
    distances = [point.distance for point in points if point.distance is not None]
    return Point(
        points[0].lam,
        _mean_score(point.val for point in points),
        _mean_score(tests) if len(tests) == len(points) else None,
        fmean(distances) if len(distances) == len(points) else None,
    )


def _mean_choice(choices: Sequence[ChosenLambda]) -> ChosenLambda:
    vals = [choice.val for choice in choices if choice.val]
    return ChosenLambda(
        median(choice.lam for choice in choices),
        _mean_score(choice.test for choice in choices),
        _most(choice.use for choice in choices),
        _mean_score(vals) if len(vals) == len(choices) else None,
    )


def _mean_baseline(rows: Sequence[Measured]) -> Measured:
    score, use = _mean_score(row.test for row in rows), _most(row.use for row in rows)
    return Measured(score, use, rows[0].grid)


def _most(uses: Iterable[DataUse]) -> DataUse:
    return max(uses, key=list(DataUse).index)


def _mean_score(scores: Iterable[Score]) -> Score:
    """The mean over runs; its error stays that of one run's images, which are the same ones."""
    parts = tuple(scores)
    return Score.of(parts[0].n, fmean(score.n_correct for score in parts))


def _mean_alignment(runs: Sequence[Matrix]) -> CosineRecord | None:
    tables = [run.alignment for run in runs if run.alignment]
    if len(tables) < len(runs):
        return None
    return structs.replace(
        tables[0],
        whole=_averaged([table.whole for table in tables]),
        rows=_averaged([table.rows for table in tables]),
    )


def _averaged(tables: Sequence[Sequence[Sequence[float]]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(fmean, zip(*rows, strict=True))) for rows in zip(*tables, strict=True))
