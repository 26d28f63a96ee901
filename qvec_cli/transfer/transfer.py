"""Every donor's vector on every receiver: the matrix of the method, a JSON line a cell."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from qvec_cli.checkpoint.dtypes import Array
from qvec_cli.checkpoint.replace import (
    check_apart,
    check_distinct,
    check_target,
    check_unfinished,
    is_stream,
    may_be_finished,
    replacing,
    unfinished,
)
from qvec_cli.errors import CheckpointError, FinishedError, NotFiniteError, SpecError, located
from qvec_cli.inputs.files import InputFiles
from qvec_cli.outputs.metrics import Input, Metrics, Plan
from qvec_cli.results.journal import Journal, Line, encoded
from qvec_cli.results.matrix import Matrix, parse
from qvec_cli.results.records import Record
from qvec_cli.results.summary import summarise
from qvec_cli.results.tidy import of_matrix, write_table
from qvec_cli.specs import DataUse, Listener, Silence, Stage, Use
from qvec_cli.tame import counted
from qvec_cli.transfer import slurm
from qvec_cli.transfer.cells import MeasuredReceiver, other_grids
from qvec_cli.transfer.grid_file import (
    CellOptions,
    ResolvedGrid,
    cell,
    read_grid_file,
    resolve_grid,
)


@dataclass(frozen=True, slots=True)
class TransferRequest:
    """What ``qvec transfer`` is asked for."""

    grid_file: Path
    out: Path
    options: CellOptions
    shard: tuple[int, int] = (1, 1)  # which part of how many; receivers are dealt out in turn
    joined: tuple[Path, ...] = ()  # parts that are finished
    executor: slurm.Executor | None = None  # where jobs run; None: here, one after the other
    resume: bool = False
    force: bool = False
    dry_run: bool = False
    table: Path | None = None  # where the same goes as CSV

    def __post_init__(self) -> None:
        part, parts = self.shard
        if not 1 <= part <= parts:
            raise SpecError(f"--shard {part}/{parts} must be between 1/{parts} and {parts}/{parts}")
        if is_stream(self.out):
            raise SpecError(f"-o {self.out}: finished lines are kept beside it: name a file")

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The files that are written at the end, the lines first."""
        return (self.out, self.table) if self.table else (self.out,)

    def of_shard(self, names: Iterable[str]) -> tuple[str, ...]:
        """The receivers whose turn it is."""
        part, parts = self.shard
        return tuple(names)[part - 1 :: parts]


def transfer(request: TransferRequest, listener: Listener) -> Metrics:
    """Measures the cells that are not known yet, and sums up.

    Raises MismatchError: members that do not belong together, lines of another run;
    CheckpointError: a broken file, an output that exists; SpecError: a grid file or a shard that
    cannot be.
    """
    started = time.perf_counter()
    finished = _check_outputs(request)
    members = read_grid_file(request.grid_file)
    check_apart(request.outputs, [request.grid_file, *request.joined, *members.files])
    with InputFiles(listener, request.options.network.weights) as files:
        grid = resolve_grid(members, request.options, files, listener)
        receivers = request.of_shard(members.receivers)
        if not receivers:
            raise SpecError(
                f"--shard: the grid has {counted(len(members.receivers), 'receiver')} only"
            )
        if request.dry_run:
            return _plan(request, grid, receivers).metrics((), started)
        with Journal(unfinished(request.out), grid.run) as journal:
            if finished:
                _check_finished(request, grid, receivers, journal, listener)
            _recall(request, journal, listener)
            if request.executor is not None:
                _spread(request, request.executor, grid, journal, listener)
            order = [*grid.lines(receivers)]
            for name in receivers:
                _measure(grid, name, journal, files, partial(_stage, order, journal, listener))
            if set(receivers) == set(grid.receivers):  # the cosines come with the last ones
                _add_cosines(grid, journal, files)
                order.append({"kind": "alignment"})
            lines = [*journal.ordered(order)]
            matrix = _matrix(request.out, lines)
            metrics = _metrics(request, grid, lines, matrix, started)
            with replacing(request.out, force=request.force) as file:
                file.write(b"".join(map(encoded, lines)))
            if request.table is not None:
                rows = of_matrix(str(request.out), matrix)
                write_table(request.table, rows, force=request.force)
    return metrics


def _check_outputs(request: TransferRequest) -> bool:
    """Whether the output may be whole already; refuses what could not be written at the end."""
    check_distinct(request.outputs)
    out, force, resume = request.out, request.force, request.resume
    finished = may_be_finished(out, resume=resume, force=force)
    check_target(out, force=force or finished)
    for table in request.outputs[1:]:
        check_target(table, force=force or finished)
    check_unfinished(out, resume=resume, force=force)
    slurm.check_parts(out, resume=resume, force=force)
    if request.executor is not None:
        slurm.check_executor(out, request.executor)
    return finished


def _check_finished(
    request: TransferRequest,
    grid: ResolvedGrid,
    receivers: tuple[str, ...],
    journal: Journal,
    listener: Listener,
) -> None:
    """Raises FinishedError: the output is of this run, and whole; MismatchError: of another."""
    journal.resume(request.out, force=False, listener=listener)
    lines = [*grid.lines(receivers)]
    if missing := sum(journal.get(line) is None for line in lines):
        raise CheckpointError(
            f"{request.out}: exists, and lacks {missing} of {len(lines)} lines",
            hint="Pass --force to replace it.",
        )
    raise FinishedError(f"{request.out}: done already")


def clear(out: Path) -> None:
    """Removes what was kept to go on with, once all results are written."""
    unfinished(out).unlink(missing_ok=True)
    slurm.clear_parts(out)


def _recall(request: TransferRequest, journal: Journal, listener: Listener) -> None:
    """Takes what is finished: parts that are named and, to go on, what was cut off."""
    left = [unfinished(request.out), *slurm.finished(request.out)] if request.resume else []
    for path in left:
        lines = journal.resume(path, force=request.force, listener=listener)
        if lines is None:
            slurm.clear_parts(request.out)
            break
        _check(path, lines)
    for part in request.joined:
        _check(part, journal.take(part))
    if not request.resume:
        slurm.clear_parts(request.out)
    journal.start()


def _stage(order: Sequence[Line], journal: Journal, listener: Listener) -> Stage:
    """Hears the next line of a grid, after those that are finished."""
    cells = [journal.get(line) is not None for line in order if line["kind"] == "cell"]
    done = sum(journal.get(line) is not None for line in order)
    label = f"cell {min(sum(cells) + 1, len(cells))}/{len(cells)}"
    return Stage(listener, done, 1, len(order), label)


def _measure(
    grid: ResolvedGrid,
    name: str,
    journal: Journal,
    files: InputFiles,
    next_stage: Callable[[], Stage],
) -> None:
    """The lines of a receiver that are missing; what is known costs nothing, not even torch."""
    if all(journal.get(line) is not None for line in grid.lines((name,))):
        return
    member, options = grid.members.receivers[name], grid.options
    with located(member.model, NotFiniteError):
        stage = next_stage()
        loading = replace(stage, size=0)
        loading.progress(f"loading {name}", 0, 1)
        receiver = MeasuredReceiver(name, member, grid.receivers[name], options, files, loading)
        line: Line = {"kind": "receiver", "receiver": name}
        if journal.get(line) is None:
            facts = {"device": receiver.device, **receiver.proxies()}
            journal.add({**line, **facts, "baselines": receiver.baselines()})
        for vector in grid.vectors[name]:
            line = cell(name, vector)
            if journal.get(line) is None:
                journal.add({**line, **receiver.cell(vector, next_stage())})
    next_stage().milestone(f"{name}: {counted(len(grid.vectors[name]), 'vector')}")
    files.release(member.model)


def _spread(
    request: TransferRequest,
    executor: slurm.Executor,
    grid: ResolvedGrid,
    journal: Journal,
    listener: Listener,
) -> None:
    """The receivers that are not finished as jobs, each of which writes a part of its own."""
    names, jobs = [*grid.receivers], {}
    slurm.folder(request.out).mkdir(exist_ok=True)
    for place, name in enumerate(names, start=1):
        if name not in request.of_shard(names):
            continue
        if any(journal.get(line) is None for line in grid.lines((name,))):
            here = replace(request, joined=(), executor=None, table=None, resume=True, force=True)
            part = slurm.part_of(request.out, place)
            jobs[name] = replace(here, out=part, shard=(place, len(names)))
    if jobs:
        slurm.run_jobs(_job, jobs, request.out, executor, listener)
    for job in jobs.values():
        journal.take(job.out)


def _job(request: TransferRequest) -> None:
    transfer(request, Silence())
    clear(request.out)


def _add_cosines(grid: ResolvedGrid, journal: Journal, files: InputFiles) -> None:
    """The line of cosines between the donors' vectors over the quantized weights."""
    line, donors = {"kind": "alignment"}, grid.members.donors
    if journal.get(line) is not None:
        return
    cosines = Cosines(len(donors))
    rhos = [files.open(donor.rho) for donor in donors.values()]
    for name in next(iter(grid.receivers.values())).targets:
        cosines.add([rho.finite(name) for rho in rhos])
    tables = {"global": cosines.whole, "rows": cosines.by_row}
    rounded = {key: np.round(table, 6).tolist() for key, table in tables.items()}
    journal.add({**line, "donors": [*donors], **rounded})


class Cosines:
    """Cosines between ``count`` vectors, from matrices that come one after the other."""

    def __init__(self, count: int) -> None:
        self._gram, self._rows, self._seen = np.zeros((3, count, count))

    def add(self, matrices: Sequence[Array]) -> None:
        """Takes one weight of every vector, each [out, in], float32; sums are in float64."""
        stack = np.stack(matrices, axis=1).astype(np.float64)  # [out, vectors, in]
        gram = stack @ stack.transpose(0, 2, 1)  # [out, vectors, vectors]
        self._gram += gram.sum(axis=0)
        lengths = np.sqrt(np.einsum("rii->ri", gram))
        scale = lengths[:, :, None] * lengths[:, None, :]
        self._rows += _quotient(gram, scale).sum(axis=0)
        self._seen += (scale > 0).sum(axis=0)

    @property
    def whole(self) -> Array:
        """Cosine of every pair, over all weights as one long vector; 0 beside a zero vector."""
        length = np.sqrt(np.diag(self._gram))
        return _quotient(self._gram, length[:, None] * length[None, :])

    @property
    def by_row(self) -> Array:
        """Mean of the cosines of output rows, each row counted once; rows of zeros are left out."""
        return _quotient(self._rows, self._seen)


def _quotient(top: Array, bottom: Array) -> Array:
    """Element by element; 0 where there is nothing to divide by."""
    return np.asarray(np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0))


def _plan(request: TransferRequest, grid: ResolvedGrid, receivers: tuple[str, ...]) -> Plan:
    """What the grid would do: how often each image would go through a network."""
    options, images = request.options, {"val": 0, "test": 0}
    curve = len(options.points) - 1  # lambda 0 is the same for every vector
    for name in receivers:
        facts, count = grid.run["receivers"][name], len(grid.vectors[name])
        grids = 2 + len([*other_grids(grid.grid)]) + bool(facts["qat"]) + len(facts["baselines"])
        on_test = curve if options.oracle else 1 + len(options.fixed)
        images["val"] += facts["images"]["val"] * (1 + count * curve)
        images["test"] += facts["images"]["test"] * (grids + count * on_test)
    cells = sum(len(grid.vectors[name]) for name in receivers)
    parameters = {"cells": cells, "lambdas": list(options.points), "grid": grid.grid.to_json()}
    return Plan("transfer", request.out, {}, {}, parameters, images)


def _matrix(path: Path, lines: list[Line]) -> Matrix:
    return parse(Record(f"{path}:{n}", line) for n, line in enumerate(lines, start=1))


def _check(path: Path, lines: list[Line]) -> None:
    """Refuses lines that no summary could be made of, before anything is measured."""
    if any(line["kind"] == "receiver" for line in lines):
        _matrix(path, lines)


def _metrics(
    request: TransferRequest,
    grid: ResolvedGrid,
    lines: list[Line],
    matrix: Matrix,
    started: float,
) -> Metrics:
    run, summary = grid.run, summarise(matrix)
    inputs = (
        *(Input(r["model"], "checkpoint", r["digest"]) for r in run["receivers"].values()),
        *(Input(r["data"], "data", r["data_digest"]) for r in run["receivers"].values()),
        *(Input(d["rho"], "vector", d["digest"]) for d in run["donors"].values()),
    )
    measured = [line for line in lines if line["kind"] == "receiver"]
    val = sum(run["receivers"][line["receiver"]]["images"]["val"] for line in measured)
    return Metrics(
        "transfer",
        inputs,
        {key: run[key] for key in ("grid", "method", "lambdas", "fixed", "oracle", "nulls")},
        {"output": str(request.out), "lines": len(lines), "summary": summary},
        Use(DataUse.RECEIVER_LABELS, {"val": val}),
        ", ".join(sorted({line.get("device", run["device"]) for line in measured})),
        run["seed"],
        started,
    )
