"""Moments of a layer's inputs, and the arrays in which a file holds them: float32, or half of it.

In half, a moment is that of inputs divided by their root mean squares: cosines, at most 1 in size,
in float16, and the squares beside them in float32. So inputs of any size fit, and what is lost is
of each correlation less than a thousandth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Moments of a layer's input vectors x, over every token of every calibration image."""

    moment: Array  # [in, in], float64: mean of x x^T
    mean: Array  # [in], float64: mean of x
    magnitude: Array  # [in], float64: mean of |x|
    cross: Array | None = None  # [in, in], float64: mean of y x^T, y being the float network's x
    missing: Array | None = None  # [out, in], float64: mean of m x^T, m being what is to be added

    @property
    def finite(self) -> bool:
        """Whether no sum has overflowed."""
        sums = (self.moment, self.magnitude, self.cross, self.missing)
        return all(part is None or bool(np.isfinite(part).all()) for part in sums)


SECOND: Final = "second"
"""The upper triangle of a whole moment, row by row."""

FACTOR: Final = "factor"
DIAGONAL: Final = "diagonal"
"""Of a moment of which only some eigenpairs are kept, see ``pack``; in half, of every moment."""

MEAN: Final = "mean"
MAGNITUDE: Final = "magnitude"


def shapes(width: int, rank: int | None, *, half: bool = False) -> dict[str, tuple[int, ...]]:
    """The arrays of a layer with ``width`` inputs, of whose moment ``rank`` eigenpairs are kept.

    The whole moment is, where rank is None or a factor would be no smaller.
    """
    vector = (width,)
    if rank is not None and is_smaller(width, rank):
        return {FACTOR: (rank, width), DIAGONAL: vector, MEAN: vector, MAGNITUDE: vector}
    diagonal = {DIAGONAL: vector} if half else {}
    return {SECOND: (_triangle(width),), **diagonal, MEAN: vector, MAGNITUDE: vector}


def is_smaller(width: int, rank: int) -> bool:
    """Whether a factor of so many rows and a diagonal take less than the whole moment."""
    return (rank + 1) * width < _triangle(width)


def pack(inputs: Inputs, rank: int | None) -> dict[str, Array]:
    """Inputs as float32 arrays, see ``shapes``; infinite where a number is beyond float32.

    The whole moment is its upper triangle, row by row. Of ``rank`` eigenpairs, the largest, the
    factor has the rows sqrt(eigenvalue) * eigenvector, the largest element of each positive; what
    they leave of the diagonal is kept beside them, so that the diagonal is that of the moment.
    """
    second: dict[str, Array]
    with np.errstate(over="ignore"):
        if rank is None:
            second = {SECOND: inputs.moment[np.triu_indices(len(inputs.moment))].astype(np.float32)}
        else:
            factor = _factor(inputs.moment, rank)
            left = np.diag(inputs.moment) - np.square(factor, dtype=np.float64).sum(axis=0)
            second = {FACTOR: factor, DIAGONAL: np.maximum(left, 0).astype(np.float32)}
        means = {MEAN: inputs.mean, MAGNITUDE: inputs.magnitude}
        return {**second, **{name: array.astype(np.float32) for name, array in means.items()}}


def unpack(arrays: Mapping[str, Array]) -> Inputs:
    """The inputs that ``pack`` was given, within rounding and what the rank has left out."""
    width = arrays[MEAN].size
    if SECOND in arrays:
        moment, start = np.empty((width, width)), 0
        for row in range(width):
            moment[row, row:] = moment[row:, row] = arrays[SECOND][start : start + width - row]
            start += width - row
    else:
        factor = arrays[FACTOR].astype(np.float64)
        moment = factor.T @ factor
        moment[np.diag_indices(width)] += arrays[DIAGONAL]
    return Inputs(moment, arrays[MEAN].astype(np.float64), arrays[MAGNITUDE].astype(np.float64))


def to_half(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Packed arrays in half: ``second`` and ``factor`` float16, the ``diagonal`` the moment's."""
    if SECOND in arrays:
        rows, columns = np.triu_indices(arrays[MEAN].size)
        diagonal = arrays[SECOND][rows == columns]
        unit = _inverse_root(diagonal)
        halved = {SECOND: arrays[SECOND] * unit[rows] * unit[columns]}
    else:
        squares = np.square(arrays[FACTOR], dtype=np.float64).sum(axis=0)
        diagonal = (arrays[DIAGONAL] + squares).astype(np.float32)
        halved = {FACTOR: arrays[FACTOR] * _inverse_root(diagonal)}
    halves = {name: array.astype(np.float16) for name, array in halved.items()}
    return {**arrays, **halves, DIAGONAL: diagonal}


def from_half(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays that ``to_half`` was given, within rounding; the diagonal of a moment is exact."""
    diagonal = arrays[DIAGONAL].astype(np.float64)
    size = np.sqrt(diagonal)
    if SECOND in arrays:
        rows, columns = np.triu_indices(len(size))
        whole = {name: array for name, array in arrays.items() if name != DIAGONAL}
        second = arrays[SECOND] * size[rows] * size[columns]
        second[rows == columns] = diagonal
        return {**whole, SECOND: second}
    factor = arrays[FACTOR] * size
    left = np.maximum(diagonal - np.square(factor).sum(axis=0), 0)
    return {**arrays, FACTOR: factor, DIAGONAL: left}


def _inverse_root(diagonal: Array) -> Array:
    """What divides inputs of these mean squares by their size; 0 where there is none."""
    root = np.sqrt(diagonal.astype(np.float64))
    return np.divide(1.0, root, out=np.zeros(len(root)), where=root > 0)


def rounded(inputs: Inputs, rank: int | None) -> Inputs:
    """Inputs as they come back from a file, so that memory and file give the same codes."""
    return unpack(pack(inputs, rank))


def pool(many: Iterable[Inputs], tokens: Sequence[int]) -> Inputs:
    """A layer's inputs over all tokens together, from means over so many ``tokens`` each."""
    moment, mean, magnitude = (np.zeros(()) for _ in range(3))
    for one, count in zip(many, tokens, strict=True):
        share = count / sum(tokens)
        moment = moment + share * one.moment
        mean = mean + share * one.mean
        magnitude = magnitude + share * one.magnitude
    return Inputs(moment, mean, magnitude)


def _factor(moment: Array, rank: int) -> Array:
    """The largest eigenpairs, float32 [rank, in]; eigenvalues below zero are rounding."""
    values, vectors = np.linalg.eigh(moment)
    rows = (vectors * np.sqrt(np.maximum(values, 0))).T[::-1][:rank]
    peaks = rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)]
    factor: Array = (rows * np.where(peaks < 0, -1, 1)[:, None]).astype(np.float32)
    return factor


def _triangle(width: int) -> int:
    return width * (width + 1) // 2


def output_error(apart: Array, moment: Array) -> Array:
    """Mean squared change of each output, float64 [out], when the weights [out, in] change.

    It is diag(apart moment apart^T), with the moment [in, in] that is the mean of x x^T.
    """
    apart = apart.astype(np.float64)
    errors: Array = np.einsum("oi,oi->o", apart @ moment, apart)
    return errors
