"""Several vectors into one: a merge rule, tensor by tensor, from files into a vector file."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qvec_cli.calibration.moments_file import PooledMoments, StoredMoments
from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.dtypes import Array
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import BLOCK, Checkpoint, finite
from qvec_cli.checkpoint.replace import check_target
from qvec_cli.checkpoint.source import WeightsChoice
from qvec_cli.checkpoint.write import Blocks, size_of, write
from qvec_cli.errors import CheckpointError, MismatchError, QvecError
from qvec_cli.inputs.files import InputFiles, card_of, input_files, require, stated_model
from qvec_cli.inputs.lineage import (
    inherited_use,
    joined_data,
    require_same_grid,
    require_same_start,
)
from qvec_cli.outputs.metrics import Input, Metrics, Plan, provenance
from qvec_cli.specs import Grid, Listener, Part, Rule, Use, spent
from qvec_cli.vector.arithmetic import Merge, Norm, draws, merged
from qvec_cli.vector.pairing import pair, select

if TYPE_CHECKING:
    from qvec_cli.selection.by_agreement import FitOptions, Fitted


@dataclass(frozen=True, slots=True)
class CombineRequest:
    """What ``qvec combine`` is asked for."""

    vectors: tuple[Path, ...]  # from ``extract``, or from here
    out: Path
    merge: Merge = field(default_factory=Merge)
    parts: tuple[Part, ...] = ()  # of the network that keep their numbers; none named: all
    cross: bool = False  # whether the vectors may have been made for different grids
    force: bool = False
    dry_run: bool = False
    fit: FitOptions | None = None  # coefficients without labels, in place of a rule
    known: Fitted | None = None  # the result of that fit, where it was made before


class _Merging:
    """The open vectors, which of their tensors take part, and the lengths that are met."""

    def __init__(self, vectors: Sequence[Checkpoint], request: CombineRequest) -> None:
        self.vectors, self.merge = vectors, request.merge
        self.chosen = select(tuple(vectors[0]), vectors[0], request.parts)
        self.norm = Norm()
        self.norms = [Norm() for _ in vectors]

    def tensors(self, plan: Iterable[str]) -> Blocks:
        """Every tensor of the plan; those of other parts are zeros."""
        for name in plan:
            yield name, self._merged(name) if name in self.chosen else self._zeros(name)
        if self.norm.value == 0:
            raise MismatchError("the vectors cancel out: rho would be zero")
        for vector in self.vectors:
            vector.settle()

    def _merged(self, name: str) -> Iterator[Array]:
        streams = draws(self.merge, name, len(self.vectors))
        for blocks in self._blocks(name):
            for vector, norm, block in zip(self.vectors, self.norms, blocks, strict=True):
                if not finite(block):
                    vector.require_finite(name)
                norm.add(block)
            block = merged(blocks, self.merge, streams)
            if not finite(block):
                raise CheckpointError(f"{name}: the combination overflows float32")
            self.norm.add(block)
            yield block

    def _blocks(self, name: str) -> Iterator[tuple[Array, ...]]:
        """The same block of every vector, or all of a tensor for a rule that needs it."""
        if self.merge.whole:
            yield tuple(vector.finite(name).reshape(-1) for vector in self.vectors)
        else:
            yield from zip(*(vector.floats(name) for vector in self.vectors), strict=True)

    def _zeros(self, name: str) -> Iterator[Array]:
        left = self.vectors[0][name].size
        while left > 0:
            yield np.zeros(min(BLOCK, left), np.float32)
            left -= BLOCK


def combine(
    request: CombineRequest, listener: Listener, files: InputFiles | None = None
) -> Metrics:
    """Writes one vector made of several, float32, with the names of the vectors.

    Raises SpecError: a mix for another number of vectors; MismatchError: vectors that do not belong
    together; CheckpointError: a file that cannot be read or written, or holds NaN.
    """
    started = time.perf_counter()
    if request.fit is None:
        request.merge.require(len(request.vectors))
    check_target(request.out, force=request.force)
    weights = request.fit.agreement.network.weights if request.fit else WeightsChoice()
    with input_files(files, listener, weights) as inputs_of_run:
        vectors = [inputs_of_run.open(path) for path in request.vectors]
        _match(vectors, request, listener)
        request, fitted = _fit(request, vectors, inputs_of_run, listener)
        run = _Merging(vectors, request)
        pooled = _pooled(vectors, listener)
        plan = {name: Entry("F32", entry.shape) for name, entry in vectors[0].items()}
        whole = {**plan, **(pooled.plan if pooled else {})}
        use = spent(*map(inherited_use, vectors), *([fitted.use] if fitted else []))
        facts = request.merge.to_json()
        facts |= {"parts": [str(part) for part in request.parts]} if request.parts else {}
        facts |= {"fit": dict(fitted.facts)} if fitted else {}

        def card() -> Card:
            moments = pooled.facts.to_json() if pooled else None
            return replace(_card(vectors, facts, use), moments=moments)

        if request.dry_run:
            fates = dict.fromkeys(plan, "zero: of another part")
            fates |= dict.fromkeys(run.chosen, "combined")
            planned = Plan("combine", request.out, fates, plan, facts)
            return planned.metrics(vectors, started, size_of(whole, card()))
        tensors = chain(pooled.blocks() if pooled else (), run.tensors(plan))
        written = write(request.out, whole, tensors, card, force=request.force)
        inputs = tuple(map(Input.of, vectors))
    results = {
        "output": str(request.out),
        "digest": written.digest,
        **facts,
        "tensors": len(run.chosen),
        "zeros": [name for name in plan if name not in run.chosen],
        "norm": run.norm.value,
        "norms": [norm.value for norm in run.norms],
        "moments": pooled and pooled.facts.in_words(),
    }
    seed = facts.get("seed")
    return Metrics("combine", inputs, facts, results, use, seed=seed, started=started)


def _fit(
    request: CombineRequest, vectors: Sequence[Checkpoint], files: InputFiles, listener: Listener
) -> tuple[CombineRequest, Fitted | None]:
    """The request with the coefficients that were fitted, if that was asked for."""
    if request.fit is None:
        return request, None
    from qvec_cli.selection.by_agreement import fit_mix

    if request.dry_run:
        theta = files.open(request.fit.receiver)
        request.fit.agreement.resolved(theta, vectors, listener)
        return request, None
    fitted = request.known or fit_mix(request.fit, vectors, files, listener)
    if not any(fitted.mix):
        raise QvecError(
            f"no combination of the vectors is surely better than plain quantization of "
            f"{request.fit.receiver} on {Grid.from_json(fitted.facts['grid'])}",
            hint="Quantize it as it is, or on another grid: qvec quantize --compare.",
        )
    return replace(request, merge=Merge(Rule.WEIGHTED, fitted.mix)), fitted


def _match(vectors: Sequence[Checkpoint], request: CombineRequest, listener: Listener) -> None:
    """Refuses vectors that do not belong together."""
    for vector in vectors:
        require(vector, Kind.VECTOR)
        if odd := next((name for name, entry in vector.items() if not entry.floating), None):
            raise MismatchError(f"{vector.path}: {odd} is {vector[odd].dtype}, not a float")
    for one, other in combinations(vectors, 2):
        _require_another(one, other, listener)
    first = _first(vectors, "base")
    for other in (vector for vector in vectors if vector is not first):
        require_same_start(first, other, listener)
        pair(first, other, (str(first.path), str(other.path)), ())
    for vector in vectors:
        _require_same_targets(_first(vectors, "targets"), vector)
        _require_same_grid(_first(vectors, "quant"), vector, request, listener)


def _require_another(one: Checkpoint, other: Checkpoint, listener: Listener) -> None:
    if one.is_file_of(other):
        raise MismatchError(
            f"{one.path} and {other.path} are one file: it would count twice",
            hint="--rule weighted --mix gives each vector a number of its own.",
        )
    if one.stated and one.stated == other.stated:
        listener.note(f"{one.path} and {other.path} are the same vector: it counts twice")


def _require_same_targets(first: Checkpoint, other: Checkpoint) -> None:
    ours, theirs = (set(c.card.targets or ()) for c in (first, other))
    if ours and theirs and (differ := sorted(ours ^ theirs)):
        raise MismatchError(
            f"{first.path} and {other.path} were trained to quantize different weights: "
            f"{differ[0]} only in {(first if differ[0] in ours else other).path}",
            hint="qvec inspect FILE --json lists the targets on a card.",
        )


def _require_same_grid(
    first: Checkpoint, other: Checkpoint, request: CombineRequest, listener: Listener
) -> None:
    require_same_grid(first, other, cross=request.cross)
    ours, theirs = (c.card.quant for c in (first, other))
    if ours and theirs and ours != theirs:
        listener.note(
            f"{other.path} was made for {Grid.from_json(theirs)}: the combination counts as made "
            f"for {Grid.from_json(ours)}"
        )


def _first(vectors: Sequence[Checkpoint], field_: str) -> Checkpoint:
    """The first vector whose card tells a thing, or else the first one."""
    return next((v for v in vectors if getattr(v.card, field_)), vectors[0])


def _pooled(vectors: Sequence[Checkpoint], listener: Listener) -> PooledMoments | None:
    """The moments of those vectors that carry some, together."""
    carriers = [StoredMoments(vector) for vector in vectors if vector.attached]
    if 0 < len(carriers) < len(vectors):
        listener.note(f"{len(carriers)} of {len(vectors)} vectors carry moments: theirs are kept")
    return PooledMoments(carriers) if carriers else None


def _card(vectors: Sequence[Checkpoint], facts: Mapping[str, Any], use: Use) -> Card:
    parents = {f"rho {place}": vector for place, vector in enumerate(vectors, 1)}
    first = card_of(_first(vectors, "base"), Kind.VECTOR)
    model = next(filter(None, map(stated_model, vectors)), None)
    return replace(
        first,
        role="",
        model=model.to_json() if model else None,
        data=joined_data([vector.card for vector in vectors]),
        quant=_first(vectors, "quant").card.quant,
        targets=_first(vectors, "targets").card.targets,
        recipe=first.recipe if len(vectors) == 1 else None,
        provenance=provenance("combine", parents, use, **facts),
    )
