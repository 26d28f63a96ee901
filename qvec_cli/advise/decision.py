"""The decision that measured candidates allow: as it is, another grid, a patch, images, or QAT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np

from qvec_cli.selection.choose import Average

Array = np.ndarray[Any, np.dtype[Any]]

NOTHING_LOST: Final = 0.98
"""Share of the float answers that plain quantization keeps where there is nothing to recover."""

RELIABLE: Final = (
    (0.8, 0.75, 1.0),
    (0.7, 0.55, 1.0),
    (0.5, 0.45, 1.0),
    (0.3, 0.1, 1.0),
    (0.0, 0.0, 0.85),
)
"""From which share of the float answers on the pictures that keep fewest, which shares were kept on
the receiver's own test images: the lowest and the highest of 134 models, at 2 to 4 bits, of seven
receivers of the tiny base and seven of the real one; and of 437 candidates of advise, of the real
study and of its far receivers at 3 and 2 bits, shares of the float accuracy."""

UNKNOWN: Final = 0.5
"""Share below which these are too far apart to tell."""

WEAK: Final = 0.3
"""Share below which few models kept even half: the best candidate is not enough."""

FAR: Final = 0.2
"""How far the shares on generated and on real pictures may be apart. One receiver whose model kept
.74 on the pictures that it was calibrated on kept .43 on generated ones, and .44 on its own."""

TIE: Final = 0.05
"""Share of the best plain grid's distance by which two candidates may differ and count as equal:
the measure is a guard, and no judge of half points."""

UNMOVED: Final = 0.05
"""Mean distance from which on kept answers do not count: all images may be of one class."""

EQUAL_BITS: Final = 0.05
"""Bits per weight by which a candidate may be dearer and still count as equally dear."""


class Decision(StrEnum):
    """What to do with a receiver."""

    NOTHING = "nothing to recover"  # plain quantization keeps the answers
    GRID = "another grid"  # that costs no more bits
    ROTATE = "rotate"  # and round
    PATCH = "patch"
    CALIBRATE = "calibrate"  # on statistics or images
    QAT = "QAT after all"  # nothing else comes near the float answers


class Family(StrEnum):
    """What kind of candidate it is, the cheapest first."""

    PLAIN = "plain"  # rounding: nothing but the receiver
    ROTATED = "rotated"  # the same in a rotated basis
    PATCH = "patch"  # a vector
    MOMENTS = "moments"  # statistics that came in a file
    NOISE = "noise"  # through the receiver
    GENERATED = "generated"  # pictures that nobody took
    IMAGES = "images"  # that are not the receiver's
    REFINED = "refined"  # short training on them


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate, measured on images that it has not seen."""

    name: str
    family: Family
    bits_per_weight: float
    distances: Array  # [N], to the float answers
    kept: float  # share of images whose first class is the float one's, on those that keep fewest
    apart: float = 0.0  # how much less that is than on the kind of pictures that keeps most

    @property
    def mean(self) -> float:
        """The mean distance."""
        return Average.of(self.distances).mean


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is recommended, and how sure that is."""

    decision: Decision
    chosen: Judged
    plain: Judged  # the best plain grid of equal bits
    sure: str
    why: str

    @property
    def expected(self) -> tuple[float, float]:
        """What the chosen one may keep on the receiver's own images, from the lowest share up."""
        return next((low, high) for least, low, high in RELIABLE if self.chosen.kept >= least)


def decide(
    candidates: Sequence[Judged], bits: float, *, trusted: bool, real: bool = True
) -> Verdict:
    """The candidate to take, never one that is measured worse than the best plain grid.

    Args:
        candidates: at least one of them plain and of equal bits.
        bits: per weight, that candidates may cost.
        trusted: whether the images are pictures to the model; noise is no judge, and then only
            what needs no choice between families is recommended: the best plain grid, or moments.
        real: whether somebody took some of them; generated ones alone leave no choice sure.
    """
    equal = [c for c in candidates if c.bits_per_weight <= bits + EQUAL_BITS]
    plain = min((c for c in equal if c.family is Family.PLAIN), key=_rank)
    if plain.kept >= NOTHING_LOST and plain.mean < UNMOVED:
        why = f"plain quantization keeps {plain.kept:.1%} of the float answers"
        sure = (
            "sure"
            if trusted and real
            else f"likely, by {'generated pictures' if trusted else 'noise'} alone"
        )
        return Verdict(Decision.NOTHING, plain, plain, sure, why)
    if not trusted:
        return _untrusted(equal, plain)
    able = [c for c in equal if c.mean <= plain.mean]
    chosen = _cheapest(able, TIE * plain.mean)
    decision = _DECISIONS.get(chosen.family, Decision.CALIBRATE)
    why = f"it keeps {chosen.kept:.1%} of the float answers, the best plain grid {plain.kept:.1%}"
    if chosen is plain:
        why = f"the best plain grid keeps {plain.kept:.1%} of the float answers"
    if chosen.kept < WEAK:
        decision, why = Decision.QAT, f"{why}: too few"
    return Verdict(decision, chosen, plain, _assurance(chosen, plain, real=real), why)


def _assurance(chosen: Judged, plain: Judged, *, real: bool) -> str:
    """How sure a choice is, in words; unknown where the pictures cannot tell."""
    if chosen.apart > FAR:
        return "unknown: one kind of pictures keeps far more than another"
    if WEAK <= chosen.kept < UNKNOWN:
        return "unknown: too few answers are kept on these pictures to tell"
    sure = _sure(chosen, plain)
    return "likely, by generated pictures alone" if sure == "sure" and not real else sure


_DECISIONS: Final = {
    Family.PLAIN: Decision.GRID,
    Family.ROTATED: Decision.ROTATE,
    Family.PATCH: Decision.PATCH,
}
"""What a chosen family comes to; all others calibrate."""


def _cheapest(candidates: Sequence[Judged], margin: float) -> Judged:
    """Of those that count as equal to the best, the one of the cheapest family, then the best."""
    best, order = min(candidates, key=_rank), [*Family]

    def near(candidate: Judged) -> bool:
        apart = Average.of(candidate.distances - best.distances)
        return apart.mean <= max(apart.standard_error, margin)

    return min(filter(near, candidates), key=lambda c: (order.index(c.family), *_rank(c)))


def _rank(candidate: Judged) -> tuple[float, float, str]:
    """The nearest first, of those that are as near the smallest; their names settle the rest."""
    return candidate.mean, candidate.bits_per_weight, candidate.name


def _untrusted(equal: Sequence[Judged], plain: Judged) -> Verdict:
    """Without pictures: moments, whose images were real, unless noise finds them worse."""
    moments = [c for c in equal if c.family is Family.MOMENTS and c.mean <= plain.mean]
    chosen = min(moments, key=_rank) if moments else plain
    decision = Decision.CALIBRATE if moments else Decision.GRID
    why = (
        "images that are little more than noise to the model cannot judge the other ways: "
        "name other pictures with --proxy"
    )
    return Verdict(decision, chosen, plain, "not sure", why)


def _sure(chosen: Judged, plain: Judged) -> str:
    """In words, from how many standard errors lie between it and the best plain grid."""
    if chosen is plain:
        return "no other way is clearly better"
    gain = Average.of(plain.distances - chosen.distances)
    errors = gain.mean / gain.standard_error if gain.standard_error else 0.0
    return "sure" if errors > 3 else "likely" if errors > 1 else "not sure"
