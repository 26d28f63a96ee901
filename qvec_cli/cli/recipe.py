"""--recipe FILE.yaml: defaults for a command's flags, each value read as if it were typed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from qvec_cli.errors import SpecError

if TYPE_CHECKING:
    import yaml

MAX_BYTES: Final = 1 << 20

_YAML: Final = "tag:yaml.org,2002:"
_PLAIN: Final = {f"{_YAML}{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp")}

Value = str | list[str]


def apply(context: typer.Context, path: Path | None) -> Path | None:
    """Makes a recipe's values the defaults of the command at hand; flags still win."""
    if path is not None:
        known = {p.name: p.opts for p in context.command.params if p.name and p.opts}
        names = {opt.removeprefix("--"): name for name, opts in known.items() for opt in opts}
        context.default_map = {**(context.default_map or {}), **load(path, names)}
    return path


def load(path: Path, names: dict[str, str]) -> dict[str, Value]:
    """A recipe as parameter names and texts.

    Args:
        path: a YAML mapping from flags to values; ``model-arg`` may be a mapping itself.
        names: parameter by flag, without the leading dashes.

    Raises:
        SpecError: not such a file, or a key that the command has no flag for.
    """
    values: dict[str, Value] = {}
    for key, node in _entries(path):
        flag = key.value.replace("_", "-")
        where = f"{path}:{key.start_mark.line + 1}"
        if flag not in names or flag == "recipe":
            raise SpecError(f"{where}: {key.value!r} is no flag here", hint=_near(flag, names))
        if names[flag] in values:
            raise SpecError(f"{where}: {key.value!r} stands in it twice")
        values[names[flag]] = _value(where, node)
    return values


def _entries(path: Path) -> Iterable[tuple[yaml.ScalarNode, yaml.Node]]:
    import yaml

    try:
        if path.stat().st_size > MAX_BYTES:
            raise SpecError(f"{path}: a recipe of more than {MAX_BYTES:,} bytes is not read")
        root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except OSError as fault:
        raise SpecError(f"{path}: {(fault.strerror or 'cannot be read').lower()}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as fault:
        raise SpecError(f"{path}: is not YAML: {' '.join(str(fault).split())}") from None
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise SpecError(f"{path}: is not a mapping from flags to values")
    return [(_scalar(str(path), key), value) for key, value in root.value]


def _value(where: str, node: yaml.Node) -> Value:
    import yaml

    if isinstance(node, yaml.SequenceNode) and node.tag == f"{_YAML}seq":
        return [_scalar(where, item).value for item in node.value]
    if isinstance(node, yaml.MappingNode) and node.tag == f"{_YAML}map":
        return [f"{_scalar(where, k).value}={_scalar(where, v).value}" for k, v in node.value]
    return str(_scalar(where, node).value)


def _scalar(where: str, node: yaml.Node) -> yaml.ScalarNode:
    """A plain value: text as it stands; yes is no boolean and 010 no octal number."""
    import yaml

    if not isinstance(node, yaml.ScalarNode) or node.tag not in _PLAIN:
        raise SpecError(f"{where}: a plain value belongs here")
    return node


def _near(flag: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(flag, names, n=1)
    return f"Did you mean {close[0]}?" if close else "--help lists the flags of a command."
