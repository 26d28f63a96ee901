"""timm's configurations: refused where they cannot be, and compared by what shapes a backbone."""

import contextlib
import json
import math
import random
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf

from qvec_cli.errors import MismatchError, SpecError
from qvec_cli.export import timm_folder
from qvec_cli.model.build import NetworkOptions, create, rebuild
from qvec_cli.model.configuration import Model, of_config, same_backbone, to_config

PICO = create(NetworkOptions("test_vit", 3, img_size=32))[1]


def with_args(**args):
    return replace(PICO, model_args={**PICO.model_args, **args})


def test_configurations_of_one_backbone_do_not_differ_by_their_heads():
    _, other = create(NetworkOptions("test_vit", 37, img_size=32))
    assert same_backbone(PICO, other) == []
    assert same_backbone(PICO, replace(other, architecture="x")) == ["architecture test_vit vs x"]
    larger = replace(other, model_args={"img_size": 64, "depth": 2})
    assert same_backbone(PICO, larger) == ["depth None vs 2", "img_size 32 vs 64"]


def test_neither_pooling_nor_dropout_shapes_a_backbone_and_other_arguments_do():
    for name in ("global_pool", "drop_rate", "drop_path_rate", "proj_drop_rate"):
        assert same_backbone(PICO, with_args(**{name: 1})) == []
    for name in ("num_heads", "depth", "qk_norm", "in_chans"):
        assert same_backbone(PICO, with_args(**{name: 1})) == [f"{name} None vs 1"]


def test_the_eps_of_norms_shapes_no_backbone_and_another_kind_of_norm_does():
    other = with_args(norm_layer={"eps": 1e-12})
    assert same_backbone(PICO, other) == same_backbone(other, PICO) == []
    strange = with_args(norm_layer="rmsnorm")
    assert same_backbone(other, strange) == ["norm_layer {'eps': 1e-12} vs rmsnorm"]


def test_a_card_says_the_eps_of_norms_and_a_config_of_timms_cannot():
    other = with_args(norm_layer={"eps": 0.25})
    assert Model.from_json(other.to_json()) == other
    norms = [m for m in rebuild(other).modules() if isinstance(m, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {0.25}
    assert len(norms) > 2
    with pytest.raises(MismatchError, match=r"norm_layer \{'eps': 0.25\}: timm has no word"):
        to_config(other, None)
    with pytest.raises(MismatchError, match="norm_layer"):
        timm_folder.config(other, {}, 64, None)
    for damaged in ({"eps": "1"}, {"eps": -1.0}, {"eps": 1.0, "x": 1}, {}, {"eps": True}):
        with pytest.raises(SpecError, match="norm_layer"):
            rebuild(with_args(norm_layer=damaged))


def test_what_was_created_passes_and_any_field_that_is_damaged_does_not():
    assert Model.from_json(PICO.to_json()) == PICO
    for name in (*PICO.to_json(), "library"):
        with pytest.raises(MismatchError, match=name):
            Model.from_json({**PICO.to_json(), name: None})
    with pytest.raises(MismatchError, match="checkpoint_path"):
        Model.from_json(with_args(checkpoint_path="evil.pt").to_json())


HOSTILE: dict[str, list[Any]] = {
    "num_classes": [-1, 10**30, True, 1.5, "3"],
    "architecture": [7, None, []],
    "model_args": [
        {"embed_dim": 10**9},
        {"embed_dim": -(10**400)},
        {"depth": 10**7},
        {"depths": [2, 10**5]},
        {"img_size": [10**6, 224]},
        {"mlp_ratio": 1e300},
        {"mlp_ratio": math.inf},
        {"drop_rate": math.nan},
        {"act_layer": "x" * 10**6},
        {"norm_kwargs": {"a": {"b": {"c": {"d": {"e": 1}}}}}},
        {"blocks": [[]] * 10**5},
    ],
    "pretrained_cfg.input_size": [
        None,
        [3, 10**6, 10**6],
        [3, 0, 32],
        [10**6, 32, 32],
        [3, 32.0, 32],
    ],
    "pretrained_cfg.crop_pct": ["x", 1e308, 1e-300, 0, math.nan, 10**400],
    "pretrained_cfg.interpolation": [5, None, "x" * 10**6],
    "pretrained_cfg.mean": ["a", [1, 2], [math.inf] * 3, [10**400] * 3, []],
    "pretrained_cfg.std": [[0.0] * 3, [-1] * 3, [1, 2]],
    "pretrained_cfg.classifier": [5, [None], {}],
}


def replaced(path: str, value: Any) -> dict[str, Any]:
    """PICO's JSON with one field of another value."""
    whole = json.loads(json.dumps(PICO.to_json()))
    *outer, name = path.split(".")
    place = whole[outer[0]] if outer else whole
    place[name] = value
    return dict(whole)


@pytest.mark.parametrize("path", HOSTILE)
def test_a_card_asks_for_nothing_that_a_machine_would_choke_on(path: str) -> None:
    for value in HOSTILE[path]:
        with pytest.raises(MismatchError, match="damaged"):
            Model.from_json(replaced(path, value))


def test_no_mutation_of_a_card_is_anything_but_a_model_or_a_mismatch() -> None:
    dice = random.Random(0)
    values = [v for each in HOSTILE.values() for v in each] + [0, 3, 1e-9, "head", [3, 8, 8], {}]
    paths = [*HOSTILE, *(f"pretrained_cfg.{key}" for key in PICO.pretrained_cfg)]
    kept = 0
    for _ in range(2000):
        card = replaced(dice.choice(paths), dice.choice(values))
        with contextlib.suppress(MismatchError):
            model = Model.from_json(card)
            assert max(model.input_size) <= 8192
            assert 0 <= model.num_classes <= 10**7
            kept += 1
    assert 0 < kept < 1000


@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_patch16_224"])
def test_a_config_of_timm_makes_the_network_that_it_was_saved_from(name, tmp_path):
    network = timm.create_model(name, num_classes=4, img_size=64, global_pool="avg")
    save_for_hf(network, tmp_path)
    model = of_config(json.loads((tmp_path / "config.json").read_text()))
    assert model is not None
    assert model.pretrained_cfg["input_size"] == [3, 64, 64]
    ours, theirs = rebuild(model).state_dict(), network.state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}


def test_a_config_of_others_is_none():
    for config in ({}, {"pretrained_cfg": 1}, {"pretrained_cfg": {}}):
        assert of_config(config) is None
