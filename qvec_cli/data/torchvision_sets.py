"""The paper's tasks as torchvision keeps them on disk.

torchvision gives EuroSAT and SUN397 in one piece, and lists SUN397's files in whatever order
the file system does. Their images are sorted by class and path, shuffled with seed 0, and cut
into EuroSAT 21,600 train and 5,400 test, SUN397 19,850 and 19,850 (the rest is not used). These
are not the images of the paper's splits, only as many.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from qvec_cli.data.folders import ImageFiles
from qvec_cli.data.pixels import cause, decoding, undecoded
from qvec_cli.data.samples import DataSource, Samples, Subset, name_classes
from qvec_cli.data.tasks import PaperTask, Vision
from qvec_cli.errors import DataError


@dataclass(frozen=True, slots=True)
class LibraryImages:
    """Images that only the library's own object can read."""

    dataset: Any  # of torchvision
    labels: Sequence[int]
    task: PaperTask

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Image.Image:
        """Decode one image."""
        try:
            with decoding():
                image: Image.Image = self.dataset[index][0]
        except Exception as error:  # HDF5 and others, each with its own errors
            where, reason = f"{self.task.name}: image {index}", f"is broken: {cause(error)}"
            raise undecoded(where, error, reason) from None
        return image.transpose(Image.Transpose.TRANSPOSE) if self.task.sideways else image

    def identity(self) -> Iterator[str]:
        """The task and the labels."""
        yield self.task.name
        yield str(list(self.labels))


def present(task: PaperTask, root: Path | None) -> bool:
    """Whether torchvision would find something of a task in ``root``; asked without it.

    An empty folder is nothing: a download that failed leaves one behind.
    """
    if task.vision is None or root is None:
        return False
    place = root / task.vision.place
    return place.is_file() or (place.is_dir() and any(place.iterdir()))


def fetches(task: PaperTask) -> bool:
    """Whether torchvision can download a task."""
    return task.vision is not None and task.vision.fetches


def open_torchvision(task: PaperTask, root: Path, *, download: bool) -> DataSource:
    """The splits of a task below ``root``.

    Raises DataError: files that are missing or broken, a package that torchvision needs, or a
    download that failed.
    """
    vision = task.vision
    assert vision is not None
    train, test = (
        [_construct(task, root, arguments, download=download) for arguments in split]
        for split in (vision.train, vision.test)
    )
    classes = _classes(train[0], task)
    if not test:
        return DataSource(classes, _cut(train[0], task, vision, root))
    if any(_classes(dataset, task) != classes for dataset in (*train, *test)):
        raise DataError(f"{task.name}: the splits in {root} do not have the same classes")
    return DataSource(classes, {"train": _samples(train, task), "test": _samples(test, task)})


def _construct(
    task: PaperTask, root: Path, arguments: Mapping[str, object], *, download: bool
) -> Any:
    import torchvision.datasets

    assert task.vision is not None
    if download and fetches(task):
        arguments = {**arguments, "download": True}
    try:
        with redirect_stdout(io.StringIO()):  # stdout is for results
            return getattr(torchvision.datasets, task.vision.name)(str(root), **arguments)
    except Exception as error:  # RuntimeError, OSError, csv, pickle: as many as there are formats
        way_out = (
            "--dataset-download completes it; its" if fetches(task) and not download else "Its"
        )
        hint = f"{way_out} home is {task.source}"
        if isinstance(error, ImportError) and error.name:
            hint = f"pip install {error.name}"
        raise DataError(
            f"{task.name}: torchvision cannot open {root / task.vision.place}: {cause(error)}",
            hint=hint,
        ) from None


def _cut(dataset: Any, task: PaperTask, vision: Vision, root: Path) -> dict[str, Samples]:
    files = _files(dataset)
    assert files is not None
    if len(files) != vision.whole:
        raise DataError(
            f"{task.name}: {root / vision.place} has {len(files)} images, not {vision.whole}",
            hint="qvec draws train and test from the whole set; with images missing, others "
            "would be drawn.",
        )
    files.sort(key=lambda item: (item[1], item[0].replace(os.sep, "/")))
    whole = ImageFiles([file for file, _ in files], [label for _, label in files])
    end = task.train + task.test
    return {"train": Subset(whole, 0, task.train), "test": Subset(whole, task.train, end)}


def _samples(sets: Sequence[Any], task: PaperTask) -> Samples:
    listed = [_files(dataset) for dataset in sets]
    files = [item for items in listed if items is not None for item in items]
    if files:
        return ImageFiles([file for file, _ in files], [label for _, label in files])
    (dataset,) = sets
    try:
        labels: list[Any] = [
            label if label is None else label - task.first_label for label in _labels(dataset)
        ]
    except (OSError, KeyError) as error:  # HDF5, which is not opened before
        raise DataError(f"{task.name}: its labels cannot be read: {cause(error)}") from None
    return LibraryImages(dataset, labels, task)


def _files(dataset: Any) -> list[tuple[str, int]] | None:
    """Path and label of every image, where the class keeps one file an image."""
    for name in ("samples", "_samples"):
        pairs = getattr(dataset, name, None)
        if pairs and isinstance(pairs[0][0], (str, Path)):
            return [(str(file), _plain(label)) for file, label in pairs]
    for name in ("_image_files", "_images"):
        if hasattr(dataset, name):
            files = map(str, getattr(dataset, name))
            return list(zip(files, _labels(dataset), strict=True))
    return None


def _labels(dataset: Any) -> list[Any]:
    if hasattr(dataset, "h5py"):  # PCAM's items would decode an image for every label
        name = dataset._FILES[dataset._split]["targets"][0]
        with dataset.h5py.File(dataset._base_folder / name) as file:
            return [int(label) for label in file["y"][:].ravel()]
    for name in ("targets", "labels", "_labels"):
        if hasattr(dataset, name):
            return [_plain(label) for label in getattr(dataset, name)]
    return [_plain(label) for _, label in dataset._samples]


def _plain(label: Any) -> Any:
    """An int from numpy or torch; None, the label of unlabelled images, stays and is refused."""
    return None if label is None else int(label)


def _classes(dataset: Any, task: PaperTask) -> tuple[str, ...]:
    """Names in label order; ImageNet's are WordNet ids, as words it has two cranes."""
    if task.names is not None:
        return task.names
    raw = getattr(dataset, "wnids", None) or getattr(dataset, "classes", None)
    return name_classes(raw or [str(label) for label in range(task.classes)])
