"""GPTQ: column by column, what rounding has cost is made good by the columns still to come.

Frantar et al. 2023, arXiv:2210.17323, with the paper's settings: damping of 1 % of the mean
diagonal, columns in their order, scales fixed beforehand from the weights (static groups), columns
without input set to zero. Differences from the official code: the diagonal's mean is that of the
columns with input, because ones put in for the others would drown small inputs; on a grid that
searches its scale (``mse``, ``mse-full``) every row tries a dozen and keeps the one of least output
error, because a scale that is best for rounding can be worse than rounding for GPTQ; the lowest
code is always in use; blocks of 32 columns, which do not change the result but for the last bits.

``aim`` is for layers behind quantized ones: the weight that GPTQ then rounds is the one that would
give the float network's outputs (``--target float``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np

from qvec_cli.quant.affine import QParams, block_shape, dequantize, quantize
from qvec_cli.quant.moments import Inputs
from qvec_cli.quant.qtensor import QTensor, of_blocks
from qvec_cli.quant.scales import candidates, choose_qparams, rtn
from qvec_cli.specs import Granularity, Grid, Scale

Array = np.ndarray[Any, np.dtype[Any]]

DAMPING: Final = 0.01
"""Share of the mean diagonal that is added to it; ten times as much where that does not do."""

TRIED: Final = 12
"""Scales that a row tries: those of least error when each column stands alone."""

PULL: Final = 0.1
"""mu of ``aim``: how strongly its weight is held, in units of the mean diagonal of the moment."""

_SMALL: Final = 64
"""Rows of a matrix whose root is inverted at once, not by halves."""

_COLUMNS: Final = 32
"""Columns of a block: what it costs the columns after it is subtracted once a block."""

_RESIDENT: Final = 1 << 23
"""Weights in flight at once, every scale that is tried counted."""


def gptq(weight: Array, grid: Grid, inputs: Inputs) -> QTensor:
    """Quantizes a weight [out, in], float32, for least output error on the inputs.

    Where the moment stays singular after ten thousand times the damping, rounds to nearest.
    """
    moment, weight = inputs.moment, weight.astype(np.float32)
    dead = np.diag(moment) <= 0
    if dead.any():
        moment = moment.copy()
        moment[dead, dead] = 1 if dead.all() else np.diag(moment)[~dead].mean()
        weight[:, dead] = 0
    factor = _factor(moment)
    if factor is None:
        return rtn(weight, grid)
    codes, params = _rows(weight, grid, np.diag(moment), factor)
    return of_blocks(codes, params, weight.shape, grid)


def aim(
    receiver: Array, pull: Array, inputs: Inputs, bias_change: Array | None = None
) -> tuple[Array, Inputs]:
    """The weight with which a layer behind quantized ones gives the float network's outputs.

    With x the layer's inputs behind quantized layers, y those in the float network and t = W_R y +
    s + m the outputs to give, it is W* = argmin mean |W x - t|^2 + mu d |W - W_pull|^2, d
    being the mean of x_i^2. Where the outputs are added to a residual stream, m is what the stream
    before lacks of the float network's (LoaQ, arXiv:2509.06297), else 0: earlier layers' errors,
    which no least-squares problem of their own could undo. Calibration that lets a layer make good
    what was lost before it is that of GPTAQ, arXiv:2504.02692, which corrects the steps of GPTQ;
    here the least-squares problem is solved first, with a pull to a weight as in E-PMQ,
    arXiv:2605.16882.

    Takes W_R and W_pull, float32 [out, in], ``inputs`` with ``cross`` and, where there is an m,
    ``missing``, and s [out], the bias of the float layer less that of the quantized one, None for
    0. Returns W* [out, in], float32, and ``inputs`` with the moment E[x x^T] + mu d I, under which
    an error of W* costs what it does in the problem. Where x = y, s = 0 and ``pull`` is W_R, W* is
    W_R but for rounding; where the inputs are zero, W* is ``pull``.
    """
    assert inputs.cross is not None
    ridge = PULL * float(np.diag(inputs.moment).mean())
    if ridge <= 0:
        return pull, inputs
    moment = inputs.moment + ridge * np.eye(len(inputs.moment))
    outputs = receiver.astype(np.float64) @ inputs.cross + ridge * pull.astype(np.float64)
    if bias_change is not None:
        outputs += np.outer(bias_change, inputs.mean)
    if inputs.missing is not None:
        outputs += inputs.missing
    solved = np.linalg.solve(moment, outputs.T).T
    return solved.astype(np.float32), replace(inputs, moment=moment)


def _rows(weight: Array, grid: Grid, importance: Array, factor: Array) -> tuple[Array, QParams]:
    """Codes [out, in], and parameters [n_blocks, 1] of the best try; rows do not meet."""
    rows, columns = weight.shape
    tries = _tries(weight, grid, importance)
    codes = np.empty((len(tries.scale), rows, columns), np.int8)
    errors = np.empty((len(tries.scale), rows))
    step = max(1, _RESIDENT // (columns * len(tries.scale)))
    for some in (slice(start, start + step) for start in range(0, rows, step)):
        part = QParams(*(None if p is None else p[:, some] for p in tries))
        codes[:, some], errors[:, some] = _feed_back(weight[some], grid, part, factor)
    if grid.granularity is Granularity.TENSOR:
        errors[:] = errors.sum(axis=1, keepdims=True)
    best = errors.argmin(axis=0), np.arange(rows)
    n_blocks, shared = block_shape(weight.shape, grid)[0], grid.granularity is Granularity.TENSOR
    kept = (None if p is None else p[best][: 1 if shared else None] for p in tries)
    return codes[best], QParams(*(None if p is None else p.reshape(n_blocks, 1) for p in kept))


def _tries(weight: Array, grid: Grid, importance: Array) -> QParams:
    """Parameters [tries, out, groups] to try, best first by the error without feedback.

    Each block has its own order, so that the first try is each block's best.
    """
    shape = block_shape(weight.shape, grid)
    blocks, rows = weight.reshape(shape), weight.shape[0]
    if grid.scale not in {Scale.MSE, Scale.MSE_FULL}:
        only = choose_qparams(blocks, grid)
        return QParams(*(None if p is None else _by_row(p[None], rows) for p in only))
    wide, errors, searched = _every_code(grid), [], [*candidates(blocks, grid)]
    shares = np.broadcast_to(importance, weight.shape).reshape(shape)
    for params in searched:
        apart = dequantize(quantize(blocks, params, wide), params) - blocks
        errors.append((np.square(apart, dtype=np.float64) * shares).sum(axis=1, keepdims=True))
    order = np.argsort(np.stack(errors), axis=0, kind="stable")[:TRIED]
    both = zip(*searched, strict=True)
    stacks = (None if arrays[0] is None else np.stack(arrays) for arrays in both)
    ordered = (None if s is None else np.take_along_axis(s, order, axis=0) for s in stacks)
    return QParams(*(None if a is None else _by_row(a, rows) for a in ordered))


def _by_row(params: Array, rows: int) -> Array:
    """[tries, n_blocks, 1] as [tries, out, groups]; one block serves every row."""
    by_row: Array = params.reshape(len(params), -1, max(1, params.shape[1] // rows))
    return np.repeat(by_row, rows, axis=1) if by_row.shape[1] < rows else by_row


def _feed_back(weight: Array, grid: Grid, tries: QParams, factor: Array) -> tuple[Array, Array]:
    """Codes [tries, out, in] and output errors [tries, out] of some rows.

    The columns stand first in memory: a step works on one column of every row and try.
    """
    n_tries, rows, groups = tries.scale.shape
    columns, wide = weight.shape[1], _every_code(grid)
    width = columns // groups if grid.granularity is Granularity.GROUP else columns
    left = np.tile(weight.T, n_tries)  # [in, tries * out]
    codes, errors = np.empty(left.shape, np.int8), np.zeros(left.shape[1])
    flat = [None if p is None else p.reshape(-1, groups).T.copy() for p in tries]
    by_group = [QParams(*(None if p is None else p[g] for p in flat)) for g in range(groups)]
    for start in range(0, columns, _COLUMNS):
        block = left[start : start + _COLUMNS]
        steps = np.empty_like(block)
        for i, column in enumerate(block):
            j = start + i
            params = by_group[j // width]
            code = quantize(column, params, wide)
            codes[j] = code
            steps[i] = (column - dequantize(code, params)) / factor[j, j]
            block[i + 1 :] -= factor[j, j + 1 : start + len(block), None] * steps[i]
        errors += np.square(steps, dtype=np.float64).sum(axis=0)
        after = start + len(block)
        left[after:] -= factor[start:after, after:].T @ steps
    shape = (columns, n_tries, rows)
    return codes.reshape(shape).transpose(1, 2, 0), errors.reshape(n_tries, rows)


def _every_code(grid: Grid) -> Grid:
    """The same grid with its lowest code in use, which a clipped scale must not lose."""
    return replace(grid, scale=Scale.ABSMAX)


def _factor(moment: Array) -> Array | None:
    """Upper U, float32, with U^T U the inverse of the damped moment; None if it stays singular.

    With rows and columns reversed the Cholesky factor of the moment itself is upper, and U is its
    inverse: so the inverse of the moment is never formed.
    """
    damping = DAMPING * float(np.diag(moment).mean())
    for _ in range(4):
        lower = moment[::-1, ::-1].copy()
        lower[np.diag_indices(len(lower))] += damping
        try:
            _invert_root(lower)
            return lower[::-1, ::-1].astype(np.float32)
        except np.linalg.LinAlgError:
            damping *= 10
    return None


def _invert_root(square: Array) -> None:
    """Puts the inverse of its Cholesky factor in a matrix's place, by halves.

    Half of the matrix is the most that is kept beside it; numpy's Cholesky alone takes two more.
    """
    if len(square) <= _SMALL:
        square[:] = np.tril(np.linalg.inv(np.linalg.cholesky(square)))
        return
    half = len(square) // 2
    first, mixed, last = square[:half, :half], square[half:, :half], square[half:, half:]
    _invert_root(first)
    mixed[:] = mixed @ first.T
    last -= mixed @ mixed.T
    _invert_root(last)
    mixed[:] = -last @ (mixed @ first)
    square[:half, half:] = 0
