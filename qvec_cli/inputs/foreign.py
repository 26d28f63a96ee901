"""Packed weights of a file: those in qvec's own layout, and those that another tool packed.

Only the own layout, which is compressed-tensors' pack-quantized, is ever decoded. The rule for all
others: an integer tensor under the name of a weight was packed by another tool. The matrices of a
vector that is stored on few bits are read as floats, by whoever reads vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from qvec_cli.checkpoint.card import Kind
from qvec_cli.checkpoint.dtypes import Array
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import CheckpointError, MismatchError, located
from qvec_cli.quant.compressed_tensors import of_scheme
from qvec_cli.quant.pack import words
from qvec_cli.quant.qtensor import (
    PACKED,
    QTensor,
    as_matrix,
    from_named,
    packed_weights,
    part_names,
    parts,
    shape_of,
)
from qvec_cli.specs import Granularity, Grid, ScaleDtype

OWN: Final = "compressed-tensors pack-quantized"
"""The layout of qvec's own packed files."""

_TOOLS: Final = {
    PACKED: "compressed-tensors",
    "qweight": "GPTQ or AWQ",
    "W_q": "HQQ",
    "._data": "quanto",
    "_qdata": "torchao",
    "weight": "",
}
"""How the name of a packed weight's codes ends, and the tool whose word that is."""

_SIBLINGS: Final = {
    "_scale": "compressed-tensors",
    ".quant_map": "bitsandbytes",
    "SCB": "bitsandbytes",
}
"""What stands beside integer codes that are called plainly "weight"."""

_INTEGERS: Final = ("I8", "U8", "I16", "I32", "I64")


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight that is stored as integer codes."""

    tensor: str  # the name of the codes
    layout: str  # ``OWN``, or the tool that packed them, where a name tells it
    bits: tuple[int, ...] = ()  # widths that codes of these shapes can have
    group_size: int | None = None  # input features that share a scale, where several do
    size: int | None = None  # elements of the weight, where the layout tells them
    parts: tuple[str, ...] = ()  # names of all tensors that the weight may have


def packed_in(checkpoint: Checkpoint) -> list[Packed]:
    """The weights that a file holds packed, by whatever tool."""
    codes = [name for name, entry in checkpoint.items() if entry.dtype in _INTEGERS and entry.shape]
    marks = {name: next(filter(name.endswith, _TOOLS), None) for name in codes}
    return [
        _own(checkpoint, name) or _foreign(checkpoint, name, mark)
        for name, mark in marks.items()
        if mark is not None
    ]


def _own(checkpoint: Checkpoint, tensor: str) -> Packed | None:
    """A weight whose codes, scales and shape fit together as ``to_named`` writes them."""
    name = tensor.removesuffix(PACKED)
    shape, scale = checkpoint.get(name + "_shape"), checkpoint.get(name + "_scale")
    stored = checkpoint[tensor]
    if name == tensor or not (shape and scale) or len(shape.shape) != 1 or shape.dtype != "I64":
        return None
    sides = tuple(int(side) for side in checkpoint.array(name + "_shape"))
    if len(sides) < 2 or not all(0 < side < 1 << 40 for side in sides):
        return None
    rows, columns = as_matrix(sides)
    if stored.dtype != "I32" or (rows,) != stored.shape[:1]:
        return None
    bits = tuple(b for b in range(2, 9) if stored.shape[1] == words(columns, b))
    groups = scale.shape[1] if len(scale.shape) == 2 else 1
    group_size = columns // groups if groups > 1 and columns % groups == 0 else None
    parts = part_names(name, Grid(symmetric=False))
    return Packed(tensor, OWN, bits, group_size, math.prod(sides), parts) if bits else None


def _foreign(checkpoint: Checkpoint, tensor: str, mark: str) -> Packed:
    near = (tensor, tensor.removesuffix("weight"))
    beside = (tool for end, tool in _SIBLINGS.items() if any(n + end in checkpoint for n in near))
    return Packed(tensor, _TOOLS[mark] or next(beside, "an unknown layout"))


def layout(checkpoint: Checkpoint, weights: Sequence[Packed]) -> dict[str, Any] | None:
    """What ``inspect`` tells of packed weights: a width only where the file leaves no doubt."""
    if not weights:
        return None
    stated = checkpoint.card.quant
    known = Grid.from_json(stated).widths if stated else ()
    possible = sorted({width for weight in weights for width in weight.bits})
    possible = [width for width in possible if width in known] or possible
    groups = {weight.group_size for weight in weights}
    return {
        "name": " and ".join(dict.fromkeys(weight.layout for weight in weights)),
        "bits": possible[0] if len(possible) == 1 else None,
        "possible_bits": possible,
        "group_size": groups.pop() if len(groups) == 1 else None,
        "weights": len(weights),
    }


def bits_in_words(bits: Sequence[int]) -> str:
    """As "3 bits" or "7 or 8 bits"; nothing where the widths are not known."""
    return f"{' or '.join(map(str, bits))} bits" if bits else ""


def refuse_foreign(checkpoint: Checkpoint, *, floats: bool = False) -> None:
    """Refuses a file with a weight that another tool packed; MismatchError names both.

    Unless only ``floats`` serve, codes in qvec's layout pass where the card, or the folder's
    config.json, tells their grid.
    """
    card = checkpoint.card
    readable = card.kind is Kind.QUANTIZED and bool(card.quant)
    for weight in packed_in(checkpoint):
        ours = readable and weight.tensor.endswith(PACKED)  # a part may be missing; it is named
        known = readable or (checkpoint.bare and not floats and stored_grid(checkpoint))
        if not ours and (weight.layout != OWN or not known):
            raise MismatchError(
                f"{checkpoint.path}: {weight.tensor}: packed by another tool "
                f"(layout: {weight.layout})",
                hint="Dequantize it with the library that wrote it, or quantize the float "
                "checkpoint with qvec.",
            )


def stored_grid(checkpoint: Checkpoint) -> Grid | None:
    """The grid of packed weights: the card's, or what another tool left in config.json.

    MismatchError: packed in a way that is not known here.
    """
    if not checkpoint.bare:
        return Grid.from_json(checkpoint.card.quant) if checkpoint.card.quant else None
    scheme = (checkpoint.config or {}).get("quantization_config")
    if not isinstance(scheme, Mapping):
        return None
    with located(checkpoint.path):
        grid = of_scheme(scheme)
    scales = [part_names(name, grid)[1] for name in packed_weights(checkpoint)]
    if any(name in checkpoint and checkpoint[name].dtype == "F16" for name in scales):
        grid = replace(grid, scale_dtype=ScaleDtype.FLOAT16)
    return grid


def load_packed(checkpoint: Checkpoint, name: str) -> QTensor:
    """One packed weight; MismatchError where its parts do not belong together."""
    grid = grid_of_packed(checkpoint, name)
    arrays: Mapping[str, Any] = {n: checkpoint.array(n) for n in part_names(name, grid)}
    with located(checkpoint.path):
        return from_named(name, arrays, grid)


def grid_of_packed(checkpoint: Checkpoint, name: str) -> Grid:
    """The grid of a packed weight that is whole."""
    grid = stored_grid(checkpoint)
    if grid is None:
        raise CheckpointError(
            f"{checkpoint.path}: {name}: packed by another tool",
            hint="This version reads what qvec quantize has packed, and folders whose config.json "
            "tells how compressed-tensors has.",
        )
    if missing := [part for part in part_names(name, grid) if part not in checkpoint]:
        raise MismatchError(f"{checkpoint.path}: {name}: {missing[0]} is missing")
    return grid


def decode_vector(checkpoint: Checkpoint) -> None:
    """Shows the matrices of a vector that is stored on few bits, see ``extract``, as float32.

    One is decoded as a whole when it is read. Other files stay as they are.
    Raises MismatchError: parts of a matrix that do not belong together; SpecError: an unknown grid.
    """
    if checkpoint.card.storage is None:
        return
    entries: dict[str, Entry] = {}
    decoders: dict[str, Callable[[], Array]] = {}
    inside: list[str] = []
    with located(checkpoint.path):
        grid = Grid.from_json(checkpoint.card.storage)
        for name in packed_weights(checkpoint):
            shape, stored = _matrix(checkpoint, name, grid)
            entries[name] = Entry("F32", shape)
            decoders[name] = partial(_decoded, checkpoint, name, stored)
            inside += part_names(name, stored)
    checkpoint.decode(entries, decoders, set(inside))


def _matrix(checkpoint: Checkpoint, name: str, grid: Grid) -> tuple[tuple[int, ...], Grid]:
    """Shape and grid of one matrix: the group is as long as the number of its scales says."""
    stated, scale = name + "_shape", checkpoint.get(name + "_scale")
    shape = shape_of(name, {stated: checkpoint.array(stated)} if stated in checkpoint else {})
    groups = scale.shape[-1] if scale and scale.shape else 0
    if len(shape) != 2 or not groups or shape[1] % groups or name in checkpoint:
        raise MismatchError(f"{name}: its parts do not belong together")
    stored = replace(grid, granularity=Granularity.GROUP, group_size=shape[1] // groups)
    for part, (dtype, size) in parts(name, shape, stored).items():
        entry = checkpoint.get(part)
        if entry is None or (entry.dtype, entry.shape) != (dtype, size):
            raise MismatchError(f"{name}: {part} is not the {dtype} {list(size)} that belongs here")
    return shape, stored


def _decoded(checkpoint: Checkpoint, name: str, grid: Grid) -> Array:
    arrays = {part: checkpoint.array(part) for part in part_names(name, grid)}
    return from_named(name, arrays, grid).weight()
