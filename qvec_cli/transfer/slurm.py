"""A grid as jobs of a cluster, one a receiver, each of which writes a part."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qvec_cli.errors import CheckpointError, QvecError, SpecError
from qvec_cli.specs import Listener


@dataclass(frozen=True, slots=True)
class Executor:
    """Where jobs run; ``local`` is this machine, a process a job."""

    cluster: str
    args: Mapping[str, Any] = field(default_factory=dict)  # of submitit: slurm_partition, ...

    def __post_init__(self) -> None:
        if self.cluster not in ("slurm", "local"):
            raise SpecError(f"--executor {self.cluster!r} is neither slurm nor local")

    @property
    def at_once(self) -> int | None:
        """How many jobs may run; a cluster has its own queue."""
        return os.cpu_count() or 1 if self.cluster == "local" else None


def folder(out: Path) -> Path:
    """Where the parts of an output and the logs of its jobs are; gone when the output is there."""
    return out.with_name(out.name + ".parts")


def part_of(out: Path, place: int) -> Path:
    """The part that the job of a receiver writes."""
    return folder(out) / f"{place:04d}.jsonl"


def finished(out: Path) -> list[Path]:
    """The parts that are there, whole or cut off."""
    return sorted(folder(out).glob("[0-9][0-9][0-9][0-9].jsonl*"))


def check_parts(out: Path, *, resume: bool, force: bool) -> None:
    """Refuses to lose the parts of a run that was cut off, unless told what to do with them."""
    if finished(out) and not (resume or force):
        raise CheckpointError(
            f"{folder(out)}: parts of an unfinished run are there",
            hint="Pass --resume to go on with it, or --force to start anew.",
        )


def clear_parts(out: Path) -> None:
    """Removes the parts and the logs of their jobs, and nothing else."""
    for part in finished(out):
        part.unlink(missing_ok=True)
    shutil.rmtree(folder(out) / "log", ignore_errors=True)
    with contextlib.suppress(OSError):  # not there, or something of the user's is in it
        folder(out).rmdir()


def run_jobs(
    work: Callable[[Any], object],
    requests: Mapping[str, Any],
    out: Path,
    executor: Executor,
    listener: Listener,
) -> None:
    """Submits a job for each request and waits for all; their logs are kept beside the output.

    The work travels by its name; requests have names for messages.
    Raises QvecError: see ``check_executor``; or a job failed; others are waited for.
    """
    names, at_once = [*requests], executor.at_once or len(requests)
    failed: list[tuple[str, Any, Any]] = []
    for start in range(0, len(names), at_once):
        some = names[start : start + at_once]
        jobs = _cluster(out, executor).map_array(work, [requests[name] for name in some])
        try:
            failed += _failures(jobs, some, start, len(names), listener)
        except (KeyboardInterrupt, SystemExit):
            for job in jobs:
                job.cancel(check=False)
            raise
    if failed:
        name, job, fault = failed[0]
        raise QvecError(
            f"{len(failed)} of {len(names)} jobs failed; {name}: {_last(fault)}",
            hint=f"Its log is {job.paths.stderr}; --resume goes on with what is missing.",
        )


def check_executor(out: Path, executor: Executor) -> None:
    """Refuses, before any work, a cluster that is not here, or arguments that it does not know.

    Raises QvecError: submitit is not installed or refuses.
    """
    known = folder(out).exists()
    try:
        _cluster(out, executor)
    finally:
        if not known:
            clear_parts(out)


def _cluster(out: Path, executor: Executor) -> Any:
    try:
        import submitit
    except ImportError:
        raise QvecError("--executor needs submitit", hint="pip install 'qvec[slurm]'") from None
    try:
        cluster = submitit.AutoExecutor(folder=folder(out) / "log", cluster=executor.cluster)
        cluster.update_parameters(**{"name": "qvec", "timeout_min": 24 * 60, **executor.args})
    except (RuntimeError, NameError, TypeError, ValueError) as fault:
        raise QvecError(f"--executor {executor.cluster}: {_first(fault)}") from None
    return cluster


def _failures(
    jobs: Sequence[Any], names: Sequence[str], before: int, total: int, listener: Listener
) -> list[tuple[str, Any, Any]]:
    """Waits for jobs; returns name, job and fault of those that failed."""
    failed = []
    for done, (name, job) in enumerate(zip(names, jobs, strict=True), start=before + 1):
        if (fault := job.exception()) is not None:
            failed.append((name, job, fault))
        listener.progress("jobs", done, total)
    return failed


def _first(fault: BaseException) -> str:
    return (str(fault).splitlines() or [type(fault).__name__])[0]


def _last(fault: BaseException) -> str:
    """What a job's traceback, which stands between two rules, ends with; else the first line."""
    _, _, trace = str(fault).partition("\n----")
    lines = [line for line in trace.partition("\n----")[0].splitlines() if line.strip("-")]
    last = lines[-1] if lines else _first(fault)
    ours, _, message = last.partition(": ")
    return message if ours.startswith("qvec_cli.errors.") else last
