"""rho and its application: identities to the bit, the same in numpy and in torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvec_cli.vector.arithmetic import apply, difference

RNG = np.random.default_rng(0)
LAMBDAS = (-2.0, -0.15, 0.1, 0.15, 0.75, 1.0, 1.05, 1.5, 1 / 3, 1e-12, 1e6)
FLOATS = st.floats(-(2.0**60), 2.0**60, width=32)


def _twins(size=10_000, step=0.01):
    """A donor and its twin: a fine-tuning step of a hundredth of the weights."""
    theta = (RNG.normal(size=size) * np.exp(RNG.normal(size=size))).astype(np.float32)
    return theta, (theta * (1 + step * RNG.normal(size=size))).astype(np.float32)


def _bits(array):
    return np.asarray(array).view(np.uint32)


@pytest.mark.parametrize("lam", [0, 0.0, -0.0])
def test_no_displacement_is_the_receiver_bit_for_bit(lam):
    theta = np.float32([0.0, -0.0, 1e-45, 1.0, 3e38, -1e-30])
    rho = np.float32([1, -1, np.inf, np.nan, 3e38, 0])
    np.testing.assert_array_equal(_bits(apply(theta, rho, lam)), _bits(theta))
    shown = apply(torch.from_numpy(theta), torch.from_numpy(rho), lam)
    np.testing.assert_array_equal(_bits(shown), _bits(theta))


def test_the_donor_plus_its_own_vector_is_its_twin_bit_for_bit():
    theta, twin = _twins()
    near = (np.abs(twin) <= 2 * np.abs(theta)) & (np.abs(theta) <= 2 * np.abs(twin))
    assert near.mean() > 0.99  # there the difference is exact (Sterbenz)
    restored = apply(theta, difference(twin, theta), 1)
    np.testing.assert_array_equal(_bits(restored)[near], _bits(twin)[near])


@settings(database=None, derandomize=True)
@given(FLOATS, FLOATS)
def test_any_twin_is_restored_to_an_ulp_of_the_largest_number_involved(theta, twin):
    theta, twin = np.float32([theta]), np.float32([twin])
    rho = difference(twin, theta)
    largest = np.float32(max(abs(theta[0]), abs(twin[0]), abs(rho[0])))
    assert abs(apply(theta, rho, 1)[0].astype(float) - twin[0]) <= np.spacing(largest)


@pytest.mark.parametrize("lam", LAMBDAS)
def test_numpy_and_torch_give_the_same_bits(lam):
    theta, twin = _twins()
    rho = difference(twin, theta)
    their_rho = difference(torch.from_numpy(twin), torch.from_numpy(theta))
    np.testing.assert_array_equal(_bits(rho), _bits(their_rho))
    ours, theirs = apply(theta, rho, lam), apply(torch.from_numpy(theta), their_rho, lam)
    assert (ours.dtype, theirs.dtype) == (np.float32, torch.float32)
    np.testing.assert_array_equal(_bits(ours), _bits(theirs))


@pytest.mark.parametrize("lam", LAMBDAS)
def test_product_and_sum_are_two_roundings_to_float32(lam):
    theta, twin = _twins(2000)
    rho = difference(twin, theta)
    product = (float(np.float32(lam)) * rho.astype(np.float64)).astype(np.float32)
    total = (theta.astype(np.float64) + product.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(_bits(apply(theta, rho, lam)), _bits(total))


def test_a_twin_minus_itself_is_zero():
    theta, _ = _twins()
    assert not difference(theta, theta).any()


def test_swapping_donor_and_twin_turns_the_vector_round():
    theta, twin = _twins()
    np.testing.assert_array_equal(difference(twin, theta), -difference(theta, twin))


def test_inputs_stay_as_they_are():
    theta, twin = _twins(100)
    kept = theta.copy(), twin.copy()
    apply(theta, difference(twin, theta), 0.75)
    np.testing.assert_array_equal((theta, twin), kept)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 4)])
def test_any_shape_goes_through(shape):
    theta, rho = np.ones(shape, np.float32), np.full(shape, 0.5, np.float32)
    np.testing.assert_array_equal(apply(theta, rho, 2.0), np.full(shape, 2, np.float32))
    assert difference(theta, rho).shape == shape
