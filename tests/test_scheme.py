"""Grids in the words of compressed-tensors: read as written, and refused where they cannot be."""

from dataclasses import replace

import pytest

from qvec_cli.errors import MismatchError
from qvec_cli.quant.compressed_tensors import (
    for_stock_loaders,
    of_scheme,
    require_loadable,
    to_scheme,
)
from qvec_cli.specs import Granularity, Grid, Scale, ScaleDtype

BLOCKS = [(Granularity.TENSOR, None), (Granularity.CHANNEL, None), (Granularity.GROUP, 16)]
GRIDS = [
    Grid(bits, *blocks, symmetric=symmetric)
    for bits in range(2, 9)
    for blocks in BLOCKS
    for symmetric in (True, False)
]
HALF = ScaleDtype.FLOAT16


def packs_zero_points(grid):
    return not grid.symmetric and grid.granularity is not Granularity.TENSOR


def test_a_grid_is_read_as_it_was_written():
    for grid in GRIDS:
        assert of_scheme(to_scheme(grid, ["timm_model.head"])) == grid


def test_weights_are_unpacked_while_read_unless_their_scales_are_halves():
    for grid in GRIDS:
        assert to_scheme(grid, ())["dequantize"] is True
        assert "dequantize" not in to_scheme(replace(grid, scale_dtype=HALF), ())


def test_how_scales_were_chosen_is_not_told():
    assert to_scheme(Grid(3, scale=Scale.MSE), ()) == to_scheme(Grid(3), ())


def test_names_of_what_is_left_are_sorted():
    assert to_scheme(Grid(3), ["b", "a"])["ignore"] == ["a", "b"]


def weights(**changes):
    """A scheme of 4-bit weights with other words for them; None leaves one out."""
    scheme = to_scheme(Grid(4), ())
    stated = {**scheme["config_groups"]["group_0"]["weights"], **changes}
    kept = {key: value for key, value in stated.items() if value is not None}
    return {**scheme, "config_groups": {"group_0": {"targets": ["Linear"], "weights": kept}}}


IMPLIED = {
    "no size": ({}, Grid(4, Granularity.TENSOR)),
    "size -1": ({"group_size": -1}, Grid(4)),
    "size 32": ({"group_size": 32}, Grid(4, Granularity.GROUP, 32)),
}


@pytest.mark.parametrize("case", IMPLIED)
def test_a_strategy_that_is_left_out_follows_from_the_size_of_a_group(case):
    words, grid = IMPLIED[case]
    assert of_scheme(weights(strategy=None, **words)) == grid


def test_a_size_that_says_nothing_beside_a_channel_is_none():
    assert of_scheme(weights(group_size=-1)) == Grid(4)


def grouped(**changes):
    scheme = to_scheme(Grid(4), ())
    group = {**scheme["config_groups"]["group_0"], **changes}
    return {**scheme, "config_groups": {"group_0": group}}


SCHEME = to_scheme(Grid(4), ())
UNKNOWN = {
    "nothing": {},
    "another method": {**SCHEME, "quant_method": "gptq"},
    "another format": {**SCHEME, "format": "int-quantized"},
    "another format of its group": grouped(format="float-quantized"),
    "no groups": {**SCHEME, "config_groups": {}},
    "two groups": {**SCHEME, "config_groups": {"a": weights(), "b": weights()}},
    "a preset": {**SCHEME, "config_groups": {"W4A16": ["Linear"]}},
    "a group without weights": grouped(weights=None),
    "rounded activations": grouped(input_activations={"num_bits": 8}),
    "a rounded cache": {**SCHEME, "kv_cache_scheme": {"num_bits": 8}},
    "floating codes": weights(type="float"),
    "dynamic scales": weights(dynamic=True),
    "blocks": weights(strategy="block"),
    "a group of no size": weights(strategy="group"),
    "nine bits": weights(num_bits=9),
    "one bit": weights(num_bits=1),
    "bits of text": weights(num_bits="4"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_one_grid_of_weights_is_refused(case):
    with pytest.raises(MismatchError, match="does not tell of weights alone"):
        of_scheme(UNKNOWN[case])


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_with_gaps_are_refused_by_the_version_that_packed_them(bits):
    scheme = to_scheme(Grid(bits), ())
    for version in ("0.18.0", "0.20.1.dev3", "1.0", "unknown", None):
        assert of_scheme({**scheme, "version": version}).bits == bits
    old = {**scheme, "version": "0.9.4"}
    if bits in (2, 4, 8):
        assert of_scheme(old).bits == bits
    else:
        with pytest.raises(MismatchError, match="with gaps"):
            of_scheme(old)


SHAPES = {"blocks.0.fc.weight": (64, 32)}


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_linear_weights_can_be_loaded_on_every_grid(grid):
    require_loadable(SHAPES, grid)
    halves = replace(grid, scale_dtype=HALF)
    assert for_stock_loaders(halves) == (grid if packs_zero_points(grid) else halves)
    assert for_stock_loaders(grid) == grid


def test_a_weight_with_a_scale_a_row_beside_groups_is_refused_by_name():
    grid = Grid(3, Granularity.GROUP, 16, rows=("head.weight",))
    require_loadable(SHAPES, grid)
    with pytest.raises(MismatchError, match=r"^head.weight: groups of 16"):
        require_loadable({**SHAPES, "head.weight": (64, 24)}, grid)


@pytest.mark.parametrize("name", ["attn.in_proj_weight", "relative_position_bias_table"])
def test_what_is_not_the_weight_of_a_module_is_refused_by_name(name):
    with pytest.raises(MismatchError, match=name):
        require_loadable({**SHAPES, name: (64, 32)}, Grid(3))


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid.bits == 4], ids=str)
def test_zero_points_that_the_peer_cannot_unpack_are_refused(grid):
    require_loadable({"fc.weight": (9, 32)}, grid)
    if packs_zero_points(grid):
        with pytest.raises(MismatchError, match="zero points of 8 rows"):
            require_loadable({"fc.weight": (8, 32)}, grid)
    else:
        require_loadable({"fc.weight": (8, 32)}, grid)
