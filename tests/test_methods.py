"""The contract of every quantizer: whoever stands in the table keeps it."""

import numpy as np
import pytest

from qvec_cli.errors import MismatchError
from qvec_cli.quant.affine import scale_shape
from qvec_cli.quant.methods import QUANTIZERS
from qvec_cli.quant.moments import Inputs
from qvec_cli.quant.qtensor import from_named
from qvec_cli.quant.rtn import fake_quantize
from qvec_cli.specs import Granularity, Grid, Method, Scale, ScaleDtype

GRIDS = [
    Grid(bits, *kind)
    for bits in (2, 3, 5, 8)
    for kind in (
        (Granularity.TENSOR, None),
        (Granularity.CHANNEL, None),
        (Granularity.GROUP, 24),
    )
]
GRIDS += [
    Grid(bits, Granularity.GROUP, 12, scale)
    for bits in (2, 3, 8)
    for scale in (Scale.MSE, Scale.MSE_FULL, Scale.HQQ)
]
GRIDS += [
    Grid(bits, *kind, scale, symmetric=False, scale_dtype=dtype)
    for bits in (2, 3, 7)
    for kind in (
        (Granularity.TENSOR, None),
        (Granularity.CHANNEL, None),
        (Granularity.GROUP, 12),
    )
    for scale in (Scale.ABSMAX, Scale.HQQ)
    for dtype in ScaleDtype
]
RNG = np.random.default_rng(0)
WEIGHTS = {
    "normal": RNG.normal(size=(5, 24)).astype(np.float32),
    "one row": RNG.normal(size=(1, 24)).astype(np.float32),
    "zero row": np.float32(RNG.normal(size=(3, 24)) * [[1], [0], [1]]),
    "tiny": np.float32(RNG.normal(size=(3, 24)) * 1e-30),
    "huge": np.float32(RNG.normal(size=(3, 24)) * 1e30),
}


def run(method, weight, grid):
    """A quantizer on a weight; a calibrated one sees inputs of which some go together."""
    quantizer = QUANTIZERS[method]
    return quantizer.run(weight, grid, *([INPUTS] if quantizer.calibrated else []))


MIXED = np.random.default_rng(1).normal(size=(200, 24)) @ np.random.default_rng(2).normal(
    size=(24, 24)
)
INPUTS = Inputs(MIXED.T @ MIXED / 200, MIXED.mean(axis=0), np.abs(MIXED).mean(axis=0))
every_method = pytest.mark.parametrize("method", Method)
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=str)


def fits(weight, grid):
    return grid.scale_dtype is ScaleDtype.FLOAT32 or np.abs(weight).max() < 1e4


every_weight = pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)


def test_every_word_has_a_row_and_every_row_a_word():
    assert set(QUANTIZERS) == set(Method)


@every_method
def test_every_row_tells_what_it_is_in_a_line(method):
    summary = QUANTIZERS[method].summary
    assert summary.strip()
    assert "\n" not in summary


@every_method
@every_grid
@every_weight
def test_every_quantizer_keeps_shape_type_and_range(method, grid, weight):
    if not fits(weight, grid):
        with pytest.raises(MismatchError, match="too large for float16"):
            run(method, weight, grid)
        return
    tensor = run(method, weight, grid)
    assert tensor.grid == grid
    assert tensor.codes.shape == weight.shape
    assert tensor.codes.dtype == np.int8
    assert tensor.codes.min() >= -(2 ** (grid.bits - 1))
    assert tensor.codes.min() >= grid.quant_min or method is Method.GPTQ  # uses every code
    assert tensor.codes.max() <= grid.quant_max
    assert tensor.scale.shape == scale_shape(weight.shape, grid)
    assert tensor.scale.dtype == np.float32
    assert np.isfinite(tensor.scale).all()
    assert (tensor.scale != 0).all()
    assert (tensor.scale > 0).all() or grid.scale in {Scale.MSE_FULL, Scale.HQQ}
    assert (tensor.zero_point is None) == grid.symmetric
    if tensor.zero_point is not None:
        assert (tensor.zero_point.shape, tensor.zero_point.dtype) == (tensor.scale.shape, np.int8)
        assert (tensor.zero_point >= grid.quant_min).all()
        assert (tensor.zero_point <= grid.quant_max).all()
    assert tensor.weight().shape == weight.shape
    assert tensor.weight().dtype == np.float32


@every_method
@every_grid
@every_weight
def test_every_quantizer_survives_its_names(method, grid, weight):
    if not fits(weight, grid):
        with pytest.raises(MismatchError, match="too large for float16"):
            run(method, weight, grid)
        return
    tensor = run(method, weight, grid)
    back = from_named("w", tensor.to_named("w"), grid)
    np.testing.assert_array_equal(back.codes, tensor.codes)
    np.testing.assert_array_equal(back.weight(), tensor.weight())


@every_method
@every_grid
def test_every_quantizer_gives_zeros_for_zeros(method, grid):
    zeros = np.zeros((3, 24), np.float32)
    np.testing.assert_array_equal(run(method, zeros, grid).weight(), zeros)


@every_method
@every_grid
def test_every_quantizer_gives_the_same_twice_and_leaves_its_input(method, grid):
    weight = WEIGHTS["normal"].copy()
    first, second = (run(method, weight, grid) for _ in range(2))
    np.testing.assert_array_equal(first.codes, second.codes)
    np.testing.assert_array_equal(first.scale, second.scale)
    np.testing.assert_array_equal(weight, WEIGHTS["normal"])


@every_method
def test_every_quantizer_refuses_a_group_size_that_does_not_divide(method):
    with pytest.raises(MismatchError, match="7 does not divide its 24"):
        run(method, WEIGHTS["normal"], Grid(3, Granularity.GROUP, 7))


@every_grid
@every_weight
def test_rounding_to_nearest_is_fake_quantize(grid, weight):
    if not fits(weight, grid):
        return  # refused, see above
    shown = run(Method.RTN, weight, grid).weight()
    np.testing.assert_array_equal(shown, fake_quantize(weight, grid))
