"""theta_R + lambda * rho, from two files into one; the receiver keeps its head."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.dtypes import Array, from_float32, to_float32
from qvec_cli.checkpoint.read import Checkpoint, finite
from qvec_cli.checkpoint.write import check_target, write
from qvec_cli.errors import CheckpointError, MismatchError, QvecError
from qvec_cli.model.targets import head_tensors
from qvec_cli.ops.lineage import require, require_same_start, stated_model
from qvec_cli.ops.metrics import Input, Metrics, provenance
from qvec_cli.specs import DataUse, Listener, parse_lambda
from qvec_cli.vector.arithmetic import apply
from qvec_cli.vector.pairing import cover


def patch(
    receiver: Path,
    vector: Path,
    out: Path,
    listener: Listener,
    *,
    lam: str = "1",
    force: bool = False,
) -> Metrics:
    """Writes the patched receiver in the receiver's own number formats.

    Args:
        receiver: a float checkpoint.
        vector: from ``extract``.
        out: the target.
        listener: hears notes.
        lam: a number, or the JSON file of a sweep, whose choice is taken.
        force: whether ``out`` may be replaced.

    Raises:
        MismatchError: files that do not belong together.
        CheckpointError: a file that cannot be read or written, or holds NaN.
    """
    started = time.perf_counter()
    choice = read_choice(lam)
    check_target(out, force=force)
    with Checkpoint(receiver) as theta, Checkpoint(vector) as rho:
        require(theta, Kind.CHECKPOINT)
        require(rho, Kind.VECTOR)
        require_same_start(theta, rho, listener)
        _require_choice(choice, lam, theta, rho)
        model = stated_model(theta)
        pairing = cover(theta, rho, (receiver.name, vector.name), head_tensors(theta, model))
        lineage = provenance(
            "patch",
            {"receiver": theta, "rho": rho},
            **{"lambda": choice.lam, "data_use": choice.data_use, "counts": dict(choice.counts)},
        )
        card = write(
            out,
            theta,
            _tensors(theta, rho, set(pairing.names), choice.lam),
            _card(theta, rho, lineage),
            force=force,
        )
        inputs = (Input.of(theta), Input.of(rho))
    results = {
        "output": str(out),
        "digest": card.digest,
        "lambda": choice.lam,
        "tensors": len(pairing.names),
        "kept": [*pairing.head, *pairing.buffers],
    }
    return Metrics(
        "patch",
        inputs,
        {"lambda": choice.lam},
        results,
        choice.data_use,
        choice.counts,
        started=started,
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """A scaling coefficient, and what choosing it has cost."""

    lam: float
    data_use: DataUse = DataUse.NONE
    counts: Mapping[str, int] = field(default_factory=dict)
    chosen_for: tuple[str, ...] = ()  # digests of the receiver and the vector of a sweep


def read_choice(text: str) -> Choice:
    """A number typed by hand, at no known cost, or the choice in the JSON file of a sweep.

    Raises:
        SpecError: neither a number nor a file.
        QvecError: a file that is not the result of a sweep.
    """
    if not text.endswith(".json"):
        return Choice(parse_lambda(text))
    try:
        document: dict[str, Any] = json.loads(Path(text).read_bytes())
        cost = document["data_use"]
        return Choice(
            float(document["results"]["chosen"]["lambda"]),
            DataUse(cost["level"]),
            dict(cost["counts"]),
            tuple(i["digest"] for i in document["inputs"]),
        )
    except OSError as fault:
        raise QvecError(f"{text}: {(fault.strerror or 'cannot be read').lower()}") from None
    except (ValueError, KeyError, TypeError):
        raise QvecError(f"{text}: is not the result of qvec sweep-lambda") from None


def _require_choice(choice: Choice, source: str, *files: Checkpoint) -> None:
    for checkpoint in files:
        if choice.chosen_for and checkpoint.digest() not in choice.chosen_for:
            raise MismatchError(
                f"{source}: its lambda was chosen for other files than {checkpoint.path}",
                hint="Sweep anew, or type the number.",
            )


def _tensors(
    theta: Checkpoint, rho: Checkpoint, patched: set[str], lam: float
) -> Iterator[tuple[str, Iterable[Array]]]:
    for name in theta:
        yield name, _apply(theta, rho, name, lam) if name in patched else theta.blocks(name)


def _apply(theta: Checkpoint, rho: Checkpoint, name: str, lam: float) -> Iterator[Array]:
    dtype = theta[name].dtype
    for (raw, ours), theirs in zip(theta.checked(name), rho.floats(name), strict=True):
        with np.errstate(over="ignore", invalid="ignore"):  # found below, by name
            block = raw if lam == 0 else from_float32(apply(ours, theirs, lam), dtype)
        if not finite(to_float32(block, dtype)):
            raise CheckpointError(f"{theta.path}: {name}: overflows {dtype} at lambda {lam:g}")
        yield block


def _card(theta: Checkpoint, rho: Checkpoint, lineage: dict[str, Any]) -> Card:
    assert rho.card is not None
    if theta.card is None:
        return Card(Kind.CHECKPOINT, role="patched", quant=rho.card.quant, provenance=lineage)
    return replace(theta.card, role="patched", quant=rho.card.quant, provenance=lineage)
