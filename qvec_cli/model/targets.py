"""Which weights are quantized, and which tensors are the classifier's: asked here by everyone.

Every ``nn.Linear`` weight is, and the input projections of ``nn.MultiheadAttention``, fused or
not, except the classifier's. From a bare file, names and shapes decide. Nothing here imports torch
until a network is handed in.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from qvec_cli.errors import MismatchError
from qvec_cli.model.configuration import Model

if TYPE_CHECKING:
    from torch import nn

HEADS: Final = (
    "aux_head",
    "head.0",
    "head.1",
    "head.l",
    "head.head.l",
    "head.head_dist.l",
    "head.classifier.4",
    "head.classifier.linear",
    "head",
    "head.fc",
    "head.fc.fc2",
    "head.fc2",
    "head.linear",
    "head_dist",
    "head_dist.linear",
    "fc",
    "classifier",
    "classification_head",
)
"""What timm and its neighbours call the classifier; for files that do not say."""

_PROJECTIONS: Final = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Matrices that ``nn.MultiheadAttention`` keeps itself: one fused, or three where widths differ."""

_NOT_LINEAR: Final = ("embed", "norm", "relative_position")


def classifiers(model: Model | None) -> tuple[str, ...]:
    """Module names of the classifier from the model, or the usual ones."""
    return (model.classifier if model else ()) or HEADS


def head_tensors(names: Iterable[str], model: Model | None) -> tuple[str, ...]:
    """Those of the tensors that belong to the classifier."""
    head = {f"{module}.{part}" for module in classifiers(model) for part in ("weight", "bias")}
    return tuple(name for name in names if name in head)


def head_of(network: nn.Module, model: Model) -> nn.Module | None:
    """The classifier, where there is just one."""
    named = dict(network.named_modules())
    heads = [named[name] for name in classifiers(model) if name in named]
    return heads[0] if len(heads) == 1 else None


def of_network(network: nn.Module, model: Model) -> tuple[str, ...]:
    """State-dict names of the weights that are quantized, in the order of the network."""
    targets = modules(network, classifiers(model), aliases=True)
    return tuple(f"{prefix}{attribute}" for prefix, _, attribute in targets)


def modules(
    network: nn.Module, skip: Iterable[str], *, aliases: bool = False
) -> Iterator[tuple[str, nn.Module, str]]:
    """Prefix, module and attribute of each weight that is quantized.

    A module used in two places comes once, or with ``aliases`` under each of its names, as a
    state dict has it.
    """
    from torch import nn

    skipped = set(skip)
    for name, module in network.named_modules(remove_duplicate=not aliases):
        prefix = f"{name}." if name else ""
        if name in skipped:
            continue
        if isinstance(module, nn.Linear):
            yield prefix, module, "weight"
        elif isinstance(module, nn.MultiheadAttention):
            parts = (part for part in _PROJECTIONS if getattr(module, part) is not None)
            yield from ((prefix, module, part) for part in parts)


def of_outline(shapes: Mapping[str, tuple[int, ...]], model: Model | None) -> tuple[str, ...]:
    """The rule for a file that does not say: 2-D weights but the head's and embeddings'."""
    head = set(head_tensors(shapes, model))
    return tuple(
        name
        for name, shape in shapes.items()
        if len(shape) == 2
        and min(shape) > 0
        and name not in head
        and name.endswith(("weight", "in_proj_weight"))
        and may_be_linear(name)
    )


def may_be_linear(name: str) -> bool:
    """Whether a weight may be a linear layer's by its name, and not an embedding's or a norm's."""
    return not any(word in part for part in name.split(".")[-2:] for word in _NOT_LINEAR)


def matching(patterns: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """The matrices that globs name, for ``--targets``.

    Raises MismatchError: a glob that matches no 2-D tensor.
    """
    chosen: dict[str, None] = {}
    for pattern in patterns:
        names = [n for n, s in shapes.items() if len(s) == 2 and fnmatch.fnmatchcase(n, pattern)]
        if not names:
            raise MismatchError(
                f"--targets {pattern!r} matches no matrix of the file",
                hint="qvec inspect FILE lists the names.",
            )
        chosen.update(dict.fromkeys(names))
    return tuple(chosen)
