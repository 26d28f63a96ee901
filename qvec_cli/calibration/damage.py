"""How much a network loses when one layer is rounded to so many bits: what widths are chosen by.

Losses of layers are taken to add up. Images tell most: how much an error of each output of a layer
changes the answers (its Fisher information), and how large the errors are that rounding makes of
the layer's inputs. Moments from a file tell the second alone, and weights neither: then the loss
is what share of a layer's outputs, or of its weights, is noise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from qvec_cli.calibration.quantize_model import ModelQuantizer
from qvec_cli.calibration.sequential import (
    CalibrationImages,
    linear_weights,
    load_float,
    normalised_batches,
    require_finite_inputs,
)
from qvec_cli.checkpoint.dtypes import Array
from qvec_cli.errors import located
from qvec_cli.quant.moments import output_error
from qvec_cli.quant.scales import rtn
from qvec_cli.specs import Grid, Stage

if TYPE_CHECKING:
    from torch import Tensor, nn

Damage = Mapping[int, float]
"""By width, from 0 up."""

_BATCH: Final = 16
"""Images of which the gradients are in memory at once."""

_SEED: Final = 0
"""Of the classes that are drawn from the network's own answers."""


class Sensitivity(NamedTuple):
    """What images tell of a layer."""

    moment: Array  # [in, in]: mean of x x^T over the tokens
    fisher: Array  # [out]: mean over images of the sum over tokens of (d loss / d output)^2


def damages(
    quantizer: ModelQuantizer,
    images: CalibrationImages | None,
    widths: Iterable[int],
    listener: Stage,
) -> dict[str, Damage]:
    """Of every target at every width, rounded to nearest on the quantizer's grid.

    Raises MismatchError: a target whose inputs cannot be seen; NotFiniteError: inputs that
    overflow.
    """
    targets, grid, source = quantizer.targets, quantizer.grid, quantizer.source
    known = _by_images(quantizer, images, listener) if images else None
    result: dict[str, Damage] = {}
    for done, name in enumerate(targets, start=1):
        weight = source.finite(name)
        loss = _relative_noise(weight)
        if known is not None:
            loss = _loss(known[name])
        elif quantizer.moments is not None:
            moment = quantizer.moments.inputs(name).moment
            loss = _relative_output_noise(weight, moment)
        with located(quantizer.theta.path):
            result[name] = {bits: loss(_error(name, weight, grid, bits)) for bits in widths}
        listener.progress(f"layer {done}/{len(targets)}", done, len(targets))
    return result


def _error(name: str, weight: Array, grid: Grid, bits: int) -> Array:
    """What rounding changes of a weight [out, in]."""
    chosen = Grid.from_json({**grid.of(name).to_json(), "bits": bits})
    with located(name), np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(rtn(weight, chosen).weight()) - weight


def _relative_noise(weight: Array) -> Callable[[Array], float]:
    power = float(np.square(weight, dtype=np.float64).sum()) or 1.0
    return lambda error: float(np.square(error, dtype=np.float64).sum()) / power


def _relative_output_noise(weight: Array, moment: Array) -> Callable[[Array], float]:
    power = float(output_error(weight, moment).sum()) or 1.0
    return lambda error: float(output_error(error, moment).sum()) / power


def _loss(known: Sensitivity) -> Callable[[Array], float]:
    """Half the Fisher information along the error: nats of KL to the float answers, to first order.

    Errors of different outputs are taken to be independent.
    """
    return lambda error: 0.5 * float(known.fisher @ output_error(error, known.moment))


def _by_images(
    quantizer: ModelQuantizer, images: CalibrationImages, listener: Stage
) -> dict[str, Sensitivity]:
    """One pass of the images forth and back: what each target's inputs and gradients are like."""
    import torch

    from qvec_cli.calibration.walk import site_moments

    theta, options = quantizer.theta, images.options
    network = load_float(quantizer.source, images.images.model, options.device)
    weights = linear_weights(network, theta, quantizer.targets)
    decoded = images.images.decoded(listener)
    batches = normalised_batches(network, images.images.model, decoded, _BATCH)
    moments: dict[str, Array] = {}
    with located(theta.path):
        for site, inputs, _ in site_moments(network, weights, batches):
            require_finite_inputs(theta, site.names[0], inputs, "calibration images")
            moments |= dict.fromkeys(site.names, inputs.moment)
    with torch.enable_grad():
        squares = _squared_gradients(network, weights, batches)
    return {name: Sensitivity(moments[name], squares[name]) for name in weights}


def _squared_gradients(
    network: nn.Module, weights: Mapping[str, nn.Parameter], batches: Sequence[Tensor]
) -> dict[str, Array]:
    """Of each layer's outputs, [out]: the mean over images of sums over tokens.

    The loss is the cross entropy of a class that is drawn from the network's own answer, so that
    the mean square is the diagonal of the Fisher information; no label is read.
    """
    import torch
    from torch.nn import functional

    from qvec_cli.calibration.trace import linears

    sums: dict[int, Any] = {id(weight): 0 for weight in weights.values()}

    def given(weight: nn.Parameter, output: Tensor) -> None:
        if id(weight) in sums:
            seize = functools.partial(add, id(weight))
            output.register_hook(seize)  # type: ignore[no-untyped-call]

    def add(key: int, gradient: Tensor) -> None:
        rows = gradient.reshape(-1, gradient.shape[-1])
        sums[key] = sums[key] + rows.square().sum(0, dtype=torch.float64)

    draw = torch.Generator().manual_seed(_SEED)
    count = sum(len(batch) for batch in batches)
    for batch in batches:
        with linears(lambda weight, inputs: None, given):
            logits = network(batch)
        chances = logits.detach().float().softmax(1).cpu()
        classes = torch.multinomial(chances, 1, generator=draw)[:, 0].to(logits.device)
        loss = functional.cross_entropy(logits.float(), classes, reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        network.zero_grad()
    return {name: (sums[id(weight)] / count).cpu().numpy() for name, weight in weights.items()}
