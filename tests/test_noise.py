"""Images of 1/f noise: each its own, the same every time, and with the spectrum of photographs."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from qvec_cli.data.noise import COUNT, NOISE, NoiseImages, noise

Array = np.ndarray[Any, np.dtype[Any]]


def pixels(side: int, index: int) -> Array:
    return np.asarray(NoiseImages(side).load(index), dtype=np.float64)


def slope(image: Array) -> float:
    """Of log power over log frequency, in rings, without the corners."""
    side = image.shape[0]
    power = np.abs(np.fft.fft2(image - image.mean())) ** 2
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None, :]) * side
    rings = range(2, side // 2)
    mean = [power[(radius >= r - 0.5) & (radius < r + 0.5)].mean() for r in rings]
    return float(np.polyfit(np.log(rings), np.log(mean), 1)[0])


@pytest.mark.parametrize("side", [1, 2, 7, 28, 32, 224])
def test_an_image_has_the_size_that_is_asked_for_and_three_channels(side: int) -> None:
    image = NoiseImages(side).load(3)
    assert image.size == (side, side)
    assert image.mode == "RGB"


def test_power_falls_as_the_square_of_frequency() -> None:
    """Amplitude as 1/f; white noise, whose power does not fall, is told apart."""
    found = np.mean([slope(pixels(64, i)[..., channel]) for i in range(8) for channel in range(3)])
    assert found == pytest.approx(-2, abs=0.3)
    white = np.random.default_rng(0).uniform(0, 255, (64, 64))
    assert slope(white) == pytest.approx(0, abs=0.3)


def test_an_image_hangs_on_its_number_alone() -> None:
    first, again, other = pixels(28, 5), pixels(28, 5), pixels(28, 6)
    assert np.array_equal(first, again)
    assert np.abs(first - other).mean() > 10


def test_another_process_draws_the_same() -> None:
    code = "import sys, hashlib; from qvec_cli.data.noise import NoiseImages; "
    code += "print(hashlib.sha256(NoiseImages(28).load(7).tobytes()).hexdigest())"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ours = hashlib.sha256(NoiseImages(28).load(7).tobytes()).hexdigest()
    assert done.stdout.strip() == ours


def test_colours_are_alike_and_not_the_same() -> None:
    images = np.stack([pixels(32, i) for i in range(16)]).reshape(-1, 3)
    correlation = np.corrcoef(images.T)
    assert 0.8 < correlation[0, 1] < 0.99


def test_grey_is_their_mixture() -> None:
    grey = np.asarray(NoiseImages(28).load(0).convert("L"), dtype=np.float64)
    assert 40 < grey.std() < 80
    assert 110 < grey.mean() < 145


def test_the_data_set_is_one_train_split_that_knows_its_size() -> None:
    task = noise(32)
    assert (task.name, [*task.splits]) == (NOISE, ["train"])
    assert len(task.split("train")) == COUNT
    assert task.digest == noise(32).digest
    assert task.digest != noise(64).digest
