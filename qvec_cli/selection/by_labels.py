"""Chooses lambda on the receiver's validation split, and reports it on test."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.replace import check_target, check_unfinished, unfinished, write_json
from qvec_cli.errors import CheckpointError, MismatchError, NotFiniteError, QvecError
from qvec_cli.inputs.data_use import inherited_use, patched_use
from qvec_cli.inputs.examples import Examples, open_for
from qvec_cli.inputs.files import model_of, opened
from qvec_cli.inputs.match import match
from qvec_cli.outputs.dry_run import Plan
from qvec_cli.outputs.metrics import Input, Metrics
from qvec_cli.specs import DataUse, Grid, GridOptions, Listener, Loading, Method, Use, spent
from qvec_cli.vector.pairing import Pairing

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


@dataclass(frozen=True, slots=True)
class _Setting:
    """The files of a sweep, found to belong together."""

    theta: Checkpoint
    rho: Checkpoint
    examples: Examples
    targets: tuple[str, ...]
    grid: Grid
    pairing: Pairing

    def plan(self, request: SweepRequest, lambdas: tuple[float, ...]) -> Plan:
        """What the sweep would do."""
        fates = self.pairing.fates(self.theta, "patched", "kept")
        fates |= dict.fromkeys(self.targets, f"patched, quantized to {self.grid}")
        images = {split: len(self.examples.task.split(split)) for split in ("val", "test")}
        parameters = {"lambdas": list(lambdas), "grid": self.grid.to_json()}
        return Plan(
            "sweep-lambda",
            request.out,
            fates,
            self.theta,
            parameters,
            images,
            request.data,
        )

    def fingerprint(self, method: Method, device: str) -> dict[str, Any]:
        """What a point of the curve depends on, besides its lambda."""
        splits = self.examples.task.splits
        return {
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
    lambdas = tuple(sorted({0.0, *request.lambdas}))
    with opened(request.receiver, listener) as theta, opened(request.vector, listener) as rho:
        setting = _match(request, theta, rho, listener)
        if request.dry_run:
            from qvec_cli.inputs.network import check_network

            check_network(theta, setting.examples.model, request.device)
            return setting.plan(request, lambdas).metrics((theta, rho), started)
        points = _Points(request, setting.fingerprint(request.method, request.device))
        trial = _trial(request, setting, listener)
        data = Input(request.data, "data", setting.examples.task.digest)
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
            "grid": setting.grid.to_json(),
            "method": request.method,
            "data": request.data,
            "lambdas": list(lambdas),
        },
        results,
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
