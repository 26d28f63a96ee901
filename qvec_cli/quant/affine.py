"""The uniform grid: blocks of weights, their scale and zero point, codes and back.

Written once for numpy and torch, which give the same bits: every step is one correctly rounded
float32 operation, both round halves to even, and sums are added in one fixed order. So the number
trained is the number shipped.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from array_api_compat import array_namespace

from qvec_cli.errors import MismatchError
from qvec_cli.specs import Granularity, Grid, ScaleDtype

Array = Any
"""A float32 array of numpy or tensor of torch."""

LARGEST_HALF: Final = 65504.0
"""The largest number of float16."""

TINY: Final = 1e-8
"""Least absmax of a block, so that a block of zeros has a finite scale and comes back as zeros."""

_HALF: Final = (2.0**-24, LARGEST_HALF)
"""The least and the largest number above zero that float16 holds."""

_SPARE: Final = 9
"""Bits that the scale of an asymmetric grid leaves unused, so that its products with codes are
exact in float32 and weights on the grid come back as they are."""


class QParams(NamedTuple):
    """Where each block's grid lies, in arrays [n_blocks, 1] that go with its blocks."""

    scale: Array  # weight units per code
    zero_point: Array | None  # the code of the weight zero; None where that is code 0


def block_shape(shape: tuple[int, ...], grid: Grid) -> tuple[int, int]:
    """Blocks and their length, in which every method sees a weight of ``shape`` [out, in].
    Raises MismatchError: a group size that does not divide the input features.
    """
    rows, columns = shape
    if grid.granularity is Granularity.TENSOR:
        return 1, rows * columns
    if grid.granularity is Granularity.CHANNEL:
        return rows, columns
    assert grid.group_size is not None
    if columns % grid.group_size:
        divisors = [d for d in range(1, columns + 1) if columns % d == 0]
        raise MismatchError(
            f"--group-size {grid.group_size} does not divide its {columns} input features",
            hint=f"Group sizes that do: {', '.join(map(str, divisors))}.",
        )
    return rows * columns // grid.group_size, grid.group_size


def scale_shape(shape: tuple[int, ...], grid: Grid) -> tuple[int, ...]:
    """Shape of a weight's scales: [1], [out, 1] or [out, in / group_size]."""
    if grid.granularity is Granularity.TENSOR:
        return (1,)
    return shape[0], block_shape(shape, grid)[0] // shape[0]


def quantize(blocks: Array, params: QParams, grid: Grid) -> Array:
    """Codes in [quant_min, quant_max], still float32: round half to even, then clamp.

    No code is -0.0, which integers do not have.
    """
    xp = array_namespace(blocks)
    steps = blocks / params.scale
    if params.zero_point is not None:
        steps = steps + params.zero_point
    # The method: on a column, the namespace's clip takes three times as long.
    return xp.round(steps).clip(grid.quant_min, grid.quant_max) + 0.0


def dequantize(codes: Array, params: QParams) -> Array:
    """Weights on the grid, float32, in weight units."""
    if params.zero_point is not None:
        codes = codes - params.zero_point
    return codes * params.scale


def absmax(blocks: Array) -> Array:
    """max|w| of each block, [n_blocks, 1]."""
    xp = array_namespace(blocks)
    return xp.max(xp.abs(blocks), axis=-1, keepdims=True).clip(min=TINY)


def min_and_max(blocks: Array) -> tuple[Array, Array]:
    """The least and the largest weight of each block, the range widened to hold zero."""
    xp = array_namespace(blocks)
    low = xp.min(blocks, axis=-1, keepdims=True).clip(max=0.0)
    return low, xp.max(blocks, axis=-1, keepdims=True).clip(min=0.0)


def symmetric_params(ratio: float | Array, largest: Array, grid: Grid) -> QParams:
    """The symmetric grid on which quant_max stands for ``ratio`` times ``largest``.

    Divides by an array, because by a scalar CUDA would multiply by 1 / 3.
    """
    xp = array_namespace(largest)
    scale = largest * xp.full_like(largest, ratio) / xp.full_like(largest, grid.quant_max)
    return QParams(stored_scale(scale, grid), None)


def asymmetric_params(ratio: float | Array, low: Array, high: Array, grid: Grid) -> QParams:
    """The asymmetric grid whose codes span ``ratio`` times the range (arXiv:1712.05877)."""
    xp = array_namespace(low)
    span = (high * 0.5 - low * 0.5).clip(min=TINY) * xp.full_like(low, ratio)
    steps = grid.quant_max - grid.quant_min
    scale = stored_scale(span / xp.full_like(low, steps * 0.5), grid)
    return QParams(scale, zero_point(-(low * xp.full_like(low, ratio) / scale), grid))


def zero_point(codes_below: Array, grid: Grid) -> Array:
    """The zero point that leaves so many codes below zero, rounded to a code of the grid.

    Halves go up, as ``quantize`` sends the halves of both ends outwards: no end code is lost.
    """
    xp = array_namespace(codes_below)
    codes = xp.floor(codes_below + 0.5) + grid.quant_min
    return codes.clip(grid.quant_min, grid.quant_max)


def stored_scale(scale: Array, grid: Grid) -> Array:
    """The scale as the file holds it, in float32, never zero.

    Rounds towards zero, so that the ends of a range still reach the ends of the codes.
    """
    xp = array_namespace(scale)
    if grid.scale_dtype is ScaleDtype.FLOAT16:
        size = xp.abs(scale).clip(*_HALF)
        half = xp.astype(size, xp.float16)
        above = xp.astype(half, xp.float32) > size
        half = (half.view(xp.int16) - xp.astype(above, xp.int16)).view(xp.float16)
        rounded = xp.astype(half, xp.float32)
        return xp.where(scale < 0, -rounded, rounded)
    if grid.symmetric:
        return scale
    bits = scale.view(xp.int32)
    return (bits - bits % (1 << _SPARE)).view(xp.float32)


def block_sums(terms: Array) -> Array:
    """[n_blocks, 1]: the sum of each block, halves onto halves, in the same order everywhere."""
    xp = array_namespace(terms)
    while (length := terms.shape[-1]) > 1:
        half = length // 2
        folded = terms[..., :half] + terms[..., half : 2 * half]
        terms = xp.concat([folded, terms[..., 2 * half :]], axis=-1) if length % 2 else folded
    return terms


def better(error: Array, least: Array, candidate: QParams, best: QParams) -> QParams:
    """Block by block the candidate where its error is below the least before, else the best."""
    xp = array_namespace(error)
    wins = error < least
    zero = best.zero_point
    zero = None if zero is None else xp.where(wins, candidate.zero_point, zero)
    return QParams(xp.where(wins, candidate.scale, best.scale), zero)
