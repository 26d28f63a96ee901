"""One quantized weight: codes and scales, and the names under which a file holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from qvec_cli.errors import MismatchError
from qvec_cli.quant.affine import block_shape, dequantize, scale_shape
from qvec_cli.quant.pack import pack, unpack, words
from qvec_cli.specs import Grid

Array = np.ndarray[Any, np.dtype[Any]]

PARTS: Final = ("_packed", "_scale", "_shape")
"""What follows a weight's name in a file, as compressed-tensors spells it."""


@dataclass(frozen=True, slots=True)
class QTensor:
    """A weight on a grid."""

    codes: Array  # [out, in], whole numbers in the grid's range
    scale: Array  # see ``scale_shape``, float32, in weight units per code
    grid: Grid

    def weight(self) -> Array:
        """The weight that the codes stand for, float32 [out, in]."""
        blocks = self.codes.reshape(block_shape(self.codes.shape, self.grid)).astype(np.float32)
        return np.asarray(dequantize(blocks, self.scale.reshape(-1, 1))).reshape(self.codes.shape)

    def to_named(self, name: str) -> dict[str, Array]:
        """Three arrays to store under the weight's name and ``PARTS``."""
        packed = pack(self.codes, self.grid.bits)
        shape = np.array(self.codes.shape, np.int64)
        return dict(zip(part_names(name), (packed, self.scale, shape), strict=True))


def from_named(name: str, arrays: Mapping[str, Array], grid: Grid) -> QTensor:
    """The weight stored under ``name`` by ``to_named``.

    Raises:
        MismatchError: parts that do not belong together, or are packed in another way.
    """
    packed, scale, shape = (arrays[part] for part in part_names(name))
    typed = packed.dtype == "<i4" and scale.dtype.kind == "f" and shape.dtype.kind == "i"
    size = tuple(map(int, shape.reshape(-1))) if typed else ()
    fit = len(size) == 2 and min(size) >= 0
    if not fit or part_shapes(size, grid)[:2] != (packed.shape, scale.shape):
        raise MismatchError(
            f"{name}: codes {list(packed.shape)}, scales {list(scale.shape)} and shape "
            f"{list(size)} are not those of a {grid} weight",
            hint="Files packed by compressed-tensors before 0.18 have another 3-bit layout.",
        )
    return QTensor(unpack(packed, size[1], grid.bits), scale, grid)


def packed_weights(names: Iterable[str]) -> list[str]:
    """Names of the weights that a file holds packed, from the names of its tensors."""
    return [name.removesuffix(PARTS[0]) for name in names if name.endswith(PARTS[0])]


def part_names(name: str) -> tuple[str, str, str]:
    """Names of a weight's packed codes, scales and shape."""
    packed, scale, shape = (name + part for part in PARTS)
    return packed, scale, shape


def part_shapes(shape: tuple[int, ...], grid: Grid) -> tuple[tuple[int, ...], ...]:
    """Shapes of the three arrays of a weight [out, in]."""
    return (shape[0], words(shape[1], grid.bits)), scale_shape(shape, grid), (2,)


def stored_bits(shape: tuple[int, ...], grid: Grid) -> int:
    """Bits that a weight's codes and scales take in a file, padding counted."""
    packed, scale, _ = part_shapes(shape, grid)
    return 32 * (int(np.prod(packed)) + int(np.prod(scale)))
