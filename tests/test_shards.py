"""Shards and folders of the hub: the same as one file, and nothing outside is opened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Drawer, call, opening
from safetensors.numpy import load_file, save_file

from qvec_cli.checkpoint import locate
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import CheckpointError

RNG = np.random.default_rng(0)
TENSORS = {
    **{f"blocks.{i}.weight": RNG.standard_normal((4, 3)).astype(np.float32) for i in range(5)},
    "count": np.array([7], np.int64),
    "half": RNG.standard_normal(6).astype(np.float16),
}
INDEX = "model.safetensors.index.json"


def sharded(folder: Path, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """Three shards and their index, which a test may spoil."""
    folder.mkdir(exist_ok=True)
    table = {}
    for i in range(3):
        shard = f"model-{i + 1:05d}-of-00003.safetensors"
        part = {n: TENSORS[n] for n in list(TENSORS)[i::3]}
        save_file(part, folder / shard, {"format": "pt"})
        table |= dict.fromkeys(part, shard)
    index: dict[str, Any] = {"metadata": {"total_size": 1}, "weight_map": table}
    if change:
        change(index)
    (folder / INDEX).write_text(json.dumps(index))
    return folder / INDEX


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(path)
    return str(caught.value)


@pytest.mark.parametrize("by", ["folder", "index"])
def test_shards_are_the_same_as_one_file(by: str, tmp_path: Path) -> None:
    index = sharded(tmp_path / "model")
    save_file(TENSORS, tmp_path / "whole.st")
    with (
        Checkpoint(index if by == "index" else index.parent) as ours,
        Checkpoint(tmp_path / "whole.st") as whole,
    ):
        assert set(ours) == set(whole)
        for name, array in TENSORS.items():
            assert np.array_equal(ours.array(name), array)
        assert ours.settle() == whole.settle()
        assert ours.nbytes == sum(p.stat().st_size for p in index.parent.glob("*.safetensors"))


def test_shards_serve_as_inputs_of_every_step(drawer: Drawer, tmp_path: Path) -> None:
    """Split by hand; the vector is that of the whole files, byte for byte in its tensors."""
    for name in ("donor", "donor_qat"):
        tensors = load_file(getattr(drawer, name))
        (tmp_path / name).mkdir()
        table = {}
        for i, half in enumerate((list(tensors)[::2], list(tensors)[1::2])):
            save_file({n: tensors[n] for n in half}, tmp_path / name / f"m-{i}.safetensors")
            table |= dict.fromkeys(half, f"m-{i}.safetensors")
        (tmp_path / name / INDEX).write_text(json.dumps({"weight_map": table}))
    call("extract", tmp_path / "donor", tmp_path / "donor_qat" / INDEX, "-o", tmp_path / "rho.st")
    assert call("inspect", tmp_path / "rho.st", drawer.rho, "--json").json["results"]["same"]


OUTSIDE = {
    "a parent": "../outside.safetensors",
    "a folder": "sub/outside.safetensors",
    "the root": "/outside.safetensors",
    "Windows": "..\\outside.safetensors",
    "a drive": "C:outside.safetensors",
    "a NUL": "out\0side.safetensors",
    "a pickle": "pytorch_model.bin",
    "a parent itself": "..",
    "nothing": "",
    "no text": 7,
    "a list": ["model-00001-of-00003.safetensors"],
}


def test_the_name_of_a_shard_is_a_plain_one_or_nothing_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(TENSORS, tmp_path / "outside.safetensors")
    opened = set()
    original = locate.open_file
    monkeypatch.setattr(locate, "open_file", lambda p: (opened.add(p), original(p))[1])
    for shard in OUTSIDE.values():
        index = sharded(tmp_path / "model", lambda i, s=shard: i["weight_map"].update(count=s))
        message = refusal(index)
        assert message.startswith(f"{index}: count: its shard "), shard
        assert "is not the plain name of a .safetensors file" in message
        assert opened == {index}


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a shard that is not there": (
        lambda i: i["weight_map"].update(new="model-9.safetensors"),
        "model-9.safetensors: no such file",
    ),
    "a tensor that is in no shard": (
        lambda i: i["weight_map"].update(new="model-00001-of-00003.safetensors"),
        "model-00001-of-00003.safetensors: new is not in the shard",
    ),
    "a tensor that is not listed": (
        lambda i: i["weight_map"].pop("count"),
        "count is not listed",
    ),
    "a tensor of another shard": (
        lambda i: i["weight_map"].update({"count": i["weight_map"]["half"]}),
        "count is not",
    ),
    "no weight_map": (lambda i: i.pop("weight_map"), "has no weight_map"),
    "an empty one": (lambda i: i.update(weight_map={}), "has no weight_map"),
    "a list": (lambda i: i.update(weight_map=[]), "has no weight_map"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_an_index_that_does_not_fit_its_shards_is_refused(case: str, tmp_path: Path) -> None:
    change, words = FAULTS[case]
    assert words in refusal(sharded(tmp_path / "model", change))


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    index = sharded(tmp_path / "model")
    shard = tmp_path / "model" / "model-00002-of-00003.safetensors"
    twice = {"blocks.0.weight": TENSORS["blocks.0.weight"]}
    save_file(load_file(shard) | twice, shard)
    assert f"{shard.name}: blocks.0.weight is not listed" in refusal(index)


def test_a_tensor_that_an_index_lists_twice_is_refused(tmp_path: Path) -> None:
    """Of two shards JSON would keep the last one, and the first would never be opened."""
    index = sharded(tmp_path / "model")
    start = '{"weight_map": {"half": "model-9.safetensors", '
    index.write_text(index.read_text().replace('{"metadata": {"total_size": 1}, ', "{"))
    index.write_text(index.read_text().replace('{"weight_map": {', start))
    assert "'half' stands in it twice" in refusal(index)


def test_a_broken_index_is_told_with_line_and_column(tmp_path: Path) -> None:
    index = sharded(tmp_path / "model")
    index.write_text('{"weight_map": {\n  "a": oops}}')
    assert refusal(index).startswith(f"{index}: is not valid JSON: ")
    assert "line 2 column 8" in refusal(index)
    index.write_text('{"weight_map": NaN, "x": 1}')
    assert "NaN is not JSON" in refusal(index)
    index.write_text('{"weight_map": ' + "[" * 100_000)
    assert "is not valid JSON" in refusal(index)


def test_an_index_of_unreasonable_size_is_not_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = sharded(tmp_path / "model")
    monkeypatch.setattr(locate, "MAX_HEADER", index.stat().st_size - 1)
    assert "more than" in refusal(index)


PIECES = {
    "tensors": (b'{"weight_map":{', b'"%d":"a.safetensors",', b'"":"a.safetensors"}}'),
    "shards": (b'{"weight_map":{', b'"%d":"%d.safetensors",', b'"":"a.safetensors"}}'),
    "lists": (b'{"a":[', b"[],", b"0]}"),
    "numbers": (b'{"a":[', b"1e9,", b"0]}"),
    "a letter of four bytes": (b'{"a":"\xf0\x9f\x98\x80', b"a", b'"}'),
}
BUSY = 3
"""Seconds that are let pass; the work of one, on a machine that others use too."""


@pytest.mark.slow
def test_a_hostile_index_costs_little(tmp_path: Path) -> None:
    path = tmp_path / INDEX
    with opening() as opened:
        for case in (*PIECES, "tensors, in short", "shards, in short"):
            start, piece, end = PIECES[case.removesuffix(", in short")]
            count = (locate.MAX_HEADER - len(start + end)) // (len(piece) + 5 * piece.count(b"%d"))
            count = min(count, 358_000) if case.endswith("in short") else count
            whole = piece * count
            if b"%d" in piece:
                whole = b"".join(piece.replace(b"%d", b"%d" % i) for i in range(count))
            path.write_bytes(start + whole + end)
            said, seconds, peak = opened(path)
            assert said.startswith("refused"), case
            assert peak < 200e6, case
            assert seconds < BUSY, case


def test_an_index_of_a_hundred_thousand_tensors_is_read(tmp_path: Path) -> None:
    shard = "model-{:05d}-of-00100.safetensors"
    names = (f"visual.transformer.blocks.{i}.attention.projection.weight" for i in range(100_000))
    table = {name: shard.format(i % 100) for i, name in enumerate(names)}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": table}, indent=2))
    with opening() as opened:
        said, seconds, peak = opened(tmp_path / INDEX)
    assert said.endswith("lists it among 100 shards")
    assert peak < 200e6
    assert seconds < BUSY


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    index = sharded(tmp_path / "model")
    shard = tmp_path / "model" / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert refusal(index).startswith(f"{shard}: holds ")


@pytest.mark.parametrize("name", ["model-00001-of-00003.safetensors", INDEX, "config.json"])
def test_a_link_that_leads_out_of_the_folder_is_not_followed(name: str, tmp_path: Path) -> None:
    index = sharded(tmp_path / "model")
    inside = tmp_path / "model" / name
    outside = tmp_path / name
    if inside.exists():
        inside.rename(outside)
    else:
        outside.write_text("{}")
    inside.symlink_to(outside)
    assert f"{inside}: is a link that leads out of the folder" in refusal(index.parent)


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    index = sharded(tmp_path / "model")
    shard = tmp_path / "model" / "model-00001-of-00003.safetensors"
    shard.unlink()
    shard.symlink_to(shard.name)
    assert f"{shard}: is a link to itself" in refusal(index)


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    index = sharded(tmp_path / "model")
    shard = tmp_path / "model" / "model-00001-of-00003.safetensors"
    shard.rename(shard.with_name("kept.bin"))
    shard.symlink_to("kept.bin")
    with Checkpoint(index) as ours:
        assert set(ours) == set(TENSORS)


def test_the_cache_of_the_hub_is_read_through_its_links(tmp_path: Path) -> None:
    """snapshots/REVISION/NAME is a link to blobs/DIGEST beside it."""
    cache = tmp_path / "models--org--name"
    blobs, snapshot = cache / "blobs", cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    index = sharded(blobs)
    (blobs / "config.json").write_text('{"model_type": "vit"}')
    for i, path in enumerate([*blobs.iterdir()]):
        path.rename(blobs / f"{i:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{i:040x}")
    with Checkpoint(snapshot) as ours:
        assert set(ours) == set(TENSORS)
        assert ours.config == {"model_type": "vit"}
    with Checkpoint(snapshot / index.name) as ours:
        assert set(ours) == set(TENSORS)


def test_the_cache_of_another_repository_is_not(tmp_path: Path) -> None:
    snapshot = tmp_path / "ours" / "snapshots" / "abc"
    blob = tmp_path / "theirs" / "blobs" / "0"
    for folder in (snapshot, blob.parent):
        folder.mkdir(parents=True)
    save_file(TENSORS, blob)
    (snapshot / "model.safetensors").symlink_to("../../../theirs/blobs/0")
    assert "is a link that leads out of the folder" in refusal(snapshot)


def test_a_folder_may_be_a_link(tmp_path: Path) -> None:
    sharded(tmp_path / "model")
    (tmp_path / "link").symlink_to("model")
    with Checkpoint(tmp_path / "link") as ours:
        assert set(ours) == set(TENSORS)


def test_a_timm_folder_tells_its_architecture(drawer: Drawer, tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    network = timm.create_model("test_vit", num_classes=4, img_size=32)
    save_for_hf(network, tmp_path / "timm", safe_serialization=True)
    model = call("inspect", tmp_path / "timm", "--json").json["results"]["model"]
    assert (model["architecture"], model["num_classes"]) == ("test_vit", 4)
    assert model["pretrained_cfg"]["input_size"] == [3, 32, 32]
    call("patch", tmp_path / "timm", drawer.rho, "-o", tmp_path / "p.st")
    data = ("--data", drawer.receiver_data)
    scores = [call("eval", tmp_path / name, *data, "--json").json for name in ("timm", "p.st")]
    assert [score["results"]["n"] for score in scores] == [48, 48]
    start = ("finetune", tmp_path / "timm", *data, "-o", tmp_path / "x.st", "--dry-run", "--json")
    plan = call(*start).json["results"]["plan"]
    assert next(t["shape"] for t in plan["tensors"] if t["name"] == "head.weight") == [4, 64]


HOSTILE_CONFIGS: list[Any] = [
    *({"pretrained_cfg": 3}, {"pretrained_cfg": {}}, {"pretrained_cfg": {}, "model_args": [1]}),
    {"architecture": 3, "pretrained_cfg": {"input_size": "x"}, "model_args": {}},
    {"pretrained_cfg": {"input_size": [[1]]}, "model_args": {"img_size": [[1], [1]]}},
    {"architecture": "x", "pretrained_cfg": {}, "model_args": {"checkpoint_path": "evil.pt"}},
]


@pytest.mark.parametrize("config", HOSTILE_CONFIGS)
def test_a_config_that_says_nothing_we_know_is_passed_over(config: Any, tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert call("inspect", tmp_path, "--json").json["results"]["model"] is None


@pytest.mark.parametrize("text", ["[]", "3", "{", ""])
def test_a_config_that_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    assert str(tmp_path / "config.json") in refusal(tmp_path)
