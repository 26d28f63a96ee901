"""--dry-run: what it says is what the run then does, and it writes and reads next to nothing."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from conftest import FAST, MODEL, Drawer, call
from safetensors.numpy import load_file, save_file

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.outputs.metrics import SCHEMA_FILE
from qvec_cli.specs import Grid

COMMANDS: dict[str, tuple[str, ...]] = {
    "extract": ("extract", "{donor}", "{donor_qat}"),
    "combine": ("combine", "{rho}"),
    "ties": ("combine", "{rho}", "--rule", "ties", "--parts", "attn"),
    "patch": ("patch", "{receiver}", "{rho}"),
    "quantize": ("quantize", "{receiver}", "--bits", "3"),
    "fake": ("quantize", "{receiver}", "--bits", "3", "--fake"),
    "finetune": ("finetune", "{base}", "--data", "{donor_data}", *FAST),
    "a named network": ("finetune", *MODEL, "--data", "{donor_data}", *FAST),
    "train-qat": ("train-qat", "{base}", "--data", "{donor_data}", *FAST),
    "eval": ("eval", "{receiver}", "--data", "{receiver_data}"),
    "export": ("export", "{receiver}", "--to", "onnx"),
    "sweep": ("sweep-lambda", "{receiver}", "{rho}", "--data", "{receiver_data}"),
}
STREAMED = ("extract", "combine", "ties", "patch", "quantize", "fake")


def typed(name: str, drawer: Drawer) -> list[str]:
    files = {key: str(getattr(drawer, key)) for key in drawer.__dataclass_fields__}
    return [word.format(**files) for word in COMMANDS[name]]


def planned(name: str, drawer: Drawer, out: Path) -> dict[str, Any]:
    document = call(*typed(name, drawer), "-o", out, "--dry-run", "--json").json
    jsonschema.validate(document, json.loads(SCHEMA_FILE.read_text()))
    assert document["parameters"]["dry_run"] is True
    plan: dict[str, Any] = document["results"]["plan"]
    return plan


@pytest.mark.parametrize("name", COMMANDS)
def test_a_plan_writes_nothing_and_names_every_tensor(
    name: str, drawer: Drawer, tmp_path: Path
) -> None:
    plan = planned(name, drawer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    source = {"eval": "receiver", "export": "receiver", "sweep": "receiver"}.get(name, "donor")
    source = "rho" if name in ("combine", "ties") else source
    with Checkpoint(getattr(drawer, source)) as checkpoint:
        assert {t["name"] for t in plan["tensors"]} == set(checkpoint)
    shown = call(*typed(name, drawer), "-o", tmp_path / "out", "--dry-run").out
    assert f"would write {tmp_path / 'out'}; nothing was written" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", STREAMED)
def test_the_size_that_is_told_is_the_size_that_is_written(
    name: str, drawer: Drawer, tmp_path: Path
) -> None:
    plan = planned(name, drawer, tmp_path / "out")
    call(*typed(name, drawer), "-o", tmp_path / "out")
    assert plan["bytes_out"] == (tmp_path / "out").stat().st_size
    inputs = [path for path in vars(drawer).values() if str(path) in typed(name, drawer)]
    assert plan["bytes_in"] == sum(path.stat().st_size for path in inputs)


def test_what_becomes_of_a_tensor_is_what_the_run_reports(drawer: Drawer, tmp_path: Path) -> None:
    fates = {
        name: {t["name"]: t["fate"] for t in planned(name, drawer, tmp_path / "x")["tensors"]}
        for name in STREAMED
    }
    runs = {
        name: call(*typed(name, drawer), "-o", tmp_path / name, "--json").json["results"]
        for name in STREAMED
    }

    def told(name: str, fate: str) -> list[str]:
        return sorted(n for n, f in fates[name].items() if f.startswith(fate))

    assert told("extract", "left out") == sorted(runs["extract"]["left_out"])
    assert told("patch", "kept") == sorted(runs["patch"]["kept"])
    assert told("quantize", "quantized") == sorted(runs["quantize"]["quantized"])
    assert told("quantize", "kept") == sorted(runs["quantize"]["left"])


def test_a_targets_training_through_the_grid_is_told(drawer: Drawer, tmp_path: Path) -> None:
    plan = planned("train-qat", drawer, tmp_path / "x")
    through = {t["name"] for t in plan["tensors"] if t["fate"].startswith("trained through 3-bit")}
    with Checkpoint(drawer.donor_qat) as checkpoint:
        assert checkpoint.card is not None
        assert through == set(checkpoint.card.targets or ())
    assert plan["images"] == {"train": 81, "val": 9, "test": 36}


def test_a_plan_reads_headers_only(drawer: Drawer, tmp_path: Path) -> None:
    """Tensors of noise, which a run would refuse by digest and by value, do not disturb it."""
    for name in ("donor", "donor_qat", "receiver", "rho"):
        content = bytearray(getattr(drawer, name).read_bytes())
        (length,) = struct.unpack("<Q", content[:8])
        content[8 + length :] = b"\xff" * (len(content) - 8 - length)
        (tmp_path / f"{name}.st").write_bytes(content)
    for args in (("extract", "donor", "donor_qat"), ("patch", "receiver", "rho")):
        command, *files = args
        paths = [tmp_path / f"{name}.st" for name in files]
        call(command, *paths, "-o", tmp_path / "out", "--dry-run")
        call(command, *paths, "-o", tmp_path / "out", code=1)
        assert not (tmp_path / "out").exists()


REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "twins swapped": (("extract", "{donor_qat}", "{donor}"), "look swapped"),
    "no vector": (("patch", "{receiver}", "{donor}"), "a vector belongs here"),
    "another grid": (
        ("sweep-lambda", "{receiver}", "{rho}", "--data", "{receiver_data}", "--bits", "4"),
        "was made for 3-bit",
    ),
    "a group that does not fit": (
        ("quantize", "{receiver}", "--bits", "3", "--group-size", "7"),
        "does not divide",
    ),
    "other classes": (("eval", "{donor}", "--data", "{receiver_data}"), "does not know"),
    "an image size that does not fit": (
        ("finetune", "{base}", "--data", "{donor_data}", "--img-size", "8"),
        "--img-size 8 is smaller than one patch",
    ),
    "another depth at another image size": (
        (
            *("finetune", "test_vit", "--initial-checkpoint", "{base}", "--img-size", "64"),
            *("--model-arg", "depth=2", "--data", "{donor_data}"),
        ),
        "do not fit the network",
    ),
    "no such data": (("finetune", "{base}", "--data", "nowhere"), "nowhere"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_run_would_refuse_a_plan_refuses(case: str, drawer: Drawer, tmp_path: Path) -> None:
    args, words = REFUSED[case]
    files = {key: str(getattr(drawer, key)) for key in drawer.__dataclass_fields__}
    line = [str(word).format(**files) for word in args]
    run = call(*line, "-o", tmp_path / "x", code=None)
    plan = call(*line, "-o", tmp_path / "x", "--dry-run", code=None)
    assert words in run.errors[0]
    assert (plan.code, plan.errors) == (run.code, run.errors)


def test_a_plan_of_an_output_that_exists_is_refused(drawer: Drawer, tmp_path: Path) -> None:
    (tmp_path / "x.st").write_bytes(b"old")
    for name in STREAMED:
        refused = call(*typed(name, drawer), "-o", tmp_path / "x.st", "--dry-run", code=1)
        assert "exists" in refused.errors[0]
    assert (tmp_path / "x.st").read_bytes() == b"old"


def test_weights_that_do_not_fit_a_named_network_are_refused(
    drawer: Drawer, tmp_path: Path
) -> None:
    tensors = load_file(drawer.base)
    name = next(n for n in tensors if n.endswith("qkv.weight"))
    tensors[name] = np.ones((3, 3), np.float32)
    save_file(tensors, tmp_path / "bad.st")
    args = ("finetune", *MODEL, "--initial-checkpoint", tmp_path / "bad.st", *FAST)
    refused = call(*args, "--data", drawer.donor_data, "-o", tmp_path / "x", "--dry-run", code=1)
    assert name in refused.errors[0]


def test_a_plan_with_metrics_writes_no_metrics(drawer: Drawer, tmp_path: Path) -> None:
    files = ("-o", tmp_path / "x.st", "--metrics", tmp_path / "m.json", "--dry-run")
    call(*typed("patch", drawer), *files)
    assert list(tmp_path.iterdir()) == []
    shutil.copy(drawer.rho, tmp_path / "m.json")
    call(*typed("patch", drawer), *files, code=1)


def test_a_plan_at_the_lambda_of_a_sweep_reads_headers_only(
    drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(load_file(drawer.receiver), tmp_path / "bare.st")
    choice = {
        "results": {"chosen": {"lambda": 0.5}},
        "data_use": {"level": "receiver_labels", "counts": {"val": 9}},
        "parameters": {"grid": {**Grid(3).to_json()}},
        "inputs": [{"digest": "0" * 64}],
    }
    (tmp_path / "s.json").write_text(json.dumps(choice))
    monkeypatch.setattr(Checkpoint, "blocks", lambda *_: pytest.fail("a tensor was read"))
    files = (tmp_path / "bare.st", drawer.rho, "-l", tmp_path / "s.json")
    refused = call("patch", *files, "-o", tmp_path / "p.st", "--dry-run", code=1)
    assert "was chosen for other files than" in refused.errors[0]  # the vector says so itself
