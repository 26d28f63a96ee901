"""A grid in the words of compressed-tensors: ``quantization_config`` of a folder's config.json."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from qvec_cli.errors import MismatchError, SpecError
from qvec_cli.specs import Granularity, Grid, ScaleDtype

_METHOD: Final = "compressed-tensors"
_FORMAT: Final = "pack-quantized"

_DENSE_SINCE: Final = (0, 18)
"""The version whose codes have no gaps between them."""

_GAPLESS: Final = (2, 4, 8)
"""Bits of which a word held a whole number of codes before, too."""

_SINGLE_FILE: Final = "A single file takes them all: -o FILE."


def to_scheme(
    grid: Grid, ignored: Iterable[str], widths: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """What the stock loader needs to know to unpack every ``nn.Linear`` but those ignored.

    ``widths`` are the bits of each module, by its name, where they have not all the same.
    """
    named: dict[int, list[str]] = {}
    for module, bits in sorted((widths or {}).items()):
        named.setdefault(bits, []).append(module)
    groups = [(named[bits], bits) for bits in sorted(named)] or [(["Linear"], grid.bits)]
    scheme: dict[str, Any] = {
        "quant_method": _METHOD,
        "format": _FORMAT,
        "quantization_status": "compressed",
        "ignore": sorted(ignored),
        "config_groups": {
            f"group_{place}": {"targets": targets, "weights": _weights(grid, bits)}
            for place, (targets, bits) in enumerate(groups)
        },
    }
    if grid.scale_dtype is ScaleDtype.FLOAT32 and not widths:
        # Unpacked while they are read, and not at the first forward, weights are there when a
        # network such as Swin v2 asks for them, and transformers 5.24 does not take zero points
        # for unpacked ones. Float16 scales must wait: on this way they would be multiplied as
        # they are, on the other one they are float32 first. So must several groups: transformers
        # takes the first one for all.
        scheme["dequantize"] = True
    return scheme


def _weights(grid: Grid, bits: int) -> dict[str, Any]:
    """How the weights of a group are packed."""
    weights: dict[str, Any] = {
        "num_bits": bits,
        "type": "int",
        "symmetric": grid.symmetric,
        "dynamic": False,
        "strategy": str(grid.granularity),
    }
    return weights | ({"group_size": grid.group_size} if grid.group_size else {})


def of_scheme(scheme: Mapping[str, Any]) -> Grid:
    """The grid of packed weights; how their scales were chosen it does not say.
    Raises MismatchError: another format, several grids, an older layout, rounded activations,
    weights that were rotated for an input that is rotated too.
    """
    if scheme.get("transform_config"):
        raise MismatchError(
            "its weights are for inputs that are rotated at run time (transform_config)",
            hint="Quantize the float checkpoint with qvec.",
        )
    try:
        (group,) = scheme["config_groups"].values()
        weights = group["weights"]
        stated = scheme["quant_method"], group.get("format") or scheme["format"]
        beside = [group.get(f"{side}_activations") for side in ("input", "output")]
        beside += [weights.get("dynamic"), weights.get("type", "int") != "int"]
        if stated != (_METHOD, _FORMAT) or any(beside) or scheme.get("kv_cache_scheme"):
            raise ValueError(scheme)
        grid = Grid(
            weights["num_bits"], *_blocks(weights), symmetric=bool(weights.get("symmetric", True))
        )
    except (KeyError, ValueError, TypeError, AttributeError, SpecError):
        raise MismatchError(
            "its config.json does not tell of weights alone that are packed on one grid",
            hint=f"Of quantized folders qvec reads {_METHOD}' {_FORMAT}, 2 to 8 bits.",
        ) from None
    if grid.bits not in _GAPLESS and _version(scheme) < _DENSE_SINCE:
        raise MismatchError(
            f"its {grid.bits}-bit codes were packed by {_METHOD} {scheme['version']}, with gaps "
            "between them",
            hint=f"Pack them again with {_METHOD} 0.18 or later.",
        )
    return grid


def require_loadable(shapes: Mapping[str, tuple[int, ...]], grid: Grid) -> None:
    """Refuses targets that the stock loader fails on, or would not load to the same numbers.
    Raises MismatchError: names the tensor or the flag.
    """
    for name, shape in shapes.items():
        if not name.endswith(".weight"):
            raise MismatchError(
                f"{name}: is not the weight of a linear layer, and {_METHOD} packs no other",
                hint=f"Choose others with --targets. {_SINGLE_FILE}",
            )
        if name in grid.rows:
            raise MismatchError(
                f"{name}: groups of {grid.group_size} do not fit it, and {_METHOD} is told of one "
                "kind of blocks for all",
                hint=f"--granularity channel fits all. {_SINGLE_FILE}",
            )
        if grid.of(name).bits == 4 and _packs_zero_points(grid) and shape[0] <= 8:
            raise MismatchError(
                f"{name}: {_METHOD} 0.20 cannot unpack 4-bit zero points of {shape[0]} rows",
                hint=f"Leave it out with --targets. {_SINGLE_FILE}",
            )
    if _packs_zero_points(grid) and len({grid.of(name).bits for name in shapes}) > 1:
        raise MismatchError(
            f"zero points beside layers of different widths: {_METHOD} 0.20 cannot unpack them",
            hint=f"Leave --asymmetric out, or say --symmetric. {_SINGLE_FILE}",
        )


def for_stock_loaders(grid: Grid) -> Grid:
    """The grid as a folder holds it: float16 scales beside zero points are float32 numbers there.

    As float16 the stock loader would multiply them in float16, and not get qvec's weights.
    """
    wide = _packs_zero_points(grid) and grid.scale_dtype is ScaleDtype.FLOAT16
    return replace(grid, scale_dtype=ScaleDtype.FLOAT32) if wide else grid


def _packs_zero_points(grid: Grid) -> bool:
    return not grid.symmetric and grid.granularity is not Granularity.TENSOR


def _blocks(weights: Mapping[str, Any]) -> tuple[Granularity, int | None]:
    """What shares a scale; a strategy that is left out follows from the size of a group."""
    size = weights.get("group_size")
    implied = "tensor" if size is None else "channel" if size == -1 else "group"
    strategy = Granularity(weights.get("strategy") or implied)
    return strategy, size if strategy is Granularity.GROUP else None


def _version(scheme: Mapping[str, Any]) -> tuple[int, ...]:
    """The version that wrote a folder; one that it does not tell is taken for a new one."""
    version = re.match(r"(\d+)\.(\d+)", str(scheme.get("version")))
    return tuple(map(int, version.groups())) if version else _DENSE_SINCE
