"""Every network that timm can make: heads are found, and both rules choose the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from qvec_cli.errors import SpecError
from qvec_cli.model.build import NetworkOptions, create
from qvec_cli.model.targets import HEADS, classifiers, head_tensors, of_network, of_outline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NO_CLASSIFIER = {
    *("deepseek_vit_412m_enc", "gemma4_vit_167m_enc", "gemma4_vit_570m_enc"),
    *("mobilenetv5_300m_enc", "qwen3_vit_88m_enc", "qwen3_vit_306m_enc", "qwen3_vit_416m_enc"),
}
"""Encoders for language models: refused by name."""

BANKS_OF_KERNELS = {
    f"{prefix}efficientnet_cc_{size}"
    for prefix in ("", "tf_")
    for size in ("b0_4e", "b0_8e", "b1_8e")
}
"""Convolutions whose kernels are mixed image by image: a bank of them is stored as a matrix.

Their names would tell, but another house's ConvNeXt calls its linear layers pwconv1 and pwconv2.
"""


def _made(name: str, classes: int) -> tuple[nn.Module, dict[str, Any]]:
    with torch.device("meta"):
        return create(NetworkOptions(name, classes))


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    state = network.state_dict()
    return {n: tuple(t.shape) for n, t in state.items() if t.is_floating_point()}


def _names(family: str) -> list[str]:
    return [n for n in timm.list_models(module=family) if n not in NO_CLASSIFIER]


def _check(name: str) -> list[str]:
    """What is wrong with a network."""
    network, model = _made(name, 11)
    ours, theirs = _shapes(network), _shapes(_made(name, 13)[0])
    head, targets = set(head_tensors(ours, model)), set(of_network(network, model))
    differ = {tensor for tensor in ours if ours[tensor] != theirs[tensor]}
    linears = {
        f"{place}.weight"
        for place, module in network.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear)
    }
    usual, bare = set(classifiers(model)) <= set(HEADS), head_tensors(ours, None)
    laws = {
        "no head": bool(head),
        "head is not what classes shape": head == differ,
        "head of another size": {ours[tensor][0] for tensor in head} == {11},
        "not every linear layer": targets == linears - head,
        "outline differs": (set(of_outline(ours, head)) == targets) ^ (name in BANKS_OF_KERNELS),
        "bare outline differs": of_outline(ours, bare) == of_outline(ours, head) or not usual,
        "a bare file hides its head": head <= set(bare),
    }
    return [f"{name}: {law}" for law, holds in laws.items() if not holds]


@pytest.mark.parametrize("family", [f for f in timm.list_modules() if _names(f)])
def test_heads_and_targets_are_right_in_every_network_of_a_family(family: str) -> None:
    assert [fault for name in _names(family) for fault in _check(name)] == []


@pytest.mark.parametrize("name", sorted(NO_CLASSIFIER))
def test_an_encoder_without_a_classifier_is_refused(name: str) -> None:
    if not timm.is_model(name):
        pytest.skip("not in this timm")
    with pytest.raises(SpecError, match="no classifier"):
        _made(name, 11)
