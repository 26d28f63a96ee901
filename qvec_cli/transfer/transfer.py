"""Every donor's vector on every receiver: the matrix of the method, a JSON line a cell."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qvec_cli.checkpoint.replace import (
    check_target,
    check_unfinished,
    is_stream,
    replacing,
    unfinished,
)
from qvec_cli.errors import SpecError
from qvec_cli.inputs.files import opened
from qvec_cli.outputs.dry_run import Plan
from qvec_cli.outputs.metrics import Input, Metrics
from qvec_cli.results.documents import check_apart
from qvec_cli.results.journal import Journal, Line, encoded
from qvec_cli.results.matrix import Matrix, parse
from qvec_cli.results.records import Record
from qvec_cli.results.summary import summarise
from qvec_cli.specs import DataUse, Listener, Silence, Use
from qvec_cli.transfer.cells import Host, other_grids
from qvec_cli.transfer.cosines import Alignment
from qvec_cli.transfer.grid_file import GridFile, read_grid_file
from qvec_cli.transfer.pairs import CellOptions, Lineup, cell, line_up
from qvec_cli.transfer.slurm import (
    Executor,
    check_executor,
    check_parts,
    clear_parts,
    finished,
    folder,
    part_of,
    run_jobs,
)


@dataclass(frozen=True, slots=True)
class TransferRequest:
    """What the user asks for."""

    grid_file: Path
    out: Path
    wishes: CellOptions
    shard: tuple[int, int] = (1, 1)  # which part of how many; receivers are dealt out in turn
    joined: tuple[Path, ...] = ()  # parts that are finished
    executor: Executor | None = None  # where jobs run; None: here, one receiver after the other
    resume: bool = False
    force: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        part, parts = self.shard
        if not 1 <= part <= parts:
            raise SpecError(f"--shard {part}/{parts} must be between 1/{parts} and {parts}/{parts}")
        if is_stream(self.out):
            raise SpecError(f"-o {self.out}: finished lines are kept beside it: name a file")

    def of_shard(self, names: Iterable[str]) -> tuple[str, ...]:
        """The receivers whose turn it is."""
        part, parts = self.shard
        return tuple(names)[part - 1 :: parts]


def transfer(request: TransferRequest, listener: Listener) -> Metrics:
    """Measures the cells that are not known yet, and sums up.

    Raises:
        MismatchError: members that do not belong together, lines of another run.
        CheckpointError: a broken file, an output that exists.
        SpecError: a grid file or a shard that cannot be.
    """
    started = time.perf_counter()
    check_target(request.out, force=request.force)
    check_unfinished(request.out, resume=request.resume, force=request.force)
    check_parts(request.out, resume=request.resume, force=request.force)
    if request.executor is not None:
        check_executor(request.out, request.executor)
    drawer = read_grid_file(request.grid_file)
    inputs = (request.grid_file, *request.joined, *drawer.files)
    check_apart(request.out, inputs, force=request.force)
    lineup = line_up(drawer, request.wishes, listener)
    receivers = request.of_shard(drawer.receivers)
    if not receivers:
        raise SpecError(f"--shard: the grid has {len(drawer.receivers)} receivers only")
    if request.dry_run:
        return _plan(request, lineup, receivers).metrics((), started)
    with Journal(unfinished(request.out), lineup.run) as journal:
        _recall(request, journal, listener)
        if request.executor is not None:
            _spread(request, request.executor, lineup, journal, listener)
        for name in receivers:
            _measure(lineup, name, journal, listener)
        wanted = [*lineup.lines(receivers)]
        if set(receivers) == set(drawer.receivers):
            _align(drawer, lineup, journal)
            wanted.append({"kind": "alignment"})
        lines = [*journal.ordered(wanted)]
        metrics = _metrics(request, lineup, lines, started)
        with replacing(request.out, force=request.force) as file:
            file.write(b"".join(map(encoded, lines)))
    return metrics


def clear(out: Path) -> None:
    """Removes what was kept to go on with, once all results are written."""
    unfinished(out).unlink(missing_ok=True)
    clear_parts(out)


def _recall(request: TransferRequest, journal: Journal, listener: Listener) -> None:
    """Takes what is finished: parts that are named and, to go on, what was cut off."""
    left = [unfinished(request.out), *finished(request.out)] if request.resume else []
    for path in left:
        lines = journal.resume(path, force=request.force, listener=listener)
        if lines is None:
            clear_parts(request.out)
            break
        _check(path, lines)
    for part in request.joined:
        _check(part, journal.take(part))
    if not request.resume:
        clear_parts(request.out)
    journal.start()


def _measure(lineup: Lineup, name: str, journal: Journal, listener: Listener) -> None:
    """The lines of a receiver that are missing; what is known costs nothing, not even torch."""
    wanted = [line for line in lineup.lines((name,)) if journal.get(line) is None]
    if not wanted:
        return
    host = Host(lineup.settings[name], listener)
    for vector in (None, *lineup.vectors[name]):
        line = {"kind": "receiver", "receiver": name} if vector is None else cell(name, vector)
        if journal.get(line) is not None:
            continue
        if vector is None:
            told = {"device": host.device, **host.proxies(listener)}
            journal.add({**line, **told, "baselines": host.baselines(listener)})
        else:
            journal.add({**line, **host.cell(vector, listener)})
    listener.milestone(f"{name}: {len(lineup.vectors[name])} vectors")


def _spread(
    request: TransferRequest,
    executor: Executor,
    lineup: Lineup,
    journal: Journal,
    listener: Listener,
) -> None:
    """The receivers that are not finished as jobs, each of which writes a part of its own."""
    names, jobs = [*lineup.settings], {}
    folder(request.out).mkdir(exist_ok=True)
    for place, name in enumerate(names, start=1):
        if name not in request.of_shard(names):
            continue
        if any(journal.get(line) is None for line in lineup.lines((name,))):
            jobs[name] = replace(
                request,
                out=part_of(request.out, place),
                shard=(place, len(names)),
                joined=(),
                executor=None,
                resume=True,
                force=True,
            )
    if jobs:
        run_jobs(_job, jobs, request.out, executor, listener)
    for job in jobs.values():
        journal.take(job.out)


def _job(request: TransferRequest) -> None:
    transfer(request, Silence())
    clear(request.out)


def _align(drawer: GridFile, lineup: Lineup, journal: Journal) -> None:
    """Cosines between the donors' vectors over the quantized weights."""
    line: Line = {"kind": "alignment"}
    if journal.get(line) is not None:
        return
    targets = next(iter(lineup.settings.values())).targets
    alignment = Alignment(len(drawer.donors))
    with ExitStack() as stack:
        rhos = [stack.enter_context(opened(d.rho, Silence())) for d in drawer.donors.values()]
        for name in targets:
            alignment.add([rho.finite(name) for rho in rhos])
    tables = {"global": alignment.whole, "rows": alignment.by_row}
    rounded = {key: np.round(table, 6).tolist() for key, table in tables.items()}
    journal.add({**line, "donors": [*drawer.donors], **rounded})


def _plan(request: TransferRequest, lineup: Lineup, receivers: tuple[str, ...]) -> Plan:
    """What the grid would do: how often each image would go through a network."""
    wishes, images = request.wishes, {"val": 0, "test": 0}
    curve = len(wishes.lambdas) - 1  # lambda 0 is the same for every vector
    for name in receivers:
        facts, count = lineup.run["receivers"][name], len(lineup.vectors[name])
        grids = 2 + len([*other_grids(lineup.grid)]) + bool(facts["qat"]) + len(facts["baselines"])
        on_test = curve if wishes.oracle else 1 + len(wishes.fixed)
        images["val"] += facts["images"]["val"] * (1 + count * curve)
        images["test"] += facts["images"]["test"] * (grids + count * on_test)
    cells = sum(len(lineup.vectors[name]) for name in receivers)
    parameters = {"cells": cells, "lambdas": list(wishes.lambdas), "grid": lineup.grid.to_json()}
    return Plan("transfer", request.out, {}, {}, parameters, images)


def _matrix(path: Path, lines: list[Line]) -> Matrix:
    return parse(Record(f"{path}:{n}", line) for n, line in enumerate(lines, start=1))


def _check(path: Path, lines: list[Line]) -> None:
    """Refuses lines that no summary could be made of, before anything is measured."""
    if any(line["kind"] == "receiver" for line in lines):
        _matrix(path, lines)


def _metrics(
    request: TransferRequest, lineup: Lineup, lines: list[Line], started: float
) -> Metrics:
    run = lineup.run
    inputs = [
        *(Input(r["model"], "checkpoint", r["digest"]) for r in run["receivers"].values()),
        *(Input(r["data"], "data", r["data_digest"]) for r in run["receivers"].values()),
        *(Input(d["rho"], "vector", d["digest"]) for d in run["donors"].values()),
    ]
    measured = [line for line in lines if line["kind"] == "receiver"]
    summary = summarise(_matrix(request.out, lines))
    val = sum(run["receivers"][line["receiver"]]["images"]["val"] for line in measured)
    return Metrics(
        "transfer",
        tuple(inputs),
        {key: run[key] for key in ("grid", "method", "lambdas", "fixed", "oracle", "nulls")},
        {
            "output": str(request.out),
            "lines": len(lines),
            "summary": summary,
        },
        Use(DataUse.RECEIVER_LABELS, {"val": val}),
        ", ".join(sorted({line.get("device", run["device"]) for line in measured})),
        run["seed"],
        started,
    )
