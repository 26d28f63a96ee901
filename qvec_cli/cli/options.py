"""Flags that several commands share, in groups, so that a flag means one thing everywhere."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, TypedDict, TypeVar

import typer

from qvec_cli.checkpoint.source import WeightsChoice
from qvec_cli.cli.signature import Adapted, file_path, flag, typed_flags
from qvec_cli.errors import SpecError, did_you_mean
from qvec_cli.inputs.yaml_text import Value, entries, line, value
from qvec_cli.specs import (
    Granularity,
    GridOptions,
    Interpolation,
    Loading,
    Measure,
    Method,
    Part,
    Scale,
    ScaleDtype,
)

if TYPE_CHECKING:
    from qvec_cli.inputs.images import ProxyOptions
    from qvec_cli.model.build import NetworkOptions
    from qvec_cli.model.targets import HeadChoice


Word = TypeVar("Word", bound=StrEnum)
GRID: Final = "Grid"
METHOD: Final = "Method"
IMAGES: Final = "Images"
OUTPUT: Final = "Output"
"""Sections of a help text that single flags stand in, too."""

LAMBDAS = "0:1.5:0.15"
"""The curve that is measured unless another is typed."""

Receiver = Annotated[Path, typer.Argument(help="Model to make robust to quantization.")]

Data = Annotated[
    str,
    typer.Option(
        metavar="SPEC",
        help="An image folder (train/ val/ test/), torch/NAME, hfds/ORG/NAME, or a task "
        "of the paper by name, as FashionMNIST.",
    ),
]


def output_option(text: str, **more: Any) -> Any:
    """The flag -o, with what help says of it and what typer.Option takes beside."""
    return typer.Option("-o", "--output", help=text, rich_help_panel=OUTPUT, **more)


_LISTED: Final = "--help lists the flags of a command."

_TYPED: Final = ("output", "metrics", "force")
"""Flags that no recipe may have: which files come to be, and which may be lost."""


def apply_recipe(context: typer.Context, path: Path | None) -> Path | None:
    """Makes a recipe's values the defaults of the command at hand; flags still win."""
    return _apply(context, path, ())


def _apply(context: typer.Context, path: Path | None, parts: Collection[str]) -> Path | None:
    if path is not None:
        known = {p.name: p.opts for p in context.command.params if p.name and p.opts}
        flags = {opt for opts in known.values() for opt in opts if opt.startswith("--")}
        names = {o.removeprefix("--"): n for n, opts in known.items() for o in opts if o in flags}
        lists = {p.name for p in context.command.params if p.name and p.multiple}
        context.default_map = {**(context.default_map or {})}
        for name, value in load_recipe(path, names, parts).items():
            whole = isinstance(value, str) or name in lists
            context.default_map[name] = value if whole else ",".join(value)
    return path


def apply_grid(context: typer.Context, path: Path) -> Path | None:
    """The same for a grid file, which also says who takes part."""
    from qvec_cli.transfer.grid_file import PARTS

    return _apply(context, path, PARTS)


def load_recipe(path: Path, names: dict[str, str], parts: Collection[str] = ()) -> dict[str, Value]:
    """A recipe, a YAML mapping from flags to values, as parameter names and texts.

    ``names`` has parameters by flag without dashes; ``parts`` are keys that are read elsewhere.
    SpecError for another file, or a key that the command has no flag for.
    """
    values: dict[str, Value] = {}
    for key, node in entries(path):
        if key.value in parts:
            continue
        flag = key.value.replace("_", "-")
        where = line(path, key)
        if flag in _TYPED:
            raise SpecError(
                f"{where}: --{flag} is for the command line: no file says what is written"
            )
        if flag not in names or flag == "recipe":
            near = did_you_mean(flag, {*names, *parts})
            raise SpecError(f"{where}: {key.value!r} is no flag here", hint=near or _LISTED)
        if names[flag] in values:
            raise SpecError(f"{where}: {key.value!r} stands in it twice")
        values[names[flag]] = value(where, node)
    return values


Recipe = Annotated[
    Path | None,
    typer.Option(
        callback=apply_recipe,
        is_eager=True,
        help="YAML file with defaults for these flags; flags win.",
    ),
]

MethodChoice = Annotated[Method, typer.Option(help="How codes are chosen.", rich_help_panel=METHOD)]

Lambdas = Annotated[
    str,
    typer.Option(
        "--lambdas",
        "-l",
        metavar="LIST",
        help="start:stop:step with the stop included, or 0,0.5,1. 0 always takes part.",
        rich_help_panel="Lambda",
    ),
]

Parts = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Parts of the network whose tensors take part: embed, attn, mlp, norm, bias.",
        show_default="all",
    ),
]

DataDir = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        envvar="QVEC_DATA_DIR",
        help="Where named data sets lie; or the variable QVEC_DATA_DIR.",
        rich_help_panel=IMAGES,
    ),
]


OutputFile = Annotated[Path, output_option("File to write.", metavar="FILE", parser=file_path)]

Resume = Annotated[
    bool, typer.Option(help="Go on with a run that was cut off.", rich_help_panel=OUTPUT)
]


def check_device(name: str) -> str:
    """Refuses a word that is no device, before torch is imported to ask it."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise SpecError(f"--device {name!r} is none of auto, cpu, cuda, cuda:N and mps")
    return name


@dataclass(frozen=True, slots=True)
class TargetFlags:
    """Which weights are quantized."""

    targets: list[str] | None = flag(
        None,
        "Weights that are quantized, by name, in place of the file's own; repeat it.",
        metavar="GLOB",
    )
    skip: list[str] | None = flag(
        None, "Weights that are left out of them; repeat it.", metavar="GLOB"
    )
    module: str | None = flag(
        None,
        "A part of a larger model, as vision_tower; nothing outside of it is quantized.",
        metavar="NAME",
    )

    @property
    def patterns(self) -> tuple[str, ...]:
        """All globs, those of --skip with a ! before them, and --module with an @."""
        inside = [f"@{self.module.strip('.')}"] if self.module else []
        return (*globs(self.targets), *(f"!{glob}" for glob in globs(self.skip)), *inside)


@dataclass(frozen=True, slots=True)
class GridFlags:
    """The grid of the quantized weights."""

    heading: ClassVar[str] = GRID
    bits: int | None = flag(
        None, "Width of a code, 2 to 8.", min=2, max=8, show_default="the file's own grid"
    )
    granularity: Granularity | None = flag(
        None,
        "What shares a scale: the matrix, an output row, or --group-size weights of it.",
        show_default="channel",
    )
    group_size: int | None = flag(None, "Input features per scale, with granularity group.", min=1)
    scale: Scale | None = flag(None, "How scales are chosen.", show_default="absmax, the paper's")
    symmetric: bool | None = flag(
        None,
        "Whether zero is code 0, or has a zero point beside each scale.",
        "--symmetric/--asymmetric",
        show_default="symmetric, the paper's",
    )
    scale_dtype: ScaleDtype | None = flag(
        None, "Number format of the scales in a file.", show_default="float32"
    )

    cross_grid: bool = flag(False, "Take what was made for another grid all the same.")

    def options(self) -> GridOptions:
        """The grid as it was typed; SpecError where values do not go together."""
        typed = asdict(self)
        return GridOptions(cross=typed.pop("cross_grid"), **typed)


@dataclass(frozen=True, slots=True)
class ImageFlags:
    """How images are fetched and go through a network."""

    heading: ClassVar[str] = IMAGES
    data_dir: DataDir = None
    dataset_download: bool = flag(False, "Let a named data set be downloaded.")
    batch_size: int = flag(128, "Images per forward pass.", "--batch-size", "-b", min=1)
    workers: int = flag(0, "Processes that decode images; 0: this one.", "--workers", "-j", min=0)
    draw: int = flag(0, "Which images are drawn of many; another number, others.", min=0)
    diversify: bool = flag(
        False, "Change colours and grounds of unlabelled images, and cut them into each other."
    )
    device: str = flag(
        "auto", "cpu, cuda, cuda:N, mps or auto.", callback=check_device, metavar="DEVICE"
    )

    def loading(
        self, *, dry_run: bool, class_map: Path | None = None, batch_size: int | None = None
    ) -> Loading:
        """How images are fetched; a dry run downloads nothing."""
        data_dir = str(self.data_dir) if self.data_dir is not None else None
        classes = str(class_map) if class_map is not None else None
        download = self.dataset_download and not dry_run
        size, workers = batch_size or self.batch_size, self.workers
        return Loading(data_dir, download, classes, workers, size, self.draw, self.diversify)


WholeImages = Annotated[ImageFlags, Adapted(without=("draw", "diversify"))]
"""The same for commands that choose and change no unlabelled images."""

UseEma = Annotated[
    bool | None,
    typer.Option(
        "--use-ema/--no-use-ema",
        help="Take the running average of the weights, where there is one.",
        show_default="--use-ema",
    ),
]

WeightsKey = Annotated[
    str | None,
    typer.Option(
        metavar="KEY", help="Where the weights are in the file: a key, or a word before names."
    ),
]


def check_numbers(param: typer.CallbackParam, text: str | None) -> str | None:
    """Refuses what is no list of finite numbers; SpecError names the flag."""
    try:
        if text is None or (_numbers(text) and all(map(math.isfinite, _numbers(text)))):
            return text
    except ValueError:
        pass
    raise SpecError(f"--{param.name} {text!r} is no list of numbers, as 0.5,0.5,0.5")


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.replace(",", " ").split())


@dataclass(frozen=True, slots=True)
class NetworkFlags:
    """What a file does not say that qvec did not write: its network, its images, its weights."""

    heading: ClassVar[str] = "Files without a card"
    model: str | None = flag(None, "timm's name of the network.")
    model_arg: list[str] | None = flag(
        None, "Argument for timm's constructor; repeat it.", metavar="KEY=VALUE"
    )
    img_size: int | None = flag(None, "Side of the square input.", min=1, metavar="PIXELS")
    in_chans: int | None = flag(None, "Colour channels of the input, 1 to 3.", min=1, max=3)
    num_classes: int | None = flag(None, "Rows of the classifier.", min=0)
    mean: str | None = flag(
        None, "Of pixels between 0 and 1, by channel.", metavar="LIST", callback=check_numbers
    )
    std: str | None = flag(
        None, "Their standard deviation.", metavar="LIST", callback=check_numbers
    )
    interpolation: Interpolation | None = flag(
        None, f"How images are resized: {', '.join(Interpolation)}.", metavar="WORD"
    )
    crop_pct: float | None = flag(
        None, "Share of the image that evaluation crops, 0.01 to 1.", min=0.01, max=1.0
    )
    class_map: Path | None = flag(None, "Class names in the order of the head, one a line.")
    use_ema: UseEma = None
    weights_key: WeightsKey = None

    @property
    def args(self) -> dict[str, Any]:
        """Arguments for timm's constructor; SpecError if one is not KEY=VALUE."""
        return key_values(self.model_arg)

    @property
    def weights(self) -> WeightsChoice:
        """Which weights are meant."""
        return WeightsChoice(use_ema=self.use_ema is not False, key=self.weights_key)

    def options(self) -> NetworkOptions:
        """The network that was named, and how its images are prepared."""
        from qvec_cli.model.build import NetworkOptions

        return NetworkOptions(
            name=self.model,
            num_classes=self.num_classes,
            img_size=self.img_size,
            in_chans=self.in_chans,
            crop_pct=self.crop_pct,
            args=self.args,
            mean=_numbers(self.mean) if self.mean is not None else None,
            std=_numbers(self.std) if self.std is not None else None,
            interpolation=self.interpolation,
            weights=self.weights,
        )


@dataclass(frozen=True, slots=True)
class WeightsFlags:
    """Which of several sets of weights in a file are meant."""

    heading: ClassVar[str] = "Files without a card"
    use_ema: UseEma = None
    weights_key: WeightsKey = None

    @property
    def choice(self) -> WeightsChoice:
        """The same, for whoever opens the file."""
        return WeightsChoice(use_ema=self.use_ema is not False, key=self.weights_key)


@dataclass(frozen=True, slots=True)
class HeadFlags:
    """Which tensors are the classifier's, which is never quantized and in no vector."""

    heading: ClassVar[str] = "Files without a card"
    head: list[str] | None = flag(
        None, "Tensors or modules of the classifier, by name; repeat it.", metavar="GLOB"
    )
    no_head: bool = flag(False, "The network has no classifier.", "--no-head")

    def options(self) -> HeadChoice:
        """The tensors that were named; SpecError: named, and said that there are none."""
        from qvec_cli.model.targets import HeadChoice

        return HeadChoice(globs(self.head), self.no_head)


@dataclass(frozen=True, slots=True)
class ProxyFlags:
    """Images without labels that are not the receiver's."""

    heading: ClassVar[str] = "Proxy images"
    proxy: list[str] | None = flag(
        None,
        "Images without labels that are not the receiver's: named as --data is, any "
        "folder, generated or noise. Repeat it to mix.",
        metavar="SPEC",
    )
    proxy_samples: int | None = flag(
        None, "How many of them in all, at least 2.", min=2, show_default="256"
    )
    measure: Measure | None = flag(
        None, "How answers are compared.", show_default="both, or features where classes say little"
    )

    def options(self, loading: Loading) -> ProxyOptions:
        """The images that were named; SpecError: none, or too few."""
        from qvec_cli.inputs.images import ProxyOptions

        samples, typed = self.proxy_samples or 256, self.proxy_samples is not None
        return ProxyOptions(listed(self.proxy), samples, loading, fewer=not typed)


def globs(typed: list[str] | None) -> tuple[str, ...]:
    """The globs of a flag that is repeated, or has several between commas."""
    return tuple(
        glob for text in typed or () for glob in list(filter(None, text.split(","))) or [text]
    )


def listed(typed: Iterable[str | Path] | None) -> tuple[str, ...]:
    """The same of data sets and files, unless what was typed is the name of one."""
    texts = list(map(str, typed or ()))
    return tuple(n for t in texts for n in ([t] if Path(t).exists() else globs([t])))


class Writing(TypedDict):
    """The fields of a request that say whether files are replaced, and written at all."""

    force: bool
    dry_run: bool


@dataclass(frozen=True, slots=True)
class OutputFlags:
    """What happens to the output, and how the result is shown."""

    heading: ClassVar[str] = OUTPUT
    force: bool = flag(False, "Replace what exists.", "--force", "-f")
    dry_run: bool = flag(False, "Read headers, say what would be done, and write nothing.")
    metrics: Path | None = flag(None, "Also write the metrics to this JSON file.")
    as_json: bool = flag(False, "Print the metrics as one JSON document.", "--json")
    quiet: bool = flag(False, "Only results and errors: no notes, no progress.", "--quiet", "-q")

    @property
    def for_request(self) -> Writing:
        """What a request takes of them."""
        return {"force": self.force, "dry_run": self.dry_run}


def key_values(pairs: list[str] | None, flag: str = "--model-arg") -> dict[str, Any]:
    """KEY=VALUE texts, or SpecError, as arguments.

    Values are Python literals, true, no, off, null and their like as in YAML, or else text.
    """
    parsed, words = {}, dict.fromkeys(("true", "yes", "on"), True) | {"null": None}
    words |= dict.fromkeys(("false", "no", "off"), False)
    for pair in pairs or ():
        key, sign, value = pair.partition("=")
        if not (key and sign):
            raise SpecError(f"{flag} {pair!r} is not KEY=VALUE")
        try:
            low = value.lower()
            parsed[key] = words[low] if low in words else ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            parsed[key] = value
    return parsed


def chosen_parts(text: str | None) -> tuple[Part, ...]:
    """The parts of a list, in the network's order; none if untyped; SpecError for another word."""
    if text is None:
        return ()
    named = word_list(text, Part, "--parts")
    if not named:
        raise SpecError("--parts names no part", hint=f"Parts are {', '.join(Part)}.")
    return tuple(part for part in Part if part in named)


def word_list(text: str, words: type[Word], flag: str) -> list[Word]:
    """The words of a comma-separated list, each once; SpecError: one that is not known."""
    parts = dict.fromkeys(filter(None, (part.strip() for part in text.split(","))))
    if odd := [part for part in parts if part not in set(words)]:
        raise SpecError(f"{flag} {odd[0]!r} is none of {', '.join(words)}")
    return [words(part) for part in parts]


def refuse(why: str, *groups: object, hint: str | None = None, **flags: object) -> None:
    """Refuses the first of some flags that was typed where it has no meaning, with a SpecError.

    Flags of ``groups`` are typed where they are not their defaults, single ``flags`` where they are
    neither None nor False. ``why`` follows the flag in the message, ``hint`` is the way out.
    """
    typed = [name for name, value in flags.items() if value is not None and value is not False]
    for name in (*typed, *(name for group in groups for name in typed_flags(group))):
        flag = _SPELLED.get(name, f"--{name.replace('_', '-')}")
        raise SpecError(f"{flag} {why}", hint=hint)


_SPELLED: Final = {"output": "-o", "lam": "--lambda"}
"""Parameters whose flags have another name."""
