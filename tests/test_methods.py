"""The laws that bind every quantizer of the table, so that a new one is tested by existing."""

import numpy as np
import pytest
from covers import covered

from qvec_cli.errors import MismatchError
from qvec_cli.quant.affine import scale_shape
from qvec_cli.quant.methods import QUANTIZERS, quantize_weight
from qvec_cli.quant.moments import Inputs
from qvec_cli.quant.qtensor import from_named, sqnr_db
from qvec_cli.quant.scales import fake_quantize
from qvec_cli.specs import Granularity, Grid, Method, Scale, ScaleDtype

BLOCKS = ((Granularity.TENSOR, None), (Granularity.CHANNEL, None), (Granularity.GROUP, 12))
KINDS = [
    *((*kind, Scale.ABSMAX, True, ScaleDtype.FLOAT32) for kind in BLOCKS),
    *(
        (Granularity.GROUP, 12, scale, True, ScaleDtype.FLOAT32)
        for scale in (Scale.MSE, Scale.MSE_FULL, Scale.HQQ)
    ),
    *((*kind, Scale.ABSMAX, False, dtype) for kind in BLOCKS for dtype in ScaleDtype),
    (*BLOCKS[1], Scale.HQQ, False, ScaleDtype.FLOAT32),
    (*BLOCKS[2], Scale.HQQ, False, ScaleDtype.FLOAT16),
]
GRIDS = [Grid(bits, *kind) for bits in (2, 3, 7) for kind in KINDS] + [Grid(8), Grid(5)]
SOME = [Grid((2, 3, 7)[place % 3], *kind) for place, kind in enumerate(KINDS)]
"""Every kind at one width."""

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(5, 24)).astype(np.float32)
WEIGHTS = [
    NORMAL,
    RNG.normal(size=(1, 24)).astype(np.float32),
    np.float32(RNG.normal(size=(3, 24)) * [[1], [0], [1]]),
    np.float32(RNG.normal(size=(3, 24)) * 1e-30),
    np.float32(RNG.normal(size=(3, 24)) * 1e30),
]
MIXED = np.random.default_rng(1).normal(size=(200, 24)) @ np.random.default_rng(2).normal(
    size=(24, 24)
)
INPUTS = Inputs(MIXED.T @ MIXED / 200, MIXED.mean(axis=0), np.abs(MIXED).mean(axis=0))
METHODS = list(Method)
every_method = pytest.mark.parametrize("method", Method)


def run(method, weight, grid):
    """A quantizer on a weight; a calibrated one sees inputs of which some go together."""
    return quantize_weight("w", weight, grid, method, INPUTS)


def fits(weight, grid):
    return grid.scale_dtype is ScaleDtype.FLOAT32 or np.abs(weight).max() < 1e4


def test_every_word_has_a_row_and_every_row_tells_what_it_is_in_a_line():
    assert set(QUANTIZERS) == set(Method)
    for quantizer in QUANTIZERS.values():
        assert quantizer.summary.strip()
        assert "\n" not in quantizer.summary


@covered(GRIDS, WEIGHTS, METHODS)
def test_every_quantizer_keeps_shape_type_and_range_and_survives_its_names(cases):
    for grid, weight, method in cases:
        if not fits(weight, grid):
            with pytest.raises(MismatchError, match=r"^w: its weights are too large for float16"):
                run(method, weight, grid)
            continue
        quantized = run(method, weight, grid)
        tensor = quantized.codes
        assert tensor.grid == grid
        assert (tensor.codes.shape, tensor.codes.dtype) == (weight.shape, np.int8)
        assert tensor.codes.min() >= -(2 ** (grid.bits - 1))
        assert tensor.codes.min() >= grid.quant_min or method is Method.GPTQ  # uses every code
        assert tensor.codes.max() <= grid.quant_max
        assert tensor.scale.shape == scale_shape(weight.shape, grid)
        assert tensor.scale.dtype == np.float32
        assert np.isfinite(tensor.scale).all()
        assert (tensor.scale != 0).all()
        assert (tensor.scale > 0).all() or grid.scale in {Scale.MSE_FULL, Scale.HQQ}
        assert (tensor.zero_point is None) == grid.symmetric
        if (zero := tensor.zero_point) is not None:
            assert (zero.shape, zero.dtype) == (tensor.scale.shape, np.int8)
            assert (zero >= grid.quant_min).all()
            assert (zero <= grid.quant_max).all()
        assert (quantized.restored.shape, quantized.restored.dtype) == (weight.shape, np.float32)
        back = from_named("w", tensor.to_named("w"), grid)
        np.testing.assert_array_equal(back.codes, tensor.codes)
        np.testing.assert_array_equal(back.weight(), quantized.restored)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_at_the_end_of_float32_are_rounded_to_numbers_or_named(bits, symmetric):
    weight = np.full((4, 32), 3e38, np.float32)
    weight[:, ::2] *= -1
    grid = Grid(bits, symmetric=symmetric)
    if not symmetric and bits < 4:  # the outermost codes lie beyond the weights
        with pytest.raises(MismatchError, match=r"^w: rounded, it overflows float32$"):
            quantize_weight("w", weight, grid, Method.RTN)
    else:
        assert np.isfinite(quantize_weight("w", weight, grid, Method.RTN).restored).all()


@every_method
def test_every_quantizer_gives_zeros_for_zeros(method):
    zeros = np.zeros((3, 24), np.float32)
    for grid in SOME:
        np.testing.assert_array_equal(run(method, zeros, grid).restored, zeros)


@every_method
def test_every_quantizer_gives_the_same_twice_and_leaves_its_input(method):
    for grid in SOME:
        weight = NORMAL.copy()
        first, second = (run(method, weight, grid) for _ in range(2))
        np.testing.assert_array_equal(first.codes.codes, second.codes.codes)
        np.testing.assert_array_equal(first.codes.scale, second.codes.scale)
        np.testing.assert_array_equal(weight, NORMAL)


@every_method
def test_the_error_is_that_of_what_is_restored_from_the_weight_before(method):
    quantized = run(method, NORMAL, Grid(3))
    assert quantized.sqnr_db == sqnr_db(NORMAL, quantized.codes.weight())


@every_method
def test_every_quantizer_refuses_a_group_size_that_does_not_divide(method):
    with pytest.raises(MismatchError, match="7 does not divide its 24"):
        run(method, NORMAL, Grid(3, Granularity.GROUP, 7))


def test_a_layer_that_a_method_only_rounds_is_rounded_to_nearest():
    for name in ("attn.qkv.weight", "attn.proj.weight"):
        for method in Method:
            spared = QUANTIZERS[method].only_rounds(name) or method is Method.RTN
            codes = quantize_weight(name, NORMAL, Grid(3), method, INPUTS).codes
            assert np.array_equal(codes.weight(), fake_quantize(NORMAL, Grid(3))) == spared


def test_rounding_to_nearest_is_fake_quantize():
    for grid in SOME:
        for weight in WEIGHTS:
            if fits(weight, grid):
                shown = run(Method.RTN, weight, grid).restored
                np.testing.assert_array_equal(shown, fake_quantize(weight, grid))
