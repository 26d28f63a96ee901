"""Opens an input and says what the user should know of how it was read."""

from __future__ import annotations

from pathlib import Path

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.specs import Listener


def opened(path: Path, listener: Listener) -> Checkpoint:
    """An open checkpoint, to be used as a context.

    Raises:
        CheckpointError: see ``Checkpoint``.
    """
    checkpoint = Checkpoint(path)
    for note in checkpoint.notes:
        listener.note(f"{path}: {note}")
    return checkpoint
