"""Which weights are quantized, and which tensors are the classifier's: asked here by everyone.

Every ``nn.Linear`` weight is, and the input projections of ``nn.MultiheadAttention``, fused or
not, except the classifier's. From a bare file, names and shapes decide. Nothing here imports torch
until a network is handed in.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from qvec_cli.checkpoint.naming import HEADS, heads
from qvec_cli.errors import MismatchError, SpecError
from qvec_cli.model.configuration import Model
from qvec_cli.quant.qtensor import as_matrix

if TYPE_CHECKING:
    from torch import nn

_PROJECTIONS: Final = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Matrices that ``nn.MultiheadAttention`` keeps itself: one fused, or three where widths differ."""

_NOT_LINEAR: Final = ("embed", "norm", "relative_position", "wte", "wpe", "tok_emb", "pos_emb")


def classifiers(model: Model | None) -> tuple[str, ...]:
    """Module names of the classifier from the model, or the usual ones."""
    return (model.classifier if model else ()) or HEADS


def head_tensors(names: Iterable[str], model: Model | None) -> tuple[str, ...]:
    """Those of the tensors that belong to the classifier."""
    if not (model and model.classifier):
        return heads(names)
    head = {f"{module}.{part}" for module in model.classifier for part in ("weight", "bias")}
    return tuple(name for name in names if name in head)


@dataclass(frozen=True, slots=True)
class HeadChoice:
    """Which tensors are the classifier's, where a user says it."""

    globs: tuple[str, ...] = ()  # over names of tensors or of their modules
    none: bool = False  # there is none

    def __post_init__(self) -> None:
        if self.globs and self.none:
            raise SpecError("--head names a classifier, --no-head says that there is none")

    def tensors(
        self, names: Iterable[str], model: Model | None, where: str, *, bare: bool
    ) -> tuple[str, ...]:
        """The tensors of the classifier.

        Raises MismatchError: a glob that matches nothing; no tensor of a ``bare`` file looks like a
        classifier's, and nothing is said of it.
        """
        names = tuple(names)
        if model is not None and (self.none or self.globs):
            raise MismatchError(
                f"{where}: its network tells its classifier",
                hint="Leave --head and --no-head out.",
            )
        if self.none:
            return ()
        if not self.globs:
            head = head_tensors(names, model)
            if bare and model is None and not head:
                raise MismatchError(
                    f"{where}: no tensor looks like the classifier's, which stays as it is",
                    hint="Name it: --head GLOB; or say that there is none: --no-head.",
                )
            return head
        chosen: dict[str, None] = {}
        for glob in self.globs:
            matched = [n for n in names if _matches(n, glob)]
            if not matched:
                raise MismatchError(
                    f"{where}: --head {glob!r} matches no tensor",
                    hint="qvec inspect FILE lists the names.",
                )
            chosen.update(dict.fromkeys(matched))
        return tuple(chosen)


def _matches(name: str, glob: str) -> bool:
    module = name.rpartition(".")[0]
    return fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(module, glob)


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
    state dict has it. A network may have a ``tower``, outside of which nothing is quantized, and
    may be ``only_linear``: what ``nn.MultiheadAttention`` keeps itself, its library packs not.
    """
    from torch import nn
    from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

    skipped, tower = set(skip), getattr(network, "tower", "")
    plain = getattr(network, "only_linear", False)
    for name, module in network.named_modules(remove_duplicate=not aliases):
        prefix = f"{name}." if name else ""
        if name in skipped or not prefix.startswith(tower):
            continue
        if plain and isinstance(module, nn.MultiheadAttention | NonDynamicallyQuantizableLinear):
            continue
        if isinstance(module, nn.Linear):
            yield prefix, module, "weight"
        elif isinstance(module, nn.MultiheadAttention):
            parts = (part for part in _PROJECTIONS if getattr(module, part) is not None)
            yield from ((prefix, module, part) for part in parts)


def of_outline(shapes: Mapping[str, tuple[int, ...]], head: Collection[str]) -> tuple[str, ...]:
    """The rule for a file that does not say: 2-D weights but the head's and embeddings'."""
    return tuple(
        name
        for name, shape in shapes.items()
        if len(shape) == 2
        and min(shape) > 0
        and name not in head
        and name.endswith(("weight", "in_proj_weight"))
        and (may_be_linear(name) or _has_bias(name, shapes))
    )


def _has_bias(name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a bias of its length stands beside a weight: an embedding has none."""
    return shapes.get(f"{name.removesuffix('weight')}bias") == shapes[name][:1]


def embeddings(
    shapes: Mapping[str, tuple[int, ...]], targets: Collection[str], head: Collection[str]
) -> tuple[str, ...]:
    """What embeds patches, positions and tokens: convolutions, tables, matrices by their names."""
    others = {name: s for name, s in shapes.items() if name not in targets and name not in head}
    return tuple(
        name
        for name, shape in others.items()
        if len(shape) >= 2
        and min(as_matrix(shape)) > 1
        and (len(shape) > 2 or not may_be_linear(name))
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


def without(targets: Sequence[str], globs: Iterable[str]) -> tuple[str, ...]:
    """The targets that no glob names, for ``--skip``.

    Raises MismatchError: a glob that names none of them, or globs that name all.
    """
    left = tuple(targets)
    for glob in globs:
        if not fnmatch.filter(targets, glob):
            raise MismatchError(
                f"--skip {glob!r} matches no weight that would be quantized",
                hint="--dry-run lists them.",
            )
        left = tuple(name for name in left if not fnmatch.fnmatchcase(name, glob))
    if targets and not left:
        raise MismatchError("--skip leaves no weight to be quantized")
    return left
