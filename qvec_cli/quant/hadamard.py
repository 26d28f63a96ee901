"""Orthogonal changes of basis by Hadamard matrices.

A Hadamard matrix H of order d has entries of 1 and -1 and H H^T = d I. Orders are Sylvester's
doublings of Paley's first construction, q + 1 for a prime q = 3 mod 4 (12, 20, 24, 44, 72, ...).
With all ones in its first column and signs e from a seed, R = H diag(1, e_2, ..., e_d) H^T / d is
orthogonal, symmetric, and keeps the vector of ones: what a LayerNorm takes for mean and variance
is the same before and after. (QuaRot, arXiv:2404.00456, and SpinQuant, arXiv:2405.16406, rotate
RMSNorms, for which any orthogonal matrix does.)

Vectors are turned as multiples of a small unit, in float64, whose sums are exact in any order: a
library of matrix products does them, and the bits are the same on any machine and its threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from itertools import product
from math import prod
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_BITS: Final = 53
"""Of the whole numbers that float64 holds."""

_THREADS: Final = 2
"""That turn pieces side by side."""

_PIECE: Final = 1 << 17
"""Elements that are turned at a time, so that they stay in a cache."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A change of basis of every ``order`` neighbours along an axis, x -> x R or, per head, x A."""

    order: int
    seed: int | None = None  # of R; None: A = H / sqrt(order), which moves the vector of ones too
    start: int = 0  # what lies before along the axis stays

    def __post_init__(self) -> None:
        if not has_hadamard(self.order):
            raise ValueError(f"no Hadamard matrix of order {self.order} is known here")

    def matrix(self) -> Array:
        """R or A itself, [order, order], float32."""
        return self.along(np.eye(self.order, dtype=np.float32), 1)

    def along(self, array: Array, axis: int) -> Array:
        """The array, float32, with every vector along an axis turned; a new array."""
        whole = array.reshape(_sizes(array.shape, axis))
        turned = np.empty(whole.shape, np.float32)
        turned[:, : self.start] = whole[:, : self.start]

        def turn(piece: tuple[slice, slice, slice]) -> None:
            with np.errstate(all="ignore"):  # what is no number any more, whoever asked will find
                turned[piece] = self._turned(whole[piece])

        with ThreadPoolExecutor(_THREADS) as pool:
            deque(pool.map(turn, self._pieces(whole.shape)), maxlen=0)
        return turned.reshape(array.shape)

    def _pieces(self, shape: tuple[int, ...]) -> Iterator[tuple[slice, slice, slice]]:
        """Where vectors lie that are turned together."""
        before, length, after = shape
        width = max(1, min(after, _PIECE // self.order))
        count = max(1, _PIECE // (self.order * width))
        starts = range(self.start, length, self.order)
        for n, start, column in product(range(0, before, count), starts, range(0, after, width)):
            vectors = slice(start, start + self.order)
            yield slice(n, n + count), vectors, slice(column, column + width)

    def _turned(self, piece: Array) -> Array:
        """Vectors [n, order, m] in the new basis, float64."""
        (high, low), unit = _factors(self.order), self._unit(piece)
        turned = _product(np.rint(piece * (1 / unit)), high.T, low.T)
        if self.seed is None:
            turned *= unit / np.sqrt(self.order)
            return turned
        turned *= _signs(self.order, self.seed)[:, None]
        turned = _product(turned, high, low)
        turned *= unit / self.order
        return turned

    def _unit(self, piece: Array) -> Array:
        """Of each vector, a power of two to whose multiples it is rounded: sums of those are exact.

        It leaves the largest number of the vector 33 bits at order 1024, where float32 has 24.
        """
        _, exponent = np.frexp(np.abs(piece).max(axis=1, keepdims=True))
        growth = (self.order - 1).bit_length() * (1 if self.seed is None else 2)
        unit: Array = np.ldexp(1.0, exponent + (growth - _BITS))
        return unit


def _sizes(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """How many numbers lie before an axis, along it, and behind it."""
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


def has_hadamard(order: int) -> bool:
    """Whether a matrix of this order can be made here."""
    return order > 0 and _core(order) is not None


@cache
def _core(order: int) -> int | None:
    """The smallest order of Paley's, or 1, of which this one is a doubling."""
    smallest = order & -order
    cores = (order // smallest << k for k in range(smallest.bit_length()))
    return next((core for core in cores if core == 1 or _is_paley(core)), None)


def _is_paley(order: int) -> bool:
    prime = order - 1
    return order % 4 == 0 and all(prime % n for n in range(2, int(prime**0.5) + 1)) and prime > 2


@cache
def _paley(order: int) -> Array:
    """A Hadamard matrix [order, order] with ones in its first column, by squares modulo q."""
    prime = order - 1
    squares = {n * n % prime for n in range(1, prime)}
    matrix = np.ones((order, order), np.int8)
    for row in range(prime):
        for column in range(prime):
            apart = (row - column) % prime
            matrix[row + 1, column + 1] = 1 if apart in squares else -1
    matrix[1:, 0] = -1
    matrix[np.arange(1, order), np.arange(1, order)] = 1
    matrix[1:] *= -1  # the first column is ones
    return matrix


@cache
def _signs(order: int, seed: int) -> Array:
    """1, and order - 1 signs that a seed tells, float32."""
    digests = (sha256(f"{seed} rotate {order} {n}".encode()).digest() for n in range(order))
    signs = np.array([1 if digest[0] & 1 else -1 for digest in digests], np.float32)
    signs[0] = 1
    return signs


@cache
def _factors(order: int) -> tuple[Array, Array]:
    """Two matrices of about one size, float64, whose Kronecker product is H."""
    core = _core(order)
    assert core is not None
    low = 1
    while order // (2 * low) >= 2 * low and order // (2 * low) % core == 0:
        low *= 2
    high = np.kron(_paley(core) if core > 1 else np.ones((1, 1)), _doubled(order // low // core))
    return high.astype(np.float64), _doubled(low)


def _doubled(order: int) -> Array:
    """Sylvester's matrix [order, order], for a power of two."""
    return np.ones((1, 1)) if order == 1 else np.kron([[1, 1], [1, -1]], _doubled(order // 2))


def _product(piece: Array, high: Array, low: Array) -> Array:
    """The Kronecker product of two matrices times vectors [n, order, m]."""
    count, _, width = piece.shape
    sides = (count, len(high), len(low))
    if width == 1:  # a product of matrices where it would be one of a matrix and a vector
        whole: Array = high @ (piece.reshape(sides) @ low.T)
    else:
        inner = low @ piece.reshape(*sides, width)
        whole = (high @ inner.swapaxes(1, 2)).swapaxes(1, 2)
    return whole.reshape(piece.shape)
