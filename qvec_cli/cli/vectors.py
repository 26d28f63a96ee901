"""The commands whose subject is a quantization vector: extract, combine, patch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvec_cli.cli import show
from qvec_cli.cli.options import (
    AsJson,
    Cross,
    DryRun,
    Force,
    MetricsFile,
    Out,
    Parts,
    chosen_parts,
)
from qvec_cli.specs import Rule


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


def combine(
    rhos: Annotated[
        list[Path],
        typer.Argument(
            metavar="RHO...", readable=False, help="Vectors written by extract or combine."
        ),
    ],
    output: Out,
    rule: Annotated[
        Rule,
        typer.Option(
            "--rule", help="ties and dare drop numbers of each vector first (see --density)."
        ),
    ] = Rule.MEAN,
    mix: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="One number for each vector, for --rule weighted."),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(
            help="Share of a vector that is kept: ties, the largest of each tensor; dare, drawn.",
            show_default="0.2 for ties, 0.1 for dare",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of what dare drops.", show_default="0")
    ] = None,
    parts: Parts = None,
    cross_grid: Cross = False,
    force: Force = False,
    dry_run: DryRun = False,
    metrics: MetricsFile = None,
    as_json: AsJson = False,
) -> None:
    """Write one vector made of several; one alone is itself, under every rule.

    With --parts the other parts are zeros. A --mix scales one vector too.
    """
    from qvec_cli.ops.combine import Request
    from qvec_cli.ops.combine import combine as run
    from qvec_cli.vector.lambdas import parse_mix
    from qvec_cli.vector.rules import Merge

    merge = Merge(rule, parse_mix(mix) if mix is not None else (), density, seed)
    request = Request(tuple(rhos), output, merge, chosen_parts(parts), cross_grid, force, dry_run)
    show.deliver(
        lambda listener: run(request, listener),
        as_json=as_json,
        inputs=tuple(rhos),
        document=metrics,
        out=output,
        force=force,
        dry_run=dry_run,
    )


def patch(
    receiver: Annotated[
        Path, typer.Argument(readable=False, help="Model to make robust to quantization.")
    ],
    rho: Annotated[
        Path, typer.Argument(readable=False, help="Vector written by extract or combine.")
    ],
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
    parts: Parts = None,
    cross_grid: Cross = False,
    force: Force = False,
    dry_run: DryRun = False,
    metrics: MetricsFile = None,
    as_json: AsJson = False,
) -> None:
    """Write RECEIVER + lambda * RHO; the receiver keeps its head."""
    from qvec_cli.ops.patch import Request
    from qvec_cli.ops.patch import patch as run

    request = Request(
        *(receiver, rho, output, lam, cross_grid, force, dry_run), parts=chosen_parts(parts)
    )
    show.deliver(
        lambda listener: run(request, listener),
        as_json=as_json,
        inputs=(receiver, rho),
        document=metrics,
        out=output,
        force=force,
        dry_run=dry_run,
    )
