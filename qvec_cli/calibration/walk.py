"""Calibration images on their way through a network, layer by layer behind quantized ones.

A segment is run from the inputs that the quantized segments before it gave. Where one block's
output is the next one's input, which the first images tell, it is carried over; else the network is
run anew up to there.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from qvec_cli.calibration.trace import Call, Segment, Site, Tracing, linears
from qvec_cli.quant.moments import Inputs

_SAME: Final = 1e-4
"""Largest change of a block's output, relative to its largest number, that is only rounding."""

_BAND: Final = 128
"""Fewest rows of a moment that are worth a product of their own."""


class Seen(NamedTuple):
    """What a site meets in a call."""

    inputs: Tensor  # float32 [tokens, in]
    stream: Tensor | None  # float32 [tokens, out], what its output is added to, if to any


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
        self._real = [_real(network, batch) for batch in batches]
        trace = Tracing(network, weights, batches[0][:2])
        self.segments, self._linked = trace.segments, trace.linked

    @torch.inference_mode()
    def steps(self, twin: Walk | None = None) -> Iterator[tuple[Segment, Site, Inputs, list[Call]]]:
        """Each site with the moments of its inputs; change its weights before asking for more.

        With ``twin``, a walk of the same images and weights through a float network of the same
        build, ``Inputs.cross`` are the moments with the inputs of its sites, and ``missing`` those
        with what the stream lacks to which their outputs are added.
        """
        others = twin.places() if twin else None
        for segment, site, calls, inputs in self.places():
            sums = MomentSums()
            floats = next(others)[-1] if others else itertools.repeat(None, len(calls))
            for seen, beside in zip(inputs, floats, strict=True):
                if beside is None:
                    sums.add(seen.inputs)
                else:
                    sums.add(seen.inputs, beside.inputs, _missing(site, seen, beside))
            yield segment, site, sums.inputs(), calls

    @torch.inference_mode()
    def places(self) -> Iterator[tuple[Segment, Site, list[Call], Iterator[Seen]]]:
        """The same with the inputs themselves of each call."""
        calls: list[Call] | None = None
        for place, segment in enumerate(self.segments):
            if calls is None:
                calls = self._reach(segment.module)
            linked = place + 1 < len(self.segments) and self._linked[place]
            if not self._resumed:
                for site in segment.sites:
                    yield segment, site, calls, self._kept(_inputs_of(segment, site, calls))
                calls = [_after(segment.module, call) for call in calls] if linked else None
                continue
            with _Forwards(segment, calls) as forwards:
                for site in segment.sites:
                    yield segment, site, calls, self._kept(forwards.inputs(site))
                calls = forwards.outputs() if linked else None

    def _kept(self, inputs: Iterator[Seen]) -> Iterator[Seen]:
        """What a site meets in each call without the padding of texts, which is no sample."""
        for seen, real in zip(inputs, self._real, strict=True):
            stream = seen.stream if seen.stream is None else _without(seen.stream, real)
            yield Seen(_without(seen.inputs, real), stream)

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
        self._norms = {id(s.added.norm): s.added.norm for s in segment.sites if s.added}
        self._streams: dict[tuple[int, threading.Thread], Tensor] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> _Forwards:
        norms = self._norms.values()
        self._hooks = [norm.register_forward_pre_hook(self._note) for norm in norms]
        return self

    def __exit__(self, *_: object) -> None:
        for forward in self._forwards:
            forward.stop()
        for hook in self._hooks:
            hook.remove()

    def _note(self, norm: nn.Module, args: tuple[Any, ...]) -> None:
        self._streams[id(norm), threading.current_thread()] = args[0]

    def inputs(self, site: Site) -> Iterator[Seen]:
        """What the next site meets in each call."""
        for forward in self._forwards:
            seen, stream = _rows(forward.go_on()), None
            if site.added:
                stream = _rows(self._streams.pop((id(site.added.norm), forward.thread)))
            yield Seen(seen, stream)

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
        self.thread = threading.Thread(target=self._run, daemon=True)

    def go_on(self) -> Any:
        """What the next watched weight is multiplied with or, behind the last, the output."""
        with linears(self._pause):
            if self.thread.ident is None:
                self.thread.start()
            else:
                self._orders.put(True)
            answer = self._answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def stop(self) -> None:
        """Gives the call up where it waits."""
        if self.thread.is_alive():
            self._orders.put(False)
            self.thread.join()

    def _pause(self, used: nn.Parameter, inputs: Tensor) -> None:
        if id(used) in self._watched and threading.current_thread() is self.thread:
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

    def add(
        self, inputs: Tensor, floats: Tensor | None = None, missing: Tensor | None = None
    ) -> None:
        """Adds inputs x [..., in] of a layer; those y of the float network, and what is missing."""
        flat = inputs.reshape(-1, inputs.shape[-1]).float()
        ones = flat.new_ones(len(flat))
        parts = {"moment": _second(flat), "mean": ones @ flat, "magnitude": ones @ flat.abs()}
        if floats is not None:
            parts["cross"] = floats.T @ flat
        if missing is not None:
            parts["missing"] = missing.T @ flat
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
            add(_without(inputs.reshape(-1, inputs.shape[-1]), real))

    for done, batch in enumerate(batches, start=1):
        real = _real(network, batch)
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


def _missing(site: Site, ours: Seen, floats: Seen) -> Tensor | None:
    """What a site's output would have to be more, so that the float stream comes out of it."""
    if site.added is None or ours.stream is None or floats.stream is None:
        return None
    gain = site.added.gain
    return (floats.stream - ours.stream) * torch.where(gain == 0, 0, 1 / gain)


def _real(network: nn.Module, batch: Tensor) -> Tensor | None:
    """Which tokens of a batch are no padding, bool [all of its tokens]; None: all are."""
    if getattr(network, "pad", None) is None:
        return None
    tokens: Tensor = network.real_tokens(batch)  # type: ignore[operator]
    return tokens.reshape(-1)


def _without(rows: Tensor, real: Tensor | None) -> Tensor:
    """Rows [tokens, channels] of real tokens alone; rows of whole texts stay."""
    return rows if real is None or len(rows) != len(real) else rows[real]


def _rows(tensor: Tensor) -> Tensor:
    """Float32 [tokens, channels]."""
    return tensor.reshape(-1, tensor.shape[-1]).float()


def _inputs_of(segment: Segment, site: Site, calls: Sequence[Call]) -> Iterator[Seen]:
    """What a site meets in each call of its segment."""
    seen: list[Tensor] = []

    def seize(used: nn.Parameter, inputs: Tensor) -> None:
        if used is site.weights[0]:
            seen.append(_rows(inputs))
            raise _Reached

    for call in calls:
        with linears(seize):
            _run(segment.module, call)
        yield Seen(seen.pop(), None)


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
