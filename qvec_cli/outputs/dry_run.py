"""What a run would read, make and write, from headers alone: the answer to --dry-run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.outputs.hf_folder import check_output
from qvec_cli.outputs.metrics import Input, Metrics


@dataclass(frozen=True, slots=True)
class Plan:
    """A run that has passed every check but those of the data themselves."""

    command: str
    output: Path | None
    fates: Mapping[str, str]  # what becomes of each tensor, by name
    outline: Mapping[str, Entry]
    parameters: Mapping[str, Any]
    images: Mapping[str, int] = field(default_factory=dict)  # by split
    data: str | None = None  # the data set as typed
    folder: bool = False  # whether the output is one

    def metrics(
        self, inputs: Iterable[Checkpoint], started: float, size: int | None = None
    ) -> Metrics:
        """The plan as a document; ``size`` is that of the output, if it can be known."""
        inputs = tuple(inputs)
        if self.output and size:
            check_output(self.output, folder=self.folder, force=True, size=size)
        tensors = [
            {"name": n, "dtype": e.dtype, "shape": list(e.shape), "fate": self.fates[n]}
            for n, e in self.outline.items()
        ]
        results = {
            "plan": {
                "output": str(self.output) if self.output else None,
                "tensors": tensors,
                "images": dict(self.images),
                "bytes_in": sum(c.nbytes for c in inputs),
                "bytes_out": size,
            }
        }
        files = [Input(str(c.path), c.kind, c.stated) for c in inputs]
        files += [Input(self.data, "data")] if self.data else []
        parameters = {**self.parameters, "dry_run": True}
        return Metrics(self.command, tuple(files), parameters, results, started=started)
