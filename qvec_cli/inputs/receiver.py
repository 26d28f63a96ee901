"""A receiver with its vectors, its grid and its images, checked once to belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qvec_cli.checkpoint.card import Kind
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import MismatchError, SpecError
from qvec_cli.inputs.files import model_of, require, require_float, stated_model
from qvec_cli.inputs.grids import choose_grid, choose_targets
from qvec_cli.inputs.images import Examples, Proxies, ProxyOptions, find_proxies, open_for
from qvec_cli.inputs.lineage import note_fit, note_twice, require_same_grid, require_same_start
from qvec_cli.model.configuration import Model
from qvec_cli.model.targets import head_tensors
from qvec_cli.quant.methods import QUANTIZERS
from qvec_cli.specs import Grid, GridOptions, Listener, Loading, Method
from qvec_cli.vector.pairing import Pairing, cover


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

    Args:
        theta: the receiver's open file.
        rhos: the open files of vectors.
        options: the grid and the images.
        listener: hears what cannot be checked, and what is odd.

    Raises:
        SpecError: a method that needs images.
        MismatchError: vectors, grids or images that do not belong to the receiver.
        DataError: images that are not there.
    """
    if QUANTIZERS[options.method].calibrated:
        raise SpecError(
            f"--method {options.method} needs calibration images, and sweeps and grids have none",
            hint="Use rtn here; then patch, and quantize with --calib.",
        )
    require_float(theta)
    vectors = tuple(pair_up(theta, rho, listener, cross=options.grid.cross) for rho in rhos)
    model, targets = model_of(theta), choose_targets(theta, (), listener)
    labelled = None
    if options.data is not None:
        labelled = open_for(theta, model, options.data, options.loading)
        for split in options.splits:
            labelled.task.split(split)
    proxies = None
    if options.proxy:
        proxies = find_proxies(theta, model, options.proxy, held_back=options.held_back)
    grid = _grid(theta, rhos, targets, options)
    return Receiver(theta, model, targets, vectors, grid, labelled, proxies)


def pair_up(theta: Checkpoint, rho: Checkpoint, listener: Listener, *, cross: bool) -> PairedVector:
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
    return PairedVector(rho, cover(theta, rho, (str(theta.path), str(rho.path)), head))


def _grid(
    theta: Checkpoint,
    rhos: Sequence[Checkpoint],
    targets: tuple[str, ...],
    options: ReceiverOptions,
) -> Grid | None:
    """The one grid of all vectors."""
    grids = [choose_grid(options.grid, rho, theta, targets) for rho in rhos]
    for rho, grid in zip(rhos, grids, strict=True):
        if grid != grids[0]:
            raise MismatchError(
                f"{rho.path} was made for {grid}, {rhos[0].path} for {grids[0]}",
                hint="--bits and --scale with --cross-grid put all of them on one grid.",
            )
    return grids[0] if grids else None
