"""Quantizes layer after layer, as calibration images find them behind the quantized ones before."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from qvec_cli.checkpoint.dtypes import Array, from_float32, to_float32
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import MismatchError, NotFiniteError, SpecError
from qvec_cli.inputs.patched import Patched
from qvec_cli.inputs.proxies import Proxies, draw_each
from qvec_cli.model.configuration import Model
from qvec_cli.quant.float_target import aim
from qvec_cli.quant.methods import QUANTIZERS
from qvec_cli.quant.moments import Inputs
from qvec_cli.quant.qtensor import QTensor, sqnr_db
from qvec_cli.quant.rtn import rtn
from qvec_cli.specs import Calibration, Grid, Listener, Method, Target

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qvec_cli.calibration.walk import Call, Segment, Site


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What calibration has made of a network."""

    weights: dict[str, QTensor] = field(default_factory=dict)
    floats: dict[str, Array] = field(default_factory=dict)  # biases and norms that it changed
    ratios: dict[str, float | None] = field(default_factory=dict)  # see ``sqnr_db``


@dataclass(frozen=True, slots=True)
class Images:
    """Calibration images that have been found, not yet decoded."""

    wanted: Calibration
    pool: Proxies

    def facts(self) -> dict[str, Any]:
        """As cards and metrics name them."""
        target, corrected = self.wanted.target, self.wanted.bias_correction
        facts = {"images": self.pool.facts(), "bias_correction": corrected}
        return facts if target is Target.QUANTIZED else {**facts, "target": target}


def check_wanted(method: Method, wanted: Calibration | None) -> None:
    """Refuses images without a use for them, and a method without the images that it needs.

    Raises:
        SpecError: either.
    """
    needs = QUANTIZERS[method].calibrated
    if wanted is None and needs:
        raise SpecError(
            f"--method {method} needs images: --calib is missing",
            hint="Some hundred of any data set do, without labels too: DIR/train/any/*.png."
            + (" gptq also takes --moments FILE." if method is Method.GPTQ else ""),
        )
    if wanted and wanted.target is Target.FLOAT and not QUANTIZERS[method].aims:
        raise SpecError(
            f"--target float is not for --method {method}",
            hint="Only gptq makes good in one layer what others before it have lost.",
        )
    if wanted and not (needs or wanted.bias_correction):
        raise SpecError(
            f"--calib is of no use to --method {method}",
            hint="It goes with --method gptq or awq, or with --bias-correction.",
        )


def find_images(
    theta: Checkpoint, model: Model | None, wanted: Calibration | None
) -> Images | None:
    """The images, drawn from the train splits; whether they are the receiver's own, cards tell.

    Raises:
        DataError: no such data set.
    """
    if wanted is None or model is None:
        return None
    return Images(wanted, draw_each(theta, model, wanted))


def calibrate(
    source: Checkpoint | Patched,
    targets: Collection[str],
    grid: Grid,
    method: Method,
    images: Images,
    listener: Listener,
) -> Calibrated:
    """Quantizes every target in execution order, each behind its quantized predecessors.

    With ``Target.FLOAT`` each aims at its outputs in the receiver, which was not patched.

    Raises:
        MismatchError: a target whose inputs cannot be seen.
        NotFiniteError: inputs that overflow, or biases and norms in the file's number format.
    """
    import torch

    from qvec_cli.calibration.walk import Walk, abreast, mean_inputs
    from qvec_cli.model.build import normalise

    model = images.pool.model
    theta = source.theta if isinstance(source, Patched) else source
    network = load_float(source, model, images.wanted.device)
    weights = linear_weights(network, theta, targets)
    decoded = images.pool.decoded(listener)
    device, step = next(network.parameters()).device, images.wanted.loading.batch_size
    batches = [normalise(model)(part.to(device)) for part in torch.split(decoded, step)]
    try:
        walk = Walk(network, weights, batches)
    except MismatchError as error:
        raise MismatchError(f"{theta.path}: {error}", hint=error.hint) from None
    goal = _Goal(network, weights)
    if images.wanted.target is Target.FLOAT:
        other = load_float(theta, model, images.wanted.device)
        goal = _Goal(other, linear_weights(other, theta, targets))
    means = {}
    if images.wanted.bias_correction:
        seen = mean_inputs(goal.network, goal.weights, batches)
        means = {name: _numbers(weight) @ seen[name] for name, weight in goal.weights.items()}
    run = _MethodRun(theta, grid, method, means, network)
    steps = walk.steps()
    if goal.network is not network:
        run.goal = goal
        steps = abreast(walk, Walk(goal.network, goal.weights, batches))
    for segment, site, inputs, calls in steps:
        if not inputs.finite:
            raise NotFiniteError(
                f"{theta.path}: {site.names[0]}: its inputs on the calibration images overflow",
                hint="qvec eval tells whether the float checkpoint still works.",
            )
        run.visit(segment, site, inputs, calls)
        listener.progress(f"quantize ({method})", len(run.made.weights), len(targets))
    if run.unbiased:
        listener.note(f"{run.unbiased} of {len(targets)} layers have no bias to correct")
    return run.made


def check_images(theta: Checkpoint, targets: Iterable[str], model: Model, device: str) -> None:
    """Refuses, by headers alone, what ``calibrate`` would refuse; how often a layer is used,
    only a forward tells.

    Raises:
        QvecError: no such device; tensors or targets that the network has not.
    """
    from qvec_cli.inputs.network import check_network

    network = check_network(theta, model, device)
    linear_weights(network, theta, targets)


def load_float(source: Checkpoint | Patched, model: Model, device: str) -> nn.Module:
    """The network of a file, patched or not, computing in float32, in evaluation mode."""
    from qvec_cli.inputs import network as networks

    theta = source.theta if isinstance(source, Patched) else source
    network = networks.load_network(theta, model, device).float().eval()
    if isinstance(source, Patched):
        source.place(network)
    return network


def linear_weights(
    network: nn.Module, theta: Checkpoint, targets: Iterable[str]
) -> dict[str, nn.Parameter]:
    """The parameters of targets, by name.

    Raises:
        MismatchError: one that is not a linear layer's.
    """
    from qvec_cli.model.targets import modules

    listed = modules(network, (), aliases=True)
    found = {f"{p}{attribute}": getattr(module, attribute) for p, module, attribute in listed}
    if strange := [name for name in targets if name not in found]:
        raise MismatchError(
            f"{theta.path}: {strange[0]}: is not the weight of a linear layer",
            hint="Nothing else can be seen by images.",
        )
    return {name: found[name] for name in targets}


@dataclass(frozen=True, slots=True)
class _Goal:
    """The network whose outputs each layer is to give."""

    network: nn.Module
    weights: Mapping[str, nn.Parameter]

    def bias(self, name: str) -> Array | None:
        """What a layer adds, by the name of its weight."""
        owned = dict(self.network.named_parameters(remove_duplicate=False))
        bias = owned.get(_bias_of(name))
        return None if bias is None else _numbers(bias)


class _MethodRun:
    """One method at work on a network."""

    def __init__(
        self,
        theta: Checkpoint,
        grid: Grid,
        method: Method,
        means: Mapping[str, Array],
        network: nn.Module,
    ) -> None:
        self.made = Calibrated()
        self._theta = theta
        self.unbiased = 0
        self.goal: _Goal | None = None  # if it is not the network itself
        self._grid, self._quantizer = grid, QUANTIZERS[method]
        self._means = means  # mean outputs of the float layers without bias, if they are to be kept
        self._parameters = dict(network.named_parameters())
        # Of a tied tensor, the file has one name, and not always the network's first.
        self._names = {id(p): theta.aliases.get(n, n) for n, p in self._parameters.items()}

    def visit(self, segment: Segment, site: Site, inputs: Inputs, calls: list[Call]) -> None:
        """Quantizes the weights of a site where they are, so that later layers see it."""
        inputs = self._smooth(segment, site, inputs, calls[0])
        for name, place in zip(site.names, site.weights, strict=True):
            weight = _numbers(place)
            quantized = self._quantized(name, weight, inputs)
            shown = quantized.weight()
            self.made.weights[name] = quantized
            self.made.ratios[name] = sqnr_db(weight, shown)
            _put(place, shown)
            if name in self._means:
                shift = self._shift(name)
                wanted = self._means[name] + (0 if shift is None else shift)
                self._correct(name, shown @ inputs.mean - wanted)

    def _quantized(self, name: str, weight: Array, inputs: Inputs) -> QTensor:
        if self.goal is not None:
            receiver = _numbers(self.goal.weights[name])
            weight, inputs = aim(receiver, weight, inputs, self._shift(name))
        if self._quantizer.calibrated and not self._quantizer.spares(name):
            return self._quantizer.run(weight, self._grid, inputs)
        return rtn(weight, self._grid)

    def _shift(self, name: str) -> Array | None:
        """By how much the bias that is aimed at is above the layer's own."""
        ours = self._parameters.get(_bias_of(name))
        theirs = self.goal.bias(name) if self.goal else None
        return None if ours is None or theirs is None else theirs - _numbers(ours)

    def _smooth(self, segment: Segment, site: Site, inputs: Inputs, call: Call) -> Inputs:
        """The method's factors, moved into the LayerNorm before the site where there is one."""
        import torch

        from qvec_cli.calibration.walk import fold

        if self._quantizer.factors is None or not site.norms:
            return inputs
        by = self._quantizer.factors([*map(_numbers, site.weights)], self._grid, inputs)
        norm = site.norms[-1]
        if not fold(segment, site, torch.from_numpy(by).to(norm.weight.device), call):
            return inputs
        for parameter in (norm.weight, norm.bias):
            if parameter is not None:
                self._keep(parameter, _numbers(parameter))
        return Inputs(inputs.moment / np.outer(by, by), inputs.mean / by, inputs.magnitude / by)

    def _correct(self, name: str, mean_error: Array) -> None:
        """Nagel et al. 2019, arXiv:1906.04721: the output has the mean of the float network's."""
        bias = self._parameters.get(_bias_of(name))
        if bias is None:
            self.unbiased += 1
            return
        self._keep(bias, (_numbers(bias) - mean_error).astype(np.float32))

    def _keep(self, parameter: nn.Parameter, values: Array) -> None:
        """Changes a bias or a norm to what the file can hold, so that later layers see that."""
        name = self._names[id(parameter)]
        dtype = self._theta[name].dtype
        held = to_float32(from_float32(values, dtype), dtype)
        if not np.isfinite(held).all():
            raise NotFiniteError(f"{self._theta.path}: {name}: overflows {dtype} in calibration")
        _put(parameter, held)
        self.made.floats[name] = held


def _bias_of(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"


def _numbers(parameter: Tensor) -> Array:
    return np.array(parameter.detach().cpu().numpy())


def _put(parameter: Tensor, values: Array) -> None:
    import torch

    with torch.no_grad():
        parameter.copy_(torch.from_numpy(values))
