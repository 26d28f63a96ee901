"""Images whose labels nobody reads: any data set, any folder of pictures, or noise."""

from __future__ import annotations

from pathlib import Path

from qvec_cli.learn.data import open_task
from qvec_cli.learn.folders import has_splits, read_flat
from qvec_cli.learn.noise import NOISE, noise
from qvec_cli.learn.samples import SPLITS, Samples, Task


def open_unlabelled(spec: str, folder: Path | None, side: int, *, download: bool = False) -> Task:
    """Opens images as ``open_task`` does, and also what it does not take.

    Args:
        spec: ``noise``, a folder with pictures at any depth, or what ``--data`` may name.
        folder: where named data sets lie.
        side: of noise images, in pixels.
        download: whether the network may be used.

    Raises:
        SpecError: nothing has that name.
        DataError: it is not there, or holds no image.
    """
    if spec == NOISE:
        return noise(side)
    place = Path(spec)
    if place.is_dir() and not has_splits(place):
        found = read_flat(place)
        return Task(place.resolve().name or spec, found.classes, found.splits)
    return open_task(spec, folder, download=download)


def any_split(task: Task) -> Samples:
    """The train split, or the first that there is."""
    return next(task.splits[name] for name in SPLITS if name in task.splits)
