"""Tables for people: lines of tab-separated cells, aligned and fitted to a terminal's width."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final

_GAP: Final = "  "

_SHORTEST: Final = 24
"""Characters of the first column, names mostly, to which it may be shortened if they differ."""

_SPARE: Final = (
    *("dtype", "norm", "SQNR", "size", "bits/weight", "shape", "median"),
    *("gap closed", "regret", "receiver data used"),
)
"""Headings of columns that are left out first where a terminal is too narrow, in this order."""

_NUMBER: Final = re.compile(r"[+-]?[\d,]*(?=[.%\s]|$)")
"""The whole part of a number."""


def aligned(lines: Iterable[str], width: int) -> Iterator[str]:
    """The same lines, their tables in columns that fit so many characters if they can.

    Lines with tabs that follow each other are a table; one whose number of cells differs by more
    than a mark, or a score that is missing, begins the next.
    """
    for tabbed, group in groupby(lines, lambda line: "\t" in line):
        if tabbed:
            for table in _tables([line.split("\t") for line in group]):
                yield from _fitted(table, width)
        else:
            yield from group


def _tables(rows: Sequence[list[str]]) -> Iterator[list[list[str]]]:
    """Rows that belong together; each table begins with its head."""
    table: list[list[str]] = []
    for row in rows:
        if table and abs(len(row) - len(table[0])) > 1:
            yield table
            table = []
        table.append(row)
    yield table


def _fitted(table: Sequence[list[str]], width: int) -> Iterator[str]:
    """One table as lines; what is left out for the width is said below it."""
    count = max(map(len, table))
    columns = [_column([row[n] if n < len(row) else "" for row in table]) for n in range(count)]
    missing: list[str] = []
    for head in _SPARE:
        if _wide(columns) - _excess(columns) <= width:
            break
        if (place := _place(columns, head)) is not None:
            missing.append(columns.pop(place)[0].strip())
    excess = _wide(columns) - width
    if excess > 0:
        least = _shortest(columns[0])
        columns[0] = _shortened(columns[0], max(least, _width(columns[0]) - excess))
    for cells in zip(*columns, strict=True):
        yield _GAP.join(cells).rstrip()
    if missing:
        yield f"(left out for the width: {', '.join(missing)}; a pipe has all)"


def _column(cells: Sequence[str]) -> list[str]:
    """Cells of one width: numbers by their points, words from the left."""
    body = [cell for cell in cells[1:] if cell not in ("", "-")]
    if body and all((match := _NUMBER.match(cell)) and match[0] for cell in body):
        whole = [len(match[0]) if (match := _NUMBER.match(cell)) else 0 for cell in cells[1:]]
        most = max(whole)
        rest = [" " * (most - n) + cell for n, cell in zip(whole, cells[1:], strict=True)]
        cells = [cells[0], *rest]
    wide = max(map(cell_len, cells))
    return [cell + " " * (wide - cell_len(cell)) for cell in cells]


def cell_len(text: str) -> int:
    """Places that a text takes on a terminal: two for a wide letter, none for a combining mark."""
    if text.isascii():
        return len(text)
    marks = sum(unicodedata.combining(letter) > 0 for letter in text)
    wide = sum(unicodedata.east_asian_width(letter) in ("W", "F") for letter in text)
    return len(text) + wide - marks


def _width(column: Sequence[str]) -> int:
    return cell_len(column[0])


def _wide(columns: Sequence[Sequence[str]]) -> int:
    """Of all columns and the gaps between them."""
    return sum(map(_width, columns)) + len(_GAP) * (len(columns) - 1)


def _excess(columns: Sequence[Sequence[str]]) -> int:
    """By how much the first column may be shortened."""
    return max(0, _width(columns[0]) - _shortest(columns[0]))


def _shortest(column: Sequence[str]) -> int:
    """The least width at which names that differ are still told apart."""
    names = {cell.rstrip() for cell in column}
    widths = range(min(_SHORTEST, _width(column)), _width(column))
    return next(
        (width for width in widths if len({_cut(n, width) for n in names}) == len(names)),
        _width(column),
    )


def _place(columns: Sequence[Sequence[str]], head: str) -> int | None:
    """Where the column with a heading is; the first one stays."""
    heads = [column[0].strip() for column in columns]
    return heads.index(head) if head in heads[1:] else None


def _shortened(column: Sequence[str], width: int) -> list[str]:
    """Cells cut in their middle: names differ at their ends."""
    return [_cut(cell.rstrip(), width) for cell in column]


def _cut(text: str, width: int) -> str:
    if cell_len(text) > width:
        keep = width - 3
        text = f"{text[: keep - keep // 2]}...{text[len(text) - keep // 2 :]}"
    return text + " " * (width - cell_len(text))
