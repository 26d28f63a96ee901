"""What to do with a receiver: every way is tried, and judged on images that no candidate saw."""

from __future__ import annotations

import fnmatch
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qvec_cli.advise.candidates import (
    AdviseInputs,
    AdviseRequest,
    Candidate,
    VectorOffers,
    Ways,
    pools,
)
from qvec_cli.advise.decision import EQUAL_BITS, Family, Judged, Verdict, decide
from qvec_cli.advise.finished import check_outputs, check_same_run
from qvec_cli.calibration.widths import WidthOptions
from qvec_cli.checkpoint.card import Kind
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.replace import (
    scratch_folder,
    unfinished,
)
from qvec_cli.data.generated import GENERATED
from qvec_cli.errors import (
    MismatchError,
    NotFiniteError,
    QvecError,
    located,
)
from qvec_cli.inputs.files import InputFiles, opened, require
from qvec_cli.inputs.identify import network_of
from qvec_cli.inputs.images import Proxies, find_proxies, fitted
from qvec_cli.inputs.lineage import inherited_use
from qvec_cli.inputs.receiver import ReceiverOptions, resolve
from qvec_cli.inputs.rotated import ROTATION
from qvec_cli.inputs.rotated import rotated as in_rotated_basis
from qvec_cli.model.targets import head_tensors
from qvec_cli.outputs.metrics import Input, Metrics, Plan
from qvec_cli.pipeline.quantize import quantize
from qvec_cli.quant.qtensor import stored_bits
from qvec_cli.results.journal import Journal, Line
from qvec_cli.results.records import MeasuredWay, Record
from qvec_cli.selection.choose import Average
from qvec_cli.specs import (
    Calibration,
    Grid,
    Listener,
    Measure,
    Scale,
    Silence,
    Stage,
    Target,
    Use,
    spent,
)

if TYPE_CHECKING:
    from qvec_cli.learn.forward import Outputs

Facts = dict[str, Any]

PLACEHOLDER: Final = "OUT.st"
"""Stands for the output in commands, where none is named."""

_CALIBRATED: Final = (Family.MOMENTS, Family.NOISE, Family.GENERATED, Family.IMAGES)
"""Families whose candidates went through GPTQ."""

_SLOW: Final = 10
"""How much longer a calibrated way takes than one that rounds, about."""

CHOSEN: Final = "chosen"
"""The way whose lambda was chosen on images, which the number in its command does not tell."""


def advise(request: AdviseRequest, listener: Listener) -> Metrics:
    """Tries every candidate, decides, and writes the recommended model where one is asked for.

    Raises MismatchError: vectors, moments or images that do not belong to the receiver.
    """
    started = time.perf_counter()
    finished = check_outputs(request)
    files = InputFiles(listener, request.network.weights)
    with files, scratch_folder() as folder:
        theta, rhos = files.open(request.receiver), [files.open(path) for path in request.vectors]
        require(theta, Kind.CHECKPOINT)
        model = network_of(theta, request.network, listener)
        request = replace(request, proxy=fitted(request.proxy, model, listener))
        ways = Ways(request, folder)
        if request.moments is not None:  # refuses, as quantize would, those of another receiver
            grid = Grid(request.bits, scale=Scale.MSE_FULL)
            planned = ways.on_moments(grid, request.moments).request
            quantize(replace(planned, dry_run=True, widths=WidthOptions()), Silence(), files)
        inputs = _resolve(request, theta, rhos, listener)
        parameters = {
            "bits": request.bits,
            "rho": [str(path) for path in request.vectors],
            "moments": str(request.moments) if request.moments else None,
            "proxy": list(request.proxy.specs),
            "samples": request.proxy.samples,
            "data": request.data,
            "refine": request.steps,
            "widths": asdict(request.widths),
        }
        if request.dry_run:
            return _plan(request, inputs, parameters).metrics((theta, *rhos), started)
        read = (Input.of(theta), *map(Input.of, rhos), *inputs.judging.inputs)
        if finished:
            check_same_run(request, inputs, read, parameters, files, listener)
        place = unfinished(request.outputs[0]) if request.outputs else ways.folder / "state"
        with Journal(place, _header(request, inputs, read, files)) as journal:
            if request.resume:
                journal.resume(place, force=request.force, listener=listener)
            journal.start()
            trials = Trials(request, inputs, ways.folder, files, journal, listener)
            for candidate in _candidates(request, inputs, ways, trials, files):
                trials.add(candidate)
            results, use = trials.recommended()
        use = spent(use, inputs.judging.use)
    return Metrics("advise", read, parameters, results, use, trials.device, started=started)


def _header(
    request: AdviseRequest, inputs: AdviseInputs, read: Sequence[Input], files: InputFiles
) -> Line:
    """What the measurement of a way depends on, besides the way."""
    proxy, receiver, moments = request.proxy, inputs.receiver, request.moments
    theta, *others = [each.digest for each in read]
    facts: Line = {"receiver": theta, "inputs": others, "model": receiver.model.to_json()}
    facts["moments"] = files.open(moments).settle() if moments else None
    facts["labels"] = receiver.labelled.task.digest if receiver.labelled else None
    facts |= {"bits": request.bits, "widths": asdict(request.widths)}
    facts |= {"samples": proxy.samples, "refine": request.steps}
    facts |= {key: getattr(proxy.loading, key) for key in ("draw", "diversify", "batch_size")}
    return {"kind": "run", "command": "advise", "device": request.device, **facts}


def _resolve(
    request: AdviseRequest, theta: Checkpoint, rhos: Sequence[Checkpoint], listener: Listener
) -> AdviseInputs:
    """The receiver with its vectors and the images that judge, checked to belong together."""
    loading, proxy = request.proxy.loading, request.proxy
    options = ReceiverOptions(
        loading=loading, data=request.data, splits=("test",), proxy=proxy, held_back=True
    )
    receiver = resolve(theta, rhos, options, listener)
    if receiver.grid and receiver.grid.bits != request.bits:
        raise MismatchError(
            f"{rhos[0].path} was made for {receiver.grid}, not for {request.bits} bits",
            hint="A vector serves the grid that it was made for; leave --rho out.",
        )
    judging, model = receiver.proxies, receiver.model
    assert judging is not None
    drawable = GENERATED not in proxy.specs and not model.reads_texts
    if judging.real and drawable:  # far pictures flatter; these are far for all
        judging, drawn = judging.half(), replace(proxy, specs=(GENERATED,))
        (pictures,) = find_proxies(theta, model, drawn, listener, held_back=True).sources
        judging = Proxies((*judging.sources, pictures.first(judging.count)))
    return AdviseInputs(receiver, judging, find_proxies(theta, model, proxy, listener).use)


def _plan(request: AdviseRequest, inputs: AdviseInputs, parameters: Facts) -> Plan:
    from qvec_cli.inputs.network import check_network

    theta = inputs.receiver.theta
    check_network(theta, inputs.receiver.model, request.device)
    fates = dict.fromkeys(theta, "kept: no target")
    quantized = f"quantized to {request.small}, in many ways"
    fates |= dict.fromkeys(inputs.receiver.targets, quantized)
    images = {"proxy": inputs.judging.count + request.proxy.samples}
    folder = request.folder
    return Plan("advise", request.out, fates, theta, parameters, images, folder=folder)


def _candidates(
    request: AdviseRequest, inputs: AdviseInputs, ways: Ways, trials: Trials, files: InputFiles
) -> Iterator[Candidate]:
    """One after the other: later ones build on how earlier ones were judged."""
    bits, proxy = request.bits, request.proxy
    yield from ways.plain(bits, inputs.shapes)
    vectors = VectorOffers(request, inputs, ways, files, trials.leave_out)
    yield from vectors.candidates()
    grid = ways.best_grid(bits)
    moments, before = vectors.moments()
    if moments is not None:
        yield ways.on_moments(grid, moments, before)
    images = Calibration(proxy.specs, proxy.samples, proxy.loading, request.device)
    if inputs.judging.only_noise:
        if trials.best(Family.MOMENTS) is None:
            yield ways.on_images(grid, images)
        return
    first, *others = pools(replace(images, target=Target.FLOAT), mixed=inputs.mixed)
    yield from (ways.on_images(grid, pool) for pool in (first, *others))
    best = trials.best(*_CALIBRATED)
    if best is None:  # each was left out
        return
    if trials.best(Family.PLAIN, Family.ROTATED) == trials.best(Family.ROTATED):
        yield ways.rotated(best)
    if request.steps:
        last = trials.best(*_CALIBRATED)
        on_pictures = last is not None and last.request.calibration is not None
        yield ways.refined(last if last and on_pictures else ways.on_images(grid, first))


def _most(request: AdviseRequest, inputs: AdviseInputs) -> tuple[int, int]:
    """The most ways that there can be, rounding and slow ones: some hang on how others do."""
    plain, on_images, rotated = 7, 1 + inputs.mixed, 1
    moments = bool(request.moments or request.vectors)
    slow = on_images + rotated + bool(request.steps) + moments
    return plain + (3 if request.vectors else 0), slow


@dataclass(frozen=True, slots=True)
class InWay(Silence):
    """Passes on how far a way is; its notes belong to its own command."""

    stage: Stage

    def progress(self, label: str, done: float, total: float, **facts: float) -> None:
        """As a stage of all ways."""
        self.stage.progress(label, done, total, **facts)


class Trials:
    """Makes candidates, one file at a time, and measures each on images that it has not seen.

    Files in the temporary ``folder`` stand in commands by their names alone.
    """

    def __init__(
        self,
        request: AdviseRequest,
        inputs: AdviseInputs,
        folder: Path,
        files: InputFiles,
        journal: Journal,
        listener: Listener,
    ) -> None:
        from qvec_cli.selection.trial import load_judge, load_trial

        self._request, self._inputs, self._files = request, inputs, files
        self._folder, self._journal, self._listener = folder, journal, listener
        splits = ("test",) if inputs.receiver.labelled else ()
        self._path = inputs.receiver.theta.path
        self._allowed = _allowed(request, inputs.shapes)
        loading = Stage(listener, 0, 0, 1, "float answers")
        self._trial = load_trial(inputs.receiver, splits, request.device, loading)
        with located(self._path, NotFiniteError):
            self._judge = load_judge(self._trial, inputs.judging, loading, usual=Measure.KL)
            self._proxies = self._judge.proxy_facts(listener)
        self.device = self._trial.device
        self._tried, self._done = 0, 0
        self._rows: list[Facts] = []
        self._judged: list[Judged] = []
        self._skipped: list[Facts] = []
        self._candidates: dict[str, Candidate] = {}
        self._uses: dict[str, Use] = {}

    def add(self, candidate: Candidate) -> None:
        """Makes and measures one; one that cannot be made is left out, with the reason.

        So is one whose outputs are not finite. What an earlier run has measured is taken from it.
        """
        self._tried += 1
        stage = self._stage(candidate)
        self._done += int(stage.size)
        key = {"kind": "way", "name": candidate.name}
        line = self._journal.get(key)
        if line is None:
            measured = self._attempt(candidate, stage)
            if measured is None:
                return
            self._journal.add(line := {**key, **measured})
        record = Record(f"{candidate.name} in the state of the run", line)
        way, images = record.decoded(MeasuredWay), self._inputs.judging.count
        if not len(way.distances) == len(way.same) == images:
            raise record.fault(f"is not of {images} images")
        self._take(candidate, way)

    def _stage(self, candidate: Candidate | None) -> Stage:
        """Hears how far a candidate is, or for None the model that is written in the end."""
        quick, slow = _most(self._request, self._inputs)
        whole = quick + _SLOW * (slow + bool(self._request.out))
        if candidate is None:
            return Stage(self._listener, whole - _SLOW, _SLOW, whole, "the recommended model")
        size = _SLOW if candidate.request.moments or candidate.request.calibration else 1
        label = f"way {self._tried} of at most {quick + slow}"
        return Stage(self._listener, self._done, size, whole, label)

    def _attempt(self, candidate: Candidate, stage: Stage) -> Line | None:
        """What is measured of a candidate; None of one that is left out."""
        started = time.perf_counter()
        try:
            made = quantize(candidate.request, InWay(stage), self._files)
        except QvecError as error:
            self.leave_out(candidate.name, str(error))
            return None
        seconds = time.perf_counter() - started
        try:
            measured = self._measure(candidate)
        except NotFiniteError as error:
            self.leave_out(candidate.name, str(error))
            return None
        test = self._on_test(candidate.name) if self._inputs.receiver.labelled else {}
        return {**measured, "grid": made.parameters["grid"], "seconds": seconds, **test}

    def _measure(self, candidate: Candidate) -> Line:
        from qvec_cli.inputs.network import load_state
        from qvec_cli.model.build import load

        path = candidate.request.out
        with opened(path, Silence()) as file:
            load(self._trial.network, load_state(file), str(path))
            chosen = (self._inputs.seen,) if candidate.way == CHOSEN else ()
            use = spent(inherited_use(file), *chosen)
        answers = self._answers(rotated=candidate.request.rotate is True)
        same = answers.logits.argmax(axis=1) == self._judge.teacher.logits.argmax(axis=1)
        distances = self._judge.distances(answers)
        return {"distances": distances.tolist(), "same": same.tolist(), "use": use.to_json()}

    def _take(self, candidate: Candidate, way: MeasuredWay) -> None:
        """Counts a candidate as measured, by this run or by one that was cut off."""
        self._candidates[candidate.name], self._uses[candidate.name] = candidate, way.use
        distances, kept = np.array(way.distances), self._by_kinds(way.same)
        bits = bits_per_weight(way.grid.grid, self._inputs.shapes)
        least, most = min(kept.values()), max(kept.values())
        judged = Judged(candidate.name, candidate.family, bits, distances, least, most - least)
        row = {
            "name": candidate.name,
            "way": candidate.way,
            "family": candidate.family,
            "grid": way.grid.grid.to_json(),
            "bits_per_weight": bits,
            "distance": judged.mean,
            "standard_error": Average.of(distances).standard_error,
            "kept": least,
            "kept_by": kept,
            "distance_by": self._by_kinds(way.distances),
            "data_use": way.use.to_json(),
            "seconds": way.seconds,
            "commands": self._commands(candidate, PLACEHOLDER),
        }
        self._rows.append(row if way.test is None else {**row, "test": way.test})
        self._judged.append(judged)
        self._listener.milestone(f"{candidate.name}: distance {judged.mean:.3g}")

    def _answers(self, *, rotated: bool) -> Outputs:
        """Of the network as it stands, its features in the basis of the receiver's."""
        answers, receiver = self._judge.answers(), self._inputs.receiver
        if not rotated:
            return answers
        theta, features = receiver.theta, answers.features
        basis = in_rotated_basis(theta, receiver.model, ROTATION, Silence())
        for name in head_tensors(theta, receiver.model):
            if name.endswith("weight"):
                features = basis.restored(name, features)
        return replace(answers, features=features)

    def _on_test(self, name: str) -> Facts:
        """The score on labels, which take no part in the decision; none if it is not finite."""
        try:
            return {"test": self._trial.measured("test").to_json()}
        except NotFiniteError as error:
            self._listener.note(f"{name}: no score on test: {error}")
            return {}

    def _by_kinds(self, values: Sequence[float]) -> dict[str, float]:
        """Means over each kind of pictures: those that somebody took, or what drew them."""
        kinds: dict[str, list[float]] = {}
        start = 0
        for source in self._inputs.judging.sources:
            part = values[start : start + source.count]
            kinds.setdefault(source.kind or "pictures", []).extend(part)
            start += source.count
        return {kind: sum(part) / len(part) for kind, part in kinds.items()}

    def leave_out(self, name: str, reason: str) -> None:
        """Records what is no candidate, and why."""
        self._skipped.append({"name": name, "reason": reason})

    def best(self, *families: Family) -> Candidate | None:
        """The candidate of some families and equal bits that is nearest to the float answers."""
        judged = [one for one in self._judged if one.family in families]
        judged = [one for one in judged if one.bits_per_weight <= self._allowed + EQUAL_BITS]
        return self._candidates[min(judged, key=lambda one: one.mean).name] if judged else None

    def _commands(self, candidate: Candidate, out: str) -> list[str]:
        """What the user would type; files that were made on the way go by their names."""
        trained = self._inputs.receiver.theta.card.quant
        grid = Grid.from_json(trained) if trained else None
        if candidate.request.anchor:
            grid = self._inputs.receiver.grid
        crossing = grid is not None and grid != candidate.grid
        lines = candidate.commands(out, crossing=crossing)
        return [line.replace(f"{self._folder}/", "") for line in lines]

    def recommended(self) -> tuple[Facts, Use]:
        """All that was measured, with the decision, and the receiver data that it used.

        The recommended model is written where an output is named: the bytes of its commands.
        """
        out, folder = self._request.out, self._request.folder
        if self.best(Family.PLAIN) is None:
            reasons = self._skipped[0]["reason"]
            raise QvecError(f"{self._path}: no plain grid can be measured: {reasons}")
        trusted, real = not self._proxies["close_to_noise"], bool(self._inputs.judging.real)
        verdict = decide(self._judged, self._allowed, trusted=trusted, real=real)
        chosen = self._candidates[verdict.chosen.name]
        facts: Facts = {
            **_decision(verdict),
            "commands": self._commands(chosen, f"{out}/" if folder else str(out or PLACEHOLDER)),
            "measure": self._judge.measure,
            "proxies": self._proxies,
            "candidates": self._rows,
            "skipped": self._skipped,
        }
        if self._inputs.receiver.labelled:
            with located(self._path, NotFiniteError):
                facts["fp"] = self._trial.float_score("test").to_json()
        if out is not None:
            written = replace(chosen.request, out=out, folder=folder)
            quantize(written, self._stage(None), self._files)
            facts["output"] = str(out)
        return facts, self._uses[chosen.name]


def _decision(verdict: Verdict) -> Facts:
    return {
        "decision": verdict.decision,
        "chosen": verdict.chosen.name,
        "best_plain": verdict.plain.name,
        "sure": verdict.sure,
        "why": verdict.why,
        "expected": list(verdict.expected),
    }


def _allowed(request: AdviseRequest, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Stored bits of a weight that count as equal: with a scale and a zero point a row.

    Whatever meets a budget of bytes is small enough.
    """
    widths = request.widths
    if widths.size is not None:
        return math.inf
    if widths.average is None:
        said = {name: bits for glob, bits in widths.layers for name in fnmatch.filter(shapes, glob)}
        grid = Grid(request.bits, symmetric=False, layers=tuple(said.items()))
        return bits_per_weight(grid, shapes)
    below, above = math.floor(widths.average), math.ceil(widths.average)
    least, most = (bits_per_weight(Grid(b, symmetric=False), shapes) for b in (below, above))
    return least + (widths.average - below) * (most - least)


def bits_per_weight(grid: Grid, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Scales and zero points counted."""
    weights = sum(rows * columns for rows, columns in shapes.values())
    return stored_bits(shapes, grid) / weights
