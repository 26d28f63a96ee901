"""Who meets whom in a transfer grid, checked from headers before anything is measured."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qvec_cli.checkpoint.card import Kind
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import MismatchError, SpecError
from qvec_cli.inputs.files import InputFiles, model_of, require, require_model
from qvec_cli.inputs.images import ProxyOptions, is_own
from qvec_cli.inputs.lineage import (
    digests,
    require_same_architecture,
    require_same_start,
    same_data,
)
from qvec_cli.inputs.receiver import Receiver, ReceiverOptions, resolve
from qvec_cli.outputs.metrics import version
from qvec_cli.specs import Grid, Listener, Null
from qvec_cli.transfer.cells import CellOptions, Vector
from qvec_cli.transfer.grid_file import GridDonor, GridFile, GridReceiver
from qvec_cli.vector.pairing import cover


@dataclass(frozen=True, slots=True)
class ResolvedGrid:
    """A grid file whose members were checked to belong together."""

    members: GridFile
    options: CellOptions
    receivers: Mapping[str, Receiver]
    vectors: Mapping[str, tuple[Vector, ...]]  # of each receiver, in order
    grid: Grid  # of every cell
    run: dict[str, Any]  # the configuration, as the first line of the output has it

    def lines(self, receivers: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """The lines that the output must have in the end, without their numbers."""
        for name in receivers:
            yield {"kind": "receiver", "receiver": name}
            yield from (cell(name, vector) for vector in self.vectors[name])


def cell(receiver: str, vector: Vector) -> dict[str, Any]:
    """The words of a cell's line."""
    facts = {"kind": "cell", "receiver": receiver, "donor": vector.donor, "null": vector.null}
    return {**facts, "diagonal": vector.diagonal}


def resolve_grid(
    members: GridFile, options: CellOptions, files: InputFiles, listener: Listener
) -> ResolvedGrid:
    """Opens every checkpoint of a grid file and every data set, and decodes nothing.

    Raises:
        MismatchError: members of other bases, architectures, grids, classes.
        SpecError: a method that needs images, a null vector without its files.
    """
    if unknown := [name for name in options.null_donors if name not in members.donors]:
        raise SpecError(f"--null-donors {unknown[0]} is no donor of the grid")
    nulls = options.null_donors or tuple(members.donors)
    rhos = {name: files.open(donor.rho) for name, donor in members.donors.items()}
    for rho in rhos.values():
        require(rho, Kind.VECTOR)
    taken = Null.TASKVEC in options.nulls
    drift = check_drift(members, nulls, rhos, files, listener) if taken else {}
    receivers, vectors, facts = {}, {}, {}
    for name, member in members.receivers.items():
        theta = files.open(member.model)
        receiver = _receiver(name, member, theta, rhos, options, listener)
        receivers[name] = receiver
        diagonal = {donor: _is_own(name, donor, theta, rho) for donor, rho in rhos.items()}
        vectors[name] = tuple(_vectors(members, options, diagonal))
        facts[name] = _receiver_facts(member, receiver, files, listener)
        files.release(member.model)
    grid = next(iter(receivers.values())).grid
    assert grid is not None
    run = _run(members, options, grid, facts, rhos) | drift
    return ResolvedGrid(members, options, receivers, vectors, grid, run)


def _receiver(
    name: str,
    member: GridReceiver,
    theta: Checkpoint,
    rhos: Mapping[str, Checkpoint],
    options: CellOptions,
    listener: Listener,
) -> Receiver:
    proxy = _proxies(name, theta, options.proxy) if options.proxy else None
    resolving = ReceiverOptions(options.grid, options.method, options.loading, member.data)
    return resolve(theta, [*rhos.values()], replace(resolving, proxy=proxy), listener)


def _proxies(name: str, theta: Checkpoint, proxy: ProxyOptions) -> ProxyOptions:
    """The data sets that are not the receiver's; one pool for all its donors."""
    model = model_of(theta)
    others = [spec for spec in proxy.specs if not is_own(theta, model, spec, proxy.loading)]
    if not others:
        raise SpecError(
            f"--proxy: {name} has no images there but its own",
            hint="Name a second data set; it serves the receivers of the first.",
        )
    return replace(proxy, specs=tuple(others))


def _is_own(receiver: str, donor: str, theta: Checkpoint, rho: Checkpoint) -> bool:
    """Whether a vector is the receiver's own: of the same data where cards tell, else by name."""
    known = all(digests(c.card) for c in (theta, rho))
    return same_data(theta.card, rho.card) if known else receiver == donor


def _vectors(
    members: GridFile, options: CellOptions, diagonal: Mapping[str, bool]
) -> Iterator[Vector]:
    for name, donor in members.donors.items():
        yield Vector(name, donor.rho, diagonal[name])
    for kind in options.nulls:
        for name in options.null_donors or members.donors:
            donor = members.donors[name]
            drift = _drift(donor, members) if kind is Null.TASKVEC else None
            yield Vector(name, donor.rho, diagonal[name], kind, drift, options.seed)


def _drift(donor: GridDonor, members: GridFile) -> tuple[Path, Path] | None:
    return (donor.model, members.base) if donor.model and members.base else None


def _receiver_facts(
    member: GridReceiver, receiver: Receiver, files: InputFiles, listener: Listener
) -> dict[str, Any]:
    """What a receiver's numbers depend on."""
    theta, task = receiver.theta, receiver.examples.task
    qat = _twin(files.open(member.qat), receiver, listener) if member.qat else None
    proxies = {"proxies": receiver.proxies.facts()} if receiver.proxies else {}
    named = {name: _baseline(files.open(p), theta) for name, p in member.baselines.items()}
    return {
        **proxies,
        "model": str(member.model),
        "digest": _identity(theta),
        "data": member.data,
        "data_digest": task.digest,
        "images": {split: len(task.splits[split]) for split in ("val", "test")},
        "trained_images": qat["trained_images"] if qat else _trained(theta),
        "network": _network(theta),
        "recipe": _recipe(theta),
        "targets": list(receiver.targets),
        "qat": qat,
        "baselines": named,
    }


def _twin(qat: Checkpoint, receiver: Receiver, listener: Listener) -> dict[str, Any]:
    """The receiver's own QAT checkpoint, which must be of the grid that is measured."""
    require(qat, Kind.CHECKPOINT)
    require_same_start(receiver.theta, qat, listener)
    _require_same_classes(receiver.theta, qat)
    _require_same_data(receiver.theta, qat)
    trained_for = Grid.from_json(qat.card.quant) if qat.card.quant else None
    if trained_for != receiver.grid:
        raise MismatchError(
            f"{qat.path}: was made for {trained_for or 'no grid'}, the cells are on "
            f"{receiver.grid}",
            hint="The receiver's own QAT must be of the grid that is measured.",
        )
    return {"path": str(qat.path), "digest": _identity(qat), "trained_images": _trained(qat)}


def _baseline(other: Checkpoint, theta: Checkpoint) -> dict[str, Any]:
    """A further model of the receiver's task, measured as it is."""
    require_model(other)
    _require_same_classes(theta, other)
    require_same_architecture(other, theta)
    return {"path": str(other.path), "digest": _identity(other)}


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
    members: GridFile,
    options: CellOptions,
    grid: Grid,
    receivers: dict[str, Any],
    rhos: Mapping[str, Checkpoint],
) -> dict[str, Any]:
    """The configuration of a grid: all that its numbers depend on."""
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
        "grid": grid.to_json(),
        "method": options.method,
        "lambdas": list(options.lambdas),
        "fixed": list(options.fixed),
        "oracle": options.oracle,
        "nulls": {kind: list(options.null_donors or members.donors) for kind in options.nulls},
        "seed": options.seed,
        "batch_size": options.loading.batch_size,
        "device": options.device,
        "receivers": receivers,
        "donors": donors,
        "environment": {"python": platform.python_version(), **installed},
    }


def check_drift(
    members: GridFile,
    names: tuple[str, ...],
    rhos: Mapping[str, Checkpoint],
    files: InputFiles,
    listener: Listener,
) -> dict[str, Any]:
    """Refuses files that a donor's task vector cannot be made of, from their headers.

    Args:
        members: where the files are named.
        names: of the donors.
        rhos: their vectors, open.
        files: the open files of the run.
        listener: hears what the cards do not tell.

    Returns:
        Paths and digests of the base and of each donor's plain twin, as a run's line has them.

    Raises:
        SpecError: a file that the grid file does not name.
        MismatchError: another base, architecture or twin.
    """
    bare = [name for name in names if members.donors[name].model is None]
    if members.base is None or bare:
        lacking = "base" if members.base is None else f"model of donor {bare[0]}"
        raise SpecError(
            f"--nulls taskvec needs the {lacking} in the grid file",
            hint="A task vector is the donor's plain twin minus the base.",
        )
    base = files.open(members.base)
    require(base, Kind.CHECKPOINT)
    twins = {}
    for name in names:
        twin = files.open(members.donors[name].model or Path())
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
