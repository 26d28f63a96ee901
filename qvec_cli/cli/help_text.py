"""Help on a terminal, plain text at most 80 columns wide; and the command for the manual: help."""

from __future__ import annotations

import difflib
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from qvec_cli.cli import show
from qvec_cli.errors import SpecError

_WIDEST: Final = 80
_NARROWEST: Final = 50
_COLUMN: Final = 24
"""Columns of flags before their descriptions; a longer flag has a line of its own."""

_REST: Final = "Options"
"""The section of flags that are in no other, as --help."""

_GLUE: Final = "\xa0"
"""A space at which no line breaks."""

_WHOLE: Final[dict[str, Any]] = {"break_on_hyphens": False, "break_long_words": False}
"""How text is wrapped: no flag or file name is broken."""

_EXAMPLES: Final = "Examples:\n"

Rows = list[tuple[str, str]]
"""Flags or commands, each with its description."""


class PlainCommand(TyperCommand):
    """A command whose flags stand in the sections that ``signature.expand`` has marked.

    Its docstring is the text above them; a last paragraph "Examples:" goes below, as it is.
    """

    def get_help(self, ctx: Any) -> str:
        """The help text."""
        text, _, examples = (self.help or "").partition(_EXAMPLES)
        sections: dict[str, Rows] = {}
        for parameter in self.get_params(ctx):
            heading = getattr(parameter, "rich_help_panel", None) or _REST
            sections.setdefault(heading, []).append((_flag(parameter), _description(parameter)))
        if rest := sections.pop(_REST, None):
            sections[_REST] = rest
        usage = " ".join((ctx.command_path, *_required(self.get_params(ctx)), "[OPTIONS]"))
        blocks = [_usage(usage), *_paragraphs(text), *_sections(sections)]
        if examples:
            blocks.append(_EXAMPLES + textwrap.indent(textwrap.dedent(examples).rstrip(), "  "))
        return "\n\n".join(blocks)


class PlainGroup(TyperGroup):
    """The whole program, whose commands stand in the sections that they were registered with."""

    def sections(self) -> dict[str, list[str]]:
        """The names of all commands by section, in the order of registration."""
        sections: dict[str, list[str]] = {}
        for name, command in self.commands.items():
            sections.setdefault(getattr(command, "rich_help_panel", _REST), []).append(name)
        return sections

    def get_help(self, ctx: Any) -> str:
        """The help text: a line for each command."""
        sections: dict[str, Rows] = {
            heading: [(name, summary(self.commands[name].help or "")) for name in names]
            for heading, names in self.sections().items()
        }
        sections[_REST] = [(_flag(p), _description(p)) for p in self.get_params(ctx)]
        usage = f"{ctx.command_path} COMMAND [OPTIONS]"
        column = max(map(len, self.commands)) + 2
        blocks = [_usage(usage), *_paragraphs(self.help or ""), *_sections(sections, column)]
        return "\n\n".join(blocks)


def summary(docstring: str) -> str:
    """The first line of a docstring."""
    return docstring.split("\n", 1)[0]


def _required(parameters: list[Any]) -> Iterator[str]:
    """What must be typed: arguments, then flags with a value."""
    for parameter in parameters:
        if parameter.param_type_name == "argument":
            yield parameter.metavar if parameter.required else f"[{parameter.metavar}]"
    for parameter in parameters:
        if parameter.param_type_name == "option" and parameter.required:
            yield _flag(parameter).split(", ")[0].split(" ")[0] + f" {parameter.metavar}"


def _flag(parameter: Any) -> str:
    """How an argument or a flag is typed: short name, long name, value."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar)
    names = ", ".join(sorted(parameter.opts, key=len))
    if parameter.is_flag:
        return ", ".join((names, *parameter.secondary_opts))
    return f"{names} {parameter.metavar}"


def _description(parameter: Any) -> str:
    """What a flag means, and what holds without it, which stays on one line."""
    note = ""
    if isinstance(parameter.show_default, str):
        note = f"[default: {parameter.show_default}]"
    elif parameter.required:
        note = "[required]"
    if len(note) <= _width() - _COLUMN - 2:
        note = note.replace(" ", _GLUE)
    return f"{parameter.help or ''} {note}"


def _width() -> int:
    return max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size().columns))


def _usage(usage: str) -> str:
    indent = " " * len("Usage: qvec ")
    return textwrap.fill(f"Usage: {usage}", _width(), subsequent_indent=indent, **_WHOLE)


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in filter(None, text.strip().split("\n\n")):
        yield textwrap.fill(" ".join(paragraph.split()), _width(), **_WHOLE)


def _sections(sections: dict[str, Rows], column: int = _COLUMN) -> Iterator[str]:
    """Each section with its heading; descriptions start in one column."""
    indent = " " * (column + 2)
    for heading, rows in sections.items():
        lines = [f"{heading}:"]
        for left, right in rows:
            wrapped = textwrap.wrap(right, _width() - len(indent), **_WHOLE) or [""]
            if len(left) > column - 2:
                wrapped.insert(0, f"  {left}")
            else:
                wrapped[0] = f"  {left:<{column}}{wrapped[0]}"
            lines += [wrapped[0].rstrip(), *(indent + line for line in wrapped[1:])]
        yield "\n".join(lines).replace(_GLUE, " ")


TOPICS: Final = (
    *("tour", "grids", "data", "data-use", "files", "errors", "python", "paper", "changes"),
)
"""The pages that are not of a command."""

_FOLDER: Final = resources.files("qvec_cli") / "manual"
_LIST_HEAD: Final = """\
# qvec

`qvec help TOPIC` shows a page of this manual, `qvec COMMAND --help` lists the flags of a command.
"""


def manual(
    context: typer.Context,
    topic: Annotated[
        str | None,
        typer.Argument(metavar="TOPIC", help="A command or a topic.", show_default="the list"),
    ] = None,
) -> None:
    """Show a page of the manual, or list the pages.

    Pages are formatted on a terminal, and plain Markdown in a pipe.

    Examples:
        qvec help tour
        qvec help quantize
    """
    program = context.find_root().command
    assert isinstance(program, PlainGroup)
    show.page(listing(program.sections()) if topic is None else page(topic))


def page(topic: str) -> str:
    """The Markdown text of one page, or SpecError with the closest names as a hint."""
    pages = {file.name.removesuffix(".md"): file for file in _FOLDER.iterdir()}
    if topic not in pages:
        near = difflib.get_close_matches(topic.lower().replace("_", "-"), pages, cutoff=0.55)
        guess = f"Did you mean {', '.join(near)}? " if near else ""
        raise SpecError(
            f"the manual has no page {topic!r}", hint=f"{guess}qvec help lists all pages."
        )
    return pages[topic].read_text(encoding="utf-8")


def sentence(text: str) -> str:
    """The sentence with which a page opens, below its title, on one line."""
    return " ".join(text.split("\n\n")[1].split())


def listing(sections: Mapping[str, Sequence[str]]) -> str:
    """All pages as Markdown, each with its sentence: commands by section, then topics."""
    lines = [_LIST_HEAD]
    for section, names in {**sections, "Topics": TOPICS}.items():
        rows = [f"- `{name}`: {sentence(page(name))}\n" for name in names]
        lines += [f"\n## {section}\n\n", *rows]
    return "".join(lines)
