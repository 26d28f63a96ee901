"""A data set as the rest of qvec sees it: named classes, and splits of labelled images."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, Protocol

from qvec_cli.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from PIL import Image

SPLITS = ("train", "val", "test")

_VAL_SHARE = 0.1

_VAL_MOST = 5000


class Samples(Protocol):
    """The images of one split, decoded when they are asked for."""

    @property
    def labels(self) -> Sequence[int]:
        """The class of every image, from 0."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Image.Image | str:
        """Decode one image, or give one text.

        Raises DataError: it cannot be decoded. No other image takes its place.
        """

    def identity(self) -> Iterator[str]:
        """What tells these samples from others, as far as it is known without decoding."""


class DataSource(NamedTuple):
    """What a source holds, before anything is drawn or checked."""

    classes: tuple[str, ...]  # names in label order
    splits: dict[str, Samples]
    faults: Mapping[str, DataError] = {}  # of splits that cannot be used, raised when one is
    notes: tuple[str, ...] = ()  # what the user should know of it


@dataclass(frozen=True)
class Task:
    """A data set. The length of a split is known without drawing or decoding."""

    name: str
    classes: tuple[str, ...]  # names in label order
    splits: Mapping[str, Samples]
    faults: Mapping[str, DataError] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """Identity of classes, splits, labels and files, wherever the folder lies."""
        lines = chain(
            [json.dumps(self.classes)],
            *([name, *samples.identity()] for name, samples in self.splits.items()),
        )
        return sha256("\n".join(lines).encode()).hexdigest()

    def split(self, name: str) -> Samples:
        """The samples of a split, whose labels have been checked.

        Raises DataError: there is no such split, it is empty, has a class without images or cannot
        be drawn, or a label is none of the classes.
        """
        if name in self.faults:
            raise self.faults[name]
        if name not in self.splits:
            begun = [split for split in self.splits if name.lower().startswith(split.lower())]
            hint = did_you_mean(begun[0] if begun else name, self.splits)
            raise DataError(
                f"{self.name} has no split {name!r}; it has {', '.join(self.splits)}", hint=hint
            )
        self._check_labels(name)
        return self.splits[name]

    def _check_labels(self, name: str) -> None:
        samples = self.splits[name]
        while isinstance(samples, Subset):  # the draw would import torch and hide the index on disk
            samples = samples.whole
        for index, label in enumerate(samples.labels):
            if not isinstance(label, int) or not 0 <= label < len(self.classes):
                raise DataError(
                    f"{self.name}: image {index} of {name} has the label {label}; "
                    f"labels go from 0 to {len(self.classes) - 1}",
                    hint="A split without labels can be neither trained on nor measured.",
                )


@dataclass(frozen=True)
class Subset:
    """The samples at places ``start`` to ``stop`` of a set that was shuffled with a seed.

    The shuffle waits until a label or an image is asked for, because it imports torch.
    """

    whole: Samples
    start: int
    stop: int
    seed: int = 0

    @cached_property
    def indices(self) -> list[int]:
        """Where the samples are in the whole: ``torch.utils.data.random_split``'s permutation."""
        import torch

        order = torch.randperm(len(self.whole), generator=torch.Generator().manual_seed(self.seed))
        drawn: list[int] = order[self.start : self.stop].tolist()
        return drawn

    @cached_property
    def labels(self) -> Sequence[int]:
        """The class of every image."""
        labels = self.whole.labels
        return [labels[index] for index in self.indices]

    def __len__(self) -> int:
        return self.stop - self.start

    def load(self, index: int) -> Image.Image | str:
        """Decode one image, or give one text."""
        return self.whole.load(self.indices[index])

    def first(self, count: int) -> Subset:
        """So many of them."""
        return replace(self, stop=self.start + count)

    def identity(self) -> Iterator[str]:
        """Of the whole, and which part."""
        yield f"{self.start}:{self.stop}" + (f" of draw {self.seed}" if self.seed else "")
        yield from self.whole.identity()


def draw_validation(train: Samples) -> tuple[Samples, Samples]:
    """A train and a val part of one split, by the paper's rule.

    Val is a tenth, at most 5,000 images, drawn with seed 0 whatever the seed of the run.
    Raises DataError: a tenth is less than one image.
    """
    count = len(train)
    val = min(int(_VAL_SHARE * count), _VAL_MOST)
    if val == 0:
        raise DataError(
            f"a train split of {count} images is too small to draw a tenth of it for validation",
            hint="Add images, or a val split of its own.",
        )
    return Subset(train, 0, count - val), Subset(train, count - val, count)


def assemble(name: str, source: DataSource) -> Task:
    """The data set that a source holds; val is drawn from train where the source has none.

    A split that is empty, or too small to draw from, is an error when it is used. Raises
    DataError: no split has an image.
    """
    splits, faults = dict(source.splits), dict(source.faults)
    for split, samples in splits.items():
        if len(samples) == 0:
            faults.setdefault(split, DataError(f"{name}: the {split} split is empty"))
    if not any(map(len, splits.values())):
        raise next(iter(faults.values()))
    if "train" in splits and "val" not in splits:
        try:
            splits["train"], splits["val"] = draw_validation(splits["train"])
        except DataError as error:
            faults["val"] = DataError(f"{name}: {error}", hint=error.hint)
        if "train" in faults:
            faults["val"] = faults["train"]
    ordered = {split: splits[split] for split in SPLITS if split in splits}
    return Task(name, source.classes, ordered, faults, source.notes)


def fold(name: str) -> str:
    """A name without case and punctuation: fashion-mnist and FashionMNIST are the same."""
    return "".join(c for c in name.lower() if c.isalnum())


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): macOS may store "é" as "e" and an accent."""
    return unicodedata.normalize("NFC", name)


def name_classes(raw: Sequence[str], official: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """The names of classes in label order.

    Libraries write "American Bulldog", "american_bulldog" and "T - shirt / top"; heads are
    matched with data sets by name. So names are lower case with an underscore for every run
    of other characters. A name that two classes share (ImageNet's cranes) gets its label added.

    Args:
        raw: what the library calls them.
        official: names in the official numbering, which win unless ``raw`` has the same
            names in another order.
    """
    names = [re.sub(r"[\W_]+", "_", name.lower()).strip("_") for name in raw]
    if official is not None and set(names) != set(official):
        return official
    often = Counter(names)
    return tuple(
        name if often[name] == 1 else f"{name}_{label}" for label, name in enumerate(names)
    )
