"""Chooses lambda on the receiver's validation split, and reports it on test."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.checkpoint.replace import check_target, check_unfinished, unfinished, write_json
from qvec_cli.errors import CheckpointError, MismatchError, NotFiniteError, QvecError
from qvec_cli.inputs.data_use import inherited_use, patched_use
from qvec_cli.inputs.files import InputFiles
from qvec_cli.inputs.receiver import Receiver, ReceiverOptions, resolve
from qvec_cli.outputs.dry_run import TORCH, Plan
from qvec_cli.outputs.metrics import Input, Metrics
from qvec_cli.specs import DataUse, GridOptions, Listener, Loading, Method, Use, spent

if TYPE_CHECKING:
    from qvec_cli.selection.trial import Trial


_NUMBERS: Final = ("n", "n_correct", "top1", "n_correct_top5", "top5", "loss")
"""What a score holds at least."""


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


def _plan(request: SweepRequest, receiver: Receiver, lambdas: tuple[float, ...]) -> Plan:
    from qvec_cli.inputs.network import check_network

    theta, examples, grid = receiver.theta, receiver.examples, receiver.grid
    assert grid is not None
    check_network(theta, receiver.model, request.device)
    fates = receiver.vectors[0].pairing.fates(theta, "patched", "kept")
    fates |= dict.fromkeys(receiver.targets, f"patched, quantized to {grid}")
    images = {split: len(examples.task.split(split)) for split in ("val", "test")}
    memory = TORCH + 5 * theta.nbytes + examples.nbytes(images)
    parameters = {"lambdas": list(lambdas), "grid": grid.to_json()}
    what = (request.out, fates, theta, parameters, memory, images, request.data)
    return Plan("sweep-lambda", *what)


def _fingerprint(request: SweepRequest, receiver: Receiver) -> dict[str, Any]:
    """What a point of the curve depends on, besides its lambda."""
    assert receiver.grid is not None
    task = receiver.examples.task
    return {
        "receiver": receiver.theta.settle(),
        "rho": receiver.vectors[0].rho.settle(),
        "grid": receiver.grid.to_json(),
        "method": request.method,
        "targets": list(receiver.targets),
        "data": task.digest,
        "images": {name: len(task.splits[name]) for name in ("val", "test")},
        "batch_size": request.loading.batch_size,
        "device": request.device,
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
    lambdas = tuple(sorted({0.0, *request.lambdas}))
    with InputFiles(listener) as files:
        theta, rho = files.open(request.receiver), files.open(request.vector)
        options = ReceiverOptions(request.grid, request.method, request.loading, request.data)
        receiver = resolve(theta, (rho,), options, listener)
        if request.dry_run:
            return _plan(request, receiver, lambdas).metrics((theta, rho), started)
        points = _Points(request, _fingerprint(request, receiver))
        trial = _trial(request, receiver, listener)
        data = Input(request.data, "data", receiver.examples.task.digest)
        inputs, use = (Input.of(theta), Input.of(rho), data), patched_use(theta, rho)
        before = inherited_use(theta)
    curve = _curve(trial, lambdas, points, listener)
    labels = Use(DataUse.RECEIVER_LABELS, {"val": curve[0]["val"]["n"]})
    costs = _Costs(before, use, spent(use, labels))
    results = _report(trial, curve, points, costs)
    return Metrics(
        "sweep-lambda",
        inputs,
        {
            "grid": trial.grid.to_json(),
            "method": request.method,
            "data": request.data,
            "lambdas": list(lambdas),
        },
        results,
        costs.chosen,
        device=str(next(trial.network.parameters()).device),
        started=started,
    )


def _trial(request: SweepRequest, receiver: Receiver, listener: Listener) -> Trial:
    from qvec_cli.selection.trial import load_trial, resident

    assert receiver.grid is not None
    theta, targets, splits = receiver.theta, receiver.targets, ("val", "test")
    plain = load_trial(theta, receiver.examples, targets, splits, request.device, listener)
    rho = resident(receiver.vectors[0].rho)
    return replace(plain, rho=rho, grid=receiver.grid, method=request.method)


@dataclass(frozen=True, slots=True)
class _Costs:
    """What the rows of the report have used of the receiver's data."""

    receiver: Use  # as it came
    patched: Use  # with the vector, at a lambda that nobody chose
    chosen: Use  # at the lambda of the sweep


def _curve(
    trial: Trial, lambdas: tuple[float, ...], points: _Points, listener: Listener
) -> list[dict[str, Any]]:
    curve = []
    for done, lam in enumerate(lambdas, start=1):
        val = _score(trial, points, lam, "val")
        curve.append({"lambda": lam, "val": val})
        listener.progress("sweep", done, len(lambdas), **{"lambda": lam, "top1": val["top1"]})
    return curve


def _report(
    trial: Trial, curve: list[dict[str, Any]], points: _Points, costs: _Costs
) -> dict[str, Any]:
    """The curve, and on test: its best point, lambda 1, and what the receiver had before."""
    best, plain = choose(curve), next(point for point in curve if point["lambda"] == 0)
    fp = points.get("test of float", lambda: trial.float_score("test").to_json())

    def row(point: dict[str, Any], use: Use) -> dict[str, Any]:
        test = _score(trial, points, point["lambda"], "test")
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


def _score(trial: Trial, points: _Points, lam: float, split: str) -> dict[str, Any]:
    try:
        return points.get(f"{split} at {lam!r}", lambda: trial.score(lam, split).to_json())
    except NotFiniteError:
        raise QvecError(
            f"at lambda {lam:g} the patched model is no longer finite",
            hint="Leave it out of --lambdas; the points before it are kept for --resume.",
        ) from None


def choose(curve: list[dict[str, Any]]) -> dict[str, Any]:
    """The point with most validation images right; ties go to the smaller |lambda|."""
    return min(curve, key=lambda p: (-p["val"]["n_correct"], abs(p["lambda"]), p["lambda"] < 0))


class _Points:
    """Scores that are kept beside the output until it is whole, so that a sweep can go on."""

    def __init__(self, request: SweepRequest, run: dict[str, Any]) -> None:
        self._path, self._run = unfinished(request.out), run
        self._scores = self._load() if request.resume and self._path.exists() else {}

    def get(self, key: str, score: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The score kept under a key, or measured now."""
        if key not in self._scores:
            self._scores[key] = score()
            write_json(self._path, {"run": self._run, "scores": self._scores}, force=True)
        return self._scores[key]

    def _load(self) -> dict[str, dict[str, Any]]:
        try:
            document = json.loads(self._path.read_bytes())
            stored, scores = dict(document["run"]), dict(document["scores"])
            numbers = [score[key] for score in scores.values() for key in _NUMBERS]
            if not all(isinstance(number, int | float) for number in numbers):
                raise TypeError("its scores are no numbers")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as fault:
            raise CheckpointError(
                f"{self._path}: is not the state of a sweep ({fault})",
                hint="Start anew with --force.",
            ) from None
        if changed := [key for key in self._run if stored.get(key) != self._run[key]]:
            raise MismatchError(
                f"{self._path}: is of another sweep: its {', '.join(changed)} changed",
                hint="Start anew with --force.",
            )
        return scores
