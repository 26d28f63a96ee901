"""Scaling coefficients as they are typed: one, a list, a range, or one for each vector."""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation
from typing import Final

from qvec_cli.errors import SpecError

MAX_LAMBDAS: Final = 1000


def parse_lambda(text: str) -> float:
    """One scaling coefficient, any finite number."""
    return float(_decimal(text))


def parse_lambdas(text: str) -> tuple[float, ...]:
    """Scaling coefficients from ``0,0.5,1`` or ``start:stop:step`` with the stop included.

    Ranges are computed in decimal, so 0:1.5:0.15 holds exactly 0.45 and 1.5.
    """
    if ":" not in text:
        return tuple(dict.fromkeys(float(_decimal(part)) for part in text.split(",")))
    parts = text.split(":")
    if len(parts) != 3:
        raise SpecError(f"--lambdas {text!r} is not start:stop:step")
    start, stop, step = (_decimal(part) for part in parts)
    if step <= 0 or stop < start:
        raise SpecError(f"--lambdas {text!r} needs a step above 0 and a stop from the start up")
    if stop - start >= step * MAX_LAMBDAS:
        raise SpecError(f"--lambdas {text!r} asks for more than {MAX_LAMBDAS} points")
    count = int((stop - start) / step) + 1
    return tuple(float(start + step * i) for i in range(count))


def parse_mix(text: str) -> tuple[float, ...]:
    """Coefficients of vectors from ``0.5,0.3``, in the order of the vectors; one may come twice."""
    return tuple(float(_decimal(part)) for part in text.split(","))


def _decimal(text: str) -> Decimal:
    try:
        value = Decimal(text.strip())
    except InvalidOperation:
        raise SpecError(f"lambda {text!r} is not a number") from None
    if not (value.is_finite() and math.isfinite(float(value))):
        raise SpecError(f"lambda must be finite, got {text!r}")
    return value
