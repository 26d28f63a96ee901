"""The commands that train: finetune, train-qat."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from qvec_cli.cli import options, show
from qvec_cli.specs import Grid, GridOptions, Loading, Recipe

Model = Annotated[
    str, typer.Argument(help="timm's name of a network, or a checkpoint file to start from.")
]

Pretrained = Annotated[bool, typer.Option("--pretrained", help="Fetch timm's weights by name.")]

Initial = Annotated[
    Path | None,
    typer.Option("--initial-checkpoint", help="Weights for a named network, from a bare file."),
]

Epochs = Annotated[
    int | None,
    typer.Option(min=1, help="Passes over the data.", show_default="the paper's for a task, or 10"),
]

Lr = Annotated[float, typer.Option(help="Peak learning rate of AdamW.")]

WeightDecay = Annotated[float, typer.Option(help="On every parameter.")]

Warmup = Annotated[int, typer.Option(help="Linear, in steps; then cosine to zero.")]

Clip = Annotated[float, typer.Option(help="Largest norm of the gradient; 0: none.")]

Smoothing = Annotated[float, typer.Option(help="Label smoothing.")]

Seed = Annotated[int, typer.Option(help="Of head, data order and augmentation.")]

NoAug = Annotated[bool, typer.Option("--no-aug", help="Train on images as evaluation sees them.")]

Amp = Annotated[bool, typer.Option("--amp", help="bfloat16 autocast instead of float32.")]

TrainBatch = Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images per step.")]


def finetune(
    model: Model,
    data: options.Data,
    output: options.Out,
    epochs: Epochs = None,
    lr: Lr = 1e-5,
    weight_decay: WeightDecay = 0.1,
    warmup_steps: Warmup = 500,
    clip_grad: Clip = 1.0,
    batch_size: TrainBatch = 128,
    smoothing: Smoothing = 0.0,
    seed: Seed = 0,
    no_aug: NoAug = False,
    amp: Amp = False,
    pretrained: Pretrained = False,
    initial_checkpoint: Initial = None,
    img_size: options.ImgSize = None,
    in_chans: options.InChans = None,
    crop_pct: options.CropPct = None,
    model_arg: options.ModelArg = None,
    data_dir: options.DataDir = None,
    dataset_download: options.Download = False,
    workers: options.Workers = 0,
    device: options.Device = "auto",
    recipe: options.Recipe = None,
    resume: options.Resume = False,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    metrics: options.MetricsFile = None,
    as_json: options.AsJson = False,
) -> None:
    """Fine-tune MODEL on a data set; the defaults are the paper's recipe."""
    _train(locals(), None)


def train_qat(
    model: Model,
    data: options.Data,
    output: options.Out,
    bits: Annotated[int, typer.Option(min=2, max=8, help="Width of a code.")] = 3,
    granularity: options.GranularityChoice = None,
    group_size: options.GroupSize = None,
    scale: options.ScaleChoice = None,
    symmetric: options.Symmetric = None,
    scale_dtype: options.ScaleDtypeChoice = None,
    epochs: Epochs = None,
    lr: Lr = 1e-5,
    weight_decay: WeightDecay = 0.1,
    warmup_steps: Warmup = 500,
    clip_grad: Clip = 1.0,
    batch_size: TrainBatch = 128,
    smoothing: Smoothing = 0.0,
    seed: Seed = 0,
    no_aug: NoAug = False,
    amp: Amp = False,
    pretrained: Pretrained = False,
    initial_checkpoint: Initial = None,
    img_size: options.ImgSize = None,
    in_chans: options.InChans = None,
    crop_pct: options.CropPct = None,
    model_arg: options.ModelArg = None,
    data_dir: options.DataDir = None,
    dataset_download: options.Download = False,
    workers: options.Workers = 0,
    device: options.Device = "auto",
    recipe: options.Recipe = None,
    resume: options.Resume = False,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    metrics: options.MetricsFile = None,
    as_json: options.AsJson = False,
) -> None:
    """Fine-tune MODEL with its weights rounded to low bits in each forward: the donor's twin."""
    wanted = GridOptions(bits, granularity, group_size, scale, symmetric, scale_dtype)
    _train(locals(), wanted.grid(None))


def _train(typed: Mapping[str, Any], grid: Grid | None) -> None:
    """Runs the training that was typed; both commands have the same flags but the grid's."""
    from qvec_cli.learn.distributed import here
    from qvec_cli.pipeline.finetune import default_epochs, train
    from qvec_cli.pipeline.train_request import TrainRequest

    recipe = {name: typed[name] for name in Recipe.__dataclass_fields__}
    recipe["epochs"] = typed["epochs"] or default_epochs(typed["data"])
    folder = typed["data_dir"]
    loading = Loading(
        data_dir=str(folder) if folder is not None else None,
        download=typed["dataset_download"] and not typed["dry_run"],
        workers=typed["workers"],
        batch_size=typed["batch_size"],
    )
    request = TrainRequest(
        model=typed["model"],
        data=typed["data"],
        out=typed["output"],
        recipe=Recipe(**recipe),
        loading=loading,
        grid=grid,
        args=options.model_args(typed["model_arg"]),
        **{name: typed[name] for name in _AS_TYPED},
    )
    world = here()
    show.deliver(
        lambda listener: train(request, listener, world),
        as_json=typed["as_json"],
        inputs=(request.source,) if request.source else (),
        document=typed["metrics"],
        out=typed["output"],
        force=typed["force"],
        dry_run=typed["dry_run"],
        quiet=not world.leads,
    )


_AS_TYPED = (
    "initial_checkpoint",
    "pretrained",
    "img_size",
    "in_chans",
    "crop_pct",
    "device",
    "resume",
    "force",
    "dry_run",
)
