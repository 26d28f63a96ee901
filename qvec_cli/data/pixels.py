"""Images of any kind as 8-bit RGB or grey pixels."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from qvec_cli.errors import DataError, SpecError

_KINDS: Final = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k"),
    "DIB": (".dib",),
    "ICO": (".ico",),
}
"""Formats that PIL decodes itself, and their suffixes. Others call programs, as PostScript does,
or are recognised in what is no image."""

SUFFIXES: Final = frozenset(suffix for kind in _KINDS.values() for suffix in kind)
"""How the names of image files end, in lower case."""

MOST_PIXELS: Final = 500_000_000
"""Of an image that is decoded, which takes 2 GB. A camera of today takes 200 million."""

_TURNED: Final = range(2, 9)  # EXIF orientations; 1 is upright
_ORIENTATION: Final = 0x0112
_SIXTEEN_BITS: Final = ("PNG", "PPM")  # formats with at most so many, which PIL may read as "I"


def open_image(path: str) -> Image.Image:
    """Decodes an image file whole, in the mode it has; an EXIF orientation is not followed.

    Animations are their first picture. Raises DataError: the file is missing, empty, cut short,
    no image, or has more than ``MOST_PIXELS``.
    """
    try:
        with decoding(), Image.open(path, formats=_formats()) as image:
            image.load()
            return image
    except Exception as error:  # decoders of hostile files raise almost anything
        hint = "Repair or remove the file; no other image is put in its place."
        raise undecoded(f"{path}:", error, _reason(path, error), hint) from None


@contextmanager
def decoding() -> Iterator[None]:
    """Where PIL decodes: its warnings are dropped, and ``MOST_PIXELS`` is its limit."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MOST_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata of sound pixels, as ImageNet has them
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def undecoded(image: str, error: Exception, reason: str, hint: str | None = None) -> DataError:
    """The error of an image that is too large, or else could not be decoded for a reason."""
    if not isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        return DataError(f"{image} {reason}", hint=hint)
    size = re.search(r"\d+", str(error))
    count = f"{int(size[0]) / 1e6:,.0f} megapixels" if size else "too many pixels"
    return DataError(
        f"{image} has {count}, more than the {MOST_PIXELS / 1e6:.0f} that are decoded",
        hint="Scale it down or remove it; no other image is put in its place.",
    )


def is_turned(image: Image.Image) -> bool:
    """Whether EXIF wants a decoded image shown turned or mirrored; PIL itself turns TIFFs."""
    if "exif" not in image.info:
        return False
    try:
        with decoding():
            return image.getexif().get(_ORIENTATION) in _TURNED
    except Exception:  # EXIF of hostile files, as above; the pixels are sound
        return False


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(kind for kind in _KINDS if kind in Image.OPEN)  # old Pillows have no AVIF


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """An image as the network's input has it: "RGB" for 3 channels, "L" for 1.

    Transparency is dropped, as timm and torchvision do. 16-bit greys are divided by 257; PIL alone
    would clip them to white. Other deep greys declare no range, and the smallest that holds their
    maximum is taken, its end as white: 255, 65,535, 2^24 - 1 or 2^31 - 1 of 32-bit integers ("I"),
    1, 255 or 65,535 of floats ("F"). Negative values and NaN become black.
    Raises SpecError: another number of channels; DataError: a colour space that PIL cannot convert.
    """
    if channels not in (1, 3):
        raise SpecError(f"--in-chans {channels}: images have 1 or 3 channels")
    mode = "RGB" if channels == 3 else "L"
    if image.mode == mode:
        return image
    try:
        if image.mode == "F" or image.mode.startswith("I"):
            return _eight_bits(image).convert(mode)
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA")  # straight to RGB, PIL warns of the lost transparency
        return image.convert("RGB").convert(mode)
    except ValueError:
        where = getattr(image, "filename", "") or "an image"
        raise DataError(f"{where}: mode {image.mode} cannot become {mode}") from None


def cause(error: Exception) -> str:
    """What a foreign error says, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    ranges = [65535]
    if image.mode == "F":
        ranges = [1, 255, 65535]
    elif image.mode == "I" and image.format not in _SIXTEEN_BITS:
        ranges = [255, 65535, (1 << 24) - 1, (1 << 31) - 1]
    white = next((top for top in ranges if values.max() <= top), ranges[-1])
    return Image.fromarray(np.rint(values.clip(0, white) * (255 / white)).astype(np.uint8))


def _reason(path: str, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        empty = Path(path).stat().st_size == 0
        return "is empty" if empty else "is not an image that this Pillow reads"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"cannot be decoded: {cause(error)}"
