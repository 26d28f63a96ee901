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
from qvec_cli.checkpoint.locate import read_json
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.write import Blocks
from qvec_cli.errors import MismatchError, located
from qvec_cli.inputs.files import card_of, opened, require
from qvec_cli.inputs.identify import identified
from qvec_cli.inputs.images import data_facts, listed_classes, open_for
from qvec_cli.model.build import NetworkOptions
from qvec_cli.model.configuration import Model
from qvec_cli.model.open_clip import CONFIG as OPEN_CLIP
from qvec_cli.model.open_clip import is_open_clip, spelled_from_open_clip, targets_of
from qvec_cli.model.spelling import Spelling, spelled_by_timm, spelled_by_transformers
from qvec_cli.model.targets import head_tensors
from qvec_cli.outputs.hf_folder import Config, check_output, config_of, size_of_output, write_output
from qvec_cli.outputs.metrics import Input, Metrics, Plan, provenance
from qvec_cli.specs import NOTHING, Granularity, Grid, Listener, Loading, Spelled

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
    to: Spelled | None = None  # whose names the network gets
    folder: bool = False  # whether the output is one


def import_file(request: ImportRequest, listener: Listener) -> Metrics:
    """Writes the tensors of a file, float as they are, with a card that says what they are of.

    With ``to``, under the names and in the words of the other library, and also of a file that has
    a card.
    Raises MismatchError: a file that has a card already, of another kind, of no network or of
    several, or of one that the other library does not have; CheckpointError: nothing says the
    network, or a file that cannot be read or written, or holds NaN.
    """
    started = time.perf_counter()
    check_output(request.out, folder=request.folder, force=request.force)
    with opened(request.source, listener, request.network.weights) as source:
        imported = _imported(request, source, listener)
        plan, config = imported.plan, imported.config if request.folder else {}
        if request.dry_run:
            size = size_of_output(plan, imported.card(), config)
            fates, planned = imported.fates, _parameters(request)
            made = Plan("import", request.out, fates, plan, planned, folder=request.folder)
            return made.metrics((source,), started, size)
        blocks = imported.tensors()
        written = write_output(
            request.out, plan, blocks, imported.card, config, force=request.force
        )
        read = (Input.of(source),)
    model, data = imported.model, imported.identity.data
    results: dict[str, Any] = {
        "output": str(request.out),
        "digest": written.digest,
        "model": model.to_json(),
        "classes": data["classes"] if data else None,
        "head": list(head_tensors(plan, model)),
        "targets": len(written.targets or ()),
        "parameters": sum(entry.size for entry in plan.values()),
    }
    return Metrics("import", read, _parameters(request), results, started=started)


def _imported(request: ImportRequest, source: Checkpoint, listener: Listener) -> _Imported:
    """What is to be written of a file."""
    if not source.bare and request.to is None:
        raise MismatchError(f"{source.path}: has a card already: every command takes it as it is")
    require(source, Kind.CHECKPOINT)
    if request.to is Spelled.HF and source.bare and is_open_clip(source):
        return _of_open_clip(request, source, listener)
    card, other = _identity(request, source, listener)
    if request.data is not None:
        loading = Loading(request.data_dir)
        card = replace(card, data=_trained_on(request.data, source, card, loading, listener))
    source.card = card if source.bare else source.card
    if request.to is None:
        return _Imported.of(source, card, other, listener)
    if other.img_size or other.in_chans:
        raise MismatchError(
            f"{source.path}: --to takes a network at its own size and channels",
            hint="Import it first without --to, then what was written with it.",
        )
    spelling = _spelling(request.to, request.network.name, source, card, listener)
    return _Imported(source, card, spelling.model, {}, spelling)


def _of_open_clip(request: ImportRequest, source: Checkpoint, listener: Listener) -> _Imported:
    """The vision tower of a file of open_clip's, in transformers' words.

    MismatchError: transformers has no such tower, or flags are of a classifier or another network.
    """
    options = request.network
    classes = request.data or request.class_map or options.num_classes
    if classes or options.name or options.img_size or options.in_chans:
        raise MismatchError(
            f"{source.path}: is a vision tower of open_clip's at its own size, without classes",
            hint="With --to go --model-arg and what says how images are prepared.",
        )
    path = source.path if source.path.is_dir() else source.path.parent
    config = read_json(path / OPEN_CLIP) if (path / OPEN_CLIP).exists() else {}
    shapes = {tensor: entry.shape for tensor, entry in source.items()}
    with located(source.path):
        spelling = spelled_from_open_clip(shapes, config, options.args, options.prepared)
    model, words = spelling.model, spelling.model.model_args
    listener.note(
        f"{source.path}: its vision tower is a {model.architecture} of transformers with "
        f"{words['hidden_act']} and {words['num_attention_heads']} heads, images are prepared with "
        f"{model.preparation}; what reads texts is left out"
    )
    card = Card(Kind.CHECKPOINT, targets=targets_of(source))
    return _Imported(source, card, model, {}, spelling)


def _identity(
    request: ImportRequest, source: Checkpoint, listener: Listener
) -> tuple[Card, NetworkOptions]:
    """The card of a file, and the sizes to which its tensors are yet to be brought."""
    options, nothing = request.network, NetworkOptions()
    classes = listed_classes(request.class_map) if request.class_map else None
    if not source.bare:
        if options.shaped or classes or request.data is not None:
            raise MismatchError(
                f"{source.path}: has a card already, which says its classes, sizes and images",
                hint="Only --model goes with --to, and names one of timm's networks.",
            )
        return card_of(source, Kind.CHECKPOINT), nothing
    if request.to is Spelled.TIMM:  # then the name is what the network is to be
        options = replace(options, name=None)
    try:
        return identified(source, options, listener, search=True, classes=classes), nothing
    except MismatchError:
        if not (options.img_size or options.in_chans):
            raise
        plain = replace(options, img_size=None, in_chans=None)
        return identified(source, plain, listener, search=True, classes=classes), options


def _spelling(
    to: Spelled, name: str | None, source: Checkpoint, card: Card, listener: Listener
) -> Spelling:
    """The network of a float file in the other library's words.

    Raises MismatchError: it is in these words already, has what lies in no other, or the other
    library does not have it.
    """
    model = Model.from_json(card.model or {})
    if model.library is to.library:
        raise MismatchError(f"{source.path}: is a network of {to.library} already")
    if to is Spelled.HF and name is not None and not source.bare:
        raise MismatchError(
            f"{source.path}: --model names a network of timm's, and --to hf takes the file's own"
        )
    _require_plain(source, card)
    shapes = {tensor: entry.shape for tensor, entry in source.items()}
    with located(source.path):
        if to is Spelled.TIMM:
            spelling = spelled_by_timm(model, shapes, source.array, name)
        else:
            spelling = spelled_by_transformers(model, shapes, source.array)
        spelling.plan(source)
    args = [f"{key} {value}" for key, value in spelling.model.model_args.items()]
    said = f", with {', '.join(args)}" if args and to is Spelled.TIMM else ""
    listener.note(
        f"{source.path}: its {model.architecture} is a {spelling.model.architecture} of "
        f"{to.library}{said}"
    )
    if spelling.unread:
        names = ", ".join(spelling.unread)
        listener.note(f"{source.path}: left out, as no output depends on them: {names}")
    return spelling


def _require_plain(source: Checkpoint, card: Card) -> None:
    """Refuses what goes by the names or the shapes of tensors: MismatchError."""
    if source.aliases:
        dropped, kept = min(source.aliases.items())
        raise MismatchError(f"{source.path}: {dropped}: is tied to {kept}, and --to unties nothing")
    if card.quant and Grid.from_json(card.quant).granularity is Granularity.TENSOR:
        raise MismatchError(
            f"{source.path}: was made for one scale a tensor, and query, key and value are one "
            "tensor for timm",
            hint="A scale for each channel or group is the same in both spellings.",
        )
    if card.quant and Grid.from_json(card.quant).layers:
        raise MismatchError(
            f"{source.path}: was made for a grid with widths for single layers, which go by names",
            hint="Convert the float file, and quantize what comes of it.",
        )


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
    return {"use_ema": weights.use_ema, "weights_key": weights.key, "to": request.to}


@dataclass(frozen=True, slots=True)
class _Imported:
    """What is written: the tensors of the file, some of them brought to other sizes.

    Or, with a ``spelling``, all of them under other names.
    """

    source: Checkpoint
    identity: Card
    model: Model
    changed: Mapping[str, Tensor]
    spelling: Spelling | None = None

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
        if self.spelling:
            return self.spelling.plan(self.source)
        plan = {name: Entry(entry.dtype, entry.shape) for name, entry in self.source.items()}
        return plan | {n: Entry(plan[n].dtype, tuple(t.shape)) for n, t in self.changed.items()}

    def tensors(self) -> Blocks:
        """The data of every tensor."""
        if self.spelling:
            yield from self.spelling.blocks(self.source, self.source.checked)
        for name, entry in self.source.items() if not self.spelling else ():
            if name in self.changed:
                values = self.changed[name].float().contiguous().numpy().reshape(-1)
                yield name, [from_float32(values, entry.dtype)]
            else:
                yield name, self.source.checked(name)
        self.source.settle()

    @property
    def fates(self) -> dict[str, str]:
        """What becomes of each tensor, by its new name."""
        fates = dict.fromkeys(self.plan, "imported")
        fates |= dict.fromkeys(self.changed, "brought to other sizes")
        for name, assembly in self.spelling.tensors.items() if self.spelling else ():
            parts = [piece.name or "zeros" for piece in assembly.pieces]
            fates[name] = f"made of {', '.join(parts)}"
        return fates

    @property
    def config(self) -> Config:
        """The JSON files of a folder."""
        self.source.card = self.identity
        return config_of(self.source, self.model, (), None)

    def card(self) -> Card:
        """The card of what is written."""
        parents, targets = {"file": self.source}, self.identity.targets
        if self.spelling and targets is not None:
            targets = self.spelling.names_of(targets)
        return replace(
            self.identity,
            model=self.model.to_json(),
            targets=targets,
            provenance=provenance("import", parents, NOTHING),
        )
