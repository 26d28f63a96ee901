"""Round to nearest on the scales of the grid: the quantizer of the paper, without data."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace

from qvec_cli.quant.affine import block_shape, dequantize, quantize
from qvec_cli.quant.qtensor import QTensor, of_blocks
from qvec_cli.quant.scales import choose_qparams
from qvec_cli.specs import Grid

Array = np.ndarray[Any, np.dtype[Any]]


def rtn(weight: Array, grid: Grid) -> QTensor:
    """Quantizes a weight [out, in], float32, every code the nearest to its weight."""
    blocks = weight.reshape(block_shape(weight.shape, grid))
    params = choose_qparams(blocks, grid)
    return of_blocks(quantize(blocks, params, grid), params, weight.shape, grid)


def fake_quantize(weight: Any, grid: Grid) -> Any:
    """What ``rtn`` stores, as a float32 weight [out, in] of numpy or torch."""
    xp = array_namespace(weight)
    blocks = xp.reshape(weight, block_shape(tuple(weight.shape), grid))
    params = choose_qparams(blocks, grid)
    return xp.reshape(dequantize(quantize(blocks, params, grid), params), tuple(weight.shape))
