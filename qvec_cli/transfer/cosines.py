"""How far vectors point the same way: cosines over everything at once, and row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Alignment:
    """Cosines between several vectors, from matrices that come one after the other.

    Args:
        count: how many vectors there are.
    """

    def __init__(self, count: int) -> None:
        self._gram = np.zeros((count, count))
        self._rows = np.zeros((count, count))
        self._seen = np.zeros((count, count))

    def add(self, matrices: Sequence[Array]) -> None:
        """Takes one weight of every vector, each [out, in], float32; sums are in float64."""
        stack = np.stack(matrices, axis=1).astype(np.float64)  # [out, vectors, in]
        gram = stack @ stack.transpose(0, 2, 1)  # [out, vectors, vectors]
        self._gram += gram.sum(axis=0)
        lengths = np.sqrt(np.einsum("rii->ri", gram))
        scale = lengths[:, :, None] * lengths[:, None, :]
        self._rows += _quotient(gram, scale).sum(axis=0)
        self._seen += (scale > 0).sum(axis=0)

    @property
    def whole(self) -> Array:
        """Cosine of every pair, over all weights as one long vector; 0 beside a zero vector."""
        length = np.sqrt(np.diag(self._gram))
        scale = length[:, None] * length[None, :]
        return _quotient(self._gram, scale)

    @property
    def by_row(self) -> Array:
        """Mean of the cosines of output rows, each row counted once; rows of zeros are left out."""
        return _quotient(self._rows, self._seen)


def _quotient(top: Array, bottom: Array) -> Array:
    """Element by element; 0 where there is nothing to divide by."""
    found: Array = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
    return found
