"""A receiver and a vector that belong together, and the grid that is meant."""

from __future__ import annotations

from dataclasses import dataclass

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import SpecError
from qvec_cli.inputs.grids import choose_grid, choose_targets
from qvec_cli.inputs.patched import pair_up
from qvec_cli.quant.methods import QUANTIZERS
from qvec_cli.specs import Grid, GridOptions, Listener, Method
from qvec_cli.vector.pairing import Pairing


@dataclass(frozen=True, slots=True)
class Match:
    """Two files that may be added, and what is quantized then."""

    theta: Checkpoint
    rho: Checkpoint
    targets: tuple[str, ...]
    grid: Grid
    pairing: Pairing


def match(
    theta: Checkpoint, rho: Checkpoint, wanted: GridOptions, method: Method, listener: Listener
) -> Match:
    """Checks both files, from their headers, and decides what is quantized on which grid.

    Raises:
        SpecError: a method that needs images.
        MismatchError: files or a grid that do not belong together.
    """
    if QUANTIZERS[method].calibrated:
        raise SpecError(
            f"--method {method} needs images, which a sweep does not give it",
            hint="Sweep with rtn on any --scale; then patch, and quantize with --calib.",
        )
    pairing = pair_up(theta, rho, listener, cross=wanted.cross)
    targets = choose_targets(theta, (), listener)
    return Match(theta, rho, targets, choose_grid(wanted, rho, theta, targets), pairing)
