"""MatMulNBits: the arrays are the codes and scales of the file, and onnxruntime reads them so."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from covers import pairwise
from onnx import TensorProto, helper, numpy_helper

from qvec_cli.errors import MismatchError
from qvec_cli.export.matmulnbits import arrays, layout
from qvec_cli.export.onnx import logits
from qvec_cli.quant.qtensor import QTensor
from qvec_cli.quant.scales import rtn
from qvec_cli.specs import Granularity, Grid, Scale

Array = np.ndarray[Any, np.dtype[Any]]

SHARED = [
    (Granularity.CHANNEL, None),
    (Granularity.TENSOR, None),
    *((Granularity.GROUP, size) for size in (16, 32, 48, 96, 256, 512)),
]
GRIDS = [
    Grid(bits, *kind, symmetric=symmetric)
    for bits, kind, symmetric in pairwise(range(2, 9), SHARED, (True, False))
]
GRIDS += [Grid(2, scale=Scale.MSE_FULL), Grid(3, scale_dtype="float16")]


def packed(grid: Grid, columns: int | None = None, rows: int = 7) -> QTensor:
    """A weight that leans to one side, so that zero points are not 0, with every code in use."""
    columns = columns or (grid.group_size or 50) * 3
    rng = np.random.default_rng(columns)
    weight = rng.normal(0.3, 1, (rows, columns)).astype(np.float32)
    return rtn(weight, grid)


def fields(stored: Array, bits: int, count: int) -> Array:
    """The first fields of each row of bytes, lowest bits first, read bit by bit."""
    rows = np.unpackbits(stored.reshape(-1, stored.shape[-1]), axis=1, bitorder="little")
    values = rows[:, : count * bits].reshape(len(rows), count, bits)
    return (values * 2 ** np.arange(bits)).sum(2)


def read(made: dict[str, Array], rows: int, columns: int, grid: Grid) -> Array:
    """The weight [out, in] that the operator's documentation sees in its arrays."""
    form = layout(columns, grid)
    blocks = form.count(columns)
    codes = fields(made["codes"], form.bits, form.block).reshape(rows, blocks, form.block)
    zero = np.full((rows, blocks), 2 ** (form.bits - 1))
    if "zero_points" in made:
        zero = fields(made["zero_points"].reshape(rows, -1), form.bits, blocks)
    scale = made["scales"].reshape(rows, blocks, 1)
    whole = (codes - zero[:, :, None]).astype(np.float32) * scale
    return whole.reshape(rows, -1)[:, :columns]


def test_the_arrays_hold_the_very_weight() -> None:
    for grid in GRIDS:
        weight = packed(grid)
        made = arrays(weight)
        assert {name: array.dtype for name, array in made.items()} == {
            "codes": np.uint8,
            "scales": np.float32,
            **({} if grid.symmetric else {"zero_points": np.uint8}),
        }
        assert np.array_equal(read(made, *weight.codes.shape, grid), weight.weight()), grid


@pytest.mark.parametrize("columns", [1, 2, 15, 16, 31, 33, 64, 65, 127, 129, 200])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_last_block_is_filled_up_with_zeros(columns: int, symmetric: bool) -> None:
    grid = Grid(3, symmetric=symmetric)
    weight = packed(grid, columns)
    assert np.array_equal(read(arrays(weight), 7, columns, grid), weight.weight())
    form = layout(columns, grid)
    padded = form.count(columns) * form.block
    assert not read(arrays(weight), 7, padded, grid)[:, columns:].any()


def product_of(weight: QTensor, rows: Array) -> Array:
    """The rows times the transposed weight, by onnxruntime."""
    outputs, columns = weight.codes.shape
    form = layout(columns, weight.grid)
    made = arrays(weight)
    node = helper.make_node(
        "MatMulNBits",
        ["x", *made],
        ["y"],
        domain="com.microsoft",
        K=columns,
        N=outputs,
        bits=form.bits,
        block_size=form.block,
        accuracy_level=1,
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", outputs])],
        [numpy_helper.from_array(array, name) for name, array in made.items()],
    )
    versions = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=versions, ir_version=10)
    return logits(model.SerializeToString(), rows)


def test_onnxruntime_multiplies_by_the_very_weight() -> None:
    rng = np.random.default_rng(0)
    for grid in GRIDS:
        weight = packed(grid, rows=20)
        for count in (1, 19):
            x = rng.normal(size=(count, weight.codes.shape[1])).astype(np.float32)
            exact = x.astype(np.float64) @ weight.weight().T.astype(np.float64)
            size = np.abs(x).astype(np.float64) @ np.abs(weight.weight().T).astype(np.float64)
            assert (np.abs(product_of(weight, x) - exact) <= 4e-6 * size).all(), grid


@pytest.mark.parametrize("size", [1, 8, 24, 40, 100])
def test_groups_that_16_does_not_divide_are_refused(size: int) -> None:
    with pytest.raises(MismatchError, match=f"groups of {size} do not fit") as fault:
        layout(size * 4, Grid(3, Granularity.GROUP, size))
    assert fault.value.hint


def test_codes_keep_their_width_or_get_the_next_that_the_operator_has() -> None:
    assert [layout(64, Grid(bits)).bits for bits in range(2, 9)] == [2, 4, 4, 8, 8, 8, 8]


def test_a_block_is_as_long_as_the_group_allows() -> None:
    sizes = {16: 16, 32: 32, 48: 16, 96: 32, 128: 128, 192: 64, 256: 256, 512: 256, 1024: 256}
    found = {size: layout(size, Grid(3, Granularity.GROUP, size)).block for size in sizes}
    assert found == sizes


def test_scales_of_whole_rows_are_repeated_where_that_costs_least() -> None:
    assert [layout(columns, Grid(4)).block for columns in (2, 32, 64, 192, 384, 768)] == [
        *(32, 32, 64, 64, 128, 128)
    ]
