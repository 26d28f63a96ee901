"""Writes qvec_cli/model/architectures.json: what tells timm's networks apart (make architectures).

Every network is built without numbers; it takes some minutes.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import warnings
from typing import Any

import timm
import torch

from qvec_cli.model.recognise import TABLE, fingerprint

CLASSES = 10
SKIPPED = ("img_size", "grid", "num_patches", "feat_size", "input_size", "resolution", "drop")
"""Words in attributes that the size of the image decides, or that evaluation does not see."""
EXACTLY = ("feat_shape", "feature_size", "num_relative_distance", "init_values")
"""The same, of whole attributes; where windows are as large as the image, their size too."""


def plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(plain, value))
    return value is None or isinstance(value, (int, float, str, bool))


def function(network: torch.nn.Module) -> str:
    """A digest of every module's class and settings: equal for networks that compute the same."""
    lines = []
    for name, module in network.named_modules():
        held = vars(module)
        exactly = (*EXACTLY, "window_size") if "num_relative_distance" in held else EXACTLY
        settings = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in held.items()
            if plain(value) and not (key in exactly or any(word in key for word in SKIPPED))
        }
        lines.append([name, type(module).__qualname__, settings])
    return hashlib.sha256(json.dumps(lines, sort_keys=True).encode()).hexdigest()[:12]


PRE_NORM = {
    "vision_transformer.Block",
    "vision_transformer_relpos.RelPosBlock",
    "beit.Block",
    "eva.EvaBlock",
    "cait.LayerScaleBlock",
    "cait.LayerScaleBlockClassAttn",
    "swin_transformer.SwinTransformerBlock",
}
"""Blocks x + f(norm(x)) whose tensors qvec_cli/model/basis.py knows by name."""

NETWORKS = {
    "vision_transformer.VisionTransformer",
    "deit.VisionTransformerDistilled",
    "vision_transformer_relpos.VisionTransformerRelPos",
    "beit.Beit",
    "eva.Eva",
    "cait.Cait",
    "swin_transformer.SwinTransformer",
}


def qualified(module: torch.nn.Module) -> str:
    """The class of one of timm's modules."""
    return f"{type(module).__module__.rpartition('.')[2]}.{type(module).__qualname__}"


def heads(network: torch.nn.Module) -> list[int | list[int]]:
    """Numbers of attention heads where all blocks are of those kinds: one, or one a stage."""
    blocks = [m for n, m in network.named_modules() if re.search(r"blocks\w*\.\d+$", n)]
    known = qualified(network) in NETWORKS and {qualified(block) for block in blocks} <= PRE_NORM
    counts = [int(block.attn.num_heads) for block in blocks if known]
    if len({*counts}) < 2:
        return [*dict.fromkeys(counts)]
    return [[int(stage.blocks[0].attn.num_heads) for stage in network.layers]]


def main() -> None:
    warnings.simplefilter("ignore")
    table: dict[str, list[str | int | list[int]]] = {}
    for name in timm.list_models():
        try:
            with torch.device("meta"):
                network = timm.create_model(name, num_classes=CLASSES)
        except Exception as fault:
            print(f"{name}: {fault}", file=sys.stderr)
            continue
        shapes = {n: tuple(t.shape) for n, t in network.state_dict().items()}
        table[name] = [fingerprint(shapes), function(network), *heads(network)]
    rows = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in table.items())
    TABLE.write_text(f"{{\n{rows}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
