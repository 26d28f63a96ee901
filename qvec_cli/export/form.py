"""What every form of an export starts from, and the comparison that it ends with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import MismatchError, QvecError
from qvec_cli.inputs.files import require_model
from qvec_cli.inputs.foreign import stored_grid
from qvec_cli.inputs.identify import network_of
from qvec_cli.model.build import NetworkOptions
from qvec_cli.model.configuration import Model
from qvec_cli.quant.qtensor import packed_weights, shape_of
from qvec_cli.specs import Grid, Listener

if TYPE_CHECKING:
    from torch import Tensor, nn

IMAGES: Final = 4
"""Random images of a comparison: another batch size than a graph is traced with."""


@dataclass(frozen=True, slots=True)
class ExportSource:
    """An open model, and what is known of it before a number is read."""

    checkpoint: Checkpoint
    model: Model  # timm's configuration
    packed: Mapping[str, tuple[int, ...]]  # shapes of its packed weights
    grid: Grid | None  # theirs

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, options: NetworkOptions, listener: Listener
    ) -> ExportSource:
        """Looks at a checkpoint, whose network the user may have to name.
        Raises CheckpointError: no model, or one whose architecture is not known; MismatchError:
        packed by another tool, or without a shape.
        """
        require_model(checkpoint)
        model = network_of(checkpoint, options, listener)
        names = packed_weights(checkpoint)
        shapes = {}
        for name in names:
            part = f"{name}_shape"
            arrays = {part: checkpoint.array(part)} if part in checkpoint else {}
            shapes[name] = shape_of(name, arrays)
        return cls(checkpoint, model, shapes, stored_grid(checkpoint) if names else None)

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes in the order of the head, if the card has them."""
        names = self.checkpoint.classes
        return names if names and len(names) == self.model.num_classes else None


@dataclass(frozen=True, slots=True)
class ExportTarget:
    """Where the result goes, and on what terms."""

    out: Path
    force: bool
    check: bool  # whether it is run and compared before it takes its name


class Form(NamedTuple):
    """How one format is made."""

    refuse: Callable[[ExportTarget], None]  # what could not be written afterwards
    fate: Callable[[ExportSource, str], str]  # what becomes of the packed weight of a name
    write: Callable[[ExportSource, nn.Module, ExportTarget, Listener], dict[str, Any]]  # results
    needs: tuple[str, ...] = ()  # packages of an extra
    extra: str = "onnx"  # its name
    require: Callable[[ExportSource], None] = lambda source: (
        None
    )  # refuses a network: MismatchError


def require_images(source: ExportSource) -> None:
    """Refuses a network of texts: MismatchError."""
    if source.model.reads_texts:
        raise MismatchError(
            f"{source.checkpoint.path}: reads texts, and networks of images are exported",
            hint="qvec quantize FILE -o FOLDER/ writes what transformers loads.",
        )


def noise(shape: Sequence[int]) -> Tensor:
    """Normalised images [N, C, H, W], each of ``shape``, that are always the same."""
    import torch

    return torch.randn(IMAGES, *shape, generator=torch.Generator().manual_seed(0))


def compare(
    target: ExportTarget,
    images: Tensor,
    ours: Callable[[Tensor], Tensor],
    theirs: Callable[[Tensor], Tensor],
    bound: float,
) -> dict[str, Any]:
    """How far another program's logits are from ours, on some images.

    Raises QvecError where the difference is larger than ``bound``, a share of our largest logit.
    """
    import torch

    with torch.inference_mode():
        answer = ours(images)
        difference = float((theirs(images) - answer).abs().max())
    largest = float(answer.abs().max())
    if not difference <= bound * largest:  # so a difference that is no number is refused too
        raise QvecError(
            f"{target.out}: its logits on random images would be off by {difference:.3g}, and the "
            f"largest is {largest:.3g}",
            hint="--no-check writes it all the same.",
        )
    facts = {"images": len(images), "max_abs_diff": difference, "max_abs_logit": largest}
    return {**facts, "bound": bound * largest}
