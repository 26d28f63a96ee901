"""Scales: each rule against a plain search in float64, and the same bits from numpy and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qvec_cli.errors import SpecError
from qvec_cli.quant.affine import dequantize, min_and_max, quantize
from qvec_cli.quant.rtn import fake_quantize, rtn
from qvec_cli.quant.scales import SCALES, choose_qparams, ratios
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
GRIDS = [
    Grid(bits, scale=scale, symmetric=symmetric, scale_dtype=dtype)
    for scale in Scale
    for bits in (2, 3, 4, 8)
    for symmetric in (True, False)
    for dtype in ScaleDtype
    if symmetric or scale is not Scale.MSE_FULL
]


SEARCHED = (Scale.ABSMAX, Scale.MSE, Scale.MSE_FULL)
MIRRORED = [g for g in GRIDS if g.symmetric and g.scale_dtype is ScaleDtype.FLOAT32]


def error(blocks: Any, grid: Grid) -> Any:
    """Squared error of each block, in float64."""
    params = choose_qparams(blocks, grid)
    shown = dequantize(quantize(blocks, params, grid), params)
    return np.square(shown.astype(np.float64) - blocks).sum(axis=1)


def test_every_word_has_a_rule() -> None:
    assert list(SCALES) == list(Scale)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_numpy_and_torch_choose_the_same_bits(name: str, grid: Grid) -> None:
    ours = choose_qparams(BLOCKS[name], grid)
    theirs = choose_qparams(torch.from_numpy(BLOCKS[name]), grid)
    assert (ours.zero_point is None) == (theirs.zero_point is None) == grid.symmetric
    for mine, other in zip(ours, theirs, strict=True):
        if mine is not None:
            assert mine.dtype == np.float32
            assert mine.shape == (len(BLOCKS[name]), 1)
            assert np.array_equal(mine.view(np.int32), other.numpy().view(np.int32))
    assert (ours.scale != 0).all()
    shown = fake_quantize(torch.from_numpy(BLOCKS[name]), grid).numpy()
    assert np.array_equal(shown, fake_quantize(BLOCKS[name], grid))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_search_is_never_worse_than_what_it_contains(name: str, bits: int) -> None:
    plain, mse, full = (error(BLOCKS[name], Grid(bits, scale=scale)) for scale in SEARCHED)
    slack = 1 + 1e-5  # sums of float32 decide, sums of float64 judge
    assert (mse <= plain * slack).all()
    assert (full <= mse * slack).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_search_is_never_worse_than_the_whole_range(name: str, bits: int) -> None:
    plain, mse = (
        error(BLOCKS[name], Grid(bits, scale=scale, symmetric=False)) for scale in SEARCHED[:2]
    )
    assert (mse <= plain * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", ["normal", "heavy tails", "one-sided"])
def test_at_two_bits_a_search_is_much_better(name: str) -> None:
    plain, mse, full = (error(BLOCKS[name], Grid(2, scale=s)).sum() for s in SEARCHED)
    assert mse < 0.9 * plain
    assert full < 0.9 * mse


@pytest.mark.parametrize("grid", [g for g in MIRRORED if g.scale in SEARCHED[1:]], ids=str)
@pytest.mark.parametrize("name", ["normal", "heavy tails", "one-sided", "an odd length"])
def test_the_choice_is_that_of_a_plain_search_over_the_same_points(name: str, grid: Grid) -> None:
    """One block and one point at a time, in float64."""
    blocks = BLOCKS[name]
    chosen = error(blocks, grid)
    lowest = -(2 ** (grid.bits - 1)) + (grid.scale is Scale.MSE)
    for block, found in zip(blocks.astype(np.float64), chosen, strict=True):
        best = min(
            float(np.square(np.clip(np.rint(block / s), lowest, grid.quant_max) * s - block).sum())
            for s in (np.abs(block).max() * r / grid.quant_max for r in ratios(grid))
        )
        assert found == pytest.approx(best, rel=1e-4)


def test_the_points_go_from_the_largest_weight_to_an_eighth_of_it() -> None:
    points = [*ratios(Grid(3, scale=Scale.MSE))]
    assert (points[0], points[-1], len(points)) == (1, pytest.approx(1 / 8), 16)
    both = [*ratios(Grid(3, scale=Scale.MSE_FULL))]
    assert sorted(both) == sorted(-ratio for ratio in both)
    assert {1, 3 / 4} <= set(both)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_quantizing_twice_changes_nothing(name: str, grid: Grid) -> None:
    once = fake_quantize(BLOCKS[name], grid)
    assert np.array_equal(fake_quantize(once, grid), once)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_codes_are_those_of_the_grid(grid: Grid) -> None:
    blocks = [block for name, block in BLOCKS.items() if name != "huge"]
    codes = np.concatenate([rtn(b, grid).codes.reshape(-1) for b in blocks])
    assert codes.max() == grid.quant_max
    lowest = {Scale.ABSMAX: -grid.quant_max, Scale.MSE: -grid.quant_max}
    assert codes.min() == (lowest if grid.symmetric else {}).get(grid.scale, grid.quant_min)


@pytest.mark.parametrize("grid", MIRRORED, ids=str)
def test_flipping_signs_flips_the_weights(grid: Grid) -> None:
    """With every code in use too, because either sign of the scale is tried."""
    blocks = BLOCKS["heavy tails"]
    flipped, plain = fake_quantize(-blocks, grid), -fake_quantize(blocks, grid)
    assert error(-blocks, grid).sum() == pytest.approx(error(blocks, grid).sum(), rel=1e-6)
    if grid.scale in {Scale.ABSMAX, Scale.MSE}:  # else ties may fall to either sign
        assert np.array_equal(flipped, plain)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", [n for n in BLOCKS if n not in {"tiny", "huge"}])
def test_the_error_inside_the_clipping_range_is_at_most_half_a_step(name: str, grid: Grid) -> None:
    """In float64; the rounding of a quotient of float32 is allowed for."""
    weight = BLOCKS[name]
    tensor = rtn(weight, grid)
    step, exact = np.abs(tensor.scale.astype(np.float64)), weight.astype(np.float64)
    inside = (tensor.codes > grid.quant_min) & (tensor.codes < grid.quant_max)
    apart = np.abs(tensor.weight() - exact)
    assert (apart <= step * (0.5 + 2.0**-15))[inside].all()
    shown = np.abs(tensor.weight())  # an end code never lies further out than half a step
    assert (shown <= np.abs(exact) + step * (0.5 + 2.0**-15))[~inside].all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", BLOCKS)
def test_an_asymmetric_grid_is_the_scalar_one(name: str, bits: int) -> None:
    """Jacob et al. 2018, number by number: the range widened to zero, N = 2^b - 1 steps."""
    grid = Grid(bits, symmetric=False)
    params = choose_qparams(BLOCKS[name], grid)
    assert params.zero_point is not None
    lows, highs = min_and_max(BLOCKS[name])
    rows = zip(params.scale[:, 0], params.zero_point[:, 0], lows[:, 0], highs[:, 0], strict=True)
    for scale, zero, low, high in rows:
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
            for blocks in BLOCKS.values():
                scale = choose_qparams(blocks, grid).scale
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


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_grid_survives_its_card(grid: Grid) -> None:
    assert Grid.from_json(grid.to_json()) == grid
