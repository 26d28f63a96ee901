"""Any image that PIL opens becomes the same 8-bit pixels, and a broken one is named."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qvec_cli.data.pixels import open_image, to_mode
from qvec_cli.errors import DataError, SpecError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
GREY = Image.fromarray(RAMP)


def palette() -> Image.Image:
    image = GREY.convert("P")
    image.info["transparency"] = bytes([0, 128] * 128)
    return image


def rgba() -> Image.Image:
    image = GREY.convert("RGBA")
    image.putalpha(Image.fromarray(RAMP.T.copy()))
    return image


def deep(kind: str) -> Image.Image:
    return Image.fromarray((RAMP.astype(np.float64) * 257).astype(kind))


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "L": lambda: GREY,
    "RGB": lambda: GREY.convert("RGB"),
    "RGBA": rgba,
    "LA": lambda: GREY.convert("LA"),
    "CMYK": lambda: GREY.convert("RGB").convert("CMYK"),
    "YCbCr": lambda: GREY.convert("YCbCr"),
    "P": lambda: GREY.convert("P"),
    "P with transparency": palette,
    "I;16": lambda: deep("<u2"),
    "I;16B": lambda: deep(">u2"),
    "I": lambda: deep("<i4"),
    "F to 65535": lambda: deep("<f4"),
    "F to 255": lambda: Image.fromarray(RAMP.astype(np.float32)),
    "F to 1": lambda: Image.fromarray(RAMP.astype(np.float32) / 255),
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("channels", [1, 3])
def test_one_picture_has_the_same_pixels_in_every_mode(name: str, channels: int) -> None:
    image = PICTURES[name]()
    assert image.mode == name.split(maxsplit=1)[0]
    made = to_mode(image, channels)
    assert made.mode == {1: "L", 3: "RGB"}[channels]
    assert np.array_equal(np.asarray(made).reshape(16, 16, channels)[..., 0], RAMP)
    assert np.ptp(np.asarray(made).reshape(16, 16, channels), axis=2).max() == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_one_bit_is_black_and_white(channels: int) -> None:
    made = to_mode(Image.fromarray(RAMP > 100), channels)
    assert set(np.asarray(made).ravel().tolist()) == {0, 255}


@pytest.mark.parametrize("kind", [("tiff", "F"), ("tiff", "I;16"), ("png", "I;16"), ("pgm", "I")])
def test_deep_files_are_scaled_and_not_clipped(tmp_path: Path, kind: tuple[str, str]) -> None:
    suffix, mode = kind
    deep({"F": "<f4", "I": "<i4"}.get(mode, "<u2")).save(tmp_path / f"deep.{suffix}")
    made = to_mode(open_image(str(tmp_path / f"deep.{suffix}")), 1)
    assert np.array_equal(np.asarray(made), RAMP)


@pytest.mark.parametrize("name", ["P with transparency", "RGBA", "LA"])
def test_transparent_png_files_are_read_without_a_warning(tmp_path: Path, name: str) -> None:
    PICTURES[name]().save(tmp_path / "clear.png")
    made = to_mode(open_image(str(tmp_path / "clear.png")), 3)
    assert np.array_equal(np.asarray(made)[..., 0], RAMP)


def test_a_cmyk_jpeg_keeps_black_black(tmp_path: Path) -> None:
    image = Image.fromarray(np.repeat([0, 255], 32).astype(np.uint8).reshape(8, 8))
    image.convert("RGB").convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    made = np.asarray(to_mode(open_image(str(tmp_path / "print.jpg")), 1)).astype(int)
    assert made[0].max() < 10
    assert made[-1].min() > 245


def test_values_that_are_no_numbers_become_black() -> None:
    made = to_mode(Image.fromarray(np.array([[np.nan, 0.5, -3.0]], np.float32)), 1)
    assert np.asarray(made).tolist() == [[0, 128, 0]]


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_channel_counts_are_wrong_usage(channels: int) -> None:
    with pytest.raises(SpecError, match=f"--in-chans {channels}"):
        to_mode(GREY, channels)


def test_a_colour_space_without_a_way_to_rgb_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Image.Image, mode: str) -> Image.Image:
        raise ValueError("conversion not supported")  # as older Pillows say of LAB

    Image.new("LAB", (2, 2)).save(tmp_path / "lab.tif")
    image = open_image(str(tmp_path / "lab.tif"))
    monkeypatch.setattr(Image.Image, "convert", refuse)
    with pytest.raises(DataError, match=r"lab\.tif: mode LAB cannot become RGB"):
        to_mode(image, 3)


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(stream, kind)
    return stream.getvalue()


BROKEN = {
    "empty.png": (b"", "is empty"),
    "text.jpg": (b"not an image at all", "is not an image"),
    "cut.png": (encoded("PNG")[:2000], "cannot be decoded"),
    "cut.jpg": (encoded("JPEG")[:1000], "cannot be decoded"),
    "header.png": (encoded("PNG")[:20], ""),
    "cut.tif": (encoded("TIFF")[:3000], ""),
    "cut.gif": (encoded("GIF")[:1500], "cannot be decoded"),
    "cut.bmp": (encoded("BMP")[:300], "cannot be decoded"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named(tmp_path: Path, name: str) -> None:
    content, reason = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_image(str(tmp_path / name))
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gone.png", "."])
def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"No such file|Is a directory"):
        open_image(str(tmp_path / name))


@pytest.mark.parametrize("limit", [200, 100])
def test_a_decompression_bomb_is_an_error_and_not_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    GREY.save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match=r"bomb\.png: .*decompression bomb"):
        open_image(str(tmp_path / "bomb.png"))
