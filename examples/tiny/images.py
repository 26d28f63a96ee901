"""Writes the small image folders of the offline demo: OUT/<task>/{train,test}/<class>/*.png.

    python images.py OUT [--tasks TASK...] [--fashion DIR]

Every picture is 28 x 28 grey, light on dark. No network is needed, and the same versions of
Pillow, matplotlib and scikit-learn write the same bytes.

=========  ===============================================================  =======  =====  ====
task       pictures                                                         classes  train  test
=========  ===============================================================  =======  =====  ====
digits     real: handwritten, UCI (scikit-learn), enlarged from 8 x 8            10  1,297   500
fashion    real: Fashion-MNIST from Debian's ``dataset-fashion-mnist``,          10  2,000   800
           left out where that package is not installed
latin      lower-case letters, drawn                                             26  2,000   800
greek      lower-case letters, drawn                                             25  2,000   800
cyrillic   lower-case letters, drawn                                             32  2,000   800
armenian   lower-case letters, drawn                                             38  2,000   800
georgian   Mkhedruli letters, drawn                                              33  2,000   800
base       what the base model is trained on, drawn; written when asked for     400 16,000   800
=========  ===============================================================  =======  =====  ====

Drawn pictures are glyphs of the twelve DejaVu text fonts that come with matplotlib, warped,
blurred and made noisy at random. **Train and test share the fonts and differ in the random draw.**
A glyph that a font lacks is not drawn with that font.

The base has seen no digit, no clothes, and no letter of the five alphabets above. It is trained
on Hebrew, Arabic (isolated forms), Lao, N'Ko, Tifinagh, a part of the Canadian syllabics,
arrows, mathematical operators and miscellaneous symbols, drawn in the same fonts and with the same
distortions: other shapes, but the same renderer. So alphabets are near to the base, and digits
and clothes are far.
"""

from __future__ import annotations

import argparse
import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import get_data_path
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = 28  # pixels, of a picture
CANVAS = 56  # pixels, of the clean glyph that a picture is warped from
BOX = 40  # pixels, the longer side of that glyph
FASHION = Path("/usr/share/datasets/fashion-mnist")
FACES = [
    "Sans",
    "Sans-Bold",
    "Sans-Oblique",
    "Sans-BoldOblique",
    "Serif",
    "Serif-Bold",
    "Serif-Italic",
    "Serif-BoldItalic",
    "SansMono",
    "SansMono-Bold",
    "SansMono-Oblique",
    "SansMono-BoldOblique",
]


class Picture(NamedTuple):
    """One image and the name of its class."""

    label: str
    image: Image.Image


@dataclass(frozen=True, slots=True)
class Script:
    """A set of glyphs, and how many pictures to draw of it."""

    ranges: tuple[tuple[int, int], ...]  # of Unicode, both ends included
    train: int = 2000
    test: int = 800
    classes: int | None = None  # keep this many glyphs, evenly spread; None: all


SCRIPTS = {
    "latin": Script(((0x0061, 0x007A),)),
    "greek": Script(((0x03B1, 0x03C9),)),
    "cyrillic": Script(((0x0430, 0x044F),)),
    "armenian": Script(((0x0561, 0x0586),)),
    "georgian": Script(((0x10D0, 0x10F0),)),
    "base": Script(
        (
            (0x05D0, 0x05EA),  # Hebrew
            (0x0627, 0x063A),  # Arabic
            (0x0641, 0x064A),  # Arabic, second part
            (0x07CA, 0x07E7),  # N'Ko
            (0x0E81, 0x0EAE),  # Lao
            (0x1401, 0x14FF),  # Canadian syllabics, first part
            (0x2190, 0x21FF),  # arrows
            (0x2200, 0x22FF),  # mathematical operators
            (0x2600, 0x26B8),  # miscellaneous symbols
            (0x2D30, 0x2D65),  # Tifinagh
        ),
        train=16000,
        classes=400,
    ),
}


# --- drawn pictures -------------------------------------------------------------------------------


@cache
def font_file(face: str) -> str:
    """Where matplotlib keeps a DejaVu face."""
    return str(Path(get_data_path(), "fonts", "ttf", f"DejaVu{face}.ttf"))


@cache
def coverage(face: str) -> frozenset[int]:
    """The code points that a face has a glyph for."""
    return frozenset(FT2Font(font_file(face)).get_charmap())


def faces_of(code: int) -> list[str]:
    """The faces that can draw a code point; none of the others, which would draw an empty box."""
    return [face for face in FACES if code in coverage(face)]


def alphabet(script: Script) -> list[int]:
    """The code points of a script that at least one face can draw, thinned evenly if asked."""
    codes = [c for first, last in script.ranges for c in range(first, last + 1) if faces_of(c)]
    if script.classes is None:
        return codes
    return [codes[i * len(codes) // script.classes] for i in range(script.classes)]


@cache
def glyph(face: str, code: int) -> Image.Image:
    """The clean glyph, centred, its longer side BOX pixels of CANVAS (20 of 28, as in MNIST)."""
    font = ImageFont.truetype(font_file(face), 64, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = font.getbbox(chr(code))
    ink = Image.new("L", (round(right - left), round(bottom - top)))
    ImageDraw.Draw(ink).text((-left, -top), chr(code), fill=255, font=font)
    zoom = BOX / max(ink.size)
    ink = ink.resize([max(1, round(side * zoom)) for side in ink.size], Image.Resampling.BOX)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(ink, ((CANVAS - ink.width) // 2, (CANVAS - ink.height) // 2))
    return canvas


def warp(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """CANVAS to SIZE: turn by up to 15 degrees, shear, stretch by up to 20 %, shift by 2 pixels."""
    turn = rng.uniform(-0.26, 0.26)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    shear = np.array([[1.0, rng.uniform(-0.2, 0.2)], [0.0, 1.0]])
    matrix = rotation @ shear @ np.diag(rng.uniform(0.85, 1.2, 2)) * (CANVAS / SIZE)
    centre = np.full(2, SIZE / 2) + rng.uniform(-2, 2, 2)
    offset = np.full(2, CANVAS / 2) - matrix @ centre
    affine = (*matrix[0], offset[0], *matrix[1], offset[1])
    return image.transform((SIZE, SIZE), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)


def weather(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Blur, fade and add Gaussian noise, each by a random amount."""
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.8)))
    pixels = np.asarray(image) * rng.uniform(0.6, 1.0)
    pixels = pixels + rng.normal(0.0, rng.uniform(5.0, 30.0), pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def drawn(name: str, split: str) -> Iterator[Picture]:
    """The pictures of a script: every glyph equally often, in a random face that has it."""
    script = SCRIPTS[name]
    codes = alphabet(script)
    rng = np.random.default_rng(zlib.crc32(f"{name}/{split}".encode()))
    for i in range(script.train if split == "train" else script.test):
        code = codes[i % len(codes)]
        clean = glyph(rng.choice(faces_of(code)), code)
        yield Picture(f"u{code:04x}", weather(warp(clean, rng), rng))


# --- real pictures --------------------------------------------------------------------------------


def digits(split: str) -> Iterator[Picture]:
    """The 1,797 handwritten digits of scikit-learn; 500 of them, stratified, are the test split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    order = range(len(labels))
    chosen = dict(
        zip(
            ("train", "test"),
            train_test_split(order, test_size=500, stratify=labels, random_state=0),
            strict=True,
        )
    )[split]
    for i in chosen:
        small = Image.fromarray((images[i].reshape(8, 8) * (255 / 16)).astype(np.uint8))
        yield Picture(str(labels[i]), small.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def read_idx(path: Path) -> np.ndarray:
    """An array in LeCun's idx format, gzipped: magic (two zeros, type, rank), shape, bytes."""
    raw = gzip.decompress(path.read_bytes())
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", rank, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def fashion(split: str, folder: Path) -> Iterator[Picture]:
    """The first 200 (test: 80) pictures of each of the ten classes of Fashion-MNIST."""
    stem, each = {"train": ("train", 200), "test": ("t10k", 80)}[split]
    images = read_idx(folder / f"{stem}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{stem}-labels-idx1-ubyte.gz")
    for label in range(10):
        for i in np.flatnonzero(labels == label)[:each]:
            yield Picture(str(label), Image.fromarray(images[i]))


# --- folders --------------------------------------------------------------------------------------


def tasks(folder: Path) -> dict[str, Callable[[str], Iterator[Picture]]]:
    """Every task that can be written here, as a function of the split."""
    real = {"digits": digits}
    if (folder / "train-images-idx3-ubyte.gz").exists():
        real["fashion"] = partial(fashion, folder=folder)
    return real | {name: partial(drawn, name) for name in SCRIPTS}


def write(pictures: Iterator[Picture], folder: Path) -> int:
    """Write FOLDER/<class>/<number>.png and return how many."""
    number = -1
    for number, (label, image) in enumerate(pictures):
        path = folder / label / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return number + 1


def main() -> None:
    """Parse the command line and write the folders."""
    parser = argparse.ArgumentParser(description="Write the image folders of the offline demo.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write into")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="default: all but base")
    parser.add_argument("--fashion", type=Path, default=FASHION, metavar="DIR", help="idx files")
    args = parser.parse_args()
    known = tasks(args.fashion)
    chosen = args.tasks or [name for name in known if name != "base"]
    if unknown := set(chosen) - set(known):
        parser.error(f"not available: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    for name in chosen:
        counts = {
            split: write(known[name](split), args.out / name / split) for split in ("train", "test")
        }
        print(name, *(f"{split} {count}" for split, count in counts.items()), sep="\t")


if __name__ == "__main__":
    main()
