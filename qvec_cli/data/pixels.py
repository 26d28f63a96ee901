"""Images of any kind as 8-bit RGB or grey pixels."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from qvec_cli.errors import DataError, SpecError


def open_image(path: str) -> Image.Image:
    """Decodes an image file whole, in the mode it has; an EXIF orientation is not followed.

    Raises DataError: the file is missing, empty, cut short, no image, or a decompression bomb.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata of sound pixels, as ImageNet has them
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return image
    except Exception as error:  # decoders of hostile files raise almost anything
        raise DataError(
            f"{path}: {_reason(path, error)}",
            hint="Repair or remove the file; no other image is put in its place.",
        ) from None


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """An image as the network's input has it: "RGB" for 3 channels, "L" for 1.

    Transparency is dropped, as timm and torchvision do. 16-bit greys ("I;16", "I") are scaled
    to 8 bits; PIL alone would clip them to white. Float greys ("F") declare no range: the
    smallest of 1, 255 and 65,535 that holds their maximum is taken as white.
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
    white = 65535.0
    if image.mode == "F":
        white = next((top for top in (1.0, 255.0) if values.max() <= top), white)
    return Image.fromarray(np.rint(values.clip(0, white) * (255 / white)).astype(np.uint8))


def _reason(path: str, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "is empty" if Path(path).stat().st_size == 0 else "is not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"cannot be decoded: {cause(error)}"
