"""Lines of JSON that are kept as they are finished, so that a run that was killed goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from qvec_cli.checkpoint.replace import lock, refused, replacing
from qvec_cli.errors import CheckpointError, MismatchError
from qvec_cli.results.matrix import changes
from qvec_cli.results.records import decode

Line = dict[str, Any]


def parse(path: Path, *, torn: bool = False) -> list[Line]:
    """The lines of a file.

    Args:
        path: JSON lines.
        torn: whether a last line without its end, which a kill leaves behind, is dropped.

    Raises:
        CheckpointError: a line that is no JSON object, by its number.
    """
    try:
        raw = path.read_bytes()
    except OSError as fault:
        raise CheckpointError(f"{path}: {(fault.strerror or 'cannot be read').lower()}") from None
    *whole, rest = raw.split(b"\n")
    if rest and not torn:
        raise CheckpointError(
            f"{path}:{len(whole) + 1}: the last line is not whole",
            hint="qvec transfer with --resume finishes what was cut off.",
        )
    return [_object(path, number, text) for number, text in enumerate(whole, start=1)]


def _object(path: Path, number: int, text: bytes) -> Line:
    where = f"{path}:{number}"
    found = decode(text.decode(errors="replace"), where)
    if not isinstance(found.value.get("kind"), str):
        raise CheckpointError(f"{where}: is no line of qvec transfer")
    return dict(found.value)


def key(line: Mapping[str, Any]) -> tuple[str, ...]:
    """What a line tells of; a journal holds one line of each."""
    return tuple(str(line.get(part)) for part in ("kind", "receiver", "donor", "null"))


class Journal:
    """The finished lines of a run, in memory and on disk; a context that holds the file.

    Args:
        path: where they are kept until the run is whole.
        run: its configuration; the first line.

    Raises:
        CheckpointError: another process is writing to it.
    """

    def __init__(self, path: Path, run: Line) -> None:
        self._path, self._run, self._known = path, run, {key(run): run}
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        self._file = self._opened()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            if os.fstat(self._file.fileno()).st_size == 0:  # refused before anything was known
                self._path.unlink(missing_ok=True)
            self._file.close()

    def take(self, source: Path, *, torn: bool = False) -> list[Line]:
        """Adds the lines of another part of the same run, and returns them.

        Raises:
            MismatchError: a part of another run; names what differs.
            CheckpointError: a broken file, or one without a configuration.
        """
        lines = parse(source, torn=torn)
        runs = [line for line in lines if line["kind"] == "run"]
        if not runs and (lines or not torn):
            raise CheckpointError(f"{source}: does not say what run it is of")
        for run in runs:
            if changed := sorted(changes(run, self._run)):
                raise MismatchError(
                    f"{source}: is of another run: its {', '.join(changed)} changed",
                    hint="Start anew with --force, or name another output.",
                )
        self._known |= {key(line): line for line in lines if line["kind"] != "run"}
        return lines

    def start(self) -> None:
        """Writes what is known so far, and is ready for more."""
        old = self._file
        with replacing(self._path, force=True) as file:
            file.write(b"".join(map(encoded, self._known.values())))
        self._file = self._opened()
        if old is not None:
            old.close()

    def add(self, line: Line) -> None:
        """Keeps one more line, at once."""
        assert self._file is not None
        self._known[key(line)] = line
        try:
            self._file.write(encoded(line))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as fault:
            raise refused(self._path, fault) from None

    def get(self, line: Mapping[str, Any]) -> Line | None:
        """The line that tells of the same thing, if it is finished."""
        return self._known.get(key(line))

    def ordered(self, wanted: Iterable[Mapping[str, Any]]) -> Iterator[Line]:
        """The configuration, and the finished ones of the wanted lines in their order."""
        yield self._run
        for each in wanted:
            if found := self.get(each):
                yield found

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


def encoded(line: Line) -> bytes:
    """A line as the file has it."""
    return json.dumps(line, allow_nan=False).encode() + b"\n"
