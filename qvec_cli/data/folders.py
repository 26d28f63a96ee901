"""Image folders: DIR/{train,val,test}/<class>/*.png."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from qvec_cli.data.pixels import open_image
from qvec_cli.data.samples import DataSource
from qvec_cli.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

_SPELLINGS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}

_EXTENSIONS = frozenset(  # what PIL opens everywhere
    (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
)


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """One image a file."""

    files: Sequence[str]  # str, not Path: ImageNet has 1.3 million
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int) -> Image.Image:
        """Decode one image."""
        return open_image(self.files[index])

    def identity(self) -> Iterator[str]:
        """Place below the common folder, size and label of every file."""
        start = len(os.path.commonpath([os.path.dirname(f) for f in self.files]))  # noqa: PTH120
        for file, label in zip(self.files, self.labels, strict=True):
            yield f"{file[start:]}\t{os.stat(file).st_size}\t{label}"  # noqa: PTH116


def layout(folder: Path) -> str:
    """How an image folder has to look, in a sentence."""
    return (
        f"The layout is {folder}/{{train,val,test}}/<class>/*.png; "
        "without val, a tenth of train is drawn for it."
    )


def has_splits(folder: Path) -> bool:
    """Whether a folder looks like an image folder."""
    return any((folder / name).is_dir() for names in _SPELLINGS.values() for name in names)


def read_folder(folder: Path) -> DataSource:
    """The splits of an image folder; nothing is decoded.

    Classes are the folders of train, sorted as Python sorts strings; of all splits where
    there is no train. Hidden files, and files that are no images by their extension, are left
    out. Images may lie deeper inside a class. Links are followed, each folder of a class once.
    Raises DataError: no split, two folders for one split, an empty split or class, or a class that
    train does not have.
    """
    try:
        homes = _split_folders(folder)
        members = {split: _class_folders(home) for split, home in homes.items()}
        known = [members["train"]] if "train" in members else members.values()
        classes = sorted(set(chain.from_iterable(known)))
        for split, names in members.items():
            if strange := sorted(set(names) - set(classes)):
                raise DataError(
                    f"{homes[split]}: class {strange[0]!r} is not among the classes of train",
                    hint=f"The classes of train are {', '.join(classes[:10])}.",
                )
        label = {name: index for index, name in enumerate(classes)}
        splits = {split: _read_split(homes[split], members[split], label) for split in homes}
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {error.strerror or error}") from None
    return DataSource(tuple(classes), {**splits})


def read_flat(folder: Path) -> DataSource:
    """Every image below a folder, without labels, as one train split. Raises DataError: none."""
    try:
        files = _images(folder, "folder")
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {error.strerror or error}") from None
    return DataSource((folder.name,), {"train": ImageFiles(files, [0] * len(files))})


def _split_folders(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder", hint=layout(folder))
    homes = {}
    for split, spellings in _SPELLINGS.items():
        there = [folder / name for name in spellings if (folder / name).is_dir()]
        if len(there) > 1:
            raise DataError(
                f"{folder}: has both {there[0].name} and {there[1].name}",
                hint="Keep one of them; both mean the validation split.",
            )
        if there:
            homes[split] = there[0]
    if not homes:
        raise DataError(f"{folder}: has no train, val or test folder", hint=layout(folder))
    return homes


def _class_folders(split: Path) -> list[str]:
    names = sorted(
        entry.name for entry in split.iterdir() if entry.is_dir() and entry.name[0] != "."
    )
    if not names:
        raise DataError(f"{split}: is empty, it has no class folder", hint=layout(split.parent))
    return names


def _read_split(split: Path, names: Sequence[str], label: dict[str, int]) -> ImageFiles:
    found = [(file, label[name]) for name in names for file in _images(split / name)]
    return ImageFiles([file for file, _ in found], [number for _, number in found])


def _images(folder: Path, what: str = "class") -> list[str]:
    images, others = [], set()
    seen = {folder.resolve(), *folder.resolve().parents}  # a link may lead back
    for where, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        shown = (name for name in sorted(folders, reverse=True) if name[0] != ".")
        inside = {Path(where, name).resolve(): name for name in shown}
        folders[:] = [name for path, name in inside.items() if path not in seen]
        seen |= inside.keys()
        for name in (name for name in files if name[0] != "."):
            kind = Path(name).suffix.lower()
            if kind in _EXTENSIONS:
                images.append(f"{where}{os.sep}{name}")
            else:
                others.add(kind or name)
    if not images:
        other = f"; it has {', '.join(sorted(others)[:5])}" if others else ""
        raise DataError(
            f"{folder}: this {what} has no image{other}",
            hint=f"Images end in {', '.join(sorted(_EXTENSIONS))}.",
        )
    return sorted(images)


def _refuse(error: OSError) -> None:
    """For os.walk, which would pass over a folder that it cannot read."""
    raise error
