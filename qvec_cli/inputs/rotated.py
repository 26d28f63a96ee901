"""A float checkpoint in a rotated basis: the same function, tensor by tensor in the file's formats.

What ``qvec rotate`` writes and what ``quantize --rotate`` puts on a grid are the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from qvec_cli.checkpoint.dtypes import Array, from_float32, to_float32
from qvec_cli.checkpoint.read import BLOCK, Checkpoint, finite
from qvec_cli.errors import CheckpointError, MismatchError, NotFiniteError, located
from qvec_cli.inputs.files import DOOR
from qvec_cli.inputs.receiver import Patched, place
from qvec_cli.model.basis import Basis, TensorChange, basis_of
from qvec_cli.model.block_names import basis_of_transformers
from qvec_cli.model.configuration import Model
from qvec_cli.model.recognise import heads_of, recognise
from qvec_cli.quant.moments import Inputs
from qvec_cli.specs import Library, Listener

if TYPE_CHECKING:
    from torch import nn

ROTATION: Final = 0
"""The seed of the basis where none is named; all models of a base share it."""

_OTHERWISE: Final = ("block_fn", "use_post_norm", "attn_layer")
"""Arguments of timm's that make other blocks of tensors with the same names."""

_SMALL: Final = 1e-3
"""Share of the median below which a LayerNorm's weight tells nothing of what it multiplies."""


@dataclass(frozen=True, slots=True)
class Rotated:
    """A model, patched or not, in a rotated basis."""

    source: Checkpoint | Patched
    basis: Basis
    _biases: dict[str, Array] = field(default_factory=dict)  # what LayerNorms add, by weight
    _read: dict[str, Array] = field(default_factory=dict)  # the weight that told the last of them

    @property
    def theta(self) -> Checkpoint:
        """The receiver's file."""
        return self.source.theta if isinstance(self.source, Patched) else self.source

    @property
    def unpatched(self) -> Rotated:
        """The receiver's file in the same basis."""
        return replace(self, source=self.theta, _biases={}, _read={})

    def checked(self, name: str) -> Iterator[Array]:
        """The raw blocks of a tensor, every element of a floating one a number."""
        if name not in self.basis.changes:
            yield from self.source.checked(name)
            return
        flat = from_float32(self._changed(name).reshape(-1), self.theta[name].dtype)
        for start in range(0, flat.size, BLOCK):
            yield flat[start : start + BLOCK]

    def finite(self, name: str) -> Array:
        """A whole floating tensor in float32, every element finite."""
        if name not in self.basis.changes:
            return self.source.finite(name)
        dtype = self.theta[name].dtype
        return to_float32(from_float32(self._changed(name), dtype), dtype)

    def place(self, network: nn.Module) -> None:
        """Gives the network of the file these numbers, in float32."""
        if isinstance(self.source, Patched):
            self.source.place(network)
        place(network, ((name, self.finite(name)) for name in self.basis.changes))

    def settle(self) -> None:
        """The files are what their cards say; see ``Checkpoint.settle``."""
        self.source.settle()

    def inputs(self, weight: str, inputs: Inputs) -> Inputs:
        """What a weight is multiplied with in this basis, from moments in the file's own.

        The mean magnitudes, which no closed form carries over, are root mean squares.
        """
        change = self.basis.changes.get(weight)
        if change is None:
            return inputs
        if change.gamma is not None:
            beta = self._beta_before(weight)
            inputs = _without_affine(inputs, self.source.finite(change.gamma), beta)
        if change.columns is None:
            return inputs
        turn = change.columns.matrix().astype(np.float64)
        whole = np.kron(np.eye(len(inputs.mean) // len(turn)), turn)
        moment = whole.T @ inputs.moment @ whole
        return Inputs(moment, inputs.mean @ whole, np.sqrt(np.maximum(np.diag(moment), 0)))

    def restored(self, weight: str, vectors: Array) -> Array:
        """What a weight was multiplied with in the file's own basis, from what it is in this.

        Takes and gives vectors, float32 [n, in].
        """
        change = self.basis.changes.get(weight)
        if change is None:
            return vectors
        if change.columns is not None:
            vectors = vectors @ change.columns.matrix().T.astype(np.float32)
        if change.gamma is not None:
            beta = self._beta_before(weight)
            vectors = vectors * self.source.finite(change.gamma) + (0 if beta is None else beta)
        return vectors

    def _beta_before(self, weight: str) -> Array | None:
        """What the LayerNorm before a weight has added and the weight's bias adds now."""
        bias = f"{weight.removesuffix('weight')}bias"
        change = self.basis.changes.get(bias)
        return self.source.finite(change.beta[1]) if change and change.beta else None

    def _changed(self, name: str) -> Array:
        """The tensor in its new basis, float32.

        Raises NotFiniteError: numbers beyond the file's format.
        """
        change, dtype = self.basis.changes[name], self.theta[name].dtype
        if change.fill is not None:
            return np.full(self.theta[name].shape, change.fill, np.float32)
        values = self._read.pop(name, None)
        values = self.source.finite(name) if values is None else values
        with np.errstate(all="ignore"):  # found below, by name
            values = self._rows(name, self._columns(values, change), change)
            if not finite(to_float32(from_float32(values, dtype), dtype)):
                raise NotFiniteError(
                    f"{self.theta.path}: {name}: overflows {dtype} if rotated",
                    hint="qvec quantize takes it as it is.",
                )
        return values

    def _columns(self, values: Array, change: TensorChange) -> Array:
        """What changes along the last axis."""
        if change.gamma is not None:
            values = values * _beside(self.source.finite(change.gamma), values)
        if change.over is not None:
            values = values / self.source.finite(change.over)
        if change.columns is not None:
            values = change.columns.along(values, values.ndim - 1)
        if change.centred:
            values = values - values.mean(axis=1, dtype=np.float64, keepdims=True).astype("f4")
        return values

    def _rows(self, name: str, values: Array, change: TensorChange) -> Array:
        """What changes along the first axis, and what a LayerNorm has added."""
        if change.beta is not None:
            values = values + self._product(*change.beta)
        if change.scale is not None:
            scale = self.source.finite(change.scale)
            values = values * scale.reshape(-1, *([1] * (values.ndim - 1)))
        return values if change.rows is None else change.rows.along(values, 0)

    def _product(self, weight: str, beta: str) -> Array:
        """A weight times a LayerNorm's bias, float32 [out]."""
        if weight not in self._biases:
            self._read.clear()
            matrix = self._read[weight] = self.source.finite(weight)  # which is next in a file
            added = matrix * _beside(self.source.finite(beta), matrix)
            self._biases[weight] = added.sum(axis=1, dtype=np.float64).astype(np.float32)
        return self._biases[weight]


def _beside(vector: Array, matrix: Array) -> Array:
    """A LayerNorm's vector, as often as a layer reads it side by side."""
    return np.tile(vector, matrix.shape[-1] // vector.size)


def _without_affine(inputs: Inputs, gamma: Array, beta: Array | None) -> Inputs:
    """Moments of what a LayerNorm gives before its weight and, where it goes too, its bias.

    Where the weight is all but zero, what it multiplied is not known: of variance 1, by itself.
    """
    shift = np.zeros(gamma.shape) if beta is None else beta.astype(np.float64)
    lost = np.abs(gamma) < _SMALL * np.median(np.abs(gamma))
    divisor = np.where(lost, 1.0, gamma.astype(np.float64))
    mean = np.where(lost, 0.0, (inputs.mean - shift) / divisor)
    across = np.outer(shift, inputs.mean)
    moment = inputs.moment - across - across.T + np.outer(shift, shift)
    moment = moment / np.outer(divisor, divisor)
    moment[lost] = moment[:, lost] = 0
    moment[lost, lost] = 1
    return Inputs(moment, mean, np.sqrt(np.maximum(np.diag(moment), 0)))


def rotated(
    source: Checkpoint | Patched, model: Model | None, seed: int, listener: Listener
) -> Rotated:
    """A model in the basis that a seed tells; the listener hears what part of it is not turned.

    ``model``: its network, where that is known; else names and shapes tell it.
    Raises MismatchError: a file that is rotated already, a network of which no part can be; tied
    tensors. CheckpointError: nothing tells the network.
    """
    theta = source.theta if isinstance(source, Patched) else source
    if theta.card.rotation:
        raise MismatchError(
            f"{theta.path}: is rotated already", hint="Once is enough: a second time gains nothing."
        )
    with located(theta.path):
        shapes = {name: entry.shape for name, entry in theta.items() if entry.floating}
        basis = _basis(shapes, model, seed)
        tied = {*theta.aliases, *theta.aliases.values()} & basis.changes.keys()
        if tied:
            raise MismatchError(f"{min(tied)}: is tied to another tensor, which would change too")
    for reason in basis.kept:
        listener.note(f"{theta.path}: {reason}")
    if any(theta[name].dtype in ("F16", "BF16") for name in basis.changes):
        listener.note(f"{theta.path}: its half-precision numbers are rounded anew")
    return Rotated(source, basis)


def _basis(shapes: Mapping[str, tuple[int, ...]], model: Model | None, seed: int) -> Basis:
    """The basis of a network of any library's."""
    args = model.model_args if model else {}
    if model and model.library is not Library.TIMM:
        return basis_of_transformers(shapes, args, seed)
    return basis_of(shapes, _heads(shapes, model), args.get("global_pool"), seed)


def _heads(shapes: Mapping[str, tuple[int, ...]], model: Model | None) -> int | Sequence[int]:
    """Numbers of attention heads of a network of blocks x + f(norm(x)), or those of each stage.

    Raises MismatchError: a network of another kind; CheckpointError: nothing tells it.
    """
    name, args = (model.architecture, model.model_args) if model else (_recognised(shapes), {})
    known = heads_of(name)
    if known is None or any(args.get(word) for word in _OTHERWISE):
        raise MismatchError(
            f"{name} cannot be rotated: its blocks are not x + f(norm(x)), or not known here",
            hint="ViT, DeiT, BEiT, EVA, CaiT and Swin can be.",
        )
    heads: int | Sequence[int] = args.get("num_heads", known)
    counts = heads if isinstance(heads, list) else [heads]
    if not counts or not all(type(count) is int and count > 0 for count in counts):
        raise MismatchError(f"num_heads {heads!r} on its card is no number of attention heads")
    return heads


def _recognised(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A network of timm's that has these tensors; all that have them have as many heads."""
    names = [group[0] for group in recognise(shapes)]
    if not names or any(heads_of(name) != heads_of(names[0]) for name in names):
        raise CheckpointError("does not say its architecture", hint=DOOR)
    return names[0]
