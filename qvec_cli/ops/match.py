"""A receiver and a vector that belong together, and the grid that is meant."""

from __future__ import annotations

from dataclasses import dataclass

from qvec_cli.checkpoint.card import Kind
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import SpecError
from qvec_cli.model.targets import head_tensors
from qvec_cli.ops.grids import choose_grid, choose_targets
from qvec_cli.ops.lineage import (
    note_fit,
    note_twice,
    require,
    require_same_grid,
    require_same_start,
    stated_model,
)
from qvec_cli.quant.methods import QUANTIZERS
from qvec_cli.specs import Grid, Listener, Method, Wanted
from qvec_cli.vector.pairing import Pairing, cover


@dataclass(frozen=True, slots=True)
class Match:
    """Two files that may be added, and what is quantized then."""

    theta: Checkpoint
    rho: Checkpoint
    targets: tuple[str, ...]
    grid: Grid
    pairing: Pairing


def match(
    theta: Checkpoint, rho: Checkpoint, wanted: Wanted, method: Method, listener: Listener
) -> Match:
    """Checks both files, from their headers, and decides what is quantized on which grid.

    Raises:
        SpecError: a method that needs images.
        MismatchError: files or a grid that do not belong together.
    """
    if QUANTIZERS[method].calibrated:
        raise SpecError(
            f"--method {method} needs images, which a sweep does not give it",
            hint="Sweep with rtn, mse or hqq; then patch, and quantize with --calib.",
        )
    require(theta, Kind.CHECKPOINT)
    require(rho, Kind.VECTOR)
    require_same_start(theta, rho, listener)
    require_same_grid(theta, rho, cross=wanted.cross)
    note_twice(theta, rho, listener)
    note_fit(theta, rho, listener)
    head = head_tensors(theta, stated_model(theta))
    pairing = cover(theta, rho, (str(theta.path), str(rho.path)), head)
    targets = choose_targets(theta, (), listener)
    return Match(theta, rho, targets, choose_grid(wanted, method, rho, theta, targets), pairing)
