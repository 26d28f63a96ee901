"""A safetensors file, checked as a whole before any tensor is read, then read block by block."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np

from qvec_cli.checkpoint.card import NO_DIGEST, Card, Kind, refuse_constant
from qvec_cli.checkpoint.digest import Hasher, combine
from qvec_cli.checkpoint.dtypes import FORMATS, Array, to_float32
from qvec_cli.errors import CheckpointError

BLOCK: Final = 1 << 18
"""Elements in a block: memory stays the same for any model, and a block fits into a cache."""

_AHEAD: Final = 16 << 20
"""Bytes between what is read and what is asked of the disk."""

MAX_HEADER: Final = 32 << 20
"""Bytes of header that are parsed; 100,000 tensors need 9 MB."""

_MAX_DIMENSIONS: Final = 64
"""As many as numpy has."""

_FOREIGN: Final = {
    b"PK\x03\x04": "a zip archive, probably a PyTorch pickle (.pt)",
    b"version ": "a Git LFS pointer: run git lfs pull",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x1f\x8b": "gzip-compressed",
    b"GGUF": "a GGUF file",
    b"\x93NUMPY": "a numpy array",
    b"<!DOCTYPE": "an HTML page",
    b"<html": "an HTML page",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor as the header describes it."""

    dtype: str  # a key of FORMATS
    shape: tuple[int, ...]
    start: int = 0  # first byte in the file
    stop: int = 0

    @property
    def floating(self) -> bool:
        """Whether it holds real numbers, and so takes part in arithmetic."""
        return FORMATS[self.dtype].floating

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes its data take."""
        return self.size * FORMATS[self.dtype].numpy.itemsize


class Checkpoint(Mapping[str, Entry]):
    """An open file: a mapping from tensor names, in the order of the file, to entries.

    Args:
        path: a safetensors file, whatever its suffix. Reads never map it into memory.

    Raises:
        CheckpointError: missing, unreadable, or not a whole and valid safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = _open(path)
        try:
            self._size = os.fstat(self._fd).st_size
            self._entries, self.metadata = self._header()
            self.card = Card.from_header(self.metadata)
        except CheckpointError as error:
            self.close()
            raise CheckpointError(f"{path}: {error}", hint=error.hint) from None
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the file back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def kind(self) -> Kind:
        """What the file is; one without a card is taken for a bare checkpoint."""
        return self.card.kind if self.card else Kind.CHECKPOINT

    def blocks(self, name: str) -> Iterator[Array]:
        """The raw elements of a tensor, flat, at most ``BLOCK`` at a time (BF16 as uint16)."""
        entry = self._entries[name]
        dtype = FORMATS[entry.dtype].numpy
        step = BLOCK * dtype.itemsize
        for start in range(entry.start, entry.stop, step):
            self._announce(start + _AHEAD, step)
            raw = self._pread(min(step, entry.stop - start), start)
            yield np.frombuffer(raw, dtype)

    def floats(self, name: str) -> Iterator[Array]:
        """The same blocks in float32, every element finite; see ``checked``."""
        return (values for _, values in self.checked(name))

    def checked(self, name: str) -> Iterator[tuple[Array, Array]]:
        """Each block of a floating tensor, raw and in float32, every element finite.

        Raises:
            CheckpointError: a NaN or an infinity, with the tensor and where it stands.
        """
        dtype, seen = self._entries[name].dtype, 0
        for raw in self.blocks(name):
            values = to_float32(raw, dtype)
            if not finite(values):
                self._refuse_nonfinite(name, values, seen)
            seen += values.size
            yield raw, values

    def array(self, name: str) -> Array:
        """A whole tensor in its shape; BF16 becomes float32, all else keeps its dtype."""
        entry = self._entries[name]
        flat = np.concatenate([*self.blocks(name), np.empty(0, FORMATS[entry.dtype].numpy)])
        if entry.dtype == "BF16":
            flat = to_float32(flat, "BF16")
        if entry.dtype == "BOOL":
            flat = flat.view(np.bool_)
        return flat.reshape(entry.shape)

    def finite(self, name: str) -> Array:
        """A whole floating tensor in float32, every element finite."""
        entry = self._entries[name]
        parts = [*self.floats(name), np.empty(0, np.float32)]
        return np.concatenate(parts).reshape(entry.shape)

    def digest(self) -> str:
        """What the card says the contents are, or else the digest of the contents."""
        if self.card and self.card.digest != NO_DIGEST:
            return self.card.digest
        return self.compute_digest()

    def compute_digest(self) -> str:
        """The digest of the contents, read anew; equal for equal tensors in any file."""
        with Hasher() as hasher:
            for name in self:
                hasher.start(name)
                for block in self.blocks(name):
                    hasher.update(name, block)
        digests = hasher.digests()
        return combine({n: (e.dtype, e.shape, digests[n]) for n, e in self.items()})

    def _header(self) -> tuple[dict[str, Entry], dict[str, str]]:
        if self._size == 0:
            raise CheckpointError("the file is empty", hint="Was a copy interrupted?")
        start = self._pread(min(self._size, 16), 0)
        length = int.from_bytes(start[:8], "little")
        if not start[8:].lstrip().startswith(b"{"):  # a length alone may look like any magic
            for magic, name in _FOREIGN.items():
                if start.lower().startswith(magic.lower()):
                    raise CheckpointError(f"not a safetensors file but {name}")
        if self._size < 10 or length + 8 > self._size:
            raise CheckpointError(
                f"not a safetensors file, or cut short in its header ({self._size:,} bytes)"
            )
        if length > MAX_HEADER:
            raise CheckpointError(
                f"its header claims {length:,} bytes; more than {MAX_HEADER:,} is not read"
            )
        return parse_header(self._pread(length, 8), self._size - 8 - length, 8 + length)

    def _announce(self, offset: int, count: int) -> None:
        """Lets the kernel fetch from disk what will be read soon, while we compute."""
        if hasattr(os, "posix_fadvise") and offset < self._size:
            os.posix_fadvise(self._fd, offset, count, os.POSIX_FADV_WILLNEED)

    def _pread(self, count: int, offset: int) -> bytes:
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

    def _refuse_nonfinite(self, name: str, values: Array, seen: int) -> None:
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise CheckpointError(
            f"{self.path}: {name}: {values[bad]} at element {seen + bad}",
            hint="A model with NaN or infinite weights came from a run that diverged.",
        )


def finite(values: Array) -> bool:
    """Whether every element is a number; a sum is far cheaper than looking at each."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum())) or bool(np.isfinite(values).all())


def parse_header(
    text: bytes, data_size: int, data_start: int
) -> tuple[dict[str, Entry], dict[str, str]]:
    """Entries sorted by place in the file, and the metadata.

    Raises:
        CheckpointError: anything that the format forbids: duplicates, overlaps, holes,
            unknown dtypes, sizes that do not add up.
    """
    try:
        header = json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=refuse_constant
        )
    except (ValueError, RecursionError) as fault:
        raise CheckpointError(f"its header is not valid: {fault}") from None
    if not isinstance(header, dict):
        raise CheckpointError("its header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError("its __metadata__ is not a mapping from text to text")
    entries = {name: _entry(name, value, data_start) for name, value in header.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    position = data_start
    for name, entry in ordered.items():
        if entry.start != position:
            raise CheckpointError(f"{name}: its data overlap or leave a hole")
        position = entry.stop
    if position != data_start + data_size:
        raise CheckpointError(
            f"holds {data_size:,} bytes of data where its header promises "
            f"{position - data_start:,}",
            hint="Was a copy interrupted?",
        )
    return ordered, metadata


def _entry(name: str, value: Any, data_start: int) -> Entry:
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, stop], **rest} if (
            not rest
        ):
            pass
        case _:
            raise CheckpointError(f"{name}: its header entry is not valid")
    if dtype not in FORMATS:
        raise CheckpointError(f"{name}: dtype {dtype} is not supported by qvec")
    if not all(type(n) is int and n >= 0 for n in (*shape, start, stop)):
        raise CheckpointError(f"{name}: its shape or offsets are not whole numbers from 0 up")
    if not _holdable(shape, FORMATS[dtype].numpy.itemsize):
        raise CheckpointError(f"{name}: its shape is beyond any array")
    entry = Entry(dtype, tuple(shape), data_start + start, data_start + stop)
    if entry.nbytes != stop - start:
        raise CheckpointError(f"{name}: {dtype} {list(shape)} does not take {stop - start} bytes")
    return entry


def _holdable(shape: list[int], itemsize: int) -> bool:
    """Whether numpy can have an array of this shape; found without multiplying huge numbers."""
    total = itemsize
    for n in shape:
        total *= n or 1
        if total >= 1 << 63:
            return False
    return len(shape) <= _MAX_DIMENSIONS


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names are unique, and whose texts UTF-8 can hold."""
    mapping: dict[str, Any] = {}
    for name, value in pairs:
        if name in mapping:
            raise ValueError(f"{name!r} stands in it twice")
        for text in (name, value):
            if isinstance(text, str):
                text.encode()  # refuses a lone surrogate
        mapping[name] = value
    return mapping


def _open(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe: no wait
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file", hint=_near(path)) from None
    except OSError as fault:
        raise CheckpointError(f"{path}: {(fault.strerror or 'cannot be read').lower()}") from None
    if not path.is_file():
        os.close(fd)
        raise CheckpointError(f"{path}: not a file but a folder or a device")
    return fd


def _near(path: Path) -> str | None:
    import difflib

    try:
        names = [p.name for p in path.parent.iterdir() if p.name != path.name]
    except OSError:
        return None
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"Did you mean {path.parent / close[0]}?" if close else None
