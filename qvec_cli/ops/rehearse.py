"""A training run up to its first step: a network without numbers, and all checks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import torch

from qvec_cli.checkpoint.dtypes import name_of
from qvec_cli.checkpoint.header import Entry
from qvec_cli.learn.data import Task
from qvec_cli.model import build
from qvec_cli.model.targets import of_network
from qvec_cli.ops.grids import check_fit
from qvec_cli.ops.metrics import Metrics
from qvec_cli.ops.opening import opened
from qvec_cli.ops.plan import TORCH, Plan
from qvec_cli.ops.start import Request, stored_model
from qvec_cli.ops.state import device, outline
from qvec_cli.specs import Listener

_PER_WEIGHT: Final = 5 * 4
"""Bytes: the weight, its gradient, two moments of AdamW, and the state that is written."""


def rehearse(request: Request, task: Task, listener: Listener, started: float) -> Metrics:
    """The plan of a run; activations, which depend on the network, are not in its memory.

    Raises:
        QvecError: what the run would be refused for.
    """
    device(request.device)
    classes = len(task.classes)
    if request.source is None:
        with torch.device("meta"):
            network, model = build.create(replace(request.wish(classes), pretrained=False))
        return _plan(request, task, network, model).metrics((), started)
    with opened(request.source, listener) as base:
        with torch.device("meta"):
            if request.initial_checkpoint is not None:
                network, model = build.create(request.wish(classes))
            else:
                model = stored_model(request, base, classes)
                network = build.rebuild(model)
        build.start_from(network, outline(base), model, str(request.source))
        return _plan(request, task, network, model).metrics((base,), started)


def _plan(request: Request, task: Task, network: torch.nn.Module, model: dict[str, Any]) -> Plan:
    state = network.state_dict()
    outline = {n: Entry(name_of(t.dtype), tuple(t.shape)) for n, t in state.items()}
    fates = dict.fromkeys(outline, "trained")
    fates |= {name: "kept: not floating" for name, e in outline.items() if not e.floating}
    if request.grid:
        targets = of_network(network, model)
        check_fit({name: outline[name].shape for name in targets}, request.grid, request.model)
        fates |= dict.fromkeys(targets, f"trained through {request.grid}")
    images = {name: len(samples) for name, samples in task.splits.items()}
    held = sum(e.size for e in outline.values()) * _PER_WEIGHT
    pixels = build.pixels(model) * (images.get("train", 0) + images.get("val", 0))
    command = "train-qat" if request.grid else "finetune"
    parameters = {"epochs": request.recipe.epochs, "batch_size": request.recipe.batch_size}
    memory = TORCH + held + pixels
    return Plan(command, request.out, fates, outline, parameters, memory, images, request.data)
