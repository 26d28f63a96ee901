"""A grid as jobs of a cluster, one a receiver, each of which writes a part."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from qvec_cli.errors import CheckpointError, QvecError, SpecError
from qvec_cli.specs import Listener

_SECONDS: Final = 10.0
"""Between two questions to the queue."""

_EMPTY: Final = re.compile(r"[-\s]*$|srun: (?!error)")
"""Lines of a log that give no reason: rules, and what srun does once a job has failed."""


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
    _clear_log(out)


def _clear_log(out: Path) -> None:
    shutil.rmtree(folder(out) / "log", ignore_errors=True)
    with contextlib.suppress(OSError):  # not there, or parts or something of the user's are in it
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
        jobs = _submitted(work, [requests[name] for name in some], out, executor)
        try:
            failed += _failures(jobs, some, start, len(names), listener)
        except BaseException:
            for job in jobs:
                job.cancel(check=False)
            raise
    if failed:
        name, job, fault = failed[0]
        raise QvecError(
            f"{len(failed)} of {len(names)} jobs failed; {name}: {_last(fault)}",
            hint=f"Its log is {job.paths.stderr}; --resume goes on with what is missing.",
        )


def _submitted(
    work: Callable[[Any], object], requests: Sequence[Any], out: Path, executor: Executor
) -> Sequence[Any]:
    """A job for each request, whose end is known by the queue. QvecError: the cluster refuses."""
    cluster, queue = _cluster(out, executor), _Queue()
    try:
        jobs: Sequence[Any] = cluster.map_array(partial(_in_job, work), requests)
    except RuntimeError as fault:  # submitit's errors, with what sbatch has said
        _clear_log(out)
        raise QvecError(f"--executor {executor.cluster}: {_first(fault)}") from None
    for job in jobs:
        job.watcher = queue
    return jobs


def _in_job(work: Callable[[Any], object], request: Any) -> object:
    """Does the work of a job, which SIGTERM ends: submitit would ignore it until the kill."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return work(request)


class _Queue:
    """What squeue knows of jobs, for submitit: its own sacct needs a data base that many lack."""

    def __init__(self) -> None:
        self._asked = time.monotonic()

    def get_state(self, job_id: str, mode: str = "") -> str:
        """What is said of a job that has left no result."""
        return "ended"

    def is_done(self, job_id: str, mode: str = "") -> bool:
        """Whether a job has left the queue; asked once in a while, and for one job at a time."""
        if time.monotonic() < self._asked + _SECONDS:
            return False
        self._asked = time.monotonic()
        words = ["squeue", "--noheader", "--jobs", job_id]
        asked = subprocess.run(words, capture_output=True, text=True, check=False)
        if asked.returncode != 0:  # forgotten, or the daemon is away for a while
            return "Invalid job id" in asked.stderr
        return not asked.stdout.strip()


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
        listener.progress(f"job {done}/{total}", done, total)
    return failed


def _first(fault: BaseException) -> str:
    return (str(fault).splitlines() or [type(fault).__name__])[0]


def _last(fault: BaseException) -> str:
    """What a job's traceback or log ends with, which stands behind a rule, if there is one."""
    _, _, trace = str(fault).partition("\n----")
    lines = [line for line in trace.partition("\n----")[0].splitlines() if not _EMPTY.match(line)]
    last = lines[-1] if lines else "it ended without a result and without a log"
    ours, _, message = last.partition(": ")
    return message if ours.startswith("qvec_cli.errors.") else last
