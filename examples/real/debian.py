"""The three far tasks of the real study: pictures in colour that packages of Debian carry.

They are far from every other task, and took no part in shaping the generated pictures: the
generator is that of commit 34b2806. A drawing is of the test split by a checksum of its name in the
package, so that one name in two icon themes is in one split.
"""

from __future__ import annotations

import io
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from images import Picture
from PIL import Image

SIZE = 56  # pixels, as written
MOST = {"train": 225, "test": 75}  # drawings of a class that are taken
LEAST = 24  # pixels of a pattern's shorter side; smaller ones are dots
QUARTER = 1 << 30  # of the 2^32 checksums of names, the test split's
LARGEST = 4_000_000  # pixels of a drawing; larger ones take long to decode

CLIPART = (
    "animals",
    "food",
    "geography",
    "office",
    "people",
    "recreation",
    "signs_and_symbols",
    "tools",
    "transportation",
)
ICONS = ("actions", "apps", "devices", "mimetypes", "places", "status")
THEMES = {
    "oxygen-icon-theme": "usr/share/icons/oxygen/base/64x64/",
    "mate-icon-theme": "usr/share/icons/mate/48x48/",
    "gnome-icon-theme": "usr/share/icons/gnome/48x48/",
}


def fetch(package: str, folder: Path) -> Path:
    """A package's archive, downloaded into FOLDER unless it is there already; not installed.

    Raises:
        SystemExit: it cannot be had.
    """
    known = sorted(folder.glob(f"{package}_*.deb"))
    if not known:
        command = ["apt-get", "download", "-q", package]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise SystemExit(f"error: {package} is a package of Debian: no apt-get here") from None
        known = sorted(folder.glob(f"{package}_*.deb"))
        if done.returncode != 0 or not known:
            reason = (done.stderr.strip().splitlines() or ["no such file"])[-1]
            raise SystemExit(f"error: {package} cannot be fetched: {reason}; try apt-get update")
    return known[0]


def files(package: str, folder: Path, under: str) -> Iterator[tuple[str, bytes]]:
    """Path below UNDER and bytes of each file of a package; links are left out."""
    archive = fetch(package, folder)
    unpacked = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE)
    with unpacked, tarfile.open(fileobj=unpacked.stdout, mode="r|") as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if member.isfile() and name.startswith(under):
                content = tar.extractfile(member)
                assert content is not None
                yield name.removeprefix(under), content.read()
    if unpacked.returncode != 0:
        raise SystemExit(f"error: {archive}: cannot be unpacked; remove it to fetch it again")


def clipart(split: str, folder: Path) -> Iterator[Picture]:
    """What is drawn here? Open Clip Art by its folders."""
    package, under = "openclipart-png", "usr/share/openclipart/png/"
    yield from _by_folder(split, files(package, folder, under), CLIPART)


def icons(split: str, folder: Path) -> Iterator[Picture]:
    """What does this symbol stand for? Icons of KDE, MATE and GNOME by their folders."""
    content = (files(package, folder, under) for package, under in THEMES.items())
    yield from _by_folder(split, chain.from_iterable(content), ICONS)


def textures(split: str, folder: Path) -> Iterator[Picture]:
    """Which of GIMP's patterns is this a piece of? Turned, scaled and lit at random."""
    content = files("gimp-data", folder, "usr/share/gimp/2.0/patterns/")
    patterns = {Path(name).stem: _pattern(data) for name, data in content if name.endswith(".pat")}
    names = sorted(name for name, image in patterns.items() if min(image.size) >= LEAST)
    rng = np.random.default_rng(zlib.crc32(f"textures/{split}".encode()))
    for i in range(2000 if split == "train" else 500):
        name = names[i % len(names)]
        yield Picture(name, _piece(patterns[name], rng))


def _by_folder(
    split: str, content: Iterator[tuple[str, bytes]], classes: tuple[str, ...]
) -> Iterator[Picture]:
    """Drawings of some folders, some of each; those with the same bytes count once."""
    seen: dict[bytes, str] = {}
    for name, data in content:
        if name.endswith(".png") and Path(name).parts[0] in classes and _pixels(data) <= LARGEST:
            seen.setdefault(data, name)
    drawn = sorted((zlib.crc32(name.encode()), name, data) for data, name in seen.items())
    for label in classes:
        of_class = [(key, data) for key, name, data in drawn if Path(name).parts[0] == label]
        parted = [data for key, data in of_class if (key < QUARTER) == (split == "test")]
        for data in parted[: MOST[split]]:
            yield Picture(label, _on_white(data))


def _pixels(data: bytes) -> int:
    """Of a PNG, by its header."""
    width, height = struct.unpack(">II", data[16:24])
    return int(width * height)


def _on_white(data: bytes) -> Image.Image:
    """A drawing whole, in the middle of a white square."""
    with Image.open(io.BytesIO(data)) as opened:
        opened.thumbnail((4 * SIZE, 4 * SIZE))
        image = opened.convert("RGBA")
    side = max(image.size)
    ground = Image.new("RGBA", (side, side), "white")
    ground.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return ground.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def _pattern(data: bytes) -> Image.Image:
    """A file of GIMP's: sizes in a header, a name, then pixels."""
    header, _, width, height, depth, magic = struct.unpack(">IIIII4s", data[:24])
    assert magic == b"GPAT"
    pixels = np.frombuffer(data, np.uint8, width * height * depth, header)
    return Image.fromarray(pixels.reshape(height, width, depth).squeeze()).convert("RGB")


def _piece(pattern: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A square of the pattern, which repeats without end."""
    side = int(SIZE * rng.uniform(0.7, 1.4))
    pixels = np.asarray(pattern)
    rows, columns = (
        np.arange(start, start + side) % count
        for start, count in zip(
            rng.integers(pixels.shape[:2]).tolist(), pixels.shape[:2], strict=True
        )
    )
    turned = np.rot90(pixels[rows][:, columns], rng.integers(4))
    lit = np.clip(turned * rng.uniform(0.7, 1.3), 0, 255).astype(np.uint8)
    return Image.fromarray(lit).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
