"""An SVG of matplotlib as a part of an HTML page, whose names clash with nothing else in it."""

from __future__ import annotations

import re
from typing import Final

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


def _opening(found: re.Match[str]) -> str:
    """A drawing that shrinks with the page and never grows beyond its size on paper."""
    width, height = found.groups()
    points = f"max-width: {float(width) * 96 / 72:.0f}px"
    return (
        f'<svg viewBox="0 0 {width} {height}" style="{_STYLE}; {points}" '
        'aria-hidden="true" focusable="false">'
    )
