"""Pictures made to differ: other colours, other grounds, pieces of one another.

A few pictures of one kind excite a network as that kind does and no other. Recoloured, turned to
negatives, laid over generated pictures and cut into each other they excite it more like pictures
at large. Whole numbers decide every pixel, as in ``generated``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qvec_cli.data.generated import GeneratedImages
from qvec_cli.data.samples import Subset
from qvec_cli.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

    Array = np.ndarray[Any, np.dtype[Any]]

_OFTEN: Final = 0.5
"""How many of the pictures go through each of the changes."""

_GROUND: Final = 128
"""Largest share of a generated picture in what is laid over it, of 256."""


@dataclass(frozen=True, slots=True)
class DiversifiedImages:
    """Other pictures, each changed by its number alone, in colour, squares of one side."""

    pictures: Subset  # pieces of which are cut into each other
    side: int

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def labels(self) -> Sequence[int]:
        """Those of the pictures."""
        return self.pictures.labels

    def load(self, index: int) -> Image.Image:
        """Decodes one picture, and for some another, and changes it."""
        from PIL import Image

        stream = np.random.default_rng((2, index))
        pixels = self._pixels(index)
        colours, ground, cut = stream.random(3) < _OFTEN
        if cut:
            _cut(stream, pixels, self._pixels(int(stream.integers(len(self)))))
        if colours:
            pixels = _recoloured(stream, pixels)
        if ground:
            share = int(stream.integers(_GROUND))
            drawn = np.asarray(GeneratedImages(self.side).load(index)).astype(np.int64)
            pixels = (pixels * (256 - share) + drawn * share) // 256
        return Image.fromarray(pixels.astype(np.uint8))

    def first(self, count: int) -> DiversifiedImages:
        """So many of them."""
        return replace(self, pictures=self.pictures.first(count))

    def identity(self) -> Iterator[str]:
        """Of the pictures, and that they are changed."""
        yield f"diversified, {self.side} pixels"
        yield from self.pictures.identity()

    def _pixels(self, index: int) -> Array:
        """[side, side, 3], whole numbers from 0 to 255."""
        from PIL import Image

        loaded = self.pictures.load(index)
        if isinstance(loaded, str):
            raise DataError("texts are not made to differ", hint="Leave --diversify out.")
        image = loaded.convert("RGB")
        small = image.resize((self.side, self.side), Image.Resampling.BICUBIC)
        return np.array(small).astype(np.int64)


def _cut(stream: np.random.Generator, pixels: Array, other: Array) -> None:
    """Puts a rectangle of the other in a picture, of a quarter to three quarters of its sides."""
    side = len(pixels)
    height, width = stream.integers(side // 4, 3 * side // 4 + 1, 2)
    top, left = stream.integers(side - height + 1), stream.integers(side - width + 1)
    place = np.s_[top : top + height, left : left + width]
    pixels[place] = other[place]


def _recoloured(stream: np.random.Generator, pixels: Array) -> Array:
    """Channels in another order, black and white replaced by two colours of some contrast."""
    black, white = stream.integers(0, 256, (2, 3))
    while abs(int(white.sum()) - int(black.sum())) < 255:
        black, white = stream.integers(0, 256, (2, 3))
    recoloured: Array = black + (white - black) * pixels[..., stream.permutation(3)] // 255
    return recoloured
