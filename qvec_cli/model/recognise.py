"""Which networks of timm have the tensors of a file, by their names and shapes alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from qvec_cli.checkpoint.naming import heads

TABLE: Final = Path(__file__).with_name("architectures.json")
"""Every architecture of timm's: its fingerprint, and what tells its function from others'."""

_BUFFERS: Final = ("num_batches_tracked", "relative_position_index", "attn_mask")
_BUFFERS_OF_LEVIT: Final = ("attention_bias_idxs", "attention_biases")
"""What versions of timm keep in a state dict or not, or the size of the image decides."""

_MOST_CHANNELS: Final = 4


def fingerprint(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What names and shapes have in common at every image size, channel and class count.

    ``shapes`` are those of a whole state dict; tensors that are no weight or bias, as position
    embeddings, count by name alone, and heads not at all.
    """
    skipped = {*heads(shapes)}
    lines = []
    for name, shape in shapes.items():
        leaf = name.rpartition(".")[2]
        if name in skipped or leaf in (*_BUFFERS, *_BUFFERS_OF_LEVIT):
            continue
        kept: tuple[int, ...] = shape if leaf in ("weight", "bias") else ()
        if len(kept) == 4 and kept[1] <= _MOST_CHANNELS:  # of the image, or each by itself
            kept = (kept[0], 0, *kept[2:])
        lines.append(f"{name.replace('fc_norm.', 'norm.')} {list(kept)}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:12]


@cache
def _table() -> dict[str, list[Any]]:
    """By name: the fingerprint, a digest of the function and, of some, the attention heads."""
    table: dict[str, list[Any]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, ...]]:
    """The networks of timm that have these tensors, those that compute the same together.

    The shortest name of each comes first.
    """
    wanted = fingerprint(shapes)
    groups: dict[str, list[str]] = {}
    for name, (tensors, function, *_) in _table().items():
        if tensors == wanted:
            groups.setdefault(function, []).append(name)
    return sorted(tuple(sorted(names, key=lambda n: (len(n), n))) for names in groups.values())


def heads_of(name: str) -> int | list[int] | None:
    """Attention heads of a network of timm's, or those of each stage.

    None: not all of its blocks are x + f(norm(x)), of the kinds that model/basis.py knows.
    """
    row = _table().get(name, [])
    return row[2] if len(row) > 2 else None
