"""Image folders: DIR/{train,val,test}/<class>/*.png."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from qvec_cli.data.pixels import SUFFIXES, open_image
from qvec_cli.data.samples import DataSource, composed
from qvec_cli.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

_SPELLINGS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}


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
        if not self.files:
            return
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

    Classes are the folders of train, sorted as Python sorts strings; of all splits where train has
    none. Names that differ in their Unicode composition are one class, by the first spelling.
    Hidden files are left out, and with a note others that are no images by their suffix. Images may
    lie deeper inside a class. Links are followed, each folder of a class once, and none upwards.
    A split without classes, or with a class without images, is among the faults.
    Raises DataError: no split, two folders for one split, no class at all, a class that train does
    not have, two that are one folder or have one name.
    """
    with _located(folder):
        homes = [_split(*item) for item in _split_folders(folder).items()]
        trained = [home.classes for home in homes if home.name == "train" and home.classes]
        spellings: dict[str, str] = {}
        for name in chain(*(trained or [home.classes for home in homes])):
            spellings.setdefault(composed(name), name)
        classes = sorted(spellings.values())
        labels = {composed(name): index for index, name in enumerate(classes)}
        for home in homes:
            if strange := [name for name in home.classes if composed(name) not in labels]:
                raise DataError(
                    f"{home.path}: class {strange[0]!r} is not among the classes of train",
                    hint=f"The classes of train are {', '.join(classes[:10])}.",
                )
        splits = {home.name: home.read(labels) for home in homes}
    faults = {home.name: home.faults[0] for home in homes if home.faults}
    if not classes:
        raise next(iter(faults.values()))
    others = sum((home.others for home in homes), Counter[str]())
    return DataSource(tuple(classes), {**splits}, faults, _left_out(folder, others))


def read_flat(folder: Path) -> DataSource:
    """Every image below a folder, without labels, as one train split. Raises DataError: none."""
    others: Counter[str] = Counter()
    with _located(folder):
        files = _images(folder, {folder.resolve(), *folder.resolve().parents}, others)
    if not files:
        raise _no_image(folder, "folder", others)
    split = ImageFiles(files, [0] * len(files))
    return DataSource((folder.name,), {"train": split}, notes=_left_out(folder, others))


@contextmanager
def _located(folder: Path) -> Iterator[None]:
    """A folder that cannot be read is an error that names it."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {error.strerror or error}") from None


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
        hint = _above(folder) or layout(folder)
        raise DataError(f"{folder}: has no train, val or test folder", hint=hint)
    return homes


def _above(folder: Path) -> str | None:
    """The data set of which a folder is a split or a class, as a hint."""
    home = folder if folder.name not in {"", ".."} else folder.resolve()
    split = {name: split for split, names in _SPELLINGS.items() for name in names}.get(home.name)
    if split and has_splits(home.parent):
        flag = "whose train split this is" if split == "train" else f"with --split {split}"
        return f"Did you mean {home.parent}, {flag}?"
    if has_splits(home.parent.parent):
        return f"Did you mean {home.parent.parent}, of which this is a class?"
    return None


@dataclass
class _SplitFolder:
    """The folder of one split, its classes, and what is odd about it."""

    name: str
    path: Path
    classes: list[str]  # names of folders, sorted
    others: Counter[str]  # files that are no images of a class, by their suffix
    above: set[Path]  # real folders that it lies in, itself among them
    faults: list[DataError] = field(default_factory=list)

    def read(self, labels: dict[str, int]) -> ImageFiles:
        """The images of every class, by the composed names of classes."""
        files: list[str] = []
        numbers: list[int] = []
        for name in self.classes:
            place, others = self.path / name, Counter[str]()
            images = _images(
                place, {*self.above, place.resolve(), *place.resolve().parents}, others
            )
            if not images:
                self.faults.append(_no_image(place, "class", others))
            self.others += others
            files += images
            numbers += [labels[composed(name)]] * len(images)
        return ImageFiles(files, numbers)

    def check(self) -> None:
        """Refuses classes that are a folder above, one and the same folder, or of one name."""
        if broken := [n for n in self.classes if n != n.encode("utf-8", "replace").decode()]:
            raise DataError(
                f"{self.path}: the class {broken[0]!a} is no name in UTF-8",
                hint="Rename its folder: a model keeps the names of its classes.",
            )
        real = {name: (self.path / name).resolve() for name in self.classes}
        owners = {path: name for name, path in real.items()}
        names: dict[str, str] = {}
        if name := next((name for name, path in real.items() if path in self.above), None):
            raise DataError(
                f"{self.path / name}: is a link to {real[name]}, which it lies in, and no class",
                hint="Remove the link.",
            )
        for name, path in real.items():
            shared = (owners.get(up, name) for up in (path, *path.parents))
            if other := next((owner for owner in shared if owner != name), None):
                both = " and ".join(sorted((name, other)))
                raise DataError(
                    f"{self.path}: the classes {both} lead to the same images, in {path}",
                    hint="Remove one of them.",
                )
            if (twin := names.setdefault(composed(name), name)) != name:
                raise DataError(
                    f"{self.path}: the classes {twin!a} and {name!a} look alike; they "
                    "differ in their Unicode composition",
                    hint="Put their images into one of them, or rename one.",
                )


def _split(name: str, path: Path) -> _SplitFolder:
    shown = [entry for entry in path.iterdir() if entry.name[0] != "."]
    classes = sorted(entry.name for entry in shown if entry.is_dir())
    others = Counter(_kind(entry.name) for entry in shown if not entry.is_dir())
    tops = (path.resolve(), path.parent.resolve())
    above = {up for top in tops for up in (top, *top.parents)}
    home = _SplitFolder(name, path, classes, others, above)
    home.check()
    if not classes:
        error = DataError(f"{path}: is empty, it has no class folder", hint=layout(path.parent))
        home.faults.append(error)
    return home


def _images(folder: Path, seen: set[Path], others: Counter[str]) -> list[str]:
    """Image files below a folder; other files are counted, and folders ``seen`` not entered."""
    images = []
    for where, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        shown = (name for name in sorted(folders, reverse=True) if name[0] != ".")
        inside = {Path(where, name).resolve(): name for name in shown}
        folders[:] = [name for path, name in inside.items() if path not in seen]
        seen |= inside.keys()
        for name in (name for name in files if name[0] != "."):
            if (kind := _kind(name)) in SUFFIXES:
                images.append(f"{where}{os.sep}{name}")
            else:
                others[kind] += 1
    return sorted(images)


def _kind(name: str) -> str:
    return Path(name).suffix.lower() or "without a suffix"


def _listed(others: Counter[str]) -> str:
    kinds = [
        f"{count} {kind}" for kind, count in sorted(others.items(), key=lambda o: (-o[1], o[0]))
    ]
    return ", ".join([*kinds[:5], "..."] if len(kinds) > 5 else kinds)


def _left_out(folder: Path, others: Counter[str]) -> tuple[str, ...]:
    """A note of the files that are left out, if there are any."""
    count = others.total()
    files = f"{count:,} file" if count == 1 else f"{count:,} files"
    return (f"{folder}: left out {files}: {_listed(others)}",) if count else ()


def _no_image(folder: Path, what: str, others: Counter[str]) -> DataError:
    return DataError(
        f"{folder}: this {what} has no image{'; it has ' if others else ''}{_listed(others)}",
        hint=f"Images end in {', '.join(sorted(SUFFIXES))}.",
    )


def _refuse(error: OSError) -> None:
    """For os.walk, which would pass over a folder that it cannot read."""
    raise error
