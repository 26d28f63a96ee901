"""The list of faults is whole: each has a test that exists, or a reason why it has none."""

from __future__ import annotations

import ast
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROWS: dict[str, dict[str, Any]] = tomllib.loads((HERE / "faults.toml").read_text(encoding="utf-8"))


@cache
def found_in(file: str) -> frozenset[str]:
    body = ast.parse((HERE / f"{file}.py").read_text(encoding="utf-8")).body
    return frozenset(node.name for node in body if isinstance(node, ast.FunctionDef))


def test_no_row_is_missing() -> None:
    assert list(ROWS) == [str(number) for number in range(1, 146)]


@pytest.mark.parametrize("number", ROWS)
def test_a_fault_has_a_test_or_a_reason(number: str) -> None:
    row = ROWS[number]
    assert row.keys() in ({"case", "tests"}, {"case", "left"})
    assert 5 < len(row["case"]) < 60
    if "left" in row:
        assert len(row["left"].split()) > 5
        return
    assert row["tests"]
    for test in row["tests"]:
        file, name = test.split("::")
        assert name in found_in(file), test


def test_few_faults_are_left() -> None:
    assert sum("left" in row for row in ROWS.values()) <= 3
