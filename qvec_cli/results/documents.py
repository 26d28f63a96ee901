"""Files of results, told apart by what they hold: transfer grids, and metrics of a command."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qvec_cli.checkpoint.replace import check_target
from qvec_cli.checkpoint.source import STREAM
from qvec_cli.errors import CheckpointError, MismatchError, SpecError
from qvec_cli.outputs.metrics import SCHEMA, Input
from qvec_cli.results.agreement_sweep import Agreed, read_agreed
from qvec_cli.results.matrix import (
    FLOAT,
    PLAIN,
    ChosenLambda,
    Matrix,
    Measured,
    Point,
    choice_of,
    lines_of,
    parse,
    same_run,
)
from qvec_cli.results.records import Record, Score, decode
from qvec_cli.results.seeds import pooled
from qvec_cli.specs import Grid, Use

MAX_BYTES: Final = 1 << 28
"""Of one file; a grid of 22 x 22 with curves takes 3 million."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """A curve over lambda."""

    file: str
    receiver: str  # the name of its file, without folder and suffix
    donor: str
    digests: tuple[str, ...]  # of the receiver and of the data
    grid: Grid
    method: str
    curve: tuple[Point, ...]
    chosen: ChosenLambda
    unit: ChosenLambda
    baselines: Mapping[str, Measured]
    use: Use


@dataclass(frozen=True, slots=True)
class Layers:
    """How far each quantized weight is from the float one."""

    file: str
    name: str
    grid: Grid
    method: str
    sqnr: Mapping[str, float | None]  # dB by tensor; None: no noise, or no signal
    bits_per_weight: float
    size: tuple[int, int]  # bytes before and after
    use: Use


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The accuracy of one file."""

    file: str
    name: str
    role: str
    grid: Grid | None
    split: str
    score: Score
    data: str | None  # digest
    use: Use


@dataclass(frozen=True, slots=True)
class Compared:
    """What grids without data cost, side by side."""

    file: str
    name: str
    rows: tuple[tuple[str, float, float | None, Score | None], ...]  # grid, bits, dB, accuracy
    fp: Score | None
    split: str
    use: Use


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """What a fine-tuning or a QAT took."""

    file: str
    command: str
    name: str
    digest: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Extraction:
    """Whose difference a vector is."""

    file: str
    digest: str  # of the vector
    donor_qat: str | None


Document = Sweep | Agreed | Layers | Evaluation | Compared | TrainingRecord | Extraction


@dataclass(frozen=True, slots=True)
class Results:
    """All that some files hold."""

    matrices: tuple[Matrix, ...]  # one a grid; runs that ask the same are pooled
    documents: tuple[Document, ...]
    inputs: tuple[Input, ...]
    raw: tuple[tuple[str, Any], ...]  # by file: a document, or the lines of a grid

    @property
    def matrix(self) -> Matrix | None:
        """The grid, if there is one.

        Raises:
            MismatchError: there are several.
        """
        if len(self.matrices) > 1:
            kinds = " and ".join(f"{m.grid} ({len(m.receivers)} receivers)" for m in self.matrices)
            raise MismatchError(
                f"the files are of {len(self.matrices)} grids: {kinds}",
                hint="Draw one at a time; qvec report takes all together.",
            )
        return self.matrices[0] if self.matrices else None

    @property
    def names(self) -> tuple[str, ...]:
        """What figures call receivers, donors and models."""
        found: list[str] = []
        for matrix in self.matrices:
            rows = matrix.baselines.values()
            found += [*matrix.receivers, *matrix.donors, *(key for row in rows for key in row)]
        found += [name for row in self.of(Sweep) for name in (row.receiver, row.donor)]
        found += [name for row in self.of(Agreed) for name in row.names]
        return (*found, *(row.name for row in self.of(Layers)))

    def of(self, kind: type[Any]) -> tuple[Any, ...]:
        """The documents of a kind, in the order of the files."""
        return tuple(document for document in self.documents if isinstance(document, kind))


def read(paths: Iterable[Path]) -> Results:
    """Reads files of results, in any mixture.

    Raises:
        CheckpointError: a file that cannot be read, or holds something else.
        MismatchError: a file with lines of two runs.
        SpecError: the same file twice.
    """
    inputs: list[Input] = []
    raw: list[tuple[str, Any]] = []
    runs: list[list[Record]] = []
    documents: list[Document] = []
    for path in paths:
        content = _content(path)
        digest = hashlib.sha256(content).hexdigest()
        if digest in {known.digest for known in inputs}:
            raise SpecError(f"{path}: stands twice among the files")
        text = _text(content, path)
        whole = _whole(text, str(path))
        if whole is None or "kind" in whole:
            rows = list(lines_of(text, str(path)))
            _add(rows, runs)
            raw.append((str(path), [row.value for row in rows]))
            inputs.append(Input(str(path), "grid", digest))
        else:
            documents.append(_document(whole))
            raw.append((str(path), whole.value))
            inputs.append(Input(str(path), "metrics", digest))
    return Results(pooled(map(parse, runs)), tuple(documents), tuple(inputs), tuple(raw))


def _add(rows: list[Record], runs: list[list[Record]]) -> None:
    """Puts the lines of a file to those of the other shards of its run, if there are some."""
    first = next((row for row in rows if row.value.get("kind") == "run"), None)
    for known in runs:
        if first and any(r.value.get("kind") == "run" and same_run(r, first) for r in known):
            known.extend(rows)
            return
    runs.append(rows)


def check_apart(out: Path, files: tuple[Path, ...], *, force: bool) -> None:
    """Refuses, before any work, an output that could not be written or would replace an input.

    Raises:
        SpecError: the output is one of the inputs.
        CheckpointError: see ``check_target``.
    """
    for path in files:
        if path.exists() and out.exists() and path.samefile(out):
            raise SpecError(f"{out}: is an input, and the output would replace it")
    check_target(out, force=force)


def _content(path: Path) -> bytes:
    try:
        with open(0 if path == STREAM else path, "rb", closefd=path != STREAM) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as fault:
        reason = (fault.strerror or "cannot be read").lower()
        raise CheckpointError(
            f"{path}: {reason}", hint="Results come from transfer, sweep-lambda, eval, quantize."
        ) from None
    if len(content) > MAX_BYTES:
        raise CheckpointError(f"{path}: is larger than {MAX_BYTES:,} bytes")
    return content


def _text(content: bytes, path: Path) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CheckpointError(
            f"{path}: is not text",
            hint="Figures are drawn from JSON: -o or --metrics of a command.",
        ) from None
    if not text.strip():
        raise CheckpointError(f"{path}: is empty")
    return text


def _whole(text: str, where: str) -> Record | None:
    """The file as one JSON object; None: it is lines of such."""
    try:
        return decode(text, where)
    except CheckpointError:
        if text.lstrip().split("\n", 1)[0].strip() == "{":  # indented: one document, and damaged
            raise
        return None


def _document(whole: Record) -> Document:
    command = whole.text("command")
    if whole.whole("schema") != SCHEMA:
        raise whole.fault(f"was written by a newer qvec: its schema is {whole.value['schema']}")
    if command not in _READERS:
        raise whole.fault(
            f"is of qvec {command}, of which nothing is drawn",
            hint=f"Results of {', '.join(('transfer', *_READERS))} are.",
        )
    results = whole.record("results")
    if "plan" in results:
        raise whole.fault("is a plan: nothing was measured", hint="Run it without --dry-run.")
    return _READERS[command](whole, results)


def _name(path: str) -> str:
    return Path(path).stem or path


def _inputs(whole: Record) -> list[Record]:
    found = list(whole.listed("inputs"))
    if not found:
        raise whole.fault("inputs is empty")
    return found


def _digest(record: Record) -> str | None:
    return record.text("digest") if "digest" in record else None


def _use(whole: Record) -> Use:
    use = whole.record("data_use")
    counts = use.record("counts")
    return Use(use.use("level"), {name: counts.whole(name) for name in counts.value})


def _sweep(whole: Record, results: Record) -> Sweep | Agreed:
    if "objective" in results:
        return read_agreed(whole, results, _use(whole))
    files = _inputs(whole)
    if len(files) < 3:
        raise whole.fault("inputs are not a receiver, a vector and a data set")
    rows = results.record("baselines")
    baselines = {
        key: Measured(Score.of(rows.record(key).record("test")), rows.record(key).use())
        for key in (FLOAT, PLAIN)
    }
    parameters = whole.record("parameters")
    points = [
        (row.number("lambda"), Score.of(row.record("val"))) for row in results.listed("curve")
    ]
    tests = {PLAIN: baselines[PLAIN].test}
    chosen = choice_of(results.record("chosen"))
    unit = choice_of(results.record("zero_shot"))
    known = {0.0: tests[PLAIN], unit.lam: unit.test, chosen.lam: chosen.test}
    return Sweep(
        whole.where,
        _name(files[0].text("path")),
        _name(files[1].text("path")),
        (str(_digest(files[0])), str(_digest(files[2]))),
        parameters.grid(),
        parameters.text("method"),
        tuple(Point(lam, val, known.get(lam)) for lam, val in sorted(points, key=lambda p: p[0])),
        chosen,
        unit,
        baselines,
        _use(whole),
    )


def _quantize(whole: Record, results: Record) -> Layers | Compared:
    if "compared" in results:
        return _compared(whole, results)
    ratios = results.record("sqnr_db")
    order = [name for name in results.texts("quantized") if name in ratios.value]  # the network's
    return Layers(
        whole.where,
        _name(_inputs(whole)[0].text("path")),
        whole.record("parameters").grid(),
        whole.record("parameters").text("method"),
        {name: ratios.number(name) if name in ratios else None for name in order},
        results.number("bits_per_weight"),
        (results.whole("bytes_before"), results.whole("bytes_after")),
        _use(whole),
    )


def _compared(whole: Record, results: Record) -> Compared:
    rows = list(results.listed("compared"))
    split = next((s for s in ("val", "test", "train") if rows and s in rows[0]), "")
    return Compared(
        whole.where,
        _name(_inputs(whole)[0].text("path")),
        tuple(
            (
                row.text("name"),
                row.number("bits_per_weight"),
                row.number("sqnr_db") if "sqnr_db" in row else None,
                Score.of(row.record(split)) if split else None,
            )
            for row in rows
        ),
        Score.of(results.record("fp")) if "fp" in results else None,
        split,
        _use(whole),
    )


def _evaluation(whole: Record, results: Record) -> Evaluation:
    files = _inputs(whole)
    return Evaluation(
        whole.where,
        _name(files[0].text("path")),
        results.text("role") if results.value.get("role") else "",
        results.grid() if "grid" in results else None,
        results.text("split"),
        Score.of(results),
        _digest(files[-1]),
        _use(whole),
    )


def _training(whole: Record, results: Record) -> TrainingRecord:
    return TrainingRecord(
        whole.where,
        whole.text("command"),
        _name(results.text("output")),
        results.text("digest"),
        whole.record("timing").number("wall_s"),
    )


def _extraction(whole: Record, results: Record) -> Extraction:
    files = _inputs(whole)
    return Extraction(whole.where, results.text("digest"), _digest(files[-1]))


_READERS: Final[Mapping[str, Callable[[Record, Record], Document]]] = {
    "sweep-lambda": _sweep,
    "quantize": _quantize,
    "eval": _evaluation,
    "finetune": _training,
    "train-qat": _training,
    "extract": _extraction,
}
