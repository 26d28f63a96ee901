"""GPTQ against its own formula in plain loops, and the laws that bind it to round-to-nearest."""

from __future__ import annotations

import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from covers import pairwise

from qvec_cli.quant import gptq as module
from qvec_cli.quant.gptq import DAMPING, gptq
from qvec_cli.quant.moments import Inputs, output_error
from qvec_cli.quant.scales import ratios, rtn
from qvec_cli.specs import Granularity, Grid, Scale

RNG = np.random.default_rng(0)
COLUMNS = 48
WEIGHT = RNG.standard_normal((20, COLUMNS)).astype(np.float32)
TOKENS = RNG.standard_normal((600, COLUMNS)) @ (
    RNG.standard_normal((COLUMNS, COLUMNS)) * np.exp(RNG.standard_normal(COLUMNS))
)
BITS = (2, 3, 4, 8)
BLOCKS = ((Granularity.CHANNEL, None), (Granularity.GROUP, 12), (Granularity.TENSOR, None))
RULES = [
    (scale, symmetric)
    for scale in Scale
    for symmetric in (True, False)
    if symmetric or scale is not Scale.MSE_FULL
]
GRIDS = [Grid(bits, *kind, *rule) for rule, bits, kind in pairwise(RULES, BITS, BLOCKS)]
"""Every pair of rule, width and block."""

EVERY_GRID = [Grid(bits, *kind, *rule) for rule, bits, kind in product(RULES, BITS, BLOCKS)]
every_grid = pytest.mark.parametrize(
    "grids",
    [
        pytest.param(GRIDS, id="every pair"),
        pytest.param(EVERY_GRID, id="every triple", marks=pytest.mark.slow),
    ],
)


def inputs(moment: Any) -> Inputs:
    return Inputs(np.asarray(moment, np.float64), np.zeros(len(moment)), np.ones(len(moment)))


SEEN = inputs(TOKENS.T @ TOKENS / len(TOKENS))


@every_grid
def test_without_correlations_it_is_rounding_to_nearest(grids: list[Grid]) -> None:
    for place, grid in enumerate(grids):
        if grid.scale is Scale.MSE and grid.symmetric:
            continue  # with the lowest code in use, see below
        size = (1.0, 3e-7, 5e4)[place % 3]
        ours, plain = gptq(WEIGHT, grid, inputs(size * np.eye(COLUMNS))), rtn(WEIGHT, grid)
        assert np.array_equal(ours.codes, plain.codes), grid
        assert np.array_equal(ours.weight(), plain.weight()), grid


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_on_a_clipped_grid_the_lowest_code_is_in_use(bits: int) -> None:
    """Row by row the best of the same clipping points, in float64, with all 2^b codes."""
    grid = Grid(bits, scale=Scale.MSE)
    ours = gptq(WEIGHT, grid, inputs(np.eye(COLUMNS)))
    assert ours.codes.min() == -(2 ** (bits - 1)) or bits == 8  # where nothing is clipped
    for row, found in zip(WEIGHT.astype(np.float64), ours.weight(), strict=True):
        steps = [np.abs(row).max() * ratio / grid.quant_max for ratio in ratios(grid)]
        shown = [np.clip(np.rint(row / s), -(2 ** (bits - 1)), grid.quant_max) * s for s in steps]
        best = min(float(np.square(other - row).sum()) for other in shown)
        assert float(np.square(found - row).sum()) == pytest.approx(best, rel=1e-4)


@every_grid
def test_where_inputs_go_together_the_output_error_is_below_roundings(grids: list[Grid]) -> None:
    for grid in grids:
        ours, plain = (
            output_error(tensor.weight() - WEIGHT, SEEN.moment)
            for tensor in (gptq(WEIGHT, grid, SEEN), rtn(WEIGHT, grid))
        )
        assert ours.sum() < 0.9 * plain.sum(), grid
        if grid.granularity is not Granularity.TENSOR:  # which is searched as a whole
            assert (ours < plain).mean() >= 0.8, grid


def reference(weight: Any, grid: Grid, moment: Any) -> Any:
    """The paper's equations (2) and (3), one weight at a time, the inverse updated by hand."""
    plain = rtn(weight, grid)
    size = grid.group_size or weight.shape[1]
    codes = np.empty(weight.shape, int)
    damped = moment + DAMPING * np.diag(moment).mean() * np.eye(len(moment))
    for r, row in enumerate(weight.astype(np.float64)):
        inverse, left = np.linalg.inv(damped), row.copy()
        for j in range(len(row)):
            place = 0 if grid.granularity is Granularity.TENSOR else (r, j // size)
            scale = float(plain.scale[place])
            zero = 0 if plain.zero_point is None else int(plain.zero_point[place])
            low, high = -(2 ** (grid.bits - 1)), grid.quant_max
            codes[r, j] = min(max(round(left[j] / scale + zero), low), high)
            error = (left[j] - (codes[r, j] - zero) * scale) / inverse[j, j]
            left -= error * inverse[:, j]
            inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes


@every_grid
def test_the_codes_are_those_of_the_papers_equations(grids: list[Grid]) -> None:
    for grid in grids:
        if grid.scale is Scale.ABSMAX:
            same = gptq(WEIGHT, grid, SEEN).codes == reference(WEIGHT, grid, SEEN.moment)
            # float32 against float64: a tie may fall the other way, and moves its row from there.
            assert same.all(axis=1).mean() >= 0.85, grid


@every_grid
def test_its_own_account_of_the_error_is_the_output_error(
    grids: list[Grid], monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = []
    feed_back = module._feed_back

    def listening(*args: Any) -> Any:
        codes, errors = feed_back(*args)
        accounts.append(errors)
        return codes, errors

    monkeypatch.setattr(module, "_feed_back", listening)
    damped = SEEN.moment + DAMPING * np.diag(SEEN.moment).mean() * np.eye(COLUMNS)
    for grid in grids:
        exact = output_error(gptq(WEIGHT, grid, SEEN).weight() - WEIGHT, damped)
        errors = accounts.pop()
        assert accounts == []
        if grid.granularity is Granularity.TENSOR:
            assert exact.sum() == pytest.approx(errors.sum(axis=1).min(), rel=1e-3), grid
        else:
            np.testing.assert_allclose(exact, errors.min(axis=0), rtol=1e-3, err_msg=str(grid))


@every_grid
def test_searching_rows_is_never_worse_than_the_scale_of_rounding(grids: list[Grid]) -> None:
    """A scale fixed beforehand is among those that are tried."""
    damped = SEEN.moment + DAMPING * np.diag(SEEN.moment).mean() * np.eye(COLUMNS)
    factor = module._factor(SEEN.moment)
    assert factor is not None
    for grid in grids:
        if grid.scale not in {Scale.MSE, Scale.MSE_FULL}:
            continue
        tries = module._tries(WEIGHT, grid, np.diag(SEEN.moment))
        codes, errors = module._feed_back(WEIGHT, grid, tries, factor)
        assert codes.shape[0] == module.TRIED
        ours = output_error(gptq(WEIGHT, grid, SEEN).weight() - WEIGHT, damped)
        assert ours.sum() <= errors.sum(axis=1).min() * (1 + 1e-4), grid


@pytest.mark.parametrize(
    "grid",
    [
        Grid(2, scale=Scale.MSE_FULL),
        Grid(3),
        Grid(2, Granularity.GROUP, 12, Scale.MSE, symmetric=False),
    ],
    ids=str,
)
def test_how_the_work_is_cut_does_not_show(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gptq(WEIGHT, grid, SEEN)
    monkeypatch.setattr(module, "_RESIDENT", 1)
    apart = gptq(WEIGHT, grid, SEEN)
    assert np.array_equal(whole.codes, apart.codes)
    monkeypatch.setattr(module, "_COLUMNS", 5)
    other = gptq(WEIGHT, grid, SEEN)
    assert (other.codes == whole.codes).mean() > 0.98  # sums in another order


@every_grid
def test_a_column_without_input_is_set_to_zero(grids: list[Grid]) -> None:
    moment, weight = SEEN.moment.copy(), WEIGHT.copy()
    moment[7], moment[:, 7] = 0, 0
    for grid in grids:
        assert (gptq(weight, grid, inputs(moment)).weight()[:, 7] == 0).all(), grid
    assert np.array_equal(weight, WEIGHT)  # others need what was passed
    assert moment[7, 7] == 0


def test_the_unit_of_the_inputs_does_not_matter_beside_columns_without_any() -> None:
    moment = SEEN.moment.copy()
    moment[7], moment[:, 7] = 0, 0
    ours, small = (gptq(WEIGHT, Grid(3), inputs(size * moment)).codes for size in (1, 2.0**-20))
    assert np.array_equal(ours, small)


def test_a_moment_that_is_singular_beyond_the_damping_is_damped_more() -> None:
    along = RNG.standard_normal(COLUMNS)
    along /= np.linalg.norm(along)
    broken = np.eye(COLUMNS) - 1.05 * np.outer(along, along)  # least eigenvalue: -0.05
    assert module._factor(broken) is not None
    assert (gptq(WEIGHT, Grid(3), inputs(broken)).codes != rtn(WEIGHT, Grid(3)).codes).any()


@pytest.mark.parametrize("scale", [Scale.MSE, Scale.MSE_FULL])
def test_the_scale_that_is_tried_first_is_the_best_where_inputs_are_large(
    scale: Scale, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TRIED", 1)
    size = np.exp(2 * np.random.default_rng(1).standard_normal(COLUMNS))
    grid = Grid(2, scale=scale)
    shown = gptq(WEIGHT, grid, inputs(np.diag(size))).weight()
    for row, found in zip(WEIGHT.astype(np.float64), shown, strict=True):
        steps = [np.abs(row).max() * ratio / grid.quant_max for ratio in ratios(grid)]
        tried = [np.clip(np.rint(row / s), -2, 1) * s for s in steps]
        best = min(float(size @ np.square(other - row)) for other in tried)
        assert float(size @ np.square(found - row)) == pytest.approx(best, rel=1e-4)


def test_a_moment_that_is_none_falls_back_to_rounding() -> None:
    broken = np.full((COLUMNS, COLUMNS), -1.0) + np.eye(COLUMNS) * 2
    assert np.array_equal(gptq(WEIGHT, Grid(3), inputs(broken)).codes, rtn(WEIGHT, Grid(3)).codes)


def test_a_singular_moment_is_damped() -> None:
    few = TOKENS[:5]
    ours = gptq(WEIGHT, Grid(3), inputs(few.T @ few / 5))
    moment = few.T @ few / 5
    plain = output_error(rtn(WEIGHT, Grid(3)).weight() - WEIGHT, moment).sum()
    assert output_error(ours.weight() - WEIGHT, moment).sum() < 0.8 * plain


PEER = Path(__file__).parents[1] / ".bench" / "llmc" / "bin" / "python"
THEIRS = """
import sys
import numpy as np, torch
from compressed_tensors.quantization import QuantizationArgs
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

given, found = dict(np.load(sys.argv[1])), {}
weight, moment = (torch.from_numpy(given.pop(key))[None] for key in ("weight", "moment"))
for key in [name for name in given if not name.startswith("zero ")]:
    bits, symmetric, size = map(int, key.split())
    kind = {"strategy": "group", "group_size": size} if size else {"strategy": "channel"}
    args = QuantizationArgs(num_bits=bits, symmetric=bool(symmetric), **kind)
    scale, zero = (torch.from_numpy(given[name])[None] for name in (key, "zero " + key))
    made, _, fell_back = quantize_weight(
        weight.clone(), moment.clone(), scale, zero, None, args, percdamp=0.01
    )
    assert not fell_back.any()
    found[key] = made[0].numpy()
np.savez(sys.argv[2], **found)
"""


@pytest.mark.slow
@pytest.mark.skipif(not PEER.exists(), reason="no .bench/llmc, where make slow puts the peer")
def test_on_the_same_scales_the_weights_are_those_of_llm_compressor(tmp_path: Path) -> None:
    """A published implementation, bit for bit: it takes scales and zero points as arguments."""
    given: dict[str, Any] = {"weight": WEIGHT, "moment": SEEN.moment.astype(np.float32)}
    ours = {}
    for grid in EVERY_GRID:
        if grid.scale is not Scale.ABSMAX or grid.granularity is Granularity.TENSOR:
            continue
        key = f"{grid.bits} {int(grid.symmetric)} {grid.group_size or 0}"
        plain, ours[key] = rtn(WEIGHT, grid), gptq(WEIGHT, grid, SEEN).weight()
        zero = np.zeros(plain.scale.shape, np.int8)
        given[key] = plain.scale
        given["zero " + key] = zero if plain.zero_point is None else plain.zero_point
    np.savez(tmp_path / "given.npz", **given)
    command = [str(PEER), "-c", THEIRS, str(tmp_path / "given.npz"), str(tmp_path / "found.npz")]
    subprocess.run(command, check=True, capture_output=True)
    theirs = np.load(tmp_path / "found.npz")
    assert len(ours) == 16
    for key, weight in ours.items():
        assert (weight == theirs[key]).all(axis=1).mean() >= 0.95, key  # a tie may fall either way


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 200, 301])
def test_the_root_of_a_matrix_is_inverted_by_halves(size: int) -> None:
    rows = RNG.standard_normal((max(1, size // 4), size))  # most directions carry the damping only
    matrix = rows.T @ rows + np.diag(RNG.uniform(0.1, 1, size))
    found = matrix.copy()
    module._invert_root(found)
    np.testing.assert_allclose(found @ np.linalg.cholesky(matrix), np.eye(size), atol=1e-10)
    assert (np.triu(found, 1) == 0).all()


@pytest.mark.parametrize("size", [2, 65, 200])
@pytest.mark.parametrize("where", [0, -1])
def test_a_matrix_without_a_root_is_refused(size: int, where: int) -> None:
    matrix = np.eye(size)
    matrix[where, where] = -1
    with pytest.raises(np.linalg.LinAlgError):
        module._invert_root(matrix)
