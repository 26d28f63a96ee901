"""What the ranks of a world do together: wait, add up, average gradients, and tell a fault once.

Small things go through torchrun's own store, asked again and again, so that waiting has no time
limit, hears signals, and ends when another rank has told of a fault. Numbers go through gloo, and
gradients on GPUs through NCCL. In a world of one every function returns at once.

A rank that fails in the middle of a step cannot warn the others. When it has ended, gloo tells
them; those that wait for NCCL are ended by torchrun, half a minute later at most.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from qvec_cli.errors import RankError
from qvec_cli.learn.distributed import World

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


T = TypeVar("T")


_READY, _CLAIM, _TOLD, _HEARD = "qvec/ready", "qvec/claim", "qvec/told", "qvec/heard"

_POLL: Final = 0.02

_CONNECTING: Final = timedelta(minutes=2)

_GRACE: Final = 1.0
"""Seconds that the others leave the first rank to tell of a fault that all may have."""

_ECHO: Final = 10.0
"""Seconds that whoever lost a rank waits for that one's own words."""

_WRITING: Final = 3600.0
"""Seconds that a rank has for its last state before it tells."""

_MARKS: Final = ("gloo", "Connection closed", "Connection reset", "NCCL", "Broken pipe")
"""In what torch says when another rank has gone."""


class _Line:
    """The store that all ranks reach, and whether this one has the word."""

    def __init__(self, store: Any) -> None:
        self.store, self.mine = store, False

    def claim(self) -> bool:
        """Takes the word, if nobody has."""
        self.mine = self.mine or self.store.add(_CLAIM, 1) == 1
        return self.mine

    def told(self, patience: float = 0.0) -> int | None:
        """The exit code of the rank that told of a fault, if one does so in time."""
        until = time.monotonic() + patience
        while not self.store.check([_TOLD]):
            if time.monotonic() >= until:
                return None
            time.sleep(_POLL)
        return int(self.store.get(_TOLD))

    def wait(self, arrived: Callable[[], bool]) -> None:
        """Waits without limit, unless a fault is told meanwhile."""
        while not arrived():
            if self.told() is not None:
                raise RankError("another process of this run has failed")
            time.sleep(_POLL)


@cache
def _line(_: World) -> _Line:
    from torch.distributed.rendezvous import rendezvous

    try:
        store, *_rest = next(iter(rendezvous("env://", timeout=_CONNECTING)))
    except RuntimeError as fault:
        said = str(fault).splitlines()[0]
        raise RankError(
            f"the other processes of this run cannot be reached ({said})",
            hint="Start all with torchrun; to train in one process, unset RANK.",
        ) from None
    return _Line(store)


def meet(world: World, name: str) -> None:
    """Waits until every rank is here.

    Raises:
        RankError: another rank has told of a fault.
    """
    if world.size > 1:
        line, key = _line(world), f"qvec/{name}"
        line.store.add(key, 1)
        line.wait(lambda: line.store.add(key, 0) == world.size)


@contextlib.contextmanager
def in_turn(world: World, name: str) -> Iterator[None]:
    """Lets the first rank of each machine do the block before the others do."""
    if world.size == 1:
        yield
        return
    line, key = _line(world), f"qvec/{name}/{world.node}"
    if world.local_rank > 0:
        line.wait(lambda: bool(line.store.check([key])))
    yield
    line.store.set(key, "done")


def join(world: World, device: torch.device) -> None:
    """Meets the other ranks and opens the ways on which numbers travel."""
    if world.size == 1:
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    meet(world, "ready")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with talking(world):
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore("qvec/group", _line(world).store),
            rank=world.rank,
            world_size=world.size,
        )


def leave(world: World) -> None:
    """Waits for the first rank's last file, and closes the ways."""
    if world.size > 1:
        import torch.distributed as dist

        meet(world, "written")
        dist.destroy_process_group()


@contextlib.contextmanager
def talking(world: World) -> Iterator[None]:
    """Turns what torch says when another rank has gone into an error of ours.

    Raises:
        RankError: the block waited for a rank that is no more.
    """
    try:
        yield
    except RuntimeError as fault:
        if world.size == 1 or not any(mark in str(fault) for mark in _MARKS):
            raise
        raise RankError(
            "another process of this run has gone",
            hint="torchrun's report says which one, and how it ended.",
        ) from None


def averaging(world: World, network: nn.Module) -> nn.Module:
    """The network behind torch's wrapper, which averages gradients while they are computed.

    Weights and buffers become those of the first rank; buffers do so again before each forward.
    A parameter without a gradient keeps none, as in one process, if it never has one.
    """
    if world.size == 1:
        return network
    from torch.nn.parallel import DistributedDataParallel

    with talking(world):
        return DistributedDataParallel(network, static_graph=True)


def total(world: World, *numbers: float) -> list[float]:
    """Sums over all ranks, in float64, equal on each; whole numbers stay whole up to 2^53."""
    if world.size == 1:
        return list(numbers)
    import torch
    import torch.distributed as dist

    summed = torch.tensor(numbers, dtype=torch.float64)
    with talking(world):
        dist.all_reduce(summed)
    return summed.tolist()


def together(world: World, batches: Iterable[T]) -> Iterator[T]:
    """The batches of this rank, as long as every rank has one.

    Raises:
        RankError: another rank's images failed, and it will say so.
    """
    if world.size == 1:
        yield from batches
        return
    source = iter(batches)
    while True:
        batch, fault = _next(source)
        (faults,) = total(world, float(fault is not None))
        if fault is not None:
            raise fault
        if faults:
            raise RankError("another process of this run has failed")
        if batch is None:
            return
        yield batch


def _next(source: Iterator[T]) -> tuple[T | None, Exception | None]:
    try:
        return next(source, None), None
    except Exception as fault:
        return None, fault


def gathered(world: World, parts: list[T]) -> list[T]:
    """What all ranks have, in turn: the first of each, then the second."""
    if world.size == 1:
        return parts
    import torch.distributed as dist

    of_all: list[Any] = [None] * world.size
    with talking(world):
        dist.all_gather_object(of_all, parts)
    longest = max(map(len, of_all))
    return [own[place] for place in range(longest) for own in of_all if place < len(own)]


def from_first(world: World, value: T) -> T:
    """The first rank's value, on every rank."""
    if world.size == 1:
        return value
    import torch.distributed as dist

    box: list[Any] = [value]
    with talking(world):
        dist.broadcast_object_list(box, src=0)
    sent: T = box[0]
    return sent


def align(world: World, tensors: Iterable[Tensor]) -> None:
    """Overwrites tensors, in place, with those of the first rank."""
    if world.size > 1:
        import torch.distributed as dist

        with talking(world):
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


def draw_apart(world: World, *key: int) -> None:
    """Gives each rank its own random stream for what a forward drops, drawn from a key.

    One stream for all would drop the same units of every share. One process keeps the stream it
    has: what a world drops differs from what one process drops, and so do their weights then.
    """
    if world.size > 1:
        import numpy as np
        import torch

        sequence = np.random.SeedSequence((*key, world.rank))
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))


def claim(world: World) -> None:
    """Reserves a fault that every rank has for the first one, which has a state to save first."""
    if world.size > 1 and world.leads:
        _line(world).claim()


def once(world: World, tell: Callable[[], int], *, echo: bool = False) -> int:
    """Lets one rank tell of a fault, and ends all with its exit code.

    Args:
        world: of this rank.
        tell: says what is wrong and returns the exit code; may raise what is a fault of ours.
        echo: whether this rank only noticed that another one has failed.
    """
    try:
        line = _line(world)
        code = _told_by_another(world, line, echo)
    except (RankError, RuntimeError):  # there is no store, or no longer
        return tell()
    if code is not None:
        with contextlib.suppress(RuntimeError):
            line.store.add(_HEARD, 1)
        return code
    code = 1  # of a traceback
    try:
        code = tell()
    finally:
        with contextlib.suppress(RuntimeError):
            line.store.set(_TOLD, str(code))
            _let_hear(world, line)
    return code


def _told_by_another(world: World, line: _Line, echo: bool) -> int | None:
    """Another rank's exit code, or None if it is for this one to tell."""
    if line.mine:
        return None
    first = 0.0 if world.leads else _GRACE
    with contextlib.suppress(KeyboardInterrupt, SystemExit):  # torchrun ends who waits too long
        code = line.told(_ECHO if echo else first)
        if code is not None:
            return code
    if line.claim():
        return None
    code = line.told(_WRITING)
    return 1 if code is None else code


def _let_hear(world: World, line: _Line) -> None:
    """Waits until all have heard: torchrun would stop those that still start, and print more.

    Once gradients travel, the others may be waiting for ours, and hear only when we have ended.
    """
    import torch.distributed as dist

    until = time.monotonic() + _ECHO
    while not dist.is_initialized() and line.store.add(_HEARD, 0) < world.size - 1:
        if time.monotonic() > until:
            return
        time.sleep(_POLL)
