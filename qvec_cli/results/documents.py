"""Files of results, told apart by what they hold: grids, tables of ways, metrics of a command."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar

from msgspec import Struct

from qvec_cli.checkpoint.source import STREAM, near_files
from qvec_cli.errors import CheckpointError, MismatchError, SpecError
from qvec_cli.outputs.metrics import SCHEMA, Input
from qvec_cli.results import metrics_document as metrics
from qvec_cli.results.journal import differences
from qvec_cli.results.matrix import Matrix, lines_of, parse, pooled
from qvec_cli.results.records import Name, Record, Share, TransferResults, decode
from qvec_cli.specs import DataUse, Grid, Use
from qvec_cli.tame import counted

R = TypeVar("R")

MAX_BYTES: Final = 1 << 25
"""Of one file; a grid of 22 x 22 with curves takes 3 million."""


class WayRecord(Struct, frozen=True):
    """One way to low bits, as a mean over receivers."""

    way: Name
    top1: Share
    data_use: DataUse | None  # None: the way is no one's to take, such as the best on test
    gap_closed: float | None = None  # share of what the receivers' own QAT gains over rounding
    interval: tuple[float, float] | None = None  # 95 %, of gap_closed
    worse: Share | None = None  # share of receivers beyond a standard error below rounding


class BarLabel(Struct, frozen=True):
    """A way that figures show, and what they call it."""

    way: Name
    label: Name


class WaysTable(Struct, frozen=True):
    """Ways to low bits on one grid; ValueError for a bar or reference that is none of them."""

    title: Name
    ways: tuple[WayRecord, ...]
    bars: tuple[BarLabel, ...] = ()  # in their order; none: figures leave the table out
    reference: str | None = None  # the way that is a line

    def __post_init__(self) -> None:
        known = {row.way for row in self.ways}
        for way in [*(bar.way for bar in self.bars), self.reference]:
            if way is not None and way not in known:
                raise ValueError(f"{way!r} is no way of the table")


class WaysDocument(Struct, frozen=True, tag_field="kind", tag="ways"):
    """The tables of a study: what each way to low bits is worth, and the data that it used."""

    schema: Literal[1]
    title: Name
    tables: tuple[WaysTable, ...]


DRAWN: Final[Mapping[type[Any], tuple[str, str, str]]] = {
    Matrix: ("a transfer grid", "transfer grid", "transfer grids"),
    metrics.SweepResults: ("a sweep", "sweep over lambda", "sweeps over lambda"),
    metrics.AgreementResults: (
        "a sweep by agreement",
        "sweep without labels",
        "sweeps without labels",
    ),
    metrics.QuantizeResults: ("quantize --metrics", "quantized model", "quantized models"),
    metrics.ComparedResults: ("quantize --compare", "comparison of grids", "comparisons of grids"),
    metrics.EvalResults: ("eval", "evaluation", "evaluations"),
    metrics.TrainingResults: ("finetune and train-qat", "training run", "training runs"),
    metrics.ExtractResults: ("extract", "extraction", "extractions"),
    metrics.AdviceResults: ("advise", "receiver advised on", "receivers advised on"),
    TransferResults: ("transfer --metrics", "summary of a grid", "summaries of grids"),
    WaysDocument: ("a table of ways", "table of ways", "tables of ways"),
    dict: ("another command", "other document", "other documents"),
}
"""What files of results are, in the words of messages, as one and as several; dict is the rest."""

_GRIDDED: Final = (
    *(metrics.SweepResults, metrics.AgreementResults, metrics.QuantizeResults),
    TransferResults,
)
"""Results whose parameters name a grid."""

_KINDS: Final = ("run", "receiver", "cell", "alignment", "ways")
"""Of the lines of a grid, and of a table of ways."""


@dataclass(frozen=True, slots=True)
class Document(Generic[R]):
    """The results of one command, and what they were made from."""

    file: str
    results: R
    use: Use
    inputs: tuple[metrics.InputRecord, ...] = ()
    parameters: Any = None  # ``GridParameters``, where the results are of a grid
    command: str = ""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """The first input without folder and suffix: the model; the file where there is none."""
        return stem(self.inputs[0].path if self.inputs else self.file)

    @property
    def label(self) -> str:
        """The name of the metrics file, or of the model where the metrics come down a pipe."""
        return self.name if self.file == "-" else Path(self.file).stem

    @property
    def grid(self) -> Grid:
        """The grid that the results are of."""
        grid: Grid = self.parameters.grid.grid
        return grid

    @property
    def method(self) -> str:
        """How codes were chosen on it."""
        return str(self.parameters.method)


def stem(path: str) -> str:
    """A file without folder and suffix."""
    return Path(path).stem or path


@dataclass(frozen=True, slots=True)
class ResultFiles:
    """All that some files hold."""

    matrices: tuple[Matrix, ...]  # one a grid; runs that ask the same are pooled
    documents: tuple[Document[Any], ...]
    inputs: tuple[Input, ...]
    raw: tuple[tuple[str, Any], ...]  # by file: a document, or the lines of a grid
    runs: tuple[tuple[str, Matrix], ...] = ()  # grids one by one, each with its first file

    @property
    def matrix(self) -> Matrix | None:
        """The grid, if there is one; MismatchError: there are several."""
        if len(self.matrices) > 1:
            sizes = [counted(len(matrix.receivers), "receiver") for matrix in self.matrices]
            grids = [str(matrix.grid) for matrix in self.matrices]
            kinds = " and ".join(f"{g} ({n})" for g, n in zip(grids, sizes, strict=True))
            raise MismatchError(
                f"the files are of {len(self.matrices)} grids: {kinds}",
                hint="Draw one at a time; qvec report takes all together.",
            )
        return self.matrices[0] if self.matrices else None

    @property
    def names(self) -> tuple[str, ...]:
        """What figures call receivers, donors and models."""
        names = [stem(i.path) for document in self.documents for i in document.inputs]
        for matrix in self.matrices:
            rows = matrix.baselines.values()
            names += [*matrix.receivers, *matrix.donors, *(key for row in rows for key in row)]
        for document in self.of(WaysDocument):
            names += [bar.label for table in document.results.tables for bar in table.bars]
        return tuple(names)

    def of(self, kind: type[R]) -> tuple[Document[R], ...]:
        """The documents with results of a kind, in the order of the files."""
        return tuple(row for row in self.documents if isinstance(row.results, kind))


def read(paths: Iterable[Path], note: Callable[[str], None] | None = None) -> ResultFiles:
    """Reads files of results, in any mixture.

    ``note`` hears of each file whose JSON is no result; without it, and where no other file
    remains, that is a fault.

    Raises CheckpointError: a file that cannot be read, or holds something else; MismatchError: a
    file with lines of two runs; SpecError: the same file twice.
    """
    faults: list[CheckpointError] = []
    inputs: list[Input] = []
    raw: list[tuple[str, Any]] = []
    runs: list[list[Record]] = []
    documents: list[Document[Any]] = []
    for path in paths:
        content = _content(path)
        digest = hashlib.sha256(content).hexdigest()
        if digest in {known.digest for known in inputs}:
            raise SpecError(f"{path}: stands twice among the files")
        text = _text(content, path)
        whole = _whole(text, str(path))
        if fault := _strange(whole, text, str(path)):
            faults.append(fault)
        elif whole is not None and whole.value.get("kind", "ways") == "ways":
            documents.append(_ways(whole) if "kind" in whole.value else _document(whole))
            raw.append((str(path), whole.value))
            inputs.append(Input(str(path), "metrics", digest))
        else:
            rows = list(lines_of(text, str(path)))
            _add(rows, runs)
            raw.append((str(path), [row.value for row in rows]))
            inputs.append(Input(str(path), "grid", digest))
    if faults and (note is None or not inputs):
        raise faults[0]
    for fault in faults:
        assert note is not None
        note(f"left out: {fault}")
    grids = tuple((rows[0].where.rpartition(":")[0], parse(rows)) for rows in runs)
    matrices = pooled(matrix for _, matrix in grids)
    return ResultFiles(matrices, tuple(documents), tuple(inputs), tuple(raw), grids)


def _add(rows: list[Record], runs: list[list[Record]]) -> None:
    """Puts the lines of a file to those of the other shards of its run, if there are some."""
    first = next((row for row in rows if row.value.get("kind") == "run"), None)
    for known in runs:
        if first and any(
            r.value.get("kind") == "run" and not differences(r.value, first.value) for r in known
        ):
            known.extend(rows)
            return
    runs.append(rows)


def _content(path: Path) -> bytes:
    try:
        with open(0 if path == STREAM else path, "rb", closefd=path != STREAM) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as fault:
        gone = isinstance(fault, FileNotFoundError)
        reason = "no such file" if gone else (fault.strerror or "cannot be read").lower()
        hint = "Results are JSON that commands wrote with -o or --metrics."
        raise CheckpointError(f"{path}: {reason}", near_files(path) or hint) from None
    if len(content) > MAX_BYTES:
        raise CheckpointError(f"{path}: is larger than {MAX_BYTES:,} bytes")
    return content


def _text(content: bytes, path: Path) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CheckpointError(
            f"{path}: is not text",
            hint="Results are JSON that commands wrote with -o or --metrics.",
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


def _strange(whole: Record | None, text: str, where: str) -> CheckpointError | None:
    """Why JSON is no result of qvec, if it is none."""
    if whole is None:
        return CheckpointError(f"{where}: is a JSON list") if text.lstrip()[:1] == "[" else None
    kind, command, results = (whole.value.get(key) for key in ("kind", "command", "results"))
    if "kind" in whole.value:
        return None if kind in _KINDS else whole.fault("is no grid and no table of ways")
    if not isinstance(command, str):
        return whole.fault("has no command")
    schema = whole.value.get("schema")
    newer = isinstance(schema, int) and schema > SCHEMA
    if command not in metrics.RESULTS and not newer:
        return whole.fault(f"is of qvec {command[:40]!r}, which this version does not know")
    if isinstance(results, dict) and "plan" in results:
        return whole.fault("is a plan: nothing was measured", hint="Run it without --dry-run.")
    return None


def _document(whole: Record) -> Document[Any]:
    """A metrics document, decoded with the struct of its command's results."""
    _require_schema(whole)
    command, results = whole.value["command"], whole.value.get("results")
    present = results if isinstance(results, dict) else {}
    kinds = metrics.RESULTS[command].items()
    kind = next(kind for key, kind in kinds if not key or present.get(key) is not None)
    kind = kind if kind in DRAWN else metrics.Json
    parameters = metrics.GridParameters if kind in _GRIDDED else metrics.Json
    document = whole.decoded(metrics.MetricsDocument[parameters, kind])  # type: ignore[valid-type]
    if len(document.inputs) < (least := 3 if kind is metrics.SweepResults else kind in DRAWN):
        raise whole.fault(f"inputs: {len(document.inputs)} are too few, {least} belong here")
    use, inputs, seconds = document.data_use.use, document.inputs, document.timing.wall_s
    return Document(
        whole.where, document.results, use, inputs, document.parameters, command, seconds
    )


def _ways(whole: Record) -> Document[WaysDocument]:
    """A table of ways, and the most that a way that figures show has used."""
    _require_schema(whole)
    ways = whole.decoded(WaysDocument)
    shown = {(table.title, bar.way) for table in ways.tables for bar in table.bars}
    uses = [
        row.data_use
        for table in ways.tables
        for row in table.ways
        if row.data_use and (table.title, row.way) in shown
    ]
    most = max(uses, key=list(DataUse).index, default=DataUse.NONE)
    return Document(whole.where, ways, Use(most))


def _require_schema(whole: Record) -> None:
    if (schema := whole.value.get("schema")) != SCHEMA:
        raise whole.fault(f"was written by a newer qvec: its schema is {schema}")
