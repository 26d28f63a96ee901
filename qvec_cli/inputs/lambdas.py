"""Scaling coefficients as they are typed: one, a list, a range, or one for each vector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.checkpoint.locate import read_json
from qvec_cli.errors import MismatchError, QvecError, SpecError
from qvec_cli.specs import NOTHING, Grid, Use

if TYPE_CHECKING:
    from qvec_cli.checkpoint.read import Checkpoint

MAX_LAMBDAS: Final = 1000


def parse_lambda(text: str) -> float:
    """One scaling coefficient, any finite number."""
    return float(_decimal(text, "--lambda"))


def parse_lambdas(text: str) -> tuple[float, ...]:
    """Scaling coefficients from ``0,0.5,1`` or ``start:stop:step`` with the stop included.

    Ranges are computed in decimal, so 0:1.5:0.15 holds exactly 0.45 and 1.5.
    """
    if ":" not in text:
        return tuple(dict.fromkeys(float(_decimal(part, "--lambdas")) for part in text.split(",")))
    parts = text.split(":")
    if len(parts) != 3:
        raise SpecError(f"--lambdas {text!r} is not start:stop:step, as 0:1.5:0.15")
    start, stop, step = (_decimal(part, "--lambdas") for part in parts)
    if step <= 0 or stop < start:
        raise SpecError(f"--lambdas {text!r} needs a step above 0 and a stop from the start up")
    if stop - start >= step * MAX_LAMBDAS:
        raise SpecError(f"--lambdas {text!r} asks for more than {MAX_LAMBDAS} points")
    count = int((stop - start) / step) + 1
    return tuple(float(start + step * i) for i in range(count))


def parse_mix(text: str) -> tuple[float, ...]:
    """Coefficients of vectors from ``0.5,0.3``, in the order of the vectors; one may come twice."""
    return tuple(float(_decimal(part, "--mix")) for part in text.split(","))


def _decimal(text: str, flag: str) -> Decimal:
    try:
        value = Decimal(text.strip())
    except InvalidOperation:
        raise SpecError(f"{flag} {text!r} is not a number") from None
    if not (value.is_finite() and math.isfinite(float(value))):
        raise SpecError(f"{flag} {text!r}: must be finite")
    return value


AUTO: Final = "auto"
"""The word for a lambda that is chosen on the way."""

_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError)


@dataclass(frozen=True, slots=True)
class LambdaChoice:
    """The lambda that ``--lambda`` names, and where it comes from."""

    lam: float
    source: str  # as typed: a number, or the file of a sweep
    use: Use = NOTHING
    grid: dict[str, Any] | None = None  # that a sweep has chosen it for
    files: tuple[str, ...] = ()  # digests of the receiver and the vector of the sweep

    def require_for(self, *files: Checkpoint) -> None:
        """Refuses a choice that was made for other files: MismatchError names the file."""
        for checkpoint in files:
            if self.files and (checkpoint.stated or checkpoint.settle()) not in self.files:
                raise MismatchError(
                    f"{self.source}: its lambda was chosen for other files than {checkpoint.path}",
                    hint="Sweep anew, or type the number.",
                )


def read_choice(text: str) -> LambdaChoice:
    """A number typed by hand, at no known cost, or the choice in the JSON file of a sweep.

    SpecError: neither a number nor a file. QvecError: a file that is no result of a sweep.
    """
    if not (text.endswith(".json") or _is_file(text)):
        return LambdaChoice(parse_lambda(text), text)
    document = read_json(Path(text))
    try:
        chosen, cost = document["results"]["chosen"], document["data_use"]
        return LambdaChoice(
            parse_lambda(repr(float(chosen["lambda"]))),
            text,
            Use(cost["level"], dict(cost["counts"])),
            Grid.from_json(document["parameters"]["grid"]).to_json(),
            tuple(str(i["digest"]) for i in document["inputs"] if _concerns(i, chosen)),
        )
    except (*_MALFORMED, QvecError):
        raise QvecError(f"{text}: is not the result of qvec sweep-lambda") from None


def _concerns(listed: dict[str, Any], chosen: dict[str, Any]) -> bool:
    """Whether an input of a sweep is one that its choice is for: of several vectors, one is."""
    digest = listed["digest"]
    return listed.get("kind") != "vector" or bool(digest == chosen.get("digest", digest))


def _is_file(text: str) -> bool:
    """Whether a text that is no number is a file."""
    try:
        parse_lambda(text)
    except SpecError:
        return Path(text).is_file()
    return False
