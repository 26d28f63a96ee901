"""Forward passes over decoded images: logits, features, and how often the network is right."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from qvec_cli.errors import NotFiniteError

Array = np.ndarray[Any, np.dtype[Any]]

Normalise = Callable[[Tensor], Tensor]
"""From uint8 images to a network's input."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of a network for N images."""

    logits: Array  # [N, classes], float32
    features: Array  # [N, width], float32: the input of the classifier


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Counts over one split; accuracies are shares in [0, 1]."""

    n: int
    n_correct: int
    n_correct_top5: int  # among the k highest logits, k = min(5, classes)
    loss: float  # mean cross-entropy, nats
    seconds: float
    n_correct_even: int = field(default=0, compare=False)  # of images 0, 2, 4, ... as they came

    @property
    def top1(self) -> float:
        """Share of images whose highest logit is right."""
        return self.n_correct / self.n

    @property
    def top5(self) -> float:
        """Share of images whose label is among the five highest logits."""
        return self.n_correct_top5 / self.n

    @property
    def standard_error(self) -> float:
        """Binomial standard error of top1."""
        return float((self.top1 * (1 - self.top1) / self.n) ** 0.5)

    def to_json(self) -> dict[str, float]:
        """The score as metrics files hold it."""
        return {
            "n": self.n,
            "n_correct": self.n_correct,
            "top1": self.top1,
            "n_correct_top5": self.n_correct_top5,
            "top5": self.top5,
            "loss": self.loss,
            "standard_error": self.standard_error,
            "images_per_second": self.n / max(self.seconds, 1e-9),
        }


class BatchCounts(NamedTuple):
    """What one batch adds to a score."""

    n: int
    n_correct: int
    n_correct_top5: int
    loss: float  # summed over images
    n_correct_even: int  # of images 0, 2, 4, ...


@torch.no_grad()
def logits(network: nn.Module, images: Tensor, normalise: Normalise, batch_size: int) -> Tensor:
    """The logits of a network for decoded images, float32 [N, classes].

    Raises NotFiniteError: a logit that is not a number.
    """
    device = next(network.parameters()).device
    parts = [network(normalise(part.to(device))) for part in torch.split(images, batch_size)]
    whole = torch.cat(parts).float()
    if not bool(whole.isfinite().all()):
        raise _broken()
    return whole


@torch.inference_mode()
def outputs(
    network: nn.Module,
    images: Tensor,
    *,
    head: nn.Module | None,
    normalise: Normalise,
    batch_size: int,
) -> Outputs:
    """Runs a network over decoded images.

    Args:
        network: put into evaluation mode and back as it was.
        images: uint8 [N, C, H, W].
        head: the classifier, whose input is the features; without one, logits are.
        normalise: from uint8 to the network's input.
        batch_size: images per forward.

    Raises NotFiniteError: a logit that is not a number.
    """
    inputs: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) if head else None
    try:
        with _evaluating(network):
            whole = logits(network, images, normalise, batch_size).cpu()
    finally:
        if hook:
            hook.remove()
    features = torch.cat([part.float().cpu().flatten(1) for part in inputs]) if inputs else whole
    return Outputs(whole.numpy(), features.numpy())


def measure(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    normalise: Normalise,
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Accuracy:
    """The score of a network on decoded images; see ``batch_counts`` for the arguments.

    Raises NotFiniteError: a logit that is not a number.
    """
    started = time.perf_counter()
    counts = batch_counts(
        network, images, labels, normalise=normalise, batch_size=batch_size, progress=progress
    )
    return accuracy_of(counts, time.perf_counter() - started)


def accuracy_of(counts: Sequence[BatchCounts], seconds: float) -> Accuracy:
    """The sum over batches, in their order: the same counts give the same score to the bit.

    Raises NotFiniteError: a logit that is not a number.
    """
    loss = 0.0
    for batch in counts:
        loss += batch.loss
    if not math.isfinite(loss):
        raise _broken()
    n = sum(batch.n for batch in counts)
    right, right5 = sum(b.n_correct for b in counts), sum(b.n_correct_top5 for b in counts)
    even = sum(batch.n_correct_even for batch in counts)
    return Accuracy(n, right, right5, loss / n, seconds, even)


@torch.inference_mode()
def batch_counts(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    normalise: Normalise,
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[BatchCounts]:
    """Evaluates on decoded images, batch by batch.

    Args:
        network: put into evaluation mode and back as it was.
        images: uint8 [N, C, H, W], on any device.
        labels: int64 [N].
        normalise: from uint8 to the network's input.
        batch_size: images per forward.
        progress: called with the images done so far.
    """
    device = next(network.parameters()).device
    counts = []
    with _evaluating(network):
        for start in range(0, len(images), batch_size):
            batch = normalise(images[start : start + batch_size].to(device))
            target = labels[start : start + batch_size].to(device)
            scores = network(batch).float()
            loss = float(functional.cross_entropy(scores, target, reduction="sum"))
            best = scores.topk(min(5, scores.shape[1])).indices == target[:, None]
            first, even = best[:, 0], best[start % 2 :: 2, 0]
            right = int(first.sum()), int(best.sum())
            counts.append(BatchCounts(len(batch), *right, loss, int(even.sum())))
            progress(min(start + batch_size, len(images)))
    return counts


_FAULTS: Final = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(RuntimeError, TypeError, ValueError),
)
"""What a network raises for images that it cannot take."""


@torch.no_grad()
def training_fault(
    network: nn.Module, shape: Sequence[int], *, amp: bool, texts: bool = False
) -> Exception | None:
    """What a forward of training fails with, if it does; nothing is changed by it.

    The random streams and the buffers, such as running means, are as before.

    Args:
        network: put into training mode and back as it was; on the meta device an operation that
            the device does not have is no fault.
        shape: of the images, [N, C, H, W], or of tokens, [N, tokens].
        texts: whether these are tokens.
        amp: whether training computes in bfloat16 where it may.
    """
    device, was_training = next(network.parameters()).device, network.training
    batch = torch.ones(*shape, dtype=torch.long) if texts else torch.zeros(*shape)
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    network.train()
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.autocast("cpu" if device.type == "meta" else device.type, torch.bfloat16, amp),
        ):
            network(batch.to(device))
    except _FAULTS as fault:
        lacking = isinstance(fault, NotImplementedError) or "meta" in str(fault)
        return None if device.type == "meta" and lacking else fault
    finally:
        network.train(was_training)
        for buffer, before in buffers:
            buffer.copy_(before)
    return None


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, then as before."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def _broken() -> NotFiniteError:
    return NotFiniteError(
        "the network's outputs are not finite",
        hint="qvec inspect FILE names tensors that are not finite.",
    )
