"""A network of timm's at the classes, channels, size and widths that the tensors of a file have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.errors import MismatchError, SpecError
from qvec_cli.model.build import NetworkOptions, create
from qvec_cli.model.configuration import Model

if TYPE_CHECKING:
    from torch import nn

Shapes = Mapping[str, tuple[int, ...]]

_LARGEST: Final = 256  # patches along a side that are tried

_UNIT: Final = 32
"""Pixels by which image sizes are tried where a network has no patches."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """A network without numbers, and what was taken from the tensors."""

    network: nn.Module
    model: Model
    options: NetworkOptions  # with all that was taken
    sized: bool  # whether the image size is said, or the tensors tell it


def fitted(options: NetworkOptions, shapes: Shapes) -> Fitting:
    """The network of a name, at what is said of it and otherwise at what the tensors tell.

    ``shapes`` are those of every tensor. It need not fit in the end: ``build.load`` tells.
    Raises SpecError: a name or argument that timm does not know, a number of heads that only the
    user can know; MismatchError: images that have no such channels.
    """
    said = options
    for find in (_classes, _channels, _geometry, _tokens, _image_size):
        taken = find(options, shapes)
        try:
            _built(taken)
        except SpecError:  # what was taken from the tensors makes no network: it is another one
            continue
        options = taken
    network, model = _built(options)
    sized = said.img_size is not None or _tells_size(options, model)
    return Fitting(network, model, options, sized)


_known: dict[str, tuple[nn.Module, Model]] = {}
"""Networks without numbers that were built already, by their options."""


def _built(options: NetworkOptions) -> tuple[nn.Module, Model]:
    import torch

    key = repr(options)
    if key not in _known:
        with torch.device("meta"):
            _known[key] = create(options)
    return _known[key]


def _own_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _classes(options: NetworkOptions, shapes: Shapes) -> NetworkOptions:
    """As many as the classifier has rows; none where it is not there."""
    if options.num_classes is not None:
        return options
    _, model = _built(replace(options, num_classes=1))
    heads = [shapes[name] for module in model.classifier if (name := f"{module}.weight") in shapes]
    return replace(options, num_classes=heads[0][0] if heads else 0)


def _channels(options: NetworkOptions, shapes: Shapes) -> NetworkOptions:
    """Those of the first convolution."""
    if options.in_chans is not None:
        return options
    network, _ = _built(options)
    first = getattr(network, "pretrained_cfg", {}).get("first_conv")
    first = first[0] if isinstance(first, (list, tuple)) else first
    ours, theirs = (table.get(f"{first}.weight", ()) for table in (_own_shapes(network), shapes))
    if len(theirs) != 4 or len(ours) != 4 or theirs[1] == ours[1]:
        return options
    if not 1 <= theirs[1] <= 3:
        raise MismatchError(
            f"{first}.weight takes {theirs[1]} channels, and images have 1 to 3",
            hint="Such a network cannot be fed with images here.",
        )
    return replace(options, in_chans=theirs[1])


def _geometry(options: NetworkOptions, shapes: Shapes) -> NetworkOptions:
    """Width, depth and patch of a plain ViT; how many heads it has, no shape tells."""
    network, _ = _built(options)
    blocks, patch = getattr(network, "blocks", None), shapes.get("patch_embed.proj.weight", ())
    ours = _own_shapes(network)
    stem = ours.get("patch_embed.proj.weight", ())
    if (
        "blocks.0.attn.qkv.weight" not in ours
        or blocks is None
        or len(patch) != 4
        or len(stem) != 4
    ):
        return options
    depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    found: dict[str, Any] = {}
    found |= {"depth": depth} if depth != len(blocks) else {}
    found |= {"patch_size": patch[-1]} if patch[-1] != stem[-1] else {}
    if patch[0] != stem[0]:
        found["embed_dim"] = patch[0]
        if "num_heads" not in options.args:
            raise SpecError(
                f"{options.name} is {stem[0]} wide, the file {patch[0]}: it is another network, or "
                "one whose number of heads no tensor tells",
                hint="Name another --model, or say it: --model-arg num_heads=N.",
            )
    return replace(options, args={**found, **options.args})


def _tokens(options: NetworkOptions, shapes: Shapes) -> NetworkOptions:
    """Whether a ViT has a class token, and what its head sees."""
    ours, found = _own_shapes(_built(options)[0]), {}
    if "cls_token" in ours and "cls_token" not in shapes:
        found = {"class_token": False, "global_pool": "avg"}
    if "norm.weight" in ours and "norm.weight" not in shapes and "fc_norm.weight" in shapes:
        found["global_pool"] = "avg"
    if "fc_norm.weight" in ours and "fc_norm.weight" not in shapes and "norm.weight" in shapes:
        found["global_pool"] = "token"
    return replace(options, args={**found, **options.args})


def _image_size(options: NetworkOptions, shapes: Shapes) -> NetworkOptions:
    """The size at which tensors that grow with it are as large as those of the file."""
    if options.img_size is not None:
        return options
    network, _ = _built(options)
    ours = _own_shapes(network)
    grown = [n for n in ours if n in shapes and _only_longer(ours[n], shapes[n])]
    if not grown:
        return options
    embedding = getattr(network, "patch_embed", None)
    unit = int(getattr(embedding, "patch_size", (_UNIT,))[0])

    def size_at(patches: int) -> int:
        try:
            sized = _own_shapes(_built(replace(options, img_size=unit * patches))[0])
        except SpecError:
            return 0  # too small to be made
        return math.prod(sized[grown[0]])

    long = math.prod(shapes[grown[0]])
    guess = _square(ours[grown[0]], shapes[grown[0]])
    patches = guess if guess and size_at(guess) == long else _first(size_at, long)
    return replace(options, img_size=unit * patches) if patches else options


def _only_longer(ours: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
    """Whether two shapes differ in one of their sides."""
    return len(ours) == len(theirs) and sum(a != b for a, b in zip(ours, theirs, strict=True)) == 1


def _square(ours: tuple[int, ...], theirs: tuple[int, ...]) -> int:
    """Patches along a side, were both tokens of a square behind as many others; 0: they are not."""
    (old, new) = next((a, b) for a, b in zip(ours, theirs, strict=True) if a != b)
    others = old - math.isqrt(old) ** 2
    side = math.isqrt(max(new - others, 0))
    return side if side**2 + others == new else 0


def _first(grows: Callable[[int], int], wanted: int) -> int | None:
    """The number at which a growing function has a value; None: at none."""
    low, high = 1, _LARGEST
    while low < high:
        middle = (low + high) // 2
        if grows(middle) < wanted:
            low = middle + 1
        else:
            high = middle
    return low if grows(low) == wanted else None


def _tells_size(options: NetworkOptions, model: Model) -> bool:
    """Whether a tensor would be longer at another image size."""
    try:
        sizes = [2 * side for side in model.input_size[1:]]
        other = _own_shapes(_built(replace(options, img_size=sizes[0]))[0])
    except SpecError:
        return False
    return other != _own_shapes(_built(options)[0])
