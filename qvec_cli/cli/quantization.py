"""Commands that make what is shipped: quantize, export."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qvec_cli.cli import show
from qvec_cli.cli.options import (
    Anchor,
    AnchorLambda,
    AsJson,
    BatchSize,
    BiasCorrection,
    Bits,
    Calib,
    CalibSamples,
    CropPct,
    Cross,
    DataDir,
    Device,
    Download,
    DryRun,
    Force,
    GranularityChoice,
    GroupSize,
    ImgSize,
    InChans,
    MethodChoice,
    MetricsFile,
    ModelArg,
    ModelName,
    MomentsFile,
    Out,
    Proxy,
    ProxySamples,
    Refine,
    ScaleChoice,
    ScaleDtypeChoice,
    Symmetric,
    TargetChoice,
    Workers,
    loading_of,
    proxies,
    refuse_typed,
    wish,
)
from qvec_cli.errors import SpecError
from qvec_cli.specs import Calibration, ExportFormat, GridOptions, Listener, Loading, Method, Target

if TYPE_CHECKING:
    from qvec_cli.calibration.from_moments import MomentsOptions
    from qvec_cli.calibration.refine import RefinementOptions
    from qvec_cli.inputs.patched import Anchor as Anchored
    from qvec_cli.outputs.metrics import Metrics


def quantize(
    checkpoint: Annotated[Path, typer.Argument(readable=False, help="Float checkpoint.")],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="PATH",
            help="File to write; or FOLDER/, which transformers loads. None with --compare.",
            show_default=False,
        ),
    ] = None,
    bits: Bits = None,
    granularity: GranularityChoice = None,
    group_size: GroupSize = None,
    scale: ScaleChoice = None,
    symmetric: Symmetric = None,
    scale_dtype: ScaleDtypeChoice = None,
    cross_grid: Cross = False,
    method: MethodChoice = Method.RTN,
    fake: Annotated[
        bool, typer.Option("--fake", help="Write float32 weights on the grid, not packed codes.")
    ] = False,
    targets: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Weights to quantize, in place of the file's own."),
    ] = None,
    calib: Calib = None,
    calib_samples: CalibSamples = None,
    moments: MomentsFile = None,
    bias_correction: BiasCorrection = False,
    target: TargetChoice = Target.QUANTIZED,
    anchor: Anchor = None,
    lam: AnchorLambda = None,
    refine: Refine = None,
    proxy: Proxy = None,
    proxy_samples: ProxySamples = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Write nothing; try the grids without data, row by row."),
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="Images for --compare to measure each row on.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of --data.", show_default="val")] = None,
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
    """Write CHECKPOINT with its linear weights in 2 to 8 bits; the head stays as it is."""
    wanted = GridOptions(bits, granularity, group_size, scale, symmetric, scale_dtype, cross_grid)
    loading = loading_of(data_dir, dataset_download, dry_run, workers, batch_size)
    patterns = tuple(targets or ())
    named = wish(model, img_size, in_chans, crop_pct, model_arg)
    if split is not None and data is None:
        raise SpecError("--split goes with --data")
    out: Path | None = None
    work: Callable[[Listener], Metrics]
    if compare:
        from qvec_cli.pipeline import compare_grids

        refuse_typed(
            "does not go with --compare, which writes no checkpoint",
            "--metrics FILE keeps the table as JSON.",
            output=output, method=method is not Method.RTN, fake=fake, calib=calib,
            calib_samples=calib_samples, moments=moments, bias_correction=bias_correction,
            target=target is Target.FLOAT, anchor=anchor, lam=lam, refine=refine is not None,
            proxy=proxy, proxy_samples=proxy_samples, dry_run=dry_run,
        )  # fmt: skip
        images_of = data, split or "val", loading, device
        compared = compare_grids.CompareGridsRequest(
            checkpoint, wanted, patterns, *images_of, named
        )
        work = partial(compare_grids.compare_grids, compared)
    else:
        from qvec_cli.pipeline import quantize as verb

        carried = _moments(moments, bias_correction, calib=calib, calib_samples=calib_samples)
        correction = bias_correction and carried is None
        told = (tuple(calib or ()), calib_samples or 512, loading, device, correction, target)
        images = _calibration(Calibration(*told), calib_samples)
        if output is None:
            raise SpecError("-o FILE is missing", hint="--compare goes without.")
        if data is not None:
            raise SpecError("--data goes with --compare", hint="--calib names calibration images.")
        out = Path(output)
        request = verb.QuantizeRequest(
            checkpoint,
            out,
            wanted,
            method,
            fake,
            patterns,
            images,
            _anchor(anchor, lam, cross_grid, dry_run),
            _refinement(refine, proxy, proxy_samples, loading, device),
            force,
            dry_run,
            folder=_is_folder(output),
            network=named,
            moments=carried,
        )
        work = partial(verb.quantize, request)
    show.deliver(
        work,
        as_json=as_json,
        inputs=(checkpoint, *([moments] if moments else []), *([anchor] if anchor else [])),
        document=metrics,
        out=out,
        force=force,
        dry_run=dry_run,
    )


def export(
    checkpoint: Annotated[
        Path, typer.Argument(readable=False, help="Packed or float checkpoint of qvec.")
    ],
    output: Out,
    to: Annotated[
        ExportFormat | None,
        typer.Option("--to", help="Format.", show_default="what the name of the output tells"),
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Run what was made, and compare its logits with qvec's.")
    ] = True,
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
    """Write CHECKPOINT for other programs: an ONNX file, or a folder for timm.

    In ONNX, packed weights stay codes, which onnxruntime multiplies with (MatMulNBits). The input
    is normalised pixels: (x / 255 - mean) / std, with mean and std from the file's metadata.
    """
    from qvec_cli.export.export import ExportRequest
    from qvec_cli.export.export import export as run

    named = wish(model, img_size, in_chans, crop_pct, model_arg)
    request = ExportRequest(checkpoint, output, to, check, force, dry_run, named)
    show.deliver(
        lambda listener: run(request, listener),
        as_json=as_json,
        inputs=(checkpoint,),
        document=metrics,
        out=output,
        force=force,
        dry_run=dry_run,
    )


def _calibration(told: Calibration, samples: int | None) -> Calibration | None:
    if told.specs:
        return told
    needing = {
        "--bias-correction": told.bias_correction,
        "--calib-samples": samples,
        "--target float": told.target is Target.FLOAT,
    }
    for flag, typed in needing.items():
        if typed:
            hint = "Or --moments FILE." if flag == "--bias-correction" else None
            raise SpecError(f"{flag} needs images: --calib is missing", hint=hint)
    return None


def _moments(path: Path | None, bias_correction: bool, **images: object) -> MomentsOptions | None:
    """Moments from a file, with which images do not go."""
    from qvec_cli.calibration.from_moments import MomentsOptions

    if path is None:
        return None
    refuse_typed("does not go with --moments", "Moments stand in place of images.", **images)
    return MomentsOptions(path, bias_correction)


def _anchor(rho: Path | None, lam: str | None, cross: bool, dry_run: bool) -> Anchored | None:
    from qvec_cli.inputs.patched import Anchor as Wanted

    if rho is None and lam is not None:
        raise SpecError("--lambda goes with --anchor RHO", hint="qvec patch adds a vector too.")
    return Wanted(rho, lam or "1", cross, dry_run) if rho else None


def _refinement(
    steps: int | None,
    specs: list[str] | None,
    samples: int | None,
    loading: Loading,
    device: str,
) -> RefinementOptions | None:
    from qvec_cli.calibration.refine import RefinementOptions

    for flag, typed in (("--proxy", specs), ("--proxy-samples", samples)):
        if typed and steps is None:
            raise SpecError(f"{flag} goes with --refine STEPS")
    if not specs and samples is not None:
        raise SpecError("--proxy-samples needs images: --proxy is missing")
    if steps is None:
        return None
    return RefinementOptions(steps, device, proxies(specs, samples, loading) if specs else None)


def _is_folder(typed: str) -> bool:
    """Whether an output is one: by its last letter, which a path forgets, or on the disk."""
    if typed in ("", "-"):  # a variable that is not set, and stdout
        return False
    try:
        return typed.endswith(os.sep) or Path(typed).is_dir()
    except OSError:  # closed to us, or no name that can be: writing to it will tell
        return False
