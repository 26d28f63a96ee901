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
from qvec_cli.learn.answers import Normalise, logits

FEW: Final = 4
"""Classes below which a softmax says too little of a network: logits themselves are compared."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """How long and how fast."""

    steps: int
    lr: float = 3e-3  # peak of Adam's, in relative change of a tensor; cosine to zero
    batch_size: int = 64
    seed: int = 0  # of the order of images


@dataclass(frozen=True, slots=True)
class Pupils:
    """Images and what the teacher says to them."""

    images: Tensor  # uint8 [N, C, H, W]
    wanted: Tensor  # logits of the teacher, float32 [N, classes]
    normalise: Normalise
    batch_size: int  # images per forward where nothing is learned


def loss_name(classes: int) -> str:
    """Which of its two losses ``distance`` takes."""
    return "kl" if classes >= FEW else "logit_error"


def distance(found: Tensor, wanted: Tensor) -> Tensor:
    """How far logits [N, classes] are from a teacher's, on average over images.

    KL(teacher || found) in nats; below ``FEW`` classes, squared error over the teacher's square.
    """
    if wanted.shape[1] >= FEW:
        ours, theirs = (functional.log_softmax(values, dim=1) for values in (found, wanted))
        return functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")
    return (found - wanted).square().sum() / wanted.square().sum().clamp_min(1e-12)


def measured(network: nn.Module, pupils: Pupils) -> float:
    """``distance`` of a network as it stands.

    Raises:
        NotFiniteError: a logit that is not a number.
    """
    found = logits(network, pupils.images, pupils.normalise, pupils.batch_size)
    return float(distance(found, pupils.wanted))


def distill(
    network: nn.Module,
    pupils: Pupils,
    free: Mapping[str, Tensor],
    build: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    lesson: Lesson,
    heard: Callable[[int, float], None] = lambda done, loss: None,
) -> dict[str, Tensor]:
    """What the free tensors have become.

    Args:
        network: in evaluation mode; left as it was.
        pupils: to learn from.
        free: what moves, from where it starts.
        build: from ``free`` to tensors of the network, by their names in it; the others stay.
        lesson: steps, rate and seed: the same ones, on one machine, give the same bits.
        heard: called after each step with its number and loss.

    Raises:
        NotFiniteError: a loss that is not a number.
    """
    moving = {name: value.clone().requires_grad_() for name, value in free.items()}
    optimizer = torch.optim.Adam(moving.values(), lr=lesson.lr)
    device = next(network.parameters()).device
    network.requires_grad_(False)
    order = _batches(len(pupils.images), lesson)
    for step in range(lesson.steps):
        places = next(order)
        for group in optimizer.param_groups:
            group["lr"] = lesson.lr * (1 + math.cos(math.pi * step / lesson.steps)) / 2
        inputs = pupils.normalise(pupils.images[places].to(device))
        found = functional_call(network, build(moving), (inputs,))
        loss = distance(found.float(), pupils.wanted[places.to(device)])
        if not bool(loss.isfinite()):
            raise NotFiniteError(
                f"the loss of refinement is not a number at step {step + 1}",
                hint="Leave --refine out.",
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        heard(step + 1, float(loss.detach()))
    return {name: value.detach() for name, value in moving.items()}


def _batches(count: int, lesson: Lesson) -> Iterator[Tensor]:
    """Places of images, in an order drawn anew each time that all have been seen."""
    generator = torch.Generator().manual_seed(lesson.seed)
    while True:
        yield from torch.split(torch.randperm(count, generator=generator), lesson.batch_size)
