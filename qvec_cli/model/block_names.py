"""The parts of vision transformers under transformers' names, in timm's words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, Final

from qvec_cli.errors import MismatchError
from qvec_cli.model.basis import Basis, Shapes, TensorChange, basis_of

_KINDS: Final = (
    *("vit", "deit", "beit", "data2vec_vision", "dinov2", "dinov2_with_registers", "swin"),
    *("clip", "siglip", "clip_vision_model", "siglip_vision_model"),
)
"""Networks of blocks x + f(norm(x)) whose parts have these names, by their word in config.json."""

_BODY: Final = re.compile(
    r"^(vit|deit|beit|data2vec_vision|dinov2|dinov2_with_registers|swin|vision_model)\."
)
_STAGE: Final = re.compile(r"^encoder\.layers\.(\d+)\.(?=blocks|downsample)")
_BLOCK: Final = re.compile(r"^encoder\.layers?\.(\d+)\.")

_PARTS: Final = (
    (r"embeddings\.(cls_token|mask_token)", r"\1"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.patch_embeddings?(\.projection)?\.", "patch_embed.proj."),
    (r"embeddings\.position_embedding(s|\.weight)", "pos_embed"),
    (r"embeddings\.norm\.", "patch_embed.norm."),
    (r"pre_layrnorm\.", "norm_pre."),
    (r"(post_)?layernorm\.", "norm."),
    (r"pooler\.layernorm\.", "fc_norm."),
    (r"classifier\.|cls_classifier\.", "head."),
    (r"distillation_classifier\.", "head_dist."),
)
"""Outside of blocks."""

_WITHIN: Final = (
    (r"attention\.(attention|self)\.(q|k|v)(uery|ey|alue)\.", r"attn.\2."),
    (r"self_attn\.(q|k|v)_proj\.", r"attn.\1."),
    (r"(attention\.output\.dense|self_attn\.out_proj)\.", "attn.proj."),
    (
        r"attention\.(attention|self)\.(relative_position_bias\.)?relative_position_bias_table",
        "attn.relative_position_bias_table",
    ),
    (r"(intermediate\.dense|mlp\.weights_in)\.", "mlp.fc1."),
    (r"(output\.dense|mlp\.weights_out)\.", "mlp.fc2."),
    (r"(layernorm_before|layer_norm1)\.", "norm1."),
    (r"(layernorm_after|layer_norm2)\.", "norm2."),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"lambda_(\d)", r"gamma_\1"),
)
"""Inside of a block."""


def basis_of_transformers(shapes: Shapes, config: Mapping[str, Any], seed: int) -> Basis:
    """The basis of a network of transformers'; see ``basis_of``.

    Args:
        shapes: of its tensors, by the names that they have in files.
        config: what config.json says.
        seed: of the signs in R.

    Raises MismatchError: it is none of the networks whose blocks are x + f(norm(x)).
    """
    kind = config.get("model_type")
    if kind not in _KINDS:
        raise MismatchError(
            f"{kind} cannot be rotated: its blocks are not x + f(norm(x)), or not known here",
            hint="ViT, DeiT, BEiT, DINOv2, Swin, CLIP and SigLIP can be.",
        )
    vision = config.get("vision_config")
    seen = vision if isinstance(vision, Mapping) else config
    heads = seen.get("num_attention_heads", seen.get("num_heads", 12))
    counts = heads if isinstance(heads, list) else [heads]
    if not counts or not all(type(count) is int and count > 0 for count in counts):
        raise MismatchError(f"num_attention_heads {heads!r} is no number of attention heads")
    names = timm_names(shapes)
    basis = basis_of({word: shapes[name] for word, name in names.items()}, heads, None, seed)
    changes = {names[word]: _renamed(change, names) for word, change in basis.changes.items()}
    return replace(basis, changes=changes)


def timm_names(names: Iterable[str]) -> dict[str, str]:
    """Names of a network of transformers', by what timm would call them.

    What reads texts has no part in it; what timm has no word for keeps its name.
    """
    names = [name for name in names if not name.startswith(("text_model.", "text_projection."))]
    return {_timm_name(name): name for name in names}


def _timm_name(name: str) -> str:
    inner = _BODY.sub("", name)
    if stage := _STAGE.match(inner):
        rest = inner[stage.end() :]  # merging neighbours ends a stage here, and begins one in timm
        place = int(stage[1]) + rest.startswith("downsample.")
        block = re.match(r"blocks\.\d+\.", rest)
        start = block[0] if block else ""
        return f"layers.{place}.{start}{_replaced(rest.removeprefix(start), _WITHIN)}"
    if block := _BLOCK.match(inner):
        return f"blocks.{block[1]}.{_replaced(inner[block.end() :], _WITHIN)}"
    return _replaced(inner, _PARTS)


def _replaced(name: str, table: Iterable[tuple[str, str]]) -> str:
    """A name whose beginning is put into timm's words, where a row of the table has it."""
    for pattern, words in table:
        new, count = re.subn(f"^{pattern}", words, name)
        if count:
            return new
    return name


def _renamed(change: TensorChange, names: Mapping[str, str]) -> TensorChange:
    """A change whose tensors have their names in files."""
    words = {each.name: getattr(change, each.name) for each in fields(change)}
    named: dict[str, Any] = {k: names[v] for k, v in words.items() if isinstance(v, str)}
    if change.beta is not None:
        weight, beta = change.beta
        return replace(change, **named, beta=(names[weight], names[beta]))
    return replace(change, **named)
