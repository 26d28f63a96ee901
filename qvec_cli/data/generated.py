"""Pictures that nobody took: shapes, strokes, silhouettes and leaves, drawn from a number alone.

A photograph is little more than things in front of one another, of all sizes, lit from somewhere
and partly out of focus; of these "dead leaves" (Lee, Mumford and Huang 2001, doi:
10.1023/A:1011109015675) two of five pictures are made. The others are drawings: coloured shapes,
strokes of a pen, grey silhouettes.

Whole numbers decide every pixel, so that the same number gives the same bytes on any machine: no
sine, no Fourier transform, no sum whose order a machine may choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qvec_cli.data.samples import Task

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

    Array = np.ndarray[Any, np.dtype[Any]]
    Colour = tuple[int, int, int]

GENERATED: Final = "generated"
"""The name of the images, in --calib and --proxy."""

COUNT: Final = 4096
"""How many there are."""

_DIRECTIONS: Final = 64
_UNIT: Final = 4096
_CIRCLE: Final = tuple(
    (round(_UNIT * float(x)), round(_UNIT * float(y)))
    for x, y in (
        (np.cos(angle), np.sin(angle))
        for angle in (2 * np.pi * step / _DIRECTIONS for step in range(_DIRECTIONS))
    )
)
"""Points of a circle in whole numbers, which the last bit of a cosine does not change."""

_LARGE: Final = 64  # pixels, from which on drawings are not smoothed by drawing them larger


@dataclass(frozen=True, slots=True)
class GeneratedImages:
    """Colour pictures of one side, in pixels."""

    side: int

    def __len__(self) -> int:
        return COUNT

    @property
    def labels(self) -> Sequence[int]:
        """Zeros: they have one class."""
        return [0] * COUNT

    def load(self, index: int) -> Image.Image:
        """Draws one picture."""
        stream = np.random.default_rng((1, index))
        return _style(index)(stream, self.side)

    def identity(self) -> Iterator[str]:
        """The generator's version and the side."""
        yield f"generated pictures, version 1, {self.side} pixels"


def generated(side: int) -> Task:
    """A data set of generated pictures with a train split only."""
    return Task(GENERATED, (GENERATED,), {"train": GeneratedImages(side)})


_Style = Callable[[np.random.Generator, int], "Image.Image"]


def _style(index: int) -> _Style:
    """Of ten four are of leaves, three of strokes, two of shapes, one is a silhouette."""
    leaves, strokes, shapes = _leaves, _strokes, _shapes
    turns = (leaves, strokes, leaves, shapes, strokes, leaves, shapes, strokes, leaves)
    return (*turns, _silhouette)[index % 10]


# --- numbers --------------------------------------------------------------------------------------


def _below(stream: np.random.Generator, low: int, high: int) -> int:
    """A whole number from low on, below high."""
    return int(stream.integers(low, max(high, low + 1)))


def _size(stream: np.random.Generator, smallest: int, largest: int) -> int:
    """A size whose density falls with its third power, as of things at all distances."""
    share = float(stream.random())
    low, high = 1 / (smallest * smallest), 1 / (largest * largest)
    return int((low - share * (low - high)) ** -0.5)


def _colour(stream: np.random.Generator) -> Colour:
    red, green, blue = (int(value) for value in stream.integers(0, 256, 3))
    return red, green, blue


def _field(stream: np.random.Generator, side: int, coarsest: int = 2) -> Array:
    """[side, side] int32 between -255 and 255: grids of random greys, each twice as fine and half
    as strong as the last, which is about 1/f.
    """
    from PIL import Image

    total = np.zeros((side, side), np.int32)
    weight, cells = 128, coarsest
    while weight > 4 and cells < 2 * side:
        grid = stream.integers(0, 256, (cells, cells)).astype(np.uint8)
        smooth = Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC)
        total += weight * (np.asarray(smooth, np.int32) - 128)
        weight, cells = weight // 2, 2 * cells
    return np.clip(total // 96, -255, 255)


# --- shapes ---------------------------------------------------------------------------------------


def _outline(stream: np.random.Generator, x: int, y: int, size: int) -> list[tuple[int, int]]:
    """The corners of an ellipse, a box, a wedge or some polygon, turned somehow."""
    kind, turn = _below(stream, 0, 4), _below(stream, 0, _DIRECTIONS)
    wide, high = size, max(1, size * _below(stream, 8, 33) // 32)
    if kind == 0:
        corners = [_CIRCLE[step] for step in range(0, _DIRECTIONS, 4)]
    elif kind == 1:
        corners = [(_UNIT, _UNIT), (-_UNIT, _UNIT), (-_UNIT, -_UNIT), (_UNIT, -_UNIT)]
    else:
        count = 3 if kind == 2 else _below(stream, 4, 9)
        steps = sorted(int(step) for step in stream.integers(0, _DIRECTIONS, count))
        corners = [_CIRCLE[step] for step in steps]
    cos, sin = _CIRCLE[turn]
    turned = []
    for across, down in corners:
        left, top = across * wide // _UNIT, down * high // _UNIT
        turned.append(
            (x + (left * cos - top * sin) // _UNIT, y + (left * sin + top * cos) // _UNIT)
        )
    return turned


def _leaves(stream: np.random.Generator, side: int) -> Image.Image:
    """Things in front of one another, textured, shaded, lit, and half of them out of focus."""
    from PIL import Image, ImageDraw, ImageFilter

    count = _below(stream, 15, 140)
    labels = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(labels)
    for label in range(1, count + 1):
        x, y = (_below(stream, 0, side) for _ in range(2))
        size = _size(stream, max(2, side // 9), side)
        draw.polygon(_outline(stream, x, y, size), fill=label)
    place = np.asarray(labels, np.intp)
    pixels = _palette(stream, count + 1)[place].astype(np.int32)  # [H, W, 3]
    rows, columns = np.mgrid[:side, :side].astype(np.int32)
    slopes = stream.integers(-48, 49, (2, count + 1)).astype(np.int32)
    rough = stream.integers(0, 80, count + 1).astype(np.int32)
    shade = (slopes[0][place] * rows + slopes[1][place] * columns) // side
    shade += rough[place] * _field(stream, side, 8) // 256
    light = stream.integers(-72, 73, 2)
    shade += (int(light[0]) * (2 * rows - side) + int(light[1]) * (2 * columns - side)) // side // 2
    pixels += shade[:, :, None]
    pixels += stream.integers(-4, 5, pixels.shape).astype(np.int32)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if _below(stream, 0, 2):
        image = image.filter(ImageFilter.BoxBlur(_below(stream, 1, 2 + side // 64)))
    return image


def _palette(stream: np.random.Generator, count: int) -> Array:
    """[count, 3] colours of one picture, which have much of a common one."""
    common = stream.integers(32, 224, 3)
    grey = stream.integers(-96, 97, (count, 1))
    own = stream.integers(-40, 41, (count, 3))
    return np.asarray(np.clip(common + grey + own, 0, 255))


def _ground(stream: np.random.Generator, side: int) -> Image.Image:
    """A plain colour, or noise around one."""
    from PIL import Image

    pixels = np.empty((side, side, 3), np.int32)
    pixels[:] = _colour(stream)
    if _below(stream, 0, 2):
        for channel in range(3):
            pixels[:, :, channel] += _field(stream, side) // 2
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _drawn(
    stream: np.random.Generator,
    side: int,
    ground: Image.Image,
    lines: Callable[[np.random.Generator, ImageDraw.ImageDraw, int], None],
) -> Image.Image:
    """A drawing over a ground, drawn larger and made smaller where pixels are few."""
    from PIL import ImageDraw

    larger = 1 if side > _LARGE else 3
    canvas = ground.resize((side * larger, side * larger)) if larger > 1 else ground
    lines(stream, ImageDraw.Draw(canvas), side * larger)
    return canvas.reduce(larger) if larger > 1 else canvas


def _shapes(stream: np.random.Generator, side: int) -> Image.Image:
    """Coloured shapes of all sizes, lines, arcs and stripes; some pictures are blurred."""
    from PIL import ImageFilter

    image = _drawn(stream, side, _ground(stream, side), _coloured)
    if _below(stream, 0, 4) == 0:
        image = image.filter(ImageFilter.BoxBlur(1 + side // 96))
    return image


def _coloured(stream: np.random.Generator, draw: ImageDraw.ImageDraw, side: int) -> None:
    for _ in range(_below(stream, 1, 16)):
        x, y = (_below(stream, 0, side) for _ in range(2))
        size, colour = _size(stream, max(2, side // 6), side), _colour(stream)
        kind = _below(stream, 0, 5)
        width = 1 + size // _below(stream, 3, 12)
        if kind < 2:
            draw.polygon(_outline(stream, x, y, size), fill=colour)
        elif kind == 2:
            across, down = _CIRCLE[_below(stream, 0, _DIRECTIONS)]
            end = (x + across * size // _UNIT, y + down * size // _UNIT)
            draw.line([(x, y), end], fill=colour, width=width)
        elif kind == 3:
            box = (x - size, y - size, x + size, y + size)
            start = _below(stream, 0, 360)
            draw.arc(box, start, start + _below(stream, 60, 330), fill=colour, width=width)
        else:
            for step in range(0, 2 * size, 2 * width):
                draw.line([(x - size, y - size + step), (x + size, y - size + step)], colour, width)


def _strokes(stream: np.random.Generator, side: int) -> Image.Image:
    """A sign of a few thick strokes, light on dark or the reverse, in grey, with some noise."""
    from PIL import Image

    paper, ink = _below(stream, 0, 40), _below(stream, 160, 256)
    if _below(stream, 0, 2):
        paper, ink = 255 - paper, 255 - ink
    ground = Image.new("RGB", (side, side), (paper,) * 3)

    def lines(stream: np.random.Generator, draw: ImageDraw.ImageDraw, side: int) -> None:
        width = max(1, side * _below(stream, 5, 15) // 100)
        for _ in range(_below(stream, 1, 5)):
            points = stream.integers(side // 8, side - side // 8, (4, 2))
            path = (
                _curve(points) if _below(stream, 0, 3) else [tuple(map(int, p)) for p in points[:2]]
            )
            draw.line(path, fill=(ink,) * 3, width=width, joint="curve")
            for x, y in (path[0], path[-1]):
                half = width // 2
                draw.ellipse((x - half, y - half, x + half, y + half), fill=(ink,) * 3)

    image = np.asarray(_drawn(stream, side, ground, lines), np.int32)
    spread = _below(stream, 1, 16)
    grain = stream.integers(-spread, spread + 1, (side, side, 1)).astype(np.int32)
    return Image.fromarray(np.clip(image + grain, 0, 255).astype(np.uint8))


def _curve(points: Array, steps: int = 16) -> list[tuple[int, int]]:
    """Points of a cubic Bezier curve through the first and the last of four, in whole numbers."""
    path = []
    for step in range(steps + 1):
        rest = steps - step
        shares = np.array((rest**3, 3 * rest**2 * step, 3 * rest * step**2, step**3))
        x, y = (int(value) for value in (shares[:, None] * points).sum(axis=0) // steps**3)
        path.append((x, y))
    return path


def _silhouette(stream: np.random.Generator, side: int) -> Image.Image:
    """A grey thing with a texture in the middle of a plain ground."""
    from PIL import Image, ImageDraw

    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    for _ in range(_below(stream, 2, 6)):
        x, y = (side // 2 + _below(stream, -side // 6, side // 6 + 1) for _ in range(2))
        size = _below(stream, side // 8, side // 3)
        draw.polygon(_outline(stream, x, y, size), fill=255)
    ground, grey = _below(stream, 0, 30), _below(stream, 90, 230)
    inside = grey + _field(stream, side, 4) * _below(stream, 10, 90) // 256
    if _below(stream, 0, 2):
        ground, inside = 255 - ground, 255 - inside
    pixels = np.where(np.asarray(mask) > 0, inside, ground)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).convert("RGB")
