"""Metrics documents of commands as structs: what all have, and results that are read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, TypeVar

from msgspec import Meta, Struct, field

from qvec_cli.results.records import (
    ChosenLambda,
    Count,
    GridRecord,
    Measured,
    Name,
    Point,
    Positive,
    Score,
    Share,
)
from qvec_cli.specs import DataUse, Measure, Use

Parameters = TypeVar("Parameters")

Results = TypeVar("Results")

NonNegative = Annotated[float, Meta(ge=0)]

Digest = Annotated[str, Meta(extra_json_schema={"pattern": "^[0-9a-f]{64}$"})]

Json = dict[str, Any]


def one_of(*words: str) -> Meta:
    """Words that this version writes; a reader takes those of later versions too."""
    return Meta(extra_json_schema={"enum": list(words)})


class InputRecord(Struct, frozen=True):
    """A file or data set that the result was made from."""

    path: str
    kind: Annotated[
        str,
        one_of(
            *("checkpoint", "vector", "quantized", "train-state", "moments", "data", "grid"),
            "metrics",
        ),
    ]
    digest: Digest | None


class UseRecord(Struct, frozen=True):
    """The receiver data that the results used beyond its own fine-tuning."""

    level: DataUse
    counts: dict[str, Count]  # images or labels, by split

    @property
    def use(self) -> Use:
        """The same as the value that results are pooled by."""
        return Use(self.level, self.counts)


class EnvironmentRecord(Struct, frozen=True):
    """What the command ran on."""

    python: str
    torch: str
    timm: str
    device: str
    threads: Annotated[int, Meta(ge=1, description="of each process")]
    seed: Count | None
    ranks: Annotated[
        Positive | None, Meta(description="processes that did the work together; if absent, one")
    ] = None


class TimingRecord(Struct, frozen=True):
    """What the command took."""

    wall_s: NonNegative
    peak_rss_bytes: Count


class MetricsDocument(Struct, Generic[Parameters, Results], frozen=True):
    """What one qvec command did: inputs, parameters, results and the receiver data they used."""

    schema: Literal[1]
    command: str
    version: str
    inputs: tuple[InputRecord, ...]
    parameters: Parameters
    results: Results
    data_use: UseRecord
    environment: EnvironmentRecord
    timing: TimingRecord


class GridParameters(Struct, frozen=True):
    """How weights were quantized."""

    grid: GridRecord
    method: Name


class SweepBaselines(Struct, frozen=True):
    """The receiver without a vector, float and rounded."""

    fp: Measured
    ptq: Measured


class SweepResults(Struct, frozen=True):
    """sweep-lambda: lambda chosen by accuracy on labelled validation images."""

    curve: Annotated[tuple[Point, ...], Meta(min_length=1)]
    chosen: ChosenLambda
    zero_shot: ChosenLambda
    baselines: SweepBaselines


class Distance(Struct, frozen=True):
    """How far answers on proxy images are from the float ones, at one lambda."""

    lam: float = field(name="lambda")
    mean: float = field(name="distance")
    standard_error: NonNegative
    val: Score | None = None  # where labels were there, which take no part in the choice


class AgreedLambda(Struct, frozen=True):
    """The lambda that is chosen for one vector."""

    lam: float = field(name="lambda")
    distance: float
    standard_error: NonNegative
    rho: Name
    digest: str
    use: DataUse = field(name="data_use")
    val: Score | None = None
    test: Score | None = None


class FittedScore(Struct, frozen=True):
    """What a vector does about the damage of quantization, on proxy images."""

    removed: Annotated[float, Meta(le=1)]
    explained: Share
    fitted_lambda: float


class AgreedDonor(Struct, frozen=True):
    """One vector of a sweep by agreement.

    Raises:
        ValueError: the chosen lambda is no point of the curve.
    """

    rho: Name
    digest: str
    curve: Annotated[tuple[Distance, ...], Meta(min_length=1)]
    chosen: AgreedLambda
    score: FittedScore

    def __post_init__(self) -> None:
        if self.chosen.lam not in [point.lam for point in self.curve]:
            raise ValueError("chosen is no point of the curve")


class ProxyFolder(Struct, frozen=True):
    """A data set among the proxy images."""

    name: str
    digest: str
    samples: Count


class ProxiesRecord(Struct, frozen=True):
    """The images without labels, and what they are to the model."""

    sources: Annotated[tuple[ProxyFolder, ...], Meta(min_length=1)]
    n: Annotated[int, Meta(ge=2)]
    information: float
    diversity: NonNegative
    diversity_of_noise: NonNegative
    close_to_noise: bool


class AgreementResults(Struct, frozen=True):
    """sweep-lambda --objective agreement: lambda chosen without labels; the best vector first."""

    objective: Literal["agreement"]
    measure: Measure
    proxies: ProxiesRecord
    curve: Annotated[tuple[Distance, ...], Meta(min_length=1)]
    chosen: AgreedLambda
    donors: Annotated[tuple[AgreedDonor, ...], Meta(min_length=1)]
    baselines: SweepBaselines | None = None


class TrainingResults(Struct, frozen=True):
    """finetune, train-qat: the model that was written."""

    output: Name
    digest: Name


class ExtractResults(Struct, frozen=True):
    """extract: the vector that was written."""

    output: Name
    digest: Name


class QuantizeResults(Struct, frozen=True):
    """quantize: the file that was written, and the error of each weight."""

    output: Name
    digest: Name
    quantized: tuple[str, ...]  # in the network's order
    sqnr_db: dict[str, float | None]  # signal to quantization noise; None: no noise, or no signal
    bits_per_weight: NonNegative
    bytes_before: Count
    bytes_after: Count

    @property
    def ordered(self) -> Mapping[str, float | None]:
        """The noise of each weight, in the network's order."""
        return {name: self.sqnr_db[name] for name in self.quantized if name in self.sqnr_db}


class ComparedGrid(Struct, frozen=True):
    """One grid of quantize --compare."""

    name: Name
    bits_per_weight: NonNegative
    sqnr_db: float | None
    val: Score | None = None
    test: Score | None = None
    train: Score | None = None

    @property
    def measured(self) -> Score | None:
        """Its score, on whichever split it was measured."""
        return self.val or self.test or self.train


class ComparedResults(Struct, frozen=True):
    """quantize --compare: grids that need no data, side by side."""

    compared: tuple[ComparedGrid, ...]
    fp: Score | None = None


class EvalResults(Struct, frozen=True):
    """eval: the accuracy of one file."""

    split: Name
    role: str | None
    grid: GridRecord | None  # that the file was made for
    n: Positive
    n_correct: Count
    top1: Share
    n_correct_top5: Count
    top5: Share
    loss: Annotated[NonNegative, Meta(description="mean cross-entropy, nats")]
    standard_error: NonNegative
    images_per_second: NonNegative
