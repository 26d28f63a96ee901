"""A folder that appears whole or not at all: a hidden sibling, filled, then put in place."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from qvec_cli.checkpoint.replace import SUFFIX, is_stream, lock, refused
from qvec_cli.errors import CheckpointError, SpecError


def check_folder(path: Path, names: Sequence[str], *, force: bool) -> None:
    """Refuses, before any work, a folder that could not be made afterwards.

    Args:
        path: the folder; one that is there and empty is as good as none.
        names: files that it will hold. With ``force`` an old folder is replaced if it holds
            nothing else, so that no file is lost that qvec has not written.
        force: whether an old folder may be replaced.
    """
    if is_stream(path):
        raise SpecError(f"{path}: a folder is written, which no stream can take")
    try:
        _check(path, names, force=force)
    except OSError as fault:
        raise refused(path, fault) from None


def _check(path: Path, names: Sequence[str], *, force: bool) -> None:
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path}: is a file", hint="Name a folder with -o.")
    held = {entry.name for entry in path.iterdir()} if path.exists() else set()
    if held and not force:
        raise CheckpointError(f"{path}: exists", hint="Pass --force to replace it.")
    if others := sorted(held - set(names)):
        raise CheckpointError(
            f"{path}: holds {others[0]}, which replacing the folder would lose",
            hint="Name a folder of its own with -o.",
        )
    parent = path.resolve().parent
    if not parent.is_dir():
        raise CheckpointError(
            f"{path}: its folder does not exist", hint=f"Create it with: mkdir -p {path.parent}"
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise CheckpointError(f"{path}: its folder is not writable")


@contextlib.contextmanager
def staging(path: Path, names: Sequence[str], *, force: bool) -> Iterator[Path]:
    """A folder to fill that takes its name only when the block ends well.

    Args:
        path: the name; see ``check_folder`` for what may stand there.
        names: files that the folder will hold.
        force: whether an old folder may be replaced.
    """
    check_folder(path, names, force=force)
    target = path.resolve()
    try:
        _sweep(target)
        staged = _hidden(target)
        staged.mkdir()
        fd = os.open(staged, os.O_RDONLY)
    except OSError as fault:
        raise refused(path, fault) from None
    try:
        lock(fd)  # to the end: it keeps others from sweeping it
        yield staged
        os.fsync(fd)
        check_folder(path, names, force=force)
        _put(staged, target)
    except OSError as fault:
        raise refused(path, fault) from None
    finally:
        os.close(fd)
        shutil.rmtree(staged, ignore_errors=True)


def _hidden(target: Path) -> Path:
    name = os.fsdecode(os.fsencode(target.name)[:200])
    return target.with_name(f".{name}.{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}")


def _put(staged: Path, target: Path) -> None:
    """Gives the folder its name; an old one that is not empty steps aside first."""
    if not (target.exists() and any(target.iterdir())):
        staged.rename(target)  # replaces an empty folder, and no other
        return
    old = _hidden(target)
    target.rename(old)
    try:
        staged.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sweep(target: Path) -> None:
    """Removes what writers of the same folder left behind that were killed."""
    start = f".{os.fsdecode(os.fsencode(target.name)[:200])}."
    with contextlib.suppress(PermissionError):  # a parent that may be written but not listed
        for entry in sorted(target.parent.iterdir()):
            if not (entry.name.startswith(start) and entry.name.endswith(SUFFIX)):
                continue
            with contextlib.suppress(OSError):
                fd = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    if lock(fd):
                        shutil.rmtree(entry)
                finally:
                    os.close(fd)
