"""The table of rules by which a block's scale and zero point are chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from qvec_cli.quant.affine import QParams
from qvec_cli.quant.hqq import half_quadratic
from qvec_cli.quant.mse import least_error
from qvec_cli.quant.ranges import covering, largest, mirrored, spread
from qvec_cli.specs import Grid, Scale

Array = Any
"""A float32 array of numpy or tensor of torch."""


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


def absmax(blocks: Array, grid: Grid) -> QParams:
    """max|w| / quant_max, as the paper's code has it: the largest weight keeps its value.

    Others divide by (2^b - 1) / 2: at 2 bits their step is two thirds of this one. On an
    asymmetric grid the codes span the range from the least to the largest weight and zero.
    """
    if grid.symmetric:
        return mirrored(1.0, largest(blocks), grid)
    return covering(1.0, *spread(blocks), grid)


SCALES: Final[dict[Scale, Callable[[Array, Grid], QParams]]] = {
    Scale.ABSMAX: absmax,
    Scale.MSE: least_error,
    Scale.MSE_FULL: least_error,
    Scale.HQQ: half_quadratic,
}
