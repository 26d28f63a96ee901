"""The table of quantizers: a method is its file, its row here and its word in specs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from qvec_cli.quant.awq import awq, factors, is_spared
from qvec_cli.quant.gptq import gptq
from qvec_cli.quant.qtensor import QTensor
from qvec_cli.quant.rtn import rtn
from qvec_cli.specs import Method, Scale

Array = np.ndarray[Any, np.dtype[Any]]


class Quantizer(NamedTuple):
    """One way to choose codes."""

    run: Callable[..., QTensor]  # of a weight [out, in] and its grid; calibrated ones see Inputs
    summary: str
    scale: Scale | None = None  # the rule of scales that the method is; None: as the user says
    calibrated: bool = False
    factors: Callable[..., Array] | None = None  # what a LayerNorm may divide inputs by before
    spares: Callable[[str], bool] = lambda name: False  # layers that it only rounds, by name
    aims: bool = False  # whether it can be given another weight to approach: see aim.py


QUANTIZERS: Final = {
    Method.RTN: Quantizer(rtn, "round to nearest"),
    Method.MSE: Quantizer(rtn, "round to nearest on scales of least error", Scale.MSE),
    Method.HQQ: Quantizer(rtn, "round to nearest on half-quadratic scales", Scale.HQQ),
    Method.GPTQ: Quantizer(gptq, "column by column, arXiv:2210.17323", calibrated=True, aims=True),
    Method.AWQ: Quantizer(
        awq,
        "large inputs made smaller, arXiv:2306.00978",
        calibrated=True,
        factors=factors,
        spares=is_spared,
    ),
}
