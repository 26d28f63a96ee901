"""Covers of products: every pair of values meets in some case, where a product has every triple."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest

Cases = list[tuple[Any, ...]]


def pairwise(first: Sequence[Any], second: Sequence[Any], third: Sequence[Any]) -> Cases:
    """Every pair of the first two axes; the third, which is no longer than they are, goes round."""
    assert len(third) <= min(len(first), len(second))
    return [
        (a, b, third[(i + j) % len(third)])
        for i, a in enumerate(first)
        for j, b in enumerate(second)
    ]


def covered(first: Sequence[Any], second: Sequence[Any], third: Sequence[Any]) -> Any:
    """Gives a test ``cases``: a pairwise cover of three axes, and the whole product if slow."""
    cover, whole = pairwise(first, second, third), [*product(first, second, third)]
    slow = pytest.param(whole, id="every triple", marks=pytest.mark.slow)
    return pytest.mark.parametrize("cases", [pytest.param(cover, id="every pair"), slow])
