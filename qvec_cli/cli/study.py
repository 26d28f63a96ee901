"""The commands that try many ways on a receiver: advise, transfer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from qvec_cli.cli import options, show
from qvec_cli.cli.many import is_folder
from qvec_cli.cli.options import GridFlags, ImageFlags, NetworkFlags, OutputFlags, ProxyFlags
from qvec_cli.cli.signature import Adapted, flag
from qvec_cli.cli.text import Facts, gains_table
from qvec_cli.cli.width_flags import WidthFlags
from qvec_cli.errors import SpecError
from qvec_cli.specs import Method, Null
from qvec_cli.tame import counted


@dataclass(frozen=True, slots=True)
class WayFlags:
    """What the ways to quantize a receiver may use."""

    rho: list[Path] | None = flag(None, "A donor's vector; repeat it.", metavar="RHO")
    moments: Path | None = flag(None, "Moments from qvec moments.", show_default="the vectors' own")
    data: str | None = flag(
        None, "Labelled images of the receiver, which judge and do not choose.", metavar="SPEC"
    )
    refine: int = flag(
        60, "Of the refinement that is tried last; 0: none is.", min=0, metavar="STEPS"
    )


def advise(
    receiver: Annotated[Path, typer.Argument(help="Model to be quantized.")],
    *,
    ways: WayFlags,
    widths: WidthFlags,
    proxy: Annotated[ProxyFlags, Adapted(without=("measure",), defaults={"proxy": ("generated",)})],
    images: ImageFlags,
    network: NetworkFlags,
    output: Annotated[
        str | None,
        options.output_option(
            "For the model that is recommended; FOLDER/ is one that transformers loads.",
            metavar="FILE|FOLDER/",
        ),
    ] = None,
    resume: options.Resume = False,
    writing: OutputFlags,
) -> None:
    """Say how to bring RECEIVER to so many bits without its data.

    Every way is carried out: grids without data, the vectors, GPTQ on moments, on --proxy images
    and on generated pictures. Other images of both then tell which follows the float answers best.

    Examples:
        qvec advise receiver.st --bits 3 --proxy pictures/ -o receiver_w3.st
        qvec advise receiver.st --bits 3 --rho rho.st --proxy pictures/
    """
    from qvec_cli.advise import advise as verb
    from qvec_cli.advise.candidates import AdviseRequest
    from qvec_cli.checkpoint.replace import unfinished

    vectors = tuple(map(Path, options.listed(ways.rho)))
    if widths.whole is None:
        raise SpecError("--bits is missing", hint="Or --target-size SIZE, as 6MB.")
    out = Path(output) if output is not None else None
    request = AdviseRequest(
        receiver=receiver,
        bits=widths.whole,
        vectors=vectors,
        moments=ways.moments,
        proxy=proxy.options(images.loading(dry_run=writing.dry_run, class_map=network.class_map)),
        data=ways.data,
        steps=ways.refine,
        out=out,
        folder=output is not None and is_folder(output),
        document=writing.metrics,
        device=images.device,
        network=network.options(),
        resume=resume,
        force=writing.force,
        dry_run=writing.dry_run,
        widths=widths.options(),
    )
    inputs = (receiver, *vectors, *([ways.moments] if ways.moments else []))
    state = unfinished(request.outputs[0]) if request.outputs else None
    work, writing = partial(verb.advise, request), replace(writing, force=writing.force or resume)
    show.deliver(work, advise_text, writing, inputs=inputs, out=out, state=state)


def advise_text(results: Facts) -> Iterator[str]:
    """Every candidate, the decision, and the commands that carry it out."""
    judged = "fp" in results
    count, measure = results["proxies"]["n"], results["measure"]
    yield f"distance to the float answers on {count} proxy images that no candidate saw, {measure}"
    yield "candidate\tbits/weight\tdistance\tkept\treceiver data used" + (
        "\ttest top-1" if judged else ""
    )
    for row in sorted(results["candidates"], key=lambda row: row["distance"]):
        mark = "\t<-" if row["name"] == results["chosen"] else ""
        test = f"\t{row['test']['top1']:.4f}" if "test" in row else ""
        yield (
            f"{row['name']}\t{row['bits_per_weight']:.2f}\t{row['distance']:.3g} +- "
            f"{row['standard_error']:.2g}\t{row['kept']:.1%}\t{row['data_use']['level']}{test}{mark}"
        )
    if judged:
        yield f"float on test: {results['fp']['top1']:.4f}"
    for row in results["skipped"]:
        yield f"left out: {row['name']}: {row['reason']}"
    yield f"decision: {results['decision']} ({results['sure']}): {results['chosen']}"
    low, high = results["expected"]
    yield f"because {results['why']}"
    yield (
        f"on a receiver's own images, models of the studies that kept so much kept {low:.0%} to "
        f"{high:.0%}"
    )
    for command in results["commands"]:
        yield f"  {command}"
    if "output" in results:
        yield f"{results['output']}: written"


@dataclass(frozen=True, slots=True)
class CellFlags:
    """What is measured of every pair of a donor and a receiver."""

    heading: ClassVar[str] = "Lambda"
    lambdas: options.Lambdas = options.LAMBDAS
    fixed: str = flag(
        "1", "Lambdas that are reported unchosen; they take part in the curve.", metavar="LIST"
    )
    oracle: bool = flag(
        True,
        "Whether to measure every lambda on test too, for the regret.",
        "--oracle/--no-oracle",
        show_default="--oracle",
    )


@dataclass(frozen=True, slots=True)
class NullFlags:
    """Vectors without meaning, to compare with."""

    heading: ClassVar[str] = "Null vectors"
    nulls: str = flag(
        "",
        "Vectors of the same length that carry nothing: random, shuffle, taskvec.",
        metavar="LIST",
    )
    null_donors: str = flag(
        "", "Donors whose lengths they have.", metavar="LIST", show_default="every donor"
    )
    seed: int = flag(0, "Of the null vectors.", min=0)


@dataclass(frozen=True, slots=True)
class JobFlags:
    """How the work on a grid is dealt out."""

    heading: ClassVar[str] = "Jobs"
    shard: str = flag("1/1", "Only part I of N: receivers are dealt out in turn.", metavar="I/N")
    join: list[Path] | None = flag(None, "A finished part of this grid; repeat it.")
    executor: str | None = flag(
        None, "Where to run a job for each receiver (qvec[slurm]).", metavar="slurm|local"
    )
    executor_arg: list[str] | None = flag(
        None, "Of submitit, as slurm_partition=gpu; repeat it.", metavar="KEY=VALUE"
    )

    def part(self) -> tuple[int, int]:
        """Which part of how many; SpecError if it is not I/N."""
        part, _, parts = self.shard.partition("/")
        if not (part.isdecimal() and parts.isdecimal()):
            raise SpecError(f"--shard {self.shard!r} is not I/N, as 1/4")
        return int(part), int(parts)


def transfer(
    grid: Annotated[
        Path,
        typer.Argument(
            callback=options.apply_grid,
            is_eager=True,
            help="YAML file: receivers, donors, and defaults for these flags.",
        ),
    ],
    *,
    cells: CellFlags,
    weights: GridFlags,
    method: options.MethodChoice = Method.RTN,
    nulls: NullFlags,
    proxy: Annotated[ProxyFlags, Adapted(without=("measure",))],
    images: options.WholeImages,
    network: NetworkFlags,
    jobs: JobFlags,
    output: options.OutputFile,
    table: Annotated[
        Path | None,
        typer.Option(
            help="CSV file for the same, a row a measurement.", rich_help_panel=options.OUTPUT
        ),
    ] = None,
    resume: options.Resume = False,
    writing: OutputFlags,
) -> None:
    """Measure every donor's vector on every receiver of GRID.

    The output has a line of JSON for each pair.

    Examples:
        qvec transfer grid.yaml -o grid.jsonl
        qvec transfer grid.yaml --shard 1/2 --resume -o grid-1.jsonl
    """
    from qvec_cli.checkpoint.replace import check_distinct, unfinished
    from qvec_cli.inputs.lambdas import parse_lambdas
    from qvec_cli.transfer import transfer as verb
    from qvec_cli.transfer.grid_file import CellOptions
    from qvec_cli.transfer.slurm import Executor

    check_distinct((output, table, writing.metrics))
    executor = None  # jobs run here
    if jobs.executor is None:
        options.refuse("goes with --executor", executor_arg=jobs.executor_arg)
    else:
        arguments = options.key_values(jobs.executor_arg, "--executor-arg")
        executor = Executor(jobs.executor, arguments)
    loading = images.loading(dry_run=writing.dry_run, class_map=network.class_map)
    proxies = proxy.options(loading) if proxy.proxy or proxy.proxy_samples else None
    settings = CellOptions(
        grid=weights.options(),
        lambdas=parse_lambdas(cells.lambdas),
        fixed=parse_lambdas(cells.fixed),
        loading=loading,
        method=method,
        oracle=cells.oracle,
        nulls=tuple(options.word_list(nulls.nulls, Null, "--nulls")),
        null_donors=tuple(filter(None, (name.strip() for name in nulls.null_donors.split(",")))),
        seed=nulls.seed,
        device=images.device,
        proxy=proxies,
        network=network.options(),
    )
    part, joined = jobs.part(), tuple(map(Path, options.listed(jobs.join)))
    request = verb.TransferRequest(
        grid,
        output,
        settings,
        part,
        joined,
        executor,
        resume,
        table=table,
        **writing.for_request,
    )
    work, clear = partial(verb.transfer, request), partial(verb.clear, output)
    state, inputs = unfinished(output), (grid, *joined)
    writing = replace(writing, force=writing.force or resume)
    show.deliver(
        work, transfer_text, writing, out=output, inputs=inputs, state=state, written=clear
    )


def transfer_text(results: Facts) -> Iterator[str]:
    """How many lines there are, and the table of gains."""
    receivers = counted(results["summary"]["receivers"], "receiver")
    yield f"{results['output']}: {counted(results['lines'], 'line')}, {receivers}"
    yield from gains_table(results["summary"])
