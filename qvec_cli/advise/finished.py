"""Whether the outputs that advise finds are those of the run that it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qvec_cli.advise.candidates import AdviseInputs, AdviseRequest, pools
from qvec_cli.checkpoint.card import Card
from qvec_cli.checkpoint.replace import (
    check_target,
    check_unfinished,
    may_be_finished,
    unfinished,
)
from qvec_cli.errors import FinishedError, SpecError
from qvec_cli.inputs.files import InputFiles, opened
from qvec_cli.inputs.images import ProxyOptions, draw_each
from qvec_cli.outputs.hf_folder import WEIGHTS, check_output
from qvec_cli.outputs.metrics import Input
from qvec_cli.results.journal import check_finished, is_same_run
from qvec_cli.specs import Calibration, Listener, Silence

Facts = dict[str, Any]


def check_outputs(request: AdviseRequest) -> bool:
    """Refuses outputs that could not be written; whether a run to be resumed has them already."""
    outputs, resume, force = request.outputs, request.resume, request.force
    if resume and not outputs:
        raise SpecError(
            "--resume needs -o FILE or --metrics FILE",
            hint="What is measured is kept beside the file; no other run can be gone on with.",
        )
    files = [path / WEIGHTS if path == request.out and request.folder else path for path in outputs]
    each = [may_be_finished(path, resume=resume, force=force) for path in files]
    finished = bool(each) and all(each) and not unfinished(outputs[0]).exists()
    if request.out is not None:
        check_output(request.out, folder=request.folder, force=force or finished)
    if request.document is not None:
        check_target(request.document, force=force or finished)
    if outputs:
        check_unfinished(outputs[0], resume=resume, force=force)
    return finished


def check_same_run(
    request: AdviseRequest,
    inputs: AdviseInputs,
    read: Sequence[Input],
    parameters: Facts,
    files: InputFiles,
    listener: Listener,
) -> None:
    """Raises FinishedError: the outputs are of this run; MismatchError: one is of another.

    A model tells what its own way has used, and only the document all flags.
    """
    if (out := request.outputs[0]) == request.out:
        with opened(out, Silence()) as file:
            stored = _stored(file.card, several=len(request.vectors) > 1)
        current = _current(request, inputs, files, stored)
        is_same_run(out, stored, current, force=False, listener=listener)
    if (document := request.outputs[-1]) == request.document:
        digests = [each.digest for each in read]
        check_finished(document, "advise", digests, parameters, listener)
    raise FinishedError(f"{out}: done already")


def _stored(card: Card, *, several: bool) -> Facts:
    """What a recommended model tells of its run: nothing of what its way did not need.

    several: whether a vector in it should be a combination, which counts as its members.
    """
    lineage = card.provenance
    facts: Facts = {"widths": lineage.get("widths", {})}
    if "budget" not in lineage:
        facts["bits"] = (card.quant or {}).get("bits")
    for parent in _dicts(lineage.get("parents")):
        if (name := parent.get("as")) in ("model", "rho", "moments"):
            facts[name] = (several and _members(parent)) or [parent.get("digest")]
    for name in ("calibration", "refinement"):
        if isinstance(options := lineage.get(name), dict):
            facts[f"images of {name}"] = options.get("images")
            facts |= {"refine": options["steps"]} if "steps" in options else {}
    return facts


def _members(parent: Mapping[str, Any]) -> list[Any]:
    """The digests of the vectors that one was combined of."""
    lineage = parent.get("provenance")
    if not isinstance(lineage, dict) or lineage.get("op") != "combine":
        return []
    return [one.get("digest") for one in _dicts(lineage.get("parents"))]


def _dicts(values: Any) -> Iterator[Mapping[str, Any]]:
    yield from filter(lambda one: isinstance(one, dict), values if isinstance(values, list) else ())


def _current(
    request: AdviseRequest, inputs: AdviseInputs, files: InputFiles, stored: Facts
) -> Facts:
    """The same of this run, where the stored way is one of its own."""
    theta, model, proxy = inputs.receiver.theta, inputs.receiver.model, request.proxy
    rhos = [files.open(path).digest for path in request.vectors]
    moments = [files.open(request.moments).settle()] if request.moments else rhos
    first = Calibration(proxy.specs, proxy.samples, proxy.loading, request.device)
    taken = list(pools(first, mixed=inputs.mixed))
    learned = [replace(proxy, loading=pool.loading) for pool in taken]
    drawn: dict[str, Sequence[Calibration | ProxyOptions]] = {
        "images of calibration": taken,
        "images of refinement": learned,
    }
    facts: Facts = {"model": [theta.digest], "rho": rhos, "moments": moments}
    facts |= {"bits": request.bits, "widths": request.widths.to_json(), "refine": request.steps}
    for name, options in drawn.items():
        if name in stored:
            ways = [draw_each(theta, model, each, Silence()).facts() for each in options]
            facts[name] = stored[name] if stored[name] in ways else ways[0]
    return {name: facts[name] for name in stored}
