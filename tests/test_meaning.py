"""Faults in what numbers mean, and in runs: refused by name, with nothing written."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAST, MODEL, Drawer, call, spawn
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from qvec_cli.checkpoint import replace
from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.write import write
from qvec_cli.errors import CheckpointError, NotFiniteError
from qvec_cli.pipeline import inspect
from qvec_cli.selection import trial

BODY = {"w.weight": np.ones((4, 6), np.float32), "head.weight": np.ones((3, 6), np.float32)}


def vector(path: Path, value: float) -> Path:
    """A vector with one number that a test cares for."""
    numbers = np.zeros(24, np.float32)
    numbers[7] = value
    plan = {"w.weight": Entry("F32", (4, 6))}
    write(path, plan, [("w.weight", [numbers])], Card(Kind.VECTOR), force=True)
    return path


@pytest.mark.parametrize("lam", ["0", "1e-30", "1"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_an_infinite_vector_is_refused_at_any_lambda(
    lam: str, value: float, tmp_path: Path
) -> None:
    save_file(BODY, tmp_path / "r.st")
    rho = vector(tmp_path / "rho.st", value)
    refused = call("patch", tmp_path / "r.st", rho, "-l", lam, "-o", tmp_path / "p.st", code=1)
    assert f"{rho}: w.weight: {np.float32(value)} at element 7" in refused.errors[0]
    assert not (tmp_path / "p.st").exists()


def test_a_vector_that_would_overflow_is_refused(tmp_path: Path) -> None:
    """The difference of two numbers may be none."""
    for name, value in (("a", -3e38), ("b", 3e38)):
        save_file({"w": np.full(4, value, np.float32)}, tmp_path / f"{name}.st")
    pair = (tmp_path / "a.st", tmp_path / "b.st")
    refused = call("extract", *pair, "--no-head", "-o", tmp_path / "rho.st", code=1)
    assert "b.st: w: rho overflows float32" in refused.errors[0]


def test_doubles_take_part_in_float32_and_stay_doubles_in_the_receiver(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    donor, qat, receiver = (rng.standard_normal(50) for _ in range(3))
    for name, array in (("donor", donor), ("qat", qat), ("receiver", receiver)):
        save_file({"w": array}, tmp_path / f"{name}.st")
    rho, out = tmp_path / "rho.st", tmp_path / "p.st"
    call("extract", tmp_path / "donor.st", tmp_path / "qat.st", "--no-head", "-o", rho)
    call("patch", tmp_path / "receiver.st", rho, "--no-head", "-o", out)
    found = load_file(rho)["w"]
    assert found.dtype == np.float32
    assert np.array_equal(found, qat.astype(np.float32) - donor.astype(np.float32))
    patched = load_file(out)["w"]
    assert patched.dtype == np.float64
    assert np.array_equal(patched, (receiver.astype(np.float32) + found).astype(np.float64))


def test_scalars_and_empty_tensors_go_through_every_step(tmp_path: Path) -> None:
    shapes = {"scalar": (), "empty": (0, 3), "w.weight": (4, 6)}
    rng = np.random.default_rng(0)
    for name in ("donor", "qat"):
        tensors = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
        save_file(tensors, tmp_path / f"{name}.st")
    rho, out, packed = (tmp_path / f"{name}.st" for name in ("rho", "p", "q"))
    call("extract", tmp_path / "donor.st", tmp_path / "qat.st", "--no-head", "-o", rho)
    call("patch", tmp_path / "donor.st", rho, "--no-head", "-o", out)
    call("quantize", out, "--bits", 3, "-o", packed)
    assert {n: a.shape for n, a in load_file(out).items()} == shapes
    assert load_file(packed)["empty"].shape == (0, 3)


def test_a_weight_that_is_no_number_is_never_rounded(tmp_path: Path) -> None:
    weight = np.ones((4, 6), np.float32)
    weight[2, 3] = np.nan
    save_file({"w.weight": weight}, tmp_path / "r.st")
    bits = ("--bits", 3, "--no-head", "-o", tmp_path / "q.st")
    refused = call("quantize", tmp_path / "r.st", *bits, code=1)
    assert "w.weight: nan at element 15" in refused.errors[0]
    assert not (tmp_path / "q.st").exists()


def test_a_damaged_state_is_not_resumed(drawer: Drawer, tmp_path: Path) -> None:
    args = ("finetune", drawer.base, "--data", drawer.donor_data, "-o", tmp_path / "x.st", *FAST)
    call(*args, "--lr", "1e30", code=1)  # leaves its state
    state = tmp_path / "x.st.state"
    damaged = bytearray(state.read_bytes())
    damaged[-1] ^= 1
    state.write_bytes(damaged)
    refused = call(*args, "--lr", "1e30", "--resume", code=1)
    assert "x.st.state: its tensors are not those that its card tells of" in refused.errors[0]
    assert state.read_bytes() == damaged


def test_a_sweep_that_is_refused_at_lambda_0_keeps_its_points(
    drawer: Drawer, tmp_path: Path
) -> None:
    args = ("sweep-lambda", drawer.receiver, drawer.rho, "--data", drawer.receiver_data)
    args = (*args, "-o", tmp_path / "s.json", "--device", "cpu", "--lambdas=-1,0,2")
    measured: list[float] = []
    score = trial.Trial.score

    def broken(self: trial.Trial, lam: float, split: str) -> Any:
        if lam == 0:
            raise NotFiniteError("is not finite")
        return score(self, lam, split)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trial.Trial, "score", broken)
        assert call(*args, code=1).errors == [f"error: {drawer.receiver}: is not finite"]
    assert [path.name for path in tmp_path.iterdir()] == ["s.json.state"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trial.Trial, "score", lambda *a: (measured.append(a[1]), score(*a))[1])
        call(*args, "--resume")
    assert measured[0] == 0  # -1 had been measured


def raising(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise fault

    monkeypatch.setattr(inspect, "describe", broken)


@pytest.mark.parametrize(
    "fault",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
    ids=["Python", "GPU", "CPU"],
)
def test_memory_that_is_not_there_is_told_with_a_way_out(
    fault: Exception, drawer: Drawer, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(fault, monkeypatch)
    refused = call("inspect", drawer.rho, code=1)
    assert refused.errors == ["error: there is not enough memory"]
    assert "--batch-size" in refused.err


def test_a_worker_that_died_is_told_with_a_way_out(
    drawer: Drawer, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), monkeypatch)
    refused = call("inspect", drawer.rho, code=1)
    assert refused.errors == ["error: a process that decodes images died, mostly of no memory"]
    assert "--workers" in refused.err


def altered(
    source: Path, target: Path, tensors: dict[str, np.ndarray[Any, Any]], **card: str
) -> Path:
    """A file with other tensors and another card, which does not tell its digest."""
    with safe_open(source, "np") as file:
        metadata = {k: v for k, v in file.metadata().items() if k != "qvec.digest"}
    metadata |= {f"qvec.{key}": value for key, value in card.items()}
    save_file({**load_file(source), **tensors}, target, metadata)
    return target


@pytest.mark.parametrize("name", ["head.weight", "norm.weight"])
def test_what_is_only_copied_must_be_numbers_too(name: str, drawer: Drawer, tmp_path: Path) -> None:
    bad = load_file(drawer.receiver)[name]
    bad.reshape(-1)[5] = np.nan
    receiver = altered(drawer.receiver, tmp_path / "r.st", {name: bad})
    for args in (("patch", receiver, drawer.rho), ("quantize", receiver, "--bits", 3)):
        refused = call(*args, "-o", tmp_path / "out.st", code=1)
        assert f"r.st: {name}: nan at element 5" in refused.errors[0]
        assert not (tmp_path / "out.st").exists()


CHOICE = {"results": {"chosen": {"lambda": 10**400}}, "data_use": {"level": "none", "counts": {}}}
Line = dict[str, Any]


def in_lines(lines: list[Line]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


SWEEPS = {"nesting": "[" * 100_000, "a lambda beyond floats": json.dumps(CHOICE)}


@pytest.mark.parametrize("case", SWEEPS)
def test_a_choice_that_is_none_costs_a_line(case: str, drawer: Drawer, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(SWEEPS[case])
    args = ("patch", drawer.receiver, drawer.rho, "-l", path, "-o", tmp_path / "p.st")
    assert "s.json: is not valid JSON" in call(*args, code=1).errors[0]


@pytest.fixture(scope="module")
def left_over(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The journal of a sweep whose result could not be written, in which all points are kept."""
    out = tmp_path_factory.mktemp("sweep") / "s.json"

    def full(*_: object, **__: object) -> None:
        raise CheckpointError("the disk is full")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(replace, "write_json", full)
        call(*sweeping(drawer, out), code=1)
    return [*map(json.loads, out.with_name("s.json.state").read_text().splitlines())]


def sweeping(drawer: Drawer, out: Path) -> tuple[object, ...]:
    data = ("--data", drawer.receiver_data, "--lambdas", "0,1", "--device", "cpu")
    return ("sweep-lambda", drawer.receiver, drawer.rho, *data, "-o", out)


def test_a_result_that_cannot_be_written_loses_no_point(
    left_over: list[Line], drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s.json.state").write_text(in_lines(left_over))
    monkeypatch.setattr(trial.Trial, "measured", lambda *_: pytest.fail("measured again"))
    call(*sweeping(drawer, tmp_path / "s.json"), "--resume")
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]


NUMBERS = ("n", "n_correct", "top1", "n_correct_top5", "top5", "loss", "standard_error")
STATES: dict[str, Callable[[list[Line]], str]] = {
    "a score without numbers": lambda lines: in_lines([lines[0], *map(bare_score, lines[1:])]),
    "counts of text": lambda lines: in_lines(
        [lines[0], *({**line, **dict.fromkeys(NUMBERS, "1")} for line in lines[1:])]
    ),
    "a line of text": lambda lines: in_lines(lines) + '"good"\n',
    "a run of text": lambda lines: json.dumps({"run": "once", "scores": {}}, indent=1),
    "nesting": lambda lines: "[" * 100_000 + "\n",
}


def bare_score(line: Line) -> Line:
    return {key: value for key, value in line.items() if key not in NUMBERS}


@pytest.mark.parametrize("case", STATES)
def test_a_damaged_state_of_a_sweep_costs_a_line(
    case: str, left_over: list[Line], drawer: Drawer, tmp_path: Path
) -> None:
    (tmp_path / "s.json.state").write_text(STATES[case](left_over))
    refused = call(*sweeping(drawer, tmp_path / "s.json"), "--resume", code=1)
    assert len(refused.errors) == 1
    assert "s.json.state" in refused.errors[0]


@pytest.mark.parametrize(
    "shape",
    [np.ones((2, 2), np.int64), np.full(2, np.nan, np.float32), np.ones(0, np.int64)],
    ids=["a matrix", "no numbers", "nothing"],
)
def test_packed_parts_of_any_kind_can_be_looked_at(
    shape: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    parts = {"w_packed": np.ones((2, 2), np.int32), "w_scale": np.ones(2, np.float32)}
    save_file({**parts, "w_shape": shape}, tmp_path / "x.st")
    assert call("inspect", tmp_path / "x.st").out.startswith("checkpoint: 3 tensors")


@pytest.mark.parametrize("data", ['{"classes":["a"]}', '{"images":{"train":"x"}}', "{}"])
def test_a_card_that_tells_little_can_be_looked_at(
    data: str, drawer: Drawer, tmp_path: Path
) -> None:
    path = altered(drawer.receiver, tmp_path / "x.st", {}, data=data)
    assert call("inspect", path).out.startswith("checkpoint, fp: 80 tensors")
    assert call("inspect", path, "--lineage").out.startswith("checkpoint, fp of unknown digest\n")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.int64])
def test_codes_of_another_width_are_not_read_as_ours(
    dtype: type, drawer: Drawer, tmp_path: Path
) -> None:
    call("quantize", drawer.receiver, "--bits", 3, "--preset", "paper", "-o", tmp_path / "q.st")
    name = "blocks.0.attn.qkv.weight_packed"
    other = load_file(tmp_path / "q.st")[name].astype(dtype)
    path = altered(tmp_path / "q.st", tmp_path / "x.st", {name: other})
    (said,) = call("eval", path, "--data", drawer.receiver_data, code=1).errors
    assert name in said
    assert "packed by another tool" in said or "of a 3-bit channel absmax weight" in said


UNFIT: dict[str, tuple[dict[str, np.ndarray[Any, Any]], tuple[str, ...], str]] = {
    "no elements": ({"a": np.ones((0, 3), np.float32)}, ("--targets", "a"), "a: has no elements"),
    "a name that is taken": (
        {"a.weight": np.ones((2, 8), np.float32), "a.weight_scale": np.ones(5, np.float32)},
        (),
        "a.weight_scale",
    ),
}


@pytest.mark.parametrize("plan", [(), ("--dry-run",)], ids=["run", "plan"])
@pytest.mark.parametrize("case", UNFIT)
def test_a_matrix_that_cannot_be_packed_is_named(
    case: str, plan: tuple[str, ...], tmp_path: Path
) -> None:
    tensors, flags, reason = UNFIT[case]
    save_file(tensors, tmp_path / "x.st")
    flags += ("--bits", "3", "--no-head", *plan)
    args = ("quantize", tmp_path / "x.st", *flags, "-o", tmp_path / "q.st")
    assert reason in call(*args, code=1).errors[0]


def test_a_target_that_is_listed_twice_is_quantized_once(drawer: Drawer, tmp_path: Path) -> None:
    name = "blocks.0.attn.qkv.weight"
    path = altered(drawer.receiver, tmp_path / "x.st", {}, targets=json.dumps([name, name]))
    made = call("quantize", path, "--bits", 3, "-o", tmp_path / "q.st", "--json").json["results"]
    assert made["quantized"] == [name]


def test_a_difference_beyond_float32_is_compared_without_a_warning(tmp_path: Path) -> None:
    for name, value in (("a", -3e38), ("b", 3e38)):
        save_file({"w": np.full(4, value, np.float32)}, tmp_path / f"{name}.st")
    assert "not finite" in call("inspect", tmp_path / "a.st", tmp_path / "b.st").out


def test_a_grid_is_not_forgotten_for_a_vector_that_has_none(drawer: Drawer, tmp_path: Path) -> None:
    for name in ("donor", "donor_qat"):
        save_file(load_file(getattr(drawer, name)), tmp_path / f"{name}.st")
    rho, once, twice = (tmp_path / f"{name}.st" for name in ("rho", "once", "twice"))
    call("extract", tmp_path / "donor.st", tmp_path / "donor_qat.st", "-o", rho)
    call("patch", drawer.receiver, drawer.rho, "-o", once)
    call("patch", once, rho, "-o", twice)
    made = call("quantize", twice, "-o", tmp_path / "q.st", "--json").json
    assert made["parameters"]["grid"]["bits"] == 3


UNPLANNED: dict[str, tuple[str, ...]] = {
    "no such device": ("eval", "{receiver}", "--data", "{receiver_data}", "--device", "cuda"),
    "no such device to sweep on": (
        *("sweep-lambda", "{receiver}", "{rho}", "--data", "{receiver_data}"),
        *("--device", "cuda"),
    ),
    "another network": (
        *("eval", "{bare}", "--data", "{receiver_data}", "--model", "test_vit2"),
        *("--img-size", "32"),
    ),
    "a tensor missing": ("eval", "{short}", "--data", "{receiver_data}"),
    "a packed part missing": ("eval", "{holed}", "--data", "{receiver_data}"),
}


@pytest.mark.parametrize("case", UNPLANNED)
def test_what_headers_show_is_refused_by_a_plan_as_by_the_run(
    case: str, drawer: Drawer, tmp_path: Path
) -> None:
    if torch.cuda.is_available() and "device" in case:
        pytest.skip("there is a GPU")
    call("quantize", drawer.receiver, "--bits", 3, "-o", tmp_path / "q.st")
    save_file(load_file(drawer.receiver), tmp_path / "bare.st")
    lacking = {
        "short": (drawer.receiver, "norm.weight"),
        "holed": (tmp_path / "q.st", "blocks.0.attn.qkv.weight_scale"),
    }
    for target, (source, name) in lacking.items():
        with safe_open(source, "np") as file:
            metadata = {k: v for k, v in file.metadata().items() if k != "qvec.digest"}
        tensors = {n: a for n, a in load_file(source).items() if n != name}
        save_file(tensors, tmp_path / f"{target}.st", metadata)
    made = {name: tmp_path / f"{name}.st" for name in ("bare", *lacking)}
    line = [word.format(**vars(drawer), **made) for word in UNPLANNED[case]]
    run = call(*line, "-o", tmp_path / "x.json", code=1)
    plan = call(*line, "-o", tmp_path / "x.json", "--dry-run", code=1)
    assert plan.errors == run.errors


def test_a_start_with_tied_tensors_is_planned_as_it_is_run(drawer: Drawer, tmp_path: Path) -> None:
    state = {name: torch.from_numpy(a) for name, a in load_file(drawer.base).items()}
    state["blocks.0.norm2.weight"] = state["blocks.0.norm1.weight"]
    torch.save(state, tmp_path / "tied.pt")
    args = ("finetune", *MODEL, "--initial-checkpoint", tmp_path / "tied.pt", *FAST)
    for extra in (("--dry-run",), ()):
        call(*args, "--data", drawer.donor_data, "-o", tmp_path / "x.st", *extra)


@contextlib.contextmanager
def stdin_from(path: Path) -> Iterator[None]:
    """A file as the stdin of this process."""
    before = os.dup(0)
    with path.open("rb") as file:
        os.dup2(file.fileno(), 0)
    yield
    os.dup2(before, 0)
    os.close(before)


@pytest.mark.timeout(90)
def test_a_start_may_be_piped_in(drawer: Drawer, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    content = drawer.base.read_bytes()
    threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,), daemon=True).start()
    args = ("finetune", *MODEL, "--initial-checkpoint", tmp_path / "pipe", *FAST)
    call(*args, "--data", drawer.donor_data, "-o", tmp_path / "x.st")
    call("finetune", drawer.base, *FAST, "--data", drawer.donor_data, "-o", tmp_path / "y.st")
    assert call("inspect", tmp_path / "x.st", tmp_path / "y.st").out.startswith("the same 80")
    args = ("finetune", "-", *FAST, "--data", drawer.donor_data, "-o", tmp_path / "z.st")
    with stdin_from(drawer.base):  # it brings its own network, as a file would
        call(*args)
    assert call("inspect", tmp_path / "x.st", tmp_path / "z.st").out.startswith("the same 80")


@pytest.mark.timeout(60)
@pytest.mark.slow
def test_thousands_of_tensors_are_subtracted_within_bounds(tmp_path: Path) -> None:
    count, size = 10_000, 16
    names = (f"blocks.{i // 10:05}.layer{i % 10}.weight" for i in range(count))
    header = {
        name: {"dtype": "F32", "shape": [4], "data_offsets": [size * i, size * (i + 1)]}
        for i, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    for name, value in (("a", 1), ("b", 3)):
        data = np.full(4 * count, value, np.float32).tobytes()
        (tmp_path / f"{name}.st").write_bytes(len(text).to_bytes(8, "little") + text + data)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    pair = (tmp_path / "a.st", tmp_path / "b.st")
    made = spawn("extract", *pair, "--no-head", "-o", tmp_path / "rho", "--json")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert made.json["results"]["tensors"] == count
    assert made.json["timing"]["peak_rss_bytes"] < 250e6
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
