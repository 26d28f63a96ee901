"""A new safetensors file, streamed: header first, then tensor by tensor in constant memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qvec_cli.checkpoint.card import Card
from qvec_cli.checkpoint.dtypes import FORMATS, Array
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.json_text import require_moderate
from qvec_cli.checkpoint.read import BLOCK, Hasher
from qvec_cli.checkpoint.replace import check_target, replacing
from qvec_cli.errors import CheckpointError

Blocks = Iterable[tuple[str, Iterable[Array]]]
"""Tensors in any order, each with its raw blocks; a tensor that is not planned is an error."""


def write(
    path: Path,
    plan: Mapping[str, Entry],
    tensors: Blocks,
    card: Card | Callable[[], Card],
    *,
    force: bool,
    align: int = 1,
    ready: Callable[[Path], None] = lambda whole: None,
) -> Card:
    """Streams tensors into a new safetensors file; memory is a few blocks.

    Args:
        path: the target; what stands there stays until the new file is whole.
        plan: dtype and shape of every tensor; offsets are decided here.
        tensors: the data, in any order (the plan's own order is the fastest).
        card: what the file says of itself; its digest is filled in. A function is called before
            the data stream by, for the room that its text takes, and afterwards, when digests of
            inputs are known.
        force: whether an existing target may be replaced.
        align: a power of two at whose multiples those tensors start that fill such pieces whole.
        ready: is called with the name of the new file when it is whole, before it takes its place.

    Returns:
        The card as written, with the digest of the contents.
    """
    draft = card() if callable(card) else card
    placed, start = _place(plan, draft, align)
    end = start + sum(entry.nbytes for entry in plan.values())
    check_target(path, force=force, size=end)
    # glibc gives blocks as large as ours back to the kernel, which has to zero them anew (a third
    # of the time of a stream), until a larger one has come and gone. This one is never resident.
    np.empty(16 * BLOCK, np.uint8)
    with replacing(path, force=force) as file, Hasher() as hasher:
        os.ftruncate(file.fileno(), end)  # goes on after a signal, as file.truncate does not
        written = set()
        for name, blocks in tensors:
            _fill(file, name, placed[name], blocks, hasher)
            written.add(name)
        if missing := placed.keys() - written:
            raise AssertionError(f"no data for {sorted(missing)[:5]}")
        digest = hasher.combined(placed)
        done = replace(card() if callable(card) else card, digest=digest)
        header = _header(placed, done, start, align)
        assert len(header) == start
        file.seek(0)
        file.write(header)
        file.flush()
        _prove(path, file)
        ready(Path(f"/dev/fd/{file.fileno()}"))
    return done


def size_of(plan: Mapping[str, Entry], card: Card, align: int = 1) -> int:
    """Bytes of the file that ``write`` would make."""
    return _place(plan, card, align)[1] + sum(entry.nbytes for entry in plan.values())


def _prove(path: Path, file: BinaryIO) -> None:
    """Lets the safetensors library read the header that others will read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(f"/dev/fd/{file.fileno()}", "np", backend="pread"):  # it may have no name
            pass
    except SafetensorError as fault:
        raise CheckpointError(f"{path}: other tools could not read it: {fault}") from None


def _place(plan: Mapping[str, Entry], card: Card, align: int = 1) -> tuple[dict[str, Entry], int]:
    """Every tensor with its offsets, and where the data begin.

    The order is the safetensors library's: widest dtype first, then by name; but tensors that do
    not fill pieces of ``align`` bytes, and would shift what comes after, come last.
    """
    if "__metadata__" in plan:
        raise CheckpointError("a tensor named __metadata__ would make the file unreadable")
    names = sorted(
        plan, key=lambda n: (plan[n].nbytes % align > 0, -FORMATS[plan[n].dtype].rank, n)
    )
    placed, position = {}, 0
    for name in names:
        stop = position + plan[name].nbytes
        placed[name], position = plan[name]._replace(start=position, stop=stop), stop
    start = len(_header(placed, card, 0, align))
    return {
        name: e._replace(start=e.start + start, stop=e.stop + start) for name, e in placed.items()
    }, start


def _header(placed: Mapping[str, Entry], card: Card, start: int, align: int) -> bytes:
    metadata = card.to_header()
    table: dict[str, object] = {"__metadata__": metadata}
    for name, entry in placed.items():
        table[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.start - start, entry.stop - start],
        }
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % max(align, 8))
    try:
        require_moderate(text)
        Card.from_header(metadata)
    except CheckpointError as error:
        raise CheckpointError(
            f"{len(placed):,} tensors need a header that qvec could not read: {error}"
        ) from None
    return len(text).to_bytes(8, "little") + text


def _fill(file: BinaryIO, name: str, entry: Entry, blocks: Iterable[Array], hasher: Hasher) -> None:
    file.seek(entry.start)
    hasher.start(name)
    left = entry.nbytes
    for block in blocks:
        file.write(block.data)
        hasher.update(name, block)
        left -= block.nbytes
    if left:
        raise AssertionError(f"{name}: {left} bytes short of its plan")
