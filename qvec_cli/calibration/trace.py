"""The order in which a network uses its weights, and how their outputs go on: one forward tells.

A segment is a part of the network that is run on its own: a block, or the whole network for what
lies in no block. What a layer sees is what ``torch.nn.functional.linear`` multiplies with its
weight: BEiT, EVA and SwinV2 use the weights of layers that they never call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from qvec_cli.errors import MismatchError

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What a module is called with."""

_SAME: Final = 1e-4
"""Largest share of a change that is only rounding."""

_SMALL_GAIN: Final = 0.05
"""Share of the median below which what a channel lacks is not asked of a layer."""


class Addition(NamedTuple):
    """A layer's output is added to the stream of a block: stream + gain * output."""

    norm: nn.LayerNorm  # its input is the stream before
    gain: Tensor  # [out], a LayerScale; 0 where it is next to nothing


@dataclass(frozen=True, slots=True)
class Site:
    """Weights that are multiplied with one and the same tensor: queries, keys and values, say."""

    names: list[str]  # in the state dict
    weights: list[nn.Parameter]
    norms: list[nn.LayerNorm]  # as wide, called before them in their segment and nowhere else
    added: Addition | None = None  # of the one weight's output, where it is added to the stream


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the network, and its sites in the order in which they are reached."""

    module: nn.Module
    sites: list[Site] = field(default_factory=list)


class Tracing:
    """One forward of a few images that tells the order of things."""

    def __init__(
        self, network: nn.Module, weights: Mapping[str, nn.Parameter], images: Tensor
    ) -> None:
        self._calls: dict[nn.Module, list[Call]] = {}
        self._outputs: dict[nn.Module, Any] = {}
        self._order: list[nn.LayerNorm | nn.Parameter] = []
        self._streams: dict[int, Tensor] = {}  # inputs of norms, by their place in the order
        self._seen: dict[int, list[Tensor]] = {id(weight): [] for weight in weights.values()}
        blocks = [*_blocks(network, set(self._seen))]
        norms = [m for m in network.modules() if isinstance(m, nn.LayerNorm)]
        norms = [norm for norm in norms if norm.elementwise_affine]
        handles = [m.register_forward_pre_hook(self._enter, with_kwargs=True) for m in blocks]
        handles += [m.register_forward_hook(self._leave) for m in blocks]
        handles += [m.register_forward_pre_hook(self._normalise) for m in norms]
        try:
            with torch.inference_mode(), linears(self._multiply):
                network(images)
        finally:
            for handle in handles:
                handle.remove()
        self._check(weights)
        self.segments = [*self._segments(network, weights, blocks)]
        for segment in self.segments:
            sites = [replace(site, added=self._addition(segment, site)) for site in segment.sites]
            segment.sites[:] = sites
        pairs = zip(self.segments, self.segments[1:], strict=False)
        self.linked = [self._follows(first.module, second.module) for first, second in pairs]

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls.setdefault(module, []).append((args, kwargs))

    def _leave(self, module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
        self._outputs[module] = output

    def _normalise(self, norm: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(norm, nn.LayerNorm)
        self._streams[len(self._order)] = args[0]
        self._order.append(norm)

    def _multiply(self, weight: nn.Parameter, inputs: Tensor) -> None:
        if id(weight) in self._seen:
            self._seen[id(weight)].append(inputs)
            self._order.append(weight)

    def _check(self, weights: Mapping[str, nn.Parameter]) -> None:
        for name, weight in weights.items():
            if (times := len(self._seen[id(weight)])) != 1:
                raise MismatchError(
                    f"{name}: is used {times} times in a forward, not once: what it is "
                    "multiplied with cannot be told",
                    hint="Use a method without calibration, or leave it out with --targets.",
                )

    def _segments(
        self, network: nn.Module, weights: Mapping[str, nn.Parameter], blocks: Sequence[nn.Module]
    ) -> Iterator[Segment]:
        """Segments in order; a block that is called twice is none."""
        once = [block for block in blocks if len(self._calls.get(block, ())) == 1]
        home = {id(weight): block for block in once for weight in block.parameters()}
        named: dict[int, list[str]] = {}
        for name, weight in weights.items():
            named.setdefault(id(weight), []).append(name)
        segment: Segment | None = None
        norms: list[nn.LayerNorm] = []
        for used in self._order:
            if isinstance(used, nn.LayerNorm):
                norms.append(used)
                continue
            place = home.get(id(used), network)
            if segment is None or segment.module is not place:
                if segment is not None:
                    yield segment
                segment = Segment(place)
            self._add(segment, named[id(used)], used, norms)
        if segment is not None:
            yield segment

    def _add(
        self, segment: Segment, names: list[str], weight: nn.Parameter, norms: list[nn.LayerNorm]
    ) -> None:
        (seen,) = self._seen[id(weight)]
        for site in segment.sites:
            if self._seen[id(site.weights[0])][0] is seen:
                site.names.extend(names)
                site.weights.append(weight)
                return
        inside, width = {*segment.module.modules()}, (seen.shape[-1],)
        fitting = [n for n in norms if n in inside and tuple(n.normalized_shape) == width]
        # A norm whose weights are used once in a forward, by whatever module.
        uses = [id(used.weight) for used in self._order if isinstance(used, nn.LayerNorm)]
        once = [norm for norm in fitting if uses.count(id(norm.weight)) == 1]
        segment.sites.append(Site([*names], [weight], once))

    def _addition(self, segment: Segment, site: Site) -> Addition | None:
        """How a site's output is added to the stream, if that is what its block does with it.

        The stream is what the last norm before takes in; with the output it is what the next
        norm takes in, or what the block gives.
        """
        output = self._outputs.get(segment.module)
        if len(site.weights) > 1 or not isinstance(output, Tensor):
            return None
        inside = {*segment.module.modules()}
        place = next(n for n, used in enumerate(self._order) if used is site.weights[0])
        streams = [
            (n, tensor)
            for n, tensor in self._streams.items()
            if self._order[n] in inside and _alike(tensor, output)
        ]
        before = [n for n, _ in streams if n < place]
        after = next((tensor for n, tensor in streams if n > place), output)
        if not before:
            return None
        (seen,) = self._seen[id(site.weights[0])]
        gain = _gain(self._streams[before[-1]], after, seen, site.weights[0])
        norm = self._order[before[-1]]
        assert isinstance(norm, nn.LayerNorm)
        return None if gain is None else Addition(norm, gain)

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
    """The innermost items of lists of modules that hold two chosen weights or more."""
    items = [
        item
        for container in network.modules()
        if isinstance(container, nn.Sequential | nn.ModuleList)
        for item in container
        if sum(id(weight) in chosen for weight in item.parameters()) > 1
    ]
    known = set(items)
    for item in items:
        if not any(part in known for part in item.modules() if part is not item):
            yield item


def _alike(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have as many tokens and channels, in whatever shape."""
    return first.numel() == second.numel() and first.shape[-1] == second.shape[-1]


def _gain(before: Tensor, after: Tensor, inputs: Tensor, weight: Tensor) -> Tensor | None:
    """The vector g with which after = before + g * (inputs W^T + bias); None if there is none."""
    if inputs.numel() // inputs.shape[-1] != before.numel() // before.shape[-1]:
        return None
    if weight.shape[0] != before.shape[-1]:
        return None
    apart = [tensor.reshape(-1, tensor.shape[-1]).double() for tensor in (after, before, inputs)]
    change, made = apart[0] - apart[1], apart[2] @ weight.double().T
    change, made = change - change.mean(0), made - made.mean(0)
    gain = (change * made).sum(0) / made.square().sum(0).clamp_min(1e-30)
    left = (change - gain * made).square().sum()
    if not bool(left <= _SAME * change.square().sum()) or not bool(gain.any()):
        return None
    small = gain.abs() < _SMALL_GAIN * gain.abs().median()
    return gain.masked_fill(small, 0).to(weight.dtype)


@contextlib.contextmanager
def linears(
    seen: Callable[[nn.Parameter, Tensor], None],
    given: Callable[[nn.Parameter, Tensor], None] = lambda weight, output: None,
) -> Iterator[None]:
    """Tells of every product with a weight, also of those inside nn.MultiheadAttention.

    ``seen`` hears of the inputs before, ``given`` of the outputs after.
    """
    plain, fast = functional.linear, torch.backends.mha.get_fastpath_enabled()

    def linear(input: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:  # noqa: A002
        seen(weight, input)
        output = plain(input, weight, bias)
        given(weight, output)
        return output

    functional.linear = linear
    torch.backends.mha.set_fastpath_enabled(False)  # it would multiply unseen
    try:
        yield
    finally:
        functional.linear = plain
        torch.backends.mha.set_fastpath_enabled(fast)
