"""A grid as jobs: the same bytes as in one process, and a job that fails is told in a line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import Drawer, call

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
    grid = tmp_path / "grid.yaml"
    receivers = "".join(
        f"  {name}: {{model: {model}, data: {data}}}\n"
        for name, model, data in (
            ("one", drawer.receiver, drawer.receiver_data),
            ("two", drawer.donor, drawer.donor_data),
        )
    )
    head = "lambdas: 0,1\ndevice: cpu\n"
    grid.write_text(f"{head}receivers:\n{receivers}donors:\n  d: {drawer.rho}\n")
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    call("transfer", grid, "-o", here)
    call("transfer", grid, "-o", there, "--executor", "local", "--executor-arg", "timeout_min=3")
    assert there.read_bytes() == here.read_bytes()
    assert len(json.loads(there.read_text().splitlines()[0])["receivers"]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["grid.yaml", "here.jsonl", "there.jsonl"]


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
    assert str(caught.value) == "1 of 1 jobs failed; a: lambda 'x' is not a number"


def test_a_wrong_word_is_refused(tmp_path: Path) -> None:
    refused = {
        "--executor 'slrum' is neither slurm nor local": ("--executor", "slrum"),
        "--executor-arg goes with --executor": ("--executor-arg", "a=1"),
        "is not KEY=VALUE": ("--executor", "local", "--executor-arg", "a"),
    }
    for message, args in refused.items():
        result = call("transfer", tmp_path / "g.yaml", "-o", tmp_path / "o", *args, code=2)
        assert "g.yaml" in result.errors[0] or message in result.errors[0]


def test_an_argument_that_submitit_does_not_know_is_told(tmp_path: Path) -> None:
    executor = Executor("local", {"slurm_nonsense": 1})
    with pytest.raises(QvecError, match="slurm_nonsense"):
        run_jobs(int, {"a": "1"}, tmp_path / "o", executor, Silence())


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
