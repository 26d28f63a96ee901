"""The commands that measure: eval, sweep-lambda."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvec_cli.cli import show
from qvec_cli.cli.options import (
    AsJson,
    BatchSize,
    Bits,
    ClassMap,
    CropPct,
    Cross,
    Data,
    DataDir,
    Device,
    Download,
    DryRun,
    Force,
    GranularityChoice,
    GroupSize,
    ImgSize,
    InChans,
    Lambdas,
    MethodChoice,
    ModelArg,
    ModelName,
    Out,
    Resume,
    ScaleChoice,
    ScaleDtypeChoice,
    Symmetric,
    Workers,
    wish,
)
from qvec_cli.specs import Loading, Method, Wanted
from qvec_cli.vector.lambdas import parse_lambdas


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(readable=False, help="Float or packed checkpoint.")],
    data: Data,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="JSON file for the metrics.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    model: ModelName = None,
    img_size: ImgSize = None,
    in_chans: InChans = None,
    crop_pct: CropPct = None,
    model_arg: ModelArg = None,
    class_map: ClassMap = None,
    data_dir: DataDir = None,
    dataset_download: Download = False,
    batch_size: BatchSize = 128,
    workers: Workers = 0,
    device: Device = "auto",
    force: Force = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Measure the accuracy of CHECKPOINT; it knows its own architecture."""
    from qvec_cli.ops.evaluate import Request
    from qvec_cli.ops.evaluate import evaluate as run

    named = wish(model, img_size, in_chans, crop_pct, model_arg)
    loading = Loading(
        data_dir=_text(data_dir),
        download=dataset_download and not dry_run,
        class_map=_text(class_map),
        workers=workers,
        batch_size=batch_size,
    )
    request = Request(checkpoint, data, loading, split, named, device, output, dry_run)
    show.deliver(
        lambda listener: run(request, listener),
        as_json=as_json,
        document=output,
        inputs=(checkpoint,),
        force=force,
        dry_run=dry_run,
    )


def sweep_lambda(
    receiver: Annotated[
        Path, typer.Argument(readable=False, help="Model to make robust to quantization.")
    ],
    rho: Annotated[Path, typer.Argument(readable=False, help="Vector written by extract.")],
    data: Data,
    output: Out,
    bits: Bits = None,
    granularity: GranularityChoice = None,
    group_size: GroupSize = None,
    scale: ScaleChoice = None,
    symmetric: Symmetric = None,
    scale_dtype: ScaleDtypeChoice = None,
    cross_grid: Cross = False,
    method: MethodChoice = Method.RTN,
    lambdas: Lambdas = "0:1.5:0.15",
    data_dir: DataDir = None,
    dataset_download: Download = False,
    batch_size: BatchSize = 128,
    workers: Workers = 0,
    device: Device = "auto",
    resume: Resume = False,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Choose lambda for RECEIVER on its validation images, and report it on test."""
    from qvec_cli.ops.sweep import Request, sweep
    from qvec_cli.ops.unfinished import unfinished

    request = Request(
        receiver,
        rho,
        data,
        output,
        parse_lambdas(lambdas),
        Wanted(bits, granularity, group_size, scale, symmetric, scale_dtype, cross_grid),
        Loading(_text(data_dir), dataset_download and not dry_run, None, workers, batch_size),
        method,
        device,
        resume,
        force,
        dry_run,
    )
    show.deliver(
        lambda listener: sweep(request, listener),
        as_json=as_json,
        document=output,
        inputs=(receiver, rho),
        force=force,
        dry_run=dry_run,
        written=lambda: unfinished(output).unlink(missing_ok=True),
    )


def _text(path: Path | None) -> str | None:
    return str(path) if path is not None else None
