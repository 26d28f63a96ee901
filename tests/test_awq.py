"""AWQ: its search never loses against what it contains, and with one point it is rounding."""

from __future__ import annotations

import numpy as np
import pytest
from test_gptq import EVERY_GRID, GRIDS

from qvec_cli.quant.awq import POWERS, SHRINKS, awq, clipped, factors, is_unclipped
from qvec_cli.quant.moments import Inputs, output_error
from qvec_cli.quant.scales import fake_quantize
from qvec_cli.specs import Granularity, Grid, Scale

RNG = np.random.default_rng(0)
FEW = [grid for grid in GRIDS if grid.scale is not Scale.HQQ or grid.bits == 3]
"""HQQ takes its time, and AWQ asks it for a scale at every point of its search."""

every_grid = pytest.mark.parametrize(
    "grids",
    [
        pytest.param(FEW, id="some"),
        pytest.param(EVERY_GRID, id="every triple", marks=pytest.mark.slow),
    ],
)
WEIGHTS = [RNG.standard_normal((rows, 48)).astype(np.float32) for rows in (20, 7)]
TOKENS = RNG.standard_normal((600, 48)) * np.exp(1.5 * RNG.standard_normal(48))
SEEN = Inputs(TOKENS.T @ TOKENS / 600, TOKENS.mean(axis=0), np.abs(TOKENS).mean(axis=0))


@every_grid
def test_with_one_point_and_no_clipping_it_is_rounding_to_nearest(grids: list[Grid]) -> None:
    """Because the weight that is rounded is then the weight itself."""
    for grid in grids:
        by = factors(WEIGHTS, grid, SEEN, (0.0,))
        assert (by == 1).all()
        for weight in WEIGHTS:
            assert np.array_equal(clipped(weight * by, grid, SEEN, (1.0,)), weight)


@every_grid
def test_its_factors_are_never_worse_than_none(grids: list[Grid]) -> None:
    for grid in grids:
        by = factors(WEIGHTS, grid, SEEN, POWERS)
        assert cost(grid, by) <= cost(grid, np.ones_like(by))
        assert by.max() * by.min() == pytest.approx(1, rel=1e-5)  # neither side grows


def cost(grid: Grid, by: np.ndarray) -> float:
    """Output error of all weights, rounded after they were multiplied."""
    errors = (
        output_error(fake_quantize(w * by, grid) / by - w, SEEN.moment).sum() for w in WEIGHTS
    )
    return float(sum(errors))


def test_inputs_of_very_different_size_are_worth_a_factor() -> None:
    by = factors(WEIGHTS, Grid(3), SEEN, POWERS)
    assert cost(Grid(3), by) < 0.6 * cost(Grid(3), np.ones_like(by))
    assert np.corrcoef(np.log(by), np.log(SEEN.magnitude))[0, 1] > 0.99


@every_grid
def test_clipping_is_never_worse_block_by_block(grids: list[Grid]) -> None:
    weight = WEIGHTS[0]
    for grid in grids:
        ours, size = clipped(weight, grid, SEEN, SHRINKS), grid.group_size or 48
        apart = [fake_quantize(w, grid) - weight for w in (ours, weight)]
        for start in range(0, 48, size):
            some = slice(start, start + size)
            moment = SEEN.moment[some, some]
            found, plain = (output_error(each[:, some], moment) for each in apart)
            if grid.granularity is Granularity.TENSOR:
                found, plain = found.sum(keepdims=True), plain.sum(keepdims=True)
            assert (found <= plain).all(), grid
        assert (np.abs(ours) <= np.abs(weight)).all()
        assert ((ours == weight) | (np.sign(ours) == np.sign(weight))).all()


def test_clipping_finds_the_best_of_its_points() -> None:
    weight = WEIGHTS[0]
    ours = output_error(
        fake_quantize(clipped(weight, Grid(3), SEEN, SHRINKS), Grid(3)) - weight, SEEN.moment
    )
    for row, found in zip(weight, ours, strict=True):
        tried = [np.clip(row, -s * abs(row).max(), s * abs(row).max())[None] for s in SHRINKS]
        errors = [output_error(fake_quantize(t, Grid(3)) - row, SEEN.moment)[0] for t in tried]
        assert found == pytest.approx(min(errors), rel=1e-5)


def test_a_layer_is_rounded_after_clipping() -> None:
    ours = awq(WEIGHTS[0], Grid(3), SEEN)
    assert np.array_equal(
        ours.weight(), fake_quantize(clipped(WEIGHTS[0], Grid(3), SEEN, SHRINKS), Grid(3))
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blocks.0.attn.qkv.weight", False),
        ("blocks.0.attn.q_proj.weight", False),
        ("attn.in_proj_weight", False),
        ("encoder.layer.0.attention.key.weight", False),
        ("blocks.0.attn.proj.weight", True),
        ("blocks.0.mlp.fc1.weight", True),
    ],
)
def test_what_makes_queries_and_keys_is_not_clipped(name: str, expected: bool) -> None:
    assert is_unclipped(name) is not expected


def test_its_points_are_those_of_the_paper() -> None:
    """20 exponents from 0 in steps of .05, 10 shares from 1 down to .55."""
    assert [round(20 * power) for power in POWERS] == [*range(20)]
    assert [round(20 * shrink) for shrink in SHRINKS] == [*range(20, 10, -1)]
