"""A grid as jobs: the same bytes as in one process, and a job that fails is told in a line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import slurm_node
from conftest import Drawer, call, spawn

from qvec_cli.errors import CheckpointError, QvecError, SpecError
from qvec_cli.inputs.lambdas import parse_lambdas
from qvec_cli.specs import Silence
from qvec_cli.transfer.slurm import (
    Executor,
    check_parts,
    clear_parts,
    finished,
    folder,
    part_of,
    run_jobs,
)

submitit = pytest.importorskip("submitit")


def grid_of(drawer: Drawer, path: Path) -> Path:
    """A grid of two receivers and one donor."""
    receivers = "".join(
        f"  {name}: {{model: {model}, data: {data}}}\n"
        for name, model, data in (
            ("one", drawer.receiver, drawer.receiver_data),
            ("two", drawer.donor, drawer.donor_data),
        )
    )
    head = "lambdas: 0,1\ndevice: cpu\n"
    path.write_text(f"{head}receivers:\n{receivers}donors:\n  d: {drawer.rho}\n")
    return path


def one_after_the_other(
    work: Callable[[Any], object], requests: Mapping[str, Any], *_: object
) -> None:
    """What a cluster does, in this process."""
    for request in requests.values():
        work(request)


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_jobs_of_this_machine_give_the_bytes_of_one_process(
    processes: bool, drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not processes:
        monkeypatch.setattr("qvec_cli.transfer.slurm.run_jobs", one_after_the_other)
    grid = grid_of(drawer, tmp_path / "grid.yaml")
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    call("transfer", grid, "-o", here)
    call("transfer", grid, "-o", there, "--executor", "local", "--executor-arg", "timeout_min=3")
    assert there.read_bytes() == here.read_bytes()
    assert len(json.loads(there.read_text().splitlines()[0])["receivers"]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["grid.yaml", "here.jsonl", "there.jsonl"]


@pytest.fixture(scope="module")
def node() -> Iterator[dict[str, str]]:
    """Variables that lead to a Slurm of one node."""
    if reason := slurm_node.missing():
        pytest.skip(reason)
    with slurm_node.node() as variables:
        yield variables


@pytest.mark.slow
def test_jobs_of_slurm_give_the_bytes_of_one_process(
    drawer: Drawer, tmp_path: Path, node: dict[str, str]
) -> None:
    grid, folder_ = grid_of(drawer, tmp_path / "grid.yaml"), tmp_path / "a folder"
    folder_.mkdir()
    here, there = tmp_path / "here.jsonl", folder_ / "there.jsonl"
    call("transfer", grid, "-o", here)
    result = spawn("transfer", grid, "-o", there, "--executor", "slurm", "--json", env=node)
    assert there.read_bytes() == here.read_bytes()
    assert [*folder_.iterdir()] == [there]
    assert result.json["results"]["lines"] == len(here.read_text().splitlines())


@pytest.mark.slow
def test_a_job_of_slurm_that_is_cancelled_is_told_and_made_good_by_resume(
    drawer: Drawer, tmp_path: Path, node: dict[str, str]
) -> None:
    grid, here, there = grid_of(drawer, tmp_path / "grid.yaml"), tmp_path / "a", tmp_path / "b"
    call("transfer", grid, "-o", here)
    words = ("transfer", grid, "-o", there, "--executor", "slurm")
    with transferring(words, node) as process:
        subprocess.run(["scancel", jobs_of(node)[0]], env={**os.environ, **node}, check=True)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "error: 1 of 2 jobs failed; one: " in said
    last = "CANCELLED|Terminated|has expired|already completing"  # whichever srun wrote last
    assert re.search(last, said)
    spawn(*words, "--resume", env=node)
    assert there.read_bytes() == here.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_jobs_of_slurm(
    number: signal.Signals, drawer: Drawer, tmp_path: Path, node: dict[str, str]
) -> None:
    grid, out = grid_of(drawer, tmp_path / "grid.yaml"), tmp_path / "out"
    with transferring(("transfer", grid, "-o", out, "--executor", "slurm"), node) as process:
        assert len(jobs_of(node)) == 2
        process.send_signal(number)
        process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert jobs_of(node, count=0) == []
    assert not out.exists()


@contextlib.contextmanager
def transferring(words: Sequence[object], node: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A command in a process of its own, whose jobs are running."""
    command = [sys.executable, "-m", "qvec_cli", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    assert jobs_of(node, count=0) == []  # those of other tests may take a while to end
    with subprocess.Popen(command, text=True, env={**os.environ, **node}, **pipes) as process:
        jobs_of(node, "--states=RUNNING", count=2)
        yield process


def jobs_of(node: dict[str, str], *words: str, count: int | None = None) -> list[str]:
    """The jobs in the queue, once there are so many."""
    for _ in range(300):
        command = ["squeue", "--noheader", "--array", "--format=%i", *words]
        asked = subprocess.run(
            command, env={**os.environ, **node}, capture_output=True, text=True, check=True
        )
        if count in (None, len(asked.stdout.split())):
            break
        time.sleep(0.1)
    return sorted(asked.stdout.split())


def test_a_job_that_fails_is_named_with_its_reason_and_its_log(tmp_path: Path) -> None:
    jobs = {"a": "1", "b": "one"}
    with pytest.raises(QvecError) as caught:
        run_jobs(int, jobs, tmp_path / "out.jsonl", Executor("local"), Silence())
    assert str(caught.value).startswith("1 of 2 jobs failed; b: ValueError: invalid literal")
    log = str(caught.value.hint).split("Its log is ")[1].split(";")[0]
    assert "invalid literal" in Path(log).read_text()


def test_a_fault_of_ours_in_a_job_is_told_in_its_own_words(tmp_path: Path) -> None:
    jobs = {"a": "0,x"}
    with pytest.raises(QvecError) as caught:
        run_jobs(parse_lambdas, jobs, tmp_path / "out.jsonl", Executor("local"), Silence())
    assert str(caught.value) == "1 of 1 jobs failed; a: --lambdas 'x' is not a number"


def test_a_wrong_word_is_refused(tmp_path: Path) -> None:
    refused = {
        "--executor 'slrum' is neither slurm nor local": ("--executor", "slrum"),
        "--executor-arg goes with --executor": ("--executor-arg", "a=1"),
        "is not KEY=VALUE": ("--executor", "local", "--executor-arg", "a"),
    }
    (tmp_path / "g.yaml").write_text("receivers: {}\ndonors: {}\n")
    for message, args in refused.items():
        result = call("transfer", tmp_path / "g.yaml", "-o", tmp_path / "o", *args, code=2)
        assert message in result.errors[0]


def test_an_argument_that_submitit_does_not_know_is_told(tmp_path: Path) -> None:
    executor = Executor("local", {"slurm_nonsense": 1})
    with pytest.raises(QvecError, match="slurm_nonsense"):
        run_jobs(int, {"a": "1"}, tmp_path / "o", executor, Silence())


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a script in the place of a command of Slurm."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / "bin").mkdir()

    def command(name: str, script: str) -> None:
        file = tmp_path / "bin" / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    command("srun", "")
    return command


def test_what_sbatch_refuses_is_told_and_leaves_nothing(
    tmp_path: Path, commands: Callable[[str, str], None]
) -> None:
    commands("sbatch", "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    with pytest.raises(QvecError, match="--executor slurm: sbatch: error: invalid partition"):
        run_jobs(int, {"a": "1", "b": "2"}, tmp_path / "o", Executor("slurm"), Silence())
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 0", "it ended without a result and without a log"),
        ("echo slurm_load_jobs error: Invalid job id specified >&2; exit 1", "it ended without"),
        (
            "printf '%s\n' 'error: *** STEP 7.0 CANCELLED DUE TO TIME LIMIT ***' 'srun: x' > $LOG",
            "error: *** STEP 7.0 CANCELLED DUE TO TIME LIMIT ***",
        ),
    ],
)
def test_a_job_that_has_left_the_queue_without_a_result_has_failed(
    script: str,
    reason: str,
    tmp_path: Path,
    commands: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The queue is asked twice: the first time the daemon is away, which ends no job."""
    commands("sbatch", "echo Submitted batch job 7")
    away = "echo slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1"
    commands("squeue", f"[ -e $0.asked ] || {{ touch $0.asked; {away}; }}\n{script}")
    monkeypatch.setattr("qvec_cli.transfer.slurm._SECONDS", 0.0)
    monkeypatch.setenv("LOG", str(folder(tmp_path / "o") / "log" / "7_0_log.err"))
    monkeypatch.setattr("submitit.SlurmJob._results_timeout_s", 0)
    with pytest.raises(QvecError, match=f"1 of 1 jobs failed; a: {re.escape(reason)}"):
        run_jobs(int, {"a": "1"}, tmp_path / "o", Executor("slurm"), Silence())


def test_whatever_ends_the_waiting_cancels_the_jobs(
    tmp_path: Path, commands: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands("sbatch", "echo Submitted batch job 7")
    commands("scancel", 'echo "$@" >> $0.called')
    commands("squeue", "kill -INT $PPID; echo 7")
    monkeypatch.setattr("qvec_cli.transfer.slurm._SECONDS", 0.0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have ignored it
    try:
        with pytest.raises(KeyboardInterrupt):
            run_jobs(int, {"a": "1", "b": "2"}, tmp_path / "o", Executor("slurm"), Silence())
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "bin" / "scancel.called").read_text().split() == ["7_0", "7_1"]


def test_without_slurm_its_executor_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(QvecError, match="--executor slurm: "):
        run_jobs(int, {"a": "1"}, tmp_path / "o", Executor("slurm"), Silence())


def test_without_submitit_the_way_to_get_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(QvecError) as caught:
        run_jobs(int, {"a": "1"}, tmp_path / "o", Executor("local"), Silence())
    assert caught.value.hint == "pip install 'qvec[slurm]'"


def test_a_cluster_that_is_not_here_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "grid.yaml").write_text("receivers: {a: {model: a, data: b}}\ndonors: {d: r}\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    flags = ("-o", tmp_path / "grid.jsonl", "--executor", "slurm")
    result = call("transfer", tmp_path / "grid.yaml", *flags, code=1)
    assert result.errors[0].startswith("error: --executor slurm: ")
    assert [path.name for path in tmp_path.iterdir()] == ["grid.yaml"]


def test_parts_that_were_cut_off_are_not_lost_by_accident(tmp_path: Path) -> None:
    out = tmp_path / "grid.jsonl"
    folder(out).mkdir()
    part_of(out, 1).write_text("{}")
    with pytest.raises(CheckpointError, match="parts of an unfinished run are there"):
        check_parts(out, resume=False, force=False)
    check_parts(out, resume=True, force=False)
    check_parts(out, resume=False, force=True)
    assert finished(out) == [part_of(out, 1)]


def test_what_is_not_a_part_is_not_removed_with_them(tmp_path: Path) -> None:
    out = tmp_path / "grid.jsonl"
    (folder(out) / "log").mkdir(parents=True)
    for name in ("0001.jsonl", "0002.jsonl.state", "mine.txt"):
        (folder(out) / name).write_text("x")
    clear_parts(out)
    assert [path.name for path in folder(out).iterdir()] == ["mine.txt"]
    (folder(out) / "mine.txt").unlink()
    clear_parts(out)
    assert not folder(out).exists()


def test_a_cluster_is_slurm_or_this_machine() -> None:
    with pytest.raises(SpecError):
        Executor("kubernetes")
