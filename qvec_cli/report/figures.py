"""qvec plot: which figure some files of results make, and its file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from qvec_cli.checkpoint.replace import check_target, replacing
from qvec_cli.errors import QvecError, SpecError
from qvec_cli.outputs.metrics import Metrics
from qvec_cli.report import canvas, curves
from qvec_cli.report.bars import CHARTS, draw_bars, groups
from qvec_cli.report.canvas import Drawing, FigureOptions
from qvec_cli.report.heatmap import draw_heatmap
from qvec_cli.report.layers import draw_layers
from qvec_cli.report.plane import draw_plane
from qvec_cli.results import metrics_document as metrics
from qvec_cli.results.documents import DRAWN, ResultFiles, read
from qvec_cli.results.matrix import Matrix
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
        curves.draw_curves,
        (Matrix, metrics.SweepResults, metrics.AgreementResults),
        (metrics.EvalResults,),
        ("--receiver", "--donor"),
    ),
    FigureKind.PLANE: FigureRow(
        draw_plane,
        (Matrix,),
        (metrics.TrainingResults, metrics.ExtractResults),
        ("--donor", "--cost seconds"),
    ),
    FigureKind.LAYERS: FigureRow(draw_layers, (metrics.QuantizeResults,)),
    FigureKind.BARS: FigureRow(draw_bars, tuple(CHARTS)),
}
"""Every figure; without --figure, files make the first whose source they hold."""


@dataclass(frozen=True, slots=True)
class PlotRequest:
    """Files of results, and the figure that is to be drawn of them."""

    files: tuple[Path, ...]
    out: Path
    options: FigureOptions = field(default_factory=FigureOptions)
    force: bool = False


def plot(request: PlotRequest, listener: Listener) -> Metrics:
    """Draws and writes one figure; the suffix of the output is its format.

    Raises SpecError: another suffix, or files that do not make the figure of the options;
    CheckpointError: a file that cannot be read or written, or is not of results.
    """
    started = time.perf_counter()
    suffix = request.out.suffix.lower().removeprefix(".")
    if suffix not in canvas.FORMATS:
        formats = ", ".join(f".{name}" for name in canvas.FORMATS)
        raise SpecError(f"-o {request.out}: figures are written as {formats}")
    check_target(request.out, force=request.force)
    require_drawing("plot")
    files, options = read(request.files), request.options
    note_letters(files, listener)
    kind, drawing = drawn(files, options)
    content = canvas.render(drawing.figure, suffix)
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

    Raises QvecError: matplotlib or jinja2 is missing.
    """
    from importlib.util import find_spec

    for name in ("matplotlib", "jinja2"):
        if find_spec(name) is None:
            raise QvecError(
                f"{command}: the package {name} is not installed", hint="pip install 'qvec[plot]'"
            )


def note_letters(files: ResultFiles, listener: Listener) -> None:
    """Says which letters of names figures show as boxes."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family="DejaVu Sans")))
    letters = list(dict.fromkeys("".join(files.names)))[:1000]
    if lacking := [letter for letter in letters if not font.get_char_index(ord(letter))]:
        listener.note(f"figures show boxes for letters that DejaVu lacks: {''.join(lacking[:20])}")


def drawn(files: ResultFiles, options: FigureOptions) -> tuple[FigureKind, Drawing]:
    """The figure of the options, or the one that the files make.

    Raises SpecError: files that make no such figure, hold more than it shows, or lack what it
    needs.
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
    for kind, row in FIGURES.items():
        if any(_holds(files, source) for source in row.sources):
            return kind
    results, command = files.documents[0].results, files.documents[0].command
    kinds = [kind for kind, row in FIGURES.items() if isinstance(results, row.beside)]
    beside = f"It may stand beside others in {' and '.join(kinds)}; " if kinds else ""
    sources = ", ".join(dict.fromkeys(DRAWN[s][0] for row in FIGURES.values() for s in row.sources))
    raise SpecError(
        f"{files.inputs[0].path}: alone {command} makes no figure",
        hint=f"{beside}qvec report has its facts in a table; figures are drawn from {sources}.",
    )


def _holds(files: ResultFiles, source: type[Any]) -> bool:
    return bool(files.matrices if source is Matrix else files.of(source))


def _require_flags(kind: FigureKind, options: FigureOptions) -> None:
    """Refuses flags that the figure does not read."""
    typed = {
        "--receiver": options.receiver is not None,
        "--donor": options.donor is not None,
        "--cost seconds": options.cost is Cost.SECONDS,
    }
    for flag, present in typed.items():
        if present and flag not in FIGURES[kind].flags:
            kinds = " or ".join(name for name, row in FIGURES.items() if flag in row.flags)
            raise SpecError(f"{flag} goes with --figure {kinds}, not {kind}")


def page_figures(files: ResultFiles, source: type[Any]) -> Iterator[Drawing | QvecError]:
    """The figures of a whole grid, or of all documents of a kind; why not, where one lacks what."""
    kinds = (FigureKind.HEATMAP, FigureKind.PLANE) if source is Matrix else (None,)
    matrices = files.matrices if source is Matrix else ()
    for group in _groups(files, source):
        part = replace(files, matrices=matrices, documents=tuple(group))
        for kind in kinds:
            try:
                yield drawn(part, FigureOptions(kind))[1]
            except QvecError as fault:
                yield fault


def _groups(files: ResultFiles, source: type[Any]) -> list[list[Any]]:
    """The documents of each figure: one for each grid that sweeps were on, none beside a matrix."""
    documents = files.of(source)
    if source is metrics.SweepResults:
        kinds = dict.fromkeys((sweep.grid, sweep.method) for sweep in documents)
        parts = [[s for s in documents if (s.grid, s.method) == kind] for kind in kinds]
        beside = files.of(metrics.EvalResults)
        return [[*part, *curves.fitting_in(part, beside)] for part in parts]
    if source is metrics.AgreementResults:
        return [[document] for document in documents]
    if source in CHARTS:
        return groups(files, source)
    return [list(documents)] if source in (Matrix, metrics.QuantizeResults) else []
