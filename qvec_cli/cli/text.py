"""Words that several results share: sizes, lists, accuracies, moments, plans, the gains table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.tame import counted

if TYPE_CHECKING:
    from qvec_cli.specs import Use

Facts = Mapping[str, Any]
"""What metrics hold as results, or a part of it."""

_BASELINES: Final = {"fp": "float", "ptq": "RTN", "qat": "own QAT"}

_WAYS: Final = {
    "val": "lambda* (labels)",
    "agreement": "lambda by agreement",
    "oracle": "best on test",
    "crossed": "best on test, cross-fitted",
}

_HEAD: Final = ("with a vector", "gain", "95 %", "median", "wins", "losses", "gap closed", "regret")


def size(count: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.3g} GB"


def some(names: list[str], shown: int = 4) -> str:
    """The first of some names, and how many there are more."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more if names else "nothing"


def accuracy(result: Facts | None) -> str:
    """Top-1 with its standard error and its counts; a dash where it is not known."""
    if result is None:
        return "-"
    return (
        f"{result['top1']:.4f} +- {result['standard_error']:.4f} "
        f"({result['n_correct']}/{result['n']})"
    )


def moments_text(facts: Facts) -> str:
    """Of which images moments are, and how much of them is kept."""
    kept = f"rank {facts['rank']} and diagonal" if facts["rank"] else "whole"
    kept += " in float16" if facts.get("half") else ""
    names = some(list(dict.fromkeys(source["name"] for source in facts["sources"])))
    return f"moments of {counted(facts['images'], 'image')} ({names}), {kept}"


def data_use_text(use: Use) -> str:
    """What of the receiver's data a result has used."""
    counts = ", ".join(f"{count} {what}" for what, count in use.counts.items())
    return f"receiver data used: {use.level}{f' ({counts})' if counts else ''}"


def plan_text(plan: Facts) -> Iterator[str]:
    """The answer to --dry-run."""
    yield f"would write {plan['output'] or 'nothing'}; nothing was written"
    out = f", to write {size(plan['bytes_out'])}" if plan["bytes_out"] is not None else ""
    yield f"to read {size(plan['bytes_in'])}{out}"
    if plan["images"]:
        yield f"images: {', '.join(f'{n} {split}' for split, n in plan['images'].items())}"
    if not plan["tensors"]:
        return
    fates = Counter(tensor["fate"] for tensor in plan["tensors"])
    yield f"tensors: {', '.join(f'{count} {fate}' for fate, count in fates.items())}"
    yield "tensor\tdtype\tshape\tfate"
    for tensor in plan["tensors"]:
        yield f"{tensor['name']}\t{tensor['dtype']}\t{tensor['shape']}\t{tensor['fate']}"


def gains_table(summary: Facts) -> Iterator[str]:
    """A transfer grid's mean gains over receivers, in points of top-1, and what foretells them."""
    from qvec_cli.results.summary import gain_cells  # numpy, which no help text needs

    yield "without a donor\tmean top-1\treceiver data used"
    for name, row in summary["baselines"].items():
        yield f"{_BASELINES.get(name, name)}\t{row['top1']:.4f}\t{', '.join(row['data_use'])}"
    yield "\t".join(_HEAD)
    yield from map("\t".join, gain_cells(summary, _way, "{:+.1f}".format))
    yield from _donor_lines(summary)
    for kind, cosines in (summary["alignment"] or {}).items():
        yield from _cosine_line(kind, cosines)
    for kind, ranks in (summary["donor_score"] or {}).items():
        yield from _donor_score_line(kind, ranks)


def _donor_lines(summary: Facts) -> Iterator[str]:
    """The best and the worst of several donors."""
    for way, donors in summary["donors"].items():
        if len(donors) > 1:
            (best, most), *_, (worst, least) = donors.items()
            yield f"donors, {_way(way)}\t{best} {100 * most:+.1f}\t{worst} {100 * least:+.1f}"


def _way(name: str) -> str:
    return _WAYS.get(name, name)


def _cosine_line(kind: str, cosines: Facts) -> Iterator[str]:
    """How far the cosines of vectors tell which donor helps."""
    ranks = []
    for way, value in cosines.items():
        if way != "mean" and value and value["spearman"] is not None:
            chance = "" if value["p"] is None else f" (p {value['p']:.2g})"
            ranks.append(f"{_way(way)} {value['spearman']:+.2f}{chance}")
    if ranks:
        yield f"cosine, {kind}: mean {cosines['mean']:.3f}; rank with gain: {', '.join(ranks)}"


def _donor_score_line(kind: str, ranks: Facts) -> Iterator[str]:
    """How donors' scores, made without labels, rank the pairs."""
    if ranks["spearman"] is not None:
        within = ranks["within_receivers"]
        each = "-" if within is None else f"{within:+.2f}"
        yield (
            f"donor score, damage {kind}: rank with best gain on test: over all pairs "
            f"{ranks['spearman']:+.2f}, within a receiver {each}"
        )
