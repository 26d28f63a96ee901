"""The commands that look at many files, or at one from outside: inspect, transfer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvec_cli.cli import recipe, show
from qvec_cli.cli.options import (
    LAMBDAS,
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
    Lambdas,
    MethodChoice,
    MetricsFile,
    Out,
    Proxy,
    ProxySamples,
    Resume,
    ScaleChoice,
    ScaleDtypeChoice,
    Symmetric,
    Workers,
    listed,
    loading_of,
    model_args,
    proxies,
)
from qvec_cli.errors import SpecError
from qvec_cli.inputs.lambdas import parse_lambdas
from qvec_cli.specs import GridOptions, Method, Null


def inspect(
    file: Annotated[Path, typer.Argument(readable=False, help="Any checkpoint, or - for stdin.")],
    other: Annotated[
        Path | None, typer.Argument(readable=False, help="A second one, to compare.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the tensors with the digest of the card.")
    ] = False,
    lineage: Annotated[bool, typer.Option("--lineage", help="Print the family tree.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what FILE is: kind, architecture, grid, lineage, tensors and norms."""
    from qvec_cli.pipeline import inspect
    from qvec_cli.pipeline.inspect import compare

    if verify + lineage + (other is not None) > 1:
        raise SpecError("--verify, --lineage and a second file are three questions: ask one")
    work = inspect.verify if verify else inspect.lineage if lineage else inspect.describe
    show.deliver(
        lambda heard: compare(file, other, heard) if other else work(file, heard),
        as_json=as_json,
        inputs=(file, other) if other else (file,),
    )


def transfer(
    grid: Annotated[
        Path,
        typer.Argument(
            readable=False,
            callback=recipe.apply_grid,
            is_eager=True,
            help="YAML file: receivers, donors, and defaults for these flags.",
        ),
    ],
    output: Out,
    bits: Bits = None,
    granularity: GranularityChoice = None,
    group_size: GroupSize = None,
    scale: ScaleChoice = None,
    symmetric: Symmetric = None,
    scale_dtype: ScaleDtypeChoice = None,
    cross_grid: Cross = False,
    method: MethodChoice = Method.RTN,
    lambdas: Lambdas = LAMBDAS,
    fixed: Annotated[
        str,
        typer.Option(
            metavar="LIST", help="Lambdas that are reported unchosen; they take part in the curve."
        ),
    ] = "1",
    oracle: Annotated[
        bool,
        typer.Option(
            "--oracle/--no-oracle", help="Measure every lambda on test too, for the regret."
        ),
    ] = True,
    nulls: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Vectors of the same length that carry nothing: random, shuffle, taskvec.",
        ),
    ] = "",
    null_donors: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Donors whose lengths they have.",
            show_default="every donor",
        ),
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of the null vectors.")] = 0,
    proxy: Proxy = None,
    proxy_samples: ProxySamples = None,
    shard: Annotated[
        str,
        typer.Option(metavar="I/N", help="Only part I of N: receivers are dealt out in turn."),
    ] = "1/1",
    join: Annotated[
        list[Path] | None,
        typer.Option(readable=False, help="A finished part of this grid; repeat it."),
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option(help="Where to run a job for each receiver: slurm or local (qvec[slurm])."),
    ] = None,
    executor_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Of submitit, as slurm_partition=gpu; repeat it."),
    ] = None,
    data_dir: DataDir = None,
    dataset_download: Download = False,
    batch_size: BatchSize = 128,
    workers: Workers = 0,
    device: Device = "auto",
    metrics: MetricsFile = None,
    resume: Resume = False,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Measure every donor's vector on every receiver of GRID, a line of JSON each."""
    from qvec_cli.transfer.cells import CellOptions
    from qvec_cli.transfer.slurm import Executor
    from qvec_cli.transfer.transfer import TransferRequest, clear
    from qvec_cli.transfer.transfer import transfer as run

    if executor is None and executor_arg:
        raise SpecError("--executor-arg goes with --executor")
    loading = loading_of(data_dir, dataset_download, dry_run, workers, batch_size)
    images = proxies(proxy, proxy_samples, loading) if proxy or proxy_samples else None
    wishes = CellOptions(
        GridOptions(bits, granularity, group_size, scale, symmetric, scale_dtype, cross_grid),
        _points(parse_lambdas(lambdas), parse_lambdas(fixed), without_labels=images is not None),
        parse_lambdas(fixed),
        loading,
        method,
        oracle,
        tuple(listed(nulls, Null, "--nulls")),
        tuple(filter(None, (name.strip() for name in null_donors.split(",")))),
        seed,
        device,
        images,
    )
    request = TransferRequest(
        grid,
        output,
        wishes,
        _shard(shard),
        tuple(join or ()),
        Executor(executor, model_args(executor_arg)) if executor else None,
        resume,
        force,
        dry_run,
    )
    show.deliver(
        lambda listener: run(request, listener),
        as_json=as_json,
        document=metrics,
        out=output,
        inputs=(grid, *request.joined),
        force=force or resume,
        dry_run=dry_run,
        written=lambda: clear(output),
    )


def _points(
    lambdas: tuple[float, ...], fixed: tuple[float, ...], *, without_labels: bool
) -> tuple[float, ...]:
    """The curve, ascending: with 0, the fixed lambdas, and those that a label-free choice wants."""
    from qvec_cli.selection.choose import NEGATIVE

    if not without_labels:
        return tuple(sorted({0.0, *lambdas, *fixed}))
    if not any(lam > 0 for lam in (*lambdas, *fixed)):
        raise SpecError("--lambdas has none above 0, which --proxy needs")
    return tuple(sorted({0.0, *NEGATIVE, *lambdas, *fixed}))


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal()):
        raise SpecError(f"--shard {text!r} is not I/N, as 1/4")
    return int(part), int(parts)
