"""What a file is: its kind, what its card says, and every tensor with its norm."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qvec_cli.calibration.moments_file import StoredMoments
from qvec_cli.checkpoint.card import Card
from qvec_cli.checkpoint.dtypes import Array, to_float32
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.source import WeightsChoice
from qvec_cli.errors import CheckpointError, MismatchError
from qvec_cli.inputs.files import opened, stated_model
from qvec_cli.inputs.foreign import Packed, grid_of_packed, layout, load_packed, packed_in
from qvec_cli.inputs.lineage import inherited_use
from qvec_cli.model.configuration import Model
from qvec_cli.outputs.metrics import Input, Metrics
from qvec_cli.quant.qtensor import packed_weights, part_names
from qvec_cli.specs import Listener, spent
from qvec_cli.vector.arithmetic import Norm


def describe(path: Path, choice: WeightsChoice, listener: Listener) -> Metrics:
    """Reads a file once; tensors that are not finite are counted, not refused.

    Raises CheckpointError: not a whole and valid checkpoint.
    """
    started = time.perf_counter()
    with opened(path, listener, choice) as checkpoint:
        packed = packed_in(checkpoint)
        tensors = [_tensor(checkpoint, name) for name in checkpoint]
        attached = [_tensor(checkpoint, name) for name in checkpoint.attached]
        digest = checkpoint.contents()
        results = {
            "kind": checkpoint.kind,
            "digest": digest,
            "digest_holds": checkpoint.stated in (None, digest),
            "bytes": checkpoint.nbytes,
            "parameters": _parameters(checkpoint, packed),
            "layout": layout(checkpoint, packed),
            "model": model.to_json() if (model := _model(checkpoint, listener)) else None,
            "card": None if checkpoint.bare else _card(checkpoint.card),
            "metadata": checkpoint.metadata if checkpoint.bare else {},
            "tensors": tensors,
            "attached": attached,
            "moments": StoredMoments(checkpoint).facts.in_words() if attached else None,
        }
        inputs = (Input(str(path), checkpoint.kind, digest),)
        use = inherited_use(checkpoint)
    return Metrics("inspect", inputs, {}, results, use, started=started)


def survey(paths: Sequence[Path], choice: WeightsChoice, listener: Listener) -> Metrics:
    """Reads the headers of several files, and says of each what one line can hold.

    Raises CheckpointError: not a valid checkpoint.
    """
    started = time.perf_counter()
    rows, inputs, uses = [], [], []
    for path in paths:
        with opened(path, listener, choice) as checkpoint:
            model, card = _model(checkpoint, listener), checkpoint.card
            rows.append(
                {
                    "file": str(path),
                    "kind": checkpoint.kind,
                    "role": card.role,
                    "architecture": model.architecture if model else None,
                    "classes": model.num_classes if model else None,
                    "grid": card.quant,
                    "data": (card.data or {}).get("name"),
                    "bytes": checkpoint.nbytes,
                }
            )
            inputs.append(Input(str(path), checkpoint.kind, checkpoint.stated))
            uses.append(inherited_use(checkpoint))
    return Metrics("inspect", tuple(inputs), {}, {"files": rows}, spent(*uses), started=started)


def _model(checkpoint: Checkpoint, listener: Listener) -> Model | None:
    """The network that a file states; None where a folder states one that is not built here."""
    try:
        return stated_model(checkpoint)
    except MismatchError as error:
        if not checkpoint.bare:
            raise
        listener.note(str(error))
        return None


def verify(path: Path, choice: WeightsChoice, listener: Listener) -> Metrics:
    """Reads a file once and compares its tensors with the digest that its card tells.

    Raises CheckpointError: they differ, or there is no card to compare with.
    """
    started = time.perf_counter()
    with opened(path, listener, choice) as checkpoint:
        if checkpoint.stated is None:
            raise CheckpointError(
                f"{path}: does not say its digest: nothing to verify",
                hint="Only files that qvec wrote do; without --verify the digest is shown.",
            )
        results = {"verified": checkpoint.settle(), "bytes": checkpoint.nbytes}
        inputs, use = (Input.of(checkpoint),), inherited_use(checkpoint)
    return Metrics("inspect", inputs, {"verify": True}, results, use, started=started)


def lineage(path: Path, choice: WeightsChoice, listener: Listener) -> Metrics:
    """Reads a header and tells the family of a file.

    Raises CheckpointError: a file without a card.
    """
    started = time.perf_counter()
    with opened(path, listener, choice) as checkpoint:
        if checkpoint.bare:
            raise CheckpointError(f"{path}: has no qvec card: its lineage is not known")
        results = {
            "kind": checkpoint.kind,
            "role": checkpoint.card.role,
            "digest": checkpoint.stated,
            "base": checkpoint.card.base,
            "provenance": checkpoint.card.provenance,
        }
        inputs = (Input(str(path), checkpoint.kind, checkpoint.stated),)
        use = inherited_use(checkpoint)
    return Metrics("inspect", inputs, {"lineage": True}, results, use, started=started)


def _parameters(checkpoint: Checkpoint, packed: Iterable[Packed]) -> int | None:
    """How many numbers the network has, a packed weight as what it was; None: it is not told."""
    sizes = [weight.size for weight in packed]
    inside = {part for weight in packed for part in weight.parts}
    stored = sum(entry.size for name, entry in checkpoint.items() if name not in inside)
    known = [size for size in sizes if size is not None]
    return stored + sum(known) if len(known) == len(sizes) else None


def _card(card: Card) -> dict[str, Any]:
    return {
        "role": card.role,
        "model": card.model,
        "data": card.data,
        "grid": card.quant,
        "targets": list(card.targets) if card.targets is not None else None,
        "base": card.base,
        "recipe": card.recipe,
        "rotation": card.rotation,
        "storage": card.storage,
        "provenance": card.provenance,
        "digest": card.digest,
    }


def _tensor(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    entry = checkpoint.attached.get(name) or checkpoint[name]
    facts: dict[str, Any] = {"name": name, "dtype": entry.dtype, "shape": list(entry.shape)}
    if not entry.floating:
        return facts
    norm, bad = Norm(), 0
    for raw in checkpoint.blocks(name):
        block = to_float32(raw, entry.dtype)
        wrong = block.size - int(np.isfinite(block).sum())
        bad += wrong
        norm.add(np.nan_to_num(block, nan=0, posinf=0, neginf=0) if wrong else block)
    return {**facts, "norm": norm.value, "not_finite": bad}


def compare(first: Path, second: Path, choice: WeightsChoice, listener: Listener) -> Metrics:
    """Reads both files once, tensor by tensor in the order of the first.

    A weight that one of them has packed and the other not is unpacked.
    Raises CheckpointError: not a whole and valid checkpoint.
    """
    started = time.perf_counter()
    with opened(first, listener, choice) as a, opened(second, listener, choice) as b:
        apart, size = Norm(), Norm()
        packed = set(packed_weights(a)) ^ set(packed_weights(b))
        ours, theirs = (_names(c, packed) for c in (a, b))
        rows = [
            (_unpacked_row if name in packed else _row)(a, b, name, apart, size)
            for name in ours
            if name in set(theirs)
        ]
        digests = a.contents(), b.contents()
        results = {
            "same": digests[0] == digests[1],
            "only_in_first": [name for name in ours if name not in set(theirs)],
            "only_in_second": [name for name in theirs if name not in set(ours)],
            "tensors": rows,
            "norm": _number(apart.value),
            "relative_norm": _ratio(apart, size),
        }
        inputs = tuple(
            Input(str(c.path), c.kind, digest) for c, digest in zip((a, b), digests, strict=True)
        )
    return Metrics("inspect", inputs, {"compare": True}, results, started=started)


def _names(checkpoint: Checkpoint, packed: Collection[str]) -> list[str]:
    """The tensors of a file, and each of some weights as one where the file has it packed."""
    ours = [name for name in packed_weights(checkpoint) if name in packed]
    inside = {p: n for n in ours for p in part_names(n, grid_of_packed(checkpoint, n))}
    return [*dict.fromkeys(inside.get(name, name) for name in (*checkpoint, *checkpoint.attached))]


def _unpacked_row(
    a: Checkpoint, b: Checkpoint, name: str, apart: Norm, size: Norm
) -> dict[str, Any]:
    """One weight that one of two files has packed."""
    kinds: list[str] = []
    arrays: list[Array] = []
    for checkpoint in (a, b):
        if name in checkpoint:
            entry = checkpoint[name]
            arrays.append(to_float32(checkpoint.array(name), entry.dtype).reshape(entry.shape))
            kinds.append(entry.dtype)
        else:
            weight = load_packed(checkpoint, name)
            arrays.append(weight.weight())
            kinds.append(f"{weight.grid.bits} bits")
    facts = {"name": name, "dtype": kinds, "shape": [list(array.shape) for array in arrays]}
    if arrays[0].shape != arrays[1].shape:
        return facts
    own, base = Norm(), Norm()
    difference = arrays[1] - arrays[0]
    for norm, numbers in ((own, difference), (apart, difference), (base, arrays[0])):
        norm.add(numbers)
    size.add(arrays[0])
    unequal, norm_of = int((difference != 0).sum()), _number(own.value)
    return {**facts, "unequal": unequal, "norm": norm_of, "relative_norm": _ratio(own, base)}


def _row(a: Checkpoint, b: Checkpoint, name: str, apart: Norm, size: Norm) -> dict[str, Any]:
    """One tensor: its norm of b - a, in float32, or how many of its integers differ."""
    ours, theirs = (c.attached.get(name) or c[name] for c in (a, b))
    facts: dict[str, Any] = {
        "name": name,
        "dtype": [ours.dtype, theirs.dtype],
        "shape": [list(ours.shape), list(theirs.shape)],
    }
    if ours.shape != theirs.shape or ours.floating != theirs.floating:
        return facts
    own, base, unequal = Norm(), Norm(), 0
    for raw, other in zip(a.blocks(name), b.blocks(name), strict=True):
        if ours.floating:
            x, y = to_float32(raw, ours.dtype), to_float32(other, theirs.dtype)
            with np.errstate(over="ignore", invalid="ignore"):
                difference = y - x
            for norm, numbers in ((own, difference), (apart, difference), (base, x), (size, x)):
                norm.add(numbers)
            unequal += int((x != y).sum())
        else:
            unequal += int((raw != other).sum())
    facts["unequal"] = unequal
    if ours.floating:
        facts["norm"] = _number(own.value)
        facts["relative_norm"] = _ratio(own, base)
    return facts


def _ratio(norm: Norm, of: Norm) -> float | None:
    return _number(norm.value / of.value) if of.value else None


def _number(value: float) -> float | None:
    """None for what JSON cannot say: the norm of weights that are not finite."""
    return value if math.isfinite(value) else None
