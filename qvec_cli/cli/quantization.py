"""The commands that make what is shipped: quantize, export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

import typer

from qvec_cli.cli import options, show
from qvec_cli.cli.many import Job, Suffix, each, is_folder
from qvec_cli.cli.options import (
    GridFlags,
    HeadFlags,
    ImageFlags,
    NetworkFlags,
    OutputFlags,
    ProxyFlags,
    TargetFlags,
)
from qvec_cli.cli.signature import Adapted, flag
from qvec_cli.cli.text import Facts, accuracy, size, some
from qvec_cli.cli.width_flags import WidthFlags
from qvec_cli.errors import SpecError
from qvec_cli.specs import (
    Calibration,
    ExportFormat,
    GridOptions,
    Listener,
    Loading,
    Method,
    Preset,
    Target,
)
from qvec_cli.tame import counted

if TYPE_CHECKING:
    from qvec_cli.calibration.moments_file import MomentsOptions
    from qvec_cli.calibration.refine import RefinementOptions
    from qvec_cli.inputs.receiver import Anchor
    from qvec_cli.outputs.metrics import Metrics


SAMPLES: Final = 256
"""Generated pictures of the best preset."""

_OPEN: Final = ("granularity", "scale", "symmetric", "scale_dtype")
"""Flags of the grid that --preset fills in."""


@dataclass(frozen=True, slots=True)
class CalibrationFlags:
    """By which method codes are chosen, and what it calibrates with."""

    heading: ClassVar[str] = options.METHOD
    preset: Preset = flag(
        Preset.PLAIN,
        "What flags and file leave open: the paper's grid, the best grid without data, or that "
        "and gptq on generated pictures, with the float target.",
    )
    method: options.MethodChoice = Method.RTN
    fake: bool = flag(False, "Write float32 weights on the grid, not packed codes.")
    calib: list[str] | None = flag(
        None,
        "Images to calibrate with, named as --data is, any folder, generated or noise; "
        "labels are not read. Repeat it to mix.",
        metavar="SPEC",
    )
    calib_samples: int | None = flag(
        None, "How many of the train splits in all.", min=1, show_default="512"
    )
    moments: Path | None = flag(
        None, "What qvec moments wrote, or a vector that carries it; in place of images."
    )
    bias_correction: bool = flag(False, "Let biases make good the outputs' mean error.")
    target: Target = flag(
        Target.QUANTIZED,
        "Whose outputs gptq aims at in each layer: those of the float network, or its "
        "own behind the quantized layers.",
    )
    anchor: Path | None = flag(None, "Vector that is added before, as patch does.", metavar="RHO")
    lam: str | None = flag(
        None, "Of --anchor.", "--lambda", "-l", metavar="NUMBER", show_default="1"
    )
    rotate: bool = flag(False, "First fold LayerNorms and rotate the basis, as qvec rotate does.")
    refine: int | None = flag(
        None,
        "Then let scales, biases and norms learn the float network's outputs on --proxy.",
        metavar="STEPS",
    )

    def completed(self) -> CalibrationFlags:
        """These flags, with what the best preset says of the rest."""
        from qvec_cli.data.generated import GENERATED

        if self.preset is not Preset.BEST:
            return self
        typed = self.method if self.method is not Method.RTN else None
        why = "does not go with --preset best, which says how codes are chosen"
        options.refuse(why, method=typed, moments=self.moments)
        images, samples = self.calib or [GENERATED], self.calib_samples or SAMPLES
        return replace(
            self, method=Method.GPTQ, calib=images, calib_samples=samples, target=Target.FLOAT
        )

    def calibration(self, loading: Loading, device: str) -> Calibration | None:
        """The images of --calib, for methods that look at some.

        Raises SpecError: a flag that needs images, and none are named.
        """
        correction = self.bias_correction and self.moments is None
        if self.calib:
            specs, samples = options.listed(self.calib), self.calib_samples or 512
            return Calibration(specs, samples, loading, device, correction, self.target)
        needing = {
            "--bias-correction": correction,
            "--calib-samples": self.calib_samples,
            "--target float": self.target is Target.FLOAT,
            "--draw": loading.draw and self.refine is None,
            "--diversify": loading.diversify and self.refine is None,
        }
        for name in (name for name, typed in needing.items() if typed):
            hint = "Or --moments FILE." if name == "--bias-correction" else None
            raise SpecError(f"{name} needs images: --calib is missing", hint=hint)
        return None

    def moments_source(self) -> MomentsOptions | None:
        """The moments of --moments, with which images do not go."""
        from qvec_cli.calibration.moments_file import MomentsOptions

        if self.moments is None:
            return None
        options.refuse(
            "does not go with --moments",
            hint="Moments stand in place of images.",
            calib=self.calib,
            calib_samples=self.calib_samples,
        )
        return MomentsOptions(path=self.moments, bias_correction=self.bias_correction)

    def start(self, *, cross: bool, dry_run: bool) -> Anchor | None:
        """The vector of --anchor; ``cross``: whether it may be for another grid."""
        from qvec_cli.inputs.receiver import Anchor

        if self.anchor is None:
            if self.lam is not None:
                hint = "qvec patch adds a vector too."
                raise SpecError("--lambda goes with --anchor RHO", hint=hint)
            return None
        return Anchor(rho=self.anchor, lam=self.lam or "1", cross=cross, dry_run=dry_run)

    def refinement(
        self, proxy: ProxyFlags, loading: Loading, device: str
    ) -> RefinementOptions | None:
        """What --refine does after the method, on images of --proxy or of --calib."""
        from qvec_cli.calibration.refine import RefinementOptions

        if self.refine is None:
            options.refuse("goes with --refine STEPS", proxy)
            return None
        if not proxy.proxy and proxy.proxy_samples is not None:
            raise SpecError("--proxy-samples needs images: --proxy is missing")
        images = proxy.options(loading) if proxy.proxy else None
        return RefinementOptions(steps=self.refine, device=device, proxies=images)


@dataclass(frozen=True, slots=True)
class CompareFlags:
    """A table of grids in place of a file."""

    heading: ClassVar[str] = "Comparison"
    compare: bool = flag(False, "Write nothing; try the grids without data, row by row.")
    data: str | None = flag(None, "Images for --compare to measure each row on.", metavar="SPEC")
    split: str | None = flag(None, "Of --data.", metavar="train|val|test", show_default="val")


@dataclass(frozen=True, slots=True)
class _Flags:
    """All of quantize's, whatever the file."""

    targets: TargetFlags
    widths: WidthFlags
    grid: GridFlags
    calibration: CalibrationFlags
    proxy: ProxyFlags
    comparison: CompareFlags
    images: ImageFlags
    head: HeadFlags
    network: NetworkFlags

    def job(self, checkpoint: Path, output: str | None, writing: OutputFlags) -> Job:
        """The work on one file."""
        if self.comparison.split is not None and self.comparison.data is None:
            raise SpecError("--split goes with --data")
        work = self._compared if self.comparison.compare else self._quantized
        chosen = self.calibration
        inputs = tuple(filter(None, (checkpoint, chosen.moments, chosen.anchor)))
        out = Path(output) if output is not None else None
        return Job(work(checkpoint, output, writing), quantize_text, inputs, out)

    @property
    def _grid(self) -> GridOptions:
        return replace(self.grid, bits=self.widths.whole).options()

    def _loading(self, writing: OutputFlags) -> Loading:
        return self.images.loading(dry_run=writing.dry_run, class_map=self.network.class_map)

    def _compared(
        self, checkpoint: Path, output: str | None, writing: OutputFlags
    ) -> Callable[[Listener], Metrics]:
        from qvec_cli.pipeline import compare_grids as verb

        options.refuse(
            "does not go with --compare, which writes no checkpoint",
            self.calibration,
            self.proxy,
            replace(self.widths, bits=self.widths.fraction),
            hint="--metrics FILE keeps the table as JSON.",
            output=output,
            dry_run=writing.dry_run,
        )
        table = verb.CompareGridsRequest(
            checkpoint,
            self._grid,
            self.targets.patterns,
            self.comparison.data,
            self.comparison.split or "val",
            self._loading(writing),
            self.images.device,
            self.network.options(),
            self.head.options(),
        )
        return partial(verb.compare_grids, table)

    def _quantized(
        self, checkpoint: Path, output: str | None, writing: OutputFlags
    ) -> Callable[[Listener], Metrics]:
        from qvec_cli.pipeline import quantize as verb

        chosen, loading = self.calibration.completed(), self._loading(writing)
        moments, device = chosen.moments_source(), self.images.device
        examples = chosen.calibration(loading, device)
        if output is None:
            raise SpecError("-o FILE is missing", hint="--compare goes without.")
        if self.comparison.data is not None:
            raise SpecError("--data goes with --compare", hint="--calib names calibration images.")
        request = verb.QuantizeRequest(
            source=checkpoint,
            out=Path(output),
            grid=replace(self._grid, preset=chosen.preset),
            method=chosen.method,
            fake=chosen.fake,
            patterns=self.targets.patterns,
            calibration=examples,
            anchor=chosen.start(cross=self.grid.cross_grid, dry_run=writing.dry_run),
            refinement=chosen.refinement(self.proxy, loading, device),
            force=writing.force,
            dry_run=writing.dry_run,
            folder=is_folder(output),
            network=self.network.options(),
            head=self.head.options(),
            moments=moments,
            rotate=chosen.rotate,
            widths=self.widths.options(),
        )
        return partial(verb.quantize, request)


def quantize(
    checkpoint: Annotated[
        list[Path],
        typer.Argument(help="Float checkpoints, patched or not.", metavar="CHECKPOINT..."),
    ],
    *,
    targets: TargetFlags,
    widths: WidthFlags,
    grid: Annotated[GridFlags, Adapted(("bits",), said=dict.fromkeys(_OPEN, "see --preset"))],
    calibration: CalibrationFlags,
    proxy: Annotated[ProxyFlags, Adapted(without=("measure",))],
    comparison: CompareFlags,
    images: ImageFlags,
    head: HeadFlags,
    network: NetworkFlags,
    output: Annotated[
        str | None,
        options.output_option(
            "File to write; or FOLDER/, which transformers loads, or has a file for each of "
            "several. None with --compare.",
            metavar="FILE|FOLDER/",
        ),
    ] = None,
    suffix: Suffix = None,
    writing: OutputFlags,
) -> None:
    """Write CHECKPOINT with its linear weights in 2 to 8 bits.

    The classifier head stays as it is, unless --head-bits says otherwise.

    Examples:
        qvec quantize receiver.st --bits 3 --scale mse-full -o receiver_w3.st
        qvec quantize patched.st --method gptq --moments moments.st -o patched_w3.st
    """
    if comparison.compare and len(checkpoint) > 1:
        raise SpecError("--compare is for one file")
    flags = _Flags(targets, widths, grid, calibration, proxy, comparison, images, head, network)
    each(checkpoint, output, writing, flags.job, suffix=suffix, whole=True)


def quantize_text(results: Facts) -> Iterator[str]:
    """How small the weights became, and how far they moved; or a row a grid of --compare."""
    if "compared" in results:
        yield from _compared_text(results)
        return
    ratios = [value for value in results["sqnr_db"].values() if value is not None]
    packed = " if packed" if results["fake"] else ""
    yield (
        f"{results['output']}: {size(results['bytes_before'])} -> {size(results['bytes_after'])}, "
        f"{results['bits_per_weight']:.3f} bits per weight{packed} in "
        f"{counted(len(results['quantized']), 'tensor')} "
        f"({results['weights']:,} of {results['parameters']:,} parameters)"
    )
    yield from _widths_text(results)
    yield f"left as they were: {some(results['left'])}"
    yield f"the head: {some(results['head'])}"
    if ratios and not results["calibrated"]:  # else outputs count, and weights move far for them
        yield (
            f"signal to quantization noise: {min(ratios):.1f} to {max(ratios):.1f} dB, "
            f"mean {sum(ratios) / len(ratios):.1f} dB"
        )
    if refined := results.get("refinement"):
        held, unit = refined["held_back"], refined["loss"].replace("_", " ")
        after = "not a number" if held["after"] is None else f"{held['after']:.4g}"
        fate = "" if refined["kept"] else ": not kept"
        yield (
            f"refined in {counted(refined['steps'], 'step')}: {unit} to the float network on "
            f"{counted(held['images'], 'image')} held back {held['before']:.4g} -> {after}{fate}"
        )


def _widths_text(results: Facts) -> Iterator[str]:
    """How many tensors have which width, where they have not all the same."""
    counts = Counter(results["widths"].values())
    if len(counts) > 1:
        tensors = (f"{bits} bits in {counted(counts[bits], 'tensor')}" for bits in sorted(counts))
        yield f"widths: {', '.join(tensors)}"
    if budget := results.get("budget"):
        yield (
            f"chosen by {budget['by']}; other widths of this size could do {budget['gap']:.1%} "
            "less damage at most"
        )


def _compared_text(results: Facts) -> Iterator[str]:
    """One row a grid; the accuracy is there if images were given."""
    split = next((name for name in ("val", "test", "train") if name in results["compared"][0]), "")
    column = f"\t{split} top-1" if split else ""
    yield f"grid\tbits/weight\tsize\tSQNR{column}"
    if split:
        before = size(results["bytes_before"])
        yield f"float, not quantized\t\t{before}\t\t{accuracy(results['fp'])}"
    for row in results["compared"]:
        ratio = "-" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f} dB"
        measured = f"\t{accuracy(row[split])}" if split else ""
        cost = f"{row['bits_per_weight']:.3f}\t{size(row['tensor_bytes'])}"
        _, _, name = row["name"].partition(" ")  # all have the same bits
        yield f"{name}\t{cost}\t{ratio}{measured}"


def rotate(
    checkpoint: Annotated[Path, typer.Argument(help="Float checkpoint, patched or not.")],
    *,
    seed: Annotated[int, typer.Option(min=0, help="Of the signs in the rotation.")] = 0,
    network: Annotated[NetworkFlags, Adapted(without=("class_map",))],
    output: options.OutputFile,
    writing: OutputFlags,
) -> None:
    """Write the same function in a rotated basis.

    Its weights may round better. LayerNorms and LayerScale are folded into the layers beside them.
    Vectors are added before.

    Examples:
        qvec rotate receiver.st -o rotated.st
        qvec rotate patched.st --seed 1 -o rotated.st
    """
    from qvec_cli.pipeline import rotate as verb

    request = verb.RotateRequest(
        checkpoint, output, seed, network=network.options(), **writing.for_request
    )
    work = partial(verb.rotate, request)
    show.deliver(work, rotate_text, writing, inputs=(checkpoint,), out=output)


def rotate_text(results: Facts) -> Iterator[str]:
    """How many tensors changed, and what of the network is in its old basis."""
    widths = ", ".join(map(str, results["turned"])) or "none"
    yield (
        f"{results['output']}: {counted(results['tensors'], 'tensor')} changed, "
        f"seed {results['seed']}; streams turned, by width: {widths}"
    )
    yield from results["kept"]


@dataclass(frozen=True, slots=True)
class FormatFlags:
    """What another program reads."""

    heading: ClassVar[str] = "Format"
    to: ExportFormat | None = flag(
        None,
        "An ONNX file, a pair of files for OpenVINO, or a folder for timm or transformers.js.",
        show_default="by the name of the output",
    )
    check: bool = flag(
        True,
        "Whether to run what was made, and compare its logits with qvec's.",
        "--check/--no-check",
        show_default="--check",
    )


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Packed or float checkpoint of qvec.")],
    *,
    kind: FormatFlags,
    network: Annotated[NetworkFlags, Adapted(without=("class_map",))],
    output: Annotated[
        Path, options.output_option("File or folder to write.", metavar="FILE|FOLDER")
    ],
    writing: OutputFlags,
) -> None:
    """Write CHECKPOINT for other programs, on servers and in browsers.

    In ONNX, packed weights stay codes, which onnxruntime multiplies with (MatMulNBits). The input
    is normalised pixels: (x / 255 - mean) / std, with mean and std from the file's metadata.
    For transformers.js the graph prepares images itself, as eval does.

    Examples:
        qvec export receiver_w3.st -o receiver_w3.onnx
        qvec export receiver_w3.st --to transformers.js -o web/
    """
    from qvec_cli.export import export as verb

    named = network.options()
    request = verb.ExportRequest(
        checkpoint, output, kind.to, kind.check, network=named, **writing.for_request
    )
    work = partial(verb.export, request)
    show.deliver(work, export_text, writing, inputs=(checkpoint,), out=output)


def export_text(results: Facts) -> Iterator[str]:
    """What was made, which weights stay packed in it, and how far its logits are from ours."""
    yield (
        f"{results['output']}: {size(results['bytes_before'])} -> {size(results['bytes_after'])}, "
        f"{results['format']}"
    )
    if layouts := results.get("quantized"):
        kinds = Counter((layout["bits"], layout["block_size"]) for layout in layouts.values())
        counts = [f"{n} of {bits} bits in blocks of {block}" for (bits, block), n in kinds.items()]
        yield f"packed weights: {', '.join(counts)}"
    if dtype := results.get("dtype"):
        yield f"loaded with dtype {dtype}, which config.json says: {results['model']}"
    if results.get("left"):
        yield f"packed weights that became float: {some(results['left'])}"
    if check := results["check"]:
        yield (
            f"logits of {check['images']} random images: at most {check['max_abs_diff']:.2g} from "
            f"qvec's, the largest of which is {check['max_abs_logit']:.3g}"
        )
