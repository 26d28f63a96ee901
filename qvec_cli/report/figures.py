"""qvec plot: which figure some files of results make, and its file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from qvec_cli.checkpoint.replace import replacing
from qvec_cli.errors import QvecError, SpecError
from qvec_cli.outputs.metrics import Metrics
from qvec_cli.report.bars import draw_bars
from qvec_cli.report.canvas import FORMATS, Drawing, FigureOptions, missing_letters, render
from qvec_cli.report.curve_facts import draw_curves, fitting_in
from qvec_cli.report.heatmap import draw_heatmap
from qvec_cli.report.layers import draw_layers
from qvec_cli.report.plane import draw_plane
from qvec_cli.results.documents import DRAWN, ResultFiles, WaysDocument, check_apart, read
from qvec_cli.results.matrix import Matrix
from qvec_cli.results.metrics_document import (
    AgreementResults,
    EvalResults,
    ExtractResults,
    QuantizeResults,
    SweepResults,
    TrainingResults,
)
from qvec_cli.specs import Cost, FigureKind, Listener


@dataclass(frozen=True, slots=True)
class FigureRow:
    """How a figure is drawn, from what, what may stand beside that, and the flags that it reads."""

    draw: Callable[[ResultFiles, FigureOptions], Drawing]
    sources: tuple[type[Any], ...]
    beside: tuple[type[Any], ...] = ()
    flags: tuple[str, ...] = ()


FIGURES: Final[dict[FigureKind, FigureRow]] = {
    FigureKind.HEATMAP: FigureRow(draw_heatmap, (Matrix,)),
    FigureKind.CURVE: FigureRow(
        draw_curves,
        (Matrix, SweepResults, AgreementResults),
        (EvalResults,),
        ("--receiver", "--donor"),
    ),
    FigureKind.PLANE: FigureRow(
        draw_plane, (Matrix,), (TrainingResults, ExtractResults), ("--donor", "--cost seconds")
    ),
    FigureKind.LAYERS: FigureRow(draw_layers, (QuantizeResults,)),
    FigureKind.BARS: FigureRow(draw_bars, (WaysDocument, EvalResults)),
}
"""Every figure; where nothing is said, files make the first whose source they hold."""


@dataclass(frozen=True, slots=True)
class PlotRequest:
    """Files of results, and the figure that is to be drawn of them."""

    files: tuple[Path, ...]
    out: Path
    options: FigureOptions
    force: bool = False


def plot(request: PlotRequest, listener: Listener) -> Metrics:
    """Draws and writes one figure; the suffix of the output is its format.

    Raises:
        SpecError: another suffix, or files that do not make the figure that is asked for.
        CheckpointError: a file that cannot be read or written, or is not of results.
    """
    started = time.perf_counter()
    suffix = request.out.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise SpecError(
            f"-o {request.out}: figures are written as {', '.join('.' + name for name in FORMATS)}"
        )
    check_apart(request.out, request.files, force=request.force)
    require_drawing("plot")
    files, options = read(request.files), request.options
    note_letters(files, listener)
    kind, drawing = drawn(files, options)
    content = render(drawing.figure, suffix)
    with replacing(request.out, force=request.force) as file:
        file.write(content)
    parameters = {"receiver": options.receiver, "donor": options.donor, "cost": options.cost}
    results = {
        "output": str(request.out),
        "figure": kind,
        "bytes": len(content),
        "words": drawing.words,
        **drawing.facts,
    }
    return Metrics("plot", files.inputs, parameters, results, drawing.use, started=started)


def require_drawing(command: str) -> None:
    """Refuses a command whose libraries are not installed.

    Raises:
        QvecError: matplotlib or jinja2 is missing.
    """
    from importlib.util import find_spec

    for name in ("matplotlib", "jinja2"):
        if find_spec(name) is None:
            raise QvecError(
                f"{command}: the package {name} is not installed", hint="pip install 'qvec[plot]'"
            )


def note_letters(files: ResultFiles, listener: Listener) -> None:
    """Says which letters of names figures show as boxes."""
    if letters := missing_letters("".join(dict.fromkeys("".join(files.names)))[:1000]):
        listener.note(f"figures show boxes for letters that DejaVu lacks: {letters[:20]}")


def drawn(files: ResultFiles, options: FigureOptions) -> tuple[FigureKind, Drawing]:
    """The figure that is asked for, or that the files make.

    Raises:
        SpecError: files that make no such figure, hold more than it shows, or lack what it needs.
    """
    kind = options.kind or _first(files)
    row = FIGURES[kind]
    _require_flags(kind, options)
    present = [source for source in row.sources if _holds(files, source)]
    if not present:
        needed = " or ".join(DRAWN[source][0] for source in row.sources)
        raise SpecError(f"--figure {kind} is drawn from {needed}, and none of the files is that")
    if len(present) > 1:
        kinds = " and ".join(DRAWN[source][0] for source in present)
        raise SpecError(f"the files hold {kinds}: draw one at a time")
    for document in files.documents:
        if not isinstance(document.results, (*row.sources, *row.beside)):
            raise SpecError(
                f"{document.file}: a {kind} shows nothing of {DRAWN[type(document.results)][0]}",
                hint="Leave it out, or choose another --figure; qvec report takes all together.",
            )
    if files.matrices and Matrix not in row.sources:
        raise SpecError(f"a {kind} shows nothing of a transfer grid", hint="Leave it out.")
    return kind, row.draw(files, options)


def _first(files: ResultFiles) -> FigureKind:
    """The figure that files make where nothing is said: of a grid its heatmap."""
    for kind, row in FIGURES.items():
        if any(_holds(files, source) for source in row.sources):
            return kind
    raise SpecError(
        f"{files.inputs[0].path}: alone it makes no figure",
        hint="A figure needs a transfer grid, sweeps, quantize --metrics or eval.",
    )


def _holds(files: ResultFiles, source: type[Any]) -> bool:
    return bool(files.matrices) if source is Matrix else bool(files.of(source))


def _require_flags(kind: FigureKind, options: FigureOptions) -> None:
    """Refuses flags that the figure does not read."""
    typed = {
        "--receiver": options.receiver is not None,
        "--donor": options.donor is not None,
        "--cost seconds": options.cost is Cost.SECONDS,
    }
    for flag in (flag for flag, present in typed.items() if present):
        if flag not in FIGURES[kind].flags:
            kinds = " or ".join(name for name, row in FIGURES.items() if flag in row.flags)
            raise SpecError(f"{flag} goes with --figure {kinds}, not {kind}")


def grid_figures(files: ResultFiles) -> Iterator[Drawing | QvecError]:
    """The figures of a whole grid, and why not, where it lacks what one needs."""
    for kind in (FigureKind.HEATMAP, FigureKind.PLANE):
        try:
            yield FIGURES[kind].draw(files, FigureOptions())
        except QvecError as fault:
            yield fault


def document_figures(files: ResultFiles, source: type[Any]) -> Iterator[Drawing]:
    """The figures of all documents of a kind: one for each grid that sweeps were on."""
    documents = files.of(source)
    if source is SweepResults:
        kinds = dict.fromkeys((sweep.grid, sweep.method) for sweep in documents)
        groups = [[s for s in documents if (s.grid, s.method) == kind] for kind in kinds]
        groups = [[*group, *fitting_in(group, files.of(EvalResults))] for group in groups]
    elif source is AgreementResults:
        groups = [[document] for document in documents]
    elif source is WaysDocument:
        groups = [[row] for row in documents if any(table.bars for table in row.results.tables)]
    else:
        groups = [list(documents)] if documents else []
    for group in groups:
        part = replace(files, matrices=(), documents=tuple(group))
        yield drawn(part, FigureOptions())[1]
