"""A receiver and a vector that belong together, read as theta_R + lambda * rho."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from qvec_cli.checkpoint.card import Kind
from qvec_cli.checkpoint.dtypes import Array, from_float32, to_float32
from qvec_cli.checkpoint.read import Checkpoint, finite
from qvec_cli.errors import CheckpointError
from qvec_cli.inputs.data_use import patched_use
from qvec_cli.inputs.files import opened, require, stated_model
from qvec_cli.inputs.kinship import note_fit, note_twice, require_same_grid, require_same_start
from qvec_cli.inputs.lambdas import LambdaChoice, read_choice
from qvec_cli.model.targets import head_tensors
from qvec_cli.specs import Listener, Part, Use, spent
from qvec_cli.vector.arithmetic import apply
from qvec_cli.vector.pairing import Pairing, cover
from qvec_cli.vector.parts import select

if TYPE_CHECKING:
    from torch import nn


PATCHED: Final = "patched"
"""The role of a receiver to which a vector was added."""


class Asked(Protocol):
    """How strict the user wants to be."""

    @property
    def cross(self) -> bool:
        """Whether the two may have been made for different grids."""

    @property
    def dry_run(self) -> bool:
        """Whether only headers are read."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """Of the network that the vector is added to; none named: all."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """The vector that a quantization is to start from."""

    rho: Path
    lam: str  # a number, or the JSON file of a sweep
    cross: bool = False
    dry_run: bool = False
    parts: tuple[Part, ...] = ()


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
        """What the two have cost."""
        return spent(patched_use(self.theta, self.rho), self.choice.use)

    @property
    def grid(self) -> dict[str, Any] | None:
        """What it is made for: the sweep's grid, the vector's or the receiver's."""
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
            for name, held in names.items():
                state[name].copy_(torch.from_numpy(self.finite(held)))

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


def pair_up(theta: Checkpoint, rho: Checkpoint, listener: Listener, *, cross: bool) -> Pairing:
    """The tensors of a receiver that a vector is for.

    Args:
        theta: the receiver.
        rho: the vector.
        listener: hears what cannot be checked, and what is odd.
        cross: whether the two may have been made for different grids.

    Raises:
        MismatchError: files that do not belong together.
    """
    require(theta, Kind.CHECKPOINT)
    require(rho, Kind.VECTOR)
    require_same_start(theta, rho, listener)
    require_same_grid(theta, rho, cross=cross)
    note_twice(theta, rho, listener)
    note_fit(theta, rho, listener)
    head = head_tensors(theta, stated_model(theta))
    return cover(theta, rho, (str(theta.path), str(rho.path)), head)


def match(
    theta: Checkpoint, rho: Checkpoint, choice: LambdaChoice, asked: Asked, listener: Listener
) -> Patched:
    """Pairs two files that belong together.

    Raises:
        MismatchError: files that do not.
    """
    pairing = pair_up(theta, rho, listener, cross=asked.cross)
    choice.require_for(*(c for c in (theta, rho) if c.stated or not asked.dry_run))
    return Patched(theta, rho, choice, pairing, select(pairing.names, theta, asked.parts))


@contextmanager
def anchored(
    theta: Checkpoint, anchor: Anchor | None, listener: Listener
) -> Iterator[Patched | None]:
    """An open receiver with the vector of an anchor; None without one.

    Raises:
        MismatchError: files that do not belong together.
    """
    if anchor is None:
        yield None
        return
    choice = read_choice(anchor.lam)
    with opened(anchor.rho, listener) as rho:
        yield match(theta, rho, choice, anchor, listener)
