"""The header of a safetensors file: what it must say before any of its data are believed."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, Protocol

from qvec_cli.checkpoint.dtypes import FORMATS
from qvec_cli.checkpoint.json_text import MAX_JSON, parse_table, require_moderate
from qvec_cli.errors import CheckpointError

MAX_HEADER: Final = MAX_JSON
"""Bytes of header that are parsed."""

MAX_NAME: Final = 10_000
"""Letters in the name of a tensor, which messages repeat."""

_KEYS: Final = frozenset(("dtype", "shape", "data_offsets"))

_MAX_DIMENSIONS: Final = 64  # as many as numpy has

_FOREIGN: Final = {
    b"version ": "a Git LFS pointer: run git lfs pull",
    b"\x1f\x8b": "gzip-compressed",
    b"\x28\xb5\x2f\xfd": "zstd-compressed",
    b"GGUF": "a GGUF file",
    b"\x93NUMPY": "a numpy array",
    b"<!DOCTYPE": "an HTML page",
    b"<html": "an HTML page",
    b"\x89HDF": "an HDF5 file, as of Keras",
    **{
        bytes((8, version, 18)): "an ONNX graph: its weights come from PyTorch's own file"
        for version in range(3, 20)
    },
}
"""How other kinds of files begin; a graph of ONNX with its version, and who has made it."""


class Source(Protocol):
    """Bytes at any offset."""

    size: int

    def read(self, count: int, offset: int) -> bytes | memoryview: ...  # noqa: D102
    def require_unchanged(self) -> None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class Entry(NamedTuple):
    """One tensor as the header describes it."""

    dtype: str  # a key of FORMATS
    shape: tuple[int, ...]
    start: int = 0  # first byte in its source
    stop: int = 0
    part: int = 0  # which source, of a checkpoint in several

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


def read_header(source: Source) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors of a safetensors file by their place, and its metadata.

    CheckpointError names another kind of file; see also ``parse_header``.
    """
    if source.size == 0:
        raise CheckpointError("the file is empty", hint="Was a copy interrupted?")
    start = bytes(source.read(min(source.size, 16), 0))
    length = int.from_bytes(start[:8], "little")
    if not start[8:].lstrip().startswith(b"{"):  # a length alone may look like any magic
        for magic, name in _FOREIGN.items():
            if start.lower().startswith(magic.lower()):
                raise CheckpointError(f"not a safetensors file but {name}")
    if source.size < 10 or length + 8 > source.size:
        raise CheckpointError(
            f"not a safetensors file, or cut short in its header ({source.size:,} bytes)"
        )
    if length > MAX_HEADER:
        raise CheckpointError(
            f"its header claims {length:,} bytes; more than {MAX_HEADER:,} is not read"
        )
    entries, metadata, end = parse_header(bytes(source.read(length, 8)), 8 + length)
    if end != source.size:
        raise CheckpointError(
            f"holds {source.size - 8 - length:,} bytes of data where its header promises "
            f"{end - 8 - length:,}",
            hint="Was a copy interrupted?",
        )
    return entries, metadata


def parse_header(text: bytes, start: int) -> tuple[dict[str, Entry], dict[str, str], int]:
    """Entries sorted by place in the file, the metadata, and where the data end.

    Args:
        text: the header's JSON.
        start: where the data begin.

    CheckpointError: anything that the format forbids: duplicates, overlaps, holes, unknown
    dtypes, sizes that do not add up.
    """
    require_moderate(text)
    with _uncollected():
        return _tensors(_json(text), start)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which looks again and again at what only grows."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _json(text: bytes) -> Any:
    try:
        header = parse_table(text.decode("utf-8"))
        _require_utf8(header)
    except ValueError as fault:
        raise CheckpointError(f"its header is not valid: {fault}") from None
    return header


def _tensors(header: Any, start: int) -> tuple[dict[str, Entry], dict[str, str], int]:
    if not isinstance(header, dict):
        raise CheckpointError("its header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError("its __metadata__ is not a mapping from text to text")
    if (longest := max(map(len, header), default=0)) > MAX_NAME:
        raise CheckpointError(f"one of its tensors has a name of {longest:,} letters")
    entries = {name: _entry(name, value, start) for name, value in header.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    position = start
    for name, entry in ordered.items():
        if entry.start != position:
            raise CheckpointError(f"{name}: its data overlap or leave a hole")
        position = entry.stop
    return ordered, metadata, position


def _entry(name: str, value: Any, data_start: int) -> Entry:
    if type(value) is not dict or value.keys() != _KEYS:
        raise CheckpointError(f"{name}: its header entry is not valid")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if type(dtype) is not str or type(shape) is not list or type(offsets) is not list:
        raise CheckpointError(f"{name}: its header entry is not valid")
    if dtype not in FORMATS:
        raise CheckpointError(f"{name}: dtype {dtype} is not supported by qvec")
    if len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in (*shape, *offsets)):
        raise CheckpointError(f"{name}: its shape or offsets are not whole numbers from 0 up")
    largest = (1 << 63) // FORMATS[dtype].numpy.itemsize  # numpy's own limits
    if len(shape) > _MAX_DIMENSIONS or math.prod(n or 1 for n in shape) >= largest:
        raise CheckpointError(f"{name}: its shape is beyond any array")
    start, stop = offsets
    entry = Entry(dtype, tuple(shape), data_start + start, data_start + stop)
    if entry.nbytes != stop - start:
        raise CheckpointError(f"{name}: {dtype} {list(shape)} does not take {stop - start} bytes")
    return entry


def _require_utf8(header: Any) -> None:
    """Refuses a lone surrogate, which JSON can spell, in any text that will be used."""
    if isinstance(header, dict):
        metadata = header.get("__metadata__")
        pairs = metadata.items() if isinstance(metadata, dict) else ()
        texts = [*header, *(text for pair in pairs for text in pair)]
        "".join(text for text in texts if isinstance(text, str)).encode()
