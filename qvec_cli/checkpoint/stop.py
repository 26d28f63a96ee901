"""A stop that a signal asks for: raised between two steps, never while a file gets its name."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Final


class Stop:
    """Which signal has asked this process to end, and whether it may be raised now."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._guards = 0

    @property
    def code(self) -> int | None:
        """The exit code of the signal, if one has come."""
        return None if self.number is None else 128 + self.number

    def ask(self, number: int) -> None:
        """What a handler calls: raises at once, or where the last guard ends."""
        self.number = number
        if not self._guards:
            self.check()

    def check(self) -> None:
        """Raises what a signal has asked for, again where a library has swallowed it.

        It is a new exception each time: an old one would keep alive what its frames hold.
        """
        if self.number is not None:
            raise KeyboardInterrupt if self.number == signal.SIGINT else SystemExit(self.code)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """A block, of moments, that no signal breaks; one that came is raised at its end."""
        self._guards += 1
        try:
            yield
        finally:
            self._guards -= 1
            if not self._guards:
                self.check()

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """A block within guarded ones in which signals are raised all the same."""
        guards, self._guards = self._guards, 0
        try:
            self.check()
            yield
        finally:
            self._guards = guards


STOP: Final = Stop()
"""Of this process: signals are the process's too."""
