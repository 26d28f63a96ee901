"""The paper in one class: score(lambda) = accuracy(Q(theta_R + lambda * rho)), all in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from qvec_cli.checkpoint.dtypes import Array, from_float32, to_float32
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import NotFiniteError
from qvec_cli.inputs.images import Examples
from qvec_cli.inputs.network import load_network
from qvec_cli.learn.batches import Batch
from qvec_cli.learn.forward import Accuracy, measure
from qvec_cli.model.build import normalise
from qvec_cli.quant.methods import quantize_weight
from qvec_cli.specs import Grid, Listener, Method
from qvec_cli.vector.arithmetic import apply

Named = Iterator[tuple[str, Array]]
"""Float32 arrays of a network, one after the other."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A receiver, a vector and images, loaded once and measured at many lambdas.

    What is measured is what ``patch``, ``quantize`` and ``eval`` give one after the other, to
    the bit: the same functions, and the same rounding to the receiver's number format.
    """

    network: nn.Module  # of the receiver, on its device; its weights are overwritten
    theta: Mapping[str, Array]  # every floating tensor of the receiver, float32
    dtypes: Mapping[str, str]  # its number formats
    rho: Mapping[str, Array]  # the vector, float32
    targets: frozenset[str]  # names of the weights to quantize
    grid: Grid
    method: Method
    images: Mapping[str, Batch]  # by split
    normalise: Callable[[torch.Tensor], torch.Tensor]
    batch_size: int

    def score(self, lam: float, split: str) -> Accuracy:
        """Accuracy of Q(theta_R + lambda * rho) on a split."""
        return self.scores(lam, (split,))[split]

    def scores(self, lam: float, splits: Iterable[str]) -> dict[str, Accuracy]:
        """The same on several splits, for one quantization."""
        self.place(lam)
        return {split: self.measured(split) for split in splits}

    def place(self, lam: float) -> None:
        """Makes the network Q(theta_R + lambda * rho)."""
        self.put(self.quantized(self.patched(lam)))

    def float_score(self, split: str) -> Accuracy:
        """Accuracy of the receiver itself, not quantized."""
        return self.accuracy(iter(self.theta.items()), split)

    def patched(self, lam: float) -> Named:
        """theta_R + lambda * rho, in the values that the receiver's number formats can hold."""
        for name, theta in self.theta.items():
            if name not in self.rho:
                yield name, theta
                continue
            dtype = self.dtypes[name]
            with np.errstate(over="ignore", invalid="ignore"):  # its accuracy will tell
                exact = apply(theta, self.rho[name], lam)
            yield name, to_float32(from_float32(exact, dtype), dtype)

    def quantized(self, weights: Named) -> Named:
        """The same with every target on the grid."""
        for name, weight in weights:
            if not np.isfinite(weight).all():
                raise NotFiniteError(f"{name}: overflows")
            if name in self.targets:
                yield name, quantize_weight(name, weight, self.grid, self.method).restored
            else:
                yield name, weight

    def accuracy(self, weights: Named, split: str) -> Accuracy:
        """Measures the network with these weights."""
        self.put(weights)
        return self.measured(split)

    def put(self, weights: Named) -> None:
        """Overwrites the network's weights."""
        place = self.network.state_dict()
        with torch.no_grad():
            for name, weight in weights:
                place[name].copy_(torch.from_numpy(weight))

    def measured(self, split: str) -> Accuracy:
        """Accuracy of the network as it stands."""
        images, labels = self.images[split]
        return measure(
            self.network,
            images,
            labels,
            normalise=self.normalise,
            batch_size=self.batch_size,
        )


def load_trial(
    theta: Checkpoint,
    examples: Examples,
    targets: Iterable[str],
    splits: Iterable[str],
    device: str,
    listener: Listener,
) -> Trial:
    """A receiver in memory, plainly rounded on the paper's grid, without a vector.

    Another grid, method or rho goes in by ``dataclasses.replace``.
    """
    return Trial(
        network=load_network(theta, examples.model, device),
        theta=resident(theta),
        dtypes={name: entry.dtype for name, entry in theta.items()},
        rho={},
        targets=frozenset(targets),
        grid=Grid(),
        method=Method.RTN,
        images={split: examples.decoded(split, listener) for split in splits},
        normalise=normalise(examples.model),
        batch_size=examples.loading.batch_size,
    )


def resident(checkpoint: Checkpoint) -> dict[str, Any]:
    """Every floating tensor of a file, float32, finite."""
    return {name: checkpoint.finite(name) for name, entry in checkpoint.items() if entry.floating}
