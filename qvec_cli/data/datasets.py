"""Which data set ``--data`` means: an image folder, a task of the paper, torch/NAME or hfds/ID."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Final

from qvec_cli.data import hub, torchvision_sets
from qvec_cli.data.folders import has_splits, layout, read_flat, read_folder
from qvec_cli.data.generated import GENERATED, generated
from qvec_cli.data.idx import find_idx, open_idx
from qvec_cli.data.noise import NOISE, noise
from qvec_cli.data.pixels import to_mode
from qvec_cli.data.samples import SPLITS, DataSource, Samples, Task, assemble, draw_validation, fold
from qvec_cli.data.tasks import TASKS, PaperTask
from qvec_cli.data.texts import SUFFIXES, Columns, has_tables, named_columns, read_texts
from qvec_cli.errors import DataError, SpecError

__all__ = ["Samples", "Task", "draw_validation", "open_task", "to_mode"]


_HUB: Final = "hfds/"


def open_task(spec: str, folder: Path | None, *, download: bool = False) -> Task:
    """Opens a data set without decoding an image, and without torch where torch is not needed.

    Args:
        spec: the path of an image folder, the name of one of the paper's 22 tasks,
            ``torch/NAME`` or ``hfds/ORG/NAME``. A path wins over a name if it exists and has
            a separator, or if no task has that name. Tables and sets of the hub may have
            ``?text=COLUMN&label=COLUMN`` behind them.
        folder: where named data sets lie.
        download: whether the network may be used.

    Raises SpecError: nothing has that name; DataError: it is not there, or not what it should be.
    """
    columns = Columns()
    if "?" in spec and not _exists(Path(spec)):
        spec, columns = named_columns(spec)
        if not (spec.startswith(_HUB) or is_text(Path(spec))):
            raise SpecError(f"{spec}: columns are named of tables of texts and of {_HUB}ORG/NAME")
    try:
        return _open(spec, columns, folder, download=download)
    except OSError as error:  # a folder that we may not look into, a disk that fails
        raise DataError(f"{error.filename or spec}: {error.strerror or error}") from None


def _open(spec: str, columns: Columns, folder: Path | None, *, download: bool) -> Task:
    has_separator = any(mark in spec for mark in (os.sep, os.altsep) if mark)
    if spec and (has_separator or spec not in TASKS) and _exists(Path(spec)):
        path = Path(spec)
        if is_text(path):
            return assemble(path.resolve().stem or spec, read_texts(path, columns))
        return assemble(path.resolve().name or spec, read_folder(path))
    if spec in TASKS:
        return _checked(TASKS[spec], _find(TASKS[spec], folder, download=download))
    source, _, name = spec.partition("/")
    if source == "torch":
        return _open_torch(name, folder, download=download)
    if source == "hfds":
        if name.count("/") != 1 or not all(name.split("/")):
            raise SpecError(f"{spec!r} is not hfds/ORG/NAME")
        return assemble(spec, hub.open_hub(name, columns, download=download))
    near = _near(Path(spec))
    hint = f"Did you mean {near}?" if near else None
    if has_separator:
        raise DataError(f"{spec}: no such folder", hint=hint or layout(Path(spec)))
    raise SpecError(
        f"{spec!r} is neither a folder nor a known data set",
        hint=hint or _did_you_mean(spec, list(TASKS)),
    )


def _find(task: PaperTask, folder: Path | None, *, download: bool) -> DataSource:
    """A task in the first of the places where it may be: folder, idx, torchvision, hub."""
    if folder is not None and (source := _on_disk(task, folder)):
        return source
    failures = []
    for open_source in _sources(task, folder, download=download):
        try:
            return open_source(download=download)
        except DataError as error:
            failures.append(error)
    if failures and (download or torchvision_sets.present(task, folder)):
        raise failures[0]
    raise _absent(task, folder)


def _sources(
    task: PaperTask, folder: Path | None, *, download: bool
) -> Iterator[Callable[..., DataSource]]:
    """Where else to look. Files that torchvision finds broken hide the hub's cache."""
    here = torchvision_sets.present(task, folder)
    if folder is not None and (here or (download and torchvision_sets.fetches(task))):
        yield partial(torchvision_sets.open_torchvision, task, folder)
    if hub.installed() and (download or not here):
        yield partial(hub.open_hub, task.hub.id)


def _on_disk(task: PaperTask, folder: Path) -> DataSource | None:
    if home := _image_folder(task, folder):
        source = read_folder(home)
        if task.tests_on_val and "test" not in source.splits:
            names = {"val": "test"}
            splits = {names.get(split, split): samples for split, samples in source.splits.items()}
            faults = {names.get(split, split): fault for split, fault in source.faults.items()}
            source = source._replace(splits=splits, faults=faults)
        return source
    home = find_idx(task, folder) if task.idx else None
    return open_idx(task, home) if home else None


def _image_folder(task: PaperTask, folder: Path) -> Path | None:
    """DIR/NAME, or DIR itself when it has that name; case and punctuation do not matter.

    Its own val folder is used if it has one. RenderedSST2 as torchvision keeps it is no image
    folder here: the paper draws val from train and leaves the official one alone.
    """
    if not folder.is_dir():
        return None
    named = [(entry.name, entry) for entry in sorted(folder.iterdir())]
    for name, home in (*named, (folder.resolve().name, folder)):
        library = task.split_folders and task.vision and name == task.vision.place
        if fold(name) == fold(task.name) and has_splits(home) and not library:
            return home
    return None


def _open_torch(name: str, folder: Path | None, *, download: bool) -> Task:
    known = {fold(task.name): task for task in TASKS.values() if task.vision is not None}
    task = known.get(fold(name))
    if task is None:
        raise SpecError(
            f"torchvision has no task of the paper called {name!r}",
            hint=_did_you_mean(name.lower(), list(known)),
        )
    here = torchvision_sets.present(task, folder) or (download and torchvision_sets.fetches(task))
    if folder is not None and not here and (source := _on_disk(task, folder)):
        return _checked(task, source)
    if folder is None or not here:
        raise _absent(task, folder)
    return _checked(task, torchvision_sets.open_torchvision(task, folder, download=download))


def _checked(task: PaperTask, source: DataSource) -> Task:
    """A task that has as many classes as it should, each with images to learn from."""
    opened = assemble(task.name, source)
    count = len(opened.classes)
    if "train" in opened.faults or (count == task.classes and "train" in source.splits):
        opened.split("train")
        count = len(set(source.splits["train"].labels))
    if count != task.classes:
        raise DataError(f"{task.name} has {task.classes} classes, but {count} were found in it")
    return opened


def _absent(task: PaperTask, folder: Path | None) -> DataError:
    where = f"not in {folder}" if folder else "not here: no --data-dir is given"
    home = folder or Path("DIR")
    splits = "{train,val}" if task.tests_on_val else "{train,test}"
    places = f"{home / task.name}/{splits}/<class>/*.png"
    if task.vision:
        places += f", or {home / task.vision.place} as torchvision has it"
    ways = "torchvision, or " if torchvision_sets.fetches(task) else ""
    extra = "" if hub.installed() else f", which needs {hub.EXTRA}"
    return DataError(
        f"{task.name} is {where}",
        hint=f"Put it into {places}; or pass --dataset-download ({ways}{task.hub.id} of the "
        f"Hugging Face hub{extra}). Its home is {task.source}",
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long or with a NUL, a folder closed to us
        return False


def _near(path: Path) -> Path | None:
    """The folder that is there where one name of a path is mistyped."""
    gone = next((part for part in (*reversed(path.parents), path) if not _exists(part)), None)
    if gone is None:
        return None
    try:
        names = [entry.name for entry in gone.parent.iterdir() if entry.is_dir()]
    except OSError:
        return None
    near = (gone.parent / name for name in get_close_matches(gone.name, names, 3))
    return next((place for home in near if _exists(place := home / path.relative_to(gone))), None)


def _did_you_mean(name: str, known: list[str]) -> str:
    folded = {fold(other): other for other in known}
    close = [folded[match] for match in get_close_matches(fold(name), folded, 3)]
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"Known are {', '.join(known)}."


def open_unlabelled(spec: str, folder: Path | None, side: int, *, download: bool = False) -> Task:
    """Opens images as ``open_task`` does, and also what it does not take.

    Args:
        spec: ``generated``, ``noise``, a folder with pictures at any depth, or what ``--data``
            may name.
        folder: where named data sets lie.
        side: of generated images and noise, in pixels.
        download: whether the network may be used.

    Raises SpecError: nothing has that name; DataError: it is not there, or holds no image.
    """
    if spec == NOISE:
        return noise(side)
    if spec == GENERATED:
        return generated(side)
    place = Path(spec)
    if spec and place.is_dir() and not has_splits(place) and not has_tables(place):
        source = read_flat(place)
        name = place.resolve().name or spec
        return Task(name, source.classes, source.splits, notes=source.notes)
    try:
        return open_task(spec, folder, download=download)
    except SpecError as error:
        if near := get_close_matches(spec, (GENERATED, NOISE), 1, 0.7):
            raise SpecError(str(error), hint=f"Did you mean {near[0]}?") from None
        raise


def is_text(path: Path) -> bool:
    """Whether a path is a table of texts, or a folder with one for each split."""
    return has_tables(path) if path.is_dir() else path.suffix in SUFFIXES


def any_split(task: Task) -> Samples:
    """The train split, or the first that has an image; labels do not count."""
    return next(task.splits[name] for name in SPLITS if len(task.splits.get(name, ())))
