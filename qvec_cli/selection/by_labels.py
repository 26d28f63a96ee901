"""Chooses lambda on the receiver's validation split, and reports it on test."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.replace import check_target, check_unfinished, unfinished
from qvec_cli.errors import NotFiniteError, QvecError
from qvec_cli.inputs.data_use import inherited_use, patched_use
from qvec_cli.inputs.examples import Examples, open_for
from qvec_cli.inputs.files import model_of, opened
from qvec_cli.inputs.match import match
from qvec_cli.outputs.dry_run import Plan
from qvec_cli.outputs.metrics import Input, Metrics
from qvec_cli.results.journal import Journal, Line
from qvec_cli.results.records import Record, Score
from qvec_cli.specs import DataUse, Grid, GridOptions, Listener, Loading, Method, Use, spent
from qvec_cli.vector.pairing import Pairing

if TYPE_CHECKING:
    from qvec_cli.selection.trial import Trial


_NUMBERS: Final = ("n_correct_top5", "top5", "loss")
"""What a score of a journal must hold, beside its counts and its share."""


UNIT: Final = 1.0
"""The lambda that needs no data of the receiver."""


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """What the user asks for."""

    receiver: Path
    vector: Path
    data: str
    out: Path
    lambdas: tuple[float, ...]
    grid: GridOptions
    loading: Loading
    method: Method = Method.RTN
    device: str = "auto"
    resume: bool = False
    force: bool = False
    dry_run: bool = False

    @property
    def points(self) -> tuple[float, ...]:
        """Every lambda that is measured, ascending; 0, which is plain quantization, among them."""
        return tuple(sorted({0.0, *self.lambdas}))


@dataclass(frozen=True, slots=True)
class _Setting:
    """The files of a sweep, found to belong together."""

    theta: Checkpoint
    rho: Checkpoint
    examples: Examples
    targets: tuple[str, ...]
    grid: Grid
    pairing: Pairing

    def plan(self, request: SweepRequest) -> Plan:
        """What the sweep would do."""
        fates = self.pairing.fates(self.theta, "patched", "kept")
        fates |= dict.fromkeys(self.targets, f"patched, quantized to {self.grid}")
        images = {split: len(self.examples.task.split(split)) for split in ("val", "test")}
        parameters = {"lambdas": list(request.points), "grid": self.grid.to_json()}
        return Plan(
            "sweep-lambda",
            request.out,
            fates,
            self.theta,
            parameters,
            images,
            request.data,
        )

    def header(self, method: Method, device: str) -> Line:
        """What a point of the curve depends on, besides its lambda."""
        splits = self.examples.task.splits
        return {
            "kind": "run",
            "command": "sweep-lambda",
            "receiver": self.theta.settle(),
            "rho": self.rho.settle(),
            "grid": self.grid.to_json(),
            "method": method,
            "targets": list(self.targets),
            "data": self.examples.task.digest,
            "images": {name: len(splits[name]) for name in ("val", "test")},
            "batch_size": self.examples.loading.batch_size,
            "device": device,
        }


def sweep(request: SweepRequest, listener: Listener) -> Metrics:
    """Measures the curve on validation, its best point, lambda 0 and lambda 1 on test.

    Ties go to the smaller |lambda|; lambda = 0, which is plain quantization, always takes part.

    Raises:
        MismatchError: files, grid or data that do not belong together.
        CheckpointError: an unfinished sweep of something else.
    """
    started = time.perf_counter()
    check_target(request.out, force=request.force)
    check_unfinished(request.out, resume=request.resume, force=request.force)
    with opened(request.receiver, listener) as theta, opened(request.vector, listener) as rho:
        setting = _match(request, theta, rho, listener)
        if request.dry_run:
            from qvec_cli.inputs.network import check_network

            check_network(theta, setting.examples.model, request.device)
            return setting.plan(request).metrics((theta, rho), started)
        header = setting.header(request.method, request.device)
        with Journal(unfinished(request.out), header) as journal:
            _recall(request, journal, listener)
            return _measured(request, setting, journal, started, listener)


def _measured(
    request: SweepRequest, setting: _Setting, journal: Journal, started: float, listener: Listener
) -> Metrics:
    """The scores that the journal lacks, and the document of all."""
    theta, rho, lambdas = setting.theta, setting.rho, request.points
    trial = _trial(request, setting, listener)
    data = Input(request.data, "data", setting.examples.task.digest)
    curve = _curve(trial, lambdas, journal, listener)
    patched, labels = patched_use(theta, rho), {"val": curve[0]["val"]["n"]}
    chosen = spent(patched, Use(DataUse.RECEIVER_LABELS, labels))
    costs = _Costs(inherited_use(theta), patched, chosen)
    return Metrics(
        "sweep-lambda",
        (Input.of(theta), Input.of(rho), data),
        {
            "grid": setting.grid.to_json(),
            "method": request.method,
            "data": request.data,
            "lambdas": list(lambdas),
        },
        _report(trial, curve, journal, costs),
        costs.chosen,
        device=str(next(trial.network.parameters()).device),
        started=started,
    )


def _match(
    request: SweepRequest, theta: Checkpoint, rho: Checkpoint, listener: Listener
) -> _Setting:
    pair = match(theta, rho, request.grid, request.method, listener)
    examples = open_for(theta, model_of(theta), request.data, request.loading)
    for split in ("val", "test"):
        examples.task.split(split)
    return _Setting(theta, rho, examples, pair.targets, pair.grid, pair.pairing)


def _trial(request: SweepRequest, setting: _Setting, listener: Listener) -> Trial:
    from qvec_cli.selection.trial import load_trial, resident

    splits, targets = ("val", "test"), setting.targets
    plain = load_trial(setting.theta, setting.examples, targets, splits, request.device, listener)
    return replace(plain, rho=resident(setting.rho), grid=setting.grid, method=request.method)


@dataclass(frozen=True, slots=True)
class _Costs:
    """What the rows of the report have used of the receiver's data."""

    receiver: Use  # as it came
    patched: Use  # with the vector, at a lambda that nobody chose
    chosen: Use  # at the lambda of the sweep


def _curve(
    trial: Trial, lambdas: tuple[float, ...], journal: Journal, listener: Listener
) -> list[dict[str, Any]]:
    curve = []
    for done, lam in enumerate(lambdas, start=1):
        val = _score(trial, journal, lam, "val")
        curve.append({"lambda": lam, "val": val})
        listener.progress("sweep", done, len(lambdas), **{"lambda": lam, "top1": val["top1"]})
    return curve


def _report(
    trial: Trial, curve: list[dict[str, Any]], journal: Journal, costs: _Costs
) -> dict[str, Any]:
    """The curve, and on test: its best point, lambda 1, and what the receiver had before."""
    best, plain = choose(curve), next(point for point in curve if point["lambda"] == 0)
    fp = _kept(journal, "test of float", lambda: trial.float_score("test").to_json())

    def row(point: dict[str, Any], use: Use) -> dict[str, Any]:
        test = _score(trial, journal, point["lambda"], "test")
        return {**point, "test": test, "data_use": use.level}

    return {
        "curve": curve,
        "chosen": row(best, costs.chosen),
        "zero_shot": row({"lambda": UNIT}, costs.patched),
        "baselines": {
            "fp": {"test": fp, "data_use": costs.receiver.level},
            "ptq": row(plain, costs.receiver),
        },
    }


def _score(trial: Trial, journal: Journal, lam: float, split: str) -> dict[str, Any]:
    try:
        return _kept(journal, f"{split} at {lam!r}", lambda: trial.score(lam, split).to_json())
    except NotFiniteError:
        raise QvecError(
            f"at lambda {lam:g} the patched model is no longer finite",
            hint="Leave it out of --lambdas; the points before it are kept for --resume.",
        ) from None


def choose(curve: list[dict[str, Any]]) -> dict[str, Any]:
    """The point with most validation images right; ties go to the smaller |lambda|."""
    return min(curve, key=lambda p: (-p["val"]["n_correct"], abs(p["lambda"]), p["lambda"] < 0))


def _kept(journal: Journal, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The score that the journal keeps under a name, or one that is measured now and kept."""
    key = {"kind": "score", "name": name}
    line = journal.get(key)
    if line is None:
        line = {**key, **measure()}
        journal.add(line)
    return {field: value for field, value in line.items() if field not in key}


def _recall(request: SweepRequest, journal: Journal, listener: Listener) -> None:
    """Takes the scores of a sweep that was cut off, to go on with them."""
    if request.resume:
        path = unfinished(request.out)
        lines = journal.resume(path, force=request.force, listener=listener) or []
        for number, line in enumerate(lines[1:], start=2):
            score = Record(f"{path}:{number}", line)
            Score.of(score)
            for field in _NUMBERS:
                score.number(field)
    journal.start()
