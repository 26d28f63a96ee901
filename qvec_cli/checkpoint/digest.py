"""The identity of named tensors, whatever their order in a file or what its card says."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Mapping
from typing import Final

from qvec_cli.checkpoint.card import canonical
from qvec_cli.checkpoint.dtypes import Array

_DEPTH: Final = 4  # blocks that may wait to be hashed

_SMALL: Final = 1 << 15  # bytes that are hashed sooner than handed to a thread


def combine(tensors: Mapping[str, tuple[str, tuple[int, ...], str]]) -> str:
    """One sha256 from each tensor's (dtype, shape, sha256 of its bytes)."""
    lines = [
        canonical([name, dtype, list(shape), digest])
        for name, (dtype, shape, digest) in sorted(tensors.items())
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class Hasher:
    """Hashes tensors on a thread of its own while their blocks stream by.

    Blocks of one tensor arrive in order and must not be changed afterwards. Use as a context.
    """

    def __init__(self) -> None:
        self._hashes: dict[str, hashlib._Hash] = {}
        self._waiting: set[str] = set()  # tensors with blocks that went to the thread
        self._queue: queue.Queue[tuple[hashlib._Hash, Array] | None] = queue.Queue(_DEPTH)
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Hasher:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self) -> None:
        """Waits until every block is hashed."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def start(self, name: str) -> None:
        """Makes a tensor known, also one without any bytes; or begins it anew."""
        self._hashes[name] = hashlib.sha256()
        self._waiting.discard(name)

    def update(self, name: str, block: Array) -> None:
        """Takes the next block of a tensor; waits when hashing is behind."""
        if block.nbytes < _SMALL and name not in self._waiting:
            self._hashes[name].update(block.data)
            return
        if self._thread is None:
            thread = threading.Thread(target=self._work, daemon=True)
            thread.start()
            self._thread = thread  # last: a signal may come at any line
        self._waiting.add(name)
        self._queue.put((self._hashes[name], block))

    def digests(self) -> dict[str, str]:
        """Hexadecimal sha256 by tensor, once hashing has finished."""
        return {name: value.hexdigest() for name, value in self._hashes.items()}

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            hashed, block = item
            hashed.update(block.data)
