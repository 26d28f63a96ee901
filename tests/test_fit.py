"""Training: the schedule, the step against a plain loop, and batches that depend on the seed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import draw
from PIL import Image
from torch import nn
from torch.nn import functional

from qvec_cli.data.datasets import Samples, open_task
from qvec_cli.data.folders import read_folder
from qvec_cli.learn.batches import PreparedSplit, TrainingBatches, decode
from qvec_cli.learn.fit import TrainingRun, learning_rate, warmup_steps
from qvec_cli.model import build
from qvec_cli.model.configuration import Model
from qvec_cli.specs import Recipe, Silence


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.GELU(), nn.Linear(16, 3))


class Fixed(TrainingBatches):
    """Batches that a test knows."""

    def __init__(self, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.fixed = batches

    def __len__(self) -> int:
        return len(self.fixed)

    def epoch(self, epoch: int, skip: int = 0) -> Any:
        return iter(self.fixed[skip:])


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=generator),
            torch.randint(0, 3, (6,), generator=generator),
        )
        for _ in range(count)
    ]


def normalise(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255 - 0.5


@pytest.mark.parametrize(("clip", "smoothing"), [(1.0, 0.0), (0.01, 0.1), (0.0, 0.0)])
def test_training_is_a_plain_loop_of_torchs_own_parts(clip: float, smoothing: float) -> None:
    recipe = Recipe(3, 1e-2, 0.1, 4, clip, 6, smoothing)
    data, network, reference = batches(5), linear(), linear()
    fit = TrainingRun(network, Fixed(data), recipe, normalise, Silence())
    fit.run(lambda: None, dict)

    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-2, weight_decay=0.1)
    total, warmup = 15, 4

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for images, labels in data * 3:
        loss = functional.cross_entropy(
            reference(normalise(images)), labels, label_smoothing=smoothing
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reference.parameters(), clip or math.inf)
        optimizer.step()
        schedule.step()
    for ours, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    assert fit.at.history[-1]["loss"] < fit.at.history[0]["loss"]


def test_the_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    for warmup, total in ((0, 10), (1, 10), (4, 10), (500, 2000)):
        recipe = Recipe(lr=0.5, warmup_steps=warmup)
        rates = [learning_rate(recipe, step, total) for step in range(total)]
        peak = max(warmup - 1, 0)
        assert rates[peak] == 0.5
        assert rates[: peak + 1] == sorted(rates[: peak + 1])
        assert rates[peak:] == sorted(rates[peak:], reverse=True)
        assert 0 < rates[-1] < 0.5 * 3 / (total - warmup)


def test_a_warm_up_that_the_run_would_not_outlast_is_a_tenth() -> None:
    for asked, total, steps in ((500, 2000, 500), (500, 500, 50), (500, 6, 0), (3, 4, 3)):
        assert warmup_steps(Recipe(warmup_steps=asked), total) == steps


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    folder: Path = draw(tmp_path_factory.mktemp("batches") / "d", ("x", "y"), 20, 4, seed=2)
    return open_task(str(folder), None).split("train")


MODEL = Model(
    "none",
    2,
    {},
    {
        "input_size": [3, 32, 32],
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
    },
)


def training(samples: Samples, seed: int, workers: int, *, augmented: bool) -> TrainingBatches:
    view = PreparedSplit(samples, build.transform(MODEL, augment=augmented), 3, workers)
    return TrainingBatches(view, seed=seed, batch_size=8, augmented=augmented, listener=Silence())


def test_batches_depend_on_seed_and_epoch_and_not_on_workers(samples: Samples) -> None:
    def epoch(seed: int, number: int, workers: int, *, augmented: bool) -> torch.Tensor:
        made = training(samples, seed, workers, augmented=augmented)
        return torch.cat([images for images, _ in made.epoch(number)])

    for augmented in (True, False):
        first = epoch(0, 0, 0, augmented=augmented)
        assert torch.equal(first, epoch(0, 0, 2, augmented=augmented))
        assert not torch.equal(first, epoch(0, 1, 0, augmented=augmented))
        assert not torch.equal(first, epoch(1, 0, 0, augmented=augmented))


def test_an_epoch_can_be_entered_anywhere(samples: Samples) -> None:
    for augmented in (True, False):
        made = training(samples, 0, 0, augmented=augmented)
        whole, rest = list(made.epoch(3)), list(made.epoch(3, skip=2))
        assert len(rest) == len(whole) - 2
        for (ours, labels), (theirs, same) in zip(whole[2:], rest, strict=True):
            assert torch.equal(ours, theirs)
            assert torch.equal(labels, same)


def test_every_image_is_seen_once_an_epoch(samples: Samples) -> None:
    view = PreparedSplit(samples, build.transform(MODEL, augment=False), 3)
    images, _ = decode(view, Silence())
    made = training(samples, 0, 0, augmented=False)
    seen = torch.cat([batch for batch, _ in made.epoch(0)])
    assert sorted(map(hash, map(str, seen.flatten(1).tolist()))) == sorted(
        map(hash, map(str, images.flatten(1).tolist()))
    )


def test_drawing_batches_leaves_torchs_own_stream_alone(samples: Samples) -> None:
    """Twins draw dropout from it, and must not hear of their images."""
    before = torch.get_rng_state()
    list(training(samples, 0, 0, augmented=True).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_decoded_images_are_timms_transform_of_the_files(samples: Samples) -> None:
    transform = build.transform(MODEL, augment=False)
    images, labels = decode(PreparedSplit(samples, transform, 3, workers=2), Silence())
    for index in (0, 17, len(samples) - 1):
        expected = torch.as_tensor(transform(samples.load(index).convert("RGB")))
        assert torch.equal(images[index], expected)
        assert labels[index] == samples.labels[index]


class Notes(Silence):
    """Hears notes as a terminal does: each once."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def note(self, text: str, about: str | None = None) -> None:
        self.texts.setdefault(about or text, text)


def test_images_that_exif_turns_are_counted_and_left_as_they_are(tmp_path: Path) -> None:
    """Orientations 2 to 8 turn an image, 1 and none do not; processes count as one does."""
    folder = draw(tmp_path / "d", ("x", "y"), 10, 1, seed=0)
    for number, file in enumerate(sorted(folder.glob("train/*/*.png"))):
        with Image.open(file) as image:
            exif = Image.Exif()
            exif[0x0112] = number % 9
            image.save(file, **({"exif": exif} if number % 9 else {}))
    samples, upright = read_folder(folder).splits["train"], build.transform(MODEL, augment=False)
    turned = sum(number % 9 > 1 for number in range(20))
    for workers in (0, 2):
        heard = Notes()
        view = PreparedSplit(samples, upright, 3, workers, "train", "d")
        images, _ = decode(view, heard)
        (text,) = heard.texts.values()
        assert text.startswith(f"d: {turned} of 20 images of train are turned by EXIF, which is ")
        flags: Any = {"seed": 0, "batch_size": 8, "augmented": True}
        streamed = TrainingBatches(view, **flags, listener=(again := Notes()))
        assert len(list(streamed.epoch(0))) == len(streamed)
        assert again.texts == heard.texts
        assert torch.equal(images[6], torch.as_tensor(upright(samples.load(6).convert("RGB"))))
