"""Moments as arrays: what comes back, what a rank keeps, and that averaging is pooling."""

from __future__ import annotations

import numpy as np
import pytest

from qvec_cli.quant.gptq import gptq
from qvec_cli.quant.moments import (
    Inputs,
    from_half,
    is_smaller,
    pack,
    pool,
    rounded,
    shapes,
    to_half,
    unpack,
)
from qvec_cli.specs import Granularity, Grid, Scale

RNG = np.random.default_rng(0)
WIDTH = 24
MIX = RNG.standard_normal((WIDTH, WIDTH)) * np.exp(RNG.standard_normal(WIDTH))
TOKENS = RNG.standard_normal((400, WIDTH)) @ MIX + 0.3
WEIGHT = RNG.standard_normal((10, WIDTH)).astype(np.float32)
GRIDS = [
    Grid(bits, granularity, size, scale)
    for bits in (2, 3, 8)
    for granularity, size in ((Granularity.CHANNEL, None), (Granularity.GROUP, 8))
    for scale in (Scale.ABSMAX, Scale.MSE_FULL)
]
every_rank = pytest.mark.parametrize("rank", [None, 1, 5, WIDTH])


def seen(tokens: np.ndarray) -> Inputs:
    return Inputs(tokens.T @ tokens / len(tokens), tokens.mean(axis=0), np.abs(tokens).mean(axis=0))


SEEN = seen(TOKENS)


def test_a_whole_moment_comes_back_rounded_to_float32() -> None:
    found = rounded(SEEN, None)
    for name in ("moment", "mean", "magnitude"):
        expected = getattr(SEEN, name).astype(np.float32).astype(np.float64)
        assert np.array_equal(getattr(found, name), expected)


@every_rank
def test_what_comes_back_is_symmetric_and_has_the_diagonal(rank: int | None) -> None:
    found = rounded(SEEN, rank).moment
    assert np.array_equal(found, found.T)
    np.testing.assert_allclose(np.diag(found), np.diag(SEEN.moment), rtol=1e-6)
    assert np.linalg.eigvalsh(found).min() > -1e-5 * np.trace(found)


def test_a_whole_moment_that_came_from_a_file_goes_into_one_unchanged() -> None:
    once = rounded(SEEN, None)
    assert np.array_equal(rounded(once, None).moment, once.moment)


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_a_rank_keeps_the_largest_eigenpairs(rank: int) -> None:
    held = pack(SEEN, rank)
    values, vectors = np.linalg.eigh(SEEN.moment)
    best = (vectors[:, -rank:] * values[-rank:]) @ vectors[:, -rank:].T
    factor = held["factor"].astype(np.float64)
    np.testing.assert_allclose(factor.T @ factor, best, atol=1e-6 * values[-1])


def test_the_largest_element_of_a_row_is_positive_whatever_the_sign_it_was_found_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = pack(SEEN, 6)["factor"]
    peaks = expected[np.arange(6), np.abs(expected).argmax(axis=1)]
    assert (peaks > 0).all()
    eigh = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda m: (eigh(m)[0], -eigh(m)[1]))
    assert np.array_equal(pack(SEEN, 6)["factor"], expected)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_full_rank_is_the_whole_moment(grid: Grid) -> None:
    whole, factored = rounded(SEEN, None), rounded(SEEN, WIDTH)
    np.testing.assert_allclose(factored.moment, whole.moment, atol=1e-6 * np.trace(whole.moment))
    assert np.array_equal(gptq(WEIGHT, grid, whole).codes, gptq(WEIGHT, grid, factored).codes)


@pytest.mark.parametrize("cuts", [(200,), (7, 90, 300)])
def test_averaging_is_pooling(cuts: tuple[int, ...]) -> None:
    parts = np.split(TOKENS, cuts)
    found = pool((rounded(seen(p), None) for p in parts), [len(p) for p in parts])
    scale = np.abs(SEEN.moment).max()
    np.testing.assert_allclose(found.moment, SEEN.moment, rtol=1e-6, atol=1e-7 * scale)
    np.testing.assert_allclose(found.mean, SEEN.mean, atol=1e-6)
    np.testing.assert_allclose(found.magnitude, SEEN.magnitude, rtol=1e-6)


@pytest.mark.parametrize("width", [1, 2, 24, 768])
@pytest.mark.parametrize("rank", [None, 1, 6, 192, 768])
def test_the_arrays_of_a_layer_are_the_smaller_ones(width: int, rank: int | None) -> None:
    sizes = {name: int(np.prod(shape)) for name, shape in shapes(width, rank).items()}
    moment = sum(sizes[name] for name in sizes.keys() - {"mean", "magnitude"})
    assert moment == min(width * (width + 1) // 2, ((rank or width) + 1) * width)
    if rank is not None:
        assert ("factor" in sizes) == is_smaller(width, rank)


@every_rank
def test_arrays_have_the_shapes_that_are_told(rank: int | None) -> None:
    held = pack(SEEN, rank)
    assert {array.dtype for array in held.values()} == {np.dtype(np.float32)}
    if rank is None or is_smaller(WIDTH, rank):
        assert {name: array.shape for name, array in held.items()} == shapes(WIDTH, rank)


def test_a_number_beyond_float32_is_infinite_and_not_wrong() -> None:
    huge = Inputs(SEEN.moment * 1e39, SEEN.mean, SEEN.magnitude)
    assert not np.isfinite(pack(huge, None)["second"]).all()


@every_rank
def test_inputs_that_are_all_zero_stay_so(rank: int | None) -> None:
    none = Inputs(np.zeros((WIDTH, WIDTH)), np.zeros(WIDTH), np.zeros(WIDTH))
    assert not unpack(pack(none, rank)).moment.any()


@every_rank
def test_half_of_it_keeps_the_diagonal_and_loses_of_each_cosine_less_than_a_thousandth(
    rank: int | None,
) -> None:
    for unit in (1.0, 1e-6, 1e6):  # beyond float16 and below
        whole = pack(seen(TOKENS * unit), rank)
        half = to_half(whole)
        shape = {name: array.shape for name, array in half.items()}
        if rank is None or is_smaller(WIDTH, rank):
            assert shape == shapes(WIDTH, rank, half=True)
        expected, moment = unpack(whole).moment, unpack(from_half(half)).moment
        size = np.sqrt(np.diag(expected))
        np.testing.assert_allclose(np.diag(moment), np.diag(expected), rtol=2e-3 if rank else 1e-6)
        assert (np.abs(moment - expected) <= 2e-3 * np.outer(size, size)).all()
        assert half["mean"] is whole["mean"]


def test_inputs_that_are_always_zero_come_back_from_half_as_zeros() -> None:
    dead = TOKENS.copy()
    dead[:, 3] = 0
    for rank in (None, 5):
        moment = unpack(from_half(to_half(pack(seen(dead), rank)))).moment
        assert np.isfinite(moment).all()
        np.testing.assert_allclose(moment[3], 0, atol=1e-12)
