"""Where an output comes from: the lineage on its card, and digests that stand for a base."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from qvec_cli.checkpoint import digest as digests
from qvec_cli.checkpoint.dtypes import name_of
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.model.configuration import Model
from qvec_cli.model.targets import head_tensors
from qvec_cli.specs import Use

if TYPE_CHECKING:
    from torch import nn


def backbone_digest(network: nn.Module, model: Model) -> str:
    """The digest of a network's tensors without those of its head."""
    state = network.state_dict()
    head = set(head_tensors(state, model))
    body = {n: tensor.detach().cpu().numpy() for n, tensor in state.items() if n not in head}
    with digests.Hasher() as hasher:
        for name, array in body.items():
            hasher.start(name)
            hasher.update(name, array.reshape(-1))
    hashed = hasher.digests()
    return digests.combine({n: (name_of(a.dtype), a.shape, hashed[n]) for n, a in body.items()})


def provenance(
    op: str, parents: Mapping[str, Checkpoint], use: Use, **facts: Any
) -> dict[str, Any]:
    """The lineage that an output's card keeps, whole: each parent brings its own.

    Names come without folders, so that the same inputs give the same bytes anywhere. Digests
    are those of ``Checkpoint.settle``, which a stream knows at its end.
    """
    return {
        "op": op,
        "qvec": version("qvec"),
        **facts,
        "data_use": use.level,
        "counts": dict(use.counts),
        "parents": [
            {
                "as": label,
                "name": parent.name,
                "kind": parent.kind,
                "digest": parent.digest,
                "provenance": parent.card.provenance,
            }
            for label, parent in parents.items()
        ],
    }


@cache
def version(package: str) -> str:
    """The installed version of a package, which need not be imported for it."""
    from importlib import metadata

    return metadata.version(package)
