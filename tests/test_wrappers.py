"""What stands around a network in people's files: wrappers, strays, heads, ties, parts, caches."""

from __future__ import annotations

import fnmatch
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import Drawer, call
from safetensors.torch import load_file, save_file

from qvec_cli.checkpoint.naming import heads, unwrap
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.source import WeightsChoice
from qvec_cli.errors import CheckpointError
from qvec_cli.inputs.network import load_state

State = dict[str, torch.Tensor]
VIT = ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight")
BLOCKS = tuple(f"blocks.{i}.{part}.weight" for i in range(12) for part in ("attn.qkv", "mlp.fc1"))


def refusal(path: Path) -> tuple[str, str]:
    """What is wrong, and the way out."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(path)
    assert str(caught.value).startswith(str(path))
    assert caught.value.hint
    return str(caught.value), caught.value.hint


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["net.", "encoder.", "backbone.", "vit.", "model.model.", "module._orig_mod."]
)
def test_a_prefix_of_a_whole_network_is_taken_away_with_what_stands_beside_it(prefix: str) -> None:
    inside = (*VIT, *BLOCKS, "head.weight", "head.bias")
    beside = ("criterion.weight", "n_averaged", "accuracy.confmat")
    found = unwrap((*(f"{prefix}{name}" for name in inside), *beside))
    assert (found.prefix, set(found.strays)) == (prefix, set(beside))
    assert found.names == {f"{prefix}{name}": name for name in inside}


def test_wrappers_inside_a_network_are_taken_away_too() -> None:
    names = [name.replace(".attn", "._orig_mod.attn") for name in BLOCKS]
    names = [n.replace(".mlp", "._checkpoint_wrapped_module.mlp") for n in (*VIT, *names)]
    assert tuple(unwrap((*names, "head.weight")).names.values()) == (*VIT, *BLOCKS, "head.weight")


NETWORKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "torchvision": (
        (
            *("class_token", "conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding"),
            *(f"encoder.layers.encoder_layer_{i}.mlp.0.weight" for i in range(40)),
            *("encoder.ln.weight", "heads.head.weight", "heads.head.bias"),
        ),
        ("heads.head.weight", "heads.head.bias"),
    ),
    "transformers": (
        (
            *(f"vit.encoder.layer.{i}.output.dense.weight" for i in range(40)),
            "vit.embeddings.cls_token",
            "classifier.weight",
            "classifier.bias",
        ),
        ("classifier.weight", "classifier.bias"),
    ),
    "DeiT with a teacher": (
        (
            *(f"deit.encoder.layer.{i}.output.dense.weight" for i in range(40)),
            "cls_classifier.weight",
            "distillation_classifier.weight",
        ),
        ("cls_classifier.weight", "distillation_classifier.weight"),
    ),
    "a backbone and a head": (
        (*(f"backbone.{name}" for name in (*VIT, *BLOCKS)), "fc.weight", "fc.bias"),
        ("fc.weight", "fc.bias"),
    ),
    "lucidrains": (
        (
            *(f"transformer.layers.{i}.0.to_qkv.weight" for i in range(40)),
            "mlp_head.1.weight",
            "mlp_head.1.bias",
            "cls_token",
        ),
        ("mlp_head.1.weight", "mlp_head.1.bias"),
    ),
    "layers of a head": (
        (*VIT, *BLOCKS, "head.0.weight", "head.3.weight", "head.3.bias", "heads.1.weight"),
        ("head.0.weight", "head.3.weight", "head.3.bias", "heads.1.weight"),
    ),
    "a student and a teacher": (
        tuple(f"{who}.{name}" for who in ("s", "t") for name in (*VIT, *BLOCKS, "head.weight")),
        ("s.head.weight", "t.head.weight"),
    ),
    "a network with a head inside another with its own": (
        (*(f"vit.{name}" for name in (*VIT, *BLOCKS, "head.weight")), "classifier.weight"),
        ("vit.head.weight", "classifier.weight"),
    ),
    "layers that are called so": (
        (*BLOCKS, "blocks.0.mlp.fc.weight", "pre_logits.fc.weight", "blocks.1.head.weight"),
        (),
    ),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_a_network_that_is_no_wrapper_keeps_its_names_and_its_head_is_known(case: str) -> None:
    names, head = NETWORKS[case]
    assert unwrap(names).names == {name: name for name in names}
    assert heads(names) == head


def test_every_head_of_a_small_network_of_timms_is_known_by_its_names() -> None:
    for name in (
        "test_vit",
        "test_byobnet",
        "test_convnext",
        "test_resnet",
        "levit_128s",
        "xcit_nano_12_p16_224",
    ):
        with torch.device("meta"):
            network = timm.create_model(name, num_classes=7)
        state = network.state_dict()
        sevens = {n for n, t in state.items() if t.shape[:1] == (7,)}
        assert {n for n in heads(state) if state[n].shape[:1] == (7,)} == sevens, name


def test_embeddings_are_left_and_a_linear_layer_with_their_name_is_not(tmp_path: Path) -> None:
    state = {
        "wte.weight": torch.randn(50, 8),
        "wpe.weight": torch.randn(10, 8),
        "token_embedding.weight": torch.randn(50, 8),
        "decoder_embed.weight": torch.randn(6, 8),
        "decoder_embed.bias": torch.randn(6),
        "layers.0.weight": torch.randn(8, 8),
        "head.weight": torch.randn(3, 8),
    }
    torch.save(state, tmp_path / "x.pth")
    args = ("quantize", tmp_path / "x.pth", "--bits", 3, "-o", tmp_path / "q.st", "--json")
    results = call(*args).json["results"]
    assert set(results["quantized"]) == {"decoder_embed.weight", "layers.0.weight"}
    assert results["head"] == ["head.weight"]


def test_without_a_head_nothing_is_changed_until_it_is_named(tmp_path: Path) -> None:
    def state(shift: float) -> State:
        names = ("layers.0.weight", "layers.1.weight", "my_out.weight", "my_out.bias")
        return {n: torch.ones(4, 4) * (i + shift) for i, n in enumerate(names)}

    files = {name: tmp_path / f"{name}.pth" for name in ("a", "b", "r")}
    for number, path in enumerate(files.values()):
        torch.save(state(number / 8 + 1), path)
    rho, out = tmp_path / "rho.st", tmp_path / "o.st"
    lines = (
        ("extract", files["a"], files["b"], "-o", rho),
        ("patch", files["r"], rho, "-o", out),
        ("quantize", files["r"], "--bits", 3, "-o", out),
        ("quantize", files["r"], "--bits", 3, "--compare"),
    )
    for line in lines:
        out.unlink(missing_ok=True)
        refused = call(*line, code=1)
        assert "no tensor looks like the classifier's" in refused.err
        assert "--head GLOB" in refused.err
        assert "--no-head" in refused.err
        for head in ("my_out", "my_*.*"):
            result = call(*line, "--head", head, *(() if "--compare" in line else ("--force",)))
            assert ("the head: my_out.weight, my_out.bias" in result.out) != ("--compare" in line)
        assert "matches no tensor" in call(*line, "--head", "nothing", "--force", code=1).err
        assert call(*line, "--head", "my_out", "--no-head", code=2).errors
    assert set(load_file(rho)) == {"layers.0.weight", "layers.1.weight"}
    patched = load_file(out) if call(*lines[1], "--head", "my_out", "--force").code == 0 else {}
    assert torch.equal(patched["my_out.weight"], state(1.25)["my_out.weight"])
    call(*lines[0], "--no-head", "--force")
    assert len(load_file(rho)) == 4


# --- ties -----------------------------------------------------------------------------------------


def test_ties_are_found_behind_a_prefix_and_over_shards_and_last(tmp_path: Path) -> None:
    """As ``save_model`` notes them: in a packed file too, the network gets them back."""
    weight = torch.randn(8, 8)
    one = {"model.a.weight": weight, "model.head.weight": torch.randn(3, 8)}
    (tmp_path / "shards").mkdir()
    note = {"format": "pt", "model.b.weight": "model.a.weight"}
    save_file(one, tmp_path / "one.safetensors", note)
    parts = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    save_file({"model.head.weight": one["model.head.weight"]}, tmp_path / "shards" / parts[0])
    save_file({"model.a.weight": weight}, tmp_path / "shards" / parts[1], note)
    table = {"model.head.weight": parts[0], "model.a.weight": parts[1]}
    index = {"weight_map": table}
    (tmp_path / "shards" / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save({**one, "model.b.weight": weight}, tmp_path / "x.pth")
    for source in ("one.safetensors", "shards", "x.pth"):
        out = tmp_path / f"{source}.st"
        call("quantize", tmp_path / source, "--bits", 4, "-o", out)
        for path in (tmp_path / source, out):
            with Checkpoint(path) as file:
                assert file.aliases == {"b.weight": "a.weight"}, source
                state = load_state(file)
            assert state["b.weight"] is state["a.weight"]


def test_the_average_of_a_tied_tensor_may_be_all_that_is_left_of_it(tmp_path: Path) -> None:
    """The name that is kept is no part of the network: the other one takes its place."""
    weight = torch.randn(4, 4)
    inside = {f"model.layers.{i}.weight": torch.randn(4, 4) for i in range(30)}
    state = {
        "loss.weight": weight,
        **inside,
        "model.x.weight": weight,
        "model.fc.weight": weight[:2],
    }
    torch.save(state, tmp_path / "x.pth")
    with Checkpoint(tmp_path / "x.pth") as file:
        assert np.array_equal(file.array("x.weight"), weight.numpy())
        assert "loss.weight" not in file


# --- parts, adapters, programs --------------------------------------------------------------------


def test_what_is_no_whole_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    lora = {f"base_model.model.q.lora_{ab}.weight": torch.ones(2, 2) for ab in "AB"}
    save_file(lora, tmp_path / "lora" / "adapter_model.safetensors")
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    message, hint = refusal(tmp_path / "lora")
    assert "an adapter's low-rank update" in message
    assert "merge_and_unload" in hint
    parts = [tmp_path / "parts" / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    parts[0].parent.mkdir()
    save_file({"a.weight": torch.ones(2, 2)}, parts[0])
    for path, word in ((parts[0].parent, "part 2 of 2"), (parts[0], "part 1 of 2")):
        assert word in refusal(path)[0]
    save_file({"head.weight": torch.ones(2, 2)}, parts[1])
    with Checkpoint(parts[0].parent) as whole:
        assert {*whole} == {"a.weight", "head.weight"}
    index = parts[0].with_name("model.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": {"a.weight": parts[0].name}}))
    assert str(index) in refusal(parts[0])[1]
    index.write_text(json.dumps({"weight_map": {"b.weight": parts[0].name}}))
    assert "fetch all of them again" in refusal(parts[0].parent)[1]
    torch.save({"state": {0: {}}, "param_groups": []}, tmp_path / "optimizer.pt")
    assert "state of an optimizer" in refusal(tmp_path / "optimizer.pt")[0]


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(x)
        return result


@pytest.mark.filterwarnings("ignore")
def test_programs_and_whole_models_are_named_and_the_line_that_saves_weights_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = timm.create_model("test_vit", num_classes=2, img_size=32)
    whole, old, script = tmp_path / "whole.pth", tmp_path / "old.pth", tmp_path / "script.pt"
    exported = tmp_path / "e.pt2"
    torch.save(network, whole)
    torch.save(network, old, _use_new_zipfile_serialization=False)
    torch.jit.script(Net()).save(script)
    torch.export.save(torch.export.export(Net(), (torch.ones(1, 2),)), exported)
    monkeypatch.chdir(tmp_path)
    words = {whole: "a whole model", old: "a whole model", script: "a TorchScript program"}
    for path, word in {**words, exported: "a program of torch.export"}.items():
        message, hint = refusal(path)
        assert word in message
        line = shlex.split(hint.partition("state dict: ")[2])
        exec(line[line.index("-c") + 1], {})
        with Checkpoint(tmp_path / "state_dict.pth") as saved:
            assert "head.weight" in saved
    (tmp_path / "x.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch\x1a\x052.1.0" + bytes(100))
    with pytest.raises(CheckpointError, match="an ONNX graph"):
        Checkpoint(tmp_path / "x.onnx")


def test_sets_of_weights_are_named_and_taken_by_key(tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(3, 3)}
    nests: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
        "one": ({"epoch": 3, "my_model": state}, ("my_model",)),
        "two": ({"student": state, "teacher": state, "epoch": 3}, ("student", "teacher")),
        "deep": ({"run": {"nets": {"body": state}}, "step": 1}, ("run.nets.body",)),
        "words": ({f"teacher.{n}": t for n, t in state.items()} | {"x": "y"}, ()),
    }
    for name, (saved, keys) in nests.items():
        path = tmp_path / f"{name}.pth"
        torch.save(saved, path)
        message, hint = refusal(path)
        for key in keys:
            assert repr(key) in message
        assert f"--weights-key {keys[0]}" in hint if keys else True
        for key in keys or ("teacher",):
            with Checkpoint(path, WeightsChoice(key=key)) as file:
                assert np.array_equal(file.array("a.weight"), state["a.weight"].numpy())
        with pytest.raises(CheckpointError, match="holds nothing under 'no'"):
            Checkpoint(path, WeightsChoice(key="no"))
    both = {f"{name}.a.weight": torch.ones(2, 2) for name in ("s", "t")}
    save_file(both, tmp_path / "x.st")
    torch.save({"state_dict": {f"model.{n}": t for n, t in both.items()}}, tmp_path / "l.ckpt")
    with Checkpoint(tmp_path / "l.ckpt", WeightsChoice(key="model.t")) as file:
        assert {*file} == {"a.weight"}
    torch.save({"ema": {"shadow": state, "decay": 0.9}}, tmp_path / "e.pth")
    assert "--weights-key ema.shadow" in refusal(tmp_path / "e.pth")[1]
    with Checkpoint(tmp_path / "x.st", WeightsChoice(key="t")) as file:
        assert {*file} == {"a.weight"}
    with pytest.raises(CheckpointError, match="no tensor has a name that begins with 'no'"):
        Checkpoint(tmp_path / "x.st", WeightsChoice(key="no"))


# --- folders, caches, other libraries -------------------------------------------------------------


def test_what_trainers_leave_beside_the_weights_is_passed_over(tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(3, 3), "b.weight": torch.randn(3, 3)}
    rest = ("optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin", "scaler.pt")
    for case, names in {
        "shards": ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"),
        "odd": ("diffusion_model.bin",),
        "lightning": ("last.ckpt",),
    }.items():
        folder = tmp_path / case
        folder.mkdir()
        for name in rest:
            torch.save({"state": {}}, folder / name)
        tensors = list(state.items())
        for i, name in enumerate(names):
            torch.save(dict(tensors[i :: len(names)]), folder / name)
        with Checkpoint(folder) as file:
            assert {*file} == {*state}, case
        if len(names) > 1:
            table = {n: names[i % 2] for i, n in enumerate(state)}
            index = folder / "pytorch_model.bin.index.json"
            index.write_text(json.dumps({"weight_map": table}))
            with Checkpoint(folder) as file:
                assert {*file} == {*state}


def test_links_lead_into_the_cache_of_the_hub_and_nowhere_else(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    blob = cache / "blobs" / ("ab" * 32)
    deep = cache / "snapshots" / "rev" / "sub" / "deeper"
    for folder in (blob.parent, deep, tmp_path / "local", tmp_path / "evil", tmp_path / "plain"):
        folder.mkdir(parents=True)
    save_file({"a.weight": torch.ones(2, 2)}, blob)
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "evil" / ("ab" * 32))
    for home in (deep, tmp_path / "local"):
        (home / "model.safetensors").symlink_to(blob)
        with Checkpoint(home) as file:
            assert {*file} == {"a.weight"}
    (tmp_path / "plain" / "model.safetensors").symlink_to(tmp_path / "evil" / ("ab" * 32))
    assert "leads out of the folder" in refusal(tmp_path / "plain")[0]
    blob.parent.rename(tmp_path / "elsewhere")
    (cache / "blobs").symlink_to(tmp_path / "elsewhere")
    with Checkpoint(deep) as file:  # blobs may be a link itself
        assert {*file} == {"a.weight"}


def test_a_model_of_the_hub_is_fetched_by_name_or_told_that_it_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    out = ("-o", tmp_path / "x.st")
    result = call("import", "hf-hub:org/name", *out, code=1)
    assert len(result.errors) == 1
    assert "hf-hub:org/name: cannot be fetched" in result.err
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    asked = []

    def fetch(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        cache.mkdir(exist_ok=True)
        for path in tmp_path.iterdir():
            if path.is_file() and any(fnmatch.fnmatch(path.name, p) for p in allow_patterns):
                shutil.copy(path, cache)
        return str(cache)

    cache = tmp_path / "cache"
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3]}')
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with Checkpoint(Path("hf-hub:org/name@main")) as file:
        assert {*file} == {"a.weight"}
        assert file.processor == {"image_mean": [0.1, 0.2, 0.3]}
    assert asked == [("org/name", "main")]


def test_weights_that_were_rotated_for_an_input_that_is_rotated_too_are_refused(
    drawer: Drawer, tmp_path: Path
) -> None:
    rotated = {"quantization_config": {"transform_config": {"config_groups": {"u": {}}}}}
    packed = tmp_path / "packed"
    call("quantize", drawer.receiver, "--bits", 4, "-o", f"{packed}/")
    bare = load_file(packed / "model.safetensors")
    save_file(bare, packed / "model.safetensors")
    config = json.loads((packed / "config.json").read_text())
    line = ("eval", packed, "--data", drawer.receiver_data)
    call(*line)
    config["quantization_config"] |= rotated["quantization_config"]
    (packed / "config.json").write_text(json.dumps(config))
    assert "rotated at run time" in call(*line, code=1).err
