"""How far a quantized weight is from its original."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_SOME: Final = 1 << 16
"""Numbers that are squared at once, which fit into a core's cache."""


def sqnr_db(weight: Array, quantized: Array) -> float | None:
    """Signal-to-quantization-noise ratio, 10 log10(sum w^2 / sum (w - q)^2), in decibels.

    None where it is not finite: no noise at all, or no signal.
    """
    signal, noise = energy(weight), energy(weight - quantized)
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


def energy(values: Array) -> float:
    """The sum of squares, in float64: some at a time, so that no copy of a matrix is made."""
    flat, total = values.reshape(-1), 0.0
    for start in range(0, len(flat), _SOME):
        part = flat[start : start + _SOME].astype(np.float64)
        total += float(np.dot(part, part))
    return total
