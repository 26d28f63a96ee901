"""The commands that look at what was made: inspect, plot, report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Final

import typer

from qvec_cli.cli import options, show
from qvec_cli.cli.options import OutputFlags, WeightsFlags
from qvec_cli.cli.signature import Adapted, flag
from qvec_cli.cli.text import Facts, gains_table, moments_text, size, some
from qvec_cli.errors import QvecError, SpecError
from qvec_cli.specs import Cost, FigureKind, Grid
from qvec_cli.tame import counted

_LONGEST: Final = 1000
"""Characters of a line that a card may fill."""


def pictures(
    *,
    samples: Annotated[int, typer.Option(help="How many of them, the first ones.", min=1)] = 64,
    img_size: Annotated[
        int, typer.Option(help="Side of the square pictures.", min=8, max=4096, metavar="PIXELS")
    ] = 224,
    output: Annotated[Path, options.output_option("Folder to write.", metavar="FOLDER")],
    writing: OutputFlags,
) -> None:
    """Write the generated pictures as files, to look at.

    They are what --calib generated and --proxy generated use: drawn from numbers, without data.

    Examples:
        qvec pictures -o drawn
        qvec pictures --samples 16 --img-size 64 -o drawn
    """
    from qvec_cli.pipeline import pictures as verb

    request = verb.PicturesRequest(output, samples, img_size, **writing.for_request)
    work = partial(verb.pictures, request)
    show.deliver(work, pictures_text, writing, out=output)


def pictures_text(results: Facts) -> Iterator[str]:
    """How many pictures there are, and how large they are."""
    yield f"{results['output']}: {counted(results['images'], 'picture')}, {size(results['bytes'])}"


def inspect(
    file: Annotated[
        list[Path],
        typer.Argument(
            help="Any checkpoint, or - for stdin; two, to compare; more, for a table.",
            metavar="FILE...",
        ),
    ],
    *,
    tensors: Annotated[
        bool, typer.Option(help="List the tensors too.", rich_help_panel="Question")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            help="Compare the tensors with the digest of the card.", rich_help_panel="Question"
        ),
    ] = False,
    lineage: Annotated[
        bool, typer.Option(help="Print the family tree.", rich_help_panel="Question")
    ] = False,
    weights: WeightsFlags,
    showing: Annotated[OutputFlags, Adapted(without=("force", "dry_run", "metrics"))],
) -> None:
    """Say what FILE is: kind, network, grid, lineage, tensors.

    Examples:
        qvec inspect rho.st
        qvec inspect donor.st donor_qat.st
    """
    from qvec_cli.pipeline import inspect as verb

    first, *others = file
    if verify + lineage + bool(others) > 1:
        raise SpecError("--verify, --lineage and a second file are three questions: ask one")
    choice, words = weights.choice, partial(inspect_text, tensors=tensors)
    work = partial(verb.survey, file, choice)
    if len(file) == 2:
        work = partial(verb.compare, first, others[0], choice)
    elif not others:
        question = verb.verify if verify else verb.lineage if lineage else verb.describe
        work = partial(question, first, choice)
    show.deliver(work, words, showing, inputs=tuple(file), data_use=False)


def inspect_text(results: Facts, *, tensors: bool = True) -> Iterator[str]:
    """One of inspect's five answers, by what the results hold."""
    if "files" in results:
        yield from _survey_text(results["files"])
    elif "verified" in results:
        yield f"the tensors are those of the card: {results['verified']}"
    elif "same" in results:
        yield from _comparison_text(results)
    elif "tensors" in results:
        yield from _description_text(results)
        yield from _tensors_text(results) if tensors else _bad_text(results)
    else:
        role = _cut(f", {results['role']}") if results["role"] else ""
        yield f"{results['kind']}{role} {(results['digest'] or 'of unknown digest')[:17]}"
        yield _cut(f"base: {results['base'] or 'unknown'}")
        yield from map(_cut, _lineage_text(results["provenance"], ""))


def _comparison_text(results: Facts) -> Iterator[str]:
    rows = results["tensors"]
    for key, words in (("only_in_first", "first"), ("only_in_second", "second")):
        if results[key]:
            yield f"only in the {words}: {some(results[key])}"
    if results["same"]:
        yield f"the same {counted(len(rows), 'tensor')} in both"
        return
    relative = results["relative_norm"]
    share = f", {relative:.3g} of the first" if relative is not None else ""
    norm = "not finite" if results["norm"] is None else f"{results['norm']:.4g}"
    other = sum(row["shape"][0] != row["shape"][1] for row in rows)
    count = counted(len(rows), "tensor")
    rest = f" {other} of them of other shapes; of the rest the" if other else ""
    yield f"{count} in both,{rest} norm of the difference {norm}{share}"
    yield "tensor\tdtype\tshape\tunequal\tnorm of the difference"
    for row in rows:
        if row.get("unequal") != 0:
            dtype, shape = (
                str(a) if a == b else f"{a} vs {b}" for a, b in (row["dtype"], row["shape"])
            )
            norm = f"{row['norm']:.6g}" if row.get("norm") is not None else "-"
            yield f"{row['name']}\t{dtype}\t{shape}\t{row.get('unequal', '-')}\t{norm}"


_CARDLESS: Final = "no qvec card: lineage is not known (qvec import writes one)"


def _description_text(results: Facts) -> Iterator[str]:
    card = results["card"]
    role = _cut(f", {card['role']}") if card and card["role"] else ""
    count = results["parameters"]
    parameters = "packed parameters" if count is None else counted(count, "parameter")
    held = f"{counted(len(results['tensors']), 'tensor')}, {parameters}, {size(results['bytes'])}"
    yield f"{results['kind']}{role}: {held}"
    if results["moments"]:
        carried = f"carries {moments_text(results['moments'])}"
        yield _cut(f"{carried}, in {counted(len(results['attached']), 'tensor')}")
    if model := results["model"]:
        own = model.get("library")  # whose arguments are a page of defaults
        named = f"{model['architecture']} " + (
            f"of {own}" if own else str(model["model_args"] or "")
        )
        yield _cut(f"architecture: {named}, {counted(model['num_classes'], 'class')}")
    yield from map(_cut, _card_text(card)) if card else [_CARDLESS]
    if results["layout"]:
        yield f"layout: {_layout_text(results['layout'])}"
    edited = "" if results["digest_holds"] else " (not that of its card: edited since)"
    yield f"digest: {results['digest']}{edited}"


def _tensors_text(results: Facts) -> Iterator[str]:
    yield "tensor\tdtype\tshape\tnorm"
    for tensor in (*results["tensors"], *results["attached"]):
        bad = f"\t{tensor['not_finite']} not finite" if tensor.get("not_finite") else ""
        norm = f"{tensor['norm']:.6g}" if "norm" in tensor else "-"
        yield f"{tensor['name']}\t{tensor['dtype']}\t{tensor['shape']}\t{norm}{bad}"


def _bad_text(results: Facts) -> Iterator[str]:
    """The tensors with numbers that are not finite, where they are not all listed."""
    for tensor in (*results["tensors"], *results["attached"]):
        if tensor.get("not_finite"):
            yield f"{tensor['name']}: {tensor['not_finite']} not finite"


def _survey_text(rows: list[Facts]) -> Iterator[str]:
    """A line a file."""
    yield "file\tkind\tarchitecture\tclasses\tgrid\tdata\tsize"
    for row in rows:
        kind = ", ".join(filter(None, (row["kind"], row["role"])))
        grid = _grid_text(row["grid"]) if row["grid"] else "-"
        known = (row["architecture"] or "-", row["classes"] or "-", grid, row["data"] or "-")
        yield "\t".join(map(str, (row["file"], kind, *known, size(row["bytes"]))))


def _layout_text(facts: Facts) -> str:
    """A low-bit layout, and what its tensors tell of it."""
    from qvec_cli.inputs.foreign import bits_in_words

    group = f"group {facts['group_size']}" if facts["group_size"] else ""
    weights = counted(facts["weights"], "weight")
    return ", ".join(
        filter(None, (facts["name"], bits_in_words(facts["possible_bits"]), group, weights))
    )


def _cut(text: str) -> str:
    """A text of a card, which may be of any length, cut to what a screen takes."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _card_text(card: Facts) -> Iterator[str]:
    if data := card["data"]:
        yield f"data: {data.get('name', '?')}, {data.get('images', '?')}"
    if card["grid"]:
        yield f"grid: {_grid_text(card['grid'])}"
    if card["storage"]:
        yield f"stored on: {_grid_text(card['storage'])}, other tensors in bfloat16"
    if card["targets"] is not None:
        yield f"targets: {counted(len(card['targets']), 'weight')}"
    if recipe := card["recipe"]:
        yield "recipe: " + ", ".join(f"{key} {value}" for key, value in recipe.items())
    if rotation := card["rotation"]:
        kept = "".join(f"; {reason}" for reason in rotation.get("kept", ()))
        yield f"rotated with seed {rotation.get('seed')}{kept}"
    yield f"base: {card['base'] or 'unknown'}"
    if "tokenizer" in card["provenance"]:
        yield f"tokenizer: {card['provenance']['tokenizer']}"
    yield from _lineage_text(card["provenance"], "")


def _lineage_text(lineage: Facts, indent: str) -> Iterator[str]:
    """An operation, its parents below it, theirs below them."""
    facts = f" at lambda {lineage['lambda']}" if "lambda" in lineage else ""
    facts += f" by {lineage['rule']}" if "rule" in lineage else ""
    if isinstance(lineage.get("parts"), list):
        facts += f" of {', '.join(map(str, lineage['parts']))}"
    facts += f" by {lineage['ranks']} processes" if "ranks" in lineage else ""
    yield f"{indent}made by: qvec {lineage.get('qvec', '?')} {lineage.get('op', '?')}{facts}"
    parents = lineage.get("parents")
    for parent in parents if isinstance(parents, list) else []:
        if isinstance(parent, dict):
            name, kind = parent.get("name", "?"), parent.get("kind", "?")
            digest = str(parent.get("digest", "?"))[:12]
            yield f"{indent}from: {parent.get('as', '?')} {name} ({kind}, {digest})"
            if isinstance(parent.get("provenance"), dict) and parent["provenance"]:
                yield from _lineage_text(parent["provenance"], indent + "  ")


def _grid_text(value: Facts) -> str:
    try:
        return str(Grid.from_json(value))
    except QvecError:
        return str(value)


Results = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...",
        help="JSON that commands wrote with -o or --metrics; - for stdin.",
    ),
]

Writing = Annotated[OutputFlags, Adapted(without=("dry_run",))]


@dataclass(frozen=True, slots=True)
class FigureFlags:
    """Which figure, of what."""

    heading: ClassVar[str] = "Figure"
    figure: FigureKind | None = flag(
        None, "What to draw, where the files leave a choice.", show_default="what they make"
    )
    receiver: str | None = flag(None, "One receiver of a grid, for curve.")
    donor: str | None = flag(None, "One donor of a grid, for curve and plane.")
    cost: Cost = flag(Cost.IMAGES, "What plane counts: images trained on, or seconds.")


def plot(
    files: Results, *, drawing: FigureFlags, output: options.OutputFile, writing: Writing
) -> None:
    """Draw the figure that FILES make: .png, .svg or .pdf.

    Examples:
        qvec plot sweep.json -o sweep.svg
        qvec plot quantized.json --figure layers -o layers.png
    """
    from qvec_cli.report import figures as verb
    from qvec_cli.report.canvas import FigureOptions

    figure = FigureOptions(drawing.figure, drawing.receiver, drawing.donor, drawing.cost)
    inputs = tuple(files)
    work = partial(verb.plot, verb.PlotRequest(inputs, output, figure, writing.force))
    show.deliver(work, plot_text, writing, out=output, inputs=inputs)


def plot_text(results: Facts) -> Iterator[str]:
    """Which figure it is, and its caption."""
    yield f"{results['output']}: {results['figure']}, {size(results['bytes'])}"
    yield results["words"]


def report(
    files: Results,
    *,
    title: Annotated[
        str, typer.Option(metavar="TITLE", help="Of the page.", rich_help_panel="Page")
    ] = "Quantization vectors",
    output: options.OutputFile,
    table: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            help="CSV file for all accuracies, a row a measurement.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    writing: Writing,
) -> None:
    """Write one HTML page of FILES: figures, tables, numbers.

    Examples:
        qvec report sweep.json -o report.html
        qvec report sweep.json quantized.json --title Digits -o report.html
    """
    from qvec_cli.checkpoint.replace import check_distinct
    from qvec_cli.report import page as verb

    check_distinct((output, table, writing.metrics))
    inputs = tuple(files)
    work = partial(verb.report, verb.ReportRequest(inputs, output, title, writing.force, table))
    show.deliver(work, report_text, writing, out=output, inputs=inputs)


def report_text(results: Facts) -> Iterator[str]:
    """What the page has, and the table of gains of each grid."""
    counts = [(results[key], key) for key in ("figures", "tables")]
    shown = ", ".join(counted(count, key[:-1]) for count, key in counts)
    yield f"{results['output']}: {shown}, {size(results['bytes'])}"
    yield f"sections: {', '.join(results['sections'])}"
    for grid in results["grids"]:
        runs = f", {grid['runs']} runs" if grid["runs"] > 1 else ""
        receivers = counted(grid["summary"]["receivers"], "receiver")
        yield f"{grid['grid']}, {receivers}{runs}"
        yield from gains_table(grid["summary"])
