"""What to do with a receiver: every way is carried out, judged by proxies it has not seen, told."""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.replace import check_target
from qvec_cli.errors import MismatchError, QvecError, SpecError
from qvec_cli.learn.noise import NOISE
from qvec_cli.ops import agree, candidates, combine, fitted
from qvec_cli.ops.candidates import Candidate
from qvec_cli.ops.examples import Examples, open_for
from qvec_cli.ops.grids import choose_targets
from qvec_cli.ops.lineage import inherited_use, model_of, require_float
from qvec_cli.ops.metrics import Input, Metrics
from qvec_cli.ops.opening import opened
from qvec_cli.ops.plan import TORCH, Plan
from qvec_cli.ops.proxies import Proxies, ProxyWish, find_proxies
from qvec_cli.ops.quantize import quantize
from qvec_cli.ops.verdict import Family, Judged, Verdict, decide
from qvec_cli.quant.qtensor import stored_bits
from qvec_cli.specs import (
    Calibration,
    Grid,
    Listener,
    Scale,
    Silence,
    Target,
    Use,
    Wanted,
)
from qvec_cli.vector.scaling import Average

if TYPE_CHECKING:
    from qvec_cli.ops.judge import Judge
    from qvec_cli.ops.trial import Trial

Facts = dict[str, Any]

_MINE: Final = "OUT.st"
"""Stands for the output in commands, where none is named."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asks for."""

    receiver: Path
    bits: int
    vectors: tuple[Path, ...] = ()
    moments: Path | None = None  # None: those that the vectors carry
    proxy: ProxyWish = field(default_factory=lambda: ProxyWish((NOISE,)))
    data: str | None = None  # labels, to judge the decision by; they take no part in it
    out: Path | None = None  # where the recommended model is written
    device: str = "auto"
    force: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """The receiver and all that its candidates are made and judged with."""

    theta: Checkpoint
    model: dict[str, Any]
    targets: tuple[str, ...]
    making: ProxyWish  # images that candidates may see
    judging: Proxies  # images that they may not
    labelled: Examples | None
    grid: Grid | None  # of the vectors


def advise(request: Request, listener: Listener) -> Metrics:
    """Tries every candidate, decides, and writes the recommended model where one is asked for.

    Raises:
        MismatchError: vectors, moments or images that do not belong to the receiver.
        SpecError: several data sets of proxies.
    """
    started = time.perf_counter()
    if request.out is not None:
        check_target(request.out, force=request.force)
    with ExitStack() as stack:
        theta = stack.enter_context(opened(request.receiver, listener))
        rhos = [stack.enter_context(opened(path, listener)) for path in request.vectors]
        setting = _find(request, theta, rhos, listener)
        parameters = _parameters(request)
        if request.dry_run:
            return _plan(request, setting, parameters).metrics((theta, *rhos), started)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qvec-")))
        bench = _Bench(request, setting, folder, listener)
        for candidate in _candidates(request, setting, bench, folder):
            bench.add(candidate)
        verdict = bench.verdict(request.bits)
        chosen = bench.made[verdict.chosen.name]
        commands = bench.commands(chosen, str(request.out or _MINE))
        if request.out is not None:
            bench.carry_out(chosen, request.out)
        results = {**_told(verdict), "commands": commands, **bench.facts()}
        if request.out is not None:
            results["output"] = str(request.out)
        use = bench.uses[verdict.chosen.name]
        inputs = (Input.of(theta), *map(Input.of, rhos), *setting.judging.inputs)
        device = str(next(bench.trial.network.parameters()).device)
    return Metrics("advise", inputs, parameters, results, use, device, started=started)


def _find(
    request: Request, theta: Checkpoint, rhos: Sequence[Checkpoint], listener: Listener
) -> Setting:
    if len(request.proxy.specs) > 1:
        raise SpecError(
            "--proxy: one data set is taken here",
            hint="A folder of pictures may hold several, at any depth.",
        )
    require_float(theta)
    model, targets = model_of(theta), choose_targets(theta, (), listener)
    making = request.proxy
    judging = find_proxies(theta, model, making, held_back=True)
    labelled = None
    if request.data is not None:
        labelled = open_for(theta, model, request.data, making.loading)
        labelled.task.split("test")
    return Setting(
        theta, model, targets, making, judging, labelled, _grid(request, theta, rhos, listener)
    )


def _grid(
    request: Request, theta: Checkpoint, rhos: Sequence[Checkpoint], listener: Listener
) -> Grid | None:
    """The grid of the vectors, which must be of the bits that are asked for."""
    if not rhos:
        return None
    asked = agree.Request(
        request.receiver, request.vectors, Path("-"), (1.0,), Wanted(), request.proxy
    )
    grid = agree.find(asked, theta, rhos, listener).grid
    if grid.bits != request.bits:
        raise MismatchError(
            f"{rhos[0].path} was made for {grid}, not for {request.bits} bits",
            hint="A vector serves the grid that it was made for; leave --rho out.",
        )
    return grid


def _parameters(request: Request) -> Facts:
    return {
        "bits": request.bits,
        "rho": [str(path) for path in request.vectors],
        "moments": str(request.moments) if request.moments else None,
        "proxy": list(request.proxy.specs),
        "samples": request.proxy.samples,
        "data": request.data,
    }


class _Bench:
    """Makes candidates, one file at a time, and measures them."""

    def __init__(
        self, request: Request, setting: Setting, folder: Path, listener: Listener
    ) -> None:
        from qvec_cli.ops.judge import load_judge, told
        from qvec_cli.ops.trial import load_trial

        self._setting, self._folder, self._listener = setting, folder, listener
        examples = setting.labelled or setting.judging.sources[0].examples
        splits = ("test",) if setting.labelled else ()
        self.trial: Trial = load_trial(
            setting.theta, examples, setting.targets, splits, request.device, listener
        )
        self._judge: Judge = load_judge(self.trial, setting.model, setting.judging, listener)
        self._proxies = told(self._judge, setting.judging, listener)
        self._rows: list[Facts] = []
        self._judged: list[Judged] = []
        self._skipped: list[Facts] = []
        self._shapes = {name: setting.theta[name].shape for name in setting.targets}
        self.made: dict[str, Candidate] = {}
        self.uses: dict[str, Use] = {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the weights that are quantized."""
        return self._shapes

    def add(self, candidate: Candidate) -> Judged | None:
        """Makes and measures one; what cannot be made is told, and left out."""
        started, path = time.perf_counter(), self._folder / "candidate.st"
        try:
            quantize(replace(candidate.request, out=path, force=True), Silence())
        except QvecError as error:
            self._skipped.append({"name": candidate.name, "reason": str(error)})
            return None
        seconds = time.perf_counter() - started
        judged = self._measure(candidate, path)
        row = {
            "name": candidate.name,
            "family": candidate.family,
            "grid": candidate.grid.to_json(),
            "bits_per_weight": judged.bits_per_weight,
            "distance": judged.mean,
            "standard_error": Average.of(judged.distances).standard_error,
            "kept": judged.kept,
            "data_use": self.uses[candidate.name].to_json(),
            "seconds": seconds,
            "commands": self.commands(candidate, _MINE),
        }
        if self._setting.labelled:
            row["test"] = self.trial.measured("test").to_json()
        self._rows.append(row)
        self._judged.append(judged)
        self._listener.progress("candidates", len(self._rows), 0)
        return judged

    def _measure(self, candidate: Candidate, path: Path) -> Judged:
        from qvec_cli.model.build import load
        from qvec_cli.ops.state import load_state

        with opened(path, Silence()) as file:
            load(self.trial.network, load_state(file), str(path))
            self.uses[candidate.name] = inherited_use(file)
        answers = self._judge.answers()
        same = answers.logits.argmax(axis=1) == self._judge.teacher.logits.argmax(axis=1)
        self.made[candidate.name] = candidate
        return Judged(
            candidate.name,
            candidate.family,
            bits_per_weight(candidate.grid, self._shapes),
            self._judge.distances(answers),
            float(same.mean()),
        )

    def best(self, *families: Family) -> Candidate | None:
        """The candidate of some families that is nearest to the float answers so far."""
        found = [judged for judged in self._judged if judged.family in families]
        return self.made[min(found, key=lambda judged: judged.mean).name] if found else None

    def verdict(self, bits: int) -> Verdict:
        """The decision between candidates that cost as much as a scale and a zero point a row."""
        allowed = bits_per_weight(Grid(bits, symmetric=False), self._shapes)
        return decide(self._judged, allowed, trusted=not self._proxies["close_to_noise"])

    def commands(self, candidate: Candidate, out: str) -> list[str]:
        """What the user would type; files that were made on the way go by their names."""
        return [line.replace(f"{self._folder}/", "") for line in candidate.commands(out)]

    def carry_out(self, candidate: Candidate, out: Path) -> None:
        """Writes the model that is recommended: the same bytes as its commands give."""
        quantize(replace(candidate.request, out=out, force=True), self._listener)

    def facts(self) -> Facts:
        """All that was measured."""
        facts: Facts = {
            "measure": self._judge.measure,
            "proxies": self._proxies,
            "candidates": self._rows,
            "skipped": self._skipped,
        }
        if self._setting.labelled:
            facts["fp"] = self.trial.float_score("test").to_json()
        return facts


def bits_per_weight(grid: Grid, shapes: dict[str, tuple[int, ...]]) -> float:
    """Scales and zero points counted."""
    weights = sum(rows * columns for rows, columns in shapes.values())
    return sum(stored_bits(shape, grid) for shape in shapes.values()) / weights


def _candidates(
    request: Request, setting: Setting, bench: _Bench, folder: Path
) -> Iterator[Candidate]:
    """One after the other: later ones build on what earlier ones came to."""
    source, bits = request.receiver, request.bits
    yield from candidates.plain(source, bits, bench.shapes)
    vectors = _Vectors(request, setting, folder)
    yield from vectors.candidates()
    grids = dict.fromkeys(
        [
            Grid(bits, scale=Scale.MSE_FULL),
            Grid(bits, scale=Scale.MSE, symmetric=False),
            *([setting.grid] if setting.grid else []),
        ]
    )
    moments, before = vectors.moments()
    if moments is not None:
        yield from (candidates.on_moments(source, grid, moments, before) for grid in grids)
    making = setting.making
    pictures = NOISE not in making.specs
    images = _images(making.specs[0], making, request.device)
    if moments is None:
        name = "proxies" if pictures else NOISE
        yield from (candidates.on_images(source, grid, images, name) for grid in grids)
    best = bench.best(Family.MOMENTS, Family.IMAGES, Family.NOISE)
    assert best is not None
    grid = best.grid
    if pictures:
        yield candidates.on_images(source, grid, _images(NOISE, making, request.device), NOISE)
        if moments is not None:
            yield candidates.on_images(source, grid, images, "proxies")
        aimed = candidates.on_images(source, grid, replace(images, target=Target.FLOAT), "proxies")
        yield aimed
        yield candidates.refined(aimed, making, request.device)
        yield from vectors.anchored(aimed)


def _images(spec: str, making: ProxyWish, device: str) -> Calibration:
    return Calibration(spec, making.samples, making.loading, device)


class _Vectors:
    """What the vectors come to: their mean at lambda 1 and at a chosen one, and a fit."""

    def __init__(self, request: Request, setting: Setting, folder: Path) -> None:
        self._request, self._grid, self._folder = request, setting.grid, folder
        self._making = setting.making
        self._lam = 0.0
        self._mean, self._before = folder / "mean.st", self._command("mean.st")
        if len(request.vectors) == 1:
            self._mean, self._before = request.vectors[0], ()
        elif request.vectors:
            combine.combine(combine.Request(request.vectors, self._mean), Silence())

    def candidates(self) -> Iterator[Candidate]:
        """None without vectors; a lambda of 0 or a fit of nothing is no candidate."""
        source, grid = self._request.receiver, self._grid
        if grid is None:
            return
        many = len(self._request.vectors) > 1
        name, mean = ("mean vector" if many else "vector"), (self._mean, self._before)
        yield candidates.patched(source, grid, mean[0], 1.0, f"{name} at lambda 1", mean[1])
        asked = agree.Request(
            source, (mean[0],), Path("-"), fitted.RAY, Wanted(), self._making,
            device=self._request.device,
        )  # fmt: skip
        choice, _ = agree.choose(asked, Silence())
        self._lam = choice.lam
        if self._lam:
            label = f"{name} at lambda {self._lam:g}, chosen"
            yield candidates.patched(source, grid, mean[0], self._lam, label, mean[1])
        if many and (fit := self._fit()):
            yield candidates.patched(source, grid, fit, 1.0, "fitted vectors", self._fit_command())

    def moments(self) -> tuple[Path | None, tuple[str, ...]]:
        """The file of statistics: the one that is named, or the vectors if they carry some."""
        if self._request.moments is not None:
            return self._request.moments, ()
        if self._request.vectors:
            with opened(self._mean, Silence()) as vector:
                if vector.attached:
                    return self._mean, self._before
        return None, ()

    def anchored(self, candidate: Candidate) -> Iterator[Candidate]:
        """A calibrated candidate that starts from the mean vector, at half of its lambda."""
        if self._lam:
            yield candidates.anchored(candidate, self._mean, self._lam / 2, self._before)

    def _fit(self) -> Path | None:
        out, request = self._folder / "fitted.st", self._request
        wish = fitted.FitWish(request.receiver, Wanted(), self._making, device=request.device)
        try:
            combine.combine(combine.Request(request.vectors, out, fit=wish), Silence())
        except QvecError:  # no combination is surely better than plain quantization
            return None
        return out

    def _fit_command(self) -> tuple[str, ...]:
        words = ["--fit", "--receiver", str(self._request.receiver)]
        words += [word for spec in self._making.specs for word in ("--proxy", spec)]
        return self._command("fitted.st", *words, "--proxy-samples", str(self._making.samples))

    def _command(self, out: str, *more: str) -> tuple[str, ...]:
        return (
            shlex.join(["qvec", "combine", *map(str, self._request.vectors), *more, "-o", out]),
        )


def _told(verdict: Verdict) -> Facts:
    return {
        "decision": verdict.decision,
        "chosen": verdict.chosen.name,
        "best_plain": verdict.plain.name,
        "sure": verdict.sure,
        "why": verdict.why,
    }


def _plan(request: Request, setting: Setting, parameters: Facts) -> Plan:
    from qvec_cli.ops.state import check_network

    check_network(setting.theta, setting.model, request.device)
    fates = dict.fromkeys(setting.targets, f"quantized to {request.bits} bits, in many ways")
    kept = {name: "kept: no target" for name in setting.theta if name not in fates}
    count = sum(source.count for source in setting.judging.sources)
    images = {"proxy": count + setting.making.samples}
    memory = TORCH + 8 * setting.theta.nbytes + 2 * setting.judging.nbytes()
    out = request.out or Path("-")
    return Plan("advise", out, {**kept, **fates}, setting.theta, parameters, memory, images)
