"""The images of a data set, ready for one network: decoded, labelled in the head's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import MismatchError
from qvec_cli.learn.batches import Batch, decode
from qvec_cli.learn.data import Task, open_task
from qvec_cli.model import build
from qvec_cli.specs import Listener, Loading


@dataclass(frozen=True, slots=True)
class Examples:
    """A data set seen through a model."""

    task: Task
    model: dict[str, Any]
    relabel: torch.Tensor  # from the data set's class index to the head's
    loading: Loading

    def decoded(self, split: str, listener: Listener) -> Batch:
        """Every image of a split, uint8 [N, C, H, W], with the head's labels."""
        samples = self.task.split(split)
        images, labels = decode(
            samples,
            build.transform(self.model, augment=False),
            build.channels(self.model),
            self.loading.workers,
            lambda done: listener.progress(f"decode {split}", done, len(samples)),
        )
        return images, self.relabel[labels]


def open_data(spec: str, loading: Loading) -> Task:
    """The data set that the user names."""
    folder = Path(loading.data_dir) if loading.data_dir else None
    return open_task(spec, folder, download=loading.download)


def open_for(
    checkpoint: Checkpoint, model: dict[str, Any], spec: str, loading: Loading, listener: Listener
) -> Examples:
    """A data set whose classes are matched with the head's, by name where the card has names.

    Raises:
        MismatchError: classes that the head does not know, or another number of them.
    """
    task = open_data(spec, loading)
    known = (checkpoint.card.data or {}).get("classes") if checkpoint.card else None
    if known is None:
        if len(task.classes) != model["num_classes"]:
            raise MismatchError(
                f"{spec} has {len(task.classes)} classes, the head of "
                f"{checkpoint.path} {model['num_classes']}"
            )
        listener.note(f"{checkpoint.path} does not name its classes; taking them in sorted order")
        known = task.classes
    return Examples(task, model, _relabel(task, known, spec, checkpoint), loading)


def _relabel(task: Task, known: Sequence[str], spec: str, checkpoint: Checkpoint) -> torch.Tensor:
    place = {name: index for index, name in enumerate(known)}
    strange = [name for name in task.classes if name not in place]
    if strange:
        raise MismatchError(
            f"{spec} has {len(task.classes)} classes, the head of {checkpoint.path} {len(known)}; "
            f"it does not know {', '.join(map(repr, strange[:3]))}",
            hint="The model was trained on another data set.",
        )
    return torch.tensor([place[name] for name in task.classes], dtype=torch.int64)
