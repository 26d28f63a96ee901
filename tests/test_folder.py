"""A folder for stock loaders: what config.json says, when it is there, and how all is read back."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import NETWORKS, Drawer, bare, call
from safetensors.numpy import load_file, save_file

from qvec_cli.checkpoint import whole_folder
from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.write import write
from qvec_cli.errors import CheckpointError
from qvec_cli.inputs.files import model_of
from qvec_cli.inputs.foreign import stored_grid
from qvec_cli.inputs.network import load_network
from qvec_cli.model.configuration import of_config
from qvec_cli.outputs import hf_folder as module
from qvec_cli.specs import Granularity, Grid

FILES = ["config.json", "model.safetensors"]
CLASSIFIERS = {"vit": {"head"}, "deit": {"head", "head_dist"}, "swin": {"head.fc"}}
PAPER = ("--bits", 3, "--preset", "paper")
FORMS = {
    "packed": PAPER,
    "groups": ("--bits", 4, "--group-size", 16),
    "zero points": ("--bits", 2, "--asymmetric"),
    "fake": ("--bits", 3, "--fake"),
    "alone": ("--bits", 5),
}
every_form = pytest.mark.parametrize("form", FORMS)
every_family = pytest.mark.parametrize("family", NETWORKS)


def config(folder: Path) -> dict[str, Any]:
    text = (folder / "config.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(params=NETWORKS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A family, and the folder of its small network in 3 bits."""
    flags = bare(request.param, tmp_path / "bare.st")
    call("quantize", tmp_path / "bare.st", *flags, *PAPER, "-o", f"{tmp_path}/q/")
    return request.param, tmp_path / "q"


def test_config_json_tells_the_network_and_every_linear_layer_that_is_left(
    made: tuple[str, Path],
) -> None:
    family, folder = made
    name, size, args = NETWORKS[family]
    told = config(folder)
    network = timm.create_model(name, num_classes=5, img_size=size, **args)
    linear = {n for n, m in network.named_modules() if isinstance(m, torch.nn.Linear)}
    with Checkpoint(folder) as packed:
        targets = {n.removesuffix(".weight_packed") for n in packed if n.endswith("_packed")}
        assert set(packed) >= {n for n in network.state_dict() if n[:-7] not in targets}
    assert targets == linear - CLASSIFIERS[family]
    scheme = told.pop("quantization_config")
    assert scheme == {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "dequantize": True,
        "ignore": sorted(f"timm_model.{n}" for n in CLASSIFIERS[family]),
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 3,
                    "type": "int",
                    "symmetric": True,
                    "dynamic": False,
                    "strategy": "channel",
                },
            }
        },
    }
    expected = timm.data.resolve_data_config({"input_size": (3, size, size)}, model=network)
    shown = told.pop("pretrained_cfg")
    for key in ("mean", "std", "input_size", "crop_pct", "crop_mode", "interpolation"):
        want = expected[key]
        assert shown[key] == (list(want) if isinstance(want, tuple) else want), key
    assert shown["num_classes"] == 5
    assert told == {
        "model_type": "timm_wrapper",
        "architectures": ["TimmWrapperForImageClassification"],
        "dtype": "float32",
        "architecture": name,
        "model_args": json.loads(json.dumps({**args, "img_size": size})),
        "num_classes": 5,
        "num_labels": 5,
    }


def test_config_json_and_the_card_tell_one_network_and_one_grid(made: tuple[str, Path]) -> None:
    _, folder = made
    with Checkpoint(folder) as packed:
        stated = of_config(config(folder))
        assert stated is not None
        ours, theirs = model_of(packed).to_json(), stated.to_json()
        theirs["pretrained_cfg"]["num_classes"] = theirs["num_classes"]
        assert ours == theirs
        own = stored_grid(packed)
        packed.bare = True  # its card is not asked then
        assert stored_grid(packed) == own == Grid(3)


def test_linear_layers_that_the_user_leaves_are_told(drawer: Drawer, tmp_path: Path) -> None:
    flags = ("--bits", 3, "--targets", "*.qkv.weight", "-o", f"{tmp_path}/q/")
    call("quantize", drawer.receiver, *flags)
    left = {f"blocks.{n}.{part}" for n in range(6) for part in ("attn.proj", "mlp.fc1", "mlp.fc2")}
    scheme = config(tmp_path / "q")["quantization_config"]
    assert set(scheme["ignore"]) == {f"timm_model.{name}" for name in left | {"head"}}


def test_classes_stand_in_the_order_of_the_head(drawer: Drawer, tmp_path: Path) -> None:
    call("quantize", drawer.receiver, "--bits", 3, "-o", f"{tmp_path}/q/")
    told = config(tmp_path / "q")
    assert told["label_names"] == ["a", "b", "c", "d"]
    assert told["id2label"] == {"0": "a", "1": "b", "2": "c", "3": "d"}
    assert told["label2id"] == {"a": 0, "b": 1, "c": 2, "d": 3}


@every_form
def test_a_folder_holds_the_single_file_and_is_the_same_every_time(
    form: str, drawer: Drawer, tmp_path: Path
) -> None:
    for out in ("one/", "two/", "q.st"):
        call("quantize", drawer.receiver, *FORMS[form], "-o", f"{tmp_path}/{out}")
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert sorted(content(tmp_path / "one")) == FILES
    assert content(tmp_path / "one")["model.safetensors"] == (tmp_path / "q.st").read_bytes()


@pytest.mark.parametrize(
    "flags", [("--bits", 3), ("--bits", 4, "--asymmetric", "--scale-dtype", "float16")], ids=str
)
def test_float16_scales_beside_zero_points_are_the_same_numbers_in_float32(
    flags: tuple[object, ...], drawer: Drawer, tmp_path: Path
) -> None:
    """Which stock loaders multiply without rounding."""
    for out in ("q/", "q.st"):
        call("quantize", drawer.receiver, *flags, "-o", f"{tmp_path}/{out}")
    halves, wide = load_file(tmp_path / "q.st"), load_file(tmp_path / "q" / "model.safetensors")
    assert halves.keys() == wide.keys()
    scales = {name for name in halves if name.endswith("_scale")}
    assert scales
    for name, array in wide.items():
        assert np.array_equal(array, halves[name]), name
        assert name in scales or array.dtype == halves[name].dtype, name
    assert {halves[name].dtype for name in scales} == {np.dtype(np.float16)}
    assert {wide[name].dtype for name in scales} == {np.dtype(np.float32)}


@every_form
def test_tensors_start_where_a_loader_that_maps_the_file_wants_them(
    form: str, drawer: Drawer, tmp_path: Path
) -> None:
    call("quantize", drawer.receiver, *FORMS[form], "-o", f"{tmp_path}/q/")
    with Checkpoint(tmp_path / "q") as packed:
        whole = [entry for entry in packed.values() if entry.nbytes % module.ALIGN == 0]
        assert len(whole) > 40
        assert {entry.start % module.ALIGN for entry in whole} == {0}


@every_form
def test_the_bytes_that_are_told_before_and_after_are_those_of_both_files(
    form: str, drawer: Drawer, tmp_path: Path
) -> None:
    args = ("quantize", drawer.receiver, *FORMS[form], "-o", f"{tmp_path}/q/", "--json")
    plan = call(*args, "--dry-run").json["results"]["plan"]
    assert list(tmp_path.iterdir()) == []
    results = call(*args).json["results"]
    assert results["output"] == plan["output"] == str(tmp_path / "q")
    assert results["bytes_after"] == plan["bytes_out"]
    assert plan["bytes_out"] == sum(map(len, content(tmp_path / "q").values()))


def test_a_folder_that_exists_needs_no_slash(drawer: Drawer, tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "notes.txt").write_text("mine")
    plan = ("quantize", drawer.receiver, "--bits", 3, "-o", tmp_path / "q", "--dry-run")
    call(*plan)
    call(*plan[:-1])
    assert sorted(content(tmp_path / "q")) == [*FILES, "notes.txt"]


def test_neither_nothing_nor_stdout_is_taken_for_a_folder(
    drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "-").mkdir()
    monkeypatch.chdir(tmp_path)
    refused = call("quantize", drawer.receiver, "--bits", 3, "-o", "", code=1)
    assert "is a folder" in refused.errors[0]
    piped = call("quantize", drawer.receiver, "--bits", 3, "-o", "-", "--json", code=2)
    assert "stdout holds one thing" in piped.errors[0]
    assert content(tmp_path / "-") == {}


@pytest.mark.parametrize("there", FILES)
def test_what_exists_is_replaced_only_by_force(there: str, drawer: Drawer, tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / there).write_text("{}")
    args = ("quantize", drawer.receiver, "--bits", 3, "-o", f"{tmp_path}/q/")
    for extra in ((), ("--dry-run",)):
        refused = call(*args, *extra, code=1)
        assert f"{there}: exists" in refused.errors[0]
        assert content(tmp_path / "q") == {there: b"{}"}
    call(*args, "--force")
    assert sorted(content(tmp_path / "q")) == FILES
    assert b"{}" not in content(tmp_path / "q").values()


def with_nan(drawer: Drawer, path: Path) -> Path:
    """A file whose last tensor in the order of the data is no number."""
    raw = bytearray(drawer.receiver.read_bytes())
    raw[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(raw)
    return path


def test_a_run_that_fails_leaves_what_was_there(drawer: Drawer, tmp_path: Path) -> None:
    broken = with_nan(drawer, tmp_path / "broken.st")
    call("quantize", broken, "--bits", 3, "-o", f"{tmp_path}/q/", code=1)
    assert not (tmp_path / "q").exists()
    call("quantize", drawer.receiver, "--bits", 4, "-o", f"{tmp_path}/q/")
    before = content(tmp_path / "q")
    call("quantize", broken, "--bits", 3, "-o", f"{tmp_path}/q/", "--force", code=1)
    assert content(tmp_path / "q") == before


@pytest.mark.parametrize("exchange", [True, False], ids=["at once", "one by one"])
def test_weights_are_never_beside_a_config_that_is_not_theirs(
    exchange: bool, drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at before each step that gives a file its name, as after a crash there."""
    folder, pairs = tmp_path / "q", []
    for number, kind in enumerate(((), ("--fake",))):
        out = tmp_path / f"alone{number}"
        call("quantize", drawer.receiver, "--bits", 3, *kind, "-o", f"{out}/")
        pairs.append(content(out))
    seen: list[dict[str, bytes]] = []

    def watched(owner: Any, name: str) -> None:
        step = getattr(owner, name)

        def look(*args: Any, **options: Any) -> Any:
            seen.append(content(folder))
            if name == "_exchange" and not exchange:
                raise OSError(errno.EINVAL, "no")
            return step(*args, **options)

        monkeypatch.setattr(owner, name, look)

    shutil.copytree(tmp_path / "alone1", folder)
    for name in ("replace", "rename", "unlink"):
        watched(Path, name)
    watched(whole_folder, "_exchange")
    call("quantize", drawer.receiver, "--bits", 3, "-o", f"{folder}/", "--force")
    seen.append(content(folder))
    assert all(state in pairs for state in seen if "config.json" in state)
    assert all("config.json" in state for state in seen) == exchange
    assert seen[0] == pairs[1]
    assert seen[-1] == pairs[0]


def test_what_else_a_folder_holds_stays_the_same_file(drawer: Drawer, tmp_path: Path) -> None:
    """Modes stay too. A folder within hinders the exchange, and nothing else."""
    folder = tmp_path / "q"
    args = ("quantize", drawer.receiver, "--bits", 3, "-o", f"{folder}/", "--force")
    call(*args)
    (folder / "notes.txt").write_text("mine")
    (folder / "link").symlink_to("nowhere")
    folder.chmod(0o750)
    (folder / "config.json").chmod(0o640)
    for inner in (False, True):
        before, whole = (folder / "notes.txt").stat().st_ino, folder.stat().st_ino
        if inner:
            (folder / "more").mkdir()
        call(*args, "--fake")
        assert (folder / "notes.txt").stat().st_ino == before
        assert (folder / "link").readlink() == Path("nowhere")
        modes = [path.stat().st_mode & 0o777 for path in (folder, folder / "config.json")]
        assert modes == [0o750, 0o640]
        assert (folder.stat().st_ino == whole) == inner
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q"]
    assert {path.name for path in folder.iterdir()} == {*FILES, "link", "more", "notes.txt"}


def test_a_folder_in_which_qvec_works_stays_the_same_one(
    drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ((), ("--fake",)):
        before = tmp_path.stat().st_ino
        call("quantize", drawer.receiver, "--bits", 3, *kind, "-o", ".", "--force")
        assert tmp_path.stat().st_ino == before
        assert sorted(path.name for path in Path().iterdir()) == FILES


def test_two_writers_of_a_folder_never_mix(drawer: Drawer, tmp_path: Path) -> None:
    args = ("quantize", drawer.receiver, "-o", f"{tmp_path}/q/", "--force")
    call(*args, "--bits", 4)
    before = content(tmp_path / "q")
    other = os.open(tmp_path / "q", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    refused = call(*args, "--bits", 3, code=1)
    assert "another qvec is writing it" in refused.errors[0]
    assert content(tmp_path / "q") == before
    os.close(other)
    call(*args, "--bits", 3)


def pair(folder: Path, text: str) -> None:
    """Writes two files together."""
    with whole_folder.replacing_folder(folder, force=True) as new:
        for name in FILES:
            (new / name).write_text(text)


def test_of_two_writers_of_a_new_folder_one_wins(tmp_path: Path) -> None:
    """The other has begun before the folder was there."""
    writer = whole_folder.replacing_folder(tmp_path / "q", force=True)
    (writer.__enter__() / "config.json").write_text("late")
    pair(tmp_path / "q", "first")
    with pytest.raises(CheckpointError, match="q: cannot be written: directory not empty"):
        writer.__exit__(None, None, None)
    assert content(tmp_path / "q") == dict.fromkeys(FILES, b"first")
    assert [path.name for path in tmp_path.iterdir()] == ["q"]


def killed_at(last: int, work: Callable[[], None]) -> None:
    """Work in a child that is killed before the last of so many names is given."""
    child = os.fork()
    if child == 0:  # no exception may leave it
        rename, calls = Path.rename, itertools.count(1)

        def killed(self: Path, place: Path) -> Path:
            if next(calls) == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(self, place)

        try:
            Path.rename = killed
            work()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12's
@pytest.mark.parametrize("names", [[], FILES[:1], FILES], ids=len)
def test_killed_between_two_names_a_folder_is_put_back_by_the_next_writer(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_folder, "_exchanged", lambda *_: False)
    folder, seen, old = tmp_path / "q", [], dict.fromkeys(names, b"old")
    for last in range(1, len(old) + 4):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in names:
            (folder / name).write_text("old")
        killed_at(last, lambda: pair(folder, "new"))
        with contextlib.suppress(IndexError), whole_folder.replacing_folder(folder, force=True):
            raise IndexError  # the next writer has no luck either
        seen.append(content(folder))
        assert [path.name for path in tmp_path.iterdir()] == ["q"]
    assert seen == [*[old] * (len(old) + 2), dict.fromkeys(FILES, b"new")]


def test_a_config_that_could_not_be_written_leaves_the_folder_as_it_was(
    drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("quantize", drawer.receiver, "-o", f"{tmp_path}/q/")
    call(*args, "--bits", 4)
    before = content(tmp_path / "q")
    monkeypatch.setattr(module, "replacing", lambda *_, **__: (_ for _ in ()).throw(OSError("x")))
    call(*args, "--bits", 3, "--force", code=1)
    assert content(tmp_path / "q") == before


@every_form
def test_a_folder_is_read_as_its_file_is(form: str, drawer: Drawer, tmp_path: Path) -> None:
    data = ("--data", drawer.receiver_data, "--json")
    for out in ("q/", "q.st"):
        call("quantize", drawer.receiver, *FORMS[form], "-o", f"{tmp_path}/{out}")
    file, folder = tmp_path / "q.st", tmp_path / "q"
    losses = [call("eval", path, *data).json["results"]["loss"] for path in (file, folder)]
    cards = [call("inspect", path, "--json").json["results"]["card"] for path in (file, folder)]
    again = ("quantize", "--bits", 3, "-o", tmp_path / "x.st")
    refused = [call(*again, path, code=1).errors[0] for path in (file, folder)]
    assert losses[0] == losses[1]
    assert cards[0] == cards[1]
    assert "is quantized already, to" in refused[0]
    assert refused[0].replace(str(file), str(folder)) == refused[1]
    call("inspect", folder, "--verify")


@every_family
def test_timm_itself_loads_a_folder_of_float_weights(family: str, tmp_path: Path) -> None:
    flags = bare(family, tmp_path / "bare.st")
    call("quantize", tmp_path / "bare.st", *flags, "--bits", 3, "--fake", "-o", f"{tmp_path}/q/")
    assert "quantization_config" not in config(tmp_path / "q")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'q'}", pretrained=True).eval()
    images = torch.rand(2, 3, NETWORKS[family][1], NETWORKS[family][1])
    with Checkpoint(tmp_path / "q") as checkpoint, torch.no_grad():
        ours = load_network(checkpoint, model_of(checkpoint), "cpu").eval()
        assert torch.equal(ours(images), theirs(images))


# The architecture of a bare file


def test_the_network_of_a_bare_file_chooses_its_targets_and_is_remembered(
    drawer: Drawer, tmp_path: Path
) -> None:
    save_file(load_file(drawer.receiver), tmp_path / "bare.st")
    named = ("--model", "test_vit", "--img-size", 32)
    args = ("quantize", "--bits", 3, "--json", "-o")
    ruled = call(*args, tmp_path / "r.st", tmp_path / "bare.st")
    told = call(*args, tmp_path / "q.st", tmp_path / "bare.st", *named)
    carded = call(*args, tmp_path / "c.st", drawer.receiver).json["results"]
    assert "chosen by name and shape" in ruled.err
    assert "images are prepared as timm has it for test_vit" in told.err
    assert told.json["results"]["sqnr_db"] == carded["sqnr_db"]
    data = ("--data", drawer.receiver_data)
    call("eval", tmp_path / "r.st", *data, code=1)
    call("eval", tmp_path / "q.st", *data)


def test_targets_of_a_card_go_before_those_of_a_named_network(
    drawer: Drawer, tmp_path: Path
) -> None:
    one = "blocks.0.mlp.fc1.weight"
    path = written(tmp_path / "odd.st", drawer, _with(model=None, targets=(one,)))
    named = ("--model", "test_vit", "--img-size", 32)
    args = ("quantize", path, *named, "--bits", 3, "-o", f"{tmp_path}/q/", "--json")
    assert call(*args).json["results"]["quantized"] == [one]


def test_targets_can_be_named_beside_the_network(drawer: Drawer, tmp_path: Path) -> None:
    save_file(load_file(drawer.receiver), tmp_path / "bare.st")
    named = ("--model", "test_vit", "--img-size", 32, "--targets", "*.fc1.weight")
    args = ("quantize", tmp_path / "bare.st", *named, "--bits", 3, "-o", f"{tmp_path}/q/", "--json")
    chosen = call(*args).json["results"]["quantized"]
    assert chosen == [name for name in chosen if name.endswith("fc1.weight")]
    assert len(chosen) == 6


WRONG: dict[str, tuple[int, str, tuple[object, ...]]] = {
    "no network": (1, "does not say its architecture", ("bare", "-o", "q/")),
    "another network": (1, "do not fit the network", ("bare", "--model", "test_vit2", "-o", "q/")),
    "another network for a file": (
        *(1, "do not fit the network"),
        ("bare", "--model", "test_vit2", "-o", "q.st"),
    ),
    "a network that timm does not know": (2, "not known", ("bare", "--model", "tset", "-o", "q/")),
    "a shape without a name": (
        *(1, "does not say its architecture"),
        ("bare", "--img-size", 32, "-o", "q/"),
    ),
    "another name than the file's": (1, "not a", ("card", "--model", "test_vit2", "-o", "q.st")),
    "a shape for a file that has one": (
        *(1, "knows its own"),
        ("card", "--model", "test_vit", "--img-size", 64, "-o", "q/"),
    ),
    "no parent": (1, "its folder does not exist", ("card", "-o", "no/such/")),
    "a file for a folder": (1, "is no folder", ("card", "-o", "bare/")),
    "metrics for weights": (
        *(2, "is the output itself"),
        ("card", "-o", "there/", "--metrics", "there/model.safetensors"),
    ),
    "metrics for the config": (
        *(2, "is the output itself"),
        ("card", "-o", "there", "--metrics", "there/config.json"),
    ),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("extra", [(), ("--dry-run",)], ids=["run", "plan"])
def test_a_refusal_names_the_way_out_and_makes_nothing(
    case: str,
    extra: tuple[str, ...],
    drawer: Drawer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_file(load_file(drawer.receiver), tmp_path / "bare")
    shutil.copy(drawer.receiver, tmp_path / "card")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    code, words, args = WRONG[case]
    refused = call("quantize", *args, "--bits", 3, *extra, code=code)
    assert words in refused.errors[0]
    assert code == 2 or "hint:" in refused.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bare", "card", "there"]


def written(path: Path, drawer: Drawer, change: Callable[[Card, dict[str, Any]], Card]) -> Path:
    """The receiver with another card and other tensors."""
    arrays: dict[str, Any] = load_file(drawer.receiver)
    with Checkpoint(drawer.receiver) as receiver:
        assert receiver.card is not None
        card = change(receiver.card, arrays)
    plan = {name: Entry("F32", array.shape) for name, array in arrays.items()}
    write(path, plan, ((n, [a.reshape(-1)]) for n, a in arrays.items()), card, force=False)
    return path


def _with(**changes: Any) -> Callable[[Card, dict[str, Any]], Card]:
    return lambda card, arrays: replace(card, **changes)


def _in_proj(card: Card, arrays: dict[str, Any]) -> Card:
    arrays["attn.in_proj_weight"] = np.ones((8, 8), np.float32)
    return _with(targets=(*(card.targets or ()), "attn.in_proj_weight"))(card, arrays)


def _embedding(card: Card, arrays: dict[str, Any]) -> Card:
    arrays["token_embed.weight"] = np.ones((8, 8), np.float32)
    return card


def _narrow(card: Card, arrays: dict[str, Any]) -> Card:
    arrays["gate.weight"] = np.eye(8, dtype=np.float32)
    return _with(targets=("gate.weight",))(card, arrays)


UNLOADABLE: dict[str, tuple[str, Callable[[Card, dict[str, Any]], Card], tuple[object, ...]]] = {
    "a fused projection": ("attn.in_proj_weight: is not the weight of a linear", _in_proj, ()),
    "an embedding": (
        *("token_embed.weight: looks like an embedding", _embedding),
        ("--targets", "token_embed.weight"),
    ),
    "tied tensors": (
        *("tied.weight: is tied to head.weight", _with(aliases={"tied.weight": "head.weight"})),
        (),
    ),
    "tied float tensors": (
        *("tied.weight: is tied to head.weight", _with(aliases={"tied.weight": "head.weight"})),
        ("--fake",),
    ),
    "few rows with zero points": ("gate.weight: compressed-tensors", _narrow, ("--asymmetric",)),
    "too few class names": (
        *("its qvec card is damaged (classes)", _with(data={"classes": ["a", "b", "c"]})),
        (),
    ),
    "a class twice": (
        *("its qvec card is damaged (classes)", _with(data={"classes": ["a", "b", "c", "c"]})),
        (),
    ),
}


@pytest.mark.parametrize("case", UNLOADABLE)
def test_what_stock_loaders_cannot_take_is_refused_in_a_folder_only(
    case: str, drawer: Drawer, tmp_path: Path
) -> None:
    words, change, flags = UNLOADABLE[case]
    path = written(tmp_path / "odd.st", drawer, change)
    args = ("quantize", path, "--bits", 4, *flags, "-o")
    refused = call(*args, f"{tmp_path}/q/", code=1)
    assert words in refused.errors[0]
    assert "hint:" in refused.err or "damaged" in words
    assert not (tmp_path / "q").exists()
    call(*args, tmp_path / "q.st")


# Folders of other tools


def foreign(drawer: Drawer, folder: Path, *flags: object, **changes: Any) -> Path:
    """What another tool would have written: no card, the names of the wrapper."""
    call("quantize", drawer.receiver, *flags, "-o", f"{folder}/")
    arrays = load_file(folder / "model.safetensors")
    named = {f"timm_model.{name}": array for name, array in arrays.items()}
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    told = config(folder)
    told["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize(
    "flags",
    [
        ("--bits", 3),
        ("--bits", 4, "--group-size", 16, "--asymmetric"),
        ("--bits", 2, "--granularity", "tensor", "--asymmetric"),
        ("--bits", 8, "--scale-dtype", "float16", "--symmetric"),
    ],
    ids=lambda flags: " ".join(map(str, flags)),
)
def test_a_folder_that_another_tool_has_packed_is_measured_the_same(
    flags: tuple[object, ...], drawer: Drawer, tmp_path: Path
) -> None:
    folder = foreign(drawer, tmp_path / "q", *flags)
    call("quantize", drawer.receiver, *flags, "-o", tmp_path / "q.st")
    data = ("--data", drawer.receiver_data, "--json")
    losses = [call("eval", p, *data).json["results"]["loss"] for p in (folder, tmp_path / "q.st")]
    assert losses[0] == losses[1]
    call("eval", folder, *data, "--dry-run")
    shown = call("inspect", folder, "--json").json["results"]
    assert shown["card"] is None
    assert shown["model"]["architecture"] == "test_vit"
    refused = call("quantize", folder, "--bits", 3, "-o", tmp_path / "x.st", code=1)
    assert "packed by another tool" in refused.errors[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "int-quantized"}, "does not tell of weights alone"),
        ({"version": "0.9.0"}, "with gaps"),
        ({"config_groups": {}}, "does not tell of weights alone"),
    ],
)
def test_a_folder_that_is_packed_otherwise_is_refused_by_name(
    changes: dict[str, Any], words: str, drawer: Drawer, tmp_path: Path
) -> None:
    folder = foreign(drawer, tmp_path / "q", "--bits", 3, **changes)
    refused = call("eval", folder, "--data", drawer.receiver_data, code=1)
    assert refused.errors[0].startswith(f"error: {folder}: ")
    assert words in refused.errors[0]
    assert "hint:" in refused.err


def test_packed_weights_of_which_nothing_tells_the_grid_are_refused(
    drawer: Drawer, tmp_path: Path
) -> None:
    folder = foreign(drawer, tmp_path / "q", "--bits", 3)
    told = config(folder)
    del told["quantization_config"]
    (folder / "config.json").write_text(json.dumps(told))
    refused = call("eval", folder, "--data", drawer.receiver_data, code=1)
    assert "packed by another tool" in refused.errors[0]


def test_a_card_goes_before_config_json(drawer: Drawer, tmp_path: Path) -> None:
    call("quantize", drawer.receiver, "--bits", 3, "-o", f"{tmp_path}/q/")
    (tmp_path / "q" / "config.json").write_text("{}")
    with Checkpoint(tmp_path / "q") as packed:
        assert packed.kind is Kind.QUANTIZED
        assert stored_grid(packed) == Grid(3, Granularity.GROUP, 64, symmetric=False)
