"""Pictures made to differ: by their number alone, and other pictures in every draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Drawer, call
from PIL import Image

from qvec_cli.data.diversified import DiversifiedImages
from qvec_cli.data.folders import read_flat
from qvec_cli.data.samples import Subset


@pytest.fixture
def letters(tmp_path: Path) -> Subset:
    """Ten pictures of two levels of grey."""
    folder = tmp_path / "letters"
    folder.mkdir()
    for number in range(10):
        pixels = np.full((20, 20), 255, np.uint8)
        pixels[4:16, number : number + 6] = 0
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return Subset(read_flat(folder).splits["train"], 0, 10)


def pixels(samples: Subset, number: int) -> np.ndarray:
    return np.asarray(DiversifiedImages(samples, 28).load(number)).astype(int)


def test_a_number_gives_one_picture_in_colour(letters: Subset) -> None:
    for number in range(len(letters)):
        picture = DiversifiedImages(letters, 28).load(number)
        assert (picture.size, picture.mode) == ((28, 28), "RGB")
        assert np.array_equal(pixels(letters, number), pixels(letters, number))
    assert len({pixels(letters, number).tobytes() for number in range(10)}) == 10


def test_most_are_changed_and_some_are_not(tmp_path: Path) -> None:
    """Each of three changes is made to half of them; some of the grounds are grey themselves."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(300):
        Image.fromarray(np.full((20, 20), number % 256, np.uint8)).save(folder / f"{number}.png")
    many = Subset(read_flat(folder).splits["train"], 0, 300)
    grey = [(pixels(many, n).std(axis=-1) == 0).all() for n in range(300)]
    assert 0.25 < np.mean(grey) < 0.5
    flat = [len(np.unique(pixels(many, n))) == 1 for n in range(300)]
    assert 0.15 < np.mean(flat) < 0.35


def test_pieces_come_from_the_pictures_that_were_drawn(tmp_path: Path) -> None:
    """Others are held back, to judge by: their brightness is in none of these."""
    folder = tmp_path / "two kinds"
    folder.mkdir()
    for number in range(40):
        Image.fromarray(np.full((20, 20), 100 + number, np.uint8)).save(folder / f"{number:02}.png")
    whole = read_flat(folder).splits["train"]
    drawn = Subset(whole, 0, 20)
    known = {int(np.asarray(drawn.load(n)).max()) for n in range(20)}
    unchanged = 0
    for number in range(20):
        shown = pixels(drawn, number)
        if len(np.unique(shown)) <= 2 and (shown[..., 0] == shown[..., 1]).all():
            assert set(np.unique(shown)) <= known
            unchanged += 1
    assert unchanged > 2
    assert DiversifiedImages(drawn, 28).first(3).pictures.stop == 3


def test_calibration_takes_them_and_the_use_of_data_is_that_of_the_pictures(
    drawer: Drawer, tmp_path: Path
) -> None:
    """Another draw, and changed pictures, are other images, of which the digest tells."""
    out = tmp_path / "q.st"
    line = ("quantize", drawer.receiver, "--bits", 3, "--method", "gptq", "--calib-samples", 8)
    line = (*line, "--calib", drawer.donor_data, "-o", out, "--force", "--json")
    plain = call(*line).json
    results = [plain, *(call(*line, *words).json for words in (["--diversify"], ["--draw", 1]))]
    assert len({str(result["inputs"]) for result in results}) == 3
    assert {str(result["data_use"]) for result in results} == {str(plain["data_use"])}
    assert call(*line, "--draw", 0).json["inputs"] == plain["inputs"]
