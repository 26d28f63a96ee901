"""The table of the zero-data study: what each way to low bits is worth, by receiver and seed.

python zero_shot.py OUT GRID...: for each grid, OUT/*/GRID/grid.jsonl, OUT/*/GRID/*_advise.json and,
where there are any, OUT/*/GRID/*_rules.json.
python zero_shot.py --document TABLE TITLE: a table that was printed, as JSON that qvec plot draws.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from qvec_cli.results.matrix import OWN_QAT, PLAIN, Matrix, lines_of, parse
from qvec_cli.results.records import Score, difference_error
from qvec_cli.results.summary import interval, spearman, summarise

Json = dict[str, Any]

WAYS = {
    "unit": "mean vector, lambda 1",
    "chosen": "mean vector, lambda by agreement",
    "fitted": "vectors, fitted",
    "moments": "GPTQ, donors' moments",
    "noise": "GPTQ, 1/f noise",
    "float": "GPTQ, others' images",
    "float mixed": "GPTQ, generated and others', diversified",
    "refined": "the same, refined",
}
"""Ways of advise, each on the grid that its own measure prefers among those of equal bits."""

EQUAL_BITS = 0.05

BARS = {
    "RTN": "rounding, paper's grid",
    "mean vector, lambda 1": "mean of others' vectors",
    "best plain grid by agreement": "rounding, best plain grid",
    "own QAT": "the receiver's own QAT",
    "GPTQ, donors' moments": "GPTQ on donors' moments",
    "quantize --preset best": "GPTQ on generated pictures",
    "GPTQ, others' images": "GPTQ on others' images",
    "advise": "qvec advise",
}
"""Ways of the first grid that figures show, and what they call them; float is a line."""

USES = {"labels": "receiver_labels", "proxies": "proxy_images", "-": None}
"""Receiver data in the words of some rows; others write a level's name with spaces."""


@dataclass(frozen=True)
class Cell:
    """One receiver of one seed, or one pair."""

    receiver: str
    before: Score  # plain rounding on the run's grid
    after: Score

    @property
    def gain(self) -> float:
        """In shares of the test images."""
        return self.after.top1 - self.before.top1

    @property
    def worse(self) -> bool:
        """Below plain rounding by more than a standard error."""
        return self.gain < -difference_error(self.before, self.after)


@dataclass(frozen=True)
class Row:
    """One way, over all its cells."""

    name: str
    cells: Sequence[Cell]
    use: str

    def text(self, gaps: Mapping[str, Sequence[float]]) -> str:
        """Means over receivers of means over their cells."""
        names = list(dict.fromkeys(cell.receiver for cell in self.cells))
        gains = [[c.gain for c in self.cells if c.receiver == name] for name in names]
        gap = [fmean(gaps[name]) for name in names]
        mean = fmean(map(fmean, gains))
        between = interval(gains, over=gap)
        closed = f"{mean / fmean(gap):.0%}"
        span = f"{between[0]:.0%} to {between[1]:.0%}" if between else "-"
        top1 = fmean(fmean(c.after.top1 for c in self.cells if c.receiver == n) for n in names)
        worse = f"{fmean(c.worse for c in self.cells):.1%}"
        return "\t".join((self.name, f"{top1:.4f}", closed, span, worse, self.use))


def main(out: Path, grids: Sequence[str]) -> None:
    """Prints every grid's table."""
    for grid in grids:
        runs = [matrix(path) for path in sorted(out.glob(f"*/{grid}/grid.jsonl"))]
        advised = documents(out, grid, "advise")
        ruled = documents(out, grid, "rules")
        seeds = f"{len(runs)} seed{'s' if len(runs) > 1 else ''}"
        print(f"{runs[0].grid}, {len(runs[0].receivers)} receivers, {seeds}")
        print("way\tmean top-1\tgap closed\t95 %\tworse\treceiver data used")
        gaps = _gaps(runs)
        several = (*_ruled(ruled), *_advised(runs, advised))
        for row in (*_one_donor(runs), *_baselines(runs), *several):
            print(row.text(gaps))
        for line in (
            *_regret(runs),
            *_ranks(runs),
            *_decisions(advised),
            _judges(advised),
            _kept(advised),
        ):
            print(line)


def document(table: Path, title: str) -> Json:
    """A printed table as a document of kind ways: the tables of all grids, the first with bars."""
    tables: list[Json] = []
    for line in table.read_text().splitlines():
        cells = line.split("\t")
        if re.fullmatch(r".* receivers, \d+ seeds?", line):
            tables.append({"title": line, "ways": [], "bars": [], "reference": None})
        elif len(cells) == 6 and cells[0] != "way":
            name, top1, closed, span, worse, use = cells
            row = {"way": name, "top1": float(top1), "gap_closed": _share(closed)}
            row["interval"] = [_share(end) for end in span.split(" to ")] if span != "-" else None
            row |= {"worse": _share(worse), "data_use": USES.get(use, use.replace(" ", "_"))}
            tables[-1]["ways"].append(row)
    known = {row["way"] for row in tables[0]["ways"]}
    bars = [{"way": way, "label": label} for way, label in BARS.items() if way in known]
    tables[0]["bars"] = bars
    tables[0]["reference"] = "float"
    return {"kind": "ways", "schema": 1, "title": title, "tables": tables}


def _share(percent: str) -> float:
    """A printed percentage as a share."""
    return round(float(percent.removesuffix("%")) / 100, 4)


def matrix(path: Path) -> Matrix:
    """One run."""
    return parse(lines_of(path.read_text(), str(path)))


def documents(out: Path, grid: str, kind: str) -> list[tuple[str, str, Json]]:
    """Seed, receiver and document of every file of that kind."""
    files = []
    for path in sorted(out.glob(f"*/{grid}/*_{kind}.json")):
        name = path.name.removesuffix(f"_{kind}.json")
        files.append((path.parts[-3], name, json.loads(path.read_text())))
    return files


def _gaps(runs: Sequence[Matrix]) -> dict[str, list[float]]:
    gaps = defaultdict(list)
    for run in runs:
        for name, rows in run.baselines.items():
            gaps[name].append(rows[OWN_QAT].test.top1 - rows[PLAIN].test.top1)
    return gaps


def _one_donor(runs: Sequence[Matrix]) -> Iterator[Row]:
    """Ways to choose lambda for one vector, and for vectors that carry nothing."""
    cells = [(run, cell) for run in runs for cell in run.transfers]
    uses = {"val": "labels", "agreement": "proxies"}

    def row(name: str, scored: Sequence[tuple[Matrix, Any, Score]], use: str) -> Row:
        return Row(name, [Cell(c.receiver, r.plain(c.receiver), s) for r, c, s in scored], use)

    yield row("one vector, lambda 1", [(r, c, c.fixed[0].test) for r, c in cells], "none")
    for key, use in uses.items():
        name = "lambda* (labels)" if key == "val" else "lambda by agreement"
        yield row(f"one vector, {name}", [(r, c, c.chosen[key].test) for r, c in cells], use)
    yield row("one vector, best on test", [(r, c, _best(c)) for r, c in cells], "-")
    for null in runs[0].run["nulls"]:
        kept = [(r, c) for r in runs for c in r.cells.values() if c.null == null and not c.diagonal]
        chosen = [(r, c, c.chosen["agreement"].test) for r, c in kept]
        yield row(f"null {null}, lambda by agreement", chosen, "proxies")


def _best(cell: Any) -> Score:
    """At the lambda that is best on test, chosen on each half of the images for the other."""
    return cell.oracle.crossed


def _baselines(runs: Sequence[Matrix]) -> Iterator[Row]:
    names = {"fp": "float", PLAIN: "RTN", OWN_QAT: "own QAT"}
    for key, first in runs[0].baselines[next(iter(runs[0].baselines))].items():
        cells = [
            Cell(name, rows[PLAIN].test, rows[key].test)
            for run in runs
            for name, rows in run.baselines.items()
            if key in rows
        ]
        yield Row(names.get(key, key), cells, first.use.replace("_", " "))


def _ruled(ruled: Sequence[tuple[str, str, Json]]) -> Iterator[Row]:
    """Vectors that rules other than the mean have made, each at a lambda by agreement."""
    by_rule: dict[str, list[Cell]] = defaultdict(list)
    for _, name, document in ruled:
        results = document["results"]
        plain = _score(results["baselines"]["ptq"]["test"])
        for donor in results["donors"]:
            rule = Path(donor["chosen"]["rho"]).stem.removeprefix(f"{name}_")
            by_rule[rule].append(Cell(name, plain, _score(donor["chosen"]["test"])))
    for rule, cells in sorted(by_rule.items()):
        yield Row(f"{rule.upper()} of the vectors, lambda by agreement", cells, "proxy images")


def _advised(runs: Sequence[Matrix], advised: Sequence[tuple[str, str, Json]]) -> Iterator[Row]:
    """Ways of advise, and what it recommends."""
    plain = {
        (seed, name): run.plain(name)
        for run, seed in zip(runs, sorted({seed for seed, _, _ in advised}), strict=True)
        for name in run.baselines
    }
    picks: dict[str, list[Cell]] = defaultdict(list)
    uses: dict[str, str] = {}
    for seed, name, document in advised:
        results = document["results"]
        equal = _equal(results)
        chosen = next(row for row in equal if row["name"] == results["chosen"])
        best_plain = next(row for row in equal if row["name"] == results["best_plain"])
        named = [("best plain grid by agreement", best_plain), ("advise", chosen)]
        for way, title in WAYS.items():
            rows = [row for row in equal if row["way"] == way]
            if rows:
                named.append((title, min(rows, key=lambda row: row["distance"])))
            elif way in {"chosen", "fitted"}:  # lambda 0: plain quantization
                named.append((title, next(r for r in equal if _same_grid(r, document))))
        for title, row in named:
            picks[title].append(Cell(name, plain[seed, name], _score(row["test"])))
            uses.setdefault(title, row["data_use"]["level"].replace("_", " "))
    order = ["best plain grid by agreement", *WAYS.values(), "advise"]
    whole = {title for title, cells in picks.items() if len(cells) == len(advised)}
    for title in (title for title in order if title in whole):
        yield Row(title, picks[title], uses[title])


def _equal(results: Json) -> list[Json]:
    """Candidates that cost as much as a scale and a zero point a row."""
    most = max(row["bits_per_weight"] for row in results["candidates"] if _by_row(row))
    return [r for r in results["candidates"] if r["bits_per_weight"] <= most + EQUAL_BITS]


def _by_row(row: Json) -> bool:
    return row["grid"]["granularity"] == "channel"


def _same_grid(row: Json, document: Json) -> bool:
    unit = next(r for r in document["results"]["candidates"] if r["way"] == "unit")
    return row["way"] == "rtn" and row["grid"] == unit["grid"]


def _score(test: Json) -> Score:
    return Score.of(test["n"], test["n_correct"])


def _regret(runs: Sequence[Matrix]) -> Iterator[str]:
    """What the best lambda on test would have given more, as a share of what it gains."""
    by_run = [summarise(run)["ways"] for run in runs]
    for way, name in (("lambda 1", "lambda 1"), ("val", "labels"), ("agreement", "agreement")):
        lost = fmean(ways[way]["regret"]["mean"] for ways in by_run)
        gain = fmean(ways["crossed"]["mean"] for ways in by_run)
        yield f"regret of lambda by {name}: {100 * lost:.1f} points, {lost / gain:.0%} of the gain"
    cells = [(run.plain(c.receiver), c.chosen) for run in runs for c in run.transfers]
    yield _of_labels([(p, way["agreement"].test, way["val"].test) for p, way in cells])


def _of_labels(chosen: Sequence[tuple[Score, Score, Score]]) -> str:
    """What agreement gains of what labels do: rounding, by agreement, by labels on validation."""
    ours, theirs = (fmean(c[place].top1 - c[0].top1 for c in chosen) for place in (1, 2))
    worse = fmean(Cell("", plain, agreed).worse for plain, agreed, _ in chosen)
    share = f"{ours / theirs:.0%}" if theirs > 0 else "-"
    return (
        f"lambda by agreement: {100 * ours:+.1f} points where labels gain {100 * theirs:+.1f} "
        f"({share}); worse than lambda 0 in {worse:.0%} of the pairs"
    )


def _ranks(runs: Sequence[Matrix]) -> Iterator[str]:
    """How donors rank by what they gain on test, and as a share of how labels rank them."""
    labels = "gain on validation (labels)"
    scores: dict[str, Callable[[Matrix, Any], float]] = {
        "damage explained": lambda run, cell: cell.score.explained,
        "damage removed": lambda run, cell: cell.score.removed,
        "cosine of the vectors": _cosine,
        labels: lambda run, cell: (
            max(p.val.top1 for p in cell.curve) - next(p.val.top1 for p in cell.curve if p.lam == 0)
        ),
    }
    found = {name: _rank(runs, score) for name, score in scores.items()}
    for name, ranks in found.items():
        over, within = (
            "-" if rank is None else f"{rank:+.2f}" + (f" ({rank / top:.0%})" if top else "")
            for rank, top in zip(ranks, found[labels], strict=True)
        )
        yield (
            f"donors ranked by {name}: {over} with the best gain on test over all pairs, "
            f"{within} within a receiver"
        )


def _rank(
    runs: Sequence[Matrix], score: Callable[[Matrix, Any], float]
) -> tuple[float | None, float | None]:
    """Mean rank correlation of a score with the best gain: over all pairs, within a receiver."""
    over: list[float | None] = []
    within: list[float | None] = []
    for run in runs:
        cells = run.transfers
        gains = np.array([run.gain(c.receiver, _best(c)) for c in cells])
        values = np.array([score(run, cell) for cell in cells])
        names = np.array([cell.receiver for cell in cells])
        over.append(spearman(values, gains))
        each = [n for n in dict.fromkeys(names) if (names == n).sum() > 2]
        within += [spearman(values[names == n], gains[names == n]) for n in each]
    return _mean(over), _mean(within)


def _mean(ranks: Sequence[float | None]) -> float | None:
    """Of those that there are: two donors have no rank, nor have scores that do not vary."""
    known = [rank for rank in ranks if rank is not None]
    return fmean(known) if known else None


def _cosine(run: Matrix, cell: Any) -> float:
    """Of a donor's vector and the receiver's own, row by row; 0 where it is not known."""
    table = run.alignment
    if table is None or not {cell.receiver, cell.donor} <= {*table.donors}:
        return 0.0
    return table.rows[table.donors.index(cell.receiver)][table.donors.index(cell.donor)]


def _decisions(advised: Sequence[tuple[str, str, Json]]) -> Iterator[str]:
    """How often advise took the best candidate, and what it lost where it did not."""
    right, lost, below = [], [], []
    counts: dict[str, int] = defaultdict(int)
    for _, _, document in advised:
        results = document["results"]
        equal = _equal(results)
        scores = {row["name"]: _score(row["test"]) for row in equal}
        taken, plain = scores[results["chosen"]], scores[results["best_plain"]]
        best = max(scores.values(), key=lambda score: score.n_correct)
        lost.append(best.top1 - taken.top1)
        right.append(lost[-1] <= difference_error(best, taken))
        below.append(taken.top1 < plain.top1 - difference_error(taken, plain))
        counts[results["decision"]] += 1
    decisions = ", ".join(f"{count} {decision}" for decision, count in sorted(counts.items()))
    yield f"advise: {decisions}"
    yield (
        f"advise: within a standard error of the best candidate on test in {fmean(right):.0%}, "
        f"{100 * fmean(lost):.1f} points below it on average, {100 * max(lost):.1f} at most; "
        f"worse than the best plain grid in {fmean(below):.0%}"
    )


def _kept(advised: Sequence[tuple[str, str, Json]]) -> str:
    """What the share of float answers that a candidate keeps on others' images says of accuracy."""
    by_tenth: dict[int, list[float]] = defaultdict(list)
    for _, _, document in advised:
        full = _score(document["results"]["fp"]).top1
        for row in document["results"]["candidates"]:
            by_tenth[min(9, int(10 * row["kept"]))].append(_score(row["test"]).top1 / full)
    shown = (
        f"{tenth / 10:.1f} {fmean(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"
        for tenth, shares in sorted(by_tenth.items())
    )
    return f"share of float accuracy by share of float answers kept, from: {', '.join(shown)}"


def _judges(advised: Sequence[tuple[str, str, Json]]) -> str:
    """How the pictures that judge rank the candidates of a receiver, beside labels."""
    ranks: dict[str, list[float]] = defaultdict(list)
    for _, _, document in advised:
        rows = document["results"]["candidates"]
        top1 = np.array([_score(row["test"]).top1 for row in rows])
        for kind in sorted({kind for row in rows for kind in row.get("distance_by", {})}):
            found = spearman(-np.array([row["distance_by"][kind] for row in rows]), top1)
            if found is not None:
                ranks[kind].append(found)
        found = spearman(-np.array([row["distance"] for row in rows]), top1)
        ranks["both"].append(found or 0.0)
    shown = (
        f"{kind} {fmean(values):+.2f} (least {min(values):+.2f})" for kind, values in ranks.items()
    )
    return (
        f"candidates ranked by distance, with top-1 on test within a receiver: {', '.join(shown)}"
    )


if __name__ == "__main__":
    if sys.argv[1] == "--document":
        print(json.dumps(document(Path(sys.argv[2]), sys.argv[3]), indent=1))
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
