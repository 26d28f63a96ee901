"""One training run: network, images and place in the run, from the first step to the file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.dtypes import name_of
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.replace import unfinished
from qvec_cli.checkpoint.write import write
from qvec_cli.data.datasets import Task
from qvec_cli.errors import (
    CheckpointError,
    FinishedError,
    MismatchError,
    NotFiniteError,
    TrainingError,
    located,
)
from qvec_cli.inputs.files import InputFiles
from qvec_cli.inputs.grids import check_fit
from qvec_cli.inputs.identify import network_of
from qvec_cli.inputs.images import data_facts
from qvec_cli.inputs.lineage import inherited_use
from qvec_cli.inputs.network import device, load_network, load_state, outline
from qvec_cli.learn import distributed
from qvec_cli.learn.batches import PreparedSplit, TrainingBatches, decode
from qvec_cli.learn.distributed import ALONE, World
from qvec_cli.learn.fit import Progress, TrainingRun, restore, share_state, state_of, warmup_steps
from qvec_cli.learn.forward import accuracy_of, batch_counts, training_fault
from qvec_cli.model import build, qat
from qvec_cli.model.configuration import DATA_KEYS, Model
from qvec_cli.model.targets import of_network
from qvec_cli.outputs.metrics import Input, Metrics, Plan, backbone_digest, provenance
from qvec_cli.pipeline.train_request import TrainRequest, stored_model
from qvec_cli.results.journal import is_same_run
from qvec_cli.results.records import Record
from qvec_cli.specs import NOTHING, DataUse, Listener, Use, spent
from qvec_cli.tame import counted

_LOWER: Final = "A lower --lr or a longer --warmup-steps may hold it; start anew with --force."


class Session:
    """Everything of one run.

    The order matters: the seed is set, then the network is made, then wrapped; wrapping draws
    no random number, so twins share their head and every later draw. Every rank of a world has
    a session; they make the same network, and the first one reads and writes the files of the run.
    """

    def __init__(
        self,
        request: TrainRequest,
        task: Task,
        files: InputFiles,
        listener: Listener,
        world: World = ALONE,
    ) -> None:
        self.request, self.task, self.listener, self.world = request, task, listener, world
        self.device = device(world.place(request.device))
        torch.manual_seed(request.recipe.seed)
        self.start = _start(request, task, files, listener, world)
        self.network, self.model = self.start.network, self.start.model
        self.targets = of_network(self.network, self.model)
        self.card = self._card()
        if request.grid:
            shapes = {name: tuple(self.network.state_dict()[name].shape) for name in self.targets}
            check_fit(shapes, request.grid, request.model)
            qat.prepare(self.network, self.model, request.grid)
        self.network.to(self.device)
        self._taught_by = files.open(request.teacher) if request.teacher else None
        teacher = None
        if self._taught_by:
            known = _teacher_model(self._taught_by, self.model, task, listener)
            teacher = load_network(self._taught_by, known, str(self.device)).float().eval()
        _check_forward(request, task, self.network, self.model, world)
        self.fit = TrainingRun(
            self.network,
            self._training(),
            request.recipe,
            build.normalise(self.model),
            listener,
            world,
            teacher,
        )
        batches = world.whole_batches(len(task.splits["val"]), request.recipe.batch_size)
        places = [place for batch in batches for place in batch]
        self._val = decode(self._prepared("val", augment=False), listener, places)

    def run(self) -> None:
        """Trains to the end; with ``--resume`` from the saved state.

        Raises TrainingError: with the place of the state before the bad step.
        """
        self._note_warmup()
        self._note_ranks()
        if self.request.resume:
            self._resume()
        try:
            self.fit.run(self._save, self._validate)
        except TrainingError as error:
            state = unfinished(self.request.out)
            kept = f"; the last good state is in {state}" if state.exists() else ""
            raise TrainingError(f"{error}{kept}", hint=error.hint or _LOWER) from None

    def check_finished(self) -> None:
        """Raises FinishedError: the output is of this run; MismatchError: it is of another."""
        current = self._header()
        with Checkpoint(self.request.out) as done:
            card = done.card
        stored = {**(card.recipe or {}), "base": card.base, "grid": card.quant}
        stored |= {"model": card.model, "data": card.data, "device": current["device"]}
        parents = [p for p in card.provenance.get("parents", ()) if isinstance(p, dict)]
        taught = (each.get("digest") for each in parents if each.get("as") == "teacher")
        stored["teacher"] = next(taught, None)
        is_same_run(self.request.out, stored, current, force=False, listener=self.listener)
        raise FinishedError(f"{self.request.out}: done already")

    def write(self) -> Card:
        """Writes the checkpoint, without wrappers, and returns its card."""
        qat.strip(self.network)
        state = self.network.state_dict()
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}
        return _write(self.request.out, arrays, self.card, force=self.request.force)

    @property
    def use(self) -> Use:
        """The receiver data that the run used, and that of its start."""
        lineage = self.start.lineage
        return Use(lineage["data_use"], lineage["counts"])

    def facts(self) -> dict[str, Any]:
        """What the metrics say of the run."""
        history = self.fit.at.history
        return {
            "steps": self.fit.total,
            "warmup_steps": warmup_steps(self.request.recipe, self.fit.total),
            "epochs": history,
            "val": {key: history[-1][key] for key in ("float", "quantized") if key in history[-1]},
            "targets": len(self.targets),
            "data": self.card.data,
            "model": self.model.to_json(),
        }

    def _training(self) -> TrainingBatches:
        recipe = self.request.recipe
        return TrainingBatches(
            self._prepared("train", augment=not recipe.no_aug),
            seed=recipe.seed,
            batch_size=recipe.batch_size,
            augmented=not recipe.no_aug,
            listener=self.listener,
            world=self.world,
        )

    def _prepared(self, split: str, *, augment: bool) -> PreparedSplit:
        return PreparedSplit(
            self.task.split(split),
            build.transform(self.model, augment=augment),
            self.model.channels,
            self.request.loading.workers,
            split,
            self.task.name,
        )

    def _card(self) -> Card:
        grid = self.request.grid
        return Card(
            Kind.CHECKPOINT,
            role="qat" if grid else "fp",
            model=self.model.to_json(),
            data=data_facts(self.task),
            quant=grid.to_json() if grid else None,
            targets=self.targets,
            base=backbone_digest(self.network, self.model),
            recipe=self.request.recipe.to_json(),
            provenance=self.start.lineage,
            rotation=self.start.rotation,
        )

    def _validate(self) -> dict[str, Any]:
        """Scores on the validation split; of both forwards when training through a grid."""
        # running means differ from rank to rank
        distributed.copy_from_first(self.world, self.network.buffers())
        try:
            with qat.float_forward(self.network) as wrapped:
                result = {"float": self._score()}
            return {**result, "quantized": self._score()} if wrapped else result
        except NotFiniteError as error:
            at = self.fit.at
            raise TrainingError(
                f"{error}: validation after epoch {at.epoch + 1}, step {at.step} "
                f"(lr {self.request.recipe.lr:.3g})"
            ) from None

    def _score(self) -> dict[str, float]:
        started = time.perf_counter()
        counts = batch_counts(
            self.network,
            *self._val,
            normalise=self.fit.normalise,
            batch_size=self.request.recipe.batch_size,
        )
        counts = distributed.gathered(self.world, counts)
        return accuracy_of(counts, time.perf_counter() - started).to_json()

    def _save(self) -> None:
        if not self.world.leads:
            return
        place = {"op": "train", "progress": asdict(self.fit.at), "run": self._header()}
        card = Card(Kind.STATE, provenance=place)
        _write(unfinished(self.request.out), state_of(self.fit, qat.plain_name), card, force=True)

    def _resume(self) -> None:
        """Goes on where the first rank's file stands."""
        if self.world.leads:
            self._read()
        self.fit.at = distributed.from_first(self.world, self.fit.at)
        share_state(self.fit)

    def _read(self) -> None:
        path = unfinished(self.request.out)
        if not path.exists():
            self.listener.note(f"{path} is not there: starting from the beginning")
            return
        with Checkpoint(path) as saved:
            if saved.kind is not Kind.STATE:
                raise CheckpointError(f"{path}: is not the state of a run")
            place = saved.card.provenance
            if not all(isinstance(place.get(key), dict) for key in ("run", "progress")):
                raise CheckpointError(f"{path}: its qvec card is damaged (run, progress)")
            stored, current, force = place["run"], self._header(), self.request.force
            if not is_same_run(path, stored, current, force=force, listener=self.listener):
                return
            at = _progress(Record(f"{path}: progress", place["progress"]))
            tensors = {name: saved.array(name) for name in saved}
            saved.settle()
            restore(self.fit, tensors, qat.plain_name)
            self.fit.at = at
        self.listener.note(f"resumed at epoch {at.epoch + 1}, step {at.step + 1}")

    def _header(self) -> dict[str, Any]:
        """The inputs and flags of the run, which must not change until its end."""
        assert self.card.data is not None
        return {
            **self.request.recipe.to_json(),
            "base": self.card.base,
            "grid": self.card.quant,
            "model": self.model.to_json(),
            "data": self.card.data,
            **({"teacher": self._taught_by.settle()} if self._taught_by else {}),
            "device": str(self.device) if self.world.size == 1 else self.device.type,
        }

    def _note_ranks(self) -> None:
        size, batch = self.world.size, self.request.recipe.batch_size
        if size == 1:
            return
        self.listener.note(f"{size} processes share each batch of {batch} images")
        if any(isinstance(module, _BatchNorm) for module in self.network.modules()):
            self.listener.note("each process has its own batch norms: one process gives others")

    def _note_warmup(self) -> None:
        recipe, steps = self.request.recipe, self.fit.total
        if (shortened := warmup_steps(recipe, steps)) < recipe.warmup_steps:
            warmup = f"{recipe.warmup_steps} to {shortened}"
            self.listener.note(f"the run has {steps} steps: warm-up shortened from {warmup}")


def _progress(record: Record) -> Progress:
    """Where a run that was cut off stood; CheckpointError: numbers that no run has."""
    at = record.decoded(Progress)
    if min(at.epoch, at.step, at.correct, at.seen) < 0 or at.correct > at.seen:
        raise record.fault("its counts are of no run")
    if len(at.history) != at.epoch:
        raise record.fault(f"has {counted(len(at.history), 'epoch')} behind it, not {at.epoch}")
    return at


@dataclass(frozen=True, slots=True)
class _Start:
    """A network at its first step, and where it comes from."""

    network: torch.nn.Module
    model: Model
    lineage: dict[str, Any]
    inputs: tuple[Input, ...] = ()
    rotation: dict[str, Any] | None = None  # the basis that it is trained in


def _start(
    request: TrainRequest, task: Task, files: InputFiles, listener: Listener, world: World
) -> _Start:
    use, op = _labels_used(request, task), "train-qat" if request.grid else "finetune"
    facts = {"ranks": world.size} if world.size > 1 else {}
    classes = len(task.classes)
    base = files.open(request.source) if request.source else None
    network, model = _network(request, base, classes)
    parents = {"teacher": files.open(request.teacher)} if request.teacher else {}
    inputs = tuple(map(Input.of, parents.values()))
    if base is None:
        return _Start(network, model, provenance(op, parents, use, **facts), inputs)
    fresh = _load(network, load_state(base), model, base, listener)
    fate = f"is replaced by a new one with {classes} classes" if fresh else "is kept"
    listener.note(f"{base.path}: its head {fate}")
    if base.card.data_digest == task.digest:
        use = spent(use, inherited_use(base))
    base.settle()
    lineage = provenance(op, {"base": base, **parents}, use, **facts)
    return _Start(network, model, lineage, (Input.of(base), *inputs), base.card.rotation)


def _network(
    request: TrainRequest, base: Checkpoint | None, classes: int
) -> tuple[torch.nn.Module, Model]:
    """The network to be trained, by its name or as the base states it; with random weights."""
    if base is None or request.initial_checkpoint is not None:
        return build.create(request.network_options(classes))
    stored = stored_model(request, base, classes)
    return build.reshaped(stored, request.network.img_size, request.network.in_chans)


def _load(
    network: torch.nn.Module,
    state: Mapping[str, torch.Tensor],
    model: Model,
    base: Checkpoint,
    listener: Listener,
) -> tuple[str, ...]:
    """Loads the base at the network's image size and channels; returns the head left new."""
    fitted, notes = build.adapted(state, network, model)
    fresh = build.start_from(network, fitted, model, str(base.path))
    for note in notes:
        listener.note(f"{base.path}: {note}")
    return fresh


def _labels_used(request: TrainRequest, task: Task) -> Use:
    """Those of QAT, which a vector would spare its receiver; with fine-tuning all begins.

    With a teacher labels are counted after each epoch, and nothing is learned or chosen by them.
    """
    if request.grid is None:
        return NOTHING
    if request.teacher is not None:
        return Use(DataUse.RECEIVER_IMAGES, {"train": len(task.splits["train"])})
    counts = {split: len(task.splits[split]) for split in ("train", "val")}
    return Use(DataUse.RECEIVER_LABELS, counts)


def _write(path: Path, arrays: Mapping[str, Any], card: Card, *, force: bool) -> Card:
    plan = {name: Entry(name_of(a.dtype), a.shape) for name, a in arrays.items()}
    return write(path, plan, ((n, [a.reshape(-1)]) for n, a in arrays.items()), card, force=force)


def _check_forward(
    request: TrainRequest, task: Task, network: torch.nn.Module, model: Model, world: World
) -> None:
    """Refuses a network that cannot train on its images, or on the fewest that a step has.

    Raises TrainingError: with the word of torch.
    """
    recipe, amp, texts = request.recipe, request.recipe.amp, model.reads_texts
    # one image or several, but no more than two: what more there are make no difference
    fewest = min(2, world.smallest(len(task.splits["train"]), recipe.batch_size))
    fault = training_fault(network, model.batch_shape(fewest), amp=amp, texts=texts)
    if fault is None:
        return
    reason = build.first_line(fault)
    if fewest == 1 and training_fault(network, model.batch_shape(2), amp=amp, texts=texts) is None:
        shared = "a process's share of " if world.size > 1 else ""
        raise TrainingError(
            f"{shared}the last batch of an epoch is one image, too few for {model.architecture} "
            f"({reason})",
            hint="Choose another --batch-size.",
        )
    raise TrainingError(
        f"{model.architecture} cannot run on images of {model.input_size[2]} px: {reason}",
        hint="Choose another --img-size.",
    )


def _teacher_model(theta: Checkpoint, model: Model, task: Task, listener: Listener) -> Model:
    """The network whose answers another one is to learn.

    Raises MismatchError: it has other classes, or sees images otherwise.
    """
    theirs = network_of(theta, build.NetworkOptions(), listener)
    if theta.classes is not None and tuple(theta.classes) != tuple(task.classes):
        raise MismatchError(f"{theta.path}: its classes are not those of {task.name}")
    with located(theta.path):
        if theirs.num_classes != len(task.classes):
            raise MismatchError(f"has {theirs.num_classes} classes, not those of the data set")
        for key in DATA_KEYS:
            if model.pretrained_cfg.get(key) != theirs.pretrained_cfg.get(key):
                raise MismatchError(f"sees images otherwise than the network: {key}")
    return theirs


def rehearse(
    request: TrainRequest,
    task: Task,
    files: InputFiles,
    listener: Listener,
    world: World,
    started: float,
) -> Metrics:
    """The plan of a run, from file lists and a network without weights.

    Raises QvecError: what the run would be refused for.
    """
    device(request.device)
    base = files.open(request.source) if request.source else None
    with torch.device("meta"):
        unfetched = replace(request, network=replace(request.network, pretrained=False))
        network, model = _network(unfetched, base, len(task.classes))
    if base is not None:
        _load(network, outline(base), model, base, listener)
    _check_forward(request, task, network, model, world)
    inputs: tuple[Checkpoint, ...] = () if base is None else (base,)
    if request.teacher is not None:
        inputs += (teacher := files.open(request.teacher),)
        _teacher_model(teacher, model, task, listener)
    return _plan(request, task, network, model).metrics(inputs, started)


def _plan(request: TrainRequest, task: Task, network: torch.nn.Module, model: Model) -> Plan:
    state = network.state_dict()
    outline = {n: Entry(name_of(t.dtype), tuple(t.shape)) for n, t in state.items()}
    fates = dict.fromkeys(outline, "trained")
    fates |= {name: "kept: not floating" for name, e in outline.items() if not e.floating}
    if request.grid:
        targets = of_network(network, model)
        check_fit({name: outline[name].shape for name in targets}, request.grid, request.model)
        fates |= dict.fromkeys(targets, f"trained through {request.grid}")
    images = {name: len(samples) for name, samples in task.splits.items()}
    command = "train-qat" if request.grid else "finetune"
    parameters = {"epochs": request.recipe.epochs, "batch_size": request.recipe.batch_size}
    return Plan(command, request.out, fates, outline, parameters, images, request.data)
