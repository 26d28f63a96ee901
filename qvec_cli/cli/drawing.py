"""The commands that draw what others have measured: plot, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvec_cli.cli import show
from qvec_cli.cli.options import AsJson, Force, MetricsFile, Out
from qvec_cli.specs import Cost, FigureKind

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
    from qvec_cli.report.canvas import FigureOptions
    from qvec_cli.report.figures import PlotRequest
    from qvec_cli.report.figures import plot as run

    request = PlotRequest(tuple(files), output, FigureOptions(figure, receiver, donor, cost), force)
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
    from qvec_cli.report.report import ReportRequest
    from qvec_cli.report.report import report as run

    request = ReportRequest(tuple(files), output, title, force)
    show.deliver(
        lambda listener: run(request, listener),
        as_json=as_json,
        document=metrics,
        out=output,
        inputs=tuple(files),
        force=force,
    )
