"""Scales: each rule against a plain search in float64, and the same bits from numpy and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qvec_cli.quant.affine import dequantize, quantize
from qvec_cli.quant.rtn import fake_quantize, rtn
from qvec_cli.quant.scales import SCALES, choose_scale, ratios
from qvec_cli.specs import Granularity, Grid, Scale

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
GRIDS = [Grid(bits, scale=scale) for scale in Scale for bits in (2, 3, 4, 8)]


def error(blocks: Any, grid: Grid) -> Any:
    """Squared error of each block, in float64."""
    scale = choose_scale(blocks, grid)
    shown = dequantize(quantize(blocks, scale, grid), scale)
    return np.square(shown.astype(np.float64) - blocks).sum(axis=1)


def test_every_word_has_a_rule() -> None:
    assert list(SCALES) == list(Scale)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_numpy_and_torch_choose_the_same_bits(name: str, grid: Grid) -> None:
    ours = choose_scale(BLOCKS[name], grid)
    theirs = choose_scale(torch.from_numpy(BLOCKS[name]), grid).numpy()
    assert ours.dtype == np.float32
    assert np.array_equal(ours.view(np.int32), theirs.view(np.int32))
    assert ours.shape == (len(BLOCKS[name]), 1)
    assert (ours != 0).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_search_is_never_worse_than_what_it_contains(name: str, bits: int) -> None:
    plain, mse, full = (error(BLOCKS[name], Grid(bits, scale=scale)) for scale in Scale)
    slack = 1 + 1e-5  # sums of float32 decide, sums of float64 judge
    assert (mse <= plain * slack).all()
    assert (full <= mse * slack).all()


@pytest.mark.parametrize("name", ["normal", "heavy tails", "one-sided"])
def test_at_two_bits_a_search_is_much_better(name: str) -> None:
    plain, mse, full = (error(BLOCKS[name], Grid(2, scale=s)).sum() for s in Scale)
    assert mse < 0.9 * plain
    assert full < 0.9 * mse


@pytest.mark.parametrize("grid", [g for g in GRIDS if g.scale is not Scale.ABSMAX], ids=str)
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
    codes = np.concatenate([rtn(b, grid).codes.reshape(-1) for b in BLOCKS.values()])
    assert codes.min() >= grid.quant_min
    assert codes.max() <= grid.quant_max
    lowest = {Scale.ABSMAX: -grid.quant_max, Scale.MSE: -grid.quant_max}
    assert codes.min() == lowest.get(grid.scale, grid.quant_min)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_flipping_signs_flips_the_weights(grid: Grid) -> None:
    """With every code in use too, because either sign of the scale is tried."""
    blocks = BLOCKS["heavy tails"]
    flipped, plain = fake_quantize(-blocks, grid), -fake_quantize(blocks, grid)
    assert error(-blocks, grid).sum() == pytest.approx(error(blocks, grid).sum(), rel=1e-6)
    if grid.scale is not Scale.MSE_FULL:  # there ties may fall to either sign
        assert np.array_equal(flipped, plain)


@pytest.mark.parametrize("scale", Scale)
def test_a_group_is_searched_on_its_own(scale: Scale) -> None:
    weight = BLOCKS["heavy tails"]
    groups = fake_quantize(weight, Grid(3, Granularity.GROUP, 16, scale))
    apart = fake_quantize(weight.reshape(-1, 16), Grid(3, scale=scale))
    assert np.array_equal(groups.reshape(-1, 16), apart)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_grid_survives_its_card(grid: Grid) -> None:
    assert Grid.from_json(grid.to_json()) == grid
