"""The inputs of a model's layers as a file of moments has them, in place of calibration images."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvec_cli.calibration.moments_file import StoredMoments, check_fit, require_same_base, use_of
from qvec_cli.checkpoint.card import Kind
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import MismatchError
from qvec_cli.quant.moments import Inputs
from qvec_cli.specs import Listener, Use


@dataclass(frozen=True, slots=True)
class MomentsOptions:
    """Moments to calibrate with, as the user names them."""

    path: Path  # a file of moments, or a vector that carries some
    bias_correction: bool = False  # whether biases make good the mean error of each output


class LayerMoments:
    """The moments of every target's inputs, from an open file.

    Args:
        theta: the float model that is quantized.
        carrier: the file that carries the moments, open.
        options: what the user asks for.
        listener: hears what cannot be checked.

    Raises:
        CheckpointError, MismatchError: moments that are missing, or of another base.
    """

    def __init__(
        self, theta: Checkpoint, carrier: Checkpoint, options: MomentsOptions, listener: Listener
    ) -> None:
        if carrier.kind not in (Kind.MOMENTS, Kind.VECTOR):
            raise MismatchError(
                f"{carrier.path}: is a {carrier.kind}, a file of moments belongs here",
                hint="qvec moments makes one; a vector from extract --moments carries some too.",
            )
        self._theta, self._stored = theta, StoredMoments(carrier)
        self._correction = options.bias_correction
        require_same_base(theta, self._stored, listener)
        self.use: Use = use_of(theta, self._stored.facts)
        self.carrier = carrier

    def inputs(self, name: str) -> Inputs:
        """What a weight is multiplied with."""
        return self._stored.inputs(name)

    def bias(self, weight: str) -> str | None:
        """The bias that is to be corrected for a weight; None without one, or where none is."""
        name = weight.removesuffix("weight") + "bias"
        return name if self._correction and name in self._theta else None

    def facts(self) -> dict[str, Any]:
        """As cards and metrics name them."""
        return {**self._stored.facts.in_words(), "bias_correction": self._correction}

    def check(self, targets: Collection[str], listener: Listener) -> None:
        """Refuses targets whose moments are missing; says which have no bias to correct.

        Raises:
            MismatchError: names the target.
        """
        check_fit(self._stored, {name: self._theta[name].shape for name in targets})
        unbiased = sum(self.bias(name) is None for name in targets)
        if unbiased and self._correction:
            listener.note(f"{unbiased} of {len(targets)} layers have no bias to correct")
