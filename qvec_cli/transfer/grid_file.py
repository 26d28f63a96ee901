"""Who meets whom in a transfer grid: read from its YAML file, and checked from headers."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.checkpoint.card import Kind
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import MismatchError, SpecError, did_you_mean
from qvec_cli.inputs.files import InputFiles, require, require_model
from qvec_cli.inputs.identify import network_of
from qvec_cli.inputs.images import ProxyOptions, is_own
from qvec_cli.inputs.lineage import (
    digests,
    require_same_architecture,
    require_same_start,
    same_data,
)
from qvec_cli.inputs.receiver import Receiver, ReceiverOptions, resolve
from qvec_cli.inputs.yaml_text import entries, inside, is_mapping, line, scalar
from qvec_cli.model.build import NetworkOptions
from qvec_cli.model.configuration import Model
from qvec_cli.outputs.metrics import version
from qvec_cli.selection.choose import NEGATIVE
from qvec_cli.specs import Grid, GridOptions, Listener, Loading, Method, Null
from qvec_cli.vector.pairing import cover

if TYPE_CHECKING:
    import yaml

PARTS: Final = ("receivers", "donors", "base")
"""Keys of a grid file that say who takes part; all others are flags of the command."""

BUILT_IN: Final = ("fp", "ptq", "qat")
"""Rows that every receiver has, or may have, without naming them."""


@dataclass(frozen=True, slots=True)
class GridReceiver:
    """A fine-tuned model that is to be quantized."""

    model: Path
    data: str  # as --data names it
    qat: Path | None = None  # its own QAT twin, to compare with
    baselines: Mapping[str, Path] = field(default_factory=dict)  # further files, measured as is


@dataclass(frozen=True, slots=True)
class GridDonor:
    """A vector, and the plain twin that it was taken from."""

    rho: Path
    model: Path | None = None  # for the null vector "taskvec"


@dataclass(frozen=True, slots=True)
class GridFile:
    """Who takes part in a grid, by name; one name on both sides is one task."""

    receivers: Mapping[str, GridReceiver]
    donors: Mapping[str, GridDonor]
    base: Path | None = None  # what all were fine-tuned from

    @property
    def files(self) -> tuple[Path, ...]:
        """Every checkpoint that is named."""
        parts = [self.base]
        for receiver in self.receivers.values():
            parts += [receiver.model, receiver.qat, *receiver.baselines.values()]
        for donor in self.donors.values():
            parts += [donor.rho, donor.model]
        return tuple(path for path in parts if path is not None)


def read_grid_file(path: Path) -> GridFile:
    """The parts of a grid file.

    ::

        receivers:
          digits: {model: digits.st, data: images/digits, qat: digits_qat.st}
        donors:
          greek: rho_greek.st
          latin: {rho: rho_latin.st, model: latin.st}

    Raises SpecError: with file and line: a part or a key that is missing, unknown or there twice.
    """
    parts: dict[str, yaml.Node] = {}
    for key, node in entries(path):
        if key.value in PARTS:
            if key.value in parts:
                raise SpecError(f"{line(path, key)}: {key.value!r} stands in it twice")
            parts[key.value] = node
    if missing := [part for part in ("receivers", "donors") if part not in parts]:
        raise SpecError(f"{path}: has no {missing[0]}", hint="A grid file names both sides.")
    base = parts.get("base")
    return GridFile(
        {name: _receiver(path, name, node) for name, node in _named(path, parts, "receivers")},
        {name: _donor(path, name, node) for name, node in _named(path, parts, "donors")},
        Path(_text(path, base)) if base is not None else None,
    )


def _named(path: Path, parts: Mapping[str, yaml.Node], part: str) -> list[tuple[str, yaml.Node]]:
    members = list(inside(path, part, parts[part]).items())
    if not members:
        raise SpecError(f"{line(path, parts[part])}: {part} is empty")
    if "" in dict(members):
        raise SpecError(f"{line(path, parts[part])}: a name in {part} is empty")
    return members


def _receiver(path: Path, name: str, node: yaml.Node) -> GridReceiver:
    keys = _keys(path, name, node, ("model", "data"), ("qat", "baselines"))
    others = keys.pop("baselines", None)
    texts = {key: _text(path, value) for key, value in keys.items()}
    named = inside(path, "baselines", others) if others is not None else {}
    for key in named:
        if not key or key in BUILT_IN or key.startswith("rtn "):
            raise SpecError(
                f"{line(path, named[key])}: a baseline of {name} cannot be called {key!r}",
                hint=f"{', '.join(BUILT_IN)} and 'rtn ...' are rows of their own; its QAT is qat.",
            )
    return GridReceiver(
        Path(texts["model"]),
        texts["data"],
        Path(texts["qat"]) if "qat" in texts else None,
        {key: Path(_text(path, value)) for key, value in named.items()},
    )


def _donor(path: Path, name: str, node: yaml.Node) -> GridDonor:
    if not is_mapping(node):
        return GridDonor(Path(_text(path, node)))
    keys = _keys(path, name, node, ("rho",), ("model",))
    texts = {key: _text(path, value) for key, value in keys.items()}
    return GridDonor(Path(texts["rho"]), Path(texts["model"]) if "model" in texts else None)


def _keys(
    path: Path, name: str, node: yaml.Node, needed: tuple[str, ...], more: tuple[str, ...]
) -> dict[str, yaml.Node]:
    keys = inside(path, name, node)
    known = (*needed, *more)
    for key, value in keys.items():
        if key not in known:
            hint = did_you_mean(key, known) or f"Known are {', '.join(known)}."
            raise SpecError(f"{line(path, value)}: {key!r} is no key of {name}", hint=hint)
    if missing := [key for key in needed if key not in keys]:
        raise SpecError(f"{line(path, node)}: {name} has no {missing[0]}")
    return keys


def _text(path: Path, node: yaml.Node) -> str:
    return str(scalar(line(path, node), node).value)


# --- who meets whom, checked from headers before anything is measured -----------------------------


@dataclass(frozen=True, slots=True)
class CellOptions:
    """What holds for every cell of a grid."""

    grid: GridOptions
    lambdas: tuple[float, ...]
    fixed: tuple[float, ...] = (1.0,)  # which are reported unchosen
    loading: Loading = field(default_factory=Loading)
    method: Method = Method.RTN
    oracle: bool = True  # whether test is measured at every lambda
    nulls: tuple[Null, ...] = ()
    null_donors: tuple[str, ...] = ()  # whose norms they take; none named: all donors'
    seed: int = 0  # of the null vectors
    device: str = "auto"
    proxy: ProxyOptions | None = None  # images for the choice without labels
    network: NetworkOptions = NetworkOptions()  # for receivers without a card

    def __post_init__(self) -> None:
        if self.proxy and not any(lam > 0 for lam in (*self.lambdas, *self.fixed)):
            raise SpecError("--lambdas has none above 0, which --proxy needs")

    @property
    def points(self) -> tuple[float, ...]:
        """The curve, ascending: with 0, the fixed lambdas, and those of a choice without labels."""
        return tuple(sorted({0.0, *(NEGATIVE if self.proxy else ()), *self.lambdas, *self.fixed}))


@dataclass(frozen=True, slots=True)
class Vector:
    """What is added to a receiver: a donor's vector, or a null one of its length."""

    donor: str
    rho: Path
    diagonal: bool  # whether it is the receiver's own
    null: Null | None = None
    drift: tuple[Path, Path] | None = None  # the donor and the base, for a task vector
    seed: int = 0


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

    Raises MismatchError: members of other bases, architectures, grids, classes; SpecError: a method
    that needs images, a null vector without its files.
    """
    if unknown := [name for name in options.null_donors if name not in members.donors]:
        raise SpecError(f"--null-donors {unknown[0]} is no donor of the grid")
    options = replace(options, null_donors=options.null_donors or tuple(members.donors))
    rhos = {name: files.open(donor.rho) for name, donor in members.donors.items()}
    for rho in rhos.values():
        require(rho, Kind.VECTOR)
    drift = {}
    if Null.TASKVEC in options.nulls:
        drift = _check_drift(members, options.null_donors, rhos, files, listener)
    receivers, vectors, facts = {}, {}, {}
    for name, member in members.receivers.items():
        theta = files.open(member.model)
        network = options.network if theta.bare else NetworkOptions()
        model = network_of(theta, network, listener)
        proxy = _proxies(name, theta, model, options.proxy) if options.proxy else None
        resolving = ReceiverOptions(
            options.grid, options.method, options.loading, member.data, proxy=proxy
        )
        receiver = resolve(theta, [*rhos.values()], resolving, listener)
        receivers[name] = receiver
        diagonal = {donor: _is_own(name, donor, theta, rho) for donor, rho in rhos.items()}
        vectors[name] = tuple(_vectors(members, options, diagonal))
        facts[name] = _receiver_facts(member, receiver, files, listener)
        files.release(member.model)
    grid = next(iter(receivers.values())).grid
    assert grid is not None
    run = _run(options, grid, facts, rhos) | drift
    return ResolvedGrid(members, options, receivers, vectors, grid, run)


def _proxies(name: str, theta: Checkpoint, model: Model, proxy: ProxyOptions) -> ProxyOptions:
    """The data sets that are not the receiver's; one pool for all its donors."""
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
        for name in options.null_donors:
            donor, drift = members.donors[name], None
            if kind is Null.TASKVEC and donor.model and members.base:
                drift = donor.model, members.base
            yield Vector(name, donor.rho, diagonal[name], kind, drift, options.seed)


def _receiver_facts(
    member: GridReceiver, receiver: Receiver, files: InputFiles, listener: Listener
) -> dict[str, Any]:
    """What a receiver's numbers depend on."""
    theta, task, recipe = receiver.theta, receiver.examples.task, receiver.theta.card.recipe
    qat = _own_qat(files.open(member.qat), receiver, listener) if member.qat else None
    proxies = {"proxies": receiver.proxies.facts()} if receiver.proxies else {}
    baselines = {name: _baseline(files.open(p), theta) for name, p in member.baselines.items()}
    return {
        **proxies,
        "model": str(member.model),
        "digest": _identity(theta),
        "data": member.data,
        "data_digest": task.digest,
        "images": {split: len(task.splits[split]) for split in ("val", "test")},
        "trained_images": qat["trained_images"] if qat else _trained(theta),
        # without the head, which differs between the receivers of one question
        "network": {
            "architecture": receiver.model.architecture,
            "model_args": receiver.model.model_args,
        },
        "recipe": {k: v for k, v in recipe.items() if k != "seed"} if recipe else None,
        "targets": list(receiver.targets),
        "qat": qat,
        "baselines": baselines,
    }


def _own_qat(qat: Checkpoint, receiver: Receiver, listener: Listener) -> dict[str, Any]:
    """The receiver's own QAT checkpoint, which must be of the grid that is measured."""
    require(qat, Kind.CHECKPOINT)
    require_same_start(receiver.theta, qat, listener)
    _require_same_classes(receiver.theta, qat)
    ours, theirs = (c.card.data_digest for c in (receiver.theta, qat))
    if ours and theirs and ours != theirs:
        raise MismatchError(
            f"{qat.path} was trained on other images than {receiver.theta.path}",
            hint="qat is the receiver's own twin; another model goes among baselines.",
        )
    trained_for = Grid.from_json(qat.card.quant) if qat.card.quant else None
    if trained_for != receiver.grid:
        raise MismatchError(
            f"{qat.path}: was made for {trained_for or 'no grid'}, the cells are on "
            f"{receiver.grid}",
            hint="The receiver's own QAT must be of the grid that is measured.",
        )
    return {**_facts(qat), "trained_images": _trained(qat)}


def _baseline(other: Checkpoint, theta: Checkpoint) -> dict[str, Any]:
    """A further model of the receiver's task, measured as it is."""
    require_model(other)
    _require_same_classes(theta, other)
    require_same_architecture(other, theta)
    return _facts(other)


def _require_same_classes(theta: Checkpoint, other: Checkpoint) -> None:
    if theta.classes != other.classes:
        raise MismatchError(f"{other.path} and {theta.path} do not name the same classes")


def _facts(checkpoint: Checkpoint) -> dict[str, str]:
    return {"path": str(checkpoint.path), "digest": _identity(checkpoint)}


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
    options: CellOptions, grid: Grid, receivers: dict[str, Any], rhos: Mapping[str, Checkpoint]
) -> dict[str, Any]:
    """The configuration of a grid: all that its numbers depend on."""
    installed = {package: version(package) for package in ("torch", "timm")}
    donors = {
        name: {"rho": str(rho.path), "digest": _identity(rho), "trained_images": _trained(rho)}
        for name, rho in rhos.items()
    }
    return {
        "kind": "run",
        "schema": 1,
        "command": "transfer",
        "version": version("qvec"),
        "grid": grid.to_json(),
        "method": options.method,
        "lambdas": list(options.points),
        "fixed": list(options.fixed),
        "oracle": options.oracle,
        "nulls": {kind: list(options.null_donors) for kind in options.nulls},
        "seed": options.seed,
        "batch_size": options.loading.batch_size,
        "device": options.device,
        "receivers": receivers,
        "donors": donors,
        "environment": {"python": platform.python_version(), **installed},
    }


def _check_drift(
    members: GridFile,
    names: tuple[str, ...],
    rhos: Mapping[str, Checkpoint],
    files: InputFiles,
    listener: Listener,
) -> dict[str, Any]:
    """Refuses files that the named donors' task vectors cannot be made of, from their headers.

    Returns paths and digests of the base and of each donor's plain twin, as a run's line has them.
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
        twin, rho = files.open(members.donors[name].model or Path()), rhos[name]
        _require_twin(twin, rho, listener)
        for model in (twin, base):  # every tensor of the vector; heads and buffers do not count
            body = {name: entry for name, entry in model.items() if name in rho}
            cover(body, rho, (str(model.path), str(rho.path)), ())
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
