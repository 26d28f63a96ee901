"""Calibration images on their way through a network, layer by layer behind quantized ones.

A segment is a part of the network that is run on its own: a block, from the inputs that the
quantized blocks before it gave. Where one block's output is the next one's input, which the first
images tell, it is carried over; else the network is run anew up to there. What lies in no block
has the whole network for its segment.

What a layer sees is what ``torch.nn.functional.linear`` multiplies with its weight: BEiT, EVA and
SwinV2 use the weights of layers that they never call.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from qvec_cli.errors import MismatchError
from qvec_cli.quant.moments import Inputs

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What a module is called with."""

_SAME: Final = 1e-4
"""Largest change of a block's output, relative to its largest number, that is only rounding."""

_BAND: Final = 128
"""Fewest rows of a moment that are worth a product of their own."""


@dataclass(frozen=True, slots=True)
class Site:
    """Weights that are multiplied with one and the same tensor: queries, keys and values, say."""

    names: list[str]  # in the state dict
    weights: list[nn.Parameter]
    norms: list[nn.LayerNorm]  # as wide, called before them in their segment and nowhere else


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the network, and its sites in the order in which they are reached."""

    module: nn.Module
    sites: list[Site] = field(default_factory=list)


class _Reached(Exception):  # noqa: N818 - not an error
    """A forward has come as far as it was to come."""


class Walk:
    """Visits every one of ``weights``, by state-dict name, in execution order.

    The weights of the network, in evaluation mode, are read anew at each step, so that what the
    caller has changed before is what the normalised images go through. Whoever changes nothing but
    the weights of the site at hand and what comes behind it may let forwards wait there
    (``resumed``) in place of beginning them anew.
    Raises MismatchError: a weight that is not used exactly once in a forward.
    """

    def __init__(
        self,
        network: nn.Module,
        weights: Mapping[str, nn.Parameter],
        batches: Sequence[Tensor],
        *,
        resumed: bool = False,
    ) -> None:
        self._network, self._batches, self._resumed = network, batches, resumed
        trace = _Trace(network, weights, batches[0][:2])
        self.segments, self._linked = trace.segments, trace.linked

    @torch.inference_mode()
    def steps(self, twin: Walk | None = None) -> Iterator[tuple[Segment, Site, Inputs, list[Call]]]:
        """Each site with the moments of its inputs; change its weights before asking for more.

        With ``twin``, a walk of the same images and weights through a float network of the same
        build, ``Inputs.cross`` are the moments with the inputs of its sites.
        """
        others = twin.places() if twin else None
        for segment, site, calls, inputs in self.places():
            sums = MomentSums()
            floats = next(others)[-1] if others else itertools.repeat(None, len(calls))
            for seen, beside in zip(inputs, floats, strict=True):
                sums.add(seen, beside)
            yield segment, site, sums.inputs(), calls

    @torch.inference_mode()
    def places(self) -> Iterator[tuple[Segment, Site, list[Call], Iterator[Tensor]]]:
        """The same with the inputs themselves, float32 [tokens, in], of each call."""
        calls: list[Call] | None = None
        for place, segment in enumerate(self.segments):
            if calls is None:
                calls = self._reach(segment.module)
            linked = place + 1 < len(self.segments) and self._linked[place]
            if not self._resumed:
                for site in segment.sites:
                    yield segment, site, calls, _inputs_of(segment, site, calls)
                calls = [_after(segment.module, call) for call in calls] if linked else None
                continue
            with _Forwards(segment, calls) as forwards:
                for site in segment.sites:
                    yield segment, site, calls, forwards.inputs()
                calls = forwards.outputs() if linked else None

    def _reach(self, module: nn.Module) -> list[Call]:
        """What a module is called with, batch by batch, by the network as it is now."""
        whole: list[Call] = [((batch,), {}) for batch in self._batches]
        if module is self._network:
            return whole
        calls: list[Call] = []

        def seize(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args, kwargs))
            raise _Reached

        handle = module.register_forward_pre_hook(seize, with_kwargs=True)
        try:
            for call in whole:
                _run(self._network, call)
        finally:
            handle.remove()
        return calls


class _Forwards:
    """A segment's calls, each of which waits before its product with the next site's weight.

    Use as a context: what still waits at its end is given up.
    """

    def __init__(self, segment: Segment, calls: Sequence[Call]) -> None:
        watched = {id(site.weights[0]) for site in segment.sites}
        self._calls = calls
        self._forwards = [_Forward(segment.module, call, watched) for call in calls]

    def __enter__(self) -> _Forwards:
        return self

    def __exit__(self, *_: object) -> None:
        for forward in self._forwards:
            forward.stop()

    def inputs(self) -> Iterator[Tensor]:
        """What the next site is multiplied with in each call, float32 [tokens, in]."""
        for forward in self._forwards:
            seen = forward.go_on()
            yield seen.reshape(-1, seen.shape[-1]).float()

    def outputs(self) -> list[Call]:
        """What the next segment is called with, where each output is its first argument."""
        ends = (forward.go_on() for forward in self._forwards)
        return [
            ((end, *args[1:]), kwargs)
            for end, (args, kwargs) in zip(ends, self._calls, strict=True)
        ]


class _Forward:
    """One call of a module in a thread of its own, which never runs while its owner does."""

    def __init__(self, module: nn.Module, call: Call, watched: set[int]) -> None:
        self._module, self._call, self._watched = module, call, watched
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()  # whether to go on
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def go_on(self) -> Any:
        """What the next watched weight is multiplied with or, behind the last, the output."""
        with linears(self._pause):
            if self._thread.ident is None:
                self._thread.start()
            else:
                self._orders.put(True)
            answer = self._answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def stop(self) -> None:
        """Gives the call up where it waits."""
        if self._thread.is_alive():
            self._orders.put(False)
            self._thread.join()

    def _pause(self, used: nn.Parameter, inputs: Tensor) -> None:
        if id(used) in self._watched and threading.current_thread() is self._thread:
            self._answers.put(inputs)
            if not self._orders.get():
                raise _Reached

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            self._answers.put(self._module(*self._call[0], **self._call[1]))
        except BaseException as fault:
            self._answers.put(fault)


class MomentSums:
    """Moments of vectors that come a batch at a time: sums in float32 of each, in float64 of all.

    Sums over rows are products with ones, which are ten times as fast.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self.tokens = 0

    def add(self, inputs: Tensor, floats: Tensor | None = None) -> None:
        """Adds inputs x [..., in] of a layer and, for ``cross``, those y of the float network."""
        flat = inputs.reshape(-1, inputs.shape[-1]).float()
        ones = flat.new_ones(len(flat))
        parts = {"moment": _second(flat), "mean": ones @ flat, "magnitude": ones @ flat.abs()}
        if floats is not None:
            parts["cross"] = floats.T @ flat
        for name, part in parts.items():
            self._sums[name] = self._sums.get(name, 0) + part.double()
        self.tokens += len(flat)

    def inputs(self) -> Inputs:
        """The means over all vectors so far."""
        means = {name: (part / self.tokens).cpu().numpy() for name, part in self._sums.items()}
        return Inputs(**means)


def _second(flat: Tensor) -> Tensor:
    """Sums of x x^T over rows [tokens, in], of which only the upper blocks are computed."""
    width = flat.shape[1]
    sums, step = flat.new_empty(width, width), max(_BAND, -(-width // 4))
    for start in range(0, width, step):
        band = flat[:, start : start + step].T @ flat[:, start:]
        sums[start : start + step, start:] = band
        sums[start:, start : start + step] = band.T
    return sums


@torch.inference_mode()
def site_moments(
    network: nn.Module,
    weights: Mapping[str, nn.Parameter],
    batches: Sequence[Tensor],
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[tuple[Site, Inputs, int]]:
    """Each site with the moments of its inputs and the number of its tokens, in execution order.

    One pass of the network, which stays as it is; see ``Walk``. ``progress`` is called with the
    number of batches that have gone through.
    Raises MismatchError: a weight that is not used exactly once in a forward.
    """
    walk = Walk(network, weights, batches)
    sites = [site for segment in walk.segments for site in segment.sites]
    sums = {id(site.weights[0]): MomentSums() for site in sites}
    for done in _passes(network, batches, {key: each.add for key, each in sums.items()}):
        progress(done)
    for site in sites:
        ours = sums.pop(id(site.weights[0]))
        yield site, ours.inputs(), ours.tokens


@torch.inference_mode()
def mean_inputs(
    network: nn.Module, weights: Mapping[str, nn.Parameter], batches: Sequence[Tensor]
) -> dict[str, Any]:
    """What each weight is multiplied with on average, float64 [in], by the network as it is."""
    sums: dict[int, Any] = {}
    tokens: dict[int, int] = {}

    def add(key: int, inputs: Tensor) -> None:
        flat = inputs.reshape(-1, inputs.shape[-1])
        sums[key] = sums.get(key, 0) + flat.sum(0, dtype=torch.float64)
        tokens[key] = tokens.get(key, 0) + len(flat)

    adders = {id(w): functools.partial(add, id(w)) for w in weights.values()}
    for _ in _passes(network, batches, adders):
        pass
    return {n: (sums[id(w)] / tokens[id(w)]).cpu().numpy() for n, w in weights.items()}


def _passes(
    network: nn.Module, batches: Sequence[Tensor], adders: Mapping[int, Callable[[Tensor], None]]
) -> Iterator[int]:
    """Runs batches and gives the inputs of weights, known by their ids, to the adders."""

    def seen(used: nn.Parameter, inputs: Tensor) -> None:
        if add := adders.get(id(used)):
            add(inputs)

    for done, batch in enumerate(batches, start=1):
        with linears(seen):
            network(batch)
        yield done


@torch.inference_mode()
def fold(segment: Segment, site: Site, by: Tensor, call: Call) -> bool:
    """Divides a site's inputs in the LayerNorm before it and multiplies its weights.

    Leaves everything as it was, and says so, if the segment's output changes: then others use the
    LayerNorm's output too, or something that is not linear lies between.
    """
    if not site.norms:
        return False
    norm, before = site.norms[-1], [*_tensors(segment.module(*call[0], **call[1]))]
    owned = [p for p in (norm.weight, norm.bias) if p is not None]
    kept = [p.detach().clone() for p in (*owned, *site.weights)]
    for parameter in owned:
        parameter.div_(by)
    for weight in site.weights:
        weight.mul_(by)
    after = [*_tensors(segment.module(*call[0], **call[1]))]
    if before and all(
        float((new - old).abs().max()) <= _SAME * float(old.abs().max())
        for new, old in zip(after, before, strict=True)
    ):
        return True
    for parameter, old in zip((*owned, *site.weights), kept, strict=True):
        parameter.copy_(old)
    return False


class _Trace:
    """One forward of a few images that tells the order of things."""

    def __init__(
        self, network: nn.Module, weights: Mapping[str, nn.Parameter], images: Tensor
    ) -> None:
        self._calls: dict[nn.Module, list[Call]] = {}
        self._outputs: dict[nn.Module, Any] = {}
        self._order: list[nn.LayerNorm | nn.Parameter] = []
        self._seen: dict[int, list[Tensor]] = {id(weight): [] for weight in weights.values()}
        blocks = [*_blocks(network, set(self._seen))]
        norms = [m for m in network.modules() if isinstance(m, nn.LayerNorm)]
        norms = [norm for norm in norms if norm.elementwise_affine]
        handles = [m.register_forward_pre_hook(self._enter, with_kwargs=True) for m in blocks]
        handles += [m.register_forward_hook(self._leave) for m in blocks]
        handles += [m.register_forward_pre_hook(lambda m, _: self._order.append(m)) for m in norms]
        try:
            with torch.inference_mode(), linears(self._multiply):
                network(images)
        finally:
            for handle in handles:
                handle.remove()
        self._check(weights)
        self.segments = [*self._segments(network, weights, blocks)]
        pairs = zip(self.segments, self.segments[1:], strict=False)
        self.linked = [self._follows(first.module, second.module) for first, second in pairs]

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls.setdefault(module, []).append((args, kwargs))

    def _leave(self, module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
        self._outputs[module] = output

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


def _inputs_of(segment: Segment, site: Site, calls: Sequence[Call]) -> Iterator[Tensor]:
    """What a site is multiplied with in each call of its segment, float32 [tokens, in]."""
    seen: list[Tensor] = []

    def seize(used: nn.Parameter, inputs: Tensor) -> None:
        if used is site.weights[0]:
            seen.append(inputs.reshape(-1, inputs.shape[-1]).float())
            raise _Reached

    for call in calls:
        with linears(seize):
            _run(segment.module, call)
        yield seen.pop()


@contextlib.contextmanager
def linears(seen: Callable[[nn.Parameter, Tensor], None]) -> Iterator[None]:
    """Tells of every product with a weight, also of those inside nn.MultiheadAttention."""
    plain, fast = functional.linear, torch.backends.mha.get_fastpath_enabled()

    def linear(input: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:  # noqa: A002
        seen(weight, input)
        return plain(input, weight, bias)

    functional.linear = linear
    torch.backends.mha.set_fastpath_enabled(False)  # it would multiply unseen
    try:
        yield
    finally:
        functional.linear = plain
        torch.backends.mha.set_fastpath_enabled(fast)


def _tensors(output: Any) -> Iterator[Tensor]:
    """What a segment gives: one tensor, or several, as MViT's and TNT's blocks do."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _tensors(part)


def _after(segment: nn.Module, call: Call) -> Call:
    args, kwargs = call
    return (segment(*args, **kwargs), *args[1:]), kwargs


def _run(module: nn.Module, call: Call) -> None:
    with contextlib.suppress(_Reached):
        module(*call[0], **call[1])
