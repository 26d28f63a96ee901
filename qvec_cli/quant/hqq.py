"""Half-quadratic quantization: a scale for which a few large errors count little.

Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models": minimise
sum |w - q|^p with p < 1 by turns, e = shrink(w - q), then the grid of least squares for w - e.
Differences from the official code, which fits a float zero point at a fixed scale: the scale is
fitted too, zero points are whole codes as the file stores them, p is 1/2 (its powers are square
roots, which round alike everywhere) rather than 0.7, every block keeps the best grid that it has
seen, and a symmetric grid tries either sign.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from array_api_compat import array_namespace

from qvec_cli.quant.affine import (
    TINY,
    QParams,
    absmax,
    asymmetric_params,
    better,
    block_sums,
    dequantize,
    min_and_max,
    quantize,
    stored_scale,
    symmetric_params,
    zero_point,
)
from qvec_cli.specs import Grid

Array = Any
"""A float32 array of numpy or tensor of torch."""

ROUNDS: Final = 12
"""Turns from each start; the official code has 20, and stops early."""

BETA: Final = 10.0
"""Weight of the quadratic term in the first turn, for errors as a share of max|w|."""

KAPPA: Final = 1.01
"""Its growth from turn to turn; both are the official code's."""


def half_quadratic(blocks: Array, grid: Grid) -> QParams:
    """The grid of least sum |w - q|^(1/2) that the turns come by, for every block."""
    xp = array_namespace(blocks)
    top = absmax(blocks)
    scaled = blocks / top  # without unit, because shrinking has one
    best, least = None, None
    for candidate in _turns(scaled, blocks, top, grid):
        codes = quantize(blocks, candidate, grid)
        error = block_sums(_root(xp.abs(dequantize(codes, candidate) - blocks) / top))
        if best is None:
            best, least = candidate, error
        else:
            error = xp.where(_reaches(blocks, candidate, grid), error, xp.full_like(error, xp.inf))
            best = better(error, least, candidate, best)
            least = xp.where(error < least, error, least)
    assert best is not None
    return best


def _turns(scaled: Array, blocks: Array, top: Array, grid: Grid) -> Iterator[QParams]:
    """Every grid on the way from each start."""
    for start in _starts(blocks, top, grid):
        yield start
        params, beta = start, BETA
        for _ in range(ROUNDS):
            codes = quantize(blocks, params, grid)
            apart = scaled - dequantize(codes, params) / top
            params = _fitted(codes, scaled - _shrink(apart, beta), top, params, grid)
            beta *= KAPPA
            yield params


def _starts(blocks: Array, top: Array, grid: Grid) -> Iterator[QParams]:
    """Grids that hold the whole range; weights on a grid of ours find their own among them."""
    if not grid.symmetric:
        yield asymmetric_params(1.0, *min_and_max(blocks), grid)
        return
    for sign in (1, -1):
        for ratio in (1.0, grid.quant_max / -grid.quant_min):
            yield symmetric_params(sign * ratio, top, grid)


def _shrink(apart: Array, beta: float) -> Array:
    """The part of the errors that is left as it is: sign(e) max(|e| - |e|^(-1/2) / beta, 0)."""
    xp = array_namespace(apart)
    size = xp.abs(apart)
    kept = xp.clip(size - 1.0 / (beta * _root(xp.clip(size, TINY, None))), 0.0, None)
    return xp.where(apart < 0, -kept, kept)


def _root(size: Array) -> Array:
    """Square roots by way of float64, because those of torch in float32 are off by a bit."""
    xp = array_namespace(size)
    return xp.astype(xp.sqrt(xp.astype(size, xp.float64)), xp.float32)


def _fitted(codes: Array, goal: Array, top: Array, params: QParams, grid: Grid) -> QParams:
    """Least squares for goal = (codes - zero) * scale; the scale before where codes say nothing."""
    xp = array_namespace(codes)
    if params.zero_point is None:
        along, norm = block_sums(codes * goal), block_sums(codes * codes)
        scale = xp.where(norm > 0, along / xp.clip(norm, 1.0, None) * top, params.scale)
        scale = xp.where(scale == 0, params.scale, scale)
        # In this form, a scale that weights which lie on its grid restore.
        return symmetric_params(1.0, scale * grid.quant_max, grid)
    count = codes.shape[-1]
    code, mean = block_sums(codes) / count, block_sums(goal) / count
    norm = block_sums((codes - code) * (codes - code))
    along = block_sums((codes - code) * (goal - mean))
    fits = (norm > 0) & (along > 0)
    slope = xp.where(fits, along / xp.where(fits, norm, 1.0), params.scale / top)
    below = xp.where(fits, code - grid.quant_min - mean / slope, 0.0)
    zero = xp.where(fits, zero_point(below, grid), params.zero_point)
    scale = xp.where(fits, stored_scale(slope * top, grid), params.scale)
    return QParams(scale, zero)


def _reaches(blocks: Array, params: QParams, grid: Grid) -> Array:
    """Whether the range fills the codes, so that weights on this grid would find it again."""
    if params.zero_point is None:
        codes = quantize(absmax(blocks), QParams(abs(params.scale), None), grid)
        return codes >= grid.quant_max
    low, high = (quantize(end, params, grid) for end in min_and_max(blocks))
    return (low == grid.quant_min) & (high == grid.quant_max)
