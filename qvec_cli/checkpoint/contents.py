"""What an input consists of: tensors, the sources of their bytes, and what is said beside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.source import File, Source

WRAPPED: Final = "timm_model."
"""What stands before every name of timm's inside transformers' wrapper."""


_PREFIXES: Final = ("module.", "_orig_mod.", "model.", WRAPPED)
"""What wrappers put before every name: DDP, torch.compile, the paper's own code, transformers."""


@dataclass(slots=True)
class Contents:
    """An input whose tensors are found and not yet read."""

    entries: dict[str, Entry] = field(default_factory=dict)  # in the order of the data
    sources: list[Source] = field(default_factory=list)  # ``Entry.part`` counts in it
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] | None = None  # config.json beside the weights
    aliases: dict[str, str] = field(default_factory=dict)  # tied names, and the one that is kept
    notes: list[str] = field(default_factory=list)  # what the user should know of the reading
    streams: bool = True  # or else is held in memory as a whole

    def add(self, source: Source) -> int:
        """Takes a source, to close later, and returns its number."""
        self.sources.append(source)
        return len(self.sources) - 1

    def strip(self) -> None:
        """Takes away what a wrapper has put before every name."""
        taken = ""
        while prefix := _common(self.entries):
            taken += prefix
            self.entries = {n.removeprefix(prefix): e for n, e in self.entries.items()}
            self.aliases = {
                a.removeprefix(prefix): b.removeprefix(prefix) for a, b in self.aliases.items()
            }
        if taken:
            self.notes.append(f"{taken!r} before every name is left out")

    def identities(self) -> Iterator[tuple[int, int]]:
        """What tells files apart that have several names."""
        for source in self.sources:
            if isinstance(source, File):
                yield source.identity

    def close(self) -> None:
        """Gives every file back."""
        for source in self.sources:
            source.close()


def _common(names: Mapping[str, Entry]) -> str:
    for prefix in _PREFIXES:
        if names and all(len(n) > len(prefix) and n.startswith(prefix) for n in names):
            return prefix
    return ""
