"""Writes qvec_cli/model/architectures.json: what tells timm's networks apart (make architectures).

Every network is built without numbers; it takes some minutes.
"""

from __future__ import annotations

import hashlib
import json
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


def main() -> None:
    warnings.simplefilter("ignore")
    table: dict[str, list[str]] = {}
    for name in timm.list_models():
        try:
            with torch.device("meta"):
                network = timm.create_model(name, num_classes=CLASSES)
        except Exception as fault:
            print(f"{name}: {fault}", file=sys.stderr)
            continue
        shapes = {n: tuple(t.shape) for n, t in network.state_dict().items()}
        table[name] = [fingerprint(shapes), function(network)]
    rows = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in table.items())
    TABLE.write_text(f"{{\n{rows}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
