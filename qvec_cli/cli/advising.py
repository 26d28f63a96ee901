"""The command that decides: advise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvec_cli.cli import show
from qvec_cli.cli.options import (
    AsJson,
    BatchSize,
    DataDir,
    Device,
    Download,
    DryRun,
    Force,
    MetricsFile,
    Workers,
    loading_of,
    proxies,
)


def advise(
    receiver: Annotated[Path, typer.Argument(readable=False, help="Model to be quantized.")],
    bits: Annotated[int, typer.Option(min=2, max=8, help="Width of a code.")],
    rho: Annotated[
        list[Path] | None,
        typer.Option(metavar="RHO", readable=False, help="A donor's vector; repeat it."),
    ] = None,
    moments: Annotated[
        Path | None,
        typer.Option(
            readable=False, help="Statistics from qvec moments.", show_default="the vectors' own"
        ),
    ] = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC",
            help="Images without labels that are not the receiver's: named as --data is, or any "
            "folder. Repeat it to mix.",
            show_default="noise",
        ),
    ] = None,
    proxy_samples: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Of them for the candidates, drawn with seed 0; as many others judge.",
            show_default="256",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Labelled images of the receiver, which judge and do not choose."),
    ] = None,
    refine: Annotated[
        int,
        typer.Option(
            min=0, metavar="STEPS", help="Of the refinement that is tried last; 0: none is."
        ),
    ] = 60,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File for the model that is recommended."),
    ] = None,
    data_dir: DataDir = None,
    dataset_download: Download = False,
    batch_size: BatchSize = 128,
    workers: Workers = 0,
    device: Device = "auto",
    force: Force = False,
    dry_run: DryRun = False,
    metrics: MetricsFile = None,
    as_json: AsJson = False,
) -> None:
    """Say how to bring RECEIVER to so many bits without its data, and what that will cost.

    Every way is carried out: grids without data, the vectors, GPTQ on statistics, on noise and on
    --proxy images. As many other images of --proxy then tell which follows the float answers best.
    """
    from qvec_cli.advise.advise import advise as run
    from qvec_cli.advise.setup import AdviseRequest
    from qvec_cli.data.noise import NOISE

    loading = loading_of(data_dir, dataset_download, dry_run, workers, batch_size)
    images = proxies(proxy or [NOISE], proxy_samples, loading)
    named = tuple(rho or ())
    request = AdviseRequest(
        receiver, bits, named, moments, images, data, refine, output, device, force, dry_run
    )
    show.deliver(
        lambda listener: run(request, listener),
        as_json=as_json,
        inputs=(receiver, *named, *([moments] if moments else [])),
        document=metrics,
        out=output,
        force=force,
        dry_run=dry_run,
    )
