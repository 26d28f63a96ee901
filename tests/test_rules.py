"""Merge rules: laws over every row of the table, and TIES beside its paper's description."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from qvec_cli.errors import QvecError, SpecError
from qvec_cli.specs import Rule
from qvec_cli.vector.arithmetic import RULES, Array, Merge, draws, merged

RNG = np.random.default_rng(0)
VECTORS = [RNG.standard_normal((7, 12)).astype(np.float32) for _ in range(5)]
MIXES = {Rule.WEIGHTED: (0.1, 0.2, 0.4, 0.25, 0.05)}
DENSITIES = (0.01, 0.2, 0.5, 0.99, 1.0)
every_rule = pytest.mark.parametrize("rule", Rule)


def setting(rule: Rule, count: int, **more: float) -> Merge:
    return Merge(rule, MIXES.get(rule, ())[:count], **more)  # type: ignore[arg-type]


def run(vectors: Sequence[Array], merge: Merge, name: str = "w") -> Array:
    return merged(vectors, merge, draws(merge, name, len(vectors)))


def ties_by_the_paper(vectors: Sequence[Array], density: float) -> Array:
    """Number by number: keep the top share, elect the sign of greater mass, mean of those."""
    columns = []
    for vector in vectors:
        flat = [float(value) for value in vector.reshape(-1)]
        count = max(1, round(density * len(flat)))
        top = set(sorted(range(len(flat)), key=lambda i: -abs(flat[i]))[:count])
        columns.append([value if i in top else 0.0 for i, value in enumerate(flat)])
    found = []
    for values in zip(*columns, strict=True):
        plus = sum(value for value in values if value > 0)
        minus = -sum(value for value in values if value < 0)
        elected = [v for v in values if (v > 0 and plus > minus) or (v < 0 and minus > plus)]
        found.append(sum(elected) / len(elected) if elected else 0.0)
    return np.asarray(found, np.float32).reshape(vectors[0].shape)


def test_every_rule_has_a_row_with_its_paper() -> None:
    assert set(RULES) == set(Rule)
    assert "arXiv:2306.01708" in RULES[Rule.TIES].summary
    assert "arXiv:2311.03099" in RULES[Rule.DARE].summary


@every_rule
def test_one_vector_is_itself_bit_for_bit(rule: Rule) -> None:
    vector = VECTORS[0] * np.float32(1e-42)  # with numbers below the smallest normal one
    vector[0, 0] = -0.0
    merge = Merge(rule, (1.0,) if rule is Rule.WEIGHTED else ())
    assert run([vector], merge).tobytes() == vector.tobytes()


def test_a_mix_scales_one_vector_too() -> None:
    found = run(VECTORS[:1], Merge(Rule.WEIGHTED, (0.5,)))
    assert np.array_equal(found, VECTORS[0] * np.float32(0.5))


@every_rule
def test_shape_and_type_are_the_vectors(rule: Rule) -> None:
    for shape in ((), (0,), (1,), (3, 2, 2)):
        found = run([np.full(shape, i, np.float32) for i in range(5)], setting(rule, 5))
        assert (found.shape, found.dtype) == (shape, np.float32)


@pytest.mark.parametrize("rule", [Rule.MEAN, Rule.TIES])
def test_the_order_of_the_vectors_does_not_matter(rule: Rule) -> None:
    turned = [VECTORS[i] for i in (3, 0, 4, 2, 1)]
    assert np.array_equal(run(VECTORS, Merge(rule)), run(turned, Merge(rule)))


@pytest.mark.parametrize("rule", [Rule.MEAN, Rule.WEIGHTED, Rule.TIES, Rule.DARE])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_equal_vectors_are_their_own_combination(rule: Rule, count: int) -> None:
    mix = MIXES.get(rule, ())[: count - 1]
    mix = (*mix, 1 - sum(mix)) if mix else ()
    merge = Merge(rule, mix, density=1.0 if rule in (Rule.TIES, Rule.DARE) else None)
    assert np.array_equal(run([VECTORS[1]] * count, merge), VECTORS[1])


def test_the_mean_is_the_mean_and_a_mix_is_a_sum() -> None:
    stack = np.stack(VECTORS).astype(np.float64)
    assert np.array_equal(run(VECTORS, Merge()), stack.mean(0).astype(np.float32))
    mix = (2.0, 0.0, -1.5, 0.25, 1e-3)
    wanted = np.tensordot(np.array(mix), stack, 1).astype(np.float32)
    np.testing.assert_allclose(run(VECTORS, Merge(Rule.WEIGHTED, mix)), wanted, rtol=1e-6)


@pytest.mark.parametrize("density", DENSITIES)
def test_ties_is_what_its_paper_describes(density: float) -> None:
    found = run(VECTORS, Merge(Rule.TIES, density=density))
    np.testing.assert_allclose(found, ties_by_the_paper(VECTORS, density), rtol=1e-6)


def test_ties_by_hand() -> None:
    """At half: the first number is two against one, the second balanced, the third dropped."""
    rows = ([3.0, 2.0, 0.1, 0.1], [5.0, -2.0, 1.0, 0.0], [-4.0, 0.5, 0.1, -6.0])
    vectors = [np.array(row, np.float32) for row in rows]
    found = run(vectors, Merge(Rule.TIES, density=0.5))
    assert found.tolist() == [4.0, 0.0, 0.0, -6.0]


def test_numbers_of_one_magnitude_stay_together() -> None:
    vector = np.array([1.0, -1.0, 1.0, 0.5], np.float32)
    other = np.zeros(4, np.float32)
    assert run([vector, other], Merge(Rule.TIES, density=0.25)).tolist() == [1.0, -1.0, 1.0, 0.0]


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dares_expectation_is_the_mean(density: float) -> None:
    count = 400
    merges = [Merge(Rule.DARE, density=density, seed=seed) for seed in range(count)]
    stack = np.stack([run(VECTORS, merge) for merge in merges]).astype(np.float64)
    mean = np.mean(VECTORS, axis=0, dtype=np.float64)
    # variance of one drop: v^2 (1 - p) / p
    squares = np.sum(np.square(VECTORS, dtype=np.float64), axis=0)
    error = np.sqrt(squares * (1 - density) / density / count) / len(VECTORS)
    assert (np.abs(stack.mean(0) - mean) / error).max() < 4.5  # of 84 numbers
    kept = run([np.ones(100_000, np.float32), np.zeros(100_000, np.float32)], merges[0])
    assert (kept != 0).mean() == pytest.approx(density, abs=0.01)
    np.testing.assert_allclose(kept[kept != 0], 1 / density / 2, rtol=1e-6)


def test_what_dare_drops_hangs_on_seed_name_and_place() -> None:
    ones = [np.ones(64, np.float32)] * 2
    twice = [ones[0], np.zeros(64, np.float32)], [np.zeros(64, np.float32), ones[0]]
    merge = Merge(Rule.DARE, density=0.5)
    first = run(twice[0], merge)
    assert np.array_equal(first, run(twice[0], Merge(Rule.DARE, density=0.5, seed=0)))
    others = run(twice[0], Merge(Rule.DARE, density=0.5, seed=1)), run(twice[1], merge)
    assert not any(np.array_equal(first, o) for o in (*others, run(twice[0], merge, name="v")))


@pytest.mark.parametrize("rule", [rule for rule in Rule if not RULES[rule].whole])
def test_blocks_that_stream_are_the_whole(rule: Rule) -> None:
    merge = setting(rule, 5)
    flat = [vector.reshape(-1) for vector in VECTORS]
    streams = draws(merge, "w", 5)
    cuts = [(0, 1), (1, 40), (40, 84)]
    parts = [merged([v[a:b] for v in flat], merge, streams) for a, b in cuts]
    assert np.array_equal(np.concatenate(parts), run(flat, merge))


@every_rule
def test_inputs_are_left_alone(rule: Rule) -> None:
    copies = [vector.copy() for vector in VECTORS]
    run(VECTORS, setting(rule, 5))
    assert all(np.array_equal(a, b) for a, b in zip(copies, VECTORS, strict=True))


def test_what_is_too_large_for_float32_is_infinite_and_not_wrong() -> None:
    large = np.full(3, 3e38, np.float32)
    assert np.array_equal(run([large, large], Merge()), large)
    assert np.isinf(run([large, large], Merge(Rule.WEIGHTED, (1.0, 1.0)))).all()


FAULTS = {
    "--mix goes with": {"mix": (1.0,)},
    "weighted needs --mix": {"rule": "weighted"},
    "--mix must be finite": {"rule": "weighted", "mix": (1.0, float("nan"))},
    "--density goes with": {"density": 0.5},
    "--density must be above 0": {"rule": "ties", "density": 0.0},
    "at most 1, got 1.5": {"rule": "dare", "density": 1.5},
    "got nan": {"rule": "ties", "density": float("nan")},
    "--seed goes with": {"rule": "ties", "seed": 1},
}


@pytest.mark.parametrize("message", FAULTS)
def test_settings_that_cannot_be_are_refused(message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Merge(**FAULTS[message])  # type: ignore[arg-type]


def test_a_mix_of_another_length_is_refused() -> None:
    with pytest.raises(QvecError, match="--mix has 2 numbers for 3 vectors"):
        Merge(Rule.WEIGHTED, (1.0, 2.0)).require(3)
