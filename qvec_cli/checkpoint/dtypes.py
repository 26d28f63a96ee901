"""The number formats of safetensors, and how numpy holds them."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Format(NamedTuple):
    """One safetensors dtype."""

    rank: int  # the library's order in a file: highest first
    numpy: np.dtype[Any]  # little-endian; BF16 as its 16 raw bits
    floating: bool


def _format(rank: int, code: str, floating: bool = False) -> Format:
    return Format(rank, np.dtype(code), floating)


FORMATS: Final[dict[str, Format]] = {
    "BOOL": _format(0, "u1"),
    "U8": _format(1, "u1"),
    "I8": _format(2, "i1"),
    "I16": _format(3, "<i2"),
    "U16": _format(4, "<u2"),
    "F16": _format(5, "<f2", floating=True),
    "BF16": _format(6, "<u2", floating=True),
    "I32": _format(7, "<i4"),
    "U32": _format(8, "<u4"),
    "F32": _format(9, "<f4", floating=True),
    "F64": _format(10, "<f8", floating=True),
    "I64": _format(11, "<i8"),
    "U64": _format(12, "<u8"),
}

_NAMES: Final = {
    "float32": "F32",
    "float16": "F16",
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "bfloat16": "BF16",
}


def name_of(dtype: object) -> str:
    """The safetensors name of a numpy or torch dtype ("torch.bfloat16", "float32")."""
    return _NAMES[str(dtype).removeprefix("torch.")]


def to_float32(raw: Array, dtype: str) -> Array:
    """Float32 values of a raw block; exact for F16, BF16 and F32, rounded for F64."""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(all="ignore"):
        return raw.astype(np.float32, copy=False)


def from_float32(values: Array, dtype: str) -> Array:
    """The raw block of a floating dtype, rounded to nearest, ties to even; inf on overflow."""
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return values.astype(FORMATS[dtype].numpy, copy=False)
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
