"""What a process costs, and ratios of two things measured side by side in one run."""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import NamedTuple

_TIMED = """
import sys, time
work(*sys.argv[2:])
for _ in range(int(sys.argv[1])):
    started = time.perf_counter()
    work(*sys.argv[2:])
    print("seconds", time.perf_counter() - started)
"""


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


def inside(python: str, code: str, args: list[str], times: int = 5) -> float:
    """Seconds that ``work(*args)`` takes in a process that has imported everything and run it once.

    Args:
        python: the interpreter of an environment.
        code: defines ``work``.
        args: texts that it takes.
        times: how often it is timed; the median counts.
    """
    done = subprocess.run(
        [python, "-c", code + _TIMED, str(times), *args],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    return statistics.median(float(line[1]) for line in lines if line[:1] == ["seconds"])


def ratio(ours: Callable[[], float], theirs: Callable[[], float], pairs: int = 5) -> str:
    """The median ratio of two timings, and its range."""
    ours(), theirs()
    return spread([ours() / theirs() for _ in range(pairs)])


def spread(ratios: list[float]) -> str:
    """Their median and range."""
    found = f"{statistics.median(ratios):.2f}"
    return f"{found} ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else found


def report(what: str, value: str, goal: str) -> None:
    """One line."""
    print(f"{what:<66}{value:>22}   goal {goal}", flush=True)
