"""The figure curve: which sweeps and which cells of a grid it shows, panel by panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from qvec_cli.errors import MismatchError, SpecError
from qvec_cli.report.canvas import LAMBDA, Drawing, FigureOptions
from qvec_cli.report.curves import DISTINCT, CurvePanel, Curves, DistanceCurve, Level, Trace, curves
from qvec_cli.report.grid_words import grid_use
from qvec_cli.results.documents import Document, ResultFiles, stem
from qvec_cli.results.matrix import FLOAT, OWN_QAT, PLAIN, Cell, Matrix
from qvec_cli.results.metrics_document import (
    AgreedDonor,
    AgreementResults,
    EvalResults,
    SweepResults,
)
from qvec_cli.results.records import Score
from qvec_cli.specs import Measure, Use, spent

Sweep = Document[SweepResults]

Agreement = Document[AgreementResults]

Evaluation = Document[EvalResults]

MEASURES: Final[Mapping[str, str]] = {Measure.KL: "KL, nats", Measure.FEATURES: "features, share"}
"""Distances in an axis's words."""


_QAT: Final = "qat"
"""The role of a checkpoint that train-qat wrote, as cards hold it."""


def draw_curves(files: ResultFiles, options: FigureOptions) -> Drawing:
    """The curves of sweeps, or those of one receiver or donor of a grid.

    Raises:
        SpecError: a choice among sweeps, or none in a grid.
    """
    if files.matrix is None:
        if options.receiver or options.donor:
            raise SpecError("--receiver and --donor choose in a grid; of sweeps, name the files")
        content, use = _swept(files)
    elif options.receiver or options.donor:
        content = cells_of(files.matrix, options.receiver, options.donor)
        use = grid_use(files.matrix, options.receiver)
    else:
        raise SpecError(
            "a grid has a curve for each pair: choose with --receiver, --donor or both",
            hint="The heatmap shows all pairs.",
        )
    facts = {"curves": sum(len(panel.traces) for panel in content.panels)}
    return Drawing(curves(content), f"{content.title}. {content.subtitle}.", facts, use)


def _swept(files: ResultFiles) -> tuple[Curves, Use]:
    """The curves of sweeps, by labels or without, and the receiver data that they used."""
    agreements, beside = files.of(AgreementResults), files.of(EvalResults)
    if not agreements:
        sweeps = files.of(SweepResults)
        uses = [*(row.use for row in sweeps), *(row.use for row in beside)]
        return curves_of(sweeps, beside), spent(*uses)
    if beside:
        raise SpecError(
            f"{beside[0].file}: a sweep by agreement has no place for the accuracy of a file",
            hint="Leave it out; sweep with --data to see accuracies beside distances.",
        )
    return agreed_of(agreements), spent(*(row.use for row in agreements))


def curves_of(sweeps: Sequence[Sweep], evaluations: Sequence[Evaluation]) -> Curves:
    """A panel for each receiver; its own QAT is there if one of the evaluations is of it.

    Raises:
        MismatchError: sweeps on two grids, or an evaluation that belongs to none of them.
    """
    first = _first_of_one_grid(sweeps)
    panels: dict[tuple[str | None, ...], list[Sweep]] = {}
    for sweep in sweeps:
        receiver, _, data, *_ = sweep.inputs
        panels.setdefault((receiver.digest, data.digest), []).append(sweep)
    own = {digests: _own_qat(rows[0], evaluations) for digests, rows in panels.items()}
    fitting = fitting_in(sweeps, evaluations)
    for row in evaluations:
        if row not in fitting:
            raise MismatchError(
                f"{row.file}: is no test accuracy of a receiver's own QAT on the grid of a sweep",
                hint="Leave it out.",
            )
    shown = [_sweep_panel(rows, own[digests]) for digests, rows in panels.items()]
    what = f"{_names([p.title for p in shown], 'receivers')}, "
    what += _names([stem(sweep.inputs[1].path) for sweep in sweeps], "vectors")
    return _figure(
        what,
        f"{first.grid}, {first.method}; "
        f"{_sizes([s.results.curve[0].val for s in sweeps], 'validation')}, "
        f"{_sizes([s.results.zero_shot.test for s in sweeps], 'test')}",
        shown,
    )


def _first_of_one_grid(sweeps: Sequence[Document[Any]]) -> Document[Any]:
    """The first sweep; refuses others on another grid."""
    first = sweeps[0]
    for sweep in sweeps[1:]:
        if (sweep.grid, sweep.method) != (first.grid, first.method):
            raise MismatchError(
                f"{sweep.file}: is on {sweep.grid}, {sweep.method}, and {first.file} on "
                f"{first.grid}, {first.method}",
                hint="Draw the sweeps of one grid at a time.",
            )
    return first


def agreed_of(sweeps: Sequence[Agreement]) -> Curves:
    """A panel for each receiver, of choices without labels.

    Raises:
        MismatchError: sweeps on two grids, or of two measures.
    """
    first = _first_of_one_grid(sweeps)
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
    counts = [sweep.results.proxies.n for sweep in sweeps]
    n = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
    return _figure(
        f"{_names([sweep.name for sweep in sweeps], 'receivers')}, {_names(names, 'vectors')}",
        f"{first.grid}, {first.method}; {n} proxy images",
        [_agreed_panel(rows) for rows in panels.values()],
    )


def _agreed_panel(sweeps: Sequence[Agreement]) -> CurvePanel:
    first = sweeps[0]
    levels = _levels(first) if first.results.baselines else ()
    traces = tuple(_agreed_trace(row) for sweep in sweeps for row in sweep.results.donors)
    return CurvePanel(first.name, traces, levels, MEASURES[first.results.measure])


def _agreed_trace(row: AgreedDonor) -> Trace:
    """On test, where labels were there, at the lambda that was chosen without them."""
    val = [(point.lam, (point.val.n_correct, point.val.n)) for point in row.curve if point.val]
    points = sorted((point.lam, point.mean, point.standard_error) for point in row.curve)
    lam, test = row.chosen.lam, row.chosen.test
    tests = ((lam, (test.n_correct, test.n)),) if test else ()
    return Trace(
        stem(row.rho), tuple(sorted(val)), tests, distances=DistanceCurve(tuple(points), lam)
    )


def _levels(sweep: Document[Any]) -> tuple[Level, ...]:
    """Float and plain rounding of a sweep's receiver."""
    rows = sweep.results.baselines
    return (
        Level("float", rows.fp.test.top1, "float"),
        Level(sweep.method.upper(), rows.ptq.test.top1, "plain"),
    )


def _figure(what: str, subtitle: str, panels: Sequence[CurvePanel]) -> Curves:
    """The panels; more curves than colours can tell apart get one each, on one scale."""
    names = {trace.name for panel in panels for trace in panel.traces}
    shared = len(panels) == 1
    if len(names) > DISTINCT:
        panels = [
            CurvePanel(
                trace.name if shared else f"{panel.title}, {trace.name}",
                (replace(trace, name=""),),
                panel.levels,
                panel.measure,
            )
            for panel in panels
            for trace in panel.traces
        ]
    elif shared:
        panels = [replace(panels[0], title="")]
    labelled = any(panel.labelled for panel in panels)
    title = f"{'Accuracy' if labelled else 'Distance to the float answers'} over {LAMBDA}: {what}"
    return Curves(title, subtitle, tuple(panels), shared)


def _names(names: Sequence[str], words: str) -> str:
    distinct = dict.fromkeys(names)
    return names[0] if len(distinct) == 1 else f"{len(distinct)} {words}"


def _sizes(scores: Sequence[Score], split: str) -> str:
    counts = [score.n for score in scores]
    low, high = min(counts), max(counts)
    n = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{n} {split} images"


def fitting_in(
    sweeps: Sequence[Sweep], evaluations: Sequence[Evaluation]
) -> tuple[Evaluation, ...]:
    """Those that measure the own QAT of a receiver of these sweeps, one a receiver."""
    own = [_own_qat(sweep, evaluations) for sweep in sweeps]
    return tuple(row for row in evaluations if row in own)


def _own_qat(sweep: Sweep, evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The evaluation of the receiver's own QAT, on the data and the grid of a sweep."""
    for row in evaluations:
        measured = row.results
        here = row.inputs[-1].digest == sweep.inputs[2].digest and measured.split == "test"
        grid = measured.grid.grid if measured.grid else None
        if here and measured.role == _QAT and grid == sweep.grid:
            return row
    return None


def _sweep_panel(sweeps: Sequence[Sweep], own: Evaluation | None) -> CurvePanel:
    levels = _levels(sweeps[0])
    if own is not None:
        levels += (Level("own QAT", own.results.top1, "qat"),)
    return CurvePanel(sweeps[0].name, tuple(map(_sweep_trace, sweeps)), levels)


def _sweep_trace(sweep: Sweep) -> Trace:
    """Validation at every lambda; test where it was measured: at 0, at 1 and at the chosen one."""
    results = sweep.results
    tests = {choice.lam: choice.test for choice in (results.zero_shot, results.chosen)}
    tests = {0.0: results.baselines.ptq.test, **tests}
    val = sorted((point.lam, (point.val.n_correct, point.val.n)) for point in results.curve)
    return Trace(
        stem(sweep.inputs[1].path),
        tuple(val),
        tuple((lam, (test.n_correct, test.n)) for lam, test in sorted(tests.items())),
        results.chosen.lam,
    )


def cells_of(matrix: Matrix, receiver: str | None, donor: str | None) -> Curves:
    """The curves of one receiver, of one donor, or of one pair of a grid.

    Raises:
        SpecError: a name that the grid does not have, or a pair that has not run.
    """
    for flag, name, names in (
        ("--receiver", receiver, matrix.receivers),
        ("--donor", donor, matrix.donors),
    ):
        if name is not None and name not in names:
            raise SpecError(f"{flag} {name!r} is not in the grid; it has {', '.join(names)}")
    cells = [
        cell
        for cell in matrix.cells.values()
        if cell.null is None and receiver in (None, cell.receiver) and donor in (None, cell.donor)
    ]
    if not cells:
        raise SpecError(f"of {receiver or donor} the grid has no pair yet")
    shown = list(dict.fromkeys(cell.receiver for cell in cells))
    what = f"{receiver or f'{len(shown)} receivers'}, vector of {donor or 'each donor'}"
    whole = receiver is not None and donor is not None
    return _figure(
        what,
        f"{matrix.grid}, {matrix.method}; {_sizes([c.curve[0].val for c in cells], 'validation')}, "
        f"{_sizes([matrix.plain(name) for name in shown], 'test')}",
        [
            _cell_panel(
                matrix, name, [_cell_trace(c, whole=whole) for c in cells if c.receiver == name]
            )
            for name in shown
        ],
    )


def _cell_panel(matrix: Matrix, receiver: str, traces: Sequence[Trace]) -> CurvePanel:
    rows = matrix.baselines[receiver]
    named = (
        (FLOAT, "float", "float"),
        (PLAIN, matrix.method.upper(), "plain"),
        (OWN_QAT, "own QAT", "qat"),
    )
    levels = [Level(n, rows[key].test.top1, kind) for key, n, kind in named if key in rows]
    measure = MEASURES.get(matrix.measures.get(receiver, ""), "")
    return CurvePanel(receiver, tuple(traces), tuple(levels), measure)


def _cell_trace(cell: Cell, *, whole: bool) -> Trace:
    """A curve; on test only at the fixed and the chosen lambda, as in a sweep, or as a whole."""
    val = cell.chosen.get("val")
    tests = {point.lam: point.test for point in cell.curve if point.test and whole}
    known = [cell.chosen[key] for key in ("val", "agreement") if key in cell.chosen]
    tests |= {choice.lam: choice.test for choice in (*cell.fixed, *known)}
    return Trace(
        cell.donor,
        tuple((point.lam, (point.val.n_correct, point.val.n)) for point in cell.curve),
        tuple((lam, (test.n_correct, test.n)) for lam, test in sorted(tests.items())),
        val.lam if val else None,
        cell.diagonal,
        _far(cell),
    )


def _far(cell: Cell) -> DistanceCurve | None:
    """The distances of a cell, where there were proxies."""
    points = [(p.lam, p.distance, 0.0) for p in cell.curve if p.distance is not None]
    agreed = cell.chosen.get("agreement")
    lambdas = [lam for lam, *_ in points]
    lam = agreed.lam if agreed and agreed.lam in lambdas else None  # a median may lie between
    return DistanceCurve(tuple(points), lam) if points else None
