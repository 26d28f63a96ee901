"""theta_R + lambda * rho, from two files into one; the receiver keeps its head."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvec_cli.checkpoint.card import PATCHED, Card, Kind
from qvec_cli.checkpoint.replace import check_target
from qvec_cli.checkpoint.source import WeightsChoice
from qvec_cli.checkpoint.write import Blocks, size_of, write
from qvec_cli.inputs.files import InputFiles, card_of
from qvec_cli.inputs.lambdas import AUTO, read_choice
from qvec_cli.inputs.receiver import Anchor, Patched, patched_receiver
from qvec_cli.model.targets import HeadChoice
from qvec_cli.outputs.metrics import Input, Metrics, Plan, provenance
from qvec_cli.specs import Listener, Part

if TYPE_CHECKING:
    from qvec_cli.selection.by_agreement import AgreementOptions, Curve


@dataclass(frozen=True, slots=True)
class PatchRequest:
    """What ``qvec patch`` is asked for."""

    receiver: Path  # a float checkpoint
    vector: Path  # from ``extract`` or ``combine``
    out: Path
    lam: str = "1"  # a number, the JSON file of a sweep, whose choice is taken, or auto
    cross: bool = False  # whether the two may have been made for different grids
    force: bool = False
    dry_run: bool = False
    parts: tuple[Part, ...] = ()  # of the network that the vector is added to; none named: all
    auto: AgreementOptions | None = None  # how lambda is chosen, if it is auto
    head: HeadChoice = HeadChoice()  # the receiver's classifier, which stays as it is
    weights: WeightsChoice = WeightsChoice()  # which of those in a file without a card


def patch(request: PatchRequest, listener: Listener) -> Metrics:
    """Writes the patched receiver in the receiver's own number formats.

    Raises MismatchError: files that do not belong together; CheckpointError: a file that cannot be
    read or written, or holds NaN.
    """
    started = time.perf_counter()
    check_target(request.out, force=request.force)
    with InputFiles(listener, request.weights) as files:
        choice, curve = None if request.auto else read_choice(request.lam), None
        theta, rho = files.open(request.receiver), files.open(request.vector)
        if choice is None:  # only then is a network needed
            from qvec_cli.selection.by_agreement import choose

            assert request.auto is not None
            choice, curve = choose(theta, rho, request.auto, listener, dry_run=request.dry_run)
        parts, dry_run = request.parts, request.dry_run
        anchor = Anchor(rho.path, request.lam, request.cross, dry_run, parts, request.head)
        patched = patched_receiver(theta, rho, choice, anchor, listener)
        pairing = patched.pairing
        others = [name for name in pairing.names if name not in patched.names]
        parameters = _parameters(request, choice.lam, curve)

        def card() -> Card:
            return _card(patched, parameters)

        if request.dry_run:
            fates = pairing.fates(theta, "patched", "kept")
            fates |= dict.fromkeys(others, "kept: of another part")
            planned = Plan("patch", request.out, fates, theta, parameters)
            return planned.metrics((theta, rho), started, size_of(theta, card()))
        written = write(request.out, theta, _tensors(patched), card, force=request.force)
        inputs = (Input.of(theta), Input.of(rho))
    results = {
        "output": str(request.out),
        "digest": written.digest,
        **parameters,
        **(curve.to_json() if curve else {}),
        "tensors": len(patched.names),
        "head": [*pairing.head],
        "kept": [*pairing.head, *pairing.buffers, *others],
    }
    return Metrics("patch", inputs, parameters, results, patched.use, started=started)


def _parameters(request: PatchRequest, lam: float, curve: Curve | None) -> dict[str, Any]:
    """The choice of lambda and of parts, as metrics and the card name it."""
    parts = {"parts": [str(part) for part in request.parts]} if request.parts else {}
    score = {"objective": "agreement", **curve.score()} if curve else {}
    return {"lambda": AUTO if request.auto and not curve else lam, **parts, **score}


def _tensors(patched: Patched) -> Blocks:
    for name in patched.theta:
        yield name, patched.checked(name)
    patched.settle()


def _card(patched: Patched, facts: Mapping[str, Any]) -> Card:
    parents = {"receiver": patched.theta, "rho": patched.rho}
    return replace(
        card_of(patched.theta, Kind.CHECKPOINT),
        role=PATCHED,
        quant=patched.grid,
        provenance=provenance("patch", parents, patched.use, **facts),
    )
