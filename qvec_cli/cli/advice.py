"""What advise has found, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Facts = Mapping[str, Any]


def advised(results: Facts) -> Iterator[str]:
    """Every candidate, the decision, and the commands that carry it out."""
    judged = "fp" in results
    count, measure = results["proxies"]["n"], results["measure"]
    yield f"distance to the float answers on {count} proxy images that no candidate saw, {measure}"
    yield "candidate\tbits/weight\tdistance\tkept\treceiver data used" + (
        "\ttest top-1" if judged else ""
    )
    for row in sorted(results["candidates"], key=lambda row: row["distance"]):
        mark = "\t<-" if row["name"] == results["chosen"] else ""
        test = f"\t{row['test']['top1']:.4f}" if judged else ""
        yield (
            f"{row['name']}\t{row['bits_per_weight']:.2f}\t{row['distance']:.3g} +- "
            f"{row['standard_error']:.2g}\t{row['kept']:.1%}\t{row['data_use']['level']}{test}{mark}"
        )
    if judged:
        yield f"float on test: {results['fp']['top1']:.4f}"
    for row in results["skipped"]:
        yield f"left out: {row['name']}: {row['reason']}"
    yield f"decision: {results['decision']} ({results['sure']}): {results['chosen']}"
    yield f"because {results['why']}"
    for command in results["commands"]:
        yield f"  {command}"
    if "output" in results:
        yield f"{results['output']}: written"
