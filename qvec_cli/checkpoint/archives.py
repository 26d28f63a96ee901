"""What torch has saved, looked through before torch reads it: its kind, and what it would take."""

from __future__ import annotations

import contextlib
import io
import os
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator
from json import dumps
from pathlib import Path
from typing import Any, Final

from qvec_cli.checkpoint.header import MAX_HEADER
from qvec_cli.errors import CheckpointError
from qvec_cli.tame import command

_SLACK: Final = 1 << 20  # letters that the pickle of a small file may encode

_PICKLES: Final = 5
"""Pickles in a row at the start of a file of torch's old form; raw numbers follow them."""

_MAKERS: Final = (b"bytearray", b"_rebuild_device_tensor")
_TENSOR: Final = b"Tensor\n"
_TENSOR_CLASS: Final = re.compile(rb"ctorch(\.\w+)*\n\w*Tensor\n")
"""What torch's loader calls when a pickle says so, and what may be of any size then."""

_ENCODES: Final = b"_codecs"

_LONGEST: Final = 64  # bytes of such a word

_MANY: Final = 1 << 40  # letters, from which on they are not told apart

_WIDEST: Final = 4  # letters that any other encoding makes of one

_WIDENING: Final = (b"xmlcharrefreplace", b"backslashreplace", b"namereplace", b"_escape")
"""Encodings that make many letters of one."""

_CALLS: Final = ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ")

_MAX_DIRECTORY: Final = 12 << 20  # bytes of a zip archive's table; torch needs 100 a tensor


def refuse_bomb(path: Path, stream: Any, size: int) -> None:
    """Refuses a pickle that would take far more memory than its file has bytes.

    The stream is left at its start. CheckpointError: an archive that is compressed (torch
    stores), damaged, or not torch's; a pickle with a word that makes much of little.
    """
    stream.seek(0)
    if stream.read(2) != b"PK":
        stream.seek(0)
        _refuse_growth(path, stream, size)
        stream.seek(0)
        return
    with _whole(path):
        _require_one_directory(stream, size)
        archive = zipfile.ZipFile(stream)
        members = archive.infolist()
        _refuse_other_kinds(path, [m.filename for m in members])
        if any(m.compress_type != zipfile.ZIP_STORED for m in members) or (
            sum(m.file_size for m in members) > size
        ):
            raise CheckpointError(f"{path}: a compressed zip archive, which torch does not write")
        if not any(m.filename.endswith("data.pkl") for m in members):
            raise CheckpointError(f"{path}: a zip archive, but not one of torch.save")
        for member in members:
            if member.filename.lower().endswith(".pkl"):  # torch minds no case
                text = archive.read(member)
                if member.filename.endswith("/data.pkl"):
                    _refuse_whole_model(path, text)
                _refuse_growth(path, io.BytesIO(text), size)
    stream.seek(0)


def _refuse_other_kinds(path: Path, names: list[str]) -> None:
    """Refuses archives of torch that hold a program."""
    if any("/code/" in name for name in names):
        raise CheckpointError(
            f"{path}: a TorchScript program, not a state dict",
            hint=_save(f'torch.jit.load({dumps(str(path))}, map_location="cpu")'),
        )
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
        raise CheckpointError(
            f"{path}: a program of torch.export, not a state dict",
            hint=_save(f"torch.export.load({dumps(str(path))})", "state_dict"),
        )


def _refuse_whole_model(path: Path, pickled: bytes) -> None:
    """Refuses a pickle whose first object is one of a class, as torch.save(model) makes it."""
    first = re.match(rb"\x80.c([\w.]+)\n([\w.]+)\n(q.|r....)?\)\x81", pickled, re.DOTALL)
    if first and first[1].split(b".")[0] not in (b"collections", b"argparse"):
        raise whole_model(path, f"{first[1].decode()}.{first[2].decode()}")


def whole_model(path: Path, kind: str) -> CheckpointError:
    """A model that was saved with its code; ``kind`` is the name of its class."""
    return CheckpointError(
        f"{path}: a whole model and not a state dict: holds {kind}, which could run code when it "
        "is loaded: not read",
        hint=_save(f'torch.load({dumps(str(path))}, map_location="cpu", weights_only=False)')
        + " Where you do not trust it, leave it.",
    )


def _save(model: str, state: str = "state_dict()") -> str:
    """The line of Python that saves the state dict alone."""
    code = f'import torch; torch.save({model}.{state}, "state_dict.pth")'
    return f"Save its state dict: {command(('python', '-c', code))}"


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


def _refuse_growth(path: Path, stream: Any, size: int) -> None:
    """Refuses a pickle with a word that makes gigabytes of a few letters, and does.

    What makes tensors or bytes of a number is never allowed. Encoding a text is, as numpy's numbers
    and dates need it, while all texts that are encoded are no longer than the file and a bit.
    """
    named = _words_in(stream)
    makers: list[bytes] = [word for word in (*_MAKERS, _TENSOR) if word in named]
    makers += [word for word in _WIDENING if word in named and _ENCODES in named]
    if makers:
        word = "torch.Tensor" if makers[0] == _TENSOR else makers[0].decode()
        raise CheckpointError(f"{path}: a pickle that calls {word}, which no state dict needs")
    if _ENCODES in named and _letters(stream) > size + _SLACK:
        raise CheckpointError(
            f"{path}: a pickle that calls _codecs on more text than it holds, which no state "
            "dict needs"
        )


def _words_in(stream: Any) -> set[bytes]:
    """Which of the words are in a pickle; it is read once, in pieces, and where two meet."""
    found: set[bytes] = set()
    before = b""
    stream.seek(0)
    while chunk := stream.read(1 << 20):
        piece = before + chunk
        found |= {word for word in (*_MAKERS, *_WIDENING, _ENCODES) if word in piece}
        if _TENSOR in piece and _TENSOR_CLASS.search(piece):
            found.add(_TENSOR)
        before = piece[-_LONGEST:]
    return found


def _letters(stream: Any) -> float:
    """Letters of all texts that the functions of a pickle are called on, at most.

    The pickle machine is run with lengths in place of values; infinite where that cannot be.
    """
    letters, ends = 0, stream.seek(0, os.SEEK_END)
    stream.seek(0)
    try:
        for _ in range(_PICKLES):
            if stream.tell() < ends:
                letters += _of_one_pickle(stream)
    except (ValueError, IndexError, KeyError):
        return float("inf")
    return letters


def _of_one_pickle(stream: Any) -> int:
    """Letters of one pickle, which ends where the stream stands then."""
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    letters = 0
    argument: Any
    for opcode, argument, place in pickletools.genops(stream):
        if place is not None and place > MAX_HEADER:
            raise ValueError("too long to be looked through")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif opcode.name == "MARK":
            marks.append(len(stack))
        else:
            taken = _popped(opcode, stack, marks)
            if opcode.name in _CALLS:
                letters += taken
                taken *= _WIDEST
            own = len(argument) if isinstance(argument, (str, bytes)) else 0
            stack += [min(taken + own, _MANY)] * len(opcode.stack_after)
    return letters


def _popped(opcode: Any, stack: list[int], marks: list[int]) -> int:
    """Letters of what an operation takes from the stack."""
    if pickletools.markobject in opcode.stack_before:
        start = marks.pop()
        start -= opcode.stack_before.index(pickletools.markobject)
    else:
        start = len(stack) - len(opcode.stack_before)
    if start < 0:
        raise ValueError("takes more than there is")
    taken = sum(stack[start:])
    del stack[start:]
    return taken


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
