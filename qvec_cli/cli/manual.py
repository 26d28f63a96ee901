"""The command that shows the manual: help."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Annotated, Final

import typer

from qvec_cli.cli import show
from qvec_cli.cli.help_text import PlainGroup
from qvec_cli.errors import SpecError

TOPICS: Final = ("tour", "grids", "data", "data-use", "files", "errors", "paper", "changes")
"""The pages that are not of a command."""

_FOLDER: Final = resources.files("qvec_cli") / "manual"

_HEAD: Final = """\
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
    """The Markdown text of one page.

    Raises:
        SpecError: no page has this name; the hint names the closest ones.
    """
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
    lines = [_HEAD]
    for section, names in {**sections, "Topics": TOPICS}.items():
        rows = [f"- `{name}`: {sentence(page(name))}\n" for name in names]
        lines += [f"\n## {section}\n\n", *rows]
    return "".join(lines)
