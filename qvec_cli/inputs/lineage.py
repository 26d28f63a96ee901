"""What cards tell of one another: shared base, grid and order of files, and the data they used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from qvec_cli.checkpoint.card import Card, canonical
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.data.samples import composed
from qvec_cli.errors import CheckpointError, MismatchError, QvecError
from qvec_cli.inputs.files import stated_model
from qvec_cli.model.configuration import same_backbone
from qvec_cli.specs import DataUse, Grid, Listener, Use, spent
from qvec_cli.tame import command

CROSS: Final = "Pass --cross-grid to cross them all the same."
"""The way past a refusal of two grids."""


def note_twice(theta: Checkpoint, rho: Checkpoint, listener: Listener) -> None:
    """Says that a receiver has been patched with this vector, or one it was made of, before."""
    ours = {rho.stated, *_members(rho.card.provenance)}
    if ours.intersection(_patches(theta.card.provenance)):
        listener.note(f"{theta.path} was patched with {rho.path} before: the lambdas add up")


def note_fit(theta: Checkpoint, rho: Checkpoint, listener: Listener) -> None:
    """Says that the coefficients of a combination were fitted to another receiver."""
    fit = rho.card.provenance.get("fit")
    receiver = fit.get("receiver") if isinstance(fit, dict) else None
    if isinstance(receiver, dict) and theta.stated and receiver.get("digest") != theta.stated:
        listener.note(f"{rho.path} was fitted to {receiver.get('name')}, not to {theta.path}")


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
    """Refuses a receiver that was made for one grid and a vector that was made for another."""
    ours, theirs = (c.card.quant for c in (theta, rho))
    if ours and theirs and ours != theirs and not cross:
        raise MismatchError(
            f"{theta.path} was made for {Grid.from_json(ours)}, {rho.path} for "
            f"{Grid.from_json(theirs)}",
            hint=CROSS,
        )


def require_same_start(first: Checkpoint, second: Checkpoint, listener: Listener) -> None:
    """Refuses models of another architecture, basis or pretrained base: MismatchError."""
    require_same_rotation(first, second)
    require_same_architecture(first, second)
    both = first, second
    if bare := [c for c in both if c.bare]:
        listener.note(f"{bare[0].path} has no card: its base cannot be checked")
    elif silent := [c for c in both if c.card.base is None]:
        listener.note(f"{silent[0].path} does not say its base: it cannot be checked")
    elif first.card.base != second.card.base:
        raise MismatchError(
            f"{first.path} and {second.path} come from different bases "
            f"({_short(first.card.base)} and {_short(second.card.base)})",
            hint="A vector belongs to models that were fine-tuned from the same start.",
        )


def require_same_architecture(first: Checkpoint, second: Checkpoint) -> None:
    """Refuses models whose backbones differ, where both say theirs: MismatchError."""
    ours, theirs = stated_model(first), stated_model(second)
    if differences := same_backbone(ours, theirs) if ours and theirs else []:
        names = f"{first.path} and {second.path}"
        raise MismatchError(f"{names} differ in architecture: {', '.join(differences)}")


def require_same_rotation(first: Checkpoint, second: Checkpoint) -> None:
    """Refuses tensors in bases that are rotated differently: MismatchError names the order."""
    ours, theirs = first.card.rotation, second.card.rotation
    if ours == theirs:
        return
    turned, other = (first, second) if ours else (second, first)
    how = "otherwise" if ours and theirs else "not"
    raise MismatchError(
        f"{turned.path} is rotated, {other.path} is {how}: their tensors do not belong together",
        hint="Patch first, then rotate; quantize --rotate takes vectors and moments as they are.",
    )


def require_twins(donor: Checkpoint, donor_qat: Checkpoint, listener: Listener) -> None:
    """Refuses twins in the wrong order (MismatchError): the sign of rho would be wrong.

    Notes where their runs differ.
    """
    if donor.is_file_of(donor_qat):
        raise MismatchError(f"{donor.path} and {donor_qat.path} are one file: rho would be zero")
    roles = donor.card.role, donor_qat.card.role
    if donor.bare or donor_qat.bare or "" in roles:
        silent = donor if donor.bare or not roles[0] else donor_qat
        words = "does not say how it was trained: nothing tells the donor from its QAT twin"
        listener.note(f"{silent.path} {words}, mind their order")
    if roles == ("qat", "fp"):
        raise MismatchError(
            f"{donor.path} is the QAT checkpoint and {donor_qat.path} the plain "
            "one: the arguments look swapped",
            hint=f"{command(('qvec', 'extract', donor_qat.path, donor.path))} ...",
        )
    for checkpoint, expected in ((donor, "fp"), (donor_qat, "qat")):
        if checkpoint.card.role not in ("", expected):
            raise MismatchError(
                f"{checkpoint.path}: its role is {checkpoint.card.role!r}, "
                f"{expected!r} belongs here",
                hint="rho = QAT checkpoint - plain checkpoint of one task.",
            )
    if not (donor.card.recipe and donor_qat.card.recipe):
        return
    ours, theirs = _run(donor.card), _run(donor_qat.card)
    if differences := [
        f"{key} {ours.get(key)} vs {theirs.get(key)}"
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key)
    ]:
        listener.note(
            f"the twins were trained differently ({', '.join(differences)}): "
            "rho holds that difference too"
        )


def require_one_data(donor: Checkpoint, donor_qat: Checkpoint) -> None:
    """Refuses twins whose cards name different data sets (MismatchError)."""
    known = all(digests(checkpoint.card) for checkpoint in (donor, donor_qat))
    if known and not same_data(donor.card, donor_qat.card):
        names = [str((c.card.data or {}).get("name", "?")) for c in (donor, donor_qat)]
        raise MismatchError(
            f"{donor.path} was trained on {names[0]}, {donor_qat.path} on {names[1]}: rho would "
            "hold the difference of the tasks",
            hint="Twins are of one data set; --cross-data takes them all the same.",
        )


def _run(card: Card) -> dict[str, Any]:
    data = card.data or {}
    facts = {"data": data.get("name"), "data digest": _short(data.get("digest"))}
    return {**(card.recipe or {}), **facts}


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "unknown"


def inherited_use(checkpoint: Checkpoint) -> Use:
    """What of the receiver's data a file has used before, by its card."""
    lineage = checkpoint.card.provenance
    try:
        return Use(lineage.get("data_use", DataUse.NONE), dict(lineage.get("counts", {})))
    except (ValueError, TypeError, QvecError) as fault:
        raise CheckpointError(f"{checkpoint.path}: its qvec card is damaged ({fault})") from None


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


def same_data(first: Card, second: Card) -> bool:
    """Whether two files were trained on the very same images and labels, a mixture on some."""
    return not digests(first).isdisjoint(digests(second))


def digest_of(classes: Iterable[str]) -> str:
    """What stands for the names of classes, which may be many, however Unicode composes them."""
    return hashlib.sha256(canonical([*map(composed, classes)]).encode()).hexdigest()


def has_seen(theta: Checkpoint, digest: str, classes: str) -> bool:
    """Whether a model was trained on a data set, as far as its card tells.

    A copy or a part of the images has another ``digest``, but the same names of ``classes`` (see
    ``digest_of``). A file that does not say what it was trained on may have seen anything.
    """
    data = theta.card.data or {}
    if not data:
        return True
    names = theta.classes
    return data.get("digest") == digest or (names is not None and digest_of(names) == classes)


def digests(card: Card) -> frozenset[str]:
    """What tells the data sets that a file was trained on."""
    return frozenset(str(d["digest"]) for d in _trained_on(card) if d.get("digest") is not None)


def joined_data(cards: Iterable[Card]) -> dict[str, Any] | None:
    """The data of a file that is made of several: one data set as it is, more as ``joined``."""
    datasets: dict[str, dict[str, Any]] = {}
    for data in (data for card in cards for data in _trained_on(card)):
        datasets.setdefault(str(data.get("digest") or canonical(data)), data)
    if len(datasets) <= 1:
        return next(iter(datasets.values()), None)
    names = " + ".join(str(data.get("name", "?")) for data in datasets.values())
    return {"name": names, "joined": [_identity(data) for data in datasets.values()]}


def _identity(data: Mapping[str, Any]) -> dict[str, Any]:
    """A data set without the names of its classes, of which there may be thousands."""
    return {key: data[key] for key in ("name", "digest", "images") if key in data}


def _trained_on(card: Card) -> list[dict[str, Any]]:
    """The data sets on a card, one or those that were joined."""
    data = card.data or {}
    listed = data.get("joined", [data] if data else [])
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
