"""The table of the text study: what each way to low bits keeps, by receiver and in the mean.

    python table.py OUT GRID...

For each grid it reads OUT/GRID.jsonl, which ``qvec transfer`` wrote, and OUT/advise_GRID_TASK.json
of every receiver, which ``qvec advise`` wrote. Top-1 on the receivers' test texts; a way with one
vector is the mean over the donors of other tasks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from qvec_cli.results.matrix import FLOAT, OWN_QAT, PLAIN, Cell, Matrix, lines_of, parse
from qvec_cli.results.records import Score, difference_error

Json = dict[str, Any]

NONE, PROXIES, LABELS = "none", "others' texts", "receiver labels"
HALF = 0.005  # top-1 of a candidate that is level with another one


@dataclass(frozen=True)
class Way:
    """A row: top-1 by receiver, and the receiver data that the way used."""

    name: str
    top1: Mapping[str, float]
    use: str

    def line(self, receivers: tuple[str, ...], width: int) -> str:
        """The row as text, the mean last but one."""
        values = [self.top1[name] for name in receivers]
        widths = [max(5, len(name)) for name in receivers]
        shown = "  ".join(f"{v:>{w}.3f}" for v, w in zip(values, widths, strict=True))
        return f"{self.name:<{width}}  {shown}  {fmean(values):>5.3f}  {self.use}"


# --- rows -----------------------------------------------------------------------------------------


def baseline(matrix: Matrix, key: str) -> dict[str, float]:
    """Top-1 of each receiver without a vector."""
    return {name: rows[key].test.top1 for name, rows in matrix.baselines.items()}


def one_vector(matrix: Matrix, score: Callable[[Cell], Score]) -> dict[str, float]:
    """Top-1 of each receiver, the mean over the donors of other tasks."""
    return {
        name: fmean(score(cell).top1 for cell in matrix.transfers if cell.receiver == name)
        for name in matrix.baselines
    }


def candidate(document: Json, name: str) -> float:
    """Top-1 on test of a candidate of advise, by its name."""
    row = next(row for row in document["results"]["candidates"] if row["name"] == name)
    return float(row["test"]["n_correct"] / row["test"]["n"])


def nearest(document: Json, way: str) -> str | None:
    """The name of the candidate of a way that advise measured closest to the float answers."""
    rows = [row for row in document["results"]["candidates"] if row["way"] == way]
    return min(rows, key=lambda row: row["distance"])["name"] if rows else None


def advised(advice: Mapping[str, Json], pick: Callable[[Json], str | None]) -> dict[str, float]:
    """Top-1 of what PICK names, of the receivers for which it names one."""
    names = {receiver: pick(document) for receiver, document in advice.items()}
    return {r: candidate(advice[r], name) for r, name in names.items() if name is not None}


def ways(matrix: Matrix, advice: Mapping[str, Json]) -> Iterator[Way]:
    """All rows; a way that some receiver has no candidate of is left out."""
    plain = advised(advice, lambda document: document["results"]["best_plain"])
    taken = advised(advice, lambda document: document["results"]["chosen"])
    unit = advised(advice, lambda document: nearest(document, "unit"))
    chosen = advised(advice, lambda document: nearest(document, "chosen"))
    others = advised(advice, lambda document: nearest(document, "float"))
    rows = (
        Way("float", baseline(matrix, FLOAT), NONE),
        Way("RTN absmax", baseline(matrix, PLAIN), NONE),
        Way("best plain grid, by agreement", plain, PROXIES),
        Way("one vector, lambda 1", one_vector(matrix, lambda c: c.fixed[0].test), NONE),
        Way("one vector, lambda by labels", one_vector(matrix, by_labels), LABELS),
        Way("mean vector, lambda 1", unit, NONE),
        # where advise lists none, it chose lambda 0: plain rounding
        Way("mean vector, lambda by agreement", baseline(matrix, PLAIN) | chosen, PROXIES),
        Way("GPTQ on others' texts", others, PROXIES),
        Way("advise", taken, PROXIES),
        Way("own QAT", baseline(matrix, OWN_QAT), LABELS),
    )
    yield from (row for row in rows if set(row.top1) == set(matrix.baselines))


def by_labels(cell: Cell) -> Score:
    """At the lambda that is best on the receiver's validation texts."""
    return cell.chosen["val"].test


# --- lines beneath --------------------------------------------------------------------------------


def pairs(matrix: Matrix, name: str, score: Callable[[Cell], Score]) -> str:
    """How many pairs a vector makes better and worse by more than a standard error."""
    gains = [
        (score(cell).top1 - plain.top1) / (difference_error(plain, score(cell)) or 1)
        for cell in matrix.transfers
        for plain in [matrix.plain(cell.receiver)]
    ]
    better, worse = sum(g > 1 for g in gains), sum(g < -1 for g in gains)
    return f"{name}: {better} of {len(gains)} pairs better by a standard error, {worse} worse"


def own_vector(matrix: Matrix) -> str:
    """What the receivers' own vectors add, which is the ceiling."""
    gains = [matrix.gain(c.receiver, c.fixed[0].test) for c in matrix.cells.values() if c.diagonal]
    return f"own vector, lambda 1: {100 * fmean(gains):+.1f} points over {len(gains)} receivers"


def decisions(advice: Mapping[str, Json]) -> str:
    """What advise took, and how often it is below the best plain grid or the best candidate."""
    taken, below, lost = [], 0, []
    for document in advice.values():
        results = document["results"]
        score = candidate(document, results["chosen"])
        taken.append(results["decision"])
        below += score < candidate(document, results["best_plain"]) - HALF
        lost.append(max(candidate(document, r["name"]) for r in results["candidates"]) - score)
    counts = ", ".join(f"{taken.count(word)} {word}" for word in sorted(set(taken)))
    return (
        f"advise: {counts}; below the best plain grid in {below} of {len(taken)}, "
        f"{100 * fmean(lost):.1f} points below the best candidate on average"
    )


def table(out: Path, grid: str) -> Iterator[str]:
    """The lines of one grid."""
    path = out / f"{grid}.jsonl"
    matrix = parse(lines_of(path.read_text(), str(path)))
    receivers = tuple(matrix.baselines)
    advice = {
        name: json.loads((out / f"advise_{grid}_{name}.json").read_text()) for name in receivers
    }
    rows = list(ways(matrix, advice))
    title = f"{matrix.grid}, {len(receivers)} receivers, {len(matrix.donors)} donors"
    width = max(len(title), *(len(row.name) for row in rows))
    header = "  ".join(f"{name:>5}" for name in receivers)
    yield f"{title:<{width}}  {header}   mean  receiver data used"
    yield from (row.line(receivers, width) for row in rows)
    yield pairs(matrix, "one vector, lambda 1", lambda cell: cell.fixed[0].test)
    yield pairs(matrix, "one vector, lambda by labels", by_labels)
    yield own_vector(matrix)
    yield decisions(advice)


def main() -> None:
    """Prints every grid's table, an empty line between them."""
    out, *grids = sys.argv[1:]
    print("\n\n".join("\n".join(table(Path(out), grid)) for grid in grids))


if __name__ == "__main__":
    main()
