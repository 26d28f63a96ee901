"""Scales: each rule against a plain search in float64, and the same bits from numpy and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from covers import Cases, covered

from qvec_cli.errors import SpecError
from qvec_cli.quant import scales
from qvec_cli.quant.affine import dequantize, min_and_max, quantize
from qvec_cli.quant.scales import SCALES, choose_qparams, fake_quantize, ratios, rtn
from qvec_cli.specs import Granularity, Grid, Scale, ScaleDtype

RNG = np.random.default_rng(0)
BLOCKS: dict[str, Any] = {
    "normal": RNG.standard_normal((40, 48)),
    "heavy tails": RNG.standard_t(2, (40, 48)),
    "one-sided": np.abs(RNG.standard_normal((40, 48))),
    "an outlier each": np.concatenate([np.full((20, 1), 30), RNG.standard_normal((20, 31))], 1),
    "one number": RNG.standard_normal((12, 1)),
    "an odd length": RNG.standard_normal((9, 37)),
    "zeros": np.zeros((3, 8)),
    "tiny": RNG.standard_normal((5, 16)) * 1e-30,
    "huge": RNG.standard_normal((5, 16)) * 1e15,
}
BLOCKS = {name: array.astype(np.float32) for name, array in BLOCKS.items()}
BLOCKS["halves"] = np.arange(-24, 24, dtype=np.float32).reshape(4, 12) / 2
BLOCKS["a tie at both ends"] = np.array([[-0.5, 2.5, 1.0, 0.3], [0.5, -2.5, 1, 0]], np.float32)
BLOCKS["below zero"] = -BLOCKS["one-sided"]
BITS = (2, 3, 4, 8)
KINDS = [
    {"scale": scale, "symmetric": symmetric, "scale_dtype": dtype}
    for scale in Scale
    for symmetric in (True, False)
    for dtype in ScaleDtype
    if symmetric or scale is not Scale.MSE_FULL
]
GRIDS = [Grid(bits, **kind) for kind in KINDS for bits in BITS]
TOGETHER = {
    "48 wide": np.concatenate([BLOCKS[n] for n in BLOCKS if BLOCKS[n].shape == (40, 48)]),
    "tiny and huge": np.concatenate([BLOCKS["tiny"], BLOCKS["huge"]]),
    **{n: block for n, block in BLOCKS.items() if len(block) < 40 and n not in {"tiny", "huge"}},
}
"""The same blocks, those of one length together."""

SEARCHED = (Scale.ABSMAX, Scale.MSE, Scale.MSE_FULL)
MIRRORED = [g for g in GRIDS if g.symmetric and g.scale_dtype is ScaleDtype.FLOAT32]
every_case = covered(KINDS, list(TOGETHER), BITS)


def error(blocks: Any, grid: Grid) -> Any:
    """Squared error of each block, in float64."""
    params = choose_qparams(blocks, grid)
    shown = dequantize(quantize(blocks, params, grid), params)
    return np.square(shown.astype(np.float64) - blocks).sum(axis=1)


def test_every_word_has_a_rule() -> None:
    assert list(SCALES) == list(Scale)


@every_case
def test_numpy_and_torch_choose_the_same_bits(cases: Cases) -> None:
    for kind, name, bits in cases:
        grid, blocks = Grid(bits, **kind), TOGETHER[name]
        ours = choose_qparams(blocks, grid)
        theirs = choose_qparams(torch.from_numpy(blocks), grid)
        assert (ours.zero_point is None) == (theirs.zero_point is None) == grid.symmetric
        for mine, other in zip(ours, theirs, strict=True):
            if mine is not None:
                assert mine.dtype == np.float32
                assert mine.shape == (len(blocks), 1)
                assert np.array_equal(mine.view(np.int32), other.numpy().view(np.int32))
        assert (ours.scale != 0).all()
        shown = dequantize(quantize(torch.from_numpy(blocks), theirs, grid), theirs)
        assert np.array_equal(shown.numpy(), dequantize(quantize(blocks, ours, grid), ours))


@pytest.mark.parametrize("bits", BITS)
def test_a_search_is_never_worse_than_what_it_contains(bits: int) -> None:
    slack = 1 + 1e-5  # sums of float32 decide, sums of float64 judge
    for blocks in BLOCKS.values():
        plain, mse, full = (error(blocks, Grid(bits, scale=scale)) for scale in SEARCHED)
        assert (mse <= plain * slack).all()
        assert (full <= mse * slack).all()
        asymmetric = (Grid(bits, scale=scale, symmetric=False) for scale in SEARCHED[:2])
        plain, mse = (error(blocks, grid) for grid in asymmetric)
        assert (mse <= plain * slack).all()


@pytest.mark.parametrize("name", ["normal", "heavy tails", "one-sided"])
def test_at_two_bits_a_search_is_much_better(name: str) -> None:
    plain, mse, full = (error(BLOCKS[name], Grid(2, scale=s)).sum() for s in SEARCHED)
    assert mse < 0.9 * plain
    assert full < 0.9 * mse


@pytest.mark.parametrize("scale", SEARCHED[1:])
def test_the_choice_is_that_of_a_plain_search_over_the_same_points(scale: Scale) -> None:
    """One block and one point at a time, in float64."""
    names = ("normal", "heavy tails", "one-sided", "an odd length")
    for bits, name in zip(BITS, names, strict=True):
        grid, blocks = Grid(bits, scale=scale), BLOCKS[name]
        lowest = -(2 ** (bits - 1)) + (scale is Scale.MSE)
        for block, found in zip(blocks.astype(np.float64), error(blocks, grid), strict=True):
            steps = (np.abs(block).max() * r / grid.quant_max for r in ratios(grid))
            tried = ((np.clip(np.rint(block / s), lowest, grid.quant_max) * s) for s in steps)
            best = min(float(np.square(shown - block).sum()) for shown in tried)
            assert found == pytest.approx(best, rel=1e-4)


def test_the_points_go_from_the_largest_weight_to_an_eighth_of_it() -> None:
    points = [*ratios(Grid(3, scale=Scale.MSE))]
    assert (points[0], points[-1], len(points)) == (1, pytest.approx(1 / 8), 16)
    both = [*ratios(Grid(3, scale=Scale.MSE_FULL))]
    assert sorted(both) == sorted(-ratio for ratio in both)
    assert {1, 3 / 4} <= set(both)


@every_case
def test_quantizing_twice_changes_nothing(cases: Cases) -> None:
    for kind, name, bits in cases:
        grid = Grid(bits, **kind)
        once = fake_quantize(TOGETHER[name], grid)
        assert np.array_equal(fake_quantize(once, grid), once), (grid, name)


def test_codes_are_those_of_the_grid() -> None:
    blocks = TOGETHER["48 wide"]
    for grid in GRIDS:
        codes = rtn(blocks, grid).codes
        assert codes.max() == grid.quant_max
        mirrored = grid.symmetric and grid.scale in {Scale.ABSMAX, Scale.MSE}
        assert codes.min() == (-grid.quant_max if mirrored else grid.quant_min)


def test_flipping_signs_flips_the_weights() -> None:
    """With every code in use too, because either sign of the scale is tried."""
    blocks = BLOCKS["heavy tails"]
    for grid in MIRRORED:
        flipped, plain = fake_quantize(-blocks, grid), -fake_quantize(blocks, grid)
        assert error(-blocks, grid).sum() == pytest.approx(error(blocks, grid).sum(), rel=1e-6)
        if grid.scale in {Scale.ABSMAX, Scale.MSE}:  # else ties may fall to either sign
            assert np.array_equal(flipped, plain)


@every_case
def test_the_error_inside_the_clipping_range_is_at_most_half_a_step(cases: Cases) -> None:
    """In float64; the rounding of a quotient of float32 is allowed for."""
    for kind, name, bits in cases:
        if name == "tiny and huge":
            continue
        grid, weight = Grid(bits, **kind), TOGETHER[name]
        tensor = rtn(weight, grid)
        step, exact = np.abs(tensor.scale.astype(np.float64)), weight.astype(np.float64)
        inside = (tensor.codes > grid.quant_min) & (tensor.codes < grid.quant_max)
        apart = np.abs(tensor.weight() - exact)
        assert (apart <= step * (0.5 + 2.0**-15))[inside].all()
        shown = np.abs(tensor.weight())  # an end code never lies further out than half a step
        assert (shown <= np.abs(exact) + step * (0.5 + 2.0**-15))[~inside].all()


@pytest.mark.parametrize("bits", BITS)
def test_an_asymmetric_grid_is_the_scalar_one(bits: int) -> None:
    """Jacob et al. 2018, number by number: the range widened to zero, N = 2^b - 1 steps."""
    grid = Grid(bits, symmetric=False)
    for blocks in BLOCKS.values():
        params = choose_qparams(blocks, grid)
        assert params.zero_point is not None
        columns = (params.scale, params.zero_point, *min_and_max(blocks))
        for scale, zero, low, high in zip(*(c[:, 0] for c in columns), strict=True):
            exact = max((float(high) - float(low)) / (2**bits - 1), 1e-8 * 2 / (2**bits - 1))
            assert exact * (1 - 2.0**-13) <= scale <= exact * (1 + 2.0**-22)
            assert zero == np.floor(-float(low) / float(scale) + 0.5) - 2 ** (bits - 1)
            if float(high) - float(low) < 2e-8:
                continue  # a step is never that small
            assert low >= 0 or round(float(low) / float(scale) + zero) <= grid.quant_min
            assert high <= 0 or round(float(high) / float(scale) + zero) >= grid.quant_max


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ["normal", "heavy tails"])
def test_half_quadratic_scales_cost_least_where_few_errors_are_large(
    name: str, symmetric: bool
) -> None:
    """By the half-quadratic measure itself, sum |w - q|^(1/2), against absmax and the search."""

    def cost(scale: Scale) -> Any:
        apart = BLOCKS[name] - fake_quantize(
            BLOCKS[name], Grid(2, scale=scale, symmetric=symmetric)
        )
        return np.sqrt(np.abs(apart.astype(np.float64))).sum(axis=1)

    hqq, plain, mse = cost(Scale.HQQ), cost(Scale.ABSMAX), cost(Scale.MSE)
    assert (hqq <= plain * (1 + 1e-5)).all()
    assert hqq.sum() < mse.sum()


def test_scales_of_float16_are_what_a_file_holds() -> None:
    for grid in GRIDS:
        if grid.scale_dtype is ScaleDtype.FLOAT16:
            for name in ("an outlier each", "tiny and huge", "zeros"):
                scale = choose_qparams(TOGETHER[name], grid).scale
                assert np.array_equal(scale.astype(np.float16).astype(np.float32), scale)


def test_all_codes_with_either_sign_are_for_symmetric_grids() -> None:
    with pytest.raises(SpecError, match="mse-full is for symmetric grids"):
        Grid(3, scale=Scale.MSE_FULL, symmetric=False)


@pytest.mark.parametrize("scale", Scale)
def test_a_group_is_searched_on_its_own(scale: Scale) -> None:
    weight = BLOCKS["heavy tails"]
    groups = fake_quantize(weight, Grid(3, Granularity.GROUP, 16, scale))
    apart = fake_quantize(weight.reshape(-1, 16), Grid(3, scale=scale))
    assert np.array_equal(groups.reshape(-1, 16), apart)


def test_a_grid_survives_its_card() -> None:
    for grid in GRIDS:
        assert Grid.from_json(grid.to_json()) == grid


def test_a_search_by_places_finds_what_rounding_to_every_candidate_does() -> None:
    """Wide rows are searched in sorted order; the few that are in doubt are rounded after all."""
    rng = np.random.default_rng(1)
    kinds = [
        rng.standard_normal((40, 300)),
        rng.standard_t(2, (40, 300)),
        np.abs(rng.standard_normal((40, 300))),
        rng.uniform(-1, 1, (40, 300)),
        (rng.random((40, 300)) < 0.01) * 1.0,
        rng.integers(-2, 2, (40, 300)) * 0.1,
        np.zeros((3, 300)),
        np.ones((3, 300)) * 1e-30,
        rng.standard_normal((8, 300)) * 1e37,
    ]
    searched = [g for g in GRIDS if g.scale in {Scale.MSE, Scale.MSE_FULL}]
    for grid in (g for g in searched if g.scale_dtype is ScaleDtype.FLOAT32):
        for blocks in (kind.astype(np.float32) for kind in kinds):
            for rows in (blocks, rtn(blocks, grid).weight()):
                quick, slow = scales.least_error(rows, grid), scales._tried(rows, grid)
                assert np.array_equal(quick.scale, slow.scale)
                if slow.zero_point is not None:
                    assert np.array_equal(quick.zero_point, slow.zero_point)
