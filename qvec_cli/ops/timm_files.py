"""Export as a folder for timm: float32 weights, and the configuration beside them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.dtypes import name_of
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.replace import write_json
from qvec_cli.checkpoint.staging import check_folder, staging
from qvec_cli.checkpoint.write import write as write_tensors
from qvec_cli.export.timm_folder import CONFIG, NAMES, WEIGHTS, config
from qvec_cli.model import build
from qvec_cli.ops.exportable import Form, Source, Target, compare
from qvec_cli.ops.lineage import FAKE, card_of, inherited_use, provenance
from qvec_cli.specs import Listener

if TYPE_CHECKING:
    from torch import nn


def refuse(target: Target) -> None:
    """Refuses a folder that could not be written afterwards."""
    check_folder(target.out, NAMES, force=target.force)


def fate(source: Source, shape: tuple[int, int]) -> str:
    """What becomes of a packed weight."""
    return f"float32 {list(shape)} on the grid {source.grid}"


def write(source: Source, network: nn.Module, target: Target, listener: Listener) -> dict[str, Any]:
    """Writes the folder once timm has made the very same network of it.

    Raises:
        QvecError: timm makes another one.
    """
    if source.packed:
        listener.note(f"timm has no packed weights: {len(source.packed)} become float32")
    known: Any = network.pretrained_cfg
    width: Any = network.num_features
    state = {name: tensor.contiguous().numpy() for name, tensor in network.state_dict().items()}
    plan = {name: Entry(name_of(array.dtype), array.shape) for name, array in state.items()}
    tensors = ((name, [state[name].reshape(-1)]) for name in plan)
    with staging(target.out, NAMES, force=target.force) as folder:
        written = write_tensors(folder / WEIGHTS, plan, tensors, _card(source), force=False)
        document = config(source.model, known, int(width), source.classes)
        write_json(folder / CONFIG, document, force=False)
        checked = None
        if target.check:
            theirs = build.from_folder(folder).eval()
            checked = compare(target, network, source.image, theirs, bound=0)
        size = sum((folder / name).stat().st_size for name in NAMES)
    return {"digest": written.digest, "bytes_after": size, "check": checked}


FORM: Final = Form(refuse, fate, write)


def _card(source: Source) -> Card:
    """The card of the weights; tied ones stand under each of their names, as timm has them."""
    use = inherited_use(source.checkpoint)
    lineage = provenance("export", {"model": source.checkpoint}, use)
    card = replace(card_of(source.checkpoint, Kind.CHECKPOINT), provenance=lineage, aliases={})
    return replace(card, role=FAKE) if source.packed else card
