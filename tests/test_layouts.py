"""Low-bit layouts of other tools: recognised by name, never read as floats or as ours.

The names, types and shapes below are those that libraries gave a linear layer of 96 inputs and 64
outputs: compressed-tensors 0.17.1 and 0.20.0 (``compress_module``), GPTQModel 7.7.0
(``TorchLinear``), AutoAWQ 0.2.9 (``WQLinear_GEMM``, ``_GEMV`` and ``_GEMVFast``), HQQ 0.2.8
(``HQQLinear``), optimum-quanto 0.2.7 (``quantize`` and ``freeze``), torchao 0.18.0
(``flatten_tensor_state_dict``) and bitsandbytes 0.50.2 (``Linear4bit``, ``Linear8bitLt``).
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import Drawer, call
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from qvec_cli.checkpoint.dtypes import FORMATS, Array, name_of
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import QvecError
from qvec_cli.inputs import packed_layouts
from qvec_cli.inputs.network import load_state
from qvec_cli.inputs.packed_layouts import DENSE, OLDER, UNKNOWN, PackedFile, packed

OUT, IN = 64, 96
PARAMETERS = OUT * IN + OUT

Named = dict[str, tuple[str, tuple[int, ...]]]


class Row(NamedTuple):
    """What a library wrote for one linear layer, and what is to be found in it."""

    layout: str
    bits: int | None
    tensors: Named
    group: int | None = None
    parameters: int | None = PARAMETERS
    said: str = ""  # the bits in words, where there are several


def dense(words: int, groups: int = 1, rows: int = 0) -> Named:
    zero: Named = {"weight_zero_point": ("I32", (rows, groups))} if rows else {}
    return {
        "weight_packed": ("I32", (OUT, words)),
        "weight_scale": ("F32", (OUT, groups)),
        "weight_shape": ("I64", (2,)),
        **zero,
    }


def int8(groups: int = 1, **more: tuple[str, tuple[int, ...]]) -> Named:
    return {"weight": ("I8", (OUT, IN)), "weight_scale": ("F32", (OUT, groups)), **more}


def gptq(bits: int, groups: int = 3) -> Named:
    return {
        "qweight": ("I32", (IN * bits // 32, OUT)),
        "qzeros": ("I32", (groups, OUT * bits // 32)),
        "scales": ("F16", (groups, OUT)),
        "g_idx": ("I32", (IN,)),
    }


def hqq(dtype: str, codes: tuple[int, int], scale: tuple[int, int]) -> Named:
    one = ("offload_meta", "encoded_state_dict", "stores_quant_config", "channel_wise")
    one += ("optimize", "round_zero", "view_as_float", "quant_scale", "quant_zero")
    return {
        "W_q": (dtype, codes),
        **dict.fromkeys(("scale", "zero"), ("F16", scale)),
        **dict.fromkeys(("nbits", "group_size", "axis"), ("I32", ())),
        "shape": ("I64", (2,)),
        "packing": ("U8", (7,)),
        "unpack_view_dtype": ("U8", (11,)),
        **dict.fromkeys(one, ("U8", ())),
        "compute_dtype": ("U8", (13,)),
    }


def quanto(codes: Named, *more: str) -> Named:
    scales: Named = dict.fromkeys(("weight._scale", *more), ("F32", (OUT, 1)))
    return {"input_scale": ("F32", ()), "output_scale": ("F32", ()), **scales, **codes}


def torchao(groups: int, dtype: str = "BF16") -> Named:
    return {
        "_weight_qdata": ("I8", (OUT, IN)),
        "_weight_scale": (dtype, (OUT, groups)),
        "_weight_zero_point": ("I8", (OUT, groups)),
    }


def nf4(kind: str, *, nested: bool) -> Named:
    twice: Named = {
        "weight.nested_absmax": ("F32", (1,)),
        "weight.nested_quant_map": ("F32", (256,)),
    }
    return {
        "weight": ("U8", (OUT * IN // 2, 1)),
        "weight.absmax": ("U8" if nested else "F32", (OUT * IN // 64,)),
        "weight.quant_map": ("F32", (16,)),
        **(twice if nested else {}),
        f"weight.quant_state.bitsandbytes__{kind}": ("U8", (77,)),
    }


ANY = "2 to 8 bits"
INT, OLD_3 = "compressed-tensors int-quantized", dense(10)
ROWS = {
    "dense 2": Row(DENSE, 2, dense(6)),
    "dense 3": Row(DENSE, 3, dense(9)),
    "dense 3, groups": Row(DENSE, 3, dense(9, 3), 32),
    "dense 3, zero points": Row(DENSE, 3, dense(9, rows=6)),
    "dense 3, one scale": Row(DENSE, 3, {**dense(9), "weight_scale": ("F32", (1,))}),
    "dense 4, in both versions": Row(DENSE, 4, dense(12)),
    "dense 5": Row(DENSE, 5, dense(15)),
    "dense 6": Row(DENSE, 6, dense(18)),
    "dense 7": Row(DENSE, 7, dense(21)),
    "dense 8, or older 7": Row(DENSE, None, dense(24), said="7 or 8 bits"),
    "older 3": Row(OLDER, 3, OLD_3),
    "older 3, groups": Row(OLDER, 3, dense(10, 3), 32),
    "older 3, zero points": Row(OLDER, 3, dense(10, 3, rows=7), 32),
    "older 3, order": Row(OLDER, 3, {**dense(10, 3), "weight_g_idx": ("I32", (IN,))}, 32),
    "older 5": Row(OLDER, 5, dense(16)),
    "older 6": Row(OLDER, 6, dense(20)),
    "int-quantized": Row(INT, None, int8(), said=ANY),
    "int-quantized, groups": Row(INT, None, int8(3), 32, said=ANY),
    "int-quantized, activations": Row(
        INT,
        None,
        int8(
            weight_zero_point=("I8", (OUT, 1)),
            input_scale=("F32", (1,)),
            input_zero_point=("I8", (1,)),
        ),
        said=ANY,
    ),
    "mxfp4": Row(
        "compressed-tensors mxfp4",
        4,
        {"weight_packed": ("U8", (OUT, 48)), "weight_scale": ("U8", (OUT, 3))},
        32,
    ),
    "mxfp6": Row(
        "compressed-tensors mxfp6",
        6,
        {"weight_packed": ("U8", (OUT, 72)), "weight_scale": ("U8", (OUT, 3))},
        32,
    ),
    "GPTQ 2": Row("GPTQ", 2, gptq(2), 32),
    "GPTQ 3": Row("GPTQ", 3, gptq(3), 32),
    "GPTQ 3, no groups": Row("GPTQ", 3, gptq(3, 1)),
    "GPTQ 4": Row("GPTQ", 4, gptq(4), 32),
    "GPTQ 8": Row("GPTQ", 8, gptq(8), 32),
    "GPTQ 5, which is planar": Row("GPTQ planar", 5, gptq(5), 32),
    "GPTQ 6, which is planar": Row("GPTQ planar", 6, gptq(6), 32),
    "GPTQ 7, which is planar": Row("GPTQ planar", 7, gptq(7), 32),
    "AWQ": Row(
        "AWQ",
        4,
        {
            "qweight": ("I32", (IN, OUT // 8)),
            "qzeros": ("I32", (3, OUT // 8)),
            "scales": ("F16", (3, OUT)),
        },
        32,
    ),
    "AWQ GEMV": Row(
        "AWQ GEMV",
        4,
        {
            "qweight": ("I32", (OUT, IN // 8)),
            "qzeros": ("I32", (OUT, 4)),
            "scales": ("F16", (OUT, 32)),
        },
    ),
    "AWQ GEMV fast": Row(
        "AWQ GEMV fast",
        4,
        {
            "qweight": ("I16", (OUT // 4, IN)),
            "qzeros": ("F16", (32, OUT)),
            "scales": ("F16", (32, OUT)),
        },
    ),
    "HQQ 3": Row("HQQ", 3, hqq("I32", (20, 32), (192, 1)), 32),
    "HQQ 3, other axis": Row("HQQ", 3, hqq("I32", (4, 192), (1, 192)), 32),
    "HQQ 4": Row("HQQ", 4, hqq("U8", (96, 32), (192, 1)), 32),
    "quanto 2": Row("quanto", 2, quanto({"weight._data._data": ("U8", (16, IN))}, "weight._shift")),
    "quanto 4": Row("quanto", 4, quanto({"weight._data._data": ("U8", (32, IN))}, "weight._shift")),
    "quanto 8": Row("quanto", 8, quanto({"weight._data": ("I8", (OUT, IN))})),
    "torchao intx, groups": Row("torchao", None, torchao(3), 32, said=ANY),
    "torchao int8": Row("torchao", None, torchao(1, "F32"), said=ANY),
    "bitsandbytes nf4": Row("bitsandbytes nf4", 4, nf4("nf4", nested=False)),
    "bitsandbytes nf4, nested": Row("bitsandbytes nf4", 4, nf4("nf4", nested=True)),
    "bitsandbytes fp4": Row("bitsandbytes fp4", 4, nf4("fp4", nested=False)),
    "bitsandbytes int8": Row(
        "bitsandbytes int8",
        8,
        {"weight": ("I8", (OUT, IN)), "SCB": ("F32", (OUT,)), "weight_format": ("U8", ())},
    ),
    "none that is known": Row(
        UNKNOWN, None, {"qweight": ("I32", (5,)), "scales": ("F16", (3,))}, None, None
    ),
}


def _content(name: str, dtype: str, shape: tuple[int, ...], row: Row) -> Array:
    """What stands in a tensor; zeros, but where a library tells of a weight there."""
    if name.endswith(("weight_shape", "fc.shape")):
        return np.array([OUT, IN])
    if name.endswith(("nbits", "group_size")):
        return np.array(row.bits if name.endswith("nbits") else row.group, np.int32)
    if ".quant_state." in name:
        told = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [OUT, IN]}
        return np.frombuffer(json.dumps(told).encode(), np.uint8)
    assert dtype != "BF16" or not math.prod(shape) % 2
    return np.zeros(shape, FORMATS["F16" if dtype == "BF16" else dtype].numpy)


def arrays(row: Row, module: str = "blocks.0.fc") -> dict[str, Array]:
    held = {f"{module}.{n}": _content(f"fc.{n}", *found, row) for n, found in row.tensors.items()}
    return {**held, f"{module}.bias": np.zeros(OUT, np.float32)}


@pytest.fixture(params=ROWS)
def row(request: pytest.FixtureRequest) -> Row:
    return ROWS[request.param]


@pytest.fixture
def foreign(row: Row, tmp_path: Path) -> Path:
    save_file(arrays(row), tmp_path / "foreign.st")
    return tmp_path / "foreign.st"


def test_every_layout_is_told_by_inspect(row: Row, foreign: Path) -> None:
    results = call("inspect", foreign, "--json").json["results"]
    told = results["layout"]
    assert (told["name"], told["bits"], told["weights"]) == (row.layout, row.bits, 1)
    assert told["group_size"] == row.group
    assert results["parameters"] == row.parameters
    bits = row.said or (f"{row.bits} bits" if row.bits else "")
    group = f"group {row.group}" if row.group else ""
    words = ", ".join(filter(None, (row.layout, bits, group, "1 weight")))
    shown = call("inspect", foreign).out.splitlines()
    assert f"layout: {words}" in shown
    counted = f"{row.parameters:,}" if row.parameters else "packed"
    assert f" {counted} parameters, " in shown[0]


def commands(path: Path, drawer: Drawer, out: Path) -> dict[str, tuple[object, ...]]:
    data, write = ("--data", drawer.receiver_data), ("-o", out)
    return {
        "extract": ("extract", path, drawer.donor_qat, *write),
        "extract, second": ("extract", drawer.donor, path, *write),
        "patch": ("patch", path, drawer.rho, *write),
        "quantize": ("quantize", path, "--bits", 3, *write),
        "eval": ("eval", path, *data, "--model", "test_vit"),
        "eval, plan": ("eval", path, *data, "--model", "test_vit", "--dry-run"),
        "sweep-lambda": ("sweep-lambda", path, drawer.rho, *data, "--bits", 3, *write),
        "finetune": ("finetune", path, *data, *write),
        "train-qat": ("train-qat", path, *data, "--bits", 3, *write),
        "initial": ("finetune", "test_vit", "--initial-checkpoint", path, *data, *write),
    }


def refused(path: Path, layout: str, drawer: Drawer, out: Path) -> None:
    for args in commands(path, drawer, out).values():
        result = call(*args, code=1)
        assert len(result.errors) == 1, args
        assert result.errors[0].startswith(f"error: {path}: ")
        assert "packed by another tool" in result.errors[0]
        assert f"(layout: {layout}" in result.errors[0]
        assert "Traceback" not in result.err
        assert "hint: Dequantize it with the library that wrote it" in result.err
        assert not out.exists()


def test_no_command_reads_another_tools_weights(
    row: Row, foreign: Path, drawer: Drawer, tmp_path: Path
) -> None:
    refused(foreign, row.layout, drawer, tmp_path / "out.st")


LIGHT = """
import json, sys
from qvec_cli.cli.app import run
for args in json.loads(sys.argv[1]):
    print(run(args))
print(*sorted({"torch", "timm"} & set(sys.modules)))
"""


def test_the_refusals_do_not_wait_for_torch(drawer: Drawer, tmp_path: Path) -> None:
    path = tmp_path / "foreign.st"
    save_file(arrays(ROWS["GPTQ 3"]), path)
    every = commands(path, drawer, tmp_path / "out.st").values()
    given = json.dumps([[str(arg) for arg in args] for args in every])
    command = [sys.executable, "-c", LIGHT, given]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["1"] * len(every) + [""]
    assert done.stderr.count("(layout: GPTQ, 3 bits)") == len(every)


def test_one_foreign_weight_among_floats_is_enough(drawer: Drawer, tmp_path: Path) -> None:
    state = load_file(drawer.receiver)
    del state["blocks.1.attn.qkv.weight"]
    mixed = {**state, **arrays(ROWS["GPTQ 3"], "blocks.1.attn.qkv")}
    save_file(mixed, tmp_path / "mixed.st")
    refused(tmp_path / "mixed.st", "GPTQ, 3 bits", drawer, tmp_path / "out.st")
    told = call("inspect", tmp_path / "mixed.st", "--json").json["results"]["layout"]
    assert (told["name"], told["weights"]) == ("GPTQ", 1)


def test_a_state_is_not_loaded_whoever_asks(row: Row, foreign: Path) -> None:
    """The input may be a stream, of which no command can look at the names beforehand."""
    with Checkpoint(foreign) as checkpoint, pytest.raises(QvecError) as fault:
        load_state(checkpoint)
    assert f"(layout: {row.layout}" in str(fault.value)


def test_floats_are_taken_for_no_layout(drawer: Drawer) -> None:
    for path in (drawer.receiver, drawer.donor_qat, drawer.rho):
        assert call("inspect", path, "--json").json["results"]["layout"] is None
        assert "layout:" not in call("inspect", path).out


@pytest.mark.parametrize("options", [(), ("--group-size", 16), ("--asymmetric",)], ids=str)
@pytest.mark.parametrize("bits", range(2, 9))
def test_our_own_packed_files_are_known_and_read(
    bits: int, options: tuple[object, ...], drawer: Drawer, tmp_path: Path
) -> None:
    path = tmp_path / "q.st"
    call("quantize", drawer.receiver, "--bits", bits, *options, "-o", path)
    results = call("inspect", path, "--json").json["results"]
    told = results["layout"]
    assert (told["name"], told["weights"]) == (DENSE, 24)
    assert told["bits"] == bits
    receiver = call("inspect", drawer.receiver, "--json").json["results"]
    assert results["parameters"] == receiver["parameters"]
    with Checkpoint(path) as checkpoint:
        assert load_state(checkpoint).keys() == load_file(drawer.receiver).keys()


def older(path: Path) -> dict[str, Array]:
    """The tensors of a 3-bit file of ours as compressed-tensors wrote them before 0.18."""
    held = load_file(path)
    for name in [name for name in held if name.endswith("_packed")]:
        rows, columns = (int(side) for side in held[name.replace("_packed", "_shape")])
        held[name] = np.zeros((rows, -(-columns // 10)), np.int32)
    return held


@pytest.mark.parametrize("card", [True, False], ids=["with our card", "bare"])
def test_the_older_3_bit_layout_is_told_from_ours_by_its_shape(
    card: bool, drawer: Drawer, tmp_path: Path
) -> None:
    call("quantize", drawer.receiver, "--bits", 3, "-o", tmp_path / "q.st")
    with Checkpoint(tmp_path / "q.st") as ours:
        metadata = {k: v for k, v in ours.metadata.items() if k != "qvec.digest"}
    path = tmp_path / "older.st"
    save_file(older(tmp_path / "q.st"), path, metadata if card else None)
    results = call("inspect", path, "--json").json["results"]
    assert (results["layout"]["name"], results["layout"]["bits"]) == (OLDER, 3)
    found = call("eval", path, "--data", drawer.receiver_data, "--model", "test_vit", code=1)
    assert f"(layout: {OLDER}, 3 bits)" in found.errors[0]


SETTINGS = {
    "model_type": "timm_wrapper",
    "architecture": "test_vit",
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 3, "strategy": "channel"}}},
    },
}


def test_a_folder_of_the_hub_is_refused_as_its_file_is(drawer: Drawer, tmp_path: Path) -> None:
    call("quantize", drawer.receiver, "--bits", 3, "-o", tmp_path / "q.st")
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SETTINGS))
    save_file(older(tmp_path / "q.st"), folder / "model.safetensors")
    refused(folder, f"{OLDER}, 3 bits", drawer, tmp_path / "out.st")
    assert f"layout: {OLDER}, 3 bits, 24 weights" in call("inspect", folder).out


@pytest.mark.parametrize(
    ("stated", "layout"),
    [
        ("gptq", "GPTQ v1"),
        ("gptq_v2", "GPTQ v2"),
        ("gptq_p", "GPTQ planar"),
        ("other", "GPTQ"),
        (["gptq"], "GPTQ"),
        (None, "GPTQ"),
    ],
)
def test_versions_of_gptq_are_told_by_the_configuration_beside(
    stated: object, layout: str, tmp_path: Path
) -> None:
    """Their tensors differ in nothing but what is in them."""
    save_file(arrays(ROWS["GPTQ 3"]), tmp_path / "model.safetensors")
    settings = {"quantization_config": {"quant_method": "gptq", "checkpoint_format": stated}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    told = call("inspect", tmp_path, "--json").json["results"]["layout"]
    assert (told["name"], told["bits"]) == (layout, 3)


class Outline(NamedTuple):
    """A tensor as a header has it."""

    dtype: str
    shape: tuple[int, ...]


def look(held: dict[str, Array]) -> list[packed_layouts.Packed]:
    tensors = {n: Outline(name_of(array.dtype), array.shape) for n, array in held.items()}
    return packed(PackedFile(tensors, held.__getitem__))


def of_width(columns: int, words: int) -> dict[str, Array]:
    return {
        f"a{columns}_packed": np.zeros((4, words), np.int32),
        f"a{columns}_scale": np.zeros((4, 1), np.float32),
        f"a{columns}_shape": np.array([4, columns]),
    }


def test_narrow_weights_are_of_the_version_of_the_wide_ones() -> None:
    narrow = of_width(32, 4)  # 3 bits before 0.18, or 4 of either
    assert [(w.layout, sorted(w.bits)) for w in look(narrow)] == [(DENSE, [3, 4])]
    found = look({**narrow, **of_width(96, 10)})
    assert [(w.layout, sorted(w.bits)) for w in found] == [(OLDER, [3, 4]), (OLDER, [3])]
    found = look({**narrow, **of_width(96, 9)})
    assert [(w.layout, sorted(w.bits)) for w in found] == [(DENSE, [4]), (DENSE, [3])]


def test_awq_is_told_by_rows_where_columns_agree() -> None:
    """As ``WQLinear_GEMV`` of 32 inputs in one group, whose scales are padded to 32."""
    shapes = {"qweight": (OUT, 4), "qzeros": (OUT, 4), "scales": (OUT, 32)}
    types = {"qweight": np.int32, "qzeros": np.int32, "scales": np.float16}
    (found,) = look({name: np.zeros(shapes[name], types[name]) for name in shapes})
    assert (found.layout, found.size) == ("AWQ GEMV", OUT * 32)


def test_a_file_may_hold_several_widths() -> None:
    found = look({**of_width(96, 9), **of_width(64, 8)})
    assert packed_layouts.widths(found) == [3, 4]
    assert packed_layouts.in_words(packed_layouts.widths(found)) == "3 or 4 bits"
    assert packed_layouts.named(found) == DENSE


def test_large_tensors_are_never_read() -> None:
    tensors = {n: Outline(*found) for n, found in hqq("I32", (20, 32), (192, 1)).items()}
    tensors |= {"nbits": Outline("I32", (1 << 40,)), "shape": Outline("I64", (1 << 40, 2))}
    asked: list[str] = []

    def read(name: str) -> Array:
        asked.append(name)
        return np.zeros(1, np.int32)

    (found,) = packed(PackedFile(tensors, read))
    assert asked == ["group_size"]
    assert (found.layout, found.bits, found.size) == ("HQQ", frozenset(), None)


@pytest.mark.parametrize("shape", [[5, 96], [4, -96], [4, 2**50], [-4, -96]], ids=str)
def test_a_stated_shape_that_cannot_be_is_not_believed(shape: list[int]) -> None:
    held = {**of_width(96, 9), "a96_shape": np.array(shape)}
    assert [(w.layout, w.bits, w.size) for w in look(held)] == [(UNKNOWN, frozenset(), None)]


@pytest.mark.parametrize("bits", [0, 9, 77, -1])
def test_a_stated_width_that_cannot_be_is_not_believed(bits: int) -> None:
    held = {**arrays(ROWS["HQQ 3"], "fc"), "fc.nbits": np.array(bits, np.int32)}
    assert [(w.layout, w.bits) for w in look(held)] == [("HQQ", frozenset())]


@pytest.mark.parametrize(
    "state",
    [b"{", b"[]", b"null", b"\xff", b"[" * 4000, b'{"shape": 3}', b'{"shape": [1, "a", 1e9]}'],
)
def test_a_shape_that_cannot_be_is_not_told(state: bytes) -> None:
    held = arrays(ROWS["bitsandbytes nf4"], "fc")
    held["fc.weight.quant_state.bitsandbytes__nf4"] = np.frombuffer(state, np.uint8)
    (found,) = look(held)
    assert (found.layout, found.size) == ("bitsandbytes nf4", None)


ENDS = sorted({name for row in ROWS.values() for name in row.tensors} | {"weight", "bias", ""})
NAMES = st.builds(
    "{}{}".format, st.sampled_from(["", "a.", "a.b.", "weight"]), st.sampled_from(ENDS)
)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 9, 10, 32, 64, 96]), max_size=3).map(tuple)
TYPES = ["F16", "F32", "F64", "BF16", "I8", "U8", "I16", "I32", "I64", "U64", "BOOL"]


def tensors(dtypes: list[str]) -> st.SearchStrategy[dict[str, Outline]]:
    entries = st.builds(Outline, st.sampled_from(dtypes), SHAPES)
    return st.dictionaries(NAMES, entries, max_size=12)


@settings(max_examples=500)
@given(tensors(TYPES), st.integers(-(2**63), 2**63 - 1), st.none() | st.text() | st.integers())
def test_whatever_names_and_shapes_there_are_nothing_breaks(
    held: dict[str, Outline], number: int, stated: Any
) -> None:
    def read(name: str) -> Array:
        kind = np.dtype({"U8": "u1", "I32": "i4"}.get(held[name].dtype, "i8"))
        return np.full(held[name].shape, number).astype(kind)

    for weight in packed(PackedFile(held, read, stated)):
        assert weight.tensor in held
        assert weight.tensor in weight.parts
        assert weight.size is None or weight.size >= 0
        assert weight.bits <= frozenset(range(1, 9))
        assert isinstance(packed_layouts.in_words(sorted(weight.bits)), str)


@settings(max_examples=300)
@given(tensors(["F16", "F32", "F64", "BF16"]))
def test_a_file_of_floats_alone_is_packed_only_if_it_says_so(held: dict[str, Outline]) -> None:
    found = packed(PackedFile(held, lambda name: np.zeros(held[name].shape)))
    assert all(w.layout == UNKNOWN and w.tensor.endswith("_packed") for w in found)
