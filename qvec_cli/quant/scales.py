"""The scale of each block of weights, by the rule that its grid names.

Written once for numpy and torch, with the same bits from both (see affine.py): also the sums that
a search compares are added in one fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from array_api_compat import array_namespace

from qvec_cli.quant.affine import dequantize, quantize
from qvec_cli.specs import Grid, Scale

Array = Any
"""A float32 array of numpy or tensor of torch."""

TINY: Final = 1e-8
"""Least absmax of a block, so that a block of zeros has a finite scale and comes back as zeros."""

STEPS: Final = 16
"""Clipping points that a search tries, from max|w| down to max|w| / 8."""


def choose_scale(blocks: Array, grid: Grid) -> Array:
    """The scale of each block.

    Args:
        blocks: [n_blocks, block_len], float32, in weight units.
        grid: names the rule, and the codes in use.

    Returns:
        [n_blocks, 1], float32, not zero, in weight units per code. Below zero with ``mse-full``,
        where the lowest code, which has no counterpart, serves the largest weights.
    """
    return SCALES[grid.scale](blocks, grid)


def absmax(blocks: Array, grid: Grid) -> Array:
    """max|w| / quant_max, as the paper's code has it: the largest weight keeps its value.

    Others divide by (2^b - 1) / 2: at 2 bits their step is two thirds of this one.
    """
    return _clipped_at(1.0, _largest(blocks), grid)


def least_error(blocks: Array, grid: Grid) -> Array:
    """The scale of least squared error among ``ratios``, of which absmax is the first.

    Ties go to the first. Cf. the clipping by search in arXiv:1810.05723.
    """
    xp = array_namespace(blocks)
    largest = _largest(blocks)
    share = xp.ones_like(largest) / largest  # errors without unit: no square overflows
    best, error = None, None
    for ratio in ratios(grid):
        scale = _clipped_at(ratio, largest, grid)
        apart = dequantize(quantize(blocks, scale, grid), scale) - blocks
        found = _squares(apart * share)
        if best is None:
            best, error = scale, found
        else:
            better = found < error
            best, error = xp.where(better, scale, best), xp.where(better, found, error)
    return best


def ratios(grid: Grid) -> Iterator[float]:
    """What quant_max stands for, as a share of max|w|; with all codes in use, of either sign.

    Weights that lie on the grid already are left alone, because their own scale is tried: their
    largest code is quant_max or, with all codes, 2^(b-1).
    """
    full = grid.scale is Scale.MSE_FULL
    for sign in (1, -1) if full else (1,):
        if full:
            yield sign * grid.quant_max / -grid.quant_min
        for step in range(STEPS):
            yield sign * (1 - step * 7 / (8 * (STEPS - 1)))


def _largest(blocks: Array) -> Array:
    xp = array_namespace(blocks)
    return xp.clip(xp.max(xp.abs(blocks), axis=-1, keepdims=True), TINY, None)


def _clipped_at(ratio: float, largest: Array, grid: Grid) -> Array:
    """Divides by an array, because by a scalar CUDA would multiply by 1 / 3."""
    xp = array_namespace(largest)
    return largest * xp.full_like(largest, ratio) / xp.full_like(largest, grid.quant_max)


def _squares(values: Array) -> Array:
    """[n_blocks, 1]: sums of squares, halves onto halves, in the same order everywhere."""
    xp = array_namespace(values)
    terms = values * values
    while (length := terms.shape[-1]) > 1:
        half = length // 2
        folded = terms[..., :half] + terms[..., half : 2 * half]
        terms = xp.concat([folded, terms[..., 2 * half :]], axis=-1) if length % 2 else folded
    return terms


SCALES: Final[dict[Scale, Callable[[Array, Grid], Array]]] = {
    Scale.ABSMAX: absmax,
    Scale.MSE: least_error,
    Scale.MSE_FULL: least_error,
}
