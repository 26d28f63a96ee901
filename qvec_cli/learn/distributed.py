"""Training in several processes: which of them this is, and what they do together.

torchrun starts the processes, the ranks of a ``World``, and ends all as soon as one has failed. Its
environment is read here and nowhere else; all else gets a ``World`` as an argument, so that a test
can be any rank of any world without starting a process. Numbers travel through gloo, which notices
at once when another rank has gone, and gradients on GPUs through NCCL. In a world of one every
function returns at once.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

from qvec_cli.errors import RankError, SpecError

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")

Places = TypeVar("Places")

_CONNECTING: Final = timedelta(minutes=2)
"""How long the first rank may take to open its port."""

_WAITING: Final = timedelta(days=7)
"""How long ranks wait for each other: the first one may have a data set to fetch."""

_PATIENCE: Final = 15.0
"""Seconds that another rank has to tell of a fault and to end: torch takes some to be unloaded."""

_MARKS: Final = ("gloo", "Connection closed", "Connection reset", "NCCL", "Broken pipe")
"""In what torch says when another rank has gone."""


@dataclass(frozen=True, slots=True)
class World:
    """One process among ``size``; by default the only one."""

    rank: int = 0  # among all
    size: int = 1
    local_rank: int = 0  # among those of this machine
    local_size: int = 1

    def __post_init__(self) -> None:
        inside = 0 <= self.rank < self.size and 0 <= self.local_rank < self.local_size <= self.size
        if not inside:
            raise SpecError(
                f"rank {self.rank} of {self.size}, local rank {self.local_rank} of "
                f"{self.local_size}: no world has such a process"
            )

    @property
    def leads(self) -> bool:
        """Whether this rank speaks and writes; the others only compute."""
        return self.rank == 0

    def share(self, batch: Places) -> Places:
        """This rank's part of a batch, a sequence or tensor; empty where there is too little."""
        return batch[self.rank :: self.size]  # type: ignore[index,no-any-return]

    def whole_batches(self, count: int, batch_size: int) -> list[list[int]]:
        """Batches of ``range(count)`` that this rank measures, each as one process would see it.

        A forward's last bits hang on its batch, so measuring shares batches out whole.
        """
        starts = range(0, count, batch_size)[self.rank :: self.size]
        return [list(range(start, min(start + batch_size, count))) for start in starts]

    def smallest(self, count: int, batch_size: int) -> int:
        """The images that a rank sees at least in a step over ``count`` in batches; one is lent."""
        return max(1, (count % batch_size or batch_size) // self.size)

    def place(self, device: str) -> str:
        """The device of this rank; of GPUs, the one that torchrun counts for it.

        Raises SpecError: one device for several processes.
        """
        if self.size == 1:
            return device
        kind, _, number = device.partition(":")
        if number or kind not in {"auto", "cpu", "cuda"}:
            raise SpecError(
                f"--device {device}: {self.size} processes cannot share it",
                hint="Pass --device cuda, and each takes the GPU of its LOCAL_RANK; or cpu.",
            )
        if kind == "auto":
            import torch

            kind = "cuda" if torch.cuda.is_available() else "cpu"
        return f"cuda:{self.local_rank}" if kind == "cuda" else kind


ALONE: Final = World()


def here(environment: Mapping[str, str] = os.environ) -> World:
    """The world of this process, from what torchrun sets.

    Without RANK nobody has counted this process, whatever WORLD_SIZE says: it is alone.
    Raises SpecError: a rank in a world of several that is not whole.
    """
    if "RANK" not in environment or environment.get("WORLD_SIZE", "1") == "1":
        return ALONE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    rank, size, local_rank, local_size = (_number(environment, name) for name in names)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in environment:
            raise _incomplete(name, "is not set")
    return World(rank, size, local_rank, local_size)


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name)
    if text is None:
        raise _incomplete(name, "is not set")
    if not (text.isascii() and text.isdigit()):
        raise _incomplete(name, f"is {text!r}")
    return int(text)


def _incomplete(name: str, fault: str) -> SpecError:
    return SpecError(
        f"RANK is set, but {name} {fault}: this is not a whole world of processes",
        hint="torchrun sets all of it; to train in one process, unset RANK.",
    )


def wait_for_torchrun(world: World, fault: Exception) -> None:
    """Gives another rank time to tell of a fault, upon which torchrun ends this process.

    The first rank tells of its faults at once. The others may share them, and a rank that lost
    another one (``RankError``) has no fault of its own: they return only if nobody ended them.
    """
    if world.size > 1 and (not world.leads or isinstance(fault, RankError)):
        time.sleep(_PATIENCE)


def join(world: World, device: str) -> None:
    """Meets the other ranks and opens the ways on which numbers travel.

    Args:
        world: of this rank.
        device: that it trains on, from ``World.place``.

    Raises RankError: the others cannot be reached.
    """
    if world.size == 1:
        return
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, *_ = next(iter(rendezvous("env://", timeout=_CONNECTING)))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo",
            store=PrefixStore("qvec", store),
            rank=world.rank,
            world_size=world.size,
            timeout=_WAITING,
        )
    except RuntimeError as fault:
        reason = str(fault).splitlines()[0]
        raise RankError(
            f"the other processes of this run cannot be reached ({reason})",
            hint="Start all with torchrun; to train in one process, unset RANK.",
        ) from None


def leave(world: World) -> None:
    """Waits for the first rank's last file, and closes the ways."""
    if world.size > 1:
        import torch.distributed as dist

        meet(world)
        dist.destroy_process_group()


def meet(world: World) -> None:
    """Waits until every rank is here. Raises RankError: another rank is no more."""
    total(world, 0.0)


@contextlib.contextmanager
def in_turn(world: World) -> Iterator[None]:
    """Lets the first rank of each machine do the block before the others do."""
    if world.local_rank > 0:
        meet(world)
    yield
    if world.local_rank == 0:
        meet(world)


@contextlib.contextmanager
def rank_errors(world: World) -> Iterator[None]:
    """Turns what torch says when another rank has gone into an error of ours.

    Raises RankError: the block waited for a rank that is no more.
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
    import torch
    from torch.nn.parallel import DistributedDataParallel

    device = next(network.parameters()).device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with rank_errors(world):
        return DistributedDataParallel(network, static_graph=True)


def total(world: World, *numbers: float) -> list[float]:
    """Sums over all ranks, in float64, equal on each; whole numbers stay whole up to 2^53."""
    if world.size == 1:
        return list(numbers)
    import torch
    import torch.distributed as dist

    summed = torch.tensor(numbers, dtype=torch.float64)
    with rank_errors(world):
        dist.all_reduce(summed)
    return summed.tolist()


def gathered(world: World, parts: list[T]) -> list[T]:
    """What all ranks have, in turn: the first of each, then the second."""
    if world.size == 1:
        return parts
    import torch.distributed as dist

    of_all: list[Any] = [None] * world.size
    with rank_errors(world):
        dist.all_gather_object(of_all, parts)
    longest = max(map(len, of_all))
    return [part[place] for place in range(longest) for part in of_all if place < len(part)]


def from_first(world: World, value: T) -> T:
    """The first rank's value, on every rank."""
    if world.size == 1:
        return value
    import torch.distributed as dist

    values = [value]
    with rank_errors(world):
        dist.broadcast_object_list(values, src=0)
    return values[0]


def copy_from_first(world: World, tensors: Iterable[Tensor]) -> None:
    """Overwrites tensors, in place, with those of the first rank."""
    if world.size > 1:
        import torch.distributed as dist

        with rank_errors(world):
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


def seed_apart(world: World, *key: int) -> None:
    """Gives each rank its own random stream for what a forward drops, drawn from a key.

    One stream for all would drop the same units of every share. One process keeps the stream it
    has: what a world drops differs from what one process drops, and so do their weights then.
    """
    if world.size > 1:
        import numpy as np
        import torch

        sequence = np.random.SeedSequence((*key, world.rank))
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
