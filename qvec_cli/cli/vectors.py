"""The commands whose subject is a quantization vector: extract, moments, combine, patch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvec_cli.cli import show
from qvec_cli.cli.options import (
    LAMBDAS,
    AsJson,
    BatchSize,
    Bits,
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
    MeasureChoice,
    MetricsFile,
    ModelArg,
    ModelName,
    Out,
    Parts,
    Proxy,
    ProxySamples,
    ScaleChoice,
    ScaleDtypeChoice,
    Symmetric,
    Workers,
    chosen_parts,
    loading_of,
    proxies,
    refuse_typed,
    wish,
)
from qvec_cli.errors import SpecError
from qvec_cli.specs import GridOptions, Rule


def extract(
    donor: Annotated[Path, typer.Argument(readable=False, help="Plain fine-tuned checkpoint.")],
    donor_qat: Annotated[
        Path, typer.Argument(readable=False, help="Its twin, trained with train-qat.")
    ],
    output: Out,
    moments: Annotated[
        Path | None,
        typer.Option(readable=False, help="What qvec moments wrote, for the vector to carry."),
    ] = None,
    force: Force = False,
    dry_run: DryRun = False,
    metrics: MetricsFile = None,
    as_json: AsJson = False,
) -> None:
    """Write the quantization vector rho = DONOR_QAT - DONOR."""
    from qvec_cli.pipeline.extract import extract as run

    show.deliver(
        lambda listener: run(
            donor, donor_qat, output, listener, moments=moments, force=force, dry_run=dry_run
        ),
        as_json=as_json,
        inputs=(donor, donor_qat, *((moments,) if moments else ())),
        document=metrics,
        out=output,
        force=force,
        dry_run=dry_run,
    )


def moments(
    checkpoint: Annotated[
        Path, typer.Argument(readable=False, help="Float checkpoint: a donor, or the base.")
    ],
    data: Data,
    output: Out,
    samples: Annotated[
        int, typer.Option(min=1, help="Images of the split, drawn with seed 0; 16 are enough.")
    ] = 64,
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Keep so many eigenpairs of each moment, and its diagonal.",
            show_default="all of it",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Of --data.")] = "train",
    targets: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Weights to look at, in place of the file's own."),
    ] = None,
    data_dir: DataDir = None,
    dataset_download: Download = False,
    workers: Workers = 0,
    batch_size: BatchSize = 128,
    device: Device = "auto",
    model: ModelName = None,
    img_size: ImgSize = None,
    in_chans: InChans = None,
    crop_pct: CropPct = None,
    model_arg: ModelArg = None,
    force: Force = False,
    dry_run: DryRun = False,
    metrics: MetricsFile = None,
    as_json: AsJson = False,
) -> None:
    """Write what each layer of CHECKPOINT sees of images, for others to be quantized on."""
    from qvec_cli.calibration.collect import MomentsRequest, collect

    loading = loading_of(data_dir, dataset_download, dry_run, workers, batch_size)
    request = MomentsRequest(
        checkpoint,
        data,
        output,
        samples,
        rank,
        split,
        loading,
        tuple(targets or ()),
        device,
        wish(model, img_size, in_chans, crop_pct, model_arg),
        force,
        dry_run,
    )
    show.deliver(
        lambda listener: collect(request, listener),
        as_json=as_json,
        inputs=(checkpoint,),
        document=metrics,
        out=output,
        force=force,
        dry_run=dry_run,
    )


def combine(
    rhos: Annotated[
        list[Path],
        typer.Argument(
            metavar="RHO...", readable=False, help="Vectors written by extract or combine."
        ),
    ],
    output: Out,
    rule: Annotated[
        Rule,
        typer.Option(
            "--rule", help="ties and dare drop numbers of each vector first (see --density)."
        ),
    ] = Rule.MEAN,
    mix: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="One number for each vector, for --rule weighted."),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(
            help="Share of a vector that is kept: ties, the largest of each tensor; dare, drawn.",
            show_default="0.2 for ties, 0.1 for dare",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of what dare drops.", show_default="0")
    ] = None,
    fit: Annotated[
        bool,
        typer.Option(
            "--fit", help="Fit a coefficient for each to --receiver, on --proxy, without labels."
        ),
    ] = False,
    receiver: Annotated[
        Path | None, typer.Option(readable=False, help="Model that --fit is for.")
    ] = None,
    proxy: Proxy = None,
    proxy_samples: ProxySamples = None,
    measure: MeasureChoice = None,
    bits: Bits = None,
    granularity: GranularityChoice = None,
    group_size: GroupSize = None,
    scale: ScaleChoice = None,
    symmetric: Symmetric = None,
    scale_dtype: ScaleDtypeChoice = None,
    data_dir: DataDir = None,
    dataset_download: Download = False,
    batch_size: BatchSize = 128,
    workers: Workers = 0,
    device: Device = "auto",
    parts: Parts = None,
    cross_grid: Cross = False,
    force: Force = False,
    dry_run: DryRun = False,
    metrics: MetricsFile = None,
    as_json: AsJson = False,
) -> None:
    """Write one vector made of several; one alone is itself, under every rule.

    With --parts the other parts are zeros. A --mix scales one vector too. A vector of --fit is for
    one receiver, at lambda 1.
    """
    from qvec_cli.inputs.lambdas import parse_mix
    from qvec_cli.pipeline.combine import CombineRequest
    from qvec_cli.pipeline.combine import combine as run
    from qvec_cli.vector.merge import Merge

    merge = Merge(rule, parse_mix(mix) if mix is not None else (), density, seed)
    wanted = GridOptions(bits, granularity, group_size, scale, symmetric, scale_dtype, cross_grid)
    loading = loading_of(data_dir, dataset_download, dry_run, workers, batch_size)
    wish = None
    if fit:
        refuse_typed("does not go with --fit, which finds the coefficients itself",
                     rule=rule is not Rule.MEAN, mix=mix, density=density, seed=seed)  # fmt: skip
        from qvec_cli.selection.by_agreement import AgreementOptions
        from qvec_cli.selection.fit_mix import RAY, FitOptions

        if receiver is None:
            raise SpecError("--fit needs --receiver, the model that the vectors are for")
        images = proxies(proxy, proxy_samples, loading)
        agreement = AgreementOptions(RAY, images, wanted, measure=measure, device=device)
        wish = FitOptions(receiver, agreement)
    else:
        refuse_typed("goes with --fit", receiver=receiver, proxy=proxy,
                     proxy_samples=proxy_samples, measure=measure, bits=bits,
                     granularity=granularity, group_size=group_size, scale=scale,
                     symmetric=symmetric, scale_dtype=scale_dtype)  # fmt: skip
    request = CombineRequest(
        *(tuple(rhos), output, merge, chosen_parts(parts), cross_grid, force, dry_run), fit=wish
    )
    show.deliver(
        lambda listener: run(request, listener),
        as_json=as_json,
        inputs=tuple(rhos),
        document=metrics,
        out=output,
        force=force,
        dry_run=dry_run,
    )


def patch(
    receiver: Annotated[
        Path, typer.Argument(readable=False, help="Model to make robust to quantization.")
    ],
    rho: Annotated[
        Path, typer.Argument(readable=False, help="Vector written by extract or combine.")
    ],
    output: Out,
    lam: Annotated[
        str,
        typer.Option(
            "--lambda",
            "-l",
            metavar="NUMBER",
            help="Scaling coefficient, the JSON file of a sweep, or auto: by agreement on --proxy.",
        ),
    ] = "1",
    proxy: Proxy = None,
    proxy_samples: ProxySamples = None,
    measure: MeasureChoice = None,
    bits: Bits = None,
    granularity: GranularityChoice = None,
    group_size: GroupSize = None,
    scale: ScaleChoice = None,
    symmetric: Symmetric = None,
    scale_dtype: ScaleDtypeChoice = None,
    data_dir: DataDir = None,
    dataset_download: Download = False,
    batch_size: BatchSize = 128,
    workers: Workers = 0,
    device: Device = "auto",
    parts: Parts = None,
    cross_grid: Cross = False,
    force: Force = False,
    dry_run: DryRun = False,
    metrics: MetricsFile = None,
    as_json: AsJson = False,
) -> None:
    """Write RECEIVER + lambda * RHO; the receiver keeps its head.

    --lambda auto takes the lambda at which the quantized model follows the receiver's own float
    answers most closely on --proxy images, on the vector's grid or the one of --bits.
    """
    from qvec_cli.inputs.lambdas import AUTO
    from qvec_cli.pipeline.patch import PatchRequest
    from qvec_cli.pipeline.patch import patch as run

    wanted = GridOptions(bits, granularity, group_size, scale, symmetric, scale_dtype, cross_grid)
    loading = loading_of(data_dir, dataset_download, dry_run, workers, batch_size)
    chosen, auto = chosen_parts(parts), None
    if lam == AUTO:
        from qvec_cli.inputs.lambdas import parse_lambdas
        from qvec_cli.selection import by_agreement

        images = proxies(proxy, proxy_samples, loading)
        auto = by_agreement.AgreementOptions(
            parse_lambdas(LAMBDAS), images, wanted, measure=measure, device=device, parts=chosen
        )
    else:
        refuse_typed("goes with --lambda auto", proxy=proxy, proxy_samples=proxy_samples,
                     measure=measure, bits=bits, granularity=granularity,
                     group_size=group_size, scale=scale, symmetric=symmetric,
                     scale_dtype=scale_dtype)  # fmt: skip
    request = PatchRequest(
        *(receiver, rho, output, lam, cross_grid, force, dry_run), parts=chosen, auto=auto
    )
    show.deliver(
        lambda listener: run(request, listener),
        as_json=as_json,
        inputs=(receiver, rho),
        document=metrics,
        out=output,
        force=force,
        dry_run=dry_run,
    )
