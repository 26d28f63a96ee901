"""A float checkpoint into a file of the same function, whose weights round better."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.dtypes import Array
from qvec_cli.checkpoint.replace import check_target
from qvec_cli.checkpoint.write import Blocks, size_of, write
from qvec_cli.inputs.files import InputFiles, card_of, require, stated_model
from qvec_cli.inputs.identify import network_of, tells_network
from qvec_cli.inputs.lineage import inherited_use
from qvec_cli.inputs.rotated import ROTATION, Rotated, rotated
from qvec_cli.model.build import NetworkOptions
from qvec_cli.outputs.metrics import Input, Metrics, Plan, provenance
from qvec_cli.specs import Listener


@dataclass(frozen=True, slots=True)
class RotateRequest:
    """What ``qvec rotate`` is asked for."""

    source: Path  # a float checkpoint, patched or not
    out: Path
    seed: int = ROTATION  # of the signs in R
    network: NetworkOptions = NetworkOptions()  # for a file without a card
    force: bool = False
    dry_run: bool = False


def rotate(request: RotateRequest, listener: Listener) -> Metrics:
    """Writes the rotated checkpoint in the file's own number formats.

    Raises MismatchError: a network that cannot be rotated, a file that is; CheckpointError: a file
    that cannot be read or written, or does not tell its network.
    """
    started = time.perf_counter()
    check_target(request.out, force=request.force)
    with InputFiles(listener, request.network.weights) as files:
        theta = files.open(request.source)
        require(theta, Kind.CHECKPOINT)
        if request.network.known or tells_network(theta):
            network_of(theta, request.network, listener)
        turned = rotated(theta, stated_model(theta), request.seed, listener)

        def card() -> Card:
            return _card(turned)

        if request.dry_run:
            fates = dict.fromkeys(theta, "kept") | dict.fromkeys(turned.basis.changes, "rotated")
            planned = Plan("rotate", request.out, fates, theta, turned.basis.to_json())
            return planned.metrics((theta,), started, size_of(theta, card()))
        written = write(request.out, theta, _tensors(turned), card, force=request.force)
        inputs, use = (Input.of(theta),), inherited_use(theta)
    results = {
        "output": str(request.out),
        "digest": written.digest,
        **turned.basis.to_json(),
        "tensors": len(turned.basis.changes),
    }
    return Metrics("rotate", inputs, {"seed": request.seed}, results, use, started=started)


def _tensors(turned: Rotated) -> Blocks:
    """Every tensor; while one is written, a thread turns the next."""

    def blocks(name: str) -> tuple[str, list[Array]]:
        return name, [*turned.checked(name)]

    with ThreadPoolExecutor(1) as thread:
        ready: deque[Future[tuple[str, list[Array]]]] = deque()
        for name in turned.theta:
            ready.append(thread.submit(blocks, name))
            if len(ready) > 1:
                yield ready.popleft().result()
        yield from (last.result() for last in ready)
    turned.settle()


def _card(turned: Rotated) -> Card:
    theta = turned.theta
    lineage = provenance("rotate", {"model": theta}, inherited_use(theta), seed=turned.basis.seed)
    card = card_of(theta, Kind.CHECKPOINT)
    return replace(card, rotation=turned.basis.to_json(), provenance=lineage)
