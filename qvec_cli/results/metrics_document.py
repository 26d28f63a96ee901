"""Metrics documents of commands, as structs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Generic, Literal, TypeVar

from msgspec import Meta, Struct, field

from qvec_cli.results import records
from qvec_cli.specs import DataUse, Measure, Use

Parameters = TypeVar("Parameters")
Results = TypeVar("Results")
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
    counts: dict[str, records.Count]  # images or labels, by split

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
    seed: records.Count | None
    ranks: Annotated[
        records.Positive | None,
        Meta(description="processes that did the work together; if absent, one"),
    ] = None


class TimingRecord(Struct, frozen=True):
    """What the command took."""

    wall_s: records.NonNegative
    peak_rss_bytes: records.Count


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

    grid: records.GridRecord
    method: records.Name


class SweepBaselines(Struct, frozen=True):
    """The receiver without a vector, float and rounded."""

    fp: records.Measured
    ptq: records.Measured


class SweepResults(Struct, frozen=True):
    """sweep-lambda: lambda chosen by accuracy on labelled validation images."""

    curve: Annotated[tuple[records.Point, ...], Meta(min_length=1)]
    chosen: records.ChosenLambda
    baselines: SweepBaselines
    zero_shot: Annotated[
        records.ChosenLambda | None,
        Meta(description="lambda 1; absent where the network is not finite there"),
    ] = None
    skipped: tuple[records.SkippedLambda, ...] | None = None


class Distance(Struct, frozen=True):
    """How far answers on proxy images are from the float ones, at one lambda."""

    lam: float = field(name="lambda")
    mean: float = field(name="distance")
    standard_error: records.NonNegative
    val: records.Score | None = None  # where labels were there, which take no part in the choice


class AgreedLambda(Struct, frozen=True):
    """The lambda that is chosen for one vector."""

    lam: float = field(name="lambda")
    distance: float
    standard_error: records.NonNegative
    rho: records.Name
    digest: str
    use: DataUse = field(name="data_use")
    val: records.Score | None = None
    test: records.Score | None = None


class FittedScore(Struct, frozen=True):
    """What a vector does about the damage of quantization, on proxy images."""

    removed: Annotated[float, Meta(le=1)]
    explained: records.Share
    fitted_lambda: float


class AgreedDonor(Struct, frozen=True):
    """One vector of a sweep by agreement; ValueError if the choice is no point of the curve."""

    rho: records.Name
    digest: str
    curve: Annotated[tuple[Distance, ...], Meta(min_length=1)]
    chosen: AgreedLambda
    score: FittedScore
    skipped: tuple[records.SkippedLambda, ...] | None = None

    def __post_init__(self) -> None:
        if self.chosen.lam not in [point.lam for point in self.curve]:
            raise ValueError("chosen is no point of the curve")


class ProxyFolder(Struct, frozen=True):
    """A data set among the proxy images."""

    name: str
    digest: str
    samples: records.Count


class ProxiesRecord(Struct, frozen=True):
    """The images without labels, and what they are to the model."""

    sources: Annotated[tuple[ProxyFolder, ...], Meta(min_length=1)]
    n: Annotated[int, Meta(ge=2)]
    information: float
    diversity: records.NonNegative
    diversity_of_noise: records.NonNegative
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
    skipped: tuple[records.SkippedLambda, ...] | None = None  # of the best vector


class OutputResults(Struct, frozen=True):
    """Any command that writes one: the file that was written."""

    output: records.Name
    digest: records.Name


class ImportResults(OutputResults, frozen=True):
    """import: the checkpoint that was written, and what it was recognised as."""

    model: Json  # as its card has it
    classes: tuple[str, ...] | None
    head: tuple[str, ...]  # tensors of the classifier
    targets: records.Count
    parameters: records.Count


class TrainingResults(OutputResults, frozen=True):
    """finetune, train-qat: the model that was written."""


class ExtractResults(OutputResults, frozen=True):
    """extract: the vector that was written."""


class RotateResults(OutputResults, frozen=True):
    """rotate: the checkpoint that was written, and what of it is in another basis."""

    seed: records.Count
    turned: tuple[records.Positive, ...]  # widths of the streams that are turned
    kept: tuple[str, ...]  # what is not, in words
    tensors: records.Count


class WidthBudget(Struct, frozen=True):
    """What widths were chosen for, and by how much a better choice could be better."""

    average: float | None
    target_size: records.Count | None
    by: Annotated[str, one_of("images", "moments", "weights")]
    damage: records.NonNegative
    bound: records.NonNegative  # below which the damage of no choice is
    gap: records.NonNegative


class QuantizeResults(OutputResults, frozen=True):
    """quantize: the file that was written, and the error of each weight."""

    quantized: tuple[str, ...]  # in the network's order
    sqnr_db: dict[str, float | None]  # signal to quantization noise; None: no noise, or no signal
    bits_per_weight: records.NonNegative
    bytes_before: records.Count
    bytes_after: records.Count
    widths: dict[str, records.Positive] = {}  # bits of a code
    budget: WidthBudget | None = None

    @property
    def ordered(self) -> Mapping[str, float | None]:
        """The noise of each weight, in the network's order."""
        return {name: self.sqnr_db[name] for name in self.quantized if name in self.sqnr_db}


class ComparedGrid(Struct, frozen=True):
    """One grid of quantize --compare."""

    name: records.Name
    bits_per_weight: records.NonNegative
    sqnr_db: float | None
    val: records.Score | None = None
    test: records.Score | None = None
    train: records.Score | None = None

    @property
    def measured(self) -> records.Score | None:
        """Its score, on whichever split it was measured."""
        return self.val or self.test or self.train


class ComparedResults(Struct, frozen=True):
    """quantize --compare: grids that need no data, side by side."""

    compared: tuple[ComparedGrid, ...]
    fp: records.Score | None = None


class WrittenScore(Struct, frozen=True):
    """What a document holds of an accuracy; ``Score`` is what is read back of it."""

    n: records.Positive
    n_correct: records.Count
    top1: records.Share
    n_correct_top5: records.Count
    top5: records.Share
    loss: Annotated[records.NonNegative, Meta(description="mean cross-entropy, nats")]
    standard_error: records.NonNegative
    images_per_second: records.NonNegative


class EvalResults(WrittenScore, frozen=True):
    """eval: the accuracy of one file."""

    split: records.Name
    role: str | None
    grid: records.GridRecord | None  # that the file was made for


class ComparedScore(Struct, frozen=True):
    """One measurement of both files of compare."""

    name: records.Name
    n: records.Positive
    first: records.Share
    second: records.Share
    points: float  # that the second is above the first
    standard_error: records.NonNegative  # of them, as of independent counts


class ComparisonResults(Struct, frozen=True):
    """compare: two files of results side by side."""

    compared: Annotated[tuple[ComparedScore, ...], Meta(min_length=1)]
    only_in_first: tuple[str, ...]
    only_in_second: tuple[str, ...]
    largest_drop: records.NonNegative


class PlannedTensor(Struct, frozen=True, forbid_unknown_fields=True):
    """What would become of a tensor."""

    name: str
    dtype: str
    shape: tuple[records.Count, ...]
    fate: str


class PlanRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """What --dry-run says that the run would do."""

    output: str | None
    tensors: tuple[PlannedTensor, ...]
    images: dict[str, records.Count]
    bytes_in: records.Count
    bytes_out: records.Count | None
    memory_bytes: records.Count | None = None


class PlanResults(Struct, frozen=True):
    """Any command with --dry-run."""

    plan: PlanRecord


class MomentsResults(OutputResults, frozen=True):
    """moments: the file that was written, and what it holds."""

    layers: records.Positive
    tokens: Annotated[
        dict[str, records.Positive],
        Meta(
            description="input vectors that each mean is over, by layer; layers that share their "
            "inputs count once"
        ),
    ]
    images: records.Positive
    rank: Annotated[
        records.Positive | None,
        Meta(description="eigenpairs that are kept of each moment; null: all"),
    ]
    sources: tuple[Json, ...]
    bytes: records.Positive
    model_bytes: records.Positive


class ExportResults(Struct, frozen=True):
    """export: the file or folder that was written."""

    output: records.Name
    digest: Any
    format: str
    grid: Any
    bytes_before: records.Count
    bytes_after: records.Count
    check: records.ExportCheck | None


class AdviceCandidate(Struct, frozen=True):
    """One way to low bits that advise has tried."""

    name: str
    family: Annotated[
        str,
        one_of(
            *("plain", "rotated", "patch", "moments", "noise", "generated"), "images", "refined"
        ),
    ]
    grid: records.GridRecord
    bits_per_weight: records.NonNegative
    distance: float
    standard_error: records.NonNegative
    kept: records.Share
    data_use: UseRecord
    seconds: records.NonNegative
    commands: tuple[str, ...]
    kept_by: dict[str, records.Share] = {}  # by kind of pictures: drawn from numbers, or taken
    distance_by: dict[str, float] = {}
    test: records.Score | None = None


class SkippedCandidate(Struct, frozen=True):
    """One way that advise has not tried, and why."""

    name: str
    reason: str


class AdviceResults(Struct, frozen=True):
    """advise: what to do with a receiver."""

    decision: Annotated[
        str,
        one_of(
            *("nothing to recover", "another grid", "rotate", "patch", "calibrate", "QAT after all")
        ),
    ]
    chosen: str
    best_plain: str
    sure: str
    why: str
    commands: Annotated[tuple[str, ...], Meta(min_length=1)]
    measure: str
    proxies: ProxiesRecord
    candidates: Annotated[tuple[AdviceCandidate, ...], Meta(min_length=1)]
    skipped: tuple[SkippedCandidate, ...]
    expected: tuple[records.Share, records.Share] | None = None  # kept on the receiver's own
    fp: records.Score | None = None  # float, where labels were there


class PicturesResults(Struct, frozen=True):
    """pictures: the folder that was written."""

    output: records.Name
    images: records.Positive
    bytes: records.Positive


class PlotResults(Struct, frozen=True):
    """plot: the figure that was written, and the same in words."""

    output: str
    figure: str
    bytes: records.Positive
    words: str


class ReportResults(Struct, frozen=True):
    """report: the page that was written."""

    output: str
    bytes: records.Positive
    sections: tuple[str, ...]
    figures: records.Count
    tables: records.Count


RESULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "import": {"": ImportResults},
    "finetune": {"": TrainingResults},
    "train-qat": {"": TrainingResults},
    "extract": {"": ExtractResults},
    "moments": {"": MomentsResults},
    "combine": {"": OutputResults},
    "patch": {"": OutputResults},
    "quantize": {"compared": ComparedResults, "": QuantizeResults},
    "rotate": {"": RotateResults},
    "export": {"": ExportResults},
    "eval": {"": EvalResults},
    "compare": {"": ComparisonResults},
    "sweep-lambda": {"objective": AgreementResults, "": SweepResults},
    "transfer": {"": records.TransferResults},
    "advise": {"": AdviceResults},
    "inspect": {"": Json},
    "pictures": {"": PicturesResults},
    "plot": {"": PlotResults},
    "report": {"": ReportResults},
}
"""What the results of each command are: the first row whose key they have; "" stands for any."""
