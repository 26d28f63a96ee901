"""The commands whose subject is a quantization vector: extract, combine, patch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvec_cli.cli import show
from qvec_cli.cli.options import (
    AsJson,
    BatchSize,
    Bits,
    Cross,
    DataDir,
    Device,
    Download,
    DryRun,
    Force,
    GranularityChoice,
    GroupSize,
    MeasureChoice,
    MetricsFile,
    Out,
    Parts,
    Proxy,
    ProxySamples,
    ScaleChoice,
    ScaleDtypeChoice,
    Symmetric,
    Workers,
    chosen_parts,
    proxies,
)
from qvec_cli.errors import SpecError
from qvec_cli.specs import Loading, Rule, Wanted


def extract(
    donor: Annotated[Path, typer.Argument(readable=False, help="Plain fine-tuned checkpoint.")],
    donor_qat: Annotated[
        Path, typer.Argument(readable=False, help="Its twin, trained with train-qat.")
    ],
    output: Out,
    force: Force = False,
    dry_run: DryRun = False,
    metrics: MetricsFile = None,
    as_json: AsJson = False,
) -> None:
    """Write the quantization vector rho = DONOR_QAT - DONOR."""
    from qvec_cli.ops.extract import extract as run

    show.deliver(
        lambda listener: run(donor, donor_qat, output, listener, force=force, dry_run=dry_run),
        as_json=as_json,
        inputs=(donor, donor_qat),
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
    from qvec_cli.ops.combine import Request
    from qvec_cli.ops.combine import combine as run
    from qvec_cli.ops.fitted import FitWish
    from qvec_cli.vector.lambdas import parse_mix
    from qvec_cli.vector.rules import Merge

    merge = Merge(rule, parse_mix(mix) if mix is not None else (), density, seed)
    wanted = Wanted(bits, granularity, group_size, scale, symmetric, scale_dtype, cross_grid)
    folder = str(data_dir) if data_dir else None
    loading = Loading(folder, dataset_download and not dry_run, None, workers, batch_size)
    wish = None
    typed: dict[str, object]
    if fit:
        typed = {"rule": rule is not Rule.MEAN, "mix": mix, "density": density, "seed": seed}
        _refuse(typed, "does not go with --fit, which finds the coefficients itself")
        if receiver is None:
            raise SpecError("--fit needs --receiver, the model that the vectors are for")
        wish = FitWish(receiver, wanted, proxies(proxy, proxy_samples, loading), measure, device)
    else:
        typed = {"receiver": receiver, "proxy": proxy, "proxy-samples": proxy_samples,
                 "measure": measure, "bits": bits, "granularity": granularity,
                 "group-size": group_size, "scale": scale, "symmetric": symmetric,
                 "scale-dtype": scale_dtype}  # fmt: skip
        _refuse(typed, "goes with --fit")
    request = Request(
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
            help="Scaling coefficient, or the JSON file of a sweep.",
        ),
    ] = "1",
    parts: Parts = None,
    cross_grid: Cross = False,
    force: Force = False,
    dry_run: DryRun = False,
    metrics: MetricsFile = None,
    as_json: AsJson = False,
) -> None:
    """Write RECEIVER + lambda * RHO; the receiver keeps its head."""
    from qvec_cli.ops.patch import Request
    from qvec_cli.ops.patch import patch as run

    request = Request(
        *(receiver, rho, output, lam, cross_grid, force, dry_run), parts=chosen_parts(parts)
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


def _refuse(typed: dict[str, object], why: str) -> None:
    """Refuses the first flag that was typed where it has no meaning."""
    for flag, value in typed.items():
        if value is not None and value is not False:
            raise SpecError(f"--{flag} {why}")
