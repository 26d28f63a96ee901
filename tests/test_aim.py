"""The weight that a layer behind quantized ones aims at, against plain least squares."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qvec_cli.calibration.walk import Walk
from qvec_cli.quant.gptq import PULL, aim, gptq
from qvec_cli.quant.moments import Inputs, output_error
from qvec_cli.specs import Grid

RNG = np.random.default_rng(0)
FLOATS = RNG.standard_normal((400, 12)) @ RNG.standard_normal((12, 12))
BEHIND = FLOATS + 0.3 * RNG.standard_normal(FLOATS.shape) + 0.1
RECEIVER = RNG.standard_normal((7, 12)).astype(np.float32)
PATCHED = (RECEIVER + 0.1 * RNG.standard_normal(RECEIVER.shape)).astype(np.float32)
SHIFT = RNG.standard_normal(7)


def seen(ours: Any, floats: Any) -> Inputs:
    count = len(ours)
    return Inputs(ours.T @ ours / count, ours.mean(0), abs(ours).mean(0), floats.T @ ours / count)


@pytest.mark.parametrize("shift", [None, SHIFT], ids=["", "shift"])
@pytest.mark.parametrize("pull", [RECEIVER, PATCHED], ids=["receiver", "patched"])
def test_it_solves_the_ridge_problem(pull: Any, shift: Any) -> None:
    """Stacked below the data, the pull is so many rows more."""
    inputs = seen(BEHIND, FLOATS)
    held = np.sqrt(PULL * np.diag(inputs.moment).mean() * len(BEHIND)) * np.eye(12)
    wanted = FLOATS @ RECEIVER.T.astype(float) + (0 if shift is None else shift)
    rows = np.vstack([BEHIND, held]), np.vstack([wanted, held @ pull.T])
    expected = np.linalg.lstsq(*rows, rcond=None)[0].T
    found, _ = aim(RECEIVER, pull, inputs, shift)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6 * abs(expected).max())


def test_what_the_stream_lacks_is_asked_of_the_layer_too() -> None:
    missing = RNG.standard_normal((len(BEHIND), 7)) + BEHIND[:, :7]
    inputs = replace(seen(BEHIND, FLOATS), missing=missing.T @ BEHIND / len(BEHIND))
    held = np.sqrt(PULL * np.diag(inputs.moment).mean() * len(BEHIND)) * np.eye(12)
    wanted = FLOATS @ RECEIVER.T.astype(float) + missing
    rows = np.vstack([BEHIND, held]), np.vstack([wanted, held @ RECEIVER.T])
    expected = np.linalg.lstsq(*rows, rcond=None)[0].T
    found, _ = aim(RECEIVER, RECEIVER, inputs)
    np.testing.assert_allclose(found, expected, atol=1e-6 * abs(expected).max())


def test_behind_nothing_quantized_the_weight_is_its_own_goal() -> None:
    found, inputs = aim(RECEIVER, RECEIVER, seen(FLOATS, FLOATS))
    np.testing.assert_allclose(found, RECEIVER, atol=1e-6)
    held = PULL * np.diag(seen(FLOATS, FLOATS).moment).mean()
    np.testing.assert_allclose(inputs.moment - seen(FLOATS, FLOATS).moment, held * np.eye(12))


def test_without_inputs_the_pull_stays() -> None:
    nothing = np.zeros_like(FLOATS)
    assert np.array_equal(aim(RECEIVER, PATCHED, seen(nothing, nothing))[0], PATCHED)


def test_an_error_costs_under_the_moment_what_it_does_in_the_problem() -> None:
    inputs = seen(BEHIND, FLOATS)
    best, held = aim(RECEIVER, PATCHED, inputs)
    ridge = PULL * np.diag(inputs.moment).mean()

    def cost(weight: Any) -> Any:
        apart = BEHIND @ weight.T.astype(float) - FLOATS @ RECEIVER.T
        return (apart**2).mean(0) + ridge * ((weight - PATCHED) ** 2).sum(1)

    other = PATCHED + 0.3
    np.testing.assert_allclose(cost(other) - cost(best), output_error(other - best, held.moment))


def test_an_input_of_the_float_network_that_overflows_is_seen() -> None:
    inputs = seen(BEHIND, FLOATS)
    assert inputs.finite
    assert inputs.cross is not None
    inputs.cross[0, 0] = np.inf
    assert not inputs.finite


class Chain(nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(12, 10, bias=False), nn.Linear(10, 7, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.second(self.first(images))
        return found


def test_on_a_chain_the_second_layer_makes_good_what_the_first_has_lost() -> None:
    ours, theirs = Chain(), Chain()
    batches = [*torch.tensor(FLOATS, dtype=torch.float32).split(150)]
    walks = [Walk(n, dict(n.named_parameters()), batches) for n in (ours, theirs)]
    images, found = torch.cat(batches), {}
    for _, site, inputs, _ in walks[0].steps(walks[1]):
        weight = site.weights[0]
        first, second = (n.first(images) if site.names[0] == "second.weight" else images
                         for n in (ours, theirs))  # fmt: skip
        expected = (second.T.double() @ first.double() / len(images)).detach().numpy()
        np.testing.assert_allclose(inputs.cross, expected, rtol=1e-5, atol=1e-6)
        float_weight = weight.detach().numpy().copy()
        found[site.names[0]], held = aim(float_weight, float_weight, inputs)
        shown = gptq(found[site.names[0]], Grid(2), held).weight()
        with torch.no_grad():
            weight.copy_(torch.tensor(shown))
    rounded = images.double() @ ours.first.weight.double().T
    wanted = theirs(images).double().detach().numpy()

    def error(weight: Any) -> float:
        return float(((rounded.detach().numpy() @ weight.T - wanted) ** 2).mean())

    assert error(found["second.weight"]) < 0.8 * error(theirs.second.weight.detach().numpy())
