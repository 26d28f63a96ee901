"""Finds what an input is, by its content and not by its suffix."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from qvec_cli.checkpoint.fetch import fetched
from qvec_cli.checkpoint.header import MAX_HEADER, Entry, read_header
from qvec_cli.checkpoint.json_text import decoded, require_moderate
from qvec_cli.checkpoint.source import STREAM, Contents, File, WeightsChoice, open_file
from qvec_cli.errors import CheckpointError

_PICKLED: Final = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How a file begins that ``torch.save`` wrote: a zip archive, or formerly a bare pickle."""

INDEX: Final = ".index.json"
PROCESSOR: Final = "preprocessor_config.json"

_IN_FOLDER: Final = (
    *("model.safetensors", "*.safetensors" + INDEX, "*.safetensors"),
    *("pytorch_model.bin", "*.bin" + INDEX, "*.bin", "*.pth", "*.pt", "*.ckpt"),
)
"""What is looked for in a folder; the first pattern that finds something must find one file."""

_BESIDE: Final = re.compile(
    r"(optimizer|optim|scheduler|lr_scheduler|scaler|rng_state|random_states|training_args)\b.*"
    r"|.*_optim_states\.pt"
)
"""What trainers leave beside the weights."""

_MAX_SHARDS: Final = 10_000
_PLAIN_NAME: Final = re.compile(r"[^/\\:\x00]+")
_SHARD: Final = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.(safetensors|bin)")
"""How transformers and the hub name a part of a checkpoint."""

_BLOB: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_CACHES: Final = ("models--", "datasets--", "spaces--")
"""What a file is called in the hub's cache, where all links lead, and how folders of it begin."""

_ADAPTER: Final = re.compile(r"(^|\.)(lora_(A|B|embedding_A|embedding_B)|hada_w[12]_[ab])($|\.)")
"""How peft names low-rank updates."""


def locate(path: Path, choice: WeightsChoice) -> Contents:
    """The tensors of a file, a stream, an index of shards or a folder of the hub.

    CheckpointError names a file that is missing, unreadable, or nothing of that; a part of a model.
    """
    path = fetched(path)
    contents = _of_folder(path, choice) if _is_folder(path) else _of_file(path, choice)
    if "qvec.kind" in contents.metadata:
        return contents
    try:
        _refuse_adapter(path, contents)
        if choice.key and contents.streams and not contents.select(choice.key):
            words = ", ".join(dict.fromkeys(name.split(".", 1)[0] for name in contents.entries))
            raise CheckpointError(
                f"{path}: no tensor has a name that begins with {choice.key!r}",
                hint=f"Names begin with {words[:200]}.",
            )
        contents.strip()
    except BaseException:
        contents.close()
        raise
    return contents


def _refuse_adapter(path: Path, contents: Contents) -> None:
    if name := next(filter(_ADAPTER.search, contents.entries), None):
        raise CheckpointError(
            f"{path}: {name}: an adapter's low-rank update, not a weight of a whole model",
            hint="Merge it first, in Python: PeftModel.from_pretrained(base, FOLDER)"
            ".merge_and_unload().save_pretrained(OUT).",
        )


def _of_file(path: Path, choice: WeightsChoice) -> Contents:
    """The tensors of a file that is a whole checkpoint, or of an index."""
    file = open_file(path)
    contents = Contents(sources=[file])
    try:
        start = bytes(file.read(min(file.size, 16), 0))
        if start.lstrip().startswith(b"{") and not _is_length(start):
            contents.close()
            return of_index(path, path.parent, choice)
        _read(path, file, contents, choice)
        if "qvec.kind" not in contents.metadata:
            _refuse_shard(path)
    except BaseException:
        contents.close()
        raise
    return contents


def _read(path: Path, file: File, contents: Contents, choice: WeightsChoice) -> None:
    """Adds the tensors of an open file, the last source of the contents."""
    start = bytes(file.read(min(file.size, 16), 0))
    if start.startswith(_PICKLED) and not _is_length(start):
        from qvec_cli.checkpoint.pickles import read_pickle  # its libraries take time

        read_pickle(path, file, contents, choice)
        return
    entries, metadata = _header(path, file)  # of another kind of file it tells which
    part = len(contents.sources) - 1
    contents.entries |= {name: e._replace(part=part) for name, e in entries.items()}
    contents.metadata = contents.metadata or metadata
    contents.ties |= metadata if "qvec.kind" not in metadata else {}


def _is_length(start: bytes) -> bool:
    """Whether the length of a header stands there; no other kind begins with as small a number."""
    return int.from_bytes(start[:8], "little") <= MAX_HEADER


def _refuse_shard(path: Path) -> None:
    """Refuses one part of a checkpoint in several, by its name."""
    named = _SHARD.fullmatch(path.name)
    if named and int(named["parts"]) > 1:
        index = path.with_name(f"{named['stem']}.{named[4]}{INDEX}")
        raise CheckpointError(
            f"{path}: is part {int(named['part'])} of {int(named['parts'])} of a checkpoint",
            hint=f"Name {index if index.exists() else 'the folder that holds all parts'}.",
        )


def _of_folder(folder: Path, choice: WeightsChoice) -> Contents:
    for pattern in _IN_FOLDER:
        paths = (p for p in folder.glob(pattern) if not _BESIDE.match(p.name))
        names = sorted(p.name for p in paths)
        if not names:
            continue
        contents = _of_names(folder, names, choice)
        if (folder / "config.json").exists():
            contents.config = read_json(inside(folder, "config.json"))
        if (folder / PROCESSOR).exists():
            contents.processor = read_json(inside(folder, PROCESSOR))
        return contents
    raise CheckpointError(f"{folder}: a folder without a checkpoint", hint=_elsewhere(folder))


def _elsewhere(folder: Path) -> str:
    """Where the weights of a folder may be, that has none of the usual names."""
    if any(folder.glob("*.distcp")):
        return (
            "Its parts were saved by torch.distributed; join them: python -m "
            "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pth"
        )
    return f"Looked for {', '.join(_IN_FOLDER)}."


def _of_names(folder: Path, names: list[str], choice: WeightsChoice) -> Contents:
    """The one checkpoint of a folder: a file, an index, or all parts without an index."""
    parts = [named for named in map(_SHARD.fullmatch, names) if named]
    if len(parts) == len(names) and len({(p["stem"], p["parts"]) for p in parts}) == 1:
        count = int(parts[0]["parts"])
        there = {int(part["part"]) for part in parts}
        if missing := sorted({*range(1, count + 1)} - there):
            raise CheckpointError(
                f"{folder}: part {missing[0]} of {count} of the checkpoint is missing",
                hint=f"Fetch {len(missing)} more into the folder.",
            )
        return _joined([inside(folder, name) for name in names], choice)
    if len(names) > 1:
        raise CheckpointError(
            f"{folder}: holds several checkpoints: {', '.join(names[:5])}",
            hint="Name one of them.",
        )
    path = inside(folder, names[0])
    if names[0].endswith(INDEX):
        return of_index(path, folder, choice)
    return _of_file(path, choice)


def _is_folder(path: Path) -> bool:
    try:
        return path != STREAM and path.is_dir()
    except OSError:  # closed to us, or no name that can be: opening it will tell
        return False


def of_index(path: Path, folder: Path, choice: WeightsChoice) -> Contents:
    """The tensors of every shard that an index lists, all of them in one folder.

    CheckpointError: no such index, a shard that is missing or holds other tensors than it says, a
    name that leads out of the folder.
    """
    shards = _shards(path, read_json(path))
    paths = [inside(folder, name) for name in shards]
    if missing := next((shard for shard in paths if not shard.exists()), None):
        raise CheckpointError(
            f"{missing}: no such file, and {path.name} lists it among {len(paths)} shards",
            hint="A model is whole with all of its shards: fetch it too.",
        )
    return _joined(paths, choice, path, [*shards.values()])


def _joined(
    paths: Sequence[Path],
    choice: WeightsChoice,
    index: Path | None = None,
    listed: Sequence[set[str]] = (),
) -> Contents:
    """The tensors of several files; an index lists those that each has to hold."""
    contents = Contents()
    try:
        for place, path in enumerate(paths):
            source = open_file(path)
            contents.add(source)
            own = Contents(sources=contents.sources)
            _read(path, source, own, choice)
            names = {*own.entries, *own.aliases}
            if index:
                _check_listed(index, path, names, listed[place])
            elif twice := sorted(names & {*contents.entries, *contents.aliases}):
                raise CheckpointError(f"{path}: {twice[0]}: another part has it too")
            contents.merge(own)
    except BaseException:
        contents.close()
        raise
    return contents


def _check_listed(index: Path, shard: Path, names: set[str], listed: set[str]) -> None:
    for name in sorted(listed ^ names):
        where = "not in the shard" if name in listed else "not listed"
        raise CheckpointError(
            f"{index}: {shard.name}: {name} is {where}",
            hint="Index and shards are of two versions: fetch all of them again.",
        )


def inside(folder: Path, name: str) -> Path:
    """The file of a name in a folder; a link may lead within it or into a hub cache only."""
    if name in (".", "..") or "/" in name:
        raise CheckpointError(f"{folder}: {name!r} leads out of the folder")
    try:
        home = folder.resolve()
        path = (home / name).resolve()
        caches = {
            above.parent
            for place in (folder.absolute(), home)
            for above in place.parents
            if above.name == "snapshots"
        }
        blobs = [(c / "blobs").resolve() for c in caches if c.name.startswith(_CACHES)]
    except (OSError, RuntimeError):
        raise CheckpointError(f"{folder / name}: is a link to itself") from None
    linked = path.parent in blobs if caches else path.parent.name == "blobs"
    cached = linked and (caches or path.parents[1].name.startswith(_CACHES))
    if path.parent != home and not (cached and _BLOB.fullmatch(path.name)):
        raise CheckpointError(
            f"{folder / name}: is a link that leads out of the folder",
            hint="Name the file itself that it leads to.",
        )
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file of moderate size; CheckpointError for anything else."""
    file = open_file(path)
    try:
        if file.size > MAX_HEADER:
            raise CheckpointError(f"{path}: {file.size:,} bytes; more than {MAX_HEADER:,} of JSON")
        text = file.read(file.size, 0)
        require_moderate(text, str(path))
        document = decoded(text)
    except ValueError as fault:
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
        hint = "qvec report shows results that commands wrote as JSON, qvec compare compares them."
        fault = f"{path}: has no weight_map: it is not the index of a checkpoint"
        raise CheckpointError(fault, hint=hint if "command" in document else None)
    suffix = ".bin" if path.name.endswith(".bin" + INDEX) else ".safetensors"
    shards: dict[str, set[str]] = {}
    for tensor, shard in table.items():
        plain = isinstance(shard, str) and _PLAIN_NAME.fullmatch(shard) and shard != suffix
        if not (plain and shard.endswith(suffix)):
            raise CheckpointError(
                f"{path}: {tensor}: its shard {shard!r} is not the plain name of a {suffix} file"
            )
        shards.setdefault(shard, set()).add(tensor)
        if len(shards) > _MAX_SHARDS:
            raise CheckpointError(f"{path}: names more than {_MAX_SHARDS:,} shards")
    return dict(sorted(shards.items()))


def _header(path: Path, source: File) -> tuple[dict[str, Entry], dict[str, str]]:
    """A header whose errors name the file."""
    try:
        return read_header(source)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}", hint=error.hint) from None
