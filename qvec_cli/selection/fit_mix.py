"""One coefficient for each vector, without labels: what their changes cancel of the damage.

The paper's optimal lambda is a projection of quantization's damage on what a vector changes. Here
it is one for several vectors at once, measured at the quantized receiver; a short search along
the ray of the coefficients then decides on their length, because rounding is not linear.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from qvec_cli.checkpoint.dtypes import Array
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import NotFiniteError, QvecError
from qvec_cli.inputs.files import InputFiles
from qvec_cli.selection.by_agreement import (
    AgreementOptions,
    AgreementRun,
    Curve,
    trace,
    with_negative,
)
from qvec_cli.selection.choose import beats, fit
from qvec_cli.specs import Listener, Use

RAY: Final = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""Multiples of the coefficients that are tried, and lambdas of the mean vector."""


@dataclass(frozen=True, slots=True)
class FitOptions:
    """For which receiver the coefficients are fitted, and how they are judged."""

    receiver: Path
    agreement: AgreementOptions  # its lambdas are ``RAY``


@dataclass(frozen=True, slots=True)
class Fitted:
    """The coefficients, 0 everywhere where no combination is surely better than none."""

    mix: tuple[float, ...]
    use: Use  # the receiver data that the fit has used
    facts: Mapping[str, Any] = field(default_factory=dict)  # for cards and metrics


def fit_mix(
    options: FitOptions, vectors: Sequence[Checkpoint], files: InputFiles, listener: Listener
) -> Fitted:
    """Fits on the proxies; takes the mean vector at a lambda of its own where that is as good.

    Raises:
        MismatchError: files, grids or images that do not belong together.
        QvecError: a combination that is no longer finite.
    """
    theta = files.open(options.receiver)
    receiver = options.agreement.resolved(theta, vectors, listener)
    assert receiver.grid is not None
    run = AgreementRun(receiver, options.agreement, listener)
    try:
        fitted = _fitted(run, vectors, listener)
    except NotFiniteError:
        raise QvecError(f"{theta.path}: a combination of the vectors is not finite") from None
    about = {
        "receiver": {"name": theta.name, "digest": theta.settle()},
        "grid": receiver.grid.to_json(),
        "proxies": run.proxy_facts(listener),
        "measure": run.judge.measure,
    }
    return replace(fitted, use=run.proxies.use, facts={**about, **fitted.facts})


def _fitted(run: AgreementRun, vectors: Sequence[Checkpoint], listener: Listener) -> Fitted:
    count = len(vectors)
    evenly = tuple(1 / count for _ in vectors)
    mean = _along(run, vectors, evenly, with_negative(RAY))
    step = abs(mean.lam) or RAY[1]
    changes = []
    for done, vector in enumerate(vectors, start=1):
        answers = run.judge.answers_at(replace(run.trial, rho=_mixed((vector,), (1.0,))), step)
        changes.append((answers.logits - run.plain.logits) / step)
        listener.progress("vectors", done, count)
    damage = run.plain.logits - run.judge.teacher.logits
    line = fit(np.stack(changes), damage, run.judge.chances)
    ray = _along(run, vectors, tuple(map(float, line.mix)), RAY)
    taken, unit = (ray, line.mix) if _better(ray, mean) else (mean, evenly)
    facts = {
        "explained": line.explained,
        "removed": taken.removed,
        "coefficients": [float(part) for part in line.mix],
        "taken": "fit" if taken is ray else "mean",
        "times": taken.lam,
        "mean_lambda": mean.lam,
        "ray": ray.points(),
        "mean": mean.points(),
    }
    return Fitted(tuple(float(taken.lam * part) + 0.0 for part in unit), Use(), facts)


def _along(
    run: AgreementRun,
    vectors: Sequence[Checkpoint],
    mix: Sequence[float],
    lambdas: tuple[float, ...],
) -> Curve:
    return trace(run.judge, replace(run.trial, rho=_mixed(vectors, mix)), lambdas, run.plain)


def _better(ray: Curve, mean: Curve) -> bool:
    """Whether the fit, at its length, is better than the mean vector by a standard error."""
    return ray.lam != 0 and beats(ray.distances[ray.place], mean.distances[mean.place], 1.0)


def _mixed(vectors: Iterable[Checkpoint], mix: Sequence[float]) -> dict[str, Array]:
    """Their weighted sum, float32, one vector in memory at a time; sums are in float64."""
    total: dict[str, Any] = {}
    for vector, share in zip(vectors, mix, strict=True):
        for name in vector:
            total[name] = total.get(name, 0.0) + share * vector.finite(name).astype(np.float64)
    return {name: numbers.astype(np.float32) for name, numbers in total.items()}
