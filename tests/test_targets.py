"""Which weights are quantized: two rules, one answer; and whose tensors the classifier's are."""

import pytest
import torch
from torch import nn

from qvec_cli.errors import MismatchError
from qvec_cli.model.build import NetworkOptions, create
from qvec_cli.model.configuration import Model
from qvec_cli.model.targets import (
    HEADS,
    classifiers,
    head_tensors,
    matching,
    modules,
    of_network,
    of_outline,
)


def model_with(classifier=None):
    """The configuration of no network of timm's, whose classifier has a name or several."""
    return Model("none", 3, {}, {"classifier": classifier})


def _network(name):
    """A network without values, which is made in a moment, and its configuration."""
    with torch.device("meta"):
        return create(NetworkOptions(name, 10))


def _shapes(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def test_a_vit_base_has_the_papers_48_matrices_84934656_weights_and_82944_rows():
    network, model = _network("vit_base_patch16_224")
    shapes = [_shapes(network)[name] for name in of_network(network, model)]
    assert len(shapes) == 48
    assert sum(rows * columns for rows, columns in shapes) == 84_934_656
    assert sum(rows for rows, _ in shapes) == 82_944


def test_the_targets_of_a_vit_are_four_in_each_block_in_its_order():
    network, model = _network("vit_tiny_patch16_224")
    assert of_network(network, model) == tuple(
        f"blocks.{i}.{part}.weight"
        for i in range(12)
        for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    )


def test_a_network_whose_mlps_are_convolutions_has_no_target():
    network, model = _network("convnext_atto")
    assert (
        of_network(network, model)
        == of_outline(_shapes(network), head_tensors(_shapes(network), model))
        == ()
    )


class Attention(nn.Module):
    """What open_clip is built of."""

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2)
        self.ln = nn.LayerNorm(8)
        self.conv = nn.Conv2d(3, 8, 2)
        self.table = nn.Embedding(5, 8)
        self.head = nn.Linear(8, 3)


def test_the_fused_projection_of_an_attention_counts():
    network = Attention()
    expected = ("attn.in_proj_weight", "attn.out_proj.weight")
    assert of_network(network, None) == expected
    shapes = {n: s for n, s in _shapes(network).items() if not n.startswith("table")}
    assert of_outline(shapes, head_tensors(shapes, None)) == expected


def test_an_attention_has_its_projections_fused_or_each_of_its_own():
    three = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    for widths, parts in (({}, ("in_proj_weight",)), ({"kdim": 6}, three), ({"vdim": 6}, three)):
        network = nn.MultiheadAttention(8, 2, **widths)
        assert of_network(network, None) == (*parts, "out_proj.weight")
        assert of_outline(_shapes(network), ()) == (*parts, "out_proj.weight")


class Tied(nn.Module):
    """Two places, one module, as in CoaT."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first


def test_a_weight_under_two_names_is_a_target_under_both():
    network = Tied()
    assert set(of_network(network, None)) == {"first.weight", "second.weight"}
    assert of_outline(_shapes(network), ()) == ("first.weight", "second.weight")


def test_a_network_that_is_one_matrix_has_it_as_target():
    assert of_network(nn.Linear(3, 4), None) == ("weight",)
    assert of_outline({"weight": (4, 3), "bias": (4,)}, ()) == ("weight",)


NOT_LINEAR = (
    *("patch_embed.proj.weight", "conv.weight"),
    *("pos_embed", "cls_token", "embed.weight", "embeddings.weight", "token_embedding.weight"),
    *("word_embeddings.weight", "position_embeddings.weight"),
    *("attn.relative_position_bias_table", "attn.relative_position_bias.weight"),
    *("attn.attention_biases", "norm.weight", "bias"),
    *("head.weight", "head_dist.weight", "head.fc.weight", "classifier.weight"),
)


def test_the_outline_leaves_out_what_is_no_linear_weight():
    for name in NOT_LINEAR:
        shape = (8, 3, 2, 2) if name in ("patch_embed.proj.weight", "conv.weight") else (8, 6)
        both = {name: shape, "fc1.weight": (4, 6)}
        assert of_outline(both, head_tensors(both, None)) == ("fc1.weight",), name


def test_only_matrices_with_elements_are_targets():
    for shape in ((), (6,), (2, 3, 4), (8, 3, 2, 2), (0, 6), (6, 0)):
        assert of_outline({"fc1.weight": shape}, ()) == (), shape


def test_heads_are_told_by_the_configuration_or_by_the_usual_names():
    assert classifiers(None) == classifiers(model_with()) == HEADS
    assert classifiers(model_with("fc")) == ("fc",)
    assert classifiers(model_with(["head", "head_dist"])) == ("head", "head_dist")


def test_the_head_is_its_weight_and_bias_and_nothing_that_only_begins_alike():
    names = ("head.weight", "head.bias", "head.norm.weight", "head_norm.weight", "xhead.weight")
    assert head_tensors(names, model_with("head")) == ("head.weight", "head.bias")


def test_a_module_that_is_skipped_is_not_visited():
    network = Attention()
    found = [prefix + attribute for prefix, _, attribute in modules(network, ["attn.out_proj"])]
    assert found == ["attn.in_proj_weight", "head.weight"]


SHAPES = {
    "blocks.0.fc1.weight": (4, 6),
    "blocks.0.fc1.bias": (4,),
    "blocks.1.fc1.weight": (4, 6),
    "head.weight": (3, 4),
}


def test_globs_choose_matrices_each_once():
    first, second = "blocks.0.fc1.weight", "blocks.1.fc1.weight"
    assert matching(["blocks.*"], SHAPES) == (first, second)
    assert matching(["blocks.1.*", "blocks.*"], SHAPES) == (second, first)
    assert matching(["head.weight"], SHAPES) == ("head.weight",)
    every = ["blocks.[0-1].fc?.weight", "*.weight"]
    assert matching(every, SHAPES) == (first, second, "head.weight")
    assert matching([], SHAPES) == ()


def test_a_glob_that_matches_no_matrix_is_refused():
    for pattern in ("blocks.9.*", "*.bias", "BLOCKS.*", "", "fc1.weight"):
        with pytest.raises(MismatchError, match="--targets"):
            matching(["head.weight", pattern], SHAPES)
