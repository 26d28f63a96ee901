"""What is asked of advise, and the files and images that were found to answer it with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.data.noise import NOISE
from qvec_cli.errors import MismatchError
from qvec_cli.inputs.examples import Examples, open_for
from qvec_cli.inputs.files import model_of, require_float
from qvec_cli.inputs.grids import choose_targets
from qvec_cli.inputs.proxies import Proxies, ProxyOptions, find_proxies
from qvec_cli.model.configuration import Model
from qvec_cli.selection import by_agreement
from qvec_cli.specs import Grid, GridOptions, Listener, Use


@dataclass(frozen=True, slots=True)
class AdviseRequest:
    """What the user asks for."""

    receiver: Path
    bits: int
    vectors: tuple[Path, ...] = ()
    moments: Path | None = None  # None: those that the vectors carry
    proxy: ProxyOptions = field(default_factory=lambda: ProxyOptions((NOISE,)))
    data: str | None = None  # labels, to judge the decision by; they take no part in it
    steps: int = 60  # of refinement; 0: it is not tried
    out: Path | None = None  # where the recommended model is written
    device: str = "auto"
    force: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class AdviseInputs:
    """The receiver and all that its candidates are made and judged with."""

    theta: Checkpoint
    model: Model
    targets: tuple[str, ...]
    making: ProxyOptions  # images that candidates may see
    judging: Proxies  # images that they may not
    seen: Use  # what a choice on the former costs
    labelled: Examples | None
    grid: Grid | None  # of the vectors


def find(
    request: AdviseRequest, theta: Checkpoint, rhos: Sequence[Checkpoint], listener: Listener
) -> AdviseInputs:
    """Checks everything that headers and folders can decide.

    Raises:
        MismatchError: vectors or images that do not belong to the receiver.
    """
    require_float(theta)
    model, targets = model_of(theta), choose_targets(theta, (), listener)
    making = request.proxy
    seen = find_proxies(theta, model, making).use
    judging = find_proxies(theta, model, making, held_back=True)
    labelled = None
    if request.data is not None:
        labelled = open_for(theta, model, request.data, making.loading)
        labelled.task.split("test")
    return AdviseInputs(
        *(theta, model, targets, making, judging, seen, labelled),
        _grid(request, theta, rhos, listener),
    )


def _grid(
    request: AdviseRequest, theta: Checkpoint, rhos: Sequence[Checkpoint], listener: Listener
) -> Grid | None:
    """The grid of the vectors, which must be of the bits that are asked for."""
    if not rhos:
        return None
    asked = by_agreement.AgreementRequest(
        request.receiver, request.vectors, Path("-"), (1.0,), GridOptions(), request.proxy
    )
    grid = by_agreement.find(asked, theta, rhos, listener).grid
    if grid.bits != request.bits:
        raise MismatchError(
            f"{rhos[0].path} was made for {grid}, not for {request.bits} bits",
            hint="A vector serves the grid that it was made for; leave --rho out.",
        )
    return grid
