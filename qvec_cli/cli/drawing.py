"""The commands that draw what others have measured: plot, report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from qvec_cli.cli import options, show
from qvec_cli.cli.options import OutputFlags
from qvec_cli.cli.signature import Adapted, flag
from qvec_cli.cli.text import Facts, gains_table, size
from qvec_cli.specs import Cost, FigureKind

Results = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...",
        help="JSON of transfer, sweep-lambda, quantize --metrics, eval; - for stdin.",
    ),
]

Writing = Annotated[OutputFlags, Adapted(without=("dry_run",))]


@dataclass(frozen=True, slots=True)
class FigureFlags:
    """Which figure, of what."""

    heading: ClassVar[str] = "Figure"

    figure: FigureKind | None = flag(
        None, "What to draw, where the files leave a choice.", show_default="what they make"
    )
    receiver: str | None = flag(None, "One receiver of a grid, for curve.")
    donor: str | None = flag(None, "One donor of a grid, for curve and plane.")
    cost: Cost = flag(Cost.IMAGES, "What plane counts: images trained on, or seconds.")


def plot(
    files: Results, *, drawing: FigureFlags, output: options.OutputFile, writing: Writing
) -> None:
    """Draw the figure that FILES make: .png, .svg or .pdf.

    Examples:
        qvec plot sweep.json -o sweep.svg
        qvec plot quantized.json --figure layers -o layers.png
    """
    from qvec_cli.report import figures as verb
    from qvec_cli.report.canvas import FigureOptions

    figure = FigureOptions(
        kind=drawing.figure, receiver=drawing.receiver, donor=drawing.donor, cost=drawing.cost
    )
    request = verb.PlotRequest(files=tuple(files), out=output, options=figure, force=writing.force)
    show.deliver(partial(verb.plot, request), plot_text, writing, out=output, inputs=tuple(files))


def plot_text(results: Facts) -> Iterator[str]:
    """Which figure it is, and its caption."""
    yield f"{results['output']}: {results['figure']}, {size(results['bytes'])}"
    yield results["words"]


def report(
    files: Results,
    *,
    title: Annotated[
        str, typer.Option(metavar="TITLE", help="Of the page.", rich_help_panel="Page")
    ] = "Quantization vectors",
    output: options.OutputFile,
    writing: Writing,
) -> None:
    """Write one HTML page of FILES: figures, tables, numbers.

    Examples:
        qvec report sweep.json -o report.html
        qvec report sweep.json quantized.json --title Digits -o report.html
    """
    from qvec_cli.report import page as verb

    request = verb.ReportRequest(files=tuple(files), out=output, title=title, force=writing.force)
    show.deliver(
        partial(verb.report, request), report_text, writing, out=output, inputs=tuple(files)
    )


def report_text(results: Facts) -> Iterator[str]:
    """What the page has, and the table of gains of each grid."""
    counts = [(results[key], key) for key in ("figures", "tables")]
    shown = ", ".join(f"{count} {key if count != 1 else key[:-1]}" for count, key in counts)
    yield f"{results['output']}: {shown}, {size(results['bytes'])}"
    yield f"sections: {', '.join(results['sections'])}"
    for grid in results["grids"]:
        runs = f", {grid['runs']} runs" if grid["runs"] > 1 else ""
        yield f"{grid['grid']}, {grid['summary']['receivers']} receivers{runs}"
        yield from gains_table(grid["summary"])
