"""Lengths of vectors that stream by in blocks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


class Norm:
    """The Euclidean norm of everything added so far."""

    def __init__(self) -> None:
        self._squares = 0.0

    def add(self, block: np.ndarray[Any, np.dtype[Any]]) -> None:
        """Takes a float32 block; its own sum is in float32, the running sum in float64."""
        flat = block.reshape(-1)
        with np.errstate(over="ignore"):
            squares = float(np.dot(flat, flat))
        if not 1e-30 < squares < math.inf:  # float32 may have lost squares at either end
            squares = float(np.square(flat, dtype=np.float64).sum())
        self._squares += squares

    @property
    def value(self) -> float:
        """The norm."""
        return math.sqrt(self._squares)
