"""Which part of a network a tensor is of: a table for families of names, and what must hold."""

from __future__ import annotations

import functools
import re

import pytest
import timm
import torch

from qvec_cli.checkpoint.header import Entry
from qvec_cli.errors import MismatchError
from qvec_cli.model.configuration import Model
from qvec_cli.model.targets import head_tensors, of_outline
from qvec_cli.specs import Part
from qvec_cli.vector.pairing import part_of, select

Names = dict[Part, set[str]]
BLOCK: Names = {
    Part.ATTN: {"attn.qkv.weight", "attn.proj.weight"},
    Part.MLP: {"mlp.fc1.weight", "mlp.fc2.weight"},
    Part.NORM: {f"norm{i}.{leaf}" for i in (1, 2) for leaf in ("weight", "bias")},
    Part.BIAS: {"attn.proj.bias", "mlp.fc1.bias", "mlp.fc2.bias"},
}
FUSED = {"attn.qkv.bias"}
SPLIT = {"attn.q_bias", "attn.v_bias"}
PATCHES = {"patch_embed.proj.weight", "patch_embed.proj.bias"}
TOP = {"norm.weight", "norm.bias"}


def table(place: str, embed: set[str], norm: set[str], **more: set[str]) -> Names:
    """A network of like blocks at a place, and what stands around or is added to them."""
    found = {part: {f"{place}.{name}" for name in names} for part, names in BLOCK.items()}
    found[Part.EMBED] = set(embed)
    found[Part.NORM] |= norm
    for part, names in more.items():
        found[Part(part)] |= names
    return found


def inside(place: str, names: set[str]) -> set[str]:
    return {f"{place}.{name}" for name in names}


SWIN = "layers.*.blocks.*"
POOL = {f"attn_pool.{n}" for n in ("latent", "q.weight", "kv.weight", "proj.weight")}
POOL_BIAS = {f"attn_pool.{n}.bias" for n in ("q", "kv", "proj", "mlp.fc1", "mlp.fc2")}
SCALES = inside("blocks.*", {"ls1.gamma", "ls2.gamma"})
REDUCED = inside("layers.*.downsample.norm", {"weight", "bias"})
PATCH_NORM = inside("patch_embed.norm", {"weight", "bias"})

TABLE = {
    "vit_small_patch16_224": table(
        *("blocks.*", PATCHES | {"cls_token", "pos_embed"}, TOP), bias=inside("blocks.*", FUSED)
    ),
    "deit_small_distilled_patch16_224": table(
        *("blocks.*", PATCHES | {"cls_token", "dist_token", "pos_embed"}, TOP),
        bias=inside("blocks.*", FUSED),
    ),
    "deit3_small_patch16_224": table(
        *("blocks.*", PATCHES | {"cls_token", "pos_embed"}, TOP | SCALES),
        bias=inside("blocks.*", FUSED),
    ),
    "vit_small_patch14_reg4_dinov2": table(
        *("blocks.*", PATCHES | {"cls_token", "reg_token", "pos_embed"}, TOP | SCALES),
        bias=inside("blocks.*", FUSED),
    ),
    "vit_base_patch16_siglip_224": table(
        *("blocks.*", PATCHES | {"pos_embed"}, TOP | inside("attn_pool.norm", {"weight", "bias"})),
        bias=inside("blocks.*", FUSED) | POOL_BIAS,
        attn=POOL,
        mlp={"attn_pool.mlp.fc1.weight", "attn_pool.mlp.fc2.weight"},
    ),
    "beit_base_patch16_224": table(
        "blocks.*",
        PATCHES | {"cls_token", "blocks.*.attn.relative_position_bias_table"},
        {"fc_norm.weight", "fc_norm.bias", "blocks.*.gamma_1", "blocks.*.gamma_2"},
        bias=inside("blocks.*", SPLIT),
    ),
    "swin_tiny_patch4_window7_224": table(
        SWIN,
        PATCHES | {f"{SWIN}.attn.relative_position_bias_table"},
        TOP | REDUCED | PATCH_NORM,
        bias=inside(SWIN, FUSED),
        mlp={"layers.*.downsample.reduction.weight"},
    ),
    "swinv2_tiny_window8_256": table(
        SWIN,
        PATCHES,
        TOP | REDUCED | PATCH_NORM,
        bias=inside(SWIN, {*SPLIT, "attn.cpb_mlp.*.bias"}),
        mlp={"layers.*.downsample.reduction.weight"},
        attn=inside(SWIN, {"attn.cpb_mlp.*.weight", "attn.logit_scale"}),
    ),
}
MORE = ("levit_128s", "convnext_tiny", "naflexvit_base_patch16_gap", "xcit_nano_12_p16_224")
REST = (
    *("coat_tiny", "volo_d1_224", "crossvit_9_240", "vit_pwee_patch16_reg1_gap_256", "test_vit"),
    *("eva02_base_patch14_448", "cait_xxs24_224", "vit_small_plus_patch16_dinov3"),
)
networks = pytest.mark.parametrize(
    "names", [(*TABLE, *MORE), pytest.param(REST, marks=pytest.mark.slow)], ids=["most", "rest"]
)

OPEN_CLIP = {
    "visual.class_embedding": ((8,), Part.EMBED),
    "visual.positional_embedding": ((5, 8), Part.EMBED),
    "visual.conv1.weight": ((8, 3, 4, 4), Part.EMBED),
    "visual.ln_pre.weight": ((8,), Part.NORM),
    "visual.ln_pre.bias": ((8,), Part.NORM),
    "visual.transformer.resblocks.0.ln_1.weight": ((8,), Part.NORM),
    "visual.transformer.resblocks.0.ln_1.bias": ((8,), Part.NORM),
    "visual.transformer.resblocks.0.ls_1.gamma": ((8,), Part.NORM),
    "visual.transformer.resblocks.0.attn.in_proj_weight": ((24, 8), Part.ATTN),
    "visual.transformer.resblocks.0.attn.in_proj_bias": ((24,), Part.BIAS),
    "visual.transformer.resblocks.0.attn.out_proj.weight": ((8, 8), Part.ATTN),
    "visual.transformer.resblocks.0.attn.out_proj.bias": ((8,), Part.BIAS),
    "visual.transformer.resblocks.0.mlp.c_fc.weight": ((32, 8), Part.MLP),
    "visual.transformer.resblocks.0.mlp.c_fc.bias": ((32,), Part.BIAS),
    "visual.transformer.resblocks.0.mlp.c_proj.weight": ((8, 32), Part.MLP),
    "visual.transformer.resblocks.0.mlp.c_proj.bias": ((8,), Part.BIAS),
    "visual.attn_pool.query": ((3, 8), Part.ATTN),
    "visual.proj": ((8, 4), Part.MLP),
    "token_embedding.weight": ((99, 8), Part.EMBED),
    "ln_final.bias": ((8,), Part.NORM),
}


@functools.cache
def outline(name: str) -> dict[str, Entry]:
    """The floating tensors of a network without values, and without its head."""
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    found = {n: Entry("F32", tuple(t.shape)) for n, t in state.items() if t.is_floating_point()}
    head = head_tensors(found, Model(name, 0, {}, timm.get_pretrained_cfg(name).to_dict()))
    return {n: entry for n, entry in found.items() if n not in head}


def plain(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def test_parts_are_those_of_the_table() -> None:
    for name, names in TABLE.items():
        found: Names = {part: set() for part in Part}
        for tensor in outline(name):
            found[part_of(tensor, outline(name))].add(plain(tensor))
        for part in Part:
            assert found[part] == names[part], (name, part)


@networks
def test_parts_share_out_every_tensor_once(names: tuple[str, ...]) -> None:
    for name in names:
        found = {part_of(tensor, outline(name)) for tensor in outline(name)}
        assert {Part.EMBED, Part.MLP, Part.NORM} <= found, name
        chosen = [select(outline(name), outline(name), [part]) for part in sorted(found)]
        assert sum(map(len, chosen)) == len(outline(name)), name
        assert frozenset().union(*chosen) == frozenset(outline(name)), name


@networks
def test_what_is_quantized_is_attention_or_mlp(names: tuple[str, ...]) -> None:
    """But for patches that a linear layer embeds."""
    for name in names:
        shapes = {n: entry.shape for n, entry in outline(name).items()}
        parts = {
            part_of(target, outline(name))
            for target in of_outline(shapes, head_tensors(shapes, None))
        }
        embedded = {Part.EMBED} if name.startswith("naflex") else set()
        attention = set() if name.startswith("convnext") else {Part.ATTN}
        assert parts == {Part.MLP} | attention | embedded, name


@networks
def test_norms_and_biases_are_vectors(names: tuple[str, ...]) -> None:
    for name in names:
        flat = select(outline(name), outline(name), [Part.NORM, Part.BIAS])
        assert {len(outline(name)[tensor].shape) for tensor in flat} == {1}, name


def test_every_layer_norm_is_a_norm_and_every_linear_bias_is_a_bias() -> None:
    with torch.device("meta"):
        network = timm.create_model("xcit_nano_12_p16_224")
    shapes = outline("xcit_nano_12_p16_224")
    for name, module in network.named_modules():
        if isinstance(module, (torch.nn.LayerNorm, torch.nn.BatchNorm2d)):
            assert {part_of(f"{name}.{leaf}", shapes) for leaf in ("weight", "bias")} == {Part.NORM}
        elif isinstance(module, torch.nn.Linear) and f"{name}.bias" in shapes:
            assert part_of(f"{name}.bias", shapes) is Part.BIAS


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clips_names_are_understood(name: str) -> None:
    shapes = {n: Entry("F32", shape) for n, (shape, _) in OPEN_CLIP.items()}
    assert part_of(name, shapes) is OPEN_CLIP[name][1]


def test_no_part_named_is_all_and_a_part_that_is_not_there_is_refused() -> None:
    shapes = {"blocks.0.mlp.fc1.weight": Entry("F32", (4, 4))}
    assert select(shapes, shapes, ()) == frozenset(shapes)
    with pytest.raises(MismatchError, match="--parts embed,norm: no tensor"):
        select(shapes, shapes, [Part.EMBED, Part.NORM])
