"""What the cards of files say: what a file is, and whether two may meet in one operation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from qvec_cli.checkpoint.card import Card, Kind, canonical
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import CheckpointError, MismatchError, QvecError
from qvec_cli.model.configuration import check, of_config, same_backbone
from qvec_cli.ops.foreign import refuse_foreign
from qvec_cli.ops.metrics import version
from qvec_cli.specs import DataUse, Grid, Listener, Use, spent

FAKE: Final = "fake-quantized"
"""The role of a float checkpoint whose targets lie on a grid."""

CROSS: Final = "Pass --cross-grid to cross them all the same."
"""The way past a refusal of two grids."""

_INSTEAD = {
    Kind.VECTOR: "A vector comes from qvec extract.",
    Kind.CHECKPOINT: "A float checkpoint comes from qvec finetune, train-qat or patch.",
    Kind.MOMENTS: "Moments come from qvec moments.",
}


def require(checkpoint: Checkpoint, kind: Kind) -> None:
    """Refuses a file of another kind than the operation needs, and one that another tool packed.

    Raises:
        MismatchError: names both kinds, or the layout.
    """
    if checkpoint.kind is not kind or (kind is Kind.VECTOR and checkpoint.card is None):
        raise MismatchError(
            f"{checkpoint.path}: is {_a(checkpoint.kind)}, {_a(kind)} belongs here",
            hint=_INSTEAD[kind],
        )
    card = checkpoint.card
    if kind is Kind.CHECKPOINT and card and card.role == FAKE:
        raise MismatchError(
            f"{checkpoint.path}: is quantized already, to {Grid.from_json(card.quant or {})}",
            hint="Use the float checkpoint it was made from.",
        )
    refuse_foreign(checkpoint, floats=True)


def _a(kind: Kind) -> str:
    return "a file of moments" if kind is Kind.MOMENTS else f"a {kind}"


def require_float(theta: Checkpoint) -> None:
    """Refuses what cannot be quantized, and says to which grid a file is quantized already.

    Raises:
        MismatchError: names the grid.
    """
    if theta.kind is Kind.QUANTIZED and theta.card and theta.card.quant:
        raise MismatchError(
            f"{theta.path}: is quantized already, to {Grid.from_json(theta.card.quant)}",
            hint="Use the float checkpoint it was made from.",
        )
    require(theta, Kind.CHECKPOINT)


def require_model(checkpoint: Checkpoint) -> None:
    """Refuses a file that holds no network, float or packed by qvec.

    Raises:
        CheckpointError: a vector or the state of a run.
        MismatchError: packed by another tool.
    """
    if checkpoint.kind not in (Kind.CHECKPOINT, Kind.QUANTIZED):
        raise CheckpointError(
            f"{checkpoint.path}: is {_a(checkpoint.kind)}, not a model",
            hint="qvec inspect FILE tells what a file is.",
        )
    refuse_foreign(checkpoint)


def stated_model(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The configuration of timm from the card, or from the folder of a bare checkpoint.

    Raises:
        MismatchError: one that cannot be.
    """
    if not (checkpoint.card and checkpoint.card.model):
        return of_config(checkpoint.config) if checkpoint.config else None
    try:
        return dict(check(checkpoint.card.model))
    except MismatchError as error:
        raise MismatchError(f"{checkpoint.path}: {error}") from None


def card_of(checkpoint: Checkpoint, kind: Kind) -> Card:
    """The card to write for what is made from a file; a bare one brings what its folder says."""
    card = checkpoint.card or Card(kind, model=stated_model(checkpoint))
    return replace(card, kind=kind, aliases=checkpoint.aliases, moments=None)


def model_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The configuration of timm from the card.

    Raises:
        CheckpointError: a file that does not say its architecture.
    """
    if model := stated_model(checkpoint):
        return model
    raise CheckpointError(
        f"{checkpoint.path}: does not say its architecture",
        hint="A checkpoint of qvec does; eval and quantize take --model NAME, timm's name of it.",
    )


def inherited_use(checkpoint: Checkpoint) -> Use:
    """What of the receiver's data a file has used before, by its card.

    Raises:
        CheckpointError: a card that says what cannot be.
    """
    lineage = checkpoint.card.provenance if checkpoint.card else {}
    try:
        return Use(lineage.get("data_use", DataUse.NONE), dict(lineage.get("counts", {})))
    except (ValueError, TypeError, QvecError) as fault:
        raise CheckpointError(f"{checkpoint.path}: its qvec card is damaged ({fault})") from None


def note_twice(theta: Checkpoint, rho: Checkpoint, listener: Listener) -> None:
    """Says that a receiver has been patched with this vector, or one it was made of, before."""
    lineage = theta.card.provenance if theta.card else {}
    ours = {rho.stated, *_members(rho.card.provenance if rho.card else {})}
    if ours.intersection(_patches(lineage)):
        listener.note(f"{theta.path} was patched with {rho.path} before: the lambdas add up")


def note_fit(theta: Checkpoint, rho: Checkpoint, listener: Listener) -> None:
    """Says that the coefficients of a combination were fitted to another receiver."""
    lineage = rho.card.provenance if rho.card else {}
    told = lineage.get("fit")
    meant = told.get("receiver") if isinstance(told, dict) else None
    if isinstance(meant, dict) and theta.stated and meant.get("digest") != theta.stated:
        listener.note(f"{rho.path} was fitted to {meant.get('name')}, not to {theta.path}")


def _patches(lineage: Mapping[str, Any]) -> Iterator[str]:
    """Digests of the vectors that a model was patched with, from its last one back."""
    for parent in _parents(lineage):
        own = parent["provenance"] if isinstance(parent.get("provenance"), dict) else {}
        if parent.get("as") == "rho":
            yield str(parent.get("digest"))
            yield from _members(own)
        else:
            yield from _patches(own)


def _members(lineage: Mapping[str, Any]) -> Iterator[str]:
    """Digests of the vectors that a combined one was made of, down to those of extract."""
    for parent in _parents(lineage) if lineage.get("op") == "combine" else ():
        yield str(parent.get("digest"))
        if isinstance(parent.get("provenance"), dict):
            yield from _members(parent["provenance"])


def _parents(lineage: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    listed = lineage.get("parents")
    yield from filter(lambda one: isinstance(one, dict), listed if isinstance(listed, list) else ())


def require_same_grid(theta: Checkpoint, rho: Checkpoint, *, cross: bool) -> None:
    """Refuses a receiver that was made for one grid and a vector that was made for another.

    Raises:
        MismatchError: names both.
    """
    ours, theirs = ((c.card.quant if c.card else None) for c in (theta, rho))
    if ours and theirs and ours != theirs and not cross:
        raise MismatchError(
            f"{theta.path} was made for {Grid.from_json(ours)}, {rho.path} for "
            f"{Grid.from_json(theirs)}",
            hint=CROSS,
        )


def patched_use(theta: Checkpoint, rho: Checkpoint) -> Use:
    """What a receiver has cost with a vector.

    That is its own QAT if the vector, or one that it was combined from, is of the same data.
    """
    cost = spent(inherited_use(theta), inherited_use(rho))
    ours = digests(theta.card)
    for data in _trained_on(rho.card):
        if data.get("digest") in ours:
            images = data.get("images", {})
            own = {split: images[split] for split in ("train", "val") if split in images}
            cost = spent(cost, Use(DataUse.RECEIVER_LABELS, own))
    return cost


def same_data(first: Card | None, second: Card | None) -> bool:
    """Whether two files were trained on the very same images and labels, a mixture on some."""
    return not digests(first).isdisjoint(digests(second))


def digest_of(classes: Iterable[str]) -> str:
    """What stands for the names of classes, which may be many."""
    return hashlib.sha256(canonical([*classes]).encode()).hexdigest()


def has_seen(theta: Checkpoint, digest: str, classes: str) -> bool:
    """Whether a model was trained on a data set, as far as its card tells.

    A copy or a part of the images has another digest, but the same classes. A file that does not
    say what it was trained on may have seen anything.

    Args:
        theta: the model.
        digest: of the data set.
        classes: of the names of its classes, see ``digest_of``.
    """
    data = (theta.card.data or {}) if theta.card else {}
    if not data:
        return True
    names = data.get("classes")
    return data.get("digest") == digest or (isinstance(names, list) and digest_of(names) == classes)


def digests(card: Card | None) -> frozenset[str]:
    """What tells the data sets that a file was trained on."""
    return frozenset(str(d["digest"]) for d in _trained_on(card) if d.get("digest") is not None)


def joined_data(cards: Iterable[Card | None]) -> dict[str, Any] | None:
    """The data of a file that is made of several: one data set as it is, more as ``joined``."""
    found: dict[str, dict[str, Any]] = {}
    for data in (data for card in cards for data in _trained_on(card)):
        found.setdefault(str(data.get("digest") or canonical(data)), data)
    if len(found) <= 1:
        return next(iter(found.values()), None)
    names = " + ".join(str(data.get("name", "?")) for data in found.values())
    return {"name": names, "joined": [_identity(data) for data in found.values()]}


def _identity(data: Mapping[str, Any]) -> dict[str, Any]:
    """A data set without the names of its classes, of which there may be thousands."""
    return {key: data[key] for key in ("name", "digest", "images") if key in data}


def _trained_on(card: Card | None) -> list[dict[str, Any]]:
    """The data sets on a card, one or those that were joined."""
    data = (card.data if card else None) or {}
    listed = data.get("joined", [data] if data else [])
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def provenance(
    op: str, parents: Mapping[str, Checkpoint], use: Use, **facts: Any
) -> dict[str, Any]:
    """The lineage that an output's card keeps, whole: each parent brings its own.

    Names come without folders, so that the same inputs give the same bytes anywhere. Digests
    are those of ``Checkpoint.settle``, which a stream knows at its end.
    """
    return {
        "op": op,
        "qvec": version("qvec"),
        **facts,
        "data_use": use.level,
        "counts": dict(use.counts),
        "parents": [
            {
                "as": label,
                "name": parent.name,
                "kind": parent.kind,
                "digest": parent.digest,
                "provenance": parent.card.provenance if parent.card else {},
            }
            for label, parent in parents.items()
        ],
    }


def require_same_start(first: Checkpoint, second: Checkpoint, listener: Listener) -> None:
    """Refuses models of another architecture or another pretrained base.

    Raises:
        MismatchError: names both.
    """
    require_same_architecture(first, second)
    names = f"{first.path} and {second.path}"
    if first.card is None or second.card is None:
        bare = first if first.card is None else second
        listener.note(f"{bare.path} has no card: its base cannot be checked")
        return
    if first.card.base is None or second.card.base is None:
        bare = first if first.card.base is None else second
        listener.note(f"{bare.path} does not say its base: it cannot be checked")
    elif first.card.base != second.card.base:
        raise MismatchError(
            f"{names} come from different bases "
            f"({_short(first.card.base)} and {_short(second.card.base)})",
            hint="A vector belongs to models that were fine-tuned from the same start.",
        )


def require_same_architecture(first: Checkpoint, second: Checkpoint) -> None:
    """Refuses models whose backbones differ, where both say theirs.

    Raises:
        MismatchError: names both.
    """
    if differences := _backbones(first, second):
        names = f"{first.path} and {second.path}"
        raise MismatchError(f"{names} differ in architecture: {', '.join(differences)}")


def require_twins(donor: Checkpoint, donor_qat: Checkpoint, listener: Listener) -> None:
    """Refuses a pair in the wrong order; warns when the twins' runs differ.

    Raises:
        MismatchError: the sign of rho would be wrong.
    """
    if donor.is_file_of(donor_qat):
        raise MismatchError(f"{donor.path} and {donor_qat.path} are one file: rho would be zero")
    if donor.card is None or donor_qat.card is None:
        listener.note("without cards, nothing tells the donor from its QAT twin: mind their order")
        return
    roles = donor.card.role, donor_qat.card.role
    if roles == ("qat", "fp"):
        raise MismatchError(
            f"{donor.path} is the QAT checkpoint and {donor_qat.path} the plain "
            "one: the arguments look swapped",
            hint=f"qvec extract {donor_qat.path} {donor.path} ...",
        )
    for checkpoint, expected in ((donor, "fp"), (donor_qat, "qat")):
        if checkpoint.card and checkpoint.card.role != expected:
            raise MismatchError(
                f"{checkpoint.path}: its role is {checkpoint.card.role!r}, "
                f"{expected!r} belongs here",
                hint="rho = QAT checkpoint - plain checkpoint of one task.",
            )
    if differences := _runs(donor.card, donor_qat.card):
        listener.note(
            f"the twins were trained differently ({', '.join(differences)}): "
            "rho holds that difference too"
        )


def _backbones(first: Checkpoint, second: Checkpoint) -> list[str]:
    ours, theirs = stated_model(first), stated_model(second)
    return same_backbone(ours, theirs) if ours and theirs else []


def _runs(first: Card, second: Card) -> list[str]:
    ours, theirs = ({**(card.recipe or {}), **_data_of(card)} for card in (first, second))
    return [
        f"{key} {ours.get(key)} vs {theirs.get(key)}"
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key)
    ]


def _data_of(card: Card) -> dict[str, Any]:
    data = card.data or {}
    return {"data": data.get("name"), "data digest": _short(data.get("digest"))}


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "unknown"
