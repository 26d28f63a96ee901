"""The weight that a layer behind quantized ones needs to give the float network's outputs.

With x the layer's inputs behind quantized layers, y those in the float network and t = W_R y + s
the outputs that are wanted, W* = argmin mean |W x - t|^2 + mu d |W - W_pull|^2, d being the mean
of x_i^2. Calibration that lets a layer make good what was lost before it is that of GPTAQ,
arXiv:2504.02692, which corrects the steps of GPTQ; here the least-squares problem is solved first,
with a pull to a weight as in E-PMQ, arXiv:2605.16882, and GPTQ then rounds its solution.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np

from qvec_cli.quant.moments import Inputs

Array = np.ndarray[Any, np.dtype[Any]]


PULL: Final = 0.1
"""mu: how strongly the weight is held, in units of the mean diagonal of the moment."""


def aim(
    receiver: Array, pull: Array, inputs: Inputs, shift: Array | None = None
) -> tuple[Array, Inputs]:
    """W*, and the inputs under whose moment an error of it costs what it does in the problem.

    Args:
        receiver: [out, in], W_R, float32.
        pull: [out, in], float32, what is returned where the inputs are zero.
        inputs: with ``cross``.
        shift: [out], s, the bias of the float layer less that of the quantized one; None: zero.

    Returns:
        W* [out, in], float32, and ``inputs`` with the moment E[x x^T] + mu d I. Where x = y, s = 0
        and ``pull`` is W_R, W* is W_R but for rounding.
    """
    assert inputs.cross is not None
    held = PULL * float(np.diag(inputs.moment).mean())
    if held <= 0:
        return pull, inputs
    moment = inputs.moment + held * np.eye(len(inputs.moment))
    wanted = receiver.astype(np.float64) @ inputs.cross + held * pull.astype(np.float64)
    if shift is not None:
        wanted += np.outer(shift, inputs.mean)
    found = np.linalg.solve(moment, wanted.T).T
    return found.astype(np.float32), replace(inputs, moment=moment)
