"""transformers' words for plain ViTs: config.json of ViT, DeiT and DINOv2, registers or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from qvec_cli.errors import MismatchError
from qvec_cli.model.configuration import Model
from qvec_cli.model.plain_vit import PlainViT


@dataclass(frozen=True, slots=True)
class HubClass:
    """A class of transformers', and how its tensors are called."""

    model_type: str
    within: str = ""  # what the names begin with that are not the classifier's
    classifiers: tuple[str, ...] = ()

    @property
    def dino(self) -> bool:
        """Whether blocks have DINOv2's names, and the classifier sees the mean of patches too."""
        return self.model_type.startswith("dinov2")


_REGISTERS: Final = "dinov2_with_registers"
CLASSES: Final = {
    "ViTForImageClassification": HubClass("vit", "vit.", ("classifier",)),
    "ViTModel": HubClass("vit"),
    "DeiTForImageClassification": HubClass("deit", "deit.", ("classifier",)),
    "DeiTForImageClassificationWithTeacher": HubClass(
        "deit", "deit.", ("cls_classifier", "distillation_classifier")
    ),
    "Dinov2ForImageClassification": HubClass("dinov2", "dinov2.", ("classifier",)),
    "Dinov2Model": HubClass("dinov2"),
    "Dinov2WithRegistersForImageClassification": HubClass(
        _REGISTERS, f"{_REGISTERS}.", ("classifier",)
    ),
    "Dinov2WithRegistersModel": HubClass(_REGISTERS),
}
"""The classes of transformers that are networks of timm's too."""

_DEFAULTS: Final[Mapping[str, Any]] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "num_register_tokens": 4,
}
"""What transformers takes where config.json is silent."""

_OF_DINO: Final = {"layer_norm_eps": 1e-6}
_OWN_DEFAULTS: Final = {"dinov2": {**_OF_DINO, "patch_size": 14}, _REGISTERS: _OF_DINO}

_ACTIVATIONS: Final = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}
"""transformers' word for an activation, and timm's; the first of several is written."""


def of_config(model: Model) -> PlainViT:
    """The network of a class of transformers' and its config.json.

    Whether its position embeddings are ``embedded`` for all tokens, only the tensors tell.
    Raises MismatchError: names the word, and the value that timm has nothing for.
    """
    kind = CLASSES.get(model.architecture)
    if kind is None:
        raise MismatchError(
            f"{model.architecture}: timm has no such network, or other tensors for it",
            hint=f"Two spellings have {', '.join(CLASSES)}.",
        )
    own = _OWN_DEFAULTS.get(kind.model_type, {})
    words = _Words({**_DEFAULTS, **own, **model.model_args})
    if "model_type" in model.model_args:
        words.require("model_type", kind.model_type)
    width, heads = words.whole("hidden_size"), words.whole("num_attention_heads")
    if width % heads:
        raise MismatchError(f"num_attention_heads {heads} do not divide hidden_size {width}")
    if "head_dim" in model.model_args:
        words.require("head_dim", width // heads)
    channels, *sides = model.input_size
    gated = kind.dino and words.switch("use_swiglu_ffn")
    if sides != [image := words.side("image_size")] * 2:
        raise MismatchError(
            f"image_size is {image}, and images are prepared at {sides[0]} px: position embeddings "
            "are interpolated as timm does not",
            hint=f"qvec import FOLDER --img-size {image} prepares them at its own size.",
        )
    words.require("num_channels", channels)
    return PlainViT(
        width=width,
        depth=words.whole("num_hidden_layers"),
        heads=heads,
        hidden=_hidden(words, width, gated) if kind.dino else words.whole("intermediate_size"),
        patch=words.side("patch_size"),
        image=image,
        channels=channels,
        classes=_classes(model, kind),
        eps=words.number("layer_norm_eps"),
        activation="silu" if gated else words.one_of("hidden_act", _ACTIVATIONS),
        gated=gated,
        qkv_bias=words.switch("qkv_bias"),
        scaled=kind.dino,
        registers=_registers(words, kind),
        distilled=len(kind.classifiers) > 1,
        embedded=True,
    )


@dataclass(frozen=True, slots=True)
class _Words:
    """What config.json says; a word of another kind is refused by name: MismatchError."""

    values: Mapping[str, Any]

    def require(self, key: str, wanted: object) -> None:
        if (value := self.values.get(key)) != wanted:
            raise _unlike(key, value, f"timm has {wanted!r} there")

    def whole(self, key: str) -> int:
        value = self.values[key]
        if type(value) is not int or value < 1:
            raise _unlike(key, value, "is no such number")
        return value

    def side(self, key: str) -> int:
        value = self.values[key]
        if isinstance(value, (list, tuple)) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if type(value) is not int or value < 1:
            raise _unlike(key, value, "only squares are converted")
        return value

    def switch(self, key: str) -> bool:
        value = self.values[key]
        if not isinstance(value, bool):
            raise _unlike(key, value, "is neither true nor false")
        return value

    def number(self, key: str) -> float:
        value = self.values[key]
        if type(value) not in (int, float) or not 0 < value < 1e6:
            raise _unlike(key, value, "is no such number")
        return float(value)

    def one_of(self, key: str, table: Mapping[str, str]) -> str:
        value = self.values[key]
        if not isinstance(value, str) or value not in table:
            raise _unlike(key, value, f"timm has the same as {', '.join(table)} only")
        return table[value]


def _unlike(key: str, value: object, reason: str) -> MismatchError:
    return MismatchError(f"{key} {value!r}: {reason}")


def _classes(model: Model, kind: HubClass) -> int:
    """Rows of the classifier."""
    if kind.dino and kind.classifiers and not model.num_classes:
        raise MismatchError(
            f"num_labels 0: a {model.architecture} gives the mean of patches too, and timm's "
            "network the class token alone"
        )
    return model.num_classes if kind.classifiers else 0


def _registers(words: _Words, kind: HubClass) -> int:
    """Tokens that no head reads: DeiT's for distillation is one where there is no teacher."""
    if kind.model_type == _REGISTERS:
        return words.whole("num_register_tokens")
    return int(kind.model_type == "deit" and len(kind.classifiers) < 2)


def _hidden(words: _Words, width: int, gated: bool) -> int:
    """Rows of the first matrix of DINOv2's MLP."""
    plain = int(width * words.number("mlp_ratio"))
    return 2 * _gated(plain) if gated else plain


def _gated(hidden: int) -> int:
    """Rows of either half of SwiGLU: two thirds, in steps of 8."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


def to_config(vit: PlainViT) -> tuple[str, dict[str, Any]]:
    """The class of transformers' that computes a network, and its config.json.

    Raises MismatchError: there is none.
    """
    name = _class_of(vit)
    kind = CLASSES[name]
    act = next(word for word, timms in _ACTIVATIONS.items() if timms == vit.activation)
    words: dict[str, Any] = {
        "model_type": kind.model_type,
        "hidden_size": vit.width,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.heads,
        "hidden_act": act,
        "layer_norm_eps": vit.eps,
        "image_size": vit.image,
        "patch_size": vit.patch,
        "num_channels": vit.channels,
        "qkv_bias": vit.qkv_bias,
    }
    if not kind.dino:
        return name, words | {"intermediate_size": vit.hidden}
    words |= {"mlp_ratio": _ratio(vit), "use_swiglu_ffn": vit.gated}
    return name, words | ({"num_register_tokens": vit.registers} if vit.registers else {})


def _class_of(vit: PlainViT) -> str:
    """The class of transformers' that has such parts."""
    if vit.distilled and not (vit.scaled or vit.registers):
        return "DeiTForImageClassificationWithTeacher"
    if vit.scaled and not vit.distilled:
        name = "Dinov2WithRegisters" if vit.registers else "Dinov2"
        return f"{name}ForImageClassification" if vit.classes else f"{name}Model"
    if vit.gated or vit.registers > 1 or vit.distilled:
        parts = {"SwiGLU": vit.gated, "LayerScale": vit.scaled, "a second head": vit.distilled}
        parts[f"reg_tokens {vit.registers}"] = vit.registers > 0
        listed = " and ".join(part for part, there in parts.items() if there)
        without = "" if vit.scaled else " and no LayerScale"
        raise MismatchError(f"transformers has no network with {listed}{without}")
    return "DeiTForImageClassification" if vit.registers else "ViTForImageClassification"


def _ratio(vit: PlainViT) -> int:
    """DINOv2's mlp_ratio, a whole number in config.json."""
    for ratio in range(1, vit.hidden // vit.width + 3):
        plain = vit.width * ratio
        if vit.hidden == (2 * _gated(plain) if vit.gated else plain):
            return ratio
    raise MismatchError(
        f"an MLP of {vit.hidden} rows at embed_dim {vit.width}: transformers' DINOv2 has whole "
        "ratios only"
    )
