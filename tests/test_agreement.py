"""Distances between answers: those of other implementations, and 0 where answers are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from qvec_cli.errors import NotFiniteError
from qvec_cli.learn.forward import Outputs, outputs
from qvec_cli.selection.trial import (
    TELLING,
    WEIGHT,
    choose_measure,
    distances,
    diversity,
    information,
    log_softmax,
)
from qvec_cli.specs import Measure

Array = np.ndarray[Any, np.dtype[Any]]

RNG = np.random.default_rng(0)


def answers(n: int = 20, classes: int = 6, width: int = 9, scale: float = 3) -> Outputs:
    logits = scale * RNG.standard_normal((n, classes)).astype(np.float32)
    return Outputs(logits, RNG.standard_normal((n, width)).astype(np.float32))


def test_kl_is_torchs() -> None:
    teacher, student = answers(), answers()
    ours = torch.log_softmax(torch.from_numpy(teacher.logits).double(), 1)
    theirs = torch.log_softmax(torch.from_numpy(student.logits).double(), 1)
    wanted = functional.kl_div(theirs, ours, reduction="none", log_target=True).sum(1)
    assert np.allclose(distances(teacher, student, Measure.KL), wanted.numpy())


@pytest.mark.parametrize("scale", [0.1, 3, 1e4])
def test_kl_is_finite_and_at_least_zero_however_sure_the_answers_are(scale: float) -> None:
    found = distances(answers(scale=scale), answers(scale=scale), Measure.KL)
    assert np.isfinite(found).all()
    assert (found >= -1e-12).all()


@pytest.mark.parametrize("measure", Measure)
def test_answers_that_are_the_same_are_at_no_distance(measure: Measure) -> None:
    same = answers()
    found = distances(same, same, measure)
    assert found.shape == (20,)
    assert found.dtype == np.float64
    assert (found == 0).all()


def test_a_shift_of_all_logits_is_no_change() -> None:
    teacher = answers()
    shifted = Outputs(teacher.logits + np.float32(5), teacher.features)
    assert np.allclose(distances(teacher, shifted, Measure.KL), 0, atol=1e-6)


def test_both_is_the_sum_of_nats_and_weighted_features() -> None:
    teacher, student = answers(), answers()
    nats, features, both = (distances(teacher, student, measure) for measure in Measure)
    assert np.allclose(both, nats + WEIGHT * features)


@pytest.mark.parametrize("scale", [1e-3, 2, 1e3])
def test_the_distance_of_features_does_not_hang_on_their_unit(scale: float) -> None:
    teacher, student = answers(), answers()
    larger = [Outputs(o.logits, o.features * np.float32(scale)) for o in (teacher, student)]
    found = distances(larger[0], larger[1], Measure.FEATURES)
    assert np.allclose(found, distances(teacher, student, Measure.FEATURES), rtol=1e-4)


def test_the_unit_of_features_is_what_differs_between_images() -> None:
    """A student that sees the mean in every image is one unit away."""
    teacher = answers()
    mean = np.broadcast_to(teacher.features.mean(axis=0), teacher.features.shape)
    found = distances(teacher, Outputs(teacher.logits, mean), Measure.FEATURES)
    assert found.mean() == pytest.approx(1, rel=1e-5)


def test_log_softmax_is_torchs() -> None:
    logits = answers(scale=100).logits
    wanted = torch.log_softmax(torch.from_numpy(logits).double(), dim=1).numpy()
    assert np.allclose(log_softmax(logits), wanted)


def test_an_answer_that_is_always_the_same_has_no_information_and_no_diversity() -> None:
    row = answers(1)
    same = Outputs(np.repeat(row.logits, 8, axis=0), np.repeat(row.features, 8, axis=0))
    assert information(same) == pytest.approx(0, abs=1e-12)
    assert diversity(same) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("scale", [0.01, 1, 100])
def test_information_lies_between_nothing_and_the_logarithm_of_the_classes(scale: float) -> None:
    assert 0 <= information(answers(200, scale=scale)) <= np.log(6) + 1e-12


def test_sure_and_even_answers_hold_all_the_information_there_is() -> None:
    logits = 100 * np.eye(6, dtype=np.float32)
    assert information(Outputs(logits, logits)) == pytest.approx(np.log(6))


def test_diversity_is_a_share_that_does_not_hang_on_the_unit() -> None:
    some = answers()
    assert 0 < diversity(some) < 1
    larger = Outputs(some.logits, some.features * np.float32(50))
    assert diversity(larger) == pytest.approx(diversity(some), rel=1e-5)


def test_images_that_differ_in_one_direction_only_are_not_diverse() -> None:
    base, way = RNG.standard_normal((2, 9))
    line = base + np.arange(20)[:, None] * way
    assert diversity(Outputs(line, line)) == pytest.approx(0, abs=1e-12)
    plane = line + RNG.standard_normal((20, 1)) * RNG.standard_normal(9)
    assert diversity(Outputs(plane, plane)) > 1e-3


@pytest.mark.parametrize(
    ("logits", "wanted"),
    [
        (np.tile([1.0, 2, 3], (50, 1)), Measure.FEATURES),  # constant
        (np.zeros((50, 3)), Measure.FEATURES),
        (np.zeros((50, 1)), Measure.FEATURES),  # one class
        (np.random.default_rng(0).standard_normal((50, 2)) / 4, Measure.FEATURES),  # unsure
        (4 * np.random.default_rng(0).standard_normal((50, 10)), Measure.KL),
    ],
)
def test_where_classes_say_little_features_are_compared(logits: Array, wanted: Measure) -> None:
    found = Outputs(logits.astype(np.float32), logits.astype(np.float32))
    assert (information(found) >= TELLING) is (wanted is Measure.KL)
    assert choose_measure(found, Measure.KL) is wanted
    usual = Measure.FEATURES if wanted is Measure.FEATURES else Measure.BOTH
    assert choose_measure(found, Measure.BOTH) is usual


class Toy(nn.Module):
    """A network whose features are known."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(12, 4), nn.Linear(4, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.drop(self.body(images.flatten(1))))
        return found


def asked(network: Toy, images: torch.Tensor, head: nn.Module | None, size: int) -> Outputs:
    return outputs(network, images, head=head, normalise=lambda x: x / 255, batch_size=size)


@pytest.mark.parametrize("training", [True, False])
def test_outputs_are_logits_and_the_heads_input_in_evaluation_mode(training: bool) -> None:
    torch.manual_seed(0)
    network = Toy().train(training)
    images = torch.randint(0, 256, (10, 3, 2, 2), dtype=torch.uint8)
    found = asked(network, images, network.head, 4)
    assert network.training is training
    features = network.body((images / 255).flatten(1))
    assert np.allclose(found.features, features.detach().numpy(), atol=1e-6)
    assert np.allclose(found.logits, network.head(features).detach().numpy(), atol=1e-6)
    assert not network.head._forward_pre_hooks
    bare = asked(network, images, None, 3)
    assert np.array_equal(bare.features, bare.logits)


def test_a_network_that_is_broken_is_named() -> None:
    network = Toy()
    nn.init.constant_(network.head.bias, float("nan"))
    with pytest.raises(NotFiniteError, match="not finite"):
        asked(network, torch.zeros(2, 3, 2, 2, dtype=torch.uint8), network.head, 2)
    assert not network.head._forward_pre_hooks
