"""How closely a quantized network follows its float self on images, without any label."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from torch import Tensor

from qvec_cli.data.noise import noise
from qvec_cli.data.samples import Subset, Task
from qvec_cli.inputs.images import Examples, Proxies
from qvec_cli.learn.forward import Array, Outputs, outputs
from qvec_cli.model.configuration import Model
from qvec_cli.model.targets import head_of
from qvec_cli.selection.trial import Trial
from qvec_cli.specs import Listener, Loading, Measure, Silence

TELLING: Final = 0.3
"""Nats of mutual information between image and class below which classes say little."""


def distances(teacher: Outputs, student: Outputs, measure: Measure) -> Array:
    """How far each image's answer has moved, float64 [N]; 0 is perfect agreement.

    Args:
        teacher: the float network's outputs for N images.
        student: those of the quantized network, for the same images.
        measure: which distance.
    """
    return MEASURES[measure](teacher, student)


def _kl(teacher: Outputs, student: Outputs) -> Array:
    """KL(softmax of the teacher || softmax of the student), nats."""
    ours, theirs = log_softmax(teacher.logits), log_softmax(student.logits)
    return np.asarray((np.exp(ours) * (ours - theirs)).sum(axis=1))


def _feature_change(teacher: Outputs, student: Outputs) -> Array:
    """The squared change of the classifier's input, of the teacher's mean squared deviation.

    The deviation is from the mean over the images: what all of them share tells nothing apart.
    """
    change = student.features.astype(np.float64) - teacher.features
    deviation = teacher.features - teacher.features.mean(axis=0, dtype=np.float64)
    length = float(np.square(deviation).sum(axis=1).mean())
    return np.asarray(np.square(change).sum(axis=1) / max(length, 1e-30))


MEASURES: Final[Mapping[Measure, Callable[[Outputs, Outputs], Array]]] = {
    Measure.KL: _kl,
    Measure.FEATURES: _feature_change,
}
"""A label-free measure is its word in specs, its function and its row here."""


def choose_measure(teacher: Outputs) -> Measure:
    """Classes, where the teacher tells the images apart by them; else features."""
    return Measure.KL if information(teacher) >= TELLING else Measure.FEATURES


def information(teacher: Outputs) -> float:
    """Mutual information between image and predicted class, nats: H(mean p) - mean H(p)."""
    logs = log_softmax(teacher.logits)
    chances = np.exp(logs)
    mean = chances.mean(axis=0)
    of_mean = -float((mean * np.log(np.maximum(mean, 1e-300))).sum())
    return of_mean + float((chances * logs).sum(axis=1).mean())


def diversity(teacher: Outputs) -> float:
    """How much the features of images differ, as a share of their mean squared length.

    Near 0 where a network sees the same in every image, as it does in white noise. The direction
    in which they differ most is left out: blank images differ in little else.
    """
    features = teacher.features.astype(np.float64)
    spread = np.square(np.linalg.svd(features - features.mean(axis=0), compute_uv=False))
    length = float(np.square(features).sum())
    return float(spread[1:].sum()) / max(length, 1e-30)


def log_softmax(logits: Array) -> Array:
    """Logarithms of class probabilities, float64 [N, classes]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


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
    model: Model
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

    def distances(self, student: Outputs) -> Array:
        """How far each image's answer is from the float one, [N]."""
        return distances(self.teacher, student, self.measure)

    @property
    def chances(self) -> Array:
        """Class probabilities of the float receiver, float64 [N, C]."""
        return np.exp(log_softmax(self.teacher.logits))


def load_judge(
    trial: Trial,
    model: Model,
    proxies: Proxies,
    listener: Listener,
    measure: Measure | None = None,
) -> Judge:
    """Decodes the proxies and asks the float receiver.

    Args:
        trial: of the receiver.
        model: its configuration.
        proxies: images, drawn and not yet decoded.
        listener: hears of the decoding.
        measure: how answers are compared; None: what suits the answers.
    """
    images = proxies.decoded(listener)
    trial.put(iter(trial.theta.items()))
    teacher = _answers(trial, model, images)
    return Judge(trial, model, images, teacher, measure or choose_measure(teacher))


def proxy_facts(judge: Judge, proxies: Proxies, listener: Listener) -> dict[str, Any]:
    """How much the proxies tell of the model, for the metrics; a note where that is little."""
    side = judge.model.input_size[-1]
    count = min(_NOISES, len(judge.images))
    sample = Task("noise", ("noise",), {"train": Subset(noise(side).splits["train"], 0, count)})
    images, _ = Examples(sample, judge.model, (0,), Loading()).decoded("train", Silence())
    judge.trial.put(iter(judge.trial.theta.items()))
    floor = diversity(_answers(judge.trial, judge.model, images))
    of_proxies = diversity(judge.teacher)
    close = of_proxies < _CLOSE * floor
    if proxies.only_noise:
        listener.note("--proxy noise: a choice by noise is a rough one; any pictures do better")
    elif close:
        listener.note(
            "the proxies are close to noise for this model: its features differ by "
            f"{of_proxies:.2f} between them, by {floor:.2f} between images of noise"
        )
    return {
        "sources": proxies.facts(),
        "n": len(judge.images),
        "information": information(judge.teacher),
        "diversity": of_proxies,
        "diversity_of_noise": floor,
        "close_to_noise": bool(close or proxies.only_noise),
    }


def _answers(trial: Trial, model: Model, images: Tensor) -> Outputs:
    return outputs(
        trial.network,
        images,
        head=head_of(trial.network, model),
        normalise=trial.normalise,
        batch_size=trial.batch_size,
    )
