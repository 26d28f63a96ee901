"""Data sets of the Hugging Face hub, by way of the optional package ``datasets``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from PIL import Image

from qvec_cli.data.pixels import cause, decoding, undecoded
from qvec_cli.data.samples import DataSource, Samples, name_classes
from qvec_cli.data.tasks import TASKS, PaperTask
from qvec_cli.errors import DataError

EXTRA = "pip install 'qvec[hfds]'"

_SPELLINGS = {"train": ("train",), "val": ("validation", "valid", "val"), "test": ("test",)}

_LABELS = ("label", "labels")


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


def open_hub(id: str, *, download: bool) -> DataSource:  # noqa: A002  the hub's word
    """The splits of a data set; those of the paper's tasks are the paper's.

    Args:
        id: ORG/NAME.
        download: whether the network may be used; otherwise only the cache is looked at.

    Raises DataError: the package or the data set is missing, or its columns are not clear.
    """
    task = next((task for task in TASKS.values() if task.hub.id == id), None)
    loaded = _load(id, task.hub.config if task else None, download=download)
    names = _splits(loaded, task, id)
    image, label = _columns(loaded[names[0][1]].features, task, id)
    columns = ((split, loaded[name][label]) for split, name in names)
    # PCAM's True and False are integers too; anything else stays and is refused later.
    raw = {s: [int(v) if isinstance(v, Integral) else v for v in column] for s, column in columns}
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
    return DataSource(_classes(loaded[names[0][1]].features[label], splits, task), splits)


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


def _columns(features: Mapping[str, Any], task: PaperTask | None, where: str) -> tuple[str, str]:
    if task is not None:
        image, label = task.hub.image, task.hub.label
        if missing := [name for name in (image, label) if name not in features]:
            raise DataError(f"{where}: has no column {missing[0]}, only {', '.join(features)}")
        return image, label
    import datasets

    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    usual = [name for name in _LABELS if name in (labels or features)]
    labels = usual[:1] or labels
    for kind, names in (("image", images), ("label", labels)):
        if len(names) != 1:
            raise DataError(
                f"{where}: has {len(names)} {kind} columns among {', '.join(features)}, not one"
            )
    return images[0], labels[0]


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
