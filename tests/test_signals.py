"""A bad day at any step of any command that writes: the old or the new, and nothing else is left.

The commands run in forked children of this process, on the small files of ``golden/first``. A
profiler counts their steps, and at one of them a signal, a kill or a fault of the disk comes.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import gc
import io
import json
import os
import random
import select
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from conftest import call
from safetensors.numpy import load_file, save_file

from qvec_cli.checkpoint import whole_folder
from qvec_cli.checkpoint.replace import SUFFIX, sweep
from qvec_cli.cli import app

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12's
FIRST = Path(__file__).parent / "golden" / "first"
MEMORY = Path("/dev/shm")
FAST = "--no-aug --lr 3e-2 --warmup-steps 2 --batch-size 8 --device cpu --epochs 2"
NETWORK = (
    "--model vit_tiny_patch16_224 --img-size 8 --model-arg patch_size=4 --model-arg embed_dim=8 "
    "--model-arg depth=1 --model-arg num_heads=2"
)
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RUNS = {"timing", "environment", "images_per_second", "wall_s", "seconds", "version", "elapsed_s"}
PATIENCE = 5.0
"""Seconds within which a command ends upon a signal."""

COMMANDS = {
    "patch": "patch receiver.st rho.st --lambda 0.75 -o out/p.st --metrics out/p.json",
    "quantize to a folder": "quantize receiver.st --bits 3 -o out/q/",
    "pictures": "pictures --samples 3 --img-size 8 -o out/drawn",
    "extract": "extract donor.st donor_qat.st --moments moments.st -o out/rho.st",
    "combine": "combine rho.st rho_own.st --rule ties -o out/c.st --metrics out/c.json",
    "import": f"import bare.st {NETWORK} -o out/i.st",
    "quantize": "quantize receiver.st --bits 2 --scale mse -o out/q.st --metrics out/q.json",
    "quantize by gptq": "quantize receiver.st --bits 2 --method gptq --calib bars -o out/q.st",
    "quantize --compare": "quantize receiver.st --bits 2 --compare --metrics out/c.json",
    "rotate": "rotate receiver.st -o out/r.st",
    "moments": "moments donor.st --data bars -o out/m.st",
    "export to timm": "export packed.st --to timm -o out/t/",
    "export to ONNX": "export packed.st -o out/m.onnx",
    "eval": "eval receiver.st --data spots -o out/e.json",
    "sweep by labels": (
        "sweep-lambda receiver.st rho.st --data spots --bits 3 --lambdas 0:1:0.5 -o out/s.json"
    ),
    "sweep by agreement": (
        "sweep-lambda receiver.st rho.st --objective agreement --proxy bars --bits 3 "
        "--lambdas 0:1:0.5 -o out/a.json"
    ),
    "transfer": "transfer grid.yaml --bits 3 --lambdas 0,1 -o out/g.jsonl",
    "advise": (
        "advise receiver.st --bits 3 --rho rho_m.st --proxy bars --proxy-samples 9 --refine 0 "
        "-o out/b.st"
    ),
    "finetune": f"finetune base.st --data spots {FAST} -o out/f.st",
    "train-qat": f"train-qat base.st --data spots {FAST} --bits 3 -o out/f.st",
    "plot": "plot sweep.json -o out/s.svg",
    "report": "report grid.jsonl sweep.json eval.json -o out/r.html",
}
"""Every command that writes, by the way in which it does."""

FOLDERS = {"quantize to a folder": "q", "export to timm": "t", "pictures": "drawn"}
"""The folder that a command writes whole."""

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def desk() -> Iterator[Path]:
    """The files, a folder for outputs and one for what is temporary: in memory if possible."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        desk = Path(shutil.copytree(FIRST, Path(name) / "first"))
        for folder in ("out", "tmp"):
            (desk / folder).mkdir()
        save_file(load_file(desk / "receiver.st"), desk / "bare.st")
        yield desk


# --- steps ----------------------------------------------------------------------------------------

NAMING = {os.link, os.replace, os.rename, os.ftruncate, os.fchmod, os.chmod, os.fsync, os.mkdir}
ENDING = {os.unlink, os.rmdir, os.scandir, os.close}
DEEDS = {io.open, os.open, fcntl.flock, *NAMING, *ENDING}
METHODS = {"write", "truncate", "flush", "seek"}
EXCHANGE = whole_folder._exchange.__code__  # what ctypes calls is unseen
CLEARING = whole_folder._clear.__code__


def is_deed(frame: FrameType, event: str, called: Any) -> bool:
    """Whether a step is a call that touches the disk, or the end of one."""
    if event == "call":
        return frame.f_code is EXCHANGE
    return called in DEEDS or called.__name__ in METHODS


def is_fallible(frame: FrameType, event: str, called: Any) -> bool:
    """Whether a step begins to write: what only cleans up has no way back."""
    if event == "call":
        return frame.f_code is EXCHANGE
    if event != "c_call" or not (called in DEEDS - ENDING or called.__name__ in METHODS):
        return False
    return not any(each.f_code is CLEARING for each, _ in traceback.walk_stack(frame))


Choice = Callable[[FrameType, str, Any], bool]


class Steps:
    """Counts the steps of this thread, and does something at one of them."""

    def __init__(self, choice: Choice, at: int, deed: Callable[[], None]) -> None:
        self.count, self._choice, self._at, self._deed = 0, choice, at, deed

    def __call__(self, frame: FrameType, event: str, called: Any) -> None:
        if event in ("call", "c_call", "c_return") and self._choice(frame, event, called):
            self.count += 1
            if self.count == self._at:
                sys.setprofile(None)
                self._deed()


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    code: int | None  # None: not in a minute
    said: str
    seconds: float | None  # since the deed; None: it was not reached
    steps: int


def child(
    desk: Path, line: str, choice: Choice, at: int = 0, deed: Callable[[], None] = int
) -> Ended:
    """A command line in a forked child, with a deed at one of its steps."""
    reader, writer = os.pipe()
    log = desk / "log"
    pid = os.fork()
    if pid == 0:  # no exception may leave it
        code = 99
        try:
            code = _in_child(desk, line, log, Steps(choice, at, deed), writer)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writer)
    ended = os.pidfd_open(pid)
    hangs = not select.select([ended], [], [], 60)[0]
    if hangs:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    now = time.monotonic()
    with os.fdopen(reader, encoding="ascii") as pipe:
        facts = dict(word.split("=") for word in pipe.read().split())
    os.close(ended)
    said = log.read_text(errors="replace")
    seconds = now - float(facts["deed"]) if "deed" in facts else None
    return Ended(None if hangs else status, said, seconds, int(facts.get("steps", 0)))


def _in_child(desk: Path, line: str, log: Path, steps: Steps, writer: int) -> int:
    atexit._clear()  # what the parent does at its end
    os.chdir(desk)
    for fd in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), fd)
    sys.stdout, sys.stderr = (open(fd, "w", closefd=False) for fd in (1, 2))  # noqa: SIM115
    tempfile.tempdir = str(desk / "tmp")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in NUMBERS[1:]:
        signal.signal(number, signal.SIG_DFL)
    deed = steps._deed

    def timed() -> None:
        os.write(writer, f"deed={time.monotonic()} ".encode())
        deed()

    steps._deed = timed
    app._prepare()
    words = shlex.split(line)
    sys.setprofile(steps)
    try:
        app.main(words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 98
    finally:
        sys.setprofile(None)
        os.write(writer, f"steps={steps.count}".encode())
    return 97


def anything(*_: object) -> bool:
    return True


# --- what is there --------------------------------------------------------------------------------


def found(folder: Path) -> Files:
    """Every file below a folder, and every empty folder."""
    paths = [p for p in folder.rglob("*") if p.is_file() or (p.is_dir() and not any(p.iterdir()))]
    return {str(p.relative_to(folder)): plain(p) for p in paths}


def plain(path: Path) -> bytes:
    """What a file holds, without the times that some results have."""
    if path.is_dir():
        return b""
    raw = path.read_bytes()
    if path.suffix not in (".json", ".jsonl"):
        return raw
    lines = [raw] if path.suffix == ".json" else raw.splitlines()
    with contextlib.suppress(ValueError):
        raw = b"\n".join(json.dumps(without_times(json.loads(one))).encode() for one in lines)
    return raw


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in RUNS}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def put(folder: Path, files: Files) -> None:
    """Makes a folder hold these files and nothing else."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


class Bench:
    """A command with what stood before it and what it writes."""

    def __init__(self, desk: Path, name: str, *, old: bool) -> None:
        self.desk, self.out, self.folder = desk, desk / "out", FOLDERS.get(name)
        self.line = COMMANDS[name] + (" --force" if old else "")
        put(self.out, {})
        with contextlib.chdir(desk):
            call(*shlex.split(COMMANDS[name]))  # imports what it needs, too
        self.new = found(self.out)
        self.old = dict.fromkeys(self.new, b"old") if old else {}
        if old and self.folder:
            beside = {f"{self.folder}/notes.txt": b"mine"}
            self.old, self.new = self.old | beside, self.new | beside
        self.begin()

    def begin(self) -> None:
        put(self.out, self.old)
        put(self.desk / "tmp", {})

    def run(self, choice: Choice, at: int = 0, deed: Callable[[], None] = int) -> Ended:
        self.begin()
        return child(self.desk, self.line, choice, at, deed)

    def look(self) -> None:
        """What the next writer does first, where that counts."""

    def torn(self, *, leftovers: bool = False) -> list[str]:
        """What is neither old nor new, or should not be there."""
        self.look()
        now = {n: c for n, c in found(self.out).items() if not n.endswith(".state")}
        hidden = {n for n in now if SUFFIX in n}
        faults = [] if leftovers else [*map(str, hidden), *found(self.desk / "tmp")]
        now = {n: c for n, c in now.items() if n not in hidden}
        whole = {n: c for n, c in now.items() if self.folder and n.startswith(f"{self.folder}/")}
        if self.folder:
            if whole not in (self.part(self.old), self.part(self.new)):
                faults.append(f"a torn folder: {whole}")
            now = {n: c for n, c in now.items() if n not in whole}
        faults += [n for n, c in now.items() if c not in (self.old.get(n), self.new.get(n))]
        return faults + [n for n in self.old if n not in now and n not in whole and not self.folder]

    def part(self, files: Files) -> Files:
        return {n: c for n, c in files.items() if n.startswith(f"{self.folder}/")}

    def is_new(self) -> bool:
        return found(self.out) == self.new


def spread(count: int, most: int) -> Iterator[int]:
    """At most so many of the steps 1 to ``count``, the same every time."""
    draw = random.Random(0)
    most = min(count, most)
    for part in range(most):
        low, high = part * count // most, (part + 1) * count // most
        yield draw.randrange(low, high) + 1


def sent(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def failing(code: int) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    return fail


# --- the laws -------------------------------------------------------------------------------------


def stops(bench: Bench, choice: Choice, most: int) -> Iterator[tuple[object, ...]]:
    """At some steps, what is wrong after a signal; nothing where nothing is."""
    for turn, at in enumerate(spread(bench.run(choice).steps, most)):
        number = NUMBERS[turn % 3]
        ended = bench.run(choice, at, sent(number))
        if (ended.seconds or 0) > PATIENCE and ended.code is not None:  # others may be busy
            ended = bench.run(choice, at, sent(number))
        if ended.seconds is not None:
            wrong: list[object] = bench.torn()
            if ended.code != 128 + number or "Traceback" in ended.said:
                wrong += [f"code {ended.code}", ended.said]
            if ended.code is None or ended.seconds > PATIENCE:
                wrong += [f"took {ended.seconds:.1f} s"]
            yield ((at, number, *wrong) if wrong else ())


def kills(bench: Bench, most: int) -> Iterator[tuple[object, ...]]:
    """At some steps, what is wrong after a kill, and after the next run."""
    again = bench.line.removesuffix(" --force") + " --force"
    for at in spread(bench.run(is_deed).steps, most):
        ended = bench.run(is_deed, at, sent(signal.SIGKILL))
        if ended.seconds is not None:
            wrong: list[object] = bench.torn(leftovers=True)
            if any(SUFFIX in name for name in found(bench.out)):
                put(bench.desk / "tmp", {})
                code = child(bench.desk, again, is_deed).code
                wrong += [*bench.torn(), *([] if bench.is_new() and code == 0 else ["not new"])]
            yield ((at, *wrong) if wrong else ())


def faults(bench: Bench, most: int) -> Iterator[tuple[object, ...]]:
    """At some steps, what is wrong after a fault of the disk."""
    codes = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)
    for turn, at in enumerate(spread(bench.run(is_fallible).steps, most)):
        ended = bench.run(is_fallible, at, failing(codes[turn % 4]))
        if ended.seconds is not None:
            wrong: list[object] = bench.torn()
            if ended.code not in (0, 1) or "Traceback" in ended.said:
                wrong += [f"code {ended.code}", ended.said]
            if ended.code == 0 and not bench.is_new():
                wrong += ["not new"]
            yield ((at, *wrong) if wrong else ())


def misdeeds(
    bench: Bench, stop: int, anywhere: int, kill: int, fault: int
) -> list[tuple[object, ...]]:
    """Of so many of each kind, all of which were made, what is wrong after each."""
    gc.collect()
    gc.freeze()  # a child then shares the pages of what is here
    try:
        rows = [
            *stops(bench, is_deed, stop),
            *stops(bench, anything, anywhere),
            *kills(bench, kill),
            *faults(bench, fault),
        ]
    finally:
        gc.unfreeze()
    assert len(rows) > 0.9 * (stop + anywhere + kill + fault)
    return rows


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that gives its first result for ever."""
    results: list[Any] = []

    def first(*args: Any) -> Any:
        if not results:
            results.append(function(*args))
        return results[0]

    return first


@pytest.mark.parametrize("name", ["quantize to a folder"])
def test_a_signal_a_kill_or_a_fault_leaves_the_old_or_the_new(name: str, desk: Path) -> None:
    assert [row for row in misdeeds(Bench(desk, name, old=True), 4, 2, 3, 3) if row] == []


CHEAP = ("patch", "extract", "combine", "import", "quantize", "rotate", "pictures")
MANY, SOME, FEW, FEWEST = (50, 40, 35, 35), (25, 20, 20, 20), (6, 5, 4, 4), (3, 2, 2, 2)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("name", COMMANDS)
def test_at_whatever_step_of_whatever_command_the_old_or_the_new_is_left(
    name: str,
    old: bool,
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    from qvec_cli.export import graph

    monkeypatch.setattr(graph, "export", once(graph.export))  # ten seconds and no file
    numbers = MANY if name in CHEAP else SOME if name in FOLDERS else FEW
    rows = misdeeds(Bench(desk, name, old=old), *(FEWEST if name == "advise" else numbers))
    record_property("misdeeds", len(rows))
    assert [row for row in rows if row] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FOLDERS)
def test_without_an_exchange_a_folder_is_old_or_new_once_the_next_writer_has_looked(
    name: str,
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """Network disks know none; what a kill cuts off there is moved back."""
    monkeypatch.setattr(whole_folder, "_exchange", lambda *_: failing(errno.EINVAL)())
    bench = Bench(desk, name, old=True)
    target = bench.out / str(bench.folder)
    monkeypatch.setattr(bench, "look", lambda: sweep(target, partial(whole_folder._clear, target)))
    rows = misdeeds(bench, 20, 10, 40, 30)
    record_property("misdeeds", len(rows))
    assert [row for row in rows if row] == []
