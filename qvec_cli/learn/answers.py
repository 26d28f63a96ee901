"""What a network makes of images: logits, and the features that its classifier is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qvec_cli.errors import NotFiniteError

Array = np.ndarray[Any, np.dtype[Any]]

Normalise = Callable[[Tensor], Tensor]
"""From uint8 images to a network's input."""


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
