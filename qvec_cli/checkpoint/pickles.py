"""State dicts that torch has pickled, read by torch's weights-only loader and nothing laxer.

They are held in memory as a whole, and torch is imported for them: safetensors files stream.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.checkpoint.dtypes import name_of
from qvec_cli.checkpoint.header import MAX_NAME, Entry
from qvec_cli.checkpoint.source import Contents, File, Memory
from qvec_cli.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_NESTED: Final = (
    *("state_dict", "model_state_dict", "model", "model_state", "module", "net", "network"),
    *("state_dict_ema", "model_ema", "ema", "ema_state_dict", "weights", "params"),
)
"""Where training scripts keep the state dict inside what they save; the first one counts."""

_SLACK: Final = 1 << 20  # bytes that the tensors of a small file may share


def read_pickle(path: Path, file: File, contents: Contents) -> None:
    """The tensors of a pickled state dict, also of one in a training script's dictionary.

    CheckpointError for anything but tensors and plain data: such a file could run code.
    """
    contents.streams, nbytes = False, 0
    state = _state_dict(_load(path, file), path, contents)
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in state.items():
        if (kept := seen.setdefault(_identity(tensor), name)) != name:
            contents.aliases[name] = kept
            continue
        nbytes += tensor.numel() * tensor.element_size()
        if nbytes > 4 * file.size + _SLACK:
            raise CheckpointError(
                f"{path}: {name}: the tensors up to it take {nbytes:,} bytes, "
                f"the file has {file.size:,}"
            )
        data, dtype = _bytes(path, name, tensor)
        part = contents.add(Memory(data))
        contents.entries[name] = Entry(dtype, tuple(tensor.shape), 0, len(data), part)
    file.require_unchanged()


def _load(path: Path, file: File) -> Any:
    """What the file holds, by torch; the keyword is said, so no environment can relax it."""
    with os.fdopen(file.dup(), "rb") as stream:
        refuse_bomb(path, stream, file.size)
        import torch

        try:
            # timm's training script saves a Namespace: a bag of attributes, without code
            with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of old pickle protocols: they are read, or not
                return torch.load(stream, map_location="cpu", weights_only=True, mmap=False)
        except MemoryError:
            raise
        except Exception as fault:  # a hostile file can end torch's loader in any way
            raise _refused(path, fault) from None


def _refused(path: Path, fault: Exception) -> CheckpointError:
    hint: str | None = "Where you trust the file, save its state dict alone, best as safetensors."
    if named := re.search(r"GLOBAL ([\w.]+)", str(fault)):
        what = f"holds {named[1]}, which could run code when it is loaded: not read"
    elif "Weights only load failed" in str(fault):
        what = "a pickle with more than tensors and plain data, which could run code: not read"
    else:
        lines = str(fault).splitlines() or [type(fault).__name__]
        what, hint = f"a pickle that torch cannot read: {lines[0]}", None
    return CheckpointError(f"{path}: {what}", hint=hint)


def _state_dict(saved: Any, path: Path, contents: Contents) -> dict[str, Tensor]:
    """The state dict itself, or the one that a training script has put inside a dictionary."""
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"{path}: holds a {type(saved).__name__}, not a state dict")
    inner = [key for key in _NESTED if isinstance(saved.get(key), Mapping) and saved[key]]
    if inner:
        also = f"; {', '.join(inner[1:])} left out" if inner[1:] else ""
        contents.notes.append(f"the weights are those under {inner[0]!r}{also}")
        saved = saved[inner[0]]
    import torch

    for name, tensor in saved.items():
        if isinstance(name, str) and not _nameable(name):
            raise CheckpointError(f"{path}: {name[:50]!r}: no name for a tensor")
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"{path}: {name}: is {type(tensor).__name__}, not a tensor",
                hint="A state dict holds tensors only.",
            )
    return dict(saved)


def _nameable(name: str) -> bool:
    try:
        return name != "__metadata__" and len(name.encode()) <= MAX_NAME
    except UnicodeEncodeError:
        return False


def _bytes(path: Path, name: str, tensor: Tensor) -> tuple[memoryview, str]:
    import torch

    try:
        dtype = name_of(tensor.dtype)
        flat = tensor.detach().contiguous().reshape(-1)
        raw: Any = flat.view(torch.uint8).numpy()
        return memoryview(raw), dtype
    except (KeyError, RuntimeError, NotImplementedError, TypeError):
        kind = f"{tensor.dtype} {tensor.layout}".replace("torch.", "")
        raise CheckpointError(f"{path}: {name}: {kind} is not supported by qvec") from None


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Equal for tied tensors: the same numbers at the same place in memory."""
    import torch

    if tensor.layout is not torch.strided or tensor.is_nested or not tensor.numel():
        return (id(tensor),)
    return tensor.data_ptr(), tensor.stride(), tensor.dtype, tuple(tensor.shape)


_GROWING: Final = (b"bytearray", b"_codecs")
"""What torch's loader calls when a pickle says so, and what makes gigabytes of a few letters."""

_MAX_DIRECTORY: Final = 12 << 20  # bytes of a zip archive's table; torch needs 100 a tensor


def refuse_bomb(path: Path, stream: Any, size: int) -> None:
    """Refuses a pickle that would take far more memory than its file has bytes.

    The stream is left at its start. CheckpointError: an archive that is compressed (torch
    stores), damaged, or not torch's; a pickle with a word that makes much of little.
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
