"""AWQ: inputs that are large are made smaller before rounding, and their weights larger.

Lin et al. 2023, arXiv:2306.00978. Output errors are those over all calibration tokens, by their
second moment, where the official code takes a sample of tokens. The inverse of the factors goes
into the LayerNorm that feeds the layer, as it must in a file whose weights are codes; a layer that
no LayerNorm feeds is only clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from qvec_cli.quant.affine import block_shape
from qvec_cli.quant.moments import Inputs, output_error
from qvec_cli.quant.qtensor import QTensor
from qvec_cli.quant.scales import fake_quantize, rtn
from qvec_cli.specs import Granularity, Grid

Array = np.ndarray[Any, np.dtype[Any]]

POWERS: Final = tuple(step / 20 for step in range(20))
"""Exponents of the mean |x| that are tried; 0 leaves everything as it is."""

SHRINKS: Final = tuple(1 - step / 20 for step in range(10))
"""Shares of max|w| at which a block is clipped."""

_UNCLIPPED: Final = ("qkv", "q_proj", "k_proj", "query", "key", "in_proj")
"""Layers that make queries and keys, whose product clipping would bend (official rule)."""


def factors(
    weights: Sequence[Array], grid: Grid, inputs: Inputs, powers: Sequence[float] = POWERS
) -> Array:
    """What each input is divided by, float32 [in], for least output error of all the layers.

    ``weights`` [out, in] share their inputs; ``powers`` are the exponents to try, (0,) gives ones.
    """
    best, least = np.ones(len(inputs.mean), np.float32), np.inf
    for power in powers:
        size = np.maximum(inputs.magnitude**power, 1e-4)
        by = (size / np.sqrt(size.max() * size.min())).astype(np.float32)
        error = sum(
            output_error(fake_quantize(w * by, grid) / by - w, inputs.moment).sum() for w in weights
        )
        if error < least:
            best, least = by, error
    return best


def clipped(weight: Array, grid: Grid, inputs: Inputs, shrinks: Sequence[float]) -> Array:
    """The weight [out, in] with each block clipped where its output error is least.

    Ties go to the first of ``shrinks``; (1,) changes nothing.
    """
    shape = block_shape(weight.shape, grid)
    blocks = weight.reshape(shape)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    best, least = blocks, None
    for shrink in shrinks:
        tried = np.clip(blocks, -shrink * largest, shrink * largest)
        apart = fake_quantize(tried.reshape(weight.shape), grid) - weight
        error = _by_block(apart, grid, inputs.moment).reshape(-1, 1)
        if least is None:
            best, least = tried, error
        else:
            best, least = np.where(error < least, tried, best), np.minimum(error, least)
    return np.asarray(best, np.float32).reshape(weight.shape)


def awq(weight: Array, grid: Grid, inputs: Inputs) -> QTensor:
    """Quantizes a weight [out, in] whose inputs have been divided by ``factors`` already."""
    return rtn(clipped(weight, grid, inputs, SHRINKS), grid)


def is_unclipped(name: str) -> bool:
    """Whether a layer of this name is only rounded, not clipped."""
    return any(word in name for word in _UNCLIPPED)


def _by_block(apart: Array, grid: Grid, moment: Array) -> Array:
    """Output errors that each block makes alone, [out, groups] or [1]."""
    if grid.granularity is Granularity.TENSOR:
        return np.atleast_1d(output_error(apart, moment).sum())
    if grid.group_size is None:
        return output_error(apart, moment)
    size = grid.group_size
    starts = range(0, apart.shape[1], size)
    errors = [
        output_error(apart[:, s : s + size], moment[s : s + size, s : s + size]) for s in starts
    ]
    return np.stack(errors, axis=1)
