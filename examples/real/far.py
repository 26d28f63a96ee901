"""The table of receivers that are far from every proxy: what each way keeps, by receiver and draw.

python far.py OUT BITS...: OUT/<bits>/<receiver>_advise_<draw>.json, and what qvec eval says of
OUT/<bits>/<receiver>_<kind>.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np

from qvec_cli.results.records import Score, difference_error
from qvec_cli.results.summary import spearman

Json = dict[str, Any]

Pick = Callable[[Json], bool]

EQUAL_BITS = 0.05


def of(way: str, family: str) -> Pick:
    """Candidates of one way and one family."""
    return lambda row: bool(row["way"] == way and row["family"] == family)


WAYS: Final[dict[str, Pick]] = {
    "best plain grid": of("rtn", "plain"),
    "rounding, rotated": of("rtn rotated", "rotated"),
    "GPTQ, others' images": of("float", "images"),
    "GPTQ, generated and others', diversified": of("float mixed", "images"),
}
"""Candidates of advise; of several, the one that it measures nearest to the float answers."""

KINDS: Final = {
    "default": ("qvec quantize, no other flag", "none"),
    "best_*": ("qvec quantize --preset best", "none"),
    "own": ("GPTQ, own images", "receiver images"),
    "qat": ("own QAT", "receiver labels"),
}
"""Files that qvec eval has measured."""


@dataclass(frozen=True, slots=True)
class Advised:
    """One receiver, one draw of pictures."""

    receiver: str
    results: Json

    @property
    def rows(self) -> list[Json]:
        """Candidates that cost as much as a scale and a zero point a row."""
        by_row = [r for r in self.results["candidates"] if r["grid"]["granularity"] == "channel"]
        most = max(row["bits_per_weight"] for row in by_row)
        return [
            row for row in self.results["candidates"] if row["bits_per_weight"] <= most + EQUAL_BITS
        ]

    def named(self, name: str) -> Json:
        """A candidate by its name."""
        return next(row for row in self.rows if row["name"] == name)

    def nearest(self, pick: Pick) -> Json | None:
        """The candidate of a way that is measured nearest to the float answers."""
        return min(filter(pick, self.rows), key=lambda row: row["distance"], default=None)


def main(out: Path, widths: Sequence[str]) -> None:
    """Prints the table of each width."""
    for bits in widths:
        names, advised = read(out / bits)
        draws = len(advised) // len(names)
        title = f"{bits} bits, {len(names)} far receivers, {draws} draws of pictures"
        print("\t".join((title, *names, "mean", "lowest to highest draw", "receiver data used")))
        for line in (*fixed(advised), *ways(advised), *files(out / bits, names)):
            print(line)
        print(verdicts(advised))
        print(ranks(advised))
        print(shares(advised))


def read(folder: Path) -> tuple[list[str], list[Advised]]:
    """The receivers, and what advise said of each, draw by draw."""
    paths = sorted(folder.glob("*_advise_*.json"))
    advised = [
        Advised(p.name.split("_advise_")[0], json.loads(p.read_text())["results"]) for p in paths
    ]
    return list(dict.fromkeys(one.receiver for one in advised)), advised


def score(record: Json) -> Score:
    """Of a record of counts."""
    return Score.of(record["n"], record["n_correct"])


def line(title: str, cells: Sequence[Sequence[float]], use: str) -> str:
    """A row: the mean over draws by receiver, over all, and the range of the draws' means."""
    by_draw = [fmean(draw) for draw in zip(*cells, strict=True)]
    span = f"{min(by_draw):.3f} to {max(by_draw):.3f}" if len(by_draw) > 1 else "-"
    shown = [f"{fmean(cell):.3f}" for cell in cells]
    return "\t".join((title, *shown, f"{fmean(map(fmean, cells)):.3f}", span, use))


def grouped(advised: Sequence[Advised]) -> list[list[Advised]]:
    """By receiver, then by draw."""
    names = dict.fromkeys(one.receiver for one in advised)
    return [[one for one in advised if one.receiver == name] for name in names]


def fixed(advised: Sequence[Advised]) -> Iterator[str]:
    """The float model, and the paper's rounding: no draw changes them."""
    first = [draws[0] for draws in grouped(advised)]
    yield line("float", [[score(one.results["fp"]).top1] for one in first], "none")
    paper = "rtn, channel absmax"
    yield line("RTN", [[score(one.named(paper)["test"]).top1] for one in first], "none")


def ways(advised: Sequence[Advised]) -> Iterator[str]:
    """Every way that all receivers have, and what advise recommends."""
    picks: dict[str, Callable[[Advised], Json | None]] = {
        title: lambda one, pick=pick: one.nearest(pick)  # type: ignore[misc]
        for title, pick in WAYS.items()
    }
    picks["advise"] = lambda one: one.named(one.results["chosen"])
    for title, pick in picks.items():
        rows = [[pick(one) for one in draws] for draws in grouped(advised)]
        known = [[row for row in draws if row] for draws in rows]
        if all(len(draws) == len(kept) and kept for draws, kept in zip(rows, known, strict=True)):
            use = known[0][0]["data_use"]["level"].replace("_", " ")
            yield line(title, [[score(r["test"]).top1 for r in draws] for draws in known], use)


def files(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """What quantize writes without being asked for more, and what own images and labels give."""
    for kind, (title, use) in KINDS.items():
        cells = [measured(folder, name, kind) for name in names]
        if not any(cells):  # own QAT is made for one width
            continue
        yield line(title, [[each.top1 for each in cell] for cell in cells], use)


def measured(folder: Path, name: str, kind: str) -> list[Score]:
    """What qvec eval says of a file, or of those of each draw."""
    paths = sorted(folder.glob(f"{name}_{kind}.json"))
    return [score(json.loads(path.read_text())["results"]) for path in paths]


def verdicts(advised: Sequence[Advised]) -> str:
    """How often what advise recommends is worse on test than the best plain grid there."""
    worse = 0
    for one in advised:
        plain = [score(row["test"]) for row in one.rows if row["way"] == "rtn"]
        best = max(plain, key=lambda each: each.top1)
        taken = score(one.named(one.results["chosen"])["test"])
        worse += taken.top1 < best.top1 - difference_error(best, taken)
    return f"advise: worse than the best plain grid on test in {worse} of {len(advised)}"


def ranks(advised: Sequence[Advised]) -> str:
    """How each kind of pictures orders the candidates, beside the order of their test accuracy."""
    kinds = [*next(iter(advised[0].rows))["distance_by"], "both"]
    over: dict[str, list[float]] = {kind: [] for kind in kinds}
    for one in advised:
        tops = np.array([score(row["test"]).top1 for row in one.rows])
        for kind in kinds:
            near = [r["distance"] if kind == "both" else r["distance_by"][kind] for r in one.rows]
            over[kind].append(spearman(-np.array(near), tops) or 0.0)
    shown = ", ".join(f"{kind} {fmean(each):+.2f}" for kind, each in over.items())
    return f"rank correlation of the measure with test accuracy over candidates, by: {shown}"


def shares(advised: Sequence[Advised]) -> str:
    """What advise printed of its choice beside the share of the float accuracy that it has."""
    parts = []
    for one in advised:
        row, full = one.named(one.results["chosen"]), score(one.results["fp"]).top1
        low, high = one.results["expected"]
        share = score(row["test"]).top1 / full
        word = "in" if low <= share <= high else "out of"
        parts.append(
            f"{one.receiver} {row['kept']:.2f}, {low:.2f} to {high:.2f}: {share:.2f} ({word})"
        )
    title = "kept on the pictures, the range that is printed, kept of the float accuracy"
    return f"{title}: {'; '.join(parts)}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
