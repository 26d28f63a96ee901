"""The uniform grid: blocks, codes and back, written once for numpy and torch.

Both give the same bits: every step is one correctly rounded float32 operation, and both round
halves to even. So the number trained is the number shipped.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from array_api_compat import array_namespace

from qvec_cli.errors import MismatchError
from qvec_cli.specs import Granularity, Grid

Array = Any
"""A float32 array of numpy or tensor of torch."""


LARGEST_HALF: Final = 65504.0
"""The largest number of float16."""


class QParams(NamedTuple):
    """Where each block's grid lies, in arrays [n_blocks, 1] that go with its blocks."""

    scale: Array  # weight units per code
    zero_point: Array | None  # the code of the weight zero; None where that is code 0


def block_shape(shape: tuple[int, ...], grid: Grid) -> tuple[int, int]:
    """Blocks and their length, in which every method sees a weight of ``shape`` [out, in].

    Raises:
        MismatchError: a group size that does not divide the input features.
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
    return xp.clip(xp.round(steps), grid.quant_min, grid.quant_max) + 0.0


def dequantize(codes: Array, params: QParams) -> Array:
    """Weights on the grid, float32, in weight units."""
    if params.zero_point is not None:
        codes = codes - params.zero_point
    return codes * params.scale
