"""One HTML page that holds everything it shows: drawings, tables, and the numbers behind them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final


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


def page(content: Page) -> bytes:
    """The page: no script, no file beside it and no address that a browser would ask."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qvec_cli", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pictures = {
        id(picture): inline(picture.svg, f"f{place}")
        for place, picture in enumerate(p for s in content.sections for p in s.pictures)
    }
    text = environment.get_template("page.html").render(
        page=content,
        drawing=lambda picture: pictures[id(picture)],
        data=embedded(content.data),
    )
    return text.encode("utf-8")


def embedded(data: Any) -> str:
    """JSON that a script element can hold: nothing in it ends the element or opens a comment."""
    text = json.dumps(data, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


_DROPPED: Final = (
    re.compile(r"<\?xml.*?\?>", re.DOTALL),
    re.compile(r"<!DOCTYPE.*?>", re.DOTALL),
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"<metadata>.*?</metadata>", re.DOTALL),
    re.compile(r"<style .*?</style>", re.DOTALL),  # it would speak to the whole page
    re.compile(r' xmlns(:\w+)?="[^"]*"'),  # a page knows them
)


_STYLE: Final = "stroke-linejoin: round; stroke-linecap: butt"
"""What the dropped style says of every shape; shapes inherit it."""


def inline(svg: bytes, prefix: str) -> str:
    """The drawing alone, every id and reference to one prefixed.

    Args:
        svg: what ``render`` made, with letters as paths: text of a user stands in comments only,
            which are dropped.
        prefix: a word of its own for each drawing of a page.
    """
    text = svg.decode("utf-8")
    for pattern in _DROPPED:
        text = pattern.sub("", text)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'\b(?:xlink:)?href="#', f'href="#{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    size = r'<svg\b[^>]*?viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>'
    return re.sub(size, _opening, text, count=1).strip()


def _opening(opening: re.Match[str]) -> str:
    """A drawing that shrinks with the page and never grows beyond its size on paper."""
    width, height = opening.groups()
    points = f"max-width: {float(width) * 96 / 72:.0f}px"
    return (
        f'<svg viewBox="0 0 {width} {height}" style="{_STYLE}; {points}" '
        'aria-hidden="true" focusable="false">'
    )
