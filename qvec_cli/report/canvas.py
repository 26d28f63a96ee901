"""What all figures share: options, style, sizes in inches, colours for all eyes, bytes."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.specs import Cost, FigureKind, Use
from qvec_cli.tame import tame

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS: Final = ("png", "svg", "pdf")

LAMBDA: Final = "\N{GREEK SMALL LETTER LAMDA}"

INK: Final = "#1b1b1b"
SOFT: Final = "#5c5c5c"
FAINT: Final = "#d5d5d5"

WIDEST: Final = 6.3
"""Inches that a figure takes unless it must: a telephone's 420 pixels leave its letters legible."""

MINUS: Final = "\N{MINUS SIGN}"

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a6761d", "#56b4e9", "#7a5fa8")
"""Lines and points: after Okabe and Ito, without their yellow, which white paper swallows."""

SMALL: Final = 7.0
"""Points of the smallest words; numbers in cells of large grids may be smaller."""

_STYLE: Final[dict[str, Any]] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.0,
    "text.color": INK,
    "text.parse_math": False,  # a $ in a name is a $
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.0,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    "hatch.color": "#9a9a9a",
    "svg.hashsalt": "qvec",
    "svg.fonttype": "path",  # the same letters wherever the file is shown
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
    "figure.dpi": 100,
}

_METADATA: Final[dict[str, dict[str, Any]]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
}
"""No time and no version stands in a figure: the same numbers give the same bytes."""

_ONE_LINE: Final = 14
"""Letters of a name beside a column; a longer one is broken."""

_LONGEST: Final = 26
"""Letters of a name in a figure."""


@dataclass(frozen=True, slots=True)
class FigureOptions:
    """The figure that the user asks for, and what it is to show."""

    kind: FigureKind | None = None
    receiver: str | None = None
    donor: str | None = None
    cost: Cost = Cost.IMAGES


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure, its content in words and numbers, and the receiver data that its numbers used."""

    figure: Figure
    words: str  # what it shows, for those who do not see it
    facts: Mapping[str, Any]
    use: Use


@contextlib.contextmanager
def style() -> Iterator[None]:
    """qvec's style alone, whatever the user's matplotlibrc says; decorates drawing functions."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def render(figure: Figure, suffix: str) -> bytes:
    """A figure as the bytes of a file of one of ``FORMATS``."""
    from matplotlib.text import Text

    file = io.BytesIO()
    for text in figure.findobj(Text):
        if (shown := tame(text.get_text())) != text.get_text():
            text.set_text(shown)
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # it is drawn as a box
        figure.savefig(file, format=suffix, metadata=_METADATA[suffix])
    return file.getvalue()


class Sheet:
    """A figure with a title; its axes are placed in inches from its upper left corner."""

    def __init__(
        self, width: float, height: float, title: str, subtitle: str = "", notes: str = ""
    ) -> None:
        """Makes the sheet higher by the lines of its notes and those that its title breaks into."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        title, subtitle = name(title, 160), name(subtitle, 240)
        titles = wrapped(title, width - 0.3, 11.3)  # 10 points, bold
        below, lines = (wrapped(text, width - 0.3, 7.5) for text in (subtitle, notes))
        head = 0.18 * (len(titles) - 1) + 0.14 * max(len(below) - 1, 0)
        self.width, self.height = width, head + height + 0.14 * len(lines) + 0.1
        self.figure = Figure(figsize=(self.width, self.height), facecolor="white")
        FigureCanvasAgg(self.figure)
        self.head = 0.0  # inches by which all that follows the title moves down
        for line in titles:
            self.write(0.15, 0.12, line, fontsize=10, fontweight="bold")
            self.head += 0.18
        self.head -= 0.18
        self.write_lines(0.15, 0.34, below, fontsize=7.5, color=SOFT)
        self.head = head
        self.write_lines(0.15, height, lines, color=SOFT)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes of so many inches."""
        bottom = self.height - self.head - top - height
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def write(self, left: float, top: float, text: str, **properties: Any) -> None:
        """Words whose upper left corner stands there."""
        place = left / self.width, 1 - (self.head + top) / self.height
        self.figure.text(*place, printable(text), **{"ha": "left", "va": "top", **properties})

    def write_lines(self, left: float, top: float, lines: Sequence[str], **properties: Any) -> None:
        """Small words in lines, one below the other."""
        for place, line in enumerate(lines):
            self.write(left, top + 0.14 * place, line, **{"fontsize": SMALL, **properties})

    def legend(
        self, top: float, entries: Sequence[tuple[str, str]], columns: int, points: float
    ) -> None:
        """Names and their colours, in so many columns."""
        from matplotlib.patches import Patch

        self.figure.legend(
            handles=[Patch(color=colour, label=label) for label, colour in entries],
            loc="upper left",
            bbox_to_anchor=(0.15 / self.width, 1 - (self.head + top) / self.height),
            ncols=columns,
            fontsize=points,
            borderpad=0,
            borderaxespad=0,
        )


def beside(
    axes: Axes, text: str, place: tuple[float, float], shift: tuple[float, float], **properties: Any
) -> None:
    """Words so many points right of and above a place of the data."""
    offset = {"textcoords": "offset points", "fontsize": SMALL, "annotation_clip": False}
    axes.annotate(text, place, shift, **{**offset, **properties})


def words_width(texts: Sequence[str], points: float = 7.5) -> float:
    """Inches that the longest of some texts takes, from DejaVu's own widths."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=points)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        sizes = [text_to_path.get_text_width_height_descent(t, font, False)[0] for t in texts if t]
    return max(sizes, default=0.0) / 72


def wrapped(text: str, width: float, points: float) -> list[str]:
    """Words in lines of at most so many inches."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and words_width([longer], points) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def printable(text: str) -> str:
    """The same on one line, without what cannot be printed."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def name(text: str, longest: int = _LONGEST) -> str:
    """A name as a label: on one line, without what cannot be printed, cut in its middle."""
    shown = printable(text)
    if len(shown) <= longest:
        return shown
    half = (longest - 1) // 2
    return f"{shown[:half]}\N{HORIZONTAL ELLIPSIS}{shown[-half:]}"


def two_lines(text: str, longest: int = 44, one_line: int = _ONE_LINE) -> str:
    """A long name broken before its bracket if that comes soon, else near its middle."""
    shown = name(text, longest)
    spaces = [place for place, letter in enumerate(shown) if letter == " "]
    if len(shown) <= one_line or not spaces:
        return name(text, max(one_line, _LONGEST))
    bracket = shown.find(" (")
    middle = bracket if 0 < bracket <= one_line + 4 else len(shown) / 2
    cut = min(spaces, key=lambda place: abs(place - middle))
    return f"{shown[:cut]}\n{shown[cut + 1 :]}"


def signed(points: float, *, decimal: bool = True) -> str:
    """Points with their sign; zero has none."""
    text = f"{points:+.1f}" if decimal else f"{points:+.0f}"
    shown = text.lstrip("+-")
    return shown if float(shown) == 0 else text.replace("-", MINUS)


def number(value: float, form: str = "g") -> str:
    """A number of a figure or a page, with the minus sign that all of them have."""
    return format(value, form).replace("-", MINUS)


def compact(value: float) -> str:
    """A count in three digits: 840, 16.2 k, 1.28 M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def counts(values: Sequence[int]) -> str:
    """The one number that all values are, or the smallest and the largest."""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def ink_on(colour: Any) -> str:
    """Black or white, whichever stands out more from a colour (WCAG's contrast)."""
    light = luminance(colour)
    return "#ffffff" if 1.05 / (light + 0.05) > (light + 0.05) / 0.05 else "#000000"


def luminance(colour: Any) -> float:
    """Relative luminance of any of matplotlib's colours in [0, 1], as WCAG 2 defines it."""
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
