"""A file that appears whole or not at all: a hidden sibling, synced, then put in place."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from qvec_cli.checkpoint.card import Card
from qvec_cli.checkpoint.digest import Hasher, combine
from qvec_cli.checkpoint.dtypes import FORMATS, Array
from qvec_cli.checkpoint.header import MAX_HEADER, Entry
from qvec_cli.checkpoint.read import BLOCK
from qvec_cli.errors import CheckpointError

SUFFIX: Final = ".qvec-tmp"

Blocks = Iterable[tuple[str, Iterable[Array]]]
"""Tensors in any order, each with its raw blocks; a tensor that is not planned is an error."""


def check_target(path: Path, *, force: bool) -> None:
    """Refuses, before any work, a target that could not be written afterwards."""
    try:
        _check(path, force=force)
    except OSError as fault:
        raise _refused(path, fault) from None
    except RuntimeError:
        raise CheckpointError(f"{path}: is a link to itself") from None


def _check(path: Path, *, force: bool) -> None:
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder", hint="Name a file with -o.")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: is not a regular file")
    if path.exists() and not force:
        raise CheckpointError(f"{path}: exists", hint="Pass --force to replace it.")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise CheckpointError(
            f"{path}: its folder does not exist", hint=f"Create it with: mkdir -p {path.parent}"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CheckpointError(f"{path}: its folder is not writable")


def write(
    path: Path, plan: Mapping[str, Entry], tensors: Blocks, card: Card, *, force: bool
) -> Card:
    """Streams tensors into a new safetensors file; memory is a few blocks.

    Args:
        path: the target; what stands there stays until the new file is whole.
        plan: dtype and shape of every tensor; offsets are decided here.
        tensors: the data, in any order (the plan's own order is the fastest).
        card: what the file says of itself; its digest is filled in.
        force: whether an existing target may be replaced.

    Returns:
        The card as written, with the digest of the contents.
    """
    check_target(path, force=force)
    _keep_freed_memory()
    placed, start = _place(plan, card)
    with replacing(path, force=force) as file, Hasher() as hasher:
        end = max((e.stop for e in placed.values()), default=start)
        file.truncate(end)
        written = set()
        for name, blocks in tensors:
            _fill(file, name, placed[name], blocks, hasher)
            written.add(name)
        if missing := placed.keys() - written:
            raise AssertionError(f"no data for {sorted(missing)[:5]}")
        hasher.finish()
        digests = hasher.digests()
        done = replace(
            card, digest=combine({n: (e.dtype, e.shape, digests[n]) for n, e in placed.items()})
        )
        header = _header(placed, done, start)
        assert len(header) == start
        file.seek(0)
        file.write(header)
        file.flush()
        _prove(path, file.name)
    return done


def _keep_freed_memory() -> None:
    """Lets the C library use a freed block for the next one: a third of the time of a stream.

    glibc gives blocks as large as ours back to the kernel, which has to zero them anew, until it
    has seen a larger one come and go. This one is never touched, and so never resident.
    """
    np.empty(16 * BLOCK, np.uint8)


def _prove(path: Path, written: str) -> None:
    """Lets the safetensors library read the header that others will read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(written, "np", backend="pread"):
            pass
    except SafetensorError as fault:
        raise CheckpointError(f"{path}: other tools could not read it: {fault}") from None


def write_json(path: Path, document: object, *, force: bool) -> None:
    """Writes ``dump(document)``, whole or not at all."""
    text = dump(document)
    check_target(path, force=force)
    with replacing(path, force=force) as file:
        file.write(text.encode())


def dump(document: object) -> str:
    """JSON for people and programs: indented, sorted, no NaN, one newline at the end."""
    return json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"


@contextlib.contextmanager
def replacing(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """A file to write that takes its name only when the block ends well.

    Links are written through, the mode of an old file and the umask are kept. Without
    ``force`` two writers cannot both win: the last step is a link, which never replaces.
    """
    target = path.resolve()
    name = os.fsdecode(os.fsencode(target.name)[:200])
    temporary = target.with_name(f".{name}.{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}")
    try:
        file = temporary.open("xb")
    except OSError as fault:
        raise _refused(path, fault) from None
    try:
        with file:
            yield file
            if target.exists():
                os.fchmod(file.fileno(), target.stat().st_mode & 0o7777)
            file.flush()
            os.fsync(file.fileno())
        _put(temporary, target, force=force)
    except FileExistsError:
        raise CheckpointError(f"{path}: exists", hint="Pass --force to replace it.") from None
    except OSError as fault:
        raise _refused(path, fault) from None
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _put(temporary: Path, target: Path, *, force: bool) -> None:
    if force:
        temporary.replace(target)
    else:
        target.hardlink_to(temporary)


def _sync_folder(folder: Path) -> None:
    """Makes the new name durable; a folder that may be written but not read cannot be synced."""
    with contextlib.suppress(PermissionError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _place(plan: Mapping[str, Entry], card: Card) -> tuple[dict[str, Entry], int]:
    """Offsets as the safetensors library orders them: widest dtype first, then by name."""
    if "__metadata__" in plan:
        raise CheckpointError("a tensor named __metadata__ would make the file unreadable")
    names = sorted(plan, key=lambda n: (-FORMATS[plan[n].dtype].rank, n))
    placed, position = {}, 0
    for name in names:
        entry = plan[name]
        placed[name] = replace(entry, start=position, stop=position + entry.nbytes)
        position += entry.nbytes
    start = len(_header(placed, card, 0))
    return {
        name: replace(e, start=e.start + start, stop=e.stop + start) for name, e in placed.items()
    }, start


def _header(placed: Mapping[str, Entry], card: Card, start: int) -> bytes:
    table: dict[str, object] = {"__metadata__": card.to_header()}
    for name, entry in placed.items():
        table[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.start - start, entry.stop - start],
        }
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise CheckpointError(f"{len(placed):,} tensors need a header that qvec could not read")
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


def _refused(path: Path, fault: OSError) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be written: {(fault.strerror or str(fault)).lower()}")
