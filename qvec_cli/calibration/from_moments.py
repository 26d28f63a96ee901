"""Quantizes on moments from a file: a layer at a time, each as if those before it were float."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qvec_cli.calibration.moments_file import Carried, check_fit, require_same_base, use_of
from qvec_cli.calibration.sequential import Calibrated
from qvec_cli.checkpoint.card import Kind
from qvec_cli.checkpoint.dtypes import Array, from_float32, to_float32
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import MismatchError, NotFiniteError, SpecError
from qvec_cli.inputs.files import opened
from qvec_cli.outputs.metrics import Input
from qvec_cli.quant.methods import QUANTIZERS
from qvec_cli.quant.moments import Inputs
from qvec_cli.quant.qtensor import QTensor, sqnr_db
from qvec_cli.specs import Grid, Listener, Method, Use


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments to calibrate with, as the user names them."""

    path: Path  # a file of moments, or a vector that carries some
    bias_correction: bool = False  # whether biases make good the mean error of each output


@dataclass(frozen=True, slots=True)
class MomentsRun:
    """What is made of the weights."""

    targets: tuple[str, ...]
    grid: Grid
    method: Method
    fake: bool  # float weights on the grid, no codes

    def quantized(self, weight: Array, inputs: Inputs) -> QTensor:
        """One weight by its method, which may have no use for the inputs."""
        quantizer = QUANTIZERS[self.method]
        seen = (inputs,) if quantizer.calibrated else ()
        return quantizer.run(weight, self.grid, *seen)


def check_method(method: Method, wanted: Moments) -> None:
    """Refuses a method that has no use for moments, or needs more.

    Raises:
        SpecError: either.
    """
    if QUANTIZERS[method].factors is not None:
        raise SpecError(
            f"--method {method} needs images: its factors go into LayerNorms, and which of them "
            "feed a layer only the network tells, not --moments",
            hint="--method gptq takes moments.",
        )
    if not (QUANTIZERS[method].calibrated or wanted.bias_correction):
        raise SpecError(
            f"--moments is of no use to --method {method}",
            hint="It goes with --method gptq, or with --bias-correction.",
        )


class OneShot:
    """A float file and the moments that its layers are quantized on.

    Args:
        theta: the float file.
        carrier: the file that carries the moments, open.
        wanted: what the user asks for.
        listener: hears what cannot be checked.

    Raises:
        CheckpointError, MismatchError: moments that are missing, or of another base.
    """

    def __init__(
        self, theta: Checkpoint, carrier: Checkpoint, wanted: Moments, listener: Listener
    ) -> None:
        if carrier.kind not in (Kind.MOMENTS, Kind.VECTOR):
            raise MismatchError(
                f"{carrier.path}: is a {carrier.kind}, a file of moments belongs here",
                hint="qvec moments makes one; a vector from extract --moments carries some too.",
            )
        self._theta, self._wanted, self._carried = theta, wanted, Carried(carrier)
        require_same_base(theta, self._carried, listener)
        self.use: Use = use_of(theta, self._carried.facts)
        self.parent = carrier

    @property
    def input(self) -> Input:
        """The file as metrics list it."""
        return Input.of(self.parent)

    def facts(self) -> dict[str, Any]:
        """As cards and metrics name them."""
        correction = self._wanted.bias_correction
        return {**self._carried.facts.in_words(), "bias_correction": correction}

    def check(self, targets: Collection[str], listener: Listener) -> None:
        """Refuses targets whose moments are missing; says which have no bias to correct.

        Raises:
            MismatchError: names the target.
        """
        check_fit(self._carried, {name: self._theta[name].shape for name in targets})
        unbiased = len(targets) - len(self._biases(targets))
        if unbiased and self._wanted.bias_correction:
            listener.note(f"{unbiased} of {len(targets)} layers have no bias to correct")

    def tensors(self, run: MomentsRun, made: Calibrated) -> Iterator[tuple[str, Iterable[Array]]]:
        """Every tensor of the quantized file, one layer in memory at a time.

        A bias that is corrected comes after its weight.

        Raises:
            NotFiniteError: a corrected bias beyond the file's number format.
        """
        theta = self._theta
        biases = self._biases(run.targets) if self._wanted.bias_correction else {}
        chosen, late = set(run.targets), {*biases.values()}
        for name in theta:
            if name in late:
                continue
            if name not in chosen:
                yield name, theta.checked(name)
                continue
            weight, inputs = theta.finite(name), self._carried.inputs(name)
            quantized = run.quantized(weight, inputs)
            shown = quantized.weight()
            made.ratios[name] = sqnr_db(weight, shown)
            stored = {name: shown} if run.fake else quantized.to_named(name)
            for part, array in stored.items():
                yield part, [array.reshape(-1)]
            if bias := biases.get(name):
                made.floats[bias] = self._corrected(bias, (shown - weight) @ inputs.mean)
                yield bias, [from_float32(made.floats[bias], theta[bias].dtype)]
        theta.settle()
        self.parent.settle()

    def complete(self, run: MomentsRun, made: Calibrated) -> None:
        """The same in memory, every layer at once, for what follows."""
        biases = self._biases(run.targets) if self._wanted.bias_correction else {}
        for name in run.targets:
            weight, inputs = self._theta.finite(name), self._carried.inputs(name)
            made.weights[name] = run.quantized(weight, inputs)
            shown = made.weights[name].weight()
            made.ratios[name] = sqnr_db(weight, shown)
            if bias := biases.get(name):
                made.floats[bias] = self._corrected(bias, (shown - weight) @ inputs.mean)
        self.parent.settle()

    def _biases(self, targets: Iterable[str]) -> dict[str, str]:
        """The biases that the file has beside its targets, by the name of the weight."""
        named = {name: name.removesuffix("weight") + "bias" for name in targets}
        return {name: bias for name, bias in named.items() if bias in self._theta}

    def _corrected(self, name: str, mean_error: Array) -> Array:
        """Nagel et al. 2019, arXiv:1906.04721: the output keeps its mean on the moments' images."""
        dtype = self._theta[name].dtype
        values = (self._theta.finite(name) - mean_error).astype(np.float32)
        held = to_float32(from_float32(values, dtype), dtype)
        if not np.isfinite(held).all():
            raise NotFiniteError(f"{self._theta.path}: {name}: overflows {dtype} in calibration")
        return held


def carrier_of(
    wanted: Moments | None, listener: Listener
) -> AbstractContextManager[Checkpoint | None]:
    """The file that carries the moments, open; to be used as a context."""
    return opened(wanted.path, listener) if wanted else nullcontext()
