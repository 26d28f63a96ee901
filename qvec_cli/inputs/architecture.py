"""The network that a file belongs to: as its card states, or as the user's flags do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import CheckpointError, MismatchError
from qvec_cli.inputs.files import model_of, stated_model
from qvec_cli.inputs.grids import choose_targets
from qvec_cli.model import build
from qvec_cli.model.build import check_name
from qvec_cli.model.configuration import Model
from qvec_cli.model.targets import HEADS, head_tensors, of_network
from qvec_cli.specs import Listener


def architecture(checkpoint: Checkpoint, options: build.NetworkOptions | None) -> Model:
    """timm's configuration of the network.

    Raises:
        CheckpointError: neither the file nor the user says it.
        MismatchError: the user says what the file knows better.
    """
    if options is None:
        return model_of(checkpoint)
    if model := stated_model(checkpoint):
        if options.shaped:
            raise MismatchError(
                f"{checkpoint.path} knows its own --img-size, --in-chans, --crop-pct and arguments",
                hint="Leave them out, and --model too.",
            )
        if options.name.split(".", maxsplit=1)[0] != model.architecture:
            raise MismatchError(
                f"{checkpoint.path} is a {model.architecture}, not a {options.name}",
                hint="Leave --model out: the file knows.",
            )
        return model
    check_name(options.name)
    return build.create(replace(options, num_classes=_outputs(checkpoint)))[1]


def targets_in(
    theta: Checkpoint, model: Model | None, patterns: Iterable[str], listener: Listener
) -> tuple[str, ...]:
    """Names of the weights to quantize; the network decides for a file whose card does not.

    Args:
        theta: a float checkpoint.
        model: its network, if that must be known; a file without a card must then be one.
        patterns: globs of the user, which come first; then a list on the card.
        listener: hears of a choice by rule.

    Raises:
        MismatchError: tensors that are not those of the network.
    """
    if model is None or theta.card.model:
        return choose_targets(theta, patterns, listener)
    linear = _of_network(theta, model)
    said = patterns or theta.card.targets is not None
    return choose_targets(theta, patterns, listener) if said else linear


def _of_network(theta: Checkpoint, model: Model) -> tuple[str, ...]:
    import torch

    from qvec_cli.inputs.network import outline

    with torch.device("meta"):
        network = build.rebuild(model)
    build.load(network, outline(theta), str(theta.path))
    return tuple(name for name in of_network(network, model) if name in theta)


def _outputs(checkpoint: Checkpoint) -> int:
    """Classes that the head of a bare file tells apart."""
    head = [entry for name in head_tensors(checkpoint, None) if (entry := checkpoint[name]).shape]
    if not head:
        raise CheckpointError(
            f"{checkpoint.path}: no tensor looks like a classifier's",
            hint=f"Heads are looked for under {', '.join(HEADS)}.",
        )
    return head[0].shape[0]
