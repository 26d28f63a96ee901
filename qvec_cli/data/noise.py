"""Images of 1/f noise, for those who have none: amplitudes fall with frequency, as in photographs.

That spectrum is Field's (1987, doi:10.1364/JOSAA.4.002379). White noise, which has as much at each
frequency, excites a network's layers far less like pictures do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qvec_cli.data.samples import Task

if TYPE_CHECKING:
    from PIL import Image

NOISE: Final = "noise"
"""The name of the images, in --calib and --proxy."""

COUNT: Final = 4096
"""How many images there are; each is drawn from its number alone."""

_CONTRAST: Final = 0.25
"""Standard deviation of pixels around middle grey, where white is 1: about that of photographs."""

_SHARED: Final = 0.9
"""Correlation of two colour channels, about that of photographs."""


@dataclass(frozen=True, slots=True)
class NoiseImages:
    """Colour images of one side, in pixels."""

    side: int

    def __len__(self) -> int:
        return COUNT

    @property
    def labels(self) -> Sequence[int]:
        """Zeros: pictures of noise have one class."""
        return [0] * COUNT

    def load(self, index: int) -> Image.Image:
        """Draws one image."""
        from PIL import Image

        stream = np.random.default_rng((0, index))
        grey, colours = _pattern(stream, self.side, 1), _pattern(stream, self.side, 3)
        mixed = grey * _SHARED**0.5 + colours * (1 - _SHARED) ** 0.5
        pixels = np.clip(0.5 + _CONTRAST * mixed, 0, 1) * 255
        return Image.fromarray(np.rint(pixels.transpose(1, 2, 0)).astype(np.uint8))

    def identity(self) -> Iterator[str]:
        """The kind of noise and the side."""
        yield f"1/f noise, {self.side} pixels, seed 0"


def noise(side: int) -> Task:
    """A data set of 1/f noise with a train split only."""
    return Task(NOISE, (NOISE,), {"train": NoiseImages(side)})


def _pattern(stream: np.random.Generator, side: int, channels: int) -> np.ndarray[Any, Any]:
    """[channels, side, side], each with mean 0 and standard deviation 1."""
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]
    distance = np.hypot(rows, columns)
    distance[0, 0] = np.inf  # the mean is set apart
    white = np.fft.rfft2(stream.standard_normal((channels, side, side)))
    pattern = np.fft.irfft2(white / distance, s=(side, side))
    spread = pattern.std(axis=(1, 2), keepdims=True)
    return np.asarray(pattern / np.where(spread > 0, spread, 1))
