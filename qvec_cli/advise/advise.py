"""What to do with a receiver: every way is carried out, judged by proxies it has not seen, told."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from qvec_cli.advise import candidates
from qvec_cli.advise.candidates import Candidate, Vectors
from qvec_cli.advise.decision import Family, Verdict
from qvec_cli.advise.measure import MINE, Bench
from qvec_cli.advise.setup import AdviseInputs, AdviseRequest, find
from qvec_cli.checkpoint.replace import check_target
from qvec_cli.data.noise import NOISE
from qvec_cli.inputs.files import opened
from qvec_cli.inputs.proxies import ProxyOptions
from qvec_cli.outputs.dry_run import Plan
from qvec_cli.outputs.metrics import Input, Metrics
from qvec_cli.pipeline.quantize import quantize
from qvec_cli.specs import (
    Calibration,
    Grid,
    Listener,
    Scale,
    Silence,
    Target,
    spent,
)

Facts = dict[str, Any]


__all__ = ["AdviseRequest", "advise"]


def advise(request: AdviseRequest, listener: Listener) -> Metrics:
    """Tries every candidate, decides, and writes the recommended model where one is asked for.

    Raises:
        MismatchError: vectors, moments or images that do not belong to the receiver.
    """
    started = time.perf_counter()
    if request.out is not None:
        check_target(request.out, force=request.force)
    with ExitStack() as stack:
        theta = stack.enter_context(opened(request.receiver, listener))
        rhos = [stack.enter_context(opened(path, listener)) for path in request.vectors]
        if request.moments is not None:
            _check_moments(request, request.moments)
        setting = find(request, theta, rhos, listener)
        parameters = _parameters(request)
        if request.dry_run:
            return _plan(request, setting, parameters).metrics((theta, *rhos), started)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qvec-")))
        bench = Bench(request, setting, folder, listener)
        for candidate in _candidates(request, setting, bench, folder):
            bench.add(candidate)
        verdict = bench.verdict(request.bits)
        chosen = bench.made[verdict.chosen.name]
        commands = bench.commands(chosen, str(request.out or MINE))
        if request.out is not None:
            bench.carry_out(chosen, request.out)
        results = {**_told(verdict), "commands": commands, **bench.facts()}
        if request.out is not None:
            results["output"] = str(request.out)
        use = spent(bench.uses[verdict.chosen.name], setting.judging.use)
        inputs = (Input.of(theta), *map(Input.of, rhos), *setting.judging.inputs)
        device = str(next(bench.trial.network.parameters()).device)
    return Metrics("advise", inputs, parameters, results, use, device, started=started)


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
    request: AdviseRequest, setting: AdviseInputs, bench: Bench, folder: Path
) -> Iterator[Candidate]:
    """One after the other: later ones build on what earlier ones came to."""
    source, bits = request.receiver, request.bits
    yield from candidates.plain(source, bits, bench.shapes)
    vectors = Vectors(request, setting, folder, bench.leave_out)
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
    pictures = not setting.judging.only_noise
    images = _images(making.specs, making, request.device)
    if bench.best(Family.MOMENTS) is None:
        moments, name = None, "proxies" if pictures else NOISE
        yield from (candidates.on_images(source, grid, images, name) for grid in grids)
    best = bench.best(Family.MOMENTS, Family.IMAGES, Family.NOISE)
    if best is None:  # each was left out, with its reason
        return
    grid = best.grid
    if pictures:
        yield candidates.on_images(source, grid, _images((NOISE,), making, request.device), NOISE)
        if moments is not None:
            yield candidates.on_images(source, grid, images, "proxies")
        aimed = candidates.on_images(source, grid, replace(images, target=Target.FLOAT), "proxies")
        yield aimed
        if request.steps:
            yield candidates.refined(aimed, making, request.device, request.steps)
        yield from vectors.anchored(aimed)


def _images(specs: tuple[str, ...], making: ProxyOptions, device: str) -> Calibration:
    return Calibration(specs, making.samples, making.loading, device)


def _told(verdict: Verdict) -> Facts:
    return {
        "decision": verdict.decision,
        "chosen": verdict.chosen.name,
        "best_plain": verdict.plain.name,
        "sure": verdict.sure,
        "why": verdict.why,
    }


def _plan(request: AdviseRequest, setting: AdviseInputs, parameters: Facts) -> Plan:
    from qvec_cli.inputs.network import check_network

    check_network(setting.theta, setting.model, request.device)
    fates = dict.fromkeys(setting.targets, f"quantized to {request.bits} bits, in many ways")
    kept = {name: "kept: no target" for name in setting.theta if name not in fates}
    count = sum(source.count for source in setting.judging.sources)
    images = {"proxy": count + setting.making.samples}
    out = request.out or Path("-")
    return Plan("advise", out, {**kept, **fates}, setting.theta, parameters, images)


def _check_moments(request: AdviseRequest, file: Path) -> None:
    """Refuses statistics that are not for the receiver, as quantize would."""
    grid = Grid(request.bits, scale=Scale.MSE_FULL)
    wanted = candidates.on_moments(request.receiver, grid, file).request
    quantize(replace(wanted, dry_run=True), Silence())
