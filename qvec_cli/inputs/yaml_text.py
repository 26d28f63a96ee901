"""A YAML file as a mapping of plain texts, each fault with its line: yes is no boolean here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from qvec_cli.checkpoint.source import near_files
from qvec_cli.errors import CheckpointError, SpecError

if TYPE_CHECKING:
    import yaml

MAX_BYTES: Final = 1 << 17  # which take three seconds where they are all brackets

_YAML: Final = "tag:yaml.org,2002:"

_PLAIN: Final = {f"{_YAML}{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp")}

Value = str | list[str]

Entry = tuple["yaml.ScalarNode", "yaml.Node"]


def entries(path: Path) -> list[Entry]:
    """The keys and values of a file's mapping, in its order.

    Raises CheckpointError: a file that cannot be read; SpecError: one that holds anything else.
    """
    import yaml

    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise SpecError(f"{path}: YAML of more than {MAX_BYTES:,} bytes is not read")
        root = yaml.compose(raw.decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file", hint=near_files(path)) from None
    except OSError as fault:
        raise CheckpointError(f"{path}: {(fault.strerror or 'cannot be read').lower()}") from None
    except yaml.MarkedYAMLError as fault:
        place = f"{path}:{fault.problem_mark.line + 1}" if fault.problem_mark else str(path)
        raise SpecError(f"{place}: is not YAML: {fault.problem or fault.context}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as fault:
        raise SpecError(f"{path}: is not YAML: {' '.join(str(fault).split())}") from None
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise SpecError(f"{path}: is not a mapping from flags to values")
    return [(scalar(str(path), key), value) for key, value in root.value]


def inside(path: Path, where: str, node: yaml.Node) -> dict[str, yaml.Node]:
    """The entries of a mapping within a file, by key; SpecError for others, or a key twice."""
    import yaml

    if not isinstance(node, yaml.MappingNode) or node.tag != f"{_YAML}map":
        raise SpecError(f"{line(path, node)}: {where} is not a mapping")
    values: dict[str, yaml.Node] = {}
    for key, value in node.value:
        name = scalar(line(path, key), key).value
        if name in values:
            raise SpecError(f"{line(path, key)}: {name!r} stands in {where} twice")
        values[name] = value
    return values


def is_mapping(node: yaml.Node) -> bool:
    """Whether a value is a mapping rather than a text or a list."""
    return node.tag == f"{_YAML}map"


def line(path: Path, node: yaml.Node) -> str:
    """Where a node stands, as file:line."""
    return f"{path}:{node.start_mark.line + 1}"


def value(where: str, node: yaml.Node) -> Value:
    """A value as texts: one, a list of them, or a mapping as a list of KEY=VALUE."""
    import yaml

    if isinstance(node, yaml.SequenceNode) and node.tag == f"{_YAML}seq":
        return [scalar(where, item).value for item in node.value]
    if isinstance(node, yaml.MappingNode) and node.tag == f"{_YAML}map":
        return [f"{scalar(where, k).value}={scalar(where, v).value}" for k, v in node.value]
    return str(scalar(where, node).value)


def scalar(where: str, node: yaml.Node) -> yaml.ScalarNode:
    """A plain value, or else SpecError: text as it stands, so that 010 is no octal number."""
    import yaml

    if not isinstance(node, yaml.ScalarNode) or node.tag not in _PLAIN:
        raise SpecError(f"{where}: a plain value belongs here")
    return node
