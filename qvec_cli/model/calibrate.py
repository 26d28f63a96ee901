"""Calibration images on their way through a network, layer by layer behind quantized ones.

A segment is a part of the network that is run on its own: a block, from the inputs that the
quantized blocks before it gave. Where one block's output is the next one's input, which the first
images tell, it is carried over; else the network is run anew up to there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from qvec_cli.errors import MismatchError
from qvec_cli.quant.inputs import Inputs

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What a module is called with."""

_SAME: Final = 1e-4
"""Largest change of a block's output, relative to its largest number, that is only rounding."""


@dataclass(frozen=True, slots=True)
class Site:
    """Layers that are called with one and the same tensor, queries, keys and values for example."""

    names: list[str]  # of their weights in the state dict
    modules: list[nn.Module]
    norms: list[nn.LayerNorm]  # of as many features, called before them in their segment


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the network, and its layers in the order in which they are called."""

    module: nn.Module
    sites: list[Site] = field(default_factory=list)


class _Reached(Exception):  # noqa: N818 - not an error
    """A forward has come as far as it was to come."""


class Walk:
    """Visits every layer in execution order.

    Args:
        network: in evaluation mode; its weights are read anew at each step, so that what the
            caller has changed before is what the images go through.
        layers: the module of each weight that is to be visited, by state-dict name.
        batches: inputs of the network, normalised.

    Raises:
        MismatchError: a layer that is not called exactly once in a forward.
    """

    def __init__(
        self, network: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Tensor]
    ) -> None:
        self._network, self._batches = network, batches
        trace = _Trace(network, layers, batches[0][:2])
        self._linked = trace.linked
        self.segments = trace.segments

    @torch.inference_mode()
    def steps(self) -> Iterator[tuple[Segment, Site, Inputs, list[Call]]]:
        """Each site with the moments of its inputs; change its weights before asking for more."""
        calls: list[Call] | None = None
        for place, segment in enumerate(self.segments):
            if calls is None:
                calls = self._reach(segment.module)
            for site in segment.sites:
                yield segment, site, _moments(segment.module, site.modules[0], calls), calls
            linked = place + 1 < len(self.segments) and self._linked[place]
            calls = [_after(segment.module, call) for call in calls] if linked else None

    def _reach(self, module: nn.Module) -> list[Call]:
        """What a module is called with, batch by batch, by the network as it is now."""
        found: list[Call] = []

        def seize(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append((args, kwargs))
            raise _Reached

        with _hooked(module, seize):
            for batch in self._batches:
                _run(self._network, ((batch,), {}))
        return found


@torch.inference_mode()
def fold(segment: Segment, site: Site, by: Tensor, call: Call) -> bool:
    """Divides a site's inputs in the LayerNorm before it and multiplies its weights.

    Leaves everything as it was, and says so, if the block's output changes: then others use the
    LayerNorm's output too, or something that is not linear lies between.
    """
    if not site.norms:
        return False
    norm, before = site.norms[-1], segment.module(*call[0], **call[1])
    owned = [p for p in (norm.weight, norm.bias) if p is not None]
    weights = [weight_of(module) for module in site.modules]
    kept = [p.detach().clone() for p in (*owned, *weights)]
    for parameter in owned:
        parameter.div_(by)
    for weight in weights:
        weight.mul_(by)
    change = (segment.module(*call[0], **call[1]) - before).abs().max()
    if float(change) <= _SAME * float(before.abs().max()):
        return True
    for parameter, old in zip((*owned, *weights), kept, strict=True):
        parameter.copy_(old)
    return False


def weight_of(layer: nn.Module) -> nn.Parameter:
    """The weight that is quantized, [out, in]."""
    fused = isinstance(layer, nn.MultiheadAttention)
    found: nn.Parameter = layer.in_proj_weight if fused else layer.weight  # type: ignore[assignment]
    return found


def bias_of(layer: nn.Module) -> nn.Parameter | None:
    """The bias beside it, [out]."""
    fused = isinstance(layer, nn.MultiheadAttention)
    found: nn.Parameter | None = layer.in_proj_bias if fused else layer.bias  # type: ignore[assignment]
    return found


class _Trace:
    """One forward of a few images that tells the order of things."""

    def __init__(self, network: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> None:
        self._calls: dict[nn.Module, list[Call]] = {}
        self._outputs: dict[nn.Module, Any] = {}
        self._order: list[nn.Module] = []
        chosen = {id(module) for module in layers.values()}
        blocks = [*_blocks(network, chosen)]
        norms = [m for m in network.modules() if isinstance(m, nn.LayerNorm) and _affine(m)]
        watched = {*blocks, *layers.values(), *norms}
        handles = [m.register_forward_pre_hook(self._enter, with_kwargs=True) for m in watched]
        handles += [m.register_forward_hook(self._leave) for m in blocks]
        try:
            with torch.inference_mode():
                network(images)
        finally:
            for handle in handles:
                handle.remove()
        self._check(layers)
        self.segments = [*self._segments(layers, blocks)]
        pairs = zip(self.segments, self.segments[1:], strict=False)
        self.linked = [self._follows(first.module, second.module) for first, second in pairs]

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._order.append(module)
        self._calls.setdefault(module, []).append((args, kwargs))

    def _leave(self, module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
        self._outputs[module] = output

    def _check(self, layers: Mapping[str, nn.Module]) -> None:
        for name, module in layers.items():
            if (times := len(self._calls.get(module, ()))) != 1:
                raise MismatchError(
                    f"{name}: its layer is called {times} times in a forward, not once: "
                    "its inputs cannot be seen",
                    hint="Use a method without calibration, or leave it out with --targets.",
                )

    def _segments(
        self, layers: Mapping[str, nn.Module], blocks: Sequence[nn.Module]
    ) -> Iterator[Segment]:
        """Segments in order; a layer in no block, or in one that is called twice, is its own."""
        once = [block for block in blocks if len(self._calls.get(block, ())) == 1]
        home = {layer: block for block in once for layer in block.modules()}
        named: dict[nn.Module, list[str]] = {}
        for name, module in layers.items():
            named.setdefault(module, []).append(name)
        segment, norms = None, []
        for module in self._order:
            if isinstance(module, nn.LayerNorm):
                norms.append(module)
            if module not in named:
                continue
            place = home.get(module, module)
            if segment is None or segment.module is not place:
                if segment is not None:
                    yield segment
                segment = Segment(place)
            self._add(segment, named[module], module, norms)
        if segment is not None:
            yield segment

    def _add(
        self, segment: Segment, names: list[str], module: nn.Module, norms: list[nn.LayerNorm]
    ) -> None:
        seen = _input(self._calls[module][0])
        for site in segment.sites:
            if _input(self._calls[site.modules[0]][0]) is seen:
                site.names.extend(names)
                site.modules.append(module)
                return
        inside = {*segment.module.modules()}
        width = (seen.shape[-1],)
        fitting = [n for n in norms if n in inside and tuple(n.normalized_shape) == width]
        segment.sites.append(Site([*names], [module], fitting))

    def _follows(self, first: nn.Module, second: nn.Module) -> bool:
        """Whether the second is called with what the first gave, and all else as the first was."""
        if first not in self._outputs or second not in self._outputs:
            return False
        (old, old_named), (new, new_named) = self._calls[first][0], self._calls[second][0]
        if not (new and new[0] is self._outputs[first] and len(new) == len(old)):
            return False
        others = zip(new[1:], old[1:], strict=True)
        return old_named.keys() == new_named.keys() and all(
            one is other or (not isinstance(one, Tensor) and one == other)
            for one, other in (*others, *((new_named[k], old_named[k]) for k in old_named))
        )


def _blocks(network: nn.Module, chosen: set[int]) -> Iterator[nn.Module]:
    """The innermost items of lists of modules that hold two chosen layers or more."""

    def holds(module: nn.Module) -> bool:
        return sum(id(part) in chosen for part in module.modules()) > 1

    items = [
        item
        for container in network.modules()
        if isinstance(container, nn.Sequential | nn.ModuleList)
        for item in container
        if holds(item)
    ]
    outer = {id(part) for item in items for part in items if _contains(part, item)}
    yield from (item for item in items if id(item) not in outer)


def _contains(outer: nn.Module, inner: nn.Module) -> bool:
    return outer is not inner and any(part is inner for part in outer.modules())


def _affine(norm: nn.LayerNorm) -> bool:
    return norm.elementwise_affine


def _moments(segment: nn.Module, layer: nn.Module, calls: Sequence[Call]) -> Inputs:
    """Moments of a layer's inputs over the calls of its segment, summed in float64."""
    total, tokens = _Sums(), 0

    def seize(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal tokens
        seen = _input((args, kwargs))
        flat = seen.reshape(-1, seen.shape[-1]).float()
        total.add(flat)
        tokens += len(flat)
        raise _Reached

    with _hooked(layer, seize):
        for call in calls:
            _run(segment, call)
    return total.inputs(tokens)


class _Sums:
    def __init__(self) -> None:
        self.moment: Any = 0
        self.mean: Any = 0
        self.magnitude: Any = 0

    def add(self, tokens: Tensor) -> None:
        self.moment = self.moment + (tokens.T @ tokens).double()
        self.mean = self.mean + tokens.sum(0, dtype=torch.float64)
        self.magnitude = self.magnitude + tokens.abs().sum(0, dtype=torch.float64)

    def inputs(self, tokens: int) -> Inputs:
        parts = (self.moment, self.mean, self.magnitude)
        return Inputs(*(np.asarray((part / tokens).cpu()) for part in parts))


def _input(call: Call) -> Tensor:
    """The tensor that a layer multiplies with its weight.

    Raises:
        MismatchError: attention whose query, key and value differ.
    """
    args, kwargs = call
    seen = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    first = seen[0]
    if len(args) >= 3 and not all(other is first for other in args[:3]):
        raise MismatchError("cross-attention cannot be calibrated: its inputs differ")
    return first


def _after(segment: nn.Module, call: Call) -> Call:
    args, kwargs = call
    return (segment(*args, **kwargs), *args[1:]), kwargs


def _run(module: nn.Module, call: Call) -> None:
    try:
        module(*call[0], **call[1])
    except _Reached:
        return
    raise AssertionError("a layer was not reached")


class _hooked:  # noqa: N801 - used like a function
    """A hook on a module's inputs for the time of a block."""

    def __init__(self, module: nn.Module, hook: Callable[..., None]) -> None:
        self._handle = module.register_forward_pre_hook(hook, with_kwargs=True)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._handle.remove()
