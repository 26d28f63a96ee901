"""A receiver with its vectors, its grid and its images; and theta_R + lambda * rho of the files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qvec_cli.checkpoint.card import Kind
from qvec_cli.checkpoint.dtypes import Array, from_float32, to_float32
from qvec_cli.checkpoint.read import Checkpoint, finite
from qvec_cli.errors import CheckpointError, MismatchError, SpecError
from qvec_cli.inputs.files import InputFiles, require, stated_model
from qvec_cli.inputs.grids import choose_grid, targets_in
from qvec_cli.inputs.identify import network_of
from qvec_cli.inputs.images import Examples, Proxies, ProxyOptions, find_proxies, open_for
from qvec_cli.inputs.lambdas import LambdaChoice, read_choice
from qvec_cli.inputs.lineage import (
    note_fit,
    note_twice,
    patched_use,
    require_same_grid,
    require_same_start,
)
from qvec_cli.model.build import NetworkOptions
from qvec_cli.model.configuration import Model
from qvec_cli.model.targets import HeadChoice, head_tensors
from qvec_cli.quant.methods import QUANTIZERS
from qvec_cli.specs import Grid, GridOptions, Listener, Loading, Method, Part, Use, spent
from qvec_cli.vector.arithmetic import apply
from qvec_cli.vector.pairing import Pairing, cover, select

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class ReceiverOptions:
    """The grid and the images that a receiver is to be measured with."""

    grid: GridOptions = field(default_factory=GridOptions)
    method: Method = Method.RTN
    loading: Loading = field(default_factory=Loading)
    data: str | None = None  # labelled images of the receiver, as --data names them
    splits: tuple[str, ...] = ("val", "test")  # that the labelled images must have
    proxy: ProxyOptions | None = None  # unlabelled images
    held_back: bool = False  # whether the proxies are those after the first ``proxy.samples``
    network: NetworkOptions = field(default_factory=NetworkOptions)  # for a file without a card


@dataclass(frozen=True, slots=True)
class PairedVector:
    """A vector, and which tensors of the receiver it is added to."""

    rho: Checkpoint
    pairing: Pairing


@dataclass(frozen=True, slots=True)
class Receiver:
    """A float model that is to be quantized, with all that belongs to it."""

    theta: Checkpoint
    model: Model
    targets: tuple[str, ...]  # names of the weights to quantize
    vectors: tuple[PairedVector, ...]
    grid: Grid | None  # of the targets; None without vectors and without a grid that was typed
    labelled: Examples | None
    proxies: Proxies | None

    @property
    def examples(self) -> Examples:
        """The labelled images, or else proxies: what tells size and preprocessing."""
        if self.labelled:
            return self.labelled
        assert self.proxies is not None
        return self.proxies.sources[0].examples


def resolve(
    theta: Checkpoint, rhos: Sequence[Checkpoint], options: ReceiverOptions, listener: Listener
) -> Receiver:
    """Checks everything that headers and folders can decide; no image is decoded.

    The listener hears what cannot be checked, and what is odd.
    Raises SpecError: a method that needs images; MismatchError: vectors, grids or images that do
    not belong to the receiver; DataError: images that are not there.
    """
    if QUANTIZERS[options.method].calibrated:
        raise SpecError(
            f"--method {options.method} needs calibration images, and sweeps and grids have none",
            hint="Use rtn here; then patch, and quantize with --calib.",
        )
    require(theta, Kind.CHECKPOINT)
    model = network_of(theta, options.network, listener)
    vectors = tuple(pair_up(theta, rho, listener, cross=options.grid.cross) for rho in rhos)
    targets = targets_in(theta, model, (), head_tensors(theta, model), listener)
    labelled = None
    if options.data is not None:
        labelled = open_for(theta, model, options.data, options.loading, listener)
        for split in options.splits:
            labelled.task.split(split)
    proxies = None
    if options.proxy:
        proxies = find_proxies(theta, model, options.proxy, listener, held_back=options.held_back)
    grid = _grid(theta, rhos, targets, options.grid)
    return Receiver(theta, model, targets, vectors, grid, labelled, proxies)


def pair_up(
    theta: Checkpoint,
    rho: Checkpoint,
    listener: Listener,
    *,
    cross: bool,
    head: HeadChoice = HeadChoice(),
) -> PairedVector:
    """The tensors of a receiver that a vector is for; MismatchError where they do not fit.

    ``cross`` says that the two may have been made for different grids; the listener hears what
    cannot be checked, and what is odd.
    """
    require(theta, Kind.CHECKPOINT)
    require(rho, Kind.VECTOR)
    require_same_start(theta, rho, listener)
    require_same_grid(theta, rho, cross=cross)
    note_twice(theta, rho, listener)
    note_fit(theta, rho, listener)
    kept = head.tensors(theta, stated_model(theta), str(theta.path), bare=theta.bare)
    return PairedVector(rho, cover(theta, rho, (str(theta.path), str(rho.path)), kept))


def _grid(
    theta: Checkpoint, rhos: Sequence[Checkpoint], targets: tuple[str, ...], options: GridOptions
) -> Grid | None:
    """The one grid of all vectors."""
    grids = [choose_grid(options, rho, theta, targets) for rho in rhos]
    for rho, grid in zip(rhos, grids, strict=True):
        if grid != grids[0]:
            raise MismatchError(
                f"{rho.path} was made for {grid}, {rhos[0].path} for {grids[0]}",
                hint="--bits and --scale with --cross-grid put all of them on one grid.",
            )
    return grids[0] if grids else None


@dataclass(frozen=True, slots=True)
class Anchor:
    """A vector to be added to a receiver, as the user names it."""

    rho: Path
    lam: str  # a number, or the JSON file of a sweep
    cross: bool = False  # whether the two may have been made for different grids
    dry_run: bool = False  # whether only headers are read
    parts: tuple[Part, ...] = ()  # of the network that the vector is added to; none named: all
    head: HeadChoice = field(default_factory=HeadChoice)  # the receiver's classifier


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
        names = {name: name for name in self.names}
        aliases = self.theta.aliases.items()
        names |= {dropped: kept for dropped, kept in aliases if kept in names}
        place(network, ((name, self.finite(stored)) for name, stored in names.items()))

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


def place(network: nn.Module, tensors: Iterable[tuple[str, Array]]) -> None:
    """Gives a network these numbers, by the names of its state dict."""
    import torch

    state = network.state_dict()
    with torch.no_grad():
        for name, numbers in tensors:
            state[name].copy_(torch.from_numpy(numbers))


def patched_receiver(
    theta: Checkpoint, rho: Checkpoint, choice: LambdaChoice, anchor: Anchor, listener: Listener
) -> Patched:
    """theta_R + lambda * rho, of two open files that belong together.

    MismatchError: files that do not, or a lambda that was chosen for others.
    """
    pairing = pair_up(theta, rho, listener, cross=anchor.cross, head=anchor.head).pairing
    choice.require_for(*(c for c in (theta, rho) if c.stated or not anchor.dry_run))
    return Patched(theta, rho, choice, pairing, select(pairing.names, theta, anchor.parts))


def anchored(
    theta: Checkpoint, anchor: Anchor | None, files: InputFiles, listener: Listener
) -> Patched | None:
    """A receiver with the vector that its quantization starts from; None without one."""
    if anchor is None:
        return None
    choice = read_choice(anchor.lam)
    return patched_receiver(theta, files.open(anchor.rho), choice, anchor, listener)
