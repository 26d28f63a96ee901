"""Two files side by side: names, shapes, formats, and how far their numbers are apart."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from qvec_cli.checkpoint.dtypes import to_float32
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.ops.metrics import Input, Metrics
from qvec_cli.ops.opening import opened
from qvec_cli.specs import Listener
from qvec_cli.vector.geometry import Norm


def compare(first: Path, second: Path, listener: Listener) -> Metrics:
    """Reads both files once, tensor by tensor in the order of the first.

    Raises:
        CheckpointError: not a whole and valid checkpoint.
    """
    started = time.perf_counter()
    with opened(first, listener) as a, opened(second, listener) as b:
        ours, theirs = ([*c, *c.attached] for c in (a, b))
        shared = [name for name in ours if name in set(theirs)]
        apart, size = Norm(), Norm()
        rows = [_row(a, b, name, apart, size) for name in shared]
        digests = a.contents(), b.contents()
        results = {
            "same": digests[0] == digests[1],
            "only_in_first": [name for name in ours if name not in set(theirs)],
            "only_in_second": [name for name in theirs if name not in set(ours)],
            "tensors": rows,
            "norm": _number(apart.value),
            "relative_norm": _ratio(apart, size),
        }
        inputs = tuple(
            Input(str(c.path), c.kind, digest) for c, digest in zip((a, b), digests, strict=True)
        )
    return Metrics("inspect", inputs, {"compare": True}, results, started=started)


def _row(a: Checkpoint, b: Checkpoint, name: str, apart: Norm, size: Norm) -> dict[str, Any]:
    """One tensor: its norm of b - a, in float32, or how many of its integers differ."""
    ours, theirs = (c.attached.get(name) or c[name] for c in (a, b))
    facts: dict[str, Any] = {
        "name": name,
        "dtype": [ours.dtype, theirs.dtype],
        "shape": [list(ours.shape), list(theirs.shape)],
    }
    if ours.shape != theirs.shape or ours.floating != theirs.floating:
        return facts
    own, base, unequal = Norm(), Norm(), 0
    for raw, other in zip(a.blocks(name), b.blocks(name), strict=True):
        if ours.floating:
            x, y = to_float32(raw, ours.dtype), to_float32(other, theirs.dtype)
            with np.errstate(over="ignore", invalid="ignore"):
                difference = y - x
            for norm in (own, apart):
                norm.add(difference)
            for norm in (base, size):
                norm.add(x)
            unequal += int((x != y).sum())
        else:
            unequal += int((raw != other).sum())
    facts["unequal"] = unequal
    if ours.floating:
        facts["norm"] = _number(own.value)
        facts["relative_norm"] = _ratio(own, base)
    return facts


def _ratio(norm: Norm, of: Norm) -> float | None:
    return _number(norm.value / of.value) if of.value else None


def _number(value: float) -> float | None:
    """None for what JSON cannot say: the norm of weights that are not finite."""
    return value if math.isfinite(value) else None
