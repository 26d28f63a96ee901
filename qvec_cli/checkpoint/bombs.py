"""What is read of a pickle before torch may load it: that it cannot grow without bound."""

from __future__ import annotations

import contextlib
import struct
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from qvec_cli.errors import CheckpointError

_GROWING: Final = (b"bytearray", b"_codecs")
"""What torch's loader calls when a pickle says so, and what makes gigabytes of a few letters."""

_MAX_DIRECTORY: Final = 12 << 20
"""Bytes of a zip archive's own table; torch needs about 100 for each tensor."""


def refuse_bomb(path: Path, stream: Any, size: int) -> None:
    """Refuses a pickle that would take far more memory than its file has bytes.

    Args:
        path: what messages call it.
        stream: the open file, which is left at its start.
        size: bytes of the file.

    Raises:
        CheckpointError: an archive that is compressed (torch stores), damaged, or not torch's;
            a pickle with a word that makes much of little.
    """
    stream.seek(0)
    if stream.read(2) != b"PK":
        stream.seek(0)
        _refuse_growth(path, iter(lambda: stream.read(1 << 20), b""))
        stream.seek(0)
        return
    with _whole(path):
        _require_one_directory(stream, size)
        archive = zipfile.ZipFile(stream)
        members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED for m in members) or (
            sum(m.file_size for m in members) > size
        ):
            raise CheckpointError(f"{path}: a compressed zip archive, which torch does not write")
        if not any(m.filename.endswith("data.pkl") for m in members):
            raise CheckpointError(f"{path}: a zip archive, but not one of torch.save")
        for member in members:
            if member.filename.lower().endswith(".pkl"):  # torch minds no case
                _refuse_growth(path, [archive.read(member)])
    stream.seek(0)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Tells what zipfile says of an archive that is not whole."""
    try:
        yield
    except (zipfile.BadZipFile, ValueError, OSError, RuntimeError, EOFError) as fault:
        raise CheckpointError(
            f"{path}: a PyTorch file that is cut short or damaged ({fault})",
            hint="Was a copy interrupted?",
        ) from None


def _refuse_growth(path: Path, chunks: Iterable[bytes]) -> None:
    """Looks for the words in bytes that come in pieces, also where two pieces meet."""
    before = b""
    for chunk in chunks:
        for word in _GROWING:
            if word in before + chunk:
                raise CheckpointError(
                    f"{path}: a pickle that calls {word.decode()}, which no state dict needs"
                )
        before = chunk[-16:]


def _require_one_directory(stream: Any, size: int) -> None:
    """Refuses an archive in which zipfile and torch could find different directories.

    Raises:
        ValueError: it does not end with its directory and nothing else, or that is too long.
    """
    stream.seek(max(0, size - 98))
    tail = stream.read().rjust(98, b"\0")
    stop = size - 22
    length, start = struct.unpack_from("<LL", tail, 88)
    if tail[56:60] == b"PK\6\7":  # of 64 bits: a record, and a note of where it stands
        stop = size - 98
        length, start = struct.unpack_from("<QQ", tail, 40)
        if tail[:4] != b"PK\6\6" or struct.unpack_from("<Q", tail, 64)[0] != stop:
            raise ValueError("its end is not where it says")
    if tail[76:80] != b"PK\5\6" or start + length != stop or length > _MAX_DIRECTORY:
        raise ValueError("it does not end with one directory of moderate size")
