"""A quantized weight in a file: named, sized, packed and back without a bit of difference.

Regenerate golden/packed_w3.safetensors (only with a new schema, under a new name):
python tests/test_qtensor.py
"""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.dtypes import name_of
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.write import write
from qvec_cli.errors import QvecError
from qvec_cli.quant.affine import scale_shape
from qvec_cli.quant.qtensor import QTensor, from_named, part_names, parts, stored_bits
from qvec_cli.quant.scales import fake_quantize, rtn
from qvec_cli.specs import Granularity, Grid, ScaleDtype

GOLDEN = Path(__file__).parent / "golden" / "packed_w3.safetensors"
NAME = "fc.weight"
RNG = np.random.default_rng(0)
SHAPES = [(1, 1), (3, 8), (5, 24), (2, 33), (7, 40)]


def _grids(columns):
    sizes = [d for d in (1, 2, 3, 8, columns) if columns % d == 0]
    kinds = [(Granularity.TENSOR, None), (Granularity.CHANNEL, None)]
    kinds += [(Granularity.GROUP, size) for size in sorted(set(sizes))]
    plain = [Grid(bits, *kind) for bits in range(2, 9) for kind in kinds]
    return plain + [
        Grid(bits, *kind, symmetric=False, scale_dtype=dtype)
        for bits, dtype in ((3, ScaleDtype.FLOAT16), (8, ScaleDtype.FLOAT32))
        for kind in kinds
    ]


CASES = [(shape, grid) for shape in SHAPES for grid in _grids(shape[1])]


def _weight(shape):
    return RNG.normal(size=shape).astype(np.float32)


def _random(shape, grid):
    """Any codes, also the least, which rounding to nearest never makes."""
    codes = RNG.integers(grid.quant_min, grid.quant_max + 1, shape).astype(np.int8)
    size = scale_shape(shape, grid)
    scale = np.exp(RNG.normal(size=size)).astype(grid.scale_dtype).astype(np.float32)
    zero = RNG.integers(grid.quant_min, grid.quant_max + 1, size).astype(np.int8)
    return QTensor(codes, scale, grid, None if grid.symmetric else zero)


def test_a_weight_survives_its_names():
    for shape, grid in CASES:
        tensor = _random(shape, grid)
        back = from_named(NAME, tensor.to_named(NAME), grid)
        np.testing.assert_array_equal(back.codes, tensor.codes)
        np.testing.assert_array_equal(back.scale, tensor.scale)
        np.testing.assert_array_equal(back.weight(), tensor.weight())
        assert back.grid == grid


def test_what_is_stored_is_what_fake_quantize_shows():
    for shape, grid in CASES:
        weight = _weight(shape)
        stored = from_named(NAME, rtn(weight, grid).to_named(NAME), grid)
        np.testing.assert_array_equal(stored.weight(), fake_quantize(weight, grid))


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_code_of_zero_has_no_sign(bits):
    weight = np.float32([[-1e-30, 1e-30, -0.0, 0.0, -1.0]])
    shown, stored = fake_quantize(weight, Grid(bits)), rtn(weight, Grid(bits)).weight()
    np.testing.assert_array_equal(shown.view(np.uint32), stored.view(np.uint32))


def test_shapes_and_bits_are_foretold():
    for shape, grid in CASES:
        named = rtn(_weight(shape), grid).to_named(NAME)
        found = {name: (name_of(array.dtype), array.shape) for name, array in named.items()}
        assert found == parts(NAME, shape, grid)
        size = named.pop(f"{NAME}_shape")
        assert stored_bits({"w": shape}, grid) == 8 * sum(array.nbytes for array in named.values())
        assert size.tolist() == list(shape)


def test_parts_have_the_names_of_compressed_tensors():
    expected = ("fc.weight_packed", "fc.weight_scale", "fc.weight_shape")
    assert part_names(NAME, Grid()) == expected
    with_zero = (*expected, "fc.weight_zero_point")
    assert part_names(NAME, Grid(symmetric=False)) == with_zero
    assert tuple(rtn(_weight((2, 3)), Grid(symmetric=False)).to_named(NAME)) == with_zero
    assert tuple(rtn(_weight((2, 3)), Grid()).to_named(NAME)) == expected


def test_each_code_is_multiplied_by_the_scale_of_its_place():
    for shape, grid in CASES:
        tensor = _random(shape, grid)
        rows, columns = shape
        group = grid.group_size or columns
        weight = tensor.weight()
        assert weight.dtype == np.float32
        for i in range(rows):
            for j in range(columns):
                place = 0 if grid.granularity is Granularity.TENSOR else (i, j // group)
                zero = 0 if tensor.zero_point is None else int(tensor.zero_point[place])
                code = np.float32(int(tensor.codes[i, j]) - zero)
                assert weight[i, j] == code * tensor.scale[place]


@pytest.mark.parametrize(
    "damage",
    [
        lambda a: {**a, "fc.weight_packed": a["fc.weight_packed"][:, :-1]},
        lambda a: {**a, "fc.weight_packed": np.pad(a["fc.weight_packed"], ((0, 0), (0, 1)))},
        lambda a: {**a, "fc.weight_packed": a["fc.weight_packed"][:-1]},
        lambda a: {**a, "fc.weight_packed": a["fc.weight_packed"].reshape(-1)},
        lambda a: {**a, "fc.weight_scale": a["fc.weight_scale"][:-1]},
        lambda a: {**a, "fc.weight_scale": np.ones((1,), np.float32)},
        lambda a: {**a, "fc.weight_shape": np.array([3, 43])},
        lambda a: {**a, "fc.weight_shape": np.array([4, 40])},
        lambda a: {**a, "fc.weight_shape": np.array([-3, -40])},
        lambda a: {**a, "fc.weight_shape": np.array([120])},
        lambda a: {**a, "fc.weight_shape": np.array([3, 2**62])},
        lambda a: {**a, "fc.weight_shape": np.array([1] * 80 + [3, 40])},
        lambda a: {**a, "fc.weight_shape": np.array([0, 40])},
    ],
    ids=[
        *("a word short", "a word too many", "a row short", "flat"),
        *("a scale short", "one scale"),
        *("wider", "taller", "negative", "1-d", "vast", "of 82 sides", "no rows"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(damage):
    named = rtn(_weight((3, 40)), Grid(3)).to_named(NAME)
    with pytest.raises(QvecError):
        from_named(NAME, damage(named), Grid(3)).weight()


def _golden_weight():
    rows, columns = np.mgrid[:4, :21]
    return (((7 * rows + 3 * columns) % 11 - 5) / 8).astype(np.float32)


def _write_golden(path):
    named = rtn(_golden_weight(), Grid(3)).to_named(NAME)
    plan = {name: Entry(name_of(array.dtype), array.shape) for name, array in named.items()}
    card = Card(Kind.QUANTIZED, quant=Grid(3).to_json(), targets=(NAME,))
    blocks = ((name, [array.reshape(-1)]) for name, array in named.items())
    write(path, plan, blocks, card, force=True)


def test_a_packed_file_is_written_as_it_ever_was(tmp_path):
    _write_golden(tmp_path / "now.safetensors")
    assert (tmp_path / "now.safetensors").read_bytes() == GOLDEN.read_bytes()


def test_a_packed_file_of_the_first_version_is_read_for_ever():
    with Checkpoint(GOLDEN) as checkpoint:
        grid = Grid.from_json(checkpoint.card.quant)
        arrays = {name: checkpoint.array(name) for name in part_names(NAME, grid)}
    shown = from_named(NAME, arrays, grid).weight()
    np.testing.assert_array_equal(shown, fake_quantize(_golden_weight(), Grid(3)))


def test_a_packed_file_can_be_decoded_with_the_library_and_a_pocket_calculator():
    parts = safetensors.numpy.load_file(GOLDEN)
    for r, row in enumerate(_golden_weight()):
        stream = int.from_bytes(parts[NAME + "_packed"][r].tobytes(), "little")
        scale = parts[NAME + "_scale"][r, 0]
        assert scale == np.float32(5 / 8) / 3
        for c, weight in enumerate(row):
            code = (stream >> (3 * c) & 7) - 4
            assert code == round(weight / scale)


if __name__ == "__main__":
    _write_golden(GOLDEN)
