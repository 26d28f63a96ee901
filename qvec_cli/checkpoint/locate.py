"""Finds what an input is, by its content and not by its suffix."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from qvec_cli.checkpoint.card import refuse_constant
from qvec_cli.checkpoint.header import MAX_HEADER, Entry, read_header, require_moderate, unique
from qvec_cli.checkpoint.source import STREAM, Contents, File, open_file
from qvec_cli.errors import CheckpointError

_PICKLED: Final = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How a file begins that ``torch.save`` wrote: a zip archive, or formerly a bare pickle."""

INDEX: Final = ".safetensors.index.json"

_IN_FOLDER: Final = (
    *("model.safetensors", "*" + INDEX, "*.safetensors"),
    *("pytorch_model.bin", "*.pth", "*.pt"),
)
"""What is looked for in a folder; the first pattern that finds something must find one file."""

_MAX_SHARDS: Final = 10_000
_PLAIN_NAME: Final = re.compile(r"[^/\\:\x00]+\.safetensors")


def locate(path: Path) -> Contents:
    """The tensors of a file, a stream, an index of shards or a folder of the hub.

    CheckpointError names a file that is missing, unreadable, or nothing of that.
    """
    contents = _of_folder(path) if _is_folder(path) else _of_file(path)
    if "qvec.kind" not in contents.metadata:
        contents.strip()
        for dropped, kept in contents.metadata.items():  # as the safetensors library notes ties
            if kept in contents.entries and dropped not in contents.entries:
                contents.aliases[dropped] = kept
    return contents


def _of_file(path: Path) -> Contents:
    file = open_file(path)
    contents = Contents(sources=[file])
    try:
        start = bytes(file.read(min(file.size, 16), 0))
        if int.from_bytes(start[:8], "little") <= MAX_HEADER:  # no magic is as small a number
            contents.entries, contents.metadata = _header(path, file)
        elif start.startswith(_PICKLED):
            from qvec_cli.checkpoint.pickles import read_pickle  # its libraries take time

            read_pickle(path, file, contents)
        elif start.lstrip().startswith(b"{"):
            contents.close()
            return of_index(path, path.parent)
        else:
            _header(path, file)  # tells what it is instead
    except BaseException:
        contents.close()
        raise
    return contents


def _of_folder(folder: Path) -> Contents:
    for pattern in _IN_FOLDER:
        names = sorted(p.name for p in folder.glob(pattern))
        if len(names) > 1:
            raise CheckpointError(
                f"{folder}: holds several checkpoints: {', '.join(names[:5])}",
                hint="Name one of them.",
            )
        if names:
            path = inside(folder, names[0])
            contents = of_index(path, folder) if names[0].endswith(INDEX) else _of_file(path)
            if (folder / "config.json").exists():
                contents.config = read_json(inside(folder, "config.json"))
            return contents
    raise CheckpointError(
        f"{folder}: a folder without a checkpoint", hint=f"Looked for {', '.join(_IN_FOLDER)}."
    )


def _is_folder(path: Path) -> bool:
    try:
        return path != STREAM and path.is_dir()
    except OSError:  # closed to us, or no name that can be: opening it will tell
        return False


def of_index(path: Path, folder: Path) -> Contents:
    """The tensors of every shard that an index lists, all of them in one folder.

    CheckpointError: no such index, a shard that is missing or holds other tensors than it says, a
    name that leads out of the folder.
    """
    shards = _shards(path, read_json(path))
    contents = Contents()
    try:
        for name, tensors in shards.items():
            _add(contents, inside(folder, name), tensors, path)
    except BaseException:
        contents.close()
        raise
    return contents


def inside(folder: Path, name: str) -> Path:
    """The file of a name in a folder; a link may lead within it or into its hub cache only."""
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
    """A JSON object in a file of moderate size; CheckpointError for anything else."""
    file = open_file(path)
    try:
        if file.size > MAX_HEADER:
            raise CheckpointError(f"{path}: {file.size:,} bytes; more than {MAX_HEADER:,} of JSON")
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


def _add(contents: Contents, path: Path, listed: set[str], index: Path) -> None:
    source = open_file(path)
    part = contents.add(source)
    entries, metadata = _header(path, source)
    for name in sorted(listed ^ entries.keys()):
        where = "not in the shard" if name in listed else "not listed"
        raise CheckpointError(f"{index}: {path.name}: {name} is {where}")
    contents.metadata = contents.metadata or metadata
    for name, e in entries.items():
        contents.entries[name] = e._replace(part=part)


def _header(path: Path, source: File) -> tuple[dict[str, Entry], dict[str, str]]:
    """A header whose errors name the file."""
    try:
        return read_header(source)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}", hint=error.hint) from None
