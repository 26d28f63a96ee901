"""From the range of a block of weights to its scale and zero point, as a file will store them.

Written once for numpy and torch, with the same bits from both (see affine.py): also the sums that
a search compares are added in one fixed order.
"""

from __future__ import annotations

from typing import Any, Final

from array_api_compat import array_namespace

from qvec_cli.quant.affine import LARGEST_HALF, QParams
from qvec_cli.specs import Grid, ScaleDtype

Array = Any
"""A float32 array of numpy or tensor of torch."""


TINY: Final = 1e-8
"""Least absmax of a block, so that a block of zeros has a finite scale and comes back as zeros."""


_HALF: Final = (2.0**-24, LARGEST_HALF)
"""The least and the largest number above zero that float16 holds."""


_SPARE: Final = 9
"""Bits that the scale of an asymmetric grid leaves unused, so that its products with codes are
exact in float32 and weights on the grid come back as they are."""


def largest(blocks: Array) -> Array:
    """max|w| of each block, [n_blocks, 1]."""
    xp = array_namespace(blocks)
    return xp.clip(xp.max(xp.abs(blocks), axis=-1, keepdims=True), TINY, None)


def mirrored(ratio: float, top: Array, grid: Grid) -> QParams:
    """The symmetric grid on which quant_max stands for ``ratio`` times ``top``.

    Divides by an array, because by a scalar CUDA would multiply by 1 / 3.
    """
    xp = array_namespace(top)
    scale = top * xp.full_like(top, ratio) / xp.full_like(top, grid.quant_max)
    return QParams(stored(scale, grid), None)


def spread(blocks: Array) -> tuple[Array, Array]:
    """The least and the largest weight of each block, the range widened to hold zero."""
    xp = array_namespace(blocks)
    low = xp.clip(xp.min(blocks, axis=-1, keepdims=True), None, 0.0)
    return low, xp.clip(xp.max(blocks, axis=-1, keepdims=True), 0.0, None)


def covering(ratio: float, low: Array, high: Array, grid: Grid) -> QParams:
    """The asymmetric grid whose codes span ``ratio`` times the range (arXiv:1712.05877)."""
    xp = array_namespace(low)
    span = xp.clip(high * 0.5 - low * 0.5, TINY, None) * xp.full_like(low, ratio)
    steps = grid.quant_max - grid.quant_min
    scale = stored(span / xp.full_like(low, steps * 0.5), grid)
    return QParams(scale, centred(-(low * xp.full_like(low, ratio) / scale), grid))


def centred(codes_below: Array, grid: Grid) -> Array:
    """The zero point that leaves so many codes below zero, rounded to a code of the grid.

    Halves go up, as ``quantize`` sends the halves of both ends outwards: no end code is lost.
    """
    xp = array_namespace(codes_below)
    return xp.clip(xp.floor(codes_below + 0.5) + grid.quant_min, grid.quant_min, grid.quant_max)


def stored(scale: Array, grid: Grid) -> Array:
    """The scale as the file holds it, in float32, never zero.

    Rounds towards zero, so that the ends of a range still reach the ends of the codes.
    """
    xp = array_namespace(scale)
    if grid.scale_dtype is ScaleDtype.FLOAT16:
        size = xp.clip(xp.abs(scale), *_HALF)
        half = xp.astype(size, xp.float16)
        above = xp.astype(half, xp.float32) > size
        half = (half.view(xp.int16) - xp.astype(above, xp.int16)).view(xp.float16)
        rounded = xp.astype(half, xp.float32)
        return xp.where(scale < 0, -rounded, rounded)
    if grid.symmetric:
        return scale
    bits = scale.view(xp.int32)
    return (bits - bits % (1 << _SPARE)).view(xp.float32)


def total(terms: Array) -> Array:
    """[n_blocks, 1]: the sum of each block, halves onto halves, in the same order everywhere."""
    xp = array_namespace(terms)
    while (length := terms.shape[-1]) > 1:
        half = length // 2
        folded = terms[..., :half] + terms[..., half : 2 * half]
        terms = xp.concat([folded, terms[..., 2 * half :]], axis=-1) if length % 2 else folded
    return terms


def better(found: Array, error: Array, candidate: QParams, best: QParams) -> QParams:
    """Block by block the candidate where its error is less, else what was best before."""
    xp = array_namespace(found)
    wins = found < error
    zero = best.zero_point
    if zero is not None:
        zero = xp.where(wins, candidate.zero_point, zero)
    return QParams(xp.where(wins, candidate.scale, best.scale), zero)
