"""The header of a safetensors file: what it must say before any of its data are believed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Final

from qvec_cli.checkpoint.card import refuse_constant
from qvec_cli.checkpoint.dtypes import FORMATS
from qvec_cli.errors import CheckpointError

MAX_HEADER: Final = 32 << 20
"""Bytes of header that are parsed; 100,000 tensors need 9 MB."""

_MAX_DIMENSIONS: Final = 64
"""As many as numpy has."""


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
