"""The commands that measure: eval, sweep-lambda."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qvec_cli.cli import show
from qvec_cli.cli.options import (
    LAMBDAS,
    AsJson,
    BatchSize,
    Bits,
    ClassMap,
    CropPct,
    Cross,
    Data,
    DataDir,
    Device,
    Download,
    DryRun,
    Force,
    GranularityChoice,
    GroupSize,
    ImgSize,
    InChans,
    Lambdas,
    MeasureChoice,
    MethodChoice,
    ModelArg,
    ModelName,
    Out,
    Proxy,
    ProxySamples,
    Resume,
    ScaleChoice,
    ScaleDtypeChoice,
    Symmetric,
    Workers,
    loading_of,
    proxies,
    refuse_typed,
    wish,
)
from qvec_cli.errors import SpecError
from qvec_cli.inputs.lambdas import parse_lambdas
from qvec_cli.specs import GridOptions, Listener, Loading, Method, Objective

if TYPE_CHECKING:
    from qvec_cli.outputs.metrics import Metrics


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(readable=False, help="Float or packed checkpoint.")],
    data: Data,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="JSON file for the metrics.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    model: ModelName = None,
    img_size: ImgSize = None,
    in_chans: InChans = None,
    crop_pct: CropPct = None,
    model_arg: ModelArg = None,
    class_map: ClassMap = None,
    data_dir: DataDir = None,
    dataset_download: Download = False,
    batch_size: BatchSize = 128,
    workers: Workers = 0,
    device: Device = "auto",
    force: Force = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Measure the accuracy of CHECKPOINT; it knows its own architecture."""
    from qvec_cli.pipeline.evaluate import EvaluateRequest
    from qvec_cli.pipeline.evaluate import evaluate as run

    named = wish(model, img_size, in_chans, crop_pct, model_arg)
    loading = Loading(
        data_dir=_text(data_dir),
        download=dataset_download and not dry_run,
        class_map=_text(class_map),
        workers=workers,
        batch_size=batch_size,
    )
    request = EvaluateRequest(checkpoint, data, loading, split, named, device, output, dry_run)
    show.deliver(
        lambda listener: run(request, listener),
        as_json=as_json,
        document=output,
        inputs=(checkpoint,),
        force=force,
        dry_run=dry_run,
    )


def sweep_lambda(
    receiver: Annotated[
        Path, typer.Argument(readable=False, help="Model to make robust to quantization.")
    ],
    rhos: Annotated[
        list[Path],
        typer.Argument(
            metavar="RHO...",
            readable=False,
            help="Vectors; more than one are ranked, with --objective agreement.",
        ),
    ],
    output: Out,
    data: Annotated[
        str | None,
        typer.Option(
            help="Labelled images of the receiver, named as qvec eval does.", show_default=False
        ),
    ] = None,
    objective: Annotated[
        Objective, typer.Option(help="What chooses: labels of --data, or --proxy without any.")
    ] = Objective.ACCURACY,
    proxy: Proxy = None,
    proxy_samples: ProxySamples = None,
    measure: MeasureChoice = None,
    bits: Bits = None,
    granularity: GranularityChoice = None,
    group_size: GroupSize = None,
    scale: ScaleChoice = None,
    symmetric: Symmetric = None,
    scale_dtype: ScaleDtypeChoice = None,
    cross_grid: Cross = False,
    method: MethodChoice = Method.RTN,
    lambdas: Lambdas = LAMBDAS,
    data_dir: DataDir = None,
    dataset_download: Download = False,
    batch_size: BatchSize = 128,
    workers: Workers = 0,
    device: Device = "auto",
    resume: Resume = False,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Choose lambda for RECEIVER: on its validation images, or without any of its data.

    --objective accuracy takes the lambda that is right most often on --data, and reports it on
    test. --objective agreement takes the one at which the quantized model follows the receiver's
    own float answers most closely on --proxy images; --data, if given, only judges the choice.
    """
    from qvec_cli.checkpoint.replace import unfinished

    wanted = GridOptions(bits, granularity, group_size, scale, symmetric, scale_dtype, cross_grid)
    loading = loading_of(data_dir, dataset_download, dry_run, workers, batch_size)
    points = parse_lambdas(lambdas)
    work: Callable[[Listener], Metrics]
    if objective is Objective.AGREEMENT:
        from qvec_cli.selection import by_agreement

        if resume:
            raise SpecError("--resume goes with --objective accuracy: this one takes seconds")
        images = proxies(proxy, proxy_samples, loading)
        options = by_agreement.AgreementOptions(points, images, wanted, method, measure, device)
        judged = by_agreement.AgreementRequest(
            receiver, tuple(rhos), output, options, data, force, dry_run
        )
        work = partial(by_agreement.agree, judged)
    else:
        from qvec_cli.selection.by_labels import SweepRequest, sweep

        _by_labels(rhos, data, proxy=proxy, proxy_samples=proxy_samples, measure=measure)
        labelled = SweepRequest(
            receiver, rhos[0], data or "", output, points, wanted, loading, method,
            device, resume, force, dry_run,
        )  # fmt: skip
        work = partial(sweep, labelled)
    show.deliver(
        work,
        as_json=as_json,
        document=output,
        inputs=(receiver, *rhos),
        force=force,
        dry_run=dry_run,
        written=lambda: unfinished(output).unlink(missing_ok=True),
    )


def _by_labels(rhos: list[Path], data: str | None, **typed: object) -> None:
    """Refuses what only a choice without labels takes, and a choice by labels without any."""
    refuse_typed("goes with --objective agreement", **typed)
    if data is None:
        raise SpecError(
            "--data is missing", hint="Without labels: --objective agreement --proxy SPEC."
        )
    if len(rhos) > 1:
        raise SpecError(
            f"{len(rhos)} vectors are given, --objective accuracy takes one",
            hint="--objective agreement ranks them; qvec transfer measures them all.",
        )


def _text(path: Path | None) -> str | None:
    return str(path) if path is not None else None
