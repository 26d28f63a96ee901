"""How far a quantized weight is from its original."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def sqnr_db(weight: Array, quantized: Array) -> float | None:
    """Signal-to-quantization-noise ratio, 10 log10(sum w^2 / sum (w - q)^2), in decibels.

    None where it is not finite: no noise at all, or no signal.
    """
    signal = float(np.square(weight, dtype=np.float64).sum())
    noise = float(np.square(weight - quantized, dtype=np.float64).sum())
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None
