"""Export as an ONNX file: packed weights as MatMulNBits, all else in float32."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qvec_cli.checkpoint.card import canonical
from qvec_cli.checkpoint.replace import check_target, replacing
from qvec_cli.errors import QvecError, located
from qvec_cli.export.form import ExportSource, ExportTarget, Form, compare, noise
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

GRAPH, WHOLE = 8, 10
"""About how much of the time torch takes to export the graph; check and writing share the rest."""


def refuse(target: ExportTarget) -> None:
    """Refuses a file that could not be written afterwards."""
    check_target(target.out, force=target.force)


def layout_of(source: ExportSource, name: str) -> BlockLayout:
    """How a packed weight will lie in the file.
    Raises MismatchError: groups that the operator does not have.
    """
    assert source.grid is not None
    with located(source.checkpoint.path):
        return layout(as_matrix(source.packed[name])[1], source.grid.of(name))


def fate(source: ExportSource, name: str) -> str:
    """What becomes of a packed weight."""
    form = layout_of(source, name)
    return f"MatMulNBits: {form.bits} bits, blocks of {form.block}"


@dataclass(frozen=True, slots=True)
class Exported:
    """A network as an ONNX file, and what became of its packed weights."""

    content: bytes
    layouts: Mapping[str, BlockLayout]  # of those that stay packed
    left: Sequence[str]  # those that became float

    def facts(self) -> dict[str, Any]:
        """The same, as metrics hold it."""
        layouts = {n: {"bits": f.bits, "block_size": f.block} for n, f in self.layouts.items()}
        return {"quantized": layouts, "left": list(self.left)}


def exported(source: ExportSource, network: nn.Module, listener: Listener) -> Exported:
    """Makes the file.
    Raises QvecError: a network that cannot be exported.
    """
    from qvec_cli.export.graph import export
    from qvec_cli.inputs.foreign import load_packed

    checkpoint = source.checkpoint
    packed = {name: load_packed(checkpoint, name) for name in source.packed}
    # Of a weight with several names, the graph has one, and not always the file's.
    tied = {other: packed[kept] for other, kept in checkpoint.aliases.items() if kept in packed}
    listener.progress("part 1/3: graph", 0, WHOLE)
    whole = export(network, source.model.input_size, packed | tied, _facts(source), version("qvec"))
    placed = {checkpoint.aliases.get(name, name) for name in {*packed, *tied} - {*whole.left}}
    left = [name for name in packed if name not in placed]
    if left:
        listener.note(
            f"{checkpoint.path}: made float, because more than linear layers need it: "
            f"{counted(len(left), 'packed weight')}, {', '.join(left[:3])}"
        )
    layouts = {n: layout(w.codes.shape[1], w.grid) for n, w in packed.items() if n in placed}
    return Exported(whole.content, layouts, left)


def write(
    source: ExportSource, network: nn.Module, target: ExportTarget, listener: Listener
) -> dict[str, Any]:
    """Writes the file once onnxruntime has answered as our network does.
    Raises QvecError: a network that cannot be exported, or is another one afterwards.
    """
    graph = exported(source, network, listener)
    listener.progress("part 2/3: check", GRAPH, WHOLE)
    checked = None
    if is_run(target, listener):
        images = noise(source.model.input_size)
        checked = compare(target, images, network, answers(graph.content), BOUND)
    listener.progress("part 3/3: file", GRAPH + 1, WHOLE)
    with replacing(target.out, force=target.force) as file:
        file.write(graph.content)
    listener.progress("written", WHOLE, WHOLE)
    return {
        "digest": hashlib.sha256(graph.content).hexdigest(),
        "bytes_after": len(graph.content),
        **graph.facts(),
        "check": checked,
    }


FORM: Final = Form(refuse, fate, write, needs=("onnx", "onnxscript"))


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


def is_run(target: ExportTarget, listener: Listener) -> bool:
    """Whether a result is to be run: where it may be, and onnxruntime is there."""
    if target.check and find_spec("onnxruntime") is None:
        missing = "onnxruntime is not installed"
        listener.note(f"{missing}: the file is not run (pip install 'qvec[onnx]')")
        return False
    return target.check


def answers(content: bytes) -> Callable[[Tensor], Tensor]:
    """From images to logits, as onnxruntime has them of a file."""
    import torch

    return lambda images: torch.from_numpy(logits(content, images.numpy()))


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
