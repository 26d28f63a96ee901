"""A model in a form that other programs run; the table of forms is here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from qvec_cli.errors import QvecError, SpecError
from qvec_cli.export import onnx, openvino, timm_folder, transformers_js
from qvec_cli.export.form import ExportSource, ExportTarget, Form, require_images
from qvec_cli.inputs.files import opened
from qvec_cli.inputs.lineage import inherited_use
from qvec_cli.model.build import NetworkOptions
from qvec_cli.outputs.metrics import Input, Metrics, Plan
from qvec_cli.quant.qtensor import part_names
from qvec_cli.specs import ExportFormat, Listener

FORMS: Final[Mapping[ExportFormat, Form]] = {
    ExportFormat.ONNX: onnx.FORM,
    ExportFormat.TIMM: timm_folder.FORM,
    ExportFormat.OPENVINO: openvino.FORM,
    ExportFormat.TRANSFORMERS_JS: transformers_js.FORM,
}

_SUFFIXES: Final = {".onnx": ExportFormat.ONNX, ".xml": ExportFormat.OPENVINO}
"""The format by the name of the output, without --to."""


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What ``qvec export`` is asked for."""

    source: Path  # a float or packed checkpoint
    out: Path
    to: ExportFormat | None = None  # None: the suffix of ``out`` tells
    check: bool = True  # run the result, and compare it with our network
    force: bool = False
    dry_run: bool = False
    network: NetworkOptions = NetworkOptions()  # for a file without a card


def export(request: ExportRequest, listener: Listener) -> Metrics:
    """Writes a model in another form.
    Raises SpecError: a target whose name does not tell its format; MismatchError: a grid that the
    form cannot hold; QvecError: a package that is missing, logits that would be others than ours;
    CheckpointError: a file that cannot be read or written.
    """
    started = time.perf_counter()
    chosen = request.to or _format_of(request.out)
    form, target = FORMS[chosen], ExportTarget(request.out, request.force, request.check)
    for name in form.needs:
        if find_spec(name) is None:
            raise QvecError(
                f"the package {name} is not installed", hint=f"pip install 'qvec[{form.extra}]'"
            )
    form.refuse(target)
    parameters = {"to": chosen, "check": request.check}
    with opened(request.source, listener, request.network.weights) as checkpoint:
        source = ExportSource.of(checkpoint, request.network, listener)
        require_images(source)
        form.require(source)
        fates = {name: form.fate(source, name) for name in source.packed}
        if request.dry_run:
            plan = _planned(request.out, source, fates, parameters)
            return plan.metrics((checkpoint,), started)
        from qvec_cli.inputs.network import load_network

        network = load_network(checkpoint, source.model, "cpu").eval()
        inputs = (Input.of(checkpoint),)
        results = {
            "output": str(request.out),
            "format": chosen,
            "grid": source.grid and source.grid.to_json(),
            "bytes_before": checkpoint.weight_bytes,
            **form.write(source, network, target, listener),
        }
        use = inherited_use(checkpoint)
    return Metrics("export", inputs, parameters, results, use, started=started)


def _format_of(out: Path) -> ExportFormat:
    if named := _SUFFIXES.get(out.suffix.lower()):
        return named
    raise SpecError(
        f"-o {out} does not tell the format", hint=f"Pass --to {', '.join(ExportFormat)}."
    )


def _planned(
    out: Path, source: ExportSource, fates: Mapping[str, str], parameters: Mapping[str, Any]
) -> Plan:
    from qvec_cli.inputs.network import check_network

    checkpoint = source.checkpoint
    check_network(checkpoint, source.model, "cpu")
    each = {name: "float32" if entry.floating else "kept" for name, entry in checkpoint.items()}
    for name, fate in fates.items():
        assert source.grid is not None
        each |= dict.fromkeys(part_names(name, source.grid), fate)
    return Plan("export", out, each, checkpoint, parameters)
