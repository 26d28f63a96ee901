"""A scaling coefficient, typed or chosen by a sweep, and what the choice has cost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import MismatchError, QvecError, SpecError
from qvec_cli.specs import NOTHING, Grid, Use
from qvec_cli.vector.lambdas import parse_lambda

AUTO: Final = "auto"
"""The word for a lambda that is chosen on the way."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What ``--lambda`` says."""

    lam: float
    source: str  # as typed: a number, or the file of a sweep
    use: Use = NOTHING
    grid: dict[str, Any] | None = None  # that a sweep has chosen it for
    files: tuple[str, ...] = ()  # digests of the receiver and the vector of the sweep

    def require_for(self, *files: Checkpoint) -> None:
        """Refuses a choice that was made for other files.

        Raises:
            MismatchError: names the file.
        """
        for checkpoint in files:
            if self.files and (checkpoint.stated or checkpoint.settle()) not in self.files:
                raise MismatchError(
                    f"{self.source}: its lambda was chosen for other files than {checkpoint.path}",
                    hint="Sweep anew, or type the number.",
                )


def read_choice(text: str) -> Choice:
    """A number typed by hand, at no known cost, or the choice in the JSON file of a sweep.

    Raises:
        SpecError: neither a number nor a file.
        QvecError: a file that is not the result of a sweep.
    """
    if not (text.endswith(".json") or _is_file(text)):
        return Choice(parse_lambda(text), text)
    try:
        document: dict[str, Any] = json.loads(Path(text).read_bytes())
        chosen, cost = document["results"]["chosen"], document["data_use"]
        return Choice(
            parse_lambda(repr(float(chosen["lambda"]))),
            text,
            Use(cost["level"], dict(cost["counts"])),
            Grid.from_json(document["parameters"]["grid"]).to_json(),
            tuple(str(i["digest"]) for i in document["inputs"] if _concerns(i, chosen)),
        )
    except OSError as fault:
        raise QvecError(f"{text}: {(fault.strerror or 'cannot be read').lower()}") from None
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        QvecError,
    ):
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
