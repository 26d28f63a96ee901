"""The figure layers: the error of each layer, block by block; several models on one scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from qvec_cli.errors import MismatchError
from qvec_cli.report import canvas
from qvec_cli.report.heatmap import Array, Paint
from qvec_cli.results.documents import Document, ResultFiles
from qvec_cli.results.metrics_document import QuantizeResults
from qvec_cli.specs import spent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RATIOS: Final = "cividis"
"""Dark is noisy, bright is faithful; the map is made for all kinds of colour vision."""

_NUMBERED: Final = 32
"""Blocks up to which each shows its number."""

Place = tuple[tuple[int, ...], tuple[str, ...]]
"""The numbers of a name, and the words behind its last number."""


@dataclass(frozen=True, slots=True)
class Strip:
    """The layers of one quantized model."""

    title: str
    ratios: Array  # [layers, blocks], dB; NaN where there is no such layer, inf: no noise


@dataclass(frozen=True, slots=True)
class Strips:
    """All that a figure of strips shows."""

    title: str
    subtitle: str
    layers: tuple[str, ...]
    blocks: tuple[str, ...]
    strips: tuple[Strip, ...]
    footnote: str


def draw_layers(files: ResultFiles, _: canvas.FigureOptions) -> canvas.Drawing:
    """A strip for each quantized model."""
    models = files.of(QuantizeResults)
    content = strips_of(models)
    titles = ", ".join(strip.title for strip in content.strips)
    words = f"{content.title}. {content.subtitle}. {titles}."
    use = spent(*(model.use for model in models))
    return canvas.Drawing(strips(content), words, {"models": len(models)}, use)


def strips_of(models: Sequence[Document[QuantizeResults]]) -> Strips:
    """One strip a model, over all blocks and layers that any of them has.

    Raises MismatchError: a document without a single quantized weight.
    """
    for model in models:
        if not model.results.ordered:
            raise MismatchError(f"{model.file}: tells of no quantized weight")
    places = {name: place_of(name) for model in models for name in model.results.ordered}
    blocks = sorted({numbers for numbers, _ in places.values()})
    layers = short(dict.fromkeys(words for _, words in places.values()))
    rows = {words: row for row, words in enumerate(layers)}
    columns = {numbers: column for column, numbers in enumerate(blocks)}
    kinds = list(dict.fromkeys(f"{model.grid}, {model.method}" for model in models))
    drawn = []
    for model in models:
        ratios = np.full((len(rows), len(columns)), np.nan)
        for tensor, ratio in model.results.ordered.items():
            numbers, words = places[tensor]
            ratios[rows[words], columns[numbers]] = math.inf if ratio is None else ratio
        known = [ratio for ratio in model.results.ordered.values() if ratio is not None]
        mean = f", mean {canvas.number(sum(known) / len(known), '.1f')} dB" if known else ""
        kind = f", {model.grid}, {model.method}" if len(kinds) > 1 else ""
        drawn.append(Strip(f"{model.name}{kind}{mean}", ratios))
    notes = ["10 log10(sum w\u00b2 / sum (w \N{MINUS SIGN} q)\u00b2) of each weight"]
    if any(np.isnan(strip.ratios).any() for strip in drawn):
        notes.append("hatched: no such weight")
    if len(drawn) > 1:
        notes.append("one scale for all strips")
    return Strips(
        "How far quantized weights are from the float ones",
        "; ".join(kinds),
        tuple(layers.values()),
        tuple(".".join(map(str, numbers)) or "-" for numbers in blocks),
        tuple(drawn),
        "; ".join(notes),
    )


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
    several = list(layers)
    names = {}
    for words in several:
        count = 1
        while count < len(words) and sum(w[-count:] == words[-count:] for w in several) > 1:
            count += 1
        names[words] = ".".join(words[-count:])
    return names


@canvas.style()
def strips(content: Strips) -> Figure:
    """Rows are kinds of layers, columns blocks, one strip below the other."""
    rows, columns = len(content.layers), len(content.blocks)
    cell = 0.36 if columns <= _NUMBERED else 0.16
    left = canvas.words_width([*map(canvas.name, content.layers), "layer"]) + 0.3
    step = rows * 0.24 + 0.5
    foot = max(canvas.words_width(content.blocks) + 0.1, 0.2)
    below = 0.85 + len(content.strips) * step + foot
    width = max(left + columns * cell + 0.3, 5.0)
    sheet = canvas.Sheet(width, below + 0.45, content.title, content.subtitle, content.footnote)
    ratios = np.concatenate([strip.ratios.ravel() for strip in content.strips])
    finite = ratios[np.isfinite(ratios)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    paint = Paint(RATIOS, low, max(high, low + 0.1))
    for place, strip in enumerate(content.strips):
        top = 0.62 + place * step
        title = canvas.name(strip.title, 60)
        sheet.write(left, top, title, fontsize=8.5, fontweight="bold")
        axes = sheet.axes(left, top + 0.22, columns * cell, rows * 0.24)
        _strip(axes, content, strip, paint)
    paint.bar(sheet.axes(left, below, 2.0, 0.11), "signal to quantization noise, dB")
    return sheet.figure


def _strip(axes: Axes, content: Strips, strip: Strip, paint: Paint) -> None:
    rows, columns = strip.ratios.shape
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    shown = np.where(np.isposinf(strip.ratios), paint.high, strip.ratios)
    paint.cells(axes, shown)
    if columns <= _NUMBERED:
        for r, c in np.argwhere(~np.isnan(strip.ratios)):
            value = strip.ratios[r, c]
            text = canvas.number(value, ".1f") if np.isfinite(value) else "\N{INFINITY}"
            paint.write(axes, (r, c), shown[r, c], text, fontsize=6.2)
    axes.set_yticks(range(rows), list(map(canvas.name, content.layers)))
    step = 1 if columns <= _NUMBERED else 4
    last = strip is content.strips[-1]
    axes.set_xticks(range(0, columns, step), content.blocks[::step] if last else [])
    axes.tick_params(length=0, pad=3)
    axes.spines[:].set_visible(False)
    if last:
        axes.set_xlabel("block", labelpad=2)
