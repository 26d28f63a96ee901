"""The commands that look at what is there: inspect, plot, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvec_cli.cli import show
from qvec_cli.cli.options import AsJson, Force, MetricsFile, Out
from qvec_cli.errors import SpecError
from qvec_cli.specs import Cost, FigureKind


def inspect(
    file: Annotated[Path, typer.Argument(readable=False, help="Any checkpoint, or - for stdin.")],
    other: Annotated[
        Path | None, typer.Argument(readable=False, help="A second one, to compare.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the tensors with the digest of the card.")
    ] = False,
    lineage: Annotated[bool, typer.Option("--lineage", help="Print the family tree.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what FILE is: kind, architecture, grid, lineage, tensors and norms."""
    from qvec_cli.ops import describe
    from qvec_cli.ops.compare import compare

    if verify + lineage + (other is not None) > 1:
        raise SpecError("--verify, --lineage and a second file are three questions: ask one")
    work = describe.verify if verify else describe.lineage if lineage else describe.describe
    show.deliver(
        lambda heard: compare(file, other, heard) if other else work(file, heard),
        as_json=as_json,
        inputs=(file, other) if other else (file,),
    )


Results = Annotated[
    list[Path],
    typer.Argument(
        readable=False,
        help="JSON of transfer, sweep-lambda, quantize --metrics, eval; - for stdin.",
    ),
]


def plot(
    files: Results,
    output: Out,
    figure: Annotated[
        FigureKind | None,
        typer.Option(
            help="What to draw, where the files leave a choice.", show_default="what they make"
        ),
    ] = None,
    receiver: Annotated[str | None, typer.Option(help="One receiver of a grid, for curve.")] = None,
    donor: Annotated[
        str | None, typer.Option(help="One donor of a grid, for curve and plane.")
    ] = None,
    cost: Annotated[
        Cost, typer.Option(help="What plane counts: images trained on, or seconds.")
    ] = Cost.IMAGES,
    metrics: MetricsFile = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Draw the figure that FILES make: .png, .svg or .pdf."""
    from qvec_cli.ops.figures import Wish
    from qvec_cli.ops.plot import Request
    from qvec_cli.ops.plot import plot as run

    request = Request(tuple(files), output, Wish(figure, receiver, donor, cost), force)
    show.deliver(
        lambda listener: run(request, listener),
        as_json=as_json,
        document=metrics,
        out=output,
        inputs=tuple(files),
        force=force,
    )


def report(
    files: Results,
    output: Out,
    title: Annotated[str, typer.Option(help="Of the page.")] = "Quantization vectors",
    metrics: MetricsFile = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page of all that FILES hold: figures, tables and the numbers as JSON."""
    from qvec_cli.ops.report import Request
    from qvec_cli.ops.report import report as run

    request = Request(tuple(files), output, title, force)
    show.deliver(
        lambda listener: run(request, listener),
        as_json=as_json,
        document=metrics,
        out=output,
        inputs=tuple(files),
        force=force,
    )
