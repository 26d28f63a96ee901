"""The commands whose subject is a quantization vector: extract, moments, patch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvec_cli.cli import show
from qvec_cli.cli.options import (
    AsJson,
    BatchSize,
    CropPct,
    Cross,
    Data,
    DataDir,
    Device,
    Download,
    DryRun,
    Force,
    ImgSize,
    InChans,
    MetricsFile,
    ModelArg,
    ModelName,
    Out,
    Workers,
    wish,
)
from qvec_cli.specs import Loading


def extract(
    donor: Annotated[Path, typer.Argument(readable=False, help="Plain fine-tuned checkpoint.")],
    donor_qat: Annotated[
        Path, typer.Argument(readable=False, help="Its twin, trained with train-qat.")
    ],
    output: Out,
    moments: Annotated[
        Path | None,
        typer.Option(readable=False, help="What qvec moments wrote, for the vector to carry."),
    ] = None,
    force: Force = False,
    dry_run: DryRun = False,
    metrics: MetricsFile = None,
    as_json: AsJson = False,
) -> None:
    """Write the quantization vector rho = DONOR_QAT - DONOR."""
    from qvec_cli.ops.extract import extract as run

    show.deliver(
        lambda listener: run(
            donor, donor_qat, output, listener, moments=moments, force=force, dry_run=dry_run
        ),
        as_json=as_json,
        inputs=(donor, donor_qat, *((moments,) if moments else ())),
        document=metrics,
        out=output,
        force=force,
        dry_run=dry_run,
    )


def moments(
    checkpoint: Annotated[
        Path, typer.Argument(readable=False, help="Float checkpoint: a donor, or the base.")
    ],
    data: Data,
    output: Out,
    samples: Annotated[
        int, typer.Option(min=1, help="Images of the split, drawn with seed 0; 16 are enough.")
    ] = 64,
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Keep so many eigenpairs of each moment, and its diagonal.",
            show_default="all of it",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Of --data.")] = "train",
    targets: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Weights to look at, in place of the file's own."),
    ] = None,
    data_dir: DataDir = None,
    dataset_download: Download = False,
    workers: Workers = 0,
    batch_size: BatchSize = 128,
    device: Device = "auto",
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
    """Write what each layer of CHECKPOINT sees of images, for others to be quantized on."""
    from qvec_cli.ops.collect import Request, collect

    folder = str(data_dir) if data_dir is not None else None
    loading = Loading(folder, dataset_download and not dry_run, None, workers, batch_size)
    request = Request(
        checkpoint,
        data,
        output,
        samples,
        rank,
        split,
        loading,
        tuple(targets or ()),
        device,
        wish(model, img_size, in_chans, crop_pct, model_arg),
        force,
        dry_run,
    )
    show.deliver(
        lambda listener: collect(request, listener),
        as_json=as_json,
        inputs=(checkpoint,),
        document=metrics,
        out=output,
        force=force,
        dry_run=dry_run,
    )


def patch(
    receiver: Annotated[
        Path, typer.Argument(readable=False, help="Model to make robust to quantization.")
    ],
    rho: Annotated[Path, typer.Argument(readable=False, help="Vector written by extract.")],
    output: Out,
    lam: Annotated[
        str,
        typer.Option(
            "--lambda",
            "-l",
            metavar="NUMBER",
            help="Scaling coefficient, or the JSON file of a sweep.",
        ),
    ] = "1",
    cross_grid: Cross = False,
    force: Force = False,
    dry_run: DryRun = False,
    metrics: MetricsFile = None,
    as_json: AsJson = False,
) -> None:
    """Write RECEIVER + lambda * RHO; the receiver keeps its head."""
    from qvec_cli.ops.patch import Request
    from qvec_cli.ops.patch import patch as run

    request = Request(receiver, rho, output, lam, cross_grid, force, dry_run)
    show.deliver(
        lambda listener: run(request, listener),
        as_json=as_json,
        inputs=(receiver, rho),
        document=metrics,
        out=output,
        force=force,
        dry_run=dry_run,
    )
