"""The norm of a stream, against a sum without rounding."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest

from qvec_cli.vector.arithmetic import Norm

RNG = np.random.default_rng(0)


def _norm(*blocks):
    norm = Norm()
    for block in blocks:
        norm.add(block)
    return norm.value


@pytest.mark.parametrize("size", [1, 7, 1000, 300_000])
@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e6])
def test_the_norm_is_the_root_of_the_sum_of_squares(size, unit):
    values = (RNG.normal(size=size) * unit).astype(np.float32)
    exact = math.sqrt(math.fsum(v * v for v in values.tolist()))
    assert _norm(values) == pytest.approx(exact, rel=1e-5, abs=0)


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_squares_that_float32_cannot_hold_are_no_obstacle(unit):
    values = np.full(100, unit, np.float32)
    assert _norm(values) == pytest.approx(10 * unit, rel=1e-5, abs=0)


def test_nothing_has_no_length():
    assert Norm().value == 0
    assert _norm(np.empty(0, np.float32), np.empty((0, 3), np.float32)) == 0


@pytest.mark.parametrize("cut", [1, 13, 512, 4096])
def test_blocks_add_up_however_they_are_cut(cut):
    values = RNG.normal(size=4096).astype(np.float32)
    blocks = (values[start : start + cut] for start in range(0, values.size, cut))
    assert _norm(*blocks) == pytest.approx(_norm(values), rel=1e-6, abs=0)


def test_a_block_may_have_any_shape():
    values = RNG.normal(size=(4, 6, 8)).astype(np.float32)
    assert _norm(values) == _norm(values.reshape(-1))
    assert _norm(values[:, ::2]) == pytest.approx(np.linalg.norm(values[:, ::2]), rel=1e-6, abs=0)


def test_a_block_stays_as_it_is():
    values = RNG.normal(size=100).astype(np.float32)
    kept = values.copy()
    _norm(values)
    np.testing.assert_array_equal(values, kept)


THREADS = """
import numpy as np
from qvec_cli.vector.arithmetic import Norm
norm = Norm()
norm.add(np.random.default_rng(0).normal(size=1 << 20).astype(np.float32))
print(norm.value.hex())
"""


def test_the_norm_is_the_same_for_any_number_of_threads():
    def run(threads):
        counts = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), str(threads))
        return subprocess.check_output(
            [sys.executable, "-c", THREADS], env={**os.environ, **counts}
        )

    assert run(1) == run(2)
