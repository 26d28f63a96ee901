"""What a process costs, and ratios of two things measured side by side in one run."""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import NamedTuple


class Cost(NamedTuple):
    """What a process took."""

    wall: float  # seconds
    cpu: float
    peak: int  # bytes resident


def run(command: list[str], ok: int = 0) -> Cost:
    """Runs a command to its end."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == ok, f"{shlex.join(command)} ended with {process.returncode}"
    wall = time.perf_counter() - started
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def ratio(ours: Callable[[], float], theirs: Callable[[], float], pairs: int = 5) -> str:
    """The median ratio of two timings, and its range."""
    ours(), theirs()
    found = sorted(ours() / theirs() for _ in range(pairs))
    return f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


def report(what: str, value: str, goal: str) -> None:
    """One line."""
    print(f"{what:<66}{value:>22}   goal {goal}", flush=True)
