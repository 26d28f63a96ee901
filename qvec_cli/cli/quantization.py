"""Commands that make what is shipped: quantize, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvec_cli.cli import show
from qvec_cli.cli.options import (
    AsJson,
    Bits,
    Cross,
    DryRun,
    Force,
    GranularityChoice,
    GroupSize,
    MethodChoice,
    MetricsFile,
    Out,
    ScaleChoice,
    ScaleDtypeChoice,
    Symmetric,
)
from qvec_cli.specs import ExportFormat, Method, Wanted


def quantize(
    checkpoint: Annotated[Path, typer.Argument(readable=False, help="Float checkpoint.")],
    output: Out,
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
    force: Force = False,
    dry_run: DryRun = False,
    metrics: MetricsFile = None,
    as_json: AsJson = False,
) -> None:
    """Write CHECKPOINT with its linear weights in 2 to 8 bits; the head stays as it is."""
    from qvec_cli.ops.quantize import Request
    from qvec_cli.ops.quantize import quantize as run

    wanted = Wanted(bits, granularity, group_size, scale, symmetric, scale_dtype, cross_grid)
    request = Request(
        checkpoint, output, wanted, method, fake, tuple(targets or ()), force, dry_run
    )
    show.deliver(
        lambda listener: run(request, listener),
        as_json=as_json,
        inputs=(checkpoint,),
        document=metrics,
        out=output,
        force=force,
        dry_run=dry_run,
    )


def export(
    checkpoint: Annotated[
        Path, typer.Argument(readable=False, help="Packed or float checkpoint of qvec.")
    ],
    output: Out,
    to: Annotated[
        ExportFormat | None,
        typer.Option("--to", help="Format.", show_default="what the name of the output tells"),
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Run what was made, and compare its logits with qvec's.")
    ] = True,
    force: Force = False,
    dry_run: DryRun = False,
    metrics: MetricsFile = None,
    as_json: AsJson = False,
) -> None:
    """Write CHECKPOINT for other programs: an ONNX file, or a folder for timm.

    In ONNX, packed weights stay codes, which onnxruntime multiplies with (MatMulNBits). The input
    is normalised pixels: (x / 255 - mean) / std, with mean and std from the file's metadata.
    """
    from qvec_cli.ops.export import Request
    from qvec_cli.ops.export import export as run

    request = Request(checkpoint, output, to, check, force, dry_run)
    show.deliver(
        lambda listener: run(request, listener),
        as_json=as_json,
        inputs=(checkpoint,),
        document=metrics,
        out=output,
        force=force,
        dry_run=dry_run,
    )
