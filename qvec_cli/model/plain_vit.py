"""What a plain ViT computes: read from timm's network, and made by timm's name and arguments.

Rates of dropout, which evaluation does not see, and initial values are no part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.errors import MismatchError, SpecError, located
from qvec_cli.model import build
from qvec_cli.model.build import NetworkOptions
from qvec_cli.model.configuration import Model, with_norm_eps

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class PlainViT:
    """Patches, a class token and perhaps others, blocks x + f(norm(x)), heads on those tokens."""

    width: int
    depth: int
    heads: int  # of attention
    hidden: int  # rows of an MLP's first matrix, of both its halves where it is ``gated``
    patch: int  # pixels along a side
    image: int  # the same
    channels: int
    classes: int  # 0: the class token is what comes out
    eps: float  # of every LayerNorm
    activation: str  # in timm's word
    gated: bool  # SwiGLU: silu(first half) * second half
    qkv_bias: bool
    scaled: bool  # LayerScale behind attention and MLP
    registers: int  # tokens behind the class token that no head reads
    distilled: bool  # one token behind the class token that a second head reads
    embedded: bool  # whether tokens before the patches have position embeddings too

    @property
    def prefix(self) -> int:
        """Tokens before those of the patches."""
        return 1 + self.registers + self.distilled

    @property
    def patches(self) -> int:
        """Tokens of an image."""
        return (self.image // self.patch) ** 2


_ACTIVATION_TYPES: Final = {
    "GELU": "gelu",
    "GELUTanh": "gelu_tanh",
    "QuickGELU": "quick_gelu",
    "ReLU": "relu",
    "SiLU": "silu",
}
"""Classes that timm makes of its words."""


def of_timm(model: Model) -> PlainViT:
    """The network of a card of timm's, built without numbers and looked at.

    Raises MismatchError: names the argument, and the value that transformers has nothing for.
    """
    import torch

    with torch.device("meta"):
        network = build.rebuild(model)
    return of_network(network)


def of_network(network: nn.Module) -> PlainViT:
    """What a network of timm's computes, numbers or none; MismatchError as ``of_timm``."""
    faults = _faults(network)
    if (fault := next(faults, None)) is not None:
        raise MismatchError(f"{fault}: transformers has no such network, or not of timm's tensors")
    timms: Any = network
    block, embed = timms.blocks[0], timms.patch_embed
    distilled = type(network).__name__ == _DISTILLED
    return PlainViT(
        width=timms.embed_dim,
        depth=len(timms.blocks),
        heads=block.attn.num_heads,
        hidden=block.mlp.fc1.out_features,
        patch=embed.patch_size[0],
        image=embed.img_size[0],
        channels=embed.proj.in_channels,
        classes=timms.num_classes,
        eps=timms.norm.eps,
        activation=_ACTIVATION_TYPES[type(block.mlp.act).__name__],
        gated=type(block.mlp).__name__ == "GluMlp",
        qkv_bias=block.attn.qkv.bias is not None,
        scaled=type(block.ls1).__name__ == "LayerScale",
        registers=timms.num_prefix_tokens - 1 - distilled,
        distilled=distilled,
        embedded=not timms.no_embed_class,
    )


_DISTILLED: Final = "VisionTransformerDistilled"
_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "patch_embed": ("PatchEmbed",),
    "patch_embed.norm": ("Identity",),
    "norm_pre": ("Identity",),
    "norm": ("LayerNorm",),
    "fc_norm": ("Identity",),
}
"""Modules of a network, and the classes that they may be of."""

_BLOCK_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "": ("Block",),
    "norm1": ("LayerNorm",),
    "attn": ("Attention",),
    "attn.q_norm": ("Identity",),
    "attn.norm": ("Identity",),  # not in every version of timm
    "ls1": ("Identity", "LayerScale"),
    "norm2": ("LayerNorm",),
    "mlp": ("Mlp", "GluMlp"),
    "mlp.act": tuple(_ACTIVATION_TYPES),
    "mlp.norm": ("Identity",),
    "ls2": ("Identity", "LayerScale"),
}
"""The same of a block."""


def _faults(network: nn.Module) -> Iterator[str]:
    """What keeps a network of timm's from being one of transformers', an argument at a time."""
    timms: Any = network
    if (kind := type(network).__name__) not in ("VisionTransformer", _DISTILLED):
        yield kind
    if timms.global_pool != "token":
        yield f"global_pool {timms.global_pool!r}"
    if timms.pos_embed is None:
        yield "pos_embed 'none'"
    modules = dict(network.named_modules())
    yield from _strange(modules, "", _PARTS)
    for n in range(len(timms.blocks)):
        yield from _strange(modules, f"blocks.{n}", _BLOCK_PARTS)
    yield from _uneven(timms.blocks)
    if len(eps := {m.eps for m in modules.values() if type(m).__name__ == "LayerNorm"}) > 1:
        yield f"norms of several eps ({', '.join(f'{e:g}' for e in sorted(eps))})"
    yield from _oblong(timms.patch_embed)


def _oblong(embed: Any) -> Iterator[str]:
    """What makes patches no squares of a square."""
    if embed.dynamic_img_pad:
        yield "dynamic_img_pad True"
    for word in ("img_size", "patch_size"):
        sides = getattr(embed, word)
        if sides is None or sides[0] != sides[1]:
            yield f"{word} {sides}"


def _strange(
    modules: Mapping[str, nn.Module], within: str, parts: Mapping[str, tuple[str, ...]]
) -> Iterator[str]:
    """Modules of other classes than those of a plain ViT."""
    for part, kinds in parts.items():
        name = ".".join(filter(None, (within, part)))
        if name in modules and (kind := type(modules[name]).__name__) not in kinds:
            yield f"{name} is a {kind}"


def _uneven(blocks: Iterable[Any]) -> Iterator[str]:
    """What one block has and another has not, or a plain one has not."""
    kinds = set()
    for n, block in enumerate(blocks):
        act, mlp, attn = block.mlp.act, block.mlp, block.attn
        gated = type(mlp).__name__ == "GluMlp"
        if gated and (mlp.gate_last or type(act).__name__ != "SiLU"):
            yield f"blocks.{n}.mlp gates otherwise than SwiGLU"
        if getattr(act, "approximate", "none") != "none":
            yield f"blocks.{n}.mlp.act approximates by {act.approximate}"
        scales = type(block.ls1), type(block.ls2)
        kinds.add((type(act), gated, scales, attn.num_heads, mlp.fc1.out_features))
        if scales[0] is not scales[1]:
            yield f"blocks.{n} has one LayerScale"
    if len(kinds) > 1:
        yield "blocks that differ"


_SIZES: Final = {
    (192, 12, 3): "tiny",
    (384, 12, 6): "small",
    (768, 12, 12): "base",
    (1024, 24, 16): "large",
    (1280, 32, 16): "huge",
}
"""timm's word for width, depth and heads."""

_ARGUMENTS: Final = {
    "width": "embed_dim",
    "depth": "depth",
    "heads": "num_heads",
    "patch": "patch_size",
    "image": "img_size",
    "channels": "in_chans",
    "activation": "act_layer",
    "qkv_bias": "qkv_bias",
    "registers": "reg_tokens",
}
"""timm's arguments that are called otherwise and mean the same."""


def timms_name(vit: PlainViT, name: str | None = None) -> tuple[str, dict[str, Any]]:
    """The architecture of timm's that computes a network, and the arguments beside its name.

    Args:
        vit: the network.
        name: the architecture that the user wants it to be one of; otherwise the nearest.

    Raises MismatchError: that architecture cannot be it. SpecError: timm does not know the name.
    """
    import torch

    name = name or _nearest(vit)
    with torch.device("meta"):
        plain, model = build.create(NetworkOptions(name, vit.classes))
    with located(name):
        args = _arguments(vit, of_network(plain))
    result = replace(model, model_args=args, num_classes=vit.classes)
    try:
        made = of_timm(result)
    except SpecError as fault:
        raise MismatchError(f"{name} cannot be such a network: {fault}") from None
    if other := [f.name for f in fields(vit) if getattr(vit, f.name) != getattr(made, f.name)]:
        words = [f"{word} {getattr(vit, word)}" for word in other]
        raise MismatchError(f"{name} cannot be a network of {', '.join(words)}")
    return model.architecture, args


def _nearest(vit: PlainViT) -> str:
    """The architecture whose settings are a network's, or most of them."""
    size = _SIZES.get((vit.width, vit.depth, vit.heads), "base")
    registers = "_reg4" if vit.registers else ""
    if vit.gated:
        return f"vit_giant_patch14{registers}_dinov2"
    if vit.scaled:
        size = size if size in ("small", "large") else "base"
        return f"vit_{size}_patch14{registers}_dinov2"
    if vit.distilled:
        size = size if size in ("tiny", "small") else "base"
        return (
            f"deit_{size}_distilled_patch16_{384 if vit.image == 384 and size == 'base' else 224}"
        )
    names = [f"vit_{size}_patch{vit.patch}_{image}" for image in (vit.image, 224)]
    names += [f"vit_{size}_patch{patch}_224" for patch in (16, 14)]
    return next(name for name in names if name in build.known_names())


def _arguments(vit: PlainViT, plain: PlainViT) -> dict[str, Any]:
    """The arguments of timm's constructor with which one network becomes another."""
    pairs = {word: (getattr(vit, f), getattr(plain, f)) for f, word in _ARGUMENTS.items()}
    args = {word: wanted for word, (wanted, has) in pairs.items() if wanted != has}
    if int(vit.width * (ratio := plain.hidden / plain.width)) != vit.hidden:
        ratio = vit.hidden / vit.width
        args["mlp_ratio"] = (
            ratio if int(vit.width * ratio) == vit.hidden else ratio + 0.5 / vit.width
        )
    if vit.eps != plain.eps:
        args |= with_norm_eps(vit.eps)
    if vit.scaled and not plain.scaled:
        args["init_values"] = 1e-5
    if vit.embedded != plain.embedded:
        args["no_embed_class"] = not vit.embedded
    return args
