"""Fine-tunes a network, plainly or through fake-quantized weights: a donor and its twin."""

from __future__ import annotations

import time
from typing import Any, Final

from qvec_cli.checkpoint.replace import check_target
from qvec_cli.learn.tasks import TASKS
from qvec_cli.ops.examples import open_data
from qvec_cli.ops.metrics import Input, Metrics
from qvec_cli.ops.start import Request, check_start
from qvec_cli.ops.unfinished import check_unfinished, unfinished
from qvec_cli.specs import Listener

EPOCHS: Final = 10
"""Passes over data that the paper does not train on."""


def train(request: Request, listener: Listener) -> Metrics:
    """Trains and writes the checkpoint; the last epoch is kept.

    Raises:
        TrainingError: the loss is not finite; the state before that step is kept.
        QvecError: a model, data set or target that cannot be used.
    """
    started = time.perf_counter()
    check_target(request.out, force=request.force)
    check_unfinished(request.out, resume=request.resume, force=request.force)
    check_start(request)
    task = open_data(request.data, request.loading)
    for split in ("train", "val"):
        task.split(split)
    if request.dry_run:
        from qvec_cli.ops.rehearse import rehearse

        return rehearse(request, task, listener, started)
    from qvec_cli.ops.session import Session

    session = Session(request, task, listener)
    session.run()
    written = session.write()
    unfinished(request.out).unlink(missing_ok=True)
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
    )


def default_epochs(data: str) -> int:
    """The paper's number of epochs for its tasks, some for all others."""
    return TASKS[data].epochs if data in TASKS else EPOCHS


def _parameters(request: Request) -> dict[str, Any]:
    return {
        "model": request.model,
        "data": request.data,
        **request.recipe.to_json(),
        "grid": request.grid.to_json() if request.grid else None,
        "pretrained": request.pretrained,
        "model_args": dict(request.args),
    }
