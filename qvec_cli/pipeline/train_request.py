"""A request to train, and what of it is refused before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from qvec_cli.checkpoint.card import Kind
from qvec_cli.checkpoint.fetch import NAMES as HUB
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.replace import is_stream
from qvec_cli.errors import CheckpointError, MismatchError, SpecError
from qvec_cli.inputs.files import InputFiles, model_of, require
from qvec_cli.inputs.grids import check_fit
from qvec_cli.model.build import NetworkOptions, check_channels, check_name
from qvec_cli.model.configuration import Model
from qvec_cli.specs import Grid, Loading, Recipe


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """A network, a data set, a recipe, and for QAT a grid."""

    model: str  # timm's name, or a checkpoint file with a card
    data: str
    out: Path
    recipe: Recipe
    loading: Loading = field(default_factory=Loading)
    grid: Grid | None = None  # train through this grid; None: plain fine-tuning
    teacher: Path | None = None  # a float checkpoint whose answers are learned, not labels
    initial_checkpoint: Path | None = None  # weights to start a named model from
    network: NetworkOptions = NetworkOptions()  # what flags say of it, but for its name
    device: str = "auto"
    resume: bool = False
    force: bool = False
    dry_run: bool = False

    @property
    def source(self) -> Path | None:
        """The checkpoint file or stream that the weights come from, if it is one."""
        if self.initial_checkpoint is not None:
            return self.initial_checkpoint
        path = Path(self.model)
        named = path.suffix in (".st", ".safetensors") or self.model.startswith(HUB)
        return path if named or is_stream(path) or _is_file(path) else None

    def network_options(self, classes: int) -> NetworkOptions:
        """The network that is built, with a head for so many classes."""
        return replace(self.network, name=self.model, num_classes=classes)


def check_start(request: TrainRequest, files: InputFiles) -> None:
    """Refuses a start that cannot be, before torch and timm are imported."""
    request.network_options(classes=1)  # checks itself
    if request.teacher is not None:
        require(files.open(request.teacher), Kind.CHECKPOINT)
    if request.source is None or request.initial_checkpoint is not None:
        check_name(request.model)
    if request.source is None:
        return
    if request.network.pretrained:
        raise SpecError("--pretrained goes with a timm name, not with a checkpoint file")
    checkpoint = files.open(request.source)
    require(checkpoint, Kind.CHECKPOINT)
    targets = checkpoint.card.targets
    shapes = {name: checkpoint[name].shape for name in targets or () if name in checkpoint}
    if request.grid and shapes:
        check_fit(shapes, request.grid, str(request.source))
    if request.initial_checkpoint is None:
        stored_model(request, checkpoint, classes=1)


def stored_model(request: TrainRequest, checkpoint: Checkpoint, classes: int) -> Model:
    """The configuration of a file's network, with a head for the task at hand.

    Its image size and channels are the file's: the network is made at those of the flags.
    Raises CheckpointError: a file that does not say its architecture; MismatchError: arguments
    that contradict the file.
    """
    try:
        stored = model_of(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(
            str(error),
            hint="qvec import FILE -o NEW.st finds it out and writes it down; or name it: NAME "
            "--initial-checkpoint FILE in place of FILE.",
        ) from None
    args = stored.model_args
    for key, value in request.network.args.items():
        if value is not None and args.get(key) != value:
            raise MismatchError(
                f"{checkpoint.path} was made with {key} {args.get(key)}, not {value}",
                hint="A checkpoint file brings its own architecture.",
            )
    prepared = request.network.prepared
    check_channels(prepared, request.network.in_chans or stored.input_size[0])
    config = {**stored.pretrained_cfg, "num_classes": classes, **prepared}
    return replace(stored, num_classes=classes, pretrained_cfg=config)


def _is_file(path: Path) -> bool:
    """Whether there is a checkpoint, in a file or in a folder of the hub."""
    try:
        return path.is_file() or (path / "config.json").is_file()
    except OSError:  # a folder closed to us; then it is the name of a network, or nothing
        return False
