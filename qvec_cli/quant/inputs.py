"""What a linear layer has seen of its inputs: all that a calibrated method may know of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Moments of a layer's input vectors x, over every token of every calibration image."""

    moment: Array  # [in, in], float64: mean of x x^T
    mean: Array  # [in], float64: mean of x
    magnitude: Array  # [in], float64: mean of |x|
    cross: Array | None = None  # [in, in], float64: mean of y x^T, y being the float network's x

    @property
    def finite(self) -> bool:
        """Whether no sum has overflowed."""
        sums = (self.moment, self.magnitude, *(() if self.cross is None else (self.cross,)))
        return all(bool(np.isfinite(part).all()) for part in sums)


def output_error(apart: Array, moment: Array) -> Array:
    """Mean squared change of each output when the weights change by ``apart``.

    Args:
        apart: [out, in], in weight units.
        moment: [in, in], mean of x x^T.

    Returns:
        float64 [out], diag(apart moment apart^T).
    """
    apart = apart.astype(np.float64)
    found: Array = np.einsum("oi,oi->o", apart @ moment, apart)
    return found
