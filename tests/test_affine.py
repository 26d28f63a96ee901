"""The grid of the paper, against arithmetic on single numbers, and numpy against torch."""

import functools
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from qvec_cli.errors import MismatchError
from qvec_cli.quant.affine import TINY, QParams, block_shape, dequantize, quantize, scale_shape
from qvec_cli.quant.scales import choose_qparams, fake_quantize
from qvec_cli.specs import Granularity, Grid

BITS = range(2, 9)
RNG = np.random.default_rng(0)
HALVES = np.arange(-24, 24, dtype=np.float32).reshape(4, 12) / 2
WEIGHTS = {
    "normal": RNG.normal(size=(7, 12)),
    "odd": RNG.normal(size=(5, 37)),
    "wide": RNG.normal(size=(33, 192)) * np.exp(RNG.normal(size=(33, 1)) * 3),
    "one row": RNG.normal(size=(1, 24)),
    "one column": RNG.normal(size=(9, 1)),
    "one weight": np.array([[-0.3]]),
    "zeros": np.zeros((3, 8)),
    "a zero row": RNG.normal(size=(4, 12)) * np.array([[1], [0], [1], [0]]),
    "tiny": RNG.normal(size=(3, 24)) * 1e-30,
    "near the least scale": RNG.normal(size=(6, 24)) * 1e-8,
    "denormal": RNG.normal(size=(3, 8)) * 1e-42,
    "huge": RNG.normal(size=(3, 24)) * 1e30,
    "largest": np.linspace(-1, 1, 24).reshape(2, 12) * 1e38,
    "outliers": np.where(RNG.random((6, 36)) < 0.05, 1e6, 1.0) * RNG.normal(size=(6, 36)),
    "ties": HALVES,
}
WEIGHTS = {name: weight.astype(np.float32) for name, weight in WEIGHTS.items()}


def _grids(columns, bits):
    sizes = [d for d in range(1, columns + 1) if columns % d == 0][:5]
    groups = [(Granularity.GROUP, size) for size in {*sizes, columns}]
    kinds = [(Granularity.TENSOR, None), (Granularity.CHANNEL, None), *groups]
    return [Grid(bits, *kind) for kind in kinds]


def _cases(test):
    """Runs a law on every weight in every granularity, the width going round; if slow, on all."""
    slow = pytest.param(BITS, id="every width", marks=pytest.mark.slow)

    @pytest.mark.parametrize("widths", [pytest.param((), id="a width each"), slow])
    @functools.wraps(test)
    def run(widths):
        for place, weight in enumerate(WEIGHTS.values()):
            kinds = _grids(weight.shape[1], 2)
            for number, kind in enumerate(kinds):
                for bits in widths or (BITS[(place + number) % len(BITS)],):
                    test(weight, replace(kind, bits=bits))

    del run.__wrapped__  # pytest would read its parameters
    return run


def _f32(value):
    """The double rounded to float32; one operation on float32 numbers is exact enough before."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def _reference_block(block, bits):
    quant_max = 2 ** (bits - 1) - 1
    scale = _f32(max(*map(abs, block), _f32(1e-8)) / quant_max)
    codes = [min(max(round(_f32(w / scale)), -quant_max - 1), quant_max) for w in block]
    return scale, codes, [_f32(code * scale) for code in codes]


def _reference(weight, grid):
    """Scale, codes and weights of every block, one number at a time."""
    rows = weight.tolist()
    if grid.granularity is Granularity.TENSOR:
        blocks = [[w for row in rows for w in row]]
    else:
        size = grid.group_size or len(rows[0])
        blocks = [row[i : i + size] for row in rows for i in range(0, len(row), size)]
    return zip(*(_reference_block(block, grid.bits) for block in blocks), strict=True)


def _blocks(weight, grid):
    return weight.reshape(block_shape(weight.shape, grid))


def _bits(array):
    return np.ascontiguousarray(array).view(np.uint32)


@_cases
def test_the_grid_is_the_papers_number_by_number(weight, grid):
    scales, codes, values = _reference(weight, grid)
    blocks = _blocks(weight, grid)
    params = choose_qparams(blocks, grid)
    np.testing.assert_array_equal(params.scale.reshape(-1), np.float32(scales))
    np.testing.assert_array_equal(quantize(blocks, params, grid), np.float32(codes))
    np.testing.assert_array_equal(_blocks(fake_quantize(weight, grid), grid), np.float32(values))


@_cases
def test_numpy_and_torch_give_the_same_bits(weight, grid):
    ours, theirs = fake_quantize(weight, grid), fake_quantize(torch.from_numpy(weight), grid)
    assert (ours.dtype, theirs.dtype) == (np.float32, torch.float32)
    np.testing.assert_array_equal(_bits(ours), _bits(theirs.numpy()))
    scale = choose_qparams(torch.from_numpy(_blocks(weight, grid)), grid).scale.numpy()
    ours = choose_qparams(_blocks(weight, grid), grid).scale
    np.testing.assert_array_equal(_bits(ours), _bits(scale))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_bits():
    weight = np.exp(RNG.normal(size=(4096, 64)) * 5).astype(np.float32)
    for bits in BITS:
        there = fake_quantize(torch.from_numpy(weight).cuda(), Grid(bits)).cpu().numpy()
        np.testing.assert_array_equal(_bits(fake_quantize(weight, Grid(bits))), _bits(there))


@pytest.mark.parametrize("bits", BITS)
def test_a_transposed_view_is_quantized_like_its_copy(bits):
    weight = np.ascontiguousarray(WEIGHTS["wide"].T)
    for view in (weight.T, torch.from_numpy(weight).T):
        np.testing.assert_array_equal(
            np.asarray(fake_quantize(view, Grid(bits))), fake_quantize(WEIGHTS["wide"], Grid(bits))
        )


@_cases
def test_the_error_is_at_most_half_a_step(weight, grid):
    step = choose_qparams(_blocks(weight, grid), grid).scale.astype(np.float64)
    exact = _blocks(weight, grid).astype(np.float64)
    error = np.abs(exact - _blocks(fake_quantize(weight, grid), grid))
    assert (error <= step / 2 + np.abs(exact) * 2.0**-22).all()  # the last bits of float32


@_cases
def test_codes_are_whole_and_in_range_and_never_the_least(weight, grid):
    blocks = _blocks(weight, grid)
    codes = quantize(blocks, choose_qparams(blocks, grid), grid)
    assert (codes == np.round(codes)).all()
    assert codes.max() <= grid.quant_max
    assert codes.min() > grid.quant_min


@pytest.mark.parametrize("bits", BITS)
def test_codes_beyond_the_range_are_clamped_to_its_ends(bits):
    grid, weights = Grid(bits), np.array([[-1e9, -300.0, 0.0, 300.0, 1e9]], np.float32)
    codes = quantize(weights, QParams(np.ones((1, 1), np.float32), None), grid)
    low, high = grid.quant_min, grid.quant_max
    np.testing.assert_array_equal(codes, [[low, low, 0, high, high]])


@pytest.mark.parametrize("bits", BITS)
def test_halves_round_to_the_even_code(bits):
    grid, one = Grid(bits), np.ones((1, 1), np.float32)
    halves = np.array([[-1.5, -0.5, 0.5]], np.float32)
    np.testing.assert_array_equal(quantize(halves, QParams(one, None), grid), [[-2, 0, 0]])


def test_a_block_of_zeros_comes_back_as_zeros_on_a_finite_scale():
    zeros = np.zeros((3, 8), np.float32)
    for grid in (grid for bits in BITS for grid in _grids(8, bits)):
        np.testing.assert_array_equal(fake_quantize(zeros, grid), zeros)
        scale = choose_qparams(_blocks(zeros, grid), grid).scale
        np.testing.assert_array_equal(scale, np.float32(np.float32(TINY) / grid.quant_max))
        assert (scale > 0).all()


@_cases
def test_quantizing_twice_changes_nothing(weight, grid):
    once = fake_quantize(weight, grid)
    np.testing.assert_array_equal(fake_quantize(once, grid), once)


@pytest.mark.parametrize("bits", BITS)
def test_the_largest_weight_of_a_row_is_restored_to_the_last_bit(bits):
    weight = np.exp(RNG.normal(size=(2000, 3)) * 5).astype(np.float32)
    shown, largest = fake_quantize(weight, Grid(bits)), weight.max(axis=1)
    assert (np.abs(shown.max(axis=1) - largest) <= np.spacing(largest)).all()


@pytest.mark.parametrize("bits", BITS)
def test_flipping_signs_flips_the_quantized_weights(bits):
    weight = WEIGHTS["wide"]
    np.testing.assert_array_equal(
        fake_quantize(-weight, Grid(bits)), -fake_quantize(weight, Grid(bits))
    )


@pytest.mark.parametrize("bits", BITS)
def test_a_power_of_two_passes_through_quantization(bits):
    weight = WEIGHTS["wide"]
    np.testing.assert_array_equal(
        fake_quantize(weight * 64, Grid(bits)), fake_quantize(weight, Grid(bits)) * 64
    )


@pytest.mark.parametrize("bits", BITS)
def test_a_group_of_the_whole_row_is_a_channel(bits):
    for weight in WEIGHTS.values():
        whole, channel = Grid(bits, Granularity.GROUP, weight.shape[1]), Grid(bits)
        shown = fake_quantize(weight, whole)
        np.testing.assert_array_equal(shown, fake_quantize(weight, channel))
        assert scale_shape(weight.shape, whole) == scale_shape(weight.shape, channel)


@pytest.mark.parametrize("bits", BITS)
def test_a_channel_of_a_weight_with_one_row_is_the_tensor(bits):
    weight = WEIGHTS["one row"]
    np.testing.assert_array_equal(
        fake_quantize(weight, Grid(bits)), fake_quantize(weight, Grid(bits, Granularity.TENSOR))
    )


@pytest.mark.parametrize("bits", BITS)
def test_a_finer_granularity_never_has_a_larger_scale(bits):
    weight = WEIGHTS["wide"]
    tensor, channel, group = (
        choose_qparams(_blocks(weight, grid), grid).scale.reshape(-1)
        for grid in (
            Grid(bits, Granularity.TENSOR),
            Grid(bits),
            Grid(bits, Granularity.GROUP, 64),
        )
    )
    assert channel.max() == tensor[0]
    np.testing.assert_array_equal(group.reshape(-1, 3).max(axis=1), channel)


@pytest.mark.parametrize("size", [5, 7, 8, 13, 24])
def test_a_group_size_that_does_not_divide_is_refused_with_those_that_do(size):
    with pytest.raises(MismatchError, match=f"{size} does not divide its 12 ") as caught:
        block_shape((3, 12), Grid(3, Granularity.GROUP, size))
    assert "1, 2, 3, 4, 6, 12." in caught.value.hint


@pytest.mark.parametrize(
    ("grid", "blocks", "scales"),
    [
        (Grid(3, Granularity.TENSOR), (1, 60), (1,)),
        (Grid(3), (5, 12), (5, 1)),
        (Grid(3, Granularity.GROUP, 4), (15, 4), (5, 3)),
        (Grid(3, Granularity.GROUP, 12), (5, 12), (5, 1)),
        (Grid(3, Granularity.GROUP, 1), (60, 1), (5, 12)),
    ],
)
def test_a_weight_is_viewed_as_blocks_with_one_scale_each(grid, blocks, scales):
    assert block_shape((5, 12), grid) == blocks
    assert scale_shape((5, 12), grid) == scales
    assert np.prod(scales) == blocks[0]


@pytest.mark.parametrize("bits", BITS)
def test_two_bits_are_ternary_and_three_use_seven_codes(bits):
    weight = np.linspace(-1, 1, 10_001, dtype=np.float32)[None]
    blocks = _blocks(weight, Grid(bits))
    codes = quantize(blocks, choose_qparams(blocks, Grid(bits)), Grid(bits))
    assert len(np.unique(codes)) == 2**bits - 1


def test_dequantize_is_one_product():
    codes, scale = np.float32([[-4, 0, 3]]), np.float32([[0.1]])
    np.testing.assert_array_equal(dequantize(codes, QParams(scale, None)), codes * np.float32(0.1))
