"""The worst day of a writer: whatever fails, and wherever it is killed, the old file is whole."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import spawn

from qvec_cli.checkpoint import replace
from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.replace import SUFFIX
from qvec_cli.checkpoint.write import write
from qvec_cli.errors import CheckpointError

SIZES = {"a": 3000, "b": 5, "c": 0, "head.weight": 7}


def make(path: Path, seed: int, kind: Kind, *, force: bool = False) -> None:
    """A small file of random tensors; a vector has no head."""
    rng = np.random.default_rng(seed)
    names = [n for n in SIZES if kind is not Kind.VECTOR or not n.startswith("head")]
    plan = {name: Entry("F32", (SIZES[name],)) for name in names}
    blocks = ((n, [rng.standard_normal(SIZES[n], np.float32)]) for n in names)
    write(path, plan, blocks, Card(kind, base="0"), force=force)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A receiver, a vector, and an older output in a folder of its own."""
    make(tmp_path / "receiver.st", 0, Kind.CHECKPOINT)
    make(tmp_path / "rho.st", 1, Kind.VECTOR)
    (tmp_path / "out").mkdir()
    make(tmp_path / "out" / "p.st", 2, Kind.CHECKPOINT)
    return tmp_path


def command(desk: Path, *extra: str) -> list[str]:
    files = [str(desk / name) for name in ("receiver.st", "rho.st", "out/p.st")]
    return [sys.executable, "-m", "qvec_cli", "patch", *files[:2], "-o", files[2], *extra]


def left(desk: Path) -> list[str]:
    return sorted(path.name for path in (desk / "out").iterdir())


# --- in this process: every call that touches the disk, in turn -----------------------------------


class Watched:
    """A file whose calls, and those of the functions that put it in place, are counted."""

    def __init__(self, file: Any, tick: Callable[[], None]) -> None:
        self._file, self._tick = file, tick

    def __getattr__(self, name: str) -> Any:
        if name in ("write", "truncate", "flush", "seek"):
            self._tick()
        return getattr(self._file, name)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def watch(monkeypatch: pytest.MonkeyPatch, tick: Callable[[], None]) -> None:
    create = replace._create

    def created(target: Path) -> tuple[Path, Any]:
        tick()
        temporary, file = create(target)
        return temporary, Watched(file, tick)

    def counted(function: Any) -> Any:
        return lambda *args, **kwargs: (tick(), function(*args, **kwargs))[1]

    monkeypatch.setattr(replace, "_create", created)
    for name in ("fsync", "fchmod"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    for name in ("hardlink_to", "replace"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))


def refusal(work: Callable[[], None]) -> str | None:
    """What a fault is told as, if there is one."""
    try:
        work()
    except CheckpointError as error:
        return str(error)
    return None


def failing(at: int, code: int) -> Callable[[], None]:
    """A tick whose ``at``-th call fails."""
    calls = itertools.count(1)

    def tick() -> None:
        if next(calls) == at:
            raise OSError(code, os.strerror(code))

    return tick


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("force", [False, True], ids=["new", "replaced"])
def test_at_whatever_call_the_disk_fails_the_target_is_old_or_new_and_nothing_else_is_left(
    code: int, force: bool, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = desk / "out" / ("p.st" if force else "new.st")
    old = target.read_bytes() if force else None
    make(desk / "wanted.st", 3, Kind.CHECKPOINT)
    new, names = (desk / "wanted.st").read_bytes(), {"p.st", target.name}
    outcomes = []
    for at in range(1, 100):
        with monkeypatch.context() as patched:
            watch(patched, failing(at, code))
            fault = refusal(lambda: make(target, 3, Kind.CHECKPOINT, force=force))
        if fault is None:
            break
        assert fault.startswith(f"{target}: ")
        assert os.strerror(code).lower() in fault.lower()
        promised = new if "is written, but" in fault else old
        found = target.read_bytes() if target.exists() else None
        assert found == promised
        assert set(left(desk)) <= names
        outcomes.append(found == new)
        if old is None:
            target.unlink(missing_ok=True)
        else:
            target.write_bytes(old)
    assert len(outcomes) > 10
    assert outcomes == sorted(outcomes)  # once it is there, it stays
    assert outcomes[-1]
    assert target.read_bytes() == new


def killing(at: int) -> Callable[[], None]:
    """A tick whose ``at``-th call is the last thing that this process does."""
    calls = itertools.count(1)

    def tick() -> None:
        if next(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return tick


@pytest.mark.parametrize("force", [False, True], ids=["new", "replaced"])
def test_killed_at_whatever_call_the_target_is_old_or_new_and_the_next_run_sweeps(
    force: bool, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = desk / "out" / ("p.st" if force else "new.st")
    old = target.read_bytes() if force else None
    make(desk / "wanted.st", 3, Kind.CHECKPOINT)
    new = (desk / "wanted.st").read_bytes()
    seen = set()
    for at in itertools.count(1):
        child = os.fork()
        if child == 0:  # no exception may leave it
            with monkeypatch.context() as patched:
                watch(patched, killing(at))
                try:
                    make(target, 3, Kind.CHECKPOINT, force=force)
                finally:
                    os._exit(0)
        _, status = os.waitpid(child, 0)
        found = target.read_bytes() if target.exists() else None
        assert found in (old, new)
        seen.add((found == old, len([n for n in left(desk) if n.endswith(SUFFIX)])))
        make(target, 3, Kind.CHECKPOINT, force=True)  # the next run
        assert not [n for n in left(desk) if n.endswith(SUFFIX)]
        target.write_bytes(old) if old is not None else target.unlink()
        if os.waitstatus_to_exitcode(status) == 0:
            break
    assert at > 10
    assert (True, 1) in seen
    assert (False, 0) in seen


# --- in a process of its own: the system calls themselves -----------------------------------------


def traceable() -> bool:
    if not shutil.which("strace"):
        return False
    done = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False)
    return done.returncode == 0


needs_strace = pytest.mark.skipif(not traceable(), reason="needs strace and the right to trace")
CALLS = ("write", "fsync", "rename", "link", "ftruncate", "fchmod", "unlink")


def traced(desk: Path, inject: str, *extra: str) -> subprocess.CompletedProcess[str]:
    """patch, with one system call that fails or kills; bytecode is not written meanwhile."""
    calls = ",".join(CALLS)
    trace = ["strace", "-f", "-o", str(desk / "log"), "-e", f"trace={calls}", "-e", inject]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [*trace, *command(desk, *extra)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


FAULTS = [
    *[("write", code, at) for code in ("ENOSPC", "EIO", "EDQUOT") for at in (1, 2)],
    *[("fsync", "EIO", 1), ("ftruncate", "ENOSPC", 1), ("rename", "EIO", 1)],
    *[("fchmod", "EPERM", 1)],
]


@needs_strace
@pytest.mark.parametrize(("call", "code", "at"), FAULTS)
def test_a_system_call_that_fails_costs_a_line(call: str, code: str, at: int, desk: Path) -> None:
    old = (desk / "out" / "p.st").read_bytes()
    done = traced(desk, f"inject={call}:error={code}:when={at}", "--force")
    assert "INJECTED" in (desk / "log").read_text()
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == [lines[-1]]
    assert f"{desk / 'out' / 'p.st'}: cannot be written: " in lines[-1]
    assert done.stdout == ""
    assert left(desk) == ["p.st"]
    assert (desk / "out" / "p.st").read_bytes() == old


@needs_strace
def test_a_system_call_that_is_interrupted_is_made_again(desk: Path) -> None:
    for call in ("write", "fsync"):
        done = traced(desk, f"inject={call}:error=EINTR:when=1", "--force")
        assert (done.returncode, left(desk)) == (0, ["p.st"])
    with Checkpoint(desk / "out" / "p.st") as ours:
        ours.settle()


@needs_strace
@pytest.mark.parametrize("call", ["write", "fsync", "rename", "fchmod"])
def test_killed_at_any_system_call_the_target_is_old_or_new(call: str, desk: Path) -> None:
    old = (desk / "out" / "p.st").read_bytes()
    for at in itertools.count(1):
        done = traced(desk, f"inject={call}:signal=KILL:when={at}", "--force")
        killed = done.returncode != 0
        found = (desk / "out" / "p.st").read_bytes()
        if found != old:
            with Checkpoint(desk / "out" / "p.st") as ours:
                ours.settle()
            assert ours.card is not None
            assert ours.card.role == "patched"
        if not killed:
            break
        make(desk / "out" / "p.st", 4, Kind.CHECKPOINT, force=True)  # the next run
        assert left(desk) == ["p.st"]
        (desk / "out" / "p.st").write_bytes(old)
    assert at > 1


@needs_strace
@pytest.mark.parametrize("force", [False, True], ids=["new", "replaced"])
def test_data_are_synced_before_the_name_and_the_name_before_the_end(
    force: bool, desk: Path
) -> None:
    if not force:
        (desk / "out" / "p.st").unlink()
    trace = ["strace", "-f", "-y", "-o", str(desk / "log")]
    calls = "trace=openat,write,fsync,rename,link,linkat"
    line = [*trace, "-e", calls, *command(desk, *(["--force"] if force else []))]
    subprocess.run(line, capture_output=True, check=True)
    log = (desk / "log").read_text().splitlines()
    folder = re.escape(str(desk / "out"))
    temporary = rf"{folder}/\.p\.st\.[^>\"]*{re.escape(SUFFIX)}"
    steps = [
        rf"openat\(.*{temporary}.*O_EXCL",
        rf"write\(\d+<{temporary}>",
        rf"fsync\(\d+<{temporary}>\) += 0",
        rf"(rename|link|linkat)\(.*{temporary}",
        rf"fsync\(\d+<{folder}>\) += 0",
    ]
    last = [max(i for i, line in enumerate(log) if re.search(step, line)) for step in steps]
    assert last == sorted(last)


# --- disks ----------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a file system in memory."""
    mounted = []

    def mount(options: str) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir(exist_ok=True)
        line = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if (
            not shutil.which("mount")
            or subprocess.run(line, capture_output=True, check=False).returncode
        ):
            pytest.skip("needs the right to mount")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    desk: Path, disk: Callable[..., Path]
) -> None:
    folder = disk("size=8k")
    result = spawn("patch", desk / "receiver.st", desk / "rho.st", "-o", folder / "p.st")
    assert result.code == 1
    assert re.search(r"p\.st: needs [\d,]+ bytes, and its disk has [\d,]+ left", result.err)
    assert list(folder.iterdir()) == []


def test_a_disk_that_others_fill_meanwhile_is_told(
    desk: Path, disk: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = disk("size=8k")
    monkeypatch.setattr(replace, "_require_room", lambda *_: None)
    with pytest.raises(CheckpointError, match="cannot be written: no space left on device"):
        make(folder / "p.st", 0, Kind.CHECKPOINT)
    assert list(folder.iterdir()) == []


def test_a_read_only_disk_is_told(desk: Path, disk: Callable[..., Path]) -> None:
    folder = disk("ro")
    result = spawn("patch", desk / "receiver.st", desk / "rho.st", "-o", folder / "p.st")
    assert result.code == 1
    assert "read-only" in result.err or "not writable" in result.err


def test_a_limit_on_the_size_of_files_is_told(desk: Path) -> None:
    old = (desk / "out" / "p.st").read_bytes()
    limited = ["sh", "-c", 'ulimit -f 2; exec "$@"', "sh", *command(desk, "--force")]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot be written: file too large" in done.stderr
    assert left(desk) == ["p.st"]
    assert (desk / "out" / "p.st").read_bytes() == old


# --- signals and rivals ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair whose difference takes most of a second to write."""
    folder = tmp_path_factory.mktemp("heavy")
    plan = {f"layer.{i}": Entry("F32", (1 << 20,)) for i in range(64)}
    for name, value in (("a.st", 0), ("b.st", 1)):
        block = np.full(1 << 20, value, np.float32)
        card = Card(Kind.CHECKPOINT, role="fp" if value == 0 else "qat", base="0")
        write(folder / name, plan, ((n, [block]) for n in plan), card, force=False)
    return folder


HEARD = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would ignore it
runpy.run_module("qvec_cli", run_name="__main__")
"""


def interrupted(heavy: Path, out: Path, *signals: int, before: str = "true") -> int:
    """The exit code of an extract that gets signals once its hidden file is there."""
    line = [sys.executable, "-c", HEARD, "extract"]
    line += [str(heavy / "a.st"), str(heavy / "b.st"), "-o", str(out)]
    shell = ["sh", "-c", f'{before}; exec "$@"', "sh", *line]
    process = subprocess.Popen(shell, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and not [*out.parent.glob(f".*{SUFFIX}")]:
        time.sleep(0.002)
    for number in signals:
        process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert b"Traceback" not in said
    return process.returncode


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_while_writing_leaves_nothing(
    number: int, code: int, heavy: Path, tmp_path: Path
) -> None:
    assert interrupted(heavy, tmp_path / "rho.st", number) == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(120)
def test_an_impatient_second_signal_loses_nothing_old(heavy: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"old")
    code = interrupted(heavy, tmp_path / "rho.st", signal.SIGINT, signal.SIGINT)
    assert code in (130, -signal.SIGINT)
    assert (tmp_path / "kept").read_bytes() == b"old"
    assert not (tmp_path / "rho.st").exists()


@pytest.mark.timeout(120)
def test_a_signal_that_nohup_ignores_is_ignored(heavy: Path, tmp_path: Path) -> None:
    assert interrupted(heavy, tmp_path / "rho.st", signal.SIGHUP, before="trap '' HUP") == 0
    with Checkpoint(tmp_path / "rho.st") as ours:
        ours.settle()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("force", [False, True], ids=["new", "replaced"])
def test_of_six_commands_to_one_target_the_right_number_wins(force: bool, desk: Path) -> None:
    """While they do, a reader always finds a whole file."""
    target = desk / "out" / "p.st"
    if not force:
        target.unlink()
    lams = [str(i / 4) for i in range(6)]
    lines = [command(desk, "-l", lam, *(["--force"] if force else [])) for lam in lams]
    rivals = [
        subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for line in lines
    ]
    looks = 0
    while any(process.poll() is None for process in rivals):
        if target.exists():
            with Checkpoint(target) as ours:
                ours.settle()
            looks += 1
    said = [process.communicate()[1] for process in rivals]
    codes = sorted(process.returncode for process in rivals)
    assert codes == ([0] * 6 if force else [0, 1, 1, 1, 1, 1])
    assert sum("p.st: exists" in text for text in said) == (0 if force else 5)
    assert looks
    assert left(desk) == ["p.st"]
