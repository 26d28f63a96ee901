"""Training by torchrun: two processes that do the work of one, and end together."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FAST, MODEL, Drawer, Result, call
from safetensors.numpy import load_file

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.replace import unfinished

CLOSE = 1e-5
"""Largest distance of two checkpoints, of their norm; a dozen steps at 1e-3 leave 1e-6 or so."""


def start(*args: object) -> subprocess.Popen[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*torchrun, "-m", "qvec_cli", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str], seconds: float = 120) -> Result:
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        raise
    return Result(process.returncode, out, err)


def two(*args: object, code: int = 0) -> Result:
    """Runs qvec in two processes; torchrun ends with 1 whatever the fault."""
    done = finish(start(*args))
    assert done.code == code, done.err
    return done


def distance(first: Path, second: Path) -> float:
    ours, theirs = load_file(first), load_file(second)
    assert ours.keys() == theirs.keys()
    apart = sum(float(((ours[n] - theirs[n]).astype(np.float64) ** 2).sum()) for n in ours)
    return float(
        (apart / sum(float((a.astype(np.float64) ** 2).sum()) for a in ours.values())) ** 0.5
    )


def flags(drawer: Drawer, *more: object) -> list[object]:
    """Of 81 images; 16 a batch leave one for the last, and nothing for the second process."""
    return [drawer.base, "--data", drawer.donor_data, *FAST, *more]


def scores(document: Any) -> list[Any]:
    """What validation found, but for the time it took."""
    epochs = document["results"]["epochs"]
    keys = [key for key in ("float", "quantized") if key in epochs[0]]
    return [
        {k: v for k, v in epoch[key].items() if k != "images_per_second"}
        for epoch in epochs
        for key in keys
    ]


def same_run(drawer: Drawer, folder: Path, command: str, *more: object) -> tuple[Any, Any]:
    """The metrics of one process and of two, whose weights are the same within rounding."""
    args = [command, *flags(drawer, *more)]
    one = call(*args, "-o", folder / "one.st", "--json").json
    done = two(*args, "-o", folder / "two.st", "--json")
    assert 0 < distance(folder / "one.st", folder / "two.st") < CLOSE
    assert sorted(path.name for path in folder.iterdir()) == ["one.st", "two.st"]
    assert done.err.count("2 processes share each batch") == 1
    assert done.err.count("epoch 2/2") == 1
    return one, done.json


@pytest.mark.slow
def test_two_processes_train_the_twin_that_one_does(drawer: Drawer, tmp_path: Path) -> None:
    one, both = same_run(drawer, tmp_path, "train-qat", "--bits", 3)
    assert both["environment"]["ranks"] == 2
    for ours, theirs in zip(one["results"]["epochs"], both["results"]["epochs"], strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
        assert theirs["top1"] == pytest.approx(ours["top1"], abs=2 / 81)
    for ours, theirs in zip(scores(one), scores(both), strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-3)
        assert theirs["n"] == ours["n"] == 9
    with Checkpoint(tmp_path / "one.st") as first, Checkpoint(tmp_path / "two.st") as second:
        assert first.card is not None
        assert second.card is not None
        assert first.card.recipe == second.card.recipe
        assert first.card.base == second.card.base
        assert "ranks" not in first.card.provenance
        assert second.card.provenance["ranks"] == 2
    made = call("extract", drawer.donor, tmp_path / "two.st", "-o", tmp_path / "rho.st")
    assert "recipe" not in made.err
    assert "by 2 processes" in call("inspect", tmp_path / "two.st").out


@pytest.mark.slow
def test_an_image_that_one_process_cannot_read_ends_both_with_one_line(
    drawer: Drawer, tmp_path: Path
) -> None:
    data = shutil.copytree(drawer.donor_data, tmp_path / "data")
    bad = next(iter(sorted((data / "train" / "left").iterdir())))
    bad.write_bytes(bad.read_bytes()[:200])
    started = time.monotonic()
    args = ("finetune", drawer.base, "--data", data, "--batch-size", 90, "--epochs", 1)
    done = two(*args, "--device", "cpu", "-o", tmp_path / "x.st", code=1)
    assert len(done.errors) == 1
    assert f"{bad}: cannot be decoded" in done.errors[0]
    assert done.err.count("hint:") == 1
    assert "qvec_cli/" not in done.err  # no traceback of ours
    assert time.monotonic() - started < 90
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [16, 17, 90])
@pytest.mark.parametrize("command", ["finetune", "train-qat"])
def test_two_processes_train_the_weights_of_one(
    command: str, batch: int, drawer: Drawer, tmp_path: Path
) -> None:
    more = ("--batch-size", batch, "--smoothing", 0.1, "--workers", 1)
    one, both = same_run(drawer, tmp_path, command, *more)
    assert one["results"]["steps"] == both["results"]["steps"]


@pytest.mark.slow
def test_augmented_images_are_those_of_one_process(drawer: Drawer, tmp_path: Path) -> None:
    args = ["finetune", drawer.base, "--data", drawer.donor_data, "--batch-size", 20]
    args += ["--epochs", 2, "--lr", "1e-3", "--device", "cpu"]
    call(*args, "-o", tmp_path / "one.st")
    two(*args, "-o", tmp_path / "two.st")
    assert 0 < distance(tmp_path / "one.st", tmp_path / "two.st") < CLOSE


def cut(out: Path, *args: object) -> None:
    """Kills both processes once a state is there."""
    process = start(*args, "-o", out)
    while process.poll() is None and not unfinished(out).exists():
        time.sleep(0.01)
    process.terminate()
    assert finish(process).code != 0
    assert unfinished(out).exists()
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [("finetune",), ("train-qat", "--bits", 3)], ids=["finetune", "train-qat"]
)
def test_a_run_that_was_cut_off_resumes_with_any_number_of_processes(
    command: tuple[object, ...], drawer: Drawer, tmp_path: Path
) -> None:
    args = [*command, *flags(drawer, "--epochs", 60)]
    two(*args, "-o", tmp_path / "whole.st")
    cut(tmp_path / "cut.st", *args)
    state = unfinished(tmp_path / "cut.st").read_bytes()
    resumed = two(*args, "-o", tmp_path / "cut.st", "--resume")
    assert resumed.err.count("resumed at epoch") == 1
    assert (tmp_path / "cut.st").read_bytes() == (tmp_path / "whole.st").read_bytes()
    unfinished(tmp_path / "one.st").write_bytes(state)
    assert "resumed at epoch" in call(*args, "-o", tmp_path / "one.st", "--resume").err
    call(*args, "-o", tmp_path / "alone.st")
    assert distance(tmp_path / "one.st", tmp_path / "whole.st") < 1e-3
    assert distance(tmp_path / "alone.st", tmp_path / "whole.st") < 1e-3


@pytest.mark.slow
def test_dropped_paths_are_drawn_again_the_same_after_a_cut(drawer: Drawer, tmp_path: Path) -> None:
    args = ["finetune", *MODEL, "--model-arg", "drop_path_rate=0.2", "--data", drawer.donor_data]
    args += [*FAST, "--epochs", 60]
    two(*args, "-o", tmp_path / "whole.st")
    cut(tmp_path / "cut.st", *args)
    two(*args, "-o", tmp_path / "cut.st", "--resume")
    assert (tmp_path / "cut.st").read_bytes() == (tmp_path / "whole.st").read_bytes()


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_both_and_keeps_the_state(
    drawer: Drawer, tmp_path: Path
) -> None:
    out = tmp_path / "x.st"
    args = ("finetune", *flags(drawer, "--warmup-steps", 0, "--lr", "1e30"), "-o", out)
    done = two(*args, code=1)
    assert len(done.errors) == 1
    assert "at epoch 1, step" in done.errors[0]
    assert f"the last good state is in {unfinished(out)}" in done.errors[0]
    arrays = load_file(unfinished(out))
    assert all(np.isfinite(a).all() for n, a in arrays.items() if n.startswith("network."))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_left_to_torchrun_to_report_and_leaves_the_state(
    number: int, drawer: Drawer, tmp_path: Path
) -> None:
    out = tmp_path / "x.st"
    process = start("finetune", *flags(drawer, "--epochs", 500), "-o", out)
    while process.poll() is None and not unfinished(out).exists():
        time.sleep(0.05)
    process.send_signal(number)
    done = finish(process, 30)
    assert done.code != 0
    assert done.errors == []
    assert f"got signal: {int(number)}" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["x.st.state"]


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The ranks that torchrun has started, in their order."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in listed.read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_does_not_leave_the_other_behind(
    victim: int, drawer: Drawer, tmp_path: Path
) -> None:
    out = tmp_path / "x.st"
    process = start("finetune", *flags(drawer, "--epochs", 500), "-o", out)
    while process.poll() is None and not unfinished(out).exists():
        time.sleep(0.05)
    pids = workers(process)
    os.kill(pids[victim], signal.SIGKILL)
    done = finish(process, 40)
    assert done.code == 1
    assert done.errors == []
    assert f"Signal {int(signal.SIGKILL)} (SIGKILL) received by PID {pids[victim]}" in done.err
    assert "qvec_cli/" not in done.err
    assert not Path(f"/proc/{pids[1 - victim]}").exists()


@pytest.mark.slow
def test_a_refusal_is_told_once_and_its_code_is_in_torchruns_report(
    drawer: Drawer, tmp_path: Path
) -> None:
    out = tmp_path / "x.st"
    out.touch()
    existing = two("finetune", *flags(drawer), "-o", out, code=1)
    assert existing.errors == [f"error: {out}: exists"]
    assert "exitcode  : 1 " in existing.err


@pytest.mark.slow
def test_wrong_usage_is_told_once_and_its_code_is_in_torchruns_report(
    drawer: Drawer, tmp_path: Path
) -> None:
    usage = two("finetune", *flags(drawer, "--batch-size", 1), "-o", tmp_path / "y.st", code=1)
    assert len(usage.errors) == 1
    assert "exitcode  : 2 " in usage.err
    assert len(two("inspect", drawer.rho, code=1).errors) == 1


@pytest.mark.slow
def test_running_means_are_the_first_ranks_in_training_and_validation(
    drawer: Drawer, tmp_path: Path
) -> None:
    args = ["finetune", "test_resnet", "--img-size", 32, "--data", drawer.donor_data, *FAST]
    args += ["--batch-size", 27]
    done = two(*args, "-o", tmp_path / "x.st", "--json")
    assert done.err.count("each process has its own batch norms") == 1
    measured = call(
        "eval", tmp_path / "x.st", "--data", drawer.donor_data, "--split", "val", "--json"
    )
    last = done.json["results"]["val"]["float"]
    assert measured.json["results"]["n_correct"] == last["n_correct"]
    assert measured.json["results"]["loss"] == pytest.approx(last["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_step_that_fails_in_one_process_ends_both_with_one_line(
    drawer: Drawer, tmp_path: Path
) -> None:
    """The last batch has three images; the other process would wait for gradients."""
    args = ["finetune", "test_resnet", "--img-size", 32, "--data", drawer.donor_data, *FAST]
    done = two(*args, "--batch-size", 26, "-o", tmp_path / "x.st", code=1)
    assert len(done.errors) == 1
    assert "a process's share of the last batch of an epoch is one image" in done.errors[0]
    assert "qvec_cli/" not in done.err


@pytest.mark.slow
def test_two_processes_train_in_reduced_precision(drawer: Drawer, tmp_path: Path) -> None:
    args = ("train-qat", *flags(drawer, "--amp", "--bits", 4), "-o", tmp_path / "x.st")
    two(*args)
    assert all(np.isfinite(array).all() for array in load_file(tmp_path / "x.st").values())
