"""Files of results as one HTML page: every figure that they make, and every number."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qvec_cli.checkpoint.replace import replacing
from qvec_cli.errors import QvecError, SpecError
from qvec_cli.outputs.metrics import Metrics
from qvec_cli.outputs.provenance import version
from qvec_cli.report.canvas import LAMBDA, render
from qvec_cli.report.figures import (
    Drawn,
    agreed_figures,
    grid_figures,
    grid_use,
    layer_figures,
    note_letters,
    require_drawing,
    sweep_figures,
)
from qvec_cli.report.page import Page, Picture, Section, Table, page
from qvec_cli.report.tables import NONE, accuracy, tables_of
from qvec_cli.results.agreement_sweep import Agreed
from qvec_cli.results.documents import (
    Compared,
    Evaluation,
    Extraction,
    Layers,
    Results,
    Sweep,
    TrainingRecord,
    check_apart,
    read,
)
from qvec_cli.results.matrix import FLOAT, PLAIN
from qvec_cli.results.summary import summarise
from qvec_cli.specs import Listener, Use, spent


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """What the user asks for."""

    files: tuple[Path, ...]
    out: Path
    title: str = "Quantization vectors"
    force: bool = False


def report(request: ReportRequest, listener: Listener) -> Metrics:
    """Writes the page.

    Raises:
        SpecError: an output that is no page.
        CheckpointError: a file that cannot be read or written, or is not of results.
    """
    started = time.perf_counter()
    if request.out.suffix.lower() not in (".html", ".htm", "") or request.out.name == "":
        raise SpecError(f"-o {request.out}: a report is written as .html")
    check_apart(request.out, request.files, force=request.force)
    require_drawing("report")
    found = read(request.files)
    note_letters(found, listener)
    sections = tuple(_sections(found))
    content = page(
        Page(
            request.title,
            _lead(found),
            sections,
            {"schema": 1, "files": [{"path": path, "content": raw} for path, raw in found.raw]},
            f"Made by qvec {version('qvec')}. The page holds its numbers as JSON, in the element "
            "with the id data, and asks nothing of any server.",
        )
    )
    with replacing(request.out, force=request.force) as file:
        file.write(content)
    results = {
        "output": str(request.out),
        "bytes": len(content),
        "sections": [section.title for section in sections],
        "figures": sum(len(section.pictures) for section in sections),
        "tables": sum(len(section.tables) for section in sections),
        "grids": [
            {"grid": str(matrix.grid), "runs": matrix.runs, "summary": summarise(matrix)}
            for matrix in found.matrices
        ],
    }
    return Metrics(
        "report", found.inputs, {"title": request.title}, results, _use(found), started=started
    )


def _lead(found: Results) -> str:
    """What the page is of, in a sentence."""
    parts = []
    for matrix in found.matrices:
        sizes = f"{len(matrix.receivers)} receivers and {len(matrix.donors)} donors"
        parts.append(f"a transfer grid of {sizes} on {matrix.grid} ({matrix.method})")
    for kind, one, more in _NAMES:
        if count := len(found.of(kind)):
            parts.append(f"{count} {one if count == 1 else more}")
    return f"Drawn from {', '.join(parts)}."


_NAMES = (
    (Sweep, "sweep over lambda", "sweeps over lambda"),
    (Agreed, "sweep without labels", "sweeps without labels"),
    (Layers, "quantized model", "quantized models"),
    (Compared, "comparison of grids", "comparisons of grids"),
    (Evaluation, "evaluation", "evaluations"),
    (TrainingRecord, "training run", "training runs"),
    (Extraction, "extraction", "extractions"),
)


def _use(found: Results) -> Use:
    uses = [row.use for row in found.documents if not isinstance(row, TrainingRecord | Extraction)]
    uses += map(grid_use, found.matrices)
    return spent(*uses)


def _sections(found: Results) -> Iterator[Section]:
    for matrix in found.matrices:
        made = list(grid_figures(replace(found, matrices=(matrix,))))
        notes = tuple(f"Not drawn: {fault}." for fault in made if isinstance(fault, QvecError))
        pictures = _pictures([drawn for drawn in made if isinstance(drawn, Drawn)])
        yield Section(f"Transfer, {matrix.grid}", pictures, tuple(tables_of(matrix)), notes)
    if sweeps := found.of(Sweep):
        tables = (_sweeps(sweeps), *map(_sweep, sweeps))
        yield Section("Sweeps over lambda", _pictures(sweep_figures(found)), tables)
    if agreed := found.of(Agreed):
        tables = (_donors(agreed), *map(_distances, agreed))
        yield Section("Sweeps without labels", _pictures(agreed_figures(found)), tables)
    if models := found.of(Layers):
        tables = (_models(models), *map(_layers, models))
        yield Section("Quantized models", _pictures(layer_figures(found)), tables)
    if rows := found.of(Compared):
        yield Section("Grids without data, side by side", (), tuple(map(_compared, rows)))
    if rows := found.of(Evaluation):
        yield Section("Evaluations", (), (_evaluations(rows),))
    if rows := (*found.of(TrainingRecord), *found.of(Extraction)):
        yield Section("Training", (), (_trainings(found.of(TrainingRecord)),))
    yield Section("Files", (), (_files(found),))


def _pictures(made: Iterable[Drawn]) -> tuple[Picture, ...]:
    return tuple(Picture(render(drawn.figure, "svg"), drawn.words) for drawn in made)


def _sweeps(sweeps: Sequence[Sweep]) -> Table:
    rows = [
        (
            f"{sweep.receiver} from {sweep.donor}",
            f"{sweep.grid}, {sweep.method}",
            *(accuracy(sweep.baselines[key].test) for key in (FLOAT, PLAIN)),
            accuracy(sweep.unit.test),
            accuracy(sweep.chosen.test),
            f"{sweep.chosen.lam:g}",
            sweep.chosen.use,
        )
        for sweep in sweeps
    ]
    head = ("pair", "grid", "float", "plain rounding", f"{LAMBDA} = 1", f"{LAMBDA} chosen", "at")
    caption = "On test: top-1 in % with its standard error"
    return Table(caption, (*head, "the chosen one has used"), tuple(rows))


def _sweep(sweep: Sweep) -> Table:
    rows = []
    for point in sweep.curve:
        mark = " chosen" if point.lam == sweep.chosen.lam else ""
        test = accuracy(point.test) if point.test else NONE
        rows.append((f"{point.lam:g}{mark}", accuracy(point.val), test))
    caption = f"The curve of {sweep.receiver} from {sweep.donor}, {sweep.grid}"
    return Table(caption, (LAMBDA, "validation", "test"), tuple(rows), folded=True)


def _donors(sweeps: Sequence[Agreed]) -> Table:
    rows = [
        (
            f"{sweep.receiver} from {row.name}",
            f"{sweep.grid}, {sweep.method}",
            sweep.measure,
            f"{row.chosen.lam:g}",
            *(f"{100 * share:.1f}" for share in (row.score.removed, row.score.explained)),
            accuracy(row.test) if row.test else NONE,
            row.use,
        )
        for sweep in sweeps
        for row in sweep.rows
    ]
    head = ("pair", "grid", "measure", f"{LAMBDA} by agreement", "damage removed, %")
    more = ("explained, %", "top-1 on test, %", "the chosen one has used")
    note = (
        "Damage is the distance of the quantized receiver's answers to the float ones, on proxy "
        "images; labels, where they were given, took no part in the choice."
    )
    return Table("Lambda by agreement, the best donor first", (*head, *more), tuple(rows), note)


def _distances(sweep: Agreed) -> Table:
    rows = [
        (
            row.name,
            f"{point.lam:g}{' chosen' if point.lam == row.chosen.lam else ''}",
            f"{point.mean:.5g} \N{PLUS-MINUS SIGN} {point.standard_error:.2g}",
            accuracy(point.val) if point.val else NONE,
        )
        for row in sweep.rows
        for point in row.curve
    ]
    caption = f"The curves of {sweep.receiver}, {sweep.grid}, on {sweep.images} proxy images"
    head = ("vector", LAMBDA, f"distance, {sweep.measure}", "validation")
    return Table(caption, head, tuple(rows), folded=True)


def _models(models: Sequence[Layers]) -> Table:
    rows = []
    for model in models:
        known = [ratio for ratio in model.sqnr.values() if ratio is not None]
        spread = f"{min(known):.1f} to {max(known):.1f} dB" if known else NONE
        size = f"{model.size[0]:,} to {model.size[1]:,}"
        kind = f"{model.grid}, {model.method}"
        bits = f"{model.bits_per_weight:.3f}"
        rows.append((model.name, kind, bits, size, spread, str(model.use.level)))
    head = ("model", "grid", "bits per weight", "bytes", "signal to noise", "receiver data used")
    return Table("Quantized models", head, tuple(rows))


def _layers(model: Layers) -> Table:
    rows = tuple(
        (name, NONE if ratio is None else f"{ratio:.2f}") for name, ratio in model.sqnr.items()
    )
    return Table(f"Each weight of {model.name}, {model.grid}", ("weight", "dB"), rows, folded=True)


def _compared(found: Compared) -> Table:
    rows = [
        (
            name,
            f"{bits:.3f}",
            NONE if ratio is None else f"{ratio:.1f} dB",
            accuracy(score) if score else NONE,
        )
        for name, bits, ratio, score in found.rows
    ]
    if found.fp is not None:
        rows.insert(0, ("float, not quantized", NONE, NONE, accuracy(found.fp)))
    head = ("grid", "bits per weight", "signal to noise", f"top-1 on {found.split or 'nothing'}, %")
    return Table(found.name, head, tuple(rows), f"Receiver data used: {found.use.level}.")


def _evaluations(found: Sequence[Evaluation]) -> Table:
    rows = tuple(
        (
            row.name,
            row.role or NONE,
            str(row.grid or "float"),
            row.split,
            accuracy(row.score),
            str(row.use.level),
        )
        for row in found
    )
    head = ("model", "role", "made for", "split", "top-1, %", "receiver data used")
    return Table("Accuracies", head, rows)


def _trainings(found: Sequence[TrainingRecord]) -> Table:
    rows = tuple((row.name, row.command, f"{row.seconds:,.0f}", row.digest) for row in found)
    return Table("Runs", ("model", "command", "seconds", "digest"), rows)


def _files(found: Results) -> Table:
    rows = tuple((row.path, row.kind, str(row.digest)) for row in found.inputs)
    return Table("What the page was drawn from", ("file", "kind", "sha256"), rows, folded=True)
