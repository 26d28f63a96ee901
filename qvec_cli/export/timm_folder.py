"""The config.json with which timm makes a network again: ``local-dir:FOLDER``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

WEIGHTS: Final = "model.safetensors"
CONFIG: Final = "config.json"
NAMES: Final = (WEIGHTS, CONFIG)
"""The files of the folder, as timm looks for them."""

_COLOURS: Final = 3


def config(
    model: Mapping[str, Any],
    known: Mapping[str, Any],
    features: int,
    classes: Sequence[str] | None,
) -> dict[str, Any]:
    """The document, in the form of timm's ``save_for_hf``.

    Args:
        model: the configuration on the card.
        known: what timm itself says of the architecture.
        features: width of what the head sees.
        classes: their names in the order of the head, if they are known.
    """
    data = dict(model["pretrained_cfg"])
    channels = data["input_size"][0]
    data["fixed_input_size"] = bool(known.get("fixed_input_size"))
    if channels == _COLOURS and known.get("first_conv"):
        # Otherwise timm 1.0.22 would convert that convolution, which fits already.
        data["first_conv"] = known["first_conv"]
    document = {
        "architecture": model["architecture"],
        "num_classes": model["num_classes"],
        "num_features": features,
        "model_args": dict(model["model_args"]),
        "pretrained_cfg": data,
    }
    if classes:
        document["label_names"] = list(classes)
    return document
