"""The figure plane: accuracy over what each way costs, and when one vector has paid off."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qvec_cli.errors import MismatchError, SpecError
from qvec_cli.report import grid_words
from qvec_cli.report.canvas import (
    COLOURS,
    INK,
    SMALL,
    SOFT,
    Drawing,
    FigureOptions,
    Sheet,
    compact,
    name,
    styled,
    two_lines,
    words_width,
    wrapped,
)
from qvec_cli.results.documents import Document, ResultFiles
from qvec_cli.results.matrix import FLOAT, OWN_QAT, PLAIN, Cell, Matrix
from qvec_cli.results.metrics_document import ExtractResults, TrainingResults
from qvec_cli.specs import Cost

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Array = np.ndarray[Any, np.dtype[Any]]


_COLOURS: Final = {"grid": SOFT, "named": COLOURS[4], "patched": COLOURS[0], "qat": COLOURS[6]}

_MARKS: Final = {"grid": "s", "named": "^", "patched": "o", "qat": "D"}


@dataclass(frozen=True, slots=True)
class PlaneWay:
    """One way to a low-bit receiver."""

    name: str
    kind: str  # grid, named, patched or qat
    costs: tuple[float, ...]  # of training for each receiver; 0: none
    top1: tuple[float, ...]  # shares, of the same receivers


@dataclass(frozen=True, slots=True)
class Plane:
    """A whole figure."""

    title: str
    subtitle: str
    unit: str  # of costs, in words
    ways: tuple[PlaneWay, ...]
    fp: float  # mean share of the float receivers
    costs: tuple[float, ...]  # of each receiver's own QAT
    donor: tuple[str, float, float, float]  # name; its cost, the least and the largest of all
    words: str  # what the second panel says


def draw_plane(files: ResultFiles, options: FigureOptions) -> Drawing:
    """The plane of a grid, in images or, with the metrics of all trainings, in seconds."""
    matrix = files.matrix
    assert matrix is not None
    costs = costs_of(matrix, options.cost, files.of(TrainingResults), files.of(ExtractResults))
    content = plane_of(matrix, costs, options.cost, options.donor)
    even = content.donor[1] / mean(content.costs)
    facts = {**grid_words.matrix_facts(matrix), "break_even": even}
    words = f"{content.title}. {content.subtitle}. {content.words}"
    return Drawing(plane(content), words, facts, grid_words.grid_use(matrix))


Costs = tuple[Mapping[str, float], Mapping[str, float]]
"""Of receivers and of donors, by name."""


def plane_of(matrix: Matrix, costs: Costs, cost: Cost, donor: str | None) -> Plane:
    """Every way over what it trains for the receiver, and the sums over receivers.

    Args:
        matrix: the grid.
        costs: see ``costs_of``.
        cost: what they are counted in.
        donor: one of the grid; by default the mean of all.

    Raises:
        SpecError: a donor that the grid does not have, or a grid in which nothing has run.
    """
    if donor is not None and donor not in matrix.donors:
        raise SpecError(f"--donor {donor!r} is not in the grid; it has {', '.join(matrix.donors)}")
    if not matrix.transfers:
        raise SpecError("the grid has no pair of a donor and another receiver yet")
    own, taught = costs
    unit = "images trained on" if cost is Cost.IMAGES else "seconds of QAT"
    receivers = [name for name in matrix.receivers if name in matrix.baselines]
    spent = tuple(own[name] for name in receivers)
    label, price = _donor(taught, donor)
    return Plane(
        "What accuracy costs the receiver",
        grid_words.subtitle(matrix),
        unit,
        tuple(_ways_of(matrix, receivers, own, donor)),
        float(np.mean([matrix.baselines[name][FLOAT].test.top1 for name in receivers])),
        spent,
        (label, price, min(taught.values()), max(taught.values())),
        break_even(label, price, spent, unit),
    )


def costs_of(
    matrix: Matrix,
    cost: Cost,
    trainings: Sequence[Document[TrainingResults]],
    extractions: Sequence[Document[ExtractResults]],
) -> Costs:
    """What the QAT of each receiver and of each donor costs.

    Raises:
        MismatchError: a cost that neither the grid nor a document tells.
    """
    if cost is Cost.IMAGES:
        return _images(matrix)
    seconds = {run.results.digest: run.seconds for run in trainings if run.command == "train-qat"}
    twins = {row.results.digest: row.inputs[-1].digest for row in extractions}
    own = {
        name: seconds.get(row.qat.digest) if row.qat else None
        for name, row in matrix.receivers.items()
    }
    taught = {name: seconds.get(str(twins.get(row.digest))) for name, row in matrix.donors.items()}
    hint = (
        "Add the --metrics of train-qat of every receiver and donor, and of extract of every "
        "vector; or count --cost images."
    )
    return _known(own, "receiver", hint), _known(taught, "donor", hint)


def _images(matrix: Matrix) -> Costs:
    hint = "The files of the grid do not tell how they were trained; --cost seconds may know."
    own = {name: row.trained_images for name, row in matrix.receivers.items()}
    taught = {name: row.trained_images for name, row in matrix.donors.items()}
    return _known(own, "receiver", hint), _known(taught, "donor", hint)


def _known(costs: Mapping[str, float | None], role: str, hint: str) -> dict[str, float]:
    if missing := [name for name, cost in costs.items() if cost is None]:
        more = f" and of {len(missing) - 1} more" if len(missing) > 1 else ""
        raise MismatchError(f"what the QAT of {role} {missing[0]}{more} costs is not known", hint)
    return {name: float(cost) for name, cost in costs.items() if cost is not None}


def _donor(taught: Mapping[str, float], donor: str | None) -> tuple[str, float]:
    if donor is not None:
        return f"vector of {donor}", taught[donor]
    if len(taught) == 1:
        return f"vector of {next(iter(taught))}", next(iter(taught.values()))
    return "vector, mean of donors", float(np.mean(list(taught.values())))


def break_even(label: str, price: float, costs: Sequence[float], unit: str) -> str:
    """Break-even in words: how many receivers' own QAT cost what the donor's does."""
    even = price / float(np.mean(costs))
    first = _reached(sorted(costs), price), _reached(sorted(costs, reverse=True), price)
    beyond = f", more than the {len(costs)} here" if even > len(costs) else ""
    average = compact(float(np.mean(costs)))
    return (
        f"Break-even N* = {even:.2f} receivers{beyond}: the donor's QAT ({label}: {compact(price)} "
        f"{unit}) over a receiver's, {average} on average. Counted in receivers, the vector is "
        f"no dearer {first[0]} if the cheapest come first, {first[1]} if the costliest do."
    )


def _reached(costs: Sequence[float], price: float) -> str:
    count = crossing(costs, price)
    return f"from {count} on" if count else f"only beyond {len(costs)} receivers"


def _ways_of(
    matrix: Matrix, receivers: Sequence[str], own: Mapping[str, float], donor: str | None
) -> Iterable[PlaneWay]:
    for key in grid_words.baseline_keys(matrix):
        members = [name for name in receivers if key in matrix.baselines[name]]
        if key == FLOAT or not members:
            continue
        shares = tuple(matrix.baselines[name][key].test.top1 for name in members)
        taught = key == OWN_QAT
        kind = "qat" if taught else "grid" if _data_free(matrix, key) else "named"
        costs = tuple(own[name] if taught else 0.0 for name in members)
        some = f", {len(members)} of {len(receivers)}" if len(members) < len(receivers) else ""
        yield PlaneWay(f"{grid_words.baseline_name(matrix, key)}{some}", kind, costs, shares)
    for label, pick in grid_words.ways(matrix):
        choices = [
            [choice for c in matrix.transfers if _counts(c, name, donor) and (choice := pick(c))]
            for name in receivers
        ]
        means = [float(np.mean([c.test.top1 for c in row])) for row in choices if row]
        use = grid_words.used(choice.use for row in choices for choice in row)
        if means:
            words = f"vector, {label} ({use})"
            yield PlaneWay(words, "patched", (0.0,) * len(means), tuple(means))


def _counts(cell: Cell, receiver: str, donor: str | None) -> bool:
    return cell.receiver == receiver and donor in (None, cell.donor)


def _data_free(matrix: Matrix, key: str) -> bool:
    return key == PLAIN or key.startswith("rtn ")


@styled
def plane(content: Plane) -> Figure:
    """Left accuracy over cost, right cost over the number of receivers."""
    free = [way for way in content.ways if not any(way.costs)]
    taught = [way for way in content.ways if any(way.costs)]
    slots = 0.38 * len(free) + 0.2
    lines = [line for way in free for line in two_lines(way.name).split("\n")]
    tall, foot = 2.7, words_width(lines) + 0.2
    below = 0.85 + tall + max(foot, 0.6)
    left = 0.65 + slots + 0.1 + 1.9
    width = max(left + 1.2 + 3.0 + 0.2, words_width([content.title], 11) + 0.3)
    notes = wrapped(_KEY, width - 0.3, SMALL)
    words = wrapped(content.words, 3.4, SMALL)
    below = max(below, 0.85 + tall + 0.55 + 0.14 * len(words))
    sheet = Sheet(width, below + 0.14 * len(notes) + 0.12)
    sheet.write(0.15, 0.12, content.title, fontsize=10, fontweight="bold")
    sheet.write(0.15, 0.34, content.subtitle, fontsize=7.5, color=SOFT)
    limits = _limits(content)
    axes = sheet.axes(0.65, 0.85, slots, tall)
    _free(axes, free, content, limits)
    _taught(sheet.axes(0.65 + slots + 0.1, 0.85, 1.9, tall), taught, content, limits)
    _amortised(sheet.axes(left + 1.2, 0.85, 3.0, tall), content)
    for place, line in enumerate(words):
        sheet.write(left + 0.75, 0.85 + tall + 0.5 + 0.14 * place, line, fontsize=SMALL)
    for place, line in enumerate(notes):
        sheet.write(0.15, below + 0.14 * place, line, fontsize=SMALL, color=SOFT)
    return sheet.figure


_KEY: Final = (
    "large: mean over receivers; faint: each receiver; line: float; "
    "band on the right: receivers that come cheapest first to costliest first"
)


def _limits(content: Plane) -> tuple[float, float]:
    shares = [100 * share for way in content.ways for share in way.top1] + [100 * content.fp]
    space = 0.05 * max(max(shares) - min(shares), 1)
    return min(shares) - space, max(shares) + space


def _points(axes: Axes, way: PlaneWay, places: Sequence[float], middle: float) -> None:
    colour, mark = _COLOURS[way.kind], _MARKS[way.kind]
    shares = [100 * share for share in way.top1]
    if len(shares) > 1:
        axes.plot(places, shares, mark, ms=3, color=colour, alpha=0.3, mew=0, zorder=2)
    axes.plot([middle], [np.mean(shares)], mark, ms=7, color=colour, mec="white", zorder=3)


def _free(
    axes: Axes, ways: Sequence[PlaneWay], content: Plane, limits: tuple[float, float]
) -> None:
    """Ways that train nothing for the receiver stand side by side at zero."""
    axes.set(xlim=(-0.6, len(ways) - 0.4), ylim=limits)
    axes.axhline(100 * content.fp, color=INK, lw=0.9, zorder=1)
    for place, way in enumerate(ways):
        _points(axes, way, [place] * len(way.top1), place)
    axes.set_xticks(range(len(ways)), [two_lines(way.name) for way in ways], rotation=90)
    axes.set_ylabel("top-1 on test, %")
    axes.set_title("no training", loc="left", fontweight="bold")
    axes.tick_params(axis="x", length=0)


def _taught(
    axes: Axes, ways: Sequence[PlaneWay], content: Plane, limits: tuple[float, float]
) -> None:
    costs = [cost for way in ways for cost in way.costs if cost > 0] or [1.0, 10.0]
    axes.set_xscale("log")
    axes.set(xlim=(min(costs) / 1.8, max(costs) * 1.8), ylim=limits)
    axes.axhline(100 * content.fp, color=INK, lw=0.9, zorder=1)
    for way in ways:
        _points(axes, way, way.costs, float(np.exp(np.mean(np.log(way.costs)))))
        low = 100 * min(way.top1)
        place = float(np.exp(np.mean(np.log(way.costs))))
        axes.annotate(
            two_lines(way.name),
            (place, low),
            xytext=(0, -6),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=SMALL,
            color=_COLOURS[way.kind],
        )
    axes.annotate(
        f"float {100 * content.fp:.1f}",
        (1, 100 * content.fp),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=SMALL,
    )
    _counted(axes.xaxis, log=True)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.set_xlabel(f"{content.unit} for the receiver", labelpad=2)
    axes.set_title("its own training", loc="left", fontweight="bold")


def _amortised(axes: Axes, content: Plane) -> None:
    """Cumulative cost of a QAT for each receiver, and of one donor's for all."""
    from matplotlib.ticker import MaxNLocator

    costs = np.array(content.costs)
    counts = np.arange(len(costs) + 1)
    ordered = np.concatenate([[0], np.cumsum(np.sort(costs))])
    reverse = np.concatenate([[0], np.cumsum(np.sort(costs)[::-1])])
    label, cost, low, high = content.donor
    qat, vector = _COLOURS["qat"], _COLOURS["patched"]
    axes.fill_between(counts, ordered, reverse, color=qat, alpha=0.18, lw=0)
    axes.plot(counts, counts * costs.mean(), color=qat, lw=1.5)
    if low < high:
        axes.axhspan(low, high, color=vector, alpha=0.1, lw=0)
    axes.axhline(cost, color=vector, lw=1.5)
    even = cost / costs.mean()
    if even <= len(costs):
        axes.plot([even, even], [0, cost], color=SOFT, lw=0.9, ls=":", zorder=1)
        axes.plot([even], [cost], "o", ms=6, mfc="white", mec=INK, zorder=4)
    top = 1.12 * max(float(counts[-1] * costs.mean()), cost, high)
    axes.set(xlim=(0, len(costs) * 1.02), ylim=(0, top))
    axes.text(
        len(costs) * 1.01, cost, name(label), ha="right", va="bottom", fontsize=SMALL, color=vector
    )
    axes.annotate(
        "QAT of each",
        (len(costs), counts[-1] * costs.mean()),
        xytext=(-4, 4),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=SMALL,
        color=qat,
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("receivers", labelpad=2)
    axes.set_ylabel(content.unit)
    axes.set_title("one vector for all", loc="left", fontweight="bold")
    _counted(axes.yaxis)


def _counted(axis: Any, *, log: bool = False) -> None:
    """Ticks of costs in three digits."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    if log:
        low, high = axis.get_view_interval()
        subs = (1.0, 2.0, 5.0) if high < 20 * low else (1.0, 3.0) if high < 500 * low else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_minor_formatter(NullFormatter())


def crossing(costs: Sequence[float], bar: float) -> int | None:
    """How many of some costs, in their order, reach a sum; None: all of them do not."""
    total = 0.0
    for count, cost in enumerate(costs, start=1):
        total += cost
        if total >= bar and not math.isclose(total, 0):
            return count
    return None
