"""Groups of flags: a dataclass in a command's signature stands for one flag a field."""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

from typer import Option
from typer.models import ArgumentInfo, ParameterInfo

from qvec_cli.errors import SpecError

INPUT: Final = "Input"
"""The section of arguments, and of flags that name no other."""

_METAVARS: Final = {int: "N", float: "NUMBER", Path: "FILE", str: "NAME"}
"""What stands for a value in a help text, unless the flag says it better."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """Beside a group in a signature: what this command changes in it."""

    without: tuple[str, ...] = ()  # fields that it has no flag for; they keep their defaults
    defaults: Mapping[str, object] = field(default_factory=dict)  # other defaults, by field
    said: Mapping[str, str] = field(default_factory=dict)  # what help says of a default, by field


def flag(default: Any, help_text: str, *names: str, **option: Any) -> Any:
    """A field of a group: its default, what help says of it, and what typer.Option takes beside."""
    return field(default=default, metadata={"option": Option(*names, help=help_text, **option)})


def expand(function: Callable[..., None]) -> Callable[..., None]:
    """Spells out the groups of flags in a command's signature, for typer to read.

    Args:
        function: takes arguments and flags annotated as typer wants them, and groups. A group is
            a dataclass of ``flag`` fields; its ``heading``, if any, is their section.

    Returns:
        A function of single flags, which calls ``function`` with its groups as objects. Every flag
        has a metavar, and its default as text.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, tuple[type, list[str]]] = {}
    parameters: list[Parameter] = []
    for name, parameter in signature(function).parameters.items():
        kind, *marks = _split(hints[name])
        if is_dataclass(kind) and isinstance(kind, type):
            flags = list(_flags(kind, marks[0] if marks else Adapted()))
            groups[name] = kind, [flag.name for flag in flags]
            parameters += flags
        elif marks:
            parameters.append(_completed(name, hints[name], parameter.default, INPUT))
        else:  # typer's context
            parameters.append(parameter.replace(annotation=kind))

    def command(**values: Any) -> None:
        for name, (kind, flags) in groups.items():
            values[name] = kind(**{flag: values.pop(flag) for flag in flags})
        function(**values)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__module__ = function.__module__
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # PEP 362 has it
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def typed_flags(group: object) -> Iterator[str]:
    """The names of a group's fields that differ from their defaults."""
    for item in fields(group):  # type: ignore[arg-type]  # a dataclass, by the caller's word
        if getattr(group, item.name) != item.default:
            yield item.name


def _flags(group: type, adapted: Adapted) -> Iterator[Parameter]:
    """A group's fields as parameters, but for those that a command does without."""
    hints = get_type_hints(group, include_extras=True)
    heading: str = getattr(group, "heading", INPUT)
    for item in fields(group):
        if item.name not in adapted.without:
            default = adapted.defaults.get(item.name, item.default)
            hint = hints[item.name]
            if "option" in item.metadata:
                hint = Annotated[hint, item.metadata["option"]]
            yield _completed(item.name, hint, default, heading, adapted.said.get(item.name))


def _completed(
    name: str, hint: Any, default: object, heading: str, said: str | None = None
) -> Parameter:
    """A parameter whose metavar, default and section are texts."""
    kind, info = _split(hint)
    info = copy(info)
    info.case_sensitive = False
    info.readable = False  # the readers of files say what is wrong with them
    info.rich_help_panel = info.rich_help_panel or heading
    if kind is bool and not info.param_decls and info.default is ...:
        info.param_decls = (f"--{name.replace('_', '-')}",)  # without typer's --no-x beside it
    info.metavar = info.metavar or _metavar(name, kind, info)
    info.show_default = said or _default_text(default, info) or False
    annotation = Annotated[kind, info]  # type: ignore[valid-type]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _split(hint: Any) -> tuple[Any, ...]:
    """A type and what it is annotated with."""
    return get_args(hint) if get_origin(hint) is Annotated else (hint,)


def _metavar(name: str, kind: Any, info: ParameterInfo) -> str | None:
    """An argument's name in capitals, the words of a choice, or what a type is called."""
    if isinstance(info, ArgumentInfo):
        return name.upper()
    while get_origin(kind) in {Union, types.UnionType, list}:
        kind = next(arg for arg in get_args(kind) if arg is not type(None))
    if issubclass(kind, StrEnum):
        return "|".join(kind)
    return _METAVARS.get(kind)


def _default_text(default: object, info: ParameterInfo) -> str:
    """A default as the help shows it; of what is left to the program, its own words."""
    if default is None or default == "" or isinstance(default, bool):
        return info.show_default if isinstance(info.show_default, str) else ""
    if default is Parameter.empty or info.show_default is False:
        return ""
    if isinstance(default, tuple):
        return ", ".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def file_path(typed: str) -> Path:
    """The path of a file to write; SpecError: it ends as a folder's does, which paths forget."""
    if typed.endswith(os.sep):
        raise SpecError(f"-o {typed}: names a folder", hint="Name a file with -o.")
    return Path(typed)
