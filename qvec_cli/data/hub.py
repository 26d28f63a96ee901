"""Data sets of the Hugging Face hub, by way of the optional package ``datasets``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from numbers import Integral
from typing import Any, Final

from PIL import Image

from qvec_cli.data.pixels import cause, decoding, undecoded
from qvec_cli.data.samples import DataSource, Samples, name_classes
from qvec_cli.data.tasks import TASKS, PaperTask
from qvec_cli.data.texts import (
    TEXTS,
    UNLABELLED,
    USUAL,
    Columns,
    TextSamples,
    checked_text,
)
from qvec_cli.errors import DataError

EXTRA = "pip install 'qvec[hfds]'"

_SPELLINGS = {"train": ("train",), "val": ("validation", "valid", "val"), "test": ("test",)}

_LABELS = ("label", "labels")

NO_LABEL: Final = -1
"""What data sets have where a row has none; its split is refused when it is used."""


@dataclass(frozen=True, slots=True)
class HubImages:
    """Rows of one column of images."""

    rows: Any  # datasets.Dataset with nothing but the image column
    labels: Sequence[int]
    column: str
    where: str  # the split, for messages
    sideways: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Image.Image:
        """Decode one image."""
        try:
            with decoding():
                image = self.rows[index][self.column]
        except Exception as error:  # PIL's and pyarrow's errors, and theirs are many
            where, reason = f"{self.where}: image {index}", f"is broken: {cause(error)}"
            raise undecoded(where, error, reason) from None
        if not isinstance(image, Image.Image):
            raise DataError(f"{self.where}: image {index} is {type(image).__name__}, not an image")
        return image.transpose(Image.Transpose.TRANSPOSE) if self.sideways else image

    def identity(self) -> Iterator[str]:
        """The data set, its split and the labels."""
        yield self.where
        yield str(list(self.labels))


def installed() -> bool:
    """Whether the package is there."""
    try:
        import datasets  # noqa: F401
    except ImportError:
        return False
    return True


def open_hub(
    id: str,  # noqa: A002  the hub's word
    columns: Columns = USUAL,
    *,
    download: bool,
) -> DataSource:
    """The splits of a data set; those of the paper's tasks are the paper's.

    Images are taken where it has a column of them and none of texts is named; else texts.

    Args:
        id: ORG/NAME.
        columns: those that the user names.
        download: whether the network may be used; otherwise only the cache is looked at.

    Raises DataError: the package or the data set is missing, or its columns are not clear.
    """
    task = next((t for t in TASKS.values() if t.hub.id == id and not any(columns)), None)
    loaded = _load(id, task.hub.config if task else None, download=download)
    names = _splits(loaded, task, id)
    features = loaded[names[0][1]].features
    if columns.text or (task is None and not _of_kind(features, "Image")):
        return _texts({split: loaded[name] for split, name in names}, features, columns, id)
    image, label = _columns(features, task, id, columns.label)
    values = ((split, loaded[name][label]) for split, name in names)
    # PCAM's True and False are integers too; anything else stays and is refused later.
    raw = {s: [int(v) if isinstance(v, Integral) else v for v in column] for s, column in values}
    first = _first_label(raw, task)
    splits: dict[str, Samples] = {
        split: HubImages(
            loaded[name].select_columns([image]),
            [value - first if isinstance(value, int) else value for value in raw[split]],
            image,
            f"{id} {name}",
            bool(task and task.sideways),
        )
        for split, name in names
    }
    return DataSource(_classes(features[label], splits, task), splits)


def _texts(
    loaded: Mapping[str, Any], features: Mapping[str, Any], columns: Columns, where: str
) -> DataSource:
    """The splits of a set of texts, whose classes keep their names, as those of tables do."""
    text, label = columns.of(features, where)
    text = text or _only([], "image or text", features, where)
    if label is None and (kinds := _of_kind(features, "ClassLabel")):
        label = _only(kinds, "label", features, where)
    labels: dict[str, list[Any]] = {
        split: [*map(_label, rows[label])] if label else [UNLABELLED] * len(rows)
        for split, rows in loaded.items()
    }
    known = getattr(features.get(label or ""), "names", None)
    seen = {*chain(*labels.values())} - {NO_LABEL}
    ordered = range(len(known)) if known else sorted(seen, key=lambda v: (isinstance(v, str), v))
    classes = tuple(known or map(str, ordered)) or (UNLABELLED,)
    place = {value: index for index, value in enumerate(ordered)}
    splits: dict[str, Samples] = {
        split: TextSamples(
            tuple(checked_text(t, f"{where} {split}: row {n}") for n, t in enumerate(rows[text])),
            [place.get(value, NO_LABEL) for value in labels[split]],
            classes,
        )
        for split, rows in loaded.items()
    }
    return DataSource(classes, splits)


def _label(value: object) -> str | int:
    """A label as texts have it, a name or a number from 0; else ``NO_LABEL``."""
    if isinstance(value, Integral):
        return max(int(value), NO_LABEL)
    return value if isinstance(value, str) and value else NO_LABEL


def _load(id: str, config: str | None, *, download: bool) -> Mapping[str, Any]:  # noqa: A002
    try:
        import datasets
    except ImportError:
        raise DataError(f"{id} needs the package datasets", hint=EXTRA) from None
    try:
        with _network(datasets, allowed=download):
            loaded = datasets.load_dataset(id, config)
    except Exception as error:  # its own, requests', pyarrow's and fsspec's
        raise DataError(
            f"{id}: {cause(error)}",
            hint="Check the name and the network; gated sets need `hf auth login` before."
            if download
            else "Only the cache was looked at; --dataset-download asks the hub.",
        ) from None
    if not isinstance(loaded, Mapping):
        raise DataError(f"{id}: has no splits")
    return loaded


@contextmanager
def _network(datasets: Any, *, allowed: bool) -> Iterator[None]:
    """Offline mode for a while: ``datasets`` and the hub client ask a switch at every request."""
    if allowed:
        yield
        return
    switches = [datasets.config, datasets.config.constants]
    before = [switch.HF_HUB_OFFLINE for switch in switches]
    try:
        for switch in switches:
            switch.HF_HUB_OFFLINE = True
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.HF_HUB_OFFLINE = value


def _splits(loaded: Mapping[str, Any], task: PaperTask | None, where: str) -> list[tuple[str, str]]:
    """Pairs of our name and theirs."""
    if task is None:
        first = {k: next((name for name in v if name in loaded), "") for k, v in _SPELLINGS.items()}
        pairs = [(split, name) for split, name in first.items() if name]
    else:
        pairs = [("train", "train"), ("test", task.hub.test)]
    if not pairs or any(name not in loaded for _, name in pairs):
        expected = ", ".join(name for _, name in pairs) or "train, validation or test"
        raise DataError(f"{where}: has the splits {', '.join(loaded)}, not {expected}")
    return pairs


def _of_kind(features: Mapping[str, Any], kind: str) -> list[str]:
    """The columns of one of the library's kinds."""
    import datasets

    return [name for name, each in features.items() if isinstance(each, getattr(datasets, kind))]


def _columns(
    features: Mapping[str, Any], task: PaperTask | None, where: str, named: str | None
) -> tuple[str, str]:
    """The column of images, and that of labels, which a user may have named."""
    if named is not None and named not in features:
        raise DataError(f"{where}: has no column {named}, only {', '.join(features)}")
    if task is not None:
        image, label = task.hub.image, task.hub.label
        if missing := [name for name in (image, label) if name not in features]:
            raise DataError(f"{where}: has no column {missing[0]}, only {', '.join(features)}")
        return image, label
    images, labels = _of_kind(features, "Image"), _of_kind(features, "ClassLabel")
    usual = [name for name in _LABELS if name in (labels or features)]
    labels = [named] if named else usual[:1] or labels
    return _only(images, "image", features, where), _only(labels, "label", features, where)


def _only(names: Sequence[str], kind: str, features: Mapping[str, Any], where: str) -> str:
    """The one column of a kind; DataError: none, or several."""
    if len(names) != 1:
        raise DataError(
            f"{where}: has {len(names)} {kind} columns among {', '.join(features)}, not one",
            hint=f"Columns are named as in 'hfds/{where}?text=COLUMN&label=COLUMN'; without, texts "
            f"are looked for in {', '.join(TEXTS)}.",
        )
    return names[0]


def _first_label(raw: Mapping[str, Sequence[Any]], task: PaperTask | None) -> int:
    """1 where a copy has kept the numbering of original files that start with 1."""
    if task is None or task.first_label == 0:
        return 0
    return 0 if any(0 in labels for labels in raw.values()) else task.first_label


def _classes(
    feature: Any, splits: Mapping[str, Samples], task: PaperTask | None
) -> tuple[str, ...]:
    names = getattr(feature, "names", None)
    official = task.names if task else None
    if names is None:
        labels = {label for samples in splits.values() for label in samples.labels}
        numbers = [label for label in labels if isinstance(label, int)]
        names = official or [str(label) for label in range(max(numbers, default=-1) + 1)]
    return name_classes(names, official)
