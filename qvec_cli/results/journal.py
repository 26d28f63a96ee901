"""The journal of a run: its inputs and flags, then its results, each kept as it is finished.

A run that was killed goes on from there with ``--resume``. Sweeps and grids keep lines of JSON, of
which the first, of kind "run", states the inputs and flags. A training keeps tensors, and the card
of that file states the same. Whether something is of the same run is asked here for all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn, Self

from msgspec import Struct, structs

from qvec_cli.checkpoint.json_text import encode
from qvec_cli.checkpoint.json_text import parse as parse_json
from qvec_cli.checkpoint.locate import read_json
from qvec_cli.checkpoint.replace import lock, refused, replacing
from qvec_cli.checkpoint.stop import STOP
from qvec_cli.errors import CheckpointError, FinishedError, MismatchError
from qvec_cli.results.records import Record, decode
from qvec_cli.specs import Listener

Line = dict[str, Any]
_ANY: Final = "*"

_MAY_DIFFER: Final = {
    ("version",),
    ("environment",),
    ("receivers", _ANY, "model"),
    ("receivers", _ANY, "data"),
    ("receivers", _ANY, "qat", "path"),
    ("receivers", _ANY, "baselines", _ANY, "path"),
    ("donors", _ANY, "rho"),
    ("base", "path"),
    ("models", _ANY, "path"),
}
"""Fields of a header that parts of one run may differ in: programs, and paths, which have digests
beside them."""

_SHORT: Final = 60
"""Characters of two values up to which they are shown, and not only the name of their field."""


def differences(stored: Any, current: Any) -> list[str]:
    """The fields in which the headers of two runs differ, but for those that may.

    One text a field: "seed 0 vs 5", or "data digest differs" where values are long.
    """
    return sorted(_different(stored, parse_json(encode(current))))


def is_same_run(path: Path, stored: Any, current: Any, *, force: bool, listener: Listener) -> bool:
    """Whether a file to be resumed is of this run; if not, MismatchError unless ``force``."""
    try:
        _require_same_run(path, stored, current)
    except MismatchError as error:
        if not force:
            raise
        listener.note(f"{error}: starting anew")
        return False
    return True


class _Finished(Struct, frozen=True):
    """What a document of metrics says of what it was made from."""

    command: str
    inputs: list[dict[str, Any]]
    parameters: dict[str, Any]


def check_finished(
    path: Path, command: str, inputs: Iterable[str | None], parameters: Line, listener: Listener
) -> NoReturn:
    """Raises FinishedError: the document there is of this run; MismatchError: it is of another.

    ``inputs`` are digests, in the order of the document.
    """
    done = Record(str(path), read_json(path)).decoded(_Finished)
    stored = {**structs.asdict(done), "inputs": [each.get("digest") for each in done.inputs]}
    current = {"command": command, "inputs": [*inputs], "parameters": parameters}
    is_same_run(path, stored, current, force=False, listener=listener)
    raise FinishedError(f"{path}: done already")


def _require_same_run(path: Path, stored: Any, current: Any) -> None:
    if fields := differences(stored, current):
        raise MismatchError(
            f"{path}: is of another run: {'; '.join(fields)}",
            hint="Repeat that run's flags, name another output, or start anew with --force.",
        )


def _different(old: Any, new: Any, *place: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {*old, *new}:
            yield from _different(old.get(name), new.get(name), *place, name)
    elif old != new and not any(map(partial(_is_below, place), _MAY_DIFFER)):
        values = f"{old} vs {new}"
        yield " ".join((*place, values if len(values) <= _SHORT else "differs"))


def _is_below(place: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a field is at or below one that may differ."""
    pairs = zip(place, pattern, strict=False)
    return len(place) >= len(pattern) and all(mark in (_ANY, name) for name, mark in pairs)


def parse(path: Path, *, torn: bool = False) -> list[Line]:
    """The lines of a journal, or of what an older qvec left of a sweep.

    With ``torn``, a last line without its end, which a kill leaves behind, is dropped. Raises
    CheckpointError for a line that is no JSON object, by its number.
    """
    try:
        raw = path.read_bytes()
    except OSError as fault:
        raise CheckpointError(f"{path}: {(fault.strerror or 'cannot be read').lower()}") from None
    if raw.startswith(b"{\n"):
        return _of_document(path, raw)
    *whole, rest = raw.split(b"\n")
    if rest and not torn:
        raise CheckpointError(
            f"{path}:{len(whole) + 1}: the last line is not whole",
            hint="qvec transfer with --resume finishes what was cut off.",
        )
    return [_object(path, number, text) for number, text in enumerate(whole, start=1)]


def _object(path: Path, number: int, text: bytes) -> Line:
    where = f"{path}:{number}"
    line = decode(text.decode(errors="replace"), where)
    if not isinstance(line.value.get("kind"), str):
        raise CheckpointError(f"{where}: is no line of a journal")
    return dict(line.value)


def _of_document(path: Path, raw: bytes) -> list[Line]:
    """The lines of a sweep from before it had a journal: an object of its header and its scores."""
    document = decode(raw.decode(errors="replace"), str(path))
    run, scores = (document.value.get(key) for key in ("run", "scores"))
    if not (isinstance(run, dict) and isinstance(scores, dict)):
        raise document.fault("is not the state of a sweep", "Start anew with --force.")
    header = {"kind": "run", "command": "sweep-lambda", **run}
    return [header, *({"kind": "score", "name": name, **row} for name, row in scores.items())]


def _identity(line: Mapping[str, Any]) -> tuple[str, ...]:
    """What a line is about; a journal holds one line of each."""
    return tuple(str(line.get(part)) for part in ("kind", "receiver", "donor", "null", "name"))


class Journal:
    """The finished lines of a run, in memory and on disk.

    A context that locks the file, and removes it if no line was finished.

    The first line, ``header``, has the inputs and flags of the run. Raises CheckpointError where
    another process is writing to the file.
    """

    def __init__(self, path: Path, header: Line) -> None:
        self._path, self._header, self._lines = path, header, {_identity(header): header}
        self._file: BinaryIO | None = None
        self._started = False

    def __enter__(self) -> Self:
        try:
            with STOP.guarded():
                self._file = self._opened()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is None:
            return
        with STOP.guarded():
            empty = os.fstat(self._file.fileno()).st_size == 0  # refused before it was started
            if empty or (self._started and len(self._lines) == 1):
                self._path.unlink(missing_ok=True)
            self._file.close()

    def take(self, part: Path) -> list[Line]:
        """Adds the lines of another journal and returns them; errors are those of ``resume``."""
        lines = parse(part)
        for header in _headers(part, lines):
            _require_same_run(part, header, self._header)
        return self._add(lines)

    def resume(self, cut: Path, *, force: bool, listener: Listener) -> list[Line] | None:
        """Adds the lines of a journal that was cut off, if it is of this run.

        With ``force`` one of another run is left, and None returned. Its last line may be torn.
        Raises MismatchError: it is of another run; names what differs; CheckpointError: a broken
        file, or one without a header.
        """
        lines = parse(cut, torn=True)
        is_same = partial(is_same_run, cut, current=self._header, force=force, listener=listener)
        return (
            self._add(lines) if all(map(is_same, _headers(cut, lines) if lines else [])) else None
        )

    def start(self) -> None:
        """Writes what is known so far, and is ready for more."""
        old = self._file
        with replacing(self._path, force=True) as file:
            file.write(b"".join(map(encoded, self._lines.values())))
        self._file, self._started = self._opened(), True
        if old is not None:
            old.close()

    def add(self, line: Line) -> None:
        """Keeps one more line, at once."""
        assert self._file is not None
        self._lines[_identity(line)] = line
        try:
            self._file.write(encoded(line))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as fault:
            raise refused(self._path, fault) from None

    def get(self, line: Mapping[str, Any]) -> Line | None:
        """The finished line about the same thing, if there is one."""
        return self._lines.get(_identity(line))

    def ordered(self, lines: Iterable[Mapping[str, Any]]) -> Iterator[Line]:
        """The header, and those of the lines that are finished, in their order."""
        yield self._header
        for each in lines:
            if finished := self.get(each):
                yield finished

    def _add(self, lines: list[Line]) -> list[Line]:
        self._lines |= {_identity(line): line for line in lines if line["kind"] != "run"}
        return lines

    def _opened(self) -> BinaryIO:
        """The file, locked against others as long as this process lives."""
        try:
            file = self._path.open("ab")
        except OSError as fault:
            raise refused(self._path, fault) from None
        if lock(file.fileno()) is False:
            file.close()
            raise CheckpointError(f"{self._path}: another run is writing to it")
        return file


def _headers(path: Path, lines: list[Line]) -> list[Line]:
    headers = [line for line in lines if line["kind"] == "run"]
    if not headers:
        raise CheckpointError(f"{path}: does not say what run it is of")
    return headers


def encoded(line: Line) -> bytes:
    """A line as the file has it."""
    return encode(line).encode() + b"\n"
