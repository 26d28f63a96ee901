"""What is quantized in each architecture, and what is left alone: a table, and its laws."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
import torch
from torch import nn

from qvec_cli.model.build import NetworkOptions, create
from qvec_cli.model.qat import plain_name, prepare, strip
from qvec_cli.model.targets import head_tensors, of_network, of_outline
from qvec_cli.quant.scales import fake_quantize
from qvec_cli.specs import Grid

ATTENTION = ("attn.qkv", "attn.proj")
BLOCK = (*ATTENTION, "mlp.fc1", "mlp.fc2")
GATED = ("mlp.fc1_g", "mlp.fc1_x", "mlp.fc2")
APART = ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")
POOL = ("q", "kv", "proj", "mlp.fc1", "mlp.fc2")
DEPTHS = (2, 2, 6, 2)  # of a tiny Swin's stages
CLASSES = 7
PATCHES = "patch_embed.proj.weight"


def each(count: int, place: str, parts: tuple[str, ...]) -> tuple[str, ...]:
    """The weights of parts that come in a number of like blocks."""
    return tuple(f"{place}.{i}.{part}.weight" for i in range(count) for part in parts)


def swin(*parts: str) -> tuple[str, ...]:
    """The weights of a tiny Swin, whose stages but the first begin with a reduction."""
    blocks = [each(depth, f"layers.{i}.blocks", parts) for i, depth in enumerate(DEPTHS)]
    reductions = tuple(f"layers.{i}.downsample.reduction.weight" for i in (1, 2, 3))
    return (*(name for stage in blocks for name in stage), *reductions)


@dataclass(frozen=True)
class Row:
    """One network of timm at its own size, and how a tiny one of its kind is made."""

    targets: tuple[str, ...]
    alone: set[str]  # what else has two or more dimensions; * for numbers
    heads: tuple[str, ...] = ("head",)
    pixels: int = 32  # of the tiny one
    tiny: Mapping[str, Any] = field(
        default_factory=lambda: {"embed_dim": 32, "depth": 2, "num_heads": 2}
    )


VIT = each(12, "blocks", BLOCK)
PLAIN = {"cls_token", "pos_embed", PATCHES}
SMALL_SWIN = {"embed_dim": 16, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4}

ROWS = {
    "vit_small_patch16_224": Row(VIT, PLAIN),
    "vit_base_patch32_clip_224": Row(VIT, PLAIN, pixels=64),
    "deit_small_distilled_patch16_224": Row(VIT, PLAIN | {"dist_token"}, ("head", "head_dist")),
    "deit3_small_patch16_224": Row(VIT, PLAIN),
    "vit_base_patch16_siglip_224": Row(
        (*VIT, *(f"attn_pool.{part}.weight" for part in POOL)),
        {"pos_embed", "attn_pool.latent", PATCHES},
    ),
    # SwiGLU with both halves in one matrix, and with a matrix each
    "vit_giant_patch14_dinov2": Row(each(40, "blocks", BLOCK), PLAIN, pixels=28),
    "vit_small_plus_patch16_dinov3": Row(
        each(12, "blocks", (*ATTENTION, *GATED)), {"cls_token", "reg_token", PATCHES}
    ),
    # attention and MLP side by side, which share their first matrix
    "vit_pwee_patch16_reg1_gap_256": Row(
        each(16, "blocks", ("in_proj", "attn_out_proj", "mlp_out_proj")),
        {"reg_token", "pos_embed", PATCHES},
    ),
    # patches are embedded by an nn.Linear here, which counts like any other
    "naflexvit_base_patch16_gap": Row(
        ("embeds.proj.weight", *VIT), {"embeds.reg_token", "embeds.pos_embed"}
    ),
    "beit_base_patch16_224": Row(
        VIT, {"cls_token", PATCHES, "blocks.*.attn.relative_position_bias_table"}
    ),
    "eva02_tiny_patch14_224": Row(VIT, PLAIN, pixels=28),
    "eva02_base_patch14_448": Row(
        each(12, "blocks", ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj", *GATED)),
        PLAIN,
        pixels=28,
    ),
    # heads talk to each other through proj_l and proj_w
    "cait_xxs24_224": Row(
        (
            *each(24, "blocks", (*BLOCK, "attn.proj_l", "attn.proj_w")),
            *each(2, "blocks_token_only", APART),
        ),
        PLAIN,
    ),
    "xcit_nano_12_p16_224": Row(
        (*VIT, *each(2, "cls_attn_blocks", APART)),
        {
            "cls_token",
            "patch_embed.proj.*.*.weight",
            "pos_embed.token_projection.weight",
            "blocks.*.attn.temperature",
            "blocks.*.local_mp.conv1.weight",
            "blocks.*.local_mp.conv2.weight",
        },
    ),
    "swin_tiny_patch4_window7_224": Row(
        swin(*BLOCK),
        {PATCHES, "layers.*.blocks.*.attn.relative_position_bias_table"},
        ("head.fc",),
        tiny=SMALL_SWIN,
    ),
    # a small MLP makes its tables of biases; its two nn.Linear count like any other
    "swinv2_tiny_window8_256": Row(
        swin(*BLOCK, "attn.cpb_mlp.0", "attn.cpb_mlp.2"),
        {PATCHES, "layers.*.blocks.*.attn.logit_scale"},
        ("head.fc",),
        tiny=SMALL_SWIN,
    ),
    "convnext_tiny": Row(
        tuple(
            name
            for i, depth in enumerate((3, 3, 9, 3))
            for name in each(depth, f"stages.{i}.blocks", ("mlp.fc1", "mlp.fc2"))
        ),
        {
            "stem.*.weight",
            "stages.*.downsample.*.weight",
            "stages.*.blocks.*.conv_dw.weight",
        },
        ("head.fc",),
        tiny={"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
    ),
}
MORE = ("test_vit", "vit_tiny_patch16_224", "levit_128s", "levit_384_s8", "volo_d1_224")
MORE += ("crossvit_9_240", "coat_tiny")
every_row = pytest.mark.parametrize("name", ROWS)
every_row_and_more = pytest.mark.parametrize("name", [*ROWS, *MORE])


@functools.cache
def _network(name: str, classes: int = CLASSES) -> tuple[nn.Module, dict[str, Any]]:
    """A network without values, which is made in a moment, and its configuration."""
    with torch.device("meta"):
        return create(NetworkOptions(name, classes))


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    state = network.state_dict()
    return {n: tuple(t.shape) for n, t in state.items() if t.is_floating_point()}


def _linears(network: nn.Module) -> Iterator[str]:
    """Every name under which an nn.Linear's weight stands."""
    for name, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear):
            yield f"{name}.weight"


def _head(heads: tuple[str, ...]) -> set[str]:
    return {f"{head}.{part}" for head in heads for part in ("weight", "bias")}


@every_row
def test_the_quantized_weights_are_those_of_the_table(name: str) -> None:
    assert sorted(of_network(*_network(name))) == sorted(ROWS[name].targets)


@every_row
def test_the_classifier_is_that_of_the_table(name: str) -> None:
    network, model = _network(name)
    shapes = _shapes(network)
    head = head_tensors(shapes, model)
    assert set(head) == _head(ROWS[name].heads)
    assert {shapes[tensor][0] for tensor in head} == {CLASSES}
    assert timm.get_pretrained_cfg_value(name, "classifier") in (
        ROWS[name].heads,
        ROWS[name].heads[0],
    )


@every_row
def test_what_is_left_alone_are_vectors_and_what_the_table_says(name: str) -> None:
    shapes = _shapes(_network(name)[0])
    taken = {*ROWS[name].targets, *_head(ROWS[name].heads)}
    rest = {tensor for tensor, shape in shapes.items() if len(shape) > 1} - taken
    assert {re.sub(r"(?<=\.)\d+(?=\.)", "*", tensor) for tensor in rest} == ROWS[name].alone


@every_row_and_more
def test_every_linear_layer_but_the_classifier_is_quantized_and_nothing_else(name: str) -> None:
    network, model = _network(name)
    head = head_tensors(_shapes(network), model)
    targets = of_network(network, model)
    assert sorted(targets) == sorted(set(_linears(network)) - set(head))
    assert len(targets) > 0


@every_row_and_more
def test_names_and_shapes_alone_choose_the_same_weights(name: str) -> None:
    network, model = _network(name)
    targets, shapes = sorted(of_network(network, model)), _shapes(network)
    assert sorted(of_outline(shapes, head_tensors(shapes, model))) == targets
    # a bare file: heads by their usual names
    assert sorted(of_outline(shapes, head_tensors(shapes, None))) == targets


@every_row_and_more
def test_the_head_is_what_the_number_of_classes_shapes(name: str) -> None:
    network, model = _network(name)
    ours, theirs = _shapes(network), _shapes(_network(name, CLASSES + 1)[0])
    assert ours.keys() == theirs.keys()
    differ = {tensor for tensor in ours if ours[tensor] != theirs[tensor]}
    assert differ == set(head_tensors(ours, model)) == set(head_tensors(ours, None))


def test_timm_still_has_the_networks_of_the_table() -> None:
    assert [name for name in (*ROWS, *MORE) if not timm.is_model(name)] == []


# --- training through rounding, on a tiny network of each kind -----------------------------------


def tiny(name: str) -> tuple[nn.Module, dict[str, Any], torch.Tensor]:
    """A network in which every weight matters: many start with branches scaled to nothing."""
    torch.manual_seed(0)
    row = ROWS[name]
    network, model = create(NetworkOptions(name, 3, img_size=row.pixels, args=row.tiny))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    return network, model, torch.randn(4, 3, row.pixels, row.pixels)


def _shipped(network: nn.Module, targets: tuple[str, ...], grid: Grid) -> nn.Module:
    """A copy of the network with plain weights that lie on the grid."""
    state = network.state_dict()
    state |= {name: torch.as_tensor(fake_quantize(state[name], grid)) for name in targets}
    copied = copy.deepcopy(network)
    copied.load_state_dict(state)
    return copied


def _run(network: nn.Module, images: torch.Tensor, training: bool) -> torch.Tensor:
    torch.manual_seed(1)  # Swin drops whole branches while it trains
    output: torch.Tensor = network.train(training)(images)
    return output


@every_row
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_prepared_network_computes_with_its_weights_on_the_grid(
    name: str, training: bool
) -> None:
    network, model, images = tiny(name)
    plain = copy.deepcopy(network)
    shipped = _shipped(network, of_network(network, model), Grid(3))
    prepare(network, model, Grid(3))
    output = _run(network, images, training)
    assert torch.equal(output, _run(shipped, images, training))
    assert not torch.equal(output, _run(plain, images, training))


@every_row
def test_every_weight_of_the_table_learns_through_its_rounding(name: str) -> None:
    network, model, images = tiny(name)
    targets = of_network(network, model)
    prepare(network, model, Grid(3))
    _run(network, images, training=False).square().sum().backward()
    gradients = {plain_name(n): p.grad for n, p in network.named_parameters()}
    assert [t for t in targets if gradients[t] is None or not gradients[t].any()] == []


@every_row
def test_stripping_gives_names_and_values_back(name: str) -> None:
    network, model, _ = tiny(name)
    before = {n: tensor.clone() for n, tensor in network.state_dict().items()}
    prepare(network, model, Grid(3))
    strip(network)
    after = network.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[n], before[n]) for n in before)
