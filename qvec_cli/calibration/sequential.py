"""Quantizes layer after layer, as calibration images find them behind the quantized ones before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qvec_cli.calibration.quantize_model import ModelQuantizer, QuantizedModel
from qvec_cli.checkpoint.dtypes import Array
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import MismatchError, NotFiniteError, located
from qvec_cli.inputs.images import Proxies, draw_each
from qvec_cli.inputs.receiver import Patched
from qvec_cli.inputs.rotated import Rotated
from qvec_cli.model.configuration import Model
from qvec_cli.quant.methods import QUANTIZERS, FloatTarget
from qvec_cli.quant.moments import Inputs
from qvec_cli.specs import Calibration, Listener, Stage, Target

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qvec_cli.calibration.trace import Call, Segment, Site


@dataclass(frozen=True, slots=True)
class CalibrationImages:
    """Images to calibrate with, drawn from their data sets and not yet decoded."""

    options: Calibration
    images: Proxies

    def facts(self) -> dict[str, Any]:
        """As cards and metrics name them."""
        target, corrected = self.options.target, self.options.bias_correction
        facts = {"images": self.images.facts(), "bias_correction": corrected}
        return facts if target is Target.QUANTIZED else {**facts, "target": target}


def draw_images(
    theta: Checkpoint, model: Model, options: Calibration, listener: Listener
) -> CalibrationImages:
    """Images of the train splits; whether they are the receiver's own, cards tell.
    Raises DataError: no such data set.
    """
    return CalibrationImages(options, draw_each(theta, model, options, listener))


def calibrate(quantizer: ModelQuantizer, calibration: CalibrationImages) -> QuantizedModel:
    """Quantizes every target in execution order, each behind its quantized predecessors.

    With ``Target.FLOAT`` each is to give its outputs in the receiver, which was not patched.
    Raises MismatchError: a target whose inputs cannot be seen; NotFiniteError: inputs that
    overflow, or biases and norms in the file's number format.
    """
    from qvec_cli.calibration.walk import Walk, mean_inputs

    theta, targets, options = quantizer.theta, quantizer.targets, calibration.options
    model, listener = calibration.images.model, quantizer.listener
    network = load_float(quantizer.source, model, options.device)
    weights = linear_weights(network, theta, targets)
    decoded = calibration.images.decoded(Stage(listener, 0, 0, len(targets)))
    batches = normalised_batches(network, model, decoded, options.loading.batch_size)
    with located(theta.path):
        resumed = QUANTIZERS[quantizer.method].factors is None  # they change norms before a site
        walk, twin = Walk(network, weights, batches, resumed=resumed), None
    goal = _Layers(network, weights)
    if options.target is Target.FLOAT:
        receiver = load_float(quantizer.receiver, model, options.device)
        goal = _Layers(receiver, linear_weights(receiver, theta, targets))
        twin = Walk(receiver, goal.weights, batches, resumed=True)
    quantizer.tell(QuantizedModel())  # the first layer takes longest: images go through all
    means: dict[str, Array] = {}
    if options.bias_correction:
        inputs_of = mean_inputs(goal.network, goal.weights, batches)
        means = {name: _numbers(w) @ inputs_of[name] for name, w in goal.weights.items()}
    layers = _LayerQuantizer(quantizer, network, goal if twin else None, means)
    for segment, site, inputs, calls in walk.steps(twin):
        require_finite_inputs(theta, site.names[0], inputs, "calibration images")
        layers.quantize(segment, site, inputs, calls[0])
        quantizer.tell(layers.model)
    if layers.unbiased:
        listener.note(f"{layers.unbiased} of {len(targets)} layers have no bias to correct")
    return layers.model


def check_images(theta: Checkpoint, targets: Iterable[str], model: Model, device: str) -> None:
    """Refuses, by headers alone, what ``calibrate`` would refuse; how often a layer is used,
    only a forward tells.
    Raises QvecError: no such device; tensors or targets that the network has not.
    """
    from qvec_cli.inputs.network import check_network

    network = check_network(theta, model, device)
    linear_weights(network, theta, targets)


def load_float(source: Checkpoint | Patched | Rotated, model: Model, device: str) -> nn.Module:
    """The network of a file, patched, rotated or not, in float32, in evaluation mode."""
    from qvec_cli.inputs import network as networks

    theta = source if isinstance(source, Checkpoint) else source.theta
    network = networks.load_network(theta, model, device).float().eval()
    if not isinstance(source, Checkpoint):
        source.place(network)
    return network


def linear_weights(
    network: nn.Module, theta: Checkpoint, targets: Iterable[str]
) -> dict[str, nn.Parameter]:
    """The parameters of targets, by name.
    Raises MismatchError: one that is not a linear layer's.
    """
    from qvec_cli.model.targets import modules

    listed = modules(network, (), aliases=True)
    linear = {f"{p}{attribute}": getattr(module, attribute) for p, module, attribute in listed}
    if others := [name for name in targets if name not in linear]:
        raise MismatchError(
            f"{theta.path}: {others[0]}: is not the weight of a linear layer",
            hint="Nothing else can be seen by images.",
        )
    return {name: linear[name] for name in targets}


def normalised_batches(
    network: nn.Module, model: Model, decoded: Tensor, batch_size: int
) -> list[Tensor]:
    """Decoded images, uint8 [N, C, H, W], as the network's inputs, on its device."""
    import torch

    from qvec_cli.model.build import normalise

    device, ready = next(network.parameters()).device, normalise(model)
    return [ready(part.to(device)) for part in torch.split(decoded, batch_size)]


def require_finite_inputs(theta: Checkpoint, name: str, inputs: Inputs, images: str) -> None:
    """Refuses inputs of a layer that overflow. Raises NotFiniteError: names the weight."""
    if not inputs.finite:
        raise NotFiniteError(
            f"{theta.path}: {name}: its inputs on the {images} overflow",
            hint="qvec eval tells whether the float checkpoint still works.",
        )


class _Layers(NamedTuple):
    """A network and its targets' weights, by name."""

    network: nn.Module
    weights: Mapping[str, nn.Parameter]


class _LayerQuantizer:
    """Quantizes the layers of a network where they are, so that later ones see it.

    ``goal`` has the layers whose outputs are to be given, None for the network's own; ``means``
    the mean outputs of the float layers without bias, by weight, if biases are to keep them.
    """

    def __init__(
        self,
        quantizer: ModelQuantizer,
        network: nn.Module,
        goal: _Layers | None,
        means: Mapping[str, Array],
    ) -> None:
        self.model = QuantizedModel()
        self.unbiased = 0  # layers without a bias to correct
        self._quantizer, self._goal, self._means = quantizer, goal, means
        self._parameters = dict(network.named_parameters())
        # Of a tied tensor, the file has one name, and not always the network's first.
        aliases = quantizer.theta.aliases
        self._names = {id(p): aliases.get(n, n) for n, p in self._parameters.items()}

    def quantize(self, segment: Segment, site: Site, inputs: Inputs, call: Call) -> None:
        """Quantizes the weights of a site and corrects their biases."""
        inputs = self._divided(segment, site, inputs, call)
        method = self._quantizer.method
        for name, parameter in zip(site.names, site.weights, strict=True):
            target, change = None, self._bias_change(name)
            if self._goal is not None:
                target = FloatTarget(_numbers(self._goal.weights[name]), change)
            weight = _numbers(parameter)
            quantized = self._quantizer.on_grid(name, weight, method, inputs, target)
            self.model.weights[name] = quantized.codes
            self.model.sqnr_db[name] = quantized.sqnr_db
            _put(parameter, quantized.restored)
            if name in self._means:
                mean = self._means[name] + (0 if change is None else change)
                self._correct(name, quantized.restored @ inputs.mean - mean)

    def _bias_change(self, name: str) -> Array | None:
        """The bias of the layer whose outputs are to be given, less the layer's own."""
        if self._goal is None:
            return None
        parameters = dict(self._goal.network.named_parameters(remove_duplicate=False))
        ours, theirs = self._parameters.get(_bias_of(name)), parameters.get(_bias_of(name))
        return None if ours is None or theirs is None else _numbers(theirs) - _numbers(ours)

    def _divided(self, segment: Segment, site: Site, inputs: Inputs, call: Call) -> Inputs:
        """Inputs divided by the method's factors, where a LayerNorm before the site takes them."""
        import torch

        from qvec_cli.calibration.walk import fold

        factors = QUANTIZERS[self._quantizer.method].factors
        if factors is None or not site.norms:
            return inputs
        grid = self._quantizer.grid.of(site.names[0])
        by = factors([*map(_numbers, site.weights)], grid, inputs)
        norm = site.norms[-1]
        if not fold(segment, site, torch.from_numpy(by).to(norm.weight.device), call):
            return inputs
        for parameter in (norm.weight, norm.bias):
            if parameter is not None:
                name = self._names[id(parameter)]
                self._keep(parameter, self._quantizer.representable(name, _numbers(parameter)))
        return Inputs(inputs.moment / np.outer(by, by), inputs.mean / by, inputs.magnitude / by)

    def _correct(self, name: str, mean_error: Array) -> None:
        """Gives a layer's outputs the mean that they have in the float network."""
        bias = self._parameters.get(_bias_of(name))
        if bias is None:
            self.unbiased += 1
            return
        place = self._names[id(bias)]
        self._keep(bias, self._quantizer.corrected_bias(place, _numbers(bias), mean_error))

    def _keep(self, parameter: nn.Parameter, values: Array) -> None:
        """Changes a bias or a norm, in the network too, so that later layers see it."""
        _put(parameter, values)
        self.model.floats[self._names[id(parameter)]] = values


def _bias_of(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"


def _numbers(parameter: Tensor) -> Array:
    return np.array(parameter.detach().cpu().numpy())


def _put(parameter: Tensor, values: Array) -> None:
    import torch

    with torch.no_grad():
        parameter.copy_(torch.from_numpy(values))
