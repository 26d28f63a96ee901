"""Coefficients of several vectors, by least squares on what they change in a network's answers.

At the quantized receiver, rounding is piecewise constant, so a change is a finite difference: the
answers with one vector added, less those without. The coefficients are those that best cancel the
damage that quantization has done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

RIDGE: Final = 0.01
"""Pull of the coefficients towards 0, as a share of the mean diagonal."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What least squares has found."""

    mix: Array  # [vectors], float64
    explained: float  # share of the damage that it would cancel, were changes linear: 0 to 1


def fit(changes: Array, damage: Array, chances: Array, *, ridge: float = RIDGE) -> Fit:
    """Minimises sum_n ||damage_n + sum_k mix_k changes_kn||^2 in the metric of the KL divergence.

    That metric is diag(p) - p p^T of the teacher's class probabilities p: half of its square is
    the divergence of small changes of logits.

    Args:
        changes: [K, N, C], logits with vector k less those without, in units of the step that
            was taken along it.
        damage: [N, C], logits of the quantized network less the teacher's.
        chances: [N, C], the teacher's class probabilities.
        ridge: share of the mean diagonal of the normal equations that is added to it.
    """
    flat = _whitened(changes.astype(np.float64), chances).reshape(len(changes), -1)
    wanted = _whitened(damage.astype(np.float64), chances).reshape(-1)
    normal, right = flat @ flat.T, flat @ wanted
    pull = ridge * float(np.trace(normal)) / len(normal)
    energy = float(wanted @ wanted)
    if (pull == 0 and ridge > 0) or energy == 0:  # vectors that change nothing, or no damage
        return Fit(np.zeros(len(changes)), 0.0)
    mix = 0.0 - np.linalg.lstsq(normal + pull * np.eye(len(normal)), right, rcond=None)[0]
    left = wanted + mix @ flat
    return Fit(mix, max(0.0, 1 - float(left @ left) / energy))


def _whitened(logits: Array, chances: Array) -> Array:
    """Vectors whose dot products are those of logits in the metric diag(p) - p p^T."""
    mean = (chances * logits).sum(axis=-1, keepdims=True)
    return np.asarray(np.sqrt(chances) * (logits - mean))
