"""Weights packed by other tools: known by integer codes, never read as floats or as qvec's.

The names, types and shapes below are those that libraries gave a linear layer of 96 inputs and 64
outputs: compressed-tensors 0.17.1 and 0.20.0, GPTQModel 7.7.0, AutoAWQ 0.2.9, HQQ 0.2.8,
optimum-quanto 0.2.7, torchao 0.18.0 and bitsandbytes 0.50.2.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Drawer, call
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from qvec_cli.checkpoint.dtypes import FORMATS, Array
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import QvecError
from qvec_cli.inputs.foreign import OWN, packed_in
from qvec_cli.inputs.network import load_state

OUT, IN = 64, 96

Named = dict[str, tuple[str, tuple[int, ...]]]

HQQ: Named = {"W_q": ("U8", (96, 32)), "scale": ("F16", (192, 1)), "nbits": ("I32", ())}
SCALE: Named = {"weight_scale": ("F32", (OUT, 1))}
TOOLS: dict[str, tuple[str, Named]] = {
    "compressed-tensors before 0.18, 3 bits": (
        "compressed-tensors",
        {"weight_packed": ("I32", (OUT, 10)), **SCALE, "weight_shape": ("I64", (2,))},
    ),
    "mxfp4": (
        "compressed-tensors",
        {"weight_packed": ("U8", (OUT, 48)), "weight_scale": ("U8", (OUT, 3))},
    ),
    "int-quantized": ("compressed-tensors", {"weight": ("I8", (OUT, IN)), **SCALE}),
    "GPTQ": (
        "GPTQ or AWQ",
        {"qweight": ("I32", (9, OUT)), "scales": ("F16", (3, OUT)), "g_idx": ("I32", (IN,))},
    ),
    "AWQ": ("GPTQ or AWQ", {"qweight": ("I32", (IN, 8)), "scales": ("F16", (3, OUT))}),
    "AWQ, GEMV fast": ("GPTQ or AWQ", {"qweight": ("I16", (16, IN)), "scales": ("F16", (32, OUT))}),
    "HQQ": ("HQQ", HQQ),
    "quanto 8": ("quanto", {"weight._data": ("I8", (OUT, IN)), "weight._scale": ("F32", (OUT, 1))}),
    "quanto 4": ("quanto", {"weight._data._data": ("U8", (32, IN))}),
    "torchao": (
        "torchao",
        {"_weight_qdata": ("I8", (OUT, IN)), "_weight_scale": ("BF16", (OUT, 3))},
    ),
    "bitsandbytes nf4": (
        "bitsandbytes",
        {"weight": ("U8", (OUT * IN // 2, 1)), "weight.quant_map": ("F32", (16,))},
    ),
    "bitsandbytes int8": ("bitsandbytes", {"weight": ("I8", (OUT, IN)), "SCB": ("F32", (OUT,))}),
    "no tool that is known": ("an unknown layout", {"weight": ("U8", (OUT, IN))}),
}


def arrays(tensors: Named, module: str = "blocks.0.fc") -> dict[str, Array]:
    """The tensors of one layer; zeros, but for the shape that it states."""
    filled = {
        f"{module}.{name}": np.zeros(shape, FORMATS["F16" if kind == "BF16" else kind].numpy)
        for name, (kind, shape) in tensors.items()
    }
    if f"{module}.weight_shape" in filled:
        filled[f"{module}.weight_shape"] = np.array([OUT, IN])
    return {**filled, f"{module}.bias": np.zeros(OUT, np.float32)}


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


def refused(path: Path, tool: str, drawer: Drawer, out: Path) -> None:
    for args in commands(path, drawer, out).values():
        result = call(*args, code=1)
        assert len(result.errors) == 1, args
        assert result.errors[0].startswith(f"error: {path}: ")
        assert f"packed by another tool (layout: {tool})" in result.errors[0]
        assert "hint: Dequantize it with the library that wrote it" in result.err
        assert not out.exists()


@pytest.mark.parametrize("row", TOOLS)
def test_every_tool_is_told_by_inspect_and_its_state_is_never_loaded(
    row: str, tmp_path: Path
) -> None:
    tool, tensors = TOOLS[row]
    path = tmp_path / "foreign.st"
    save_file(arrays(tensors), path)
    results = call("inspect", path, "--json").json["results"]
    assert (results["layout"]["name"], results["layout"]["weights"]) == (tool, 1)
    assert (results["layout"]["bits"], results["parameters"]) == (None, None)
    assert f"layout: {tool}, 1 weight" in call("inspect", path).out.splitlines()
    with Checkpoint(path) as checkpoint, pytest.raises(QvecError) as fault:
        load_state(checkpoint)  # as of a stream, whose names no command can look at beforehand
    assert f"(layout: {tool})" in str(fault.value)


@pytest.mark.parametrize("row", ["GPTQ", "int-quantized", "HQQ"])
def test_no_command_reads_another_tools_weights(row: str, drawer: Drawer, tmp_path: Path) -> None:
    tool, tensors = TOOLS[row]
    save_file(arrays(tensors), tmp_path / "foreign.st")
    refused(tmp_path / "foreign.st", tool, drawer, tmp_path / "out.st")


def test_one_foreign_weight_among_floats_is_enough(drawer: Drawer, tmp_path: Path) -> None:
    state = load_file(drawer.receiver)
    del state["blocks.1.attn.qkv.weight"]
    mixed = {**state, **arrays(TOOLS["GPTQ"][1], "blocks.1.attn.qkv")}
    save_file(mixed, tmp_path / "mixed.st")
    refused(tmp_path / "mixed.st", "GPTQ or AWQ", drawer, tmp_path / "out.st")


def test_floats_are_taken_for_no_layout(drawer: Drawer) -> None:
    for path in (drawer.receiver, drawer.donor_qat, drawer.rho):
        assert call("inspect", path, "--json").json["results"]["layout"] is None
        assert "layout:" not in call("inspect", path).out


@pytest.mark.parametrize("options", [(), ("--group-size", 16), ("--asymmetric",)], ids=str)
def test_our_own_packed_files_are_known_and_read(
    options: tuple[object, ...], drawer: Drawer, tmp_path: Path
) -> None:
    receiver = call("inspect", drawer.receiver, "--json").json["results"]
    for bits in range(2, 9):
        path = tmp_path / f"w{bits}.st"
        call("quantize", drawer.receiver, "--bits", bits, *options, "-o", path)
        results = call("inspect", path, "--json").json["results"]
        layout = results["layout"]
        assert (layout["name"], layout["weights"], layout["bits"]) == (OWN, 24, bits)
        assert results["parameters"] == receiver["parameters"]
        with Checkpoint(path) as checkpoint:
            assert load_state(checkpoint).keys() == load_file(drawer.receiver).keys()


def older(path: Path) -> dict[str, Array]:
    """The tensors of a 3-bit file of ours as compressed-tensors wrote them before 0.18."""
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith("_packed")]:
        rows, columns = (int(side) for side in tensors[name.replace("_packed", "_shape")])
        tensors[name] = np.zeros((rows, -(-columns // 10)), np.int32)
    return tensors


@pytest.mark.parametrize("card", [True, False], ids=["with our card", "bare"])
def test_the_older_3_bit_layout_is_told_from_ours_by_its_shape(
    card: bool, drawer: Drawer, tmp_path: Path
) -> None:
    call("quantize", drawer.receiver, "--bits", 3, "-o", tmp_path / "q.st")
    with Checkpoint(tmp_path / "q.st") as ours:
        metadata = {k: v for k, v in ours.metadata.items() if k != "qvec.digest"}
    path = tmp_path / "older.st"
    save_file(older(tmp_path / "q.st"), path, metadata if card else None)
    result = call("eval", path, "--data", drawer.receiver_data, "--model", "test_vit", code=1)
    words = "weight_packed" if card else "packed by another tool (layout: compressed-tensors)"
    assert words in result.errors[0]


def test_a_folder_of_the_hub_is_refused_as_its_file_is(drawer: Drawer, tmp_path: Path) -> None:
    call("quantize", drawer.receiver, "--bits", 3, "-o", f"{tmp_path}/hub/")
    folder = tmp_path / "hub"
    save_file(older(folder / "model.safetensors"), folder / "model.safetensors")
    refused(folder, "compressed-tensors", drawer, tmp_path / "out.st")


def test_a_file_may_hold_several_widths_and_large_tensors_are_never_read(tmp_path: Path) -> None:
    def weight(columns: int, words: int) -> dict[str, Array]:
        return {
            f"a{columns}_packed": np.zeros((4, words), np.int32),
            f"a{columns}_scale": np.zeros((4, 1), np.float32),
            f"a{columns}_shape": np.array([4, columns]),
        }

    save_file({**weight(96, 9), **weight(64, 8)}, tmp_path / "two.st")
    told = call("inspect", tmp_path / "two.st", "--json").json["results"]["layout"]
    assert (told["name"], told["bits"], told["possible_bits"]) == (OWN, None, [3, 4])
    assert "3 or 4 bits, 2 weights" in call("inspect", tmp_path / "two.st").out
    for stated in (
        np.zeros(100, np.int64),
        np.array([5, 96]),
        np.array([4, -96]),
        np.array([4, 2**50]),
    ):
        save_file({**weight(96, 9), "a96_shape": stated}, tmp_path / "odd.st")
        with Checkpoint(tmp_path / "odd.st") as odd:
            assert [one.layout for one in packed_in(odd)] == ["compressed-tensors"]


ENDS = sorted({name for _, row in TOOLS.values() for name in row} | {"weight", "bias", ""})
NAMES = st.builds(
    "{}{}".format, st.sampled_from(["", "a.", "a.b.", "weight"]), st.sampled_from(ENDS)
)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 9, 10, 32]), max_size=3).map(tuple)
FLOATS = ["F16", "F32", "F64"]


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(NAMES, st.tuples(st.sampled_from([*FLOATS, "I8", "U8", "I32", "I64"]), SHAPES))
)
def test_whatever_names_and_shapes_there_are_nothing_breaks(
    tmp_path_factory: pytest.TempPathFactory, tensors: Named
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.st"
    named = {n: np.zeros(shape, FORMATS[kind].numpy) for n, (kind, shape) in tensors.items() if n}
    save_file(named or {"x": np.zeros(1, np.float32)}, path)
    with Checkpoint(path) as checkpoint:
        for weight in packed_in(checkpoint):
            assert checkpoint[weight.tensor].dtype not in FLOATS
            assert weight.size is None or weight.size >= 0


def test_a_foreign_file_is_refused_from_its_configuration_too(tmp_path: Path) -> None:
    save_file(arrays(TOOLS["GPTQ"][1]), tmp_path / "model.safetensors")
    settings_ = {"quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(settings_))
    told = call("inspect", tmp_path, "--json").json["results"]["layout"]
    assert told["name"] == "GPTQ or AWQ"
