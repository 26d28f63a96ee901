"""The one JSON document of every command: what went in, what came out, at what cost."""

from __future__ import annotations

import contextlib
import platform
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.replace import check_target
from qvec_cli.errors import SpecError
from qvec_cli.outputs.hf_folder import CONFIG, WEIGHTS
from qvec_cli.outputs.provenance import version
from qvec_cli.specs import NOTHING, Use

SCHEMA: Final = 1

SCHEMA_FILE: Final = Path(__file__).with_name("metrics.schema.json")
"""The published JSON Schema of the document."""


@dataclass(frozen=True, slots=True)
class Input:
    """A file or data set that the result was made from."""

    path: str
    kind: str
    digest: str | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Input:
        """An open checkpoint file."""
        return cls(str(checkpoint.path), checkpoint.kind, checkpoint.settle())


@dataclass(frozen=True, slots=True)
class Metrics:
    """What one command did.

    ``use`` is the receiver data that the result used beyond its own fine-tuning.
    """

    command: str
    inputs: tuple[Input, ...]
    parameters: Mapping[str, Any]
    results: Mapping[str, Any]
    use: Use = NOTHING
    device: str = "cpu"
    seed: int | None = None
    started: float = 0.0  # time.perf_counter() when the work began
    ranks: int = 1  # processes that did the work together

    def document(self) -> dict[str, Any]:
        """The document, valid under ``SCHEMA_FILE``."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "version": version("qvec"),
            "inputs": [{"path": i.path, "kind": i.kind, "digest": i.digest} for i in self.inputs],
            "parameters": dict(self.parameters),
            "results": dict(self.results),
            "data_use": self.use.to_json(),
            "environment": {
                "python": platform.python_version(),
                "torch": version("torch"),
                "timm": version("timm"),
                "device": self.device,
                "seed": self.seed,
                "threads": _threads(),
                "ranks": self.ranks,
            },
            "timing": {
                "wall_s": round(time.perf_counter() - self.started, 6),
                "peak_rss_bytes": peak_rss_bytes(),
            },
        }


def check_documents(
    document: Path | None, out: Path | None, inputs: Iterable[Path], *, force: bool
) -> None:
    """Refuses, before any work, a metrics file that could not be written afterwards.

    Raises:
        SpecError: the same file as the artefact or as an input, which would be lost.
        CheckpointError: see ``check_target``.
    """
    if document is None:
        return
    check_target(document, force=force)
    written = [out, out / WEIGHTS, out / CONFIG] if out is not None else []
    if document.resolve() in [path.resolve() for path in written]:
        raise SpecError(f"--metrics {document} is the output itself")
    for path in inputs:
        if path.exists() and document.exists() and document.samefile(path):
            raise SpecError(f"{document}: is an input, and the metrics would replace it")


def peak_rss_bytes() -> int:
    """The most memory of this process so far, bytes.

    ``getrusage`` would count the memory of the parent when it started this process; Linux knows.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _threads() -> int:
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else 1
