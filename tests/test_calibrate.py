"""The walk through a network against a plain forward for each layer, for every architecture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from test_architectures import ROWS, tiny
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from qvec_cli.calibration.walk import Walk, fold
from qvec_cli.errors import MismatchError
from qvec_cli.model.targets import classifiers, modules
from qvec_cli.quant.scales import fake_quantize
from qvec_cli.specs import Grid

every_row = pytest.mark.parametrize("name", ROWS)


def weights_of(network: nn.Module, model: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    found = modules(network, classifiers(model))
    return {f"{p}{attribute}": getattr(module, attribute) for p, module, attribute in found}


def calm(name: str) -> tuple[nn.Module, dict[str, nn.Parameter], list[torch.Tensor]]:
    """A tiny network whose numbers stay small, its weights, and two batches."""
    network, model, images = tiny(name)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.5)
    return network.eval(), weights_of(network, model), [images[:3], images[3:]]


class Listening(TorchFunctionMode):
    """Keeps what whole forwards multiply with a weight, by torch's own means."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, torch.Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear:
            given = dict(zip(("input", "weight"), args, strict=False)) | (kwargs or {})
            self.seen.append((given["weight"], given["input"]))
        return func(*args, **(kwargs or {}))


def listen(network: nn.Module, batches: list[torch.Tensor]) -> list[tuple[Any, torch.Tensor]]:
    with torch.inference_mode(), Listening() as mode:
        for batch in batches:
            network(batch)
    return mode.seen


def plain_inputs(network: nn.Module, weight: nn.Parameter, batches: list[torch.Tensor]) -> Any:
    """Moments of what a weight is multiplied with in whole forwards of the network as it is."""
    seen = [x for used, x in listen(network, batches) if used is weight]
    flat = torch.cat([x.reshape(-1, x.shape[-1]) for x in seen]).detach().double().numpy()
    return flat.T @ flat / len(flat), flat.mean(axis=0), np.abs(flat).mean(axis=0)


def round_in_place(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight.copy_(torch.as_tensor(fake_quantize(weight.detach(), Grid(3))))


@every_row
def test_each_layer_is_seen_behind_its_quantized_predecessors(name: str) -> None:
    network, weights, batches = calm(name)
    visited = []
    for _, site, inputs, _ in Walk(network, weights, batches).steps():
        expected = plain_inputs(network, site.weights[0], batches)
        for ours, theirs in zip(
            (inputs.moment, inputs.mean, inputs.magnitude), expected, strict=True
        ):
            atol = 2e-6 * max(np.abs(theirs).max(), expected[2].max())
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=atol)
        for weight in site.weights:
            round_in_place(weight)
        visited.extend(site.names)
    assert sorted(visited) == sorted(weights)


@every_row
def test_weights_come_in_the_order_in_which_they_are_called(name: str) -> None:
    network, weights, batches = calm(name)
    called = [id(weight) for weight, _ in listen(network, batches[:1])]
    walk = Walk(network, weights, batches)
    ours = [id(w) for seg in walk.segments for site in seg.sites for w in site.weights]
    assert ours == [weight for weight in called if weight in ours]


@pytest.mark.parametrize(
    ("name", "blocks"), [("vit_small_patch16_224", 2), ("eva02_tiny_patch14_224", 2)]
)
def test_blocks_are_carried_over_and_not_run_anew(
    name: str, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, weights, batches = calm(name)
    walk, reached = Walk(network, weights, batches), []
    reach = Walk._reach
    monkeypatch.setattr(Walk, "_reach", lambda self, m: (reached.append(m), reach(self, m))[1])
    assert len(walk.segments) == blocks
    assert sum(1 for _ in walk.steps()) == 4 * blocks
    assert reached == [walk.segments[0].module]


def test_queries_keys_and_values_that_share_their_input_share_a_site() -> None:
    network, weights, batches = calm("eva02_base_patch14_448")
    sites = [s.names for seg in Walk(network, weights, batches).segments for s in seg.sites]
    assert [f"blocks.0.attn.{part}_proj.weight" for part in "qkv"] in sites
    assert ["blocks.0.mlp.fc1_g.weight", "blocks.0.mlp.fc1_x.weight"] in sites


@every_row
def test_folding_leaves_the_function_as_it_was_or_does_nothing(name: str) -> None:
    network, weights, batches = calm(name)
    torch.manual_seed(0)
    folded = 0
    with torch.inference_mode():
        before = network(batches[0])
    for segment, site, inputs, calls in Walk(network, weights, batches).steps():
        by = torch.exp(torch.randn(len(inputs.mean)))
        state = {key: value.clone() for key, value in network.state_dict().items()}
        if fold(segment, site, by, calls[0]):
            folded += 1
            assert any(not torch.equal(v, state[key]) for key, v in network.state_dict().items())
        else:
            assert all(torch.equal(v, state[key]) for key, v in network.state_dict().items())
    with torch.inference_mode():
        after = network(batches[0])
    torch.testing.assert_close(after, before, rtol=2e-3, atol=2e-3 * float(before.abs().max()))
    assert (folded == 0) == (name in NOTHING_TO_FOLD)


NOTHING_TO_FOLD = {
    "swinv2_tiny_window8_256": "its norms come after what they belong to",
}


def test_in_a_plain_block_norms_fold_into_what_follows_them_alone() -> None:
    network, weights, batches = calm("vit_small_patch16_224")
    done = [
        site.names[0]
        for segment, site, inputs, calls in Walk(network, weights, batches).steps()
        if fold(segment, site, torch.exp(torch.randn(len(inputs.mean))), calls[0])
    ]
    assert done == [f"blocks.{i}.{n}.weight" for i in (0, 1) for n in ("attn.qkv", "mlp.fc1")]


class _Shared(nn.Module):
    """Two blocks whose norms are one, or have one weight."""

    def __init__(self, *, whole: bool) -> None:
        super().__init__()
        first, second = nn.LayerNorm(8), nn.LayerNorm(8)
        second.weight = first.weight
        pairs = [(first, first if whole else second), (nn.Linear(8, 8), nn.Linear(8, 8))]
        made = [nn.Sequential(*parts, nn.Linear(8, 8)) for parts in zip(*pairs, strict=True)]
        self.blocks = nn.Sequential(*made)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.blocks(x)
        return out


@pytest.mark.parametrize("whole", [True, False])
def test_a_norm_that_serves_two_blocks_is_left_alone(whole: bool) -> None:
    network, images = _Shared(whole=whole).eval(), torch.randn(5, 3, 8)
    weights = {f"blocks.{i}.1.weight": network.blocks[i][1].weight for i in (0, 1)}
    weights |= {f"blocks.{i}.2.weight": network.blocks[i][2].weight for i in (0, 1)}
    before = network(images)
    for segment, site, inputs, calls in Walk(network, weights, [images]).steps():
        fold(segment, site, torch.exp(torch.randn(len(inputs.mean))), calls[0])
    torch.testing.assert_close(network(images), before)


class _Several(nn.Module):
    """A block that gives two tensors, and the size of something."""

    def __init__(self, *, spread: bool) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.spread = spread

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], int]:
        normed = self.norm(x)
        made = self.second(self.first(normed))
        return made, [normed if self.spread else made], 7


@pytest.mark.parametrize("spread", [True, False])
def test_a_block_that_gives_several_tensors_is_folded_if_none_of_them_changes(
    spread: bool,
) -> None:
    network, images = _Several(spread=spread).eval(), torch.randn(5, 3, 8)
    weights = {f"{n}.weight": network.get_submodule(n).weight for n in ("first", "second")}
    before = network(images)[0]
    steps = Walk(network, weights, [images]).steps()
    segment, site, _, calls = next(steps)
    assert fold(segment, site, torch.exp(torch.randn(8)), calls[0]) is not spread
    torch.testing.assert_close(network(images)[0], before)


class _Shifted(nn.Module):
    """A block with a second argument."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, shift: torch.Tensor, size: float = 1.0) -> torch.Tensor:
        out: torch.Tensor = self.second(torch.relu(self.first(x + size * shift)))
        return out


class _Apart(nn.Module):
    """Two blocks of which the second is called with something else beside the first's output."""

    def __init__(self, *others: Any) -> None:
        super().__init__()
        self.blocks, self.others = nn.ModuleList([_Shifted(), _Shifted()]), others

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block, (args, kwargs) in zip(self.blocks, self.others, strict=True):
            x = block(x, *args, **kwargs)
        return x


ONE, TWO = torch.ones(8), torch.arange(8.0)


@pytest.mark.parametrize(
    "others",
    [
        (((ONE,), {}), ((TWO,), {})),
        (((), {"shift": ONE}), ((), {"shift": TWO})),
        (((ONE,), {"size": 1.0}), ((ONE,), {"size": 2.0})),
        (((ONE,), {}), ((ONE,), {"size": 2.0})),
        (((ONE, 1.0), {}), ((ONE, 2.0), {})),
    ],
)
def test_a_block_that_is_called_otherwise_than_the_one_before_is_seen_as_it_is(
    others: Any,
) -> None:
    network, images = _Apart(*others).eval(), torch.randn(5, 3, 8)
    weights = {
        f"blocks.{i}.{n}.weight": network.blocks[i].get_submodule(n).weight
        for i in (0, 1)
        for n in ("first", "second")
    }
    for _, site, inputs, _ in Walk(network, weights, [images]).steps():
        expected = plain_inputs(network, site.weights[0], [images])
        np.testing.assert_allclose(inputs.mean, expected[1], rtol=1e-4, atol=1e-6)


class _Odd(nn.Module):
    """One layer that is never called, one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.once, self.twice, self.never = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.twice(self.twice(self.once(x)))


@pytest.mark.parametrize(("layer", "times"), [("twice", 2), ("never", 0)])
def test_a_layer_whose_inputs_cannot_be_seen_is_refused(layer: str, times: int) -> None:
    network = _Odd()
    chosen = {name: network.get_submodule(name).weight for name in ("once", layer)}
    with pytest.raises(MismatchError, match=f"{layer}: is used {times} times"):
        Walk(network, chosen, [torch.zeros(3, 4)])


class _Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        out: torch.Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out


def test_both_weights_of_fused_attention_are_seen() -> None:
    torch.manual_seed(0)
    network, images = _Fused().eval(), torch.randn(5, 3, 8)
    attention = network.attention
    weights = {
        "attention.in_proj_weight": attention.in_proj_weight,
        "attention.out_proj.weight": attention.out_proj.weight,
    }
    first, second = (inputs for _, _, inputs, _ in Walk(network, weights, [images]).steps())
    with torch.no_grad():
        normed = network.norm(images)
        attention.out_proj.weight.copy_(torch.eye(8))  # the output is the input of out_proj
        attention.out_proj.bias.zero_()
        mixed = attention(normed, normed, normed, need_weights=False)[0]
    for inputs, tokens in ((first, normed), (second, mixed)):
        flat = tokens.reshape(-1, 8).double().numpy()
        np.testing.assert_allclose(inputs.moment, flat.T @ flat / 15, rtol=1e-4, atol=1e-6)
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_watch_on_products_ends_with_the_walk() -> None:
    plain = functional.linear
    network, weights, batches = calm("vit_small_patch16_224")
    steps = Walk(network, weights, batches).steps()
    next(steps)
    assert functional.linear is plain  # also between two steps
    steps.close()
    assert functional.linear is plain


ADDED = {
    "vit_giant_patch14_dinov2": ("attn.proj", "mlp.fc2"),
    "vit_small_patch16_224": ("attn.proj", "mlp.fc2"),
    "beit_base_patch16_224": ("attn.proj", "mlp.fc2"),
    "deit3_small_patch16_224": ("attn.proj", "mlp.fc2"),
    "swin_tiny_patch4_window7_224": ("attn.proj", "mlp.fc2"),  # attention where one window is all
    "swinv2_tiny_window8_256": (),  # its norms stand behind
    "vit_pwee_patch16_reg1_gap_256": (),  # attention and MLP run side by side
}
"""Layers of a block whose outputs are added to its stream, by network of timm's."""


@pytest.mark.parametrize("name", ADDED)
def test_it_is_told_which_layers_add_to_the_stream_and_with_what_gain(name: str) -> None:
    network, weights, batches = calm(name)
    modules = dict(network.named_modules())
    found = set()
    for segment in Walk(network, weights, batches).segments:
        for site in segment.sites:
            if site.added is None:
                continue
            block, part = re.fullmatch(r"(.*blocks\.\d+)\.(.*)\.weight", site.names[0]).groups()
            found.add(part)
            number = 1 if "attn" in part else 2
            module = modules[block]
            gamma = getattr(getattr(module, f"ls{number}", module), "gamma", None)
            gamma = getattr(module, f"gamma_{number}", gamma)
            expected = torch.ones(len(site.added.gain)) if gamma is None else gamma
            expected = expected.where(expected.abs() > 0.05 * expected.abs().median(), 0)
            torch.testing.assert_close(site.added.gain, expected, rtol=1e-3, atol=1e-4)
    assert found == {*ADDED[name]}


def test_what_the_stream_lacks_is_that_of_whole_forwards() -> None:
    ours, weights, batches = calm("deit3_small_patch16_224")
    theirs, goal, _ = calm("deit3_small_patch16_224")
    block = "blocks.1"
    streams: dict[str, list[torch.Tensor]] = {"ours": [], "theirs": []}
    compared = 0
    for _, site, inputs, _ in Walk(ours, weights, batches, resumed=True).steps(
        Walk(theirs, goal, batches, resumed=True)
    ):
        name = site.names[0]
        if name == f"{block}.mlp.fc2.weight":
            for key, network in (("ours", ours), ("theirs", theirs)):
                norm = network.get_submodule(f"{block}.norm2")
                hook = norm.register_forward_pre_hook(
                    lambda _, args, key=key: streams[key].append(args[0].flatten(0, 1))
                )
                vectors = [x for used, x in listen(network, batches) if used is site.weights[0]]
                hook.remove()
                if key == "ours":
                    seen_here = torch.cat([x.flatten(0, 1) for x in vectors]).double()
            gain = theirs.get_submodule(f"{block}.ls2").gamma.double()
            lacking = (torch.cat(streams["theirs"]) - torch.cat(streams["ours"])).double() / gain
            expected = (lacking.T @ seen_here / len(seen_here)).detach().numpy()
            np.testing.assert_allclose(
                inputs.missing, expected, rtol=1e-3, atol=1e-4 * abs(expected).max()
            )
            compared += 1
        assert (inputs.missing is None) == ("proj" not in name and "fc2" not in name)
        for weight in site.weights:
            round_in_place(weight)
    assert compared == 1
