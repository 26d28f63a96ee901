"""Finds what an input is, by its content and not by its suffix."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from qvec_cli.checkpoint.header import MAX_HEADER
from qvec_cli.checkpoint.layout import Layout
from qvec_cli.checkpoint.shards import INDEX, inside, named_header, of_index, read_json
from qvec_cli.checkpoint.source import STREAM, open_file
from qvec_cli.errors import CheckpointError

_PICKLED: Final = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How a file begins that ``torch.save`` wrote: a zip archive, or formerly a bare pickle."""

_IN_FOLDER: Final = (
    "model.safetensors",
    "*" + INDEX,
    "*.safetensors",
    "pytorch_model.bin",
    "*.pth",
    "*.pt",
)
"""What is looked for in a folder; the first pattern that finds something must find one file."""


def locate(path: Path) -> Layout:
    """The tensors of a file, a stream, an index of shards or a folder of the hub.

    Raises:
        CheckpointError: missing, unreadable, or nothing of that; names the file.
    """
    layout = _of_folder(path) if _is_folder(path) else _of_file(path)
    if "qvec.kind" not in layout.metadata:
        layout.strip()
        _find_aliases(layout)
    return layout


def _of_file(path: Path) -> Layout:
    file = open_file(path)
    layout = Layout()
    layout.add(file)
    try:
        start = bytes(file.read(min(file.size, 16), 0))
        if int.from_bytes(start[:8], "little") <= MAX_HEADER:  # no magic is as small a number
            layout.entries, layout.metadata = named_header(path, file)
        elif start.startswith(_PICKLED):
            from qvec_cli.checkpoint.pickles import read_pickle  # its libraries take time

            read_pickle(path, file, layout)
        elif start.lstrip().startswith(b"{"):
            layout.close()
            return of_index(path, path.parent)
        else:
            named_header(path, file)  # tells what it is instead
    except BaseException:
        layout.close()
        raise
    return layout


def _of_folder(folder: Path) -> Layout:
    for pattern in _IN_FOLDER:
        found = sorted(p.name for p in folder.glob(pattern))
        if len(found) > 1:
            raise CheckpointError(
                f"{folder}: holds several checkpoints: {', '.join(found[:5])}",
                hint="Name one of them.",
            )
        if found:
            path = inside(folder, found[0])
            layout = of_index(path, folder) if found[0].endswith(INDEX) else _of_file(path)
            if (folder / "config.json").exists():
                layout.config = read_json(inside(folder, "config.json"))
            return layout
    raise CheckpointError(
        f"{folder}: a folder without a checkpoint",
        hint=f"Looked for {', '.join(_IN_FOLDER)}.",
    )


def _is_folder(path: Path) -> bool:
    try:
        return path != STREAM and path.is_dir()
    except OSError:  # closed to us, or no name that can be: opening it will tell
        return False


def _find_aliases(layout: Layout) -> None:
    """Tied names as the safetensors library notes them: the dropped one, and the one kept."""
    for dropped, kept in layout.metadata.items():
        if kept in layout.entries and dropped not in layout.entries:
            layout.aliases[dropped] = kept
