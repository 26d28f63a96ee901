"""theta_R + lambda * rho, read tensor by tensor from the two files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qvec_cli.checkpoint.dtypes import Array, from_float32, to_float32
from qvec_cli.checkpoint.read import Checkpoint, finite
from qvec_cli.errors import CheckpointError
from qvec_cli.inputs.files import InputFiles
from qvec_cli.inputs.lambdas import LambdaChoice, read_choice
from qvec_cli.inputs.lineage import patched_use
from qvec_cli.inputs.receiver import pair_up
from qvec_cli.specs import Listener, Part, Use, spent
from qvec_cli.vector.arithmetic import apply
from qvec_cli.vector.pairing import Pairing, select

if TYPE_CHECKING:
    from torch import nn

PATCHED: Final = "patched"
"""The role on the card of a receiver to which a vector was added."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A vector to be added to a receiver, as the user names it."""

    rho: Path
    lam: str  # a number, or the JSON file of a sweep
    cross: bool = False  # whether the two may have been made for different grids
    dry_run: bool = False  # whether only headers are read
    parts: tuple[Part, ...] = ()  # of the network that the vector is added to; none named: all


@dataclass(frozen=True, slots=True)
class Patched:
    """What ``patch`` would write, tensor by tensor, in the receiver's own number formats."""

    theta: Checkpoint
    rho: Checkpoint
    choice: LambdaChoice
    pairing: Pairing
    names: frozenset[str]  # of the tensors that the vector is added to

    @property
    def use(self) -> Use:
        """Which of the receiver's data the two files and the choice of lambda have used."""
        return spent(patched_use(self.theta, self.rho), self.choice.use)

    @property
    def grid(self) -> dict[str, Any] | None:
        """The grid that the sum is made for: the sweep's, the vector's or the receiver's."""
        theirs, ours = (c.card.quant for c in (self.rho, self.theta))
        return self.choice.grid or theirs or ours

    def checked(self, name: str) -> Iterator[Array]:
        """The raw blocks of a tensor, every element of a floating one a number."""
        return self._blocks(name) if name in self.names else self.theta.checked(name)

    def finite(self, name: str) -> Array:
        """A whole floating tensor in float32, every element finite."""
        entry = self.theta[name]
        parts = [to_float32(raw, entry.dtype) for raw in self.checked(name)]
        return np.concatenate([*parts, np.empty(0, np.float32)]).reshape(entry.shape)

    def place(self, network: nn.Module) -> None:
        """Gives the receiver's network these numbers, in float32."""
        import torch

        state, aliases = network.state_dict(), self.theta.aliases
        names = {name: name for name in self.names}
        names |= {dropped: kept for dropped, kept in aliases.items() if kept in names}
        with torch.no_grad():
            for name, stored in names.items():
                state[name].copy_(torch.from_numpy(self.finite(stored)))

    def settle(self) -> None:
        """Both files are what their cards say; see ``Checkpoint.settle``."""
        self.theta.settle()
        self.rho.settle()

    def _blocks(self, name: str) -> Iterator[Array]:
        theta, rho, lam = self.theta, self.rho, self.choice.lam
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


def patched_receiver(
    theta: Checkpoint, rho: Checkpoint, choice: LambdaChoice, anchor: Anchor, listener: Listener
) -> Patched:
    """theta_R + lambda * rho, of two open files that belong together.

    Raises:
        MismatchError: files that do not, or a lambda that was chosen for others.
    """
    pairing = pair_up(theta, rho, listener, cross=anchor.cross).pairing
    choice.require_for(*(c for c in (theta, rho) if c.stated or not anchor.dry_run))
    return Patched(theta, rho, choice, pairing, select(pairing.names, theta, anchor.parts))


def anchored(
    theta: Checkpoint, anchor: Anchor | None, files: InputFiles, listener: Listener
) -> Patched | None:
    """A receiver with the vector that its quantization starts from; None without one.

    Raises:
        MismatchError: files that do not belong together.
    """
    if anchor is None:
        return None
    choice = read_choice(anchor.lam)
    return patched_receiver(theta, files.open(anchor.rho), choice, anchor, listener)
