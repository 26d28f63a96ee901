"""A float checkpoint onto a low-bit grid: packed codes, or float weights that lie on it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from qvec_cli.calibration.from_moments import Moments, MomentsRun, OneShot, carrier_of, check_method
from qvec_cli.calibration.refine import SEED, Refinement, Subject, find, refine
from qvec_cli.calibration.sequential import (
    Calibrated,
    Images,
    calibrate,
    check_images,
    check_wanted,
    find_images,
)
from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.dtypes import Array, from_float32
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import MismatchError, SpecError
from qvec_cli.inputs.architecture import architecture, targets_in
from qvec_cli.inputs.data_use import inherited_use
from qvec_cli.inputs.files import FAKE, card_of, opened, require_float
from qvec_cli.inputs.grids import choose_grid
from qvec_cli.inputs.patched import PATCHED, Anchor, Patched, anchored
from qvec_cli.inputs.proxies import Proxies
from qvec_cli.model.build import NetworkOptions
from qvec_cli.model.configuration import Model
from qvec_cli.outputs.dry_run import Plan
from qvec_cli.outputs.hf_folder import check_output, config_of, size_of_output, write_output
from qvec_cli.outputs.metrics import Input, Metrics
from qvec_cli.outputs.provenance import provenance
from qvec_cli.quant.methods import QUANTIZERS
from qvec_cli.quant.qtensor import parts, sqnr_db, stored_bits
from qvec_cli.specs import Calibration, Grid, GridOptions, Listener, Method, Use, spent


@dataclass(frozen=True, slots=True)
class QuantizeRequest:
    """What the user asks for."""

    source: Path  # a float checkpoint
    out: Path  # a file or, if ``folder``, a folder
    grid: GridOptions  # of every target
    method: Method = Method.RTN
    fake: bool = False  # write float32 weights on the grid in place of packed codes
    patterns: tuple[str, ...] = ()  # globs that name the targets; else the card or a rule does
    calibration: Calibration | None = None  # images, for methods that look at some
    anchor: Anchor | None = None  # a vector to start from
    refinement: Refinement | None = None  # what follows the method
    force: bool = False
    dry_run: bool = False
    folder: bool = False  # write what stock loaders of transformers take
    wish: NetworkOptions | None = None  # the architecture, for a file that does not say
    moments: Moments | None = None  # from a file, in place of images


def quantize(request: QuantizeRequest, listener: Listener) -> Metrics:
    """Writes the quantized model and reports what it costs and how far it is from the float one.

    Raises:
        SpecError: a method that lacks images, or has no use for them.
        MismatchError: a group size that does not divide, a file of another kind.
        CheckpointError: a file that cannot be read or written, or holds NaN.
    """
    started = time.perf_counter()
    calibration = _calibration(request)
    _check_method(request, calibration)
    check_output(request.out, folder=request.folder, force=request.force)
    with (
        opened(request.source, listener) as theta,
        carrier_of(request.moments, listener) as carrier,
        anchored(theta, request.anchor, listener) as patched,
    ):
        require_float(theta)
        oneshot = _oneshot(request, theta, carrier, listener)
        known = request.folder or request.wish or calibration or request.refinement
        model = architecture(theta, request.wish) if known else None
        targets = targets_in(theta, model, request.patterns, listener)
        grid = _grid(request, theta, patched, targets)
        if oneshot:
            oneshot.check(targets, listener)
        images = _images(request, theta, model, calibration)
        job = _Quantization(request, theta, patched, targets, grid, images, model, oneshot)
        config = job.config(model) if model and request.folder else {}

        def card() -> Card:
            made = job.card()
            return replace(made, model=model.to_json() if model else made.model)

        plan = _plan(theta, targets, grid, fake=request.fake)
        if images.proxies:
            job.check()
        if request.dry_run:
            size = size_of_output(plan, card(), config)
            return _planned(job).metrics(job.files, started, size)
        made, refined = job.made(listener)
        tensors = job.tensors(made)
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
            **refined,
        }
        inputs = (*map(Input.of, job.files), *images.inputs)
    return Metrics("quantize", inputs, job.parameters, results, job.use, started=started)


def _check_method(request: QuantizeRequest, calibration: Calibration | None) -> None:
    """Refuses, before a file is opened, what a method has no use for or lacks."""
    if request.moments is None:
        check_wanted(request.method, calibration)
        return
    check_method(request.method, request.moments)
    if request.anchor is not None:
        raise SpecError(
            "--anchor does not go with --moments",
            hint="qvec patch adds the vector; then quantize what it writes.",
        )


def _oneshot(
    request: QuantizeRequest, theta: Checkpoint, carrier: Checkpoint | None, listener: Listener
) -> OneShot | None:
    if carrier is None or request.moments is None:
        return None
    return OneShot(theta, carrier, request.moments, listener)


class _CalibrationImages(NamedTuple):
    """The images of a run."""

    calibration: Images | None
    proxies: Proxies | None  # to refine with

    @property
    def pools(self) -> dict[str, Proxies]:
        """Those that there are, by what they are decoded for."""
        first = {"train": self.calibration.pool} if self.calibration else {}
        return first | ({"proxy": self.proxies} if self.proxies else {})

    @property
    def counts(self) -> dict[str, int]:
        """Images that are decoded."""
        return {what: pool.count for what, pool in self.pools.items()}

    @property
    def uses(self) -> list[Use]:
        """What they cost."""
        return [pool.use for pool in self.pools.values()]

    @property
    def specs(self) -> list[str]:
        """The data sets as typed."""
        return [source.spec for pool in self.pools.values() for source in pool.sources]

    @property
    def inputs(self) -> list[Input]:
        """Each data set once."""
        return [*dict.fromkeys(found for pool in self.pools.values() for found in pool.inputs)]


@dataclass(frozen=True, slots=True)
class _Quantization:
    """What is asked for, and all that it needs."""

    request: QuantizeRequest
    theta: Checkpoint
    patched: Patched | None
    targets: tuple[str, ...]
    grid: Grid
    images: _CalibrationImages
    model: Model | None
    oneshot: OneShot | None  # moments from a file

    @property
    def source(self) -> Checkpoint | Patched:
        """Where the float numbers come from."""
        return self.patched or self.theta

    @property
    def files(self) -> tuple[Checkpoint, ...]:
        """The checkpoint, and the vector or the moments if there are some."""
        return tuple(self._parents().values())

    def _parents(self) -> dict[str, Checkpoint]:
        parents = {"model": self.theta}
        if self.patched:
            parents["rho"] = self.patched.rho
        if self.oneshot:
            parents["moments"] = self.oneshot.parent
        return parents

    @property
    def use(self) -> Use:
        """What the output has cost."""
        before = self.patched.use if self.patched else inherited_use(self.theta)
        return spent(before, *self.images.uses, *([self.oneshot.use] if self.oneshot else []))

    @property
    def parameters(self) -> dict[str, Any]:
        """As metrics name them."""
        request = self.request
        known = {"grid": self.grid.to_json(), "method": request.method, "fake": request.fake}
        return known | self.facts

    @property
    def facts(self) -> dict[str, Any]:
        """What there is beside the grid and the method."""
        found: dict[str, Any] = {}
        if self.images.calibration:
            found["calibration"] = self.images.calibration.facts()
        if self.oneshot:
            found["moments"] = self.oneshot.facts()
        if self.patched:
            found["lambda"] = self.patched.choice.lam
        if self.images.proxies and self.request.refinement:
            steps, images = self.request.refinement.steps, self.images.proxies.facts()
            found["refinement"] = {"steps": steps, "seed": SEED, "images": images}
        return found

    def config(self, model: Model) -> dict[str, Any]:
        """The config.json of a folder."""
        grid = None if self.request.fake else self.grid
        return dict(config_of(self.theta, model, self.targets, grid))

    def card(self) -> Card:
        """Of what is written."""
        fake = self.request.fake
        card = card_of(self.theta, Kind.CHECKPOINT if fake else Kind.QUANTIZED)
        facts = {"method": self.request.method, **self.facts}
        return replace(
            card,
            role=FAKE if fake else PATCHED if self.patched else card.role,
            quant=self.grid.to_json(),
            targets=self.targets,
            provenance=provenance("quantize", self._parents(), self.use, **facts),
        )

    def check(self) -> None:
        """Refuses by headers what would be refused later."""
        wanted = self.images.calibration.wanted if self.images.calibration else None
        asked = wanted or self.request.refinement
        if self.model and asked:
            check_images(self.theta, self.targets, self.model, asked.device)

    def made(self, listener: Listener) -> tuple[Calibrated, dict[str, Any]]:
        """What is not simply rounded on its way to the file, and what refinement says."""
        made, what = Calibrated(), (self.source, self.targets, self.grid, self.request.method)
        if self.images.calibration:
            made = calibrate(*what, self.images.calibration, listener)
        wanted = self.request.refinement
        if not (self.images.proxies and wanted and self.model):
            return made, {}
        if self.oneshot:
            self.oneshot.complete(self._run, made)
        subject = Subject(*what, self.model, wanted.device)
        made, facts = refine(subject, made, self.images.proxies, wanted.steps, listener)
        return made, {"refinement": facts}

    @property
    def _run(self) -> MomentsRun:
        return MomentsRun(self.targets, self.grid, self.request.method, self.request.fake)

    def tensors(self, made: Calibrated) -> Iterator[tuple[str, Iterable[Array]]]:
        """All of the file, a weight at a time."""
        if self.oneshot and not self.images.proxies:
            return self.oneshot.tensors(self._run, made)
        return _tensors(self, made)


def _calibration(request: QuantizeRequest) -> Calibration | None:
    """Images to calibrate with, if not only refinement has a use for those that are named."""
    named, refinement = request.calibration, request.refinement
    if named is None or refinement is None or refinement.proxies:
        return named
    return named if QUANTIZERS[request.method].calibrated or named.bias_correction else None


def _images(
    request: QuantizeRequest,
    theta: Checkpoint,
    model: Model | None,
    calibration: Calibration | None,
) -> _CalibrationImages:
    found = find_images(theta, model, calibration)
    if not (request.refinement and model):
        return _CalibrationImages(found, None)
    return _CalibrationImages(found, find(theta, model, request.refinement, request.calibration))


def _grid(
    request: QuantizeRequest, theta: Checkpoint, patched: Patched | None, targets: tuple[str, ...]
) -> Grid:
    made, swept = (patched.rho, patched.choice.grid) if patched else (theta, None)
    return choose_grid(request.grid, request.method, made, theta, targets, swept)


def _planned(job: _Quantization) -> Plan:
    theta, targets, request = job.theta, job.targets, job.request
    fate = f"quantized to {job.grid}"
    fates = {n: fate if n in set(targets) else "kept: no target" for n in theta}
    if job.patched:
        names = job.patched.names - set(targets)
        fates |= dict.fromkeys(names, "patched: no target")
    planned = Plan("quantize", request.out, fates, theta, job.parameters, folder=request.folder)
    if not job.images.specs:
        return planned
    job.check()
    return replace(planned, images=job.images.counts, data=job.images.specs[0])


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


def _tensors(job: _Quantization, made: Calibrated) -> Iterator[tuple[str, Iterable[Array]]]:
    chosen, request = set(job.targets), job.request
    for name, entry in job.theta.items():
        if name in made.floats:
            yield name, [from_float32(made.floats[name].reshape(-1), entry.dtype)]
            continue
        if name not in chosen:
            yield name, job.source.checked(name)
            continue
        quantized = made.weights.get(name)
        if quantized is None:
            weight = job.source.finite(name)
            quantized = QUANTIZERS[request.method].run(weight, job.grid)
            made.ratios[name] = sqnr_db(weight, quantized.weight())
        stored = {name: quantized.weight()} if request.fake else quantized.to_named(name)
        for part, array in stored.items():
            yield part, [array.reshape(-1)]
    job.source.settle()


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
