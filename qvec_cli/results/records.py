"""JSON of results, decoded into structs: a fault names its file, its field and the reason."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from qvec_cli.checkpoint.json_text import parse, require_moderate
from qvec_cli.errors import CheckpointError, SpecError
from qvec_cli.specs import DataUse, Granularity, Grid, Scale, ScaleDtype, Use

T = TypeVar("T")
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
NonNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Name = Annotated[str, Meta(min_length=1)]

_TOLERANCE: Final = 1e-9
"""How far a share may be from the quotient of its counts, which JSON holds to the last bit."""


@dataclass(frozen=True, slots=True)
class Record:
    """A JSON object, and the file or the line of a file that it stands in."""

    where: str
    value: Mapping[str, Any]

    def fault(self, message: str, hint: str | None = None) -> CheckpointError:
        """The error that says what is wrong with this object, to be raised."""
        return CheckpointError(f"{self.where}: {message}", hint)

    def decoded(self, kind: type[T]) -> T:
        """The object as a struct, other keys aside; CheckpointError names a field that is wrong."""
        try:
            return msgspec.convert(self.value, kind)
        except msgspec.ValidationError as error:
            reason, path = _located(error, self.value, kind)
            raise self.fault(f"{path}: {reason}" if path else reason) from None


def decode(text: str, where: str) -> Record:
    """One JSON object; CheckpointError: no JSON, or JSON that is no object."""
    try:
        require_moderate(text.encode(), where)
        value = parse(text)
    except ValueError as error:
        raise CheckpointError(f"{where}: is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: is no JSON object")
    return Record(where, value)


def _located(error: msgspec.ValidationError, value: Any, kind: Any) -> tuple[str, str]:
    """Reason and path of a fault.

    msgspec writes [...] for every key of an object with free keys: the key is the first whose
    value fails with the same message when the object is reduced to it.
    """
    text, _, path = str(error).partition(" - at `$")
    reason = re.sub(r"^Object missing required field `(.*)`$", r"has no \1", text)
    steps: list[Any] = []
    for name, index in re.findall(r"\.([^.\[`]+)|\[([^\]]+)\]", path):
        if index == "...":
            keys = reduce(getitem, steps, value)
            alike = (key for key in keys if _fault(value, kind, steps, key) == str(error))
            steps.append(key := next(alike, "..."))
            if key == "...":
                break
            value = _reduced(value, steps[:-1], key)
        else:
            steps.append(int(index) if index else name)
    shown = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return reason[:1].lower() + reason[1:].replace("`", ""), shown.lstrip(".")


def _fault(value: Any, kind: Any, steps: list[Any], key: str) -> str:
    try:
        msgspec.convert(_reduced(value, steps, key), kind)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def _reduced(value: Any, steps: list[Any], key: str) -> Any:
    """A copy in which the object at a path has one key only."""
    if not steps:
        return {key: value[key]}
    step, *rest = steps
    copy = list(value) if isinstance(value, list) else dict(value)
    copy[step] = _reduced(value[step], rest, key)
    return copy


class Score(Struct, frozen=True):
    """How many images of a split were classified correctly; ValueError where counts disagree."""

    n: Positive
    n_correct: Annotated[float, Meta(ge=0)]  # a mean over runs on the same images is not whole
    top1: float

    def __post_init__(self) -> None:
        if self.n_correct > self.n:
            raise ValueError(f"n_correct is {self.n_correct:g}, of {self.n} images")
        if abs(self.top1 - self.n_correct / self.n) > _TOLERANCE:
            raise ValueError(f"top1 is not {self.n_correct:g} of {self.n}")

    @classmethod
    def of(cls, n: int, n_correct: float) -> Score:
        """The score of so many right images."""
        return cls(n, n_correct, n_correct / n)

    @property
    def standard_error(self) -> float:
        """Binomial standard error of top1."""
        return math.sqrt(self.top1 * (1 - self.top1) / self.n)


def difference_error(first: Score, second: Score) -> float:
    """Standard error of a difference of two accuracies, as of independent counts.

    The images are the same ones, so that the true one is smaller.
    """
    return math.hypot(first.standard_error, second.standard_error)


class GridRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """A grid of weights as ``Grid.to_json`` writes it; ValueError where values are no grid."""

    bits: int
    granularity: Granularity
    group_size: int | None
    scale: Scale
    symmetric: bool
    scale_dtype: ScaleDtype | None = None  # float32 goes without saying
    layers: dict[str, int] = {}  # widths of weights that have another
    rows: list[str] = []  # weights with a scale a row in place of groups

    def __post_init__(self) -> None:
        try:
            self.grid  # noqa: B018 - builds it
        except SpecError as error:
            raise ValueError(str(error)) from None

    @property
    def grid(self) -> Grid:
        """The grid itself."""
        stored, layers = self.scale_dtype or ScaleDtype.FLOAT32, tuple(self.layers.items())
        words = self.granularity, self.group_size, self.scale, self.symmetric
        return Grid(self.bits, *words, stored, layers, tuple(self.rows))


class Measured(Struct, frozen=True):
    """A score on test, and the receiver data that it used."""

    test: Score
    use: DataUse = field(name="data_use")
    grid: GridRecord | None = None  # of a baseline, unless it is float


class Point(Struct, frozen=True):
    """One lambda of a curve; on test only where a run measured every lambda on it."""

    lam: float = field(name="lambda")
    val: Score
    test: Score | None = None
    distance: float | None = None  # to the float answers, on proxy images


class SkippedLambda(Struct, frozen=True):
    """A lambda at which the network is not finite, which is no point of the curve."""

    lam: float = field(name="lambda")
    reason: str


class ChosenLambda(Struct, frozen=True):
    """A lambda that was fixed or chosen, its score on test, and the receiver data it used."""

    lam: float = field(name="lambda")
    test: Score
    use: DataUse = field(name="data_use")
    val: Score | None = None


class MeasuredWay(Struct, frozen=True):
    """What advise keeps of a way that it has measured, to go on from."""

    distances: list[NonNegative]  # of each image's answer from the float one
    same: list[bool]  # whether its first class is the float one
    use: Use
    seconds: NonNegative
    grid: GridRecord
    test: dict[str, Any] | None = None  # a score, with its further numbers

    def __post_init__(self) -> None:
        if self.test is not None:
            msgspec.convert(self.test, Score)


class DonorScore(Struct, frozen=True):
    """What a vector does about the damage of quantization, on proxy images without labels."""

    removed: float  # share that is gone at the lambda of least distance
    explained: float  # share that one coefficient would cancel, were changes linear


class BaselineMean(Struct, frozen=True):
    """What needs no vector, as a mean over the receivers that have it."""

    top1: Share
    use: tuple[DataUse, ...] = field(name="data_use")


class Rates(Struct, frozen=True):
    """Pairs further from no change than one standard error of the difference."""

    win: Share
    loss: Share


class ClosedGap(Struct, frozen=True):
    """A gain as a share of what the receivers' own QAT gains."""

    share: float
    interval: tuple[float, float] | None


class VectorGain(Struct, frozen=True):
    """What vectors are worth at one way to choose lambda, as a mean of receivers' means."""

    top1: Share
    rates: Rates
    gap_closed: ClosedGap | None


class GridSummary(Struct, frozen=True):
    """What a transfer grid comes to, without its pairs."""

    receivers: Count
    baselines: dict[str, BaselineMean]
    ways: dict[str, VectorGain]


class TransferResults(Struct, frozen=True):
    """transfer: the lines that were written, and what they come to."""

    output: Name
    lines: Count
    summary: GridSummary


class ExportCheck(Struct, frozen=True, forbid_unknown_fields=True):
    """Logits of the exported form beside those of qvec's own network, on random images."""

    images: Positive
    max_abs_diff: NonNegative
    max_abs_logit: NonNegative
    bound: Annotated[NonNegative, Meta(description="the largest max_abs_diff that is taken")]
