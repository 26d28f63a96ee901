"""New files of a folder that take their names together, beside whatever else it holds.

They are made in a hidden folder. Where the kernel can exchange two names in one step (Linux, most
local disks), a twin of the folder with the new files and hard links to the others changes places
with it. Where not (network disks, mount points, folders with folders in them, our own working
folder), they are moved one by one: in the order of their names the old ones go aside, in the
opposite order the new ones come, so that config.json is away meanwhile. What a fault or a kill
cuts off is moved back, after a kill by the next writer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from qvec_cli.checkpoint.replace import hidden, lock, refused, sweep, sync_folder
from qvec_cli.checkpoint.stop import STOP
from qvec_cli.errors import CheckpointError

_HERE: Final = -100
"""AT_FDCWD of Linux: names are paths."""

_EXCHANGE: Final = 2
"""RENAME_EXCHANGE of Linux."""


@contextlib.contextmanager
def replacing_folder(out: Path, *, force: bool) -> Iterator[Path]:
    """A hidden folder for new files, which appear together in ``out`` when the block ends well.

    ``out`` is made where it is missing; its other files, and the modes of all, stay. Raises
    CheckpointError: a disk that fails; another process that writes ``out``; without ``force``, a
    file of the same name.
    """
    target = out.resolve()
    is_new = not target.exists()
    try:
        with _alone(out, target), _stage(target) as stage:
            new = stage / "new"
            new.mkdir()
            try:
                yield new
            except CheckpointError as fault:
                raise CheckpointError(str(fault).replace(str(new), str(out)), fault.hint) from None
            with STOP.guarded():
                if is_new:
                    new.rename(target)  # fails where another process was faster
                else:
                    _put(stage, out, target, force=force)
    except OSError as fault:
        raise refused(out, fault) from None
    for folder in (target, target.parent):
        sync_folder(out, folder)


@contextlib.contextmanager
def _alone(out: Path, target: Path) -> Iterator[None]:
    """Keeps other writers out of a folder, by a lock that goes with this process."""
    if not target.exists():
        yield
        return
    fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if lock(fd) is False or not os.path.samestat(os.fstat(fd), target.stat()):
            raise CheckpointError(
                f"{out}: another qvec is writing it", hint="Wait for it, or name another folder."
            )
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _stage(target: Path) -> Iterator[Path]:
    """A new hidden folder on the disk of the target, locked as long as its writer lives."""
    places = (target, target / "folder")  # beside it or, where that cannot be, in it
    with STOP.guarded():
        for place in places:
            if place.parent.is_dir():
                sweep(place, partial(_clear, target))
        while True:
            stage, fd = hidden(places[_is_bound(target)]), None
            try:
                stage.mkdir()
                fd = os.open(stage, os.O_RDONLY | os.O_CLOEXEC)
                if lock(fd) is not False and stage.exists():
                    with STOP.heard():
                        yield stage
                    return  # else a sweeper was faster than the lock
            finally:
                with contextlib.suppress(OSError):  # else the next writer sweeps it
                    _clear(target, stage)
                if fd is not None:
                    os.close(fd)


def _is_bound(target: Path) -> bool:
    """Whether a folder has to stay the same one: a mount point, or where a process works."""
    return target.is_dir() and (
        os.path.ismount(target)
        or not os.access(target.parent, os.W_OK | os.X_OK)
        or Path.cwd().is_relative_to(target)
    )


def _put(stage: Path, out: Path, target: Path, *, force: bool) -> None:
    """Gives the new files their names."""
    new = stage / "new"
    names = sorted(path.name for path in new.iterdir())
    if any((target / name).exists() for name in names) and not force:
        raise CheckpointError(f"{out}: exists", hint="Pass --force to replace it.")
    for name in names:
        if (target / name).is_file():
            (new / name).chmod((target / name).stat().st_mode & 0o7777)
    if not _exchanged(stage / "twin", new, target, names):
        (stage / "names").write_text("\n".join(names), encoding="utf-8")
        (stage / "old").mkdir()
        for source, place in _moves(stage, target, names):
            if os.path.lexists(source):
                source.rename(place)


def _exchanged(twin: Path, new: Path, target: Path, names: Sequence[str]) -> bool:
    """Whether a folder could change places with its twin; else it is as it was."""
    try:
        twin.mkdir()
        shutil.copystat(target, twin)
        others = [path for path in target.iterdir() if path.name not in names]
        for path in [*others, *(new / name for name in names)]:
            os.link(path, twin / path.name, follow_symlinks=False)
        before, after = target.stat(), twin.stat()
        if (before.st_uid, before.st_gid) != (after.st_uid, after.st_gid):
            return False
        _exchange(twin, target)
    except OSError:
        return False
    return True


def _exchange(one: Path, other: Path) -> None:
    """Exchanges what two names stand for, in one step. OSError where that cannot be."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if function(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _moves(stage: Path, target: Path, names: Sequence[str]) -> list[tuple[Path, Path]]:
    """From where to where files go, one after the other."""
    away = [(target / name, stage / "old" / name) for name in names]
    return [*away, *((stage / "new" / name, target / name) for name in reversed(names))]


def _clear(target: Path, stage: Path) -> None:
    """Removes a hidden folder; first, what was moved from it and to it in part is moved back."""
    if not stage.is_dir():
        stage.unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError):
        names = (stage / "names").read_text(encoding="utf-8").split("\n")
        if (stage / "new" / names[0]).exists():  # the last to go
            for place, source in reversed(_moves(stage, target, names)):
                if os.path.lexists(source) and not os.path.lexists(place):
                    source.rename(place)
    shutil.rmtree(stage)
