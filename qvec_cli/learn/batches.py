"""Images as the network sees them: decoded once for measuring, in a drawn order for training.

What an image looks like depends on (seed, epoch, index) alone, never on how many processes
decode: every sample draws its augmentation from a stream of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qvec_cli.errors import DataError
from qvec_cli.learn.data import Samples, to_mode

if TYPE_CHECKING:
    from PIL import Image

Transform = Callable[["Image.Image"], Tensor]
Batch = tuple[Tensor, Tensor]
"""uint8 images [N, C, H, W], int64 labels [N]."""

_DECODE_BATCH = 256
_RESIDENT_BYTES = 4 << 30
"""Unaugmented training images are decoded once if they fit in this much memory."""


@dataclass(frozen=True, slots=True)
class _Fault:
    """A broken image on its way out of a worker process; exceptions do not travel well."""

    message: str
    hint: str | None


@dataclass(frozen=True, slots=True)
class View:
    """A split as a network sees it."""

    samples: Samples
    transform: Transform
    channels: int  # of the network
    workers: int = 0  # processes that decode


class _Decoded(Dataset[Any]):
    """Pairs of transformed image and label; random transforms are drawn from ``stream``."""

    def __init__(self, view: View, stream: tuple[int, int] | None = None) -> None:
        self.view, self.stream = view, stream  # seed and epoch

    def __len__(self) -> int:
        return len(self.view.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | _Fault:
        view = self.view
        try:
            image = to_mode(view.samples.load(index), view.channels)
        except DataError as fault:
            return _Fault(str(fault), fault.hint)
        if self.stream is None:
            return view.transform(image), view.samples.labels[index]
        with _stream(*self.stream, index):
            return view.transform(image), view.samples.labels[index]


def decode(view: View, heard: Callable[[int], None] = lambda done: None) -> Batch:
    """Every image of a split, transformed, in its order."""
    count = len(view.samples)
    images, labels = None, torch.tensor(list(view.samples.labels), dtype=torch.int64)
    done = 0
    for batch, _ in _loader(_Decoded(view), range(count), _DECODE_BATCH):
        if images is None:
            images = torch.empty((count, *batch.shape[1:]), dtype=torch.uint8)
        images[done : done + len(batch)] = batch
        done += len(batch)
        heard(done)
    assert images is not None
    return images, labels


class Training:
    """The batches of each epoch, in an order drawn from (seed, epoch).

    Args:
        view: the images; its transform may draw random numbers.
        seed: of order and augmentation.
        batch_size: images in a step.
        augmented: whether the transform does; if not, images are decoded once where they fit.
        heard: called with the images decoded so far, while they are decoded once.
    """

    def __init__(
        self,
        view: View,
        *,
        seed: int,
        batch_size: int,
        augmented: bool,
        heard: Callable[[int], None] = lambda done: None,
    ) -> None:
        self.seed, self.batch_size, self._view = seed, batch_size, view
        self._resident = decode(view, heard) if not augmented and self._fits() else None

    def __len__(self) -> int:
        """Steps in an epoch; the last batch may be smaller."""
        return -(-len(self._view.samples) // self.batch_size)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, without the first ``skip``."""
        order = torch.randperm(len(self._view.samples), generator=_generator(self.seed, epoch))
        order = order[skip * self.batch_size :]
        if not len(order):  # all is done but the validation; torch.split would make a batch
            return
        if self._resident is not None:
            images, labels = self._resident
            for chosen in torch.split(order, self.batch_size):
                yield images[chosen], labels[chosen]
            return
        decoded = _Decoded(self._view, (self.seed, epoch))
        yield from _loader(decoded, order.tolist(), self.batch_size)

    def _fits(self) -> bool:
        view = self._view
        first = view.transform(to_mode(view.samples.load(0), view.channels))
        return first.numel() * len(view.samples) <= _RESIDENT_BYTES


def _loader(dataset: _Decoded, order: Sequence[int], batch_size: int) -> Iterator[Batch]:
    """Batches in a given order; torch's own generator stays untouched."""
    loader = DataLoader(
        dataset,
        batch_size,
        sampler=order,
        num_workers=dataset.view.workers,
        collate_fn=_collate,
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, _Fault):
            raise DataError(batch.message, hint=batch.hint)
        yield batch


def _collate(items: Sequence[tuple[Tensor, int] | _Fault]) -> Batch | _Fault:
    good = []
    for item in items:
        if isinstance(item, _Fault):
            return item
        good.append(item)
    return torch.stack([image for image, _ in good]), torch.tensor([label for _, label in good])


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
