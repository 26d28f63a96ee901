"""Which block and which kind of layer a quantized weight is of: the facts of the figure layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from qvec_cli.errors import MismatchError
from qvec_cli.report.layers import Strip, Strips
from qvec_cli.results.documents import Layers

Place = tuple[tuple[int, ...], tuple[str, ...]]
"""The numbers of a name, and the words behind its last number."""


def strips_of(models: Sequence[Layers]) -> Strips:
    """One strip a model, over all blocks and layers that any of them has.

    Raises:
        MismatchError: a document without a single quantized weight.
    """
    for model in models:
        if not model.sqnr:
            raise MismatchError(f"{model.file}: tells of no quantized weight")
    places = {name: place_of(name) for model in models for name in model.sqnr}
    blocks = sorted({numbers for numbers, _ in places.values()})
    layers = short(dict.fromkeys(words for _, words in places.values()))
    kinds = list(dict.fromkeys(f"{model.grid}, {model.method}" for model in models))
    drawn = tuple(
        _strip(model, places, blocks, list(layers), told=len(kinds) > 1) for model in models
    )
    notes = ["10 log10(sum w\u00b2 / sum (w - q)\u00b2) of each weight"]
    if any(np.isnan(strip.ratios).any() for strip in drawn):
        notes.append("hatched: no such weight")
    if len(drawn) > 1:
        notes.append("one scale for all strips")
    return Strips(
        "How far quantized weights are from the float ones",
        "; ".join(kinds),
        tuple(layers.values()),
        tuple(".".join(map(str, numbers)) or "-" for numbers in blocks),
        drawn,
        "; ".join(notes),
    )


def _strip(
    model: Layers,
    places: Mapping[str, Place],
    blocks: Sequence[tuple[int, ...]],
    layers: Sequence[tuple[str, ...]],
    *,
    told: bool,
) -> Strip:
    ratios = np.full((len(layers), len(blocks)), np.nan)
    for tensor, ratio in model.sqnr.items():
        numbers, words = places[tensor]
        value = math.inf if ratio is None else ratio
        ratios[layers.index(words), blocks.index(numbers)] = value
    known = [ratio for ratio in model.sqnr.values() if ratio is not None]
    mean = f", mean {sum(known) / len(known):.1f} dB" if known else ""
    kind = f", {model.grid}, {model.method}" if told else ""
    return Strip(f"{model.name}{kind}{mean}", ratios)


def place_of(name: str) -> Place:
    """``blocks.3.attn.qkv.weight`` is the layer attn.qkv of block 3."""
    parts = name.removesuffix(".weight").split(".")
    numbers = tuple(int(part) for part in parts if part.isdecimal())
    last = max((place for place, part in enumerate(parts) if part.isdecimal()), default=-1)
    return numbers, tuple(parts[last + 1 :]) or tuple(
        part for part in parts if not part.isdecimal()
    )


def short(layers: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Each layer by its last word, and by more words where two would be the same."""
    found = list(layers)
    names = {}
    for words in found:
        count = 1
        while count < len(words) and sum(w[-count:] == words[-count:] for w in found) > 1:
            count += 1
        names[words] = ".".join(words[-count:])
    return names
