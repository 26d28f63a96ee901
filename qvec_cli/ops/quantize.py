"""A float checkpoint onto a low-bit grid: packed codes, or float weights that lie on it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.dtypes import Array, from_float32
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import MismatchError
from qvec_cli.model.build import Wish
from qvec_cli.ops.architecture import architecture, targets_in
from qvec_cli.ops.calibration import (
    Calibrated,
    Images,
    calibrate,
    check_images,
    check_wanted,
    find_images,
)
from qvec_cli.ops.folder import check_output, config_of, size_of_output, write_output
from qvec_cli.ops.grids import choose_grid
from qvec_cli.ops.lineage import FAKE, card_of, inherited_use, provenance, require_float
from qvec_cli.ops.metrics import Input, Metrics
from qvec_cli.ops.oneshot import Moments, OneShot, Run, carrier_of, check_method
from qvec_cli.ops.opening import opened
from qvec_cli.ops.plan import STREAMING, Plan
from qvec_cli.quant.distortion import sqnr_db
from qvec_cli.quant.methods import QUANTIZERS
from qvec_cli.quant.qtensor import parts, stored_bits
from qvec_cli.specs import Calibration, Grid, Listener, Method, Use, Wanted, spent

_COPIES: Final = 10
"""Float32 copies of one weight that are alive while it is quantized, at most."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asks for."""

    source: Path  # a float checkpoint
    out: Path  # a file or, if ``folder``, a folder
    grid: Wanted  # of every target
    method: Method = Method.RTN
    fake: bool = False  # write float32 weights on the grid in place of packed codes
    patterns: tuple[str, ...] = ()  # globs that name the targets; else the card or a rule does
    calibration: Calibration | None = None  # images, for methods that look at some
    force: bool = False
    dry_run: bool = False
    folder: bool = False  # write what stock loaders of transformers take
    wish: Wish | None = None  # the architecture, for a file that does not say
    moments: Moments | None = None  # from a file, in place of images


def quantize(request: Request, listener: Listener) -> Metrics:
    """Writes the quantized model and reports what it costs and how far it is from the float one.

    Raises:
        SpecError: a method that lacks images, or has no use for them.
        MismatchError: a group size that does not divide, a file of another kind.
        CheckpointError: a file that cannot be read or written, or holds NaN.
    """
    started = time.perf_counter()
    _check_method(request)
    check_output(request.out, folder=request.folder, force=request.force)
    with (
        opened(request.source, listener) as theta,
        carrier_of(request.moments, listener) as carrier,
    ):
        require_float(theta)
        oneshot = _oneshot(request, theta, carrier, listener)
        known = request.folder or request.wish or request.calibration
        model = architecture(theta, request.wish) if known else None
        targets = targets_in(theta, model, request.patterns, listener)
        grid = choose_grid(request.grid, request.method, theta, theta, targets)
        images = find_images(theta, model, request.calibration)
        seen = images or oneshot
        use = spent(inherited_use(theta), seen.use) if seen else inherited_use(theta)
        parameters = {"grid": grid.to_json(), "method": request.method, "fake": request.fake}
        parameters |= _calibrated_on(images, oneshot, targets, listener)

        packed = None if request.fake else grid
        config = config_of(theta, model, targets, packed) if model and request.folder else {}

        parents = {"model": theta, **({"moments": oneshot.parent} if oneshot else {})}

        def card() -> Card:
            made = _card(parents, targets, grid, use, parameters)
            return replace(made, model=model or made.model)

        plan = _plan(theta, targets, grid, fake=request.fake)
        if request.dry_run:
            planned = _planned(request, theta, targets, parameters, seen)
            return planned.metrics(parents.values(), started, size_of_output(plan, card(), config))
        made = Calibrated()
        if images:
            made = calibrate(theta, targets, grid, request.method, images, listener)
        tensors = _tensors(theta, targets, grid, request, made)
        if oneshot:
            tensors = oneshot.tensors(Run(targets, grid, request.method, request.fake), made)
        written = write_output(request.out, plan, tensors, card, config, force=request.force)
        results = {
            "output": str(request.out),
            "fake": request.fake,
            "digest": written.digest,
            "bytes_before": theta.nbytes,
            "bytes_after": size_of_output(plan, written, config),
            **_sizes(theta, targets, grid),
            "changed": sorted(made.floats),
            "sqnr_db": made.ratios,
        }
        inputs = (Input.of(theta), *((seen.input,) if seen else ()))
    return Metrics("quantize", inputs, parameters, results, use, started=started)


def _check_method(request: Request) -> None:
    """Refuses, before a file is opened, what a method has no use for or lacks."""
    if request.moments is None:
        check_wanted(request.method, request.calibration)
    else:
        check_method(request.method, request.moments)


def _oneshot(
    request: Request, theta: Checkpoint, carrier: Checkpoint | None, listener: Listener
) -> OneShot | None:
    if carrier is None or request.moments is None:
        return None
    return OneShot(theta, carrier, request.moments, listener)


def _calibrated_on(
    images: Images | None, oneshot: OneShot | None, targets: tuple[str, ...], listener: Listener
) -> dict[str, Any]:
    """What the inputs of layers are known from, as cards and metrics name it."""
    if oneshot:
        oneshot.check(targets, listener)
        return {"moments": oneshot.facts()}
    return {"calibration": images.facts()} if images else {}


def _planned(
    request: Request,
    theta: Checkpoint,
    targets: tuple[str, ...],
    parameters: Mapping[str, Any],
    seen: Images | OneShot | None,
) -> Plan:
    fate = f"quantized to {Grid.from_json(parameters['grid'])}"
    fates = {n: fate if n in set(targets) else "kept: no target" for n in theta}
    memory = STREAMING + _COPIES * max(theta[name].size for name in targets) * 4
    planned = Plan("quantize", request.out, fates, theta, parameters, memory, folder=request.folder)
    if isinstance(seen, OneShot):
        return replace(planned, memory=memory + seen.memory(targets))
    if seen is None:
        return planned
    check_images(theta, targets, seen)
    memory += seen.memory(theta, targets)
    return replace(planned, memory=memory, images=seen.counts, data=seen.wanted.data)


def _plan(theta: Checkpoint, targets: Iterable[str], grid: Grid, *, fake: bool) -> dict[str, Entry]:
    plan = {name: Entry(entry.dtype, entry.shape) for name, entry in theta.items()}
    for name in targets:
        shape = plan.pop(name).shape
        if fake:
            plan[name] = Entry("F32", shape)
            continue
        for part, (dtype, size) in parts(name, shape, grid).items():
            if part in plan:
                raise MismatchError(f"{theta.path}: {part}: is where the parts of {name} belong")
            plan[part] = Entry(dtype, size)
    return plan


def _tensors(
    theta: Checkpoint, targets: Iterable[str], grid: Grid, request: Request, made: Calibrated
) -> Iterator[tuple[str, Iterable[Array]]]:
    chosen = set(targets)
    for name, entry in theta.items():
        if name in made.floats:
            yield name, [from_float32(made.floats[name].reshape(-1), entry.dtype)]
            continue
        if name not in chosen:
            yield name, theta.checked(name)
            continue
        quantized = made.weights.get(name)
        if quantized is None:
            weight = theta.finite(name)
            quantized = QUANTIZERS[request.method].run(weight, grid)
            made.ratios[name] = sqnr_db(weight, quantized.weight())
        stored = {name: quantized.weight()} if request.fake else quantized.to_named(name)
        for part, array in stored.items():
            yield part, [array.reshape(-1)]
    theta.settle()


def _card(
    parents: Mapping[str, Checkpoint],
    targets: tuple[str, ...],
    grid: Grid,
    use: Use,
    parameters: Mapping[str, Any],
) -> Card:
    told = ("method", "calibration", "moments")
    facts = {key: parameters[key] for key in told if key in parameters}
    theta, lineage = parents["model"], provenance("quantize", parents, use, **facts)
    fake = parameters["fake"]
    card = card_of(theta, Kind.CHECKPOINT if fake else Kind.QUANTIZED)
    return replace(
        card,
        role=FAKE if fake else card.role,
        quant=grid.to_json(),
        targets=targets,
        provenance=lineage,
    )


def _sizes(theta: Checkpoint, targets: Iterable[str], grid: Grid) -> dict[str, Any]:
    shapes = [theta[name].shape for name in targets]
    weights = sum(rows * columns for rows, columns in shapes)
    return {
        "weights": weights,
        "parameters": sum(entry.size for entry in theta.values()),
        "quantized": list(targets),
        "left": sorted(theta.keys() - set(targets), key=lambda n: (-theta[n].size, n)),
        "bits_per_weight": sum(stored_bits(shape, grid) for shape in shapes) / weights,
    }
