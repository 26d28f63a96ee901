"""What each grid without data would make of a checkpoint: the answer to quantize --compare."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qvec_cli import specs
from qvec_cli.calibration.quantize_model import ModelQuantizer
from qvec_cli.checkpoint.card import Kind
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import MismatchError, QvecError
from qvec_cli.inputs.files import opened, require, stated_model
from qvec_cli.inputs.grids import check_fit, targets_in, usual_group
from qvec_cli.inputs.identify import network_of, tells_network
from qvec_cli.inputs.images import open_for
from qvec_cli.inputs.lineage import inherited_use
from qvec_cli.inputs.receiver import Receiver
from qvec_cli.inputs.rotated import ROTATION, Rotated, rotated
from qvec_cli.model.build import NetworkOptions
from qvec_cli.model.configuration import Model
from qvec_cli.model.targets import HeadChoice
from qvec_cli.outputs.metrics import Input, Metrics
from qvec_cli.quant.qtensor import energy, ratio_db, stored_bits

if TYPE_CHECKING:
    from qvec_cli.selection.trial import Trial

_ROTATED: Final = {(specs.Scale.MSE_FULL, True), (specs.Scale.MSE, False)}
"""Rules of scales, symmetric or not, that are tried in a rotated basis too."""


@dataclass(frozen=True, slots=True)
class CompareGridsRequest:
    """What ``qvec quantize --compare`` is asked for."""

    source: Path  # a float checkpoint
    grid: specs.GridOptions  # bits, and what else is typed holds for every row
    patterns: tuple[str, ...] = ()
    data: str | None = None  # for a column of accuracies
    split: str = "val"
    loading: specs.Loading = specs.Loading()  # noqa: RUF009 - frozen
    device: str = "auto"
    network: NetworkOptions = NetworkOptions()  # for a file without a card
    head: HeadChoice = HeadChoice()  # the classifier, which stays float


def compare_grids(request: CompareGridsRequest, listener: specs.Listener) -> Metrics:
    """Quantizes every target on every grid, in memory, and compares what comes out.
    Raises MismatchError: a file of another kind, a group size that does not divide; SpecError: no
    bits given, and none in the file.
    """
    started = time.perf_counter()
    with opened(request.source, listener, request.network.weights) as theta:
        require(theta, Kind.CHECKPOINT)
        known = request.network.known or request.data is not None or tells_network(theta)
        model = network_of(theta, request.network, listener) if known else None
        head = request.head.tensors(theta, stated_model(theta), str(theta.path), bare=theta.bare)
        targets = targets_in(theta, model, request.patterns, head, listener)
        shapes = {name: theta[name].shape for name in targets}
        check_fit(shapes, specs.Grid(2), str(theta.path))
        own = theta.card.quant
        base = request.grid.grid(specs.Grid.from_json(own) if own else None)
        grids = [*_grids(base, request.grid, {shape[1] for shape in shapes.values()})]
        for grid in grids:
            check_fit(shapes, grid, str(theta.path))
        examples, trial = None, None
        if model and request.data is not None:
            from qvec_cli.selection.trial import load_trial

            examples = open_for(theta, model, request.data, request.loading, listener)
            receiver = Receiver(theta, model, targets, (), None, examples, None)
            trial = load_trial(receiver, (request.split,), request.device, listener)
        tries = [*_tries(theta, model, grids, trial, listener)]
        rows = [*_rows(tries, targets, base, request.split, listener)]
        inputs = [Input.of(theta)]
        use = inherited_use(theta)
    results: dict[str, Any] = {"compared": rows, "bytes_before": theta.weight_bytes}
    if examples and trial:
        results["fp"] = trial.float_score(request.split).to_json()
        inputs.append(Input(str(request.data), "data", examples.task.digest))
        use = specs.spent(
            use, specs.Use(specs.DataUse.RECEIVER_LABELS, {request.split: results["fp"]["n"]})
        )
    parameters = {"bits": base.bits, "targets": list(targets), "split": request.split}
    return Metrics("quantize", tuple(inputs), parameters, results, use, started=started)


def _tries(
    theta: Checkpoint,
    model: Model | None,
    grids: Iterable[specs.Grid],
    trial: Trial | None,
    listener: specs.Listener,
) -> Iterator[tuple[Checkpoint | Rotated, specs.Grid, Trial | None]]:
    """Every grid and, where the file can be rotated, the best rules in a rotated basis."""
    yield from ((theta, grid, trial) for grid in grids)
    best = [grid for grid in grids if (grid.scale, grid.symmetric) in _ROTATED]
    try:
        turned = rotated(theta, model or stated_model(theta), ROTATION, specs.Silence())
    except QvecError as error:
        listener.note(f"no rows in a rotated basis: {error}")
        return
    if trial and best:
        floating = [name for name, entry in theta.items() if entry.floating]
        trial = replace(trial, theta={name: turned.finite(name) for name in floating})
    yield from ((turned, grid, trial) for grid in best)


def _rows(
    tries: Sequence[tuple[Checkpoint | Rotated, specs.Grid, Trial | None]],
    targets: tuple[str, ...],
    base: specs.Grid,
    split: str,
    listener: specs.Listener,
) -> Iterator[dict[str, Any]]:
    """A row a grid, but for those whose scales weights do not fit and nobody has typed."""
    for done, (source, grid, trial) in enumerate(tries, start=1):
        try:
            yield _row(source, targets, grid, trial, split)
        except MismatchError as error:
            if grid.scale_dtype is base.scale_dtype:
                raise
            listener.note(f"no row for {grid}: {error}")
        listener.progress(f"grid {done}/{len(tries)}", done, len(tries))


def _grids(base: specs.Grid, typed: specs.GridOptions, columns: set[int]) -> Iterator[specs.Grid]:
    """Channel and the groups of quantize, with every rule of scales; a typed word holds."""
    kinds: list[tuple[specs.Granularity, int | None, specs.ScaleDtype]]
    kinds = [(base.granularity, base.group_size, base.scale_dtype)]
    if typed.granularity is None and typed.group_size is None:
        kinds = [(specs.Granularity.CHANNEL, None, base.scale_dtype)]
        if usual := usual_group(columns):
            stored = typed.scale_dtype or specs.ScaleDtype.FLOAT16
            kinds.append((specs.Granularity.GROUP, usual, stored))
    for granularity, size, stored in kinds:
        for symmetric in (True, False) if typed.symmetric is None else (typed.symmetric,):
            for scale in specs.Scale if typed.scale is None else (typed.scale,):
                if symmetric or scale is not specs.Scale.MSE_FULL:
                    yield specs.Grid(base.bits, granularity, size, scale, symmetric, stored)


def _row(
    source: Checkpoint | Rotated,
    targets: tuple[str, ...],
    grid: specs.Grid,
    trial: Trial | None,
    split: str,
) -> dict[str, Any]:
    """One grid: the bits that it takes, and how far its weights are from the float ones."""
    signal, noise, stored, weights = 0.0, 0.0, 0, 0
    theta = source if isinstance(source, Checkpoint) else source.theta
    rotation = "" if isinstance(source, Checkpoint) else ", rotated"
    rounding = ModelQuantizer(source, targets, grid, specs.Method.RTN)
    for name in targets:
        quantized = rounding.on_grid(name, source.finite(name), specs.Method.RTN)
        signal += energy(quantized.original)
        noise += energy(quantized.restored - quantized.original)
        stored += stored_bits({name: quantized.original.shape}, grid)
        weights += quantized.original.size
    rest = sum(entry.nbytes for name, entry in theta.items() if name not in set(targets))
    row = {
        "grid": grid.to_json(),
        "name": f"{grid}{rotation}",
        "rotated": bool(rotation),
        "bits_per_weight": stored / weights,
        "tensor_bytes": rest + stored // 8,
        "sqnr_db": ratio_db(signal, noise),
        "data_use": specs.DataUse.NONE,
    }
    if trial is not None:
        row[split] = replace(trial, grid=grid).score(0.0, split).to_json()
    return row
