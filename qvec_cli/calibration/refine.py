"""Moves the scales, biases and norms of a quantized network towards its float one, codes fixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qvec_cli.calibration.sequential import Calibrated, load_float
from qvec_cli.checkpoint.dtypes import Array, from_float32, to_float32
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import DataError, SpecError
from qvec_cli.inputs.patched import Patched
from qvec_cli.inputs.proxies import Proxies, ProxyOptions, draw_each, find_proxies
from qvec_cli.model.configuration import Model
from qvec_cli.model.targets import head_tensors
from qvec_cli.quant.methods import QUANTIZERS
from qvec_cli.quant.qtensor import QTensor, sqnr_db
from qvec_cli.quant.ranges import stored
from qvec_cli.specs import Calibration, Grid, Listener, Method

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qvec_cli.learn.distill import TeacherOutputs


SEED: Final = 0
"""Of the order in which images are seen."""


_HELD_BACK: Final = 4
"""One in so many images is not learned from but measured."""


_SMALLEST: Final = 1e-2
"""Root mean square that a bias or norm is taken to have at least: those of zero move too."""


@dataclass(frozen=True, slots=True)
class Refinement:
    """What the user asks for."""

    steps: int
    device: str = "auto"
    proxies: ProxyOptions | None = None  # None: the images of calibration

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise SpecError(f"--refine must be at least 1 step, got {self.steps}")


@dataclass(frozen=True, slots=True)
class Subject:
    """A model on its way to low bits."""

    source: Checkpoint | Patched
    targets: tuple[str, ...]
    grid: Grid
    method: Method

    model: Model
    device: str

    @property
    def theta(self) -> Checkpoint:
        """The receiver, not patched."""
        return self.source.theta if isinstance(self.source, Patched) else self.source

    def completed(self, made: Calibrated) -> None:
        """Quantizes what calibration has not."""
        for name in self.targets:
            if name not in made.weights:
                weight = self.source.finite(name)
                made.weights[name] = QUANTIZERS[self.method].run(weight, self.grid)
                made.ratios[name] = sqnr_db(weight, made.weights[name].weight())

    def loose(self, made: Calibrated) -> dict[str, Array]:
        """Vectors outside the head, as they are: biases, norms, LayerScale."""
        theta, fixed = self.theta, set(self.targets)
        fixed.update(head_tensors(theta, self.model))
        names = [n for n, e in theta.items() if e.floating and len(e.shape) == 1]
        chosen = [name for name in names if name not in fixed]
        return {n: made.floats[n] if n in made.floats else self.source.finite(n) for n in chosen}


def find(
    theta: Checkpoint, model: Model, wanted: Refinement, calibration: Calibration | None
) -> Proxies:
    """The images to refine with, not yet decoded.

    Raises:
        SpecError: neither proxies nor images of calibration are named.
        DataError: no such data set, or fewer than four images, of which some are held back.
    """
    if wanted.proxies:
        found = find_proxies(theta, model, wanted.proxies)
    elif calibration:
        found = draw_each(theta, model, calibration)
    else:
        raise SpecError(
            "--refine needs images: --proxy and --calib are missing",
            hint="Some hundred of anything do, without labels; or --proxy noise.",
        )
    if (count := found.count) < _HELD_BACK:
        names = ", ".join(source.spec for source in found.sources)
        raise DataError(f"{names}: --refine needs {_HELD_BACK} images or more, here are {count}")
    return found


def refine(
    subject: Subject, made: Calibrated, images: Proxies, steps: int, listener: Listener
) -> tuple[Calibrated, dict[str, Any]]:
    """The quantized network with scales, biases and norms learned from the float receiver.

    A quarter of the images is held back. Unless the network as it would be stored is nearer to
    the receiver there than before, everything stays as it was.

    Args:
        subject: what is quantized.
        made: what calibration has made of it; gets the weights that it has not quantized.
        images: unlabelled.
        steps: of Adam.
        listener: hears of progress.

    Returns:
        What is to be written, and the facts of it.

    Raises:
        NotFiniteError: a network whose output is not a number.
    """
    from qvec_cli.learn.distill import DistillOptions, distill, loss_name, measured

    subject.completed(made)
    seen, held = _teacher_outputs(subject, images, listener)
    network = load_float(subject.source, subject.model, subject.device)
    places = dict(network.named_parameters(remove_duplicate=False))
    loose = {n: value for n, value in subject.loose(made).items() if n in places}
    before = made.weights, loose
    _place(places, *before)
    error = measured(network, held)
    options = DistillOptions(steps, seed=SEED)
    student = _Student(made.weights, loose, next(network.parameters()).device)

    def heard(done: int, loss: float) -> None:
        listener.progress("refine", done, steps, loss=loss)

    moved = distill(network, seen, student.free(), student.tensors, options, heard)
    after = student.stored(moved, {name: subject.theta[name].dtype for name in loose})
    _place(places, *after)
    found = _measured_or_none(network, held)
    kept = found is not None and found < error
    facts = {
        "kept": kept,
        "steps": steps,
        "loss": loss_name(seen.logits.shape[1]),
        "held_back": {"images": len(held.images), "before": error, "after": found},
        "learned_from": len(seen.images),
    }
    if not kept:
        listener.note("refinement has not helped on the images held back: all stays as it was")
        return made, facts
    return _refined(subject, made, *after), facts


def _measured_or_none(network: nn.Module, examples: TeacherOutputs) -> float | None:
    from qvec_cli.errors import NotFiniteError
    from qvec_cli.learn.distill import measured

    try:
        return measured(network, examples)
    except NotFiniteError:
        return None


def _refined(
    subject: Subject, made: Calibrated, weights: dict[str, QTensor], loose: dict[str, Array]
) -> Calibrated:
    """With ratios anew, but where a method has moved factors into weights: there they stay."""
    ratios = dict(made.ratios)
    if QUANTIZERS[subject.method].factors is None:
        for name, quantized in weights.items():
            ratios[name] = sqnr_db(subject.source.finite(name), quantized.weight())
    return Calibrated(weights, {**made.floats, **loose}, ratios)


def _teacher_outputs(
    subject: Subject, images: Proxies, listener: Listener
) -> tuple[TeacherOutputs, TeacherOutputs]:
    """Images to learn from and images held back, with the logits of the float receiver."""
    import torch

    from qvec_cli.learn.distill import TeacherOutputs
    from qvec_cli.learn.forward import logits
    from qvec_cli.model.build import normalise

    decoded, size = images.decoded(listener), images.sources[0].examples.loading.batch_size
    ready = normalise(subject.model)
    teacher = load_float(subject.theta, subject.model, subject.device)
    wanted = logits(teacher, decoded, ready, size)
    held = torch.arange(len(decoded)) % _HELD_BACK == _HELD_BACK - 1  # of every source some
    parts = (decoded[part] for part in (~held, held))
    first, second = (
        TeacherOutputs(some, wanted[part.to(wanted.device)], ready, size)
        for some, part in zip(parts, (~held, held), strict=True)
    )
    return first, second


class _Student:
    """A quantized network as a function of how far its scales and vectors have moved.

    Scales move by factors, exp of what is free, so that none changes its sign; vectors by what
    is free times their root mean square: so one learning rate serves all.
    """

    def __init__(
        self, weights: Mapping[str, QTensor], loose: Mapping[str, Array], device: Any
    ) -> None:
        import torch

        self._weights, self._loose = weights, loose
        self._device = device
        self._shown = {n: torch.from_numpy(q.weight()).to(device) for n, q in weights.items()}
        self._start = {n: torch.from_numpy(np.array(v)).to(device) for n, v in loose.items()}
        self._unit = {n: _unit(v) for n, v in loose.items()}

    def free(self) -> dict[str, Tensor]:
        """Where it starts: nothing has moved."""
        import torch

        shapes = {n: q.scale.shape for n, q in self._weights.items()}
        shapes |= {n: v.shape for n, v in self._loose.items()}
        return {n: torch.zeros(shape, device=self._device) for n, shape in shapes.items()}

    def tensors(self, free: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights and vectors, float32, by name."""
        found = {n: v + self._unit[n] * free[n] for n, v in self._start.items()}
        for name, shown in self._shown.items():
            factors = free[name].exp().reshape(-1, 1)
            found[name] = (shown.reshape(len(factors), -1) * factors).reshape(shown.shape)
        return found

    def stored(
        self, free: Mapping[str, Tensor], dtypes: Mapping[str, str]
    ) -> tuple[dict[str, QTensor], dict[str, Array]]:
        """The same as a file holds it: scales and vectors in its number formats."""
        moved = {name: value.cpu().numpy() for name, value in free.items()}
        weights = {
            n: replace(q, scale=np.asarray(stored(q.scale * np.exp(moved[n]), q.grid)))
            for n, q in self._weights.items()
        }
        loose = {}
        for name, value in self._loose.items():
            exact = (value + np.float32(self._unit[name]) * moved[name]).astype(np.float32)
            loose[name] = to_float32(from_float32(exact, dtypes[name]), dtypes[name])
        return weights, loose


def _unit(value: Array) -> float:
    return max(float(np.sqrt(np.square(value, dtype=np.float64).mean())), _SMALLEST)


def _place(
    places: Mapping[str, nn.Parameter], weights: Mapping[str, QTensor], loose: Mapping[str, Array]
) -> None:
    import torch

    with torch.no_grad():
        for name, value in loose.items():
            places[name].copy_(torch.from_numpy(value))
        for name, quantized in weights.items():
            places[name].copy_(torch.from_numpy(quantized.weight()))
