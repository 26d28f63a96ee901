"""Training: AdamW on one parameter group, linear warm-up, cosine to zero, clipped gradients.

The paper's recipe, with one deviation: the authors' code changes the learning rate after each
update, so their first update runs at the full rate and every later one a step behind; here
update k runs at schedule(k).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from qvec_cli.errors import TrainingError
from qvec_cli.learn import distributed
from qvec_cli.learn.batches import NO_LABEL, TrainingBatches
from qvec_cli.learn.distributed import ALONE, World
from qvec_cli.specs import Listener, Recipe

SAVE_SECONDS: Final = 600.0
"""A long epoch saves its state this often."""


@dataclass(slots=True)
class Progress:
    """Where a run stands, and what it has seen; saved and restored with the weights."""

    epoch: int = 0
    step: int = 0  # steps done in this epoch
    history: list[dict[str, Any]] = field(default_factory=list)
    loss_sum: float = 0.0  # of this epoch, over images
    correct: int = 0
    seen: int = 0

    @property
    def mean(self) -> dict[str, float]:
        """Loss and accuracy of this epoch so far, on the batches as they were trained."""
        return {"loss": self.loss_sum / max(self.seen, 1), "top1": self.correct / max(self.seen, 1)}


def warmup_steps(recipe: Recipe, total: int) -> int:
    """The warm-up, shortened to a tenth of a run that it would outlast."""
    return recipe.warmup_steps if recipe.warmup_steps < total else total // 10


def learning_rate(recipe: Recipe, step: int, total: int) -> float:
    """The rate of update ``step`` (from 0) of ``total``."""
    warmup = warmup_steps(recipe, total)
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over all parameters in one group: decay reaches biases and norms, as in the paper."""
    return torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)


def share_of_loss(
    logits: Tensor, labels: Tensor, count: float, world: World, *, smoothing: float
) -> Tensor:
    """A rank's loss, whose gradient averaged over ranks is that of the whole batch's mean.

    Args:
        logits: [n, classes], of this rank's share.
        labels: int64 [n]; images of ``NO_LABEL`` do not count.
        count: images of the whole batch that do.
        world: shares may differ in size, so each is summed, and divided by what all have.
        smoothing: of labels.
    """
    if world.size == 1:
        return functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    summed = functional.cross_entropy(
        logits, labels, reduction="sum", ignore_index=NO_LABEL, label_smoothing=smoothing
    )
    return summed * (world.size / count)


def share_of_divergence(
    logits: Tensor, answers: Tensor, labels: Tensor, count: float, world: World
) -> Tensor:
    """The same of a teacher's answers in place of labels: KL(teacher || student), in nats.

    ``answers`` are the teacher's logits [n, classes]; of labels only ``NO_LABEL`` is looked at.
    """
    ours, theirs = (functional.log_softmax(values, dim=1) for values in (logits, answers))
    each = functional.kl_div(ours, theirs, log_target=True, reduction="none").sum(dim=1)
    return each[labels != NO_LABEL].sum() * (world.size / count)


class TrainingRun:
    """One training run that can stop between any two steps.

    Args:
        network: trained in place, on its own device.
        batches: the images of every epoch.
        recipe: how to train.
        normalise: from uint8 images to the network's input.
        listener: hears loss, accuracy and the steps done.
        world: whose ranks each take a share of every batch; gradients, losses and counts are
            those of the whole batch, so that all ranks take the same step.
        teacher: a network in evaluation mode whose answers are learned in place of labels.
    """

    def __init__(
        self,
        network: nn.Module,
        batches: TrainingBatches,
        recipe: Recipe,
        normalise: Callable[[Tensor], Tensor],
        listener: Listener,
        world: World = ALONE,
        teacher: nn.Module | None = None,
    ) -> None:
        self.world, self._trained, self._teacher = world, network, teacher
        self.network, self.batches, self.recipe = network, batches, recipe
        self.normalise, self.listener = normalise, listener
        self.optimizer = make_optimizer(network, recipe)
        self.at = Progress()
        self.total = recipe.epochs * len(batches)
        self._device = next(network.parameters()).device

    def run(self, save: Callable[[], None], validate: Callable[[], dict[str, Any]]) -> None:
        """Trains from where ``at`` stands to the last epoch.

        Ranks must have joined; weights and buffers become those of the first one.

        Args:
            save: called after each epoch but the last and every ten minutes; also before giving up.
            validate: called after each epoch; what it returns goes into the history.

        Raises TrainingError: a loss or a gradient that is not finite; the weights are those of the
        step before. Every rank raises it; RankError: another rank has failed.
        """
        self._trained = distributed.averaging(self.world, self.network)
        while self.at.epoch < self.recipe.epochs:
            self._epoch(save)
            scores = validate()
            self.at.history.append({"epoch": self.at.epoch + 1, **self.at.mean, **scores})
            self.listener.milestone(self._summary(scores))
            self.at = Progress(epoch=self.at.epoch + 1, history=self.at.history)
            if self.at.epoch < self.recipe.epochs:  # then the checkpoint follows at once
                save()

    def _summary(self, scores: dict[str, Any]) -> str:
        trained = f"loss {self.at.mean['loss']:.4f}, top-1 {self.at.mean['top1']:.4f}"
        validated = ", ".join(f"{key} {score['top1']:.4f}" for key, score in scores.items())
        return f"epoch {self.at.epoch + 1}/{self.recipe.epochs}: {trained}; validation {validated}"

    def _epoch(self, save: Callable[[], None]) -> None:
        self.network.train()
        saved = time.monotonic()
        batches = self.batches.epoch(self.at.epoch, skip=self.at.step)
        for images, labels in batches:
            before = self._before()
            try:
                self._step(images.to(self._device), labels.to(self._device))
            except TrainingError:
                self._undo(before)
                save()
                distributed.meet(self.world)  # who ends before would end the first one's writing
                raise
            self.at.step += 1
            if time.monotonic() - saved > SAVE_SECONDS:
                save()
                saved = time.monotonic()
            done = self.at.epoch * len(self.batches) + self.at.step
            self.listener.progress(
                f"epoch {self.at.epoch + 1}/{self.recipe.epochs}", done, self.total, **self.at.mean
            )

    def _before(self) -> tuple[Tensor, list[Tensor]]:
        """What a forward changes: the random stream, and buffers such as running means."""
        return torch.get_rng_state(), [b.clone() for b in self.network.buffers()]

    def _undo(self, before: tuple[Tensor, list[Tensor]]) -> None:
        torch.set_rng_state(before[0])
        for buffer, old in zip(self.network.buffers(), before[1], strict=True):
            buffer.copy_(old)

    def _step(self, images: Tensor, labels: Tensor) -> None:
        done = self.at.epoch * len(self.batches) + self.at.step
        rate = learning_rate(self.recipe, done, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        distributed.seed_apart(self.world, self.recipe.seed, done)
        (count,) = distributed.total(self.world, int((labels != NO_LABEL).sum()))
        with distributed.rank_errors(self.world):
            logits, loss = self._gradients(images, labels, count)
        limit = self.recipe.clip_grad or math.inf
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        right = int((logits.argmax(1) == labels).sum())
        summed, correct = distributed.total(self.world, loss.item(), right)
        mean = summed / self.world.size
        for name, value in (("loss", mean), ("gradient norm", norm.item())):
            if not math.isfinite(value):
                raise TrainingError(
                    f"{name} is {value} at epoch {self.at.epoch + 1}, step "
                    f"{self.at.step + 1} of {len(self.batches)} (lr {rate:.3g})"
                )
        self.optimizer.step()
        self.at.loss_sum += mean * count
        self.at.correct += int(correct)
        self.at.seen += int(count)

    def _gradients(self, images: Tensor, labels: Tensor, count: float) -> tuple[Tensor, Tensor]:
        """Leaves the gradient of the whole batch's mean loss; returns this rank's logits, loss."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.recipe.amp):
            batch, smoothing = self.normalise(images), self.recipe.smoothing
            logits = self._trained(batch)
            if self._teacher is None:
                loss = share_of_loss(logits.float(), labels, count, self.world, smoothing=smoothing)
            else:
                with torch.no_grad():
                    answers = self._teacher(batch).float()
                loss = share_of_divergence(logits.float(), answers, labels, count, self.world)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return logits, loss


Array = np.ndarray[Any, np.dtype[Any]]

Naming = Callable[[str], str]
"""From a parameter's name in the network to its name in files, wrappers or not."""

_MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")

_RNG: Final = "rng.torch"


def state_of(run: TrainingRun, plain_name: Naming) -> dict[str, Array]:
    """Everything that the next step depends on but ``at``: weights, moments, random stream."""
    arrays = {
        f"network.{plain_name(name)}": tensor.detach().cpu().numpy()
        for name, tensor in run.network.state_dict().items()
    }
    for name, parameter in run.network.named_parameters():
        for key, value in run.optimizer.state.get(parameter, {}).items():
            arrays[f"adam.{key}.{plain_name(name)}"] = value.cpu().numpy()
    return {**arrays, _RNG: torch.get_rng_state().numpy()}


def restore(run: TrainingRun, arrays: Mapping[str, Array], plain_name: Naming) -> None:
    """Puts a run back, to the bit, to where ``state_of`` saw it."""
    names = run.network.state_dict()
    run.network.load_state_dict(
        {name: _tensor(arrays[f"network.{plain_name(name)}"]) for name in names}
    )
    for name, parameter in run.network.named_parameters():
        keys = {key: f"adam.{key}.{plain_name(name)}" for key in _MOMENTS}
        if keys["step"] in arrays:
            run.optimizer.state[parameter] = {
                key: _tensor(arrays[stored]).to("cpu" if key == "step" else parameter.device)
                for key, stored in keys.items()
            }
    torch.set_rng_state(_tensor(arrays[_RNG]))


def share_state(run: TrainingRun) -> None:
    """Gives every rank the moments of the first one; weights follow when training begins."""
    if run.world.size == 1:
        return
    parameters = list(run.network.parameters())
    state = run.optimizer.state
    trained = distributed.from_first(run.world, [parameter in state for parameter in parameters])
    for parameter, has_moments in zip(parameters, trained, strict=True):
        if has_moments:
            moments = state[parameter] or {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
            }
            distributed.copy_from_first(run.world, [moments[key] for key in _MOMENTS])
            state[parameter] = moments


def _tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(array))
