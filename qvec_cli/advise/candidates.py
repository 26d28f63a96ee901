"""The ways to quantize a receiver that advise tries, each as what the user would type."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qvec_cli.advise.decision import Family
from qvec_cli.calibration.moments_file import MomentsOptions
from qvec_cli.calibration.refine import RefinementOptions
from qvec_cli.calibration.widths import WidthOptions
from qvec_cli.checkpoint.replace import is_stream
from qvec_cli.data.generated import GENERATED
from qvec_cli.data.noise import NOISE
from qvec_cli.errors import QvecError, SpecError
from qvec_cli.inputs.files import InputFiles
from qvec_cli.inputs.grids import usual_group
from qvec_cli.inputs.images import ProxyOptions
from qvec_cli.inputs.receiver import Anchor
from qvec_cli.model.build import NetworkOptions
from qvec_cli.pipeline import combine
from qvec_cli.pipeline.quantize import QuantizeRequest
from qvec_cli.quant.compressed_tensors import for_stock_loaders
from qvec_cli.selection import by_agreement
from qvec_cli.specs import (
    Calibration,
    Granularity,
    Grid,
    GridOptions,
    Loading,
    Method,
    Scale,
    ScaleDtype,
    Silence,
    Target,
)
from qvec_cli.tame import command

if TYPE_CHECKING:
    from qvec_cli.inputs.images import Proxies
    from qvec_cli.inputs.receiver import Receiver
    from qvec_cli.specs import Use


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way: what it is called, what kind it is, and the quantization it comes to."""

    name: str
    way: str  # what it is apart from grid and lambda: rtn, unit, chosen, fitted, moments, ...
    family: Family
    grid: Grid
    request: QuantizeRequest  # writes a temporary file, which the next candidate replaces
    before: tuple[str, ...] = ()  # commands that make the files it needs

    def commands(self, out: str, *, crossing: bool) -> list[str]:
        """What the user would type; crossing: the receiver or its vector is for another grid."""
        words = [*_words(self.request, self.grid), *(["--cross-grid"] if crossing else [])]
        end = os.sep if out.endswith(os.sep) else ""  # of a folder
        return [*self.before, command([*words, "-o", Path(out)]) + end]


_KINDS: Final[Mapping[tuple[str, ...], tuple[Family, str]]] = {
    (NOISE,): (Family.NOISE, NOISE),
    (GENERATED,): (Family.GENERATED, "generated pictures"),
}
"""Family and name of images that are drawn from numbers."""


class Ways:
    """Makes candidates of one receiver, all of which write the same temporary file."""

    def __init__(self, request: AdviseRequest, folder: Path) -> None:
        self._request, self.folder = request, folder  # for files that are made on the way
        # A folder's loaders take no zero points beside layers of different widths.
        self._symmetric = request.folder and request.widths.differ_from(request.bits)

    def best_grid(self, bits: int) -> Grid:
        """The grid of ways that look at more than weights."""
        scale = Scale.MSE_FULL if self._symmetric else Scale.MSE
        return Grid(bits, scale=scale, symmetric=self._symmetric)

    def plain(self, bits: int, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Candidate]:
        """Grids without data: a scale a row under each rule, and the largest group that fits.

        HQQ, the slowest, is tried where it is at home, with a zero point.
        """
        for scale in (Scale.ABSMAX, Scale.MSE_FULL):
            yield self._rounded(Grid(bits, scale=scale))
        for scale in () if self._symmetric else (Scale.ABSMAX, Scale.MSE, Scale.HQQ):
            yield self._rounded(Grid(bits, scale=scale, symmetric=False))
        if size := usual_group(shape[1] for shape in shapes.values()):
            scale = Scale.MSE_FULL if self._symmetric else Scale.ABSMAX
            words, stored = (size, scale, self._symmetric), ScaleDtype.FLOAT16
            grid = Grid(bits, Granularity.GROUP, *words, stored)
            yield self._rounded(for_stock_loaders(grid) if self._request.folder else grid)
        yield self.rotated(self._rounded(self.best_grid(bits)))

    def _rounded(self, grid: Grid) -> Candidate:
        return Candidate(f"rtn, {_short(grid)}", "rtn", Family.PLAIN, grid, self.onto(grid))

    def rotated(self, candidate: Candidate) -> Candidate:
        """The same in a rotated basis."""
        name, way = f"{candidate.name}, rotated", f"{candidate.way} rotated"
        family = Family.ROTATED if candidate.family is Family.PLAIN else candidate.family
        request = replace(candidate.request, rotate=True)
        return replace(candidate, name=name, way=way, family=family, request=request)

    def on_moments(self, grid: Grid, file: Path, before: tuple[str, ...] = ()) -> Candidate:
        """GPTQ on moments from a file."""
        request = replace(self.onto(grid), method=Method.GPTQ, moments=MomentsOptions(file))
        name = f"gptq on moments, {_short(grid)}"
        return Candidate(name, "moments", Family.MOMENTS, grid, request, before)

    def on_images(self, grid: Grid, images: Calibration) -> Candidate:
        """GPTQ on images: noise, generated pictures, or pictures that are not the receiver's."""
        family, name = _KINDS.get(images.specs, (Family.IMAGES, "proxies"))
        if images.loading.diversify and family is Family.IMAGES:
            name = "diversified proxies"
        if family is Family.IMAGES and GENERATED in images.specs:
            name = f"generated and {name}"
        aim = ", float target" if images.target is Target.FLOAT else ""
        request = replace(self.onto(grid), method=Method.GPTQ, calibration=images)
        way = ("float" if aim else str(family)) + (" mixed" if " and " in name else "")
        return Candidate(f"gptq on {name}{aim}, {_short(grid)}", way, family, grid, request)

    def refined(self, candidate: Candidate) -> Candidate:
        """The same, and then scales, biases and norms moved on the proxies."""
        options, calibrated = self._request, candidate.request.calibration
        proxy = options.proxy
        if calibrated:  # one flag says for both how images are read
            proxy = replace(proxy, loading=calibrated.loading)
        refinement = RefinementOptions(options.steps, options.device, proxy)
        request = replace(candidate.request, refinement=refinement)
        name, family = f"{candidate.name}, refined", Family.REFINED
        return replace(candidate, name=name, way="refined", family=family, request=request)

    def onto(self, grid: Grid) -> QuantizeRequest:
        """Plain rounding onto a grid, as every candidate begins."""
        bits, granularity, group_size = grid.bits, grid.granularity, grid.group_size
        scale, symmetric, dtype = grid.scale, grid.symmetric, grid.scale_dtype
        options = GridOptions(bits, granularity, group_size, scale, symmetric, dtype, cross=True)
        out = self.folder / "candidate.st"
        receiver, network = self._request.receiver, self._request.network
        widths = self._request.widths
        return QuantizeRequest(receiver, out, options, force=True, network=network, widths=widths)


def typed(lam: float) -> str:
    """A lambda as the user would type it: short where that is the same number."""
    short = f"{lam + 0.0:g}"  # -0.0 + 0.0 is 0.0
    return short if float(short) == lam else repr(lam)


def _words(request: QuantizeRequest, grid: Grid) -> Iterator[str | Path]:
    yield from ("qvec", "quantize")
    yield request.source
    yield from _network_words(request.network)
    yield from _width_words(request.widths, grid)
    yield from _grid_words(grid)
    if request.method is not Method.RTN:
        yield from ("--method", str(request.method))
    if request.rotate:
        yield "--rotate"
    if request.anchor:
        yield from ("--anchor", request.anchor.rho, "--lambda", request.anchor.lam)
    if request.moments:
        yield from ("--moments", request.moments.path)
    if images := request.calibration:
        yield from _image_words("calib", images.specs, images.samples)
        if images.target is Target.FLOAT:
            yield from ("--target", "float")
        if request.refinement and (proxy := request.refinement.proxies):
            yield from ("--refine", str(request.refinement.steps))
            yield from _image_words("proxy", proxy.specs, proxy.samples)
        yield from _loading_words(images.loading, images.device)


def _network_words(network: NetworkOptions) -> Iterator[str]:
    """What the user has said of a receiver without a card."""
    said = {
        "model": network.name,
        "num-classes": network.num_classes,
        "img-size": network.img_size,
        "in-chans": network.in_chans,
        "weights-key": network.weights.key,
        **{
            key.replace("_", "-"): ",".join(map(str, value)) if isinstance(value, list) else value
            for key, value in network.prepared.items()
        },
    }
    for key, value in said.items():
        if value is not None:
            yield from (f"--{key}", str(value))
    for key, value in network.args.items():
        yield from ("--model-arg", f"{key}={value}")
    if not network.weights.use_ema:
        yield "--no-use-ema"


def _image_words(flag: str, specs: tuple[str, ...], samples: int) -> Iterator[str]:
    for spec in specs:
        yield from (f"--{flag}", spec)
    yield from (f"--{flag}-samples", str(samples))


def _loading_words(loading: Loading, device: str) -> Iterator[str]:
    """How images are read and where they are run, as far as it is not the default."""
    if loading.data_dir:
        yield from ("--data-dir", loading.data_dir)
    if loading.draw:
        yield from ("--draw", str(loading.draw))
    if loading.diversify:
        yield "--diversify"
    if loading.batch_size != Loading().batch_size:
        yield from ("--batch-size", str(loading.batch_size))
    if device != "auto":
        yield from ("--device", device)


def _width_words(widths: WidthOptions, grid: Grid) -> Iterator[str]:
    if widths.size is not None:
        yield from ("--target-size", str(widths.size))
    else:
        yield from ("--bits", f"{widths.average or grid.bits:g}")
    for glob, bits in widths.layers:
        yield from ("--bits-for", f"{glob}={bits}")
    for flag, width in (("--head-bits", widths.head), ("--embed-bits", widths.embed)):
        if width is not None:
            yield from (flag, str(width))


def _grid_words(grid: Grid) -> Iterator[str]:
    if grid.group_size:
        yield from ("--group-size", str(grid.group_size))
    yield from ("--scale", str(grid.scale))
    if not grid.symmetric:
        yield "--asymmetric"
    if grid.scale_dtype is not ScaleDtype.FLOAT32:
        yield from ("--scale-dtype", str(grid.scale_dtype))


def _short(grid: Grid) -> str:
    """A grid without its bits, which are the same for all."""
    return str(grid).split(" ", maxsplit=1)[1]


def pools(images: Calibration, *, mixed: bool) -> Iterator[Calibration]:
    """Pictures to calibrate on, the best on average first: generated ones beside real ones.

    The real ones are made to differ, because a few of one kind say little of the receiver's.
    """
    if mixed:
        taken = tuple(spec for spec in images.specs if spec != GENERATED)
        apart = replace(images.loading, diversify=True)
        yield replace(images, specs=(GENERATED, *taken), loading=apart)
        images = replace(images, specs=taken)
    yield images


class VectorOffers:
    """What the vectors offer: their mean at lambda 1 and at a chosen lambda, a fit, moments."""

    def __init__(
        self,
        request: AdviseRequest,
        inputs: AdviseInputs,
        ways: Ways,
        files: InputFiles,
        leave_out: Callable[[str, str], None],
    ) -> None:
        self._request, self._ways, self._files, self._leave_out = request, ways, files, leave_out
        self._receiver = inputs.receiver
        self._mean, self._before = ways.folder / "mean.st", self._command("mean.st")
        if len(request.vectors) == 1:
            self._mean, self._before = request.vectors[0], ()
        elif request.vectors:
            combine.combine(combine.CombineRequest(request.vectors, self._mean), Silence(), files)

    def candidates(self) -> Iterator[Candidate]:
        """None without vectors; a lambda of 0 or a fit of nothing is no candidate."""
        if self._receiver.grid is None:
            return
        many = len(self._request.vectors) > 1
        name, rho, before = ("mean vector" if many else "vector"), self._mean, self._before
        yield self._patched(rho, 1.0, f"{name} at lambda 1", "unit", before)
        fit, lam = self._fitted() if many else (None, self._chosen())
        if lam:
            label = f"{name} at lambda {typed(lam)}, chosen"
            yield self._patched(rho, lam, label, "chosen", before)
        else:
            self._leave_out(f"{name} at a chosen lambda", "no lambda is surely better than 0")
        if fit:
            yield self._patched(fit, 1.0, "fitted vectors", "fitted", self._fit_command())

    def moments(self) -> tuple[Path | None, tuple[str, ...]]:
        """The file of moments: the one that is named, or the vectors if they carry some."""
        if self._request.moments is not None:
            return self._request.moments, ()
        if self._request.vectors and self._files.open(self._mean).attached:
            return self._mean, self._before
        return None, ()

    def _patched(
        self, rho: Path, lam: float, name: str, way: str, before: tuple[str, ...]
    ) -> Candidate:
        """A vector added, then plain rounding on its grid."""
        grid = self._receiver.grid
        assert grid is not None
        request = replace(self._ways.onto(grid), anchor=Anchor(rho, typed(lam)))
        return Candidate(f"{name}, {_short(grid)}", way, Family.PATCH, grid, request, before)

    def _agreement(self) -> by_agreement.AgreementOptions:
        proxy, device = self._request.proxy, self._request.device
        network = self._request.network
        return by_agreement.AgreementOptions(
            by_agreement.RAY, proxy, device=device, network=network
        )

    def _chosen(self) -> float:
        """The lambda of the one vector."""
        rho = self._files.open(self._mean)
        theta = self._receiver.theta
        choice, curve = by_agreement.choose(theta, rho, self._agreement(), Silence())
        for point in curve.skipped if curve else ():
            self._leave_out(f"vector at lambda {typed(point['lambda'])}", point["reason"])
        return choice.lam

    def _fitted(self) -> tuple[Path | None, float]:
        """The fitted vector, if it is better than none, and the lambda of the mean."""
        out, request = self._ways.folder / "fitted.st", self._request
        options = by_agreement.FitOptions(request.receiver, self._agreement())
        vectors = [vector.rho for vector in self._receiver.vectors]
        try:
            fitted = by_agreement.fit_mix(options, vectors, self._files, Silence())
            mixed = combine.CombineRequest(request.vectors, out, fit=options, known=fitted)
            combine.combine(mixed, Silence(), self._files)
        except QvecError as error:  # no combination is surely better than plain quantization
            self._leave_out("fitted vectors", str(error))
            return None, 0.0
        for point in fitted.facts.get("skipped", ()):
            name = f"{point['vector']} at lambda {typed(point['lambda'])}"
            self._leave_out(name, point["reason"])
        return out, float(fitted.facts["mean_lambda"])

    def _fit_command(self) -> tuple[str, ...]:
        proxy = self._request.proxy
        words: list[str | Path] = ["--fit", "--receiver", self._request.receiver]
        words += _network_words(self._request.network)
        words += _image_words("proxy", proxy.specs, proxy.samples)
        words += _loading_words(proxy.loading, self._request.device)
        return self._command("fitted.st", *words)

    def _command(self, out: str, *more: str | Path) -> tuple[str, ...]:
        return (command(("qvec", "combine", *self._request.vectors, *more, "-o", out)),)


@dataclass(frozen=True, slots=True)
class AdviseRequest:
    """What ``qvec advise`` is asked for."""

    receiver: Path
    bits: int  # of all weights for which ``widths`` say no other
    vectors: tuple[Path, ...] = ()
    moments: Path | None = None  # None: those that the vectors carry
    proxy: ProxyOptions = field(default_factory=lambda: ProxyOptions((GENERATED,)))
    data: str | None = None  # labels, to judge the decision by; they take no part in it
    steps: int = 60  # of refinement; 0: it is not tried
    out: Path | None = None  # where the recommended model is written
    folder: bool = False  # whether that is a folder for stock loaders
    document: Path | None = None  # where the metrics will be
    device: str = "auto"
    network: NetworkOptions = NetworkOptions()  # for a receiver without a card
    resume: bool = False
    force: bool = False
    dry_run: bool = False
    widths: WidthOptions = field(default_factory=WidthOptions)

    def __post_init__(self) -> None:
        if self.vectors and self.widths.budget:
            raise SpecError(
                "--rho goes with one width for all layers: a vector serves the grid that it was "
                "made for",
                hint="--moments takes the moments that a vector carries.",
            )

    @property
    def small(self) -> str:
        """How small the model is to be, in words."""
        if self.widths.size is not None:
            return f"{self.widths.size} bytes"
        return f"{self.widths.average or self.bits:g} bits"

    @property
    def outputs(self) -> list[Path]:
        """The files to be written; the state of the run is kept beside the first."""
        named = (self.out, self.document)
        return [path for path in named if path is not None and not is_stream(path)]


@dataclass(frozen=True, slots=True)
class AdviseInputs:
    """The receiver, and the images that judge its candidates."""

    receiver: Receiver  # with its vectors, their grid and, where given, labelled images
    judging: Proxies  # images that no candidate has seen
    seen: Use  # the data that a choice on the candidates' own images uses

    @property
    def mixed(self) -> bool:
        """Whether generated pictures stand beside real ones; there are no generated texts."""
        return bool(self.judging.real) and not self.receiver.model.reads_texts

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """[out, in] of each weight to be quantized."""
        return {name: self.receiver.theta[name].shape for name in self.receiver.targets}
