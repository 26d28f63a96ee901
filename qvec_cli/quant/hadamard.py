"""Orthogonal changes of basis by Hadamard matrices.

A Hadamard matrix H of order d has entries of 1 and -1 and H H^T = d I. Orders are Sylvester's
doublings of Paley's first construction, q + 1 for a prime q = 3 mod 4 (12, 20, 24, 44, 72, ...).
With all ones in its first column and signs e from a seed, R = H diag(1, e_2, ..., e_d) H^T / d is
orthogonal, symmetric, and keeps the vector of ones: what a LayerNorm takes for mean and variance
is the same before and after. (QuaRot, arXiv:2404.00456, and SpinQuant, arXiv:2405.16406, rotate
RMSNorms, for which any orthogonal matrix does.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from math import prod
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_PIECE: Final = 1 << 19
"""Elements that are turned at a time, so that they stay in a cache."""

_LINE: Final = 16
"""Numbers in a line of the cache."""


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
        before, length, after = _sizes(array.shape, axis)
        whole = np.array(array, np.float32, order="C").reshape(before, length, after)
        for start in range(self.start, length, self.order):
            part = whole[:, start : start + self.order]
            if after == 1:  # rows, which are turned as columns
                self._turn(part[:, :, 0], _copy_transposed)
            else:
                for columns in part:
                    self._turn(columns.T, lambda to, source: np.copyto(to, source.T))
        return whole.reshape(array.shape)

    def _turn(self, vectors: Array, copy: Callable[[Array, Array], None]) -> None:
        """Turns vectors [n, order] in place, some at a time, which lie as columns meanwhile."""
        step = max(1, _PIECE // self.order)
        columns, spare = np.empty((2, self.order * min(step, len(vectors))), np.float32)
        for start in range(0, len(vectors), step):
            piece = vectors[start : start + step]
            work = columns[: piece.size].reshape(self.order, -1)
            copy(work, piece)
            copy(piece, self._turned(work, spare[: piece.size]))

    def _turned(self, columns: Array, spare: Array) -> Array:
        """Columns [order, n] in the new basis; both arrays are overwritten."""
        spare = spare.reshape(columns.shape)
        turned, spare = _product(columns, spare, transposed=True)
        if self.seed is None:
            turned /= np.float32(np.sqrt(self.order))
            return turned
        turned *= _signs(self.order, self.seed)[:, None]
        turned, _ = _product(turned, spare, transposed=False)
        turned /= np.float32(self.order)
        return turned


def _sizes(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """How many numbers lie before an axis, along it, and behind it."""
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


def _copy_transposed(to: Array, source: Array) -> None:
    """``to`` becomes the transpose, a line of the cache at a time."""
    for start in range(0, len(source), _LINE):
        to[:, start : start + _LINE] = source[start : start + _LINE].T


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


def _product(columns: Array, spare: Array, *, transposed: bool) -> tuple[Array, Array]:
    """H or its transpose times columns [order, n], and an array that is free; both overwritten.

    Additions in a fixed order: the same bits on any machine, whatever its threads.
    """
    order, half = len(columns), 1
    core = _core(order)
    assert core is not None
    while half < order // core:
        old, new = (each.reshape(-1, 2, half * each.shape[1]) for each in (columns, spare))
        np.add(old[:, 0], old[:, 1], out=new[:, 0])
        np.subtract(old[:, 0], old[:, 1], out=new[:, 1])
        columns, spare, half = spare, columns, 2 * half
    if core == 1:
        return columns, spare
    matrix = _paley(core).T if transposed else _paley(core)
    rows, sums = columns.reshape(core, -1), spare.reshape(core, -1)
    for out, signs in zip(sums, matrix, strict=True):
        np.multiply(rows[0], signs[0], out=out)
        for row, sign in zip(rows[1:], signs[1:], strict=True):
            (np.add if sign > 0 else np.subtract)(out, row, out=out)
    return spare, columns
