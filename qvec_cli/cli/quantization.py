"""The command that puts a checkpoint onto a low-bit grid: quantize."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from qvec_cli.cli import show
from qvec_cli.cli.options import (
    AsJson,
    Bits,
    CropPct,
    Cross,
    DryRun,
    Force,
    GranularityChoice,
    GroupSize,
    ImgSize,
    InChans,
    MethodChoice,
    MetricsFile,
    ModelArg,
    ModelName,
    ScaleChoice,
    ScaleDtypeChoice,
    Symmetric,
    wish,
)
from qvec_cli.specs import Method, Wanted


def quantize(
    checkpoint: Annotated[Path, typer.Argument(readable=False, help="Float checkpoint.")],
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="PATH",
            help="File to write; or FOLDER/, which transformers loads.",
            show_default=False,
        ),
    ],
    bits: Bits = None,
    granularity: GranularityChoice = None,
    group_size: GroupSize = None,
    scale: ScaleChoice = None,
    symmetric: Symmetric = None,
    scale_dtype: ScaleDtypeChoice = None,
    cross_grid: Cross = False,
    method: MethodChoice = Method.RTN,
    fake: Annotated[
        bool, typer.Option("--fake", help="Write float32 weights on the grid, not packed codes.")
    ] = False,
    targets: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Weights to quantize, in place of the file's own."),
    ] = None,
    model: ModelName = None,
    img_size: ImgSize = None,
    in_chans: InChans = None,
    crop_pct: CropPct = None,
    model_arg: ModelArg = None,
    force: Force = False,
    dry_run: DryRun = False,
    metrics: MetricsFile = None,
    as_json: AsJson = False,
) -> None:
    """Write CHECKPOINT with its linear weights in 2 to 8 bits; the head stays as it is."""
    from qvec_cli.ops.quantize import Request
    from qvec_cli.ops.quantize import quantize as run

    wanted = Wanted(bits, granularity, group_size, scale, symmetric, scale_dtype, cross_grid)
    out = Path(output)
    request = Request(
        checkpoint,
        out,
        wanted,
        method,
        fake,
        tuple(targets or ()),
        force,
        dry_run,
        folder=_is_folder(output),
        wish=wish(model, img_size, in_chans, crop_pct, model_arg),
    )
    show.deliver(
        lambda listener: run(request, listener),
        as_json=as_json,
        inputs=(checkpoint,),
        document=metrics,
        out=out,
        force=force,
        dry_run=dry_run,
    )


def _is_folder(typed: str) -> bool:
    """Whether an output is one: by its last letter, which a path forgets, or on the disk."""
    if typed in ("", "-"):  # a variable that is not set, and stdout
        return False
    try:
        return typed.endswith(os.sep) or Path(typed).is_dir()
    except OSError:  # closed to us, or no name that can be: writing to it will tell
        return False
