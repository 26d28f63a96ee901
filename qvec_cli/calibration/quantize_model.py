"""The loop that quantizes a model: each target by its method, with what is known of its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from qvec_cli.calibration.moments_file import LayerMoments
from qvec_cli.checkpoint.dtypes import Array, from_float32, to_float32
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import MismatchError, NotFiniteError, located
from qvec_cli.inputs.receiver import Patched
from qvec_cli.inputs.rotated import Rotated
from qvec_cli.quant.compressed_tensors import for_stock_loaders
from qvec_cli.quant.methods import FloatTarget, QuantizedWeight, quantize_weight
from qvec_cli.quant.moments import Inputs
from qvec_cli.quant.qtensor import QTensor, as_matrix
from qvec_cli.specs import Grid, Listener, Method, ScaleDtype, Silence

_LEAST_HALF: Final = 2.0**-18
"""Of the largest weight, the least step between codes that float16 holds to some 6 bits."""


@dataclass(frozen=True, slots=True)
class QuantizedModel:
    """What quantization has changed so far, by the names of tensors."""

    weights: dict[str, QTensor] = field(default_factory=dict)  # as far as they stay in memory
    floats: dict[str, Array] = field(default_factory=dict)  # new biases and norms, float32
    sqnr_db: dict[str, float | None] = field(default_factory=dict)  # of every weight


@dataclass(frozen=True, slots=True)
class ModelQuantizer:
    """A float model, and how its targets are quantized."""

    source: Checkpoint | Patched | Rotated
    targets: tuple[str, ...]
    grid: Grid
    method: Method
    moments: LayerMoments | None = None  # of the targets' inputs, if they come from a file
    rounded: tuple[str, ...] = ()  # of the head and embeddings, what is rounded beside the targets
    listener: Listener = field(default_factory=Silence)  # hears how many targets are quantized
    folder: bool = False  # whether what is packed is for stock loaders

    @property
    def packed(self) -> tuple[str, ...]:
        """Every weight that is quantized."""
        return (*self.targets, *self.rounded)

    @property
    def stored(self) -> Grid:
        """The grid as the output holds it, with the same numbers."""
        return for_stock_loaders(self.grid) if self.folder else self.grid

    @property
    def theta(self) -> Checkpoint:
        """The receiver's file, to which no vector is added."""
        return self.source if isinstance(self.source, Checkpoint) else self.source.theta

    @property
    def receiver(self) -> Checkpoint | Rotated:
        """The model without a vector, in the basis in which it is quantized."""
        return self.source.unpatched if isinstance(self.source, Rotated) else self.theta

    def quantize(self, name: str, model: QuantizedModel) -> QTensor:
        """The codes of one target as its file has it; its error and new bias go into ``model``.
        Raises NotFiniteError: a corrected bias beyond the file's number format.
        """
        weight = self.source.finite(name)
        if name in self.rounded:
            return self._rounded(name, weight, model)
        inputs = self.moments.inputs(name) if self.moments else None
        if inputs is not None and isinstance(self.source, Rotated):
            inputs = self.source.inputs(name, inputs)
        quantized = self.on_grid(name, weight, self.method, inputs)
        model.sqnr_db[name] = quantized.sqnr_db
        if inputs is not None and (bias := self._bias(name)):
            mean_error = (quantized.restored - weight) @ inputs.mean
            model.floats[bias] = self.corrected_bias(bias, self.source.finite(bias), mean_error)
        self.tell(model)
        return quantized.codes

    def on_grid(
        self,
        name: str,
        weight: Array,
        method: Method,
        inputs: Inputs | None = None,
        target: FloatTarget | None = None,
    ) -> QuantizedWeight:
        """One weight [out, in], float32, on the grid; see ``quantize_weight``.
        Raises MismatchError: names the file; weights that float16 scales do not fit.
        """
        with located(self.theta.path):
            if self.grid.scale_dtype is ScaleDtype.FLOAT16:
                bits, largest = self.grid.of(name).bits, float(np.abs(weight).max(initial=0))
                if 0 < largest < _LEAST_HALF * 2**bits:
                    raise MismatchError(
                        f"{name}: its weights are too small for float16 scales",
                        hint="Use --scale-dtype float32.",
                    )
            return quantize_weight(name, weight, self.grid, method, inputs, target)

    def _rounded(self, name: str, weight: Array, model: QuantizedModel) -> QTensor:
        """The codes of a tensor of two or more dimensions that is only rounded."""
        shape = weight.shape
        matrix = weight.reshape(as_matrix(shape))
        quantized = self.on_grid(name, matrix, Method.RTN)
        model.sqnr_db[name] = quantized.sqnr_db
        self.tell(model)
        return quantized.codes if len(shape) == 2 else replace(quantized.codes, shape=shape)

    def tell(self, model: QuantizedModel) -> None:
        """Tells the listener how many targets are quantized."""
        done, count = len(model.sqnr_db), len(self.packed)
        self.listener.progress(f"layer {done}/{count}", done, count)

    def complete(self, model: QuantizedModel) -> None:
        """Quantizes every target that is not in ``model`` yet, and keeps it in memory."""
        for name in self.targets:
            if name not in model.weights:
                model.weights[name] = self.quantize(name, model)
        if self.moments:
            self.moments.carrier.settle()

    def tensors(
        self, model: QuantizedModel, *, fake: bool
    ) -> Iterator[tuple[str, Iterable[Array]]]:
        """Every tensor of the quantized file; what is not in ``model`` yet, a weight at a time.

        A bias that is still to be corrected comes after its weight. ``model`` gets the errors of
        the weights; with ``fake`` they are float numbers on the grid in place of packed codes.
        """
        chosen = set(self.packed)
        biases = {name: self._bias(name) for name in self.targets}
        late = {bias for bias in biases.values() if bias not in model.floats}
        for name in self.theta:
            if name in late:
                continue
            if name not in chosen:
                yield name, self._float(name, model)
                continue
            codes = model.weights.get(name) or self.quantize(name, model)
            packed = replace(codes, grid=self.stored.of(name))
            arrays = {name: codes.weight()} if fake else packed.to_named(name)
            yield from ((part, [array.reshape(-1)]) for part, array in arrays.items())
            if (bias := biases.get(name)) and bias in late:
                yield bias, self._float(bias, model)
        self.source.settle()
        if self.moments:
            self.moments.carrier.settle()

    def _float(self, name: str, model: QuantizedModel) -> Iterable[Array]:
        """The blocks of a tensor that stays as it is, or has new values."""
        if name in model.floats:
            return [from_float32(model.floats[name].reshape(-1), self.theta[name].dtype)]
        return self.source.checked(name)

    def _bias(self, weight: str) -> str | None:
        return self.moments.bias(weight) if self.moments else None

    def corrected_bias(self, name: str, bias: Array, mean_error: Array) -> Array:
        """A bias [out] with which the layer's outputs keep their mean (arXiv:1906.04721).

        ``mean_error`` [out] is that of the outputs, over all calibration tokens.
        """
        return self.representable(name, (bias - mean_error).astype(np.float32))

    def representable(self, name: str, values: Array) -> Array:
        """Values of a tensor as the file's number format holds them, float32.
        Raises NotFiniteError: values beyond it.
        """
        dtype = self.theta[name].dtype
        rounded = to_float32(from_float32(values, dtype), dtype)
        if not np.isfinite(rounded).all():
            raise NotFiniteError(f"{self.theta.path}: {name}: overflows {dtype} in calibration")
        return rounded
