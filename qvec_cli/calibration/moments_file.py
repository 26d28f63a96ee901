"""The input moments that a file carries: checked from its header, read a layer at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from qvec_cli.checkpoint.card import Kind, canonical
from qvec_cli.checkpoint.dtypes import Array
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import ATTACHED, Checkpoint
from qvec_cli.errors import CheckpointError, MismatchError, NotFiniteError
from qvec_cli.inputs.lineage import (
    has_seen,
    require_same_architecture,
    require_same_rotation,
)
from qvec_cli.quant import moments
from qvec_cli.quant.moments import Inputs
from qvec_cli.specs import DataUse, Listener, Use

_MAKE: Final = "qvec moments MODEL --data SPEC -o moments.st makes some."


@dataclass(frozen=True, slots=True)
class MomentsSource:
    """One set of images through one model."""

    name: str  # of the data set
    digest: str  # of it
    classes: str  # of the names of its classes, see ``digest_of``
    images: int  # that went through
    model: str  # digest of the model's tensors
    start: str  # of its tensors without the head: if it is itself what others start from
    base: str | None  # of what it started from


@dataclass(frozen=True, slots=True)
class MomentsFacts:
    """What the card of a file says of its moments."""

    rank: int | None  # eigenpairs of each moment, see quant/moments.py; None: whole moments
    sites: Mapping[str, int]  # tokens, by the weight under whose name the moments are stored
    aliases: Mapping[str, str]  # of the other weights with the same inputs
    sources: tuple[MomentsSource, ...]
    half: bool = False  # whether they are stored so, see quant/moments.py

    @property
    def images(self) -> int:
        """How many images they are of."""
        return sum(source.images for source in self.sources)

    @property
    def targets(self) -> set[str]:
        """Every weight whose inputs are known."""
        return {*self.sites, *self.aliases}

    def to_json(self) -> dict[str, Any]:
        """These facts, as a card holds them."""
        facts = {**asdict(self), "sources": [asdict(source) for source in self.sources]}
        if not self.half:
            del facts["half"]  # float32 goes without saying
        return facts

    def in_words(self) -> dict[str, Any]:
        """As metrics and the cards of what is made with them name them."""
        keys = ("name", "digest", "images")
        sources = [{key: getattr(one, key) for key in keys} for one in self.sources]
        kept = {"rank": self.rank, **({"half": True} if self.half else {})}
        return {"images": self.images, **kept, "sources": sources}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> MomentsFacts:
        """What a card holds. Raises ValueError: something else."""
        try:
            sources = tuple(MomentsSource(**one) for one in value["sources"])
            layers = dict(value["sites"]), dict(value["aliases"])
            facts = cls(value["rank"], *layers, sources, value.get("half", False) is True)
        except (KeyError, TypeError) as fault:
            raise ValueError(str(fault)) from None
        counts = [*facts.sites.values(), *(s.images for s in sources), facts.rank or 1]
        whole = all(type(count) is int and count > 0 for count in counts)
        if not (sources and facts.sites and whole and {*facts.aliases.values()} <= {*facts.sites}):
            raise ValueError("moments")
        return facts


class StoredMoments:
    """The moments of an open file, which is a moments file or a vector that carries moments.
    Raises CheckpointError: a file without moments, or whose tensors are not those that its card
    tells of.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        stated = checkpoint.card.moments
        if stated is None:
            raise CheckpointError(f"{checkpoint.path}: carries no moments", hint=_MAKE)
        try:
            self.facts = MomentsFacts.from_json(stated)
        except ValueError as fault:
            raise self._damaged(f"({fault})") from None
        self.widths = {site: self._width(site) for site in self.facts.sites}
        planned = plan(self.widths, self.facts.rank, half=self.facts.half)
        for name in sorted(planned.keys() ^ checkpoint.attached.keys()):
            what = "missing" if name in planned else "not one of its moments"
            raise CheckpointError(f"{checkpoint.path}: {name}: is {what}")
        for name, expected in planned.items():
            entry = checkpoint.attached[name]
            if (entry.dtype, entry.shape) != (expected.dtype, expected.shape):
                raise CheckpointError(
                    f"{checkpoint.path}: {name}: is {entry.dtype} {list(entry.shape)}, "
                    f"{expected.dtype} {list(expected.shape)} belongs here"
                )

    @property
    def nbytes(self) -> int:
        """Bytes of the moments alone."""
        return sum(entry.nbytes for entry in self.checkpoint.attached.values())

    def inputs(self, weight: str) -> Inputs:
        """What a weight is multiplied with, by the name of any weight.
        Raises CheckpointError: numbers that are not finite.
        """
        return self.of_site(self.facts.aliases.get(weight, weight))

    def of_site(self, site: str) -> Inputs:
        """The same by the name under which it is stored."""
        parts = moments.shapes(self.widths[site], self.facts.rank, half=self.facts.half)
        arrays = {part: self.checkpoint.finite(part_name(site, part)) for part in parts}
        return moments.unpack(moments.from_half(arrays) if self.facts.half else arrays)

    def blocks(self) -> Iterator[tuple[str, Iterable[Array]]]:
        """Every array as it stands, to be copied."""
        for name in self.checkpoint.attached:
            yield name, self.checkpoint.checked(name)

    def _width(self, site: str) -> int:
        name = part_name(site, moments.MEAN)
        entry = self.checkpoint.attached.get(name)
        if entry is None:
            raise CheckpointError(f"{self.checkpoint.path}: {name}: is missing")
        if len(entry.shape) != 1 or not entry.size:
            raise self._damaged(f"({name})")
        return entry.size

    def _damaged(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.checkpoint.path}: its qvec card is damaged {why}")


def part_name(site: str, part: str) -> str:
    """What an array of a weight's inputs is called."""
    return f"{ATTACHED}{site}/{part}"


def plan(widths: Mapping[str, int], rank: int | None, *, half: bool) -> dict[str, Entry]:
    """The arrays for layers of so many inputs each."""
    halves = (moments.SECOND, moments.FACTOR) if half else ()
    return {
        part_name(site, part): Entry("F16" if part in halves else "F32", shape)
        for site, width in widths.items()
        for part, shape in moments.shapes(width, rank, half=half).items()
    }


def packed(
    site: str, inputs: Inputs, rank: int | None, *, half: bool
) -> Iterator[tuple[str, list[Array]]]:
    """The arrays of one layer, each as the one block that it is written in.
    Raises NotFiniteError: a moment beyond float32.
    """
    width = len(inputs.mean)
    kept = rank if rank is not None and moments.is_smaller(width, rank) else None
    arrays = moments.pack(inputs, kept)
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise NotFiniteError(f"{site}: moments of its inputs overflow float32")
    for part, array in (moments.to_half(arrays) if half else arrays).items():
        yield part_name(site, part), [np.ascontiguousarray(array).reshape(-1)]


def check_fit(stored: StoredMoments, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses moments that lack a target, whose ``shapes`` are [out, in], or are of another width.
    Raises MismatchError: names the file and the first such target.
    """
    path = stored.checkpoint.path
    if missing := [name for name in shapes if name not in stored.facts.targets]:
        raise MismatchError(
            f"{path}: has no moments of {missing[0]}",
            hint="--targets can leave it out; or make moments with the same --targets.",
        )
    for name, shape in shapes.items():
        width = stored.widths[stored.facts.aliases.get(name, name)]
        if width != shape[1]:
            raise MismatchError(f"{path}: {name}: moments of {width} inputs, it has {shape[1]}")


def require_same_base(theta: Checkpoint, stored: StoredMoments, listener: Listener) -> None:
    """Refuses moments of another architecture or another pretrained base.

    They fit the models of one base: the base itself, and whatever was fine-tuned from it.
    Raises MismatchError: names both files.
    """
    path = stored.checkpoint.path
    require_same_rotation(theta, stored.checkpoint)
    require_same_architecture(theta, stored.checkpoint)
    base = theta.card.base
    own = {source.model for source in stored.facts.sources} == {theta.stated}
    if base is None and not own:
        listener.note(f"{theta.path} does not say its base: that of {path} cannot be checked")
    if base is None or own:
        return
    if others := [one for one in stored.facts.sources if base not in (one.start, one.base)]:
        bases = " or ".join(dict.fromkeys(d[:12] for d in (others[0].base, others[0].start) if d))
        raise MismatchError(
            f"{theta.path} and {path} come from different bases ({base[:12]} and {bases})",
            hint="Moments belong to a base and to the models that were fine-tuned from it.",
        )


def use_of(theta: Checkpoint, facts: MomentsFacts) -> Use:
    """What of a receiver's data its quantization on such moments has used.

    Nothing, if the images and the model that they went through are others'.
    """
    own = [one for one in facts.sources if has_seen(theta, one.digest, one.classes)]
    if own:
        return Use(DataUse.RECEIVER_IMAGES, {"train": sum(one.images for one in own)})
    if any(one.model == theta.stated for one in facts.sources):
        return Use(DataUse.PROXY_IMAGES, {"proxy": facts.images})
    return Use(DataUse.NONE, {"moments": facts.images})


class PooledMoments:
    """What the images of all of several files of one architecture together would have given.

    The same moments twice count once.
    Raises MismatchError: files whose layers are not the same.
    """

    def __init__(self, many: Sequence[StoredMoments]) -> None:
        unlike = {canonical(one.facts.to_json()): one for one in reversed(many)}
        self._many = [*reversed(unlike.values())]
        first = self._many[0]
        for other in self._many[1:]:
            if (first.widths, first.facts.aliases) != (other.widths, other.facts.aliases):
                raise MismatchError(
                    f"{first.checkpoint.path} and {other.checkpoint.path} have moments of "
                    "different layers",
                    hint="Make them with the same --targets.",
                )
        sources = [source for one in self._many for source in one.facts.sources]
        tokens = {s: sum(one.facts.sites[s] for one in self._many) for s in first.facts.sites}
        ranks = [one.facts.rank for one in self._many]
        rank = None if None in ranks else max(r for r in ranks if r is not None)
        half = all(one.facts.half for one in self._many)
        once = tuple(dict.fromkeys(sources))
        self.facts = MomentsFacts(rank, tokens, first.facts.aliases, once, half)
        self.plan = plan(first.widths, rank, half=half)

    def blocks(self) -> Iterator[tuple[str, Iterable[Array]]]:
        """Every array of ``plan``, a layer at a time; one file's go as they stand."""
        if len(self._many) == 1:
            yield from self._many[0].blocks()
            return
        for site in self.facts.sites:
            counts = [one.facts.sites[site] for one in self._many]
            inputs = moments.pool((one.of_site(site) for one in self._many), counts)
            yield from packed(site, inputs, self.facts.rank, half=self.facts.half)


@dataclass(frozen=True, slots=True)
class MomentsOptions:
    """Moments to calibrate with, as the user names them."""

    path: Path  # a file of moments, or a vector that carries some
    bias_correction: bool = False  # whether biases make good the mean error of each output


class LayerMoments:
    """The moments of every target's inputs, from an open file.

    ``theta`` is the float model that is quantized, ``carrier`` the file that carries the moments.
    Raises CheckpointError, MismatchError: moments that are missing, or of another base.
    """

    def __init__(
        self, theta: Checkpoint, carrier: Checkpoint, options: MomentsOptions, listener: Listener
    ) -> None:
        if carrier.kind not in (Kind.MOMENTS, Kind.VECTOR):
            raise MismatchError(
                f"{carrier.path}: is a {carrier.kind}, a file of moments belongs here",
                hint="qvec moments makes one; a vector from extract --moments carries some too.",
            )
        self._theta, self._stored = theta, StoredMoments(carrier)
        self._correction = options.bias_correction
        require_same_base(theta, self._stored, listener)
        self.use: Use = use_of(theta, self._stored.facts)
        self.carrier = carrier

    def inputs(self, name: str) -> Inputs:
        """What a weight is multiplied with."""
        return self._stored.inputs(name)

    def bias(self, weight: str) -> str | None:
        """The bias that is to be corrected for a weight; None without one, or where none is."""
        name = weight.removesuffix("weight") + "bias"
        return name if self._correction and name in self._theta else None

    def facts(self) -> dict[str, Any]:
        """As cards and metrics name them."""
        return {**self._stored.facts.in_words(), "bias_correction": self._correction}

    def check(self, targets: Collection[str], listener: Listener) -> None:
        """Refuses targets whose moments are missing; says which have no bias to correct.
        Raises MismatchError: names the target.
        """
        check_fit(self._stored, {name: self._theta[name].shape for name in targets})
        unbiased = sum(self.bias(name) is None for name in targets)
        if unbiased and self._correction:
            listener.note(f"{unbiased} of {len(targets)} layers have no bias to correct")
