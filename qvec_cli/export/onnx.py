"""Export as an ONNX file: packed weights as MatMulNBits, all else in float32."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qvec_cli.checkpoint.card import canonical
from qvec_cli.checkpoint.replace import check_target, replacing
from qvec_cli.errors import QvecError, located
from qvec_cli.export.form import ExportSource, ExportTarget, Form, compare
from qvec_cli.export.matmulnbits import BlockLayout, layout
from qvec_cli.outputs.metrics import version
from qvec_cli.quant.qtensor import as_matrix
from qvec_cli.specs import Listener
from qvec_cli.tame import counted

if TYPE_CHECKING:
    from torch import Tensor, nn

BOUND: Final = 1e-4
"""How far logits may be from ours, as a share of the largest.

Both sides compute in float32 and differ in the order of their sums.
"""

_GRAPH, _WHOLE = 8, 10
"""About how much of the time torch takes to export the graph; check and writing share the rest."""


def refuse(target: ExportTarget) -> None:
    """Refuses a file that could not be written afterwards."""
    check_target(target.out, force=target.force)


def fate(source: ExportSource, name: str) -> str:
    """What becomes of a packed weight."""
    form = _layout(source, name)
    return f"MatMulNBits: {form.bits} bits, blocks of {form.block}"


def write(
    source: ExportSource, network: nn.Module, target: ExportTarget, listener: Listener
) -> dict[str, Any]:
    """Writes the file once onnxruntime has answered as our network does.
    Raises QvecError: a network that cannot be exported, or is another one afterwards.
    """
    from qvec_cli.export.graph import export
    from qvec_cli.inputs.foreign import load_packed

    checkpoint = source.checkpoint
    packed = {name: load_packed(checkpoint, name) for name in source.packed}
    # Of a weight with several names, the graph has one, and not always the file's.
    tied = {other: packed[kept] for other, kept in checkpoint.aliases.items() if kept in packed}
    listener.progress("part 1/3: graph", 0, _WHOLE)
    graph = export(network, source.model.input_size, packed | tied, _facts(source), version("qvec"))
    placed = {checkpoint.aliases.get(name, name) for name in {*packed, *tied} - {*graph.left}}
    left = [name for name in packed if name not in placed]
    if left:
        listener.note(
            f"{checkpoint.path}: made float, because more than linear layers need it: "
            f"{counted(len(left), 'packed weight')}, {', '.join(left[:3])}"
        )
    listener.progress("part 2/3: check", _GRAPH, _WHOLE)
    checked = _checked(graph.content, source, network, target, listener)
    listener.progress("part 3/3: file", _GRAPH + 1, _WHOLE)
    with replacing(target.out, force=target.force) as file:
        file.write(graph.content)
    listener.progress("written", _WHOLE, _WHOLE)
    layouts = {name: _layout(source, name) for name in packed if name in placed}
    return {
        "digest": hashlib.sha256(graph.content).hexdigest(),
        "bytes_after": len(graph.content),
        "quantized": {n: {"bits": f.bits, "block_size": f.block} for n, f in layouts.items()},
        "left": left,
        "check": checked,
    }


FORM: Final = Form(refuse, fate, write, needs=("onnx", "onnxscript"))


def _layout(source: ExportSource, name: str) -> BlockLayout:
    assert source.grid is not None
    with located(source.checkpoint.path):
        return layout(as_matrix(source.packed[name])[1], source.grid.of(name))


def _facts(source: ExportSource) -> dict[str, str]:
    """What the file says of itself; onnxruntime shows it as ``custom_metadata_map``."""
    data = source.model.pretrained_cfg
    values = {
        "qvec.digest": source.checkpoint.digest,
        "qvec.grid": source.grid and source.grid.to_json(),
        "timm": source.model.to_json(),
        "mean": data["mean"],
        "std": data["std"],
        "classes": source.classes,
    }
    return {
        key: value if isinstance(value, str) else canonical(value)
        for key, value in values.items()
        if value is not None
    }


def _checked(
    content: bytes,
    source: ExportSource,
    network: nn.Module,
    target: ExportTarget,
    listener: Listener,
) -> dict[str, Any] | None:
    if not target.check:
        return None
    if find_spec("onnxruntime") is None:
        missing = "onnxruntime is not installed"
        listener.note(f"{missing}: the file is not run (pip install 'qvec[onnx]')")
        return None
    import torch

    def theirs(images: Tensor) -> Tensor:
        return torch.from_numpy(logits(content, images.numpy()))

    return compare(target, network, source.model.input_size, theirs, BOUND)


Array = np.ndarray[Any, np.dtype[Any]]

_FATAL: Final = 4
"""onnxruntime's level of messages; lower ones it would write to stderr, beside its exceptions."""


def logits(content: bytes, images: Array) -> Array:
    """What a file answers to normalised images float32 [N, C, H, W]: float32 [N, classes].
    Raises QvecError: a file that onnxruntime refuses.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = 1  # a few images: more threads would only be started
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        (answer,) = session.run(None, {session.get_inputs()[0].name: images})
    except Exception as fault:  # its exceptions share no class of their own
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise QvecError(f"onnxruntime cannot run what was exported: {reason}") from None
    return np.asarray(answer)
