"""The tensors of a plain ViT in timm's spelling and in transformers', and a file from one to other.

Tensors keep their bytes; query, key and value are one matrix in timm's spelling. What one library
has and the other lacks is zeros there, or nothing is converted:

- position embeddings of register tokens (timm's), of the class token (transformers', where timm's
  network is made with no_embed_class); what DINOv2's classifier adds for the mean of patches
  (transformers').
- DINOv2's mask token, with which pretraining covers patches, and a pooler beside a classifier do
  nothing: timm's spelling leaves them out, and transformers' has zeros for the token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from qvec_cli.checkpoint.dtypes import FORMATS, Array
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.write import Blocks
from qvec_cli.errors import MismatchError
from qvec_cli.model.configuration import DATA_KEYS, Model
from qvec_cli.model.plain_vit import PlainViT, of_timm, timms_name
from qvec_cli.model.transformers_config import prepared_as
from qvec_cli.model.vit_config import CLASSES, HubClass, of_config, to_config
from qvec_cli.specs import Library

Shapes = Mapping[str, tuple[int, ...]]
Reader = Callable[[str], Array]
"""From the name of a tensor to its numbers, in its shape."""

Side = Literal["timm", "hub"]
"""A spelling: timm's or transformers'."""


class Link(NamedTuple):
    """Numbers that both spellings have, or one of them alone, in the order of their tensors."""

    timm: str | None  # the tensor's name; None: there is none, and the other's has zeros
    hub: str | None
    shape: tuple[int, ...]  # of these numbers
    axis: int = 0  # along which a tensor is put together of several
    unread: bool = False  # whether no output depends on them, zeros or not

    def named(self, side: Side) -> str | None:
        """The tensor's name in a spelling."""
        return self.timm if side == "timm" else self.hub


class Piece(NamedTuple):
    """A part of a tensor of the file, or zeros."""

    name: str | None
    start: int  # along the axis
    stop: int


class Assembly(NamedTuple):
    """How a tensor is put together."""

    shape: tuple[int, ...]
    axis: int
    pieces: tuple[Piece, ...]
    transposed: bool = False  # of one piece, the whole of a matrix


@dataclass(frozen=True, slots=True)
class Spelling:
    """A network in the other library's words, and its tensors, put together of those of a file."""

    model: Model
    tensors: Mapping[str, Assembly]
    unread: tuple[str, ...]  # tensors of the file that are left out: no output depends on them

    def plan(self, source: Mapping[str, Entry]) -> dict[str, Entry]:
        """Dtype and shape of every tensor that is written; MismatchError: dtypes that differ."""
        return {n: Entry(_dtype(n, a, source), a.shape) for n, a in self.tensors.items()}

    def blocks(self, source: Mapping[str, Entry], read: Callable[[str], Iterator[Array]]) -> Blocks:
        """The data of every tensor, in the dtype of the file.

        Args:
            source: the tensors of the file.
            read: gives the raw elements of one of them, flat, block by block.
        """
        for name, assembly in self.tensors.items():
            numpys = FORMATS[_dtype(name, assembly, source)].numpy
            if assembly.transposed:
                whole = np.concatenate([*read(str(assembly.pieces[0].name))])
                yield name, [whole.reshape(assembly.shape[::-1]).T.reshape(-1)]
            elif math.prod(assembly.shape[: assembly.axis]) == 1:
                yield name, _stream(assembly, read, numpys)
            else:
                yield name, [_columns(assembly, source, read, numpys)]

    def names_of(self, names: Collection[str]) -> tuple[str, ...]:
        """The tensors that are put together of these tensors of the file alone."""
        parts = {n: {p.name for p in a.pieces if p.name} for n, a in self.tensors.items()}
        return tuple(name for name, sources in parts.items() if sources and sources <= {*names})


def spelled_by_timm(
    model: Model, shapes: Shapes, read: Reader, name: str | None = None
) -> Spelling:
    """timm's spelling of a network of transformers'.

    Args:
        model: a class of transformers' and its config.json.
        shapes: of every tensor of the file.
        read: is asked for position embeddings and the classifier.
        name: the architecture of timm's that it is wanted as; otherwise the nearest.

    Raises MismatchError: no network of timm's computes the same; names the word or the tensor.
    """
    vit, kind = of_config(model), CLASSES[model.architecture]
    links = links_of(vit, kind)
    pooler = [f"{kind.within}pooler.dense.{part}" for part in ("weight", "bias")]
    unread = [n for n in pooler if n in shapes and kind.classifiers]
    require_shapes({n: s for n, s in shapes.items() if n not in unread}, links, "hub")
    positions = f"{kind.within}embeddings.position_embeddings"
    if not _bits(read(positions)[:, : -vit.patches]).any():
        vit = replace(vit, embedded=False)
        links = links_of(vit, kind)
    _require_zeros(links, "hub", read)
    unread += [link.hub for link in links if link.unread and link.hub and link.hub in shapes]
    architecture, args = timms_name(vit, name)
    spelled = replace(model, library=Library.TIMM, architecture=architecture, model_args=args)
    heads = ("head", "head_dist") if vit.distilled else ("head",)
    return Spelling(_headed(spelled, heads, vit), assemblies(links, "timm"), tuple(unread))


def spelled_by_transformers(model: Model, shapes: Shapes, read: Reader) -> Spelling:
    """transformers' spelling of a network of timm's.

    Args:
        model: timm's.
        shapes: of every tensor of the file.
        read: is asked for position embeddings.

    Raises MismatchError: no class of transformers computes the same; names the argument or tensor.
    """
    vit = of_timm(model)
    architecture, config = to_config(vit)
    kind = CLASSES[architecture]
    links = links_of(vit, kind)
    require_shapes(shapes, links, "timm")
    _require_zeros(links, "timm", read)
    hubs = Library.TRANSFORMERS
    spelled = replace(model, library=hubs, architecture=architecture, model_args=config)
    return Spelling(_headed(spelled, kind.classifiers, vit), assemblies(links, "hub"), ())


def _headed(model: Model, heads: Sequence[str], vit: PlainViT) -> Model:
    """With the names of the classifier's modules, and images prepared in the library's words."""
    named = heads[0] if len(heads) == 1 else list(heads)
    data = {key: model.pretrained_cfg[key] for key in DATA_KEYS}
    data |= {"classifier": named, "num_classes": vit.classes}
    headed = replace(model, num_classes=vit.classes, pretrained_cfg=data)
    return headed if model.library is Library.TIMM else prepared_as(headed, data)


# --- names ----------------------------------------------------------------------------------------


def links_of(vit: PlainViT, kind: HubClass) -> list[Link]:
    """Every number of a network in both spellings."""
    links = [*_embeddings(vit, kind)]
    block = _dino_block(vit) if kind.dino else _vit_block(vit)
    for n in range(vit.depth):
        here, there = f"blocks.{n}.", f"{kind.within}encoder.layer.{n}."
        links += [e._replace(timm=f"{here}{e.timm}", hub=f"{there}{e.hub}") for e in block]
    links += layer("norm", f"{kind.within}layernorm", vit.width)
    for timms, hubs in zip(("head", "head_dist"), kind.classifiers, strict=False):
        weight, *bias = layer(timms, hubs, vit.classes, vit.width)
        mean = [weight._replace(timm=None, axis=1)] if kind.dino else []
        links += [weight._replace(axis=len(mean)), *mean, *bias] if vit.classes else []
    return links


def _embeddings(vit: PlainViT, kind: HubClass) -> Iterator[Link]:
    """Tokens, positions and patches."""
    within, token = f"{kind.within}embeddings.", (1, 1, vit.width)
    yield Link("cls_token", f"{within}cls_token", token)
    if kind.model_type == "deit":
        timms = "dist_token" if vit.distilled else "reg_token"
        yield Link(timms, f"{within}distillation_token", token)
    elif vit.registers:
        yield Link("reg_token", f"{within}register_tokens", (1, vit.registers, vit.width))
    if kind.dino:
        yield Link(None, f"{within}mask_token", (1, vit.width), unread=True)
    # DINOv2's registers have no position; DeiT's token, a register of timm's, has
    without = vit.registers if kind.dino else 0
    positions = f"{within}position_embeddings"
    rows = {"before": vit.prefix - without, "registers": without, "patches": vit.patches}
    for token_kind, count in rows.items():
        timm = "pos_embed" if vit.embedded or token_kind == "patches" else None
        hub = positions if token_kind != "registers" else None
        if count and (timm or hub):
            yield Link(timm, hub, (1, count, vit.width), 1)
    kernel = (vit.width, vit.channels, vit.patch, vit.patch)
    yield from layer("patch_embed.proj", f"{within}patch_embeddings.projection", *kernel)


def layer(timm: str, hub: str, *shape: int, bias: bool = True) -> list[Link]:
    """A weight and its bias."""
    links = [Link(f"{timm}.weight", f"{hub}.weight", shape)]
    return links + ([Link(f"{timm}.bias", f"{hub}.bias", shape[:1])] if bias else [])


def _attention(vit: PlainViT) -> list[Link]:
    """Query, key and value, one matrix in timm's spelling, and the projection behind them."""
    square = (vit.width, vit.width)
    links = []
    for name in ("query", "key", "value"):
        links += layer("attn.qkv", f"attention.attention.{name}", *square, bias=vit.qkv_bias)
    return links + layer("attn.proj", "attention.output.dense", *square)


def _vit_block(vit: PlainViT) -> list[Link]:
    """A block of ViT or DeiT."""
    return [
        *layer("norm1", "layernorm_before", vit.width),
        *_attention(vit),
        *layer("norm2", "layernorm_after", vit.width),
        *layer("mlp.fc1", "intermediate.dense", vit.hidden, vit.width),
        *layer("mlp.fc2", "output.dense", vit.width, vit.hidden),
    ]


def _dino_block(vit: PlainViT) -> list[Link]:
    """A block of DINOv2."""
    first, second = ("weights_in", "weights_out") if vit.gated else ("fc1", "fc2")
    inner = vit.hidden // 2 if vit.gated else vit.hidden
    return [
        *layer("norm1", "norm1", vit.width),
        *_attention(vit),
        Link("ls1.gamma", "layer_scale1.lambda1", (vit.width,)),
        *layer("norm2", "norm2", vit.width),
        *layer("mlp.fc1", f"mlp.{first}", vit.hidden, vit.width),
        *layer("mlp.fc2", f"mlp.{second}", vit.width, inner),
        Link("ls2.gamma", "layer_scale2.lambda1", (vit.width,)),
    ]


# --- pieces ---------------------------------------------------------------------------------------


def _by_tensor(links: Sequence[Link], side: Side) -> dict[str, list[int]]:
    """Which of the links each tensor of a spelling is put together of."""
    tensors: dict[str, list[int]] = {}
    for index, link in enumerate(links):
        if (name := link.named(side)) is not None:
            tensors.setdefault(name, []).append(index)
    return tensors


def _whole(parts: Sequence[Link]) -> tuple[int, ...]:
    """The shape of a tensor that is put together of parts."""
    axis, shape = parts[0].axis, list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    return tuple(shape)


def _places(links: Sequence[Link], side: Side) -> dict[int, Piece]:
    """Where the numbers of a link stand in the tensors of a spelling, by the link's index."""
    places = {}
    for name, indices in _by_tensor(links, side).items():
        start = 0
        for index in indices:
            stop = start + links[index].shape[links[index].axis]
            places[index], start = Piece(name, start, stop), stop
    return places


def assemblies(links: Sequence[Link], side: Side) -> dict[str, Assembly]:
    """Every tensor of a spelling, put together of pieces of the other's tensors."""
    places = _places(links, _other(side))
    assemblies = {}
    for name, indices in _by_tensor(links, side).items():
        parts = [links[index] for index in indices]
        zeros = (Piece(None, 0, part.shape[part.axis]) for part in parts)
        pieces = tuple(places.get(n, zero) for n, zero in zip(indices, zeros, strict=True))
        assemblies[name] = Assembly(_whole(parts), parts[0].axis, pieces)
    return assemblies


def _other(side: Side) -> Side:
    return "hub" if side == "timm" else "timm"


def require_shapes(shapes: Shapes, links: Sequence[Link], side: Side) -> None:
    """Refuses tensors that are not those of the configuration: MismatchError names one."""
    tensors = _by_tensor(links, side)
    for name, indices in tensors.items():
        parts = [links[index] for index in indices]
        if name not in shapes:
            if parts[0].unread:
                continue
            raise MismatchError(f"{name}: is missing, and its configuration wants it")
        if shapes[name] != (wanted := _whole(parts)):
            raise MismatchError(
                f"{name}: is {list(shapes[name])}, and by its configuration {list(wanted)}"
            )
    if strange := [name for name in shapes if name not in tensors]:
        raise MismatchError(f"{strange[0]}: has no place in the network of its configuration")


def _require_zeros(links: Sequence[Link], side: Side, read: Reader) -> None:
    """Refuses numbers of a file that the other spelling has no place for: MismatchError."""
    for index, (name, start, stop) in _places(links, side).items():
        link = links[index]
        if name is None or link.unread or link.named(_other(side)) is not None:
            continue
        if _bits(read(name).take(range(start, stop), link.axis)).any():
            reasons: dict[Side, str] = {
                "hub": "weighs the mean of patches too, and timm's head sees the class token alone",
                "timm": "has positions of register tokens, and transformers' network has none",
            }
            raise MismatchError(f"{name}: {reasons[side]}")


def _bits(values: Array) -> Array:
    """The bytes of an array: a negative zero is no zero."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def _dtype(name: str, assembly: Assembly, source: Mapping[str, Entry]) -> str:
    """The number format of a tensor: that of its pieces, or of the class token where all is zeros.

    MismatchError: they have several.
    """
    dtypes = {p.name: source[p.name].dtype for p in assembly.pieces if p.name is not None}
    if len({*dtypes.values()}) > 1:
        each = ", ".join(f"{part} in {dtype}" for part, dtype in dtypes.items())
        raise MismatchError(f"{name} is one tensor for timm: {each}")
    return next(iter(dtypes.values()), None) or source["cls_token"].dtype


def _stream(
    assembly: Assembly, read: Callable[[str], Iterator[Array]], numpys: np.dtype[Any]
) -> Iterator[Array]:
    """The blocks of a tensor whose pieces stand one behind another.

    A tensor of the file is always read to its end, for its digest.
    """
    inner = math.prod(assembly.shape[assembly.axis + 1 :])
    for name, start, stop in assembly.pieces:
        if name is None:
            yield np.zeros((stop - start) * inner, numpys)
            continue
        position = 0
        for block in read(name):
            first, last = (min(max(n * inner - position, 0), block.size) for n in (start, stop))
            if first < last:
                yield block[first:last]
            position += block.size


def _columns(
    assembly: Assembly,
    source: Mapping[str, Entry],
    read: Callable[[str], Iterator[Array]],
    numpys: np.dtype[Any],
) -> Array:
    """A classifier's weight, whose pieces stand side by side: the whole of it, flat."""
    rows, axis = math.prod(assembly.shape[: assembly.axis]), assembly.axis
    inner = math.prod(assembly.shape[axis + 1 :])
    pieces = []
    for name, start, stop in assembly.pieces:
        if name is None:
            pieces.append(np.zeros((rows, (stop - start) * inner), numpys))
            continue
        whole = np.concatenate([*read(name)]).reshape(rows, source[name].shape[axis] * inner)
        pieces.append(whole[:, start * inner : stop * inner])
    return np.concatenate(pieces, axis=1).reshape(-1)
