"""A figure from files of results."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from qvec_cli.checkpoint.replace import replacing
from qvec_cli.errors import SpecError
from qvec_cli.outputs.metrics import Metrics
from qvec_cli.report.canvas import FORMATS, render
from qvec_cli.report.figures import FigureOptions, drawn, note_letters, require_drawing
from qvec_cli.results.documents import check_apart, read
from qvec_cli.specs import Listener


@dataclass(frozen=True, slots=True)
class PlotRequest:
    """What the user asks for."""

    files: tuple[Path, ...]
    out: Path
    wish: FigureOptions
    force: bool = False


def plot(request: PlotRequest, listener: Listener) -> Metrics:
    """Draws and writes one figure; the suffix of the output is its format.

    Raises:
        SpecError: another suffix, or files that do not make the figure that is wished for.
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
    found = read(request.files)
    note_letters(found, listener)
    made = drawn(found, request.wish)
    content = render(made.figure, suffix)
    with replacing(request.out, force=request.force) as file:
        file.write(content)
    wish = request.wish
    parameters = {"receiver": wish.receiver, "donor": wish.donor, "cost": wish.cost}
    results = {
        "output": str(request.out),
        "figure": made.kind,
        "bytes": len(content),
        "words": made.words,
        **made.facts,
    }
    return Metrics("plot", found.inputs, parameters, results, made.use, started=started)
