"""export --to openvino: a CPU gives the logits of eval, from codes as narrow as in the file."""

from __future__ import annotations

import json
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import jsonschema
import numpy as np
import pytest
import torch
from conftest import call, light
from test_export import made, network_of

from qvec_cli.export import export
from qvec_cli.export import onnx as onnx_export
from qvec_cli.outputs.metrics import SCHEMA_FILE

CASES: dict[str, tuple[str, tuple[object, ...], str]] = {
    "2 bits with zero points": ("vit", ("--bits", 2, "--asymmetric"), "u2"),
    "3 bits": ("vit", ("--bits", 3), "u4"),
    "grey 8 bits in groups": ("grey", ("--bits", 8, "--group-size", 16, "--asymmetric"), "u8"),
    "swin 4 bits, one scale": ("swin", ("--bits", 4, "--granularity", "tensor"), "u4"),
    "float": ("deit", (), "f32"),
}


@pytest.fixture
def openvino() -> ModuleType:
    """The library; its wheel is large, and not everybody wants it."""
    return pytest.importorskip("openvino", reason="openvino is not installed: qvec[openvino]")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of one block at 2 bits."""
    path = tmp_path_factory.mktemp("packed") / "m_w2.st"
    call("quantize", made("vit", path.with_name("m.st")), "--bits", 2, "-o", path)
    return path


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (place > 1))
        for place, name in enumerate(CASES)
    ],
)
def test_openvino_gives_the_logits_of_qvec_and_multiplies_with_codes_as_they_are(
    case: str, openvino: ModuleType, tmp_path: Path
) -> None:
    name, flags, kind = CASES[case]
    source, out = made(name, tmp_path / "m.st"), tmp_path / "m.xml"
    if flags:
        source = tmp_path / "q.st"
        call("quantize", tmp_path / "m.st", *flags, "-o", source)
    document = call("export", source, "-o", out, "--json").json
    jsonschema.validate(document, json.loads(SCHEMA_FILE.read_text()))
    results = document["results"]
    assert results["check"]["max_abs_diff"] <= 1e-5 * results["check"]["max_abs_logit"]
    assert results["bytes_after"] == out.stat().st_size + out.with_suffix(".bin").stat().st_size

    network, model = network_of(source)
    # processors that multiply in bfloat16 would do so; that activations are not int8 the file says
    compiled = openvino.Core().compile_model(out, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for count in (1, 5):
        images = torch.randn(count, *model.input_size)
        with torch.inference_mode():
            ours = network(images).numpy()
        assert np.abs(compiled(images.numpy())[0] - ours).max() <= 1e-5 * np.abs(ours).max()
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    widths = Counter(
        fact["runtimePrecision"].astype(str)
        for fact in facts
        if fact["layerType"].astype(str) == "FullyConnected"
    )
    assert widths[kind] > 0
    written = Counter(
        node.get_output_element_type(0).get_type_name()
        for node in openvino.Core().read_model(out).get_ops()
        if node.get_type_name() == "Constant"
    )
    assert written[kind] >= len(results["quantized"])


def test_the_same_file_gives_the_same_bytes_and_a_fault_leaves_what_was_there(
    openvino: ModuleType, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        call("export", packed, "-o", tmp_path / f"{name}.xml")
    for suffix in (".xml", ".bin"):
        one, two = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "two"))
        assert one == two
        assert str(tmp_path).encode() not in one
    (tmp_path / "two.bin").unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert "exists" in call("export", packed, "-o", tmp_path / "two.xml", code=1).errors[0]
    monkeypatch.setattr(onnx_export, "BOUND", 1e-12)
    for name in ("one", "new"):
        args = ("export", packed, "-o", tmp_path / f"{name}.xml", "--force")
        assert "its logits on random images" in call(*args, code=1).errors[0]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_refusals_name_the_reason_before_torch(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "old.bin").write_text("mine")
    refusals: list[tuple[int, str, tuple[object, ...]]] = [
        (2, "two files are .xml and .bin", (tmp_path / "x.onnx", "--to", "openvino")),
        (2, "two files are .xml and .bin", ("-", "--to", "openvino")),
        (1, "old.bin: exists", (tmp_path / "old.xml",)),
        (1, "its folder does not exist", (tmp_path / "nowhere" / "x.xml",)),
    ]
    if find_spec("openvino") is None:
        refusals = [(1, "the package openvino is not installed", (tmp_path / "x.xml",))]
    for code, reason, args in refusals:
        left, heavy, said = light("export", packed, "-o", *args)
        assert (left, heavy) == (code, [])
        assert reason in said[0], said
    assert [path.name for path in tmp_path.iterdir()] == ["old.bin"]


def test_without_the_extra_the_hint_names_it(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "openvino" else True)
    refused = call("export", packed, "-o", tmp_path / "x.xml", code=1)
    assert refused.errors == ["error: the package openvino is not installed"]
    assert "hint: pip install 'qvec[openvino]'" in refused.err
