"""The images of a data set, ready for one network: decoded, labelled in the head's order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.data.datasets import Task, open_task, open_unlabelled
from qvec_cli.errors import DataError, MismatchError
from qvec_cli.model.configuration import Model
from qvec_cli.specs import Listener, Loading

if TYPE_CHECKING:
    from qvec_cli.learn.batches import Batch


@dataclass(frozen=True, slots=True)
class Examples:
    """A data set seen through a model."""

    task: Task
    model: Model
    relabel: tuple[int, ...]  # from the data set's class index to the head's
    loading: Loading

    def decoded(self, split: str, listener: Listener) -> Batch:
        """Every image of a split, uint8 [N, C, H, W], with the head's labels."""
        import torch

        from qvec_cli.learn.batches import PreparedSplit, decode
        from qvec_cli.model import build

        samples = self.task.split(split)
        prepared = PreparedSplit(
            samples,
            build.transform(self.model, augment=False),
            self.model.input_size[0],
            self.loading.workers,
        )
        images, labels = decode(
            prepared, lambda done: listener.progress(f"decode {split}", done, len(samples))
        )
        return images, torch.tensor(self.relabel)[labels]


def open_data(spec: str, loading: Loading) -> Task:
    """The data set that the user names."""
    folder = Path(loading.data_dir) if loading.data_dir else None
    return open_task(spec, folder, download=loading.download)


def open_images(spec: str, model: Model, loading: Loading) -> Task:
    """Images whose labels do not count, for one network: a data set, any folder, or noise."""
    folder = Path(loading.data_dir) if loading.data_dir else None
    side = model.input_size[-1]
    return open_unlabelled(spec, folder, side, download=loading.download)


def open_for(checkpoint: Checkpoint, model: Model, spec: str, loading: Loading) -> Examples:
    """A data set whose classes are matched with the head's, by name where the card has names.

    Raises:
        MismatchError: classes that the head does not know, or another number of them.
    """
    task = open_data(spec, loading)
    known: Sequence[str] | None = checkpoint.classes
    if known is not None and loading.class_map:
        raise MismatchError(f"{checkpoint.path} names its classes itself: leave --class-map out")
    if known is None:
        known = _unnamed(task, model.num_classes, spec, checkpoint, loading)
    return Examples(task, model, _relabel(task, known, spec, checkpoint), loading)


def _unnamed(
    task: Task, outputs: int, spec: str, checkpoint: Checkpoint, loading: Loading
) -> Sequence[str]:
    """Class names in the order of a head that does not tell them."""
    known = _listed(loading.class_map) if loading.class_map else task.classes
    if loading.class_map is None and natural(known) != list(known):
        raise MismatchError(
            f"{checkpoint.path}: does not name its classes, and they have two usual orders: "
            f"{', '.join(known[:3])}... and {', '.join(natural(known)[:3])}...",
            hint="Pass --class-map FILE, one class name a line in the order of the head.",
        )
    if len(known) != outputs:
        raise MismatchError(
            f"{loading.class_map or spec} has {len(known)} classes, the head of "
            f"{checkpoint.path} {outputs}"
        )
    return known


def _listed(path: str) -> tuple[str, ...]:
    try:
        names = tuple(filter(None, Path(path).read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError) as fault:
        raise DataError(f"--class-map {path}: cannot be read: {fault}") from None
    if double := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"--class-map {path}: {double!r} stands in it twice")
    return names


def natural(names: Sequence[str]) -> list[str]:
    """Sorted as timm does, c2 before c10; torchvision has them the other way round."""
    return sorted(
        names,
        key=lambda n: [
            (not p.isdigit(), int(p) if p.isdigit() else 0, p)
            for p in re.split(r"(\d+)", n.lower())
        ],
    )


def _relabel(
    task: Task, known: Sequence[str], spec: str, checkpoint: Checkpoint
) -> tuple[int, ...]:
    place = {name: index for index, name in enumerate(known)}
    strange = [name for name in task.classes if name not in place]
    if strange:
        raise MismatchError(
            f"{spec} has {len(task.classes)} classes, the head of {checkpoint.path} {len(known)}; "
            f"it does not know {', '.join(map(repr, strange[:3]))}",
            hint="The model was trained on another data set.",
        )
    return tuple(place[name] for name in task.classes)
