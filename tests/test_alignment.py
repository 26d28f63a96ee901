"""Cosines between vectors: of everything as one long vector, and row by row."""

from __future__ import annotations

import numpy as np
import pytest

from qvec_cli.transfer.transfer import Cosines

RNG = np.random.default_rng(0)
VECTORS = [
    [RNG.standard_normal(shape).astype(np.float32) for shape in ((5, 8), (3, 2))] for _ in range(3)
]


def measured(vectors: list[list[np.ndarray]]) -> Cosines:
    alignment = Cosines(len(vectors))
    for matrices in zip(*vectors, strict=True):
        alignment.add(matrices)
    return alignment


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


@pytest.mark.parametrize(("i", "j"), [(0, 1), (0, 2), (1, 2), (1, 1)])
def test_the_whole_cosine_is_that_of_the_concatenated_weights(i: int, j: int) -> None:
    flat = [np.concatenate([m.ravel() for m in vector]).astype(np.float64) for vector in VECTORS]
    assert measured(VECTORS).whole[i, j] == pytest.approx(cosine(flat[i], flat[j]))


@pytest.mark.parametrize(("i", "j"), [(0, 1), (0, 2), (1, 2), (1, 1)])
def test_the_row_cosine_counts_every_row_once(i: int, j: int) -> None:
    rows = [[row.astype(np.float64) for m in vector for row in m] for vector in VECTORS]
    expected = np.mean([cosine(a, b) for a, b in zip(rows[i], rows[j], strict=True)])
    assert measured(VECTORS).by_row[i, j] == pytest.approx(expected)


def test_stretching_a_vector_changes_no_cosine() -> None:
    stretched = [[7 * m for m in VECTORS[0]], *VECTORS[1:]]
    for ours, theirs in ((measured(VECTORS), measured(stretched)),):
        assert np.allclose(ours.whole, theirs.whole)
        assert np.allclose(ours.by_row, theirs.by_row)


def test_rows_of_zeros_are_left_out_and_a_zero_vector_points_nowhere() -> None:
    first = np.array([[1, 0], [0, 0]], np.float32)
    second = np.array([[1, 0], [3, 4]], np.float32)
    found = measured([[first], [second], [np.zeros((2, 2), np.float32)]])
    assert found.by_row[0, 1] == 1
    assert not found.whole[2].any()
    assert not found.by_row[2].any()
