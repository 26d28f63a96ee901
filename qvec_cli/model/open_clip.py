"""open_clip's vision transformers as transformers' CLIP: the tower and the projection behind it.

What reads texts is left out. Shapes tell neither activation nor attention heads: those are what
open_clip_config.json says. Without it the user says the activation, and heads are 64 channels wide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from qvec_cli.errors import MismatchError
from qvec_cli.model.configuration import Model
from qvec_cli.model.spelling import (
    Assembly,
    Link,
    Piece,
    Shapes,
    Spelling,
    assemblies,
    layer,
    require_shapes,
)
from qvec_cli.model.transformers_config import prepared_as
from qvec_cli.specs import Library

CONFIG: Final = "open_clip_config.json"
_ARCHITECTURE: Final = "CLIPVisionModelWithProjection"
_WITHIN: Final = "visual."
_BLOCK: Final = f"{_WITHIN}transformer.resblocks."
_PROJECTION: Final = "visual_projection.weight"
_TARGETS: Final = ("in_proj_weight", "out_proj.weight", "c_fc.weight", "c_proj.weight")
_HEAD_WIDTH: Final = 64

_PLAIN: Final = (
    *("width", "layers", "head_width", "mlp_ratio", "patch_size", "image_size"),
    *("patch_dropout", "output_tokens"),
)
"""Words of vision_cfg that shapes tell too, or that are heeded, or that evaluation does not see."""

_PREPARATION: Final = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
"""How open_clip prepares images where nothing else is said."""

_MODES: Final = {"shortest": "center", "squash": "squash"}
"""open_clip's words for how proportions fare, and timm's."""


def is_open_clip(names: Iterable[str]) -> bool:
    """Whether tensors have the names of a vision transformer of open_clip's."""
    return f"{_BLOCK}0.attn.in_proj_weight" in names


def targets_of(names: Iterable[str]) -> tuple[str, ...]:
    """The weights of the tower that are quantized, by open_clip's names."""
    return tuple(n for n in names if n.startswith(_BLOCK) and n.endswith(_TARGETS))


def spelled_from_open_clip(
    shapes: Shapes, config: Mapping[str, Any], said: Mapping[str, Any], prepared: Mapping[str, Any]
) -> Spelling:
    """transformers' spelling of a vision transformer of open_clip's.

    Args:
        shapes: of every tensor of the file.
        config: what open_clip_config.json says, nothing where there is none.
        said: what the user says: hidden_act.
        prepared: the same of images, in timm's words.

    Raises MismatchError: another network than transformers' CLIP has; names word or tensor.
    """
    model_cfg, data = config.get("model_cfg", {}), config.get("preprocess_cfg", {})
    vision = model_cfg.get("vision_cfg", {}) if isinstance(model_cfg, dict) else None
    if not (isinstance(vision, dict) and isinstance(data, dict)):
        raise MismatchError(f"{CONFIG}: vision_cfg and preprocess_cfg are objects")
    for word, value in vision.items():
        if word not in _PLAIN and value and (word, value) != ("pool_type", "tok"):
            raise MismatchError(f"{CONFIG}: {word} {value!r}: transformers' CLIP has no such word")
    act = said.get("hidden_act")
    if act is None and config:
        act = "quick_gelu" if model_cfg.get("quick_gelu") else "gelu"
    if act not in ("gelu", "quick_gelu") or said.keys() - {"hidden_act"}:
        raise MismatchError(
            f"no tensor tells its activation, and no {CONFIG} beside it",
            hint="--model-arg hidden_act=quick_gelu is that of OpenAI's weights, hidden_act=gelu "
            "that of most others; shapes tell all else.",
        )
    own = {name: shape for name, shape in shapes.items() if name.startswith(_WITHIN)}
    words = {**_words(own, vision.get("head_width", _HEAD_WIDTH)), "hidden_act": act}
    links = [*_links(words)]
    require_shapes(own, links, "timm")
    tensors = assemblies([link for link in links if link.hub != _PROJECTION], "hub")
    width, joint = words["hidden_size"], words["projection_dim"]
    piece = Piece(f"{_WITHIN}proj", 0, width)
    tensors[_PROJECTION] = Assembly((joint, width), 0, (piece,), transposed=True)
    return Spelling(_model(words, {**_PREPARATION, **data}, prepared), tensors, ())


def _words(shapes: Shapes, head_width: Any) -> dict[str, Any]:
    """What shapes tell of a tower, in the words of config.json."""
    counts = {"conv1.weight": 4, "positional_embedding": 2, "proj": 2}
    counts["transformer.resblocks.0.mlp.c_fc.weight"] = 2
    for name, count in counts.items():
        if len(shapes.get(_WITHIN + name, ())) != count:
            raise MismatchError(f"{_WITHIN}{name}: is missing, or of other dimensions")
    kernel, positions, projection, hidden = (shapes[_WITHIN + name] for name in counts)
    if type(head_width) is not int or head_width < 1 or kernel[0] % head_width:
        raise MismatchError(f"head_width {head_width} does not divide {kernel[0]} channels")
    return {
        "model_type": "clip_vision_model",
        "hidden_size": kernel[0],
        "intermediate_size": hidden[0],
        "num_hidden_layers": len({n.split(".")[3] for n in shapes if n.startswith(_BLOCK)}),
        "num_attention_heads": kernel[0] // head_width,
        "num_channels": kernel[1],
        "patch_size": kernel[2],
        "image_size": math.isqrt(max(positions[0] - 1, 0)) * kernel[2],
        "projection_dim": projection[1],
        "layer_norm_eps": 1e-5,
    }


def _links(words: Mapping[str, Any]) -> Iterator[Link]:
    """Every number of a tower by open_clip's names and transformers'."""
    width, patch, hub = words["hidden_size"], words["patch_size"], "vision_model."
    patches = (words["image_size"] // patch) ** 2
    shapes: dict[tuple[str, str], tuple[int, ...]] = {
        ("class_embedding", "class_embedding"): (width,),
        ("conv1.weight", "patch_embedding.weight"): (width, words["num_channels"], patch, patch),
        ("positional_embedding", "position_embedding.weight"): (patches + 1, width),
    }
    for (name, hubs), shape in shapes.items():
        yield Link(f"{_WITHIN}{name}", f"{hub}embeddings.{hubs}", shape)
    yield from layer(f"{_WITHIN}ln_pre", f"{hub}pre_layrnorm", width)
    for n in range(words["num_hidden_layers"]):
        for e in _block(width, words["intermediate_size"]):
            yield e._replace(timm=f"{_BLOCK}{n}.{e.timm}", hub=f"{hub}encoder.layers.{n}.{e.hub}")
    yield from layer(f"{_WITHIN}ln_post", f"{hub}post_layernorm", width)
    yield Link(f"{_WITHIN}proj", _PROJECTION, (width, words["projection_dim"]))


def _block(width: int, hidden: int) -> Iterator[Link]:
    """A block, whose query, key and value are one matrix for open_clip."""
    for norm in ("1", "2"):
        yield from layer(f"ln_{norm}", f"layer_norm{norm}", width)
    for part in "qkv":
        yield Link("attn.in_proj_weight", f"self_attn.{part}_proj.weight", (width, width))
        yield Link("attn.in_proj_bias", f"self_attn.{part}_proj.bias", (width,))
    yield from layer("attn.out_proj", "self_attn.out_proj", width, width)
    yield from layer("mlp.c_fc", "mlp.fc1", hidden, width)
    yield from layer("mlp.c_proj", "mlp.fc2", width, hidden)


def _model(words: dict[str, Any], data: Mapping[str, Any], prepared: Mapping[str, Any]) -> Model:
    """The network, with images prepared as is said; MismatchError: in a way that has no name."""
    if (mode := data["resize_mode"]) not in _MODES:
        raise MismatchError(f"{CONFIG}: resize_mode {mode!r} has no name here")
    side, channels = words["image_size"], words["num_channels"]
    said: dict[str, Any] = {key: data[key] for key in ("mean", "std", "interpolation")}
    said |= {"crop_pct": 1.0, "crop_mode": _MODES[mode], **prepared}
    said |= {"input_size": [channels, side, side], "classifier": []}
    model = Model(_ARCHITECTURE, 0, words, said, Library.TRANSFORMERS)
    return prepared_as(Model.from_json(model.to_json()), said)
