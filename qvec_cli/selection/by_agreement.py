"""Chooses lambdas, ranks donors and mixes them, by agreement with the receiver's float self."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qvec_cli.checkpoint.dtypes import Array
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.replace import check_target
from qvec_cli.errors import NotFiniteError, SpecError, located
from qvec_cli.inputs.files import InputFiles
from qvec_cli.inputs.images import ProxyOptions
from qvec_cli.inputs.lambdas import AUTO, LambdaChoice
from qvec_cli.inputs.lineage import inherited_use, patched_use
from qvec_cli.inputs.receiver import PairedVector, Receiver, ReceiverOptions, resolve
from qvec_cli.model.build import NetworkOptions
from qvec_cli.outputs.metrics import Input, Metrics, Plan
from qvec_cli.selection.by_labels import UNIT, fates_of
from qvec_cli.selection.choose import (
    NEGATIVE,
    Average,
    LeftOut,
    beats,
    choose_lambda,
    fit,
    removed,
    skipped,
)
from qvec_cli.specs import GridOptions, Listener, Measure, Method, Objective, Part, Use, spent
from qvec_cli.vector.pairing import select

if TYPE_CHECKING:
    from qvec_cli.learn.forward import Outputs
    from qvec_cli.selection.trial import Judge, Trial

Point = dict[str, Any]
"""One lambda of a curve, as metrics hold it."""


@dataclass(frozen=True, slots=True)
class AgreementOptions:
    """How lambda is chosen without labels."""

    lambdas: tuple[float, ...]
    proxy: ProxyOptions
    grid: GridOptions = field(default_factory=GridOptions)
    method: Method = Method.RTN
    measure: Measure | None = None  # None: what suits the receiver's answers
    device: str = "auto"
    parts: tuple[Part, ...] = ()  # of the network that vectors are added to; none named: all
    network: NetworkOptions = NetworkOptions()  # for a receiver without a card

    def __post_init__(self) -> None:
        if not any(lam > 0 for lam in self.lambdas):
            raise SpecError("--lambdas has none above 0")

    @property
    def points(self) -> tuple[float, ...]:
        """Every lambda that is measured, ascending, with 0 and some negative ones."""
        return tuple(sorted({0.0, *NEGATIVE, *self.lambdas}))

    def resolved(
        self,
        theta: Checkpoint,
        rhos: Sequence[Checkpoint],
        listener: Listener,
        data: str | None = None,
    ) -> Receiver:
        """The receiver with the vectors and the images; see ``resolve``."""
        loading, proxy = self.proxy.loading, self.proxy
        options = ReceiverOptions(
            self.grid, self.method, loading, data=data, proxy=proxy, network=self.network
        )
        return resolve(theta, rhos, options, listener)


@dataclass(frozen=True, slots=True)
class AgreementRequest:
    """The flags of ``sweep-lambda --objective agreement``."""

    receiver: Path
    vectors: tuple[Path, ...]
    out: Path
    options: AgreementOptions
    data: str | None = None  # labels, to judge the choice by; they take no part in it
    force: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Curve:
    """One vector on one receiver: the distance of its answers at each lambda, and the choice."""

    lambdas: tuple[float, ...]
    distances: tuple[Array, ...]  # [N] each
    place: int  # of the chosen lambda
    explained: float  # share of the damage that one coefficient would cancel, were changes linear
    fitted: float  # that coefficient
    skipped: tuple[Point, ...] = ()  # lambdas at which the network is not finite, with the reason

    @property
    def lam(self) -> float:
        """The chosen lambda."""
        return self.lambdas[self.place]

    @property
    def removed(self) -> float:
        """The share of the damage that is gone at the chosen lambda."""
        return removed(self.distances[self.place], self.distances[self.lambdas.index(0.0)])

    def points(self) -> list[Point]:
        """The points of the curve, as metrics hold them."""
        return [
            {"lambda": lam, "distance": average.mean, "standard_error": average.standard_error}
            for lam, average in zip(self.lambdas, map(Average.of, self.distances), strict=True)
        ]

    def to_json(self) -> Point:
        """The curve, and what is left out of it, as metrics hold them."""
        return {"curve": self.points(), **skipped(self.skipped)}

    def score(self) -> Point:
        """The donor's score: what it removes at its best, chosen or not."""
        plain = self.distances[self.lambdas.index(0.0)]
        most = max(removed(distances, plain) for distances in self.distances)
        return {"removed": most, "explained": self.explained, "fitted_lambda": self.fitted}


def curve_of(judge: Judge, answers: Mapping[float, Outputs]) -> Curve:
    """The distances and the choice that follow from a receiver's answers at each lambda.

    The lambdas ascend, 0 among them; alone it is chosen, and explains nothing.
    """
    lambdas, plain = tuple(answers), answers[0.0]
    distances = tuple(judge.distances(outputs) for outputs in answers.values())
    if len(lambdas) == 1:
        return Curve(lambdas, distances, 0, 0.0, 0.0)
    step = min(filter(None, lambdas), key=lambda lam: (lam < 0, abs(lam - UNIT)))
    change = (answers[step].logits - plain.logits)[None] / step
    line = fit(change, plain.logits - judge.teacher.logits, judge.chances, ridge=0.0)
    place = choose_lambda(lambdas, distances)
    return Curve(lambdas, distances, place, line.explained, float(line.mix[0]))


class AgreementRun:
    """A receiver in memory: its float answers to its proxies, and its plain quantization."""

    def __init__(self, receiver: Receiver, options: AgreementOptions, listener: Listener) -> None:
        from qvec_cli.selection.trial import load_judge, load_trial

        assert receiver.proxies is not None
        self._receiver, self._options, self._listener = receiver, options, listener
        splits = ("val", "test") if receiver.labelled else ()
        self.trial = load_trial(receiver, splits, options.device, listener, options.method)
        self.judge = load_judge(self.trial, receiver.proxies, listener, options.measure)
        self.plain = self.judge.answers_at(self.trial, 0.0)
        self.use = receiver.proxies.use

    def trace(self, trial: Trial, lambdas: tuple[float, ...], name: str) -> Curve:
        """Measures the trial of a vector of some name at every lambda: ascending, 0 among them."""
        left_out = LeftOut(self._listener, name)
        answers: dict[float, Outputs] = {}
        for lam in lambdas:
            with left_out.skipping(lam):
                answers[lam] = self.judge.answers_at(trial, lam) if lam else self.plain
        return replace(curve_of(self.judge, answers), skipped=tuple(left_out.points()))

    def curve(self, vector: PairedVector) -> tuple[Curve, Trial]:
        """The curve of one vector, and its trial."""
        from qvec_cli.selection.trial import resident

        theta = self._receiver.theta
        chosen = select(vector.pairing.names, theta, self._options.parts)
        rho = {name: block for name, block in resident(vector.rho).items() if name in chosen}
        trial = replace(self.trial, rho=rho)
        return self.trace(trial, self._options.points, str(vector.rho.path)), trial

    def donor(self, vector: PairedVector) -> Point:
        """One vector's row of the report."""
        curve, trial = self.curve(vector)
        points, rho = curve.points(), vector.rho
        use = spent(patched_use(self._receiver.theta, rho), self.use)
        chosen = {**points[curve.place], "data_use": use.level}
        if self._receiver.labelled:
            points = [{**p, **self._judged(trial, p["lambda"], "val")} for p in points]
            chosen = {**points[curve.place], "data_use": use.level}
            chosen |= self._judged(trial, curve.lam, "test")
        self._listener.milestone(f"{rho.path}: lambda {curve.lam:g}")
        name = {"rho": str(rho.path), "digest": rho.settle()}
        row = {**name, **curve.to_json(), "curve": points}
        return {**row, "chosen": {**chosen, **name}, "score": curve.score()}

    def _judged(self, trial: Trial, lam: float, split: str) -> Point:
        """The score on labels, which take no part in the choice; none if it is not finite."""
        try:
            return {split: trial.score(lam, split).to_json()}
        except NotFiniteError as error:
            self._listener.note(f"lambda {lam:g} has no score on {split}: {error}")
            return {}

    def labelled_baselines(self) -> Point:
        """Test accuracy of the float receiver and of its plain quantization, if it has labels."""
        if self._receiver.labelled is None:
            return {}
        use = inherited_use(self._receiver.theta).level
        fp, ptq = self.trial.float_score("test"), self.trial.score(0.0, "test")
        return {
            "baselines": {
                "fp": {"test": fp.to_json(), "data_use": use},
                "ptq": {"lambda": 0.0, "test": ptq.to_json(), "data_use": use},
            }
        }


def agree(request: AgreementRequest, listener: Listener) -> Metrics:
    """Measures the distance of each vector's curve, ranks the vectors, chooses a lambda for each.

    Raises MismatchError: files, grids or images that do not belong together.
    """
    started = time.perf_counter()
    check_target(request.out, force=request.force)
    with InputFiles(listener, request.options.network.weights) as files:
        theta, rhos = files.open(request.receiver), [files.open(path) for path in request.vectors]
        receiver = request.options.resolved(theta, rhos, listener, request.data)
        grid, proxies, options = receiver.grid, receiver.proxies, request.options
        assert grid is not None
        assert proxies is not None
        parameters = {
            "grid": grid.to_json(),
            "method": options.method,
            "data": request.data,
            "lambdas": list(options.points),
            "objective": Objective.AGREEMENT,
            "proxy": list(options.proxy.specs),
            "samples": options.proxy.samples,
        }
        if request.dry_run:
            fates = fates_of(receiver, options.device)
            images = {"proxy": proxies.count}
            planned = Plan("sweep-lambda", request.out, fates, theta, parameters, images)
            return planned.metrics((theta, *rhos), started)
        with located(theta.path, NotFiniteError):
            run = AgreementRun(receiver, options, listener)
            donors = [run.donor(vector) for vector in receiver.vectors]
            baselines = run.labelled_baselines()
        order = sorted(range(len(donors)), key=lambda i: -donors[i]["score"]["removed"])
        useful = [i for i in order if donors[i]["chosen"]["lambda"] != 0]
        first = (useful or order)[0]
        results = {
            "objective": Objective.AGREEMENT,
            "measure": run.judge.measure,
            "proxies": run.judge.proxy_facts(listener),
            "curve": donors[first]["curve"],
            "chosen": donors[first]["chosen"],
            **skipped(donors[first].get("skipped", ())),
            "donors": [donors[i] for i in order],
            **baselines,
        }
        inputs = (Input.of(theta), *map(Input.of, rhos), *proxies.inputs)
        use = spent(patched_use(theta, rhos[first]), run.use)
    if receiver.labelled:
        inputs = (*inputs, Input(str(request.data), "data", receiver.labelled.task.digest))
    device = run.trial.device
    return Metrics("sweep-lambda", inputs, parameters, results, use, device, started=started)


def choose(
    theta: Checkpoint,
    rho: Checkpoint,
    options: AgreementOptions,
    listener: Listener,
    *,
    dry_run: bool = False,
) -> tuple[LambdaChoice, Curve | None]:
    """The lambda for one receiver and one vector; no curve in a dry run.

    Raises MismatchError: files, grids or images that do not belong together; NotFiniteError: the
    receiver, as it is or rounded.
    """
    receiver = options.resolved(theta, (rho,), listener)
    assert receiver.proxies is not None
    assert receiver.grid is not None
    curve = None
    if not dry_run:
        with located(theta.path, NotFiniteError):
            run = AgreementRun(receiver, options, listener)
            curve, _ = run.curve(receiver.vectors[0])
        run.judge.proxy_facts(listener)
    lam = curve.lam if curve else 0.0
    return LambdaChoice(lam, AUTO, receiver.proxies.use, receiver.grid.to_json()), curve


# --- one coefficient for each of several vectors --------------------------------------------------
#
# The paper's optimal lambda is a projection of quantization's damage on what a vector changes. Here
# it is one for several vectors at once, measured at the quantized receiver; a short search along
# the ray of the coefficients then decides on their length, because rounding is not linear.

RAY: Final = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""Multiples of the coefficients that are tried, and lambdas of the mean vector."""


@dataclass(frozen=True, slots=True)
class FitOptions:
    """For which receiver the coefficients are fitted, and how they are judged."""

    receiver: Path
    agreement: AgreementOptions  # its lambdas are ``RAY``


@dataclass(frozen=True, slots=True)
class Fitted:
    """The coefficients, 0 everywhere where no combination is surely better than none."""

    mix: tuple[float, ...]
    use: Use  # the receiver data that the fit has used
    facts: Mapping[str, Any]  # for cards and metrics


def fit_mix(
    options: FitOptions, vectors: Sequence[Checkpoint], files: InputFiles, listener: Listener
) -> Fitted:
    """Fits on the proxies; takes the mean vector at a lambda of its own where that is as good.

    Raises MismatchError: files, grids or images that do not belong together; NotFiniteError: the
    receiver, as it is or rounded.
    """
    theta = files.open(options.receiver)
    receiver = options.agreement.resolved(theta, vectors, listener)
    with located(theta.path, NotFiniteError):
        run = AgreementRun(receiver, options.agreement, listener)
        mix, facts = _fitted(run, vectors, options.agreement.points, listener)
    about = {
        "receiver": {"name": theta.name, "digest": theta.settle()},
        "grid": run.trial.grid.to_json(),
        "proxies": run.judge.proxy_facts(listener),
        "measure": run.judge.measure,
    }
    return Fitted(mix, run.use, {**about, **facts})


def _fitted(
    run: AgreementRun, vectors: Sequence[Checkpoint], lambdas: tuple[float, ...], listener: Listener
) -> tuple[tuple[float, ...], dict[str, Any]]:
    """The coefficients, and how they came about."""
    evenly, names = [1 / len(vectors)] * len(vectors), ("mean vector", "fitted vectors")
    mean = run.trace(replace(run.trial, rho=_mixed(vectors, evenly)), lambdas, names[0])
    step = abs(mean.lam) or RAY[1]
    changes, left_out = [], [LeftOut(listener, str(vector.path)) for vector in vectors]
    for done, vector in enumerate(vectors, start=1):
        change = np.zeros_like(run.plain.logits)  # where it is not finite: its coefficient is 0
        with left_out[done - 1].skipping(step):
            answers = run.judge.answers_at(replace(run.trial, rho=_mixed((vector,), (1.0,))), step)
            change = (answers.logits - run.plain.logits) / step
        changes.append(change)
        listener.progress(f"vector {done}/{len(vectors)}", done, len(vectors))
    damage = run.plain.logits - run.judge.teacher.logits
    line = fit(np.stack(changes), damage, run.judge.chances)
    coefficients = [float(part) for part in line.mix]
    ray = run.trace(replace(run.trial, rho=_mixed(vectors, coefficients)), RAY, names[1])
    better = ray.lam != 0 and beats(ray.distances[ray.place], mean.distances[mean.place], 1.0)
    taken, unit = (ray, coefficients) if better else (mean, evenly)
    lost = [*zip(names, (mean.skipped, ray.skipped), strict=True)]
    lost += [(one.name, tuple(one.points())) for one in left_out]
    return tuple(taken.lam * part + 0.0 for part in unit), {
        "explained": line.explained,
        "removed": taken.removed,
        "coefficients": coefficients,
        "taken": "fit" if better else "mean",
        "times": taken.lam,
        "mean_lambda": mean.lam,
        "ray": ray.points(),
        "mean": mean.points(),
        **skipped([{"vector": name, **point} for name, points in lost for point in points]),
    }


def _mixed(vectors: Iterable[Checkpoint], mix: Sequence[float]) -> dict[str, Array]:
    """Their weighted sum, float32, one vector in memory at a time; sums are in float64."""
    total: dict[str, Any] = {}
    for vector, share in zip(vectors, mix, strict=True):
        for name in vector:
            total[name] = total.get(name, 0.0) + share * vector.finite(name).astype(np.float64)
    with np.errstate(over="ignore"):  # what is too large for float32 is left out
        return {name: numbers.astype(np.float32) for name, numbers in total.items()}
