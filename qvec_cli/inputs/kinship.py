"""Whether two files may meet in one operation: same base, architecture, grid; and in what order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from qvec_cli.checkpoint.card import Card
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import MismatchError
from qvec_cli.inputs.files import stated_model
from qvec_cli.model.configuration import same_backbone
from qvec_cli.specs import Grid, Listener

CROSS: Final = "Pass --cross-grid to cross them all the same."
"""The way past a refusal of two grids."""


def note_twice(theta: Checkpoint, rho: Checkpoint, listener: Listener) -> None:
    """Says that a receiver has been patched with this vector, or one it was made of, before."""
    lineage = theta.card.provenance
    ours = {rho.stated, *_members(rho.card.provenance)}
    if ours.intersection(_patches(lineage)):
        listener.note(f"{theta.path} was patched with {rho.path} before: the lambdas add up")


def note_fit(theta: Checkpoint, rho: Checkpoint, listener: Listener) -> None:
    """Says that the coefficients of a combination were fitted to another receiver."""
    lineage = rho.card.provenance
    fit = lineage.get("fit")
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
    """Refuses a receiver that was made for one grid and a vector that was made for another.

    Raises:
        MismatchError: names both.
    """
    ours, theirs = (c.card.quant for c in (theta, rho))
    if ours and theirs and ours != theirs and not cross:
        raise MismatchError(
            f"{theta.path} was made for {Grid.from_json(ours)}, {rho.path} for "
            f"{Grid.from_json(theirs)}",
            hint=CROSS,
        )


def require_same_start(first: Checkpoint, second: Checkpoint, listener: Listener) -> None:
    """Refuses models of another architecture or another pretrained base.

    Raises:
        MismatchError: names both.
    """
    require_same_architecture(first, second)
    names = f"{first.path} and {second.path}"
    if first.bare or second.bare:
        bare = first if first.bare else second
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
    if donor.bare or donor_qat.bare:
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
        if checkpoint.card.role != expected:
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
