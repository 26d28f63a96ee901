"""Files of results as one HTML page that holds all it shows: figures, tables and their numbers."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from qvec_cli.checkpoint.json_text import encode
from qvec_cli.checkpoint.replace import check_apart, check_distinct, check_target, replacing
from qvec_cli.errors import QvecError, SpecError
from qvec_cli.outputs.metrics import Metrics, version
from qvec_cli.report import figures, tables
from qvec_cli.report.canvas import Drawing, render
from qvec_cli.report.tables import Table
from qvec_cli.report.verdict import alone, verdicts
from qvec_cli.report.ways import grid_use, table_of
from qvec_cli.results import documents
from qvec_cli.results import metrics_document as metrics
from qvec_cli.results.documents import DRAWN, ResultFiles, WaysDocument
from qvec_cli.results.matrix import Matrix
from qvec_cli.results.records import TransferResults
from qvec_cli.results.summary import summarise
from qvec_cli.results.tidy import rows as tidy_rows
from qvec_cli.results.tidy import write_table
from qvec_cli.specs import Listener, Use, spent
from qvec_cli.tame import counted, tame


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page."""

    title: str
    drawings: tuple[Drawing, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """Files of results, and the page that is to be made of them."""

    files: tuple[Path, ...]
    out: Path
    title: str = "Quantization vectors"
    force: bool = False
    table: Path | None = None  # where all accuracies go as CSV


def report(request: ReportRequest, listener: Listener) -> Metrics:
    """Writes the page.

    Raises SpecError: an output that is no page; CheckpointError: a file that cannot be read or
    written, or files that hold no results at all.
    """
    started = time.perf_counter()
    if request.out.suffix.lower() not in (".html", ".htm", "") or request.out.name == "":
        raise SpecError(f"-o {request.out}: a report is written as .html")
    outputs = [request.out, *([request.table] if request.table else [])]
    check_distinct(outputs)
    for path in outputs:
        check_target(path, force=request.force)
    check_apart(outputs, request.files)
    figures.require_drawing("report")
    files = documents.read(request.files, listener.note)
    figures.note_letters(files, listener)
    sections = tuple(_sections(files))
    data = {"schema": 1, "files": [{"path": path, "content": raw} for path, raw in files.raw]}
    foot = (
        f"Made by qvec {version('qvec')}. The page holds its numbers as JSON, in the element "
        "with the id data, and asks nothing of any server."
    )
    content = page(request.title, _lead(files), sections, data, foot)
    with replacing(request.out, force=request.force) as file:
        file.write(content)
    if request.table is not None:
        write_table(request.table, tidy_rows(files), force=request.force)
    results = {
        "output": str(request.out),
        "bytes": len(content),
        "sections": [section.title for section in sections],
        "figures": sum(len(section.drawings) for section in sections),
        "tables": sum(len(section.tables) for section in sections),
        "grids": [
            {"grid": str(matrix.grid), "runs": matrix.runs, "summary": summarise(matrix)}
            for matrix in files.matrices
        ],
    }
    title = {"title": request.title}
    return Metrics("report", files.inputs, title, results, _use(files), started=started)


def _lead(files: ResultFiles) -> str:
    """What the page is of, in a sentence."""
    parts = []
    for matrix in files.matrices:
        receivers = counted(len(matrix.receivers), "receiver")
        sizes = f"{receivers} and {counted(len(matrix.donors), 'donor')}"
        parts.append(f"a transfer grid of {sizes} on {matrix.grid} ({matrix.method})")
    for kind, (_, one, several) in DRAWN.items():
        if kind is not Matrix and (count := len(files.of(kind))):
            parts.append(f"{count} {one if count == 1 else several}")
    return f"Drawn from {', '.join(parts)}."


def _use(files: ResultFiles) -> Use:
    training = metrics.TrainingResults | metrics.ExtractResults
    uses = [row.use for row in files.documents if not isinstance(row.results, training)]
    return spent(*uses, *map(grid_use, files.matrices))


_PARTS: Final[tuple[tuple[type[Any], str, Callable[[Any], Iterable[Table]]], ...]] = (
    (metrics.SweepResults, "Sweeps over lambda", tables.sweep_tables),
    (metrics.AgreementResults, "Sweeps without labels", tables.agreement_tables),
    (metrics.QuantizeResults, "Quantized models", tables.model_tables),
    (
        metrics.ComparedResults,
        "Grids without data, side by side",
        lambda rows: map(tables.compared_table, rows),
    ),
    (
        WaysDocument,
        "Ways to low bits",
        lambda rows: (tables.ways_table(table) for row in rows for table in row.results.tables),
    ),
    (metrics.AdviceResults, "Advice", tables.advice_tables),
    (
        TransferResults,
        "Summaries of grids",
        lambda rows: (tables.ways_table(table_of(row)) for row in rows),
    ),
    (metrics.EvalResults, "Evaluations", lambda rows: [tables.evaluation_table(rows)]),
    (metrics.TrainingResults, "Training", lambda rows: [tables.training_table(rows)]),
    (metrics.ExtractResults, "Vectors", lambda rows: [tables.training_table(rows)]),
    (dict, "Other results", lambda rows: [tables.other_table(rows)]),
)
"""What a section is made of: its documents, its title and its tables."""


def _sections(files: ResultFiles) -> Iterator[Section]:
    if shown := tuple(filter(None, (verdicts(files), alone(files)))):
        yield Section("Verdict", (), shown)
    for matrix in files.matrices:
        one = replace(files, matrices=(matrix,))
        yield _section(f"Transfer, {matrix.grid}", one, Matrix, tables.tables_of(matrix))
    for kind, title, tables_for in _PARTS:
        if rows := files.of(kind):
            yield _section(title, files, kind, tables_for(rows))
    yield Section("Files", (), (tables.file_table(files),))


def _section(title: str, files: ResultFiles, kind: type[Any], rows: Iterable[Table]) -> Section:
    """The figures and the tables of a kind; what lacks something for its figure is told."""
    drawings = list(figures.page_figures(files, kind))
    notes = tuple(f"Not drawn: {fault}." for fault in drawings if isinstance(fault, QvecError))
    shown = tuple(each for each in drawings if isinstance(each, Drawing))
    return Section(title, shown, tuple(rows), notes)


def page(title: str, lead: str, sections: Sequence[Section], data: Any, foot: str) -> bytes:
    """The page: no script, no file beside it and no address that a browser would ask.

    The lead stands below the title, the foot at the end; data is what JSON can hold.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qvec_cli", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: tame(value) if type(value) is str else value,  # not what is safe
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    places = itertools.count()
    text = environment.get_template("page.html").render(
        title=title,
        lead=lead,
        sections=sections,
        svg=lambda drawing: inline(render(drawing.figure, "svg"), f"f{next(places)}"),
        data=embedded(data),
        foot=foot,
    )
    return text.encode("utf-8")


def embedded(data: Any) -> str:
    """JSON that a script element can hold: nothing in it ends the element or opens a comment."""
    text = encode(data, sort_keys=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


_DROPPED: Final = re.compile(
    r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>"
    r'|<style .*?</style>| xmlns(?::\w+)?="[^"]*"',
    re.DOTALL,
)
"""A style would speak to the whole page, and a page knows the namespaces."""

_STYLE: Final = "stroke-linejoin: round; stroke-linecap: butt"
"""What the dropped style says of every shape; shapes inherit it."""


def inline(svg: bytes, prefix: str) -> str:
    """A drawing of ``render`` without its head, every id and reference to one prefixed.

    Its letters are paths: text of a user stands in comments only, which are dropped.
    """
    text = _DROPPED.sub("", svg.decode("utf-8")).replace("xlink:href=", "href=")
    text = re.sub(r'(\bid="|\bhref="#|url\(#)', rf"\g<1>{prefix}-", text)
    tag = re.search(r'<svg\b[^>]*?viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>', text)
    assert tag is not None
    width, height = tag.groups()
    paper = float(width) * 96 / 72  # pixels of its size on paper; below two thirds it is scrolled
    style = f"{_STYLE}; max-width: {paper:.0f}px; min-width: {min(paper * 2 / 3, 400):.0f}px"
    opening = f'<svg viewBox="0 0 {width} {height}" style="{style}" '
    return f'{opening}aria-hidden="true" focusable="false">{text[tag.end() :].rstrip()}'
