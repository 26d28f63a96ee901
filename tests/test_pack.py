"""Codes as bits: packed and unpacked against whole numbers of any length."""

import itertools

import numpy as np
import pytest

from qvec_cli.quant.pack import pack, unpack, words

BITS = range(1, 9)
WIDTHS = range(34)
RNG = np.random.default_rng(0)


def _codes(rows, columns, bits):
    low = -(2 ** (bits - 1))
    return RNG.integers(low, -low, (rows, columns)).astype(np.int8)


def _reference(row, bits):
    """One row as a long number, cut into 32-bit words: code i stands at bit i * bits."""
    stream = sum((int(code) + 2 ** (bits - 1)) << (i * bits) for i, code in enumerate(row))
    count = -(-len(row) * bits // 32)
    return [(stream >> (32 * i)) & 0xFFFFFFFF for i in range(count)]


@pytest.mark.parametrize("bits", BITS)
def test_unpacking_undoes_packing(bits):
    for rows, columns in itertools.product(range(4), WIDTHS):
        codes = _codes(rows, columns, bits)
        back = unpack(pack(codes, bits), columns, bits)
        assert back.dtype == np.int8
        np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize("bits", BITS)
def test_a_row_is_one_little_endian_stream_of_codes(bits):
    for columns in WIDTHS:
        codes = _codes(3, columns, bits)
        packed = pack(codes, bits)
        assert packed.dtype == np.dtype("<i4")
        assert packed.shape == (3, words(columns, bits))
        expected = np.array([_reference(row, bits) for row in codes], np.uint32)
        np.testing.assert_array_equal(packed.view(np.uint32), expected.reshape(packed.shape))


@pytest.mark.parametrize("bits", BITS)
def test_bits_after_the_last_code_are_zero(bits):
    highest = np.full((1, 5), 2 ** (bits - 1) - 1)
    packed = pack(highest, bits)
    stream = int.from_bytes(packed.tobytes(), "little")
    assert stream == 2 ** (5 * bits) - 1


@pytest.mark.parametrize("bits", BITS)
def test_every_code_of_the_range_survives_next_to_every_other(bits):
    codes = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))
    pairs = np.stack(np.meshgrid(codes, codes), axis=-1).reshape(-1, 2)
    np.testing.assert_array_equal(unpack(pack(pairs, bits), 2, bits), pairs)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64, np.float32])
def test_codes_may_come_in_any_type_that_holds_them(bits, dtype):
    codes = _codes(2, 7, bits)
    np.testing.assert_array_equal(pack(codes.astype(dtype), bits), pack(codes.astype(int), bits))


@pytest.mark.parametrize("bits", BITS)
def test_packing_neither_keeps_nor_changes_its_input(bits):
    codes = _codes(2, 9, bits).astype(np.int64)
    before = codes.copy()
    packed = pack(codes, bits)
    unpack(packed, 9, bits)[:] = 0
    np.testing.assert_array_equal(codes, before)
    np.testing.assert_array_equal(unpack(packed, 9, bits), before)


@pytest.mark.parametrize("bits", BITS)
def test_a_view_with_strides_is_unpacked_like_its_copy(bits):
    codes = _codes(6, 21, bits).astype(np.int64)
    packed = pack(codes, bits)
    np.testing.assert_array_equal(unpack(packed[::2], 21, bits), codes[::2])
    np.testing.assert_array_equal(pack(codes[::2, ::3], bits), pack(codes[::2, ::3].copy(), bits))


@pytest.mark.parametrize("bits", BITS)
def test_words_are_as_many_as_the_bits_need(bits):
    for columns in WIDTHS:
        assert 32 * (words(columns, bits) - 1) < columns * bits <= 32 * words(columns, bits)
