"""A training run as named arrays and back, to the bit: weights, moments, random stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch

from qvec_cli.learn import ranks
from qvec_cli.learn.fit import TrainingRun

Array = np.ndarray[Any, np.dtype[Any]]


Naming = Callable[[str], str]
"""From a parameter's name in the network to its name in files, wrappers or not."""


_MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")

_RNG: Final = "rng.torch"


def take(fit: TrainingRun, plain_name: Naming) -> dict[str, Array]:
    """Everything that the next step depends on but the place in the run."""
    arrays = {
        f"network.{plain_name(name)}": tensor.detach().cpu().numpy()
        for name, tensor in fit.network.state_dict().items()
    }
    for name, parameter in fit.network.named_parameters():
        for key, value in fit.optimizer.state.get(parameter, {}).items():
            arrays[f"adam.{key}.{plain_name(name)}"] = value.cpu().numpy()
    return {**arrays, _RNG: torch.get_rng_state().numpy()}


def restore(fit: TrainingRun, arrays: Mapping[str, Array], plain_name: Naming) -> None:
    """Puts a run back to where ``take`` saw it."""
    own = fit.network.state_dict()
    fit.network.load_state_dict(
        {name: _tensor(arrays[f"network.{plain_name(name)}"]) for name in own}
    )
    for name, parameter in fit.network.named_parameters():
        keys = {key: f"adam.{key}.{plain_name(name)}" for key in _MOMENTS}
        if keys["step"] in arrays:
            fit.optimizer.state[parameter] = {
                key: _tensor(arrays[stored]).to("cpu" if key == "step" else parameter.device)
                for key, stored in keys.items()
            }
    torch.set_rng_state(_tensor(arrays[_RNG]))


def align(fit: TrainingRun) -> None:
    """Gives every rank the moments of the first one; weights follow when training begins."""
    if fit.world.size == 1:
        return
    parameters = list(fit.network.parameters())
    state = fit.optimizer.state
    known = ranks.from_first(fit.world, [parameter in state for parameter in parameters])
    for parameter, there in zip(parameters, known, strict=True):
        if there:
            moments = state[parameter] or {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
            }
            ranks.align(fit.world, [moments[key] for key in _MOMENTS])
            state[parameter] = moments


def _tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(array))
