"""What a transfer grid comes to: gains, losses, regret, donors, and what explains them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter, itemgetter
from statistics import fmean, median
from typing import Any

import numpy as np

from qvec_cli.ops.statistics import chance, interval, spearman

Line = Mapping[str, Any]
Facts = dict[str, Any]
Take = Callable[[Line], Any]
Counts = dict[tuple[str, str], tuple[int, int]]
"""Right ones and images, of a receiver and a donor."""

ORACLE = "oracle"
"""The lambda that is best on test: nobody can choose it, and regret is measured against it."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a vector has changed on a receiver at one way to choose lambda."""

    receiver: str
    donor: str
    before: float  # top-1 of plain rounding
    after: float
    error: float  # standard error of the difference, were the two independent

    @property
    def gain(self) -> float:
        """In shares of the test images."""
        return self.after - self.before


def summarise(runs: Sequence[Sequence[Line]]) -> Facts:
    """Statistics over the cells of one grid, or of several with the same names (seeds).

    Several are pooled cell by cell: counts of images are added. Own vectors (the diagonal) and
    null vectors are kept out of all but their own rows.
    """
    lines = [line for run in runs for line in run]
    plain = _tests(_of(lines, "receiver"), "ptq")
    cells, gap = _of(lines, "cell"), _gap(lines)
    own = [c for c in cells if c["diagonal"] and c["null"] is None]
    others = [c for c in cells if not c["diagonal"]]
    ways = _ways(cells)
    found = {
        kind: {
            way: _changes([c for c in others if c["null"] == kind], plain, take)
            for way, take in ways.items()
        }
        for kind in dict.fromkeys(c["null"] for c in others)
    }
    changes = found.get(None, {})
    best = changes.get(ORACLE)
    return {
        "runs": len(runs),
        "receivers": len(plain),
        "baselines": _baselines(lines),
        "ways": {way: _statistics(c, gap, best) for way, c in changes.items()},
        "own_vector": {
            way: fmean(c.gain for c in _changes(own, plain, take)) if own else None
            for way, take in ways.items()
        },
        "nulls": {
            kind: {way: _statistics(c, gap, None) for way, c in measured.items()}
            for kind, measured in found.items()
            if kind is not None
        },
        "donors": {way: _by(c, attrgetter("donor")) for way, c in changes.items()},
        "per_receiver": {way: _by(c, attrgetter("receiver")) for way, c in changes.items()},
        "alignment": _alignment(lines, changes),
    }


def _of(lines: Iterable[Line], kind: str) -> list[Line]:
    return [line for line in lines if line["kind"] == kind]


def _ways(cells: Sequence[Line]) -> dict[str, Take]:
    """The ways to choose lambda that the cells know, by name; each picks a point of a cell."""
    ways: dict[str, Take] = {}
    for cell in cells:
        for place, point in enumerate(cell["fixed"]):
            ways[f"lambda {point['lambda']:g}"] = partial(_pick, "fixed", place)
        for name in cell["chosen"]:
            ways[name] = partial(_pick, "chosen", name)
    if all(cell["oracle"] for cell in cells):
        ways[ORACLE] = itemgetter("oracle")
    return ways


def _pick(part: str, place: Any, cell: Line) -> Any:
    return cell[part][place]


def _tests(rows: Sequence[Line], key: str) -> Counts:
    """A baseline of each receiver, over all runs."""
    having = [row for row in rows if key in row["baselines"]]
    return _pooled((r["receiver"], "", r["baselines"][key]["test"]) for r in having)


def _pooled(scores: Iterable[tuple[str, str, Line]]) -> Counts:
    found: Counts = defaultdict(lambda: (0, 0))
    for receiver, donor, score in scores:
        right, count = found[receiver, donor]
        found[receiver, donor] = (right + score["n_correct"], count + score["n"])
    return dict(found)


def _changes(cells: Sequence[Line], plain: Counts, take: Take) -> list[Change]:
    pooled = _pooled((c["receiver"], c["donor"], take(c)["test"]) for c in cells)
    changes = []
    for (receiver, donor), counted in pooled.items():
        before, after = _share(plain[receiver, ""]), _share(counted)
        spread = before * (1 - before) / plain[receiver, ""][1] + after * (1 - after) / counted[1]
        changes.append(Change(receiver, donor, before, after, math.sqrt(spread)))
    return changes


def _statistics(
    changes: Sequence[Change], gap: Mapping[str, float], best: Sequence[Change] | None
) -> Facts:
    """What a way to choose lambda is worth; shares of test images, and of pairs."""
    units: dict[str, list[float]] = defaultdict(list)
    for change in changes:
        units[change.receiver].append(change.gain)
    gains = [c.gain for c in changes]
    share = {
        "win": fmean(c.gain > c.error for c in changes),
        "loss": fmean(c.gain < -c.error for c in changes),
        "better": fmean(c.gain > 0 for c in changes),
    }
    return {
        "pairs": len(changes),
        "mean": fmean(fmean(unit) for unit in units.values()),
        "interval": interval([*units.values()]),
        "median": median(gains),
        "least": min(gains),
        "most": max(gains),
        "rates": share,
        "top1": fmean(fmean(c.after for c in changes if c.receiver == name) for name in units),
        "gap_closed": _closed(units, gap),
        "regret": _regret(changes, best),
    }


def _closed(units: Mapping[str, Sequence[float]], gap: Mapping[str, float]) -> Facts | None:
    """Mean gain as a share of what the receivers' own QAT gains, over those that have one."""
    known = [name for name in units if name in gap]
    total = fmean(gap[name] for name in known) if known else 0.0
    if total <= 0:
        return None
    gains = [units[name] for name in known]
    return {
        "share": fmean(map(fmean, gains)) / total,
        "interval": interval(gains, over=[gap[name] for name in known]),
        "receivers": len(known),
    }


def _regret(changes: Sequence[Change], best: Sequence[Change] | None) -> Facts | None:
    """What the best lambda on test would have given more, in all and as a share of its gain."""
    if best is None:
        return None
    top = {(c.receiver, c.donor): c for c in best}
    lost = [top[c.receiver, c.donor].after - c.after for c in changes]
    gain = fmean(top[c.receiver, c.donor].gain for c in changes)
    return {
        "mean": fmean(lost),
        "most": max(lost),
        "share": fmean(lost) / gain if gain > 0 else None,
    }


def _gap(lines: Sequence[Line]) -> dict[str, float]:
    """What each receiver's own QAT gains over plain rounding, where there is one."""
    rows = [line for line in _of(lines, "receiver") if "qat" in line["baselines"]]
    qat, ptq = _tests(rows, "qat"), _tests(rows, "ptq")
    return {pair[0]: _share(qat[pair]) - _share(ptq[pair]) for pair in qat}


def _share(counted: tuple[int, int]) -> float:
    return counted[0] / counted[1]


def _baselines(lines: Sequence[Line]) -> Facts:
    """Mean top-1 over receivers of what needs no donor, and what of their data it used."""
    rows = _of(lines, "receiver")
    found = {}
    for key in dict.fromkeys(key for row in rows for key in row["baselines"]):
        tests = _tests(rows, key)
        uses = {r["baselines"][key]["data_use"] for r in rows if key in r["baselines"]}
        found[key] = {
            "top1": fmean(map(_share, tests.values())),
            "receivers": len(tests),
            "data_use": sorted(uses),
        }
    return found


def _by(changes: Sequence[Change], name: Callable[[Change], str]) -> Facts:
    """Mean gain of each member, the best first."""
    groups: dict[str, list[float]] = defaultdict(list)
    for change in changes:
        groups[name(change)].append(change.gain)
    means = {member: fmean(gains) for member, gains in groups.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def _alignment(lines: Sequence[Line], changes: Mapping[str, Sequence[Change]]) -> Facts | None:
    """Whether vectors that point the receiver's own way gain more; tasks on both sides count."""
    tables = _of(lines, "alignment")
    if not tables:
        return None
    names = tables[0]["donors"]
    place = {name: index for index, name in enumerate(names)}
    facts: Facts = {}
    for kind in ("global", "rows"):
        cosine = np.mean([table[kind] for table in tables], axis=0)
        off = ~np.eye(len(names), dtype=bool)
        facts[kind] = {"mean": float(cosine[off].mean()) if len(names) > 1 else None}
        for way, found in changes.items():
            gain = np.full(cosine.shape, np.nan)
            for change in found:
                if change.receiver in place and change.donor in place:
                    gain[place[change.receiver], place[change.donor]] = change.gain
            facts[kind][way] = _explained(cosine, gain)
    return facts


def _explained(cosine: Any, gain: Any) -> Facts | None:
    kept = ~np.eye(len(cosine), dtype=bool) & ~np.isnan(gain)
    if kept.sum() < 3:
        return None
    return {"spearman": spearman(cosine[kept], gain[kept]), "p": chance(cosine, gain)}
