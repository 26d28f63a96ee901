"""A packed weight as the operator MatMulNBits of onnxruntime holds it.

The operator knows codes of 2, 4 and 8 bits, a float scale and a zero point for each block of
neighbours in a row. Others keep their value in the next wider field; the last block of a row is
filled up with codes that stand for zero. So the codes and scales are those of the file, and only
their layout differs.

onnxruntime has fields of 2 bits since 1.24. Where it computes in float32 it expands them on every
call, which takes time: a DeiT-S at 224 px is 7.9 MB in place of 13.2, and one image takes 0.56 s in
place of 0.30 (onnxruntime 1.32, one thread).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from qvec_cli.errors import MismatchError
from qvec_cli.quant.pack import pack
from qvec_cli.quant.qtensor import QTensor
from qvec_cli.specs import Granularity, Grid

Array = np.ndarray[Any, np.dtype[Any]]

_BLOCKS: Final = (128, 64, 32)
"""Block lengths for scales that serve a whole row; the smallest result wins, then the longest."""

_WIDTHS: Final = (2, 4, 8)
"""Bits of a field."""

_SHORTEST: Final = 16
_LONGEST: Final = 256
"""Block lengths that the operator has. At 512 some versions answer with zeros on a CPU
(github.com/microsoft/onnxruntime/issues/28551)."""


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """How the codes of a weight lie in the operator's first array."""

    bits: int  # width of one field, 2, 4 or 8
    block: int  # input features that share a scale, a power of two

    def count(self, columns: int) -> int:
        """Blocks of a row; the last may be filled up."""
        return -(-columns // self.block)


def layout(columns: int, grid: Grid) -> BlockLayout:
    """The layout of a weight with ``columns`` input features.
    Raises MismatchError: groups that no block length of the operator divides.
    """
    bits = next(width for width in _WIDTHS if grid.bits <= width)
    if grid.granularity is not Granularity.GROUP:
        fits = (BlockLayout(bits, block) for block in _BLOCKS)
        # Bytes that a row's codes and scales take.
        return min(fits, key=lambda form: form.count(columns) * (form.block * bits // 8 + 4))
    assert grid.group_size is not None
    block = min(grid.group_size & -grid.group_size, _LONGEST)
    if block < _SHORTEST:
        raise MismatchError(
            f"groups of {grid.group_size} do not fit onnxruntime, whose blocks of weights are "
            f"{_SHORTEST}, 32, 64, 128 or {_LONGEST} long",
            hint="Quantize with a --group-size that 16 divides, or by channel.",
        )
    return BlockLayout(bits, block)


def arrays(weight: QTensor) -> dict[str, Array]:
    """The operator's arrays for a weight [out, in], in the order of its inputs.

    ``codes`` uint8 [out, blocks, block * bits / 8], each field a code + 2^(bits-1), the first in
    the lowest bits; ``scales`` float32 [out * blocks]; for an asymmetric grid ``zero_points`` uint8
    [out * ceil(blocks * bits / 8)], in fields like the codes. Without them the operator takes
    2^(bits-1) for zero, and so code 0 is.
    """
    rows, columns = weight.codes.shape
    form = layout(columns, weight.grid)
    blocks = form.count(columns)
    zero = np.zeros((rows, blocks), np.int8)
    if weight.zero_point is not None:
        zero = _each_block(weight.zero_point, rows, blocks)
    codes = np.repeat(zero, form.block, axis=1)
    codes[:, :columns] = weight.codes
    fields = pack(codes.reshape(rows * blocks, form.block), form.bits).view(np.uint8)
    parts: dict[str, Array] = {
        "codes": fields.reshape(rows, blocks, form.block * form.bits // 8),
        "scales": _each_block(weight.scale, rows, blocks).astype(np.float32).reshape(-1),
    }
    if weight.zero_point is not None:
        used = -(-blocks * form.bits // 8)
        points = pack(zero, form.bits).view(np.uint8)[:, :used]
        parts["zero_points"] = np.ascontiguousarray(points).reshape(-1)
    return parts


def _each_block(values: Array, rows: int, blocks: int) -> Array:
    """Scales or zero points [1], [out, 1] or [out, groups], for each block: [out, blocks]."""
    if values.size == 1:
        return np.full((rows, blocks), values.reshape(()))
    return np.repeat(values, blocks // values.shape[1], axis=1)
