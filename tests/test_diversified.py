"""Pictures made to differ: by their number alone, and other pictures in every draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Drawer, call
from PIL import Image

from qvec_cli.data.diversified import DiversifiedImages
from qvec_cli.data.folders import read_flat
from qvec_cli.data.samples import Samples


@pytest.fixture
def letters(tmp_path: Path) -> Samples:
    """Ten pictures of two levels of grey."""
    folder = tmp_path / "letters"
    folder.mkdir()
    for number in range(10):
        pixels = np.full((20, 20), 255, np.uint8)
        pixels[4:16, number : number + 6] = 0
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return read_flat(folder).splits["train"]


def pixels(samples: Samples, number: int) -> np.ndarray:
    return np.asarray(DiversifiedImages(samples, 28).load(number)).astype(int)


def test_a_number_gives_one_picture_in_colour(letters: Samples) -> None:
    for number in range(len(letters)):
        picture = DiversifiedImages(letters, 28).load(number)
        assert (picture.size, picture.mode) == ((28, 28), "RGB")
        assert np.array_equal(pixels(letters, number), pixels(letters, number))
    assert len({pixels(letters, number).tobytes() for number in range(10)}) == 10


def test_most_are_changed_and_some_are_not(letters: Samples) -> None:
    """Each of three changes is made to half of them: an eighth is left alone."""
    many = _Repeated(letters, 400)
    plain = [np.asarray(many.load(n).convert("RGB").resize((28, 28), 3)) for n in range(400)]
    same = [np.array_equal(pixels(many, n), plain[n]) for n in range(400)]
    assert 0.06 < np.mean(same) < 0.2
    grey = [(pixels(many, n).std(axis=-1) == 0).all() for n in range(400)]
    assert 0.15 < np.mean(grey) < 0.4


class _Repeated:
    """The same pictures again and again, so that many numbers can be asked for."""

    def __init__(self, samples: Samples, count: int) -> None:
        self._samples, self._count = samples, count

    def __len__(self) -> int:
        return self._count

    def load(self, index: int) -> Image.Image:
        return self._samples.load(index % len(self._samples))


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
