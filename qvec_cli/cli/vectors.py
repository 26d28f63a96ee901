"""The commands whose subject is a quantization vector: extract, combine, moments, patch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from qvec_cli.cli import options, show
from qvec_cli.cli.options import (
    GridFlags,
    HeadFlags,
    ImageFlags,
    NetworkFlags,
    OutputFlags,
    ProxyFlags,
    TargetFlags,
    WeightsFlags,
)
from qvec_cli.cli.signature import Adapted, flag
from qvec_cli.cli.text import Facts, moments_text, size, some
from qvec_cli.errors import SpecError
from qvec_cli.specs import Grid, Rule
from qvec_cli.tame import counted

Nameless = Annotated[NetworkFlags, Adapted(without=("class_map",))]
"""The network of a command that asks for no names of classes."""


def extract(
    donor: Annotated[Path, typer.Argument(help="Plain fine-tuned checkpoint.")],
    donor_qat: Annotated[Path, typer.Argument(help="Its twin, from train-qat.")],
    *,
    moments: Annotated[
        Path | None, typer.Option(help="What qvec moments wrote, for the vector to carry.")
    ] = None,
    cross_data: Annotated[
        bool, typer.Option(help="Take twins of different data all the same.")
    ] = False,
    bits: Annotated[
        int | None,
        typer.Option(help="Width of its matrices in the file, 2 to 8.", show_default="float32"),
    ] = None,
    group_size: Annotated[
        int | None, typer.Option(help="With --bits: numbers per scale.", show_default="64")
    ] = None,
    head: HeadFlags,
    weights: WeightsFlags,
    output: options.OutputFile,
    writing: OutputFlags,
) -> None:
    """Write the quantization vector rho = DONOR_QAT - DONOR.

    Examples:
        qvec extract donor.st donor_qat.st -o rho.st
        qvec extract donor.st donor_qat.st --moments moments.st -o rho.st
    """
    from qvec_cli.pipeline import extract as verb

    request = verb.ExtractRequest(
        donor,
        donor_qat,
        output,
        moments,
        head.options(),
        weights.choice,
        cross_data,
        bits,
        group_size,
        **writing.for_request,
    )
    work = partial(verb.extract, request)
    inputs = (donor, donor_qat, *((moments,) if moments else ()))
    show.deliver(work, extract_text, writing, inputs=inputs, out=output, data_use=False)


def extract_text(results: Facts) -> Iterator[str]:
    """How long the vector is, what it leaves out, and what moments it carries."""
    relative = results["relative_norm"]
    share = f", {relative:.3g} of the donor's" if relative is not None else ""
    yield (
        f"{results['output']}: rho of {counted(results['tensors'], 'tensor')}, "
        f"norm {results['norm']:.4g}{share}"
    )
    if stored := results["storage"]:
        yield (
            f"stored in {size(results['bytes'])}, {stored['matrices']} of them on "
            f"{Grid.from_json(stored['grid'])}, the others in bfloat16: "
            f"{stored['relative_error']:.2g} of rho's norm is lost"
        )
    yield f"left out: {some(results['left_out'])}"
    yield f"the head: {some(results['head'])}"
    if carried := results["moments"]:
        share = carried["bytes"] / results["bytes"]
        cost = f"{size(carried['bytes'])}, {share:.2f} of rho's"
        yield f"carries {moments_text(carried)}: {cost}"


@dataclass(frozen=True, slots=True)
class MergeFlags:
    """By which rule vectors become one."""

    heading: ClassVar[str] = "Rule"
    rule: Rule = flag(Rule.MEAN, "ties and dare drop numbers of each vector first (see --density).")
    mix: str | None = flag(None, "One number for each vector, for --rule weighted.", metavar="LIST")
    density: float | None = flag(
        None,
        "Share of a vector that is kept: ties, the largest of each tensor; dare, drawn.",
        show_default="0.2 for ties, 0.1 for dare",
    )
    seed: int | None = flag(None, "Of what dare drops.", min=0, show_default="0")


Fit = Annotated[
    bool,
    typer.Option(
        help="Fit a coefficient for each to --receiver, on --proxy, without labels.",
        rich_help_panel="Fit",
    ),
]

FitReceiver = Annotated[
    Path | None, typer.Option(help="Model that --fit is for.", rich_help_panel="Fit")
]


def combine(
    rhos: Annotated[
        list[Path], typer.Argument(metavar="RHO...", help="Vectors written by extract or combine.")
    ],
    *,
    parts: options.Parts = None,
    merge: MergeFlags,
    fit: Fit = False,
    receiver: FitReceiver = None,
    proxy: ProxyFlags,
    grid: GridFlags,
    images: ImageFlags,
    network: Nameless,
    output: options.OutputFile,
    writing: OutputFlags,
) -> None:
    """Write one vector made of several, by a rule or by a fit.

    One vector alone is itself, under every rule; a --mix scales it. With --parts the other parts
    are zeros. A vector of --fit is for one receiver, at lambda 1.

    Examples:
        qvec combine rho_a.st rho_b.st --rule ties -o merged.st
        qvec combine a.st b.st --fit --receiver receiver.st --proxy noise -o mix.st
    """
    from qvec_cli.inputs.lambdas import parse_mix
    from qvec_cli.pipeline import combine as verb
    from qvec_cli.selection import by_agreement
    from qvec_cli.vector.arithmetic import Merge

    mix = parse_mix(merge.mix) if merge.mix is not None else ()
    rule = Merge(merge.rule, mix, merge.density, merge.seed)
    loading = images.loading(dry_run=writing.dry_run)
    fitting = None
    if fit:
        options.refuse("does not go with --fit, which finds the coefficients itself", merge)
        if receiver is None:
            raise SpecError("--fit needs --receiver, the model that the vectors are for")
        proxies, measure = proxy.options(loading), proxy.measure
        agreement = by_agreement.AgreementOptions(
            by_agreement.RAY,
            proxies,
            grid.options(),
            measure=measure,
            device=images.device,
            network=network.options(),
        )
        fitting = by_agreement.FitOptions(receiver, agreement)
    else:
        typed = replace(grid, cross_grid=False)  # which has a meaning without --fit, too
        options.refuse("goes with --fit", proxy, typed, network, receiver=receiver)
    vectors, only, cross = tuple(rhos), options.chosen_parts(parts), grid.cross_grid
    request = verb.CombineRequest(
        vectors, output, rule, only, cross, fit=fitting, **writing.for_request
    )
    work = partial(verb.combine, request)
    inputs = tuple(filter(None, (*vectors, receiver)))
    show.deliver(work, combine_text, writing, inputs=inputs, out=output, data_use=False)


def combine_text(results: Facts) -> Iterator[str]:
    """By which rule, of how many vectors, and the lengths before and after."""
    norms = results["norms"]
    of = ", ".join(f"{norm:.4g}" for norm in norms)
    yield (
        f"{results['output']}: {_rule_text(results)} of "
        f"{counted(len(norms), 'vector')}, {counted(results['tensors'], 'tensor')}, "
        f"norm {results['norm']:.4g} of {of}"
    )
    if "parts" in results:
        yield f"zeros outside {', '.join(results['parts'])}: {some(results['zeros'])}"
    if results["moments"]:
        yield f"carries {moments_text(results['moments'])}"


def _rule_text(results: Facts) -> str:
    """A merge rule with its settings."""
    mix = ", ".join(f"{number:g}" for number in results.get("mix", ()))
    settings = [mix, *(f"{k} {results[k]:g}" for k in ("density", "seed") if k in results)]
    text = ", ".join(filter(None, settings))
    return f"{results['rule']} ({text})" if text else str(results["rule"])


@dataclass(frozen=True, slots=True)
class SampleFlags:
    """Which images the moments are of, and how much of the moments is kept."""

    heading: ClassVar[str] = "Moments"
    samples: int = flag(64, "Images of the split, drawn with seed 0; 16 are enough.", min=1)
    split: str = flag("train", "Of --data.", metavar="train|val|test")
    rank: int | None = flag(
        None,
        "Keep so many eigenpairs of each moment, and its diagonal.",
        min=1,
        show_default="all of it",
    )
    half: bool = flag(False, "Store them in float16, in half the room.")


def moments(
    checkpoint: Annotated[Path, typer.Argument(help="Float checkpoint: a donor, or the base.")],
    *,
    data: options.Data,
    targets: TargetFlags,
    sample: SampleFlags,
    images: Annotated[ImageFlags, Adapted(without=("diversify",))],
    network: Nameless,
    output: options.OutputFile,
    writing: OutputFlags,
) -> None:
    """Write the moments of each layer's inputs, to calibrate with.

    Examples:
        qvec moments base.st --data images/greek -o moments.st
        qvec moments donor.st --data images/greek --samples 16 --rank 32 -o moments.st
    """
    from qvec_cli.calibration import collect as verb

    request = verb.MomentsRequest(
        source=checkpoint,
        data=data,
        out=output,
        samples=sample.samples,
        rank=sample.rank,
        half=sample.half,
        split=sample.split,
        loading=images.loading(dry_run=writing.dry_run),
        patterns=targets.patterns,
        device=images.device,
        network=network.options(),
        force=writing.force,
        dry_run=writing.dry_run,
    )
    work, inputs = partial(verb.collect, request), (checkpoint,)
    show.deliver(work, collected_text, writing, inputs=inputs, out=output, data_use=False)


def collected_text(results: Facts) -> Iterator[str]:
    """Of how many layers there are moments, and how large they are."""
    share = results["bytes"] / results["model_bytes"]
    yield (
        f"{results['output']}: {moments_text(results)} for {counted(results['layers'], 'layer')}, "
        f"{len(results['tokens'])} of them with inputs of their own"
    )
    yield f"{size(results['bytes'])}, {share:.2f} of the model's {size(results['model_bytes'])}"


def patch(
    receiver: options.Receiver,
    rho: Annotated[Path, typer.Argument(help="Vector written by extract or combine.")],
    *,
    parts: options.Parts = None,
    lam: Annotated[
        str,
        typer.Option(
            "--lambda",
            "-l",
            metavar="NUMBER|FILE|auto",
            help="Scaling coefficient, the JSON file of a sweep, or auto: by agreement on --proxy.",
            rich_help_panel="Lambda",
        ),
    ] = "1",
    proxy: ProxyFlags,
    grid: GridFlags,
    images: ImageFlags,
    head: HeadFlags,
    network: Nameless,
    output: options.OutputFile,
    writing: OutputFlags,
) -> None:
    """Write RECEIVER + lambda * RHO; the receiver keeps its head.

    --lambda auto takes the lambda at which the quantized model follows the receiver's own float
    answers most closely on --proxy images, on the vector's grid or the one of --bits.

    Examples:
        qvec patch receiver.st rho.st --lambda 0.75 -o patched.st
        qvec patch receiver.st rho.st --lambda auto --proxy pictures/ -o patched.st
    """
    from qvec_cli.inputs.lambdas import AUTO
    from qvec_cli.pipeline import patch as verb

    automatic = None
    if lam == AUTO:
        from qvec_cli.inputs.lambdas import parse_lambdas
        from qvec_cli.selection.by_agreement import AgreementOptions

        automatic = AgreementOptions(
            lambdas=parse_lambdas(options.LAMBDAS),
            grid=grid.options(),
            proxy=proxy.options(images.loading(dry_run=writing.dry_run)),
            measure=proxy.measure,
            device=images.device,
            parts=options.chosen_parts(parts),
            network=network.options(),
        )
    else:
        typed = replace(grid, cross_grid=False)  # which has a meaning at any lambda
        shape = replace(network, use_ema=None, weights_key=None)  # likewise
        options.refuse("goes with --lambda auto", proxy, typed, shape)
    only, cross = options.chosen_parts(parts), grid.cross_grid
    request = verb.PatchRequest(
        receiver,
        rho,
        output,
        lam,
        cross,
        parts=only,
        auto=automatic,
        head=head.options(),
        weights=network.weights,
        **writing.for_request,
    )
    work = partial(verb.patch, request)
    show.deliver(work, patch_text, writing, inputs=(receiver, rho, Path(lam)), out=output)


def patch_text(results: Facts) -> Iterator[str]:
    """At which lambda how many tensors were patched, and which were not."""
    only = f", of {', '.join(results['parts'])} only" if "parts" in results else ""
    yield (
        f"{results['output']}: {counted(results['tensors'], 'tensor')} patched at lambda "
        f"{results['lambda']:g}{only}"
    )
    yield f"kept from the receiver: {some(results['kept'])}"
    yield f"the head: {some(results['head'])}"
