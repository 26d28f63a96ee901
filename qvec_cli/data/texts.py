"""Texts and labels from tables in CSV, TSV or JSON lines, by columns ``text`` and ``label``.

Columns of other names are said behind the name of a data set: ``FILE?text=COLUMN&label=COLUMN``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

from qvec_cli.data.samples import SPLITS, DataSource, Samples
from qvec_cli.errors import DataError, SpecError

SUFFIXES: Final = (".csv", ".tsv", ".jsonl")

TEXTS: Final = ("text", "sentence", "content", "review", "document")
LABELS: Final = ("label", "labels", "class", "category", "target")
"""What columns are called, the usual name first."""

UNLABELLED: Final = "unlabelled"
"""The one class of rows without labels."""

_LARGEST: Final = 1 << 30  # bytes of a table
_LONGEST: Final = 1 << 20  # letters of a text


class Columns(NamedTuple):
    """The columns that a user names; None: the usual ones."""

    text: str | None = None
    label: str | None = None

    def of(self, names: Collection[str], where: str) -> tuple[str | None, str | None]:
        """Those of texts and of labels among the columns of a data set; None: it has none.

        Raises DataError: a column that is named is not there.
        """
        for name in filter(None, self):
            if name not in names:
                listed = ", ".join(map(str, names))
                raise DataError(f"{where}: has no column {name}, only {listed}")
        text, label = (next((n for n in usual if n in names), None) for usual in (TEXTS, LABELS))
        return self.text or text, self.label or label


USUAL: Final = Columns()


def named_columns(spec: str) -> tuple[str, Columns]:
    """A data set's name without the columns behind it, and those: ``NAME?text=A&label=B``.

    Letters that have a meaning there are written as in addresses: ``%26`` is ``&``.
    Raises SpecError: words that name no columns.
    """
    name, _, words = spec.partition("?")
    try:
        pairs = parse_qsl(words, strict_parsing=True)
    except ValueError:
        pairs = []
    columns = dict(pairs)
    if not len(columns) == len(pairs) > 0 or columns.keys() - {*Columns._fields}:
        raise SpecError(f"{spec}: what stands behind the ? is not text=COLUMN&label=COLUMN")
    return name, Columns(**columns)


@dataclass(frozen=True)
class TextSamples:
    """The rows of one table; a label that is none of the classes is refused where it is used."""

    texts: tuple[str, ...]
    labels: Sequence[int]
    names: tuple[str, ...]  # of the classes

    def __len__(self) -> int:
        return len(self.texts)

    def load(self, index: int) -> str:
        """One text."""
        return self.texts[index]

    @cached_property
    def _digest(self) -> str:
        names = dict(enumerate(self.names))
        rows = (
            [text, names.get(label, str(label))]
            for text, label in zip(self.texts, self.labels, strict=True)
        )
        return sha256("\n".join(map(json.dumps, rows)).encode()).hexdigest()

    def identity(self) -> Iterator[str]:
        """The texts and their classes."""
        yield f"texts {self._digest}"


def has_tables(folder: Path) -> bool:
    """Whether a folder has a table for a split."""
    return any((folder / f"{split}{suffix}").is_file() for split in SPLITS for suffix in SUFFIXES)


def read_texts(path: Path, columns: Columns = USUAL) -> DataSource:
    """The splits of a folder with train.csv, test.csv and the like, or one table as train and test.

    Raises DataError: no such columns, a row without a text, or a table that cannot be read; names
    file and line.
    """
    tables = {"train": path} if path.is_file() else _tables(path)
    rows = {split: [*_rows(table, columns)] for split, table in tables.items()}
    classes = sorted({label for each in rows.values() for _, label in each})
    place = {name: index for index, name in enumerate(classes)}
    splits: dict[str, Samples] = {
        split: TextSamples(
            tuple(text for text, _ in each), [place[label] for _, label in each], tuple(classes)
        )
        for split, each in rows.items()
    }
    return DataSource(tuple(classes), splits)


def _tables(folder: Path) -> dict[str, Path]:
    tables: dict[str, Path] = {}
    for split in SPLITS:
        named = [p for suffix in SUFFIXES if (p := folder / f"{split}{suffix}").is_file()]
        if len(named) > 1:
            raise DataError(f"{folder}: has both {named[0].name} and {named[1].name}")
        if named:
            tables[split] = named[0]
    return tables


def _rows(table: Path, columns: Columns) -> Iterator[tuple[str, str]]:
    """Text and label of each row; a table without labels has one class, "unlabelled"."""
    if table.stat().st_size > _LARGEST:
        raise DataError(f"{table}: {table.stat().st_size:,} bytes, more than {_LARGEST:,}")
    text_column = label_column = None
    for number, row in _records(table):
        if text_column is None:
            text_column, label_column = columns.of(row, str(table))
            if text_column is None:
                raise DataError(
                    f"{table}: has no column of texts; it has {', '.join(map(str, row))}",
                    hint=f"Call it {TEXTS[0]}, and the one of labels {LABELS[0]}; or say "
                    f"'{table}?text=COLUMN&label=COLUMN'.",
                )
        text = checked_text(row.get(text_column), f"{table}: line {number}")
        label = row.get(label_column) if label_column else UNLABELLED
        if not isinstance(label, str | int) or label == "":
            raise DataError(f"{table}: line {number}: no label")
        yield text, str(label)


def checked_text(text: object, where: str) -> str:
    """A text of moderate length; DataError: there is none, or a longer one."""
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: no text")
    if len(text) > _LONGEST:
        raise DataError(f"{where}: a text of {len(text):,} letters")
    return text


def _records(table: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Each row by the names of its columns, with the number of its line."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            if table.suffix == ".jsonl":
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        row = json.loads(line)
                        if not isinstance(row, dict):
                            raise DataError(f"{table}: line {number}: is no JSON object")
                        yield number, row
                return
            reader = csv.DictReader(file, delimiter="\t" if table.suffix == ".tsv" else ",")
            for row in reader:
                yield reader.line_num, row
    except (OSError, ValueError, RecursionError, csv.Error) as fault:
        raise DataError(f"{table}: cannot be read as {table.suffix[1:]}: {fault}") from None
