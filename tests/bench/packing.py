"""Pack and unpack against compressed-tensors, each in a process of its own environment."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
from timing import ratio, report

PEER = Path(__file__).resolve().parents[2] / ".bench" / "ct" / "bin" / "python"
"""An environment of its own, which ``make bench`` builds."""

SHAPES = ((768, 768), (768, 3072), (1024, 4096))
GOALS = {3: "4", 2: "-", 4: "-"}
"""How many times as fast as the peer we want to be, for each number of bits."""

_OURS = """
from qvec_cli.quant.pack import pack, unpack

def taken(array):
    return array
"""

_THEIRS = """
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32 as pack
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

torch.set_num_threads(1)
taken = torch.from_numpy

def unpack(packed, columns, bits):
    return unpack_from_int32(packed, bits, (len(packed), columns))
"""

_WORKER = """
import sys, time
import numpy as np

work = {}
with np.load(sys.argv[1]) as file:
    for name in file.files:
        bits, codes = int(name.split()[0]), taken(file[name])
        work["pack, " + name] = pack, codes, bits
        work["unpack, " + name] = unpack, pack(codes, bits), codes.shape[1], bits
np.savez(sys.argv[2], **{name: np.asarray(do(*given)) for name, (do, *given) in work.items()})
print("ready", flush=True)
for line in sys.stdin:
    do, *given = work[line.strip()]
    started = time.process_time()
    for _ in range(5):
        do(*given)
    print(time.process_time() - started, flush=True)
"""
"""Saves what each piece of work gives, then does those it is asked for and tells the CPU seconds.

Five times each, because waiting for the other side has cooled the caches. CPU seconds, because a
millisecond is short beside what a neighbour on the machine takes.
"""


class _Side:
    """One environment's process, which waits while the other works."""

    def __init__(self, python: str, code: str, given: Path, made: Path) -> None:
        pipe = subprocess.PIPE
        command = [python, "-c", code + _WORKER, str(given), str(made)]
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self._told()
        with np.load(made) as file:
            self.made = dict(file)

    def _told(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the worker has ended"
        return line

    def seconds(self, name: str) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(name + "\n")
        self._process.stdin.flush()
        return float(self._told())

    def end(self) -> None:
        self._process.communicate()


def packing(folder: Path) -> None:
    """How many times as fast as the peer, on the same codes and to the same bytes."""
    if not PEER.exists():
        print("compressed-tensors is not installed: make bench does it")
        return
    rng = np.random.default_rng(0)
    given = folder / "codes.npz"
    codes = {
        f"{bits} bits, {rows} x {columns}": rng.integers(
            -(2 ** (bits - 1)), 2 ** (bits - 1), (rows, columns), np.int8
        )
        for bits in GOALS
        for rows, columns in SHAPES
    }
    np.savez(given, **codes)
    ours = _Side(sys.executable, _OURS, given, folder / "ours.npz")
    theirs = _Side(str(PEER), _THEIRS, given, folder / "theirs.npz")
    for name, made in ours.made.items():
        assert np.array_equal(made, theirs.made[name]), f"{name}: the two sides differ"
        found = ratio(partial(theirs.seconds, name), partial(ours.seconds, name), pairs=15)
        bits = int(name.split()[1])
        report(f"{name}: compressed-tensors 0.20 / qvec", found, GOALS[bits])
    ours.end()
    theirs.end()
