"""State dicts that torch has pickled, read by torch's weights-only loader and nothing laxer.

They are held in memory as a whole, and torch is imported for them: safetensors files stream.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.checkpoint.archives import refuse_bomb, whole_model
from qvec_cli.checkpoint.dtypes import name_of
from qvec_cli.checkpoint.header import MAX_NAME, Entry
from qvec_cli.checkpoint.source import Contents, File, Memory, WeightsChoice
from qvec_cli.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_AVERAGED: Final = ("state_dict_ema", "model_ema", "ema", "ema_state_dict")
_PLAIN: Final = (
    *("state_dict", "model_state_dict", "model", "model_state", "module", "net", "network"),
    *("weights", "params"),
)
"""Where training scripts keep a running average of the weights, and the weights themselves."""

_DEEPEST: Final = 4  # dictionaries in one another
_LONGEST: Final = 64  # values of an argument of a training script

_NAMES: Final = ("arch", "model", "model_name", "architecture")
"""What training scripts call the name of a network."""

_MODULES: Final = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.dtypes")
_INERT: Final = {
    **dict.fromkeys(_MODULES, ("scalar", "_reconstruct", "ndarray", "dtype")),
    "numpy.dtypes": tuple(
        f"{kind}DType"
        for kind in (
            *("Bool", "Str", "Bytes", "Float16", "Float32", "Float64", "Int8", "Int16", "Int32"),
            *("Int64", "UInt8", "UInt16", "UInt32", "UInt64", "DateTime64", "TimeDelta64"),
        )
    ),
    "datetime": ("datetime", "date", "time", "timedelta", "timezone"),
    "pathlib": ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
    "pathlib._local": ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
    "builtins": ("bytes", "int", "float", "bool", "str", "list", "dict", "frozenset", "slice"),
    "types": ("SimpleNamespace",),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "uuid": ("UUID",),
}
"""What may stand beside weights, by module: none of it is made, a mark stands in its place."""

_DICTIONARIES: Final = (
    *("yacs.config.CfgNode", "easydict.EasyDict", "addict.addict.Dict"),
    *("lightning.fabric.utilities.data.AttributeDict", "lightning_utilities.core.AttributeDict"),
    *("pytorch_lightning.utilities.parsing.AttributeDict",),
    *("lightning.pytorch.utilities.parsing.AttributeDict",),
)
"""Dictionaries of configurations, which are read as plain ones."""


_LIBRARIES: Final = r"(?:torch\.nn|timm|torchvision|transformers)"
"""Whose classes in a pickle are modules of a network."""


class _Inert:
    """In the place of a number, an array, a date or a path that nobody reads."""

    def __init__(self, *_: object) -> None:
        """Nothing is kept."""

    def __setstate__(self, _: object) -> None:
        """Nothing is kept."""


def _dictionary(*_: object) -> dict[str, Any]:
    """In the place of a dictionary with defaults."""
    return {}


_SLACK: Final = 1 << 20  # bytes that the tensors of a small file may share


def read_pickle(path: Path, file: File, contents: Contents, choice: WeightsChoice) -> None:
    """The tensors of a pickled state dict, also of one in a training script's dictionary.

    CheckpointError for anything but tensors and plain data: such a file could run code.
    """
    contents.streams, nbytes = False, 0
    saved = _load(path, file)
    contents.script = _script(saved)
    state = _state_dict(saved, path, contents, choice)
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in state.items():
        if (kept := seen.setdefault(_identity(tensor), name)) != name:
            contents.aliases[name] = kept
            continue
        nbytes += tensor.numel() * tensor.element_size()
        if nbytes > 4 * file.size + _SLACK:
            raise CheckpointError(
                f"{path}: {name}: the tensors up to it take {nbytes:,} bytes, "
                f"the file has {file.size:,}"
            )
        data, dtype = _bytes(path, name, tensor)
        part = contents.add(Memory(data))
        contents.entries[name] = Entry(dtype, tuple(tensor.shape), 0, len(data), part)
    file.require_unchanged()


def _load(path: Path, file: File) -> Any:
    """What the file holds, by torch; the keyword is said, so no environment can relax it."""
    with os.fdopen(file.dup(), "rb") as stream:
        refuse_bomb(path, stream, file.size)
        import torch

        try:
            with torch.serialization.safe_globals(_allowed()), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of old pickle protocols: they are read, or not
                return torch.load(stream, map_location="cpu", weights_only=True, mmap=False)
        except MemoryError:
            raise
        except Exception as fault:  # a hostile file can end torch's loader in any way
            raise _refused(path, fault) from None


def _allowed() -> list[Any]:
    """What torch's loader may make beside tensors: a Namespace, and marks for other things."""
    inert = [(_Inert, f"{module}.{name}") for module, names in _INERT.items() for name in names]
    plain = [(OrderedDict, name) for name in _DICTIONARIES]
    defaults = (_dictionary, "collections.defaultdict")
    # timm's training script saves a Namespace: a bag of attributes, without code
    return [argparse.Namespace, *inert, *plain, defaults]


def _refused(path: Path, fault: Exception) -> CheckpointError:
    hint: str | None = "Where you trust the file, save its state dict alone, best as safetensors."
    if named := re.search(rf"GLOBAL ({_LIBRARIES}\.[\w.]+)", str(fault)):
        return whole_model(path, named[1])
    if named := re.search(r"GLOBAL ([\w.]+)", str(fault)):
        what = f"holds {named[1]}, which could run code when it is loaded: not read"
    elif "Weights only load failed" in str(fault):
        what = "a pickle with more than tensors and plain data, which could run code: not read"
    else:
        lines = str(fault).splitlines() or [type(fault).__name__]
        what, hint = f"a pickle that torch cannot read: {lines[0]}", None
    return CheckpointError(f"{path}: {what}", hint=hint)


def _state_dict(
    saved: Any, path: Path, contents: Contents, choice: WeightsChoice
) -> dict[str, Tensor]:
    """The state dict itself, or the one that a training script has put inside a dictionary."""
    if not isinstance(saved, Mapping):
        raise CheckpointError(
            f"{path}: holds {_kind(saved)}, not a state dict",
            hint="A state dict is a dictionary of tensors by name: torch.save(model.state_dict(), "
            "FILE).",
        )
    if {"state", "param_groups"} <= saved.keys():
        raise CheckpointError(
            f"{path}: the state of an optimizer, not a state dict",
            hint="The weights are in another file of the same run.",
        )
    if choice.key:
        saved = _under(saved, choice.key, path)
    inner, place = _inner(saved, contents, choice)
    import torch

    if odd := [name for name in inner if not isinstance(inner[name], torch.Tensor)]:
        raise _no_tensor(inner, odd[0], path, place)
    for name in inner:
        if not isinstance(name, str) or not _nameable(name):
            raise CheckpointError(f"{path}: {str(name)[:50]!r}: no name for a tensor")
    return dict(inner)


def _kind(value: Any) -> str:
    return "something that is not read" if isinstance(value, _Inert) else type(value).__name__


def _under(saved: Mapping[Any, Any], key: str, path: Path) -> Mapping[Any, Any]:
    """What a dictionary holds under a key, or under dotted keys in one another, or before names.

    Names are those of the dictionary itself, or of what stands under one of the usual keys.
    """
    usual = [saved[name] for name in (*_PLAIN, *_AVERAGED) if isinstance(saved.get(name), Mapping)]
    for table in (saved, *usual):
        if (found := _at(table, key)) is not None:
            return found
    keys = [str(k) for k, value in saved.items() if isinstance(value, Mapping)]
    raise CheckpointError(
        f"{path}: holds nothing under {key!r}",
        hint=f"It has {', '.join(keys[:9])}." if keys else "It is a state dict itself.",
    )


def _at(table: Mapping[Any, Any], key: str) -> Mapping[Any, Any] | None:
    """What one dictionary holds under a key, see above."""
    if isinstance(table.get(key), Mapping):
        return dict(table[key])
    first, _, rest = key.partition(".")
    if rest and isinstance(table.get(first), Mapping):
        return _at(table[first], rest)
    prefix = f"{key}."
    behind = {n: t for n, t in table.items() if isinstance(n, str) and n.startswith(prefix)}
    return {n.removeprefix(prefix): t for n, t in behind.items()} or None


def _inner(
    saved: Mapping[Any, Any], contents: Contents, choice: WeightsChoice
) -> tuple[Mapping[Any, Any], str]:
    """The state dict under one of the usual keys, if there is any; and these keys, with dots."""
    usual = (*_AVERAGED, *_PLAIN) if choice.use_ema else (*_PLAIN, *_AVERAGED)
    place = ""
    for _ in range(_DEEPEST):
        keys = [key for key in usual if isinstance(saved.get(key), Mapping) and saved[key]]
        if not keys:
            break
        also = f"; {', '.join(keys[1:])} left out" if keys[1:] else ""
        flag = " (--no-use-ema takes them)" if also and keys[0] in _AVERAGED else ""
        contents.notes.append(f"the weights are those under {keys[0]!r}{also}{flag}")
        saved, place = saved[keys[0]], f"{place}{keys[0]}."
    return saved, place


def _no_tensor(saved: Mapping[Any, Any], name: Any, path: Path, place: str) -> CheckpointError:
    """What a dictionary holds in place of tensors, and where its weights may be."""
    if keys := [*_nests(saved, place, set())]:
        key = shlex.quote(keys[0])
        return CheckpointError(
            f"{path}: its weights may be those under {', '.join(map(repr, keys[:9]))}",
            hint=f"Say which: --weights-key {key}, of qvec import and all that reads weights.",
        )
    return CheckpointError(
        f"{path}: {str(name)[:50]}: is {_kind(saved[name])}, not a tensor",
        hint="A state dict holds tensors only.",
    )


def _nests(table: Mapping[Any, Any], before: str, seen: set[int]) -> Iterator[str]:
    """Where dictionaries with tensors are, each once."""
    import torch

    seen.add(id(table))
    for key, value in table.items():
        if isinstance(value, Mapping) and id(value) not in seen:
            if any(isinstance(tensor, torch.Tensor) for tensor in value.values()):
                yield f"{before}{key}"
            elif before.count(".") < _DEEPEST:
                yield from _nests(value, f"{before}{key}.", seen)


def _script(saved: Any) -> dict[str, Any]:
    """What a training script says of the network: its name under "arch", and its arguments.

    Only plain values count, and texts, numbers and lists of them.
    """
    if not isinstance(saved, Mapping):
        return {}
    facts: dict[str, Any] = {}
    for place in ("config", "hyper_parameters", "args"):
        held = saved.get(place)
        table = vars(held) if isinstance(held, argparse.Namespace) else held
        if isinstance(table, Mapping):
            facts |= {str(key): value for key, value in table.items() if _is_plain(value)}
    names = [saved.get("arch"), *(facts.get(key) for key in _NAMES)]
    name = next((name for name in names if isinstance(name, str)), None)
    return {**facts, "arch": name} if name else facts


def _is_plain(value: Any, deep: int = 2) -> bool:
    """Whether it is a text or a number, or a short list or dictionary of some."""
    if isinstance(value, Mapping):
        fits = deep > 0 and len(value) <= _LONGEST
        return fits and all(
            isinstance(key, str) and _is_plain(held, deep - 1) for key, held in value.items()
        )
    if isinstance(value, (list, tuple)):
        return deep > 0 and len(value) <= _LONGEST and all(_is_plain(v, deep - 1) for v in value)
    return value is None or isinstance(value, (str, int, float, bool))


def _nameable(name: str) -> bool:
    try:
        return name != "__metadata__" and len(name.encode()) <= MAX_NAME
    except UnicodeEncodeError:
        return False


def _bytes(path: Path, name: str, tensor: Tensor) -> tuple[memoryview, str]:
    import torch

    try:
        dtype = name_of(tensor.dtype)
        flat = tensor.detach().contiguous().reshape(-1)
        raw: Any = flat.view(torch.uint8).numpy()
        return memoryview(raw), dtype
    except (KeyError, RuntimeError, NotImplementedError, TypeError):
        kind = f"{tensor.dtype} {tensor.layout}".replace("torch.", "")
        raise CheckpointError(f"{path}: {name}: {kind} is not supported by qvec") from None


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Equal for tied tensors: the same numbers at the same place in memory."""
    import torch

    if tensor.layout is not torch.strided or tensor.is_nested or not tensor.numel():
        return (id(tensor),)
    return tensor.data_ptr(), tensor.stride(), tensor.dtype, tuple(tensor.shape)
