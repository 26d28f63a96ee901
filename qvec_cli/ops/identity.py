"""The identity of a pretrained start: what two fine-tunings must share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qvec_cli.checkpoint import digest as digests
from qvec_cli.checkpoint.dtypes import name_of
from qvec_cli.model.targets import head_tensors

if TYPE_CHECKING:
    from torch import nn


def backbone_digest(network: nn.Module, model: Mapping[str, Any]) -> str:
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
