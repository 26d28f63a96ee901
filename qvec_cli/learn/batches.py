"""Images as the network sees them: decoded once for measuring, in a drawn order for training.

What an image looks like depends on (seed, epoch, index) alone, never on how many processes
decode: every sample draws its augmentation from a stream of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from qvec_cli.data.datasets import Samples, to_mode
from qvec_cli.data.pixels import is_turned
from qvec_cli.errors import DataError
from qvec_cli.learn.distributed import ALONE, World
from qvec_cli.specs import Listener

Transform = Callable[[Any], Tensor]

Batch = tuple[Tensor, Tensor]
"""uint8 images [N, C, H, W], or int32 tokens [N, longest]; int64 labels [N]."""

NO_LABEL: Final = -100
"""Of an image that does not count: torch's own word, which cross-entropy leaves out."""

_DECODE_BATCH = 256

_RESIDENT_BYTES = 4 << 30
"""Unaugmented training images are decoded once if they fit in this much memory of a machine."""


@dataclass(frozen=True, slots=True)
class _Fault:
    """A broken image on its way out of a worker process; exceptions do not travel well."""

    message: str
    hint: str | None


@dataclass(frozen=True, slots=True)
class PreparedSplit:
    """A split and how its images are prepared for a network."""

    samples: Samples
    transform: Transform
    channels: int  # of the network; 0: it reads texts
    workers: int = 0  # processes that decode
    split: str = "the split"  # its name, and that of its data set
    data: str = "images"

    def as_text(self, loaded: object) -> Tensor:
        """The tokens of a text; DataError: the network takes images, or no text is there."""
        if self.channels:
            raise DataError(f"{self.data}: holds texts, and the network takes images")
        return self.transform(loaded)


_Item = tuple[Tensor, int, bool]
"""A transformed image, its label, and whether EXIF turns it."""


class _Decoded(Dataset[Any]):
    """Images with their labels; random transforms are drawn from ``stream``."""

    def __init__(self, split: PreparedSplit, stream: tuple[int, int] | None = None) -> None:
        self.split, self.stream = split, stream  # seed and epoch

    def __len__(self) -> int:
        return len(self.split.samples)

    def __getitem__(self, index: int) -> _Item | _Fault:
        split = self.split
        try:
            loaded = split.samples.load(index)
            if isinstance(loaded, str) or not split.channels:  # a text, or what takes texts alone
                return split.as_text(loaded), split.samples.labels[index], False
            image, turned = to_mode(loaded, split.channels), is_turned(loaded)
        except DataError as fault:
            return _Fault(str(fault), fault.hint)
        if self.stream is None:
            return split.transform(image), split.samples.labels[index], turned
        with _stream(*self.stream, index):
            return split.transform(image), split.samples.labels[index], turned


def decode(split: PreparedSplit, listener: Listener, places: Sequence[int] | None = None) -> Batch:
    """Every image of a split, or those at some places of it, transformed, in their order.

    The listener hears how far that is, and of images that EXIF turns.
    """
    places = range(len(split.samples)) if places is None else places
    count = len(places)
    if not count:
        return torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
    classes = split.samples.labels
    images, labels = None, torch.tensor([classes[place] for place in places], dtype=torch.int64)
    done = 0
    for batch, _ in _loader(_Decoded(split), _chunks(places, _DECODE_BATCH), listener):
        if images is None:
            images = torch.empty((count, *batch.shape[1:]), dtype=batch.dtype)
        images[done : done + len(batch)] = batch
        done += len(batch)
        listener.progress(f"decode {split.split} {done}/{count}", done, count)
    assert images is not None
    return images, labels


class TrainingBatches:
    """The batches of each epoch, in an order drawn from (seed, epoch).

    Args:
        split: the images; its transform may draw random numbers.
        seed: of order and augmentation.
        batch_size: images in a step.
        augmented: whether the transform does; if not, images are decoded once where they fit.
        listener: hears how far images are that are decoded once, and which EXIF turns.
        world: of which this process takes its share of every batch.
    """

    def __init__(
        self,
        split: PreparedSplit,
        *,
        seed: int,
        batch_size: int,
        augmented: bool,
        listener: Listener,
        world: World = ALONE,
    ) -> None:
        self.seed, self.batch_size, self._split, self._world = seed, batch_size, split, world
        self._listener = listener
        self._resident = decode(split, listener) if not augmented and self._fits() else None

    def __len__(self) -> int:
        """Steps in an epoch; the last batch may be smaller."""
        return -(-len(self._split.samples) // self.batch_size)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, or this rank's shares of them, without the first ``skip``.

        A rank whose share of the last batch is empty borrows an image that does not count: its
        label is ``NO_LABEL``, and gradients need a forward on every rank.
        """
        order = torch.randperm(len(self._split.samples), generator=_generator(self.seed, epoch))
        batches = _chunks(order.tolist(), self.batch_size)[skip:]
        shares = [self._world.share(batch) for batch in batches]
        borrowed = [share or batch[:1] for share, batch in zip(shares, batches, strict=True)]
        for (images, labels), share in zip(self._drawn(epoch, borrowed), shares, strict=True):
            yield images, labels if share else torch.full_like(labels, NO_LABEL)

    def _drawn(self, epoch: int, batches: Sequence[list[int]]) -> Iterator[Batch]:
        if self._resident is None:
            decoded = _Decoded(self._split, (self.seed, epoch))
            yield from _loader(decoded, batches, self._listener)
            return
        images, labels = self._resident
        yield from ((images[batch], labels[batch]) for batch in batches)

    def _fits(self) -> bool:
        split = self._split
        first = _Decoded(split)[0]
        if isinstance(first, _Fault):
            raise DataError(first.message, hint=first.hint)
        return first[0].numel() * len(split.samples) * self._world.local_size <= _RESIDENT_BYTES


def _chunks(places: Sequence[int], size: int) -> list[list[int]]:
    return [list(places[start : start + size]) for start in range(0, len(places), size)]


def _loader(dataset: _Decoded, batches: Sequence[list[int]], listener: Listener) -> Iterator[Batch]:
    """Batches in a given order; torch's own generator stays untouched.

    After the last one the listener hears how many images EXIF turns.
    """
    if not batches:  # workers need not start for that
        return
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=dataset.split.workers,
        collate_fn=_collate,
        generator=torch.Generator(),
    )
    count = turned = 0
    for batch in loader:
        if isinstance(batch, _Fault):
            raise DataError(batch.message, hint=batch.hint)
        images, labels, marks = batch
        count, turned = count + len(marks), turned + int(marks.sum())
        yield images, labels
    if turned:
        data, split = dataset.split.data, dataset.split.split
        listener.note(
            f"{data}: {turned} of {count} images of {split} are turned by EXIF, which is not "
            "followed, as in timm",
            about=f"EXIF of {data}",
        )


def _collate(items: Sequence[_Item | _Fault]) -> tuple[Tensor, ...] | _Fault:
    faults = [item for item in items if isinstance(item, _Fault)]
    return faults[0] if faults else tuple(default_collate([*items]))


def _generator(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(_mix(*key))


def _mix(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


class _stream:  # noqa: N801  a context manager, used like a function
    """Python's and torch's global streams set from a key inside the block, then as before."""

    def __init__(self, *key: int) -> None:
        self._seed = _mix(*key)

    def __enter__(self) -> None:
        self._python, self._torch = random.getstate(), torch.get_rng_state()
        random.seed(self._seed)
        torch.default_generator.manual_seed(self._seed)

    def __exit__(self, *_: object) -> None:
        random.setstate(self._python)
        torch.set_rng_state(self._torch)
