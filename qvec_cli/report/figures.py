"""Which figure some files of results make, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any, Final

from qvec_cli.errors import QvecError, SpecError
from qvec_cli.results.agreement_sweep import Agreed
from qvec_cli.results.documents import (
    Compared,
    Evaluation,
    Extraction,
    Layers,
    Results,
    Sweep,
    TrainingRecord,
)
from qvec_cli.results.matrix import Matrix
from qvec_cli.specs import Cost, DataUse, FigureKind, Listener, Use, spent


@dataclass(frozen=True, slots=True)
class FigureOptions:
    """What the user asks of a figure."""

    kind: FigureKind | None = None
    receiver: str | None = None
    donor: str | None = None
    cost: Cost = Cost.IMAGES


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure, and what is told of it."""

    kind: FigureKind
    figure: Any  # matplotlib's, which only the room draw knows
    words: str  # what it shows, for those who do not see it
    facts: Mapping[str, Any] = field(default_factory=dict)
    use: Use = Use()  # noqa: RUF009 - frozen


def require_drawing(command: str) -> None:
    """Refuses a command whose libraries are not installed.

    Raises:
        QvecError: matplotlib or jinja2 is missing.
    """
    from importlib.util import find_spec

    for name in ("matplotlib", "jinja2"):
        if find_spec(name) is None:
            raise QvecError(
                f"{command}: the package {name} is not installed", hint="pip install 'qvec[plot]'"
            )


def note_letters(found: Results, listener: Listener) -> None:
    """Says which letters of names figures show as boxes."""
    from qvec_cli.report.canvas import lacking

    if letters := lacking("".join(dict.fromkeys("".join(found.names)))[:1000]):
        listener.note(f"figures show boxes for letters that DejaVu lacks: {letters[:20]}")


def drawn(found: Results, wish: FigureOptions) -> Drawn:
    """The figure that is wished for, or that the files make.

    Raises:
        SpecError: files that make no such figure, hold more than it shows, or lack what it needs.
    """
    kind = wish.kind or _first(found)
    row = _FIGURES[kind]
    _require_flags(kind, wish)
    if not any(_held(found, source) for source in row.sources):
        needed = " or ".join(_WORDS[source] for source in row.sources)
        raise SpecError(f"--figure {kind} is drawn from {needed}, and none of the files is that")
    if sum(_held(found, source) for source in row.sources) > 1:
        kinds = " and ".join(_WORDS[source] for source in row.sources if _held(found, source))
        raise SpecError(f"the files hold {kinds}: draw one at a time")
    for document in found.documents:
        if not isinstance(document, (*row.sources, *row.beside)):
            raise SpecError(
                f"{document.file}: a {kind} shows nothing of {_WORDS[type(document)]}",
                hint="Leave it out, or choose another --figure; qvec report takes all together.",
            )
    if found.matrices and Matrix not in row.sources:
        raise SpecError(f"a {kind} shows nothing of a transfer grid", hint="Leave it out.")
    return row.draw(found, wish)


def _first(found: Results) -> FigureKind:
    """What files make of themselves: a grid its heatmap."""
    for kind, row in _FIGURES.items():
        if any(_held(found, source) for source in row.sources):
            return kind
    raise SpecError(
        f"{found.inputs[0].path}: alone it makes no figure",
        hint="A figure needs a transfer grid, sweeps, or quantize --metrics.",
    )


def _held(found: Results, source: type[Any]) -> bool:
    return bool(found.matrices) if source is Matrix else bool(found.of(source))


def _require_flags(kind: FigureKind, wish: FigureOptions) -> None:
    """Refuses flags that the figure has no use for."""
    for flag, value, kinds in (
        ("--receiver", wish.receiver, (FigureKind.CURVE,)),
        ("--donor", wish.donor, (FigureKind.CURVE, FigureKind.PLANE)),
        ("--cost seconds", wish.cost is Cost.SECONDS or None, (FigureKind.PLANE,)),
    ):
        if value is not None and kind not in kinds:
            raise SpecError(f"{flag} goes with --figure {' or '.join(kinds)}, not {kind}")


def grid_figures(found: Results) -> Iterator[Drawn | QvecError]:
    """All that a grid makes, and why not, where it lacks what a figure needs."""
    for draw in (_heatmap, _curve, _plane):
        try:
            yield draw(found, FigureOptions())
        except QvecError as fault:
            yield fault


def sweep_figures(found: Results) -> Iterator[Drawn]:
    """A figure for each grid that sweeps were on."""
    from qvec_cli.report.curve_facts import fitting_in

    kinds = dict.fromkeys((sweep.grid, sweep.method) for sweep in found.of(Sweep))
    for kind in kinds:
        sweeps = [sweep for sweep in found.of(Sweep) if (sweep.grid, sweep.method) == kind]
        beside = fitting_in(sweeps, found.of(Evaluation))
        yield _curve(replace(found, matrices=(), documents=(*sweeps, *beside)), FigureOptions())


def agreed_figures(found: Results) -> Iterator[Drawn]:
    """A figure for each sweep without labels."""
    for sweep in found.of(Agreed):
        yield _curve(replace(found, matrices=(), documents=(sweep,)), FigureOptions())


def layer_figures(found: Results) -> Iterator[Drawn]:
    """One figure of all quantized models, on one scale."""
    if found.of(Layers):
        yield _layers(found, FigureOptions())


def _heatmap(found: Results, _: FigureOptions) -> Drawn:
    from qvec_cli.report.heatmap import heatmap
    from qvec_cli.report.heatmap_facts import heat_of

    matrix = _matrix(found)
    heat = heat_of(matrix)
    facts = {**matrix_facts(matrix), "panels": [panel.title for panel in heat.panels]}
    words = f"{heat.title}. {heat.subtitle}."
    return Drawn(FigureKind.HEATMAP, heatmap(heat), words, facts, grid_use(matrix))


def _curve(found: Results, wish: FigureOptions) -> Drawn:
    from qvec_cli.report.curve_facts import cells_of, spread_of
    from qvec_cli.report.curves import curves
    from qvec_cli.report.spread import spread

    if found.matrix is None:
        if wish.receiver or wish.donor:
            raise SpecError("--receiver and --donor choose in a grid; of sweeps, name the files")
        given, use = _swept(found)
    elif wish.receiver or wish.donor:
        given, use = (
            cells_of(found.matrix, wish.receiver, wish.donor),
            grid_use(found.matrix, wish.receiver),
        )
    else:
        many = spread_of(found.matrix)
        facts = matrix_facts(found.matrix)
        words = f"{many.title}. {many.subtitle}."
        return Drawn(FigureKind.CURVE, spread(many), words, facts, grid_use(found.matrix))
    facts = {"curves": sum(len(panel.traces) for panel in given.panels)}
    words = f"{given.title}. {given.subtitle}."
    return Drawn(FigureKind.CURVE, curves(given), words, facts, use)


def _swept(found: Results) -> tuple[Any, Use]:
    """The curves of sweeps, by labels or without, and what they have used."""
    from qvec_cli.report.curve_facts import agreed_of, curves_of

    agreed, beside = found.of(Agreed), found.of(Evaluation)
    if not agreed:
        sweeps = found.of(Sweep)
        return curves_of(sweeps, beside), spent(*(row.use for row in (*sweeps, *beside)))
    if beside:
        raise SpecError(
            f"{beside[0].file}: a sweep by agreement has no place for the accuracy of a file",
            hint="Leave it out; sweep with --data to see accuracies beside distances.",
        )
    return agreed_of(agreed), spent(*(row.use for row in agreed))


def _plane(found: Results, wish: FigureOptions) -> Drawn:
    from qvec_cli.report.plane import plane
    from qvec_cli.report.plane_facts import costs_of, plane_of

    matrix = _matrix(found)
    costs = costs_of(matrix, wish.cost, found.of(TrainingRecord), found.of(Extraction))
    given = plane_of(matrix, costs, wish.cost, wish.donor)
    facts = {**matrix_facts(matrix), "break_even": given.donor[1] / mean(given.costs)}
    words = f"{given.title}. {given.subtitle}. {given.words}"
    return Drawn(FigureKind.PLANE, plane(given), words, facts, grid_use(matrix))


def _layers(found: Results, _: FigureOptions) -> Drawn:
    from qvec_cli.report.layer_facts import strips_of
    from qvec_cli.report.layers import strips

    models = found.of(Layers)
    given = strips_of(models)
    use = spent(*(model.use for model in models))
    words = f"{given.title}. {given.subtitle}. {', '.join(s.title for s in given.strips)}."
    return Drawn(FigureKind.LAYERS, strips(given), words, {"models": len(models)}, use)


def _matrix(found: Results) -> Matrix:
    assert found.matrix is not None
    return found.matrix


def matrix_facts(matrix: Matrix) -> dict[str, Any]:
    """How much of a grid there is."""
    pairs = sum(cell.null is None for cell in matrix.cells.values())
    sizes = len(matrix.receivers), len(matrix.donors)
    return {
        "receivers": sizes[0],
        "donors": sizes[1],
        "cells": pairs,
        "missing": sizes[0] * sizes[1] - pairs,
    }


def grid_use(matrix: Matrix, receiver: str | None = None) -> Use:
    """What the numbers of a grid have used: the most of any, and the images of those shown."""
    shown = [receiver] if receiver else list(matrix.receivers)
    uses = [row.use for name in shown for row in matrix.baselines.get(name, {}).values()]
    cells = [cell for cell in matrix.cells.values() if cell.receiver in shown]
    uses += [choice.use for cell in cells for choice in cell.chosen.values()]
    level = max(uses, key=list(DataUse).index, default=DataUse.NONE)
    labelled = "val" in matrix.selectors
    images = sum(matrix.receivers[name].images.get("val", 0) for name in shown)
    return Use(level, {"val": images} if labelled else {})


@dataclass(frozen=True, slots=True)
class _Row:
    """How a figure is drawn, from what, and what else may stand beside that."""

    draw: Callable[[Results, FigureOptions], Drawn]
    sources: tuple[type[Any], ...]
    beside: tuple[type[Any], ...] = ()


_FIGURES: Final[Mapping[FigureKind, _Row]] = {
    FigureKind.HEATMAP: _Row(_heatmap, (Matrix,)),
    FigureKind.CURVE: _Row(_curve, (Matrix, Sweep, Agreed), (Evaluation,)),
    FigureKind.PLANE: _Row(_plane, (Matrix,), (TrainingRecord, Extraction)),
    FigureKind.LAYERS: _Row(_layers, (Layers,)),
}


_WORDS: Final[Mapping[type[Any], str]] = {
    Matrix: "a transfer grid",
    Sweep: "a sweep",
    Agreed: "a sweep by agreement",
    Layers: "quantize --metrics",
    Evaluation: "eval",
    Compared: "quantize --compare",
    TrainingRecord: "finetune and train-qat",
    Extraction: "extract",
}
