"""Networks of transformers' own: read, measured, quantized, and written as the library does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import call, draw, light
from PIL import Image
from safetensors.torch import load_file, save_file

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import QvecError
from qvec_cli.inputs.files import model_of, stated_model
from qvec_cli.inputs.network import load_network
from qvec_cli.inputs.rotated import rotated
from qvec_cli.model import build, transformers_networks
from qvec_cli.model.targets import of_network
from qvec_cli.specs import Silence

os.environ["HF_HUB_OFFLINE"] = "1"
library = pytest.importorskip("transformers", reason="qvec[hf] is not installed")

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 28,
    "patch_size": 7,
}
TEXT: dict[str, Any] = {
    **{key: SMALL[key] for key in ("hidden_size", "num_attention_heads", "intermediate_size")},
    "num_hidden_layers": 1,
    "vocab_size": 100,
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NAMES = ["ant", "bee", "cat"]
LABELS: dict[str, Any] = {
    "id2label": dict(enumerate(NAMES)),
    "label2id": {name: place for place, name in enumerate(NAMES)},
}
PAIR = {"text_config": TEXT, "vision_config": SMALL, **LABELS}
WINDOWS = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1]}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", {**SMALL, **LABELS}),
    "deit": ("DeiTForImageClassification", {**SMALL, **LABELS}),
    "two heads": ("DeiTForImageClassificationWithTeacher", {**SMALL, **LABELS}),
    "beit": ("BeitForImageClassification", {**SMALL, **LABELS, "use_relative_position_bias": True}),
    "dinov2": ("Dinov2ForImageClassification", {**SMALL, **LABELS, "mlp_ratio": 2}),
    "swiglu": ("Dinov2ForImageClassification", {**SMALL, **LABELS, "use_swiglu_ffn": True}),
    "swin": (
        "SwinForImageClassification",
        {**WINDOWS, **LABELS, "num_heads": [2, 2], "window_size": 4},
    ),
    "siglip": ("SiglipForImageClassification", PAIR),
    "clip": ("CLIPForImageClassification", PAIR),
    "tower": ("CLIPModel", {**PAIR, "projection_dim": 16}),
    "encoder": ("ViTModel", {**SMALL}),
}
"""An architecture of each kind, and its configuration."""

JOINED = ("swiglu",)
"""Kinds of which transformers splits tensors when it reads them."""

BUILT = [kind for kind in KINDS if kind not in JOINED]
UNLOADABLE = ("dinov2",)
"""Kinds of which transformers 5.22 to 5.24 loads no folder that compressed-tensors has packed."""

PARTLY_ROTATED = {
    "swin": "patch_embed.norm stands before it",
    "siglip": "head.attention",
    "clip": "norm_pre stands before it",
    "tower": "norm_pre stands before it",
    "encoder": "pooler.dense",
}
"""What is not turned in some of them."""


def saved(kind: str, folder: Path) -> Path:
    """A folder as save_pretrained writes it, its weights and norms not those of a new network."""
    name, words = KINDS[kind]
    network_class = getattr(library, name)
    torch.manual_seed(0)
    config = network_class.config_class(**json.loads(json.dumps(words)))
    network_class(config).save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    draws = torch.Generator().manual_seed(3)
    state = {n: t + 0.1 * torch.randn(t.shape, generator=draws) for n, t in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    side = words.get("image_size", 28)
    size = {"height": side, "width": side}
    library.ViTImageProcessor(size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("library")
    library.logging.set_verbosity_error()
    return {kind: saved(kind, root / kind) for kind in KINDS}


def images(side: int) -> torch.Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))


def stock(folder: Path, side: int) -> torch.Tensor:
    """Logits, or features, of the library's own call."""
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    network = getattr(library, name).from_pretrained(folder).eval()
    with torch.no_grad():
        if name == "CLIPModel":
            answer = network.get_image_features(pixel_values=images(side))
            return answer if isinstance(answer, torch.Tensor) else answer.pooler_output
        answer = network(pixel_values=images(side))
    return answer.logits if hasattr(answer, "logits") else answer.pooler_output


@pytest.mark.parametrize("kind", BUILT)
def test_a_network_is_the_librarys_under_the_names_of_its_files(
    kind: str, folders: Mapping[str, Path]
) -> None:
    with Checkpoint(folders[kind]) as theta:
        model = model_of(theta)
        network = load_network(theta, model, "cpu").eval()
        assert {*network.state_dict()} == {*theta}
        with torch.no_grad():
            ours = network(images(model.input_size[1]))
        targets = of_network(network, model)
    assert torch.equal(ours, stock(folders[kind], model.input_size[1]))
    own = getattr(library, KINDS[kind][0]).from_pretrained(folders[kind])
    linear = [
        name
        for name, module in own.named_modules()
        if type(module) is torch.nn.Linear and not name.endswith("classifier")
    ]
    inside = [name for name in linear if kind != "tower" or name.startswith("vision_model.")]
    assert len(targets) == len(inside)
    assert {theta[name].shape for name in targets} == {
        tuple(own.get_submodule(name).weight.shape) for name in inside
    }


@pytest.mark.parametrize("kind", BUILT)
def test_a_rotated_network_computes_the_same(kind: str, folders: Mapping[str, Path]) -> None:
    with Checkpoint(folders[kind]) as theta:
        model = model_of(theta)
        turned, before = rotated(theta, model, 0, Silence()), load_network(theta, model, "cpu")
        after = load_network(theta, model, "cpu")
        turned.place(after)
    batch = images(model.input_size[1])
    with torch.no_grad():
        expected, result = before.eval()(batch), after.eval()(batch)
    assert (expected - result).abs().max() < 1e-5 * expected.abs().max()
    assert turned.basis.changes
    reasons = " ".join(turned.basis.kept)
    assert PARTLY_ROTATED.get(kind, "") in reasons
    assert bool(reasons) == (kind in PARTLY_ROTATED)


FEW = [("vit", 3, "channel"), ("swin", 2, "group asymmetric"), ("tower", 4, "group")]
ALL = [
    (kind, bits, blocks)
    for kind in BUILT
    if kind not in (*UNLOADABLE, "encoder")
    for bits in (2, 3, 4)
    for blocks in ("channel", "group", "channel asymmetric", "group asymmetric")
]


@pytest.mark.parametrize("cases", [FEW, pytest.param(ALL, marks=pytest.mark.slow)], ids=len)
def test_the_stock_call_loads_a_packed_folder_to_the_numbers_of_its_twin(
    cases: list[tuple[str, int, str]], folders: Mapping[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    for kind, bits, blocks in cases:
        flags = ["--bits", bits, *(["--group-size", 16] if "group" in blocks else [])]
        flags += ["--asymmetric"] if "asymmetric" in blocks else []
        for word, more in (("packed", []), ("fake", ["--fake"])):
            out = f"{tmp_path / word}/"
            call(
                "quantize", folders[kind], "--preset", "paper", *flags, *more, "-o", out, "--force"
            )
        side = json.loads((folders[kind] / "preprocessor_config.json").read_text())["size"][
            "height"
        ]
        packed, fake = (stock(tmp_path / word, side) for word in ("packed", "fake"))
        assert torch.equal(packed, fake), (kind, bits, blocks)
        with Checkpoint(tmp_path / "packed") as theta, torch.no_grad():
            ours = load_network(theta, model_of(theta), "cpu").eval()(images(side))
        assert torch.equal(packed, ours), (kind, bits, blocks)
        assert (
            load_file(tmp_path / "packed/model.safetensors").keys()
            != load_file(tmp_path / "fake/model.safetensors").keys()
        )


MIXED = ["vit", "two heads", "swin", "clip"]


@pytest.mark.parametrize("kind", MIXED)
def test_the_stock_call_loads_layers_of_different_widths(
    kind: str, folders: Mapping[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    words = ["--bits", 2.5, "--head-bits", 8]
    for word, more in (("packed", []), ("fake", ["--fake"])):
        call("quantize", folders[kind], *words, *more, "-o", f"{tmp_path / word}/")
    scheme = json.loads((tmp_path / "packed/config.json").read_text())["quantization_config"]
    widths = [group["weights"]["num_bits"] for group in scheme["config_groups"].values()]
    assert len(widths) > 2
    assert 8 in widths
    side = json.loads((folders[kind] / "preprocessor_config.json").read_text())["size"]["height"]
    packed, fake = (stock(tmp_path / word, side) for word in ("packed", "fake"))
    assert torch.equal(packed, fake)
    with Checkpoint(tmp_path / "packed") as theta, torch.no_grad():
        ours = load_network(theta, model_of(theta), "cpu").eval()(images(side))
    assert torch.equal(packed, ours)


def test_what_is_beside_the_tower_stays_to_the_bit(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    call("quantize", folders["tower"], "--bits", 2, "-o", f"{tmp_path}/")
    before = load_file(folders["tower"] / "model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    outside = [name for name in before if not name.startswith("vision_model.encoder")]
    assert any(name.startswith("text_model.encoder") for name in outside)
    assert all(torch.equal(before[name], after[name]) for name in outside)
    assert not {name for name in before if "_proj.weight" in name and "vision" in name} & {*after}


def test_a_module_of_a_larger_model_is_quantized_alone(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    vision = {"model_type": "clip_vision_model", **SMALL, "projection_dim": 16}
    text = {"model_type": "llama", **TEXT, "num_key_value_heads": 2}
    config = library.LlavaConfig(vision_config=vision, text_config=text, image_token_index=5)
    torch.manual_seed(0)
    library.LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "large")
    flags = ["--module", "vision_tower", "--bits", 3, "--preset", "paper"]
    twins = []
    for word, more in (("packed", []), ("fake", ["--fake"])):
        call("quantize", tmp_path / "large", *flags, *more, "-o", f"{tmp_path / word}/")
        network = library.LlavaForConditionalGeneration.from_pretrained(tmp_path / word)
        twins.append(network.state_dict())
    packed, fake = twins
    assert [n for n in fake if not torch.equal(packed[n], fake[n])] == []
    state = load_file(tmp_path / "packed/model.safetensors")
    changed = load_file(tmp_path / "large/model.safetensors").keys() - state.keys()
    assert changed
    assert all(name.startswith("vision_tower.encoder.") for name in changed)
    refused = call(
        "quantize",
        tmp_path / "large",
        "--module",
        "eyes",
        "--bits",
        3,
        "-o",
        tmp_path / "x",
        code=1,
    )
    assert "--module eyes: no tensor is in it" in refused.errors[0]


PROCESSORS: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": {"size": {"height": 28, "width": 28}},
    "DeiTImageProcessor": {
        "size": {"height": 32, "width": 32},
        "crop_size": {"height": 28, "width": 28},
    },
    "BitImageProcessor": {
        "size": {"shortest_edge": 37},
        "crop_size": {"height": 28, "width": 28},
    },
    "CLIPImageProcessor": {
        "size": {"shortest_edge": 28},
        "crop_size": {"height": 28, "width": 28},
        "do_normalize": False,
    },
    "SiglipImageProcessor": {"size": {"height": 28, "width": 28}, "image_std": [0.2, 0.3, 0.4]},
    "ConvNextImageProcessor": {"size": {"shortest_edge": 28}, "crop_pct": 0.875},
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_images_are_prepared_as_the_librarys_processor_does(
    kind: str, folders: Mapping[str, Path], tmp_path: Path
) -> None:
    processor = getattr(library, kind)(**PROCESSORS[kind])
    processor.save_pretrained(tmp_path)
    with Checkpoint(folders["vit"]) as theta:
        theta.processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
        model = stated_model(theta)
    assert model is not None
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((120, 90))
    ours = build.normalise(model)(
        torch.as_tensor(build.transform(model, augment=False)(smooth))[None]
    )
    theirs = torch.as_tensor(np.asarray(processor(smooth, return_tensors="np")["pixel_values"]))
    level = 1 / 255 / torch.tensor(model.pretrained_cfg["std"]).view(1, -1, 1, 1)
    assert ours.shape == theirs.shape
    assert bool(((ours - theirs).abs() <= 1.01 * level).all()), "a level of 255, by rounding"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("pictures"), NAMES, train=8, test=6, seed=0)


def test_the_whole_chain_runs_on_a_folder_and_its_cards_keep_the_network(
    folders: Mapping[str, Path], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base, short = folders["vit"], ("--data", pictures, "--epochs", 1, "--no-aug", "--device", "cpu")
    call("finetune", base, *short, "-o", "fp.st")
    call("train-qat", base, *short, "--bits", 2, "-o", "qat.st")
    call("extract", "fp.st", "qat.st", "-o", "rho.st")
    call("patch", "fp.st", "rho.st", "--lambda", 0.5, "-o", "sum.st")
    call("moments", "fp.st", "--data", pictures, "--samples", 4, "-o", "moments.st")
    call("rotate", "fp.st", "-o", "turned.st")
    call("quantize", "sum.st", "--method", "gptq", "--moments", "moments.st", "-o", "packed.st")
    sweep = call(
        "sweep-lambda",
        "fp.st",
        "rho.st",
        "--data",
        pictures,
        "--lambdas",
        "0,1",
        "--json",
        "-o",
        "s.json",
    )
    assert [point["lambda"] for point in sweep.json["results"]["curve"]] == [0, 1]
    scores = {
        name: call("eval", name, "--data", pictures, "--json").json["results"]["n_correct"]
        for name in ("fp.st", "turned.st", "packed.st")
    }
    assert scores["fp.st"] == scores["turned.st"]
    with Checkpoint(Path("packed.st")) as packed, Checkpoint(base) as theta:
        assert packed.card.model == {
            **stated_model(theta).to_json(),  # type: ignore[union-attr]
            "pretrained_cfg": packed.card.model["pretrained_cfg"],  # type: ignore[index]
        }
        assert packed.classes == sorted(NAMES)


def test_arithmetic_on_folders_imports_neither_torch_nor_the_library(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    vit, out, trained = folders["vit"], tmp_path / "rho.st", tmp_path / "trained"
    trained.mkdir()
    (trained / "config.json").write_text((vit / "config.json").read_text())
    state = {n: t + 0.01 for n, t in load_file(vit / "model.safetensors").items()}
    save_file(state, trained / "model.safetensors")
    assert light("extract", vit, trained, "-o", out)[:2] == (0, [])
    assert light("patch", vit, out, "--lambda", 1, "-o", tmp_path / "sum.st")[:2] == (0, [])
    assert light("inspect", vit)[:2] == (0, [])
    assert light("rotate", vit, "-o", tmp_path / "turned.st")[:2] == (0, [])


@pytest.mark.slow
def test_what_advise_writes_the_stock_call_loads_to_the_stated_accuracy(
    folders: Mapping[str, Path], pictures: Path, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    out = tmp_path / "OUT"
    call(
        "advise",
        folders["vit"],
        "--bits",
        3,
        "--proxy",
        pictures,
        "-o",
        f"{out}/",
        "--refine",
        0,
        "--proxy-samples",
        8,
    )
    stated = call("eval", out, "--data", pictures, "--json").json["results"]
    network = library.AutoModelForImageClassification.from_pretrained(out).eval()
    processor = library.AutoImageProcessor.from_pretrained(out)
    correct = 0
    for path in sorted((pictures / "test").rglob("*.png")):
        with Image.open(path) as image, torch.no_grad():
            scores = network(**processor(image.convert("RGB"), return_tensors="pt")).logits
        correct += network.config.id2label[int(scores.argmax())] == path.parent.name
    assert correct == stated["n_correct"]


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return edit


def processed(**words: Any) -> Callable[[Path], None]:
    return lambda folder: (
        (folder / "preprocessor_config.json").write_text(json.dumps(words)) and None
    )


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "code of its own": (
        edited(lambda config: config.update(auto_map={"AutoModel": "modeling.Mine"})),
        "its network is code that comes with it",
    ),
    "no architecture": (
        edited(lambda config: config.pop("architectures")),
        "names no architecture",
    ),
    "unknown architecture": (
        edited(lambda config: config.update(architectures=["ViXForImageClassification"])),
        "ViXForImageClassification is no encoder or classifier that transformers",
    ),
    "unknown kind": (
        edited(lambda config: config.update(model_type="vat")),
        "transformers cannot make ViTForImageClassification",
    ),
    "impossible heads": (
        edited(lambda config: config.update(num_attention_heads=5)),
        "14 tensors do not fit the network",
    ),
    "other width": (
        edited(lambda config: config.update(hidden_size=64)),
        "tensors do not fit the network",
    ),
    "a size in words": (
        edited(lambda config: config.update(num_hidden_layers="two")),
        "transformers cannot make ViTForImageClassification",
    ),
    "too wide": (edited(lambda config: config.update(hidden_size=10**9)), "is damaged"),
    "longest edge": (processed(size={"longest_edge": 28}), "has no name here"),
    "no such filter": (processed(size=28, resample=9), "resample 9 is no filter"),
    "no numbers": (processed(size=28, image_mean=["a"], image_std=[1]), "image_mean"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_cannot_be_built_is_refused_in_a_line(
    fault: str, folders: Mapping[str, Path], pictures: Path, tmp_path: Path
) -> None:
    edit, reason = FAULTS[fault]
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in folders["vit"].iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    edit(broken)
    refused = call("eval", broken, "--data", pictures, code=1)
    assert len(refused.errors) == 1
    assert reason in refused.errors[0]
    assert str(broken) in refused.errors[0] or "transformers" in refused.errors[0]


def test_without_the_library_a_line_names_what_installs_it(
    folders: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with Checkpoint(folders["vit"]) as theta, pytest.raises(QvecError) as caught:
        build.rebuild(model_of(theta))
    assert caught.value.hint == f"{transformers_networks.EXTRA} installs it."


def test_a_network_whose_tensors_are_split_when_read_is_refused(
    folders: Mapping[str, Path], pictures: Path
) -> None:
    refused = call("eval", folders["swiglu"], "--data", pictures, code=1)
    assert "transformers changes this tensor when it reads it" in refused.errors[0]


POSITIONS = {
    "vit": "vit.embeddings.position_embeddings",
    "two heads": "deit.embeddings.position_embeddings",
    "dinov2": "dinov2.embeddings.position_embeddings",
    "siglip": "vision_model.embeddings.position_embedding.weight",
    "tower": "vision_model.embeddings.position_embedding.weight",
}
PREFIX = {"two heads": 2, "siglip": 0}
"""Tokens before those of the patches, where there is not one."""


@pytest.mark.parametrize("kind", POSITIONS)
def test_position_embeddings_come_to_another_image_size_as_timms_do(
    kind: str, folders: Mapping[str, Path], tmp_path: Path
) -> None:
    from timm.layers import resample_abs_pos_embed

    done = call("import", folders[kind], "--img-size", 42, "-o", tmp_path / "x.st")
    assert "position embeddings resampled from 4x4 to 6x6" in done.err
    before, after = load_file(folders[kind] / "model.safetensors"), load_file(tmp_path / "x.st")
    name = POSITIONS[kind]
    assert [n for n in before if not torch.equal(before[n], after[n])] == [name]
    rows = before[name].reshape(1, -1, SMALL["hidden_size"])
    wanted = resample_abs_pos_embed(rows, [6, 6], num_prefix_tokens=PREFIX.get(kind, 1))
    assert torch.equal(after[name], wanted.reshape(after[name].shape))
    with Checkpoint(tmp_path / "x.st") as theta:
        model = model_of(theta)
        network = load_network(theta, model, "cpu").eval()
    assert model.input_size == (3, 42, 42)
    with torch.no_grad():
        assert len(network(images(42))) == 3


def test_a_network_that_is_trained_at_another_size_is_the_librarys_at_that_size(
    folders: Mapping[str, Path], pictures: Path, tmp_path: Path
) -> None:
    flags = ("--data", pictures, "--epochs", 1, "--no-aug", "--device", "cpu", "--img-size", 42)
    call("finetune", folders["vit"], *flags, "-o", tmp_path / "x.st")
    call("quantize", tmp_path / "x.st", "--bits", 8, "--fake", "-o", f"{tmp_path / 'out'}/")
    processor = library.AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert dict(processor.size) == {"height": 42, "width": 42}
    with Checkpoint(tmp_path / "out") as theta, torch.no_grad():
        ours = load_network(theta, model_of(theta), "cpu").eval()(images(42))
    assert torch.equal(ours, stock(tmp_path / "out", 42))
    assert call("eval", tmp_path / "out", "--data", pictures, "--json").json["results"]


def test_sizes_that_cannot_be_are_refused_for_networks_that_are_not_timms(
    folders: Mapping[str, Path], pictures: Path
) -> None:
    data = ("--data", pictures, "-o", "x.st")
    refused = call("finetune", folders["vit"], "--in-chans", 1, *data, code=2)
    assert "stays at 28 px and 3 channels" in refused.errors[0]
    refused = call("finetune", folders["beit"], "--img-size", 56, *data, code=1)
    assert "relative_position_bias_table: [52, 2] vs [228, 2]" in refused.errors[0]
    refused = call("finetune", folders["vit"], "--img-size", 4, *data, code=1)
    assert len(refused.errors) == 1
    refused = call(
        "import", folders["vit"], "--model", "vit_tiny_patch16_224", "-o", "x.st", code=1
    )
    assert "is a ViTForImageClassification" in refused.errors[0]


def test_what_timm_has_no_network_for_is_not_exported_to_it(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    refused = call("export", folders["swin"], "--to", "timm", "-o", tmp_path / "x", code=1)
    assert "is a network of transformers" in refused.errors[0]
    assert "qvec import FILE --to timm" in refused.err


def test_it_is_exported_to_onnx_as_timms_networks_are(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "x.onnx"
    check = call("export", folders["vit"], "-o", out, "--json").json["results"]["check"]
    assert check["max_abs_diff"] <= check["bound"]


def test_a_configuration_makes_nothing_be_fetched(
    folders: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Checkpoint(folders["tower"]) as theta:
        model = model_of(theta)
    asked: dict[str, Any] = {}
    made = library.AutoConfig.for_model

    def for_model(kind: str, **words: Any) -> Any:
        asked.update(words)
        return made(kind, **words)

    monkeypatch.setattr(library.AutoConfig, "for_model", for_model)
    hostile = {"attn_implementation": "org/kernel", "_attn_implementation": "org/kernel"}
    hostile |= {"auto_map": {"AutoModel": "m.M"}, "use_pretrained_backbone": True}
    vision = {**model.model_args["vision_config"], **hostile}
    args = {**model.model_args, **hostile, "vision_config": vision}
    transformers_networks.rebuild(replace(model, model_args=args))
    assert asked["vision_config"] == model.model_args["vision_config"]
    assert not {*hostile} & {*asked}


@pytest.mark.parametrize("heads", [0, -2, "two", None, []])
def test_a_number_of_heads_that_is_none_rotates_nothing(
    heads: object, folders: Mapping[str, Path], tmp_path: Path
) -> None:
    for path in folders["vit"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    edited(lambda config: config.update(num_attention_heads=heads, vision_config=[1]))(tmp_path)
    refused = call("rotate", tmp_path, "-o", tmp_path / "r.st", code=1)
    assert "is no number of attention heads" in refused.errors[0]
