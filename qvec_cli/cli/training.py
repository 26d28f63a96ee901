"""The commands that make float checkpoints: import, finetune, train-qat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from qvec_cli.cli import options, show
from qvec_cli.cli.many import Job, Suffix, each, is_folder
from qvec_cli.cli.options import GridFlags, ImageFlags, NetworkFlags, OutputFlags
from qvec_cli.cli.signature import Adapted, flag
from qvec_cli.cli.text import Facts, accuracy, some
from qvec_cli.model.configuration import Model as Network
from qvec_cli.specs import Grid, Recipe, Spelled
from qvec_cli.tame import counted

Model = Annotated[
    str, typer.Argument(help="timm's name of a network, or a checkpoint file to start from.")
]

Shape = Annotated[
    NetworkFlags,
    Adapted(without=("model", "num_classes", "class_map")),
]
Teacher = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Learn this float checkpoint's answers, and no labels."),
]
Images = Annotated[ImageFlags, Adapted(without=("batch_size", "draw", "diversify"))]


def import_file(
    file: Annotated[
        list[Path],
        typer.Argument(
            help="Weights that qvec did not write: a file, a folder, hf-hub:ORG/NAME.",
            metavar="FILE...",
        ),
    ],
    *,
    network: NetworkFlags,
    receiver_data: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Labelled images that it was trained on, named as qvec eval does.",
            rich_help_panel=NetworkFlags.heading,
        ),
    ] = None,
    data_dir: options.DataDir = None,
    to: Annotated[
        Spelled | None,
        typer.Option(
            help="Write the same network under the names of the other library, timm's or "
            "transformers' own: ViT, DeiT, DINOv2."
        ),
    ] = None,
    output: Annotated[
        str,
        options.output_option(
            "File to write; or a folder: with one for each of several, or with --to one that "
            "transformers loads.",
            metavar="FILE|FOLDER/",
        ),
    ],
    suffix: Suffix = None,
    writing: OutputFlags,
) -> None:
    """Write FILE as a checkpoint that every command takes.

    What the file tells is used: a training script's arguments, config.json, names and shapes. Each
    is told in a note, and a flag overrules it.

    Examples:
        qvec import model_best.pth.tar -o mine.st
        qvec import weights.pth --mean 0.5,0.5,0.5 --crop-pct 1 -o mine.st
    """
    from qvec_cli.pipeline import import_file as verb

    classes = str(network.class_map) if network.class_map is not None else None
    where = str(data_dir) if data_dir is not None else None

    def job(source: Path, out: str | None, flags: OutputFlags) -> Job:
        made = Path(out or "")
        request = verb.ImportRequest(
            source,
            made,
            network.options(),
            classes,
            receiver_data,
            where,
            to=to,
            folder=to is not None and is_folder(out or ""),
            **flags.for_request,
        )
        work = partial(verb.import_file, request)
        return Job(work, import_text, (source,), made, data_use=False)

    each(file, output, writing, job, suffix=suffix, whole=to is not None)


def import_text(results: Facts) -> Iterator[str]:
    """What network was written, with which head, and how its images are prepared."""
    model = Network.from_json(results["model"])
    channels, side, _ = model.input_size
    count = model.num_classes
    classes = counted(count, "class") if count else "no classifier"
    yield (
        f"{results['output']}: {model.architecture} at {side} px, {counted(channels, 'channel')}, "
        f"{classes}, {counted(results['parameters'], 'parameter')}"
    )
    yield f"the head: {some(results['head'])}"
    yield f"images: {model.preparation}"
    named = some(results["classes"]) if results["classes"] else "not named; --class-map names them"
    yield f"classes: {named}"


@dataclass(frozen=True, slots=True)
class StartFlags:
    """Weights to start from."""

    pretrained: bool = flag(False, "Fetch timm's weights by name.")
    initial_checkpoint: Path | None = flag(None, "Weights for a named network, from a bare file.")


@dataclass(frozen=True, slots=True)
class TrainingFlags:
    """How the network is trained; the defaults are the paper's."""

    heading: ClassVar[str] = "Training"
    epochs: int | None = flag(
        None, "Passes over the data.", min=1, show_default="the paper's for a task, or 10"
    )
    lr: float = flag(1e-5, "Peak learning rate of AdamW.")
    weight_decay: float = flag(0.1, "Of AdamW, on every parameter.")
    warmup_steps: int = flag(
        500, "Steps of linear warm-up; then the rate falls as a cosine to zero."
    )
    clip_grad: float = flag(1.0, "Largest norm of the gradient; 0: none.")
    batch_size: int = flag(128, "Images per step.", "--batch-size", "-b", min=1)
    smoothing: float = flag(0.0, "Label smoothing, below 1.")
    seed: int = flag(0, "Of head, data order and augmentation.")
    no_aug: bool = flag(False, "Train on images as evaluation sees them.")
    amp: bool = flag(False, "Compute in bfloat16 (autocast), not in float32.")

    def recipe(self, data: str) -> Recipe:
        """How to train on this data set; a task of the paper brings its epochs."""
        from qvec_cli.pipeline.finetune import default_epochs

        return Recipe(**asdict(self) | {"epochs": self.epochs or default_epochs(data)})


def finetune(
    model: Model,
    *,
    data: options.Data,
    start: StartFlags,
    recipe: options.Recipe = None,
    training: TrainingFlags,
    images: Images,
    shape: Shape,
    output: options.OutputFile,
    resume: options.Resume = False,
    writing: OutputFlags,
) -> None:
    """Train MODEL on a data set, in float, by the paper's recipe.

    Examples:
        qvec finetune vit_tiny_patch16_224 --data images/greek -o donor.st
        qvec finetune base.st --data images/greek --epochs 5 -o donor.st
    """
    _train(model, data, start, training, images, shape, output, resume, writing, None)


def train_qat(
    model: Model,
    *,
    data: options.Data,
    start: StartFlags,
    recipe: options.Recipe = None,
    grid: Annotated[GridFlags, Adapted(without=("cross_grid",), defaults={"bits": 3})],
    teacher: Teacher = None,
    training: TrainingFlags,
    images: Images,
    shape: Shape,
    output: options.OutputFile,
    resume: options.Resume = False,
    writing: OutputFlags,
) -> None:
    """Train MODEL with its weights rounded to low bits (QAT).

    Each forward pass sees rounded weights; the file has the float ones. With the start, data and
    seed of finetune, it makes the twin that extract needs.

    Examples:
        qvec train-qat vit_tiny_patch16_224 --data images/greek -o donor_qat.st
        qvec train-qat base.st --data images/greek --bits 2 -o donor_qat.st
    """
    bits = grid.options().grid(None)
    _train(model, data, start, training, images, shape, output, resume, writing, bits, teacher)


def _train(
    model: str,
    data: str,
    start: StartFlags,
    training: TrainingFlags,
    images: ImageFlags,
    shape: NetworkFlags,
    output: Path,
    resume: bool,
    writing: OutputFlags,
    grid: Grid | None,
    teacher: Path | None = None,
) -> None:
    """Trains as typed; both commands have the same flags but the grid's."""
    from qvec_cli.checkpoint.replace import unfinished
    from qvec_cli.learn.distributed import here
    from qvec_cli.pipeline.finetune import train
    from qvec_cli.pipeline.train_request import TrainRequest

    request = TrainRequest(
        model=model,
        data=data,
        out=output,
        recipe=training.recipe(data),
        loading=images.loading(dry_run=writing.dry_run, batch_size=training.batch_size),
        grid=grid,
        teacher=teacher,
        initial_checkpoint=start.initial_checkpoint,
        network=replace(shape.options(), pretrained=start.pretrained),
        device=images.device,
        resume=resume,
        force=writing.force,
        dry_run=writing.dry_run,
    )
    world = here()
    show.deliver(
        lambda listener: train(request, listener, world),
        training_text,
        writing,
        inputs=tuple(path for path in (request.source, teacher) if path),
        out=output,
        data_use=False,
        silent=not world.leads,
        state=unfinished(output),
    )


def training_text(results: Facts) -> Iterator[str]:
    """How long the training was, on what, and its accuracy in validation."""
    steps, epochs = counted(results["steps"], "step"), counted(len(results["epochs"]), "epoch")
    yield f"{results['output']}: {steps}, {epochs}"
    images = results["data"]["images"]
    yield f"labelled images: {images['train']} to train, {images['val']} to validate"
    names = {"float": "validation, float", "quantized": "validation, quantized"}
    for key, result in results["val"].items():
        yield f"{names[key]}: top-1 {accuracy(result)}"
