"""open_clip's networks: a file says nothing but names, and projections are fused or bare."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import call
from safetensors.numpy import load_file, save_file
from test_targets import model_with
from torch import Tensor, nn

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.inputs.files import model_of
from qvec_cli.inputs.network import load_network
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


# --- qvec import --to hf --------------------------------------------------------------------------

SIDE, PATCH, HEADS = 24, 8, 4
VISION: dict[str, Any] = {
    "image_size": SIDE,
    "patch_size": PATCH,
    "layers": 2,
    "width": WIDTH,
    "head_width": WIDTH // HEADS,
    "mlp_ratio": 2.0,
}
IMAGES: dict[str, Any] = {
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.3, 0.25],
    "interpolation": "bilinear",
    "resize_mode": "squash",
}


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class PlainTower(nn.Module):
    """A class token, a norm before the blocks, the token's features through a bare matrix."""

    def __init__(self, activation: nn.Module, width: int, heads: int) -> None:
        super().__init__()
        patches = (SIDE // PATCH) ** 2
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(patches + 1, width))
        self.proj = nn.Parameter(torch.randn(width, JOINT))
        self.conv1 = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Blocks(width)
        for block in self.transformer.resblocks:
            block.attn.num_heads, block.attn.head_dim = heads, width // heads
            block.mlp.gelu = activation

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(images), 1, -1)
        x = self.ln_pre(torch.cat([first, patches], 1) + self.positional_embedding)
        return self.ln_post(self.transformer(x)[:, 0]) @ self.proj


def clip_file(
    folder: Path,
    activation: nn.Module,
    config: dict[str, Any] | None,
    width: int = WIDTH,
    heads: int = HEADS,
) -> Clip:
    """A file as open_clip writes it, no number of it that of a new network."""
    torch.manual_seed(2)
    clip = Clip()
    clip.visual = PlainTower(activation, width, heads)  # type: ignore[assignment]
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.numpy() for n, t in clip.state_dict().items()}, folder / "open_clip_model.st")
    if config is not None:
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    return clip.eval()


def configured(quick: bool, **vision: Any) -> dict[str, Any]:
    words = {"quick_gelu": True} if quick else {}
    model = {"embed_dim": JOINT, "vision_cfg": {**VISION, **vision}, **words}
    return {"model_cfg": model, "preprocess_cfg": IMAGES}


@pytest.mark.parametrize("quick", [False, True])
def test_the_vision_tower_becomes_transformers_clip_and_computes_the_same(
    quick: bool, tmp_path: Path
) -> None:
    library = pytest.importorskip("transformers", reason="qvec[hf] is not installed")
    clip = clip_file(tmp_path, QuickGELU() if quick else nn.GELU(), configured(quick))
    done = call("import", tmp_path / "open_clip_model.st", "--to", "hf", "-o", f"{tmp_path}/out/")
    act = "quick_gelu" if quick else "gelu"
    assert f"is a CLIPVisionModelWithProjection of transformers with {act}" in done.err
    images = torch.randn(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    kind = library.CLIPVisionModelWithProjection
    stock, report = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    with Checkpoint(tmp_path / "out") as theta:
        model = model_of(theta)
        ours = load_network(theta, model, "cpu").eval()
        targets = set(theta.card.targets or ())
    with torch.no_grad():
        theirs = clip.visual(images)
        for network in (stock.eval(), ours):
            answer = network(images)
            answer = answer if isinstance(answer, Tensor) else answer.image_embeds
            assert (answer - theirs).abs().max() < 2e-6 * theirs.abs().max()
    assert targets == set(of_network(ours, model))
    assert len(targets) == 2 * (3 + 1 + 2)
    data = {key: model.pretrained_cfg[key] for key in ("mean", "std", "crop_mode")}
    assert data == {"mean": IMAGES["mean"], "std": IMAGES["std"], "crop_mode": "squash"}
    processor = library.AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert [*processor.image_mean] == IMAGES["mean"]


def test_without_a_configuration_the_user_says_the_activation_alone(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="qvec[hf] is not installed")
    clip = clip_file(tmp_path, QuickGELU(), None, width=128, heads=2)
    file, out = tmp_path / "open_clip_model.st", tmp_path / "x.st"
    refused = call("import", file, "--to", "hf", "-o", out, code=1)
    assert "no tensor tells its activation, and no open_clip_config.json beside it" in refused.err
    call("import", file, "--to", "hf", "--model-arg", "hidden_act=quick_gelu", "-o", out)
    images = torch.randn(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    with Checkpoint(out) as theta, torch.no_grad():
        model = model_of(theta)
        ours, theirs = load_network(theta, model, "cpu").eval()(images), clip.visual(images)
    assert (ours - theirs).abs().max() < 2e-6 * theirs.abs().max()
    assert model.pretrained_cfg["mean"][0] == 0.48145466


def test_a_tower_goes_the_whole_way_to_few_bits(tmp_path: Path) -> None:
    library = pytest.importorskip("transformers", reason="qvec[hf] is not installed")
    pytest.importorskip("compressed_tensors")
    clip_file(tmp_path, nn.GELU(), configured(False))
    call("import", tmp_path / "open_clip_model.st", "--to", "hf", "-o", tmp_path / "a.st")
    for word, more in (("packed", ()), ("fake", ("--fake",))):
        flags = ("--bits", 4, "--preset", "paper", *more)
        call("quantize", tmp_path / "a.st", *flags, "-o", f"{tmp_path / word}/")
    images = torch.randn(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    kind = library.CLIPVisionModelWithProjection
    with torch.no_grad():
        packed, fake = (
            kind.from_pretrained(tmp_path / word).eval()(images).image_embeds
            for word in ("packed", "fake")
        )
    assert torch.equal(packed, fake)
    call("rotate", tmp_path / "a.st", "-o", tmp_path / "turned.st")


CLIP_FAULTS: dict[str, tuple[dict[str, Any] | None, tuple[object, ...], str]] = {
    "another pooling": (configured(False, pool_type="avg"), (), "pool_type 'avg'"),
    "LayerScale": (configured(False, ls_init_value=0.1), (), "ls_init_value 0.1"),
    "a tower of timm's": (configured(False, timm_model_name="x"), (), "timm_model_name 'x'"),
    "no objects": ({"model_cfg": []}, (), "vision_cfg and preprocess_cfg are objects"),
    "heads that do not divide": (configured(False, head_width=5), (), "head_width 5 does not"),
    "a pad": (
        {**configured(False), "preprocess_cfg": {"resize_mode": "longest"}},
        (),
        "resize_mode 'longest'",
    ),
    "no numbers": (
        {**configured(False), "preprocess_cfg": {"mean": ["a"]}},
        (),
        "configuration of a network is damaged: mean",
    ),
    "an activation": (None, ("--model-arg", "hidden_act=relu"), "no tensor tells its activation"),
    "another word": (configured(False), ("--model-arg", "depth=3"), "no tensor tells"),
    "classes": (configured(False), ("--num-classes", 3), "at its own size, without classes"),
    "a name": (configured(False), ("--model", "test_vit"), "at its own size, without classes"),
}


@pytest.mark.parametrize("fault", CLIP_FAULTS)
def test_what_is_no_such_tower_is_refused_in_a_line(fault: str, tmp_path: Path) -> None:
    config, flags, reason = CLIP_FAULTS[fault]
    clip_file(tmp_path, nn.GELU(), config)
    file = tmp_path / "open_clip_model.st"
    refused = call("import", file, "--to", "hf", *flags, "-o", tmp_path / "x.st", code=1)
    assert len(refused.errors) == 1
    assert reason in refused.errors[0]
    assert not (tmp_path / "x.st").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("visual.ln_pre.weight"),
        lambda state: state.update({"visual.transformer.resblocks.0.ls_1.gamma": np.ones(3)}),
        lambda state: state.update({"visual.proj": np.ones(3)}),
        lambda state: state.update({"visual.positional_embedding": np.ones((8, WIDTH))}),
        lambda state: state.update({"visual.conv1.weight": np.ones((WIDTH, 3, 4, 8))}),
    ],
)
def test_tensors_of_another_tower_are_refused_by_name(change: Any, tmp_path: Path) -> None:
    clip_file(tmp_path, nn.GELU(), configured(False))
    file = tmp_path / "open_clip_model.st"
    state = load_file(file)
    change(state)
    save_file(state, file)
    refused = call("import", file, "--to", "hf", "-o", tmp_path / "x.st", code=1)
    assert "visual." in refused.errors[0]
