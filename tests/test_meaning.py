"""Faults in what numbers mean, and in runs: refused by name, with nothing written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import FAST, Drawer, call
from safetensors.numpy import load_file, save_file

from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.write import write
from qvec_cli.ops import describe, trial

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
    refused = call("extract", *pair, "-o", tmp_path / "rho.st", code=1)
    assert "b.st: w: rho overflows float32" in refused.errors[0]


def test_doubles_take_part_in_float32_and_stay_doubles_in_the_receiver(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    donor, qat, receiver = (rng.standard_normal(50) for _ in range(3))
    for name, array in (("donor", donor), ("qat", qat), ("receiver", receiver)):
        save_file({"w": array}, tmp_path / f"{name}.st")
    rho, out = tmp_path / "rho.st", tmp_path / "p.st"
    call("extract", tmp_path / "donor.st", tmp_path / "qat.st", "-o", rho)
    call("patch", tmp_path / "receiver.st", rho, "-o", out)
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
    call("extract", tmp_path / "donor.st", tmp_path / "qat.st", "-o", rho)
    call("patch", tmp_path / "donor.st", rho, "-o", out)
    call("quantize", out, "--bits", 3, "-o", packed)
    assert {n: a.shape for n, a in load_file(out).items()} == shapes
    assert load_file(packed)["empty"].shape == (0, 3)


def test_a_weight_that_is_no_number_is_never_rounded(tmp_path: Path) -> None:
    weight = np.ones((4, 6), np.float32)
    weight[2, 3] = np.nan
    save_file({"w.weight": weight}, tmp_path / "r.st")
    bits = ("--bits", 3, "-o", tmp_path / "q.st")
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


def test_a_point_that_is_not_finite_stops_the_sweep_and_those_before_it_are_kept(
    drawer: Drawer, tmp_path: Path
) -> None:
    args = ("sweep-lambda", drawer.receiver, drawer.rho, "--data", drawer.receiver_data)
    out = ("-o", tmp_path / "s.json", "--device", "cpu")
    refused = call(*args, *out, "--lambdas", "0,1,1e37", code=1)
    assert "at lambda 1e+37 the patched model is no longer finite" in refused.errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["s.json.state"]
    measured: list[float] = []
    score = trial.Trial.score
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trial.Trial, "score", lambda *a: (measured.append(a[1]), score(*a))[1])
        call(*args, *out, "--lambdas", "0,1,2", "--resume")
    assert measured[0] == 2  # 0 and 1 had been measured


def raising(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise fault

    monkeypatch.setattr(describe, "describe", broken)


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
