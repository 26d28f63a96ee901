"""Fine-tunes a network, plainly or through fake-quantized weights: a donor and its twin."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from qvec_cli.checkpoint import digest as digests
from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.dtypes import name_of
from qvec_cli.checkpoint.read import Checkpoint, Entry
from qvec_cli.checkpoint.write import check_target, write
from qvec_cli.errors import CheckpointError, MismatchError, SpecError, TrainingError
from qvec_cli.learn import snapshot
from qvec_cli.learn.accuracy import measure
from qvec_cli.learn.batches import Batch, Training, decode
from qvec_cli.learn.data import Task
from qvec_cli.learn.fit import Fit, Progress, warmup_steps
from qvec_cli.model import build, qat
from qvec_cli.model.targets import head_tensors, of_network
from qvec_cli.ops.examples import open_data
from qvec_cli.ops.metrics import Input, Metrics, provenance
from qvec_cli.ops.state import device, load_state, model_of
from qvec_cli.specs import DataUse, Grid, Listener, Loading, Recipe


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asks for."""

    model: str  # timm's name, or a checkpoint file with a card
    data: str
    out: Path
    recipe: Recipe
    loading: Loading
    grid: Grid | None = None  # train through this grid; None: plain fine-tuning
    initial_checkpoint: Path | None = None  # weights to start a named model from
    pretrained: bool = False
    img_size: int | None = None
    in_chans: int = 3
    crop_pct: float | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    resume: bool = False
    force: bool = False

    @property
    def state(self) -> Path:
        """Where an unfinished run waits; gone when the run is done."""
        return self.out.with_name(self.out.name + ".state")


def train(request: Request, listener: Listener) -> Metrics:
    """Trains and writes the checkpoint; the last epoch is kept.

    Raises:
        TrainingError: the loss is not finite; the state before that step is kept.
        QvecError: a model, data set or target that cannot be used.
    """
    started = time.perf_counter()
    check_target(request.out, force=request.force)
    task = open_data(request.data, request.loading)
    train_samples, val_samples = task.split("train"), task.split("val")
    torch.manual_seed(request.recipe.seed)
    network, model, parents = _start(request, len(task.classes), listener)
    targets = of_network(network, model)
    card = _card(request, task, model, targets, _backbone_digest(network, model), parents)
    if request.grid:
        qat.prepare(network, model, request.grid)
    network.to(device(request.device))
    batches = Training(
        train_samples,
        build.transform(model, augment=not request.recipe.no_aug),
        build.channels(model),
        seed=request.recipe.seed,
        batch_size=request.recipe.batch_size,
        workers=request.loading.workers,
        augmented=not request.recipe.no_aug,
    )
    val = decode(
        val_samples,
        build.transform(model, augment=False),
        build.channels(model),
        request.loading.workers,
    )
    fit = Fit(network, batches, request.recipe, build.normalise(model), listener)
    _note_warmup(request.recipe, fit.total, listener)
    if request.resume:
        _resume(request, fit, card, listener)
    try:
        fit.run(lambda: _save_state(request, fit, card), lambda: _validate(fit, val))
    except TrainingError as error:
        raise TrainingError(
            f"{error}; the state before that step is in {request.state}",
            hint="A lower --lr or a longer --warmup-steps may hold it.",
        ) from None
    final = {
        key: fit.at.history[-1][key] for key in ("float", "quantized") if key in fit.at.history[-1]
    }
    qat.strip(network)
    written = _write(request, network, card)
    request.state.unlink(missing_ok=True)
    results = {
        "output": str(request.out),
        "digest": written.digest,
        "steps": fit.total,
        "warmup_steps": warmup_steps(request.recipe, fit.total),
        "epochs": fit.at.history,
        "val": final,
        "targets": len(targets),
        "data": _data_facts(task),
        "model": model,
    }
    return Metrics(
        "train-qat" if request.grid else "finetune",
        tuple(parents.values()),
        _parameters(request),
        results,
        DataUse.RECEIVER_LABELS,
        {"train": len(train_samples), "val": len(val_samples)},
        str(device(request.device)),
        request.recipe.seed,
        started,
    )


def _start(
    request: Request, classes: int, listener: Listener
) -> tuple[torch.nn.Module, dict[str, Any], dict[str, Input]]:
    """The network at its first step, its configuration, and the file it comes from."""
    path = request.initial_checkpoint
    if path is None and Path(request.model).exists():
        path = Path(request.model)
    if path is None:
        network, model = build.create(_wish(request, request.model, classes))
        return network, model, {}
    if request.pretrained:
        raise SpecError("--pretrained goes with a timm name, not with a checkpoint file")
    with Checkpoint(path) as checkpoint:
        if checkpoint.kind is not Kind.CHECKPOINT:
            raise CheckpointError(f"{path}: is a {checkpoint.kind}, not a float checkpoint")
        if request.initial_checkpoint is not None:
            network, model = build.create(_wish(request, request.model, classes))
        else:
            network, model = _like(request, model_of(checkpoint), classes, path)
        fresh = build.start_from(network, load_state(checkpoint), model, str(path))
        if fresh:
            listener.note(f"{path}: its head is replaced by a new one with {classes} classes")
        return network, model, {"base": Input.of(checkpoint)}


def _like(
    request: Request, stored: dict[str, Any], classes: int, path: Path
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A network like that of a file, with a head for the task at hand."""
    args = stored["model_args"]
    asked = {
        **request.args,
        **({"img_size": request.img_size} if request.img_size else {}),
        **({"in_chans": request.in_chans} if request.in_chans != 3 else {}),
    }
    for key, value in asked.items():
        if args.get(key) != value:
            raise MismatchError(
                f"{path} was made with {key} {args.get(key)}, not {value}",
                hint="A checkpoint file brings its own architecture.",
            )
    config = {**stored["pretrained_cfg"], "num_classes": classes}
    if request.crop_pct is not None:
        config["crop_pct"] = request.crop_pct
    model = {**stored, "num_classes": classes, "pretrained_cfg": config}
    return build.rebuild(model), model


def _wish(request: Request, name: str, classes: int) -> build.Wish:
    return build.Wish(
        name,
        classes,
        request.pretrained,
        request.img_size,
        request.in_chans,
        request.crop_pct,
        request.args,
    )


def _card(
    request: Request,
    task: Task,
    model: dict[str, Any],
    targets: tuple[str, ...],
    base: str,
    parents: Mapping[str, Input],
) -> Card:
    lineage = provenance("train-qat" if request.grid else "finetune", {})
    lineage["parents"] = [
        {"as": label, "name": Path(i.path).name, "kind": i.kind, "digest": i.digest}
        for label, i in parents.items()
    ]
    lineage["data_use"] = DataUse.RECEIVER_LABELS if request.grid else DataUse.NONE
    return Card(
        Kind.CHECKPOINT,
        role="qat" if request.grid else "fp",
        model=model,
        data=_data_facts(task),
        quant=request.grid.to_json() if request.grid else None,
        targets=targets,
        base=base,
        recipe=request.recipe.to_json(),
        provenance=lineage,
    )


def _data_facts(task: Task) -> dict[str, Any]:
    return {
        "name": Path(task.name).name,
        "classes": list(task.classes),
        "images": {name: len(samples) for name, samples in task.splits.items()},
    }


def _backbone_digest(network: torch.nn.Module, model: dict[str, Any]) -> str:
    """Identity of the start without its head: what two fine-tunings must share."""
    state = network.state_dict()
    head = set(head_tensors(state, model))
    body = {name: tensor.detach().numpy() for name, tensor in state.items() if name not in head}
    with digests.Hasher() as hasher:
        for name, array in body.items():
            hasher.start(name)
            hasher.update(name, array.reshape(-1))
    hashed = hasher.digests()
    return digests.combine({n: (name_of(a.dtype), a.shape, hashed[n]) for n, a in body.items()})


def _validate(fit: Fit, val: Batch) -> dict[str, Any]:
    """Scores on the validation split; of both forwards when training through a grid."""
    images, labels = val
    batch_size = fit.recipe.batch_size

    def score() -> dict[str, float]:
        return measure(
            fit.network, images, labels, normalise=fit.normalise, batch_size=batch_size
        ).to_json()

    with qat.float_forward(fit.network) as wrapped:
        result = {"float": score()}
    return {**result, "quantized": score()} if wrapped else result


def _save_state(request: Request, fit: Fit, card: Card) -> None:
    arrays = snapshot.take(fit)
    lineage = {"op": "train", "progress": asdict(fit.at), "run": _fingerprint(request, card)}
    _write_arrays(request.state, arrays, Card(Kind.STATE, provenance=lineage), force=True)


def _resume(request: Request, fit: Fit, card: Card, listener: Listener) -> None:
    if not request.state.exists():
        listener.note(f"{request.state} is not there; starting from the beginning")
        return
    with Checkpoint(request.state) as saved:
        if saved.card is None or saved.kind is not Kind.STATE:
            raise CheckpointError(f"{request.state}: is not the state of a run")
        stored, asked = saved.card.provenance["run"], _fingerprint(request, card)
        if changed := [
            f"{k} {stored.get(k)} vs {asked[k]}" for k in asked if stored.get(k) != asked[k]
        ]:
            raise MismatchError(
                f"{request.state}: is of another run: {'; '.join(changed)}",
                hint="Repeat the flags of that run, or start anew without --resume.",
            )
        snapshot.restore(fit, {name: saved.array(name) for name in saved})
        fit.at = Progress(**saved.card.provenance["progress"])
    listener.note(f"resumed at epoch {fit.at.epoch + 1}, step {fit.at.step + 1}")


def _fingerprint(request: Request, card: Card) -> dict[str, Any]:
    """What must not change between the parts of one run."""
    assert card.data is not None
    return {
        **request.recipe.to_json(),
        "base": card.base,
        "grid": card.quant,
        "data": card.data["name"],
        "images": card.data["images"],
        "model": card.model,
        "classes": card.data["classes"],
    }


def _write(request: Request, network: torch.nn.Module, card: Card) -> Card:
    arrays = {n: t.detach().cpu().numpy() for n, t in network.state_dict().items()}
    return _write_arrays(request.out, arrays, card, force=request.force)


def _write_arrays(path: Path, arrays: Mapping[str, Any], card: Card, *, force: bool) -> Card:
    plan = {name: Entry(name_of(a.dtype), a.shape) for name, a in arrays.items()}
    return write(path, plan, ((n, [a.reshape(-1)]) for n, a in arrays.items()), card, force=force)


def _note_warmup(recipe: Recipe, total: int, listener: Listener) -> None:
    if (steps := warmup_steps(recipe, total)) < recipe.warmup_steps:
        listener.note(
            f"the run has {total} steps: warm-up shortened from {recipe.warmup_steps} to {steps}"
        )


def _parameters(request: Request) -> dict[str, Any]:
    return {
        "model": request.model,
        "data": request.data,
        **request.recipe.to_json(),
        "grid": request.grid.to_json() if request.grid else None,
        "pretrained": request.pretrained,
        "model_args": dict(request.args),
    }
