"""Who meets whom in a transfer grid, checked from headers before anything is measured."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qvec_cli.checkpoint.card import Kind
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import MismatchError, SpecError
from qvec_cli.inputs.data_use import digests, same_data
from qvec_cli.inputs.examples import open_for
from qvec_cli.inputs.files import model_of, opened, require, require_model, stated_model
from qvec_cli.inputs.grids import choose_grid, choose_targets
from qvec_cli.inputs.kinship import require_same_grid, require_same_start
from qvec_cli.inputs.proxies import Proxies, ProxyOptions, find_proxies, is_own
from qvec_cli.model.configuration import Model, same_backbone
from qvec_cli.model.targets import head_tensors
from qvec_cli.outputs.provenance import version
from qvec_cli.quant.methods import QUANTIZERS
from qvec_cli.specs import Grid, GridOptions, Listener, Loading, Method, Null
from qvec_cli.transfer.cells import ReceiverInputs, Vector
from qvec_cli.transfer.grid_file import GridDonor, GridFile, GridReceiver
from qvec_cli.vector.pairing import cover


@dataclass(frozen=True, slots=True)
class CellOptions:
    """What holds for every cell of a grid."""

    grid: GridOptions
    lambdas: tuple[float, ...]
    fixed: tuple[float, ...]
    loading: Loading
    method: Method = Method.RTN
    oracle: bool = True  # whether test is measured at every lambda
    nulls: tuple[Null, ...] = ()
    null_donors: tuple[str, ...] = ()  # whose norms they take; none named: all donors'
    seed: int = 0  # of the null vectors
    device: str = "auto"
    proxy: ProxyOptions | None = None  # images for the choice without labels


@dataclass(frozen=True, slots=True)
class Lineup:
    """A grid whose members belong together."""

    settings: Mapping[str, ReceiverInputs]
    vectors: Mapping[str, tuple[Vector, ...]]  # of each receiver, in order
    run: dict[str, Any]  # the configuration, as the first line of the output has it

    @property
    def grid(self) -> Grid:
        """The grid of every cell."""
        return next(iter(self.settings.values())).grid

    def lines(self, receivers: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """What is to be known in the end, without the numbers."""
        for name in receivers:
            yield {"kind": "receiver", "receiver": name}
            yield from (cell(name, vector) for vector in self.vectors[name])


def cell(receiver: str, vector: Vector) -> dict[str, Any]:
    """The words of a cell's line."""
    facts = {"kind": "cell", "receiver": receiver, "donor": vector.donor, "null": vector.null}
    return {**facts, "diagonal": vector.diagonal}


def line_up(drawer: GridFile, wishes: CellOptions, listener: Listener) -> Lineup:
    """Opens every file of a drawer and every data set, and decodes nothing.

    Raises:
        MismatchError: members of other bases, architectures, grids, classes.
        SpecError: a method that needs images, a null vector without its files.
    """
    if QUANTIZERS[wishes.method].calibrated:
        raise SpecError(
            f"--method {wishes.method} needs images, which a grid does not give it",
            hint="Use rtn on any --scale; a calibrated file can be named among baselines.",
        )
    if unknown := [name for name in wishes.null_donors if name not in drawer.donors]:
        raise SpecError(f"--null-donors {unknown[0]} is no donor of the grid")
    nulls = wishes.null_donors or tuple(drawer.donors)
    with ExitStack() as stack:
        rhos = {n: stack.enter_context(opened(d.rho, listener)) for n, d in drawer.donors.items()}
        for rho in rhos.values():
            require(rho, Kind.VECTOR)
        taken = Null.TASKVEC in wishes.nulls
        drift = check_drift(drawer, nulls, rhos, listener) if taken else {}
        settings, vectors, facts = {}, {}, {}
        for name, receiver in drawer.receivers.items():
            with opened(receiver.model, listener) as theta:
                setting = _setting(name, receiver, theta, rhos, wishes, listener)
                settings[name] = setting
                own = {n: _is_own(name, n, theta, rho) for n, rho in rhos.items()}
                vectors[name] = tuple(_vectors(drawer, wishes, own))
                facts[name] = _receiver_facts(receiver, theta, setting, listener)
        run = _run(drawer, wishes, settings, facts, rhos) | drift
    return Lineup(settings, vectors, run)


def _setting(
    name: str,
    receiver: GridReceiver,
    theta: Checkpoint,
    rhos: Mapping[str, Checkpoint],
    wishes: CellOptions,
    listener: Listener,
) -> ReceiverInputs:
    require(theta, Kind.CHECKPOINT)
    model, targets = model_of(theta), choose_targets(theta, (), listener)
    grids = {}
    for donor, rho in rhos.items():
        require_same_start(theta, rho, listener)
        require_same_grid(theta, rho, cross=wishes.grid.cross)
        cover(theta, rho, (str(theta.path), str(rho.path)), head_tensors(theta, model))
        grids[donor] = choose_grid(wishes.grid, rho, theta, targets)
    first, grid = next(iter(grids.items()))
    if other := next((n for n, found in grids.items() if found != grid), None):
        raise MismatchError(
            f"{rhos[first].path} was made for {grid}, {rhos[other].path} for {grids[other]}",
            hint="One grid file is of one grid; --bits and --scale with --cross-grid overrule.",
        )
    examples = open_for(theta, model, receiver.data, wishes.loading)
    for split in ("val", "test"):
        examples.task.split(split)
    return ReceiverInputs(
        name,
        receiver.model,
        receiver.qat,
        receiver.baselines,
        examples,
        targets,
        grid,
        wishes.method,
        wishes.lambdas,
        wishes.fixed,
        wishes.oracle,
        wishes.device,
        _proxies(name, theta, model, wishes.proxy) if wishes.proxy else None,
    )


def _proxies(name: str, theta: Checkpoint, model: Model, wish: ProxyOptions) -> Proxies:
    """The images of all data sets but the receiver's own; one pool for all its donors."""
    others = [spec for spec in wish.specs if not is_own(theta, model, spec, wish.loading)]
    if not others:
        raise SpecError(
            f"--proxy: {name} has no images there but its own",
            hint="Name a second data set; it serves the receivers of the first.",
        )
    return find_proxies(theta, model, replace(wish, specs=tuple(others)))


def _is_own(receiver: str, donor: str, theta: Checkpoint, rho: Checkpoint) -> bool:
    """Whether a vector is the receiver's own: of the same data where cards tell, else by name."""
    known = all(digests(c.card) for c in (theta, rho))
    return same_data(theta.card, rho.card) if known else receiver == donor


def _vectors(drawer: GridFile, wishes: CellOptions, own: Mapping[str, bool]) -> Iterator[Vector]:
    for name, donor in drawer.donors.items():
        yield Vector(name, donor.rho, own[name])
    for kind in wishes.nulls:
        for name in wishes.null_donors or drawer.donors:
            donor = drawer.donors[name]
            drift = _drift(donor, drawer) if kind is Null.TASKVEC else None
            yield Vector(name, donor.rho, own[name], kind, drift, wishes.seed)


def _drift(donor: GridDonor, drawer: GridFile) -> tuple[Path, Path] | None:
    return (donor.model, drawer.base) if donor.model and drawer.base else None


def _receiver_facts(
    receiver: GridReceiver, theta: Checkpoint, setting: ReceiverInputs, listener: Listener
) -> dict[str, Any]:
    """What a receiver's numbers depend on."""
    qat = _twin(receiver.qat, theta, setting, listener) if receiver.qat else None
    named = receiver.baselines.items()
    task = setting.examples.task
    proxies = {"proxies": setting.proxies.facts()} if setting.proxies else {}
    return {
        **proxies,
        "model": str(receiver.model),
        "digest": _identity(theta),
        "data": receiver.data,
        "data_digest": task.digest,
        "images": {split: len(task.splits[split]) for split in ("val", "test")},
        "trained_images": qat["trained_images"] if qat else _trained(theta),
        "network": _network(theta),
        "recipe": _recipe(theta),
        "targets": list(setting.targets),
        "qat": qat,
        "baselines": {name: _other(path, theta, listener) for name, path in named},
    }


def _twin(
    path: Path, theta: Checkpoint, setting: ReceiverInputs, listener: Listener
) -> dict[str, Any]:
    with opened(path, listener) as qat:
        require(qat, Kind.CHECKPOINT)
        require_same_start(theta, qat, listener)
        _require_same_classes(theta, qat)
        _require_same_data(theta, qat)
        made = Grid.from_json(qat.card.quant) if qat.card.quant else None
        if made != setting.grid:
            raise MismatchError(
                f"{path}: was made for {made or 'no grid'}, the cells are on {setting.grid}",
                hint="The receiver's own QAT must be of the grid that is measured.",
            )
        return {"path": str(path), "digest": _identity(qat), "trained_images": _trained(qat)}


def _other(path: Path, theta: Checkpoint, listener: Listener) -> dict[str, Any]:
    with opened(path, listener) as other:
        require_model(other)
        _require_same_classes(theta, other)
        ours, theirs = stated_model(theta), stated_model(other)
        if ours and theirs and (differences := same_backbone(ours, theirs)):
            raise MismatchError(
                f"{path} and {theta.path} differ in architecture: {', '.join(differences)}"
            )
        return {"path": str(path), "digest": _identity(other)}


def _require_same_classes(theta: Checkpoint, other: Checkpoint) -> None:
    ours, theirs = (c.classes for c in (theta, other))
    if ours != theirs:
        raise MismatchError(f"{other.path} and {theta.path} do not name the same classes")


def _require_same_data(theta: Checkpoint, qat: Checkpoint) -> None:
    ours, theirs = (c.card.data_digest for c in (theta, qat))
    if ours and theirs and ours != theirs:
        raise MismatchError(
            f"{qat.path} was trained on other images than {theta.path}",
            hint="qat is the receiver's own twin; another model goes among baselines.",
        )


def _network(checkpoint: Checkpoint) -> dict[str, Any]:
    """What must be the same for two runs to be of one question: the network without its head."""
    model = model_of(checkpoint)
    return {"architecture": model.architecture, "model_args": model.model_args}


def _recipe(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """How a receiver was trained, but for the seed."""
    recipe = checkpoint.card.recipe
    return {key: value for key, value in recipe.items() if key != "seed"} if recipe else None


def _identity(checkpoint: Checkpoint) -> str:
    """The digest of a file; what its card tells is checked when its numbers are read."""
    return checkpoint.stated or checkpoint.settle()


def _trained(checkpoint: Checkpoint) -> int | None:
    """Images that the training of a file has seen: passes times images."""
    card = checkpoint.card
    try:
        return int(card.recipe["epochs"]) * int(card.data["images"]["train"])  # type: ignore[index]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _run(
    drawer: GridFile,
    wishes: CellOptions,
    settings: Mapping[str, ReceiverInputs],
    receivers: dict[str, Any],
    rhos: Mapping[str, Checkpoint],
) -> dict[str, Any]:
    """The configuration of a grid: all that its numbers depend on."""
    first = next(iter(settings.values()))
    installed = {package: version(package) for package in ("torch", "timm")}
    donors = {
        name: {
            "rho": str(rho.path),
            "digest": _identity(rho),
            "trained_images": _trained(rho),
        }
        for name, rho in rhos.items()
    }
    return {
        "kind": "run",
        "schema": 1,
        "command": "transfer",
        "version": version("qvec"),
        "grid": first.grid.to_json(),
        "method": wishes.method,
        "lambdas": list(wishes.lambdas),
        "fixed": list(wishes.fixed),
        "oracle": wishes.oracle,
        "nulls": {kind: list(wishes.null_donors or drawer.donors) for kind in wishes.nulls},
        "seed": wishes.seed,
        "batch_size": wishes.loading.batch_size,
        "device": wishes.device,
        "receivers": receivers,
        "donors": donors,
        "environment": {"python": platform.python_version(), **installed},
    }


def check_drift(
    drawer: GridFile, names: tuple[str, ...], rhos: Mapping[str, Checkpoint], listener: Listener
) -> dict[str, Any]:
    """Refuses files that a donor's task vector cannot be made of, from their headers.

    Args:
        drawer: where the files are named.
        names: of the donors.
        rhos: their vectors, open.
        listener: hears what the cards do not tell.

    Returns:
        Paths and digests of the base and of each donor's plain twin, as a run's line has them.

    Raises:
        SpecError: a file that the grid file does not name.
        MismatchError: another base, architecture or twin.
    """
    bare = [name for name in names if drawer.donors[name].model is None]
    if drawer.base is None or bare:
        lacking = "base" if drawer.base is None else f"model of donor {bare[0]}"
        raise SpecError(
            f"--nulls taskvec needs the {lacking} in the grid file",
            hint="A task vector is the donor's plain twin minus the base.",
        )
    with ExitStack() as stack:
        base = stack.enter_context(opened(drawer.base, listener))
        require(base, Kind.CHECKPOINT)
        twins = {}
        for name in names:
            twin = stack.enter_context(opened(drawer.donors[name].model or Path(), listener))
            _require_twin(twin, rhos[name], listener)
            for model in (twin, base):
                _require_cover(model, rhos[name])
            twins[name] = _facts(twin)
        return {"base": _facts(base), "models": twins}


def _require_twin(twin: Checkpoint, rho: Checkpoint, listener: Listener) -> None:
    require(twin, Kind.CHECKPOINT)
    require_same_start(twin, rho, listener)
    lineage = rho.card.provenance.get("parents", [])
    known = [p.get("digest") for p in lineage if isinstance(p, dict) and p.get("as") == "donor"]
    if known and twin.stated and twin.stated not in known:
        raise MismatchError(
            f"{twin.path} is not the donor that {rho.path} was taken from",
            hint="qvec inspect --lineage tells which file that was.",
        )


def _require_cover(model: Checkpoint, rho: Checkpoint) -> None:
    """A model must hold every tensor of a vector; its head and buffers are not asked for."""
    body = {name: entry for name, entry in model.items() if name in rho}
    cover(body, rho, (str(model.path), str(rho.path)), ())


def _facts(checkpoint: Checkpoint) -> dict[str, str]:
    return {"path": str(checkpoint.path), "digest": checkpoint.stated or checkpoint.settle()}
