"""Weights that train through their rounding, and come out with the names they had.

A parametrization fake-quantizes each target in every forward; its gradient is the identity
(straight-through, arXiv:1308.3432), also where a weight is clamped, and the scale is computed
anew each time. Nothing here draws a random number, so a donor and its twin see the same stream.
Parameter order changes: make the optimizer after ``prepare``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qvec_cli.model.configuration import Model
from qvec_cli.model.targets import classifiers, modules
from qvec_cli.quant.scales import fake_quantize
from qvec_cli.specs import Grid


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, grid: Grid) -> Tensor:
        return torch.as_tensor(fake_quantize(weight, grid))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class FakeQuantize(nn.Module):
    """Shows a weight as its grid would store it."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.enabled = True

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on the grid, or the weight itself while disabled."""
        if not self.enabled:
            return weight
        on_grid: Tensor = _StraightThrough.apply(weight, self.grid)
        return on_grid


def prepare(network: nn.Module, model: Model, grid: Grid) -> None:
    """Lets the network compute with fake-quantized targets from now on."""
    for prefix, module, attribute in list(modules(network, classifiers(model))):
        on_grid = FakeQuantize(grid.of(f"{prefix}{attribute}"))
        parametrize.register_parametrization(module, attribute, on_grid, unsafe=True)


def strip(network: nn.Module) -> None:
    """Gives the network its plain weights back; a network without wrappers stays as it is."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            for attribute in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)


def plain_name(name: str) -> str:
    """The state-dict name a parameter has without wrappers."""
    return name.replace("parametrizations.", "").removesuffix(".original")


@contextlib.contextmanager
def float_forward(network: nn.Module) -> Iterator[bool]:
    """Computes with the latent weights inside the block; yields whether there are wrappers."""
    wrappers = [m for m in network.modules() if isinstance(m, FakeQuantize)]
    for wrapper in wrappers:
        wrapper.enabled = False
    try:
        yield bool(wrappers)
    finally:
        for wrapper in wrappers:
            wrapper.enabled = True
