"""timm's configurations: refused where they cannot be, and compared by what shapes a backbone."""

import json
from dataclasses import asdict, replace

import pytest
import timm
from timm.models import save_for_hf

from qvec_cli.errors import MismatchError
from qvec_cli.model.build import NetworkOptions, create, rebuild
from qvec_cli.model.configuration import Model, of_config, same_backbone

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


def test_what_was_created_passes_and_any_field_that_is_damaged_does_not():
    assert Model.from_json(PICO.to_json()) == PICO
    for name in asdict(PICO):
        with pytest.raises(MismatchError, match=name):
            Model.from_json({**PICO.to_json(), name: None})
    with pytest.raises(MismatchError, match="checkpoint_path"):
        Model.from_json(with_args(checkpoint_path="evil.pt").to_json())


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
