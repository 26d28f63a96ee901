"""The checkpoint files of a run: each opened once, and refused where it is of the wrong kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from qvec_cli.checkpoint.card import FAKE, Card, Kind
from qvec_cli.checkpoint.naming import is_of_transformers
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.source import WeightsChoice
from qvec_cli.errors import CheckpointError, MismatchError, QvecError, located
from qvec_cli.inputs.foreign import decode_vector, refuse_foreign
from qvec_cli.model.configuration import Model, of_config
from qvec_cli.model.tokens import places_of
from qvec_cli.model.transformers_config import of_folder
from qvec_cli.specs import Grid, Listener

_INSTEAD = {
    Kind.VECTOR: "A vector comes from qvec extract.",
    Kind.CHECKPOINT: "A float checkpoint comes from qvec import, finetune, train-qat or patch.",
    Kind.MOMENTS: "Moments come from qvec moments.",
}


def require(checkpoint: Checkpoint, kind: Kind) -> None:
    """Refuses a file of another kind than the operation needs, and one that another tool packed.

    MismatchError names the grid of a quantized file.
    """
    card = checkpoint.card
    packed = checkpoint.kind is Kind.QUANTIZED and card.quant
    if kind is Kind.CHECKPOINT and (packed or card.role == FAKE):
        raise MismatchError(
            f"{checkpoint.path}: is quantized already, to {Grid.from_json(card.quant or {})}",
            hint="Use the float checkpoint it was made from.",
        )
    if checkpoint.kind is not kind or (kind is Kind.VECTOR and checkpoint.bare):
        raise MismatchError(
            f"{checkpoint.path}: is {_a(checkpoint.kind)}, {_a(kind)} belongs here",
            hint=_INSTEAD[kind],
        )
    refuse_foreign(checkpoint, floats=True)


def _a(kind: Kind) -> str:
    return {"moments": "a file of moments", "quantized": "a quantized file"}.get(kind, f"a {kind}")


def require_model(checkpoint: Checkpoint) -> None:
    """Refuses a file that holds no network, float or packed by qvec.

    CheckpointError: a vector or the state of a run. MismatchError: packed by another tool.
    """
    if checkpoint.kind not in (Kind.CHECKPOINT, Kind.QUANTIZED):
        raise CheckpointError(
            f"{checkpoint.path}: is {_a(checkpoint.kind)}, not a model",
            hint="qvec inspect FILE tells what a file is.",
        )
    refuse_foreign(checkpoint)


def stated_model(checkpoint: Checkpoint) -> Model | None:
    """The configuration of a network from the card, or from the folder of a bare file, if any.

    MismatchError: damaged, or a folder of a network that is not built here.
    """
    with located(checkpoint.path):
        places = places_of(checkpoint)
        if checkpoint.card.model:
            return replace(Model.from_json(checkpoint.card.model), places=places)
        if is_of_transformers(checkpoint.config):
            names = (*checkpoint, *checkpoint.aliases)
            model = of_folder(checkpoint.config or {}, checkpoint.processor, names)
            return replace(model, places=places)
    return of_config(checkpoint.config) if checkpoint.config else None


def card_of(checkpoint: Checkpoint, kind: Kind) -> Card:
    """The card to write for what is made from a file; a bare one brings what its folder says."""
    card = replace(checkpoint.card, kind=kind, moments=None, storage=None)
    model = stated_model(checkpoint) if checkpoint.bare else None
    return replace(card, model=model.to_json()) if model else card


DOOR: Final = (
    "qvec import FILE -o NEW.st finds it out and writes it down; or name it: --model NAME, timm's."
)
"""The way to a network that a file does not tell of."""


def model_of(checkpoint: Checkpoint) -> Model:
    """The configuration of the network; CheckpointError where nothing says it."""
    if model := stated_model(checkpoint):
        return model
    raise CheckpointError(f"{checkpoint.path}: does not say its architecture", hint=DOOR)


def opened(path: Path, listener: Listener, choice: WeightsChoice = WeightsChoice()) -> Checkpoint:
    """One open checkpoint, to be used as a context; what it notes of its reading is passed on."""
    checkpoint = Checkpoint(path, choice)
    try:
        decode_vector(checkpoint)
    except QvecError:
        checkpoint.close()
        raise
    for note in checkpoint.notes:
        listener.note(f"{path}: {note}")
    return checkpoint


class InputFiles:
    """The checkpoints that a run reads; each is opened and hashed once, whoever asks for it.

    ``listener``: hears what the files note of their reading. ``choice``: which weights are meant
    in files that qvec did not write.
    """

    def __init__(self, listener: Listener, choice: WeightsChoice = WeightsChoice()) -> None:
        self._listener, self._choice = listener, choice
        self._checkpoints: dict[Path, Checkpoint] = {}

    def open(self, path: Path) -> Checkpoint:
        """The open checkpoint of a path, which stays open until the run ends."""
        if path not in self._checkpoints:
            self._checkpoints[path] = opened(path, self._listener, self._choice)
        return self._checkpoints[path]

    def release(self, path: Path) -> None:
        """Closes a file that is held in memory as a whole; who asks again has it read again."""
        checkpoint = self._checkpoints.get(path)
        if checkpoint is not None and checkpoint.in_memory:
            self._checkpoints.pop(path).close()

    def __enter__(self) -> InputFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for checkpoint in self._checkpoints.values():
            checkpoint.close()


@contextmanager
def input_files(
    files: InputFiles | None, listener: Listener, choice: WeightsChoice
) -> Iterator[InputFiles]:
    """The files of a run that others have begun, or those of a run of its own."""
    if files is not None:
        yield files
    else:
        with InputFiles(listener, choice) as files_of_this_run:
            yield files_of_this_run
