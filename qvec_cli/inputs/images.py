"""Images for a network: labelled ones of its own task, and proxies that need no label."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.data.datasets import any_split, open_task, open_unlabelled
from qvec_cli.data.diversified import DiversifiedImages
from qvec_cli.data.generated import GENERATED, GeneratedImages
from qvec_cli.data.noise import NOISE, NoiseImages
from qvec_cli.data.samples import Subset, Task, composed
from qvec_cli.errors import DataError, MismatchError, SpecError
from qvec_cli.inputs.lineage import digest_of, has_seen
from qvec_cli.model.configuration import Model
from qvec_cli.outputs.metrics import Input
from qvec_cli.specs import (
    Calibration,
    DataUse,
    Listener,
    Loading,
    Silence,
    Use,
    check_pool,
    spent,
)
from qvec_cli.tame import counted

if TYPE_CHECKING:
    from torch import Tensor

    from qvec_cli.learn.batches import Batch

LEAST: Final = 16  # images that are held back


@dataclass(frozen=True, slots=True)
class ProxyOptions:
    """Which images, as the user says it."""

    specs: tuple[str, ...]
    samples: int = 256  # in all, shared between the data sets
    loading: Loading = field(default_factory=Loading)
    fewer: bool = False  # whether fewer do, see ``fitted``

    def __post_init__(self) -> None:
        if not self.specs:
            raise SpecError(
                "--proxy is missing",
                hint="Some hundred images of anything do, without labels; or --proxy generated.",
            )
        check_pool("--proxy", self.specs, self.samples, 2)


@dataclass(frozen=True, slots=True)
class ProxySource:
    """A part of one data set."""

    spec: str
    examples: Examples
    use: Use  # the receiver data that a choice on these images uses

    @property
    def count(self) -> int:
        """Images that will be decoded."""
        return len(self.examples.task.split("train"))

    def first(self, count: int) -> ProxySource:
        """So many of the images, those that were drawn first."""
        task, (kind,) = self.examples.task, self.use.counts
        whole = task.splits["train"]
        assert isinstance(whole, (Subset, DiversifiedImages))
        some = Task(task.name, task.classes, {"train": whole.first(count)})
        use = Use(self.use.level, {kind: count})
        return ProxySource(self.spec, replace(self.examples, task=some), use)

    @property
    def kind(self) -> str | None:
        """The name of images that are drawn from numbers; None: somebody has taken them."""
        return self.spec if self.use.level is DataUse.NONE else None


@dataclass(frozen=True, slots=True)
class Proxies:
    """Images of one or several data sets, drawn and not yet decoded."""

    sources: tuple[ProxySource, ...]

    @property
    def use(self) -> Use:
        """Whether any are the receiver's own, and how many there are of each kind."""
        counts: Counter[str] = Counter()
        for source in self.sources:
            counts.update(source.use.counts)
        return Use(spent(*(source.use for source in self.sources)).level, dict(counts))

    @property
    def count(self) -> int:
        """Images in all."""
        return sum(source.count for source in self.sources)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The data sets as metrics list them."""
        return tuple(Input(s.spec, "data", s.examples.task.digest) for s in self.sources)

    @property
    def model(self) -> Model:
        """The configuration of the network that they are decoded for."""
        return self.sources[0].examples.model

    @property
    def only_noise(self) -> bool:
        """Whether no picture is among them."""
        return all(source.kind == NOISE for source in self.sources)

    @property
    def real(self) -> tuple[ProxySource, ...]:
        """Those that somebody has taken."""
        return tuple(source for source in self.sources if source.kind is None)

    def half(self) -> Proxies:
        """The first half of the images of each data set, one of them at least."""
        return Proxies(tuple(source.first(-(-source.count // 2)) for source in self.sources))

    def facts(self) -> list[dict[str, Any]]:
        """As cards and metrics name them."""
        tasks = [(source.examples.task, source.count) for source in self.sources]
        return [{"name": t.name, "digest": t.digest, "samples": n} for t, n in tasks]

    def decoded(self, listener: Listener) -> Tensor:
        """All of them, uint8 [N, C, H, W], source after source."""
        import torch

        return torch.cat([s.examples.decoded("train", listener)[0] for s in self.sources])


def find_proxies(
    theta: Checkpoint,
    model: Model,
    options: ProxyOptions,
    listener: Listener,
    *,
    held_back: bool = False,
) -> Proxies:
    """Images of each data set for a receiver and its model, in one draw; not yet decoded.

    ``held_back`` asks for as many others, which come after them in the draw. DataError, SpecError:
    no such data set, or a single image.
    """
    proxies = draw_each(theta, model, options, listener, held_back=held_back)
    if proxies.count < 2:
        raise DataError(
            f"{options.specs[0]}: has one image, and one cannot tell how sure a choice is"
        )
    return proxies


def fitted(options: ProxyOptions, model: Model, listener: Listener) -> ProxyOptions:
    """The same, but for so few images that too few would be left to be held back: half of them.

    The user has not said how many (``fewer``). DataError: no such data set.
    """
    if not options.fewer:
        return options
    opened = [open_images(spec, model, options.loading, Silence()) for spec in options.specs]
    sizes = [len(any_split(task)) for task in opened]
    half, share = min(sizes) // 2, -(-options.samples // len(sizes))
    if min(sizes) - share >= LEAST or half < LEAST:
        return options
    spec = options.specs[sizes.index(min(sizes))]
    each = "" if len(sizes) == 1 else " of each data set"
    listener.note(f"{spec}: has {min(sizes)} images: {half}{each} are used, and others judge")
    return replace(options, samples=half * len(sizes))


def draw_each(
    theta: Checkpoint,
    model: Model,
    options: ProxyOptions | Calibration,
    listener: Listener,
    *,
    held_back: bool = False,
) -> Proxies:
    """A share of the images from each data set, see ``find_proxies``; nothing is decoded.

    DataError: no such data set, or too few are left to be held back.
    """
    share, more = divmod(options.samples, len(options.specs))
    shares = [share + (place < more) for place in range(len(options.specs))]
    return Proxies(
        tuple(
            draw(theta, model, spec, count, options.loading, listener, count if held_back else 0)
            for spec, count in zip(options.specs, shares, strict=True)
        )
    )


def draw(
    theta: Checkpoint,
    model: Model,
    spec: str,
    count: int,
    loading: Loading,
    listener: Listener,
    start: int = 0,
) -> ProxySource:
    """At most so many images of a data set; whether they are the receiver's own, cards tell.

    DataError: too few are left from ``start`` on.
    """
    task = open_images(spec, model, loading, listener)
    samples = any_split(task)
    if start > 0 and len(samples) - start < min(count, LEAST):
        size, half = counted(len(samples), "image"), len(samples) // 2
        raise DataError(
            f"{spec}: has {size}, too few to use {start} of them and judge by others",
            hint=f"--proxy-samples {half} leaves as many to judge by." if half > 1 else None,
        )
    count = min(count, len(samples) - start)
    some = Subset(samples, start, start + count, loading.draw)
    drawn: Subset | DiversifiedImages = some
    use = Use(DataUse.PROXY_IMAGES, {"proxy": count})
    if isinstance(samples, (NoiseImages, GeneratedImages)):
        use = Use(DataUse.NONE, {task.name: count})
    elif loading.diversify:
        drawn = DiversifiedImages(some, model.input_size[-1])
    chosen = Task(task.name, task.classes, {"train": drawn})
    if use.level is not DataUse.NONE and has_seen(theta, task.digest, digest_of(task.classes)):
        use = Use(DataUse.RECEIVER_IMAGES, {"train": count})
    labels = tuple(range(len(task.classes)))
    return ProxySource(spec, Examples(chosen, model, labels, loading), use)


def is_own(theta: Checkpoint, model: Model, spec: str, loading: Loading) -> bool:
    """Whether a data set is known to be the receiver's own."""
    own = draw(theta, model, spec, 1, loading, Silence()).use.level is DataUse.RECEIVER_IMAGES
    return own and bool(theta.card.data)


@dataclass(frozen=True, slots=True)
class Examples:
    """A data set seen through a model."""

    task: Task
    model: Model
    relabel: tuple[int, ...]  # from the data set's class index to the head's
    loading: Loading

    def decoded(self, split: str, listener: Listener) -> Batch:
        """Every image of a split, uint8 [N, C, H, W], with the head's labels."""
        import torch

        from qvec_cli.learn.batches import PreparedSplit, decode
        from qvec_cli.model import build

        samples, transform = self.task.split(split), build.transform(self.model, augment=False)
        channels, workers = self.model.channels, self.loading.workers
        prepared = PreparedSplit(samples, transform, channels, workers, split, self.task.name)
        images, labels = decode(prepared, listener)
        return images, torch.tensor(self.relabel)[labels]


def open_data(spec: str, loading: Loading, listener: Listener) -> Task:
    """The data set that the user names; the listener hears what it notes of its reading."""
    folder = Path(loading.data_dir) if loading.data_dir else None
    return _noted(open_task(spec, folder, download=loading.download), listener)


def data_facts(task: Task) -> dict[str, Any]:
    """What the card of a model says of the data set that it was trained on."""
    return {
        "name": Path(task.name).name,
        "classes": list(task.classes),
        "images": {name: len(samples) for name, samples in task.splits.items()},
        "digest": task.digest,
    }


def open_images(spec: str, model: Model, loading: Loading, listener: Listener) -> Task:
    """Images whose labels do not count, for one network: a data set, any folder, or noise.

    DataError: noise or generated pictures for a network of texts.
    """
    if model.reads_texts and spec in (GENERATED, NOISE):
        raise DataError(
            f"{spec}: is made of pictures, and {model.architecture} reads texts",
            hint="Name texts: a table or a folder of tables, labels do not count.",
        )
    folder = Path(loading.data_dir) if loading.data_dir else None
    side = model.input_size[-1]
    return _noted(open_unlabelled(spec, folder, side, download=loading.download), listener)


def _noted(task: Task, listener: Listener) -> Task:
    for note in task.notes:
        listener.note(note)
    return task


def open_for(
    checkpoint: Checkpoint, model: Model, spec: str, loading: Loading, listener: Listener
) -> Examples:
    """A data set whose classes are matched with the head's, by name where the card has names.

    MismatchError: classes that the head does not know, or another number of them.
    """
    task = open_data(spec, loading, listener)
    known: Sequence[str] | None = checkpoint.classes
    if known is not None and loading.class_map and not checkpoint.bare:
        raise MismatchError(f"{checkpoint.path} names its classes itself: leave --class-map out")
    known = None if loading.class_map else known
    if known is None:
        known = _unnamed(task, model.num_classes, spec, checkpoint, loading)
    return Examples(task, model, _relabel(task, known, spec, checkpoint), loading)


_OF_OTHERS: Final = "The model was trained on another data set."


def _unnamed(
    task: Task, outputs: int, spec: str, checkpoint: Checkpoint, loading: Loading
) -> Sequence[str]:
    """Class names in the order of a head that does not tell them."""
    known = listed_classes(loading.class_map) if loading.class_map else task.classes
    if loading.class_map is None and natural(known) != list(known):
        raise MismatchError(
            f"{checkpoint.path}: does not name its classes, and they have two usual orders: "
            f"{', '.join(known[:3])}... and {', '.join(natural(known)[:3])}...",
            hint="Pass --class-map FILE, one class name a line in the order of the head.",
        )
    if len(known) != outputs:
        raise MismatchError(
            f"{loading.class_map or spec} has {counted(len(known), 'class')}, the head of "
            f"{checkpoint.path} {outputs}",
            hint=_OF_OTHERS,
        )
    return known


_LARGEST_MAP, _LONGEST_NAME = 1 << 24, 1000
"""Bytes of a list of classes that are read, and letters of one of its names."""


def listed_classes(path: str) -> tuple[str, ...]:
    """The class names of a file, one a line. Raises DataError: cannot be read, or one twice."""
    try:
        with Path(path).open("rb") as file:
            names = tuple(filter(None, file.read(_LARGEST_MAP).decode("utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError) as fault:
        raise DataError(f"--class-map {path}: cannot be read: {fault}") from None
    if long := next((name for name in names if len(name) > _LONGEST_NAME), None):
        raise DataError(f"--class-map {path}: a name of {len(long):,} letters")
    if double := next((name for name, count in Counter(names).items() if count > 1), None):
        raise DataError(f"--class-map {path}: {double!r} stands in it twice")
    return names


def natural(names: Sequence[str]) -> list[str]:
    """Sorted as timm does, c2 before c10; torchvision has them the other way round."""

    def key(name: str) -> list[tuple[bool, int, str]]:
        pieces = re.split(r"(\d+)", name.lower())
        return [(not p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in pieces]

    return sorted(names, key=key)


def _relabel(
    task: Task, known: Sequence[str], spec: str, checkpoint: Checkpoint
) -> tuple[int, ...]:
    alike = {composed(name): index for index, name in enumerate(known)}
    exact = {name: index for index, name in enumerate(known)}
    place = {name: exact.get(name, alike.get(composed(name))) for name in task.classes}
    if strange := [name for name, index in place.items() if index is None]:
        raise MismatchError(
            f"{spec} has {counted(len(task.classes), 'class')}, the head of {checkpoint.path} "
            f"{len(known)}; it does not know {', '.join(map(repr, strange[:3]))}",
            hint=_OF_OTHERS,
        )
    return tuple(index for index in place.values() if index is not None)
