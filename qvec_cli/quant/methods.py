"""The table of quantizers, and the one place where a weight goes through its quantizer.

A method is its file, its row here and its word in specs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from qvec_cli.errors import MismatchError, located
from qvec_cli.quant.awq import awq, factors, is_unclipped
from qvec_cli.quant.gptq import aim, gptq
from qvec_cli.quant.moments import Inputs
from qvec_cli.quant.qtensor import QTensor, sqnr_db
from qvec_cli.quant.scales import rtn
from qvec_cli.specs import Grid, Method

Array = np.ndarray[Any, np.dtype[Any]]


class Quantizer(NamedTuple):
    """One way to choose codes."""

    run: Callable[..., QTensor]  # of a weight [out, in] and a grid; with Inputs where calibrated
    summary: str
    calibrated: bool = False
    factors: Callable[..., Array] | None = None  # by what a LayerNorm may divide the inputs before
    only_rounds: Callable[[str], bool] = lambda name: False  # layers that it leaves to rtn
    aim: Callable[..., tuple[Array, Inputs]] | None = None  # the weight for a float target


QUANTIZERS: Final = {
    Method.RTN: Quantizer(rtn, "round to nearest"),
    Method.GPTQ: Quantizer(gptq, "column by column, arXiv:2210.17323", calibrated=True, aim=aim),
    Method.AWQ: Quantizer(
        awq,
        "large inputs made smaller, arXiv:2306.00978",
        calibrated=True,
        factors=factors,
        only_rounds=is_unclipped,
    ),
}


class FloatTarget(NamedTuple):
    """The float layer whose outputs a quantized one is to give, see ``gptq.aim``."""

    weight: Array  # [out, in], float32
    bias_change: Array | None  # [out], its bias less that of the quantized layer


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight [out, in] on its grid, beside the float weight that it was."""

    original: Array  # float32
    codes: QTensor
    restored: Array  # what the codes stand for, float32

    @property
    def sqnr_db(self) -> float | None:
        """Signal-to-quantization-noise ratio in decibels; None where it is not finite."""
        return sqnr_db(self.original, self.restored)


def quantize_weight(
    name: str,
    weight: Array,
    grid: Grid,
    method: Method,
    inputs: Inputs | None = None,
    target: FloatTarget | None = None,
) -> QuantizedWeight:
    """Puts the weight [out, in], float32, that the state dict has under ``name`` on a grid.

    Its own width, if ``grid`` states one for it. A calibrated method needs ``inputs``; ``target``
    is what the layer is to give in place of its own outputs.
    Raises MismatchError: scales beyond what float16 holds, weights that overflow when rounded.
    """
    quantizer, aimed, grid = QUANTIZERS[method], weight, grid.of(name)
    if target is not None:
        assert quantizer.aim is not None
        aimed, inputs = quantizer.aim(target.weight, weight, inputs, target.bias_change)
    with located(name), np.errstate(over="ignore", invalid="ignore"):
        if quantizer.only_rounds(name):
            codes = rtn(aimed, grid)
        else:
            codes = quantizer.run(aimed, grid, *([inputs] if quantizer.calibrated else []))
        restored = codes.weight()
        if not np.isfinite(restored).all():
            raise MismatchError("rounded, it overflows float32", hint="--targets can leave it out.")
    return QuantizedWeight(weight, codes, restored)
