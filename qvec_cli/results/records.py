"""JSON objects that were written elsewhere, read so that a fault names its file, line and field."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from qvec_cli.errors import CheckpointError, SpecError
from qvec_cli.specs import DataUse, Grid

_TOLERANCE: Final = 1e-9
"""How far a share may be from the quotient of its counts, which JSON holds to the last bit."""


@dataclass(frozen=True, slots=True)
class Record:
    """An object and where it stands; every reader below refuses what is not there or not so."""

    where: str  # a file, or a file and a line
    value: Mapping[str, Any]
    within: str = ""  # the fields that lead to it

    def fault(self, message: str, hint: str | None = None) -> CheckpointError:
        """What is wrong here, to be raised."""
        return CheckpointError(f"{self.where}: {self.within}{message}", hint)

    def __contains__(self, key: str) -> bool:
        return self.value.get(key) is not None

    def text(self, key: str) -> str:
        """A string that is not empty."""
        return str(self._of(key, str))

    def flag(self, key: str) -> bool:
        """true or false."""
        return bool(self._of(key, bool))

    def whole(self, key: str, least: int = 0) -> int:
        """A whole number from ``least`` up."""
        found = self._of(key, int)
        if isinstance(found, bool) or found < least:
            raise self.fault(f"{key} is {found!r}: a whole number from {least} up belongs here")
        return int(found)

    def number(self, key: str) -> float:
        """A finite number."""
        return self._finite(key, self._of(key, int | float))

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        return tuple(self._finite(key, found) for found in self._of(key, list))

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        found = self._of(key, list)
        if not all(isinstance(text, str) for text in found):
            raise self.fault(f"{key} is no list of names")
        return tuple(found)

    def record(self, key: str) -> Record:
        """An object within this one."""
        return Record(self.where, self._of(key, dict), f"{self.within}{key}.")

    def records(self, key: str) -> Iterator[tuple[str, Record]]:
        """The objects of an object, by their names."""
        inner = self.record(key)
        for name in inner.value:
            yield name, inner.record(name)

    def listed(self, key: str) -> Iterator[Record]:
        """The objects of a list."""
        for place, found in enumerate(self._of(key, list)):
            if not isinstance(found, dict):
                raise self.fault(f"{key}[{place}] is no object")
            yield Record(self.where, found, f"{self.within}{key}[{place}].")

    def use(self, key: str = "data_use") -> DataUse:
        """A level of the receiver's data."""
        found = self.text(key)
        if found not in set(DataUse):
            raise self.fault(f"{key} is {found!r}, none of {', '.join(DataUse)}")
        return DataUse(found)

    def grid(self, key: str = "grid") -> Grid:
        """A grid of weights."""
        try:
            return Grid.from_json(self.record(key).value)
        except SpecError as fault:
            raise self.fault(f"{key}: {fault}") from None

    def _of(self, key: str, kind: Any) -> Any:
        if key not in self.value:
            raise self.fault(f"has no {key}")
        found = self.value[key]
        if not isinstance(found, kind) or (kind is str and not found):
            raise self.fault(f"{key} is not what belongs here")
        return found

    def _finite(self, key: str, found: Any) -> float:
        right = isinstance(found, int | float) and not isinstance(found, bool)
        if not right or not math.isfinite(found):
            raise self.fault(f"{key} is no finite number")
        return float(found)


@dataclass(frozen=True, slots=True)
class Score:
    """How many images of a split were right."""

    n: int
    n_correct: float  # a whole number, or a mean over runs on the same images

    @property
    def top1(self) -> float:
        """The share of right ones."""
        return self.n_correct / self.n

    @property
    def standard_error(self) -> float:
        """Binomial standard error of top1."""
        return math.sqrt(self.top1 * (1 - self.top1) / self.n)

    @classmethod
    def of(cls, record: Record) -> Score:
        """A score as metrics and grids hold it; its share must be that of its counts.

        Raises:
            CheckpointError: it is not.
        """
        score = cls(record.whole("n", 1), record.whole("n_correct"))
        if score.n_correct > score.n:
            raise record.fault(f"n_correct is {score.n_correct}, of {score.n} images")
        if abs(record.number("top1") - score.top1) > _TOLERANCE:
            raise record.fault(f"top1 is not {score.n_correct} of {score.n}")
        return score


def difference_error(first: Score, second: Score) -> float:
    """Standard error of a difference of two accuracies, as of independent counts.

    The images are the same ones, so that the true one is smaller.
    """
    return math.hypot(first.standard_error, second.standard_error)


def decode(text: str, where: str) -> Record:
    """One JSON object.

    Raises:
        CheckpointError: no JSON, or JSON that is no object.
    """
    try:
        value = json.loads(text, parse_constant=_constant)
    except (ValueError, RecursionError) as fault:
        reason = str(fault).splitlines()[0] if isinstance(fault, ValueError) else "nested too deep"
        raise CheckpointError(f"{where}: is not JSON: {reason}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: is no JSON object")
    return Record(where, value)


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")
