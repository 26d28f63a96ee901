"""Generated pictures: the same bytes for a number, of every kind, and data that nobody has."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import Drawer, call
from PIL import Image

from qvec_cli.data import generated
from qvec_cli.data.generated import GeneratedImages


def pixels(side: int, number: int) -> np.ndarray:
    return np.asarray(GeneratedImages(side).load(number))


def test_a_number_gives_one_picture_and_others_give_others() -> None:
    for side in (8, 28, 65, 224):
        for number in range(0, 40, 3):
            picture = pixels(side, number)
            assert picture.shape == (side, side, 3)
            assert picture.dtype == np.uint8
            assert np.array_equal(picture, pixels(side, number))
        some = {pixels(side, number).tobytes() for number in range(40)}
        assert len(some) == 40


def test_the_bytes_are_those_of_version_1() -> None:
    """Whole numbers decide: a change of these is a new version of the generator."""
    digest = hashlib.sha256()
    for number in range(40):
        digest.update(pixels(56, number).tobytes())
    assert digest.hexdigest() == "aa0c3b825c0e4f8c88b5ccc1d58bdbec0d97c9f5a336ccbcf13ebc2ea0bd854f"


def test_every_kind_has_its_share() -> None:
    kinds = Counter(generated._style(number).__name__ for number in range(100))
    assert kinds == {"_leaves": 40, "_strokes": 30, "_shapes": 20, "_silhouette": 10}


def test_sizes_of_things_fall_with_the_third_power() -> None:
    """Twice as large is a quarter as frequent, of all that are at least as large."""
    stream = np.random.default_rng(0)
    sizes = np.array([generated._size(stream, 8, 10_000) for _ in range(20_000)])
    for size in (16, 32, 64):
        share = (sizes >= size).mean()
        assert share == pytest.approx((8 / size) ** 2, rel=0.15)


def test_a_network_of_one_channel_sees_them_in_grey(drawer: Drawer, tmp_path: Path) -> None:
    out = tmp_path / "q.st"
    args = ("--method", "gptq", "--calib", "generated", "--calib-samples", 8)
    line = ("quantize", drawer.receiver, "--bits", 3, *args, "-o", out, "--json")
    found = call(*line).json
    assert found["data_use"] == {"level": "none", "counts": {"generated": 8}}
    twice = call(
        "quantize", drawer.receiver, "--bits", 3, *args, "-o", out, "--force", "--json"
    ).json
    line = (*line[:6], "--calib", "generatd", "-o", tmp_path / "x.st")
    assert "Did you mean generated?" in call(*line, code=2).err
    assert twice["results"]["digest"] == found["results"]["digest"]


def test_pictures_writes_the_first_of_them_and_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    call("pictures", "--samples", 3, "--img-size", 20, "-o", out)
    assert sorted(path.name for path in out.iterdir()) == ["0000.png", "0001.png", "0002.png"]
    for number in range(3):
        with Image.open(out / f"{number:04d}.png") as image:
            assert np.array_equal(np.asarray(image), pixels(20, number))
    (out / "mine.txt").write_text("mine")
    assert "--force" in call("pictures", "-o", out, code=1).err
    call("pictures", "--samples", 1, "--img-size", 8, "-o", out, "--force")
    assert len(list(out.iterdir())) == 4
    assert "would write" in call("pictures", "-o", tmp_path / "x", "--dry-run").out
    for flags, code in ((("--samples", 5000), 2), (("-o", tmp_path / "no" / "such"), 1)):
        assert call("pictures", "-o", tmp_path / "y", *flags, code=code).errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drawn"]
