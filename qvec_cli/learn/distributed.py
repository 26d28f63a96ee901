"""The world that torchrun makes: which of its processes this is, and what part of the work it does.

The only reader of torchrun's environment. All else gets a ``World`` as an argument, so that a test
can be any rank of any world without starting a process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from qvec_cli.errors import SpecError

Places = TypeVar("Places")


@dataclass(frozen=True, slots=True)
class World:
    """One process among ``size``; by default the only one."""

    rank: int = 0  # among all
    size: int = 1
    local_rank: int = 0  # among those of this machine
    local_size: int = 1
    node: int = 0  # the machine

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

    def place(self, device: str) -> str:
        """The device of this rank; of GPUs, the one that torchrun counts for it.

        Raises:
            SpecError: one device for several processes.
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

    Raises:
        SpecError: a rank in a world of several that is not whole.
    """
    if "RANK" not in environment or environment.get("WORLD_SIZE", "1") == "1":
        return ALONE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    rank, size, local_rank, local_size = (_number(environment, name) for name in names)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in environment:
            raise _incomplete(name, "is not set")
    node = _number(environment, "GROUP_RANK") if "GROUP_RANK" in environment else 0
    return World(rank, size, local_rank, local_size, node)


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
