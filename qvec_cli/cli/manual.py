"""The command that shows the manual: help."""

from __future__ import annotations

import difflib
from importlib import resources
from typing import Annotated, Final

import typer

from qvec_cli.cli import show
from qvec_cli.errors import SpecError

GROUPS: Final = {
    "Train": ("finetune", "train-qat"),
    "Vectors": ("extract", "moments", "combine", "patch"),
    "Quantize": ("quantize", "advise", "export"),
    "Measure": ("eval", "sweep-lambda"),
    "Study": ("transfer", "plot", "report"),
    "Look": ("inspect", "help"),
    "Topics": ("tour", "grids", "data", "data-use", "files", "errors", "paper", "changes"),
}
"""Every page, commands in the order of use; each is a Markdown file of qvec_cli/manual."""

_HEAD: Final = """\
# qvec

`qvec help TOPIC` shows a page of this manual, `qvec COMMAND --help` lists the flags of a command.
"""


def manual(
    topic: Annotated[
        str | None,
        typer.Argument(metavar="TOPIC", help="A command or a topic.", show_default="the list"),
    ] = None,
) -> None:
    """Show a page of the manual, or list the pages.

    Pages are formatted on a terminal, and plain Markdown in a pipe.
    """
    show.page(listing() if topic is None else page(topic))


def page(topic: str) -> str:
    """The Markdown text of one page.

    Raises:
        SpecError: no page has this name; the hint names the closest ones.
    """
    topics = [name for names in GROUPS.values() for name in names]
    if topic not in topics:
        near = difflib.get_close_matches(topic.lower().replace("_", "-"), topics, cutoff=0.55)
        guess = f"Did you mean {', '.join(near)}? " if near else ""
        raise SpecError(
            f"the manual has no page {topic!r}", hint=f"{guess}qvec help lists all pages."
        )
    return (resources.files("qvec_cli") / "manual" / f"{topic}.md").read_text(encoding="utf-8")


def sentence(text: str) -> str:
    """The sentence with which a page opens, below its title, on one line."""
    return " ".join(text.split("\n\n")[1].split())


def listing() -> str:
    """All pages by group, as Markdown, each with the sentence with which it opens."""
    lines = [_HEAD]
    for group, names in GROUPS.items():
        rows = [f"- `{name}`: {sentence(page(name))}\n" for name in names]
        lines += [f"\n## {group}\n\n", *rows]
    return "".join(lines)
