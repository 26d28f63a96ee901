"""A network as an ONNX graph, its packed weights in MatMulNBits nodes."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.errors import MismatchError, QvecError
from qvec_cli.export.matmulnbits import arrays, layout
from qvec_cli.quant.qtensor import QTensor

if TYPE_CHECKING:
    from torch import nn

INPUT: Final = "pixel_values"
"""float32 [batch, channels, height, width], normalised: (x / 255 - mean) / std."""

OUTPUT: Final = "logits"
"""float32 [batch, classes]."""

OPSET: Final = 20

IR_VERSION: Final = 10
"""What onnxruntime reads from 1.20 on; pinned, so that a newer torch does not change the file."""

_DOMAIN: Final = "com.microsoft"

_EXACT: Final = 1
"""MatMulNBits' accuracy_level for arithmetic in float32.

4 would round activations to int8: with onnxruntime 1.32 logits of a DeiT-S whose weights are drawn
at random move by 2.6 % of the largest, in 0.7 of the time (4 bits, one thread).
"""

_LARGEST: Final = (1 << 31) - (1 << 20)
"""Bytes that one ONNX file can hold, for protobuf counts them in 31 bits."""


@dataclass(frozen=True, slots=True)
class Graph:
    """A whole ONNX file, and what it could not hold as codes."""

    content: bytes
    left: tuple[str, ...]  # packed weights that stand in it as float numbers


def export(
    network: nn.Module,
    shape: Sequence[int],
    packed: Mapping[str, QTensor],
    facts: Mapping[str, str],
    producer: str,
) -> Graph:
    """The ONNX file of a network; the batch may have any size.

    The same network gives the same bytes: no path, time or line of source stands in them.

    The network is in evaluation mode, float32, on the CPU, an image [C, H, W] of ``shape``;
    ``packed`` are the weights that are to be codes, by their names in it; ``facts`` becomes the
    file's metadata, ``producer`` the version that is written in it.
    Raises QvecError: a network that torch cannot export, or one too large for a file.
    """
    import onnxscript.optimizer

    model = _traced(network, shape)
    left = [name for name, weight in packed.items() if not _placed(model.graph, name, weight)]
    if len(left) < len(packed):
        model.opset_imports[_DOMAIN] = 1
    onnxscript.optimizer.optimize(model)  # folds constants and drops what nobody reads
    _clean(model)
    model.producer_name, model.producer_version = "qvec", producer
    model.ir_version = IR_VERSION
    model.metadata_props.update(sorted(facts.items()))
    return Graph(_serialized(model), tuple(left))


def _traced(network: nn.Module, shape: Sequence[int]) -> Any:
    """The network as torch's exporter has it, before anything is folded or renamed."""
    import torch

    images = torch.zeros(2, *shape)  # two: torch takes a size of one for a constant
    try:
        with _plainly():
            program = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    except torch.onnx.errors.OnnxExporterError as fault:
        reason = str(fault.__cause__ or fault).strip().splitlines()[0]
        kind = type(network).__name__
        raise QvecError(f"torch cannot export this {kind} to ONNX: {reason}") from None
    assert program is not None
    return program.model


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """Attention as its formula, and none of the exporter's talk of caches.

    A fused kernel leaves its result in an order of memory that the formula, which is what ONNX
    gets, does not: BEiT then cannot be exported. LeViT keeps a cache outside training, which
    means nothing to a graph.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.filterwarnings("ignore", "The tensor attributes? .* assigned during export")
        yield


def _placed(graph: Any, name: str, weight: QTensor) -> bool:
    """Replaces every product with a weight by one with its codes.

    Returns whether it could: no, if the weight also serves something else than x @ weight^T.
    """
    constant = graph.initializers.get(name)
    uses = [*constant.uses()] if constant is not None else []
    products = [node for use in uses for node in _products(use)]
    if not products or None in products:
        return False
    parts = _constants(graph, name, weight)
    for node in products:
        _replace(graph, node, parts, weight)
    for use in uses:
        if use.node.op_type == "Transpose":
            graph.remove(use.node, safe=True)
    del graph.initializers[name]
    return True


def _products(use: Any) -> list[Any]:
    """The nodes that multiply by the transposed weight at this use; None for any other node."""
    node = use.node
    if node.op_type == "Transpose" and not node.outputs[0].is_graph_output():
        return [
            after.node if after.node.op_type == "MatMul" and after.idx == 1 else None
            for after in node.outputs[0].uses()
        ]
    transposing = {"transA": 0, "transB": 1, "alpha": 1.0, "beta": 1.0}
    defaults = {**transposing, "transB": 0}
    stated = {key: attribute.value for key, attribute in node.attributes.items()}
    linear = node.op_type == "Gemm" and use.idx == 1 and {**defaults, **stated} == transposing
    return [node if linear else None]


def _constants(graph: Any, name: str, weight: QTensor) -> list[Any]:
    """The operator's arrays, as constants of the graph that go by the weight's name."""
    from onnxscript import ir

    values = []
    for part, array in arrays(weight).items():
        tensor = ir.tensor(array, name=f"{name}_{part}")
        shape, kind = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
        value = ir.Value(name=tensor.name, shape=shape, type=kind, const_value=tensor)
        graph.register_initializer(value)
        values.append(value)
    return values


def _replace(graph: Any, node: Any, parts: Sequence[Any], weight: QTensor) -> None:
    """Puts MatMulNBits, and the addition of a Gemm's bias, in the place of a node."""
    from onnxscript import ir

    rows, columns = weight.codes.shape
    form = layout(columns, weight.grid)
    old = node.outputs[0]
    sizes = {"K": columns, "N": rows, "bits": form.bits, "block_size": form.block}
    inputs, stated = [node.inputs[0], *parts], {**sizes, "accuracy_level": _EXACT}
    name = f"{node.name}_nbits"
    new = [ir.node("MatMulNBits", inputs, stated, domain=_DOMAIN, name=name)]
    if node.op_type == "Gemm" and len(node.inputs) > 2:
        new[0].outputs[0].name = f"{old.name}_nbits"
        new[0].outputs[0].type = old.type
        new.append(ir.node("Add", [new[0].outputs[0], node.inputs[2]], name=f"{node.name}_bias"))
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, [old], [new[-1].outputs[0]])


def _clean(model: Any) -> None:
    """Drops what the exporter tells of its own work: lines of source, with their paths."""
    from onnxscript import ir

    model.doc_string = model.graph.doc_string = None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.doc_string = None
        node.metadata_props.clear()
        for value in (*node.inputs, *node.outputs):
            if value is not None:
                value.doc_string = None
                value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _serialized(model: Any) -> bytes:
    from onnxscript import ir

    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    if size > _LARGEST:
        raise MismatchError(
            f"its constants take {size:,} bytes, and an ONNX file holds 2 GB at most",
            hint="Export what qvec quantize has packed.",
        )
    content: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return content
