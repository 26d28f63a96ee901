"""Teaches a network another one's outputs through a few of its tensors, without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from qvec_cli.errors import NotFiniteError
from qvec_cli.learn.forward import Normalise, logits

FEW: Final = 4
"""Classes below which a softmax says too little of a network: logits themselves are compared."""


@dataclass(frozen=True, slots=True)
class DistillOptions:
    """How long and how fast a network learns."""

    steps: int
    lr: float = 3e-3  # peak of Adam's, in relative change of a tensor; cosine to zero
    batch_size: int = 64
    seed: int = 0  # of the order of images


@dataclass(frozen=True, slots=True)
class TeacherOutputs:
    """Images, and the logits of the teacher for them."""

    images: Tensor  # uint8 [N, C, H, W]
    logits: Tensor  # float32 [N, classes]
    normalise: Normalise
    batch_size: int  # images per forward where nothing is learned


def loss_name(classes: int) -> str:
    """Which of its two losses ``distance`` takes."""
    return "kl" if classes >= FEW else "logit_error"


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """How far a student's logits [N, classes] are from a teacher's, on average over images.

    KL(teacher || student) in nats; below ``FEW`` classes, squared error over the teacher's square.
    """
    if teacher.shape[1] >= FEW:
        ours, theirs = (functional.log_softmax(values, dim=1) for values in (student, teacher))
        return functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")
    return (student - teacher).square().sum() / teacher.square().sum().clamp_min(1e-12)


def measured(network: nn.Module, examples: TeacherOutputs) -> float:
    """``distance`` of a network from the teacher, as it stands.

    Raises NotFiniteError: a logit that is not a number.
    """
    student = logits(network, examples.images, examples.normalise, examples.batch_size)
    return float(distance(student, examples.logits))


def distill(
    network: nn.Module,
    examples: TeacherOutputs,
    free: Mapping[str, Tensor],
    build: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    options: DistillOptions,
    progress: Callable[[int, float], None] = lambda done, loss: None,
) -> dict[str, Tensor]:
    """Moves a few tensors so that the network's logits come near the teacher's; returns them.

    Args:
        network: in evaluation mode; left as it was.
        examples: to learn from.
        free: the tensors that move, as they start.
        build: from ``free`` to tensors of the network, by their names in it; the others stay.
        options: steps, rate and seed: the same ones, on one machine, give the same bits.
        progress: called after each step with its number and loss.

    Raises NotFiniteError: a loss that is not a number.
    """
    moving = {name: value.clone().requires_grad_() for name, value in free.items()}
    optimizer = torch.optim.Adam(moving.values(), lr=options.lr)
    device = next(network.parameters()).device
    network.requires_grad_(False)
    order = _batches(len(examples.images), options)
    for step in range(options.steps):
        places = next(order)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * (1 + math.cos(math.pi * step / options.steps)) / 2
        inputs = examples.normalise(examples.images[places].to(device))
        student = functional_call(network, build(moving), (inputs,))
        loss = distance(student.float(), examples.logits[places.to(device)])
        if not bool(loss.isfinite()):
            raise NotFiniteError(
                f"the loss of refinement is not a number at step {step + 1}",
                hint="Leave --refine out.",
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress(step + 1, float(loss.detach()))
    return {name: value.detach() for name, value in moving.items()}


def _batches(count: int, options: DistillOptions) -> Iterator[Tensor]:
    """Places of images, in an order drawn anew each time that all have been seen."""
    generator = torch.Generator().manual_seed(options.seed)
    while True:
        yield from torch.split(torch.randperm(count, generator=generator), options.batch_size)
