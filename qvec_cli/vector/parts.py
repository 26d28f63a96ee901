"""Which part of a network a tensor belongs to, by names and shapes alone.

Each floating tensor is of exactly one part:

- ``norm``: weights, biases and statistics of normalisations, gammas of LayerScale, and other
  vectors that scale;
- ``embed``: patch embedding or stem with its own bias, positions (tables of relative ones and
  convolutions that stand for them too), class and register tokens;
- ``bias``: biases of everything else;
- ``attn``: what else lies in attention;
- ``mlp``: all other matrices (so are reductions between Swin's stages, and matrices that
  attention and MLP share).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

from qvec_cli.errors import MismatchError
from qvec_cli.specs import Part
from qvec_cli.vector.pairing import Outline

_NORM: Final = re.compile(r"norm|^bn\d*$|^ln(_\w+)?$|layer_?scale|^ls_?\d*$")

_GAMMA: Final = re.compile(r"^(gamma|lambda)_?\d*$|layer_?scale")

_POSITION: Final = re.compile(r"embed|position|rel_pos|rope|absolute_pos|attention_biases")

_ENCODING: Final = re.compile(r"^c(r)?pe\d*$")  # convolutional position encodings, CoaT's

_STEM: Final = re.compile(r"^(stem|conv1)$")

_BIAS: Final = re.compile(r"^(bias|\w+_bias)$")


def part_of(name: str, shapes: Mapping[str, Outline]) -> Part:
    """The part of one tensor.

    Args:
        name: whose.
        shapes: all tensors of the file by name: a bias is a norm's if the weight beside it is.
    """
    *path, leaf = name.split(".")
    if _is_norm(path, leaf, shapes):
        return Part.NORM
    if _is_embedding(path, leaf):
        return Part.EMBED
    flat = len(shapes[name].shape) <= 1
    if flat:
        return Part.BIAS if _BIAS.match(leaf) else Part.NORM
    return _inside([*path, leaf])


def select(
    names: Collection[str], shapes: Mapping[str, Outline], parts: Collection[Part]
) -> frozenset[str]:
    """The tensors of some parts; of no parts, all.

    Raises:
        MismatchError: there are none.
    """
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
