"""How many bits each weight gets: by hand, and within a budget at the least damage."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from qvec_cli.calibration.damage import Damage, damages
from qvec_cli.calibration.quantize_model import ModelQuantizer
from qvec_cli.calibration.sequential import CalibrationImages
from qvec_cli.errors import MismatchError, SpecError
from qvec_cli.inputs.grids import check_fit
from qvec_cli.outputs.hf_folder import ALIGN
from qvec_cli.quant.allocation import Allocation, Option, allocate
from qvec_cli.quant.qtensor import as_matrix, stored_bits
from qvec_cli.specs import Grid, Stage

Facts = dict[str, Any]

WIDTHS: Final = range(2, 9)

_ALIKE: Final = re.compile(r"(?<![a-z])(q|k|v|query|key|value)(?=(_proj|_lin)?\.weight$)")
"""Of queries, keys and values: engines that serve a model make one layer of them."""

_TRIES: Final = 8
"""How often widths are chosen until the file, whose card lists them, is small enough."""


class TooSmallError(SpecError):
    """A size that the smallest width does not meet."""


@dataclass(frozen=True, slots=True)
class WidthOptions:
    """Which weights have another width than the grid's, as a user says it."""

    average: float | None = None  # bits of a code, on average over all weights
    size: int | None = None  # bytes that what is written may have
    layers: tuple[tuple[str, int], ...] = ()  # globs over names, and the width of what they match
    head: int | None = None  # of the classifier, which else stays float
    embed: int | None = None  # of what embeds patches, positions and tokens

    def __post_init__(self) -> None:
        if self.average is not None and self.size is not None:
            raise SpecError("--target-size and --bits both say how small, and one will do")

    def to_json(self) -> dict[str, Any]:
        """As cards hold it: what was said, and nothing else."""
        said = {key: value for key, value in asdict(self).items() if value}
        return said | ({"layers": dict(self.layers)} if self.layers else {})

    @property
    def mixed(self) -> bool:
        """Whether weights may get different widths."""
        return self != WidthOptions()

    def differ_from(self, bits: int | None) -> bool:
        """Whether any weight may have another width than so many bits."""
        said = (*(width for _, width in self.layers), self.head, self.embed)
        return self.budget or any(width not in (None, bits) for width in said)

    @property
    def budget(self) -> bool:
        """Whether widths are chosen, so that something is small enough."""
        return self.average is not None or self.size is not None


@dataclass(frozen=True, slots=True)
class Unquantized:
    """What stays float unless its width is said."""

    head: tuple[str, ...]  # names of the classifier's weights
    embeddings: tuple[str, ...]


def with_widths(
    quantizer: ModelQuantizer,
    options: WidthOptions,
    images: CalibrationImages | None,
    others: Unquantized,
    size: Callable[[ModelQuantizer, Facts], int],
    listener: Stage,
) -> tuple[ModelQuantizer, Facts]:
    """A quantizer whose weights have the widths that were asked for, and what to say of them.

    Args:
        quantizer: one whose weights all have the same width, which a budget does not heed.
        options: what was asked for.
        images: of calibration, if the damage is to be told by images.
        others: what may be quantized too.
        size: bytes of what a quantizer's output takes on disk, with what there is to say of it.
        listener: hears of layers that are looked at.

    Raises MismatchError: a glob that matches nothing, a network without a head; SpecError: a budget
    that is too small, a TooSmallError if it is a size.
    """
    rounded = _rounded(quantizer, options, others)
    names = (*quantizer.targets, *rounded)
    by_hand = _by_hand(quantizer, options, rounded)
    layers = {**dict(quantizer.grid.layers), **by_hand}  # what the file was made for, first
    theta, group = quantizer.theta, quantizer.grid.group_size or 1
    shapes = {name: as_matrix(theta[name].shape) for name in names}
    rows = tuple(name for name in rounded if shapes[name][1] % group)
    grid = replace(quantizer.grid, layers=tuple(layers.items()), rows=rows)
    quantizer = replace(quantizer, rounded=tuple(rounded), grid=grid)
    check_fit(shapes, grid, str(theta.path))
    if not options.budget:
        return quantizer, {}
    free = [name for name in quantizer.targets if name not in by_hand]
    if not free:
        raise SpecError("--bits-for names every weight, and leaves no width to choose")
    loss = damages(replace(quantizer, targets=tuple(free)), images, WIDTHS, listener)
    by = "images" if images else "moments" if quantizer.moments else "weights"
    asked = {"average": options.average, "target_size": options.size, "by": by}
    chooser = _Chooser(quantizer, free, loss, asked)
    if options.average is not None:
        return chooser.by_average(options.average)
    return chooser.by_size(options.size or 0, size)


def _rounded(
    quantizer: ModelQuantizer, options: WidthOptions, others: Unquantized
) -> dict[str, int]:
    """The widths of what is quantized beside the targets."""
    theta = quantizer.theta
    widths: dict[str, int] = {}
    for flag, bits, known in (
        ("--head-bits", options.head, others.head),
        ("--embed-bits", options.embed, others.embeddings),
    ):
        names = tuple(name for name in known if name not in quantizer.targets)
        if bits is not None and not names:
            raise MismatchError(f"{theta.path}: {flag}: it has nothing of that kind left float")
        widths |= dict.fromkeys(names, bits) if bits is not None else {}
    return widths


def _by_hand(
    quantizer: ModelQuantizer, options: WidthOptions, rounded: Mapping[str, int]
) -> dict[str, int]:
    """The widths that were said, by name; a later glob goes before an earlier one."""
    widths, names = dict(rounded), (*quantizer.targets, *rounded)
    for glob, bits in options.layers:
        matched = fnmatch.filter(names, glob)
        if not matched:
            raise MismatchError(
                f"{quantizer.theta.path}: --bits-for {glob!r} matches no weight that is quantized",
                hint="--dry-run lists them.",
            )
        widths |= dict.fromkeys(matched, bits)
    return widths


class _Chooser:
    """Chooses the widths of ``free`` weights; all others of the quantizer have theirs."""

    def __init__(
        self,
        quantizer: ModelQuantizer,
        free: Sequence[str],
        loss: Mapping[str, Damage],
        asked: Facts,
    ) -> None:
        self._quantizer, self._loss, self._asked = quantizer, loss, asked
        self._shapes = {name: quantizer.theta[name].shape for name in free}
        self._together: dict[str, list[str]] = {}
        for name in free:
            self._together.setdefault(_ALIKE.sub("*", name), []).append(name)

    def by_average(self, bits: float) -> tuple[ModelQuantizer, Facts]:
        """So that a code has so many bits on average, over all weights of the targets."""
        theta, grid = self._quantizer.theta, self._quantizer.grid
        targets = self._quantizer.targets
        weights = sum(theta[name].size for name in targets)
        fixed = [name for name in targets if name not in self._shapes]
        spent = sum(grid.of(name).bits * theta[name].size for name in fixed)
        try:
            found = self._allocate(int(bits * weights) - spent, self._bits)
        except SpecError as error:
            raise SpecError(
                f"--bits {bits:g} is too small beside --bits-for; in bits of all weights, {error}"
            ) from None
        return self._with(found.bits), self._facts(found)

    def by_size(
        self, size: int, size_of: Callable[[ModelQuantizer, Facts], int]
    ) -> tuple[ModelQuantizer, Facts]:
        """So that what is written takes so many bytes at most."""
        least = {key: min(WIDTHS) for key in self._together}
        cheapest = sum(self._bytes(name, min(WIDTHS)) for name in self._shapes)
        budget = size - size_of(self._with(least), self._asked) + cheapest
        smallest = 0
        for left in reversed(range(_TRIES)):
            budget = max(budget, cheapest) if left else cheapest
            found = self._allocate(budget, self._bytes)
            chosen, facts = self._with(found.bits), self._facts(found)
            if not chosen.targets:
                raise SpecError(f"--target-size {size:,} bytes is met with every layer in float")
            smallest = size_of(chosen, facts)
            if smallest <= size:
                return chosen, facts
            if budget == cheapest:
                break
            budget = found.cost - (smallest - size)  # which the same choice does not meet
        raise TooSmallError(
            f"--target-size {size:,} bytes is too small: at {min(WIDTHS)} bits it takes "
            f"{smallest:,}",
            hint="--head-bits 8 and --embed-bits 8 make what is float smaller.",
        )

    def _allocate(self, budget: int, cost: Callable[[str, int | None], int]) -> Allocation:
        options = {
            key: [
                Option(bits, sum(cost(n, bits) for n in names), self._damage(names, bits))
                for bits in (*WIDTHS, None)
            ]
            for key, names in self._together.items()
        }
        return allocate(options, budget)

    def _damage(self, names: Sequence[str], bits: int | None) -> float:
        return 0.0 if bits is None else sum(self._loss[name][bits] for name in names)

    def _bits(self, name: str, bits: int | None) -> int:
        entry = self._quantizer.theta[name]
        return 8 * entry.nbytes if bits is None else bits * entry.size

    def _bytes(self, name: str, bits: int | None) -> int:
        """Of a weight in a file, about: what is written is measured again."""
        if bits is None:
            return self._quantizer.theta[name].nbytes
        grid = replace(self._quantizer.grid.of(name), bits=bits)
        return stored_bits({name: self._shapes[name]}, grid) // 8 + ALIGN

    def _facts(self, found: Allocation) -> Facts:
        """What was asked for, and how good a choice it is."""
        return {
            **self._asked,
            "damage": found.damage,
            "bound": found.bound,
            "gap": found.gap,
        }

    def _with(self, widths: Mapping[str, int | None]) -> ModelQuantizer:
        """The quantizer with a width for each; a weight that has none stays float."""
        before, layers = self._quantizer, dict(self._quantizer.grid.layers)
        bits = {name: widths[key] for key, names in self._together.items() for name in names}
        targets = tuple(n for n in before.targets if bits.get(n, 0) is not None)
        layers |= {name: width for name, width in bits.items() if width is not None}
        return replace(before, targets=targets, grid=_of_widths(before.grid, targets, layers))


def _of_widths(grid: Grid, targets: Sequence[str], layers: Mapping[str, int]) -> Grid:
    """A grid whose width is that of most targets; the others are its exceptions."""
    widths = {name: layers.get(name, grid.bits) for name in targets}
    usual = Counter(widths.values()).most_common(1)[0][0] if widths else grid.bits
    exceptions = {**dict.fromkeys(targets, grid.bits), **layers}
    return replace(grid, bits=usual, layers=tuple(exceptions.items()))
