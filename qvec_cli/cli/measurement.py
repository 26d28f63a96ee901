"""The commands that measure: eval, compare, sweep-lambda."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qvec_cli.cli import options, show
from qvec_cli.cli.many import Job, Suffix, each
from qvec_cli.cli.options import GridFlags, ImageFlags, NetworkFlags, OutputFlags, ProxyFlags
from qvec_cli.cli.signature import Adapted
from qvec_cli.cli.text import Facts, accuracy, size, some
from qvec_cli.errors import SpecError
from qvec_cli.specs import Listener, Method, Objective

if TYPE_CHECKING:
    from qvec_cli.outputs.metrics import Metrics

Writing = Annotated[OutputFlags, Adapted(without=("metrics",))]
"""The output itself is the file of metrics."""


def evaluate(
    checkpoint: Annotated[
        list[Path], typer.Argument(help="Float or packed checkpoints.", metavar="CHECKPOINT...")
    ],
    *,
    data: options.Data,
    split: Annotated[str, typer.Option(metavar="train|val|test", help="Of --data.")] = "test",
    images: options.WholeImages,
    network: NetworkFlags,
    min_top1: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Exit with 3 if top-1 is below, 0 to 1.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    output: Annotated[
        str | None,
        options.output_option(
            "JSON file for the metrics, or a folder with one for each of several.",
            metavar="FILE|FOLDER",
        ),
    ] = None,
    suffix: Suffix = None,
    writing: Writing,
) -> None:
    """Measure the accuracy of CHECKPOINT, float or packed.

    Examples:
        qvec eval receiver_w3.st --data images/digits
        qvec eval receiver_w3.st --data images/digits --split val -o receiver_w3.json
    """
    from qvec_cli.pipeline import evaluate as verb

    several = len(checkpoint) > 1

    def job(file: Path, out: str | None, flags: OutputFlags) -> Job:
        loading = images.loading(dry_run=flags.dry_run, class_map=network.class_map)
        document = Path(out) if out is not None else None
        request = verb.EvaluateRequest(
            file, data, loading, split, network.options(), images.device, document, flags.dry_run
        )
        words = partial(_evaluated_line, file) if several else evaluate_text
        work = partial(verb.evaluate, request)
        return Job(work, words, (file,), document=document, one_line=several)

    for results in each(checkpoint, output, writing, job, kind=".json", suffix=suffix):
        verb.check_top1(results, min_top1)


def _evaluated_line(file: Path, results: Facts) -> Iterator[str]:
    """The accuracies of one of several files on a line."""
    top5, loss = f"top-5 {results['top5']:.4f}", f"loss {results['loss']:.4f}"
    yield f"{file}\t{results['split']} top-1 {accuracy(results)}\t{top5}\t{loss}"


def compare(
    first: Annotated[Path, typer.Argument(help="Results: of eval, transfer and the like.")],
    second: Annotated[Path, typer.Argument(help="The same of another model or version.")],
    *,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="POINTS", help="Exit with 3 if an accuracy falls by more, or is missing."
        ),
    ] = None,
    showing: Annotated[OutputFlags, Adapted(without=("dry_run",))],
) -> None:
    """Say which accuracies of FIRST rose or fell in SECOND.

    Examples:
        qvec compare before.json after.json
        qvec compare before.json after.json --max-drop 0.5
    """
    from qvec_cli.pipeline import compare_results as verb

    work = partial(verb.compare_results, verb.CompareResultsRequest(first, second, max_drop))
    results = show.deliver(work, compare_text, showing, inputs=(first, second))
    verb.check_drop(results, max_drop)


def compare_text(results: Facts) -> Iterator[str]:
    """A row a measurement, the change in points with the error that chance makes."""
    yield "measurement\tn\tfirst\tsecond\tpoints\tstandard error"
    for row in results["compared"]:
        counts = f"{row['n']}\t{row['first']:.4f}\t{row['second']:.4f}"
        yield f"{row['name']}\t{counts}\t{row['points']:+.2f}\t{row['standard_error']:.2f}"
    for key, words in (("only_in_first", "first"), ("only_in_second", "second")):
        if results[key]:
            yield f"only in the {words}: {some(results[key])}"


def evaluate_text(results: Facts) -> Iterator[str]:
    """The accuracies, the loss, the speed, and what packed weights save on disk."""
    yield f"{results['split']} top-1: {accuracy(results)}"
    yield f"{results['split']} top-5: {results['top5']:.4f} ({results['n_correct_top5']})"
    yield f"loss: {results['loss']:.4f}"
    yield f"images/s: {results['images_per_second']:.0f}"
    cost = results["cost"]
    if cost["packed"]:
        share = cost["file_bytes"] / cost["float_bytes"]
        yield (
            f"disk: {size(cost['file_bytes'])}, {share:.3f} of the {size(cost['float_bytes'])} in "
            f"float; memory: {size(cost['memory_bytes'])}, weights are unpacked"
        )


def sweep_lambda(
    receiver: options.Receiver,
    rhos: Annotated[
        list[Path],
        typer.Argument(
            metavar="RHO...", help="Vectors; more than one are ranked, with --objective agreement."
        ),
    ],
    *,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC", help="Labelled images of the receiver, named as qvec eval does."
        ),
    ] = None,
    lambdas: options.Lambdas = options.LAMBDAS,
    objective: Annotated[
        Objective,
        typer.Option(
            help="What chooses: labels of --data, or --proxy without any.", rich_help_panel="Lambda"
        ),
    ] = Objective.ACCURACY,
    proxy: ProxyFlags,
    grid: GridFlags,
    method: options.MethodChoice = Method.RTN,
    images: ImageFlags,
    network: NetworkFlags,
    output: options.OutputFile,
    resume: options.Resume = False,
    writing: Writing,
) -> None:
    """Choose lambda for RECEIVER, by its labels or without its data.

    --objective accuracy takes the lambda that is right most often on --data, and reports it on
    test. --objective agreement takes the one at which the quantized model follows the receiver's
    own float answers most closely on --proxy images; --data then only judges the choice.

    Examples:
        qvec sweep-lambda receiver.st rho.st --data images/digits -o sweep.json
        qvec sweep-lambda r.st rho.st --objective agreement --proxy noise -o r.json
    """
    from qvec_cli.checkpoint.replace import unfinished
    from qvec_cli.inputs.lambdas import parse_lambdas

    grid_options, named = grid.options(), network.options()
    loading = images.loading(dry_run=writing.dry_run, class_map=network.class_map)
    points = parse_lambdas(lambdas)
    work: Callable[[Listener], Metrics]
    if objective is Objective.AGREEMENT:
        from qvec_cli.selection import by_agreement

        if resume:
            raise SpecError("--resume goes with --objective accuracy: this one takes seconds")
        proxies, measure = proxy.options(loading), proxy.measure
        agreement = by_agreement.AgreementOptions(
            points, proxies, grid_options, method, measure, images.device, network=named
        )
        judged = by_agreement.AgreementRequest(
            receiver, tuple(rhos), output, agreement, data, **writing.for_request
        )
        work = partial(by_agreement.agree, judged)
    else:
        from qvec_cli.selection import by_labels

        options.refuse("goes with --objective agreement", proxy)
        labelled = by_labels.SweepRequest(
            receiver=receiver,
            vector=_only(rhos, data),
            data=data or "",
            out=output,
            lambdas=points,
            grid=grid_options,
            loading=loading,
            method=method,
            device=images.device,
            network=named,
            resume=resume,
            force=writing.force,
            dry_run=writing.dry_run,
        )
        work = partial(by_labels.sweep, labelled)
        writing = replace(writing, force=writing.force or resume)
    inputs = (receiver, *rhos)
    show.deliver(
        work,
        sweep_text,
        writing,
        document=output,
        inputs=inputs,
        state=None if objective is Objective.AGREEMENT else unfinished(output),
    )


def _only(rhos: list[Path], data: str | None) -> Path:
    """The one vector of a choice by labels; SpecError without labels or with more vectors."""
    if data is None:
        raise SpecError(
            "--data is missing", hint="Without labels: --objective agreement --proxy SPEC."
        )
    if len(rhos) > 1:
        raise SpecError(
            f"{len(rhos)} vectors are given, --objective accuracy takes one",
            hint="--objective agreement ranks them; qvec transfer measures them all.",
        )
    return rhos[0]


def sweep_text(results: Facts) -> Iterator[str]:
    """The curve over lambda, the choice, and what it is worth on test."""
    if "objective" in results:
        yield from _agreement_text(results)
        return
    yield "lambda\tvalidation top-1"
    chosen = results["chosen"]["lambda"]
    for point in results["curve"]:
        mark = "\t<- chosen" if point["lambda"] == chosen else ""
        yield f"{point['lambda']:g}\t{accuracy(point['val'])}{mark}"
    rows = {
        "float, not quantized": results["baselines"]["fp"],
        "lambda 0 (plain quantization)": results["baselines"]["ptq"],
        **({"lambda 1 (zero-shot)": row} if (row := results.get("zero_shot")) else {}),
        f"lambda {chosen:g} (chosen)": results["chosen"],
    }
    yield "chosen: the best on validation; of equal ones, the smallest"
    yield "on test\ttop-1\treceiver data used"
    for name, row in rows.items():
        yield f"{name}\t{accuracy(row['test'])}\t{row['data_use']}"


def _agreement_text(results: Facts) -> Iterator[str]:
    """A choice without labels: the curve of the best donor, and how the donors rank."""
    chosen, proxies = results["chosen"], results["proxies"]
    yield f"distance to the float answers on {proxies['n']} proxy images, {results['measure']}"
    judged = "baselines" in results
    yield "lambda\tdistance" + ("\tvalidation top-1" if judged else "")
    for point in results["curve"]:
        mark = "\t<- chosen" if point["lambda"] == chosen["lambda"] else ""
        val = f"\t{accuracy(point.get('val'))}" if judged else ""
        distance = f"{point['distance']:.4f} +- {point['standard_error']:.4f}"
        yield f"{point['lambda']:g}\t{distance}{val}{mark}"
    yield (
        "chosen: the least distance, if it is below that of lambda 0 by two standard errors and a "
        "hundredth"
    )
    yield "donor\tdamage removed\tlambda\texplained" + ("\ttest top-1" if judged else "")
    for donor in results["donors"]:
        choice = donor["chosen"]
        test = f"\t{accuracy(choice.get('test'))}" if judged else ""
        explained, removed = (f"{donor['score'][key]:.1%}" for key in ("explained", "removed"))
        yield f"{donor['rho']}\t{removed}\t{choice['lambda']:g}\t{explained}{test}"
    if judged:
        for name, row in (("float", "fp"), ("lambda 0", "ptq")):
            yield f"{name} on test: {accuracy(results['baselines'][row]['test'])}"
    if chosen["lambda"] == 0:
        yield "lambda 0: no vector is surely better than plain quantization here"
