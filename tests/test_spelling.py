"""One network in two spellings: equal logits, the same bytes there and back, or a refusal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Drawer, call
from torch import nn

from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.write import write
from qvec_cli.errors import MismatchError
from qvec_cli.inputs.files import stated_model
from qvec_cli.inputs.network import load_network
from qvec_cli.model import build
from qvec_cli.model.build import NetworkOptions
from qvec_cli.model.configuration import DATA_KEYS, Model
from qvec_cli.model.plain_vit import PlainViT, of_network, of_timm, timms_name
from qvec_cli.model.spelling import Spelling, spelled_by_timm, spelled_by_transformers
from qvec_cli.model.vit_config import CLASSES, of_config
from qvec_cli.specs import Library

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8}
SIZES |= {"image_size": 32}
PREPARED = {
    "input_size": [3, 32, 32],
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}
HUB: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViTForImageClassification", {"intermediate_size": 192}),
    "ViT of other words": (
        "ViTForImageClassification",
        {
            "intermediate_size": 100,
            "hidden_act": "gelu_new",
            "qkv_bias": False,
            "layer_norm_eps": 0.05,
            "num_channels": 1,
            "patch_size": 4,
            "num_hidden_layers": 1,
            "num_attention_heads": 3,
        },
    ),
    "ViT of quick gelu": (
        "ViTForImageClassification",
        {"intermediate_size": 192, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-6},
    ),
    "ViT without classes": ("ViTForImageClassification", {"intermediate_size": 60, "labels": 0}),
    "DeiT": ("DeiTForImageClassification", {"intermediate_size": 192}),
    "DeiT with teacher": ("DeiTForImageClassificationWithTeacher", {"intermediate_size": 192}),
    "DINOv2": ("Dinov2Model", {}),
    "DINOv2 of SwiGLU": ("Dinov2Model", {"use_swiglu_ffn": True}),
    "DINOv2 of one patch": ("Dinov2Model", {"patch_size": 32, "layer_norm_eps": 1e-5}),
    "DINOv2 with registers": ("Dinov2WithRegistersModel", {}),
    "DINOv2 with 2 registers": (
        "Dinov2WithRegistersModel",
        {"num_register_tokens": 2, "use_swiglu_ffn": True, "mlp_ratio": 3},
    ),
    "DINOv2 with a register for one patch": (
        "Dinov2WithRegistersModel",
        {"num_register_tokens": 1, "patch_size": 32},
    ),
}
"""Networks of transformers: a class, and what its configuration says beside ``SIZES``."""

NARROW = {"embed_dim": 48, "depth": 2, "num_heads": 4}
TIMM: dict[str, tuple[str, int, dict[str, Any]]] = {
    "ViT": ("vit_tiny_patch16_224", 5, NARROW),
    "ViT without classes": ("vit_base_patch32_384", 0, {**NARROW, "patch_size": 8}),
    "ViT of relu": ("vit_tiny_patch16_224", 5, {**NARROW, "act_layer": "relu", "qkv_bias": False}),
    "ViT of unplaced class token": ("vit_tiny_patch16_224", 5, {**NARROW, "no_embed_class": True}),
    "images of any size": ("vit_tiny_patch16_224", 5, {**NARROW, "dynamic_img_size": True}),
    "CLIP's eps": ("vit_base_patch32_clip_224", 5, {**NARROW, "pre_norm": False, "patch_size": 8}),
    "one register": ("vit_tiny_patch16_224", 5, {**NARROW, "reg_tokens": 1}),
    "DeiT": ("deit_tiny_patch16_224", 5, NARROW),
    "distilled DeiT": ("deit_tiny_distilled_patch16_224", 5, NARROW),
    "distilled DeiT of no class": ("deit_tiny_distilled_patch16_224", 0, NARROW),
    "DINOv2": ("vit_small_patch14_dinov2", 0, {**NARROW, "patch_size": 8}),
    "DINOv2 that was fine-tuned": ("vit_small_patch14_dinov2", 5, {**NARROW, "patch_size": 8}),
    "registers": ("vit_small_patch14_reg4_dinov2", 5, {**NARROW, "patch_size": 8}),
    "SwiGLU": ("vit_giant_patch14_reg4_dinov2", 5, {**NARROW, "patch_size": 16}),
    "DeiT III": ("deit3_small_patch16_224", 5, NARROW),
}
"""Networks of timm: a name, the classes and the arguments."""


def stirred(network: nn.Module) -> nn.Module:
    """Every tensor random, as none is when it is new: scales and shifts too."""
    generator = torch.Generator().manual_seed(len(list(network.parameters())))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return network.eval()


def hub_folder(name: str, folder: Path) -> tuple[nn.Module, Model]:
    """A network of ``HUB`` as transformers saves it, and the model that qvec takes it for."""
    architecture, words = HUB[name]
    words = {**SIZES, **words}
    labels = words.pop("labels", 5)
    kind = getattr(transformers, architecture)
    config = kind.config_class(**words, num_labels=labels)
    network = stirred(kind._from_config(config, attn_implementation="eager"))
    network.save_pretrained(folder)
    return network, hub_model(folder)


def hub_model(folder: Path) -> Model:
    with Checkpoint(folder) as source:
        model = stated_model(source)
    assert model is not None
    return model


def timm_file(name: str, path: Path) -> tuple[nn.Module, Model]:
    architecture, classes, args = TIMM[name]
    network, model = build.create(NetworkOptions(architecture, classes, img_size=32, args=args))
    state = {n: t.numpy() for n, t in stirred(network).state_dict().items()}
    saved(path, state)
    return network, model


def saved(path: Path, state: dict[str, np.ndarray[Any, Any]]) -> None:
    plan = {name: Entry("F32", array.shape) for name, array in state.items()}
    tensors = ((name, [np.ascontiguousarray(state[name]).reshape(-1)]) for name in state)
    write(path, plan, tensors, Card(Kind.CHECKPOINT), force=False)


def spelled(source: Checkpoint, model: Model, to: str, **wanted: Any) -> Spelling:
    shapes = {name: entry.shape for name, entry in source.items()}
    if to == "timm":
        return spelled_by_timm(model, shapes, source.array, **wanted)
    return spelled_by_transformers(model, shapes, source.array)


def written(source: Checkpoint, spelling: Spelling, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    plan, blocks = spelling.plan(source), spelling.blocks(source, source.checked)
    write(path, plan, blocks, Card(Kind.CHECKPOINT), force=False)


def raw(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype, shape and bytes of every tensor of a file or a folder."""
    with Checkpoint(path) as source:
        return {
            n: (e.dtype, e.shape, b"".join(block.tobytes() for block in source.blocks(n)))
            for n, e in source.items()
        }


def timms_network(model: Model, path: Path) -> nn.Module:
    network = build.rebuild(model)
    with Checkpoint(path) as source:
        state = {name: torch.from_numpy(np.array(source.array(name))) for name in source}
    build.load(network, state, str(path))
    return network.eval()


def hubs_network(model: Model, path: Path) -> nn.Module:
    """What transformers itself makes of the file beside such a config.json, nothing left over."""
    config = {**model.model_args, "architectures": [model.architecture]}
    if model.num_classes != 2:
        config["id2label"] = {str(n): f"LABEL_{n}" for n in range(model.num_classes)}
    (path.parent / "config.json").write_text(json.dumps(config))
    kind = getattr(transformers, model.architecture)
    network, report = kind.from_pretrained(
        path.parent, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    assert isinstance(network, nn.Module)
    return network.eval()


def outputs(network: nn.Module, model: Model) -> torch.Tensor:
    """Logits, or the class token where there is no classifier."""
    images = torch.randn(3, *model.input_size, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        given: Any = network(images)
    if isinstance(given, torch.Tensor):
        return given
    return given.logits if "logits" in given else given.pooler_output  # type: ignore[no-any-return]


def assert_equal_outputs(first: torch.Tensor, second: torch.Tensor) -> None:
    assert first.shape == second.shape
    assert first.std() > 0.01
    assert (first - second).abs().max() <= 1e-5 * first.abs().max()


@pytest.mark.parametrize("name", HUB)
def test_a_network_of_transformers_gives_the_same_logits_in_timms_spelling(
    name: str, tmp_path: Path
) -> None:
    network, model = hub_folder(name, tmp_path / "hub")
    with Checkpoint(tmp_path / "hub") as source:
        spelling = spelled(source, model, "timm")
        written(source, spelling, tmp_path / "timm.st")
    theirs = timms_network(spelling.model, tmp_path / "timm.st")
    assert_equal_outputs(outputs(network, model), outputs(theirs, spelling.model))
    assert Model.from_json(spelling.model.to_json()) == spelling.model

    back = tmp_path / "back" / "model.safetensors"
    with Checkpoint(tmp_path / "timm.st") as source:
        again = spelled(source, spelling.model, "hub")
        written(source, again, back)
    assert again.model.architecture == model.architecture
    assert of_config(again.model) == of_config(model)
    assert_equal_outputs(outputs(network, model), outputs(hubs_network(again.model, back), model))
    first, last = raw(tmp_path / "hub"), raw(back)
    for left_out in spelling.unread:
        assert not any(last.pop(left_out)[2])
        del first[left_out]
    assert first == last


@pytest.mark.parametrize("name", TIMM)
def test_a_network_of_timm_gives_the_same_logits_in_transformers_spelling(
    name: str, tmp_path: Path
) -> None:
    network, model = timm_file(name, tmp_path / "timm.st")
    path = tmp_path / "hub" / "model.safetensors"
    with Checkpoint(tmp_path / "timm.st") as source:
        spelling = spelled(source, model, "hub")
        written(source, spelling, path)
    assert spelling.unread == ()
    assert_equal_outputs(
        outputs(network, model), outputs(hubs_network(spelling.model, path), model)
    )

    wanted = None if "pre_norm" in model.model_args else model.architecture
    with Checkpoint(path) as source:
        again = spelled(source, spelling.model, "timm", name=wanted)
        written(source, again, tmp_path / "back.st")
    assert raw(tmp_path / "timm.st") == raw(tmp_path / "back.st")
    assert of_timm(again.model) == of_timm(model)
    assert again.model.architecture == (wanted or "vit_base_patch8_224")
    assert again.model.classifier == model.classifier


# --- names and settings ---------------------------------------------------------------------------

BASE = PlainViT(
    width=768,
    depth=12,
    heads=12,
    hidden=3072,
    patch=16,
    image=224,
    channels=3,
    classes=1000,
    eps=1e-6,
    activation="gelu",
    gated=False,
    qkv_bias=True,
    scaled=False,
    registers=0,
    distilled=False,
    embedded=True,
)
DINO = replace(BASE, patch=14, image=518, classes=0, scaled=True)
EPS = {"norm_layer": {"eps": 1e-12}}

NAMES: dict[str, tuple[PlainViT, str, dict[str, Any]]] = {
    "google/vit-base-patch16-224": (replace(BASE, eps=1e-12), "vit_base_patch16_224", EPS),
    "384 px": (replace(BASE, image=384), "vit_base_patch16_384", {}),
    "256 px": (replace(BASE, image=256), "vit_base_patch16_224", {"img_size": 256}),
    "google/vit-base-patch32-384": (
        replace(BASE, eps=1e-12, patch=32, image=384),
        "vit_base_patch32_384",
        EPS,
    ),
    "google/vit-huge-patch14-224": (
        replace(BASE, width=1280, depth=32, heads=16, hidden=5120, patch=14),
        "vit_huge_patch14_224",
        {},
    ),
    "facebook/deit-tiny-distilled-patch16-224": (
        replace(BASE, width=192, heads=3, hidden=768, distilled=True, eps=1e-12),
        "deit_tiny_distilled_patch16_224",
        EPS,
    ),
    "facebook/dinov2-base": (DINO, "vit_base_patch14_dinov2", {}),
    "facebook/dinov2-large": (
        replace(DINO, width=1024, depth=24, heads=16, hidden=4096),
        "vit_large_patch14_dinov2",
        {},
    ),
    "facebook/dinov2-giant": (
        replace(DINO, width=1536, depth=40, heads=24, hidden=8192, gated=True, activation="silu"),
        "vit_giant_patch14_dinov2",
        {},
    ),
    "facebook/dinov2-with-registers-base": (
        replace(DINO, registers=4),
        "vit_base_patch14_reg4_dinov2",
        {"no_embed_class": False},
    ),
}
"""What models of the hub are, by their config.json, and timm's names for them."""


@pytest.mark.parametrize("name", NAMES)
def test_timms_name_is_the_nearest_and_arguments_say_only_what_differs(name: str) -> None:
    vit, architecture, args = NAMES[name]
    assert timms_name(vit) == (architecture, args)


def test_the_defaults_are_those_of_transformers() -> None:
    """A config.json that says nothing is read as transformers reads it."""
    for name, kind in CLASSES.items():
        config = getattr(transformers, name).config_class()
        prepared = {**PREPARED, "input_size": [3, config.image_size, config.image_size]}
        silent = Model(name, 5, {}, prepared, Library.TRANSFORMERS)
        spoken = replace(silent, model_args=config.to_dict())
        assert of_config(silent) == of_config(spoken)
        assert config.model_type == kind.model_type


def test_images_classes_and_targets_travel_along(tmp_path: Path) -> None:
    _, model = hub_folder("DeiT with teacher", tmp_path)
    with Checkpoint(tmp_path) as source:
        spelling = spelled(source, model, "timm")
        layer = "deit.encoder.layer.1.attention.attention"
        three = [f"{layer}.{part}.weight" for part in ("query", "key", "value")]
        assert spelling.names_of(three) == ("blocks.1.attn.qkv.weight",)
        assert spelling.names_of(three[:2]) == ()
        assert spelling.names_of(source).__len__() == len(spelling.tensors)
    prepared = spelling.model.pretrained_cfg
    assert {key: prepared[key] for key in DATA_KEYS} == {
        key: model.pretrained_cfg[key] for key in DATA_KEYS
    }
    assert spelling.model.classifier == ("head", "head_dist")
    assert spelling.model.num_classes == 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_bytes_stay_in_the_number_format_of_the_file(dtype: torch.dtype, tmp_path: Path) -> None:
    architecture, words = HUB["DINOv2 with registers"]
    kind = getattr(transformers, architecture)
    network = stirred(kind(kind.config_class(**{**SIZES, **words}))).to(dtype)
    network.save_pretrained(tmp_path / "hub")
    with Checkpoint(tmp_path / "hub") as source:
        spelling = spelled(source, hub_model(tmp_path / "hub"), "timm")
        written(source, spelling, tmp_path / "timm.st")
    with Checkpoint(tmp_path / "timm.st") as source:
        written(source, spelled(source, spelling.model, "hub"), tmp_path / "back" / "x.st")
    first, last = raw(tmp_path / "hub"), raw(tmp_path / "back" / "x.st")
    assert len({dtype for dtype, _, _ in last.values()}) == 1
    for name in spelling.unread:
        del first[name], last[name]
    assert first == last


def test_blocks_of_any_length_give_the_same_tensors(tmp_path: Path) -> None:
    _, model = hub_folder("DINOv2 with registers", tmp_path)

    with Checkpoint(tmp_path) as source:

        def crumbs(name: str) -> Iterator[np.ndarray[Any, Any]]:
            flat = source.array(name).reshape(-1)
            yield from np.array_split(flat, min(7, flat.size))

        spelling = spelled(source, model, "timm")
        for blocks in (crumbs, source.blocks):
            tensors = {n: np.concatenate([*b]) for n, b in spelling.blocks(source, blocks)}
            qkv = tensors["blocks.0.attn.qkv.weight"].reshape(3, 48, 48)
            for part, name in zip(qkv, ("query", "key", "value"), strict=True):
                theirs = source.array(f"encoder.layer.0.attention.attention.{name}.weight")
                assert (part == theirs).all()
            positions = tensors["pos_embed"].reshape(-1, 48)
            theirs = source.array("embeddings.position_embeddings")[0]
            assert (positions[[0, *range(5, 21)]] == theirs).all()
            assert not positions[1:5].any()


def test_an_encoder_without_its_pooler_is_timms_network_of_no_classes(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**SIZES, intermediate_size=96)
    kind = transformers.ViTModel
    network = stirred(kind(config, add_pooling_layer=False))
    network.save_pretrained(tmp_path / "hub")
    model = hub_model(tmp_path / "hub")
    with Checkpoint(tmp_path / "hub") as source:
        spelling = spelled(source, model, "timm")
        written(source, spelling, tmp_path / "timm.st")
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        tokens = network(images).last_hidden_state
    theirs = timms_network(spelling.model, tmp_path / "timm.st")
    assert_equal_outputs(tokens[:, 0], outputs(theirs, spelling.model))


def test_a_pooler_beside_a_classifier_is_left_out(tmp_path: Path) -> None:
    network, model = hub_folder("ViT", tmp_path / "hub")
    state = {n: np.array(t) for n, t in arrays(tmp_path / "hub").items()}
    pooler = {f"vit.pooler.dense.{part}": np.ones(48, np.float32) for part in ("weight", "bias")}
    (tmp_path / "with").mkdir()
    saved(tmp_path / "with" / "x.st", state | pooler)
    with Checkpoint(tmp_path / "with" / "x.st") as source:
        spelling = spelled(source, model, "timm")
        written(source, spelling, tmp_path / "timm.st")
    assert spelling.unread == tuple(pooler)
    theirs = timms_network(spelling.model, tmp_path / "timm.st")
    assert_equal_outputs(outputs(network, model), outputs(theirs, spelling.model))


def arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    with Checkpoint(path) as source:
        return {name: source.array(name) for name in source}


# --- refusals -------------------------------------------------------------------------------------

WORDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "an activation": ("ViT", {"hidden_act": "gelu_10"}, r"hidden_act 'gelu_10': timm has the same"),
    "a list for one": ("ViT", {"hidden_act": ["gelu"]}, r"hidden_act \['gelu'\]"),
    "heads of another width": ("ViT", {"head_dim": 16}, "head_dim 16: timm has 12 there"),
    "heads that do not divide": ("ViT", {"num_attention_heads": 5}, "num_attention_heads 5 do not"),
    "images that are no squares": ("ViT", {"image_size": [32, 64]}, r"image_size \[32, 64\]"),
    "patches that are no squares": ("ViT", {"patch_size": [8, 4]}, r"patch_size \[8, 4\]"),
    "interpolated positions": (
        "DINOv2",
        {"image_size": 64},
        "image_size is 64.* prepared at 32 px",
    ),
    "other channels": ("ViT", {"num_channels": 4}, "num_channels 4: timm has 3 there"),
    "another model type": ("ViT", {"model_type": "deit"}, "model_type 'deit': timm has 'vit'"),
    "no depth": ("ViT", {"num_hidden_layers": 0}, "num_hidden_layers 0"),
    "a text for a number": ("ViT", {"hidden_size": "48"}, "hidden_size '48'"),
    "an eps of nothing": ("ViT", {"layer_norm_eps": 0}, "layer_norm_eps 0"),
    "a number for a switch": ("ViT", {"qkv_bias": 1}, "qkv_bias 1: is neither"),
    "a ratio that is none": ("DINOv2", {"mlp_ratio": "4"}, "mlp_ratio '4'"),
    "another depth than the file's": ("ViT", {"num_hidden_layers": 3}, "layer.2.*: is missing"),
    "fewer blocks than the file's": ("ViT", {"num_hidden_layers": 1}, "layer.1.*: has no place"),
    "another width than the file's": ("ViT", {"intermediate_size": 96}, r"is \[192, 48\], and"),
}
"""Words that timm has nothing for: a network of ``HUB``, what its config.json says, the message."""


@pytest.mark.parametrize("case", WORDS)
def test_a_word_of_config_json_that_timm_has_nothing_for_is_refused_by_name(
    case: str, tmp_path: Path
) -> None:
    name, words, message = WORDS[case]
    _, model = hub_folder(name, tmp_path)
    model = replace(model, model_args={**model.model_args, **words})
    with Checkpoint(tmp_path) as source, pytest.raises(MismatchError, match=message):
        spelled(source, model, "timm")


def test_a_class_that_timm_does_not_have_is_refused_with_those_that_it_has(tmp_path: Path) -> None:
    _, model = hub_folder("ViT", tmp_path)
    for name in ("SwinForImageClassification", "DeiTModel", "BeitForImageClassification"):
        other = replace(model, architecture=name)
        with Checkpoint(tmp_path) as source, pytest.raises(MismatchError, match=name) as fault:
            spelled(source, other, "timm")
        assert "ViTForImageClassification" in (fault.value.hint or "")


def test_a_pooler_in_use_is_refused(tmp_path: Path) -> None:
    network = transformers.ViTModel(transformers.ViTConfig(**SIZES, intermediate_size=96))
    network.save_pretrained(tmp_path)
    with Checkpoint(tmp_path) as source, pytest.raises(MismatchError, match=r"pooler\.dense"):
        spelled(source, hub_model(tmp_path), "timm")


@pytest.mark.parametrize("name", ["Dinov2", "Dinov2WithRegisters"])
def test_a_classifier_that_sees_the_mean_of_patches_is_refused(name: str, tmp_path: Path) -> None:
    kind = getattr(transformers, f"{name}ForImageClassification")
    network = stirred(kind(kind.config_class(**SIZES, num_labels=5)))
    network.save_pretrained(tmp_path)
    model = hub_model(tmp_path)
    with Checkpoint(tmp_path) as source:
        with pytest.raises(MismatchError, match=r"classifier\.weight: weighs the mean of patches"):
            spelled(source, model, "timm")
        with pytest.raises(MismatchError, match="num_labels 0"):
            spelled(source, replace(model, num_classes=0), "timm")


def test_query_and_key_in_two_number_formats_are_refused(tmp_path: Path) -> None:
    _, model = hub_folder("ViT", tmp_path)
    with Checkpoint(tmp_path) as source:
        entries = dict(source)
        query = "vit.encoder.layer.0.attention.attention.query.weight"
        entries[query] = entries[query]._replace(dtype="F16")
        spelling = spelled(source, model, "timm")
        with pytest.raises(MismatchError, match=r"qkv\.weight is one tensor.*query\.weight in F16"):
            spelling.plan(entries)


ARGUMENTS: dict[str, tuple[str, int, dict[str, Any], str]] = {
    "a mean": ("vit_tiny_patch16_224", 5, {"global_pool": "avg"}, "global_pool 'avg'"),
    "no class token": (
        "vit_tiny_patch16_224",
        5,
        {"class_token": False, "global_pool": "avg"},
        "global_pool 'avg'",
    ),
    "no class token to pool": (
        "vit_tiny_patch16_224",
        5,
        {"class_token": False, "global_pool": ""},
        "global_pool ''",
    ),
    "no positions": ("vit_tiny_patch16_224", 5, {"pos_embed": "none"}, "pos_embed 'none'"),
    "a norm before blocks": ("vit_tiny_patch16_224", 5, {"pre_norm": True}, "norm_pre is a Layer"),
    "norms of queries": ("vit_tiny_patch16_224", 5, {"qk_norm": True}, "q_norm is a LayerNorm"),
    "a norm in attention": (
        "vit_tiny_patch16_224",
        5,
        {"scale_attn_norm": True},
        "attn.norm is a LayerNorm",
    ),
    "a norm in the MLP": (
        "vit_tiny_patch16_224",
        5,
        {"scale_mlp_norm": True},
        "mlp.norm is a LayerNorm",
    ),
    "other norms": ("vit_tiny_patch16_224", 5, {"norm_layer": "rmsnorm"}, "norm is a RmsNorm"),
    "no last norm": ("vit_tiny_patch16_224", 5, {"final_norm": False}, "norm is a Identity"),
    "a norm of the head": ("vit_tiny_patch16_224", 5, {"fc_norm": True}, "norm is a Identity"),
    "projections without bias": (
        "vit_tiny_patch16_224",
        5,
        {"proj_bias": False},
        "attn.proj.bias: is missing",
    ),
    "padded images": ("vit_tiny_patch16_224", 5, {"dynamic_img_pad": True}, "dynamic_img_pad True"),
    "oblong patches": ("vit_tiny_patch16_224", 5, {"patch_size": (8, 16)}, "patch_size"),
    "an activation": ("vit_tiny_patch16_224", 5, {"act_layer": "mish"}, "act is a Mish"),
    "differential attention": ("vit_tiny_patch16_224", 5, {"attn_layer": "diff"}, "DiffAttention"),
    "two registers": ("vit_tiny_patch16_224", 5, {"reg_tokens": 2}, "reg_tokens 2 and no Layer"),
    "scales and two heads": (
        "deit_tiny_distilled_patch16_224",
        5,
        {"init_values": 0.1},
        "LayerScale and a second head",
    ),
    "a ratio between": (
        "vit_small_patch14_dinov2",
        5,
        {"mlp_ratio": 2.5, "patch_size": 8},
        "an MLP of 120 rows at embed_dim 48",
    ),
    "parallel blocks": ("vit_small_patch16_18x2_224", 5, {}, "blocks.0 is a ParallelThings"),
    "another family": ("eva02_tiny_patch14_224", 5, {"img_size": 56}, "Eva"),
    "a convolution": ("resnet10t", 5, {"img_size": None}, "ResNet"),
}
"""Arguments that transformers has nothing for: an architecture, classes, arguments, the message."""


@pytest.mark.parametrize("case", ARGUMENTS)
def test_an_argument_that_transformers_has_nothing_for_is_refused_by_name(case: str) -> None:
    name, classes, args, message = ARGUMENTS[case]
    narrow = NARROW if name.startswith(("vit", "deit")) else {}
    args = {**narrow, "img_size": 32, **args}
    size = args.pop("img_size")
    options = NetworkOptions(name, classes, img_size=size, args=args)
    with torch.device("meta"):
        network, model = build.create(options)
    shapes = {n: tuple(t.shape) for n, t in network.state_dict().items()}
    with pytest.raises(MismatchError, match=message):
        spelled_by_transformers(model, shapes, lambda name: np.zeros(shapes[name], np.float32))


def gate_last(network: Any) -> None:
    network.blocks[1].mlp.gate_last = True


def gate_by_gelu(network: Any) -> None:
    network.blocks[1].mlp.act = nn.GELU()


def approximate(network: Any) -> None:
    for block in network.blocks:
        block.mlp.act = nn.GELU(approximate="tanh")


def one_other_activation(network: Any) -> None:
    network.blocks[1].mlp.act = nn.ReLU()


def unscaled_mlp(network: Any) -> None:
    network.blocks[1].ls2 = nn.Identity()


def unscaled_block(network: Any) -> None:
    network.blocks[1].ls1 = network.blocks[1].ls2 = nn.Identity()


def other_heads(network: Any) -> None:
    network.blocks[1].attn.num_heads = 2


def other_eps(network: Any) -> None:
    network.blocks[1].norm2.eps = 1e-3


TAMPERED = {
    gate_last: ("SwiGLU", "blocks.1.mlp gates otherwise than SwiGLU"),
    gate_by_gelu: ("SwiGLU", "blocks.1.mlp gates otherwise than SwiGLU"),
    approximate: ("ViT", "blocks.0.mlp.act approximates by tanh"),
    one_other_activation: ("ViT", "blocks that differ"),
    unscaled_mlp: ("DINOv2", "blocks.1 has one LayerScale"),
    unscaled_block: ("DINOv2", "blocks that differ"),
    other_heads: ("ViT", "blocks that differ"),
    other_eps: ("ViT", r"norms of several eps \(1e-06, 0.001\)"),
}
"""What another version of timm might build: nothing but the network itself says it."""


@pytest.mark.parametrize("change", TAMPERED, ids=lambda change: change.__name__)
def test_a_network_whose_blocks_are_no_plain_ones_is_refused(change: Any) -> None:
    name, message = TAMPERED[change]
    architecture, classes, args = TIMM[name]
    with torch.device("meta"):
        network, _ = build.create(NetworkOptions(architecture, classes, img_size=32, args=args))
    of_network(network)
    change(network)
    with pytest.raises(MismatchError, match=message):
        of_network(network)


def test_a_negative_zero_is_a_number_that_is_kept(tmp_path: Path) -> None:
    _, model = hub_folder("DINOv2", tmp_path / "hub")
    state = {n: np.array(array) for n, array in arrays(tmp_path / "hub").items()}
    state["embeddings.position_embeddings"][:, 0] = -0.0
    saved(tmp_path / "x.st", state)
    with Checkpoint(tmp_path / "x.st") as source:
        assert of_timm(spelled(source, model, "timm").model).embedded
    state["embeddings.position_embeddings"][:, 0] = 0.0
    saved(tmp_path / "y.st", state)
    with Checkpoint(tmp_path / "y.st") as source:
        assert not of_timm(spelled(source, model, "timm").model).embedded


def test_positions_of_registers_are_refused_unless_they_are_zeros(tmp_path: Path) -> None:
    args = {**NARROW, "patch_size": 8, "no_embed_class": False}
    options = NetworkOptions("vit_small_patch14_reg4_dinov2", 5, img_size=32, args=args)
    network, model = build.create(options)
    state = {n: t.numpy() for n, t in stirred(network).state_dict().items()}
    saved(tmp_path / "bad.st", state)
    message = "pos_embed: has positions of register tokens"
    with Checkpoint(tmp_path / "bad.st") as source, pytest.raises(MismatchError, match=message):
        spelled(source, model, "hub")
    state["pos_embed"][:, 1:5] = 0
    saved(tmp_path / "good.st", state)
    with Checkpoint(tmp_path / "good.st") as source:
        spelling = spelled(source, model, "hub")
        written(source, spelling, tmp_path / "hub" / "model.safetensors")
    theirs = hubs_network(spelling.model, tmp_path / "hub" / "model.safetensors")
    assert_equal_outputs(outputs(network, model), outputs(theirs, model))


def test_an_architecture_that_cannot_be_the_network_is_refused(tmp_path: Path) -> None:
    _, model = hub_folder("ViT", tmp_path)
    cases = {
        "vit_small_patch14_dinov2": "cannot be a network of",
        "deit_tiny_distilled_patch16_224": "cannot be a network of",
        "vit_base_patch32_clip_224": "norm_pre is a LayerNorm",
        "resnet10t": "ResNet",
    }
    for name, message in cases.items():
        with Checkpoint(tmp_path) as source, pytest.raises(MismatchError, match=message) as fault:
            spelled(source, model, "timm", name=name)
        assert name in str(fault.value)


# --- qvec import --to -----------------------------------------------------------------------------


def hub_files(name: str, folder: Path, **processor: Any) -> nn.Module:
    """A folder as the hub has it: with labels and a word on how images are prepared."""
    network, _ = hub_folder(name, folder)
    config = json.loads((folder / "config.json").read_text())
    if "id2label" in config:
        names = ["a", "b", "c", "d", "e"][: len(config["id2label"])]
        config["id2label"] = {str(n): label for n, label in enumerate(names)}
        config["label2id"] = {label: n for n, label in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(config))
    words = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    words |= {"resample": 3, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
    (folder / "preprocessor_config.json").write_text(json.dumps({**words, **processor}))
    return network


def opened_card(path: Path) -> tuple[Card, Model]:
    with Checkpoint(path) as source:
        assert source.card.model is not None
        return source.card, Model.from_json(source.card.model)


def test_a_folder_of_transformers_becomes_a_file_of_timms_and_a_folder_again(
    tmp_path: Path,
) -> None:
    network = hub_files("ViT", tmp_path / "hub")
    done = call("import", tmp_path / "hub", "--to", "timm", "-o", tmp_path / "timm.st")
    assert "its ViTForImageClassification is a vit_base_patch8_224 of timm, with" in done.err
    card, model = opened_card(tmp_path / "timm.st")
    theirs = timms_network(model, tmp_path / "timm.st")
    assert_equal_outputs(outputs(network, model), outputs(theirs, model))
    assert card.data == {"name": "hub", "classes": ["a", "b", "c", "d", "e"]}
    assert model.pretrained_cfg["mean"] == pytest.approx([0.4, 0.5, 0.6])
    assert model.pretrained_cfg["crop_mode"] == "squash"
    linear = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert set(card.targets or ()) == {
        f"blocks.{n}.{part}.weight" for n in (0, 1) for part in linear
    }
    out = f"{tmp_path / 'again'}/"
    call("import", tmp_path / "timm.st", "--to", "hf", "-o", out)
    loaded = transformers.AutoModelForImageClassification.from_pretrained(out).eval()
    assert_equal_outputs(outputs(network, model), outputs(loaded, model))
    assert loaded.config.id2label == dict(enumerate("abcde"))
    assert raw(tmp_path / "hub") == raw(tmp_path / "again")
    read = json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())
    assert read["image_mean"] == pytest.approx([0.4, 0.5, 0.6])
    assert read["size"] == {"height": 32, "width": 32}
    again, _ = opened_card(tmp_path / "again")
    assert len(again.targets or ()) == 2 * (3 + 1 + 2)
    assert again.data == card.data


@pytest.mark.parametrize("name", ["ViT without classes", "DeiT with teacher", "DINOv2"])
def test_every_kind_of_head_goes_there_and_back_through_files(name: str, tmp_path: Path) -> None:
    network = hub_files(name, tmp_path / "hub")
    call("import", tmp_path / "hub", "--to", "timm", "-o", tmp_path / "timm.st")
    _, model = opened_card(tmp_path / "timm.st")
    theirs = timms_network(model, tmp_path / "timm.st")
    assert_equal_outputs(outputs(network, model), outputs(theirs, model))
    call("import", tmp_path / "timm.st", "--to", "hf", "-o", tmp_path / "again.st")
    _, model = opened_card(tmp_path / "again.st")
    assert_equal_outputs(outputs(network, model), outputs(built(tmp_path / "again.st"), model))
    call("import", tmp_path / "timm.st", "--to", "hf", "-o", f"{tmp_path / 'again'}/")
    kind = getattr(transformers, model.architecture)
    loaded, report = kind.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not any(report.values()), report
    assert_equal_outputs(outputs(network, model), outputs(loaded.eval(), model))


def built(path: Path) -> nn.Module:
    """The network that qvec itself builds of a file."""
    with Checkpoint(path) as source:
        model = stated_model(source)
        assert model is not None
        return load_network(source, model, "cpu").eval()


def test_a_vector_of_timms_donors_patches_a_receiver_of_transformers(
    drawer: Drawer, tmp_path: Path
) -> None:
    """The receiver as others would have it: transformers wrote it, and nothing of qvec is in it."""
    call("import", drawer.receiver, "--to", "hf", "-o", f"{tmp_path / 'mine'}/")
    kind = transformers.ViTForImageClassification
    kind.from_pretrained(tmp_path / "mine").save_pretrained(tmp_path / "theirs")
    made = (tmp_path / "mine" / "preprocessor_config.json").read_text()
    (tmp_path / "theirs" / "preprocessor_config.json").write_text(made)
    named = ("--model", "test_vit", "--to", "timm")
    call("import", tmp_path / "theirs", *named, "-o", tmp_path / "receiver.st")
    data = ("--data", drawer.receiver_data, "--json")
    paths = (drawer.receiver, tmp_path / "receiver.st", tmp_path / "theirs")
    results = [json.loads(call("eval", path, *data).out)["results"] for path in paths]
    assert len({result["n_correct"] for result in results}) == 1
    assert max(r["loss"] for r in results) == pytest.approx(min(r["loss"] for r in results), 1e-4)
    for path, out in ((drawer.receiver, "a.st"), (tmp_path / "receiver.st", "b.st")):
        call("patch", path, drawer.rho, "--lambda", 0.5, "-o", tmp_path / out)
    assert raw(tmp_path / "a.st") == raw(tmp_path / "b.st")


def test_what_a_card_knows_travels_into_the_other_spelling_and_back(
    drawer: Drawer, tmp_path: Path
) -> None:
    call("import", drawer.donor_qat, "--to", "hf", "-o", f"{tmp_path / 'hub'}/")
    call("import", tmp_path / "hub", "--to", "timm", "--model", "test_vit", "-o", tmp_path / "x.st")
    (first, model), (last, again) = opened_card(drawer.donor_qat), opened_card(tmp_path / "x.st")
    assert of_timm(model) == of_timm(again)
    parts = ("kind", "role", "data", "quant", "targets", "base", "recipe", "digest")
    assert {p: getattr(first, p) for p in parts} == {p: getattr(last, p) for p in parts}


def test_images_of_dinov2_are_prepared_at_its_own_size_or_it_is_refused(tmp_path: Path) -> None:
    network = hub_files("DINOv2", tmp_path / "hub", size={"height": 24, "width": 24})
    out = tmp_path / "timm.st"
    done = call("import", tmp_path / "hub", "--to", "timm", "-o", out, code=1)
    assert "image_size is 32, and images are prepared at 24 px" in done.err
    assert "--img-size 32" in done.err
    done = call("import", tmp_path / "hub", "--to", "timm", "--img-size", 24, "-o", out, code=1)
    assert "--to takes a network at its own size and channels" in done.err
    call("import", tmp_path / "hub", "--to", "timm", "--img-size", 32, "-o", out)
    _, model = opened_card(out)
    assert model.input_size == (3, 32, 32)
    assert_equal_outputs(outputs(network, model), outputs(timms_network(model, out), model))


def test_a_dry_run_tells_what_each_tensor_is_made_of(tmp_path: Path) -> None:
    hub_files("DINOv2 with registers", tmp_path / "hub")
    args = ("import", tmp_path / "hub", "--to", "timm", "-o", tmp_path / "x.st", "--dry-run")
    plan = json.loads(call(*args, "--json").out)["results"]["plan"]
    fates = {tensor["name"]: tensor["fate"] for tensor in plan["tensors"]}
    attention = "encoder.layer.0.attention.attention"
    three = ", ".join(f"{attention}.{part}.bias" for part in ("query", "key", "value"))
    assert fates["blocks.0.attn.qkv.bias"] == f"made of {three}"
    positions = "embeddings.position_embeddings"
    assert fates["pos_embed"] == f"made of {positions}, zeros, {positions}"
    assert not (tmp_path / "x.st").exists()
    call(*args[:-1])
    assert plan["bytes_out"] == (tmp_path / "x.st").stat().st_size


def test_an_eps_that_timm_has_no_word_for_is_refused_in_a_folder_alone(tmp_path: Path) -> None:
    hub_files("ViT", tmp_path / "hub")
    out = f"{tmp_path / 'timm'}/"
    done = call("import", tmp_path / "hub", "--to", "timm", "-o", out, code=1)
    assert "norm_layer {'eps': 1e-12}: timm has no word for an eps in a folder" in done.err
    assert not (tmp_path / "timm").exists()
    hub_files("DINOv2", tmp_path / "dino")
    call("import", tmp_path / "dino", "--to", "timm", "-o", out)
    assert json.loads((tmp_path / "timm" / "config.json").read_text())["model_type"] == (
        "timm_wrapper"
    )


def test_only_a_float_network_of_the_other_library_changes_its_spelling(
    drawer: Drawer, tmp_path: Path
) -> None:
    packed, fake, tensor = (tmp_path / f"{name}.st" for name in ("packed", "fake", "tensor"))
    call("quantize", drawer.receiver, "--bits", 4, "-o", packed)
    call("quantize", drawer.receiver, "--bits", 4, "--fake", "-o", fake)
    with Checkpoint(drawer.donor_qat) as source:
        quant = {**(source.card.quant or {}), "granularity": "tensor"}
        plan = {name: Entry(entry.dtype, entry.shape) for name, entry in source.items()}
        tensors = ((name, source.blocks(name)) for name in source)
        write(tensor, plan, tensors, replace(source.card, quant=quant), force=False)
    with_moments = tmp_path / "moments.st"
    images = ("--data", drawer.receiver_data, "--samples", 4)
    call("moments", drawer.receiver, *images, "-o", with_moments)
    cases: dict[Path, tuple[tuple[object, ...], str]] = {
        packed: (("--to", "hf"), "is quantized already, to 4-bit"),
        fake: (("--to", "hf"), "is quantized already, to 4-bit"),
        drawer.rho: (("--to", "hf"), "is a vector, a checkpoint belongs here"),
        with_moments: (("--to", "hf"), "is a file of moments"),
        tensor: (("--to", "hf"), "was made for one scale a tensor"),
        drawer.receiver: (("--to", "timm"), "is a network of timm already"),
        drawer.base: (("--to", "hf", "--model", "test_vit"), "--model names a network of timm's"),
        drawer.donor: (("--to", "hf", "--img-size", 64), "has a card already, which says"),
    }
    for path, (flags, message) in cases.items():
        done = call("import", path, *flags, "-o", tmp_path / "out.st", code=1)
        assert f"{path}: {message}" in done.err
    assert not (tmp_path / "out.st").exists()


def test_other_sizes_come_before_another_spelling(drawer: Drawer, tmp_path: Path) -> None:
    saved(tmp_path / "bare.st", arrays(drawer.receiver))
    with Checkpoint(tmp_path / "bare.st") as source:
        tensors = {name: torch.from_numpy(np.array(source.array(name))) for name in source}
    torch.save(tensors, tmp_path / "bare.pth")
    args = (tmp_path / "bare.pth", "--model", "test_vit", "--img-size", 64)
    done = call("import", *args, "--to", "hf", "-o", tmp_path / "x.st", code=1)
    assert "--to takes a network at its own size and channels" in done.err
    call("import", *args, "-o", tmp_path / "64.st")
    call("import", tmp_path / "64.st", "--to", "hf", "-o", tmp_path / "x.st")
    _, model = opened_card(tmp_path / "x.st")
    assert model.model_args["image_size"] == 64


def test_tied_tensors_are_not_converted(drawer: Drawer, tmp_path: Path) -> None:
    with Checkpoint(drawer.receiver) as source:
        names = [name for name in source if name != "norm.bias"]
        plan = {name: Entry(source[name].dtype, source[name].shape) for name in names}
        card = replace(source.card, aliases={"norm.bias": "blocks.0.norm1.bias"})
        tensors = ((name, source.blocks(name)) for name in names)
        write(tmp_path / "tied.st", plan, tensors, card, force=False)
    done = call("import", tmp_path / "tied.st", "--to", "hf", "-o", tmp_path / "x.st", code=1)
    assert "norm.bias: is tied to blocks.0.norm1.bias" in done.err
