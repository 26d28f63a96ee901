"""LeCun's idx files, the format of MNIST and its relatives."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qvec_cli.data.samples import DataSource, Samples, fold
from qvec_cli.data.tasks import TASKS, PaperTask
from qvec_cli.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

_BYTES = 0x08  # the type code of unsigned bytes

_NAME = re.compile(r".*[-.]idx[13]-ubyte(\.gz)?")


@dataclass(frozen=True, slots=True)
class ImageArray:
    """Grey images in memory."""

    images: NDArray[np.uint8]  # [N, H, W]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> Image.Image:
        """One image, mode "L"."""
        from PIL import Image

        return Image.fromarray(self.images[index])

    def identity(self) -> Iterator[str]:
        """The pixels and the labels."""
        yield sha256(np.ascontiguousarray(self.images).data).hexdigest()
        yield str(list(self.labels))


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array that an idx file holds, gzipped or not.

    The file is two zero bytes, a type, the rank, one big-endian uint32 a dimension, the values.
    Raises DataError: the file cannot be read, holds anything but bytes, or has another length than
    its header says.
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read: {reason}") from None
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[3] == 0:
        raise DataError(f"{path}: is not an idx file")
    kind, rank = raw[2], raw[3]
    if kind != _BYTES:
        raise DataError(f"{path}: holds values of type 0x{kind:02x}, not unsigned bytes")
    start = 4 + 4 * rank
    if len(raw) < start:
        raise DataError(f"{path}: ends inside its header")
    shape = np.frombuffer(raw, ">u4", rank, offset=4).tolist()
    if len(raw) - start != math.prod(shape):
        raise DataError(
            f"{path}: has {len(raw) - start} values where its header says "
            f"{' x '.join(map(str, shape))}",
            hint="The file is cut short or damaged; get it again.",
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def find_idx(task: PaperTask, folder: Path) -> Path | None:
    """The folder below (or at) ``folder`` that holds the idx files of a task.

    Sub-folders count by their name: FashionMNIST, fashion-mnist, FashionMNIST/raw.
    MNIST, FashionMNIST and KMNIST name their files alike, and nothing inside tells them apart.
    So ``folder`` itself counts when it (or, for "raw", its parent) is named for the task, or
    when it holds nothing but idx files and is not named for another task: then the user's word
    is all there is.
    """
    for home in _candidates(task, folder):
        if any(_file(home, stem, part) for stem in task.idx for part in ("images", "labels")):
            return home
    return None


def open_idx(task: PaperTask, home: Path) -> DataSource:
    """The splits of a task whose idx files lie in ``home``."""
    splits: dict[str, Samples] = {}
    for split, stem in zip(("train", "test"), task.idx, strict=True):
        images, labels = _file(home, stem, "images"), _file(home, stem, "labels")
        if images and labels:
            splits[split] = _read_pair(images, labels, task)
        elif images or labels:
            missing = "labels-idx1" if images else "images-idx3"
            raise DataError(f"{images or labels}: {stem}-{missing}-ubyte is missing beside it")
    assert task.names is not None
    return DataSource(task.names, splits)


def _read_pair(images: Path, labels: Path, task: PaperTask) -> ImageArray:
    pixels, numbers = read_idx(images), read_idx(labels)
    for path, array, rank in ((images, pixels, 3), (labels, numbers, 1)):
        if array.ndim != rank:
            raise DataError(f"{path}: has {array.ndim} dimensions, not {rank}")
    if len(pixels) != len(numbers):
        raise DataError(f"{images} has {len(pixels)} images, {labels} {len(numbers)} labels")
    if task.sideways:
        pixels = pixels.swapaxes(1, 2)
    return ImageArray(pixels, [label - task.first_label for label in numbers.tolist()])


def _candidates(task: PaperTask, folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and fold(entry.name) == fold(task.name):
            yield from (entry, entry / "raw")
    for home in (folder, folder / "raw"):
        if home.is_dir() and _may_be(task, home):
            yield home


def _may_be(task: PaperTask, home: Path) -> bool:
    here = home.resolve()
    name = fold(here.parent.name if here.name == "raw" else here.name)
    if name in map(fold, TASKS):
        return name == fold(task.name)
    if all(other is task or other.idx != task.idx for other in TASKS.values()):
        return True
    return all(_NAME.fullmatch(entry.name) for entry in here.iterdir() if entry.name[0] != ".")


def _file(home: Path, stem: str, part: str) -> Path | None:
    rank = "idx3" if part == "images" else "idx1"
    for mark in "-.":  # "train-images.idx3-ubyte" is what some old unpackers wrote
        for suffix in ("", ".gz"):
            path = home / f"{stem}-{part}{mark}{rank}-ubyte{suffix}"
            if path.is_file():
                return path
    return None
