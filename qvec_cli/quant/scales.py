"""Rules by which a block's scale and zero point are chosen: absmax, least squared error, the table.

Half-quadratic scales have a file of their own, hqq.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from array_api_compat import array_namespace

from qvec_cli.quant.affine import (
    QParams,
    absmax,
    asymmetric_params,
    better,
    block_sums,
    dequantize,
    min_and_max,
    quantize,
    symmetric_params,
)
from qvec_cli.quant.hqq import half_quadratic
from qvec_cli.specs import Grid, Scale

Array = Any
"""A float32 array of numpy or tensor of torch."""

STEPS: Final = 16
"""Clipping points that the search for least error tries, from max|w| down to max|w| / 8."""


def choose_qparams(blocks: Array, grid: Grid) -> QParams:
    """The scale and zero point of each block.

    Args:
        blocks: [n_blocks, block_len], float32, in weight units.
        grid: names the rule, and the codes in use.

    Returns:
        Arrays [n_blocks, 1], float32. The scale is not zero, in weight units per code; below
        zero with ``mse-full`` and ``hqq`` where the lowest code, which has no counterpart, serves
        the largest weights. The zero point is a code of the grid, None on a symmetric one.
    """
    return SCALES[grid.scale](blocks, grid)


def whole_range(blocks: Array, grid: Grid) -> QParams:
    """max|w| / quant_max, as the paper's code has it: the largest weight keeps its value.

    Others divide by (2^b - 1) / 2: at 2 bits their step is two thirds of this one. On an
    asymmetric grid the codes span the range from the least to the largest weight and zero.
    """
    if grid.symmetric:
        return symmetric_params(1.0, absmax(blocks), grid)
    return asymmetric_params(1.0, *min_and_max(blocks), grid)


def least_error(blocks: Array, grid: Grid) -> QParams:
    """The grid of least squared error among ``candidates``, cf. arXiv:1810.05723.

    Ties go to the first, which is that of the whole range unless all codes are in use.
    """
    xp = array_namespace(blocks)
    largest = absmax(blocks)
    share = xp.ones_like(largest) / largest  # errors without unit: no square overflows
    best, least = None, None
    for candidate in candidates(blocks, grid):
        apart = (dequantize(quantize(blocks, candidate, grid), candidate) - blocks) * share
        error = block_sums(apart * apart)
        if best is None:
            best, least = candidate, error
        else:
            best = better(error, least, candidate, best)
            least = xp.where(error < least, error, least)
    assert best is not None
    return best


def candidates(blocks: Array, grid: Grid) -> Iterator[QParams]:
    """A grid for every block, once for each of ``ratios``."""
    if grid.symmetric:
        largest = absmax(blocks)
        yield from (symmetric_params(ratio, largest, grid) for ratio in ratios(grid))
    else:
        ends = min_and_max(blocks)
        yield from (asymmetric_params(ratio, *ends, grid) for ratio in ratios(grid))


def ratios(grid: Grid) -> Iterator[float]:
    """What quant_max stands for, as a share of max|w|; with all codes in use, of either sign.

    Weights that lie on the grid already are left alone, because their own scale is tried: their
    largest code is quant_max or, with all codes, 2^(b-1). An asymmetric grid shrinks both ends
    of its range by the ratio.
    """
    full = grid.scale is Scale.MSE_FULL
    for sign in (1, -1) if full else (1,):
        if full:
            yield sign * grid.quant_max / -grid.quant_min
        for step in range(STEPS):
            yield sign * (1 - step * 7 / (8 * (STEPS - 1)))


SCALES: Final[dict[Scale, Callable[[Array, Grid], QParams]]] = {
    Scale.ABSMAX: whole_range,
    Scale.MSE: least_error,
    Scale.MSE_FULL: least_error,
    Scale.HQQ: half_quadratic,
}
