"""The ONNX graph of a network: what is replaced, what is left, and what stands in the bytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from onnxscript import ir
from torch import Tensor, nn

from qvec_cli.errors import MismatchError, QvecError
from qvec_cli.export import graph
from qvec_cli.export.onnx import logits
from qvec_cli.quant.qtensor import QTensor
from qvec_cli.quant.scales import rtn
from qvec_cli.specs import Granularity, Grid

SHAPE = (32, 3, 3)


class Toy(nn.Module):
    """Every way in which an exporter writes a linear layer, on 9 tokens of 32 features."""

    def __init__(self) -> None:
        super().__init__()
        self.biased = nn.Linear(32, 48)
        self.bare = nn.Linear(48, 32, bias=False)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.twice = nn.Linear(32, 32)
        self.rows = nn.Linear(32, 16)
        self.table = nn.Linear(32, 32, bias=False)
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(2).transpose(1, 2)
        x = x + self.bare(nn.functional.gelu(self.biased(x)))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.twice(self.twice(x))
        x = self.table(x) * self.table.weight[0]
        return self.head(torch.relu(self.rows(x.mean(1))))


QUANTIZED = (
    *("biased.weight", "bare.weight", "attention.in_proj_weight", "attention.out_proj.weight"),
    *("twice.weight", "rows.weight", "table.weight"),
)


def quantized(network: nn.Module, names: Iterable[str], grid: Grid) -> dict[str, QTensor]:
    """The weights on a grid, in the network too."""
    state, packed = network.state_dict(), {}
    for name in names:
        packed[name] = rtn(state[name].numpy(), grid)
        state[name].copy_(torch.from_numpy(packed[name].weight()))
    return packed


@pytest.fixture(scope="module")
def toy() -> tuple[nn.Module, graph.Graph]:
    torch.manual_seed(0)
    network = Toy().eval()
    packed = quantized(network, QUANTIZED, Grid(3, Granularity.GROUP, 16, symmetric=False))
    return network, graph.export(network, SHAPE, packed, {"b": "2", "a": "1"}, "0")


def difference(network: nn.Module, content: bytes, *images: int) -> float:
    x = torch.randn(*images, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours = network(x).numpy()
    return float(np.abs(logits(content, x.numpy()) - ours).max() / np.abs(ours).max())


@pytest.mark.parametrize("count", [1, 7])
def test_the_graph_is_the_network_at_any_batch_size(count: int, toy: Any) -> None:
    network, made = toy
    assert difference(network, made.content, count, *SHAPE) < 1e-5


def test_every_linear_layer_becomes_codes_and_no_float_copy_stays(toy: Any) -> None:
    _, made = toy
    model = onnx.load_from_string(made.content)
    onnx.checker.check_model(model)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("MatMulNBits") == 7  # twice.weight stands in two
    held = {tensor.name for tensor in model.graph.initializer}
    assert {f"{name}_codes" for name in QUANTIZED[:-1]} <= held
    assert held.isdisjoint(QUANTIZED[:-1])


def test_a_weight_that_serves_otherwise_too_is_left_and_named(toy: Any) -> None:
    _, made = toy
    assert made.left == ("table.weight",)
    assert b"table.weight_codes" not in made.content


def test_no_path_and_no_line_of_source_stands_in_the_file(toy: Any) -> None:
    _, made = toy
    for word in (b".py", b"site-packages", b"forward", str(Path.home()).encode(), b"torch"):
        assert word not in made.content, word


@pytest.mark.slow
def test_the_same_network_gives_the_same_bytes() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(288, 32), nn.GELU(), nn.Linear(32, 5)).eval()
    packed = quantized(network, ["1.weight"], Grid(3, Granularity.GROUP, 16, symmetric=False))
    facts = {"a": "1", "b": "2"}
    made = [
        graph.export(network, SHAPE, packed, dict(pairs), "0")
        for pairs in (facts.items(), reversed(facts.items()))
    ]
    assert made[0] == made[1]
    assert b"1.weight_codes" in made[0].content


def test_the_file_says_what_it_is_told(toy: Any) -> None:
    _, made = toy
    model = onnx.load_from_string(made.content)
    assert [(fact.key, fact.value) for fact in model.metadata_props] == [("a", "1"), ("b", "2")]
    assert (model.producer_name, model.producer_version) == ("qvec", "0")
    assert [value.name for value in model.graph.input] == ["pixel_values"]
    assert [value.name for value in model.graph.output] == ["logits"]


def test_a_network_beyond_one_file_is_refused(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ir.from_proto(onnx.load_from_string(toy[1].content))
    monkeypatch.setattr(graph, "_LARGEST", 1000)
    with pytest.raises(MismatchError, match=r"constants take .* bytes"):
        graph._serialized(model)


class Moody(nn.Module):
    """Decides by the values of its input, which no graph can."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


def test_a_network_that_torch_cannot_export_is_a_line_and_no_traceback() -> None:
    with pytest.raises(QvecError, match="torch cannot export this Moody to ONNX: ") as fault:
        graph.export(Moody().eval(), SHAPE, {}, {}, "0")
    assert "\n" not in str(fault.value)


@pytest.mark.slow
def test_beit_which_has_an_order_of_memory_of_its_own_can_be_exported() -> None:
    network = timm.create_model(
        *("beit_base_patch16_224",), num_classes=3, img_size=32, depth=1, embed_dim=32, num_heads=2
    ).eval()
    made = graph.export(network, (3, 32, 32), {}, {}, "0")
    assert difference(network, made.content, 3, 3, 32, 32) < 1e-5


def test_what_onnxruntime_refuses_is_a_line_and_no_traceback() -> None:
    with pytest.raises(QvecError, match="onnxruntime cannot run what was exported: ") as fault:
        logits(b"no graph", np.zeros((1, *SHAPE), np.float32))
    assert "\n" not in str(fault.value)
