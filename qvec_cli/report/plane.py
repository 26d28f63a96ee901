"""The figure plane: accuracy over what each way costs, and when one vector has paid off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean, geometric_mean
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.errors import MismatchError, SpecError
from qvec_cli.report import canvas, ways
from qvec_cli.results.documents import Document, ResultFiles
from qvec_cli.results.matrix import FLOAT, OWN_QAT, PLAIN, Matrix
from qvec_cli.results.metrics_document import ExtractResults, TrainingResults
from qvec_cli.specs import Cost

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOOKS: Final = {
    "grid": (canvas.SOFT, "s"),
    "named": (canvas.COLOURS[4], "^"),
    "patched": (canvas.COLOURS[0], "o"),
    "qat": (canvas.COLOURS[6], "D"),
}
"""The colour and the mark of each kind of way."""

_KEY: Final = (
    "points from float: of each receiver from its own float model; large: mean over receivers; "
    "faint: each receiver; line: float, with its mean top-1 in %; "
    "band below: receivers that come cheapest first to costliest first"
)


@dataclass(frozen=True, slots=True)
class PlaneWay:
    """One way to a low-bit receiver."""

    name: str
    kind: str  # grid, named, patched or qat
    costs: tuple[float, ...]  # of training for each receiver; 0: none
    points: tuple[float, ...]  # of top-1 from float, of the same receivers


@dataclass(frozen=True, slots=True)
class Plane:
    """All that the plane of training cost and accuracy shows."""

    title: str
    subtitle: str
    unit: str  # of costs, in words
    ways: tuple[PlaneWay, ...]
    fp: float  # mean share of the float receivers
    costs: tuple[float, ...]  # of each receiver's own QAT
    donor: tuple[str, float, float, float]  # name; its cost, the least and the largest of all
    words: str  # the break-even, below the last panel


Costs = tuple[Mapping[str, float], Mapping[str, float]]
"""Of receivers and of donors, by name."""


def draw_plane(files: ResultFiles, options: canvas.FigureOptions) -> canvas.Drawing:
    """The plane of a grid, in images or, with the metrics of all trainings, in seconds."""
    matrix = files.matrix
    assert matrix is not None
    costs = costs_of(matrix, options.cost, files.of(TrainingResults), files.of(ExtractResults))
    content = plane_of(matrix, costs, options.cost, options.donor)
    facts = {**ways.matrix_facts(matrix), "break_even": content.donor[1] / fmean(content.costs)}
    words = f"{content.title}. {content.subtitle}. {content.words}"
    return canvas.Drawing(plane(content), words, facts, ways.grid_use(matrix))


def plane_of(matrix: Matrix, costs: Costs, cost: Cost, donor: str | None) -> Plane:
    """Every way over what it trains for the receiver, and the sums over receivers.

    Args:
        matrix: the grid.
        costs: see ``costs_of``.
        cost: what they are counted in.
        donor: one of the grid; by default the mean of all.

    Raises SpecError: a donor that the grid does not have, or a grid in which nothing has run.
    """
    if donor is not None and donor not in matrix.donors:
        raise SpecError(f"--donor {donor!r} is not in the grid; it has {', '.join(matrix.donors)}")
    if not matrix.transfers:
        raise SpecError("the grid has no pair of a donor and another receiver yet")
    own, taught = costs
    unit = "images trained on" if cost is Cost.IMAGES else "seconds of QAT"
    receivers = [name for name in matrix.receivers if name in matrix.baselines]
    spent = tuple(own[name] for name in receivers)
    one = donor or (next(iter(taught)) if len(taught) == 1 else None)
    label = f"vector of {one}" if one else "vector, mean of donors"
    price = taught[one] if one else fmean(taught.values())
    return Plane(
        "What accuracy costs the receiver",
        ways.subtitle(matrix),
        unit,
        (*_baselines(matrix, receivers, own), *_patched(matrix, receivers, donor)),
        fmean(matrix.baselines[name][FLOAT].test.top1 for name in receivers),
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

    Raises MismatchError: a cost that neither the grid nor a document tells.
    """
    own: dict[str, float | None]
    taught: dict[str, float | None]
    if cost is Cost.IMAGES:
        hint = "The files of the grid do not tell how they were trained; --cost seconds may know."
        own = {name: row.trained_images for name, row in matrix.receivers.items()}
        taught = {name: row.trained_images for name, row in matrix.donors.items()}
    else:
        hint = (
            "Add the --metrics of train-qat of every receiver and donor, and of extract of every "
            "vector; or count --cost images."
        )
        runs = [run for run in trainings if run.command == "train-qat"]
        seconds = {run.results.digest: run.seconds for run in runs}
        twins = {row.results.digest: row.inputs[-1].digest for row in extractions}
        rows = matrix.receivers.items()
        own = {name: seconds.get(row.qat.digest) if row.qat else None for name, row in rows}
        donors = matrix.donors.items()
        taught = {name: seconds.get(str(twins.get(row.digest))) for name, row in donors}
    return _known(own, "receiver", hint), _known(taught, "donor", hint)


def _known(costs: Mapping[str, float | None], role: str, hint: str) -> dict[str, float]:
    if missing := [name for name, cost in costs.items() if cost is None]:
        more = f" and of {len(missing) - 1} more" if len(missing) > 1 else ""
        raise MismatchError(f"what the QAT of {role} {missing[0]}{more} costs is not known", hint)
    return {name: float(cost) for name, cost in costs.items() if cost is not None}


def break_even(label: str, price: float, costs: Sequence[float], unit: str) -> str:
    """Break-even in words: how many receivers' own QAT cost what the donor's does."""
    average = fmean(costs)
    even = price / average
    orders = (crossing(sorted(costs), price), crossing(sorted(costs, reverse=True), price))
    cheap, dear = (f"from {n} on" if n else f"only beyond {len(costs)} receivers" for n in orders)
    beyond = f", more than the {len(costs)} here" if even > len(costs) else ""
    return (
        f"Break-even N* = {even:.2f} receivers{beyond}: the donor's QAT ({label}: "
        f"{canvas.compact(price)} {unit}) over a receiver's, {canvas.compact(average)} on average. "
        f"Counted in receivers, the vector is no dearer {cheap} if the cheapest come first, "
        f"{dear} if the costliest do."
    )


def crossing(costs: Sequence[float], price: float) -> int | None:
    """How many of some costs, in their order, reach a price; None: all of them do not."""
    sums = enumerate(accumulate(costs), start=1)
    return next((count for count, total in sums if total >= price and total > 0), None)


def _baselines(
    matrix: Matrix, receivers: Sequence[str], own: Mapping[str, float]
) -> Iterator[PlaneWay]:
    """The ways without a vector."""
    for key in ways.baseline_keys(matrix):
        names = [name for name in receivers if key in matrix.baselines[name]]
        if key == FLOAT or not names:
            continue
        free = key == PLAIN or key.startswith("rtn ")  # of any data
        yield PlaneWay(
            ways.baseline_name(matrix, key)
            + (f", {len(names)} of {len(receivers)}" if len(names) < len(receivers) else ""),
            "qat" if key == OWN_QAT else "grid" if free else "named",
            tuple(own[name] if key == OWN_QAT else 0.0 for name in names),
            tuple(_from_float(matrix, n, matrix.baselines[n][key].test.top1) for n in names),
        )


def _from_float(matrix: Matrix, receiver: str, top1: float) -> float:
    """Points of top-1 from the receiver's own float model: negative where it lost some."""
    return 100 * (top1 - matrix.baselines[receiver][FLOAT].test.top1)


def _patched(matrix: Matrix, receivers: Sequence[str], donor: str | None) -> Iterator[PlaneWay]:
    """The ways with a vector: of one donor, or means over all."""
    cells = [cell for cell in matrix.transfers if donor in (None, cell.donor)]
    for label, pick in ways.choosers(matrix):
        choices = [
            [choice for cell in cells if cell.receiver == name and (choice := pick(cell))]
            for name in receivers
        ]
        means = tuple(
            _from_float(matrix, name, fmean(choice.test.top1 for choice in row))
            for name, row in zip(receivers, choices, strict=True)
            if row
        )
        if means:
            use = ways.used(choice.use for row in choices for choice in row)
            yield PlaneWay(f"vector, {label} ({use})", "patched", (0.0,) * len(means), means)


@canvas.style()
def plane(content: Plane) -> Figure:
    """Above, accuracy over cost; below, cost over the number of receivers."""
    free = [way for way in content.ways if not any(way.costs)]
    trained = [way for way in content.ways if any(way.costs)]
    slots, tall = 0.36 * len(free) + 0.2, 2.7
    names = [line for way in free for line in canvas.two_lines(way.name).split("\n")]
    below = 0.85 + tall + max(canvas.words_width(names) + 0.45, 0.85)
    width = max(1.55 + slots + 1.6, canvas.WIDEST)
    words = canvas.wrapped(content.words, width - 4.25, canvas.SMALL)
    sheet = canvas.Sheet(width, below + 2.75, content.title, content.subtitle, _KEY)
    points = [0.0, *(point for way in content.ways for point in way.points)]
    space = 0.05 * max(max(points) - min(points), 1)
    first = sheet.axes(0.65, 0.85, slots, tall)
    second = sheet.axes(0.75 + slots, 0.85, width - slots - 1.55, tall)
    for axes in (first, second):
        axes.set_ylim(min(points) - space, max(points) + space)
        axes.axhline(0, color=canvas.INK, lw=0.9, zorder=1)
    _free(first, free)
    _trained(second, trained, content)
    _amortised(sheet.axes(0.65, below, 3.2, 2.2), content)
    sheet.write_lines(4.1, below, words)
    return sheet.figure


def _points(axes: Axes, way: PlaneWay, places: Sequence[float], middle: float) -> None:
    colour, mark = _LOOKS[way.kind]
    if len(way.points) > 1:
        axes.plot(places, way.points, mark, ms=4, color=colour, alpha=0.4, mew=0, zorder=2)
    axes.plot([middle], [fmean(way.points)], mark, ms=7, color=colour, mec="white", zorder=3)


def _free(axes: Axes, free: Sequence[PlaneWay]) -> None:
    """Ways that train nothing for the receiver stand side by side at zero."""
    axes.set_xlim(-0.6, len(free) - 0.4)
    for place, way in enumerate(free):
        _points(axes, way, [place] * len(way.points), place)
    axes.set_xticks(range(len(free)), [canvas.two_lines(way.name) for way in free], rotation=90)
    axes.set_ylabel("top-1 on test, points from float")
    axes.set_title("no training")
    axes.tick_params(axis="x", length=0)


def _trained(axes: Axes, trained: Sequence[PlaneWay], content: Plane) -> None:
    """Ways that train for the receiver stand at what that costs."""
    costs = [cost for way in trained for cost in way.costs if cost > 0] or [1.0, 10.0]
    axes.set_xscale("log")
    axes.set_xlim(min(costs) / 1.8, max(costs) * 1.8)
    for way in trained:
        middle, colour = geometric_mean(filter(None, way.costs)), _LOOKS[way.kind][0]
        _points(axes, way, way.costs, middle)
        place, label = (middle, min(way.points)), canvas.two_lines(way.name)
        canvas.beside(axes, label, place, (0, -6), ha="center", va="top", color=colour)
    on = {"xycoords": ("axes fraction", "data"), "va": "center"}
    canvas.beside(axes, f"float {100 * content.fp:.1f}", (1, 0), (3, 0), **on)
    _counted(axes.xaxis, log=True)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.set_xlabel(f"{content.unit} for the receiver", labelpad=2)
    axes.set_title("its own training")


def _amortised(axes: Axes, content: Plane) -> None:
    """Cumulative cost of a QAT for each receiver, and of one donor's for all."""
    from matplotlib.ticker import MaxNLocator

    costs, n, mean = sorted(content.costs), len(content.costs), fmean(content.costs)
    label, cost, low, high = content.donor
    qat, vector = _LOOKS["qat"][0], _LOOKS["patched"][0]
    cheapest, costliest = [0.0, *accumulate(costs)], [0.0, *accumulate(reversed(costs))]
    axes.fill_between(range(n + 1), cheapest, costliest, color=qat, alpha=0.18, lw=0)
    axes.plot([0, n], [0, n * mean], color=qat, lw=1.5)
    if low < high:
        axes.axhspan(low, high, color=vector, alpha=0.1, lw=0)
    axes.axhline(cost, color=vector, lw=1.5)
    even = cost / mean
    if even <= n:
        axes.plot([even, even], [0, cost], color=canvas.SOFT, lw=0.9, ls=":", zorder=1)
        axes.plot([even], [cost], "o", ms=6, mfc="white", mec=canvas.INK, zorder=4)
    axes.set(xlim=(0, n * 1.02), ylim=(0, 1.12 * max(n * mean, cost, high)))
    canvas.beside(axes, canvas.name(label), (n, cost), (0, 2), ha="right", color=vector)
    canvas.beside(axes, "QAT of each", (n, n * mean), (-4, 4), ha="right", color=qat)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("receivers", labelpad=2)
    axes.set_ylabel(content.unit)
    axes.set_title("one vector for all")
    _counted(axes.yaxis)


def _counted(axis: Any, *, log: bool = False) -> None:
    """Ticks of costs in three digits."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_formatter(lambda value, _: canvas.compact(value))
    if log:
        low, high = axis.get_view_interval()
        subs = (1.0, 2.0, 5.0) if high < 20 * low else (1.0, 3.0) if high < 500 * low else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_minor_formatter(NullFormatter())
