"""Which low-bit layout the tensors of a file have, by their names, types and shapes.

Only qvec's own is ever decoded. The others are known so that none is taken for floats or for
ours; names, types and shapes are those that the libraries wrote, see tests/test_layouts.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from qvec_cli.quant.pack import words
from qvec_cli.quant.qtensor import PACKED

DENSE: Final = "compressed-tensors pack-quantized"
"""The layout of qvec's own packed files, too."""


OLDER: Final = "compressed-tensors pack-quantized before 0.18"
"""Codes do not straddle words there: 10 of 3 bits in each, not 32 in three."""


UNKNOWN: Final = "unknown"
"""Named as if packed, and like nothing that is known."""


_BITS: Final = range(2, 9)


_TINY: Final = 4096
"""Elements of a tensor that is read, not only looked at."""


_GPTQ: Final = {"gptq": "GPTQ v1", "gptq_v2": "GPTQ v2", "gptq_p": "GPTQ planar"}
"""By the ``checkpoint_format`` of a configuration: of one shape at 3 bits, and not alike."""


_SIDES: Final = ("input", "output")

_RANGES: Final = ("scale", "zero_point")
"""Of activations, beside weights that calculate with them."""


_HQQ: Final = (
    *("W_q", "scale", "zero", "nbits", "group_size", "shape", "axis", "packing"),
    *("unpack_view_dtype", "view_as_float", "quant_scale", "quant_zero", "compute_dtype"),
    *("offload_meta", "encoded_state_dict", "stores_quant_config", "channel_wise", "optimize"),
    "round_zero",
)


class Outlined(Protocol):
    """What a header tells of a tensor."""

    @property
    def dtype(self) -> str:
        """As safetensors names it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sides."""


class Packed(NamedTuple):
    """A weight that is not stored as floats."""

    tensor: str  # that gives it away
    layout: str
    parts: tuple[str, ...]  # names that its tensors may have
    bits: frozenset[int] = frozenset()  # widths that its codes may have
    group_size: int | None = None  # None: a scale serves more, or it is not told
    size: int | None = None  # elements of the weight; None: not told
    older: frozenset[int] = frozenset()  # widths before 0.18, of pack-quantized


class PackedFile(NamedTuple):
    """What is to be looked at."""

    tensors: Mapping[str, Outlined]
    read: Callable[[str], np.ndarray[Any, np.dtype[Any]]]  # a tensor by its name; for tiny ones
    stated: object = None  # the checkpoint_format of its configuration, if there is one

    def is_a(self, name: str, dtype: str) -> bool:
        """Whether there is such a tensor."""
        found = self.tensors.get(name)
        return found is not None and found.dtype == dtype

    def shape(self, name: str, sides: int = 2) -> tuple[int, ...] | None:
        """The shape of a tensor with as many sides, none of them 0."""
        found = self.tensors.get(name)
        if found is None or len(found.shape) != sides or 0 in found.shape:
            return None
        return found.shape

    def numbers(self, name: str) -> list[int]:
        """The few whole numbers, none negative or vast, that a tensor holds; or nothing."""
        entry = self.tensors.get(name)
        if entry is None or entry.dtype not in ("U8", "I32", "I64"):
            return []
        if math.prod(entry.shape) > _TINY:
            return []
        held = [int(number) for number in self.read(name).reshape(-1)]
        return held if all(0 <= number < 1 << 40 for number in held) else []


def packed(file: PackedFile) -> list[Packed]:
    """The weights of a file that are packed in any layout of the table."""
    found = []
    for name in file.tensors:
        for mark, look in _LAYOUTS.items():
            if name.endswith(mark) and (weight := look(file, name.removesuffix(mark))):
                found.append(weight)
    return _of_one_version(found)


def is_ours(weight: Packed) -> bool:
    """Whether a weight may be one of qvec's; what does not fit is told by who reads it."""
    return weight.layout == DENSE or (weight.layout == UNKNOWN and weight.tensor.endswith(PACKED))


def widths(found: Iterable[Packed]) -> list[int]:
    """The bits that the codes of some weights may have."""
    return sorted(frozenset().union(*(weight.bits for weight in found)))


def named(found: Iterable[Packed]) -> str:
    """The layouts of some weights; one, but for a file that is pieced together."""
    return " and ".join(dict.fromkeys(weight.layout for weight in found))


def in_words(bits: Sequence[int]) -> str:
    """As "3 bits", "7 or 8 bits", "2 to 8 bits", or nothing where they are not known."""
    if not bits:
        return ""
    if len(bits) > 2:
        return f"{bits[0]} to {bits[-1]} bits"
    return " or ".join(map(str, bits)) + (" bit" if bits == [1] else " bits")


def _of_one_version(found: list[Packed]) -> list[Packed]:
    """Narrow weights look alike in both versions of pack-quantized; the wide ones decide."""
    own = [weight for weight in found if weight.tensor.endswith(PACKED)]
    dense, older = all(weight.bits for weight in own), all(weight.older for weight in own)
    return [_decided(weight, dense, older) if weight.older else weight for weight in found]


def _decided(weight: Packed, dense: bool, older: bool) -> Packed:
    """A weight that the older version could have packed, in a file that either could have made."""
    if dense and older:
        return weight._replace(bits=weight.bits | weight.older)
    if older or not weight.bits:
        return weight._replace(layout=OLDER, bits=weight.older)
    return weight


def _pack_quantized(file: PackedFile, name: str) -> Packed | None:
    """compressed-tensors: words of 32 bits; or bytes, of the microscaling formats."""
    tensor, ends = name + PACKED, ("_scale", "_shape", "_zero_point", "_global_scale", "_g_idx")
    parts = (tensor, *(name + end for end in ends))
    stored, scale = file.shape(tensor), file.shape(name + "_scale")
    if file.tensors[tensor].dtype.startswith(("F", "BF")) and name + "_scale" not in file.tensors:
        return None
    if stored and scale and file.is_a(tensor, "U8") and file.is_a(name + "_scale", "U8"):
        return _microscaled(tensor, parts, stored, scale)
    shape = file.numbers(name + "_shape")
    if not (stored and file.is_a(tensor, "I32") and len(shape) == 2 and shape[0] == stored[0]):
        return Packed(tensor, UNKNOWN, parts)
    features = shape[1]
    dense = frozenset(b for b in _BITS if stored[1] == words(features, b))
    older = frozenset(b for b in _BITS if stored[1] == -(-features // (32 // b)))
    known = DENSE if dense or older else UNKNOWN
    group = _group(features, scale[1]) if scale else None
    return Packed(tensor, known, parts, dense, group, math.prod(shape), older)


def _microscaled(
    tensor: str, parts: tuple[str, ...], stored: tuple[int, ...], scale: tuple[int, ...]
) -> Packed:
    """Floats of 4 or 6 bits in bytes, 32 to a scale that is an exponent."""
    features = 32 * scale[1]
    bits = next((b for b in (4, 6) if 8 * stored[1] == b * features), None)
    if bits is None:
        return Packed(tensor, UNKNOWN, parts)
    layout, size = f"compressed-tensors mxfp{bits}", stored[0] * features
    return Packed(tensor, layout, parts, frozenset({bits}), 32, size)


def _int_quantized(file: PackedFile, name: str) -> Packed | None:
    """compressed-tensors, int-quantized and naive-quantized: of any width, a byte each."""
    shape, scale = file.shape(name), file.shape(name + "_scale")
    if not (shape and file.is_a(name, "I8")):
        return None
    module = name.removesuffix("weight")
    own = (name, name + "_scale", name + "_zero_point", name + "_g_idx")
    parts = (*own, *(module + f"{side}_{what}" for side in _SIDES for what in _RANGES))
    group = _group(shape[1], scale[1]) if scale else None
    layout = "compressed-tensors int-quantized"
    return Packed(name, layout, parts, frozenset(_BITS), group, math.prod(shape))


def _qweight(file: PackedFile, module: str) -> Packed | None:
    """GPTQ and AWQ, whose names are the same but for ``g_idx``."""
    tensor, scales = module + "qweight", module + "scales"
    if scales not in file.tensors or not (file.is_a(tensor, "I32") or file.is_a(tensor, "I16")):
        return None
    parts = tuple(module + end for end in ("qweight", "qzeros", "scales", "g_idx"))
    stored, size = file.shape(tensor), file.shape(scales)
    if not (stored and size):
        return Packed(tensor, UNKNOWN, parts)
    awq = None if module + "g_idx" in file.tensors else _awq(file, tensor, stored, size)
    if awq is None:
        return _gptq(file, module, parts)
    layout, group = awq
    codes = 4 if file.is_a(tensor, "I16") else 8
    return Packed(tensor, layout, parts, frozenset({4}), group, codes * math.prod(stored))


def _awq(
    file: PackedFile, tensor: str, stored: tuple[int, ...], scales: tuple[int, ...]
) -> tuple[str, int | None] | None:
    """Which kind of AWQ, and its group size; 4 bits always."""
    if file.is_a(tensor, "I16"):
        return "AWQ GEMV fast", None
    if scales[0] == stored[0]:  # both are outputs
        return "AWQ GEMV", None
    return ("AWQ", _group(stored[0], scales[0])) if scales[1] == 8 * stored[1] else None


def _gptq(file: PackedFile, module: str, parts: tuple[str, ...]) -> Packed:
    """[words of in, out]: the transpose of ours, but a zero may be stored one too small."""
    rows, outputs = file.shape(module + "qweight") or (0, 0)
    inputs = (file.shape(module + "g_idx", 1) or (0,))[0]
    columns = (file.shape(module + "qzeros") or (0, 0))[1]
    bits = frozenset(
        b
        for b in _BITS
        if (not inputs or rows == words(inputs, b))
        and (not columns or columns == words(outputs, b))
        and (inputs or columns)
    )
    layout = _GPTQ.get(file.stated, "GPTQ") if isinstance(file.stated, str) else "GPTQ"
    if bits and bits <= {5, 6, 7}:  # of which there is no other
        layout = "GPTQ planar"
    group = _group(inputs, (file.shape(module + "scales") or (1,))[0])
    return Packed(module + "qweight", layout, parts, bits, group, inputs * outputs or None)


def _hqq(file: PackedFile, module: str) -> Packed | None:
    """HQQ, which stores its settings as tensors."""
    if not file.is_a(module + "nbits", "I32"):
        return None
    parts = tuple(module + part for part in _HQQ)
    bits, groups, shape = (file.numbers(module + p) for p in ("nbits", "group_size", "shape"))
    told = frozenset(bits[:1]) & frozenset(range(1, 9))
    size = math.prod(shape) if len(shape) == 2 else None
    group = groups[0] if groups and groups[0] else None
    return Packed(module + "W_q", "HQQ", parts, told, group, size)


def _quanto(file: PackedFile, name: str) -> Packed | None:
    """Quanto: bytes, or several codes a byte along the rows, of which each has a scale."""
    tensor, name = name + "._data", name.removesuffix("._data")
    scale = file.tensors.get(name + "._scale")
    stored = file.tensors[tensor]
    if scale is None or not stored.shape or stored.dtype not in ("U8", "I8"):
        return None
    module = name.removesuffix("weight")
    ends = ("._data", "._data._data", "._scale", "._shift")
    outside = (module + f"{side}_scale" for side in _SIDES)
    parts = (*(name + end for end in ends), *outside)
    rows, rest = scale.shape[0] if scale.shape else 0, math.prod(stored.shape[1:])
    if stored.dtype == "I8":
        size = math.prod(stored.shape)
        return Packed(tensor, "quanto", parts, frozenset({8}), None, size)
    bits = frozenset(b for b in (2, 4) if -(-rows * b // 8) == stored.shape[0])
    return Packed(tensor, "quanto", parts, bits, None, rows * rest if bits else None)


def _torchao(file: PackedFile, name: str) -> Packed | None:
    """TorchAO, whose widths stand in the metadata: an unpacked code takes a byte."""
    tensor, ends = name + "_qdata", ("_scale", "_zero_point", "_scale_and_zero", "_act_pre_scale")
    parts = (tensor, *(name + end for end in ends))
    whole = any(file.is_a(tensor, dtype) for dtype in ("U8", "I8", "I32"))
    if not whole or not any(part in file.tensors for part in parts[1:]):
        return None
    shape, scale = file.shape(tensor), file.shape(name + "_scale")
    if not (file.is_a(tensor, "I8") and shape and scale and shape[0] == scale[0]):
        return Packed(tensor, "torchao", parts)
    group = _group(shape[1], scale[1])
    return Packed(tensor, "torchao", parts, frozenset(_BITS), group, math.prod(shape))


def _bitsandbytes(kind: str) -> Callable[[PackedFile, str], Packed | None]:
    """A look for 4 bits of one kind: two codes a byte, the shape in JSON in a tensor."""
    mark = f".quant_state.bitsandbytes__{kind}"
    ends = ("", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", mark)

    def look(file: PackedFile, name: str) -> Packed | None:
        if not file.is_a(name, "U8"):
            return None
        size = _size(bytes(n for n in file.numbers(name + mark) if n < 256))
        twice = 2 * math.prod(file.tensors[name].shape)
        size = size if size in (twice, twice - 1) else None
        parts = tuple(name + end for end in ends)
        return Packed(name, f"bitsandbytes {kind}", parts, frozenset({4}), None, size)

    return look


def _size(state: bytes) -> int | None:
    """The product of the "shape" in a JSON object."""
    try:
        shape = json.loads(state)["shape"]
        return math.prod(side for side in shape if type(side) is int)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _bitsandbytes_int8(file: PackedFile, module: str) -> Packed | None:
    name = module + "weight"
    if not file.is_a(name, "I8"):
        return None
    parts = (name, module + "SCB", module + "weight_format")
    size = math.prod(file.tensors[name].shape)
    return Packed(name, "bitsandbytes int8", parts, frozenset({8}), None, size)


def _group(features: int, groups: int) -> int | None:
    return features // groups if groups > 1 and features % groups == 0 else None


_LAYOUTS: Final[Mapping[str, Callable[[PackedFile, str], Packed | None]]] = {
    PACKED: _pack_quantized,
    "_scale": _int_quantized,
    "qweight": _qweight,
    "W_q": _hqq,
    "._data": _quanto,
    "_qdata": _torchao,
    ".quant_state.bitsandbytes__nf4": _bitsandbytes("nf4"),
    ".quant_state.bitsandbytes__fp4": _bitsandbytes("fp4"),
    "SCB": _bitsandbytes_int8,
}
"""What the name of a tensor ends with that a layout alone has, and what makes sure."""
