"""Weights that another tool has packed: read in a layout that is ours, else told and refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qvec_cli.checkpoint.card import Kind
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import MismatchError
from qvec_cli.inputs.packed_layouts import (
    Packed,
    PackedFile,
    in_words,
    is_ours,
    named,
    packed,
    widths,
)
from qvec_cli.quant.compressed_tensors import of_scheme
from qvec_cli.quant.qtensor import packed_weights, part_names
from qvec_cli.specs import Grid, ScaleDtype


def packed_in(checkpoint: Checkpoint) -> list[Packed]:
    """The weights that a file holds packed, by whatever tool."""
    settings = (checkpoint.config or {}).get("quantization_config")
    stated = settings.get("checkpoint_format") if isinstance(settings, Mapping) else None
    return packed(PackedFile(checkpoint, checkpoint.array, stated))


def layout(checkpoint: Checkpoint, found: Sequence[Packed]) -> dict[str, Any] | None:
    """What there is to tell of packed weights: bits only where a file leaves no doubt."""
    if not found:
        return None
    grid = checkpoint.card.quant or {}
    bits, groups = widths(found), {weight.group_size for weight in found}
    bits = [width for width in bits if width == grid.get("bits")] or bits
    return {
        "name": named(found),
        "bits": bits[0] if len(bits) == 1 else None,
        "possible_bits": bits,
        "group_size": groups.pop() if len(groups) == 1 else None,
        "weights": len(found),
    }


def refuse_foreign(checkpoint: Checkpoint, *, floats: bool = False) -> None:
    """Refuses a file of which one weight at least was packed by another tool.

    One in our layout whose config.json tells its grid is taken, but not where floats are needed.

    Raises:
        MismatchError: names the tensor and its layout.
    """
    card = checkpoint.card
    own = card.kind is Kind.QUANTIZED and bool(card.quant)
    found = packed_in(checkpoint)
    for weight in found:
        told = checkpoint.bare and not floats
        if is_ours(weight) and (own or (told and stored_grid(checkpoint))):
            continue
        alike = [other for other in found if other.layout == weight.layout]
        name = ", ".join(filter(None, (weight.layout, in_words(widths(alike)))))
        raise MismatchError(
            f"{checkpoint.path}: {weight.tensor}: packed by another tool (layout: {name})",
            hint="Dequantize it with the library that wrote it, or quantize the float "
            "checkpoint with qvec.",
        )


def stored_grid(checkpoint: Checkpoint) -> Grid | None:
    """The grid of packed weights: the card's, or what another tool has left in config.json.

    Raises:
        MismatchError: packed in a way that is not known here.
    """
    if not checkpoint.bare:
        return Grid.from_json(checkpoint.card.quant) if checkpoint.card.quant else None
    scheme = (checkpoint.config or {}).get("quantization_config")
    if not isinstance(scheme, dict):
        return None
    try:
        grid = of_scheme(scheme)
    except MismatchError as error:
        raise MismatchError(f"{checkpoint.path}: {error}", hint=error.hint) from None
    scales = [part_names(name, grid)[1] for name in packed_weights(checkpoint)]
    if any(name in checkpoint and checkpoint[name].dtype == "F16" for name in scales):
        grid = replace(grid, scale_dtype=ScaleDtype.FLOAT16)
    return grid
