"""Codes as bits: each row a little-endian bit stream, padded to whole 32-bit words.

The dense layout of compressed-tensors 0.18 and later (``pack-quantized``): code i of a row
starts at bit i * bits and may straddle two words; unused bits of the last word are zero.

Each code is a byte at first; gaps are closed between neighbours, then between pairs, and so on:
a few steps, each over many numbers at once. ``fields`` are bytes whose lower bits are in use.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK: Final = 2**19
"""Codes handled at once: the few bytes that each takes on its way stay in the cache."""


def words(columns: int, bits: int) -> int:
    """32-bit words that a row of codes takes."""
    return -(-columns * bits // 32)


def pack(codes: Array, bits: int) -> Array:
    """Packs codes [rows, columns] of 1 to 8 bits, in [-2^(bits-1), 2^(bits-1) - 1].

    Returns int32 [rows, words]; what is stored is code + 2^(bits-1).
    """
    rows, columns = codes.shape
    packed = np.empty((rows, words(columns, bits)), "<i4")
    for block in _blocks(rows, columns):
        signed = codes[block].astype(np.int8, copy=False)
        fields = np.zeros((len(signed), _padded(columns)), np.uint8)
        # Modulo 256, hence right for negative codes too.
        np.add(signed.view(np.uint8), np.uint8(2 ** (bits - 1)), out=fields[:, :columns])
        packed[block] = _closed(fields, bits).view("<i4")[:, : packed.shape[1]]
    return packed


def unpack(packed: Array, columns: int, bits: int) -> Array:
    """The signed codes of ``pack``, int8 [rows, columns]."""
    codes = np.empty((len(packed), columns), np.int8)
    for block in _blocks(*codes.shape):
        signed = codes[block]
        stream = np.zeros((len(signed), _padded(columns) * bits // 32), "<i4")
        stream[:, : packed.shape[1]] = packed[block]
        fields = _opened(stream.view(np.uint8), bits)[:, :columns]
        np.subtract(fields, np.uint8(2 ** (bits - 1)), out=signed.view(np.uint8))
    return codes


def _padded(columns: int) -> int:
    """Codes of a row with padding: 32 of them are whole words, whatever their width."""
    return -(-columns // 32) * 32


def _blocks(rows: int, columns: int) -> list[slice]:
    """Rows that are handled at once."""
    step = max(1, BLOCK // max(1, _padded(columns)))
    return [slice(start, start + step) for start in range(0, rows, step)]


def _closed(fields: Array, width: int) -> Array:
    """The stream of fields of ``width`` bits, uint8 [rows, n * width / 8] from [rows, n]."""
    while width <= 4:  # two fit into one byte: half the work for what follows
        pairs = fields.view("<u2")
        upper = pairs >> (8 - width)
        upper |= pairs
        fields = upper.astype(np.uint8)
        width *= 2
    if width == 8:
        return fields
    for lane in (8, 16, 32):  # the upper lane comes down to where the lower one's bits end
        pairs = fields.view(f"<u{lane // 4}")
        upper = pairs >> lane
        upper *= 2**lane - 2 ** (lane * width // 8)
        pairs -= upper
    return _resized(fields, 8, width)


def _opened(stream: Array, bits: int) -> Array:
    """The fields of ``bits`` bits that ``_closed`` has closed, uint8 [rows, n]."""
    width = next(bits << k for k in range(4) if bits << k > 4)  # where ``_closed`` has stopped
    fields = stream
    if width < 8:
        fields = _resized(stream, width, 8)
        for lane in (32, 16, 8):
            pairs = fields.view(f"<u{lane // 4}")
            upper = pairs >> (lane * width // 8)
            upper *= 2**lane - 2 ** (lane * width // 8)
            pairs += upper
    while width > bits:
        width //= 2
        pairs = fields.astype("<u2")
        pairs |= pairs << (8 - width)
        pairs &= 257 * (2**width - 1)
        fields = pairs.view(np.uint8)
    return fields


def _resized(data: Array, old: int, new: int) -> Array:
    """Items of ``old`` bytes, each cut or padded with zeros to ``new`` bytes."""
    size = 1 if (old | new) % 2 else 2
    source = data.view(f"<u{size}").reshape(-1, old // size)
    target = np.zeros((len(source), new // size), source.dtype)
    for k in range(min(old, new) // size):  # five times as fast as all at once
        target[:, k] = source[:, k]
    return target.view(np.uint8).reshape(len(data), -1)
