"""A file that appears whole or not at all: a hidden sibling, synced, then put in place."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import BinaryIO, Final

from qvec_cli.checkpoint.json_text import encode
from qvec_cli.checkpoint.source import STREAM
from qvec_cli.checkpoint.stop import STOP
from qvec_cli.errors import CheckpointError, ReaderLeftError, SpecError
from qvec_cli.tame import command

SUFFIX: Final = ".qvec-tmp"
"""How a hidden sibling ends; the next writer to the same target sweeps those of dead ones."""

_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What file systems without hard links answer, as those of memory cards."""


def check_target(path: Path, *, force: bool, size: int = 0) -> None:
    """Refuses, before any work, a target that could not be written afterwards.

    Args:
        path: a file to make, or ``-`` for stdout, or a pipe or device, which is written to.
        force: whether an old file may be replaced.
        size: bytes that it will have, if that is known.
    """
    try:
        if is_stdout(path):
            if os.isatty(1):
                raise SpecError("stdout is a terminal, and gets binary data: pipe it on")
        elif not _is_stream(path):
            _check(path, force=force, size=size)
    except OSError as fault:
        raise refused(path, fault) from None
    except RuntimeError:
        raise CheckpointError(f"{path}: is a link to itself") from None


def check_apart(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuses, whatever the names, an output that is an input: it would be lost (SpecError)."""
    for made, path in product(outputs, inputs):
        if not is_stream(made) and made.exists() and path.exists() and made.samefile(path):
            raise SpecError(
                f"{made}: is an input, and the output would replace it",
                hint="Name another output: --force never replaces what a result is made from.",
            )


def check_distinct(outputs: Iterable[Path | None]) -> None:
    """Refuses two outputs that are one file, whatever the names (SpecError)."""
    places = [path.resolve() for path in outputs if path is not None]
    if double := next((place for place in places if places.count(place) > 1), None):
        raise SpecError(f"{double}: two outputs cannot be one file")


def is_stream(path: Path) -> bool:
    """Whether an output goes to stdout, or to something else that is no file."""
    return path == STREAM or _is_stream(path)


def is_stdout(path: Path) -> bool:
    """Whether an output is stdout, also by a name such as /dev/stdout; a file is a file."""
    if path == STREAM:
        return True
    try:
        return _is_stream(path) and os.path.samestat(path.stat(), os.fstat(1))
    except OSError:
        return False


@contextlib.contextmanager
def replacing(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """A file to write that takes its name only when the block ends well.

    Links are written through, the mode of an old file and the umask are kept. Without
    ``force`` two writers cannot both win: the last step is a link, which never replaces. A
    stream gets its bytes at the end, when they are whole.
    """
    if is_stream(path):
        with _streaming(path) as file:
            yield file
        return
    target = path.resolve()
    try:
        sweep(target, Path.unlink)
        # open to the end, because its lock keeps others from sweeping it
        with _sibling(target) as (temporary, file):
            yield file
            if target.exists():
                os.fchmod(file.fileno(), target.stat().st_mode & 0o7777)
            file.flush()
            os.fsync(file.fileno())
            with STOP.guarded():
                _put(temporary, target, force=force)
    except FileExistsError:
        raise CheckpointError(f"{path}: exists", hint="Pass --force to replace it.") from None
    except OSError as fault:
        raise refused(path, fault) from None
    sync_folder(path, target.parent)


def write_json(path: Path, document: object, *, force: bool) -> None:
    """Writes ``dump(document)``, whole or not at all."""
    text = dump(document)
    check_target(path, force=force)
    with replacing(path, force=force) as file:
        file.write(text.encode())


def dump(document: object) -> str:
    """JSON for people and programs: indented, sorted, no NaN, one newline at the end."""
    return encode(document, indent=2, sort_keys=True) + "\n"


def refused(path: Path, fault: OSError) -> CheckpointError:
    """The line for a fault of the disk."""
    return CheckpointError(f"{path}: cannot be written: {(fault.strerror or str(fault)).lower()}")


def _is_stream(path: Path) -> bool:
    """Whether a path leads to something to write into, not a file to replace or to make."""
    try:
        mode = path.stat().st_mode
    except OSError:  # not there, or a link to itself: for ``_check`` to tell
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISBLK(mode))


def _check(path: Path, *, force: bool, size: int) -> None:
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder", hint="Name a file with -o.")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: is not a regular file")
    if path.exists() and not force:
        raise CheckpointError(f"{path}: exists", hint="Pass --force to replace it.")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise CheckpointError(
            f"{path}: its folder does not exist",
            hint=f"Create it with: {command(('mkdir', '-p', path.parent))}",
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CheckpointError(f"{path}: its folder is not writable")
    if (free := _room(folder)) < size:
        raise CheckpointError(
            f"{path}: needs {size:,} bytes, and its disk has {free:,} left",
            hint="The old file, if there is one, stays until the new one is whole.",
        )


def _room(folder: Path) -> int:
    """Bytes that the disk of a folder has left for us."""
    disk = os.statvfs(folder)
    return disk.f_frsize * (disk.f_bavail if os.geteuid() else disk.f_bfree)


@contextlib.contextmanager
def _sibling(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new sibling that is locked as long as its writer lives, and removed at the end."""
    with STOP.guarded():
        while True:
            temporary = hidden(target)
            try:
                with temporary.open("xb") as file:
                    if lock(file.fileno()) is not False and os.fstat(file.fileno()).st_nlink:
                        with STOP.heard():
                            yield temporary, file
                        return  # else a sweeper was faster than the lock
            finally:
                with contextlib.suppress(OSError):  # else the next writer sweeps it
                    temporary.unlink(missing_ok=True)


def hidden(target: Path) -> Path:
    """A new name for a hidden sibling of a target."""
    return target.with_name(f"{_start(target)}{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}")


def _start(target: Path) -> str:
    """How the names of a target's hidden siblings begin."""
    return f".{os.fsdecode(os.fsencode(target.name)[:200])}."


def lock(fd: int) -> bool | None:
    """Takes a lock that a process loses with its life, on any host and in any container.

    Whether it is ours now; None on a file system without locks.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def sweep(target: Path, remove: Callable[[Path], object]) -> None:
    """Removes what writers to the same target left behind that were killed."""
    start = _start(target)
    try:
        with os.scandir(target.parent) as entries:
            left = [e.path for e in entries if e.name.startswith(start) and e.name.endswith(SUFFIX)]
    except PermissionError:  # a folder that may be written but not listed
        return
    for path in left:
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if lock(fd):
                    remove(Path(path))
            finally:
                os.close(fd)


def _put(temporary: Path, target: Path, *, force: bool) -> None:
    if force:
        temporary.replace(target)
        return
    try:
        target.hardlink_to(temporary)
    except OSError as fault:
        if fault.errno not in _NO_LINKS:
            raise
        os.close(os.open(target, os.O_CREAT | os.O_EXCL))  # claims the name: one writer can
        try:
            temporary.replace(target)
        except BaseException:
            target.unlink()
            raise


def sync_folder(path: Path, folder: Path) -> None:
    """Makes the new name durable, in folders that can be read and on disks that can do that."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(fd)
    except OSError as fault:
        if fault.errno != errno.EINVAL:
            raise CheckpointError(
                f"{path}: is written, but a loss of power could still undo it: {fault.strerror}"
            ) from None
    finally:
        os.close(fd)


@contextlib.contextmanager
def _streaming(path: Path) -> Iterator[BinaryIO]:
    """An unnamed file that is copied to a stream once it is whole."""
    try:
        with tempfile.TemporaryFile() as file:
            yield file
            file.flush()
            file.seek(0)
            fd = 1 if path == STREAM else os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            with open(fd, "wb", closefd=path != STREAM) as stream:
                shutil.copyfileobj(file, stream, 1 << 20)
    except BrokenPipeError:
        raise ReaderLeftError(f"{path}: its reader has left") from None
    except OSError as fault:
        raise refused(path, fault) from None


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder that is gone at the end, at whatever line a signal comes."""
    with STOP.guarded(), tempfile.TemporaryDirectory(prefix="qvec-") as name, STOP.heard():
        yield Path(name)


def unfinished(out: Path) -> Path:
    """The state file of an output; gone when the output is there."""
    return out.with_name(out.name + ".state")


def may_be_finished(out: Path, *, resume: bool, force: bool) -> bool:
    """Whether a run that is to be resumed has an output already, to be looked at and kept."""
    return resume and not force and out.is_file()


def check_unfinished(out: Path, *, resume: bool, force: bool) -> None:
    """Refuses to lose work that was cut off, unless told what to do with it."""
    if is_stream(out):
        raise SpecError(f"-o {out}: the state of a run is kept beside its output: name a file")
    check_target(unfinished(out), force=True)
    if unfinished(out).exists() and not (resume or force):
        raise CheckpointError(
            f"{unfinished(out)}: an unfinished run is there",
            hint="Pass --resume to go on with it, or --force to start anew.",
        )
