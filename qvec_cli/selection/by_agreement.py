"""Chooses lambda, and ranks donors, by agreement with the receiver's float self on proxy images."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.replace import check_target
from qvec_cli.errors import MismatchError, NotFiniteError, QvecError, SpecError
from qvec_cli.inputs.data_use import inherited_use, patched_use
from qvec_cli.inputs.examples import Examples, open_for
from qvec_cli.inputs.files import model_of, opened
from qvec_cli.inputs.lambdas import AUTO, LambdaChoice
from qvec_cli.inputs.match import Match, match
from qvec_cli.inputs.proxies import Proxies, ProxyOptions, find_proxies
from qvec_cli.model.configuration import Model
from qvec_cli.outputs.dry_run import Plan
from qvec_cli.outputs.metrics import Input, Metrics
from qvec_cli.selection.by_labels import UNIT
from qvec_cli.selection.choose import NEGATIVE, Average, choose_lambda, fit, removed
from qvec_cli.specs import Grid, GridOptions, Listener, Measure, Method, Objective, Part, spent
from qvec_cli.vector.parts import select

if TYPE_CHECKING:
    from qvec_cli.checkpoint.dtypes import Array
    from qvec_cli.learn.forward import Outputs
    from qvec_cli.selection.agreement import Judge
    from qvec_cli.selection.trial import Trial


Point = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AgreementRequest:
    """What the user asks for."""

    receiver: Path
    vectors: tuple[Path, ...]
    out: Path
    lambdas: tuple[float, ...]
    grid: GridOptions
    proxy: ProxyOptions
    data: str | None = None  # labels, to judge the choice by; they take no part in it
    method: Method = Method.RTN
    measure: Measure | None = None  # None: what suits the receiver's answers
    device: str = "auto"
    force: bool = False
    dry_run: bool = False
    parts: tuple[Part, ...] = ()  # of the network that vectors are added to; none named: all


@dataclass(frozen=True, slots=True)
class AgreementInputs:
    """Files and images of a choice, found to belong together."""

    matches: tuple[Match, ...]
    model: Model
    proxies: Proxies
    labelled: Examples | None

    @property
    def theta(self) -> Checkpoint:
        """The receiver."""
        return self.matches[0].theta

    @property
    def grid(self) -> Grid:
        """The one grid of all vectors."""
        return self.matches[0].grid


@dataclass(frozen=True, slots=True)
class Curve:
    """One vector on one receiver: how far answers are at each lambda, and what follows."""

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
            {"lambda": lam, "distance": found.mean, "standard_error": found.standard_error}
            for lam, found in zip(self.lambdas, map(Average.of, self.distances), strict=True)
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
    found = {lam: plain if lam == 0 else judge.answers_at(trial, lam) for lam in lambdas}
    return curve_of(judge, found)


def curve_of(judge: Judge, answers: Mapping[float, Outputs]) -> Curve:
    """What the answers at each lambda, ascending and 0 and a positive one among them, say."""
    lambdas, plain = tuple(answers), answers[0.0]
    distances = tuple(judge.distances(found) for found in answers.values())
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
    with ExitStack() as stack:
        theta = stack.enter_context(opened(request.receiver, listener))
        rhos = [stack.enter_context(opened(path, listener)) for path in request.vectors]
        setting = find(request, theta, rhos, listener)
        lambdas = with_negative(request.lambdas)
        parameters = _parameters(request, setting, lambdas)
        if request.dry_run:
            return _plan(request, setting, parameters).metrics((theta, *rhos), started)
        run = AgreementRun(request, setting, listener)
        donors = [run.donor(pair, lambdas, listener) for pair in setting.matches]
        order = sorted(range(len(donors)), key=lambda i: -donors[i]["score"]["explained"])
        useful = [i for i in order if donors[i]["chosen"]["lambda"] != 0]
        first = (useful or order)[0]
        best = donors[first]
        results = {
            "objective": Objective.AGREEMENT,
            "measure": run.judge.measure,
            "proxies": run.told(listener),
            "curve": best["curve"],
            "chosen": best["chosen"],
            "donors": [donors[i] for i in order],
            **run.labels(listener),
        }
        inputs = (Input.of(theta), *map(Input.of, rhos), *setting.proxies.inputs)
        use = spent(patched_use(theta, rhos[first]), setting.proxies.use)
    if setting.labelled:
        inputs = (*inputs, Input(str(request.data), "data", setting.labelled.task.digest))
    device = str(next(run.trial.network.parameters()).device)
    return Metrics("sweep-lambda", inputs, parameters, results, use, device, started=started)


def choose(request: AgreementRequest, listener: Listener) -> tuple[LambdaChoice, Curve | None]:
    """The lambda for one receiver and one vector, in one step; no curve in a dry run.

    Raises:
        MismatchError: files, grids or images that do not belong together.
    """
    (path,) = request.vectors
    with opened(request.receiver, listener) as theta, opened(path, listener) as rho:
        setting = find(request, theta, (rho,), listener)
        curve = None
        if not request.dry_run:
            run = AgreementRun(request, setting, listener)
            curve, _ = run.curve(setting.matches[0], with_negative(request.lambdas))
            run.told(listener)
        lam = curve.lam if curve else 0.0
        return LambdaChoice(lam, AUTO, setting.proxies.use, setting.grid.to_json()), curve


def find(
    request: AgreementRequest, theta: Checkpoint, rhos: Sequence[Checkpoint], listener: Listener
) -> AgreementInputs:
    """Checks everything that headers and folders can decide.

    Raises:
        SpecError: no lambda above 0.
        MismatchError: vectors for different grids, or what ``match`` refuses.
    """
    if not any(lam > 0 for lam in request.lambdas):
        raise SpecError("--lambdas has none above 0")
    matches = [match(theta, rho, request.grid, request.method, listener) for rho in rhos]
    for pair in matches[1:]:
        if pair.grid != matches[0].grid:
            raise MismatchError(
                f"{pair.rho.path} was made for {pair.grid}, {matches[0].rho.path} for "
                f"{matches[0].grid}",
                hint="Type the grid, with --cross-grid, to compare them on one.",
            )
    model = model_of(theta)
    labelled = None
    if request.data is not None:
        labelled = open_for(theta, model, request.data, request.proxy.loading)
        for split in ("val", "test"):
            labelled.task.split(split)
    return AgreementInputs(
        tuple(matches), model, find_proxies(theta, model, request.proxy), labelled
    )


class AgreementRun:
    """A receiver, its judge and its plain quantization in memory."""

    def __init__(
        self, request: AgreementRequest, setting: AgreementInputs, listener: Listener
    ) -> None:
        from qvec_cli.selection.agreement import load_judge
        from qvec_cli.selection.trial import load_trial

        self._setting, self._parts = setting, request.parts
        examples = setting.labelled or setting.proxies.sources[0].examples
        splits = ("val", "test") if setting.labelled else ()
        plain = load_trial(
            setting.theta, examples, setting.matches[0].targets, splits, request.device, listener
        )
        self.trial = replace(plain, grid=setting.grid, method=request.method)
        self.judge = load_judge(
            self.trial, setting.model, setting.proxies, listener, request.measure
        )
        self.plain = self.judge.answers_at(self.trial, 0.0)

    def curve(self, pair: Match, lambdas: tuple[float, ...]) -> tuple[Curve, Trial]:
        """The curve of one vector, and its trial.

        Raises:
            QvecError: a lambda at which the network is no longer finite.
        """
        from qvec_cli.selection.trial import resident

        chosen = select(pair.pairing.names, pair.theta, self._parts)
        rho = {name: block for name, block in resident(pair.rho).items() if name in chosen}
        trial = replace(self.trial, rho=rho)
        try:
            return trace(self.judge, trial, lambdas, self.plain), trial
        except NotFiniteError:
            raise QvecError(
                f"{pair.theta.path} + lambda * {pair.rho.path} is no longer finite",
                hint="Leave the largest values out of --lambdas.",
            ) from None

    def donor(self, pair: Match, lambdas: tuple[float, ...], listener: Listener) -> Point:
        """One vector's row of the report."""
        curve, trial = self.curve(pair, lambdas)
        points = curve.points()
        use = spent(patched_use(pair.theta, pair.rho), self._setting.proxies.use)
        chosen = {**points[curve.place], "data_use": use.level}
        if self._setting.labelled:
            for point in points:
                point["val"] = trial.score(point["lambda"], "val").to_json()
            chosen = {**chosen, "val": points[curve.place]["val"]}
            chosen["test"] = trial.score(curve.lam, "test").to_json()
        listener.milestone(f"{pair.rho.path}: lambda {curve.lam:g}")
        name = {"rho": str(pair.rho.path), "digest": pair.rho.settle()}
        return {**name, "curve": points, "chosen": {**chosen, **name}, "score": curve.score()}

    def told(self, listener: Listener) -> Point:
        """What the proxies are to the receiver."""
        from qvec_cli.selection.agreement import told

        return told(self.judge, self._setting.proxies, listener)

    def labels(self, listener: Listener) -> Point:
        """What the receiver is without a vector, by its labels, where they were given."""
        if self._setting.labelled is None:
            return {}
        use = inherited_use(self._setting.theta).level
        fp, ptq = self.trial.float_score("test"), self.trial.score(0.0, "test")
        return {
            "baselines": {
                "fp": {"test": fp.to_json(), "data_use": use},
                "ptq": {"lambda": 0.0, "test": ptq.to_json(), "data_use": use},
            }
        }


def _parameters(
    request: AgreementRequest, setting: AgreementInputs, lambdas: tuple[float, ...]
) -> Point:
    return {
        "grid": setting.grid.to_json(),
        "method": request.method,
        "data": request.data,
        "lambdas": list(lambdas),
        "objective": Objective.AGREEMENT,
        "proxy": list(request.proxy.specs),
        "samples": request.proxy.samples,
    }


def _plan(request: AgreementRequest, setting: AgreementInputs, parameters: Point) -> Plan:
    from qvec_cli.inputs.network import check_network

    theta, pair = setting.theta, setting.matches[0]
    check_network(theta, setting.model, request.device)
    fates = pair.pairing.fates(theta, "patched", "kept")
    fates |= dict.fromkeys(pair.targets, f"patched, quantized to {setting.grid}")
    images = {"proxy": sum(source.count for source in setting.proxies.sources)}
    return Plan("sweep-lambda", request.out, fates, theta, parameters, images)
