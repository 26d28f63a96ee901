"""What an input is, is found in its content; its name says nothing."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import save_file

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import CheckpointError

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}


def _index(path: Path) -> None:
    save_file(ARRAYS, path.parent / "shard.safetensors")
    path.write_text(json.dumps({"weight_map": dict.fromkeys(ARRAYS, "shard.safetensors")}))


KINDS = {
    "safetensors": lambda path: save_file(ARRAYS, path),
    "state dict": lambda path: torch.save({n: torch.tensor(a) for n, a in ARRAYS.items()}, path),
    "index": _index,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["x", "x.st", "x.safetensors", "x.pt", "x.bin", "x.json", "-x"])
def test_any_kind_is_read_under_any_name(kind: str, name: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path / name)
    with Checkpoint(tmp_path / name) as ours:
        for key, array in ARRAYS.items():
            assert np.array_equal(ours.array(key), array)


@pytest.mark.parametrize("length", [0x8002, 0x0280, 0x0480, 0x504B, 0x7B7B, 0x200A7B])
def test_a_header_whose_length_looks_like_another_kind_is_still_a_header(
    length: int, tmp_path: Path
) -> None:
    text = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    content = length.to_bytes(8, "little") + text.ljust(length) + bytes(4)
    (tmp_path / "x").write_bytes(content)
    with Checkpoint(tmp_path / "x") as ours:
        assert list(ours) == ["a"]


FOREIGN = {
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), "zstd-compressed"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "gzip-compressed"),
    "a pickled list": (pickle.dumps([1, 2], 2), "pickle"),
    "JSON that is no index": (b'{"model_type": "vit"}', "has no weight_map"),
    "text": (b"hello world, this is no checkpoint", "not a safetensors file"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_kinds_are_called_by_their_names(kind: str, tmp_path: Path) -> None:
    content, words = FOREIGN[kind]
    (tmp_path / "x.st").write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        Checkpoint(tmp_path / "x.st")
    assert str(caught.value).startswith(f"{tmp_path / 'x.st'}: ")


def test_an_archive_of_something_else_is_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    with pytest.raises(CheckpointError, match="a zip archive, but not one of torch"):
        Checkpoint(tmp_path / "a.npz")


def test_a_refused_file_of_any_kind_is_closed(tmp_path: Path) -> None:
    before = len([*Path("/dev/fd").iterdir()])
    for content in (*(c for c, _ in FOREIGN.values()), b"", b"PK\x03\x04" + bytes(30)):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(CheckpointError):
            Checkpoint(tmp_path / "x")
    assert len([*Path("/dev/fd").iterdir()]) == before


def test_a_folder_with_one_checkpoint_is_that_checkpoint(tmp_path: Path) -> None:
    for name in ("model.safetensors", "weights.safetensors", "pytorch_model.bin", "best.pth"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        kind = "safetensors" if name.endswith("safetensors") else "state dict"
        KINDS[kind](folder / name)
        (folder / "config.json").write_text('{"architecture": "x"}')
        with Checkpoint(folder) as ours:
            assert set(ours) == set(ARRAYS)
            assert ours.config == {"architecture": "x"}


def test_a_folder_with_several_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a folder without a checkpoint"):
        Checkpoint(tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        save_file(ARRAYS, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"several checkpoints: a\.safetensors, b\.safe"):
        Checkpoint(tmp_path)
    save_file(ARRAYS, tmp_path / "model.safetensors")  # the hub's own name wins
    with Checkpoint(tmp_path) as ours:
        assert set(ours) == set(ARRAYS)


def test_tied_names_that_the_library_has_dropped_are_known(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    network[1].weight = network[0].weight
    safetensors.torch.save_model(network, str(tmp_path / "x.st"))
    with Checkpoint(tmp_path / "x.st") as ours:
        assert {*ours, *ours.aliases} == set(network.state_dict())
        assert set(ours.aliases.values()) <= set(ours)
        assert len(ours.aliases) == 1


def test_an_alias_of_what_is_not_there_is_refused(tmp_path: Path) -> None:
    from qvec_cli.inputs.network import load_state

    metadata = {"qvec.kind": "checkpoint", "qvec.schema": "1", "qvec.aliases": '{"b":"gone"}'}
    save_file(ARRAYS, tmp_path / "a.st", metadata)
    with Checkpoint(tmp_path / "a.st") as ours, pytest.raises(CheckpointError, match="b: tied to"):
        load_state(ours)


def test_a_folder_can_be_where_we_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    save_file(ARRAYS, tmp_path / "model" / "model.safetensors")
    monkeypatch.chdir(tmp_path / "model")
    with Checkpoint(Path()) as ours:
        assert ours.name == "model"
