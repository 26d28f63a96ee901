"""The vocabulary of qvec: frozen values that check themselves when they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, Protocol, Self

from qvec_cli.errors import SpecError


class Granularity(StrEnum):
    """How many weights share one scale."""

    TENSOR = "tensor"  # the whole matrix
    CHANNEL = "channel"  # one output row
    GROUP = "group"  # --group-size neighbours in a row


class Scale(StrEnum):
    """How a block's scale is chosen; one row each in quant/scales.py."""

    ABSMAX = "absmax"  # the largest weight keeps its value
    MSE = "mse"  # clips where the squared error is least
    MSE_FULL = "mse-full"  # the same with every code in use, and either sign of the scale
    HQQ = "hqq"  # half-quadratic: few large errors count little, every code in use


class ScaleDtype(StrEnum):
    """In which format a file holds scales; what is trained and measured is the rounded scale."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


class Preset(StrEnum):
    """What quantize does where neither flags nor the file say."""

    PAPER = "paper"  # arXiv:2604.03420: absmax, symmetric, rounded to nearest
    PLAIN = "plain"  # the best that needs nothing but the file
    BEST = "best"  # calibrated on generated pictures


class Method(StrEnum):
    """How codes are chosen on the grid; one row each in quant/methods.py."""

    RTN = "rtn"
    GPTQ = "gptq"
    AWQ = "awq"


class Target(StrEnum):
    """Whose outputs a calibrated layer is to give; see quant/gptq.py."""

    QUANTIZED = "quantized"  # its own before rounding, behind the quantized layers
    FLOAT = "float"  # those that it has in the float network


class ExportFormat(StrEnum):
    """What other programs read; one row each in export/export.py."""

    ONNX = "onnx"  # one file
    OPENVINO = "openvino"  # two files
    TIMM = "timm"  # a folder
    TRANSFORMERS_JS = "transformers.js"  # a folder


class Null(StrEnum):
    """What a vector is compared with that carries nothing; one row each in transfer/nulls.py."""

    RANDOM = "random"
    SHUFFLE = "shuffle"
    TASKVEC = "taskvec"


class Rule(StrEnum):
    """How several vectors become one; one row each in vector/arithmetic.py."""

    MEAN = "mean"
    WEIGHTED = "weighted"
    TIES = "ties"
    DARE = "dare"


class Part(StrEnum):
    """What a tensor is of in a network; vector/pairing.py decides."""

    EMBED = "embed"
    ATTN = "attn"
    MLP = "mlp"
    NORM = "norm"
    BIAS = "bias"


class FigureKind(StrEnum):
    """What qvec plot draws; one row each in report/figures.py."""

    HEATMAP = "heatmap"  # donors times receivers
    CURVE = "curve"  # accuracy over lambda
    PLANE = "plane"  # accuracy over what it costs
    LAYERS = "layers"  # the error of each layer
    BARS = "bars"  # accuracy of each way


class Cost(StrEnum):
    """What a model's own QAT is counted in."""

    IMAGES = "images"  # that it is trained on, epochs times training images
    SECONDS = "seconds"  # that train-qat took


class Objective(StrEnum):
    """What chooses lambda."""

    ACCURACY = "accuracy"  # on the receiver's labelled validation images, the paper's way
    AGREEMENT = "agreement"  # with the receiver's own float answers, on images without labels


class Measure(StrEnum):
    """How far the answers of two networks are apart; see selection/trial.py."""

    KL = "kl"  # of class probabilities, nats
    FEATURES = "features"  # of what the classifier is given, relative
    BOTH = "both"  # their sum, the features with a weight


class Library(StrEnum):
    """Whose networks these are."""

    TIMM = "timm"
    TRANSFORMERS = "transformers"


class Spelled(StrEnum):
    """Whose names a network is to have: a word of --to."""

    TIMM = "timm"
    HF = "hf"

    @property
    def library(self) -> Library:
        """That builds it."""
        return Library.TIMM if self is Spelled.TIMM else Library.TRANSFORMERS


class Interpolation(StrEnum):
    """How images are resized, in timm's words."""

    BICUBIC = "bicubic"
    BILINEAR = "bilinear"
    NEAREST = "nearest"
    LANCZOS = "lanczos"
    BOX = "box"
    HAMMING = "hamming"


class DataUse(StrEnum):
    """What of the receiver's data a number has cost, from nothing to labels."""

    NONE = "none"
    PROXY_IMAGES = "proxy_images"
    RECEIVER_IMAGES = "receiver_images"
    RECEIVER_LABELS = "receiver_labels"


@dataclass(frozen=True, slots=True)
class Use:
    """What a result has cost beyond the receiver's own fine-tuning."""

    level: DataUse = DataUse.NONE
    counts: Mapping[str, int] = field(default_factory=dict)  # images or labels, by split

    def __post_init__(self) -> None:
        object.__setattr__(self, "level", DataUse(self.level))
        if not all(type(count) is int and count >= 0 for count in self.counts.values()):
            raise SpecError(f"counts of images are whole numbers from 0 up, not {self.counts}")

    def to_json(self) -> dict[str, Any]:
        """As metrics and cards hold it."""
        return {"level": self.level, "counts": dict(self.counts)}


NOTHING: Final = Use()


def spent(*uses: Use) -> Use:
    """What several things have cost together: the highest level, each image counted once."""
    order = list(DataUse)
    level = max((use.level for use in uses), key=order.index, default=DataUse.NONE)
    counts: dict[str, int] = {}
    for use in uses:
        for name, count in use.counts.items():
            counts[name] = max(count, counts.get(name, 0))
    return Use(level, counts)


@dataclass(frozen=True, slots=True)
class Grid:
    """A uniform integer grid for weights whose zero is a code; by default the paper's.

    The paper's (arXiv:2604.03420) has scale = max|w| / quant_max per block. Rounding to nearest
    therefore never produces ``quant_min``: 3 bits use 7 of 8 codes, 2 bits are ternary. Other
    libraries call max|w| / ((2^b - 1) / 2) symmetric; that is another grid. One that is not
    symmetric has a zero point, the code of the weight zero, beside each scale.
    """

    bits: int = 3  # width of one code
    granularity: Granularity = Granularity.CHANNEL
    group_size: int | None = None  # input features per scale, with granularity "group" only
    scale: Scale = Scale.ABSMAX
    symmetric: bool = True
    scale_dtype: ScaleDtype = ScaleDtype.FLOAT32
    layers: tuple[tuple[str, int], ...] = ()  # weights that have another width, and theirs
    rows: tuple[str, ...] = ()  # weights that groups do not fit, with a scale a row

    def __post_init__(self) -> None:
        object.__setattr__(self, "granularity", Granularity(self.granularity))
        object.__setattr__(self, "scale", Scale(self.scale))
        object.__setattr__(self, "scale_dtype", ScaleDtype(self.scale_dtype))
        for bits in (self.bits, *dict(self.layers).values()):
            if not (type(bits) is int and 2 <= bits <= 8):
                raise SpecError(f"--bits must be 2 to 8, got {bits}")
        others = sorted(pair for pair in self.layers if pair[1] != self.bits)
        object.__setattr__(self, "layers", tuple(others))
        if self.granularity is Granularity.GROUP:
            if self.group_size is None:
                raise SpecError("--granularity group needs --group-size")
            _at_least("group_size", self.group_size, 1)
        elif self.group_size is not None:
            raise SpecError(f"--group-size {self.group_size} goes with --granularity group")
        if self.scale is Scale.MSE_FULL and not self.symmetric:
            raise SpecError(
                "--scale mse-full is for symmetric grids",
                hint="With --asymmetric every code is in use anyway: --scale mse.",
            )

    @property
    def quant_min(self) -> int:
        """The smallest code; ``mse`` clips to the same value at either end, as absmax does."""
        mirrored = self.symmetric and self.scale is Scale.MSE
        return -self.quant_max if mirrored else -(1 << (self.bits - 1))

    @property
    def quant_max(self) -> int:
        """The largest code."""
        return (1 << (self.bits - 1)) - 1

    def of(self, name: str) -> Self:
        """The grid of one weight, by its name in a state dict."""
        kind, size = self.granularity, self.group_size
        if name in self.rows:
            kind, size = Granularity.CHANNEL, None
        bits = dict(self.layers).get(name, self.bits)
        return replace(self, bits=bits, granularity=kind, group_size=size, layers=(), rows=())

    @property
    def widths(self) -> tuple[int, ...]:
        """Every width that some weight may have, the smallest first."""
        return tuple(sorted({self.bits, *dict(self.layers).values()}))

    def __str__(self) -> str:
        size = f" {self.group_size}" if self.group_size else ""
        kind = "" if self.symmetric else " asymmetric"
        stored = "" if self.scale_dtype is ScaleDtype.FLOAT32 else f" {self.scale_dtype}"
        *most, last = map(str, self.widths)
        bits = f"{', '.join(most)} and {last}" if most else last
        return f"{bits}-bit {self.granularity}{size} {self.scale}{kind}{stored}"

    def to_json(self) -> dict[str, Any]:
        """The grid as the card of a file and the metrics hold it.

        float32 goes without saying, and that all weights have one width and the same blocks.
        """
        facts = {k: str(v) if isinstance(v, StrEnum) else v for k, v in asdict(self).items()}
        if self.scale_dtype is ScaleDtype.FLOAT32:
            del facts["scale_dtype"]
        del facts["layers"], facts["rows"]
        facts |= {"layers": dict(self.layers)} if self.layers else {}
        return facts | ({"rows": list(self.rows)} if self.rows else {})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The grid that a card holds; refuses what this version does not know."""
        try:
            if type(value["symmetric"]) is not bool or not set(value) <= set(cls.__slots__):
                raise ValueError(value)
            words = Granularity(value["granularity"]), value["group_size"], Scale(value["scale"])
            stored = ScaleDtype(value.get("scale_dtype", ScaleDtype.FLOAT32))
            layers = tuple(value.get("layers", {}).items())
            rows = tuple(map(str, value.get("rows", ())))
            return cls(value["bits"], *words, value["symmetric"], stored, layers, rows)
        except (KeyError, ValueError, TypeError, AttributeError, SpecError):
            shown = f"{dict(value)}"
            shown = shown if len(shown) < _SHOWN else f"{shown[:_SHOWN]}..."
            raise SpecError(f"this version of qvec does not know the grid {shown}") from None


UNSAID: Final = {
    Preset.PAPER: Grid(),
    Preset.PLAIN: Grid(symmetric=False),
    Preset.BEST: Grid(scale=Scale.MSE, symmetric=False),
}
"""The grid of a file that was made for none, apart from its bits: unless it is calibrated or
rotated, nothing that clips was the best one in the studies."""


@dataclass(frozen=True, slots=True)
class GridOptions:
    """The grid as a user types it; what is left out, the file's own grid fills in."""

    bits: int | None = None
    granularity: Granularity | None = None
    group_size: int | None = None
    scale: Scale | None = None
    symmetric: bool | None = None
    scale_dtype: ScaleDtype | None = None
    cross: bool = False  # whether the file may have been made for another grid
    preset: Preset = Preset.PAPER  # for a file made for no grid, if neither scale nor zero is said

    def __post_init__(self) -> None:
        self.grid(None if self.bits is not None else Grid())

    @property
    def silent(self) -> bool:
        """Whether neither scale nor zero is said."""
        return self.scale is None and self.symmetric is None

    def grid(self, own: Grid | None) -> Grid:
        """The grid that is meant; SpecError where values are out of range or no bits anywhere.

        ``own``, that which the file was made for, counts as a whole unless bits are typed.
        """
        if self.bits is None and own is None:
            raise SpecError("--bits is missing", hint="The file was not made for a grid.")
        if own is None or self.bits is not None:
            unsaid = own is None and self.silent
            own = replace(UNSAID[self.preset] if unsaid else Grid(), bits=self.bits or 0)
        granularity, size = self.granularity, self.group_size
        if (granularity, size) == (None, None):
            granularity, size = own.granularity, own.group_size
        elif granularity is None:
            granularity = Granularity.GROUP
        return Grid(
            own.bits,
            granularity or own.granularity,
            size,
            self.scale or own.scale,
            own.symmetric if self.symmetric is None else self.symmetric,
            self.scale_dtype or own.scale_dtype,
            own.layers,
            own.rows,
        )


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained; the defaults are the paper's. Twins share all of it."""

    epochs: int = 10
    lr: float = 1e-5  # peak learning rate of AdamW
    weight_decay: float = 0.1  # on every parameter, in one group
    warmup_steps: int = 500  # linear, then cosine to zero
    clip_grad: float = 1.0  # largest norm of the gradient
    batch_size: int = 128
    smoothing: float = 0.0  # label smoothing
    seed: int = 0  # head initialisation, data order, augmentation
    no_aug: bool = False  # images as evaluation sees them
    amp: bool = False  # bfloat16 autocast; otherwise float32

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("warmup_steps", 0), ("seed", 0)):
            _at_least(name, getattr(self, name), least)
        for name in ("lr", "weight_decay", "clip_grad", "smoothing"):
            value = getattr(self, name)
            if not 0 <= value <= _LARGEST:
                raise SpecError(f"{_flag(name)} must be a finite number from 0 up, got {value}")
        if self.lr == 0:
            raise SpecError("--lr must be above 0")
        if self.smoothing >= 1:
            raise SpecError(f"--smoothing must be below 1, got {self.smoothing}")

    def to_json(self) -> dict[str, Any]:
        """The recipe as cards and metrics hold it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Loading:
    """How images are fetched, drawn and batched."""

    data_dir: str | None = None  # where named data sets lie
    download: bool = False  # whether the network may be asked
    class_map: str | None = None  # file of class names, for heads that do not name theirs
    workers: int = 0  # processes that decode; 0: this one
    batch_size: int = 128
    draw: int = 0  # the seed with which some of many unlabelled images are drawn
    diversify: bool = False  # whether those that somebody took are made to differ

    def __post_init__(self) -> None:
        _at_least("batch_size", self.batch_size, 1)
        _at_least("workers", self.workers, 0)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Images from which a quantizer learns what goes through each layer; labels are not read."""

    specs: tuple[str, ...]  # data sets, of which the train splits are used
    samples: int = 512  # in all, shared between them, drawn with seed 0
    loading: Loading = field(default_factory=Loading)
    device: str = "auto"
    bias_correction: bool = False  # whether biases make good the mean error of each output
    target: Target = Target.QUANTIZED

    def __post_init__(self) -> None:
        _at_least("calib_samples", self.samples, 1)
        check_pool("--calib", self.specs, self.samples, 1)


def check_pool(flag: str, specs: tuple[str, ...], samples: int, least: int) -> None:
    """Refuses a data set that stands twice, and too few samples; SpecError says which."""
    if twice := [spec for spec in specs if specs.count(spec) > 1]:
        raise SpecError(f"{flag} {twice[0]} stands twice", hint="Once is enough.")
    if samples < least * len(specs):
        raise SpecError(f"{flag}-samples {samples} is too few: {least} a data set at least")


class Listener(Protocol):
    """Who hears what a long operation has to say; cli/show is one."""

    def note(self, text: str, about: str | None = None) -> None:
        """Something the user should know, once: what is said again is left out.

        ``about``: what the note is about, where later notes of it differ in their numbers.
        """

    def progress(self, label: str, done: float, total: float, **facts: float) -> None:
        """How far the whole work is, what it is at, and the numbers of the moment."""

    def milestone(self, text: str) -> None:
        """A part of the work is done, for example an epoch."""


class Silence:
    """A listener that does not listen."""

    def note(self, text: str, about: str | None = None) -> None:
        """Drop it."""

    def progress(self, label: str, done: float, total: float, **facts: float) -> None:
        """Drop it."""

    def milestone(self, text: str) -> None:
        """Drop it."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Hears a stage of longer work, and passes on how far the whole of it is.

    The stage begins when ``start`` of ``total`` is done, and is worth ``size`` of it.
    """

    listener: Listener
    start: float
    size: float
    total: float
    label: str = ""  # what the stage is called, before what it is at

    def note(self, text: str, about: str | None = None) -> None:
        """As the stage says it."""
        self.listener.note(text, about)

    def progress(self, label: str, done: float, total: float, **facts: float) -> None:
        """In units of the whole."""
        place = self.start + self.size * done / total
        label = f"{self.label}: {label}" if self.label else label
        self.listener.progress(label, place, self.total, **facts)

    def milestone(self, text: str) -> None:
        """As the stage says it."""
        self.listener.milestone(text)


_LARGEST = 1e38  # about as much as float32 holds
_SHOWN = 200  # letters of a grid that is not known


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _at_least(name: str, value: int, least: int) -> None:
    if not (isinstance(value, int) and value >= least):
        raise SpecError(f"{_flag(name)} must be at least {least}, got {value}")
    if value >= 1 << 63:
        raise SpecError(f"{_flag(name)} must be below 2^63, got {value}")
