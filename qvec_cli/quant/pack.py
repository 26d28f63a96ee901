"""Codes as bits: each row a little-endian bit stream, padded to whole 32-bit words.

The dense layout of compressed-tensors 0.18 and later (``pack-quantized``): code i of a row
starts at bit i * bits and may straddle two words; unused bits of the last word are zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def words(columns: int, bits: int) -> int:
    """32-bit words that a row of codes takes."""
    return -(-columns * bits // 32)


def pack(codes: Array, bits: int) -> Array:
    """Packs signed codes.

    Args:
        codes: [rows, columns], whole numbers in [-2^(bits-1), 2^(bits-1) - 1].
        bits: width of one code, 1 to 8.

    Returns:
        int32 [rows, words]; what is stored is code + 2^(bits-1).
    """
    rows, columns = codes.shape
    unsigned = (codes.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    stream = np.unpackbits(unsigned[..., None], axis=-1, count=bits, bitorder="little")
    padded = np.zeros((rows, words(columns, bits) * 32), np.uint8)
    padded[:, : columns * bits] = stream.reshape(rows, columns * bits)
    return np.packbits(padded, axis=-1, bitorder="little").view("<i4")


def unpack(packed: Array, columns: int, bits: int) -> Array:
    """The signed codes of ``pack``, int8 [rows, columns]."""
    raw = np.ascontiguousarray(packed).view(np.uint8)
    stream = np.unpackbits(raw, axis=-1, count=columns * bits, bitorder="little")
    fields = stream.reshape(packed.shape[0], columns, bits)
    unsigned = np.packbits(fields, axis=-1, bitorder="little")[..., 0]
    codes: Array = (unsigned.astype(np.int16) - 2 ** (bits - 1)).astype(np.int8)
    return codes
