"""What the cards of files say: what a file is, and whether two may meet in one operation."""

from __future__ import annotations

from typing import Any

from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import CheckpointError, MismatchError
from qvec_cli.model.build import check, same_backbone
from qvec_cli.specs import DataUse, Listener

_INSTEAD = {
    Kind.VECTOR: "A vector comes from qvec extract.",
    Kind.CHECKPOINT: "A float checkpoint comes from qvec finetune, train-qat or patch.",
}


def require(checkpoint: Checkpoint, kind: Kind) -> None:
    """Refuses a file of another kind than the operation needs.

    Raises:
        MismatchError: names both kinds.
    """
    if checkpoint.kind is not kind or (kind is Kind.VECTOR and checkpoint.card is None):
        raise MismatchError(
            f"{checkpoint.path}: is a {checkpoint.kind}, a {kind} belongs here", hint=_INSTEAD[kind]
        )
    if kind is Kind.CHECKPOINT and any(name.endswith("_packed") for name in checkpoint):
        raise MismatchError(
            f"{checkpoint.path}: holds packed weights, a float checkpoint belongs here",
            hint=_INSTEAD[kind],
        )


def require_model(checkpoint: Checkpoint) -> None:
    """Refuses a file that holds no network, float or packed.

    Raises:
        CheckpointError: a vector or the state of a run.
    """
    if checkpoint.kind not in (Kind.CHECKPOINT, Kind.QUANTIZED):
        raise CheckpointError(
            f"{checkpoint.path}: is a {checkpoint.kind}, not a model",
            hint="qvec inspect FILE tells what a file is.",
        )


def stated_model(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The configuration of timm from the card, if there is one.

    Raises:
        MismatchError: one that cannot be.
    """
    if not (checkpoint.card and checkpoint.card.model):
        return None
    try:
        return dict(check(checkpoint.card.model))
    except MismatchError as error:
        raise MismatchError(f"{checkpoint.path}: {error}") from None


def model_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The configuration of timm from the card.

    Raises:
        CheckpointError: a file that does not say its architecture.
    """
    if model := stated_model(checkpoint):
        return model
    raise CheckpointError(
        f"{checkpoint.path}: does not say its architecture",
        hint="Pass --model NAME, timm's name of it.",
    )


def inherited_use(checkpoint: Checkpoint) -> tuple[DataUse, dict[str, int]]:
    """What of the receiver's data a file has used before, by its card."""
    lineage = checkpoint.card.provenance if checkpoint.card else {}
    return DataUse(lineage.get("data_use", DataUse.NONE)), dict(lineage.get("counts", {}))


def require_same_start(first: Checkpoint, second: Checkpoint, listener: Listener) -> None:
    """Refuses models of another architecture or another pretrained base.

    Raises:
        MismatchError: names both.
    """
    names = f"{first.path} and {second.path}"
    if first.card is None or second.card is None:
        bare = first if first.card is None else second
        listener.note(f"{bare.path} has no card: its base and architecture cannot be checked")
        return
    if differences := _backbones(first, second):
        raise MismatchError(f"{names} differ in architecture: {', '.join(differences)}")
    if first.card.base != second.card.base:
        raise MismatchError(
            f"{names} come from different bases "
            f"({_short(first.card.base)} and {_short(second.card.base)})",
            hint="A vector belongs to models that were fine-tuned from the same start.",
        )


def require_twins(donor: Checkpoint, donor_qat: Checkpoint, listener: Listener) -> None:
    """Refuses a pair in the wrong order, or of one file; warns when the twins' runs differ.

    Raises:
        MismatchError: rho would be zero, or its sign wrong.
    """
    if donor.card is None or donor_qat.card is None:
        if donor.digest() == donor_qat.digest():
            raise MismatchError(f"{donor.path} and {donor_qat.path} are equal: rho would be zero")
        return
    roles = donor.card.role, donor_qat.card.role
    if roles == ("qat", "fp"):
        raise MismatchError(
            f"{donor.path} is the QAT checkpoint and {donor_qat.path} the plain "
            "one: the arguments look swapped",
            hint=f"qvec extract {donor_qat.path} {donor.path} ...",
        )
    if donor.digest() == donor_qat.digest():
        raise MismatchError(f"{donor.path} and {donor_qat.path} are equal: rho would be zero")
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
    ours = {**(first.recipe or {}), "data": (first.data or {}).get("name")}
    theirs = {**(second.recipe or {}), "data": (second.data or {}).get("name")}
    return [
        f"{key} {ours.get(key)} vs {theirs.get(key)}"
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key)
    ]


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "unknown"
