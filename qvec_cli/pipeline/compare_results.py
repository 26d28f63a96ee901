"""Two files of results side by side: which accuracies rose, which fell, and by how much."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvec_cli.errors import CheckpointError, FellShortError, MismatchError
from qvec_cli.outputs.metrics import Metrics
from qvec_cli.report.ways import grid_use
from qvec_cli.results import documents, tidy
from qvec_cli.results.documents import ResultFiles
from qvec_cli.results.records import difference_error
from qvec_cli.results.tidy import CURVE, Row
from qvec_cli.specs import Listener, spent

Place = tuple[str, str, str, float | None, str, str]
"""What was measured: receiver, donor, null, lambda, way, split."""


@dataclass(frozen=True, slots=True)
class CompareResultsRequest:
    """Two files of results, of one command and one data set."""

    first: Path
    second: Path
    max_drop: float | None = None  # points of top-1 that no accuracy may fall by


def compare_results(request: CompareResultsRequest, _: Listener) -> Metrics:
    """Pairs the measurements of two files; lambdas that nobody chose stay out of grids.

    Where each file is of one model, its name does not matter: a model before and after.
    Raises CheckpointError: a file that is none of results, or without an accuracy; MismatchError:
    other images.
    """
    started = time.perf_counter()
    first, second = (documents.read([path]) for path in (request.first, request.second))
    _require_same_images(first, second, request)
    left, right = _places(first, request.first), _places(second, request.second)
    if len({place[0] for place in left}) == len({place[0] for place in right}) == 1:
        left, right = ({("", *p[1:]): row for p, row in side.items()} for side in (left, right))
    pairs = [(place, row, right[place]) for place, row in left.items() if place in right]
    if not pairs:
        raise MismatchError(
            f"{request.first} and {request.second} have no measurement in common",
            hint="Compare results of one command: two of eval, or two of transfer.",
        )
    compared = [_pair(place, a, b) for place, a, b in pairs]
    results = {
        "compared": compared,
        "only_in_first": [_words(place) for place in left if place not in right],
        "only_in_second": [_words(place) for place in right if place not in left],
        "largest_drop": max(0.0, *(-row["points"] for row in compared)),
    }
    both = (first, second)
    uses = [row.use for files in both for row in files.documents]
    use = spent(*uses, *(grid_use(matrix) for files in both for matrix in files.matrices))
    inputs = (*first.inputs, *second.inputs)
    return Metrics("compare", inputs, {"max_drop": request.max_drop}, results, use, started=started)


def check_drop(results: Mapping[str, Any], max_drop: float | None) -> None:
    """Raises FellShortError: an accuracy fell by more, or is missing from the second file."""
    if max_drop is None:
        return
    if missing := results["only_in_first"]:
        raise FellShortError(f"{missing[0]} was measured in the first file only")
    if results["largest_drop"] > max_drop:
        worst = min(results["compared"], key=lambda row: row["points"])
        raise FellShortError(
            f"{worst['name']} fell by {-worst['points']:.2f} points, more than --max-drop "
            f"{max_drop:g}"
        )


def _places(files: ResultFiles, path: Path) -> dict[Place, Row]:
    rows: Iterable[Row] = tidy.rows(files)
    if files.runs:
        rows = (row for row in rows if row.way != CURVE)
    places: dict[Place, Row] = {}
    for row in rows:
        lam = row.lam if row.way in (CURVE, tidy.FIXED) else None  # else a choice, which may differ
        places[row.receiver, row.donor, row.null, lam, row.way, row.split] = row
    if not places:
        raise CheckpointError(
            f"{path}: has no accuracy to compare",
            hint="eval, sweep-lambda, transfer and quantize --compare --data measure some.",
        )
    return places


def _require_same_images(
    first: ResultFiles, second: ResultFiles, request: CompareResultsRequest
) -> None:
    ours, theirs = ({*_data(files)} for files in (first, second))
    if ours and theirs and not ours & theirs:
        raise MismatchError(
            f"{request.first} and {request.second} were measured on other images",
            hint="Measure both with the same --data.",
        )


def _data(files: ResultFiles) -> Iterable[str | None]:
    """The digests of the data sets behind some results."""
    for document in files.documents:
        yield from (item.digest for item in document.inputs if item.kind == "data")
    for _, matrix in files.runs:
        yield from (row.get("data_digest") for row in matrix.run["receivers"].values())


def _pair(place: Place, first: Row, second: Row) -> dict[str, Any]:
    """One measurement of both files; MismatchError: of other numbers of images."""
    name = _words(place)
    if first.n != second.n:
        raise MismatchError(f"{name}: {first.n} images in the first file, {second.n} in the second")
    error = difference_error(first.score, second.score)
    return {
        "name": name,
        "n": first.n,
        "first": first.top1,
        "second": second.top1,
        "points": 100 * (second.correct - first.correct) / first.n,  # shares would leave a last bit
        "standard_error": 100 * error,
    }


def _words(place: Place) -> str:
    """What was measured, in a line."""
    receiver, donor, null, lam, way, split = place
    of = f"{receiver} " if receiver else ""
    vector = f"{null or ''} {donor} ".lstrip() if donor else ""
    at = f"lambda {lam:g} " if lam is not None else ""
    return f"{of}{vector}{at}{way if way != tidy.FIXED else ''} {split}".replace("  ", " ")
