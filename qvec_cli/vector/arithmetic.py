"""Arithmetic on quantization vectors: difference, addition, norm, and how several become one.

``difference`` and ``apply`` are the two lines that the method is, written for numpy and torch
alike: both give the same bits, because product and sum are two float32 roundings (a fused
multiply-add would be one).

Merge rules work tensor by tensor. Their sums are in float64 and rounded once to float32, so that
neither their order nor equal vectors show. One vector is itself, bit for bit, under every rule,
unless a mix scales it. Deviations: TIES trims each tensor to its own top share, where the authors
trim the whole vector at once, so here every tensor keeps as large a share as any other; numbers of
one magnitude at the edge of the share all stay. Where the signs balance, the result is zero, as the
paper's formula has it (the authors' code takes the vector's prevailing sign).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import numpy as np

from qvec_cli.errors import SpecError
from qvec_cli.specs import Rule

Array = np.ndarray[Any, np.dtype[Any]]
Streams = Sequence[np.random.Generator]
Floats = Any  # a float32 array of numpy or tensor of torch


def difference(theta_qat: Floats, theta_fp: Floats) -> Floats:
    """The quantization vector of one block, float32, in weight units."""
    return theta_qat - theta_fp


def apply(theta: Floats, rho: Floats, lam: float) -> Floats:
    """``theta + lam * rho`` of blocks of one shape, in float32; lam = 0 is theta, bit for bit."""
    return theta if lam == 0 else theta + lam * rho


class Norm:
    """The Euclidean norm of everything added so far."""

    def __init__(self) -> None:
        self._squares = 0.0

    def add(self, block: Array) -> None:
        """Takes a float32 block; its own sum is in float32, the running sum in float64."""
        flat = block.reshape(-1)
        with np.errstate(over="ignore"):
            squares = float(np.dot(flat, flat))
        if not 1e-30 < squares < math.inf:  # float32 may have lost squares at either end
            squares = float(np.square(flat, dtype=np.float64).sum())
        self._squares += squares

    @property
    def value(self) -> float:
        """The norm."""
        return math.sqrt(self._squares)


@dataclass(frozen=True, slots=True)
class Merge:
    """A rule with its settings."""

    rule: Rule = Rule.MEAN
    mix: tuple[float, ...] = ()  # one coefficient a vector, for ``weighted`` only
    density: float | None = None  # share of the numbers that is kept; None: the paper's
    seed: int | None = None  # of what ``dare`` drops; None: 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rule", Rule(self.rule))
        row = RULES[self.rule]
        if self.mix and self.rule is not Rule.WEIGHTED:
            raise SpecError("--mix goes with --rule weighted")
        if self.rule is Rule.WEIGHTED and not self.mix:
            raise SpecError("--rule weighted needs --mix, one number for each vector")
        if not all(map(math.isfinite, self.mix)):
            raise SpecError(f"--mix must be finite, got {', '.join(f'{m:g}' for m in self.mix)}")
        if self.density is not None and row.density is None:
            raise SpecError("--density goes with --rule ties and --rule dare")
        if self.density is not None and not 0 < self.density <= 1:
            raise SpecError(f"--density must be above 0 and at most 1, got {self.density:g}")
        if self.seed is not None and self.rule is not Rule.DARE:
            raise SpecError("--seed goes with --rule dare: no other rule draws numbers")

    @property
    def kept(self) -> float:
        """The density in force; 1 for a rule that drops nothing."""
        row = RULES[self.rule]
        return self.density if self.density is not None else row.density or 1.0

    @property
    def whole(self) -> bool:
        """Whether a tensor must be there as a whole, and not block by block."""
        return RULES[self.rule].whole

    def require(self, count: int) -> None:
        """Refuses a mix for another number of vectors: SpecError names both numbers."""
        if self.mix and len(self.mix) != count:
            raise SpecError(
                f"--mix has {len(self.mix)} numbers for {count} vectors",
                hint="One coefficient for each vector, in the order of the files.",
            )

    def to_json(self) -> dict[str, Any]:
        """What counts of it, as cards and metrics hold it."""
        facts: dict[str, Any] = {"rule": str(self.rule)}
        if self.mix:
            facts["mix"] = list(self.mix)
        if RULES[self.rule].density is not None:
            facts["density"] = self.kept
        if self.rule is Rule.DARE:
            facts["seed"] = self.seed or 0
        return facts


def merged(blocks: Sequence[Array], merge: Merge, streams: Streams) -> Array:
    """One block of the merged vector, float32; infinite where the numbers are too large for it.

    Args:
        blocks: the same block of each vector, float32; all of a tensor if ``merge.whole``.
        merge: the rule.
        streams: from ``draws``, one a vector, which go on from block to block of a tensor.
    """
    if len(blocks) == 1 and merge.mix in ((), (1.0,)):
        return blocks[0]
    with np.errstate(over="ignore", invalid="ignore"):
        return RULES[merge.rule].function(blocks, merge, streams).astype(np.float32)


def draws(merge: Merge, name: str, count: int) -> Streams:
    """A stream of random numbers for each vector, named by (seed, tensor, place of the vector)."""
    if merge.rule is not Rule.DARE:
        return ()
    keys = (f"{merge.seed or 0} dare {place} {name}" for place in range(count))
    digests = (sha256(key.encode()).digest() for key in keys)
    return [np.random.default_rng(int.from_bytes(digest[:16], "little")) for digest in digests]


def _mean(blocks: Sequence[Array], merge: Merge, streams: Streams) -> Array:
    return _sum(blocks) / len(blocks)


def _weighted(blocks: Sequence[Array], merge: Merge, streams: Streams) -> Array:
    total = merge.mix[0] * blocks[0].astype(np.float64)
    for coefficient, block in zip(merge.mix[1:], blocks[1:], strict=True):
        total += coefficient * block.astype(np.float64)
    return np.asarray(total)


def _ties(blocks: Sequence[Array], merge: Merge, streams: Streams) -> Array:
    """Trim, elect a sign by summed magnitude, and take the mean of those that agree."""
    trimmed = [_trimmed(block, merge.kept) for block in blocks]
    elected = np.sign(_sum(trimmed))
    total = np.zeros(elected.shape)
    agreeing = np.zeros(elected.shape, np.int32)
    for block in trimmed:
        agrees = np.sign(block) == elected
        total += np.where(agrees, block, np.float32(0))
        agreeing += agrees
    return np.asarray(total / np.maximum(agreeing, 1))


def _dare(blocks: Sequence[Array], merge: Merge, streams: Streams) -> Array:
    """Drop numbers at random, stretch the rest to the same expectation, and take the mean."""
    kept = (
        np.where(stream.random(block.shape) < merge.kept, block, np.float32(0))
        for block, stream in zip(blocks, streams, strict=True)
    )
    return np.asarray(_sum(kept) / (len(blocks) * merge.kept))


def _sum(blocks: Any) -> Array:
    """The sum in float64, which is exact unless magnitudes are a hundred million times apart."""
    first, *rest = (block.astype(np.float64) for block in blocks)
    for block in rest:
        first += block
    return np.asarray(first)


def _trimmed(block: Array, density: float) -> Array:
    """The share of largest magnitude, at least one number; zeros elsewhere."""
    dropped = block.size - max(1, round(density * block.size))
    if dropped <= 0:
        return block
    sizes = np.abs(block)
    edge = np.partition(sizes.reshape(-1), dropped)[dropped]
    return np.where(sizes >= edge, block, np.float32(0))


@dataclass(frozen=True, slots=True)
class Merger:
    """One row of the table."""

    function: Callable[[Sequence[Array], Merge, Streams], Array]  # float32 in, float64 out
    summary: str
    density: float | None = None  # the paper's own, where numbers are dropped
    whole: bool = False


RULES: Final[Mapping[Rule, Merger]] = {
    Rule.MEAN: Merger(_mean, "the mean"),
    Rule.WEIGHTED: Merger(_weighted, "the sum of each vector times its number in --mix"),
    Rule.TIES: Merger(
        _ties,
        "of each tensor the largest numbers, and the mean of those of the prevailing sign; "
        "Yadav et al. 2023, arXiv:2306.01708",
        density=0.2,
        whole=True,
    ),
    Rule.DARE: Merger(
        _dare,
        "the mean of what a draw leaves of each vector, stretched by 1 / density; "
        "Yu et al. 2023, arXiv:2311.03099",
        density=0.1,
    ),
}
"""A rule is its word in specs, its function and its row here."""
