"""The accuracy of a checkpoint, float or packed, on one split of a data set."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import MismatchError
from qvec_cli.learn.accuracy import measure
from qvec_cli.model import build
from qvec_cli.ops.examples import open_for
from qvec_cli.ops.metrics import Input, Metrics
from qvec_cli.ops.quantize import inherited_use
from qvec_cli.ops.state import device, load_state, model_of
from qvec_cli.specs import Listener, Loading


def evaluate(
    source: Path,
    data: str,
    loading: Loading,
    listener: Listener,
    *,
    split: str = "test",
    wish: build.Wish | None = None,
    on: str = "auto",
) -> Metrics:
    """Loads a model strictly and measures it.

    Args:
        source: a float or packed checkpoint.
        data: the data set.
        loading: how images are fetched.
        listener: hears progress and notes.
        split: train, val or test.
        wish: the architecture, for a file that does not say.
        on: the device.

    Raises:
        MismatchError: a model and a data set, or a file and an architecture, that do not match.
    """
    started = time.perf_counter()
    with Checkpoint(source) as checkpoint:
        model = _architecture(checkpoint, wish)
        state = load_state(checkpoint)
        target = device(on)
        examples = open_for(checkpoint, model, data, loading, listener)
        examples.task.split(split)
        network = build.rebuild(model)
        build.load(network, state, str(source))
        inputs = (Input.of(checkpoint), Input(data, "data"))
        level, counts = inherited_use(checkpoint)
        quant, role = (
            (checkpoint.card.quant, checkpoint.card.role) if checkpoint.card else (None, "")
        )
    images, labels = examples.decoded(split, listener)
    score = measure(
        network.to(target),
        images,
        labels,
        normalise=build.normalise(model),
        batch_size=loading.batch_size,
        heard=lambda done: listener.progress("evaluate", done, len(images)),
    )
    results: dict[str, Any] = {**score.to_json(), "split": split, "role": role, "grid": quant}
    return Metrics(
        "eval",
        inputs,
        {"data": data, "split": split, "batch_size": loading.batch_size},
        results,
        level,
        counts,
        str(target),
        None,
        started,
    )


def _architecture(checkpoint: Checkpoint, wish: build.Wish | None) -> dict[str, Any]:
    if wish is None:
        return model_of(checkpoint)
    if checkpoint.card and checkpoint.card.model:
        model = checkpoint.card.model
        if wish.name.split(".")[0] != model["architecture"]:
            raise MismatchError(
                f"{checkpoint.path} is a {model['architecture']}, not a {wish.name}",
                hint="Leave --model out: the file knows.",
            )
        return model
    return build.create(wish)[1]
