"""Which lambda to take, from how far each image's answer is from the float one at each lambda."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from qvec_cli.errors import NotFiniteError
from qvec_cli.specs import Listener

Array = np.ndarray[Any, np.dtype[Any]]

GUARD: Final = 2.0
"""Standard errors by which a lambda must be better than 0 to be taken at all."""

LEAST: Final = 0.01
"""Share of the damage that it must remove besides: where answers have collapsed, any nudge removes
a little, and helps nobody."""

NEGATIVE: Final = (-0.5, -0.25)
"""Lambdas below 0 that always take part: some donors help with the other sign."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The lambdas at which a network is not finite: no points of its curve, each told once."""

    listener: Listener
    name: str = ""  # of the vector, for the listener
    reasons: dict[float, str] = field(default_factory=dict)  # by lambda

    @contextlib.contextmanager
    def skipping(self, lam: float) -> Iterator[None]:
        """Leaves a lambda out where the block finds the network not finite.

        Raises NotFiniteError: at lambda 0, without which there is no choice.
        """
        try:
            yield
        except NotFiniteError as error:
            if lam == 0:
                raise
            self.reasons[lam] = str(error)
            name = f"{self.name}: " if self.name else ""
            self.listener.note(f"{name}lambda {lam:g} is left out: {error}")

    def kept(self, curve: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The points of a curve that are not left out."""
        return [point for point in curve if point["lambda"] not in self.reasons]

    def points(self) -> list[dict[str, Any]]:
        """What is left out, as metrics hold it."""
        return [{"lambda": lam, "reason": text} for lam, text in sorted(self.reasons.items())]


def skipped(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The entry of metrics on what is left out; none where that is nothing."""
    return {"skipped": [*points]} if points else {}


@dataclass(frozen=True, slots=True)
class Average:
    """The mean over images, and its standard error."""

    mean: float
    standard_error: float

    @classmethod
    def of(cls, values: Array) -> Average:
        """Of one number an image, exactly summed, so that their order does not matter."""
        count = len(values)
        mean = math.fsum(values) / count
        spread = math.fsum(float(v - mean) ** 2 for v in values) / max(count - 1, 1)
        return cls(mean, math.sqrt(spread / count))


def choose_lambda(lambdas: Sequence[float], distances: Sequence[Array]) -> int:
    """The place of the least mean distance, of equal ones that of the smallest |lambda|.

    Lambda 0, plain quantization, is kept unless the best is better by two standard errors of the
    difference, image by image, and removes a hundredth of the distance.

    Args:
        lambdas: 0 among them.
        distances: of each lambda, [N] over the same images, 0 where the answers agree.
    """
    plain = lambdas.index(0.0)
    best = min(range(len(lambdas)), key=lambda i: (Average.of(distances[i]).mean, abs(lambdas[i])))
    return best if _clear(distances[best], distances[plain]) else plain


def removed(chosen: Array, plain: Array) -> float:
    """The share of quantization's damage that is gone; negative where there is more of it."""
    before = Average.of(plain).mean
    return 1 - Average.of(chosen).mean / before if before > 0 else 0.0


def _clear(ours: Array, plain: Array) -> bool:
    """Whether a distance is surely, and not only a little, below that of lambda 0."""
    return beats(ours, plain, GUARD) and removed(ours, plain) >= LEAST


def beats(ours: Array, theirs: Array, errors: float) -> bool:
    """Whether a mean is lower by more than so many standard errors of the difference."""
    gain = Average.of(theirs - ours)
    return gain.mean > errors * gain.standard_error


RIDGE: Final = 0.01
"""Pull of the coefficients towards 0, as a share of the mean diagonal."""


@dataclass(frozen=True, slots=True)
class MixFit:
    """The coefficients that least squares gives."""

    mix: Array  # [vectors], float64
    explained: float  # share of the damage that it would cancel, were changes linear: 0 to 1


def fit(changes: Array, damage: Array, chances: Array, *, ridge: float = RIDGE) -> MixFit:
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
    goal = _whitened(damage.astype(np.float64), chances).reshape(-1)
    normal, right = flat @ flat.T, flat @ goal
    pull = ridge * float(np.trace(normal)) / len(normal)
    energy = float(goal @ goal)
    if (pull == 0 and ridge > 0) or energy == 0:  # vectors that change nothing, or no damage
        return MixFit(np.zeros(len(changes)), 0.0)
    mix = 0.0 - np.linalg.lstsq(normal + pull * np.eye(len(normal)), right, rcond=None)[0]
    left = goal + mix @ flat
    return MixFit(mix, max(0.0, 1 - float(left @ left) / energy))


def _whitened(logits: Array, chances: Array) -> Array:
    """Vectors whose dot products are those of logits in the metric diag(p) - p p^T."""
    mean = (chances * logits).sum(axis=-1, keepdims=True)
    return np.asarray(np.sqrt(chances) * (logits - mean))
