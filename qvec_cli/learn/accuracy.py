"""How often a network is right, in whole counts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from qvec_cli.errors import NotFiniteError


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Counts over one split; accuracies are shares in [0, 1]."""

    n: int
    n_correct: int
    n_correct_top5: int  # among the k highest logits, k = min(5, classes)
    loss: float  # mean cross-entropy, nats
    seconds: float

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


def measure(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    normalise: Callable[[Tensor], Tensor],
    batch_size: int,
    heard: Callable[[int], None] = lambda done: None,
) -> Accuracy:
    """The score of a network on decoded images; see ``parts`` for the arguments.

    Raises:
        NotFiniteError: a logit that is not a number.
    """
    started = time.perf_counter()
    found = parts(network, images, labels, normalise=normalise, batch_size=batch_size, heard=heard)
    return score(found, time.perf_counter() - started)


def score(found: Sequence[BatchCounts], seconds: float) -> Accuracy:
    """The sum over batches, in their order: the same parts give the same score to the bit.

    Raises:
        NotFiniteError: a logit that is not a number.
    """
    loss = 0.0
    for part in found:
        loss += part.loss
    if not math.isfinite(loss):
        raise NotFiniteError(
            "a logit is not a number; the model is broken",
            hint="qvec inspect FILE names tensors that are not finite.",
        )
    n = sum(part.n for part in found)
    right, right5 = sum(p.n_correct for p in found), sum(p.n_correct_top5 for p in found)
    return Accuracy(n, right, right5, loss / n, seconds)


@torch.inference_mode()
def parts(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    normalise: Callable[[Tensor], Tensor],
    batch_size: int,
    heard: Callable[[int], None] = lambda done: None,
) -> list[BatchCounts]:
    """Evaluates on decoded images, batch by batch.

    Args:
        network: put into evaluation mode and back as it was.
        images: uint8 [N, C, H, W], on any device.
        labels: int64 [N].
        normalise: from uint8 to the network's input.
        batch_size: images per forward.
        heard: called with the images done so far.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    found = []
    for start in range(0, len(images), batch_size):
        batch = normalise(images[start : start + batch_size].to(device))
        target = labels[start : start + batch_size].to(device)
        logits = network(batch).float()
        loss = float(functional.cross_entropy(logits, target, reduction="sum"))
        best = logits.topk(min(5, logits.shape[1])).indices == target[:, None]
        found.append(BatchCounts(len(batch), int(best[:, 0].sum()), int(best.sum()), loss))
        heard(min(start + batch_size, len(images)))
    network.train(was_training)
    return found
