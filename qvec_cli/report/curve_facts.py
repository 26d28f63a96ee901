"""Curves over lambda of sweeps and of grids: the facts of the figure curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from qvec_cli.errors import MismatchError, SpecError
from qvec_cli.report.canvas import LAMBDA
from qvec_cli.report.curves import DISTINCT, CurvePanel, Curves, Level, Trace
from qvec_cli.report.distance_strip import Far
from qvec_cli.report.heatmap import signed
from qvec_cli.report.spread import Spread
from qvec_cli.results.agreement_sweep import Agreed, Row
from qvec_cli.results.documents import Evaluation, Sweep
from qvec_cli.results.matrix import FLOAT, OWN_QAT, PLAIN, Cell, Matrix, Point
from qvec_cli.results.records import Score
from qvec_cli.specs import Measure

MEASURES: Final[Mapping[str, str]] = {Measure.KL: "KL, nats", Measure.FEATURES: "features, share"}
"""Distances in an axis's words."""


_QAT: str = "qat"
"""The role of a checkpoint that train-qat wrote, as cards hold it."""


def curves_of(sweeps: Sequence[Sweep], evaluations: Sequence[Evaluation]) -> Curves:
    """A panel for each receiver; its own QAT is there if one of the evaluations is of it.

    Raises:
        MismatchError: sweeps on two grids, or an evaluation that belongs to none of them.
    """
    first = sweeps[0]
    for sweep in sweeps[1:]:
        if (sweep.grid, sweep.method) != (first.grid, first.method):
            raise MismatchError(
                f"{sweep.file}: is on {sweep.grid}, {sweep.method}, and {first.file} on "
                f"{first.grid}, {first.method}",
                hint="Draw the sweeps of one grid at a time.",
            )
    panels: dict[tuple[str, ...], list[Sweep]] = {}
    for sweep in sweeps:
        panels.setdefault(sweep.digests, []).append(sweep)
    own = {digests: _own_qat(found[0], evaluations) for digests, found in panels.items()}
    fitting = fitting_in(sweeps, evaluations)
    for row in evaluations:
        if row not in fitting:
            raise MismatchError(
                f"{row.file}: is no test accuracy of a receiver's own QAT on the grid of a sweep",
                hint="Leave it out.",
            )
    shown = [_sweep_panel(found, own[digests]) for digests, found in panels.items()]
    what = f"{_names([p.title for p in shown], 'receivers')}, "
    what += _names([sweep.donor for sweep in sweeps], "vectors")
    return _figure(
        what,
        f"{first.grid}, {first.method}; {_sizes([s.curve[0].val for s in sweeps], 'validation')}, "
        f"{_sizes([s.unit.test for s in sweeps], 'test')}",
        shown,
    )


def agreed_of(found: Sequence[Agreed]) -> Curves:
    """A panel for each receiver, of choices without labels.

    Raises:
        MismatchError: sweeps on two grids, or of two measures.
    """
    first = found[0]
    for sweep in found[1:]:
        if (sweep.grid, sweep.method) != (first.grid, first.method):
            raise MismatchError(
                f"{sweep.file}: is on {sweep.grid}, {sweep.method}, and {first.file} on "
                f"{first.grid}, {first.method}",
                hint="Draw the sweeps of one grid at a time.",
            )
        if sweep.digest == first.digest and sweep.measure is not first.measure:
            raise MismatchError(
                f"{sweep.file}: measures by {sweep.measure}, {first.file} by {first.measure}",
                hint="Draw one at a time, or sweep with --measure.",
            )
    panels: dict[str, list[Agreed]] = {}
    for sweep in found:
        panels.setdefault(sweep.digest, []).append(sweep)
    names = [row.name for sweep in found for row in sweep.rows]
    counts = [sweep.images for sweep in found]
    n = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
    return _figure(
        f"{_names([sweep.receiver for sweep in found], 'receivers')}, {_names(names, 'vectors')}",
        f"{first.grid}, {first.method}; {n} proxy images",
        [_agreed_panel(sweeps) for sweeps in panels.values()],
    )


def _agreed_panel(sweeps: Sequence[Agreed]) -> CurvePanel:
    first = sweeps[0]
    named = ((FLOAT, "float", "float"), (PLAIN, first.method.upper(), "plain"))
    levels = [
        Level(n, first.baselines[key].test.top1, kind)
        for key, n, kind in named
        if key in first.baselines
    ]
    traces = tuple(_agreed_trace(row) for sweep in sweeps for row in sweep.rows)
    return CurvePanel(first.receiver, traces, tuple(levels), MEASURES[first.measure])


def _agreed_trace(row: Row) -> Trace:
    """On test, where labels were given, at the lambda that was chosen without them."""
    val = [(point.lam, (point.val.n_correct, point.val.n)) for point in row.curve if point.val]
    points = tuple((point.lam, point.mean, point.standard_error) for point in row.curve)
    test = ((row.chosen.lam, (row.test.n_correct, row.test.n)),) if row.test else ()
    return Trace(row.name, tuple(val), test, far=Far(points, row.chosen.lam))


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
    found = dict.fromkeys(names)
    return names[0] if len(found) == 1 else f"{len(found)} {words}"


def _sizes(scores: Sequence[Score], split: str) -> str:
    counts = [score.n for score in scores]
    low, high = min(counts), max(counts)
    n = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{n} {split} images"


def fitting_in(
    sweeps: Sequence[Sweep], evaluations: Sequence[Evaluation]
) -> tuple[Evaluation, ...]:
    """Those that measure the own QAT of a receiver of these sweeps, one a receiver."""
    found = [_own_qat(sweep, evaluations) for sweep in sweeps]
    return tuple(row for row in evaluations if row in found)


def _own_qat(sweep: Sweep, evaluations: Sequence[Evaluation]) -> Evaluation | None:
    for row in evaluations:
        here = row.data == sweep.digests[1] and row.split == "test"
        if here and row.role == _QAT and row.grid == sweep.grid:
            return row
    return None


def _sweep_panel(sweeps: Sequence[Sweep], own: Evaluation | None) -> CurvePanel:
    first = sweeps[0]
    levels = [
        Level("float", first.baselines[FLOAT].test.top1, "float"),
        Level(first.method.upper(), first.baselines[PLAIN].test.top1, "plain"),
    ]
    if own is not None:
        levels.append(Level("own QAT", own.score.top1, "qat"))
    traces = tuple(_trace(s.donor, s.curve, s.chosen.lam, own=False, known=s) for s in sweeps)
    return CurvePanel(first.receiver, traces, tuple(levels))


def _trace(
    name: str, curve: Sequence[Point], chosen: float | None, *, own: bool, known: Sweep | None
) -> Trace:
    tests = {point.lam: point.test for point in curve if point.test}
    if known is not None:
        tests |= {known.unit.lam: known.unit.test, known.chosen.lam: known.chosen.test}
    return Trace(
        name,
        tuple((point.lam, (point.val.n_correct, point.val.n)) for point in curve),
        tuple((lam, (test.n_correct, test.n)) for lam, test in sorted(tests.items())),
        chosen,
        own,
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


def _far(cell: Cell) -> Far | None:
    """The distances of a cell, where there were proxies."""
    points = [(p.lam, p.distance, 0.0) for p in cell.curve if p.distance is not None]
    agreed = cell.chosen.get("agreement")
    lambdas = [lam for lam, *_ in points]
    lam = agreed.lam if agreed and agreed.lam in lambdas else None  # a median may lie between
    return Far(tuple(points), lam) if points else None


def spread_of(matrix: Matrix) -> Spread:
    """All transfers of a grid at once, each against its own lambda 0.

    Raises:
        SpecError: a grid without a pair that counts.
    """
    cells = matrix.transfers
    if not cells:
        raise SpecError("the grid has no pair of a donor and another receiver yet")
    lambdas = [point.lam for point in cells[0].curve]
    if any([point.lam for point in cell.curve] != lambdas for cell in matrix.cells.values()):
        raise SpecError("the pairs of the grid have curves over different lambdas")
    val = np.array([_gains([point.val for point in cell.curve], lambdas) for cell in cells])
    own = [cell for cell in matrix.cells.values() if cell.diagonal and cell.null is None]
    tests = [[point.test for point in cell.curve] for cell in cells]
    middle = np.median(val, axis=0)
    best = int(middle.argmax())
    return Spread(
        f"The median gain is largest at {LAMBDA} = {lambdas[best]:g}: "
        f"{signed(float(middle[best]), decimal=True)} points",
        f"{matrix.grid}, {matrix.method}; {_sizes([c.curve[0].val for c in cells], 'validation')}, "
        f"{_sizes([matrix.plain(cell.receiver) for cell in cells], 'test')} a receiver",
        np.array(lambdas),
        val,
        np.array([_gains(row, lambdas) for row in tests]) if all(map(all, tests)) else None,
        np.array([_gains([point.val for point in cell.curve], lambdas) for cell in own]),
        tuple(cell.chosen["val"].lam for cell in cells if "val" in cell.chosen),
        _left(cells),
        tuple(cell.chosen["agreement"].lam for cell in cells if "agreement" in cell.chosen),
    )


def _left(cells: Sequence[Cell]) -> np.ndarray[Any, np.dtype[Any]] | None:
    """Distances over those at lambda 0, where all pairs have them and damage was done."""
    rows = []
    for cell in cells:
        far = {point.lam: point.distance for point in cell.curve}
        plain = far[0.0]
        if not plain or None in far.values():
            return None
        rows.append([(found or 0.0) / plain for found in far.values()])
    return np.array(rows)


def _gains(scores: Sequence[Score | None], lambdas: Sequence[float]) -> list[float]:
    plain = scores[list(lambdas).index(0.0)]
    assert plain is not None
    return [100 * (score.top1 - plain.top1) for score in scores if score]
