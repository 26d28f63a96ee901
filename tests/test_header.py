"""A hostile header costs less than a second and 200 MB, whatever it holds."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import opening
from hypothesis import given, settings
from hypothesis import strategies as st

from qvec_cli.checkpoint.header import MAX_HEADER, parse_header
from qvec_cli.errors import CheckpointError


def _tensors(count: int, shape: str) -> bytes:
    entry = b'"%d":{"dtype":"F32","shape":[%s],"data_offsets":[0,0]}'
    return b"{" + b",".join(entry % (i, shape.encode()) for i in range(count)) + b"}"


def _filled(start: bytes, piece: bytes, end: bytes, size: int = MAX_HEADER) -> bytes:
    """A header of the given size: as many pieces as fit."""
    return start + piece * ((size - len(start) - len(end)) // len(piece)) + end


def _metadata(count: int) -> bytes:
    return b'{"__metadata__":{' + b",".join(b'"%d":""' % i for i in range(count)) + b"}}"


def _named(count: int, letters: bytes) -> bytes:
    entry = b'"%s%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return b"{" + b",".join(entry % (letters, i) for i in range(count)) + b"}"


WIDE = "\U0001f600".encode()
"""A letter that makes a text of Python take four bytes for each of its letters."""

SHAPE = b'{"a":{"dtype":"F32","shape":['
OFFSETS = b'],"data_offsets":[0,4]}}'
HEADERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "ninety megabytes of shape": (
        lambda: _filled(SHAPE, b"1,", b"1" + OFFSETS, 90 << 20),
        "refused",
    ),
    "a shape as long as the cap": (lambda: _filled(SHAPE, b"1,", b"1" + OFFSETS), "refused"),
    "a shape as long as may be": (lambda: SHAPE + b"1," * 1_799_000 + b"1" + OFFSETS, "refused"),
    "a million and a half empty tensors": (lambda: _tensors(1_500_000, "0"), "refused"),
    "tensors as many as may be": (lambda: _tensors(128_000, "0"), "opened 128000"),
    "metadata as many as may be": (lambda: _metadata(350_000), "opened 0"),
    "lists in lists": (lambda: b"[" * MAX_HEADER, "refused"),
    "objects in objects": (lambda: b'{"a":' * (MAX_HEADER // 5), "refused"),
    "objects in objects, as many as may be": (lambda: b'{"a":' * 890_000, "refused"),
    "empty lists": (lambda: b'{"a":[' + b"[]," * 1_799_000 + b"0]}", "refused"),
    "empty objects": (lambda: b'{"a":[' + b"{}," * 1_799_000 + b"0]}", "refused"),
    "numbers": (lambda: b'{"a":[' + b"1e9," * 1_799_000 + b"0]}", "refused"),
    "one number": (lambda: _filled(SHAPE, b"9", OFFSETS), "refused"),
    "one name": (lambda: _filled(b'{"', b"a", b'":1}'), "refused"),
    "one name with a letter of four bytes": (
        lambda: _filled(b'{"', b"a", WIDE + b'":1}'),
        "refused",
    ),
    "empty lists beside a wide text": (
        lambda: _filled(b'{"a":[' + b"[]," * 1_790_000 + b'"', b"a", WIDE + b'"]}'),
        "refused",
    ),
    "many names of wide letters": (lambda: _named(120_000, WIDE + b"a" * 60), "either"),
    "tensors beside a wide text": (
        lambda: _filled(
            b'{"__metadata__":{"a":"', b"a", WIDE + b'"},' + _tensors(120_000, "0")[1:]
        ),
        "either",
    ),
    "long numbers": (lambda: b'{"a":[' + b",".join([b"9" * 4000] * 4000) + b"]}", "refused"),
    "escapes": (lambda: _filled(b'{"', b"\\u00e9", b'":1}'), "refused"),
    "quotes that are escaped": (lambda: b'{"' + b'\\"' * 1_700_000 + b'":1}', "refused"),
    "one name many times": (
        lambda: b"{" + b",".join([_tensors(1, "0")[1:-1]] * 100_000) + b"}",
        "refused",
    ),
    "names twice at the end": (
        lambda: b"{" + _tensors(100_000, "0")[1:-1] + b"," + _tensors(1, "0")[1:-1] + b"}",
        "refused",
    ),
    "spaces": (lambda: _filled(b"{", b" ", b"}"), "opened 0"),
    "noughts": (lambda: bytes(MAX_HEADER), "refused"),
}


BUSY = 3
"""Seconds that are let pass; the work of one, on a machine that others use too."""


SOME = (
    *("ninety megabytes of shape", "tensors as many as may be", "metadata as many as may be"),
    *("lists in lists", "one number", "one name with a letter of four bytes", "escapes"),
    *("names twice at the end", "noughts"),
)


@pytest.mark.parametrize(
    "cases", [SOME, pytest.param([*HEADERS], marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_a_hostile_header_costs_little(cases: Sequence[str], tmp_path: Path) -> None:
    path = tmp_path / "hostile.st"
    with opening() as opened:
        for case in cases:
            make, expected = HEADERS[case]
            text = make()
            path.write_bytes(struct.pack("<Q", len(text)) + text)
            said, seconds, peak = opened(path)
            assert expected == "either" or said.startswith(expected), (case, said)
            assert peak < 200e6, case
            assert seconds < BUSY, case


def test_the_longest_claim_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "hostile.st"
    with opening() as opened:
        for length in (MAX_HEADER + 1, 1 << 40, 1 << 63, (1 << 64) - 1):
            with path.open("wb") as file:
                file.write(struct.pack("<Q", length) + b"{}")
                file.truncate(1 << 41 if length <= 1 << 40 else 100)
            said, _, peak = opened(path)
            assert said.startswith("refused"), length
            assert peak < 100e6, length


NAMES = st.sampled_from(
    ['"a"', '"b"', '"__metadata__"', '"\\ud800"', '"\\u0000"', '"é😀"', '"' + "n" * 10_001 + '"']
)
NUMBERS = st.sampled_from(
    ["0", "1", "4", "-1", "-0", "1.0", "1e999", "NaN", "-Infinity", "9" * 5000, str(2**63)]
)
LEAVES = NAMES | NUMBERS | st.sampled_from(["true", "null", '"F32"', '"F4"', ""])
DEEP = st.integers(1, 5000).map(lambda n: "[" * n + "]" * n)


def _object(pairs: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f"{name}:{value}" for name, value in pairs) + "}"


def _objects(names: st.SearchStrategy[str], values: st.SearchStrategy[str]) -> Any:
    """JSON objects, also of names that stand in them twice."""
    return st.lists(st.tuples(names, values), max_size=4).map(_object)


ANYTHING = st.recursive(
    LEAVES | DEEP,
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda n: f"[{','.join(n)}]") | _objects(NAMES, inner)
    ),
    max_leaves=8,
)
ENTRIES = st.tuples(
    st.sampled_from(['"F32"', '"BOOL"', '"F32"']) | ANYTHING,
    st.sampled_from(["[]", "[1]", "[0]", "[4]", f"[{2**62},{2**62},0]"]) | ANYTHING,
    st.sampled_from(["[0,4]", "[4,8]", "[0,0]", "[4,4]"]) | ANYTHING,
).map(lambda e: _object([*zip(('"dtype"', '"shape"', '"data_offsets"'), e, strict=True)]))


@settings(database=None, derandomize=True, max_examples=150, deadline=1000)
@given(text=_objects(NAMES, ENTRIES | ENTRIES | ANYTHING) | ANYTHING)
def test_whatever_json_a_header_is_it_is_read_or_refused_and_nothing_else(text: str) -> None:
    try:
        entries, metadata, end = parse_header(text.encode(), 0)
    except CheckpointError:
        return
    assert sum(entry.nbytes for entry in entries.values()) == end
    for word in (*entries, *metadata, *metadata.values()):
        assert json.loads(json.dumps(word)) == word.encode().decode()
