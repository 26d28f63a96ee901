"""The config.json with which timm makes a network again: ``local-dir:FOLDER``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.checkpoint.card import FAKE, Kind
from qvec_cli.checkpoint.dtypes import name_of
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.replace import scratch_folder, write_json
from qvec_cli.errors import MismatchError
from qvec_cli.export.form import ExportSource, ExportTarget, Form, compare, noise
from qvec_cli.inputs.files import card_of
from qvec_cli.inputs.lineage import inherited_use
from qvec_cli.model import build
from qvec_cli.model.configuration import Model, require_stock
from qvec_cli.outputs.hf_folder import CONFIG, WEIGHTS, check_output, size_of_output, write_output
from qvec_cli.outputs.metrics import provenance
from qvec_cli.specs import Library, Listener

if TYPE_CHECKING:
    from torch import nn


def config(
    model: Model, known: Mapping[str, Any], features: int, classes: Sequence[str] | None
) -> dict[str, Any]:
    """The document, in the form of timm's ``save_for_hf``.

    ``known`` is what timm itself says of the architecture, ``features`` the width of what the head
    sees, ``classes`` are in the order of the head. Raises MismatchError: timm has no word for it.
    """
    require_stock(model)
    data = dict(model.pretrained_cfg)
    data["fixed_input_size"] = bool(known.get("fixed_input_size"))
    if data["input_size"][0] == 3 and known.get("first_conv"):
        # Otherwise timm 1.0.22 would convert that convolution, which fits already.
        data["first_conv"] = known["first_conv"]
    document = {
        "architecture": model.architecture,
        "num_classes": model.num_classes,
        "num_features": features,
        "model_args": dict(model.model_args),
        "pretrained_cfg": data,
    }
    if classes:
        document["label_names"] = list(classes)
    return document


def refuse(target: ExportTarget) -> None:
    """Refuses a folder that could not be written afterwards."""
    check_output(target.out, folder=True, force=target.force)


def require(source: ExportSource) -> None:
    """Refuses a network that is not timm's: MismatchError."""
    if source.model.library is not Library.TIMM:
        raise MismatchError(
            f"{source.checkpoint.path}: is a network of {source.model.library}",
            hint="qvec import FILE --to timm -o NEW.st gives it timm's names, if timm has it.",
        )


def fate(source: ExportSource, name: str) -> str:
    """What becomes of a packed weight."""
    grid = source.grid.of(name) if source.grid else None
    return f"float32 {list(source.packed[name])} on the grid {grid}"


def write(
    source: ExportSource, network: nn.Module, target: ExportTarget, listener: Listener
) -> dict[str, Any]:
    """Writes the folder once timm has made the very same network of it.
    Raises QvecError: timm makes another one.
    """
    if source.packed:
        listener.note(f"timm has no packed weights: {len(source.packed)} become float32")
    timms: Any = network
    width = int(timms.num_features)
    document = config(source.model, timms.pretrained_cfg, width, source.classes)
    state = {name: tensor.contiguous().numpy() for name, tensor in network.state_dict().items()}
    plan = {name: Entry(name_of(array.dtype), array.shape) for name, array in state.items()}
    tensors = ((name, [state[name].reshape(-1)]) for name in plan)
    checked: dict[str, Any] = {}

    def check(weights: Path) -> None:
        listener.progress("part 2/2: check", 1, 2)
        if target.check:
            with scratch_folder() as folder:  # the weights are not in place yet
                (folder / WEIGHTS).symlink_to(weights)
                write_json(folder / CONFIG, document, force=False)
                theirs = build.from_folder(folder).eval()
            images = noise(source.model.input_size)
            checked.update(compare(target, images, network, theirs, bound=0))

    use = inherited_use(source.checkpoint)
    lineage = provenance("export", {"model": source.checkpoint}, use)
    card = card_of(source.checkpoint, Kind.CHECKPOINT)
    role = FAKE if source.packed else card.role
    # Tied tensors stand under each of their names, as timm has them.
    card = replace(card, provenance=lineage, aliases={}, role=role)
    files = {CONFIG: document}
    listener.progress("part 1/2: weights", 0, 2)
    written = write_output(
        target.out, plan, tensors, lambda: card, files, force=target.force, check=check
    )
    listener.progress("written", 2, 2)
    size = size_of_output(plan, written, files)
    return {"digest": written.digest, "bytes_after": size, "check": checked or None}


FORM: Final = Form(refuse, fate, write, require=require)
