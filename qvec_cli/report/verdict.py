"""What a page opens with: of all ways that were measured the best, and what it costs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from operator import attrgetter
from statistics import fmean

from qvec_cli.errors import SpecError
from qvec_cli.report import ways
from qvec_cli.report.bars import CHARTS, Bar, BarPanel, evaluations, groups
from qvec_cli.report.canvas import LAMBDA, number, signed
from qvec_cli.report.tables import NONE, Table, accuracy
from qvec_cli.results.documents import Document, ResultFiles, stem
from qvec_cli.results.matrix import FLOAT, Matrix
from qvec_cli.results.metrics_document import AdviceResults, SweepResults
from qvec_cli.results.records import Score
from qvec_cli.specs import DataUse


def verdicts(files: ResultFiles) -> Table | None:
    """The best way of each grid, model and set of images; None: nothing was measured.

    A way that used more of the receiver's data has a row only where it is better.
    """
    rows = [row for document in files.of(AdviceResults) for row in _advised(document)]
    for panel in _panels(files):
        for bar in best(panel.bars):
            points = signed(bar.value - panel.line[1]) if panel.line else NONE
            rows.append((panel.title, bar.label, f"{bar.value:.1f}", points, _size(bar), bar.use))
    if not rows:
        return None
    head = ("of", "best way", "top-1, %", "points from float", "bits", "receiver data used")
    note = "More receiver data is named only where it gives more: the last row of each is the best."
    several = len({row[0] for row in rows}) < len(rows)
    return Table("The best way", head, rows, note if several else "")


def alone(files: ResultFiles) -> Table | None:
    """Files whose accuracy no other of the page can be compared with; None: there is none."""
    rows = []
    for document in (group[0] for group in evaluations(files) if len(group) == 1):
        results, images = document.results, stem(document.inputs[-1].path)
        score = accuracy(Score.of(results.n, results.n_correct))
        bits = str(results.grid.bits) if results.grid else "float"
        of = f"{images}, {results.split}, n = {results.n:,}"
        rows.append((document.name, of, score, bits, document.use.level))
    head = ("model", "images", "top-1, %", "bits", "receiver data used")
    return Table("What was measured", head, rows) if rows else None


def best(bars: Sequence[Bar]) -> Iterator[Bar]:
    """The best way of each amount of receiver data that is better than all with less."""
    most = 0.0
    for use in DataUse:
        top = max((bar for bar in bars if bar.use is use), key=attrgetter("value"), default=None)
        if top and top.value > most:
            most = top.value
            yield top


def _size(bar: Bar) -> str:
    return f"{bar.bits:.3g}" if bar.bits else NONE


def _panels(files: ResultFiles) -> Iterator[BarPanel]:
    """All that was measured as bars of accuracies."""
    yield from map(_of_matrix, files.matrices)
    yield from map(_of_sweep, files.of(SweepResults))
    for kind, chart in CHARTS.items():
        for group in groups(files, kind):
            with contextlib.suppress(SpecError):  # nothing was measured: its section tells it
                panels = chart(group).panels
                yield from (panel for panel in panels if panel.axis.startswith("top-1"))


def _of_matrix(matrix: Matrix) -> BarPanel:
    """Means over the receivers of a grid, of what all of them have."""
    names, rows = list(matrix.baselines), []
    for key in (key for key in ways.baseline_keys(matrix) if key != FLOAT):
        scores = [matrix.baselines[name].get(key) for name in names]
        label, use = ways.baseline_name(matrix, key), ways.baseline_use(matrix, key)
        rows.append((label, [[row.test.top1] if row else [] for row in scores], use))
    for label, pick in ways.choosers(matrix):
        found = [
            [choice for c in matrix.transfers if c.receiver == name and (choice := pick(c))]
            for name in names
        ]
        use = ways.most(choice.use for row in found for choice in row)
        shares = [[choice.test.top1 for choice in row] for row in found]
        rows.append((f"vector, {label}, mean of donors", shares, use))
    bits = matrix.grid.bits
    bars = [Bar(w, 100 * fmean(map(fmean, s)), u, bits) for w, s, u in rows if all(s)]
    fp = 100 * fmean(matrix.baselines[name][FLOAT].test.top1 for name in names)
    title = f"{len(names)} receivers" if len(names) > 1 else names[0]
    return BarPanel(f"{title}, {matrix.grid}", tuple(bars), ("float", fp))


def _of_sweep(document: Document[SweepResults]) -> BarPanel:
    results, vector = document.results, stem(document.inputs[1].path)
    plain, bits = results.baselines.ptq, document.grid.bits
    bars = [Bar("plain rounding", 100 * plain.test.top1, plain.use, bits)]
    for row in filter(None, (results.zero_shot, results.chosen)):
        way = f"{vector}, {LAMBDA} = {number(row.lam)}"
        bars.append(Bar(way, 100 * row.test.top1, row.use, bits))
    line = ("float", 100 * results.baselines.fp.test.top1)
    return BarPanel(f"{document.name}, {document.grid}", tuple(bars), line)


def _advised(document: Document[AdviceResults]) -> Iterator[tuple[str, ...]]:
    """What advise decided; without labels it knows a share of the float answers alone."""
    results = document.results
    for row in (row for row in results.candidates if row.name == results.chosen):
        way, top1 = f"{results.decision} ({results.sure}): {row.name}", NONE
        points = f"keeps {row.kept:.1%} of its answers"
        if row.test and results.fp:
            top1 = f"{100 * row.test.top1:.1f}"
            points = signed(100 * (row.test.top1 - results.fp.top1))
        yield document.name, way, top1, points, f"{row.bits_per_weight:.3g}", row.data_use.level
