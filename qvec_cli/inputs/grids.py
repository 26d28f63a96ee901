"""Which weights are quantized on which grid: the user's word, the card's, or a rule's."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from qvec_cli.checkpoint.naming import is_of_transformers
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import CheckpointError, MismatchError, QvecError, located
from qvec_cli.inputs.lineage import CROSS
from qvec_cli.model import build
from qvec_cli.model.configuration import Model
from qvec_cli.model.targets import matching, of_network, of_outline, without
from qvec_cli.quant.affine import block_shape
from qvec_cli.specs import Grid, GridOptions, Listener, Preset, Scale, ScaleDtype

GROUPS: Final = (64, 32)
"""Group sizes that are tried for one that every layer takes."""

_FEW: Final = 3
"""Bits up to which groups gain more than they cost.

Rounding alone on four receivers of the real study, float .946, groups of 64 and a scale a row
(--granularity channel): .376 and .079 at 2 bits, .942 and .878 at 3, .944 and .944 at 4; averages
of 2.5 and 3.5 bits .863 and .222, .947 and .935. Groups take about .23 bits a weight more.
"""


def _choose(
    theta: Checkpoint,
    patterns: Sequence[str],
    head: Collection[str],
    listener: Listener,
    modules: Sequence[str] = (),
) -> tuple[str, ...]:
    """Names of the weights to quantize: the user's, the card's, or those a rule finds.

    ``head`` are tensors of the classifier, which no rule takes; ``modules`` what all are to be in.
    MismatchError: a glob that matches nothing, a module that is not there. CheckpointError: the
    card names a tensor that is not there.
    """
    shapes = {name: entry.shape for name, entry in theta.items() if entry.floating}
    if modules:
        shapes = {name: shape for name, shape in shapes.items() if _is_in(name, modules)}
        if not shapes:
            raise MismatchError(
                f"{theta.path}: --module {modules[0]}: no tensor is in it",
                hint="qvec inspect FILE --tensors lists the names.",
            )
    if patterns:
        targets = matching(patterns, shapes)
    elif theta.card.targets is not None and not modules:
        targets = tuple(name for name in dict.fromkeys(theta.card.targets) if name not in head)
        if missing := [name for name in targets if len(shapes.get(name, ())) != 2]:
            raise CheckpointError(
                f"{theta.path}: {missing[0]}: its card names it a target, "
                "but it is not a matrix of the file"
            )
    else:
        fused = {name.removesuffix("in_proj_weight") for name in shapes if "in_proj_weight" in name}
        fused = fused if is_of_transformers(theta.config) else set()  # which its loaders leave
        targets = tuple(n for n in of_outline(shapes, head) if not n.startswith((*fused,)))
        listener.note(
            f"{theta.path} does not list its targets: {len(targets)} matrices chosen by "
            "name and shape"
        )
    return targets


def _is_in(name: str, modules: Sequence[str]) -> bool:
    """Whether one of the modules is on the way to a tensor."""
    return any(f".{module}." in f".{name}" for module in modules)


def targets_in(
    theta: Checkpoint,
    model: Model | None,
    patterns: Iterable[str],
    head: Collection[str],
    listener: Listener,
) -> tuple[str, ...]:
    """Names of the weights to quantize; the network decides for a file whose card does not.

    Args:
        theta: a float checkpoint.
        model: its network, if that must be known; a file without a card must then be one.
        patterns: globs of the user, which come first; then a list on the card. One with a ! before
            it names weights that are left out, of whatever the others choose; one with an @ is no
            glob but a module, in which all are.
        head: tensors of the classifier.
        listener: hears of a choice by rule.

    Raises MismatchError: tensors that are not those of the network.
    """
    named = [glob for glob in patterns if not glob.startswith(("!", "@"))]
    modules = [word[1:] for word in patterns if word.startswith("@")]
    listed = theta.card.targets is not None and not modules
    if modules or model is None or not theta.bare or named or listed:
        targets = _choose(theta, named, head, listener, modules)
    else:
        targets = tuple(name for name in _of_network(theta, model) if name not in head)
    return without(targets, [glob[1:] for glob in patterns if glob.startswith("!")])


def _of_network(theta: Checkpoint, model: Model) -> tuple[str, ...]:
    import torch

    from qvec_cli.inputs.network import outline

    with torch.device("meta"):
        network = build.rebuild(model)
    build.load(network, outline(theta), str(theta.path))
    return tuple(name for name in of_network(network, model) if name in theta)


def choose_grid(
    options: GridOptions,
    made: Checkpoint,
    theta: Checkpoint,
    targets: Iterable[str],
    swept: Mapping[str, Any] | None = None,
) -> Grid:
    """The grid for the targets of ``theta``: the user's, or the one that ``made`` was made for.

    ``swept`` is that of the sweep that has chosen lambda for ``made``, and comes before its own.
    Raises SpecError: no bits given, and none in the file; MismatchError: made for another grid, and
    crossing was not asked for. QvecError, MismatchError: see ``check_fit``.
    """
    made = next((c for c in (made, theta) if c.card.quant), made)
    stated = swept or made.card.quant
    own = Grid.from_json(stated) if stated else None
    grid = options.grid(own)
    if own and own != grid and not options.cross:
        raise MismatchError(f"{made.path} was made for {own}, not for {grid}", hint=CROSS)
    check_fit({name: theta[name].shape for name in targets}, grid, str(theta.path))
    return grid


def usual_group(columns: Iterable[int]) -> int | None:
    """The first of the usual group sizes that divides all these numbers of input features."""
    shared = math.gcd(*columns)
    return next((size for size in GROUPS if shared % size == 0), None)


def fill_in(
    options: GridOptions, columns: Iterable[int], *, folder: bool, mixed: bool
) -> tuple[GridOptions, str]:
    """What is left open of a grid that neither flags nor the file say, and why, in words.

    At few bits the plain preset has groups, if a usual size fits all ``columns``, the numbers of
    input features. From a ``folder`` stock loaders take no zero points where layers have ``mixed``
    widths.
    """
    why = ""
    if folder and mixed:
        options = replace(options, scale=Scale.MSE_FULL)
        why = "stock loaders take no zero points beside layers of different widths"
    few = options.preset is Preset.PLAIN and options.bits is not None and options.bits <= _FEW
    said = options.granularity or options.group_size
    if few and not said and (size := usual_group(columns)):
        stored = options.scale_dtype or ScaleDtype.FLOAT16
        options = replace(options, group_size=size, scale_dtype=stored)
    return options, why


def check_fit(shapes: Mapping[str, tuple[int, ...]], grid: Grid, source: str) -> None:
    """Refuses a grid that some target cannot lie on (MismatchError), and a network without any."""
    require_some(shapes, source)
    for name, shape in shapes.items():
        if 0 in shape:
            raise MismatchError(f"{source}: {name}: has no elements")
        with located(f"{source}: {name}"):
            block_shape(shape, grid.of(name))


def require_some(targets: Collection[str], source: str) -> None:
    """Refuses a network without any target: QvecError names the file."""
    if not targets:
        raise QvecError(
            f"{source}: no weight to quantize",
            hint="Only linear layers outside the head are quantized.",
        )
