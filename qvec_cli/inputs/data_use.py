"""Which of the receiver's data a file, or a vector added to it, has used; cards tell."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from qvec_cli.checkpoint.card import Card, canonical
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import CheckpointError, QvecError
from qvec_cli.specs import DataUse, Use, spent


def inherited_use(checkpoint: Checkpoint) -> Use:
    """What of the receiver's data a file has used before, by its card.

    Raises:
        CheckpointError: a card that says what cannot be.
    """
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
