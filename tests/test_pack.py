"""Codes as bits: packed and unpacked against whole numbers of any length."""

import itertools
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import qvec_cli.quant.pack as module
from qvec_cli.quant.pack import pack, unpack, words

BITS = range(1, 9)
WIDTHS = [*range(34), 63, 64, 65, 97, 129]
PEER = Path(__file__).parents[1] / ".bench" / "ct" / "bin" / "python"
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
@pytest.mark.parametrize("block", [1, 64, 100])
def test_a_matrix_in_blocks_of_rows_is_packed_as_in_one(bits, block, monkeypatch):
    codes = _codes(7, 21, bits)
    whole = pack(codes, bits)
    monkeypatch.setattr(module, "BLOCK", block)
    np.testing.assert_array_equal(pack(codes, bits), whole)
    np.testing.assert_array_equal(unpack(whole, 21, bits), codes)


@pytest.mark.parametrize("bits", BITS)
def test_zeros_of_either_sign_are_one_code(bits):
    zeros = np.float32([[0.0, -0.0]])
    np.testing.assert_array_equal(pack(zeros, bits), pack(np.int8([[0, 0]]), bits))


@pytest.mark.parametrize("columns", [1, 1000])
def test_memory_does_not_grow_with_the_matrix_but_for_the_result(columns):
    codes = np.zeros((3_000_000 // columns, columns), np.int8)
    tracemalloc.start()
    try:
        packed = pack(codes, 3)
        packing = tracemalloc.get_traced_memory()[1] - packed.nbytes
        tracemalloc.reset_peak()
        back = unpack(packed, columns, 3)
        unpacking = tracemalloc.get_traced_memory()[1] - packed.nbytes - back.nbytes
    finally:
        tracemalloc.stop()
    assert max(packing, unpacking) < 6 * module.BLOCK


@pytest.mark.parametrize("bits", BITS)
def test_words_are_as_many_as_the_bits_need(bits):
    for columns in WIDTHS:
        assert 32 * (words(columns, bits) - 1) < columns * bits <= 32 * words(columns, bits)


_COMPRESSED_TENSORS = """
import sys, numpy, torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

ours, theirs = numpy.load(sys.argv[1]), {}
for name in (name for name in ours.files if name.startswith("codes")):
    bits, along = int(name.split()[1]), int(name.split()[2])
    codes, packed = torch.from_numpy(ours[name]), ours["packed" + name[5:]]
    # 0.20 fails on one row of 4-bit words unless it is laid out as a column
    packed = torch.from_numpy(packed if along else packed.T.copy()).movedim(1, along)
    theirs["packed" + name[5:]] = pack_to_int32(codes, bits, along).numpy()
    theirs[name] = unpack_from_int32(packed, bits, codes.shape, along).numpy()
numpy.savez(sys.argv[2], **theirs)
"""


def _cases():
    """Names "codes BITS AXIS ROWS COLUMNS" and codes to be packed along the axis.

    Weights are packed along their rows, zero points ([out, groups]) along their columns.
    """
    for bits in BITS:
        for width in (*range(1, 71), 192, 768, 1001, 3072):
            yield f"codes {bits} 1 3 {width}", _codes(3, width, bits)
            yield f"codes {bits} 0 {width} 2", _codes(width, 2, bits)


@pytest.mark.slow
@pytest.mark.skipif(not PEER.exists(), reason="no .bench/ct, where make slow puts the peer")
def test_compressed_tensors_packs_the_same_bytes_and_unpacks_ours(tmp_path):
    ours = {}
    for name, codes in _cases():
        bits, along = (int(word) for word in name.split()[1:3])
        packed = pack(codes, bits) if along else pack(codes.T, bits).T
        ours |= {name: codes, name.replace("codes", "packed"): np.ascontiguousarray(packed)}
    np.savez(tmp_path / "ours.npz", **ours)
    files = [str(tmp_path / "ours.npz"), str(tmp_path / "theirs.npz")]
    subprocess.run([str(PEER), "-c", _COMPRESSED_TENSORS, *files], check=True)
    with np.load(tmp_path / "theirs.npz") as theirs:
        assert set(theirs.files) == set(ours)
        for name, mine in ours.items():
            assert theirs[name].dtype == mine.dtype
            np.testing.assert_array_equal(theirs[name], mine, err_msg=name)
