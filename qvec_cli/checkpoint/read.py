"""A safetensors file, checked as a whole before any tensor is read, then read block by block."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np

from qvec_cli.checkpoint.card import NO_DIGEST, Card, Kind
from qvec_cli.checkpoint.digest import Hasher, combine
from qvec_cli.checkpoint.dtypes import FORMATS, Array, to_float32
from qvec_cli.checkpoint.header import MAX_HEADER, Entry, parse_header
from qvec_cli.errors import CheckpointError

BLOCK: Final = 1 << 18
"""Elements in a block: memory stays the same for any model, and a block fits into a cache."""

_AHEAD: Final = 16 << 20
"""Bytes between what is read and what is asked of the disk."""

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
