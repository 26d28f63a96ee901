"""The scale of least squared error, by search over clipping points; cf. arXiv:1810.05723."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from array_api_compat import array_namespace

from qvec_cli.quant.affine import QParams, dequantize, quantize
from qvec_cli.quant.ranges import better, covering, largest, mirrored, spread, total
from qvec_cli.specs import Grid, Scale

Array = Any
"""A float32 array of numpy or tensor of torch."""


STEPS: Final = 16
"""Clipping points that a search tries, from max|w| down to max|w| / 8."""


def least_error(blocks: Array, grid: Grid) -> QParams:
    """The grid of least squared error among ``candidates``, of which absmax is the first.

    Ties go to the first.
    """
    xp = array_namespace(blocks)
    top = largest(blocks)
    share = xp.ones_like(top) / top  # errors without unit: no square overflows
    best, error = None, None
    for candidate in candidates(blocks, grid):
        apart = (dequantize(quantize(blocks, candidate, grid), candidate) - blocks) * share
        found = total(apart * apart)
        if best is None:
            best, error = candidate, found
        else:
            best = better(found, error, candidate, best)
            error = xp.where(found < error, found, error)
    assert best is not None
    return best


def candidates(blocks: Array, grid: Grid) -> Iterator[QParams]:
    """A grid for every block, once for each of ``ratios``."""
    if grid.symmetric:
        top = largest(blocks)
        yield from (mirrored(ratio, top, grid) for ratio in ratios(grid))
    else:
        ends = spread(blocks)
        yield from (covering(ratio, *ends, grid) for ratio in ratios(grid))


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
