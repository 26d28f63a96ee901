"""Chooses lambda, and ranks donors, by agreement with the receiver's float self on proxy images."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.replace import check_target
from qvec_cli.errors import NotFiniteError, QvecError, SpecError
from qvec_cli.inputs.files import InputFiles
from qvec_cli.inputs.images import Proxies, ProxyOptions
from qvec_cli.inputs.lambdas import AUTO, LambdaChoice
from qvec_cli.inputs.lineage import inherited_use, patched_use
from qvec_cli.inputs.receiver import PairedVector, Receiver, ReceiverOptions, resolve
from qvec_cli.outputs.metrics import Input, Metrics, Plan
from qvec_cli.selection.by_labels import UNIT
from qvec_cli.selection.choose import NEGATIVE, Average, choose_lambda, fit, removed
from qvec_cli.specs import GridOptions, Listener, Measure, Method, Objective, Part, spent
from qvec_cli.vector.pairing import select

if TYPE_CHECKING:
    from qvec_cli.checkpoint.dtypes import Array
    from qvec_cli.learn.forward import Outputs
    from qvec_cli.selection.agreement import Judge
    from qvec_cli.selection.trial import Trial


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

    def __post_init__(self) -> None:
        if not any(lam > 0 for lam in self.lambdas):
            raise SpecError("--lambdas has none above 0")

    def resolved(
        self,
        theta: Checkpoint,
        rhos: Sequence[Checkpoint],
        listener: Listener,
        data: str | None = None,
    ) -> Receiver:
        """The receiver with the vectors and the images; see ``resolve``."""
        loading, proxy = self.proxy.loading, self.proxy
        options = ReceiverOptions(self.grid, self.method, loading, data=data, proxy=proxy)
        return resolve(theta, rhos, options, listener)


@dataclass(frozen=True, slots=True)
class AgreementRequest:
    """What the user asks ``sweep-lambda --objective agreement`` for."""

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

    @property
    def lam(self) -> float:
        """The chosen lambda."""
        return self.lambdas[self.place]

    @property
    def removed(self) -> float:
        """The share of the damage that is gone at the chosen lambda."""
        return removed(self.distances[self.place], self.distances[self.lambdas.index(0.0)])

    def points(self) -> list[Point]:
        """As metrics hold them."""
        return [
            {"lambda": lam, "distance": average.mean, "standard_error": average.standard_error}
            for lam, average in zip(self.lambdas, map(Average.of, self.distances), strict=True)
        ]

    def score(self) -> Point:
        """The donor's score."""
        return {"removed": self.removed, "explained": self.explained, "fitted_lambda": self.fitted}


def with_negative(lambdas: Sequence[float]) -> tuple[float, ...]:
    """Ascending, with 0 and some negative ones."""
    return tuple(sorted({0.0, *NEGATIVE, *lambdas}))


def trace(judge: Judge, trial: Trial, lambdas: tuple[float, ...], plain: Outputs) -> Curve:
    """Measures every lambda.

    Args:
        judge: of the receiver.
        trial: the same with a vector.
        lambdas: ascending, 0 among them.
        plain: answers at lambda 0.
    """
    answers = {lam: plain if lam == 0 else judge.answers_at(trial, lam) for lam in lambdas}
    return curve_of(judge, answers)


def curve_of(judge: Judge, answers: Mapping[float, Outputs]) -> Curve:
    """The distances and the choice that follow from the answers at each lambda.

    Args:
        judge: of the receiver.
        answers: by lambda, ascending; 0 and a positive one are among them.
    """
    lambdas, plain = tuple(answers), answers[0.0]
    distances = tuple(judge.distances(outputs) for outputs in answers.values())
    step = min((lam for lam in lambdas if lam > 0), key=lambda lam: abs(lam - UNIT))
    line = fit(
        (answers[step].logits - plain.logits)[None] / step,
        plain.logits - judge.teacher.logits,
        judge.chances,
        ridge=0.0,
    )
    place = choose_lambda(lambdas, distances)
    return Curve(lambdas, distances, place, line.explained, float(line.mix[0]))


def agree(request: AgreementRequest, listener: Listener) -> Metrics:
    """Measures the distance of each vector's curve, ranks the vectors, chooses a lambda for each.

    Raises:
        MismatchError: files, grids or images that do not belong together.
    """
    started = time.perf_counter()
    check_target(request.out, force=request.force)
    with InputFiles(listener) as files:
        theta, rhos = files.open(request.receiver), [files.open(path) for path in request.vectors]
        receiver = request.options.resolved(theta, rhos, listener, request.data)
        lambdas = with_negative(request.options.lambdas)
        parameters = _parameters(request, receiver, lambdas)
        if request.dry_run:
            return _plan(request, receiver, parameters).metrics((theta, *rhos), started)
        run = AgreementRun(receiver, request.options, listener)
        donors = [run.donor(vector, lambdas, listener) for vector in receiver.vectors]
        order = sorted(range(len(donors)), key=lambda i: -donors[i]["score"]["explained"])
        useful = [i for i in order if donors[i]["chosen"]["lambda"] != 0]
        first = (useful or order)[0]
        best = donors[first]
        results = {
            "objective": Objective.AGREEMENT,
            "measure": run.judge.measure,
            "proxies": run.proxy_facts(listener),
            "curve": best["curve"],
            "chosen": best["chosen"],
            "donors": [donors[i] for i in order],
            **run.labelled_baselines(),
        }
        inputs = (Input.of(theta), *map(Input.of, rhos), *run.proxies.inputs)
        use = spent(patched_use(theta, rhos[first]), run.proxies.use)
    if receiver.labelled:
        inputs = (*inputs, Input(str(request.data), "data", receiver.labelled.task.digest))
    device = str(next(run.trial.network.parameters()).device)
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

    Raises:
        MismatchError: files, grids or images that do not belong together.
    """
    receiver = options.resolved(theta, (rho,), listener)
    assert receiver.proxies is not None
    assert receiver.grid is not None
    curve = None
    if not dry_run:
        run = AgreementRun(receiver, options, listener)
        curve, _ = run.curve(receiver.vectors[0], with_negative(options.lambdas))
        run.proxy_facts(listener)
    lam = curve.lam if curve else 0.0
    return LambdaChoice(lam, AUTO, receiver.proxies.use, receiver.grid.to_json()), curve


class AgreementRun:
    """A receiver in memory: its float answers to the proxies, and its plain quantization.

    Args:
        receiver: with proxies and at least one vector.
        options: method, measure, device and parts.
        listener: hears of the decoding.
    """

    def __init__(self, receiver: Receiver, options: AgreementOptions, listener: Listener) -> None:
        from qvec_cli.selection.agreement import load_judge
        from qvec_cli.selection.trial import load_trial

        assert receiver.proxies is not None
        assert receiver.grid is not None
        self._receiver, self._parts = receiver, options.parts
        self.proxies: Proxies = receiver.proxies
        splits = ("val", "test") if receiver.labelled else ()
        theta, targets = receiver.theta, receiver.targets
        plain = load_trial(theta, receiver.examples, targets, splits, options.device, listener)
        self.trial = replace(plain, grid=receiver.grid, method=options.method)
        self.judge = load_judge(self.trial, receiver.model, self.proxies, listener, options.measure)
        self.plain = self.judge.answers_at(self.trial, 0.0)

    def curve(self, vector: PairedVector, lambdas: tuple[float, ...]) -> tuple[Curve, Trial]:
        """The curve of one vector, and its trial.

        Raises:
            QvecError: a lambda at which the network is no longer finite.
        """
        from qvec_cli.selection.trial import resident

        theta = self._receiver.theta
        chosen = select(vector.pairing.names, theta, self._parts)
        rho = {name: block for name, block in resident(vector.rho).items() if name in chosen}
        trial = replace(self.trial, rho=rho)
        try:
            return trace(self.judge, trial, lambdas, self.plain), trial
        except NotFiniteError:
            raise QvecError(
                f"{theta.path} + lambda * {vector.rho.path} is no longer finite",
                hint="Leave the largest values out of --lambdas.",
            ) from None

    def donor(self, vector: PairedVector, lambdas: tuple[float, ...], listener: Listener) -> Point:
        """One vector's row of the report."""
        curve, trial = self.curve(vector, lambdas)
        points, rho = curve.points(), vector.rho
        use = spent(patched_use(self._receiver.theta, rho), self.proxies.use)
        chosen = {**points[curve.place], "data_use": use.level}
        if self._receiver.labelled:
            for point in points:
                point["val"] = trial.score(point["lambda"], "val").to_json()
            chosen = {**chosen, "val": points[curve.place]["val"]}
            chosen["test"] = trial.score(curve.lam, "test").to_json()
        listener.milestone(f"{rho.path}: lambda {curve.lam:g}")
        name = {"rho": str(rho.path), "digest": rho.settle()}
        return {**name, "curve": points, "chosen": {**chosen, **name}, "score": curve.score()}

    def proxy_facts(self, listener: Listener) -> Point:
        """How much the proxy images tell of the receiver, for the metrics."""
        from qvec_cli.selection.agreement import proxy_facts

        return proxy_facts(self.judge, self.proxies, listener)

    def labelled_baselines(self) -> Point:
        """Test accuracy of the float receiver and of its plain quantization, given labels."""
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


def _parameters(request: AgreementRequest, receiver: Receiver, lambdas: tuple[float, ...]) -> Point:
    assert receiver.grid is not None
    return {
        "grid": receiver.grid.to_json(),
        "method": request.options.method,
        "data": request.data,
        "lambdas": list(lambdas),
        "objective": Objective.AGREEMENT,
        "proxy": list(request.options.proxy.specs),
        "samples": request.options.proxy.samples,
    }


def _plan(request: AgreementRequest, receiver: Receiver, parameters: Point) -> Plan:
    from qvec_cli.inputs.network import check_network

    theta, proxies = receiver.theta, receiver.proxies
    assert proxies is not None
    check_network(theta, receiver.model, request.options.device)
    fates = receiver.vectors[0].pairing.fates(theta, "patched", "kept")
    fates |= dict.fromkeys(receiver.targets, f"patched, quantized to {receiver.grid}")
    images = {"proxy": sum(source.count for source in proxies.sources)}
    return Plan("sweep-lambda", request.out, fates, theta, parameters, images)
