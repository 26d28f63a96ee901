"""Any image that PIL opens becomes the same 8-bit pixels, and a broken one is named."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qvec_cli.data.pixels import is_turned, open_image, to_mode
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
    "I to 255": lambda: Image.fromarray(RAMP.astype(np.int32)),
    "I to 24 bits": lambda: Image.fromarray(RAMP.astype(np.int32) * 65793),
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


def test_integers_of_32_bits_are_scaled_by_the_range_that_they_use(tmp_path: Path) -> None:
    """The nearest of 255 greys to value / white, in whole numbers."""
    for top, white in (
        *((1, 255), (255, 255), (256, 65535), (65535, 65535), (65536, 2**24 - 1)),
        *((2**24 - 1, 2**24 - 1), (2**24, 2**31 - 1), (2**31 - 1, 2**31 - 1)),
    ):
        values = [0, top // 3, top // 2, top, -1, -top]
        Image.fromarray(np.array([values], np.int32)).save(tmp_path / "deep.tif")
        image = open_image(str(tmp_path / "deep.tif"))
        assert image.mode == "I"
        grey = [(2 * 255 * max(value, 0) + white) // (2 * white) for value in values]
        assert np.asarray(to_mode(image, 1)).tolist() == [grey]


def test_a_dark_picture_of_16_bits_stays_dark(tmp_path: Path) -> None:
    """PGM and PNG say their range, though PIL may read them as 32-bit integers."""
    for suffix in ("pgm", "png"):
        Image.fromarray(RAMP.astype(np.uint16)).save(tmp_path / f"dark.{suffix}")
        made = to_mode(open_image(str(tmp_path / f"dark.{suffix}")), 1)
        assert np.asarray(made).max() == 1


def test_what_exif_turns_is_seen_in_every_format_and_not_followed(tmp_path: Path) -> None:
    """But PIL itself turns TIFFs, for timm too."""
    wide = np.tile(RAMP, (1, 2))
    for suffix, saved in product(("jpg", "png", "webp", "avif", "tif"), (None, 1, 2, 6, 8, 9)):
        exif = Image.Exif()
        exif[0x0112] = saved
        Image.fromarray(wide).save(
            tmp_path / f"a.{suffix}", **({"exif": exif} if saved else {}), lossless=True
        )
        image = open_image(str(tmp_path / f"a.{suffix}"))
        assert is_turned(image) == (saved in {2, 6, 8} and suffix != "tif"), (suffix, saved)
        if suffix in {"png", "webp"}:
            assert np.array_equal(np.asarray(to_mode(image, 1)), wide)
        if (suffix, saved) == ("tif", 2):
            assert np.array_equal(np.asarray(image), wide[:, ::-1])


def test_damaged_exif_does_no_harm(tmp_path: Path) -> None:
    for exif in (b"Exif\0\0II*\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0" + b"\xff" * 40):
        GREY.save(tmp_path / "a.jpg", exif=exif)
        assert not is_turned(open_image(str(tmp_path / "a.jpg")))


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


def test_what_calls_other_programs_is_no_image_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*args: object, **options: object) -> None:
        raise AssertionError("a program was looked for")

    monkeypatch.setattr("shutil.which", start)
    GREY.save(tmp_path / "page.eps")
    (tmp_path / "page.eps").rename(tmp_path / "page.png")
    with pytest.raises(DataError, match=r"page\.png: is not an image"):
        open_image(str(tmp_path / "page.png"))


@pytest.mark.parametrize("name", ["gone.png", "."])
def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"No such file|Is a directory"):
        open_image(str(tmp_path / name))


def tall(width: int, height: int) -> bytes:
    """The head of a PNG of one bit a pixel that is as large as it says; its pixels are missing."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    checked = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + checked + struct.pack(">I", 1) + b"IDAT\0\0\0\0\0"


def test_a_large_honest_picture_is_decoded_where_pillow_would_warn_of_a_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in (200, 100):  # of 256 pixels: beyond it Pillow warns, beyond twice as much it fails
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        GREY.save(tmp_path / "large.png")
        assert np.array_equal(np.asarray(open_image(str(tmp_path / "large.png"))), RAMP)
        assert limit == Image.MAX_IMAGE_PIXELS


def test_a_decompression_bomb_is_an_error_and_not_a_warning(tmp_path: Path) -> None:
    """Its size is checked before a pixel is decoded."""
    for width, size in ((25_000, "600 megapixels"), (100_000, "2,400 megapixels")):
        path = tmp_path / f"{width}.png"
        path.write_bytes(tall(width, 24_000))
        with pytest.raises(DataError) as caught:
            open_image(str(path))
        assert str(caught.value) == f"{path}: has {size}, more than the 500 that are decoded"
        assert "Scale it down" in str(caught.value.hint)
