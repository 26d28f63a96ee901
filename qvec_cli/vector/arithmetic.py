"""rho = theta_QAT - theta_FP, and theta_R + lambda * rho: the two lines that the method is.

Written for numpy and torch alike: both give the same bits, because product and sum are two
float32 roundings (a fused multiply-add would be one).
"""

from __future__ import annotations

from typing import Any

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
