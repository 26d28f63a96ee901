"""The ways to quantize a receiver that advise tries, each as what the user would type."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from qvec_cli.advise.decision import Family
from qvec_cli.advise.setup import AdviseInputs, AdviseRequest
from qvec_cli.calibration.from_moments import MomentsOptions
from qvec_cli.calibration.refine import RefinementOptions
from qvec_cli.data.noise import NOISE
from qvec_cli.errors import QvecError
from qvec_cli.inputs.files import opened
from qvec_cli.inputs.patched import Anchor
from qvec_cli.inputs.proxies import ProxyOptions
from qvec_cli.pipeline import combine
from qvec_cli.pipeline.quantize import QuantizeRequest
from qvec_cli.selection import by_agreement, fit_mix
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

_GROUPS: Final = (128, 64, 32, 16)
"""Group sizes that are tried for one that every layer takes, the cheapest first."""


DEFAULT: Final = Loading()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way: what it is called, what kind it is, and the quantization it comes to."""

    name: str
    way: str  # what it is apart from grid and lambda: rtn, unit, chosen, fitted, moments, ...
    family: Family
    grid: Grid
    request: QuantizeRequest  # its output is named later
    before: tuple[str, ...] = ()  # commands that make the files it needs

    def commands(self, out: str, *, crossing: bool) -> list[str]:
        """What the user would type.

        Args:
            out: the file to write.
            crossing: whether the receiver or its vector was made for another grid.
        """
        words = [*_words(self.request, self.grid), *(["--cross-grid"] if crossing else [])]
        return [*self.before, shlex.join([*words, "-o", out])]


def plain(source: Path, bits: int, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Candidate]:
    """Grids without data: a scale a row under each rule, and the largest group that fits.

    HQQ, the slowest, is tried where it is at home, with a zero point.
    """
    for scale in (Scale.ABSMAX, Scale.MSE, Scale.MSE_FULL):
        yield rounded(source, Grid(bits, scale=scale))
    for scale in (Scale.ABSMAX, Scale.MSE, Scale.HQQ):
        yield rounded(source, Grid(bits, scale=scale, symmetric=False))
    shared = math.gcd(*(shape[1] for shape in shapes.values()))
    if size := next((size for size in _GROUPS if shared % size == 0), None):
        group = Granularity.GROUP
        yield rounded(source, Grid(bits, group, size, Scale.MSE, False, ScaleDtype.FLOAT16))


def rounded(source: Path, grid: Grid) -> Candidate:
    """Plain rounding."""
    return Candidate(f"rtn, {_short(grid)}", "rtn", Family.PLAIN, grid, _request(source, grid))


@dataclass(frozen=True, slots=True)
class Offer:
    """A vector, how long it is to be, and what it is called."""

    rho: Path
    lam: float
    name: str
    way: str
    before: tuple[str, ...] = ()  # commands that make it


def patched(source: Path, grid: Grid, offer: Offer) -> Candidate:
    """A vector added, then plain rounding."""
    request = replace(_request(source, grid), anchor=Anchor(offer.rho, typed(offer.lam)))
    name = f"{offer.name}, {_short(grid)}"
    return Candidate(name, offer.way, Family.PATCH, grid, request, offer.before)


def on_moments(source: Path, grid: Grid, file: Path, before: tuple[str, ...] = ()) -> Candidate:
    """GPTQ on statistics from a file."""
    request = replace(_request(source, grid), method=Method.GPTQ, moments=MomentsOptions(file))
    return Candidate(
        f"gptq on moments, {_short(grid)}", "moments", Family.MOMENTS, grid, request, before
    )


def on_images(source: Path, grid: Grid, images: Calibration, name: str) -> Candidate:
    """GPTQ on images: noise, or pictures that are not the receiver's."""
    family = Family.NOISE if images.specs == (NOISE,) else Family.IMAGES
    aim = ", float target" if images.target is Target.FLOAT else ""
    request = replace(_request(source, grid), method=Method.GPTQ, calibration=images)
    way = "float" if aim else str(family)
    return Candidate(f"gptq on {name}{aim}, {_short(grid)}", way, family, grid, request)


def refined(candidate: Candidate, images: ProxyOptions, device: str, steps: int) -> Candidate:
    """The same, and then scales, biases and norms moved on proxies."""
    refinement = RefinementOptions(steps, device, images)
    request = replace(candidate.request, refinement=refinement)
    return replace(
        candidate,
        name=f"{candidate.name}, refined",
        way="refined",
        family=Family.REFINED,
        request=request,
    )


def anchored(candidate: Candidate, rho: Path, lam: float, before: tuple[str, ...]) -> Candidate:
    """The same, started from the patched weights."""
    request = replace(candidate.request, anchor=Anchor(rho, typed(lam)))
    return replace(
        candidate,
        name=f"{candidate.name}, anchored at {typed(lam)}",
        way="anchored",
        request=request,
        before=(*before, *candidate.before),
    )


def typed(lam: float) -> str:
    """A lambda as the user would type it: short where that is the same number."""
    short = f"{lam + 0.0:g}"  # -0.0 + 0.0 is 0.0
    return short if float(short) == lam else repr(lam)


def loading_words(loading: Loading, device: str) -> Iterator[str]:
    """How images are read and where they are run, as far as it is not the default."""
    if loading.data_dir:
        yield from ("--data-dir", loading.data_dir)
    if loading.batch_size != DEFAULT.batch_size:
        yield from ("--batch-size", str(loading.batch_size))
    if device != "auto":
        yield from ("--device", device)


def _request(source: Path, grid: Grid) -> QuantizeRequest:
    wanted = GridOptions(
        grid.bits,
        grid.granularity,
        grid.group_size,
        grid.scale,
        grid.symmetric,
        grid.scale_dtype,
        cross=True,
    )
    return QuantizeRequest(source, Path("-"), wanted)


def _words(request: QuantizeRequest, grid: Grid) -> Iterator[str]:
    yield from ("qvec", "quantize", str(request.source), *_grid_words(grid))
    if request.method is not Method.RTN:
        yield from ("--method", str(request.method))
    if request.anchor:
        yield from ("--anchor", str(request.anchor.rho), "--lambda", request.anchor.lam)
    if request.moments:
        yield from ("--moments", str(request.moments.path))
    if request.calibration:
        yield from _image_words(request, request.calibration)


def _image_words(request: QuantizeRequest, images: Calibration) -> Iterator[str]:
    for spec in images.specs:
        yield from ("--calib", spec)
    yield from ("--calib-samples", str(images.samples))
    if images.target is Target.FLOAT:
        yield from ("--target", "float")
    if request.refinement and request.refinement.proxies:
        yield from ("--refine", str(request.refinement.steps))
        for spec in request.refinement.proxies.specs:
            yield from ("--proxy", spec)
        yield from ("--proxy-samples", str(request.refinement.proxies.samples))
    yield from loading_words(images.loading, images.device)


def _grid_words(grid: Grid) -> Iterator[str]:
    yield from ("--bits", str(grid.bits))
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


class Vectors:
    """What the vectors come to: their mean at lambda 1 and at a chosen one, and a fit."""

    def __init__(
        self,
        request: AdviseRequest,
        setting: AdviseInputs,
        folder: Path,
        leave_out: Callable[[str, str], None],
    ) -> None:
        self._request, self._folder, self._leave_out = request, folder, leave_out
        self._grid, self._making = setting.grid, setting.making
        self._lam = 0.0
        self._mean, self._before = folder / "mean.st", self._command("mean.st")
        if len(request.vectors) == 1:
            self._mean, self._before = request.vectors[0], ()
        elif request.vectors:
            combine.combine(combine.CombineRequest(request.vectors, self._mean), Silence())

    def candidates(self) -> Iterator[Candidate]:
        """None without vectors; a lambda of 0 or a fit of nothing is no candidate."""
        source, grid = self._request.receiver, self._grid
        if grid is None:
            return
        many = len(self._request.vectors) > 1
        name, mean = ("mean vector" if many else "vector"), (self._mean, self._before)
        unit = Offer(mean[0], 1.0, f"{name} at lambda 1", "unit", mean[1])
        yield patched(source, grid, unit)
        fit, self._lam = self._fitted() if many else (None, self._chosen())
        if self._lam:
            label = f"{name} at lambda {typed(self._lam)}, chosen"
            offer = Offer(mean[0], self._lam, label, "chosen", mean[1])
            yield patched(source, grid, offer)
        else:
            self._leave_out(f"{name} at a chosen lambda", "no lambda is surely better than 0")
        if fit:
            offer = Offer(fit, 1.0, "fitted vectors", "fitted", self._fit_command())
            yield patched(source, grid, offer)

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
            yield anchored(candidate, self._mean, self._lam / 2, self._before)

    def _chosen(self) -> float:
        """The lambda of the one vector."""
        asked = by_agreement.AgreementRequest(
            self._request.receiver, (self._mean,), Path("-"), fit_mix.RAY, GridOptions(),
            self._making, device=self._request.device,
        )  # fmt: skip
        return by_agreement.choose(asked, Silence())[0].lam

    def _fitted(self) -> tuple[Path | None, float]:
        """The fitted vector, if it is better than none, and the lambda of the mean."""
        out, request = self._folder / "fitted.st", self._request
        wish = fit_mix.FitOptions(
            request.receiver, GridOptions(), self._making, device=request.device
        )
        try:
            with ExitStack() as stack:
                vectors = [stack.enter_context(opened(p, Silence())) for p in request.vectors]
                found = fit_mix.fit_mix(wish, vectors, Silence())
            mixed = combine.CombineRequest(request.vectors, out, fit=wish, known=found)
            combine.combine(mixed, Silence())
        except QvecError as error:  # no combination is surely better than plain quantization
            self._leave_out("fitted vectors", str(error))
            return None, 0.0
        return out, float(found.facts["mean_lambda"])

    def _fit_command(self) -> tuple[str, ...]:
        words = ["--fit", "--receiver", str(self._request.receiver)]
        words += [word for spec in self._making.specs for word in ("--proxy", spec)]
        words += ["--proxy-samples", str(self._making.samples)]
        words += loading_words(self._making.loading, self._request.device)
        return self._command("fitted.st", *words)

    def _command(self, out: str, *more: str) -> tuple[str, ...]:
        return (
            shlex.join(["qvec", "combine", *map(str, self._request.vectors), *more, "-o", out]),
        )
