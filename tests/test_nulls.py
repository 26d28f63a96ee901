"""Null vectors: as long as the real one in every tensor, and a function of key and name alone."""

from __future__ import annotations

import numpy as np
import pytest

from qvec_cli.specs import Null
from qvec_cli.transfer.nulls import NULLS, null

RNG = np.random.default_rng(0)
SHAPES = {"qkv": (6, 4), "bias": (6,), "pos": (1, 5, 4), "conv": (3, 2, 2, 2), "one": (1,)}
RHO = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
DRIFT = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("kind", Null)
def test_a_null_has_the_names_shapes_and_norms_of_the_vector(kind: Null) -> None:
    found = null(kind, RHO, DRIFT, "0")
    assert [*found] == [*RHO]
    for name, block in found.items():
        assert block.dtype == np.float32
        assert block.shape == RHO[name].shape
        assert np.linalg.norm(block) == pytest.approx(np.linalg.norm(RHO[name]), rel=1e-6)


@pytest.mark.parametrize("kind", [Null.RANDOM, Null.SHUFFLE])
def test_a_null_hangs_on_key_and_name_and_not_on_the_order_of_the_tensors(kind: Null) -> None:
    turned = dict(reversed(RHO.items()))
    draws = ((RHO, "1"), (turned, "1"), (RHO, "2"))
    first, again, other = (null(kind, rho, None, key) for rho, key in draws)
    assert all(np.array_equal(first[name], again[name]) for name in RHO)
    assert not np.array_equal(first["qkv"], other["qkv"])


def test_shuffling_keeps_every_rows_numbers_and_moves_them() -> None:
    found = null(Null.SHUFFLE, RHO, None, "0")["qkv"]
    assert np.allclose(np.sort(found, axis=1), np.sort(RHO["qkv"], axis=1), rtol=1e-6)
    assert not np.allclose(found, RHO["qkv"])


def test_random_numbers_do_not_point_along_the_vector() -> None:
    rho = {"w": np.random.default_rng(3).standard_normal((300, 300)).astype(np.float32)}
    found = null(Null.RANDOM, rho, None, "0")["w"]
    cosine = (found * rho["w"]).sum() / np.square(rho["w"]).sum()
    assert abs(cosine) < 5 / 300


def test_a_task_vector_points_where_the_task_went() -> None:
    found = null(Null.TASKVEC, RHO, DRIFT, "0")["pos"]
    ratio = found / DRIFT["pos"]
    assert np.allclose(ratio, ratio.flat[0], rtol=1e-5)


@pytest.mark.parametrize("kind", Null)
def test_where_the_vector_is_zero_so_is_the_null(kind: Null) -> None:
    zeros = {"w": np.zeros((3, 3), np.float32)}
    found = null(kind, zeros, {"w": np.ones((3, 3), np.float32)}, "0")["w"]
    assert not found.any()


def test_where_the_task_changed_nothing_there_is_nothing_to_stretch() -> None:
    assert not null(Null.TASKVEC, RHO, {n: np.zeros_like(b) for n, b in RHO.items()}, "0")[
        "qkv"
    ].any()


def test_every_kind_has_a_row() -> None:
    assert set(NULLS) == set(Null)
