"""The number formats: the library's order and sizes, torch's conversions, bit for bit."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from qvec_cli.checkpoint.dtypes import FORMATS, from_float32, name_of, to_float32

TORCH = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
FLOATING = [name for name, row in FORMATS.items() if row.floating]
RNG = np.random.default_rng(0)
ODD = np.float32(
    [
        *(0.0, -0.0, 1.0, -1.0, 65504.0, 65519.9, 65520.0, 1e-8, 6e-8, 2**-25, 3.4e38, 1e-45),
        *(1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, np.inf, -np.inf, np.nan),
    ]
)
"""Zeros, ends of ranges, ties and what is no number."""


def _values(count=100_000):
    values = RNG.integers(0, 2**32, count, dtype=np.uint32).view(np.float32)
    return np.concatenate([values[~np.isnan(values)], ODD])


def test_the_table_holds_every_dtype_that_torch_and_the_library_share_up_to_64_bits():
    assert FORMATS.keys() == TORCH.keys()


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_agrees_with_torch_on_size_and_kind(name):
    row, dtype = FORMATS[name], TORCH[name]
    assert row.numpy.itemsize == dtype.itemsize
    assert row.floating is dtype.is_floating_point
    assert row.numpy.byteorder in "|<="


@pytest.mark.parametrize("name", FORMATS)
def test_numpy_and_torch_spell_a_dtype_alike(name):
    assert name_of(TORCH[name]) == name
    if name != "BF16":
        assert name_of(torch.empty(0, dtype=TORCH[name]).numpy().dtype) == name


def test_ranks_are_the_order_of_the_library():
    saved = safetensors.torch.save({n: torch.zeros(1, dtype=d) for n, d in TORCH.items()})
    header = json.loads(saved[8 : 8 + int.from_bytes(saved[:8], "little")])
    by_place = sorted(header, key=lambda name: header[name]["data_offsets"])
    assert by_place == sorted(FORMATS, key=lambda name: -FORMATS[name].rank)
    assert len({row.rank for row in FORMATS.values()}) == len(FORMATS)


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_half_becomes_the_float_it_is(name):
    raw = np.arange(2**16, dtype=np.uint16)
    ours = to_float32(raw.view(FORMATS[name].numpy), name)
    theirs = torch.from_numpy(raw.view(np.int16)).view(TORCH[name]).float().numpy()
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    there = ~np.isnan(ours)
    np.testing.assert_array_equal(ours[there].view(np.uint32), theirs[there].view(np.uint32))


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_half_comes_back_from_float(name):
    raw = np.arange(2**16, dtype=np.uint16).view(FORMATS[name].numpy)
    values = to_float32(raw, name)
    there = ~np.isnan(values)
    np.testing.assert_array_equal(
        from_float32(values, name)[there].view(np.uint16), raw[there].view(np.uint16)
    )


@pytest.mark.parametrize("name", FLOATING)
def test_a_float_is_rounded_as_torch_rounds_it(name):
    values = _values()
    ours = from_float32(values, name)
    theirs = torch.from_numpy(values).to(TORCH[name])
    assert ours.dtype == FORMATS[name].numpy
    back = to_float32(ours, name)
    np.testing.assert_array_equal(back, theirs.float().numpy())  # NaN equals NaN here
    there = ~np.isnan(values)
    np.testing.assert_array_equal(np.signbit(back)[there], np.signbit(values)[there])


@pytest.mark.parametrize("name", ["F32", "F64"])
def test_a_float_in_a_wide_format_keeps_every_bit(name):
    values = _values()
    values = values[~np.isnan(values)]
    back = to_float32(from_float32(values, name), name)
    np.testing.assert_array_equal(back.view(np.uint32), values.view(np.uint32))


@pytest.mark.parametrize("value", [1e300, -1e300, 1e-300, np.nan, np.inf, 1 + 2**-40])
def test_a_double_is_rounded_as_torch_rounds_it_and_without_a_warning(value):
    double = np.array([value])
    theirs = torch.from_numpy(double).float().numpy()
    np.testing.assert_array_equal(to_float32(double, "F64"), theirs)


@pytest.mark.parametrize("name", FLOATING)
def test_an_empty_block_stays_empty(name):
    block = from_float32(np.empty(0, np.float32), name)
    assert block.dtype == FORMATS[name].numpy
    assert to_float32(block, name).dtype == np.float32
    assert block.size == to_float32(block, name).size == 0
