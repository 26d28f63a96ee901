"""Which tensors of two checkpoints belong together, by name, and to which part of a network."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from qvec_cli.errors import MismatchError
from qvec_cli.specs import Part

SHOWN = 5  # offending tensors that a message names


class Outline(Protocol):
    """A tensor without its values."""

    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def floating(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Pairing:
    """The tensors that take part in arithmetic, and those that do not."""

    names: tuple[str, ...]
    head: tuple[str, ...]  # the classifier's, which stays with its model
    buffers: tuple[str, ...]  # integers, booleans and running statistics, likewise

    def fates(self, names: Iterable[str], paired: str, rest: str) -> dict[str, str]:
        """What becomes of each tensor, and why those that are left out are."""
        why = dict.fromkeys(self.head, f"{rest}: the classifier's")
        why |= dict.fromkeys(self.buffers, f"{rest}: a buffer")
        return {name: why.get(name, paired) for name in names}


def pair(
    first: Mapping[str, Outline],
    second: Mapping[str, Outline],
    labels: tuple[str, str],
    head: Iterable[str],
) -> Pairing:
    """Pairs the floating tensors of two models outside their heads, which need not pair up.

    Messages call the two by their ``labels``. MismatchError: a tensor has no counterpart, or one
    of another shape or another type.
    """
    left_out = set(head)
    names = [n for n in (*first, *(n for n in second if n not in first)) if n not in left_out]
    faults = {name: _fault(first.get(name), second.get(name), labels) for name in names}
    _refuse([f"{name}: {fault}" for name, fault in faults.items() if fault], len(names), labels)
    return Pairing(
        names=tuple(n for n in names if _learned(n, first[n])),
        head=tuple(n for n in first if n in left_out),
        buffers=tuple(n for n in names if not _learned(n, first[n])),
    )


def _learned(name: str, entry: Outline) -> bool:
    """A weight, and no statistic of a batch norm: those are of a model's own images."""
    return entry.floating and not name.endswith((".running_mean", ".running_var"))


def cover(
    receiver: Mapping[str, Outline],
    rho: Mapping[str, Outline],
    labels: tuple[str, str],
    head: Iterable[str],
) -> Pairing:
    """Pairs a receiver with a vector, of which running statistics are left; see ``pair``."""
    buffers = [n for n, e in receiver.items() if not _learned(n, e)]
    body, weights = ({n: e for n, e in f.items() if _learned(n, e)} for f in (receiver, rho))
    paired = pair(body, weights, labels, head)
    return Pairing(paired.names, paired.head, tuple(buffers))


def _refuse(faults: list[str], total: int, labels: tuple[str, str]) -> None:
    """Raises when any tensor does not pair up, naming the first few."""
    if not faults:
        return
    more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    raise MismatchError(
        f"{len(faults)} of {total} tensors of {labels[0]} and {labels[1]} do not pair up: "
        f"{'; '.join(faults[:SHOWN])}{more}",
        hint="Both must be the same architecture, at the same image and patch size.",
    )


def _fault(first: Outline | None, second: Outline | None, labels: tuple[str, str]) -> str:
    if first is None or second is None:
        return f"only in {labels[0] if second is None else labels[1]}"
    if first.shape != second.shape:
        return f"{list(first.shape)} vs {list(second.shape)}"
    if first.floating != second.floating:
        return f"{first.dtype} vs {second.dtype}"
    return ""


_NORM: Final = re.compile(r"norm|^bn\d*$|^ln(_\w+)?$|layer_?scale|^ls_?\d*$")
_GAMMA: Final = re.compile(r"^(gamma|lambda)_?\d*$|layer_?scale")
_POSITION: Final = re.compile(r"embed|position|rel_pos|rope|absolute_pos|attention_biases")
_ENCODING: Final = re.compile(r"^c(r)?pe\d*$")  # convolutional position encodings, CoaT's
_STEM: Final = re.compile(r"^(stem|conv1)$")
_BIAS: Final = re.compile(r"^(bias|\w+_bias)$")


def part_of(name: str, shapes: Mapping[str, Outline]) -> Part:
    """The part of one tensor among all of its file: a bias is a norm's if its weight is."""
    *path, leaf = name.split(".")
    if _is_norm(path, leaf, shapes):
        return Part.NORM
    if _is_embedding(path, leaf):
        return Part.EMBED
    if len(shapes[name].shape) <= 1:
        return Part.BIAS if _BIAS.match(leaf) else Part.NORM
    return _inside([*path, leaf])


def select(
    names: Collection[str], shapes: Mapping[str, Outline], parts: Collection[Part]
) -> frozenset[str]:
    """The tensors of some parts, or else MismatchError; of no parts, all."""
    if not parts:
        return frozenset(names)
    chosen = frozenset(name for name in names if part_of(name, shapes) in parts)
    if not chosen:
        raise MismatchError(f"--parts {','.join(parts)}: no tensor is of these parts")
    return chosen


def _is_norm(path: list[str], leaf: str, shapes: Mapping[str, Outline]) -> bool:
    if _GAMMA.search(leaf):
        return True
    module = path[-1] if path else ""
    weight = shapes.get(".".join([*path, "weight"]))
    if weight is not None and leaf in {"weight", "bias", "running_mean", "running_var"}:
        return len(weight.shape) <= 1 or "norm" in module
    return bool(_NORM.search(module))


def _is_embedding(path: list[str], leaf: str) -> bool:
    words = [*path, leaf]
    numbers = [place for place, word in enumerate(words) if word.isdigit()]
    before = words[: numbers[0]] if numbers else words
    return (
        "token" in leaf
        or any(_POSITION.search(word) or _ENCODING.match(word) for word in words)
        or any(map(_STEM.match, before))
    )


def _inside(words: list[str]) -> Part:
    """Attention or not, as the innermost name that tells has it."""
    for word in reversed(words):
        if word.startswith(("mlp", "ffn")):
            return Part.MLP
        if "att" in word or word.startswith(("qkv", "q_proj", "k_proj", "v_proj")):
            return Part.ATTN
    return Part.MLP
