"""What a receiver's vectors have to offer: their mean, a chosen lambda, a fit, statistics."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from qvec_cli.ops import agree, candidates, combine, fitted
from qvec_cli.ops.brief import Request, Setting
from qvec_cli.ops.candidates import Candidate, Offer
from qvec_cli.ops.opening import opened
from qvec_cli.specs import Silence, Wanted


class Vectors:
    """What the vectors come to: their mean at lambda 1 and at a chosen one, and a fit."""

    def __init__(self, request: Request, setting: Setting, folder: Path) -> None:
        self._request, self._folder = request, folder
        self._grid, self._making = setting.grid, setting.making
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
        unit = Offer(mean[0], 1.0, f"{name} at lambda 1", "unit", mean[1])
        yield candidates.patched(source, grid, unit)
        fit, self._lam = self._fitted() if many else (None, self._chosen())
        if self._lam:
            label = f"{name} at lambda {self._lam:g}, chosen"
            offer = Offer(mean[0], self._lam, label, "chosen", mean[1])
            yield candidates.patched(source, grid, offer)
        if fit:
            offer = Offer(fit, 1.0, "fitted vectors", "fitted", self._fit_command())
            yield candidates.patched(source, grid, offer)

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

    def _chosen(self) -> float:
        """The lambda of the one vector."""
        asked = agree.Request(
            self._request.receiver, (self._mean,), Path("-"), fitted.RAY, Wanted(), self._making,
            device=self._request.device,
        )  # fmt: skip
        return agree.choose(asked, Silence())[0].lam

    def _fitted(self) -> tuple[Path | None, float]:
        """The fitted vector, if it is better than none, and the lambda of the mean."""
        out, request = self._folder / "fitted.st", self._request
        wish = fitted.FitWish(request.receiver, Wanted(), self._making, device=request.device)
        with ExitStack() as stack:
            vectors = [stack.enter_context(opened(p, Silence())) for p in request.vectors]
            found = fitted.fit_mix(wish, vectors, Silence())
        if not any(found.mix):
            return None, 0.0
        mixed = combine.Request(request.vectors, out, fit=wish, known=found)
        combine.combine(mixed, Silence())
        return out, float(found.facts["mean_lambda"])

    def _fit_command(self) -> tuple[str, ...]:
        words = ["--fit", "--receiver", str(self._request.receiver)]
        words += [word for spec in self._making.specs for word in ("--proxy", spec)]
        return self._command("fitted.st", *words, "--proxy-samples", str(self._making.samples))

    def _command(self, out: str, *more: str) -> tuple[str, ...]:
        return (
            shlex.join(["qvec", "combine", *map(str, self._request.vectors), *more, "-o", out]),
        )
