"""Whether moments belong to a model, and what of its data they have cost."""

from __future__ import annotations

from collections.abc import Mapping

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import MismatchError
from qvec_cli.ops.attached import Carried, Facts
from qvec_cli.ops.lineage import has_seen, require_same_architecture
from qvec_cli.specs import DataUse, Listener, Use


def check_fit(carried: Carried, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses moments that lack a target, or are of another width.

    Args:
        carried: the moments.
        shapes: [out, in] of each target.

    Raises:
        MismatchError: names the file and the first such target.
    """
    path = carried.checkpoint.path
    if missing := [name for name in shapes if name not in carried.facts.targets]:
        raise MismatchError(
            f"{path}: has no moments of {missing[0]}",
            hint="--targets can leave it out; or make moments with the same --targets.",
        )
    for name, shape in shapes.items():
        width = carried.widths[carried.facts.aliases.get(name, name)]
        if width != shape[1]:
            raise MismatchError(f"{path}: {name}: moments of {width} inputs, it has {shape[1]}")


def require_same_base(theta: Checkpoint, carried: Carried, listener: Listener) -> None:
    """Refuses moments of another architecture or another pretrained base.

    They fit the models of one base: the base itself, and whatever was fine-tuned from it.

    Raises:
        MismatchError: names both files.
    """
    path = carried.checkpoint.path
    require_same_architecture(theta, carried.checkpoint)
    base = theta.card.base if theta.card else None
    own = {source.model for source in carried.facts.sources} == {theta.stated}
    if base is None and not own:
        listener.note(f"{theta.path} does not say its base: that of {path} cannot be checked")
    if base is None or own:
        return
    if strange := [one for one in carried.facts.sources if not one.is_from(base)]:
        bases = " or ".join(dict.fromkeys(d[:12] for d in (strange[0].base, strange[0].start) if d))
        raise MismatchError(
            f"{theta.path} and {path} come from different bases ({base[:12]} and {bases})",
            hint="Moments belong to a base and to the models that were fine-tuned from it.",
        )


def use_of(theta: Checkpoint, facts: Facts) -> Use:
    """What of a receiver's data its quantization on such moments has used.

    Nothing, if the images and the model that they went through are others'.
    """
    own = [one for one in facts.sources if has_seen(theta, one.digest, one.classes)]
    if own:
        return Use(DataUse.RECEIVER_IMAGES, {"train": sum(one.images for one in own)})
    if any(one.model == theta.stated for one in facts.sources):
        return Use(DataUse.PROXY_IMAGES, {"proxy": facts.images})
    return Use(DataUse.NONE, {"moments": facts.images})
