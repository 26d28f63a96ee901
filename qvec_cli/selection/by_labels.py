"""Chooses lambda on the receiver's validation split, and reports it on test."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from qvec_cli.checkpoint.replace import check_target, check_unfinished, may_be_finished, unfinished
from qvec_cli.errors import NotFiniteError, located
from qvec_cli.inputs.files import InputFiles
from qvec_cli.inputs.lineage import inherited_use, patched_use
from qvec_cli.inputs.receiver import Receiver, ReceiverOptions, resolve
from qvec_cli.model.build import NetworkOptions
from qvec_cli.outputs.metrics import Input, Metrics, Plan
from qvec_cli.results.journal import Journal, Line, check_finished
from qvec_cli.results.records import Record, Score
from qvec_cli.selection.choose import LeftOut, skipped
from qvec_cli.specs import DataUse, GridOptions, Listener, Loading, Method, Use, spent

if TYPE_CHECKING:
    from qvec_cli.selection.trial import Trial

UNIT: Final = 1.0
"""The lambda that needs no data of the receiver."""


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """The flags of ``sweep-lambda`` with labels."""

    receiver: Path
    vector: Path
    data: str
    out: Path
    lambdas: tuple[float, ...]
    grid: GridOptions = field(default_factory=GridOptions)  # as said; else the vector's
    loading: Loading = field(default_factory=Loading)
    method: Method = Method.RTN
    device: str = "auto"
    network: NetworkOptions = NetworkOptions()  # for a receiver without a card
    resume: bool = False
    force: bool = False
    dry_run: bool = False

    @property
    def points(self) -> tuple[float, ...]:
        """Every lambda that is measured, ascending; 0, which is plain quantization, among them."""
        return tuple(sorted({0.0, *self.lambdas}))


def sweep(request: SweepRequest, listener: Listener) -> Metrics:
    """Measures the curve on validation, its best point, lambda 0 and lambda 1 on test.

    Ties go to the smaller |lambda|; lambda = 0, which is plain quantization, always takes part. A
    lambda at which the network is not finite is left out. NotFiniteError: it is not at lambda 0.
    Raises MismatchError: files, grid or data that do not belong together; CheckpointError: an
    unfinished sweep of something else.
    """
    started = time.perf_counter()
    finished = may_be_finished(request.out, resume=request.resume, force=request.force)
    check_target(request.out, force=request.force or finished)
    check_unfinished(request.out, resume=request.resume, force=request.force)
    with InputFiles(listener, request.network.weights) as files:
        theta, rho = files.open(request.receiver), files.open(request.vector)
        options = ReceiverOptions(
            request.grid, request.method, request.loading, request.data, network=request.network
        )
        receiver = resolve(theta, (rho,), options, listener)
        assert receiver.grid is not None
        grid = receiver.grid.to_json()
        if request.dry_run:
            fates, task = fates_of(receiver, request.device), receiver.examples.task
            images = {split: len(task.split(split)) for split in ("val", "test")}
            facts = {"lambdas": list(request.points), "grid": grid}
            planned = Plan("sweep-lambda", request.out, fates, theta, facts, images, request.data)
            return planned.metrics((theta, rho), started)
        if finished:
            digests = [each.digest for each in _inputs(request, receiver)]
            parameters = _parameters(request, receiver)
            check_finished(request.out, "sweep-lambda", digests, parameters, listener)
        with Journal(unfinished(request.out), _header(request, receiver, grid)) as journal:
            _recall(request, journal, listener)
            with located(theta.path, NotFiniteError):
                return _measured(request, receiver, journal, started, listener)


def fates_of(receiver: Receiver, device: str) -> dict[str, str]:
    """What a sweep would do to each tensor of a receiver, whose network is checked by headers."""
    from qvec_cli.inputs.network import check_network

    check_network(receiver.theta, receiver.model, device)
    fates = receiver.vectors[0].pairing.fates(receiver.theta, "patched", "kept")
    return fates | dict.fromkeys(receiver.targets, f"patched, quantized to {receiver.grid}")


def _header(request: SweepRequest, receiver: Receiver, grid: dict[str, Any]) -> Line:
    """What a point of the curve depends on, besides its lambda."""
    task = receiver.examples.task
    return {
        "kind": "run",
        "command": "sweep-lambda",
        "receiver": receiver.theta.settle(),
        "rho": receiver.vectors[0].rho.settle(),
        "grid": grid,
        "method": request.method,
        "targets": list(receiver.targets),
        "data": task.digest,
        "images": {name: len(task.splits[name]) for name in ("val", "test")},
        "batch_size": request.loading.batch_size,
        "device": request.device,
    }


def _inputs(request: SweepRequest, receiver: Receiver) -> tuple[Input, ...]:
    theta, rho = receiver.theta, receiver.vectors[0].rho
    data = Input(request.data, "data", receiver.examples.task.digest)
    return Input.of(theta), Input.of(rho), data


def _parameters(request: SweepRequest, receiver: Receiver) -> dict[str, Any]:
    assert receiver.grid is not None
    return {
        "grid": receiver.grid.to_json(),
        "method": request.method,
        "data": request.data,
        "lambdas": list(request.points),
    }


class _FurtherNumbers(Struct, frozen=True):
    """What a score of a journal must hold, beside its counts and its share."""

    n_correct_top5: int
    top5: float
    loss: float


def _recall(request: SweepRequest, journal: Journal, listener: Listener) -> None:
    """Takes the scores of a sweep that was cut off, to go on with them."""
    if request.resume:
        path = unfinished(request.out)
        lines = journal.resume(path, force=request.force, listener=listener) or []
        for number, line in enumerate(lines[1:], start=2):
            record = Record(f"{path}:{number}", line)
            record.decoded(Score)
            record.decoded(_FurtherNumbers)
    journal.start()


def _measured(
    request: SweepRequest, receiver: Receiver, journal: Journal, started: float, listener: Listener
) -> Metrics:
    """The scores that the journal lacks, and the document of all."""
    from qvec_cli.selection.trial import load_trial, resident

    theta, rho = receiver.theta, receiver.vectors[0].rho
    plain = load_trial(receiver, ("val", "test"), request.device, listener, request.method)
    trial = replace(plain, rho=resident(rho))
    curve: list[dict[str, Any]] = []
    left_out = LeftOut(listener)
    for done, lam in enumerate(request.points, start=1):
        with left_out.skipping(lam):
            val = _score(trial, journal, lam, "val")
            curve.append({"lambda": lam, "val": val})
            shown = {"lambda": lam, "top1": val["top1"]}
            count = len(request.points)
            listener.progress(f"lambda {done}/{count}", done, count, **shown)
    fp = _kept(journal, "test of float", lambda: trial.float_score("test").to_json())

    def on_test(point: dict[str, Any], use: Use) -> dict[str, Any]:
        test = _score(trial, journal, point["lambda"], "test")
        return {**point, "test": test, "data_use": use.level}

    inherited, patched = inherited_use(theta), patched_use(theta, rho)
    use = spent(patched, Use(DataUse.RECEIVER_LABELS, {"val": curve[0]["val"]["n"]}))
    tests: dict[str, dict[str, Any]] = {}
    while "chosen" not in tests:  # a lambda may be finite on validation only
        best = choose(left_out.kept(curve))
        with left_out.skipping(best["lambda"]):
            tests["chosen"] = on_test(best, use)
    if UNIT not in left_out.reasons:
        with left_out.skipping(UNIT):
            tests["zero_shot"] = on_test({"lambda": UNIT}, patched)
    results = {
        "curve": left_out.kept(curve),
        **tests,
        **skipped(left_out.points()),
        "baselines": {
            "fp": {"test": fp, "data_use": inherited.level},
            "ptq": on_test(next(point for point in curve if point["lambda"] == 0), inherited),
        },
    }
    inputs, parameters = _inputs(request, receiver), _parameters(request, receiver)
    return Metrics("sweep-lambda", inputs, parameters, results, use, trial.device, started=started)


def _score(trial: Trial, journal: Journal, lam: float, split: str) -> dict[str, Any]:
    return _kept(journal, f"{split} at {lam!r}", lambda: trial.score(lam, split).to_json())


def _kept(journal: Journal, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The score that the journal keeps under a name, or one that is measured now and kept."""
    key = {"kind": "score", "name": name}
    line = journal.get(key)
    if line is None:
        line = {**key, **measure()}
        journal.add(line)
    return {part: value for part, value in line.items() if part not in key}


def choose(curve: list[dict[str, Any]]) -> dict[str, Any]:
    """The point with most validation images right; ties go to the smaller |lambda|."""
    return min(curve, key=lambda p: (-p["val"]["n_correct"], abs(p["lambda"]), p["lambda"] < 0))
