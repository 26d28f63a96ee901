"""A network of transformers' own, as config.json and preprocessor_config.json state it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from qvec_cli.errors import MismatchError
from qvec_cli.model.configuration import COLOURS, Model
from qvec_cli.specs import Interpolation, Library

_LEFT_OUT: Final = frozenset(
    {
        *("architectures", "auto_map", "custom_pipelines", "dtype", "torch_dtype", "_name_or_path"),
        *("id2label", "label2id", "num_labels", "label_names", "transformers_version"),
        *("quantization_config", "qvec", "_commit_hash", "_attn_implementation"),
    }
)
"""Words of config.json that tell nothing of the network's function, or that a card has elsewhere.
"""

_UNLOADABLE: Final = ("dinov2", "dinov2_with_registers")
"""Networks of which transformers 5.10 to 5.24 load no folder that compressed-tensors has packed, by
anybody: they fail on a tensor that only their SwiGLU has. 4.57 loads symmetric ones."""

_READING: Final = "ForSequenceClassification"
_BEHIND_PAD: Final = ("roberta", "camembert", "mpnet")
"""What networks of texts are called, and the kinds that count positions from the padding's on."""

_CLASSIFYING: Final = ("ForImageClassification", _READING)
"""What the names of classes have in them whose networks tell classes apart."""

_RESAMPLE: Final = (
    *(Interpolation.NEAREST, Interpolation.LANCZOS, Interpolation.BILINEAR),
    *(Interpolation.BICUBIC, Interpolation.BOX, Interpolation.HAMMING),
)
"""Pillow's numbers of filters."""

_BY_SHORT_EDGE: Final = ("CLIP", "Bit", "ConvNext", "ChineseCLIP")
"""How the kinds of image processors begin that take a bare number for the shorter edge."""

_SQUASHED_FROM: Final = 384
"""Pixels from which on ConvNeXt's processor crops nothing."""


def of_folder(
    config: Mapping[str, Any], processor: Mapping[str, Any] | None, names: Iterable[str]
) -> Model:
    """The model of a folder.

    Args:
        config: what config.json says.
        processor: what preprocessor_config.json says; None: it is not there, and images are
            brought to the network's size and to numbers from -1 to 1.
        names: of the tensors, which tell the classifier.

    Raises MismatchError: code from elsewhere would have to be run, no architecture is named, or
    images are prepared in a way that timm's words cannot say.
    """
    if "auto_map" in config:
        raise MismatchError(
            "its network is code that comes with it (auto_map in config.json), and nobody's code "
            "is run",
            hint="Networks that transformers has itself are read.",
        )
    named = config.get("architectures")
    if not (isinstance(named, list) and named and isinstance(named[0], str)):
        raise MismatchError(
            f"config.json names no architecture of transformers' {config['model_type']}",
            hint='"architectures": ["ViTForImageClassification"], say, is what save_pretrained '
            "writes.",
        )
    if _READING in named[0]:
        return Model.from_json(_reading(config, named[0], names))
    vision = config.get("vision_config")
    sized = vision if isinstance(vision, Mapping) else config
    channels = sized.get("num_channels", COLOURS)
    data = _preparation(processor or {}, sized.get("image_size", 224), channels)
    classes = _class_count(config) if is_classifier(named[0]) else 0
    data["classifier"] = _outside(names) if classes else []
    if processor is not None:
        data["processor"] = dict(processor)
    model = {
        "library": Library.TRANSFORMERS.value,
        "architecture": named[0],
        "num_classes": classes,
        "model_args": {key: value for key, value in config.items() if key not in _LEFT_OUT},
        "pretrained_cfg": data,
    }
    return Model.from_json(model)


def is_classifier(architecture: str) -> bool:
    """Whether a class of transformers' tells classes apart, none of them perhaps."""
    return any(word in architecture for word in _CLASSIFYING)


def is_reading(model: Mapping[str, Any] | None, config: Mapping[str, Any] | None) -> bool:
    """Whether a network reads texts, by the configuration of its card or else of its folder."""
    named = [model.get("architecture")] if model else (config or {}).get("architectures")
    return isinstance(named, list) and any(_READING in str(name) for name in named)


def _reading(config: Mapping[str, Any], name: str, names: Iterable[str]) -> dict[str, Any]:
    """The model of a network that tells classes of texts apart."""
    pad, positions = config.get("pad_token_id"), config.get("max_position_embeddings")
    if type(pad) is not int or type(positions) is not int:
        raise MismatchError("config.json: pad_token_id and max_position_embeddings are numbers")
    longest = positions - (pad + 1 if str(config["model_type"]).endswith(_BEHIND_PAD) else 0)
    data = {
        "input_size": [1, 1, 1],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": [0.0],
        "std": [1.0],
        "tokens": {"pad": pad, "longest": longest},
        "classifier": _outside(names),
    }
    return {
        "library": Library.TRANSFORMERS.value,
        "architecture": name,
        "num_classes": _class_count(config),
        "model_args": {key: value for key, value in config.items() if key not in _LEFT_OUT},
        "pretrained_cfg": data,
    }


def _class_count(config: Mapping[str, Any]) -> int:
    """Classes of a head: two, where nothing else is said, as transformers has it."""
    labels, count = config.get("id2label"), config.get("num_labels", 2)
    return len(labels) if isinstance(labels, Mapping) else count


def _outside(names: Iterable[str]) -> list[str]:
    """The modules outside of what most tensors are in, which are the classifier's."""
    names = [name for name in names if "." in name]
    words = Counter(name.split(".", 1)[0] for name in names)
    body = words.most_common(1)[0][0] if words else ""
    modules = (name.rpartition(".")[0] for name in names if name.split(".", 1)[0] != body)
    return sorted(set(modules))


def _preparation(processor: Mapping[str, Any], side: Any, channels: Any) -> dict[str, Any]:
    """How images are prepared, in timm's words.

    Raises MismatchError: a preparation that these cannot say.
    """
    size, crop, squash = _sizes(processor, side)
    factor = processor.get("rescale_factor", 1 / 255)
    factor = factor * 255 if processor.get("do_rescale", True) else 255.0
    mean, std = ([0.5] * COLOURS, [0.5] * COLOURS) if not processor else ([0.0], [1.0])
    if processor.get("do_normalize", True):
        mean, std = processor.get("image_mean", mean), processor.get("image_std", std)
    resample = processor.get("resample", 2)
    if not (isinstance(resample, int) and 0 <= resample < len(_RESAMPLE)):
        raise MismatchError(f"preprocessor_config.json: resample {resample} is no filter of Pillow")
    try:
        mean, std = ([n / factor for n in values] for values in (mean, std))
    except (TypeError, ZeroDivisionError):
        raise MismatchError("preprocessor_config.json: image_mean, image_std: no numbers") from None
    if channels != len(mean):
        mean, std = ([sum(values) / len(values)] * channels for values in (mean, std))
    return {
        "input_size": [channels, *crop],
        "interpolation": _RESAMPLE[resample].value,
        "crop_pct": _share(crop[0], size[0]),
        "crop_mode": "squash" if squash else "center",
        "mean": mean,
        "std": std,
    }


def _sizes(processor: Mapping[str, Any], side: Any) -> tuple[list[int], list[int], bool]:
    """To what images are resized, what is cropped of them, and whether proportions are lost."""
    fallback = {"height": side, "width": side} if isinstance(side, int) else side
    size = processor.get("size", fallback)
    kind = str(processor.get("image_processor_type") or processor.get("feature_extractor_type"))
    if isinstance(size, int) and kind.startswith(_BY_SHORT_EDGE):
        size = {"shortest_edge": size}
    squash = not (isinstance(size, Mapping) and "shortest_edge" in size)
    resized = _sides(size, "size")
    cropped = processor.get("do_center_crop", False)
    crop = _sides(processor.get("crop_size", resized), "crop_size") if cropped else resized
    share = processor.get("crop_pct")
    if kind.startswith("ConvNext") and not squash:
        if resized[0] >= _SQUASHED_FROM:
            squash = True
        elif isinstance(share, float) and 0 < share <= 1:
            resized = [int(edge / share) for edge in resized]
    if crop[0] > resized[0] or crop[0] * resized[1] != crop[1] * resized[0]:
        raise MismatchError(
            f"preprocessor_config.json: images of {resized} px are cropped to {crop}, which has "
            "no name here"
        )
    return resized, crop, squash


def _sides(size: Any, word: str) -> list[int]:
    """Height and width in one of the ways that processors state them."""
    if isinstance(size, Mapping):
        size = size.get("shortest_edge", [size.get("height"), size.get("width")])
    sides = [size, size] if isinstance(size, int) else size
    if not (isinstance(sides, (list, tuple)) and [type(n) for n in sides] == [int] * 2):
        raise MismatchError(f"preprocessor_config.json: {word} {size} has no name here")
    if min(sides) < 1:
        raise MismatchError(f"preprocessor_config.json: {word} {size} is no size")
    return list(sides)


def _share(crop: int, size: int) -> float:
    """The share of the resized image that is cropped, so that timm resizes to just this size."""
    share = crop / size
    while math.floor(crop / share) < size:
        share = math.nextafter(share, 0)
    return share


def to_config(model: Model, classes: Sequence[str] | None) -> dict[str, Any]:
    """The config.json from which transformers makes the network.

    Args:
        model: of a card.
        classes: names in the order of the head, if they are known.
    """
    config = {**model.model_args, "architectures": [model.architecture], "dtype": "float32"}
    if is_classifier(model.architecture):  # to which silence would be two
        labels = classes or [f"LABEL_{index}" for index in range(model.num_classes)]
        config["id2label"] = {str(index): name for index, name in enumerate(labels)}
        config["label2id"] = {name: index for index, name in enumerate(labels)}
    return config


def note_on_packed(model: Model) -> str | None:
    """What is to be known of a packed folder of a network; None: stock transformers loads it."""
    if model.model_args.get("model_type") not in _UNLOADABLE:
        return None
    return (
        f"transformers 5.10 to 5.24 fail to load packed folders of {model.architecture}, whoever "
        "packed them; 4.57 loads symmetric ones, with dtype=torch.float32; all load --fake ones"
    )


def processor_of(model: Model) -> Mapping[str, Any] | None:
    """The preprocessor_config.json of a network, if one is known."""
    processor = model.pretrained_cfg.get("processor")
    return processor if isinstance(processor, Mapping) else None


def _processor(data: Mapping[str, Any]) -> dict[str, Any]:
    """A preprocessor_config.json, from timm's words."""
    _, height, width = data["input_size"]
    resized = {"height": int(height / data["crop_pct"]), "width": int(width / data["crop_pct"])}
    squash = data["crop_mode"] == "squash"
    return {
        "image_processor_type": "ViTImageProcessor" if squash else "BitImageProcessor",
        "do_resize": True,
        "size": resized if squash else {"shortest_edge": resized["height"]},
        "do_center_crop": not squash,
        "crop_size": {"height": height, "width": width},
        "resample": _RESAMPLE.index(Interpolation(data["interpolation"])),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(data["mean"]),
        "image_std": list(data["std"]),
    }


def prepared_as(model: Model, said: Mapping[str, Any]) -> Model:
    """The model with its images prepared as a user says, in timm's words."""
    if not said:
        return model
    data = {**model.pretrained_cfg, **said}
    return replace(model, pretrained_cfg={**data, "processor": _processor(data)})


def at_size(model: Model, side: int) -> Model | None:
    """The model for square images of another size; None: its configuration names no size."""
    args, vision = dict(model.model_args), model.model_args.get("vision_config")
    sized = dict(vision) if isinstance(vision, Mapping) else args
    if not isinstance(sized.get("image_size"), int | list):
        return None
    sized["image_size"] = side
    args |= {} if sized is args else {"vision_config": sized}
    size = {"input_size": [model.input_size[0], side, side]}
    return prepared_as(replace(model, model_args=args), size)
