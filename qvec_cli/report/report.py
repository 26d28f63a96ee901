"""Files of results as one HTML page: every figure that they make, and every number."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from qvec_cli.checkpoint.replace import replacing
from qvec_cli.errors import QvecError, SpecError
from qvec_cli.outputs.metrics import Metrics, version
from qvec_cli.report.canvas import LAMBDA, Drawing, render
from qvec_cli.report.figures import (
    document_figures,
    grid_figures,
    note_letters,
    require_drawing,
)
from qvec_cli.report.page import Page, Picture, Section, Table, page
from qvec_cli.report.tables import NONE, accuracy, tables_of
from qvec_cli.report.ways import grid_use
from qvec_cli.results.documents import (
    DRAWN,
    Document,
    ResultFiles,
    WaysDocument,
    WaysTable,
    check_apart,
    read,
    stem,
)
from qvec_cli.results.matrix import Matrix
from qvec_cli.results.metrics_document import (
    AgreementResults,
    ComparedResults,
    EvalResults,
    ExtractResults,
    QuantizeResults,
    SweepResults,
    TrainingResults,
)
from qvec_cli.results.records import Score
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
    files = read(request.files)
    note_letters(files, listener)
    sections = tuple(_sections(files))
    content = page(
        Page(
            request.title,
            _lead(files),
            sections,
            {"schema": 1, "files": [{"path": path, "content": raw} for path, raw in files.raw]},
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
            for matrix in files.matrices
        ],
    }
    return Metrics(
        "report", files.inputs, {"title": request.title}, results, _use(files), started=started
    )


def _lead(files: ResultFiles) -> str:
    """What the page is of, in a sentence."""
    parts = []
    for matrix in files.matrices:
        sizes = f"{len(matrix.receivers)} receivers and {len(matrix.donors)} donors"
        parts.append(f"a transfer grid of {sizes} on {matrix.grid} ({matrix.method})")
    for kind, (_, one, several) in DRAWN.items():
        if kind is not Matrix and (count := len(files.of(kind))):
            parts.append(f"{count} {one if count == 1 else several}")
    return f"Drawn from {', '.join(parts)}."


def _use(files: ResultFiles) -> Use:
    training = TrainingResults | ExtractResults
    uses = [row.use for row in files.documents if not isinstance(row.results, training)]
    uses += map(grid_use, files.matrices)
    return spent(*uses)


def _sections(files: ResultFiles) -> Iterator[Section]:
    for matrix in files.matrices:
        drawings = list(grid_figures(replace(files, matrices=(matrix,))))
        notes = tuple(f"Not drawn: {fault}." for fault in drawings if isinstance(fault, QvecError))
        pictures = _pictures([each for each in drawings if isinstance(each, Drawing)])
        yield Section(f"Transfer, {matrix.grid}", pictures, tuple(tables_of(matrix)), notes)
    for kind, title, tables, figured in _PARTS:
        if documents := files.of(kind):
            pictures = _pictures(document_figures(files, kind)) if figured else ()
            yield Section(title, pictures, tables(documents))
    yield Section("Files", (), (_files(files),))


def _pictures(drawings: Iterable[Drawing]) -> tuple[Picture, ...]:
    return tuple(Picture(render(each.figure, "svg"), each.words) for each in drawings)


def _pair(sweep: Document[Any]) -> str:
    """Receiver and donor of a sweep by labels."""
    return f"{sweep.name} from {stem(sweep.inputs[1].path)}"


def _sweeps(sweeps: Sequence[Document[SweepResults]]) -> Table:
    rows = []
    for sweep in sweeps:
        fixed, chosen = sweep.results.zero_shot, sweep.results.chosen
        levels = sweep.results.baselines
        shown = (levels.fp.test, levels.ptq.test, fixed.test, chosen.test)
        kind = f"{sweep.grid}, {sweep.method}"
        rows.append((_pair(sweep), kind, *map(accuracy, shown), f"{chosen.lam:g}", chosen.use))
    head = ("pair", "grid", "float", "plain rounding", f"{LAMBDA} = 1", f"{LAMBDA} chosen", "at")
    caption = "On test: top-1 in % with its standard error"
    return Table(caption, (*head, "the chosen one has used"), tuple(rows))


def _sweep(sweep: Document[SweepResults]) -> Table:
    results, rows = sweep.results, []
    tests = {0.0: results.baselines.ptq.test, results.zero_shot.lam: results.zero_shot.test}
    tests[results.chosen.lam] = results.chosen.test
    for point in sorted(results.curve, key=lambda point: point.lam):
        mark = " chosen" if point.lam == results.chosen.lam else ""
        test = accuracy(tests[point.lam]) if point.lam in tests else NONE
        rows.append((f"{point.lam:g}{mark}", accuracy(point.val), test))
    caption = f"The curve of {_pair(sweep)}, {sweep.grid}"
    return Table(caption, (LAMBDA, "validation", "test"), tuple(rows), folded=True)


def _donors(sweeps: Sequence[Document[AgreementResults]]) -> Table:
    rows = [
        (
            f"{sweep.name} from {stem(row.rho)}",
            f"{sweep.grid}, {sweep.method}",
            sweep.results.measure,
            f"{row.chosen.lam:g}",
            *(f"{100 * share:.1f}" for share in (row.score.removed, row.score.explained)),
            accuracy(row.chosen.test) if row.chosen.test else NONE,
            row.chosen.use,
        )
        for sweep in sweeps
        for row in sweep.results.donors
    ]
    head = ("pair", "grid", "measure", f"{LAMBDA} by agreement", "damage removed, %")
    more = ("explained, %", "top-1 on test, %", "the chosen one has used")
    note = (
        "Damage is the distance of the quantized receiver's answers to the float ones, on proxy "
        "images; labels, where they were given, took no part in the choice."
    )
    return Table("Lambda by agreement, the best donor first", (*head, *more), tuple(rows), note)


def _distances(sweep: Document[AgreementResults]) -> Table:
    results = sweep.results
    rows = [
        (
            stem(row.rho),
            f"{point.lam:g}{' chosen' if point.lam == row.chosen.lam else ''}",
            f"{point.mean:.5g} \N{PLUS-MINUS SIGN} {point.standard_error:.2g}",
            accuracy(point.val) if point.val else NONE,
        )
        for row in results.donors
        for point in sorted(row.curve, key=lambda point: point.lam)
    ]
    caption = f"The curves of {sweep.name}, {sweep.grid}, on {results.proxies.n} proxy images"
    head = ("vector", LAMBDA, f"distance, {results.measure}", "validation")
    return Table(caption, head, tuple(rows), folded=True)


def _models(models: Sequence[Document[QuantizeResults]]) -> Table:
    rows = []
    for model in models:
        results = model.results
        known = [ratio for ratio in results.sqnr_db.values() if ratio is not None]
        spread = f"{min(known):.1f} to {max(known):.1f} dB" if known else NONE
        size = f"{results.bytes_before:,} to {results.bytes_after:,}"
        kind = f"{model.grid}, {model.method}"
        bits = f"{results.bits_per_weight:.3f}"
        rows.append((model.name, kind, bits, size, spread, str(model.use.level)))
    head = ("model", "grid", "bits per weight", "bytes", "signal to noise", "receiver data used")
    return Table("Quantized models", head, tuple(rows))


def _layers(model: Document[QuantizeResults]) -> Table:
    rows = tuple(
        (name, NONE if ratio is None else f"{ratio:.2f}")
        for name, ratio in model.results.ordered.items()
    )
    return Table(f"Each weight of {model.name}, {model.grid}", ("weight", "dB"), rows, folded=True)


def _compared(document: Document[ComparedResults]) -> Table:
    results = document.results
    rows = [
        (
            row.name,
            f"{row.bits_per_weight:.3f}",
            NONE if row.sqnr_db is None else f"{row.sqnr_db:.1f} dB",
            accuracy(row.measured) if row.measured else NONE,
        )
        for row in results.compared
    ]
    if results.fp is not None:
        rows.insert(0, ("float, not quantized", NONE, NONE, accuracy(results.fp)))
    first = results.compared[0] if results.compared else None
    split = next((key for key in ("val", "test", "train") if getattr(first, key, None)), "nothing")
    head = ("grid", "bits per weight", "signal to noise", f"top-1 on {split}, %")
    return Table(document.name, head, tuple(rows), f"Receiver data used: {document.use.level}.")


def _ways(table: WaysTable) -> Table:
    rows = []
    for row in table.ways:
        between = " to ".join(f"{end:.0%}" for end in row.interval) if row.interval else NONE
        closed = NONE if row.gap_closed is None else f"{row.gap_closed:.0%}"
        worse = NONE if row.worse is None else f"{row.worse:.1%}"
        rows.append((row.way, f"{row.top1:.4f}", closed, between, worse, row.data_use or NONE))
    head = ("way", "mean top-1", "gap closed", "95 %", "worse", "receiver data used")
    return Table(table.title, head, tuple(rows))


def _evaluations(documents: Sequence[Document[EvalResults]]) -> Table:
    rows = []
    for document in documents:
        results = document.results
        grid = str(results.grid.grid) if results.grid else "float"
        score = accuracy(Score.of(results.n, results.n_correct))
        level = str(document.use.level)
        rows.append((document.name, results.role or NONE, grid, results.split, score, level))
    head = ("model", "role", "made for", "split", "top-1, %", "receiver data used")
    return Table("Accuracies", head, tuple(rows))


def _trainings(documents: Sequence[Document[TrainingResults]]) -> Table:
    rows = tuple(
        (stem(row.results.output), row.command, f"{row.seconds:,.0f}", row.results.digest)
        for row in documents
    )
    return Table("Runs", ("model", "command", "seconds", "digest"), rows)


def _files(files: ResultFiles) -> Table:
    rows = tuple((row.path, row.kind, str(row.digest)) for row in files.inputs)
    return Table("What the page was drawn from", ("file", "kind", "sha256"), rows, folded=True)


_PARTS: Final[tuple[tuple[type[Any], str, Callable[[Any], tuple[Table, ...]], bool], ...]] = (
    (SweepResults, "Sweeps over lambda", lambda rows: (_sweeps(rows), *map(_sweep, rows)), True),
    (
        AgreementResults,
        "Sweeps without labels",
        lambda rows: (_donors(rows), *map(_distances, rows)),
        True,
    ),
    (QuantizeResults, "Quantized models", lambda rows: (_models(rows), *map(_layers, rows)), True),
    (
        ComparedResults,
        "Grids without data, side by side",
        lambda rows: tuple(map(_compared, rows)),
        False,
    ),
    (
        WaysDocument,
        "Ways to low bits",
        lambda rows: tuple(_ways(table) for row in rows for table in row.results.tables),
        True,
    ),
    (EvalResults, "Evaluations", lambda rows: (_evaluations(rows),), False),
    (TrainingResults, "Training", lambda rows: (_trainings(rows),), False),
)
"""What a section is made of: its documents, its title, its tables, and whether it has figures."""
