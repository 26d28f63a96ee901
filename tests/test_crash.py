"""The worst day of a writer: whatever fails, and wherever it is killed, the old file is whole."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
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

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12's
slow = pytest.mark.slow
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


def command(desk: Path, *extra: str, force: bool = True) -> list[str]:
    files = [str(desk / name) for name in ("receiver.st", "rho.st", "out/p.st")]
    line = [sys.executable, "-m", "qvec_cli", "patch", *files[:2], "-o", files[2], *extra]
    return [*line, "--force"] if force else line


def found(desk: Path) -> dict[str, bytes]:
    """What is in the output's folder."""
    return {path.name: path.read_bytes() for path in (desk / "out").iterdir()}


def leftovers(desk: Path) -> int:
    return sum(name.endswith(SUFFIX) for name in found(desk))


def put_back(desk: Path, before: dict[str, bytes]) -> None:
    for path in (desk / "out").iterdir():
        path.unlink()
    for name, content in before.items():
        (desk / "out" / name).write_bytes(content)


# --- in this process: every call that touches the disk, in turn -----------------------------------


DEEDS = {io.open, os.ftruncate, os.fchmod, os.fsync, os.link, os.replace}
METHODS = {"write", "truncate", "flush", "seek"}


@contextlib.contextmanager
def watched(tick: Callable[[], None], *more: Any) -> Iterator[None]:
    """Ticks before each call of this thread that opens, writes or puts a file in place."""

    def look(_: Any, event: str, function: Any) -> None:
        if event == "c_call" and (function in DEEDS | {*more} or function.__name__ in METHODS):
            tick()

    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(None)


def at_call(at: int, deed: Callable[[], None]) -> Callable[[], None]:
    """A tick whose ``at``-th call does something else first."""
    calls = itertools.count(1)
    return lambda: deed() if next(calls) == at else None


def failing(code: int) -> Callable[..., None]:
    """A call to a disk that fails."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def refusal(work: Callable[[], None]) -> str | None:
    """What a fault is told as, if there is one."""
    try:
        work()
    except CheckpointError as error:
        return str(error)
    return None


both = pytest.mark.parametrize("force", [False, True], ids=["new", "replaced"])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG])
@both
def test_at_whatever_call_the_disk_fails_the_target_is_old_or_new_and_nothing_else_is_left(
    code: int, force: bool, desk: Path
) -> None:
    target = desk / "out" / ("p.st" if force else "new.st")
    make(desk / "wanted.st", 3, Kind.CHECKPOINT)
    old = found(desk)
    new = old | {target.name: (desk / "wanted.st").read_bytes()}
    outcomes = []
    for at in range(1, 100):
        with watched(at_call(at, failing(code))):
            fault = refusal(lambda: make(target, 3, Kind.CHECKPOINT, force=force))
        if fault is None:
            break
        assert fault.startswith(f"{target}: ")
        assert os.strerror(code).lower() in fault.lower()
        assert found(desk) == (new if "is written, but" in fault else old)
        outcomes.append(found(desk) == new)
        put_back(desk, old)
    assert len(outcomes) > 10
    assert outcomes == sorted(outcomes)  # once it is there, it stays
    assert outcomes[-1]
    assert found(desk) == new


@both
def test_killed_at_whatever_call_the_target_is_old_or_new_and_the_next_run_sweeps(
    force: bool, desk: Path
) -> None:
    target = desk / "out" / ("p.st" if force else "new.st")
    make(desk / "wanted.st", 3, Kind.CHECKPOINT)
    new = (desk / "wanted.st").read_bytes()
    before = found(desk)
    old = before.get(target.name)
    seen = set()
    for at in itertools.count(1):
        child = os.fork()
        if child == 0:  # no exception may leave it
            tick = at_call(at, lambda: os.kill(os.getpid(), signal.SIGKILL))
            try:
                with watched(tick, os.unlink):
                    make(target, 3, Kind.CHECKPOINT, force=force)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        now = found(desk).get(target.name)
        assert now in (old, new)
        seen.add((now == old, leftovers(desk)))
        make(target, 3, Kind.CHECKPOINT, force=True)  # the next run
        assert leftovers(desk) == 0
        put_back(desk, before)
        if os.waitstatus_to_exitcode(status) == 0:
            break
    assert at > 10
    linked = set() if force else {(False, 1)}  # for a moment a new file has two names
    assert seen == {(True, 0), (True, 1), (False, 0)} | linked


def test_a_disk_without_hard_links_that_fails_leaves_no_empty_file(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = found(desk)
    monkeypatch.setattr(Path, "hardlink_to", failing(errno.EPERM))
    monkeypatch.setattr(Path, "replace", failing(errno.EIO))
    with pytest.raises(CheckpointError, match=r"new\.st: cannot be written: input/output error"):
        make(desk / "out" / "new.st", 3, Kind.CHECKPOINT)
    assert found(desk) == before


def test_a_disk_that_turns_read_only_is_told_by_the_name_of_the_target(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hidden file has to stay there; the next writer sweeps it."""
    target = desk / "out" / "p.st"
    old = target.read_bytes()
    for owner, name in ((os, "fsync"), (Path, "unlink")):
        monkeypatch.setattr(owner, name, failing(errno.EROFS))
    with pytest.raises(CheckpointError, match=r"/p\.st: cannot be written: read-only"):
        make(target, 3, Kind.CHECKPOINT, force=True)
    assert target.read_bytes() == old
    monkeypatch.undo()
    make(target, 3, Kind.CHECKPOINT, force=True)
    assert found(desk).keys() == {"p.st"}


# --- in a process of its own: the system calls themselves -----------------------------------------


def traceable() -> bool:
    if not shutil.which("strace"):
        return False
    done = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False)
    return done.returncode == 0


needs_strace = pytest.mark.skipif(not traceable(), reason="needs strace and the right to trace")
FAMILIES = {
    **{call: call for call in ("write", "fsync", "ftruncate", "fchmod", "flock")},
    "rename": "?rename,?renameat,renameat2",
    "link": "?link,linkat",
    "unlink": "?unlink,unlinkat",
}
"""System calls and what they are called on other machines."""
ALL = ",".join(FAMILIES.values())


def traced(
    desk: Path, calls: str, inject: str = "", *, force: bool = True
) -> subprocess.CompletedProcess[str]:
    """patch, with system calls that fail or kill; bytecode is not written meanwhile."""
    trace = ["strace", "-f", "-y", "-o", str(desk / "log"), "-e", f"trace={calls}"]
    trace += ["-e", f"inject={calls}:{inject}"] if inject else []
    return subprocess.run(
        [*trace, *command(desk, force=force)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )


CODES = ("ENOSPC", "EIO", "EDQUOT")
FAILING = ("write", "fsync", "ftruncate", "fchmod", "rename", "link")
SOME = {*zip(FAILING, 2 * CODES, strict=True)}
"""Every call and every code; all their pairs are for the slow run."""


@needs_strace
@pytest.mark.parametrize(
    ("call", "code"),
    [
        pytest.param(*pair, marks=() if pair in SOME else slow)
        for pair in itertools.product(FAILING, CODES)
    ],
)
def test_a_system_call_that_fails_costs_a_line(call: str, code: str, desk: Path) -> None:
    if call == "link":
        (desk / "out" / "p.st").unlink()
    before = found(desk)
    at = 4 if (call, code) == ("write", "ENOSPC") else 1  # the header is written last
    done = traced(desk, FAMILIES[call], f"error={code}:when={at}", force=call != "link")
    assert "INJECTED" in (desk / "log").read_text()
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (1, "", 1)
    assert lines[0].startswith(f"error: {desk / 'out' / 'p.st'}: cannot be written: ")
    assert found(desk) == before


@needs_strace
@pytest.mark.parametrize(
    "call", ["write", "fsync", *(pytest.param(c, marks=slow) for c in ("fchmod", "ftruncate"))]
)
def test_a_system_call_that_is_interrupted_is_made_again(call: str, desk: Path) -> None:
    done = traced(desk, call, "error=EINTR:when=1")
    assert "INJECTED" in (desk / "log").read_text()
    assert (done.returncode, done.stderr, [*found(desk)]) == (0, "", ["p.st"])
    with Checkpoint(desk / "out" / "p.st") as ours:
        ours.settle()


@needs_strace
@pytest.mark.parametrize(
    ("every", "force"),
    [
        (False, True),
        *(pytest.param(*c, marks=slow) for c in ((False, False), (True, False), (True, True))),
    ],
)
def test_killed_at_any_system_call_the_target_is_old_or_new(
    every: bool, force: bool, desk: Path
) -> None:
    """Around the writing and the naming of the file; in the slow run at every call."""
    if not force:
        (desk / "out" / "p.st").unlink()
    before = found(desk)
    assert traced(desk, ALL, force=force).returncode == 0
    old, new = before.get("p.st"), found(desk)["p.st"]
    made = Counter(re.findall(r"^\d+ +(\w+)\(", (desk / "log").read_text(), re.MULTILINE))
    if not force:
        del made["write"]  # the same as those of the other case
    assert sum(made.values()) > (10 if force else 5)
    moments = [(call, at) for call, count in made.items() for at in range(1, count + 1)]
    if not every:
        naming = made.keys() & {"rename", "renameat", "renameat2", "link", "linkat"}
        last = {(call, made[call]) for call in ("write", "fsync", *naming)}
        moments = [moment for moment in moments if moment in {("write", 1), *last}]
    seen = set()
    for call, at in moments:
        put_back(desk, before)
        done = traced(desk, call, f"signal=KILL:when={at}", force=force)
        assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), (call, at)
        now = found(desk).get("p.st")
        assert now in (old, new), (call, at)
        seen.add((now == old, leftovers(desk)))
        make(desk / "out" / "p.st", 4, Kind.CHECKPOINT, force=True)  # the next run
        assert leftovers(desk) == 0
    assert seen >= {(True, 1), (False, 0)}


@needs_strace
@both
def test_data_are_synced_before_the_name_and_the_name_before_the_end(
    force: bool, desk: Path
) -> None:
    if not force:
        (desk / "out" / "p.st").unlink()
    assert traced(desk, f"openat,{ALL}", force=force).returncode == 0
    log = (desk / "log").read_text().splitlines()
    folder = re.escape(str(desk / "out"))
    temporary = rf"{folder}/\.p\.st\.[^>\"]*{re.escape(SUFFIX)}"
    steps = [
        rf"openat\(.*{temporary}.*O_EXCL",
        rf"write\(\d+<{temporary}>",
        rf"fsync\(\d+<{temporary}>\) += 0",
        rf"(rename|link)\w*\(.*{temporary}",
        rf"fsync\(\d+<{folder}>\) += 0",
    ]
    last = [max(i for i, line in enumerate(log) if re.search(step, line)) for step in steps]
    assert last == sorted(last)


# --- disks ----------------------------------------------------------------------------------------


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", str(folder)]
    if (
        not shutil.which("mount")
        or subprocess.run(line, stderr=subprocess.DEVNULL, check=False).returncode
    ):
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("disk", ["size=8k"], indirect=True)
def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    desk: Path, disk: Path
) -> None:
    result = spawn("patch", desk / "receiver.st", desk / "rho.st", "-o", disk / "p.st")
    assert (result.code, len(result.errors)) == (1, 1)
    assert re.search(r"p\.st: needs [\d,]+ bytes, and its disk has [\d,]+ left", result.err)
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("disk", ["size=8k"], indirect=True)
def test_a_disk_that_others_fill_meanwhile_is_told(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replace, "_room", lambda _: 1 << 40)
    with pytest.raises(CheckpointError, match="cannot be written: no space left on device"):
        make(disk / "p.st", 0, Kind.CHECKPOINT)
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("disk", ["ro"], indirect=True)
def test_a_read_only_disk_is_told(desk: Path, disk: Path) -> None:
    result = spawn("patch", desk / "receiver.st", desk / "rho.st", "-o", disk / "p.st")
    assert (result.code, len(result.errors)) == (1, 1)
    assert "read-only" in result.err or "not writable" in result.err


def test_a_limit_on_the_size_of_files_is_told(desk: Path) -> None:
    before = found(desk)
    limited = ["sh", "-c", 'ulimit -f 2; exec "$@"', "sh", *command(desk)]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot be written: file too large" in done.stderr
    assert found(desk) == before


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


def stopped(heavy: Path, out: Path, *signals: int, ignored: tuple[int, ...] = ()) -> int:
    """The exit code of an extract that gets signals once its hidden file is there."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    files = [str(path) for path in (heavy / "a.st", heavy / "b.st", "-o", out)]
    line = [sys.executable, "-m", "qvec_cli", "extract", *files, "--force"]
    ours = [  # a child takes over what is ignored, as a background job does
        signal.signal(n, signal.SIG_IGN if n in ignored else signal.SIG_DFL) for n in numbers
    ]
    try:
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    finally:
        for number, handler in zip(numbers, ours, strict=True):
            signal.signal(number, handler)
    while process.poll() is None and not [*out.parent.glob(f".*{SUFFIX}")]:
        time.sleep(0.002)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.001)
    _, said = process.communicate(timeout=60)
    assert b"Traceback" not in said
    return process.returncode


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("signals", "ignored", "code"),
    [
        ([signal.SIGINT], (), 130),
        pytest.param([signal.SIGTERM], (), 143, marks=slow),
        pytest.param([signal.SIGHUP], (), 129, marks=slow),
        ([signal.SIGINT, signal.SIGTERM], (signal.SIGINT,), 143),
    ],
    ids=["INT", "TERM", "HUP", "TERM in the background"],
)
def test_a_signal_while_writing_leaves_nothing(
    signals: list[int], ignored: tuple[int, ...], code: int, heavy: Path, tmp_path: Path
) -> None:
    assert stopped(heavy, tmp_path / "rho.st", *signals, ignored=ignored) == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(120)
def test_an_impatient_second_signal_loses_nothing_old(heavy: Path, tmp_path: Path) -> None:
    out = tmp_path / "rho.st"
    out.write_bytes(b"old")
    code = stopped(heavy, out, signal.SIGINT, signal.SIGINT)
    assert code in (130, -signal.SIGINT)  # the interpreter itself may be leaving already
    assert out.read_bytes() == b"old"


@pytest.mark.timeout(120)
def test_a_signal_that_nohup_ignores_is_ignored(heavy: Path, tmp_path: Path) -> None:
    assert stopped(heavy, tmp_path / "rho.st", signal.SIGHUP, ignored=(signal.SIGHUP,)) == 0
    with Checkpoint(tmp_path / "rho.st") as ours:
        ours.settle()


@pytest.mark.timeout(120)
@both
def test_of_three_commands_to_one_target_the_right_number_wins(force: bool, desk: Path) -> None:
    """While they do, a reader always finds a whole file."""
    target = desk / "out" / "p.st"
    if not force:
        target.unlink()
    lams = [str(i / 4) for i in range(3)]
    lines = [command(desk, "-l", lam, force=force) for lam in lams]
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
        time.sleep(0.005)
    said = [process.communicate()[1] for process in rivals]
    codes = sorted(process.returncode for process in rivals)
    assert codes == ([0] * 3 if force else [0, 1, 1])
    assert sum("p.st: exists" in text for text in said) == (0 if force else 2)
    assert looks
    assert [*found(desk)] == ["p.st"]


def test_a_reader_sees_whole_files_while_a_writer_replaces_them(desk: Path) -> None:
    target, whole = desk / "out" / "p.st", set()
    for seed in (0, 1):
        make(target, seed, Kind.CHECKPOINT, force=True)
        whole.add(target.read_bytes())
    writer = os.fork()
    if writer == 0:  # no exception may leave it
        try:
            for turn in range(100):
                make(target, turn % 2, Kind.CHECKPOINT, force=True)
            os._exit(0)
        finally:
            os._exit(1)
    seen = set()
    while (ended := os.waitpid(writer, os.WNOHANG)) == (0, 0):
        seen.add(target.read_bytes())
    assert ended == (writer, 0)
    assert seen == whole
