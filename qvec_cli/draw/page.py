"""One HTML page that holds everything it shows: drawings, tables, and the numbers behind them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from qvec_cli.draw.inline import inline


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text; the first cell of each names it."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    folded: bool = False  # shown when it is asked for


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing, and the same in words."""

    svg: bytes
    words: str


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page."""

    title: str
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """A whole page."""

    title: str
    lead: str
    sections: tuple[Section, ...]
    data: Any  # what JSON can hold; it is embedded as it is
    foot: str = ""


def page(given: Page) -> bytes:
    """The page: no script, no file beside it and no address that a browser would ask."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qvec_cli", "draw"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pictures = {
        id(picture): inline(picture.svg, f"f{place}")
        for place, picture in enumerate(p for s in given.sections for p in s.pictures)
    }
    text = environment.get_template("page.html").render(
        page=given,
        drawing=lambda picture: pictures[id(picture)],
        data=embedded(given.data),
    )
    return text.encode("utf-8")


def embedded(data: Any) -> str:
    """JSON that a script element can hold: nothing in it ends the element or opens a comment."""
    text = json.dumps(data, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
