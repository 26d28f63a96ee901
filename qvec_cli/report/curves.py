"""The figure curve: accuracy over lambda, and below it distance to the float answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qvec_cli.errors import MismatchError, SpecError
from qvec_cli.report import canvas
from qvec_cli.report.ways import grid_use
from qvec_cli.results.documents import Document, ResultFiles, stem
from qvec_cli.results.matrix import FLOAT, OWN_QAT, PLAIN, Cell, Matrix
from qvec_cli.results.metrics_document import AgreementResults, EvalResults, SweepResults
from qvec_cli.results.records import Score
from qvec_cli.specs import Measure, spent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Sweep = Document[SweepResults]
Agreement = Document[AgreementResults]
Evaluation = Document[EvalResults]

MEASURES: Final[Mapping[str, str]] = {
    Measure.KL: "KL, nats",
    Measure.FEATURES: "features, share",
    Measure.BOTH: "KL and features",
}
"""Distances in an axis's words."""

_Z: Final = 1.959963984540054
"""The normal quantile of 95 %."""

DISTINCT: Final = len(canvas.COLOURS)
"""Names that colours can tell apart; a figure of more has a panel for each."""

_APART: Final = 0.006
"""Of an axis, between the whiskers of several curves at one lambda."""

_LINES: Final[dict[str, dict[str, Any]]] = {
    "float": {"color": canvas.INK, "ls": "-", "lw": 0.9},
    "own QAT": {"color": canvas.COLOURS[6], "ls": (0, (6, 1.5, 1.5, 1.5)), "lw": 1.0},
}
_PLAIN: Final[dict[str, Any]] = {"color": canvas.SOFT, "ls": (0, (4, 2)), "lw": 0.9}

_STRIP: Final = 0.85
"""Inches of distances below accuracies."""

_GAP: Final = 0.12
"""Inches between them."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One vector on one receiver."""

    name: str  # of at most ``DISTINCT`` in a figure
    val: tuple[tuple[float, Score], ...]  # by lambda, ascending; empty without labels
    test: tuple[tuple[float, Score], ...]  # where it was measured
    chosen: float | None = None
    own: bool = False  # the receiver's own vector
    far: tuple[tuple[float, float, float], ...] = ()  # lambda, distance, standard error or 0
    agreed: float | None = None  # the lambda that was chosen by distances to the float answers

    def mark(self, lam: float) -> str:
        """The marker of a score on test at a lambda."""
        if lam == self.chosen:
            return "D"
        return "v" if lam == self.agreed else "o"


@dataclass(frozen=True, slots=True)
class CurvePanel:
    """The curves of one receiver."""

    title: str
    traces: tuple[Trace, ...]
    levels: Mapping[str, float]  # horizontal lines: shares by name
    measure: str = ""  # of distances


@dataclass(frozen=True, slots=True)
class Curves:
    """All that a figure of curves shows."""

    title: str
    subtitle: str
    panels: tuple[CurvePanel, ...]
    shared: bool = False  # one scale of accuracy for all panels

    @property
    def traces(self) -> list[Trace]:
        """The traces of all panels."""
        return [trace for panel in self.panels for trace in panel.traces]

    @property
    def labelled(self) -> bool:
        """Whether there are accuracies."""
        return any(trace.val for trace in self.traces)

    @property
    def judged(self) -> bool:
        """Whether there are distances."""
        return any(trace.far for trace in self.traces)


def draw_curves(files: ResultFiles, options: canvas.FigureOptions) -> canvas.Drawing:
    """The curves of sweeps, or those of one receiver or donor of a grid.

    Raises SpecError: a choice among sweeps, or none in a grid.
    """
    agreements, beside = files.of(AgreementResults), files.of(EvalResults)
    chosen, matrix = options.receiver or options.donor, files.matrix
    if matrix is None and chosen:
        raise SpecError("--receiver and --donor choose in a grid; of sweeps, name the files")
    if matrix is not None and not chosen:
        raise SpecError(
            "a grid has a curve for each pair: choose with --receiver, --donor or both",
            hint="The heatmap shows all pairs.",
        )
    if agreements and beside:
        raise SpecError(
            f"{beside[0].file}: a sweep by agreement has no place for the accuracy of a file",
            hint="Leave it out; sweep with --data to see accuracies beside distances.",
        )
    if matrix is not None:
        content = cells_of(matrix, options.receiver, options.donor)
        use = grid_use(matrix, options.receiver)
    else:
        content = agreed_of(agreements) if agreements else curves_of(files.of(SweepResults), beside)
        use = spent(*(row.use for row in files.documents))
    words = f"{content.title}. {content.subtitle}."
    return canvas.Drawing(curves(content), words, {"curves": len(content.traces)}, use)


def curves_of(sweeps: Sequence[Sweep], evaluations: Sequence[Evaluation]) -> Curves:
    """A panel for each receiver; its own QAT is there if one of the evaluations is of it.

    Raises MismatchError: sweeps on two grids, or an evaluation that belongs to none of them.
    """
    _require_one_grid(sweeps)
    panels: dict[tuple[str | None, ...], list[Sweep]] = {}
    for sweep in sweeps:
        receiver, _, data, *_ = sweep.inputs
        panels.setdefault((receiver.digest, data.digest), []).append(sweep)
    fitting = fitting_in(sweeps, evaluations)
    for row in evaluations:
        if row not in fitting:
            what = "is no test accuracy of a receiver's own QAT on the grid of a sweep"
            raise MismatchError(f"{row.file}: {what}", hint="Leave it out.")
    shown = []
    for first, *more in panels.values():
        levels, own = _levels_of(first), _own_qat(first, evaluations)
        levels |= {"own QAT": own.results.top1} if own else {}
        shown.append(CurvePanel(first.name, tuple(map(_sweep_trace, (first, *more))), levels))
    validation = _sizes((sweep.results.curve[0].val for sweep in sweeps), "validation")
    test = _sizes((sweep.results.chosen.test for sweep in sweeps), "test")
    vectors = _names([stem(sweep.inputs[1].path) for sweep in sweeps], "vectors")
    what = f"{_names([panel.title for panel in shown], 'receivers')}, {vectors}"
    return _figure(what, f"{sweeps[0].grid}, {sweeps[0].method}; {validation}, {test}", shown)


def _require_one_grid(sweeps: Sequence[Document[Any]]) -> None:
    first = sweeps[0]
    for sweep in sweeps[1:]:
        if (sweep.grid, sweep.method) != (first.grid, first.method):
            raise MismatchError(
                f"{sweep.file}: is on {sweep.grid}, {sweep.method}, and {first.file} on "
                f"{first.grid}, {first.method}",
                hint="Draw the sweeps of one grid at a time.",
            )


def agreed_of(sweeps: Sequence[Agreement]) -> Curves:
    """A panel for each receiver, of choices without labels.

    Raises MismatchError: sweeps on two grids, or of two measures.
    """
    _require_one_grid(sweeps)
    panels: dict[str | None, list[Agreement]] = {}
    for sweep in sweeps:
        known = panels.setdefault(sweep.inputs[0].digest, [])
        known.append(sweep)
        if sweep.results.measure is not known[0].results.measure:
            raise MismatchError(
                f"{sweep.file}: measures by {sweep.results.measure}, {known[0].file} by "
                f"{known[0].results.measure}",
                hint="Draw one at a time, or sweep with --measure.",
            )
    names = [stem(row.rho) for sweep in sweeps for row in sweep.results.donors]
    what = f"{_names([sweep.name for sweep in sweeps], 'receivers')}, {_names(names, 'vectors')}"
    n = canvas.counts([sweep.results.proxies.n for sweep in sweeps])
    subtitle = f"{sweeps[0].grid}, {sweeps[0].method}; {n} proxy images"
    return _figure(what, subtitle, [_agreed_panel(rows) for rows in panels.values()])


def _agreed_panel(sweeps: Sequence[Agreement]) -> CurvePanel:
    """Accuracies, where there were labels, at the lambda that was chosen without them."""
    first, traces = sweeps[0], []
    for row in (row for sweep in sweeps for row in sweep.results.donors):
        curve = sorted(row.curve, key=lambda point: point.lam)
        val = tuple((point.lam, point.val) for point in curve if point.val)
        test = ((row.chosen.lam, row.chosen.test),) if row.chosen.test else ()
        points = tuple((point.lam, point.mean, point.standard_error) for point in curve)
        traces.append(Trace(stem(row.rho), val, test, far=points, agreed=row.chosen.lam))
    levels = _levels_of(first) if first.results.baselines else {}
    measure = first.results.measure
    return CurvePanel(first.name, tuple(traces), levels, MEASURES.get(measure, measure))


def _levels_of(sweep: Document[Any]) -> dict[str, float]:
    """Float and plain rounding of a sweep's receiver."""
    rows = sweep.results.baselines
    return {"float": rows.fp.test.top1, sweep.method.upper(): rows.ptq.test.top1}


def _figure(what: str, subtitle: str, panels: Sequence[CurvePanel]) -> Curves:
    """The panels; more curves than colours can tell apart get one each, on one scale."""
    names = {trace.name for panel in panels for trace in panel.traces}
    shared = len(panels) == 1
    if len(names) > DISTINCT:
        heads = ["" if shared else f"{panel.title}, " for panel in panels]
        panels = [
            replace(panel, title=f"{head}{trace.name}", traces=(replace(trace, name=""),))
            for head, panel in zip(heads, panels, strict=True)
            for trace in panel.traces
        ]
    elif shared:
        panels = [replace(panels[0], title="")]
    content = Curves("", subtitle, tuple(panels), shared)
    above = "Accuracy" if content.labelled else "Distance to the float answers"
    return replace(content, title=f"{above} over {canvas.LAMBDA}: {what}")


def _names(names: Sequence[str], words: str) -> str:
    several = len(set(names))
    return names[0] if several == 1 else f"{several} {words}"


def _sizes(scores: Iterable[Score], split: str) -> str:
    return f"{canvas.counts([score.n for score in scores])} {split} images"


def fitting_in(sweeps: Sequence[Sweep], rows: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations of the own QAT of a receiver of these sweeps, one a receiver."""
    own = [_own_qat(sweep, rows) for sweep in sweeps]
    return [row for row in rows if row in own]


def _own_qat(sweep: Sweep, evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The evaluation of the receiver's own QAT, on the data and the grid of a sweep."""
    for row in evaluations:
        measured = row.results
        here = row.inputs[-1].digest == sweep.inputs[2].digest and measured.split == "test"
        grid = measured.grid.grid if measured.grid else None
        if here and measured.role == "qat" and grid == sweep.grid:
            return row
    return None


def _sweep_trace(sweep: Sweep) -> Trace:
    """Validation at every lambda; test where it was measured: at 0, at 1 and at the chosen one."""
    results = sweep.results
    tests = {0.0: results.baselines.ptq.test}
    choices = [choice for choice in (results.zero_shot, results.chosen) if choice]
    tests |= {choice.lam: choice.test for choice in choices}
    curve = sorted(results.curve, key=lambda point: point.lam)
    val = tuple((point.lam, point.val) for point in curve)
    return Trace(stem(sweep.inputs[1].path), val, tuple(tests.items()), results.chosen.lam)


def cells_of(matrix: Matrix, receiver: str | None, donor: str | None) -> Curves:
    """The curves of one receiver, of one donor, or of one pair of a grid.

    Raises SpecError: a name that the grid does not have, or a pair that has not run.
    """
    flags = (("--receiver", receiver, matrix.receivers), ("--donor", donor, matrix.donors))
    for flag, name, names in flags:
        if name is not None and name not in names:
            raise SpecError(f"{flag} {name!r} is not in the grid; it has {', '.join(names)}")
    panels: dict[str, list[Cell]] = {}
    for cell in matrix.cells.values():
        if cell.null is None and receiver in (None, cell.receiver) and donor in (None, cell.donor):
            panels.setdefault(cell.receiver, []).append(cell)
    if not panels:
        raise SpecError(f"of {receiver or donor} the grid has no pair yet")
    whole = receiver is not None and donor is not None
    shown = []
    for name, cells in panels.items():
        rows = matrix.baselines[name]
        named = {FLOAT: "float", PLAIN: matrix.method.upper(), OWN_QAT: "own QAT"}
        levels = {named[key]: rows[key].test.top1 for key in named if key in rows}
        traces = tuple(_cell_trace(cell, whole=whole) for cell in cells)
        measure = MEASURES.get(matrix.measures.get(name, ""), "")
        shown.append(CurvePanel(name, traces, levels, measure))
    scores = (cell.curve[0].val for cells in panels.values() for cell in cells)
    sizes = f"{_sizes(scores, 'validation')}, {_sizes(map(matrix.plain, panels), 'test')}"
    what = f"{receiver or f'{len(panels)} receivers'}, vector of {donor or 'each donor'}"
    return _figure(what, f"{matrix.grid}, {matrix.method}; {sizes}", shown)


def _cell_trace(cell: Cell, *, whole: bool) -> Trace:
    """A curve; on test only at the fixed and the chosen lambda, as in a sweep, or as a whole."""
    val, agreed = cell.chosen.get("val"), cell.chosen.get("agreement")
    tests = {point.lam: point.test for point in cell.curve if point.test and whole}
    choices = [choice for choice in (*cell.fixed, val, agreed) if choice]
    tests |= {choice.lam: choice.test for choice in choices}
    far = tuple((p.lam, p.distance, 0.0) for p in cell.curve if p.distance is not None)
    here = agreed and agreed.lam in [lam for lam, *_ in far]  # a median may lie between
    at, best = agreed.lam if agreed and here else None, val.lam if val else None
    points = tuple((point.lam, point.val) for point in cell.curve)
    return Trace(cell.donor, points, tuple(tests.items()), best, cell.diagonal, far, at)


@canvas.style()
def curves(content: Curves) -> Figure:
    """One panel a receiver; its curves in colours that are the same in all panels."""
    names = list(dict.fromkeys(trace.name for trace in content.traces))
    colours = {text: canvas.COLOURS[i % DISTINCT] for i, text in enumerate(names)}
    across = min(len(content.panels), 2)
    wide, tall = (4.4, 3.0) if across == 1 else (1.75, 1.8)
    above = tall if content.labelled else 0.0
    below = (_STRIP if above else tall) if content.judged else 0.0  # alone it has all the room
    whole = above + below + (_GAP if above and below else 0)
    levels = [f"{level} 100.0" for panel in content.panels for level in panel.levels]
    slot = 0.67 + wide + canvas.words_width(levels, canvas.SMALL)
    width = 0.2 + across * slot
    columns = int((width - 0.3) // (canvas.words_width([*map(canvas.name, names)]) + 0.6)) or 1
    rows = -(-len(names) // columns) if len(names) > 1 else 0
    first = 0.85 if any(panel.title for panel in content.panels) else 0.65
    foot = first - 0.25 + -(-len(content.panels) // across) * (whole + 0.8)
    height = foot + 0.17 * rows + 0.03
    sheet = canvas.Sheet(width, height, content.title, content.subtitle, _key(content))
    limits = _limits(content.panels) if content.shared else None
    for place, panel in enumerate(content.panels):
        left, top = 0.6 + place % across * slot, first + place // across * (whole + 0.8)
        axes = []
        if above:
            axes.append(sheet.axes(left, top, wide, above))
            _accuracies(axes[0], panel, colours, limits or _limits([panel]))
        if below:
            axes.append(sheet.axes(left, top + whole - below, wide, below))
            _distances(axes[-1], panel, colours)
        _share_lambda(axes, panel)
    if rows:
        sheet.legend(foot, [(canvas.name(text), colours[text]) for text in names], columns, 7.5)
    return sheet.figure


def _share_lambda(rows: Sequence[Axes], panel: CurvePanel) -> None:
    """Gives accuracies and the distances below them the same axis of lambda."""
    lambdas = [lam for trace in panel.traces for lam, *_ in trace.val or trace.far]
    low, high = min(*lambdas, 0.0), max(*lambdas, 1.0)
    space = 0.03 * (high - low)
    for axes in rows:
        axes.set_xlim(low - space, high + space)
        axes.axvline(1, color=canvas.FAINT, lw=0.8, ls=":", zorder=-1)
        axes.tick_params(labelbottom=axes is rows[-1])
    rows[-1].set_xlabel(canvas.LAMBDA, labelpad=1)
    rows[0].set_title(canvas.name(panel.title, 34))


def wilson(right: float, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (E. B. Wilson 1927): it never leaves [0, 1]."""
    share, z2 = right / of, _Z * _Z / of
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z / (1 + z2) * math.sqrt(share * (1 - share) / of + z2 / (4 * of))
    low, high = min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))
    return low, high  # 0 and 1 are ends themselves, which rounding would miss


def _interval(score: Score) -> tuple[float, float, float]:
    """The ends of Wilson's interval and the share between them, in percent."""
    low, high = wilson(score.n_correct, score.n)
    return 100 * low, 100 * score.n_correct / score.n, 100 * high


def _limits(panels: Sequence[CurvePanel]) -> tuple[float, float]:
    """Percent, so that every band, point and line is inside."""
    ends = [100 * top1 for panel in panels for top1 in panel.levels.values()]
    scores = [s for panel in panels for t in panel.traces for _, s in (*t.val, *t.test)]
    ends += [end for score in scores for end in _interval(score)]
    low, high = min(ends, default=0), max(ends, default=100)
    space = 0.04 * max(high - low, 1)
    return low - space, high + space


def _accuracies(
    axes: Axes, panel: CurvePanel, colours: dict[str, str], limits: tuple[float, float]
) -> None:
    """Validation as lines, test as marks."""
    axes.set(ylim=limits, ylabel="top-1, %")
    for trace, shift in zip(panel.traces, _shifts(panel), strict=True):
        colour = colours[trace.name]
        if trace.val:
            lambdas = np.array([lam for lam, _ in trace.val])
            low, share, high = np.array([_interval(score) for _, score in trace.val]).T
            _line(axes, trace, colour, (lambdas, share), (low, high), shift)
        if trace.chosen is not None:
            axes.axvline(trace.chosen, color=colour, lw=0.8, alpha=0.55, zorder=0)
        for lam, score in trace.test:
            low, share, high = _interval(score)
            arms, mark = [[share - low], [high - share]], trace.mark(lam)
            face, size = colour if lam == trace.chosen else "white", 4 if mark == "o" else 5
            look: dict[str, Any] = {"color": colour, "mfc": face, "ms": size, "elinewidth": 0.9}
            axes.errorbar([lam], [share], arms, fmt=mark, zorder=4, **look)
    _levels(axes, panel.levels, limits)


def _shifts(panel: CurvePanel) -> list[float | None]:
    """How far the whiskers of each curve stand from their lambda; none: a curve alone has a band.

    Bands of several curves would hide each other.
    """
    count = len(panel.traces)
    lambdas = [lam for trace in panel.traces for lam, *_ in trace.val or trace.far]
    step = _APART * (max(*lambdas, 1.0) - min(*lambdas, 0.0))
    return [step * (place - (count - 1) / 2) for place in range(count)] if count > 1 else [None]


def _line(
    axes: Axes, trace: Trace, colour: str, points: Any, ends: Any, shift: float | None
) -> None:
    """A curve; between its ends, where there are any, a band or whiskers beside each point."""
    axes.plot(*points, color=colour, lw=1.4, ls=(0, (5, 1.5)) if trace.own else "-", zorder=3)
    if ends and shift is None:
        axes.fill_between(points[0], *ends, color=colour, alpha=0.15, lw=0, zorder=1)
    elif ends:
        axes.vlines(points[0] + shift, *ends, color=colour, alpha=0.5, lw=0.8, zorder=1)


def _distances(axes: Axes, panel: CurvePanel, colours: dict[str, str]) -> None:
    """Distances as lines with standard errors, a triangle at the lambda that they choose."""
    for trace, shift in zip(panel.traces, _shifts(panel), strict=True):
        if not trace.far:
            continue
        colour = colours[trace.name]
        lambdas, means, errors = np.array(trace.far).T
        ends = (means - errors, means + errors) if errors.any() else ()
        _line(axes, trace, colour, (lambdas, means), ends, shift)
        if trace.agreed is not None:
            mean = means[list(lambdas).index(trace.agreed)]
            axes.plot([trace.agreed], [mean], marker="v", ms=5, color=colour, zorder=4)
    axes.set_ylabel(panel.measure or "distance")
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="y", nbins=4)


def _levels(axes: Axes, levels: Mapping[str, float], limits: tuple[float, float]) -> None:
    """Lines whose names stand beside them, moved apart where they would touch."""
    height = axes.bbox.height / 100  # inches, at the style's dots per inch
    least = (limits[1] - limits[0]) * 0.125 / height
    ordered = sorted(levels.items(), key=lambda level: level[1])
    places = [100 * top1 for _, top1 in ordered]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + least)
    ceiling = limits[1]
    for i in reversed(range(len(places))):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - least
    for (name, top1), place in zip(ordered, places, strict=True):
        line, words = _LINES.get(name, _PLAIN), f"{name} {100 * top1:.1f}"
        look = {"xycoords": ("axes fraction", "data"), "va": "center", "color": line["color"]}
        axes.axhline(100 * top1, zorder=2, **line)
        canvas.beside(axes, words, (1, place), (4, 0), **look)


def _key(content: Curves) -> str:
    """What lines, bands and marks are, of those that are in the figure."""
    traces, labelled, judged = content.traces, content.labelled, content.judged
    lam = canvas.LAMBDA
    marks = {trace.mark(at) for trace in traces for at, _ in trace.test}
    chosen = any(trace.chosen is not None for trace in traces)
    band = "band" if any(len(panel.traces) == 1 for panel in content.panels) else "whiskers"
    errors = [error for trace in traces for *_, error in trace.far]
    words = {
        f"line: validation{f', on which {lam} is chosen' if chosen else ''}": labelled,
        "dashed: the receiver's own vector": any(trace.own for trace in traces),
        "circle: test": "o" in marks,
        f"filled diamond: test at the chosen {lam}": "D" in marks,
        f"triangle: test at the {lam} that is chosen without labels": "v" in marks,
        f"{band if band == 'whiskers' else 'band and whiskers'}: 95 % Wilson interval": labelled,
        f"vertical: the chosen {lam}": chosen,
        f"dotted: {lam} = 1": True,
        "horizontal: accuracies on test": any(panel.levels for panel in content.panels),
        f"{'below' if labelled else 'line'}: distance to the float answers on proxy images": judged,
        f"its {band}: one standard error": any(errors),
        f"its triangle: the {lam} that it chooses without labels": judged,
    }
    return "; ".join(text for text, shown in words.items() if shown)
