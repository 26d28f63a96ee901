"""What a command records beside its artefact: its metrics, its plan, the lineage on a card."""

from __future__ import annotations

import contextlib
import platform
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.checkpoint.dtypes import name_of
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import Checkpoint, Hasher
from qvec_cli.checkpoint.replace import check_apart, check_target, unfinished, write_json
from qvec_cli.errors import SpecError
from qvec_cli.model.configuration import Model
from qvec_cli.model.targets import head_tensors
from qvec_cli.model.tokens import place_in_lineage
from qvec_cli.outputs.hf_folder import CONFIG, WEIGHTS, check_output
from qvec_cli.specs import NOTHING, Use

if TYPE_CHECKING:
    from torch import nn

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
    """What one command did."""

    command: str
    inputs: tuple[Input, ...]
    parameters: Mapping[str, Any]
    results: Mapping[str, Any]
    use: Use = NOTHING  # the receiver data that the result used beyond its own fine-tuning
    device: str = "cpu"
    seed: int | None = None
    started: float = 0.0  # time.perf_counter() when the work began
    ranks: int = 1  # processes that did the work together

    def document(self) -> dict[str, Any]:
        """The document, valid under ``SCHEMA_FILE``."""
        torch = sys.modules.get("torch")
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
                "threads": torch.get_num_threads() if torch else 1,
                "ranks": self.ranks,
            },
            "timing": {
                "wall_s": round(time.perf_counter() - self.started, 6),
                "peak_rss_bytes": peak_rss_bytes(),
            },
        }

    def write(self, path: Path, *, force: bool = False) -> None:
        """Writes the document, after which nothing is kept of the command to go on with."""
        write_json(path, self.document(), force=force)
        unfinished(path).unlink(missing_ok=True)


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
        plan = {
            "output": str(self.output) if self.output else None,
            "tensors": tensors,
            "images": dict(self.images),
            "bytes_in": sum(c.nbytes for c in inputs),
            "bytes_out": size,
        }
        files = [Input(str(c.path), c.kind, c.stated) for c in inputs]
        files += [Input(self.data, "data")] if self.data else []
        parameters = {**self.parameters, "dry_run": True}
        return Metrics(self.command, tuple(files), parameters, {"plan": plan}, started=started)


def check_documents(
    document: Path | None, out: Path | None, inputs: Iterable[Path], *, force: bool
) -> None:
    """Refuses, before any work, a metrics file that could not be written afterwards.

    SpecError: the same file as the artefact; it or the artefact is an input, which would be lost.
    """
    written = [out, out / WEIGHTS, out / CONFIG] if out is not None else []
    if document is not None:
        check_target(document, force=force)
        if document.resolve() in [path.resolve() for path in written]:
            raise SpecError(f"--metrics {document} is the output itself")
        written.append(document)
    check_apart(written, [file for path in inputs for file in (path, path / WEIGHTS)])


def peak_rss_bytes() -> int:
    """The most memory of this process so far, bytes.

    ``getrusage`` would count the memory of the parent when it started this process; Linux knows.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def backbone_digest(network: nn.Module, model: Model) -> str:
    """The digest of a network's tensors without those of its head."""
    state = network.state_dict()
    head = set(head_tensors(state, model))
    body = {n: tensor.detach().cpu().numpy() for n, tensor in state.items() if n not in head}
    with Hasher() as hasher:
        for name, array in body.items():
            hasher.start(name)
            hasher.update(name, array.reshape(-1))
        return hasher.combined({n: Entry(name_of(a.dtype), a.shape) for n, a in body.items()})


def provenance(
    op: str, parents: Mapping[str, Checkpoint], use: Use, **facts: Any
) -> dict[str, Any]:
    """The lineage that an output's card keeps, whole: each parent brings its own.

    Names come without folders, so that the same inputs give the same bytes anywhere; only the
    folder of a tokenizer stands there as it was typed. Digests are those of
    ``Checkpoint.settle``, which a stream knows at its end.
    """
    return {
        "op": op,
        "qvec": version("qvec"),
        **facts,
        **place_in_lineage(parents.values()),
        "data_use": use.level,
        "counts": dict(use.counts),
        "parents": [
            {
                "as": label,
                "name": parent.name,
                "kind": parent.kind,
                "digest": parent.digest,
                "provenance": parent.card.provenance,
            }
            for label, parent in parents.items()
        ],
    }


@cache
def version(package: str) -> str:
    """The installed version of a package, which need not be imported for it."""
    from importlib import metadata

    return metadata.version(package)
