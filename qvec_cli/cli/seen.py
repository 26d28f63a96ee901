"""What results say of moments, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qvec_cli.cli.words import size, some

Facts = Mapping[str, Any]


def moments(results: Facts) -> Iterator[str]:
    """What qvec moments has written, and what it costs."""
    share = results["bytes"] / results["model_bytes"]
    yield (
        f"{results['output']}: {moments_in_words(results)} for {results['layers']} layers, "
        f"{len(results['tokens'])} of them with inputs of their own"
    )
    yield f"{size(results['bytes'])}, {share:.2f} of the model's {size(results['model_bytes'])}"


def moments_in_words(facts: Facts) -> str:
    """Of which images they are, and how much of them is kept."""
    kept = f"rank {facts['rank']} and diagonal" if facts["rank"] else "whole"
    names = some(list(dict.fromkeys(source["name"] for source in facts["sources"])))
    return f"moments of {facts['images']} images ({names}), {kept}"
