"""Every number of files of results as tables, each with the receiver data that it used."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from qvec_cli.report import ways
from qvec_cli.report.canvas import LAMBDA, MINUS, number, signed
from qvec_cli.results import metrics_document as metrics
from qvec_cli.results.documents import Document, ResultFiles, WaysTable, stem
from qvec_cli.results.matrix import Cell, Matrix
from qvec_cli.results.records import ChosenLambda, Score
from qvec_cli.results.summary import gain_cells, summarise
from qvec_cli.specs import DataUse

NONE: Final = "-"
"""What has not been measured."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text; the first cell of each names it."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    folded: bool = False  # shown when the reader opens it


def percent(score: Score | None) -> str:
    """Top-1 in percent."""
    return NONE if score is None else f"{100 * score.top1:.2f}"


def accuracy(score: Score | None) -> str:
    """Top-1 in percent with its standard error and counts."""
    if score is None:
        return NONE
    error = f"\N{PLUS-MINUS SIGN} {100 * score.standard_error:.2f}"
    return f"{percent(score)} {error} ({score.n_correct:g}/{score.n})"


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else number(value, form)


# --- a transfer grid ------------------------------------------------------------------------------


def tables_of(matrix: Matrix) -> Iterator[Table]:
    """Every number of a grid, the ones that people ask for first."""
    yield _gains(matrix)
    yield _summary(matrix)
    yield _mean_gains(matrix)
    yield from _pairs(matrix)
    yield from _nulls(matrix)
    yield from _cosines(matrix)
    yield from _curves(matrix)
    yield from _distances(matrix)
    yield _uses(matrix)
    yield from _provenance(matrix)


def _gains(matrix: Matrix) -> Table:
    """What transfer prints at its end: gains of vectors, and of nulls that carry nothing."""
    head = ("way", "mean", "95 %", "median", "wins", "losses", "gap closed", "regret")
    rows = gain_cells(summarise(matrix), ways.lambda_name, signed)
    return Table(
        "With a vector: points of top-1 on test above plain rounding, over all pairs",
        head,
        [(name, *map(_dashed, row), *[NONE] * (len(head) - 1 - len(row))) for name, *row in rows],
        "The mean is one of receivers' means, its interval a bootstrap over receivers. Wins and "
        "losses are pairs further from 0 than one standard error of the difference; the gap is "
        "what the receivers' own QAT gains; the regret is against the best on test.",
    )


def _dashed(cell: str) -> str:
    """Numbers in words that terminals share, with the minus sign of pages."""
    return cell if cell == NONE else cell.replace("-", MINUS)


def _picked(cells: Iterable[Cell], pick: ways.Chooser) -> list[tuple[Cell, ChosenLambda]]:
    """The cells that have an answer, with it."""
    return [(cell, choice) for cell in cells if (choice := pick(cell))]


def _used(matrix: Matrix, pick: ways.Chooser) -> list[DataUse]:
    return [choice.use for _, choice in _picked(matrix.transfers, pick)]


def _heads(matrix: Matrix) -> list[str]:
    """Ways to choose lambda, each with the receiver data that it used."""
    choosers = ways.choosers(matrix)
    return [f"{label} ({ways.used(_used(matrix, pick))})" for label, pick in choosers]


def _summary(matrix: Matrix) -> Table:
    keys, choosers = ways.baseline_keys(matrix), ways.choosers(matrix)
    rows, shares = [], []
    for name, baselines in matrix.baselines.items():
        scores = [[baselines[key].test] if key in baselines else [] for key in keys]
        cells = [cell for cell in matrix.transfers if cell.receiver == name]
        scores += [[choice.test for _, choice in _picked(cells, pick)] for _, pick in choosers]
        shares.append([[100 * score.top1 for score in column] for column in scores])
        rows.append((name, f"{matrix.plain(name).n:,}", *map(_spread, shares[-1])))
    columns = zip(*shares, strict=True)
    means = [f"{fmean(map(fmean, c)):.2f}" if all(c) else NONE for c in columns]
    heads = [f"vector, {words}" for words in _heads(matrix)]
    return Table(
        "Each receiver: top-1 on test, %",
        ("receiver", "n", *(ways.baseline_name(matrix, key) for key in keys), *heads),
        (*rows, ("mean", "", *means)),
        "Vectors: the mean over donors other than the receiver's own, and in brackets the least "
        "and the largest. What stands in brackets in the head is what the number has used of the "
        "receiver's data beyond its own fine-tuning; without brackets, nothing.",
    )


def _spread(shares: Sequence[float]) -> str:
    """The mean of some accuracies, and their ends if they are several."""
    if not shares:
        return NONE
    ends = f" ({min(shares):.2f} to {max(shares):.2f})" if len(shares) > 1 else ""
    return f"{fmean(shares):.2f}{ends}"


def _gain(matrix: Matrix, cell: Cell, choice: ChosenLambda) -> float:
    return 100 * matrix.gain(cell.receiver, choice.test)


def _mean_gains(matrix: Matrix) -> Table:
    head, rows = ["donor", "images its QAT was trained on"], []
    for label, _ in ways.choosers(matrix):
        head += [f"mean gain, {label}", "better than rounding"]
    for name, donor in (*matrix.donors.items(), ("all pairs", None)):
        cells = [cell for cell in matrix.transfers if donor is None or cell.donor == name]
        row = [name, _number(donor.trained_images, ",") if donor else ""]
        for _, pick in ways.choosers(matrix):
            gains = [_gain(matrix, *picked) for picked in _picked(cells, pick)]
            wins = f"{sum(gain > 0 for gain in gains)} of {len(gains)}"
            row += [signed(fmean(gains)), wins] if gains else [NONE, NONE]
        rows.append(row)
    return Table(
        "Each donor: points of top-1 above plain rounding, on other receivers",
        head,
        rows,
        "A tie is no win; a receiver's own vector counts nowhere. The mean of all pairs is not the "
        "one above, which counts each receiver once.",
    )


def _pairs(matrix: Matrix) -> Iterator[Table]:
    for label, (_, pick) in zip(_heads(matrix), ways.choosers(matrix), strict=True):
        yield _pair_table(matrix, label, pick)
    if any(cell.oracle for cell in matrix.cells.values()):
        yield _pair_table(matrix, f"{LAMBDA} that is best on test, which nobody can know", _best)


def _best(cell: Cell) -> ChosenLambda | None:
    best = cell.oracle
    return ChosenLambda(best.lam, best.test, DataUse.RECEIVER_LABELS) if best else None


def _pair_table(matrix: Matrix, label: str, pick: ways.Chooser) -> Table:
    rows = []
    for receiver in matrix.receivers:
        cells = [matrix.get(receiver, donor) for donor in matrix.donors]
        rows.append((receiver, *(_answer(matrix, cell, pick) for cell in cells)))
    return Table(
        f"Each pair, {label}: top-1 on test in %, and points above plain rounding",
        ("receiver, from", *matrix.donors),
        rows,
        f"own: a receiver's own vector. @: the {LAMBDA}, where it is not told above.",
        folded=True,
    )


def _answer(matrix: Matrix, cell: Cell | None, pick: ways.Chooser) -> str:
    choice = pick(cell) if cell else None
    if cell is None or choice is None:
        return NONE
    at = f" @ {number(choice.lam)}" if choice not in cell.fixed else ""
    own = " own" if cell.diagonal and cell.null is None else ""
    return f"{percent(choice.test)} ({signed(_gain(matrix, cell, choice))}){at}{own}"


def _nulls(matrix: Matrix) -> Iterator[Table]:
    """Vectors of the same norm that carry nothing: what a gain must be larger than."""
    choosers = ways.choosers(matrix)
    rows = [
        (cell.null, cell.donor, cell.receiver, *(_answer(matrix, cell, p) for _, p in choosers))
        for cell in matrix.cells.values()
        if cell.null
    ]
    if rows:
        head = ("null", "norm of", "receiver", *(label for label, _ in choosers))
        yield Table("Vectors of the same norm that carry nothing", head, rows, folded=True)


def _cosines(matrix: Matrix) -> Iterator[Table]:
    cosines = matrix.alignment
    if cosines is None:
        return
    for words, table in (
        ("of everything at once", cosines.whole),
        ("mean over rows", cosines.rows),
    ):
        named = zip(cosines.donors, table, strict=True)
        rows = [(name, *(number(value, ".4f") for value in row)) for name, row in named]
        caption = f"Cosines between the donors' vectors, {words}"
        yield Table(caption, ("donor", *cosines.donors), rows, folded=True)


def _lambdas(matrix: Matrix) -> list[float]:
    return sorted({point.lam for cell in matrix.cells.values() for point in cell.curve})


def _curves(matrix: Matrix) -> Iterator[Table]:
    lambdas = _lambdas(matrix)
    for key, split in (("val", "validation"), ("test", "test")):
        rows = []
        for cell in matrix.cells.values():
            scores = {point.lam: getattr(point, key) for point in cell.curve}
            if any(scores.values()):
                rows.append((_label(cell), *(percent(scores.get(lam)) for lam in lambdas)))
        if rows:
            caption = f"Each curve: top-1 on {split}, %, by {LAMBDA}"
            yield Table(caption, ("pair", *(number(lam) for lam in lambdas)), rows, folded=True)


def _distances(matrix: Matrix) -> Iterator[Table]:
    """What lambda by agreement was chosen by."""
    lambdas, rows = _lambdas(matrix), []
    for cell in matrix.cells.values():
        if cell.score:
            far = {point.lam: point.distance for point in cell.curve}
            shares = (number(100 * s, ".1f") for s in (cell.score.removed, cell.score.explained))
            measured = (_number(far.get(lam), ".4g") for lam in lambdas)
            measure = matrix.measures.get(cell.receiver, NONE)
            rows.append((_label(cell), measure, *shares, *measured))
    if rows:
        yield Table(
            f"Each curve: distance to the float answers on proxy images, by {LAMBDA}",
            ("pair", "measure", "removed, %", "explained, %", *(number(lam) for lam in lambdas)),
            rows,
            f"Removed: the share of the damage at {LAMBDA} = 0 that is gone at the {LAMBDA} chosen "
            "by agreement. Explained: what one coefficient would cancel, were changes linear.",
            folded=True,
        )


def _label(cell: Cell) -> str:
    return f"{cell.receiver} from {cell.donor}{f', {cell.null}' if cell.null else ''}"


def _uses(matrix: Matrix) -> Table:
    rows = [
        (ways.baseline_name(matrix, key).split(" (")[0], ways.baseline_use(matrix, key))
        for key in ways.baseline_keys(matrix)
    ]
    for label, pick in ways.choosers(matrix):
        rows.append((f"vector, {label}", ways.most(_used(matrix, pick))))
    caption = "What each number has used of the receiver's data"
    return Table(caption, ("number", "data_use"), rows)


def _provenance(matrix: Matrix) -> Iterator[Table]:
    run, parts = matrix.run, ("receivers", "donors", "environment")
    which = f", the first of {matrix.runs} runs" if matrix.runs > 1 else ""
    settings = [(key, compact_json(run[key])) for key in run if key not in (*parts, "kind")]
    yield Table(f"How it was run{which}", ("setting", "value"), settings, folded=True)
    for part in parts:
        rows = [
            (name, key, compact_json(value))
            for name, facts in run.get(part, {}).items()
            for key, value in (facts if isinstance(facts, dict) else {"": facts}).items()
        ]
        caption = f"Where it comes from: {part}{which}"
        yield Table(caption, ("of", "what", "value"), rows, folded=True)


def compact_json(value: Any) -> str:
    """A setting as text; a string is itself."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- metrics of commands --------------------------------------------------------------------------


def _pair(sweep: Document[Any]) -> str:
    """Receiver and donor of a sweep by labels."""
    return f"{sweep.name} from {stem(sweep.inputs[1].path)}"


def _kind(document: Document[Any]) -> str:
    return f"{document.grid}, {document.method}"


def sweep_tables(sweeps: Sequence[Document[metrics.SweepResults]]) -> Iterator[Table]:
    """Sweeps by labels, and the curve of each."""
    rows = []
    for sweep in sweeps:
        fixed, chosen = sweep.results.zero_shot, sweep.results.chosen
        levels = sweep.results.baselines
        unit = fixed.test if fixed else None
        scores = map(accuracy, (levels.fp.test, levels.ptq.test, unit, chosen.test))
        rows.append((_pair(sweep), _kind(sweep), *scores, number(chosen.lam), chosen.use))
    head = ("pair", "grid", "float", "plain rounding", f"{LAMBDA} = 1", f"{LAMBDA} chosen", "at")
    caption = "On test: top-1 in % with its standard error"
    yield Table(caption, (*head, "the chosen one has used"), rows)
    for sweep in sweeps:
        fixed, chosen = sweep.results.zero_shot, sweep.results.chosen
        tests = {0.0: sweep.results.baselines.ptq.test, chosen.lam: chosen.test}
        tests |= {fixed.lam: fixed.test} if fixed else {}
        curve = [
            (_marked(point.lam, chosen.lam), accuracy(point.val), accuracy(tests.get(point.lam)))
            for point in sorted(sweep.results.curve, key=lambda point: point.lam)
        ]
        caption = f"The curve of {_pair(sweep)}, {sweep.grid}"
        yield Table(caption, (LAMBDA, "validation", "test"), curve, folded=True)


def _marked(lam: float, chosen: float) -> str:
    return f"{number(lam)}{' chosen' if lam == chosen else ''}"


def agreement_tables(sweeps: Sequence[Document[metrics.AgreementResults]]) -> Iterator[Table]:
    """Sweeps without labels, and the curves of each."""
    rows = [
        (
            f"{sweep.name} from {stem(row.rho)}",
            _kind(sweep),
            sweep.results.measure,
            number(row.chosen.lam),
            *(number(100 * share, ".1f") for share in (row.score.removed, row.score.explained)),
            accuracy(row.chosen.test),
            row.chosen.use,
        )
        for sweep in sweeps
        for row in sweep.results.donors
    ]
    head = ("pair", "grid", "measure", f"{LAMBDA} by agreement", "damage removed, %")
    more = ("explained, %", "top-1 on test, %", "the chosen one has used")
    note = (
        "Damage is the distance of the quantized receiver's answers to the float ones, on proxy "
        "images; labels, where they were given, took no part in the choice."
    )
    yield Table("Lambda by agreement, the best donor first", (*head, *more), rows, note)
    for sweep in sweeps:
        results = sweep.results
        curves = [
            (
                stem(row.rho),
                _marked(point.lam, row.chosen.lam),
                f"{point.mean:.5g} \N{PLUS-MINUS SIGN} {point.standard_error:.2g}",
                accuracy(point.val),
            )
            for row in results.donors
            for point in sorted(row.curve, key=lambda point: point.lam)
        ]
        caption = f"The curves of {sweep.name}, {sweep.grid}, on {results.proxies.n} proxy images"
        heads = ("vector", LAMBDA, f"distance, {results.measure}", "validation")
        yield Table(caption, heads, curves, folded=True)


def model_tables(models: Sequence[Document[metrics.QuantizeResults]]) -> Iterator[Table]:
    """Quantized models, and each weight of them."""
    rows = []
    for model in models:
        results = model.results
        known = [ratio for ratio in results.sqnr_db.values() if ratio is not None]
        spread = f"{number(min(known), '.1f')} to {number(max(known), '.1f')} dB" if known else NONE
        size = f"{results.bytes_before:,} to {results.bytes_after:,}"
        bits = f"{results.bits_per_weight:.3f}"
        rows.append((model.name, _kind(model), bits, size, spread, model.use.level))
    head = ("model", "grid", "bits per weight", "bytes", "signal to noise", "receiver data used")
    yield Table("Quantized models", head, rows)
    for model in models:
        weights = [(name, _number(ratio, ".2f")) for name, ratio in model.results.ordered.items()]
        caption = f"Each weight of {model.name}, {model.grid}"
        yield Table(caption, ("weight", "dB"), weights, folded=True)


def compared_table(document: Document[metrics.ComparedResults]) -> Table:
    """Grids that need no data, side by side."""
    results, rows = document.results, []
    if results.fp is not None:
        rows.append(("float, not quantized", NONE, NONE, accuracy(results.fp)))
    for row in results.compared:
        ratio = NONE if row.sqnr_db is None else f"{number(row.sqnr_db, '.1f')} dB"
        rows.append((row.name, f"{row.bits_per_weight:.3f}", ratio, accuracy(row.measured)))
    head = ["grid", "bits per weight", "signal to noise"]
    if split := ways.split_of(results):
        head.append(f"top-1 on {split}, %")
    shown = [row[: len(head)] for row in rows]
    return Table(document.name, head, shown, f"Receiver data used: {document.use.level}.")


def ways_table(table: WaysTable) -> Table:
    """Ways to low bits."""
    rows = []
    for row in table.ways:
        between = " to ".join(number(end, ".0%") for end in row.interval) if row.interval else NONE
        closed, worse = _number(row.gap_closed, ".0%"), _number(row.worse, ".1%")
        rows.append((row.way, f"{row.top1:.4f}", closed, between, worse, row.data_use or NONE))
    head = ("way", "mean top-1", "gap closed", "95 %", "worse", "receiver data used")
    return Table(table.title, head, rows)


def evaluation_table(documents: Sequence[Document[metrics.EvalResults]]) -> Table:
    """The accuracy of each file."""
    rows = []
    for document in documents:
        results = document.results
        grid = str(results.grid.grid) if results.grid else "float"
        score = accuracy(Score.of(results.n, results.n_correct))
        role, level = results.role or NONE, document.use.level
        rows.append((document.name, role, grid, results.split, score, level))
    head = ("model", "role", "made for", "split", "top-1, %", "receiver data used")
    return Table("Accuracies", head, rows)


def advice_tables(documents: Sequence[Document[metrics.AdviceResults]]) -> Iterator[Table]:
    """What to do with each receiver, every way that was tried, and the commands."""
    head = ("way", "bits per weight", "distance", "kept, %", "top-1 on test, %", "data used")
    for document in documents:
        results = document.results
        rows = [
            (
                f"{row.name}{', chosen' if row.name == results.chosen else ''}",
                f"{row.bits_per_weight:.3f}",
                f"{row.distance:.3g} \N{PLUS-MINUS SIGN} {row.standard_error:.2g}",
                f"{100 * row.kept:.1f}",
                accuracy(row.test),
                row.data_use.level,
            )
            for row in sorted(results.candidates, key=lambda row: row.distance)
        ]
        note = (
            f"{results.decision} ({results.sure}), because {results.why}. Distances to the float "
            f"answers, {results.measure}, on {results.proxies.n} images that no way has used."
        )
        yield Table(f"{document.name}: {results.decision}", head, rows, note)
        steps = [("run", command) for command in results.commands]
        steps += [(f"left out: {row.name}", row.reason) for row in results.skipped]
        yield Table(f"{document.name}: the commands, and what was left out", ("", ""), steps)


def other_table(documents: Sequence[Document[Any]]) -> Table:
    """What commands have written of which there is neither a figure nor another table."""
    rows = [
        (
            row.file,
            row.command,
            str(row.results.get("output", NONE)),
            f"{row.seconds:,.1f}",
            row.use.level,
        )
        for row in documents
    ]
    head = ("file", "command", "output", "seconds", "receiver data used")
    return Table("Other commands", head, rows)


def training_table(documents: Sequence[Document[metrics.TrainingResults]]) -> Table:
    """The seconds of each run, and the digest of what it has written."""
    rows = [
        (stem(row.results.output), row.command, f"{row.seconds:,.0f}", row.results.digest)
        for row in documents
    ]
    return Table("Runs", ("model", "command", "seconds", "digest"), rows)


def file_table(files: ResultFiles) -> Table:
    """The files that a page was drawn from."""
    rows = [(row.path, row.kind, str(row.digest)) for row in files.inputs]
    return Table("What the page was drawn from", ("file", "kind", "sha256"), rows, folded=True)
