"""An input that is not yet read: its tensors, and where their bytes lie (file, stream, memory)."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from qvec_cli.checkpoint.header import MAX_HEADER, Entry, Source, parse_header
from qvec_cli.checkpoint.naming import is_of_transformers, unwrap
from qvec_cli.errors import CheckpointError, SpecError

STREAM: Final = Path("-")
"""Stdin where a command reads, stdout where it writes."""

_CHUNK: Final = 1 << 20

_AHEAD: Final = 16 << 20  # bytes that are asked of the disk at a time


class File:
    """An open regular file, never mapped: a file that shrinks is an error, not a signal.

    ``path`` is what messages call it; ``fd``, open for reading, is closed with the source.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path, self._fd = path, fd
        self.size = os.fstat(fd).st_size
        self._fetched = 0  # how far the kernel has been asked to fetch
        self._stamp = self._look()

    @property
    def identity(self) -> tuple[int, int]:
        """Equal for two names of one file."""
        status = os.fstat(self._fd)
        return status.st_dev, status.st_ino

    def read(self, count: int, offset: int) -> bytes:
        """Exactly so many bytes; CheckpointError where the disk fails or the file has shrunk."""
        self._fetch(offset + count)
        parts = []
        while count:
            try:
                part = os.pread(self._fd, count, offset)
            except OSError as fault:
                raise CheckpointError(f"{self.path}: cannot be read: {fault.strerror}") from None
            if not part:
                raise CheckpointError(f"{self.path}: ended while it was read; was it changed?")
            parts.append(part)
            count, offset = count - len(part), offset + len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def require_unchanged(self) -> None:
        """Refuses a file that somebody has written to since it was opened."""
        if self._look() != self._stamp:
            raise CheckpointError(
                f"{self.path}: was changed while it was read",
                hint="Run the command again when nothing else writes to the file.",
            )

    def dup(self) -> int:
        """Another descriptor of the same file."""
        return os.dup(self._fd)

    def close(self) -> None:
        """Gives the file back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _fetch(self, offset: int) -> None:
        """Lets the kernel fetch from disk what will be read soon, while we compute."""
        if self._fetched < min(offset + _AHEAD // 2, self.size) and hasattr(os, "posix_fadvise"):
            start = max(self._fetched, offset)
            os.posix_fadvise(self._fd, start, _AHEAD, os.POSIX_FADV_WILLNEED)
            self._fetched = start + _AHEAD

    def _look(self) -> tuple[int, int]:
        status = os.fstat(self._fd)
        return status.st_size, status.st_mtime_ns


class Memory:
    """Bytes that are here already."""

    def __init__(self, data: memoryview) -> None:
        self._data, self.size = data, len(data)

    def read(self, count: int, offset: int) -> memoryview:
        """A view of the bytes in memory."""
        return self._data[offset : offset + count]

    def require_unchanged(self) -> None:
        """Nobody else can change it."""

    def close(self) -> None:
        """Nothing to give back."""


def open_file(path: Path) -> File:
    """A file by its path; a stream (``-``, a pipe, ``<(...)``) is first copied to disk.

    CheckpointError: missing, unreadable, a folder. SpecError: no stdin that ``-`` could stand for.
    """
    try:
        fd = _stdin() if path == STREAM else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file", hint=near_files(path)) from None
    except OSError as fault:
        raise CheckpointError(f"{path}: {(fault.strerror or 'cannot be read').lower()}") from None
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return File(path, fd)
    try:
        if stat.S_ISDIR(mode) or stat.S_ISBLK(mode):
            raise CheckpointError(f"{path}: not a file but a folder or a device")
        return File(path, _spooled(path, fd))
    finally:
        os.close(fd)


def _stdin() -> int:
    try:
        if sys.stdin is None or os.isatty(0):
            raise SpecError("- stands for stdin, which is closed or a terminal: pipe a file in")
        return os.dup(0)
    except OSError:
        raise SpecError("- stands for stdin, which is closed: pipe a file in") from None


def _spooled(path: Path, stream: int) -> int:
    """An unnamed temporary file with what a stream holds, at most a byte past its promise.

    The header says how long a safetensors file is, so that an endless stream cannot fill the
    disk, and memory holds a chunk.
    """
    try:
        with tempfile.TemporaryFile() as copy, open(stream, "rb", closefd=False) as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            start += file.read(min(length, MAX_HEADER) if len(start) == 8 else 0)
            copy.write(start)
            left = _promised(start, length) + 1 - len(start)
            while left > 0 and (chunk := file.read(min(left, _CHUNK))):
                copy.write(chunk)
                left -= len(chunk)
            copy.flush()
            return os.dup(copy.fileno())
    except OSError as fault:
        raise CheckpointError(
            f"{path}: the stream cannot be kept in {tempfile.gettempdir()}: {fault.strerror}",
            hint="TMPDIR names another folder.",
        ) from None


def _promised(start: bytes, length: int) -> int:
    """Bytes of the whole file by its header; of what was read, if that is no header."""
    try:
        return parse_header(start[8:], 8 + length)[2]
    except CheckpointError:
        return len(start)


def near_files(path: Path) -> str | None:
    """The hint for a file that is not there: one beside it with a name like it, or a download."""
    import difflib

    try:
        names = [p.name for p in path.parent.iterdir() if p.name != path.name]
    except OSError:
        address = ":" in path.parts[0] if path.parts else False
        return "Of the hub: hf-hub:ORG/NAME; load other files down first." if address else None
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"Did you mean {path.parent / close[0]}?" if close else None


@dataclass(frozen=True, slots=True)
class WeightsChoice:
    """Which of several sets of weights in a file are meant."""

    use_ema: bool = True  # the running average, where a training script keeps it beside the weights
    key: str | None = None  # where they are: a key of the file's dictionary, a word before names


@dataclass(slots=True)
class Contents:
    """An input whose tensors are found and not yet read."""

    entries: dict[str, Entry] = field(default_factory=dict)  # in the order of the data
    sources: list[Source] = field(default_factory=list)  # ``Entry.part`` counts in it
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] | None = None  # config.json beside the weights
    processor: dict[str, Any] | None = None  # preprocessor_config.json beside them
    script: dict[str, Any] = field(default_factory=dict)  # what a training script keeps beside them
    ties: dict[str, str] = field(default_factory=dict)  # as the safetensors library notes them
    aliases: dict[str, str] = field(default_factory=dict)  # tied names, and the one that is kept
    notes: list[str] = field(default_factory=list)  # what the user should know of the reading
    streams: bool = True  # or else is held in memory as a whole

    def add(self, source: Source) -> int:
        """Takes a source, to close later, and returns its number."""
        self.sources.append(source)
        return len(self.sources) - 1

    def merge(self, other: Contents) -> None:
        """Takes the tensors of another part, whose sources are the same list."""
        self.entries |= other.entries
        self.aliases |= other.aliases
        self.ties |= other.ties
        self.metadata = self.metadata or other.metadata
        self.notes += other.notes
        self.streams = self.streams and other.streams

    def select(self, key: str) -> bool:
        """Keeps the tensors behind one word of their names alone; False: there are none."""
        prefix = f"{key}."
        chosen = {n: e for n, e in self.entries.items() if n.startswith(prefix)}
        if chosen:
            self._rename({name: name.removeprefix(prefix) for name in chosen})
        return bool(chosen)

    def strip(self) -> None:
        """Takes away what a wrapper has put before the names, and what is no part of the network.

        Ties are found before, under the names of the file. Where config.json tells a network of
        transformers' own, its names are the file's.
        """
        for dropped, kept in self.ties.items():
            if kept in self.entries and dropped not in self.entries:
                self.aliases[dropped] = kept
        if is_of_transformers(self.config):
            return
        names = unwrap((*self.entries, *self.aliases))
        self._rename(names.names)
        if names.prefix:
            every = "the" if names.strays else "every"
            noun = "names" if names.strays else "name"
            self.notes.append(f"{names.prefix!r} before {every} {noun} is left out")
        if names.strays:
            self.notes.append(f"no part of the network, left out: {_some(names.strays)}")

    def _rename(self, names: Mapping[str, str]) -> None:
        """Gives tensors other names, and drops those that have none; one that is tied stays."""
        entries = {names[n]: entry for n, entry in self.entries.items() if n in names}
        aliases: dict[str, str] = {}
        moved: dict[str, str] = {}  # names that are kept in place of dropped ones
        for dropped, kept in self.aliases.items():
            if dropped in names:
                place = kept if kept in names else moved.setdefault(kept, dropped)
                if place == dropped:
                    entries[names[dropped]] = self.entries[kept]
                else:
                    aliases[names[dropped]] = names[place]
        self.entries, self.aliases = entries, aliases

    @property
    def identities(self) -> list[tuple[int, int]]:
        """What tells files apart that have several names."""
        return [source.identity for source in self.sources if isinstance(source, File)]

    def close(self) -> None:
        """Gives every file back."""
        for source in self.sources:
            source.close()


def _some(names: Sequence[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
