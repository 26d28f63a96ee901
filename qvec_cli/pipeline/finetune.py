"""Fine-tunes a network, plainly or through fake-quantized weights: a donor and its twin."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any, Final

from qvec_cli.checkpoint.replace import (
    check_target,
    check_unfinished,
    is_stream,
    may_be_finished,
    unfinished,
)
from qvec_cli.data.tasks import TASKS
from qvec_cli.errors import SpecError
from qvec_cli.inputs.files import InputFiles
from qvec_cli.inputs.images import open_data
from qvec_cli.learn import distributed
from qvec_cli.learn.distributed import ALONE, World
from qvec_cli.outputs.metrics import Input, Metrics
from qvec_cli.pipeline.train_request import TrainRequest, check_start
from qvec_cli.specs import Listener

EPOCHS: Final = 10
"""Passes over data that the paper does not train on."""


def train(request: TrainRequest, listener: Listener, world: World = ALONE) -> Metrics:
    """Trains and writes the checkpoint; the last epoch is kept.

    Every rank of a world calls this with the same request. Only the first one looks at the
    output, writes it, and returns metrics that say so.
    Raises TrainingError: the loss is not finite; the state before that step is kept; QvecError: a
    model, data set or target that cannot be used; FinishedError: nothing is left to resume.
    """
    started = time.perf_counter()
    _check_world(request, world)
    distributed.join(world, world.place(request.device))
    finished = may_be_finished(request.out, resume=request.resume, force=request.force)
    if world.leads:
        check_target(request.out, force=request.force or finished)
        check_unfinished(request.out, resume=request.resume, force=request.force)
    with InputFiles(listener, request.network.weights) as files:
        check_start(request, files)
        with distributed.in_turn(world) if request.loading.download else nullcontext():
            task = open_data(request.data, request.loading, listener)
        for split in ("train", "val"):
            task.split(split)
        if request.dry_run:
            from qvec_cli.pipeline.session import rehearse

            return rehearse(request, task, files, listener, world, started)
        from qvec_cli.pipeline.session import Session

        session = Session(request, task, files, listener, world)
    if finished:
        session.check_finished()
    session.run()
    written = session.write() if world.leads else session.card
    if world.leads:
        unfinished(request.out).unlink(missing_ok=True)
    distributed.leave(world)
    results = {"output": str(request.out), "digest": written.digest, **session.facts()}
    return Metrics(
        "train-qat" if request.grid else "finetune",
        (*session.start.inputs, Input(request.data, "data", task.digest)),
        _parameters(request),
        results,
        session.use,
        str(session.device),
        request.recipe.seed,
        started,
        world.size,
    )


def _check_world(request: TrainRequest, world: World) -> None:
    """Refuses, before torch is imported, what several processes cannot share."""
    if world.size == 1:
        return
    if request.recipe.batch_size < world.size:
        batch = request.recipe.batch_size
        raise SpecError(
            f"--batch-size {batch} is too few images for {world.size} processes",
            hint="It counts the images of all processes together.",
        )
    if request.source is not None and is_stream(request.source):
        raise SpecError(f"{request.source}: {world.size} processes cannot read one stream")
    if request.device != "auto":
        world.place(request.device)


def default_epochs(data: str) -> int:
    """The paper's number of epochs for its tasks, some for all others."""
    return TASKS[data].epochs if data in TASKS else EPOCHS


def _parameters(request: TrainRequest) -> dict[str, Any]:
    return {
        "model": request.model,
        "data": request.data,
        **request.recipe.to_json(),
        "grid": request.grid.to_json() if request.grid else None,
        "teacher": str(request.teacher) if request.teacher else None,
        "pretrained": request.network.pretrained,
        "model_args": dict(request.network.args),
    }
