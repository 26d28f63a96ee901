"""A model in several safetensors files: which they are, by its index, and that they are whole."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from qvec_cli.checkpoint.card import refuse_constant
from qvec_cli.checkpoint.header import MAX_HEADER, Entry, read_header, require_moderate, unique
from qvec_cli.checkpoint.layout import Layout
from qvec_cli.checkpoint.source import File, open_file
from qvec_cli.errors import CheckpointError

INDEX: Final = ".safetensors.index.json"

_MAX_INDEX: Final = MAX_HEADER  # bytes
_MAX_SHARDS: Final = 10_000
_PLAIN_NAME: Final = re.compile(r"[^/\\:\x00]+\.safetensors")


def of_index(path: Path, folder: Path) -> Layout:
    """The tensors of every shard that an index lists, all of them in one folder.

    Raises:
        CheckpointError: an index that is not one, a shard that is missing or holds other tensors
            than the index says, a name that leads out of the folder.
    """
    shards = _shards(path, read_json(path))
    layout = Layout()
    try:
        for name, tensors in shards.items():
            _add(layout, inside(folder, name), tensors, path)
    except BaseException:
        layout.close()
        raise
    return layout


def inside(folder: Path, name: str) -> Path:
    """The file of a name in a folder, which may be a link within it or into its hub cache.

    Raises:
        CheckpointError: a name or a link that leads elsewhere.
    """
    if name in (".", "..") or "/" in name:
        raise CheckpointError(f"{folder}: {name!r} leads out of the folder")
    try:
        home = folder.resolve()
        path = (home / name).resolve()
    except (OSError, RuntimeError):
        raise CheckpointError(f"{folder / name}: is a link to itself") from None
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if path.parent not in (home, blobs):
        raise CheckpointError(f"{folder / name}: is a link that leads out of the folder")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file of moderate size.

    Raises:
        CheckpointError: too large, or not that.
    """
    file = open_file(path)
    try:
        if file.size > _MAX_INDEX:
            raise CheckpointError(f"{path}: {file.size:,} bytes; more than {_MAX_INDEX:,} of JSON")
        text = file.read(file.size, 0)
        require_moderate(text, str(path))
        document = json.loads(text, object_pairs_hook=unique, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as fault:
        raise CheckpointError(f"{path}: is not valid JSON: {fault}") from None
    finally:
        file.close()
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: is not a JSON object")
    return document


def _shards(path: Path, document: Mapping[str, Any]) -> dict[str, set[str]]:
    """The tensors of each shard, whose name is data and must be a plain file name."""
    table = document.get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{path}: has no weight_map: it is not the index of a checkpoint")
    shards: dict[str, set[str]] = {}
    for tensor, shard in table.items():
        if not isinstance(shard, str) or not _PLAIN_NAME.fullmatch(shard):
            raise CheckpointError(
                f"{path}: {tensor}: its shard {shard!r} is not the plain name of a "
                ".safetensors file"
            )
        shards.setdefault(shard, set()).add(tensor)
        if len(shards) > _MAX_SHARDS:
            raise CheckpointError(f"{path}: names more than {_MAX_SHARDS:,} shards")
    return dict(sorted(shards.items()))


def _add(layout: Layout, path: Path, listed: set[str], index: Path) -> None:
    source = open_file(path)
    part = layout.add(source)
    entries, metadata = named_header(path, source)
    for name in sorted(listed ^ entries.keys()):
        where = "not in the shard" if name in listed else "not listed"
        raise CheckpointError(f"{index}: {path.name}: {name} is {where}")
    layout.metadata = layout.metadata or metadata
    for name, e in entries.items():
        layout.entries[name] = e._replace(part=part)


def named_header(path: Path, source: File) -> tuple[dict[str, Entry], dict[str, str]]:
    """A header whose errors name the file."""
    try:
        return read_header(source)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}", hint=error.hint) from None
