"""Rules by which a block's scale and zero point are chosen, and rounding to nearest on them.

Half-quadratic scales are those of Badri and Shaji 2023, "Half-Quadratic Quantization of Large
Machine Learning Models": minimise sum |w - q|^p with p < 1 by turns, e = shrink(w - q), then the
grid of least squares for w - e. Differences from the official code, which fits a float zero point
at a fixed scale: the scale is fitted too, zero points are whole codes as the file stores them, p is
1/2 (its powers are square roots, which round alike everywhere) rather than 0.7, every block keeps
the best grid that it has seen, and a symmetric grid tries either sign.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from array_api_compat import array_namespace

from qvec_cli.quant.affine import (
    TINY,
    QParams,
    absmax,
    asymmetric_params,
    better,
    block_shape,
    block_sums,
    dequantize,
    min_and_max,
    quantize,
    stored_scale,
    symmetric_params,
    zero_point,
)
from qvec_cli.quant.qtensor import QTensor, of_blocks
from qvec_cli.specs import Grid, Scale

Array = Any
"""A float32 array of numpy or tensor of torch."""

STEPS: Final = 16
"""Clipping points that the search for least error tries, from max|w| down to max|w| / 8."""

ROUNDS: Final = 12
"""Turns of half-quadratic scales from each start; the official code has 20, and stops early."""

BETA: Final = 10.0
"""Weight of the quadratic term in the first turn, for errors as a share of max|w|."""

KAPPA: Final = 1.01
"""Its growth from turn to turn; both are the official code's."""

_NEAR: Final = 1e-4
"""Share of the least error by which float32 cannot turn one error into another."""

_NOISE: Final = 1e-10
"""Share of the power of a block's weights that is nothing to its error."""

_IN_CACHE: Final = 1 << 18
"""Weights that a search looks at together, so that its steps find them in a cache."""

_THREADS: Final = 2
"""Searches that go on side by side."""


def choose_qparams(blocks: Array, grid: Grid) -> QParams:
    """The scale and zero point of each of the blocks [n_blocks, block_len]: float32 [n_blocks, 1].

    The scale is not zero, in weight units per code; below zero with ``mse-full`` and ``hqq`` where
    the lowest code, which has no counterpart, serves the largest weights. The zero point is a code
    of the grid, None on a symmetric one.
    """
    choose, step = SCALES[grid.scale], max(1, _IN_CACHE // blocks.shape[-1])
    if not isinstance(blocks, np.ndarray) or len(blocks) <= step:
        return choose(blocks, grid)

    def chosen(start: int) -> QParams:
        with np.errstate(over="ignore", invalid="ignore"):  # which the caller looks for
            return choose(blocks[start : start + step], grid)

    with ThreadPoolExecutor(_THREADS) as pool:  # blocks do not meet: the same bits
        scales, zeros = zip(*pool.map(chosen, range(0, len(blocks), step)), strict=True)
    return QParams(np.concatenate(scales), None if zeros[0] is None else np.concatenate(zeros))


def whole_range(blocks: Array, grid: Grid) -> QParams:
    """max|w| / quant_max, as the paper's code has it: the largest weight keeps its value.

    Others divide by (2^b - 1) / 2: at 2 bits their step is two thirds of this one. On an
    asymmetric grid the codes span the range from the least to the largest weight and zero.
    """
    if grid.symmetric:
        return symmetric_params(1.0, absmax(blocks), grid)
    return asymmetric_params(1.0, *min_and_max(blocks), grid)


def least_error(blocks: Array, grid: Grid) -> QParams:
    """The grid of least squared error among ``candidates``, cf. arXiv:1810.05723.

    Ties go to the first, which is that of the whole range unless all codes are in use.
    """
    if not isinstance(blocks, np.ndarray) or blocks.shape[-1] < STEPS * grid.quant_max:
        return _tried(blocks, grid)
    tried = _candidates_of_all(blocks, grid)
    place, sure = _by_places(blocks, tried, grid)
    best = QParams(*(None if p is None else np.take_along_axis(p, place, -1) for p in tried))
    if not sure.all():
        for params, exact in zip(best, _tried(blocks[~sure], grid), strict=True):
            if params is not None:
                params[~sure] = exact
    return best


def _tried(blocks: Array, grid: Grid) -> QParams:
    """The same by rounding to every candidate."""
    xp = array_namespace(blocks)
    largest = absmax(blocks)
    share = xp.ones_like(largest) / largest  # errors without unit: no square overflows
    best, least = None, None
    for candidate in candidates(blocks, grid):
        apart = (dequantize(quantize(blocks, candidate, grid), candidate) - blocks) * share
        error = block_sums(apart * apart)
        if best is None:
            best, least = candidate, error
        else:
            best = better(error, least, candidate, best)
            least = xp.where(error < least, error, least)
    assert best is not None
    return best


def _by_places(blocks: Array, tried: QParams, grid: Grid) -> tuple[Array, Array]:
    """Which of the parameters [n_blocks, candidates] have the least error, and whether surely.

    The error is sum_k n_k q_k^2 - 2 q_k s_k + sum w^2, where n_k weights with the sum s_k are
    nearest to q_k: places in the sorted block tell both, and no weight is rounded. Gives
    [n_blocks, 1] and bool [n_blocks], false where another is too near for float64 to tell what
    ``_tried`` would choose.
    """
    (rows, columns), largest = blocks.shape, absmax(blocks)
    scaled = np.sort(blocks / largest, axis=-1).astype(np.float64)
    sums = np.zeros((rows, columns + 1))
    np.cumsum(scaled, axis=-1, out=sums[:, 1:])
    power = np.square(scaled).sum(axis=-1, keepdims=True)
    codes = np.arange(grid.quant_min, grid.quant_max + 1.0)
    steps = codes if tried.zero_point is None else codes - tried.zero_point[..., None]
    levels = steps * (tried.scale / largest)[..., None]
    if tried.scale.min() < 0:
        levels.sort(axis=-1)
    between = ((levels[..., 1:] + levels[..., :-1]) / 2).clip(-1.5, 1.5)
    row = np.arange(rows)[:, None, None]
    scaled += 4.0 * row[..., 0]  # one sorted line, in which rows do not meet
    cuts = np.empty((*levels.shape[:-1], len(codes) + 1), np.int64)
    cuts[..., :1], cuts[..., -1:] = row * columns, (row + 1) * columns
    cuts[..., 1:-1] = np.searchsorted(scaled.ravel(), between + 4.0 * row)
    count, total = np.diff(cuts), np.diff(sums.ravel()[cuts + row])
    errors = (levels * (levels * count - 2 * total)).sum(axis=-1)
    first = errors.argmin(axis=-1)[:, None]
    least = np.take_along_axis(errors, first, axis=-1)
    near = errors <= least + _NEAR * (least + power).clip(min=0) + _NOISE * power
    return first, near.sum(axis=-1) == 1


def candidates(blocks: Array, grid: Grid) -> Iterator[QParams]:
    """A grid for every block, once for each of ``ratios``."""
    if grid.symmetric:
        largest = absmax(blocks)
        yield from (symmetric_params(ratio, largest, grid) for ratio in ratios(grid))
    else:
        ends = min_and_max(blocks)
        yield from (asymmetric_params(ratio, *ends, grid) for ratio in ratios(grid))


def _candidates_of_all(blocks: Array, grid: Grid) -> QParams:
    """The same side by side, [n_blocks, candidates]."""
    shares = np.array([*ratios(grid)])

    def beside(column: Array) -> Array:
        return np.broadcast_to(column, (len(blocks), len(shares)))

    if grid.symmetric:
        return symmetric_params(shares, beside(absmax(blocks)), grid)
    low, high = map(beside, min_and_max(blocks))
    return asymmetric_params(shares, low, high, grid)


def ratios(grid: Grid) -> Iterator[float]:
    """What quant_max stands for, as a share of max|w|; with all codes in use, of either sign.

    Weights that lie on the grid already are left alone, because their own scale is tried: their
    largest code is quant_max or, with all codes, 2^(b-1). An asymmetric grid shrinks both ends
    of its range by the ratio.
    """
    full = grid.scale is Scale.MSE_FULL
    for sign in (1, -1) if full else (1,):
        if full:
            yield sign * grid.quant_max / -grid.quant_min
        for step in range(STEPS):
            yield sign * (1 - step * 7 / (8 * (STEPS - 1)))


def half_quadratic(blocks: Array, grid: Grid) -> QParams:
    """The grid of least sum |w - q|^(1/2) that the turns come by, for every block."""
    xp = array_namespace(blocks)
    top = absmax(blocks)
    scaled = blocks / top  # without unit, because shrinking has one
    best, least = None, None
    for candidate in _turns(scaled, blocks, top, grid):
        codes = quantize(blocks, candidate, grid)
        error = block_sums(_root(xp.abs(dequantize(codes, candidate) - blocks) / top))
        if best is None:
            best, least = candidate, error
        else:
            error = xp.where(_reaches(blocks, candidate, grid), error, xp.full_like(error, xp.inf))
            best = better(error, least, candidate, best)
            least = xp.where(error < least, error, least)
    assert best is not None
    return best


def _turns(scaled: Array, blocks: Array, top: Array, grid: Grid) -> Iterator[QParams]:
    """Every grid on the way from each start."""
    for start in _starts(blocks, top, grid):
        yield start
        params, beta = start, BETA
        for _ in range(ROUNDS):
            codes = quantize(blocks, params, grid)
            apart = scaled - dequantize(codes, params) / top
            params = _fitted(codes, scaled - _shrink(apart, beta), top, params, grid)
            beta *= KAPPA
            yield params


def _starts(blocks: Array, top: Array, grid: Grid) -> Iterator[QParams]:
    """Grids that hold the whole range; weights on a grid of ours find their own among them."""
    if not grid.symmetric:
        yield asymmetric_params(1.0, *min_and_max(blocks), grid)
        return
    for sign in (1, -1):
        for ratio in (1.0, grid.quant_max / -grid.quant_min):
            yield symmetric_params(sign * ratio, top, grid)


def _shrink(apart: Array, beta: float) -> Array:
    """The part of the errors that is left as it is: sign(e) max(|e| - |e|^(-1/2) / beta, 0)."""
    xp = array_namespace(apart)
    size = xp.abs(apart)
    kept = (size - 1.0 / (beta * _root(size.clip(min=TINY)))).clip(min=0.0)
    return xp.where(apart < 0, -kept, kept)


def _root(size: Array) -> Array:
    """Square roots by way of float64, because those of torch in float32 are off by a bit."""
    xp = array_namespace(size)
    return xp.astype(xp.sqrt(xp.astype(size, xp.float64)), xp.float32)


def _fitted(codes: Array, goal: Array, top: Array, params: QParams, grid: Grid) -> QParams:
    """Least squares for goal = (codes - zero) * scale; the scale before where codes say nothing."""
    xp = array_namespace(codes)
    if params.zero_point is None:
        along, norm = block_sums(codes * goal), block_sums(codes * codes)
        scale = xp.where(norm > 0, along / norm.clip(min=1.0) * top, params.scale)
        scale = xp.where(scale == 0, params.scale, scale)
        # In this form, a scale that weights which lie on its grid restore.
        return symmetric_params(1.0, scale * grid.quant_max, grid)
    count = codes.shape[-1]
    code, mean = block_sums(codes) / count, block_sums(goal) / count
    norm = block_sums((codes - code) * (codes - code))
    along = block_sums((codes - code) * (goal - mean))
    fits = (norm > 0) & (along > 0)
    slope = xp.where(fits, along / xp.where(fits, norm, 1.0), params.scale / top)
    below = xp.where(fits, code - grid.quant_min - mean / slope, 0.0)
    zero = xp.where(fits, zero_point(below, grid), params.zero_point)
    scale = xp.where(fits, stored_scale(slope * top, grid), params.scale)
    return QParams(scale, zero)


def _reaches(blocks: Array, params: QParams, grid: Grid) -> Array:
    """Whether the range fills the codes, so that weights on this grid would find it again."""
    if params.zero_point is None:
        codes = quantize(absmax(blocks), QParams(abs(params.scale), None), grid)
        return codes >= grid.quant_max
    low, high = (quantize(end, params, grid) for end in min_and_max(blocks))
    return (low == grid.quant_min) & (high == grid.quant_max)


SCALES: Final[dict[Scale, Callable[[Array, Grid], QParams]]] = {
    Scale.ABSMAX: whole_range,
    Scale.MSE: least_error,
    Scale.MSE_FULL: least_error,
    Scale.HQQ: half_quadratic,
}


def rtn(weight: Any, grid: Grid) -> QTensor:
    """Quantizes a weight [out, in], float32, every code the nearest to its weight."""
    blocks = weight.reshape(block_shape(weight.shape, grid))
    params = choose_qparams(blocks, grid)
    return of_blocks(quantize(blocks, params, grid), params, weight.shape, grid)


def fake_quantize(weight: Any, grid: Grid) -> Any:
    """What ``rtn`` stores, as a float32 weight [out, in] of numpy or torch."""
    xp = array_namespace(weight)
    blocks = xp.reshape(weight, block_shape(tuple(weight.shape), grid))
    params = choose_qparams(blocks, grid)
    return xp.reshape(dequantize(quantize(blocks, params, grid), params), tuple(weight.shape))
