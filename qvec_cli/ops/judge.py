"""The float receiver's answers to proxy images, and how far a quantized network's are from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from torch import Tensor

from qvec_cli.checkpoint.dtypes import Array
from qvec_cli.learn.agreement import (
    Outputs,
    choose_measure,
    distances,
    diversity,
    information,
    log_softmax,
    outputs,
)
from qvec_cli.learn.noise import noise
from qvec_cli.learn.samples import Part, Task
from qvec_cli.model.targets import head_of
from qvec_cli.ops.examples import Examples
from qvec_cli.ops.proxies import Proxies
from qvec_cli.ops.trial import Trial
from qvec_cli.specs import Listener, Loading, Measure, Silence

_NOISES: Final = 64
"""Noise images that proxies are compared with."""

_CLOSE: Final = 1.15
"""Proxies whose features differ less than so many times as those of 1/f noise are close to noise.

Measured on seven networks of the tiny example and four of the real one: pictures of seven data sets
1.23 times and more, white noise at most 0.39.
"""


@dataclass(frozen=True, slots=True)
class Judge:
    """Images, the float answers to them, and the measure that suits these."""

    trial: Trial  # of the receiver; its network's weights are overwritten
    model: dict[str, Any]
    images: Tensor  # uint8 [N, C, H, W]
    teacher: Outputs
    measure: Measure

    def answers(self) -> Outputs:
        """Of the network as it stands."""
        return _answers(self.trial, self.model, self.images)

    def answers_at(self, trial: Trial, lam: float) -> Outputs:
        """Of Q(theta_R + lambda * rho)."""
        trial.place(lam)
        return self.answers()

    def distances(self, found: Outputs) -> Array:
        """How far each image's answer is from the float one."""
        return distances(self.teacher, found, self.measure)

    @property
    def chances(self) -> Array:
        """Class probabilities of the float receiver, float64 [N, C]."""
        return np.exp(log_softmax(self.teacher.logits))


def load_judge(
    trial: Trial,
    model: dict[str, Any],
    proxies: Proxies,
    listener: Listener,
    measure: Measure | None = None,
) -> Judge:
    """Decodes the proxies and asks the float receiver.

    Args:
        trial: of the receiver.
        model: its configuration.
        proxies: images that have been found.
        listener: hears of the decoding.
        measure: how answers are compared; None: what suits the answers.
    """
    images = proxies.decoded(listener)
    trial.put(iter(trial.theta.items()))
    teacher = _answers(trial, model, images)
    return Judge(trial, model, images, teacher, measure or choose_measure(teacher))


def told(judge: Judge, proxies: Proxies, listener: Listener) -> dict[str, Any]:
    """What the proxies are to the model, for the metrics; says so where they are close to noise."""
    side = int(judge.model["pretrained_cfg"]["input_size"][-1])
    count = min(_NOISES, len(judge.images))
    sample = Task("noise", ("noise",), {"train": Part(noise(side).splits["train"], 0, count)})
    images, _ = Examples(sample, judge.model, (0,), Loading()).decoded("train", Silence())
    judge.trial.put(iter(judge.trial.theta.items()))
    floor = diversity(_answers(judge.trial, judge.model, images))
    own = diversity(judge.teacher)
    close = own < _CLOSE * floor
    if proxies.only_noise:
        listener.note("--proxy noise: a choice by noise is a rough one; any pictures do better")
    elif close:
        listener.note(
            f"the proxies are close to noise for this model: its features differ by {own:.2f} "
            f"between them, by {floor:.2f} between images of noise"
        )
    return {
        "sources": proxies.facts(),
        "n": len(judge.images),
        "information": information(judge.teacher),
        "diversity": own,
        "diversity_of_noise": floor,
        "close_to_noise": bool(close or proxies.only_noise),
    }


def _answers(trial: Trial, model: dict[str, Any], images: Tensor) -> Outputs:
    return outputs(
        trial.network,
        images,
        head=head_of(trial.network, model),
        normalise=trial.normalise,
        batch_size=trial.batch_size,
    )
