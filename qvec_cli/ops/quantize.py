"""A float checkpoint onto a low-bit grid: packed codes, or float weights that lie on it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.dtypes import Array
from qvec_cli.checkpoint.read import Checkpoint, Entry
from qvec_cli.checkpoint.write import check_target, write
from qvec_cli.errors import CheckpointError, MismatchError, QvecError
from qvec_cli.model.targets import matching, of_outline
from qvec_cli.ops.lineage import require
from qvec_cli.ops.metrics import Input, Metrics, provenance
from qvec_cli.quant.affine import block_shape
from qvec_cli.quant.distortion import sqnr_db
from qvec_cli.quant.methods import QUANTIZERS
from qvec_cli.quant.qtensor import QTensor, part_names, part_shapes, stored_bits
from qvec_cli.specs import DataUse, Grid, Listener, Method

FAKE = "fake-quantized"
"""The role of a float checkpoint whose targets lie on a grid."""

_PART_DTYPES = ("I32", "F32", "I64")


def quantize(
    source: Path,
    out: Path,
    grid: Grid,
    listener: Listener,
    *,
    method: Method = Method.RTN,
    fake: bool = False,
    patterns: Iterable[str] = (),
    force: bool = False,
) -> Metrics:
    """Writes the quantized model and reports what it costs and how far it is from the float one.

    Args:
        source: a float checkpoint.
        out: the target.
        grid: the grid of every target.
        listener: hears notes.
        method: how codes are chosen.
        fake: whether to write float32 weights on the grid in place of packed codes.
        patterns: globs that name the targets; by default the card's, or a rule over names.
        force: whether ``out`` may be replaced.

    Raises:
        MismatchError: a group size that does not divide, a file of another kind.
        CheckpointError: a file that cannot be read or written, or holds NaN.
    """
    started = time.perf_counter()
    check_target(out, force=force)
    with Checkpoint(source) as theta:
        _require_float(theta)
        targets = choose_targets(theta, patterns, listener)
        _check_grid(theta, targets, grid)
        made_for = theta.card.quant if theta.card else None
        if made_for and made_for != grid.to_json():
            listener.note(f"{source} was made for {Grid.from_json(made_for)}, not for {grid}")
        ratios: dict[str, float | None] = {}
        card = write(
            out,
            _plan(theta, targets, grid, fake=fake),
            _tensors(theta, targets, grid, method, ratios, fake=fake),
            _card(theta, targets, grid, method, fake=fake),
            force=force,
        )
        results = {
            "output": str(out),
            "digest": card.digest,
            **_sizes(theta, targets, grid, source, out),
            "quantized": list(targets),
            "left": [n for n in theta if n not in targets],
            "sqnr_db": ratios,
        }
        inputs = (Input.of(theta),)
        level, counts = inherited_use(theta)
    parameters = {"grid": grid.to_json(), "method": method, "fake": fake}
    return Metrics("quantize", inputs, parameters, results, level, counts, started=started)


def choose_targets(
    theta: Checkpoint, patterns: Iterable[str], listener: Listener
) -> tuple[str, ...]:
    """Names of the weights to quantize: the user's, the card's, or those a rule finds.

    Raises:
        QvecError: nothing to quantize.
    """
    shapes = {name: entry.shape for name, entry in theta.items() if entry.floating}
    patterns = tuple(patterns)
    if patterns:
        targets = matching(patterns, shapes)
    elif theta.card and theta.card.targets is not None:
        targets = theta.card.targets
        if missing := [name for name in targets if len(shapes.get(name, ())) != 2]:
            raise CheckpointError(
                f"{theta.path}: {missing[0]}: its card names it a target, "
                "but it is not a matrix of the file"
            )
    else:
        targets = of_outline(shapes, theta.card.model if theta.card else None)
        listener.note(
            f"{theta.path} does not list its targets: {len(targets)} matrices chosen by "
            "name and shape"
        )
    if not targets:
        raise QvecError(f"{theta.path}: no weight to quantize", hint="Name some with --targets.")
    return targets


def inherited_use(theta: Checkpoint) -> tuple[DataUse, dict[str, int]]:
    """What of the receiver's data a file has used before, by its card."""
    lineage = theta.card.provenance if theta.card else {}
    return DataUse(lineage.get("data_use", DataUse.NONE)), dict(lineage.get("counts", {}))


def _require_float(theta: Checkpoint) -> None:
    quant = theta.card.quant if theta.card else None
    on_grid = theta.kind is Kind.QUANTIZED or (theta.card and theta.card.role == FAKE)
    if quant and on_grid:
        raise MismatchError(
            f"{theta.path}: is quantized already, to {Grid.from_json(quant)}",
            hint="Quantize the float checkpoint it was made from.",
        )
    require(theta, Kind.CHECKPOINT)


def _check_grid(theta: Checkpoint, targets: Iterable[str], grid: Grid) -> None:
    for name in targets:
        try:
            block_shape(theta[name].shape, grid)
        except MismatchError as error:
            raise MismatchError(f"{theta.path}: {name}: {error}", hint=error.hint) from None


def _plan(theta: Checkpoint, targets: Iterable[str], grid: Grid, *, fake: bool) -> dict[str, Entry]:
    plan = {name: Entry(entry.dtype, entry.shape) for name, entry in theta.items()}
    for name in targets:
        shape = plan.pop(name).shape
        if fake:
            plan[name] = Entry("F32", shape)
            continue
        shapes = part_shapes(shape, grid)
        for part, dtype, size in zip(part_names(name), _PART_DTYPES, shapes, strict=True):
            plan[part] = Entry(dtype, size)
    return plan


def _tensors(
    theta: Checkpoint,
    targets: Iterable[str],
    grid: Grid,
    method: Method,
    ratios: dict[str, float | None],
    *,
    fake: bool,
) -> Iterator[tuple[str, Iterable[Array]]]:
    chosen = set(targets)
    for name in theta:
        if name not in chosen:
            yield name, theta.blocks(name)
            continue
        weight = theta.finite(name)
        quantized = QUANTIZERS[method].run(weight, grid)
        shown = quantized.weight()
        ratios[name] = sqnr_db(weight, shown)
        for part, array in _stored(name, quantized, shown, fake=fake).items():
            yield part, [array.reshape(-1)]


def _stored(name: str, quantized: QTensor, shown: Array, *, fake: bool) -> Mapping[str, Array]:
    return {name: shown} if fake else quantized.to_named(name)


def _card(
    theta: Checkpoint, targets: tuple[str, ...], grid: Grid, method: Method, *, fake: bool
) -> Card:
    level, counts = inherited_use(theta)
    lineage = provenance("quantize", {"model": theta}, method=method, data_use=level, counts=counts)
    kind = Kind.CHECKPOINT if fake else Kind.QUANTIZED
    role = FAKE if fake else (theta.card.role if theta.card else "")
    card = theta.card or Card(kind)
    return replace(
        card, kind=kind, role=role, quant=grid.to_json(), targets=targets, provenance=lineage
    )


def _sizes(
    theta: Checkpoint, targets: Iterable[str], grid: Grid, source: Path, out: Path
) -> dict[str, Any]:
    shapes = [theta[name].shape for name in targets]
    weights = sum(rows * columns for rows, columns in shapes)
    return {
        "bytes_before": source.stat().st_size,
        "bytes_after": out.stat().st_size,
        "weights": weights,
        "parameters": sum(e.size for e in theta.values()),
        "bits_per_weight": sum(stored_bits(shape, grid) for shape in shapes) / weights,
    }
