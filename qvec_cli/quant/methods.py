"""The table of quantizers: a method is its file, its row here and its word in specs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from qvec_cli.quant.qtensor import QTensor
from qvec_cli.quant.rtn import rtn
from qvec_cli.specs import Grid, Method, Scale


class Quantizer(NamedTuple):
    """One way to choose codes."""

    run: Callable[[np.ndarray[Any, np.dtype[Any]], Grid], QTensor]
    summary: str
    scale: Scale | None = None  # the rule of scales that the method is; None: as the user says


QUANTIZERS: Final = {
    Method.RTN: Quantizer(rtn, "round to nearest"),
    Method.MSE: Quantizer(rtn, "round to nearest on scales of least error", Scale.MSE),
    Method.HQQ: Quantizer(rtn, "round to nearest on half-quadratic scales", Scale.HQQ),
}
