"""How closely a quantized network follows its float self on images, without any label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from qvec_cli.errors import NotFiniteError
from qvec_cli.specs import Measure

Array = np.ndarray[Any, np.dtype[Any]]
Normalise = Callable[[Tensor], Tensor]
"""From uint8 images to a network's input."""

TELLING: Final = 0.3
"""Nats of mutual information between image and class below which classes say little."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a network makes of N images."""

    logits: Array  # [N, classes], float32
    features: Array  # [N, width], float32: what the classifier is given


@torch.no_grad()
def logits(network: nn.Module, images: Tensor, normalise: Normalise, batch_size: int) -> Tensor:
    """What a network says to decoded images, float32 [N, classes].

    Raises:
        NotFiniteError: a logit that is not a number.
    """
    device = next(network.parameters()).device
    parts = [network(normalise(part.to(device))) for part in torch.split(images, batch_size)]
    found = torch.cat(parts).float()
    if not bool(found.isfinite().all()):
        raise NotFiniteError(
            "a logit is not a number; the model is broken",
            hint="qvec inspect FILE names tensors that are not finite.",
        )
    return found


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

    Raises:
        NotFiniteError: a logit that is not a number.
    """
    was_training = network.training
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0])) if head else None
    network.eval()
    try:
        whole = logits(network, images, normalise, batch_size).cpu()
    finally:
        network.train(was_training)
        if handle:
            handle.remove()
    found = torch.cat([part.float().cpu().flatten(1) for part in seen]) if seen else whole
    return Outputs(whole.numpy(), found.numpy())


def distances(teacher: Outputs, student: Outputs, measure: Measure) -> Array:
    """How far each image's answer has moved, float64 [N]; 0 is perfect agreement.

    ``kl``: KL(softmax of the teacher || softmax of the student), nats. ``features``: the squared
    change of the classifier's input, relative to the teacher's mean squared length of what
    differs between images.
    """
    if measure is Measure.FEATURES:
        apart = student.features.astype(np.float64) - teacher.features
        around = teacher.features - teacher.features.mean(axis=0, dtype=np.float64)
        length = float(np.square(around).sum(axis=1).mean())
        return np.asarray(np.square(apart).sum(axis=1) / max(length, 1e-30))
    ours, theirs = log_softmax(teacher.logits), log_softmax(student.logits)
    return np.asarray((np.exp(ours) * (ours - theirs)).sum(axis=1))


def choose_measure(teacher: Outputs) -> Measure:
    """Classes, where the teacher tells the images apart by them; else features."""
    return Measure.KL if information(teacher) >= TELLING else Measure.FEATURES


def information(teacher: Outputs) -> float:
    """Mutual information between image and predicted class, nats: H(mean p) - mean H(p)."""
    logs = log_softmax(teacher.logits)
    chances = np.exp(logs)
    mean = chances.mean(axis=0)
    of_mean = -float((mean * np.log(np.maximum(mean, 1e-300))).sum())
    return of_mean + float((chances * logs).sum(axis=1).mean())


def diversity(teacher: Outputs) -> float:
    """How much the features of images differ, as a share of their mean squared length.

    Near 0 where a network sees the same in every image, as it does in white noise. The direction
    in which they differ most is left out: blank images differ in little else.
    """
    features = teacher.features.astype(np.float64)
    spread = np.square(np.linalg.svd(features - features.mean(axis=0), compute_uv=False))
    length = float(np.square(features).sum())
    return float(spread[1:].sum()) / max(length, 1e-30)


def log_softmax(logits: Array) -> Array:
    """Logarithms of class probabilities, float64 [N, classes]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
