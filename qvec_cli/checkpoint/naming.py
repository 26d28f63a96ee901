"""What the names in a state dict tell: wrappers around a network, strays beside it, its head."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

HEADS: Final = (
    *("head", "head.l", "head.head.l", "head.head_dist.l", "head.classifier"),
    *("head.classifier.linear", "head.fc", "head.fc.fc2", "head.fc2", "head.linear", "head.proj"),
    *("head.layers.head", "head_dist", "head_dist.linear", "aux_head", "heads", "heads_dist"),
    *("heads.head", "cls_head", "cls_head.fc", "mlp_head", "fc", "linear", "last_linear"),
    *("logits", "output", "score", "classif", "classifier", "classifier.out_proj"),
    *("cls_classifier", "distillation_classifier", "classification_head"),
)
"""What timm, its neighbours and people's scripts call the classifier, or a list of its layers."""

WRAPPED: Final = "timm_model."
"""What stands before every name of timm's inside transformers' wrapper."""


def is_of_transformers(config: Mapping[str, Any] | None) -> bool:
    """Whether a config.json is of a network that transformers has itself, and not timm."""
    kind = (config or {}).get("model_type")
    return isinstance(kind, str) and kind != "timm_wrapper"


_AROUND: Final = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What compile, sharding and activation checkpointing put around modules, at any depth."""

_WRAPPERS: Final = ("module.", "model.", WRAPPED, "_forward_module.", *_AROUND)
"""What DDP, Lightning, the paper's own code and transformers, too, put before every name."""

_STRAY: Final = re.compile(r"(n_averaged|criterion|loss|loss_f(n|unc|unction))($|\.)")
"""What averaging and weighted losses leave beside a network."""

_NUMBERS: Final = re.compile(r"(\.\d+)+$")  # of layers, at the end of a module's name

_MOST: Final = 0.9
"""Share of the names that a wrapper's prefix is before, where others stand beside the network."""

_PART: Final = 0.2
"""The same, of one of several networks that a file holds."""

_DEEPEST: Final = 6  # words before a head


class Unwrapped(NamedTuple):
    """The names of a network without what wrappers and training put around it."""

    names: dict[str, str]  # the name without wrappers, by the one in the file
    strays: tuple[str, ...]  # names in the file that are no part of the network
    prefix: str  # what was before every name


def unwrap(names: Iterable[str]) -> Unwrapped:
    """Takes away wrappers around all of a network, and what stands beside it.

    A prefix of another word than wrappers have is taken away if a head is behind it: then all of a
    network is, and what is not behind it is none of it.
    """
    kept, strays, taken = {name: name for name in names}, [], ""
    while kept:
        out = [name for name, inner in kept.items() if _STRAY.match(inner)]
        if len(out) < len(kept):  # else they are all that there is
            strays += out
            kept = {name: inner for name, inner in kept.items() if name not in out}
        if not (prefix := _wrapper(kept.values())):
            break
        taken += prefix
        strays += [name for name, inner in kept.items() if not inner.startswith(prefix)]
        kept = {n: i.removeprefix(prefix) for n, i in kept.items() if i.startswith(prefix)}
    plain = {name: _without_wrappers(inner) for name, inner in kept.items()}
    one_each = len(set(plain.values())) == len(kept)
    return Unwrapped(plain if one_each else kept, tuple(strays), taken)


def _without_wrappers(name: str) -> str:
    for word in _AROUND:
        name = name.replace(f".{word}", ".")
    return name


def _wrapper(names: Iterable[str]) -> str:
    """The one word, with its dot, that is to be taken away next; empty: none is."""
    names = list(names)
    word, count = Counter(name.split(".", 1)[0] for name in names).most_common(1)[0]
    prefix = f"{word}."
    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    if not all(inside) or count != len(inside) or count < _MOST * len(names):
        return ""
    if any(part[0].isdigit() for part in inside):  # a list of layers
        return ""
    if heads(name for name in names if not name.startswith(prefix)):  # a network around it
        return ""
    whole = count == len(names) and prefix in _WRAPPERS
    return prefix if whole or heads(inside) else ""


def heads(names: Iterable[str]) -> tuple[str, ...]:
    """The tensors of the classifier, by whole words at the end of their names.

    Before these words nothing may stand but what a part of all names begins with; after them,
    numbers of layers.
    """
    names = tuple(names)
    modules = {f"{prefix}{head}" for prefix in _shared(names, "") for head in HEADS}
    return tuple(name for name in names if _module(name) in modules)


def _module(name: str) -> str | None:
    """The module of a weight or a bias, or the list that it is in."""
    module, _, leaf = name.rpartition(".")
    return _NUMBERS.sub("", module) if leaf in ("weight", "bias") else None


def _shared(names: tuple[str, ...], prefix: str, total: int | None = None) -> Iterator[str]:
    """Nothing, and what a good part of the names begins with, word by word."""
    yield prefix
    if prefix.count(".") >= _DEEPEST:
        return
    total = total or len(names)
    words = Counter(name.removeprefix(prefix).split(".", 1)[0] for name in names)
    for word, count in words.items():
        longer = f"{prefix}{word}."
        inside = tuple(name for name in names if name.startswith(longer))
        if count == len(inside) and count >= _PART * total and not word.isdigit():
            yield from _shared(inside, longer, total)
