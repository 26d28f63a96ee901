"""open_clip's networks: a file says nothing but names, and projections are fused or bare."""

from __future__ import annotations

import copy
from collections import OrderedDict
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call
from safetensors.numpy import load_file, save_file
from test_targets import model_with
from torch import Tensor, nn

from qvec_cli.model.qat import plain_name, prepare, strip
from qvec_cli.model.targets import head_tensors, of_network, of_outline
from qvec_cli.quant.scales import fake_quantize
from qvec_cli.specs import Grid

WIDTH, TEXT, JOINT, POOLED = 32, 24, 16, 20
NO_CLASSIFIER = model_with("none")


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        layers = {"c_fc": nn.Linear(width, 2 * width), "gelu": nn.GELU()}
        self.mlp = nn.Sequential(OrderedDict(layers, c_proj=nn.Linear(2 * width, width)))

    def forward(self, x: Tensor) -> Tensor:
        seen = self.ln_1(x)
        x = x + self.attn(seen, seen, seen, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x)
        return x


class Pooler(nn.Module):
    """CoCa's: queries of one width look at tokens of another, so projections are not fused."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(3, POOLED))
        self.attn = nn.MultiheadAttention(POOLED, 2, kdim=WIDTH, vdim=WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        query = self.query.expand(len(x), -1, -1)
        pooled: Tensor = self.attn(query, x, x, need_weights=False)[0]
        return pooled.mean(1)


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn(5, WIDTH))
        self.proj = nn.Parameter(torch.randn(POOLED, JOINT))
        self.conv1 = nn.Conv2d(3, WIDTH, 4, 4, bias=False)
        self.ln_pre = nn.LayerNorm(WIDTH)
        self.transformer = Blocks(WIDTH)
        self.attn_pool = Pooler()
        self.ln_post = nn.LayerNorm(POOLED)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(images), 1, -1)
        x = self.ln_pre(torch.cat([first, patches], 1) + self.positional_embedding)
        return self.ln_post(self.attn_pool(self.transformer(x))) @ self.proj


class Clip(nn.Module):
    """Both towers under open_clip's names."""

    def __init__(self) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(6, TEXT))
        self.text_projection = nn.Parameter(torch.randn(TEXT, JOINT))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.visual = Tower()
        self.transformer = Blocks(TEXT)
        self.token_embedding = nn.Embedding(11, TEXT)
        self.ln_final = nn.LayerNorm(TEXT)

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        words = self.transformer(self.token_embedding(tokens) + self.positional_embedding)
        text = self.ln_final(words).mean(1) @ self.text_projection
        return self.logit_scale * self.visual(images) @ text.T


def _blocks(place: str) -> list[str]:
    parts = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    return [f"{place}.resblocks.{i}.{part}" for i in (0, 1) for part in parts]


TARGETS = [
    *_blocks("visual.transformer"),
    *(f"visual.attn_pool.attn.{part}_proj_weight" for part in "qkv"),
    "visual.attn_pool.attn.out_proj.weight",
    *_blocks("transformer"),
]
ALONE = {  # what else has two or more dimensions
    *("positional_embedding", "text_projection", "token_embedding.weight"),
    *("visual.positional_embedding", "visual.proj", "visual.conv1.weight"),
    "visual.attn_pool.query",
}


@pytest.fixture
def clip() -> Clip:
    torch.manual_seed(0)
    return Clip()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(4, 3, 8, 8), torch.randint(11, (5, 6))


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def test_projections_and_linear_layers_are_quantized_and_nothing_else(clip: Clip) -> None:
    assert list(of_network(clip, NO_CLASSIFIER)) == TARGETS
    matrices = {name for name, shape in _shapes(clip).items() if len(shape) > 1}
    assert matrices - set(TARGETS) == ALONE


def test_names_and_shapes_alone_choose_the_same_weights(clip: Clip) -> None:
    assert sorted(of_outline(_shapes(clip), ())) == sorted(TARGETS)


def test_a_network_without_a_classifier_keeps_no_tensor_back(clip: Clip) -> None:
    assert head_tensors(_shapes(clip), None) == ()


def test_a_linear_projection_of_the_text_counts_like_any_other_linear_layer() -> None:
    """As in the towers of SigLIP, where it is no bare parameter."""
    network = nn.ModuleDict({"text": nn.ModuleDict({"text_projection": nn.Linear(TEXT, JOINT)})})
    assert of_network(network, NO_CLASSIFIER) == ("text.text_projection.weight",)
    assert of_outline(_shapes(network), ()) == ("text.text_projection.weight",)


def test_a_prepared_network_computes_with_its_weights_on_the_grid(
    clip: Clip, batch: tuple[Tensor, Tensor]
) -> None:
    """Without gradients, attention takes a fast path of its own, which must see them too."""
    state = clip.state_dict()
    state |= {name: torch.as_tensor(fake_quantize(state[name], Grid(3))) for name in TARGETS}
    shipped, plain = copy.deepcopy(clip), copy.deepcopy(clip)
    shipped.load_state_dict(state)
    prepare(clip, NO_CLASSIFIER, Grid(3))
    for training, gradients in product((False, True), repeat=2):
        networks = [network.train(training) for network in (clip, shipped, plain)]
        with torch.set_grad_enabled(gradients):
            output, expected, untouched = (network(*batch) for network in networks)
        assert torch.equal(output, expected)
        assert not torch.equal(output, untouched)


def test_every_target_learns_through_its_rounding(clip: Clip, batch: tuple[Tensor, Tensor]) -> None:
    prepare(clip, NO_CLASSIFIER, Grid(3))
    clip(*batch).square().sum().backward()
    gradients = {plain_name(name): p.grad for name, p in clip.named_parameters()}
    assert [t for t in TARGETS if gradients[t] is None or not gradients[t].any()] == []


def test_stripping_gives_names_and_values_back(clip: Clip) -> None:
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    prepare(clip, NO_CLASSIFIER, Grid(3))
    strip(clip)
    after = clip.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_bare_file_is_quantized_in_its_targets_only(clip: Clip, tmp_path: Path) -> None:
    theta = {name: tensor.numpy() for name, tensor in clip.state_dict().items()}
    save_file(theta, tmp_path / "clip.st")
    call(
        "quantize",
        tmp_path / "clip.st",
        "--no-head",
        "--bits",
        3,
        "--fake",
        "-o",
        tmp_path / "q.st",
    )
    found = load_file(tmp_path / "q.st")
    assert {name for name in theta if not np.array_equal(found[name], theta[name])} == set(TARGETS)


def test_a_vector_of_bare_files_moves_every_tensor(clip: Clip, tmp_path: Path) -> None:
    fp = {name: tensor.numpy() for name, tensor in clip.state_dict().items()}
    qat = {name: np.asarray(array + np.float32(0.5)) for name, array in fp.items()}
    for name, arrays in (("fp", fp), ("qat", qat)):
        save_file(arrays, tmp_path / f"{name}.st")
    call("extract", tmp_path / "fp.st", tmp_path / "qat.st", "--no-head", "-o", tmp_path / "rho.st")
    assert load_file(tmp_path / "rho.st").keys() == fp.keys()
    call("patch", tmp_path / "fp.st", tmp_path / "rho.st", "--no-head", "-o", tmp_path / "p.st")
    patched = load_file(tmp_path / "p.st")
    assert all(np.array_equal(patched[name], fp[name] + (qat[name] - fp[name])) for name in fp)
