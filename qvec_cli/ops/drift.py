"""What a donor's plain fine-tuning has changed: the files that null task vectors are made of."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from qvec_cli.checkpoint.card import Kind
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import MismatchError, SpecError
from qvec_cli.ops.drawer import Drawer
from qvec_cli.ops.lineage import require, require_same_start
from qvec_cli.ops.opening import opened
from qvec_cli.specs import Listener
from qvec_cli.vector.pairing import cover


def check_drift(
    drawer: Drawer, names: tuple[str, ...], rhos: Mapping[str, Checkpoint], listener: Listener
) -> dict[str, Any]:
    """Refuses files that a donor's task vector cannot be made of, from their headers.

    Args:
        drawer: where the files are named.
        names: of the donors.
        rhos: their vectors, open.
        listener: hears what the cards do not tell.

    Returns:
        Paths and digests of the base and of each donor's plain twin, as a run's line has them.

    Raises:
        SpecError: a file that the grid file does not name.
        MismatchError: another base, architecture or twin.
    """
    bare = [name for name in names if drawer.donors[name].model is None]
    if drawer.base is None or bare:
        lacking = "base" if drawer.base is None else f"model of donor {bare[0]}"
        raise SpecError(
            f"--nulls taskvec needs the {lacking} in the grid file",
            hint="A task vector is the donor's plain twin minus the base.",
        )
    with ExitStack() as stack:
        base = stack.enter_context(opened(drawer.base, listener))
        require(base, Kind.CHECKPOINT)
        twins = {}
        for name in names:
            twin = stack.enter_context(opened(drawer.donors[name].model or Path(), listener))
            _require_twin(twin, rhos[name], listener)
            for model in (twin, base):
                _require_cover(model, rhos[name])
            twins[name] = _facts(twin)
        return {"base": _facts(base), "models": twins}


def _require_twin(twin: Checkpoint, rho: Checkpoint, listener: Listener) -> None:
    require(twin, Kind.CHECKPOINT)
    require_same_start(twin, rho, listener)
    lineage = rho.card.provenance.get("parents", []) if rho.card else []
    known = [p.get("digest") for p in lineage if isinstance(p, dict) and p.get("as") == "donor"]
    if known and twin.stated and twin.stated not in known:
        raise MismatchError(
            f"{twin.path} is not the donor that {rho.path} was taken from",
            hint="qvec inspect --lineage tells which file that was.",
        )


def _require_cover(model: Checkpoint, rho: Checkpoint) -> None:
    """A model must hold every tensor of a vector; its head and buffers are not asked for."""
    body = {name: entry for name, entry in model.items() if name in rho}
    cover(body, rho, (str(model.path), str(rho.path)), ())


def _facts(checkpoint: Checkpoint) -> dict[str, str]:
    return {"path": str(checkpoint.path), "digest": checkpoint.stated or checkpoint.settle()}
