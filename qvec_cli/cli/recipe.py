"""--recipe FILE.yaml: defaults for a command's flags, each value read as if it were typed."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Final

import typer

from qvec_cli.errors import SpecError
from qvec_cli.inputs.yaml_text import Value, entries, line, near, value

_LISTED: Final = "--help lists the flags of a command."


def apply(context: typer.Context, path: Path | None) -> Path | None:
    """Makes a recipe's values the defaults of the command at hand; flags still win."""
    return _defaults(context, path, ())


def apply_grid(context: typer.Context, path: Path) -> Path:
    """The same for a grid file, which also says who takes part."""
    from qvec_cli.transfer.grid_file import PARTS

    _defaults(context, path, PARTS)
    return path


def _defaults(context: typer.Context, path: Path | None, parts: Container[str]) -> Path | None:
    if path is not None:
        known = {p.name: p.opts for p in context.command.params if p.name and p.opts}
        flags = {opt for opts in known.values() for opt in opts if opt.startswith("--")}
        names = {o.removeprefix("--"): n for n, opts in known.items() for o in opts if o in flags}
        lists = {p.name for p in context.command.params if p.name and p.multiple}
        context.default_map = {
            **(context.default_map or {}),
            **{
                name: value if isinstance(value, str) or name in lists else ",".join(value)
                for name, value in load(path, names, parts).items()
            },
        }
    return path


def load(path: Path, names: dict[str, str], parts: Container[str] = ()) -> dict[str, Value]:
    """A recipe as parameter names and texts.

    Args:
        path: a YAML mapping from flags to values; ``model-arg`` may be a mapping itself.
        names: parameter by flag, without the leading dashes.
        parts: keys that are not flags and are read elsewhere.

    Raises:
        SpecError: not such a file, or a key that the command has no flag for.
    """
    values: dict[str, Value] = {}
    for key, node in entries(path):
        if key.value in parts:
            continue
        flag = key.value.replace("_", "-")
        where = line(path, key)
        if flag not in names or flag == "recipe":
            raise SpecError(
                f"{where}: {key.value!r} is no flag here", hint=near(flag, names, _LISTED)
            )
        if names[flag] in values:
            raise SpecError(f"{where}: {key.value!r} stands in it twice")
        values[names[flag]] = value(where, node)
    return values
