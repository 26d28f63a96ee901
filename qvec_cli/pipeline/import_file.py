"""A file as people have it into a checkpoint with a card, which every command takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.dtypes import from_float32
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.replace import check_target
from qvec_cli.checkpoint.write import Blocks, size_of, write
from qvec_cli.errors import MismatchError
from qvec_cli.inputs.files import opened, require
from qvec_cli.inputs.identify import identified
from qvec_cli.inputs.images import data_facts, listed_classes, open_for
from qvec_cli.model.build import NetworkOptions
from qvec_cli.model.configuration import Model
from qvec_cli.model.targets import head_tensors
from qvec_cli.outputs.metrics import Input, Metrics, Plan, provenance
from qvec_cli.specs import NOTHING, Listener, Loading

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """What ``qvec import`` is asked for."""

    source: Path  # a file or folder that qvec did not write, or hf-hub:ORG/NAME
    out: Path
    network: NetworkOptions = NetworkOptions()  # what the user says of it
    class_map: str | None = None  # file of class names, one a line
    data: str | None = None  # the data set that it was trained on
    data_dir: str | None = None
    force: bool = False
    dry_run: bool = False


def import_file(request: ImportRequest, listener: Listener) -> Metrics:
    """Writes the tensors of a file, float as they are, with a card that says what they are of.

    Raises MismatchError: a file that has a card already, of another kind, of no network of timm's
    or of several; CheckpointError: nothing says the network, or a file that cannot be read or
    written, or holds NaN.
    """
    started = time.perf_counter()
    check_target(request.out, force=request.force)
    classes = listed_classes(request.class_map) if request.class_map else None
    loading = Loading(request.data_dir)
    with opened(request.source, listener, request.network.weights) as source:
        if not source.bare:
            raise MismatchError(
                f"{source.path}: has a card already: every command takes it as it is"
            )
        require(source, Kind.CHECKPOINT)
        options, other = request.network, NetworkOptions()
        try:
            card = identified(source, options, listener, search=True, classes=classes)
        except MismatchError:
            if not (options.img_size or options.in_chans):
                raise
            plain = replace(options, img_size=None, in_chans=None)
            card = identified(source, plain, listener, search=True, classes=classes)
            other = options
        if request.data is not None:
            card = replace(card, data=_trained_on(request.data, source, card, loading, listener))
        imported = _Imported.of(source, card, other, listener)
        plan = imported.plan
        if request.dry_run:
            fates = dict.fromkeys(plan, "imported")
            fates |= dict.fromkeys(imported.changed, "brought to other sizes")
            planned = Plan("import", request.out, fates, plan, {})
            return planned.metrics((source,), started, size_of(plan, imported.card()))
        written = write(request.out, plan, imported.tensors(), imported.card, force=request.force)
        read = (Input.of(source),)
    model = imported.model
    results: dict[str, Any] = {
        "output": str(request.out),
        "digest": written.digest,
        "model": model.to_json(),
        "classes": card.data["classes"] if card.data else None,
        "head": list(head_tensors(plan, model)),
        "targets": len(card.targets or ()),
        "parameters": sum(entry.size for entry in plan.values()),
    }
    return Metrics("import", read, _parameters(request), results, started=started)


def _trained_on(
    spec: str, source: Checkpoint, card: Card, loading: Loading, listener: Listener
) -> dict[str, Any]:
    """The data set of --receiver-data as a card has it, its classes in the order of the head."""
    model, source.card = Model.from_json(card.model or {}), card
    examples = open_for(source, model, spec, loading, listener)
    places = dict(zip(examples.relabel, examples.task.classes, strict=True))
    known = source.classes or [places.get(n, "") for n in range(model.num_classes)]
    return {**data_facts(examples.task), "classes": known}


def _parameters(request: ImportRequest) -> dict[str, Any]:
    weights = request.network.weights
    return {"use_ema": weights.use_ema, "weights_key": weights.key}


@dataclass(frozen=True, slots=True)
class _Imported:
    """What is written: the tensors of the file, some of them brought to other sizes."""

    source: Checkpoint
    identity: Card
    model: Model
    changed: Mapping[str, Tensor]

    @classmethod
    def of(
        cls, source: Checkpoint, card: Card, other: NetworkOptions, listener: Listener
    ) -> _Imported:
        """The file at its own sizes, or at those that the user wants.

        MismatchError: sizes that the tensors cannot be brought to.
        """
        model = Model.from_json(card.model or {})
        if not (other.img_size or other.in_chans):
            return cls(source, card, model, {})
        from qvec_cli.inputs.network import load_state
        from qvec_cli.model import build

        network, model = build.reshaped(model, other.img_size, other.in_chans)
        before = load_state(source)
        state, notes = build.adapted(before, network, model)
        build.load(network, state, str(source.path))
        for note in notes:
            listener.note(f"{source.path}: {note}")
        return cls(source, card, model, {n: t for n, t in state.items() if t is not before[n]})

    @property
    def plan(self) -> dict[str, Entry]:
        """Dtype and shape of every tensor that is written."""
        plan = {name: Entry(entry.dtype, entry.shape) for name, entry in self.source.items()}
        return plan | {n: Entry(plan[n].dtype, tuple(t.shape)) for n, t in self.changed.items()}

    def tensors(self) -> Blocks:
        """The data of every tensor."""
        for name, entry in self.source.items():
            if name in self.changed:
                values = self.changed[name].float().contiguous().numpy().reshape(-1)
                yield name, [from_float32(values, entry.dtype)]
            else:
                yield name, self.source.checked(name)
        self.source.settle()

    def card(self) -> Card:
        """The card of what is written."""
        parents = {"file": self.source}
        return replace(
            self.identity,
            model=self.model.to_json(),
            provenance=provenance("import", parents, NOTHING),
        )
