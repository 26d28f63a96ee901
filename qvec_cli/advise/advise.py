"""What to do with a receiver: every way is tried, and judged on images that no candidate saw."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qvec_cli.advise.candidates import AdviseInputs, AdviseRequest, Candidate, VectorOffers, Ways
from qvec_cli.advise.decision import Family, Verdict
from qvec_cli.advise.measure import MINE, Trials
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.replace import check_target
from qvec_cli.data.noise import NOISE
from qvec_cli.errors import MismatchError
from qvec_cli.inputs.files import InputFiles
from qvec_cli.inputs.images import find_proxies
from qvec_cli.inputs.receiver import ReceiverOptions, resolve
from qvec_cli.outputs.metrics import Input, Metrics, Plan
from qvec_cli.pipeline.quantize import quantize
from qvec_cli.specs import Calibration, Grid, Listener, Scale, Silence, Target, spent

Facts = dict[str, Any]


def advise(request: AdviseRequest, listener: Listener) -> Metrics:
    """Tries every candidate, decides, and writes the recommended model where one is asked for.

    Raises:
        MismatchError: vectors, moments or images that do not belong to the receiver.
    """
    started = time.perf_counter()
    if request.out is not None:
        check_target(request.out, force=request.force)
    with InputFiles(listener) as files, tempfile.TemporaryDirectory(prefix="qvec-") as name:
        theta, rhos = files.open(request.receiver), [files.open(path) for path in request.vectors]
        ways = Ways(request, Path(name))
        if request.moments is not None:
            _check_moments(ways, request, files)
        inputs = _resolve(request, theta, rhos, listener)
        parameters = _parameters(request)
        if request.dry_run:
            return _plan(request, inputs, parameters).metrics((theta, *rhos), started)
        trials = Trials(request, inputs, ways.folder, files, listener)
        for candidate in _candidates(request, inputs, ways, trials, files):
            trials.add(candidate)
        verdict = trials.verdict(request.bits)
        chosen = trials.candidates[verdict.chosen.name]
        commands = trials.commands(chosen, str(request.out or MINE))
        results = {**_decision(verdict), "commands": commands, **trials.facts()}
        if request.out is not None:
            trials.carry_out(chosen, request.out)
            results["output"] = str(request.out)
        use = spent(trials.uses[verdict.chosen.name], inputs.judging.use)
        read = (Input.of(theta), *map(Input.of, rhos), *inputs.judging.inputs)
        device = str(next(trials.network.parameters()).device)
    return Metrics("advise", read, parameters, results, use, device, started=started)


def _resolve(
    request: AdviseRequest, theta: Checkpoint, rhos: Sequence[Checkpoint], listener: Listener
) -> AdviseInputs:
    """The receiver with its vectors and the images that judge, checked to belong together."""
    loading = request.proxy.loading
    options = ReceiverOptions(
        loading=loading, data=request.data, splits=("test",), proxy=request.proxy, held_back=True
    )
    receiver = resolve(theta, rhos, options, listener)
    if receiver.grid and receiver.grid.bits != request.bits:
        raise MismatchError(
            f"{rhos[0].path} was made for {receiver.grid}, not for {request.bits} bits",
            hint="A vector serves the grid that it was made for; leave --rho out.",
        )
    assert receiver.proxies is not None
    seen = find_proxies(theta, receiver.model, request.proxy).use
    return AdviseInputs(receiver, receiver.proxies, seen)


def _check_moments(ways: Ways, request: AdviseRequest, files: InputFiles) -> None:
    """Refuses moments that are not for the receiver, as ``quantize`` would."""
    assert request.moments is not None
    grid = Grid(request.bits, scale=Scale.MSE_FULL)
    planned = ways.on_moments(grid, request.moments).request
    quantize(replace(planned, dry_run=True), Silence(), files)


def _parameters(request: AdviseRequest) -> Facts:
    return {
        "bits": request.bits,
        "rho": [str(path) for path in request.vectors],
        "moments": str(request.moments) if request.moments else None,
        "proxy": list(request.proxy.specs),
        "samples": request.proxy.samples,
        "data": request.data,
    }


def _candidates(
    request: AdviseRequest, inputs: AdviseInputs, ways: Ways, trials: Trials, files: InputFiles
) -> Iterator[Candidate]:
    """One after the other: later ones build on how earlier ones were judged."""
    bits = request.bits
    yield from ways.plain(bits, inputs.shapes)
    vectors = VectorOffers(request, inputs, ways, files, trials.leave_out)
    yield from vectors.candidates()
    clipped = Grid(bits, scale=Scale.MSE_FULL), Grid(bits, scale=Scale.MSE, symmetric=False)
    of_vectors = [inputs.receiver.grid] if inputs.receiver.grid else []
    grids = dict.fromkeys([*clipped, *of_vectors])
    moments, before = vectors.moments()
    if moments is not None:
        yield from (ways.on_moments(grid, moments, before) for grid in grids)
    pictures = not inputs.judging.only_noise
    images = _images(request, request.proxy.specs)
    if trials.best(Family.MOMENTS) is None:
        moments, name = None, "proxies" if pictures else NOISE
        yield from (ways.on_images(grid, images, name) for grid in grids)
    best = trials.best(Family.MOMENTS, Family.IMAGES, Family.NOISE)
    if best is None:  # each was left out, with its reason
        return
    grid = best.grid
    if pictures:
        yield ways.on_images(grid, _images(request, (NOISE,)), NOISE)
        if moments is not None:
            yield ways.on_images(grid, images, "proxies")
        aimed = ways.on_images(grid, replace(images, target=Target.FLOAT), "proxies")
        yield aimed
        if request.steps:
            yield ways.refined(aimed)
        yield from vectors.anchored(aimed)


def _images(request: AdviseRequest, specs: tuple[str, ...]) -> Calibration:
    return Calibration(specs, request.proxy.samples, request.proxy.loading, request.device)


def _decision(verdict: Verdict) -> Facts:
    return {
        "decision": verdict.decision,
        "chosen": verdict.chosen.name,
        "best_plain": verdict.plain.name,
        "sure": verdict.sure,
        "why": verdict.why,
    }


def _plan(request: AdviseRequest, inputs: AdviseInputs, parameters: Facts) -> Plan:
    from qvec_cli.inputs.network import check_network

    theta = inputs.receiver.theta
    check_network(theta, inputs.receiver.model, request.device)
    quantized = f"quantized to {request.bits} bits, in many ways"
    fates = dict.fromkeys(theta, "kept: no target")
    fates |= dict.fromkeys(inputs.receiver.targets, quantized)
    images = {"proxy": inputs.judging.count + request.proxy.samples}
    return Plan("advise", request.out, fates, theta, parameters, images)
