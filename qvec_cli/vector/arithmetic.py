"""rho = theta_QAT - theta_FP, and theta_R + lambda * rho: the two lines that the method is.

Written for numpy and torch alike: both give the same bits, because product and sum are two
float32 roundings (a fused multiply-add would be one).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Floats = Any
"""A float32 array of numpy or tensor of torch."""


def difference(theta_qat: Floats, theta_fp: Floats) -> Floats:
    """The quantization vector of one block, float32, in weight units."""
    return theta_qat - theta_fp


def apply(theta: Floats, rho: Floats, lam: float) -> Floats:
    """``theta + lam * rho`` in float32; lam = 0 is theta itself, bit for bit.

    Args:
        theta: the receiver's block.
        rho: the vector's block, same shape.
        lam: the scaling coefficient, without unit.
    """
    return theta if lam == 0 else theta + lam * rho


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
