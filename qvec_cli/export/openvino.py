"""Export as OpenVINO's IR: the ONNX graph as OpenVINO reads it, packed weights as u2, u4 or u8.

Each is a constant of codes less its zero points times its scales, which OpenVINO multiplies with as
they are: its own reader makes this of MatMulNBits. On a CPU it would round activations to int8 in
groups of 32, which displaces logits by up to a hundredth; what is written says that it is not to.
That they are not to be bfloat16, on processors that multiply so, only who compiles it can say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.checkpoint.replace import check_target, replacing, scratch_folder
from qvec_cli.errors import QvecError, SpecError
from qvec_cli.export import onnx
from qvec_cli.export.form import ExportSource, ExportTarget, Form, compare, noise
from qvec_cli.specs import Listener

if TYPE_CHECKING:
    from torch import Tensor, nn

TOPOLOGY, CONSTANTS = ".xml", ".bin"
"""How the names of the two files end."""

_WRITTEN: Final = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""Settings that a CPU takes from a file: no activations in int8."""

_EXACT: Final = {"INFERENCE_PRECISION_HINT": "f32"}
"""Settings that it takes from the call alone: none in bfloat16."""


def refuse(target: ExportTarget) -> None:
    """Refuses files that could not be written afterwards."""
    if target.out.suffix != TOPOLOGY:
        raise SpecError(
            f"-o {target.out}: OpenVINO's two files are {TOPOLOGY} and {CONSTANTS}",
            hint=f"Name the first one: -o NAME{TOPOLOGY}.",
        )
    for path in (target.out, target.out.with_suffix(CONSTANTS)):
        check_target(path, force=target.force)


def fate(source: ExportSource, name: str) -> str:
    """What becomes of a packed weight."""
    form = onnx.layout_of(source, name)
    return f"u{form.bits}, blocks of {form.block}"


def write(
    source: ExportSource, network: nn.Module, target: ExportTarget, listener: Listener
) -> dict[str, Any]:
    """Writes the files once OpenVINO has answered as our network does.
    Raises QvecError: a network that cannot be exported, or is another one afterwards.
    """
    graph = onnx.exported(source, network, listener)
    with scratch_folder() as folder:
        path = folder / f"model{TOPOLOGY}"
        _convert(graph.content, path)
        listener.progress("part 2/3: check", onnx.GRAPH, onnx.WHOLE)
        checked = None
        if target.check:
            images = noise(source.model.input_size)
            checked = compare(target, images, network, _answers(path), onnx.BOUND)
        listener.progress("part 3/3: files", onnx.GRAPH + 1, onnx.WHOLE)
        topology, constants = path.read_bytes(), path.with_suffix(CONSTANTS).read_bytes()
    # The second gets its name first, so that no topology stands without its constants.
    with (
        replacing(target.out, force=target.force) as first,
        replacing(target.out.with_suffix(CONSTANTS), force=target.force) as second,
    ):
        first.write(topology)
        second.write(constants)
    listener.progress("written", onnx.WHOLE, onnx.WHOLE)
    return {
        "digest": hashlib.sha256(topology + constants).hexdigest(),
        "bytes_after": len(topology) + len(constants),
        **graph.facts(),
        "check": checked,
    }


FORM: Final = Form(refuse, fate, write, needs=("onnx", "onnxscript", "openvino"), extra="openvino")


def _convert(content: bytes, path: Path) -> None:
    """Writes an ONNX file as OpenVINO's two; the same content gives the same bytes.

    OpenVINO's own converter is not used, for it reports to its makers that it is.
    Raises QvecError: OpenVINO does not read it.
    """
    import openvino

    try:
        model = openvino.Core().read_model(content)
    except RuntimeError as fault:
        raise QvecError(f"OpenVINO cannot read what was exported: {_reason(fault)}") from None
    for name, value in _WRITTEN.items():
        model.set_rt_info(value, ["runtime_options", name])
    for place, node in enumerate(model.get_ordered_ops()):  # else numbered by the process
        if node.get_type_name() not in ("Parameter", "Result"):
            node.set_friendly_name(f"{node.get_type_name()}_{place}")
    openvino.save_model(model, path, compress_to_fp16=False)


def _answers(path: Path) -> Callable[[Tensor], Tensor]:
    """From normalised images to logits, as OpenVINO has them on a CPU.
    Raises QvecError: it does not run the files.
    """
    import openvino
    import torch

    try:
        model = openvino.Core().compile_model(path, "CPU", _EXACT)
    except RuntimeError as fault:
        raise QvecError(f"OpenVINO cannot run what was exported: {_reason(fault)}") from None
    return lambda images: torch.from_numpy(model(images.numpy())[0])


def _reason(fault: RuntimeError) -> str:
    """The last line of what OpenVINO says; the others are places in its sources."""
    return (str(fault).strip().splitlines() or [type(fault).__name__])[-1]
