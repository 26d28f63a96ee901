"""The accuracy of a checkpoint, float or packed, on one split of a data set."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import FellShortError
from qvec_cli.inputs.files import opened, require_model
from qvec_cli.inputs.foreign import stored_grid
from qvec_cli.inputs.identify import network_of
from qvec_cli.inputs.images import Examples, open_for
from qvec_cli.inputs.lineage import inherited_use
from qvec_cli.model import build
from qvec_cli.outputs.metrics import Input, Metrics, Plan
from qvec_cli.quant.qtensor import packed_weights, part_names
from qvec_cli.specs import Grid, Listener, Loading

if TYPE_CHECKING:
    from torch import nn

    from qvec_cli.learn.forward import Accuracy


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """What ``qvec eval`` is asked for."""

    source: Path  # a float or packed checkpoint
    data: str
    loading: Loading = field(default_factory=Loading)
    split: str = "test"
    network: build.NetworkOptions = build.NetworkOptions()  # for a file without a card
    device: str = "auto"
    out: Path | None = None  # where the caller puts the metrics
    dry_run: bool = False


def evaluate(request: EvaluateRequest, listener: Listener) -> Metrics:
    """Loads a model strictly and measures it.

    Raises MismatchError: a model and a data set, or a file and an architecture, that do not match.
    """
    started = time.perf_counter()
    with opened(request.source, listener, request.network.weights) as checkpoint:
        require_model(checkpoint)
        model = network_of(checkpoint, request.network, listener)
        examples = open_for(checkpoint, model, request.data, request.loading, listener)
        images = {request.split: len(examples.task.split(request.split))}
        if request.dry_run:
            from qvec_cli.inputs.network import check_network

            check_network(checkpoint, model, request.device)
            fates = dict.fromkeys(checkpoint, "loaded")
            planned = Plan("eval", request.out, fates, checkpoint, {}, images, request.data)
            return planned.metrics((checkpoint,), started)
        from qvec_cli.inputs.network import load_network

        network = load_network(checkpoint, model, request.device)
        inputs = (Input.of(checkpoint), Input(request.data, "data", examples.task.digest))
        use = inherited_use(checkpoint)
        cost = _cost(checkpoint, network)
    score = _measure(network, examples, request, listener)
    results: dict[str, Any] = {
        **score.to_json(),
        "split": request.split,
        "role": checkpoint.card.role,
        "grid": checkpoint.card.quant,
        "cost": cost,
    }
    batch_size = request.loading.batch_size
    parameters = {"data": request.data, "split": request.split, "batch_size": batch_size}
    device = str(next(network.parameters()).device)
    return Metrics("eval", inputs, parameters, results, use, device, started=started)


def check_top1(results: Mapping[str, Any], least: float | None) -> None:
    """Raises FellShortError: a measured accuracy is below the least that is wanted."""
    if least is not None and results.get("top1", 1.0) < least:
        split, top1 = results["split"], results["top1"]
        raise FellShortError(f"{split} top-1 is {top1:.4f}, less than --min-top1 {least:g}")


def _cost(checkpoint: Checkpoint, network: nn.Module) -> dict[str, int]:
    """Bytes of the file and of the weights in memory, where packed ones are floats again.

    ``float_bytes`` is what the tensors would take if no weight were packed.
    """
    packed = packed_weights(checkpoint)
    grid = stored_grid(checkpoint) or Grid()
    parts = {part for name in packed for part in part_names(name, grid)}
    rest = sum(entry.nbytes for name, entry in checkpoint.items() if name not in parts)
    state = network.state_dict()
    return {
        "file_bytes": checkpoint.nbytes,
        "float_bytes": rest + sum(state[name].nbytes for name in packed),
        "memory_bytes": sum({t.data_ptr(): t.nbytes for t in state.values()}.values()),
        "packed": len(packed),
    }


def _measure(
    network: nn.Module, examples: Examples, request: EvaluateRequest, listener: Listener
) -> Accuracy:
    from qvec_cli.learn.forward import measure

    images, labels = examples.decoded(request.split, listener)
    count = len(images)
    return measure(
        network,
        images,
        labels,
        normalise=build.normalise(examples.model),
        batch_size=request.loading.batch_size,
        progress=lambda done: listener.progress(f"image {done}/{count}", done, count),
    )
