"""A checkpoint file as the torch tensors of a network, packed weights unpacked."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import CheckpointError, QvecError, located
from qvec_cli.inputs.foreign import grid_of_packed, load_packed, refuse_foreign
from qvec_cli.model import build
from qvec_cli.model.configuration import Model
from qvec_cli.quant.qtensor import packed_weights, part_names, parts

_HALVES: Final = {"F16": torch.float16, "BF16": torch.bfloat16}


def load_state(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Tensors under the network's own names; every floating one finite; F64 as float32.

    CheckpointError: weights that are not finite. MismatchError: packed by another tool, or parts
    that do not belong together.
    """
    refuse_foreign(checkpoint)  # of a stream, nobody has looked yet
    packed = packed_weights(checkpoint)
    state = {name: torch.from_numpy(load_packed(checkpoint, name).weight()) for name in packed}
    grids = {name: grid_of_packed(checkpoint, name) for name in packed}
    inside = {part for name, grid in grids.items() for part in part_names(name, grid)}
    for name, entry in checkpoint.items():
        if name in inside:
            continue
        if entry.floating:
            dtype = _HALVES.get(entry.dtype, torch.float32)
            state[name] = torch.from_numpy(checkpoint.finite(name)).to(dtype)
        else:
            state[name] = torch.from_numpy(np.array(checkpoint.array(name)))
    for dropped, kept in checkpoint.aliases.items():
        if kept not in state:
            raise CheckpointError(f"{checkpoint.path}: {dropped}: tied to {kept}, which is missing")
        state[dropped] = state[kept]
    return state


def load_network(checkpoint: Checkpoint, model: Model, on: str) -> torch.nn.Module:
    """The network of a file on a device, every tensor in its place."""
    target = device(on)
    with located(checkpoint.path):
        network = build.rebuild(model)
    build.load(network, load_state(checkpoint), str(checkpoint.path))
    return network.to(target)


def check_network(checkpoint: Checkpoint, model: Model, on: str) -> torch.nn.Module:
    """Refuses, by headers alone, what ``load_network`` would; the network is without numbers."""
    device(on)
    with located(checkpoint.path), torch.device("meta"):
        network = build.rebuild(model)
    own, state = network.state_dict(), outline(checkpoint)
    for name in packed_weights(checkpoint):
        grid = grid_of_packed(checkpoint, name)
        shapes = [tuple(state.pop(part).shape) for part in part_names(name, grid)]
        shape = tuple(own[name].shape) if name in own else ()
        planned = parts(name, shape, grid).values() if len(shape) >= 2 else ()
        if [size for _, size in planned] == shapes:
            state[name] = torch.empty(shape, device="meta")
    build.load(network, state, str(checkpoint.path))
    return network


def outline(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The state of a float file without its numbers, tied tensors under each of their names."""
    state = {n: torch.empty(entry.shape, device="meta") for n, entry in checkpoint.items()}
    tied = {dropped: state[kept] for dropped, kept in checkpoint.aliases.items() if kept in state}
    return {**state, **tied}


def device(name: str) -> torch.device:
    """The device a user names; "auto" is a GPU where there is one. QvecError: it is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as fault:
        reason = build.first_line(fault)
        if isinstance(fault, NotImplementedError):  # a page of all that there might be
            reason = "this torch and this machine have no such device"
        raise QvecError(f"--device {name}: {reason}", hint="Try --device cpu.") from None
    return chosen
