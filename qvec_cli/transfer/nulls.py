"""Vectors that carry nothing, as long as a real one in every tensor: what any shift would do.

A quantization vector is worth something only if it beats these (cf. arXiv:2604.03420, whose
authors use the same three arms).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Final

import numpy as np

from qvec_cli.specs import Null

Array = np.ndarray[Any, np.dtype[Any]]


def null(
    kind: Null, rho: Mapping[str, Array], drift: Mapping[str, Array] | None, key: str
) -> dict[str, Array]:
    """The null vector of a kind for a real one.

    Args:
        kind: which.
        rho: the real vector, float32.
        drift: the donor's task vector, theta_FP - theta_base, for ``taskvec`` only.
        key: tells this draw from others; every tensor has a stream of its own, named by
            (key, kind, tensor).

    Returns:
        Float32 arrays of rho's names, shapes and, up to rounding, Euclidean norms; where there
        is nothing to scale up, zeros.
    """
    return {
        name: matched(NULLS[kind](block, _stream(key, kind, name), (drift or {}).get(name)), block)
        for name, block in rho.items()
    }


def matched(block: Array, like: Array) -> Array:
    """A block stretched to another's Euclidean norm; zeros stay zeros."""
    norm, length = _norm(block), _norm(like)
    if norm == 0:
        return np.zeros_like(like)
    return np.asarray(block * np.float32(length / norm))


def _random(block: Array, stream: np.random.Generator, drift: Array | None) -> Array:
    """Gaussian numbers."""
    return np.asarray(stream.standard_normal(block.shape, dtype=np.float32))


def _shuffle(block: Array, stream: np.random.Generator, drift: Array | None) -> Array:
    """The vector's own numbers, in another order within each row."""
    rows = block.reshape(block.shape[0], -1) if block.ndim > 1 else block.reshape(1, -1)
    return stream.permuted(rows, axis=1).reshape(block.shape)


def _taskvec(block: Array, stream: np.random.Generator, drift: Array | None) -> Array:
    """What the donor's task has changed, without quantization."""
    assert drift is not None
    return drift


NULLS: Final[Mapping[Null, Callable[[Array, np.random.Generator, Array | None], Array]]] = {
    Null.RANDOM: _random,
    Null.SHUFFLE: _shuffle,
    Null.TASKVEC: _taskvec,
}
"""A kind of null is its word in specs, its function and its row here."""


def _norm(block: Array) -> float:
    return math.sqrt(float(np.square(block, dtype=np.float64).sum()))


def _stream(key: str, kind: Null, name: str) -> np.random.Generator:
    digest = sha256(f"{key} {kind} {name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
