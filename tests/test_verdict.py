"""The decision of advise: what it may recommend, on any numbers that candidates come to."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from qvec_cli.advise.decision import (
    EQUAL_BITS,
    FAR,
    NOTHING_LOST,
    RELIABLE,
    TIE,
    UNKNOWN,
    UNMOVED,
    WEAK,
    Decision,
    Family,
    Judged,
    Verdict,
    decide,
)

BITS = 3.4


def judged(
    name: str,
    family: Family,
    distance: float,
    *,
    kept: float = 0.9,
    bits: float = BITS,
    spread: float = 0.0,
    images: int = 64,
) -> Judged:
    """A candidate whose distances have exactly that mean."""
    noise = np.random.default_rng(len(name)).standard_normal(images)
    noise -= noise.mean()
    return Judged(name, family, bits, distance + spread * noise, kept)


def drawn(seed: int) -> list[Judged]:
    """Any candidates, the first of them plain and of equal bits."""
    dice, stream = random.Random(seed), np.random.default_rng(seed)
    images, shared = dice.randrange(2, 40), stream.random(40)
    families = [Family.PLAIN, *dice.choices(list(Family), k=dice.randrange(1, 14))]
    found = []
    for place, family in enumerate(families):
        scale, spread = dice.choice([0.02, 0.2, 1.0]) * dice.random(), dice.choice([0, 0.3, 1])
        distances = scale * (shared[:images] + spread * stream.random(images))
        bits = BITS + (dice.choice([-0.3, 0, EQUAL_BITS / 2, 0.2, 1]) if place else 0)
        kept = dice.choice([dice.random(), 0.85, 0.95, 1.0])
        found.append(Judged(f"{family} {place}", family, bits, distances, kept))
    return found


def equal(candidates: list[Judged]) -> list[Judged]:
    return [c for c in candidates if c.bits_per_weight <= BITS + EQUAL_BITS]


@pytest.mark.parametrize("trusted", [True, False])
def test_nothing_is_recommended_that_is_measured_worse_than_the_best_plain_grid(
    trusted: bool,
) -> None:
    for seed in range(400):
        candidates = drawn(seed)
        verdict = decide(candidates, BITS, trusted=trusted)
        plain = [c.mean for c in equal(candidates) if c.family is Family.PLAIN]
        assert verdict.plain.mean == min(plain)
        assert verdict.chosen.mean <= min(plain)
        assert verdict.chosen.bits_per_weight <= BITS + EQUAL_BITS


@pytest.mark.parametrize("trusted", [True, False])
def test_the_order_of_candidates_and_of_images_does_not_matter(trusted: bool) -> None:
    for seed in range(200):
        candidates = drawn(seed)
        dice = random.Random(seed)
        order = list(range(len(candidates[0].distances)))
        dice.shuffle(order)
        other = [replace(c, distances=c.distances[order]) for c in candidates]
        dice.shuffle(other)
        ours, theirs = (decide(found, BITS, trusted=trusted) for found in (candidates, other))
        assert told(ours) == told(theirs)


def told(verdict: Verdict) -> tuple[str, ...]:
    return verdict.decision, verdict.chosen.name, verdict.plain.name, verdict.sure, verdict.why


def test_equal_distances_are_told_apart_by_bits_and_names() -> None:
    rows = [judged(name, Family.PLAIN, 0.5, bits=bits) for name, bits in
            (("b", 3.3), ("a", 3.3), ("c", 3.4))]  # fmt: skip
    for found in (rows, rows[::-1]):
        assert decide(found, BITS, trusted=True).chosen.name == "a"


@pytest.mark.parametrize("family", [f for f in Family if f is not Family.PLAIN])
def test_a_near_tie_goes_to_the_cheaper_family(family: Family) -> None:
    plain = judged("grid", Family.PLAIN, 0.5 * (1 + 0.9 * TIE))
    near, far = judged("way", family, 0.5), judged("way", family, 0.5 / (1 + 2 * TIE))
    assert decide([plain, near], BITS, trusted=True).chosen is plain
    assert decide([plain, far], BITS, trusted=True).chosen is far


def test_the_order_of_cost_is_that_of_the_families() -> None:
    plain = judged("grid", Family.PLAIN, 2.0)
    ways = [judged(family, family, 0.5) for family in Family if family is not Family.PLAIN]
    while ways:
        assert decide([plain, *ways], BITS, trusted=True).chosen is ways.pop(0)


def test_a_difference_within_one_error_is_a_tie() -> None:
    plain = judged("grid", Family.PLAIN, 0.6, spread=2.0)
    assert decide([plain, judged("way", Family.IMAGES, 0.5)], BITS, trusted=True).chosen is plain


def test_a_cheaper_family_that_is_worse_than_plain_is_no_way_out() -> None:
    rows = [judged("grid", Family.PLAIN, 0.5), judged("rho", Family.PATCH, 0.51),
            judged("images", Family.IMAGES, 0.49)]  # fmt: skip
    assert decide(rows, BITS, trusted=True).chosen.name == "grid"


def test_candidates_that_cost_more_bits_are_not_eligible() -> None:
    plain, dear = (judged("grid", Family.PLAIN, 0.5), judged("groups", Family.PLAIN, 0.1, bits=4.0))
    better = judged("images", Family.IMAGES, 0.05, bits=BITS + 2 * EQUAL_BITS)
    verdict = decide([dear, plain, better], BITS, trusted=True)
    assert verdict.chosen is verdict.plain is plain


def test_what_keeps_the_answers_leaves_nothing_to_recover() -> None:
    plain = judged("grid", Family.PLAIN, 0.01, kept=NOTHING_LOST)
    verdict = decide([plain, judged("images", Family.IMAGES, 0.0)], BITS, trusted=True)
    assert (verdict.decision, verdict.chosen) == (Decision.NOTHING, plain)
    assert verdict.sure == "sure"
    assert "98.0%" in verdict.why


def test_answers_that_have_moved_far_are_not_kept_by_being_of_one_class() -> None:
    plain = judged("grid", Family.PLAIN, UNMOVED, kept=1.0)
    better = judged("moments", Family.MOMENTS, 0.01, kept=1.0)
    for trusted in (True, False):
        verdict = decide([plain, better], BITS, trusted=trusted)
        assert (verdict.decision, verdict.chosen) == (Decision.CALIBRATE, better)


def test_qat_is_the_advice_where_all_is_weak() -> None:
    plain = judged("grid", Family.PLAIN, 2.0, kept=WEAK - 0.02)
    better = judged("images", Family.IMAGES, 1.0, kept=WEAK - 0.01)
    for rows in ([plain, better], [plain]):
        verdict = decide(rows, BITS, trusted=True)
        assert verdict.decision is Decision.QAT
        assert verdict.chosen is rows[-1]
        assert "too few" in verdict.why
    enough = replace(better, kept=WEAK)
    assert decide([plain, enough], BITS, trusted=True).decision is Decision.CALIBRATE


def test_what_pictures_cannot_tell_is_unknown() -> None:
    """Few answers kept, or far more on one kind of pictures than on another."""
    plain = judged("grid", Family.PLAIN, 2.0, kept=WEAK, spread=0.1)
    for kept, apart, words in (
        (UNKNOWN - 0.01, 0.0, "unknown: too few answers"),
        (UNKNOWN, 0.0, "sure"),
        (0.9, FAR + 0.01, "unknown: one kind of pictures"),
        (0.9, FAR, "sure"),
    ):
        better = replace(judged("images", Family.IMAGES, 1.0, kept=kept), apart=apart)
        assert decide([plain, better], BITS, trusted=True).sure.startswith(words)


def test_the_expected_share_is_a_range_that_grows_with_what_is_kept() -> None:
    ranges = []
    for kept in (0.0, 0.29, 0.3, 0.5, 0.69, 0.7, 1.0):
        low, high = decide(
            [judged("grid", Family.PLAIN, 1.0, kept=kept)], BITS, trusted=True
        ).expected
        assert 0 <= low < high <= 1
        ranges.append((low, high))
    assert ranges == sorted(ranges)
    assert len(set(ranges)) == len(RELIABLE)


@pytest.mark.parametrize("family", Family)
def test_noise_recommends_plain_grids_and_moments_only(family: Family) -> None:
    plain = judged("grid", Family.PLAIN, 2.0)
    verdict = decide([plain, judged("way", family, 0.1)], BITS, trusted=False)
    allowed = family in {Family.PLAIN, Family.MOMENTS}
    assert verdict.chosen.name == ("way" if allowed else "grid")
    assert verdict.sure == "not sure"
    assert "--proxy" in verdict.why
    worse = judged("moments", Family.MOMENTS, 2.1)
    assert decide([plain, worse], BITS, trusted=False).chosen is plain


def test_noise_says_that_nothing_is_lost_without_being_sure() -> None:
    plain = judged("grid", Family.PLAIN, 0.001, kept=1.0)
    verdict = decide([plain], BITS, trusted=False)
    assert (verdict.decision, verdict.sure) == (Decision.NOTHING, "likely, by noise alone")


@pytest.mark.parametrize(
    ("errors", "sure"), [(30.0, "sure"), (3.1, "sure"), (2.9, "likely"), (1.1, "likely")]
)
def test_how_sure_it_is_hangs_on_the_errors_between(errors: float, sure: str) -> None:
    images = 64
    noise = np.random.default_rng(0).standard_normal(images)
    noise -= noise.mean()
    noise *= np.sqrt(images / noise.var(ddof=1))  # a standard error of 1
    chosen = judged("images", Family.IMAGES, 1.0)
    plain = replace(judged("grid", Family.PLAIN, 1.0), distances=1.0 + errors + noise)
    verdict = decide([plain, chosen], BITS, trusted=True)
    assert (verdict.chosen, verdict.sure) == (chosen, sure)


def test_a_plain_grid_that_wins_says_that_nothing_is_clearly_better() -> None:
    rows = [judged("grid", Family.PLAIN, 0.5), judged("images", Family.IMAGES, 0.49)]
    assert decide(rows, BITS, trusted=True).sure == "no other way is clearly better"


def test_every_family_has_a_decision() -> None:
    decisions = set()
    for family in Family:
        rows = [judged("grid", Family.PLAIN, 2.0), judged("way", family, 0.5)]
        decisions.add(decide(rows, BITS, trusted=True).decision)
    assert decisions == {Decision.GRID, Decision.ROTATE, Decision.PATCH, Decision.CALIBRATE}
