"""Options that several commands share, so that a flag means one thing everywhere."""

from __future__ import annotations

import ast
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from qvec_cli.cli import recipe
from qvec_cli.errors import SpecError
from qvec_cli.specs import Granularity, Loading, Measure, Method, Part, Scale, ScaleDtype, Target

if TYPE_CHECKING:
    from qvec_cli.inputs.proxies import ProxyOptions
    from qvec_cli.model.build import NetworkOptions


Word = TypeVar("Word", bound=StrEnum)


Out = Annotated[Path, typer.Option("-o", "--output", help="File to write.", show_default=False)]

Force = Annotated[bool, typer.Option("--force", "-f", help="Replace what exists.")]

DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Read headers, say what would be done, and write nothing."),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print the metrics as one JSON document.")]

MetricsFile = Annotated[
    Path | None, typer.Option("--metrics", help="Also write the metrics to this JSON file.")
]

Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was cut off.")]

Recipe = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        callback=recipe.apply,
        is_eager=True,
        help="YAML file with defaults for these flags; flags win.",
    ),
]


Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="An image folder (train/ val/ test/), torch/NAME, hfds/ORG/NAME, or a task of the "
        "paper by name, as FashionMNIST.",
        show_default=False,
    ),
]

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where named data sets lie.")]

Download = Annotated[
    bool, typer.Option("--dataset-download", help="Let a named data set be downloaded.")
]

ClassMap = Annotated[
    Path | None,
    typer.Option(help="Class names in the order of the head, one a line, for bare files."),
]

Workers = Annotated[
    int, typer.Option("--workers", "-j", min=0, help="Processes that decode images.")
]

BatchSize = Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images per forward.")]


def _device(name: str) -> str:
    """Refuses a word that is no device, before torch is imported to ask it."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise SpecError(f"--device {name!r} is none of auto, cpu, cuda, cuda:N and mps")
    return name


Device = Annotated[str, typer.Option(callback=_device, help="cpu, cuda, mps or auto.")]

ModelName = Annotated[
    str | None, typer.Option("--model", help="timm's name, for a file that does not say.")
]

ImgSize = Annotated[int | None, typer.Option(min=1, help="Side of the square input, pixels.")]

InChans = Annotated[
    int | None, typer.Option(min=1, max=3, help="Colour channels of the input; 3 by default.")
]

CropPct = Annotated[
    float | None, typer.Option(min=0.01, max=1.0, help="Share of the image that is cropped.")
]

ModelArg = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Argument for timm's constructor; repeat it."),
]


Bits = Annotated[
    int | None, typer.Option(min=2, max=8, help="Width of a code.", show_default="the file's own")
]

GranularityChoice = Annotated[
    Granularity | None,
    typer.Option("--granularity", help="What shares a scale.", show_default="channel"),
]

ScaleChoice = Annotated[
    Scale | None,
    typer.Option("--scale", help="How scales are chosen.", show_default="absmax, the paper's"),
]

Symmetric = Annotated[
    bool | None,
    typer.Option(
        "--symmetric/--asymmetric",
        help="Whether zero is code 0, or has a zero point beside each scale.",
        show_default="symmetric, the paper's",
    ),
]

ScaleDtypeChoice = Annotated[
    ScaleDtype | None,
    typer.Option("--scale-dtype", help="How a file holds scales.", show_default="float32"),
]

GroupSize = Annotated[int | None, typer.Option(min=1, help="Input features per scale.")]

LAMBDAS = "0:1.5:0.15"
"""The curve that is measured unless another is typed."""

Lambdas = Annotated[
    str,
    typer.Option(
        "--lambdas",
        "-l",
        metavar="LIST",
        help="start:stop:step with the stop included, or 0,0.5,1. 0 always takes part.",
    ),
]

Cross = Annotated[
    bool, typer.Option("--cross-grid", help="Take what was made for another grid all the same.")
]

Parts = Annotated[
    str | None,
    typer.Option(
        "--parts",
        metavar="LIST",
        help="Parts of the network to use: embed, attn, mlp, norm, bias.",
        show_default="all",
    ),
]

MethodChoice = Annotated[
    Method, typer.Option("--method", help="How codes are chosen; --scale says on which scales.")
]


Proxy = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SPEC",
        help="Images without labels that are not the receiver's: named as --data is, any folder, "
        "or noise. Repeat it to mix.",
        show_default=False,
    ),
]

ProxySamples = Annotated[
    int | None,
    typer.Option(min=2, help="Of them in all, drawn with seed 0.", show_default="256"),
]

MeasureChoice = Annotated[
    Measure | None,
    typer.Option(
        "--measure",
        help="How answers are compared.",
        show_default="kl, or features where classes say little",
    ),
]


Calib = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SPEC",
        help="Images to calibrate with, named as --data is; labels are not read. Repeat it to mix.",
    ),
]

CalibSamples = Annotated[
    int | None,
    typer.Option(min=1, help="Of the train splits in all, drawn with seed 0.", show_default="512"),
]

MomentsFile = Annotated[
    Path | None,
    typer.Option(
        "--moments",
        readable=False,
        help="What qvec moments wrote, or a vector that carries it; in place of images.",
    ),
]

BiasCorrection = Annotated[
    bool, typer.Option("--bias-correction", help="Let biases make good the outputs' mean error.")
]


TargetChoice = Annotated[
    Target,
    typer.Option(
        "--target",
        help="Whose outputs gptq aims at in each layer: those of the float network, or its own "
        "behind the quantized layers.",
    ),
]

Anchor = Annotated[
    Path | None,
    typer.Option(readable=False, help="Vector that is added before, as patch does.", metavar="RHO"),
]

AnchorLambda = Annotated[
    str | None,
    typer.Option("--lambda", "-l", metavar="NUMBER", help="Of --anchor.", show_default="1"),
]

Refine = Annotated[
    int | None,
    typer.Option(
        metavar="STEPS",
        help="Then let scales, biases and norms learn the float network's outputs on --proxy.",
    ),
]


def model_args(pairs: list[str] | None) -> dict[str, Any]:
    """KEY=VALUE texts as arguments; values are Python literals, or else text.

    Raises:
        SpecError: a text without "=".
    """
    parsed = {}
    for pair in pairs or ():
        key, sign, value = pair.partition("=")
        if not (key and sign):
            raise SpecError(f"--model-arg {pair!r} is not KEY=VALUE")
        try:
            parsed[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed[key] = value
    return parsed


def wish(
    model: str | None,
    img_size: int | None,
    in_chans: int | None,
    crop_pct: float | None,
    pairs: list[str] | None,
) -> NetworkOptions | None:
    """The architecture that a user names for a file that does not say; its head tells the classes.

    Raises:
        SpecError: a shape without a name.
    """
    from qvec_cli.model.build import NetworkOptions

    args = model_args(pairs)
    if model is None and (img_size or in_chans or crop_pct or args):
        raise SpecError("--img-size, --in-chans, --crop-pct and --model-arg go with --model")
    return (
        NetworkOptions(model, 0, False, img_size, in_chans or 3, crop_pct, args) if model else None
    )


def loading_of(
    data_dir: Path | None, download: bool, dry_run: bool, workers: int, batch_size: int
) -> Loading:
    """How images are fetched; a dry run downloads nothing."""
    folder = str(data_dir) if data_dir is not None else None
    return Loading(folder, download and not dry_run, None, workers, batch_size)


def refuse_typed(why: str, hint: str | None = None, /, **typed: object) -> None:
    """Refuses the first of some flags that was typed where it has no meaning.

    Args:
        why: what follows the flag in the message.
        hint: the way out.
        **typed: values by parameter name; None and False were not typed.

    Raises:
        SpecError: names the flag.
    """
    for name, value in typed.items():
        if value is not None and value is not False:
            flag = {"output": "-o", "lam": "--lambda"}.get(name, f"--{name.replace('_', '-')}")
            raise SpecError(f"{flag} {why}", hint=hint)


def proxies(specs: list[str] | None, samples: int | None, loading: Loading) -> ProxyOptions:
    """The images that a user names.

    Raises:
        SpecError: none, or too few.
    """
    from qvec_cli.inputs.proxies import ProxyOptions

    return ProxyOptions(tuple(specs or ()), samples or 256, loading)


def chosen_parts(text: str | None) -> tuple[Part, ...]:
    """The parts of a comma-separated list, in the order of the words; of nothing typed, none.

    Raises:
        SpecError: a word that is no part, or no word.
    """
    if text is None:
        return ()
    found = listed(text, Part, "--parts")
    if not found:
        raise SpecError("--parts names no part", hint=f"Parts are {', '.join(Part)}.")
    return tuple(part for part in Part if part in found)


def listed(text: str, words: type[Word], flag: str) -> list[Word]:
    """The words of a comma-separated list, each once.

    Raises:
        SpecError: one that is not known.
    """
    found = []
    for part in dict.fromkeys(filter(None, (part.strip() for part in text.split(",")))):
        if part not in set(words):
            known = ", ".join(words)
            raise SpecError(f"{flag} {part!r} is none of {known}")
        found.append(words(part))
    return found
