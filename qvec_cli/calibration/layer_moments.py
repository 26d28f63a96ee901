"""Moments of every layer's inputs in one pass of a float network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qvec_cli.calibration.walk import Site, Walk, linears
from qvec_cli.quant.moments import Inputs


@dataclass(slots=True)
class _Sums:
    moment: Any = 0
    mean: Any = 0
    magnitude: Any = 0
    tokens: int = 0

    def add(self, inputs: Tensor) -> None:
        """In float32 within a batch, in float64 over batches."""
        flat = inputs.reshape(-1, inputs.shape[-1]).float()
        ones = flat.new_ones(len(flat))
        self.moment = self.moment + (flat.T @ flat).double()
        self.mean = self.mean + (ones @ flat).double()
        self.magnitude = self.magnitude + (ones @ flat.abs()).double()
        self.tokens += len(flat)

    def inputs(self) -> Inputs:
        parts = (self.moment, self.mean, self.magnitude)
        return Inputs(*((part / self.tokens).cpu().numpy() for part in parts))


@torch.inference_mode()
def collect(
    network: nn.Module,
    weights: Mapping[str, nn.Parameter],
    batches: Sequence[Tensor],
    heard: Callable[[int], None] = lambda done: None,
) -> Iterator[tuple[Site, Inputs, int]]:
    """Each site with the moments of its inputs and the number of its tokens, in execution order.

    Args:
        network: in evaluation mode.
        weights: those that are to be seen, by state-dict name.
        batches: inputs of the network, normalised.
        heard: told how many batches have gone through.

    Raises:
        MismatchError: a weight that is not used exactly once in a forward.
    """
    walk = Walk(network, weights, batches)
    sites = [site for segment in walk.segments for site in segment.sites]
    sums = {id(site.weights[0]): _Sums() for site in sites}

    def add(used: nn.Parameter, inputs: Tensor) -> None:
        if id(used) in sums:
            sums[id(used)].add(inputs)

    with linears(add):
        for done, batch in enumerate(batches, start=1):
            network(batch)
            heard(done)
    for site in sites:
        found = sums.pop(id(site.weights[0]))
        yield site, found.inputs(), found.tokens
