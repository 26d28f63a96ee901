"""Moves the scales, biases and norms of a quantized network towards its float one, codes fixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qvec_cli.calibration.quantize_model import ModelQuantizer, QuantizedModel
from qvec_cli.calibration.sequential import load_float
from qvec_cli.checkpoint.dtypes import Array, from_float32, to_float32
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import DataError, NotFiniteError, SpecError
from qvec_cli.inputs.images import Proxies, ProxyOptions, draw_each, find_proxies
from qvec_cli.model.configuration import Model
from qvec_cli.model.targets import head_tensors
from qvec_cli.quant.affine import stored_scale
from qvec_cli.quant.methods import QUANTIZERS
from qvec_cli.quant.qtensor import QTensor, sqnr_db
from qvec_cli.specs import Calibration, Listener, Stage

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
class RefinementOptions:
    """What ``qvec quantize --refine`` is asked for."""

    steps: int
    device: str = "auto"
    proxies: ProxyOptions | None = None  # None: the images of calibration

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise SpecError(f"--refine must be at least 1 step, got {self.steps}")


def find_refinement_images(
    theta: Checkpoint,
    model: Model,
    options: RefinementOptions,
    calibration: Calibration | None,
    listener: Listener,
) -> Proxies:
    """The images to refine with, not yet decoded.
    Raises SpecError: neither proxies nor images of calibration are named; DataError: no such data
    set, or fewer than four images, of which some are held back.
    """
    if options.proxies:
        images = find_proxies(theta, model, options.proxies, listener)
    elif calibration:
        images = draw_each(theta, model, calibration, listener)
    else:
        raise SpecError(
            "--refine needs images: --proxy and --calib are missing",
            hint="Some hundred of anything do, without labels; or --proxy noise.",
        )
    if (count := images.count) < _HELD_BACK:
        names = ", ".join(source.spec for source in images.sources)
        raise DataError(f"{names}: --refine needs {_HELD_BACK} images or more, here are {count}")
    return images


def refine(
    quantizer: ModelQuantizer,
    quantized: QuantizedModel,
    images: Proxies,
    options: RefinementOptions,
    listener: Listener,
) -> tuple[QuantizedModel, dict[str, Any]]:
    """The quantized network with scales, biases and norms learned from the float receiver.

    A quarter of the images is held back. Unless the network as it would be stored is nearer to
    the receiver there than before, everything stays as it was.

    The weights that calibration has not quantized go into ``quantized`` first. Returns what is to
    be written, and the facts of it.
    Raises NotFiniteError: a network whose output is not a number.
    """
    from qvec_cli.learn.distill import DistillOptions, distill, loss_name, measured

    quantizer.complete(quantized)
    before_steps = Stage(listener, 0, 0, options.steps)
    learned, held_back = _images(quantizer.theta, images, options.device, before_steps)
    network = load_float(quantizer.source, images.model, options.device)
    parameters = dict(network.named_parameters(remove_duplicate=False))
    vectors = _vectors(quantizer, quantized, images.model, parameters)
    _place(parameters, quantized.weights, vectors)
    before = measured(network, held_back)
    student = _Student(quantized.weights, vectors, next(network.parameters()).device)

    def progress(done: int, loss: float) -> None:
        listener.progress(f"refine {done}/{options.steps}", done, options.steps, loss=loss)

    distilling = DistillOptions(options.steps, seed=SEED)
    moved = distill(network, learned, student.free(), student.tensors, distilling, progress)
    dtypes = {name: quantizer.theta[name].dtype for name in vectors}
    weights, vectors = student.stored(moved, dtypes)
    _place(parameters, weights, vectors)
    try:
        after = measured(network, held_back)
    except NotFiniteError:
        after = None
    kept = after is not None and after < before
    facts = {
        "kept": kept,
        "steps": options.steps,
        "loss": loss_name(learned.logits.shape[1]),
        "held_back": {"images": len(held_back.images), "before": before, "after": after},
        "learned_from": len(learned.images),
    }
    if not kept:
        listener.note("refinement has not helped on the images held back: all stays as it was")
        return quantized, facts
    floats = {**quantized.floats, **vectors}
    errors, source = quantized.sqnr_db, quantizer.source
    if QUANTIZERS[quantizer.method].factors is None:  # else factors in weights are no errors
        errors = {name: sqnr_db(source.finite(name), q.weight()) for name, q in weights.items()}
    return QuantizedModel(weights, floats, errors), facts


def _vectors(
    quantizer: ModelQuantizer,
    quantized: QuantizedModel,
    model: Model,
    parameters: Mapping[str, Any],
) -> dict[str, Array]:
    """The network's vectors outside the head before refinement: biases, norms, LayerScale."""
    theta, changed = quantizer.theta, quantized.floats
    flat = [name for name, entry in theta.items() if entry.floating and len(entry.shape) == 1]
    fixed = {*quantizer.targets, *head_tensors(theta, model)}
    names = [name for name in flat if name not in fixed and name in parameters]
    return {n: changed[n] if n in changed else quantizer.source.finite(n) for n in names}


def _images(
    theta: Checkpoint, images: Proxies, device: str, listener: Listener
) -> tuple[TeacherOutputs, TeacherOutputs]:
    """Images to learn from and images held back, with the logits of the float receiver."""
    import torch

    from qvec_cli.learn.distill import TeacherOutputs
    from qvec_cli.learn.forward import logits
    from qvec_cli.model.build import normalise

    decoded, size = images.decoded(listener), images.sources[0].examples.loading.batch_size
    listener.progress("float answers", 0, 1)
    ready = normalise(images.model)
    teacher = load_float(theta, images.model, device)
    answers = logits(teacher, decoded, ready, size)
    last = torch.arange(len(decoded)) % _HELD_BACK == _HELD_BACK - 1  # of every source some
    first, second = (
        TeacherOutputs(decoded[part], answers[part.to(answers.device)], ready, size)
        for part in (~last, last)
    )
    return first, second


class _Student:
    """A quantized network as a function of how far its scales and vectors have moved.

    Scales move by factors, exp of what is free, so that none changes its sign; vectors by what
    is free times their root mean square: so one learning rate serves all.
    """

    def __init__(
        self, weights: Mapping[str, QTensor], vectors: Mapping[str, Array], device: Any
    ) -> None:
        import torch

        self._weights, self._vectors = weights, vectors
        self._device = device
        self._restored = {n: torch.from_numpy(q.weight()).to(device) for n, q in weights.items()}
        self._start = {n: torch.from_numpy(np.array(v)).to(device) for n, v in vectors.items()}
        squares = {n: np.square(v, dtype=np.float64) for n, v in vectors.items()}
        self._unit = {n: max(float(np.sqrt(s.mean())), _SMALLEST) for n, s in squares.items()}

    def free(self) -> dict[str, Tensor]:
        """Where it starts: nothing has moved."""
        import torch

        shapes = {n: q.scale.shape for n, q in self._weights.items()}
        shapes |= {n: v.shape for n, v in self._vectors.items()}
        return {n: torch.zeros(shape, device=self._device) for n, shape in shapes.items()}

    def tensors(self, free: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights and vectors, float32, by name."""
        tensors = {n: v + self._unit[n] * free[n] for n, v in self._start.items()}
        for name, weight in self._restored.items():
            factors = free[name].exp().reshape(-1, 1)
            tensors[name] = (weight.reshape(len(factors), -1) * factors).reshape(weight.shape)
        return tensors

    def stored(
        self, free: Mapping[str, Tensor], dtypes: Mapping[str, str]
    ) -> tuple[dict[str, QTensor], dict[str, Array]]:
        """The same as a file holds it: scales and vectors in its number formats."""
        moved = {name: value.cpu().numpy() for name, value in free.items()}
        weights = {
            n: replace(q, scale=np.asarray(stored_scale(q.scale * np.exp(moved[n]), q.grid)))
            for n, q in self._weights.items()
        }
        vectors = {}
        for name, value in self._vectors.items():
            exact = (value + np.float32(self._unit[name]) * moved[name]).astype(np.float32)
            vectors[name] = to_float32(from_float32(exact, dtypes[name]), dtypes[name])
        return weights, vectors


def _place(
    parameters: Mapping[str, nn.Parameter],
    weights: Mapping[str, QTensor],
    vectors: Mapping[str, Array],
) -> None:
    """Gives the network these weights and vectors."""
    import torch

    with torch.no_grad():
        for name, value in vectors.items():
            parameters[name].copy_(torch.from_numpy(value))
        for name, codes in weights.items():
            parameters[name].copy_(torch.from_numpy(codes.weight()))
