"""One quantized weight: codes, scales and zero points, and the names under which a file has them.

Names, types and layouts are those of compressed-tensors 0.18 and later (``pack-quantized``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from qvec_cli.errors import MismatchError
from qvec_cli.quant.affine import LARGEST_HALF, QParams, block_shape, dequantize, scale_shape
from qvec_cli.quant.pack import pack, unpack, words
from qvec_cli.specs import Granularity, Grid, ScaleDtype

Array = np.ndarray[Any, np.dtype[Any]]

PACKED: Final = "_packed"
"""What follows a weight's name where its codes are."""

_DIMENSIONS: Final = 32
"""Of a tensor, at most: older NumPy has arrays of no more."""

_PARTS: Final = (PACKED, "_scale", "_shape", "_zero_point")
_BYTES: Final = {"I8": 1, "F16": 2, "I32": 4, "F32": 4, "I64": 8}
_NUMPY: Final = {"I8": "|i1", "F16": "<f2", "I32": "<i4", "F32": "<f4", "I64": "<i8"}


@dataclass(frozen=True, slots=True)
class QTensor:
    """A weight on a grid."""

    codes: Array  # [out, in], int8, in the grid's range
    scale: Array  # see ``scale_shape``, float32, in weight units per code
    grid: Grid
    zero_point: Array | None = None  # like scale, int8, the code of zero; None if symmetric
    shape: tuple[int, ...] = ()  # of the tensor, where it is no matrix; see ``as_matrix``

    def weight(self) -> Array:
        """The weight that the codes stand for, float32 [out, in], or as its tensor has it."""
        blocks = self.codes.reshape(block_shape(self.codes.shape, self.grid)).astype(np.float32)
        zero = self.zero_point
        zero = None if zero is None else zero.reshape(-1, 1).astype(np.float32)
        params = QParams(self.scale.reshape(-1, 1), zero)
        return np.asarray(dequantize(blocks, params)).reshape(self.shape or self.codes.shape)

    def to_named(self, name: str) -> dict[str, Array]:
        """The arrays of ``parts``, to store under their names."""
        bits = self.grid.bits
        shape = self.shape or self.codes.shape
        arrays = [pack(self.codes, bits), self.scale, np.array(shape)]
        if (zero := self.zero_point) is not None:
            whole = self.grid.granularity is Granularity.TENSOR
            arrays.append(zero if whole else pack(np.ascontiguousarray(zero.T), bits).T)
        planned = parts(name, shape, self.grid)
        return {
            part: np.ascontiguousarray(array.astype(_NUMPY[dtype], copy=False))
            for array, (part, (dtype, _)) in zip(arrays, planned.items(), strict=True)
        }


def of_blocks(codes: Array, params: QParams, shape: tuple[int, ...], grid: Grid) -> QTensor:
    """The weight [out, in] whose blocks have these codes, which are whole numbers.
    Raises MismatchError: scales beyond what float16 holds.
    """
    if grid.scale_dtype is ScaleDtype.FLOAT16 and abs(params.scale).max() >= LARGEST_HALF:
        raise MismatchError(
            "its weights are too large for float16 scales", hint="Use --scale-dtype float32."
        )
    size = scale_shape(shape, grid)
    zero = params.zero_point
    return QTensor(
        codes.astype(np.int8).reshape(shape),
        params.scale.reshape(size),
        grid,
        None if zero is None else zero.astype(np.int8).reshape(size),
    )


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """The matrix [out, in] as which a tensor of two or more dimensions is quantized.

    A convolution [out, in, height, width] has a row for each output, embeddings of positions
    [1, positions, width] one for each position.
    """
    rows = shape[0] if shape[0] != 1 else math.prod(shape[:-1])
    return rows, math.prod(shape) // max(rows, 1)


def parts(name: str, shape: tuple[int, ...], grid: Grid) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype, as safetensors names it, and shape of each array of a weight, see ``as_matrix``.

    Zero points are packed down each column of groups, but plain where one serves the matrix.
    """
    dimensions, shape, grid = len(shape), as_matrix(shape), grid.of(name)
    size, bits = scale_shape(shape, grid), grid.bits
    scales = "F16" if grid.scale_dtype is ScaleDtype.FLOAT16 else "F32"
    whole = grid.granularity is Granularity.TENSOR
    kinds: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("I32", (shape[0], words(shape[1], bits))),
        (scales, size),
        ("I64", (dimensions,)),
        ("I8", (1,)) if whole else ("I32", (words(shape[0], bits), size[-1])),
    )
    return dict(zip(part_names(name, grid), kinds, strict=False))


def part_names(name: str, grid: Grid) -> tuple[str, ...]:
    """Names of a weight's packed codes, scales, shape and, if asymmetric, zero points."""
    return tuple(name + part for part in _PARTS[: 3 if grid.symmetric else 4])


def from_named(name: str, arrays: Mapping[str, Array], grid: Grid) -> QTensor:
    """The weight stored under ``name`` by ``to_named``.
    Raises MismatchError: parts that are missing, do not belong together, or are packed otherwise.
    """
    shape, grid = shape_of(name, arrays), grid.of(name)
    planned = parts(name, shape, grid)
    for part, (dtype, size) in planned.items():
        if part not in arrays:
            raise MismatchError(f"{name}: {part} is missing")
        array = arrays[part]
        if part.endswith("_shape"):  # has been read
            continue
        if array.dtype != _NUMPY[dtype] or array.shape != size:
            raise MismatchError(
                f"{name}: {part} is {array.dtype} {list(array.shape)}, not the {dtype} "
                f"{list(size)} of a {grid} weight",
                hint="Files packed by compressed-tensors before 0.18 have another 3-bit layout.",
            )
    codes, scale, _, *zero = (arrays[part] for part in planned)
    point, (rows, columns) = None, as_matrix(shape)
    if zero and grid.granularity is Granularity.TENSOR:
        point = zero[0].astype(np.int8)
    elif zero:
        point = np.ascontiguousarray(unpack(zero[0].T, rows, grid.bits).T)
    unpacked, other = unpack(codes, columns, grid.bits), shape if len(shape) > 2 else ()
    return QTensor(unpacked, scale.astype(np.float32), grid, point, other)


def shape_of(name: str, arrays: Mapping[str, Array]) -> tuple[int, ...]:
    """The shape that a packed weight says it has, [out, in] where it is a linear layer's.
    Raises MismatchError: it does not say one.
    """
    stated = arrays.get(name + "_shape")
    if stated is None:
        raise MismatchError(f"{name}: {name}_shape is missing")
    size = tuple(map(int, stated.reshape(-1))) if stated.dtype.kind == "i" else ()
    if not 2 <= len(size) <= _DIMENSIONS or not all(0 < side < 1 << 40 for side in size):
        raise MismatchError(f"{name}: {name}_shape {list(size)} is not the shape of a matrix")
    return size


def packed_weights(names: Iterable[str]) -> list[str]:
    """Names of the weights that a file holds packed, from the names of its tensors."""
    return [name.removesuffix(PACKED) for name in names if name.endswith(PACKED)]


def stored_bits(shapes: Mapping[str, tuple[int, ...]], grid: Grid) -> int:
    """Bits that weights' codes, scales and zero points take in a file, padding counted."""
    total = 0
    for name, shape in shapes.items():
        planned = parts(name, shape, grid)
        del planned[f"{name}_shape"]
        total += sum(8 * _BYTES[dtype] * int(np.prod(size)) for dtype, size in planned.values())
    return total


_SOME: Final = 1 << 16
"""Numbers that are squared at once, which fit into a core's cache."""


def sqnr_db(weight: Array, quantized: Array) -> float | None:
    """Signal-to-quantization-noise ratio, 10 log10(sum w^2 / sum (w - q)^2), in decibels.

    None where it is not finite: no noise at all, or no signal.
    """
    return ratio_db(energy(weight), energy(weight - quantized))


def ratio_db(signal: float, noise: float) -> float | None:
    """10 log10(signal / noise); None where it is not finite."""
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


def energy(values: Array) -> float:
    """The sum of squares, in float64: some at a time, so that no copy of a matrix is made."""
    flat, total = values.reshape(-1), 0.0
    for start in range(0, len(flat), _SOME):
        part = flat[start : start + _SOME].astype(np.float64)
        total += float(np.square(part, out=part).sum())  # a product would wake BLAS's threads
    return total
