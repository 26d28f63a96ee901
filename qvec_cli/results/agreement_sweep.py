"""A choice of lambda without labels, read back from its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qvec_cli.results.matrix import FLOAT, PLAIN, DonorScore, Measured
from qvec_cli.results.records import Record, Score
from qvec_cli.specs import DataUse, Grid, Measure, Use


@dataclass(frozen=True, slots=True)
class Distance:
    """One lambda of a curve."""

    lam: float
    mean: float  # over images
    standard_error: float
    val: Score | None  # where labels were given, which take no part in the choice


@dataclass(frozen=True, slots=True)
class Row:
    """One vector."""

    name: str  # of its file, without folder and suffix
    curve: tuple[Distance, ...]  # ascending
    chosen: Distance
    test: Score | None  # at the chosen lambda
    use: DataUse
    score: DonorScore


@dataclass(frozen=True, slots=True)
class Agreed:
    """A sweep by agreement with the float answers; of several vectors the best comes first."""

    file: str
    receiver: str  # the name of its file, without folder and suffix
    digest: str
    grid: Grid
    method: str
    measure: Measure
    images: int
    rows: tuple[Row, ...]
    baselines: Mapping[str, Measured]  # where labels were given
    use: Use

    @property
    def names(self) -> tuple[str, ...]:
        """What figures call its receiver and its vectors."""
        return (self.receiver, *(row.name for row in self.rows))


def read_agreed(whole: Record, results: Record, use: Use) -> Agreed:
    """Reads what ``sweep-lambda --objective agreement`` has written.

    Raises:
        CheckpointError: something else.
    """
    files, parameters = list(whole.listed("inputs")), whole.record("parameters")
    rows = tuple(_row(row) for row in results.listed("donors"))
    if not files or not rows:
        raise whole.fault("names no receiver or no vector")
    table = results.record("baselines") if "baselines" in results else None
    known = [(key, table.record(key)) for key in (FLOAT, PLAIN)] if table else []
    return Agreed(
        whole.where,
        _name(files[0].text("path")),
        files[0].text("digest"),
        parameters.grid(),
        parameters.text("method"),
        _measure(results),
        results.record("proxies").whole("n", 1),
        rows,
        {key: Measured(Score.of(row.record("test")), row.use()) for key, row in known},
        use,
    )


def _row(row: Record) -> Row:
    curve = sorted((_distance(point) for point in row.listed("curve")), key=lambda p: p.lam)
    chosen = row.record("chosen")
    score = row.record("score")
    taken = _distance(chosen)
    if taken.lam not in [point.lam for point in curve]:
        raise row.fault("chosen is no point of the curve")
    return Row(
        _name(row.text("rho")),
        tuple(curve),
        taken,
        Score.of(chosen.record("test")) if "test" in chosen else None,
        chosen.use(),
        DonorScore(score.number("removed"), score.number("explained")),
    )


def _distance(row: Record) -> Distance:
    val = Score.of(row.record("val")) if "val" in row else None
    return Distance(row.number("lambda"), row.number("distance"), row.number("standard_error"), val)


def _measure(results: Record) -> Measure:
    found = results.text("measure")
    if found not in set(Measure):
        raise results.fault(f"measure is {found!r}, none of {', '.join(Measure)}")
    return Measure(found)


def _name(path: str) -> str:
    return Path(path).stem or path
