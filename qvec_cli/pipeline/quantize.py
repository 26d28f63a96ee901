"""A float checkpoint onto a low-bit grid: packed codes, or float weights that lie on it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qvec_cli.calibration.moments_file import LayerMoments, MomentsOptions
from qvec_cli.calibration.quantize_model import ModelQuantizer, QuantizedModel
from qvec_cli.calibration.refine import SEED, RefinementOptions, find_refinement_images, refine
from qvec_cli.calibration.sequential import CalibrationImages, calibrate, check_images, draw_images
from qvec_cli.calibration.widths import TooSmallError, Unquantized, WidthOptions, with_widths
from qvec_cli.checkpoint.card import FAKE, PATCHED, Card, Kind
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import MismatchError, SpecError, located
from qvec_cli.inputs.files import InputFiles, card_of, input_files, require, stated_model
from qvec_cli.inputs.grids import choose_grid, fill_in, targets_in
from qvec_cli.inputs.identify import network_of, tells_network
from qvec_cli.inputs.images import Proxies
from qvec_cli.inputs.lineage import CROSS, inherited_use
from qvec_cli.inputs.receiver import Anchor, Patched, anchored
from qvec_cli.inputs.rotated import ROTATION, Rotated, rotated
from qvec_cli.model.build import NetworkOptions
from qvec_cli.model.configuration import Model
from qvec_cli.model.targets import HeadChoice, embeddings
from qvec_cli.model.transformers_config import note_on_packed
from qvec_cli.outputs.hf_folder import Config, check_output, config_of, size_of_output, write_output
from qvec_cli.outputs.metrics import Input, Metrics, Plan, provenance
from qvec_cli.quant.compressed_tensors import for_stock_loaders
from qvec_cli.quant.methods import QUANTIZERS
from qvec_cli.quant.qtensor import parts, stored_bits
from qvec_cli.specs import (
    Calibration,
    Grid,
    GridOptions,
    Listener,
    Method,
    Preset,
    Stage,
    Target,
    Use,
    spent,
)


@dataclass(frozen=True, slots=True)
class QuantizeRequest:
    """What ``qvec quantize`` is asked for."""

    source: Path  # a float checkpoint
    out: Path  # a file or, if ``folder``, a folder
    grid: GridOptions  # of every target
    method: Method = Method.RTN
    fake: bool = False  # write float32 weights on the grid in place of packed codes
    patterns: tuple[str, ...] = ()  # what names the targets, see ``targets_in``
    calibration: Calibration | None = None  # images, for methods that look at some
    anchor: Anchor | None = None  # a vector to start from
    refinement: RefinementOptions | None = None  # what follows the method
    force: bool = False
    dry_run: bool = False
    folder: bool = False  # write what stock loaders of transformers take
    network: NetworkOptions = NetworkOptions()  # for a file without a card
    head: HeadChoice = HeadChoice()  # the classifier, which stays float
    moments: MomentsOptions | None = None  # from a file, in place of images
    rotate: bool = False  # whether the basis is rotated before
    widths: WidthOptions = field(default_factory=WidthOptions)  # other widths than the grid's

    @property
    def calibrated_on(self) -> Calibration | None:
        """The images to calibrate with, unless only refinement has a use for those named."""
        named, refinement = self.calibration, self.refinement
        if named is None or refinement is None or refinement.proxies or self.widths.budget:
            return named
        return named if QUANTIZERS[self.method].calibrated or named.bias_correction else None


def quantize(
    request: QuantizeRequest, listener: Listener, files: InputFiles | None = None
) -> Metrics:
    """Writes the quantized model and reports its size and how far it is from the float one.

    ``files`` are those that a longer run has open already.
    Raises SpecError: a method that lacks images, or has no use for them; MismatchError: a group
    size that does not divide, a file of another kind; CheckpointError: a file that cannot be read
    or written, or holds NaN.
    """
    started = time.perf_counter()
    check_method(request)
    check_output(request.out, folder=request.folder, force=request.force)
    with input_files(files, listener, request.network.weights) as run:
        job = _prepared(request, run, listener)
        theta = job.theta
        config, plan = job.config(), job.plan()
        job.check()
        if request.dry_run:
            size = size_of_output(plan, job.card(), config)
            return job.dry_run().metrics(job.parents.values(), started, size)
        quantized, refined = job.in_memory(listener)
        tensors = job.quantizer.tensors(quantized, fake=request.fake)
        written = write_output(request.out, plan, tensors, job.card, config, force=request.force)
        results = {
            "output": str(request.out),
            "fake": request.fake,
            "digest": written.digest,
            "bytes_before": theta.weight_bytes,
            "bytes_after": size_of_output(plan, written, config),
            **_sizes(theta, job.quantizer.packed, job.quantizer.stored),
            "head": [name for name in job.head if name not in job.quantizer.packed],
            "widths": {name: job.quantizer.grid.of(name).bits for name in job.quantizer.packed},
            **({"budget": job.budget} if job.budget else {}),
            "changed": sorted(quantized.floats),
            "sqnr_db": quantized.sqnr_db,
            "calibrated": job.calibrated,
            **refined,
        }
        inputs = (*map(Input.of, job.parents.values()), *job.image_inputs)
    return Metrics("quantize", inputs, job.parameters, results, job.use, started=started)


def check_method(request: QuantizeRequest) -> None:
    """Refuses, before a file is opened, what a method has no use for or lacks.
    Raises SpecError: images, moments or a float target that do not go with the method.
    """
    if request.fake and request.widths.size is not None:
        raise SpecError(
            "--target-size goes without --fake, whose floats are of one size whatever the widths",
            hint="--bits 2.5, say, is an average.",
        )
    if request.moments:
        _check_moments(request, request.moments)
        return
    method, images = request.method, request.calibrated_on
    needs = QUANTIZERS[method].calibrated
    if images is None and needs:
        raise SpecError(
            f"--method {method} needs images: --calib is missing",
            hint="--calib generated needs no data; images of any data set may do better."
            + (" gptq also takes --moments FILE." if method is Method.GPTQ else ""),
        )
    if images and images.target is Target.FLOAT and QUANTIZERS[method].aim is None:
        raise SpecError(
            f"--target float is not for --method {method}",
            hint="Only gptq makes good in one layer what others before it have lost.",
        )
    if images and not (needs or images.bias_correction or request.widths.budget):
        raise SpecError(
            f"--calib is of no use to --method {method}",
            hint="It goes with --method gptq or awq, --bias-correction, and --target-size.",
        )


def _check_moments(request: QuantizeRequest, moments: MomentsOptions) -> None:
    method, quantizer = request.method, QUANTIZERS[request.method]
    if quantizer.factors is not None:
        raise SpecError(
            f"--method {method} needs images: its factors go into LayerNorms, and which of them "
            "feed a layer only the network tells, not --moments",
            hint="--method gptq takes moments.",
        )
    if not (quantizer.calibrated or moments.bias_correction):
        raise SpecError(
            f"--moments is of no use to --method {method}",
            hint="It goes with --method gptq, or with --bias-correction.",
        )
    if request.anchor is not None:
        raise SpecError(
            "--anchor does not go with --moments",
            hint="qvec patch adds the vector; then quantize what it writes.",
        )


@dataclass(frozen=True, slots=True)
class _Job:
    """A request and its inputs, open: the model, the images, what the output will say of them."""

    request: QuantizeRequest
    theta: Checkpoint
    patched: Patched | None
    quantizer: ModelQuantizer
    head: tuple[str, ...]  # tensors of the classifier
    model: Model | None  # timm's configuration, where it must be known
    calibration: CalibrationImages | None
    refinement: Proxies | None  # images
    budget: dict[str, Any] = field(default_factory=dict)  # what there is to say of it

    @property
    def rotation(self) -> dict[str, Any] | None:
        """The basis of what is written, if it is another than the file's."""
        source = self.quantizer.source
        return source.basis.to_json() if isinstance(source, Rotated) else None

    @property
    def parents(self) -> dict[str, Checkpoint]:
        """The files that are read, by their part in the output."""
        files = {"model": self.theta}
        if self.patched:
            files["rho"] = self.patched.rho
        if self.quantizer.moments:
            files["moments"] = self.quantizer.moments.carrier
        return files

    @property
    def images(self) -> dict[str, Proxies]:
        """The images that are decoded: for calibration, and others for refinement."""
        first = {"train": self.calibration.images} if self.calibration else {}
        return first | ({"proxy": self.refinement} if self.refinement else {})

    @property
    def image_inputs(self) -> list[Input]:
        """Each data set once, as metrics list it."""
        return [*dict.fromkeys(item for images in self.images.values() for item in images.inputs)]

    @property
    def use(self) -> Use:
        """The receiver data that the output used, that of its inputs included."""
        before = self.patched.use if self.patched else inherited_use(self.theta)
        moments = self.quantizer.moments
        ours = [images.use for images in self.images.values()]
        return spent(before, *ours, *([moments.use] if moments else []))

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters, as metrics name them."""
        grid, request = self.quantizer.stored, self.request
        known = {"grid": grid.to_json(), "method": request.method, "fake": request.fake}
        return known | self.facts

    @property
    def facts(self) -> dict[str, Any]:
        """What there is to say beside the grid and the method."""
        facts: dict[str, Any] = {"budget": self.budget} if self.budget else {}
        if self.request.widths.mixed:
            facts["widths"] = self.request.widths.to_json()
        if rotation := self.rotation:
            facts["rotation"] = rotation
        if self.calibration:
            facts["calibration"] = self.calibration.facts()
        if self.quantizer.moments:
            facts["moments"] = self.quantizer.moments.facts()
        if self.patched:
            facts["lambda"] = self.patched.choice.lam
        if self.refinement and self.request.refinement:
            steps, images = self.request.refinement.steps, self.refinement.facts()
            facts["refinement"] = {"steps": steps, "seed": SEED, "images": images}
        return facts

    @property
    def follows_images(self) -> bool:
        """Whether images tell codes or biases, and not the widths of layers alone."""
        images, method = self.calibration, QUANTIZERS[self.request.method]
        return images is not None and (method.calibrated or images.options.bias_correction)

    @property
    def calibrated(self) -> bool:
        """Whether codes follow more than the weights, so that noise in these is no measure."""
        return bool(self.follows_images or self.quantizer.moments or self.refinement)

    def plan(self) -> dict[str, Entry]:
        """Dtype and shape of every tensor that is written."""
        theta, quantizer = self.theta, self.quantizer
        plan = {name: Entry(entry.dtype, entry.shape) for name, entry in theta.items()}
        for name in quantizer.packed:
            shape = plan.pop(name).shape
            if self.request.fake:
                plan[name] = Entry("F32", shape)
                continue
            for part, (dtype, size) in parts(name, shape, quantizer.stored).items():
                if part in plan:
                    place = f"{theta.path}: {part}"
                    raise MismatchError(f"{place}: is where the parts of {name} belong")
                plan[part] = Entry(dtype, size)
        return plan

    def dry_run(self) -> Plan:
        """What becomes of every tensor."""
        theta, out, folder = self.theta, self.request.out, self.request.folder
        fates = dict.fromkeys(theta, "kept: no target")
        fates |= dict.fromkeys(self.head, "kept: the classifier's")
        if self.patched:
            fates |= dict.fromkeys(self.patched.names, "patched: no target")
        grid = self.quantizer.stored
        fates |= {name: f"quantized to {grid.of(name)}" for name in self.quantizer.packed}
        specs = [source.spec for images in self.images.values() for source in images.sources]
        counts = {name: images.count for name, images in self.images.items()}
        data = specs[0] if specs else None
        return Plan(
            "quantize", out, fates, theta, self.parameters, counts, data=data, folder=folder
        )

    def config(self) -> Config:
        """The JSON files of a folder; empty where a file is written."""
        if not (self.request.folder and self.model):
            return {}
        grid = None if self.request.fake else self.quantizer.stored
        return config_of(self.theta, self.model, self.quantizer.packed, grid)

    def card(self) -> Card:
        """The card of what is written."""
        fake = self.request.fake
        card = card_of(self.theta, Kind.CHECKPOINT if fake else Kind.QUANTIZED)
        facts = {"method": self.request.method, **self.facts}
        return replace(
            card,
            role=FAKE if fake else PATCHED if self.patched else _packed_role(card.role),
            model=self.model.to_json() if self.model else card.model,
            quant=self.quantizer.stored.to_json(),
            targets=self.quantizer.targets,
            rotation=self.rotation or card.rotation,
            provenance=provenance("quantize", self.parents, self.use, **facts),
        )

    def check(self) -> None:
        """Refuses by headers, where images go through the network, what would be refused later."""
        options = self.calibration.options if self.calibration else self.request.refinement
        dry, refining = self.request.dry_run, self.refinement is not None
        if self.model and options and (refining or (dry and self.images)):
            check_images(self.theta, self.quantizer.targets, self.model, options.device)

    def in_memory(self, listener: Listener) -> tuple[QuantizedModel, dict[str, Any]]:
        """What calibration and refinement change before the file is written, and their results."""
        quantized = QuantizedModel()
        if self.calibration and self.follows_images:
            quantized = calibrate(self.quantizer, self.calibration)
        options = self.request.refinement
        if not (self.refinement and options):
            return quantized, {}
        layers, steps = len(self.quantizer.targets), options.steps
        learning = Stage(listener, layers, steps, layers + steps)
        quantized, facts = refine(self.quantizer, quantized, self.refinement, options, learning)
        return quantized, {"refinement": facts}


def _prepared(request: QuantizeRequest, files: InputFiles, listener: Listener) -> _Job:
    """Opens everything that a request names, and decides targets and grid."""
    theta, moments = files.open(request.source), None
    calibration, refinement = request.calibrated_on, request.refinement
    require(theta, Kind.CHECKPOINT)
    said = request.network.known or tells_network(theta)
    needed = request.folder or calibration or refinement
    model = network_of(theta, request.network, listener) if said or needed else None
    patched = anchored(theta, request.anchor, files, listener)
    if request.moments:
        carrier = files.open(request.moments.path)
        moments = LayerMoments(theta, carrier, request.moments, listener)
    packed = request.folder and not request.fake
    if model and packed and (note := note_on_packed(model)):
        listener.note(note)
    head = request.head.tensors(theta, stated_model(theta), str(theta.path), bare=theta.bare)
    targets = targets_in(theta, model, request.patterns, head, listener)
    made_for, swept = (patched.rho, patched.choice.grid) if patched else (theta, None)
    options = _grid_options(request, made_for, theta, targets, swept, listener)
    grid = choose_grid(options, made_for, theta, targets, swept)
    source: Checkpoint | Patched | Rotated
    source = before = patched or theta
    if request.rotate:
        source = rotated(before, model or stated_model(theta), ROTATION, listener)
    if moments:
        moments.check(targets, listener)
    count, steps = len(targets), refinement.steps if refinement else 0
    stage = Stage(listener, 0, count, count + steps)
    method = request.method
    quantizer = ModelQuantizer(source, targets, grid, method, moments, (), stage, packed)
    images = others = None
    if model and calibration:
        images = draw_images(theta, model, calibration, listener)
    if model and refinement:
        others = find_refinement_images(theta, model, refinement, request.calibration, listener)
    job = _Job(request, theta, patched, quantizer, head, model, images, others)
    return _with_widths(job, options, listener) if request.widths.mixed else job


def _with_widths(job: _Job, filled: GridOptions, listener: Listener) -> _Job:
    """The same with the widths that were asked for; groups that were ``filled`` in may go."""
    request, theta, quantizer, images = job.request, job.theta, job.quantizer, job.calibration
    options, made_for = request.widths, job.patched.rho if job.patched else theta
    others_said = options.budget or options.layers  # of the targets
    if others_said and made_for.card.quant and not request.grid.cross:
        grid = Grid.from_json(made_for.card.quant)
        raise MismatchError(
            f"{made_for.path} was made for {grid}, not for other widths", hint=CROSS
        )
    if options.budget and images and request.dry_run:
        images = None
        listener.note("a dry run chooses widths by the weights alone, and not on images")
    shapes = {name: entry.shape for name, entry in theta.items() if entry.floating}
    matrices = tuple(n for n in job.head if len(shapes.get(n, ())) >= 2)
    others = Unquantized(matrices, embeddings(shapes, quantizer.targets, job.head))

    def size(chosen: ModelQuantizer, budget: dict[str, Any]) -> int:
        tried = replace(job, quantizer=chosen, budget=budget)
        return size_of_output(tried.plan(), tried.card(), tried.config())

    looking = Stage(listener, 0, 0, 1, "widths")
    with located(theta.path, SpecError):
        try:
            chosen, facts = with_widths(quantizer, options, images, others, size, looking)
        except TooSmallError:
            rows = replace(filled, group_size=None, scale_dtype=request.grid.scale_dtype)
            typed = filled.group_size == request.grid.group_size
            if typed or not _is_smaller(rows.grid(None), quantizer):
                raise
            listener.note(f"{theta.path}: groups are too large for --target-size: a scale a row")
            quantizer = replace(quantizer, grid=rows.grid(None))
            chosen, facts = with_widths(quantizer, options, images, others, size, looking)
    for other, name in theta.aliases.items():
        if name in chosen.rounded:
            listener.note(f"{theta.path}: {other} is tied to {name}: both are packed")
    return replace(job, quantizer=chosen, budget=facts)


def _is_smaller(grid: Grid, quantizer: ModelQuantizer) -> bool:
    """Whether the targets take less on a grid than on the quantizer's."""
    shapes = {name: quantizer.theta[name].shape for name in quantizer.targets}
    return stored_bits(shapes, grid) < stored_bits(shapes, quantizer.stored)


def _grid_options(
    request: QuantizeRequest,
    made_for: Checkpoint,
    theta: Checkpoint,
    targets: Sequence[str],
    swept: Mapping[str, Any] | None,
    listener: Listener,
) -> GridOptions:
    """What was typed of the grid, and the rest of it where neither file nor sweep says it."""
    options, turned = request.grid, request.rotate or theta.card.rotation
    if options.preset is Preset.PLAIN and (turned or QUANTIZERS[request.method].calibrated):
        options = replace(options, preset=Preset.BEST)
    if options.preset is Preset.PAPER or not options.silent:
        return options
    if swept or made_for.card.quant or theta.card.quant:
        return options
    columns = [theta[name].shape[1] for name in targets]
    mixed = request.widths.differ_from(options.bits)
    filled, why = fill_in(options, columns, folder=request.folder, mixed=mixed)
    if filled != options:
        grid = filled.grid(None)
        if request.folder and not request.fake:
            grid = for_stock_loaders(grid)
        _, _, blocks = str(grid).partition(" ")  # its bits are known
        listener.note(f"{theta.path} was made for no grid: {blocks}{why and f' ({why})'}")
    return filled


def _packed_role(role: str) -> str:
    """The role of a packed model: no longer that of a float one."""
    return "" if role == "fp" else role


def _sizes(theta: Checkpoint, targets: Iterable[str], grid: Grid) -> dict[str, Any]:
    shapes = {name: theta[name].shape for name in targets}
    weights = sum(theta[name].size for name in targets)
    return {
        "weights": weights,
        "parameters": sum(entry.size for entry in theta.values()),
        "quantized": list(targets),
        "left": sorted(theta.keys() - set(targets), key=lambda n: (-theta[n].size, n)),
        "bits_per_weight": stored_bits(shapes, grid) / weights,
    }
