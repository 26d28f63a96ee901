"""theta_R + lambda * rho, from two files into one; the receiver keeps its head."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.dtypes import Array, from_float32, to_float32
from qvec_cli.checkpoint.read import Checkpoint, finite
from qvec_cli.checkpoint.replace import check_target
from qvec_cli.checkpoint.write import size_of, write
from qvec_cli.errors import CheckpointError
from qvec_cli.model.targets import head_tensors
from qvec_cli.ops import agree
from qvec_cli.ops.agree import AUTO
from qvec_cli.ops.choice import Choice, read_choice
from qvec_cli.ops.lineage import (
    card_of,
    note_twice,
    patched_use,
    provenance,
    require,
    require_same_grid,
    require_same_start,
    stated_model,
)
from qvec_cli.ops.metrics import Input, Metrics
from qvec_cli.ops.opening import opened
from qvec_cli.ops.plan import STREAMING, Plan
from qvec_cli.specs import Listener, Part, Use, spent
from qvec_cli.vector.arithmetic import apply
from qvec_cli.vector.pairing import Pairing, cover
from qvec_cli.vector.parts import select


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asks for."""

    receiver: Path  # a float checkpoint
    vector: Path  # from ``extract``
    out: Path
    lam: str = "1"  # a number, the JSON file of a sweep, whose choice is taken, or auto
    cross: bool = False  # whether the two may have been made for different grids
    force: bool = False
    dry_run: bool = False
    parts: tuple[Part, ...] = ()  # of the network that the vector is added to; none named: all
    auto: agree.Request | None = None  # how lambda is chosen, if it is auto


def patch(request: Request, listener: Listener) -> Metrics:
    """Writes the patched receiver in the receiver's own number formats.

    Raises:
        MismatchError: files that do not belong together.
        CheckpointError: a file that cannot be read or written, or holds NaN.
    """
    started = time.perf_counter()
    check_target(request.out, force=request.force)
    choice, curve = (
        agree.choose(request.auto, listener) if request.auto else (read_choice(request.lam), None)
    )
    with opened(request.receiver, listener) as theta, opened(request.vector, listener) as rho:
        pairing = _match(request, choice, theta, rho, listener)
        use = spent(patched_use(theta, rho), choice.use)
        patched = select(pairing.names, theta, request.parts)
        others = [name for name in pairing.names if name not in patched]
        parts = {"parts": [str(part) for part in request.parts]} if request.parts else {}
        told = {"objective": "agreement", **curve.score()} if curve else {}
        lam = AUTO if request.auto and not curve else choice.lam
        parameters = {"lambda": lam, **parts, **told}

        def card() -> Card:
            return _card(theta, rho, parameters, choice, use)

        if request.dry_run:
            fates = pairing.fates(theta, "patched", "kept")
            fates |= dict.fromkeys(others, "kept: of another part")
            planned = Plan("patch", request.out, fates, theta, parameters, STREAMING)
            return planned.metrics((theta, rho), started, size_of(theta, card()))
        tensors = _tensors(theta, rho, patched, choice.lam)
        written = write(request.out, theta, tensors, card, force=request.force)
        inputs = (Input.of(theta), Input.of(rho))
    results = {
        "output": str(request.out),
        "digest": written.digest,
        **parameters,
        **({"curve": curve.points()} if curve else {}),
        "tensors": len(patched),
        "kept": [*pairing.head, *pairing.buffers, *others],
    }
    return Metrics("patch", inputs, parameters, results, use, started=started)


def _match(
    request: Request, choice: Choice, theta: Checkpoint, rho: Checkpoint, listener: Listener
) -> Pairing:
    """Pairs two files that belong together."""
    require(theta, Kind.CHECKPOINT)
    require(rho, Kind.VECTOR)
    require_same_start(theta, rho, listener)
    choice.require_for(*(c for c in (theta, rho) if c.stated or not request.dry_run))
    require_same_grid(theta, rho, cross=request.cross)
    note_twice(theta, rho, listener)
    head = head_tensors(theta, stated_model(theta))
    return cover(theta, rho, (str(theta.path), str(rho.path)), head)


def _tensors(
    theta: Checkpoint, rho: Checkpoint, patched: Collection[str], lam: float
) -> Iterator[tuple[str, Iterable[Array]]]:
    for name in theta:
        yield name, _apply(theta, rho, name, lam) if name in patched else theta.checked(name)
    theta.settle()
    rho.settle()


def _apply(theta: Checkpoint, rho: Checkpoint, name: str, lam: float) -> Iterator[Array]:
    dtype = theta[name].dtype
    for raw, theirs in zip(theta.blocks(name), rho.floats(name), strict=True):
        ours = to_float32(raw, dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # found below, by name
            block = raw if lam == 0 else from_float32(apply(ours, theirs, lam), dtype)
        if not (finite(to_float32(block, dtype)) and (lam != 0 or finite(theirs))):
            theta.require_finite(name)
            rho.require_finite(name)
            raise CheckpointError(f"{theta.path}: {name}: overflows {dtype} at lambda {lam:g}")
        yield block


def _card(
    theta: Checkpoint, rho: Checkpoint, facts: Mapping[str, Any], choice: Choice, use: Use
) -> Card:
    assert rho.card is not None
    parents = {"receiver": theta, "rho": rho}
    return replace(
        card_of(theta, Kind.CHECKPOINT),
        role="patched",
        quant=choice.grid or rho.card.quant or (theta.card.quant if theta.card else None),
        provenance=provenance("patch", parents, use, **facts),
    )
