"""JSON in files: read within bounds, whoever wrote it, and written so that it can be read."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, Final

from qvec_cli.errors import CheckpointError

MAX_JSON: Final = 16 << 20
"""Bytes of JSON that are parsed; a header of 100,000 tensors needs 9 MB."""

_MAX_SIGNS: Final = 1_800_000
"""Commas and quotes in JSON that is parsed, a measure of what it costs: memory and time.

100,000 tensors of four dimensions have 1.7 million.
"""

_DEEPEST: Final = 256
"""Lists and objects in one another; a card has three more for each generation of its lineage."""

_LONGEST: Final = 10_000
"""Letters of a text in JSON, which messages and figures repeat."""

_MOST_DIGITS: Final = 20  # of whole numbers; 2^63 has 19
_LARGEST: Final = 1e100  # of others, so that products of three are finite

_ESCAPE: Final = re.compile(r"(\\\\|\\ud[89ab]..\\ud[c-f]..)|\\(ud[89a-f]..)")
"""In JSON that is ASCII: an escaped backslash or a letter in two halves, or else half a letter."""


def parse(text: str) -> Any:
    """Any JSON of bounded nesting, numbers and texts, its letters whole and its keys unique.

    Raises ValueError: something else; says what.
    """
    value = parse_table(text, parse_int=_whole, parse_float=_moderate)
    _require_bounds(value)
    return value


def parse_table(text: str, **numbers: Any) -> Any:
    """JSON whose values its reader looks at one by one, of a table that may be long.

    ``numbers`` reads them. Raises ValueError: a key that is there twice, NaN, or no JSON.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse_constant, **numbers
        )
    except RecursionError:
        raise ValueError("nested too deep") from None


def decoded(raw: bytes | memoryview) -> Any:
    """The same of bytes, of which a mark of their order may be the first."""
    return parse(bytes(raw).decode("utf-8-sig"))


def encode(value: object, **layout: Any) -> str:
    """JSON in ASCII, without NaN; half a letter, as names of files may have, in its escaped form.

    ``layout`` is what ``json.dumps`` takes.
    """
    text = json.dumps(value, allow_nan=False, **layout)
    return _ESCAPE.sub(lambda part: part[1] or f"\\\\{part[2]}", text) if "\\ud" in text else text


def require_moderate(text: bytes, what: str = "its header") -> None:
    """Refuses JSON that would cost more than a second or 200 MB to read, or is no header."""
    if len(text) > MAX_JSON:
        raise CheckpointError(
            f"{what} claims {len(text):,} bytes; more than {MAX_JSON:,} is not read"
        )
    if len(text) > MAX_JSON // 4 and not text.isascii():  # a letter may take four in memory
        raise CheckpointError(
            f"{what} has letters outside ASCII in {len(text):,} bytes; "
            f"more than {MAX_JSON // 4:,} of such are not read"
        )
    if (signs := text.count(b",") + text.count(b'"')) > _MAX_SIGNS:
        raise CheckpointError(
            f"{what} holds {signs:,} commas and quotes; more than {_MAX_SIGNS:,} are not read"
        )


def _require_bounds(value: Any) -> None:
    """Walks a value floor by floor, for what the parser does not look at."""
    floor = [value]
    for _ in range(_DEEPEST):
        inner: list[Any] = []
        for each in floor:
            if type(each) is dict:
                inner += each
                inner += each.values()
            elif type(each) is list:
                inner += each
            elif type(each) is str and not (len(each) <= _LONGEST and each.isascii()):
                _require_text(each)
        if not inner:
            return
        floor = inner
    raise ValueError(f"nested deeper than {_DEEPEST}")


def _require_text(text: str) -> None:
    if len(text) > _LONGEST:
        raise ValueError(f"a text of {len(text):,} letters")
    try:
        text.encode()
    except UnicodeEncodeError as fault:
        raise ValueError(f"{text[fault.start]!a} is half a letter") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names are unique."""
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"{twice!r} stands in it twice")
    return mapping


def _refuse_constant(text: str) -> Any:
    """For Python's parser, which takes NaN and Infinity, although they are not JSON."""
    raise ValueError(f"{text} is not JSON")


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def _moderate(text: str) -> float:
    if not abs(value := float(text)) <= _LARGEST:
        raise ValueError(f"the number {text[:20]} is too large")
    return value
