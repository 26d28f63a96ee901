"""Q(theta_R + lambda * rho) in memory: its accuracy, and its agreement with the float network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from qvec_cli.checkpoint.dtypes import Array, from_float32, to_float32
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.data.noise import noise
from qvec_cli.data.samples import Subset, Task
from qvec_cli.errors import MismatchError, NotFiniteError
from qvec_cli.inputs.images import Examples, Proxies
from qvec_cli.inputs.network import load_network
from qvec_cli.inputs.receiver import Receiver
from qvec_cli.learn.batches import Batch
from qvec_cli.learn.forward import Accuracy, Outputs, measure, outputs
from qvec_cli.model.build import normalise
from qvec_cli.model.configuration import Model
from qvec_cli.model.targets import head_of
from qvec_cli.quant.methods import quantize_weight
from qvec_cli.specs import Grid, Listener, Loading, Measure, Method, Silence
from qvec_cli.vector.arithmetic import apply


@dataclass(frozen=True, slots=True)
class Trial:
    """A receiver, a vector and images, loaded once and measured at many lambdas.

    What is measured is what ``patch``, ``quantize`` and ``eval`` give one after the other, to
    the bit: the same functions, and the same rounding to the receiver's number format.
    """

    network: nn.Module  # of the receiver, on its device; its weights are overwritten
    model: Model
    theta: Mapping[str, Array]  # every floating tensor of the receiver, float32
    dtypes: Mapping[str, str]  # its number formats
    rho: Mapping[str, Array]  # the vector, float32
    targets: frozenset[str]  # names of the weights to quantize
    grid: Grid
    method: Method
    images: Mapping[str, Batch]  # by split
    batch_size: int

    @property
    def device(self) -> str:
        """Where the network runs."""
        return str(next(self.network.parameters()).device)

    def score(self, lam: float, split: str) -> Accuracy:
        """Accuracy of Q(theta_R + lambda * rho) on a split."""
        return self.scores(lam, (split,))[split]

    def scores(self, lam: float, splits: Iterable[str]) -> dict[str, Accuracy]:
        """The same on several splits, for one quantization."""
        self.place(lam)
        return {split: self.measured(split) for split in splits}

    def float_score(self, split: str) -> Accuracy:
        """Accuracy of the receiver itself, not quantized."""
        self.place(None)
        return self.measured(split)

    def place(self, lam: float | None) -> None:
        """Makes the network Q(theta_R + lambda * rho), or for None theta_R itself.

        Raises NotFiniteError: a weight that is beyond its number format, or beyond the grid's.
        """
        weights = self.theta.items() if lam is None else self._quantized(lam)
        place = self.network.state_dict()
        with torch.no_grad():
            for name, weight in weights:
                place[name].copy_(torch.from_numpy(weight))

    def _quantized(self, lam: float) -> Iterator[tuple[str, Array]]:
        """Float32 arrays, one after the other; every target on the grid."""
        for name, theta in self.theta.items():
            weight = theta
            if name in self.rho:
                dtype = self.dtypes[name]
                with np.errstate(over="ignore", invalid="ignore"):
                    exact = apply(theta, self.rho[name], lam)
                weight = to_float32(from_float32(exact, dtype), dtype)
            if not np.isfinite(weight).all():
                raise NotFiniteError(f"{name} overflows {self.dtypes[name]}")
            if name in self.targets:
                weight = self._rounded(name, weight, lam)
            yield name, weight

    def _rounded(self, name: str, weight: Array, lam: float) -> Array:
        """A weight on the grid; what a vector makes too large for it is not finite."""
        try:
            return quantize_weight(name, weight, self.grid, self.method).restored
        except MismatchError as error:
            if lam == 0:
                raise
            raise NotFiniteError(str(error)) from None

    def measured(self, split: str) -> Accuracy:
        """Accuracy of the network as it stands."""
        images, labels = self.images[split]
        size = self.batch_size
        return measure(
            self.network, images, labels, normalise=normalise(self.model), batch_size=size
        )

    def answers(self, images: torch.Tensor) -> Outputs:
        """What the network as it stands makes of images, uint8 [N, C, H, W]."""
        return outputs(
            self.network,
            images,
            head=head_of(self.network, self.model),
            normalise=normalise(self.model),
            batch_size=self.batch_size,
        )


def load_trial(
    receiver: Receiver,
    splits: Iterable[str],
    device: str,
    listener: Listener,
    method: Method = Method.RTN,
) -> Trial:
    """A receiver in memory, to be rounded onto its grid, or else the paper's; without a vector.

    Another vector or grid goes in by ``dataclasses.replace``.
    """
    theta, examples = receiver.theta, receiver.examples
    return Trial(
        network=load_network(theta, receiver.model, device),
        model=receiver.model,
        theta=resident(theta),
        dtypes={name: entry.dtype for name, entry in theta.items()},
        rho={},
        targets=frozenset(receiver.targets),
        grid=receiver.grid or Grid(),
        method=method,
        images={split: examples.decoded(split, listener) for split in splits},
        batch_size=examples.loading.batch_size,
    )


def resident(checkpoint: Checkpoint) -> dict[str, Any]:
    """Every floating tensor of a file, float32, finite."""
    return {name: checkpoint.finite(name) for name, entry in checkpoint.items() if entry.floating}


# --- agreement with the float network -------------------------------------------------------------

TELLING: Final = 0.3
"""Nats of mutual information between image and class below which classes say little."""

WEIGHT: Final = 2.0
"""Of features beside nats, in ``both``: 1 to 4 chose alike on the tiny and the real network."""

_NOISES: Final = 64
"""Noise images that proxies are compared with."""

_CLOSE: Final = 1.15
"""Proxies whose features differ less than so many times as those of 1/f noise are close to noise.

Measured on seven networks of the tiny example and four of the real one: pictures of seven data sets
1.23 times and more, white noise at most 0.39.
"""


def distances(teacher: Outputs, student: Outputs, measure: Measure) -> Array:
    """How far each image's answer has moved, float64 [N]; 0 is perfect agreement.

    The teacher is the float network, the student the quantized one, on the same N images.
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


def _both(teacher: Outputs, student: Outputs) -> Array:
    """Nats, and the relative change of features ``WEIGHT`` times."""
    return _kl(teacher, student) + WEIGHT * _feature_change(teacher, student)


MEASURES: Final[Mapping[Measure, Callable[[Outputs, Outputs], Array]]] = {
    Measure.KL: _kl,
    Measure.FEATURES: _feature_change,
    Measure.BOTH: _both,
}
"""A label-free measure is its word in specs, its function and its row here."""


def choose_measure(teacher: Outputs, usual: Measure) -> Measure:
    """The usual one, where the teacher tells the images apart by classes; else features."""
    return usual if information(teacher) >= TELLING else Measure.FEATURES


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


@dataclass(frozen=True, slots=True)
class Judge:
    """Proxy images, the float answers to them, and the measure that suits these."""

    trial: Trial  # of the receiver; its network's weights are overwritten
    proxies: Proxies
    images: torch.Tensor  # uint8 [N, C, H, W]
    teacher: Outputs
    measure: Measure

    def answers(self) -> Outputs:
        """Of the network as it stands."""
        return self.trial.answers(self.images)

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

    def _noise(self) -> torch.Tensor:
        """Images of noise; of texts, their tokens in an order that was drawn."""
        model, count = self.trial.model, min(_NOISES, len(self.images))
        if model.reads_texts:
            tokens = self.images[:count].clone()
            real = tokens != model.pretrained_cfg["tokens"]["pad"]
            order = torch.randperm(int(real.sum()), generator=torch.Generator().manual_seed(0))
            tokens[real] = tokens[real][order]
            return tokens
        samples = Subset(noise(model.input_size[-1]).splits["train"], 0, count)
        task = Task("noise", ("noise",), {"train": samples})
        return Examples(task, model, (0,), Loading()).decoded("train", Silence())[0]

    def proxy_facts(self, listener: Listener) -> dict[str, Any]:
        """How much the proxies tell of the model, for the metrics; a note where that is little."""
        proxies, images = self.proxies, self._noise()
        self.trial.place(None)
        floor, of_proxies = diversity(self.trial.answers(images)), diversity(self.teacher)
        close = bool(proxies.real) and of_proxies < _CLOSE * floor
        if proxies.only_noise:
            listener.note("--proxy noise: a choice by noise is a rough one; any pictures do better")
        elif close:
            listener.note(
                "the proxies are close to noise for this model: its features differ by "
                f"{of_proxies:.2f} between them, by {floor:.2f} between images of noise"
            )
        return {
            "sources": proxies.facts(),
            "n": len(self.images),
            "information": information(self.teacher),
            "diversity": of_proxies,
            "diversity_of_noise": floor,
            "close_to_noise": bool(close or proxies.only_noise),
        }


def load_judge(
    trial: Trial,
    proxies: Proxies,
    listener: Listener,
    measure: Measure | None = None,
    usual: Measure = Measure.BOTH,
) -> Judge:
    """Decodes the proxies and runs the float receiver on them.

    Unless a measure is named, it is the one that suits these answers, see ``choose_measure``.
    """
    images = proxies.decoded(listener)
    trial.place(None)
    teacher = trial.answers(images)
    return Judge(trial, proxies, images, teacher, measure or choose_measure(teacher, usual))
