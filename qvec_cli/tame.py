"""Text for people: of files and users made harmless where it is shown or pasted, and counts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_CONTROL: Final = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""Control characters, marks that turn text around, halves of letters, and what is no letter."""


def tame(text: str) -> str:
    """Text that can steer no terminal and breaks no page: signs for machines in their codes."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def command(words: Iterable[str | Path]) -> str:
    """A command line that a shell takes as these words; no path among them is taken for a flag."""
    return shlex.join(f"./{w}" if isinstance(w, Path) and _is_flag(w) else str(w) for w in words)


def _is_flag(path: Path) -> bool:
    return str(path).startswith("-") and path != Path("-")


def counted(count: int, noun: str) -> str:
    """A number with its noun, which is in the singular: 1 receiver, 2 receivers, 10 classes."""
    ending = "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun if count == 1 else noun + ending}"
