"""What a transfer grid comes to, in rows: mean gains over receivers, in points of top-1 on test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from qvec_cli.results.summary import gain_cells

Facts = Mapping[str, Any]


_BASELINES: Final = {"fp": "float", "ptq": "RTN", "qat": "own QAT"}

_WAYS: Final = {
    "val": "lambda* (labels)",
    "agreement": "lambda by agreement",
    "oracle": "best on test",
}

_HEAD: Final = ("with a vector", "gain", "95 %", "median", "wins", "losses", "gap closed", "regret")


def rows(summary: Facts) -> Iterator[str]:
    """A summary, a line for each baseline and each way to choose lambda."""
    yield "without a donor\tmean top-1\treceiver data used"
    for name, row in summary["baselines"].items():
        yield f"{_BASELINES.get(name, name)}\t{row['top1']:.4f}\t{', '.join(row['data_use'])}"
    yield "\t".join(_HEAD)
    yield from map("\t".join, gain_cells(summary, _way, "{:+.1f}".format))
    yield from _donors(summary["donors"])
    for kind, table in (summary["alignment"] or {}).items():
        yield from _aligned(kind, table)
    yield from _scored(summary["donor_score"] or {})


def _scored(kinds: Mapping[str, Facts]) -> Iterator[str]:
    """How donors' scores, made without labels, rank the pairs."""
    for kind, found in kinds.items():
        if found["spearman"] is not None:
            within = found["within_receivers"]
            each = "-" if within is None else f"{within:+.2f}"
            yield (
                f"donor score, damage {kind}: rank with best gain on test: over all pairs "
                f"{found['spearman']:+.2f}, within a receiver {each}"
            )


def _way(name: str) -> str:
    return _WAYS.get(name, name)


def _donors(ways: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """The best and the worst of several donors."""
    for way, donors in ways.items():
        if len(donors) > 1:
            (best, most), *_, (worst, least) = donors.items()
            yield f"donors, {_way(way)}\t{best} {100 * most:+.1f}\t{worst} {100 * least:+.1f}"


def _aligned(kind: str, table: Facts) -> Iterator[str]:
    """How far the cosines of vectors tell which donor helps."""
    told = []
    for way, value in table.items():
        if way != "mean" and value and value["spearman"] is not None:
            chance = "" if value["p"] is None else f" (p {value['p']:.2g})"
            told.append(f"{_way(way)} {value['spearman']:+.2f}{chance}")
    if told:
        yield f"cosine, {kind}: mean {table['mean']:.3f}; rank with gain: {', '.join(told)}"
