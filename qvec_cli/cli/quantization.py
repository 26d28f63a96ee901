"""The command that puts a checkpoint onto a low-bit grid: quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvec_cli.cli import show
from qvec_cli.cli.options import (
    AsJson,
    BatchSize,
    BiasCorrection,
    Bits,
    Calib,
    CalibSamples,
    Cross,
    DataDir,
    Device,
    Download,
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
    Workers,
)
from qvec_cli.errors import SpecError
from qvec_cli.specs import Calibration, Loading, Method, Wanted


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
    calib: Calib = None,
    calib_samples: CalibSamples = 512,
    bias_correction: BiasCorrection = False,
    data_dir: DataDir = None,
    dataset_download: Download = False,
    workers: Workers = 0,
    batch_size: BatchSize = 128,
    device: Device = "auto",
    force: Force = False,
    dry_run: DryRun = False,
    metrics: MetricsFile = None,
    as_json: AsJson = False,
) -> None:
    """Write CHECKPOINT with its linear weights in 2 to 8 bits; the head stays as it is."""
    from qvec_cli.ops.quantize import Request
    from qvec_cli.ops.quantize import quantize as run

    wanted = Wanted(bits, granularity, group_size, scale, symmetric, scale_dtype, cross_grid)
    images = None
    if calib is not None:
        folder = str(data_dir) if data_dir is not None else None
        loading = Loading(folder, dataset_download and not dry_run, None, workers, batch_size)
        images = Calibration(calib, calib_samples, loading, device, bias_correction)
    elif bias_correction:
        raise SpecError("--bias-correction needs images: --calib is missing")
    request = Request(
        checkpoint, output, wanted, method, fake, tuple(targets or ()), images, force, dry_run
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
