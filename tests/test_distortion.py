"""The signal-to-noise ratio, against a sum in exact fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest

from qvec_cli.quant.qtensor import sqnr_db
from qvec_cli.quant.scales import fake_quantize
from qvec_cli.specs import Grid

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(8, 24)).astype(np.float32)


def _reference(weight, quantized):
    pairs = list(zip(weight.reshape(-1).tolist(), quantized.reshape(-1).tolist(), strict=True))
    signal = sum(Fraction(w) ** 2 for w, _ in pairs)
    noise = sum((Fraction(w) - Fraction(q)) ** 2 for w, q in pairs)
    return 10 * math.log10(signal / noise)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("size", [1.0, 1e-15, 1e15])
def test_the_ratio_is_that_of_exact_arithmetic(bits, size):
    weight = WEIGHT * np.float32(size)
    quantized = fake_quantize(WEIGHT, Grid(bits)) * np.float32(size)
    assert sqnr_db(weight, quantized) == pytest.approx(_reference(weight, quantized), abs=1e-4)


@pytest.mark.parametrize("bits", range(2, 8))
def test_another_bit_buys_about_six_decibels(bits):
    gain = sqnr_db(WEIGHT, fake_quantize(WEIGHT, Grid(bits + 1))) - sqnr_db(
        WEIGHT, fake_quantize(WEIGHT, Grid(bits))
    )
    assert 4 < gain < 10


def test_twice_the_noise_is_six_decibels_less():
    noise = WEIGHT / 8
    near, far = sqnr_db(WEIGHT, WEIGHT + noise), sqnr_db(WEIGHT, WEIGHT + 2 * noise)
    assert near - far == pytest.approx(20 * math.log10(2), abs=1e-4)


@pytest.mark.parametrize(
    ("weight", "quantized"),
    [
        (WEIGHT, WEIGHT),
        (np.zeros_like(WEIGHT), WEIGHT),
        (np.zeros_like(WEIGHT), np.zeros_like(WEIGHT)),
        (np.empty((0, 4), np.float32), np.empty((0, 4), np.float32)),
    ],
    ids=["no noise", "no signal", "neither", "nothing"],
)
def test_a_ratio_that_is_not_finite_is_none(weight, quantized):
    assert sqnr_db(weight, quantized) is None


def test_weights_as_large_as_float32_holds_have_a_ratio():
    weight = WEIGHT * np.float32(1e37)
    assert sqnr_db(weight, weight / 2) == pytest.approx(20 * math.log10(2), abs=1e-4)
