"""The commands whose subject is a quantization vector: extract, patch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvec_cli.cli import show
from qvec_cli.cli.options import AsJson, Cross, DryRun, Force, MetricsFile, Out


def extract(
    donor: Annotated[Path, typer.Argument(readable=False, help="Plain fine-tuned checkpoint.")],
    donor_qat: Annotated[
        Path, typer.Argument(readable=False, help="Its twin, trained with train-qat.")
    ],
    output: Out,
    force: Force = False,
    dry_run: DryRun = False,
    metrics: MetricsFile = None,
    as_json: AsJson = False,
) -> None:
    """Write the quantization vector rho = DONOR_QAT - DONOR."""
    from qvec_cli.ops.extract import extract as run

    show.deliver(
        lambda listener: run(donor, donor_qat, output, listener, force=force, dry_run=dry_run),
        as_json=as_json,
        inputs=(donor, donor_qat),
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
