"""Flags that say how many bits weights get: as many for all, for some, or within a budget."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from qvec_cli.cli.options import GRID
from qvec_cli.cli.signature import flag
from qvec_cli.errors import SpecError

if TYPE_CHECKING:
    from qvec_cli.calibration.widths import WidthOptions

_UNITS: Final = {"": 1, "b": 1} | {
    f"{prefix}{end}": base**power
    for power, prefix in enumerate("kmg", start=1)
    for end, base in (("b", 1000), ("ib", 1024), ("", 1000))
}

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)

_LARGEST: Final = 2.0**53
"""Bytes that a size may have: more no card could tell to the byte."""

NARROWEST: Final = 2


@dataclass(frozen=True, slots=True)
class WidthFlags:
    """How many bits a weight gets."""

    heading: ClassVar[str] = GRID
    bits: float | None = flag(
        None,
        "Width of a code, 2 to 8; with a fraction, as 2.5, an average: each layer gets the width "
        "that does least damage.",
        min=2,
        max=8,
        metavar="BITS",
    )
    target_size: str | None = flag(
        None, "What the output may take on disk, as 6MB; in place of --bits.", metavar="SIZE"
    )
    bits_for: list[str] | None = flag(
        None, "Width of the weights that a glob matches. Repeat it.", metavar="GLOB=BITS"
    )
    head_bits: int | None = flag(
        None, "Width of the classifier's weights.", min=2, max=8, show_default="float"
    )
    embed_bits: int | None = flag(
        None,
        "Width of what embeds patches, positions and tokens.",
        min=2,
        max=8,
        show_default="float",
    )

    @property
    def fraction(self) -> float | None:
        """The bits of a code on average, where no width has so many."""
        return self.bits if self.bits is not None and self.bits % 1 else None

    @property
    def whole(self) -> int | None:
        """The width of all weights for which no other is said or chosen."""
        if self.bits is None:
            return NARROWEST if self.target_size is not None else None
        return int(self.bits)

    def options(self) -> WidthOptions:
        """What was typed; SpecError where values do not go together or cannot be read."""
        from qvec_cli.calibration.widths import WidthOptions

        if self.bits is not None and self.target_size is not None:
            raise SpecError("--target-size and --bits both say how small, and one will do")
        size = None if self.target_size is None else _bytes(self.target_size)
        layers = tuple(map(_layer, self.bits_for or ()))
        return WidthOptions(self.fraction, size, layers, self.head_bits, self.embed_bits)


def _bytes(text: str) -> int:
    """A size as people write it, in bytes."""
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].lower()) if match else None
    size = float(match[1]) * unit if match and unit else math.inf
    if size > _LARGEST:
        raise SpecError(
            f"--target-size {text!r} is no size", hint="As 6MB, 800kB, 5.5MiB, or 6000000."
        )
    return int(size)


def _layer(text: str) -> tuple[str, int]:
    """A glob and its width."""
    glob, _, bits = text.rpartition("=")
    if not glob or not bits.isdecimal() or not 2 <= int(bits) <= 8:
        raise SpecError(
            f"--bits-for {text!r}: a glob over names, = and 2 to 8 belong there",
            hint="As --bits-for 'blocks.0.*=4'.",
        )
    return glob, int(bits)
