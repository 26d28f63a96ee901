"""Streams and terminals: what goes into a pipe, what comes out, and what a screen may show."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import Drawer, call, spawn
from safetensors.numpy import load_file, save_file

from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.write import write
from qvec_cli.cli import show
from qvec_cli.specs import Stage
from qvec_cli.tame import tame

QVEC = f"{sys.executable} -m qvec_cli"
STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a line of bash, in which ``qvec`` is ours and every part of a pipe counts."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.replace("qvec ", f"{QVEC} ")],
        cwd=folder,
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture
def folder(drawer: Drawer, tmp_path: Path) -> Path:
    """The files of a drawer under short names."""
    for name in ("donor", "donor_qat", "receiver", "rho"):
        (tmp_path / f"{name}.st").symlink_to(getattr(drawer, name))
    return tmp_path


def errors(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    lines = done.stderr.decode().splitlines()
    assert not any("Traceback" in line for line in lines)
    return [line for line in lines if line.startswith("error: ")]


# --- stdin and stdout -----------------------------------------------------------------------------


def test_a_pipeline_makes_the_tensors_that_files_make(folder: Path) -> None:
    line = "qvec extract donor.st donor_qat.st -o - | qvec patch receiver.st - -o - | "
    done = shell(line + "qvec quantize - -o q.st", folder)
    assert (done.returncode, done.stdout.count(b"\n")) == (0, 5)
    call("patch", folder / "receiver.st", folder / "rho.st", "-o", folder / "p.st")
    call("quantize", folder / "p.st", "-o", folder / "wanted.st")
    found = call("inspect", folder / "q.st", folder / "wanted.st", "--json").json["results"]
    assert found["same"]


def test_stdout_gets_the_bytes_of_a_file_and_words_go_to_stderr(folder: Path) -> None:
    done = shell("qvec extract donor.st donor_qat.st -o - > piped.st", folder)
    assert b"rho of 78 tensors" in done.stderr
    call("extract", folder / "donor.st", folder / "donor_qat.st", "-o", folder / "file.st")
    assert (folder / "piped.st").read_bytes() == (folder / "file.st").read_bytes()
    done = shell("qvec eval - --data nowhere < receiver.st", folder)
    assert errors(done)[0].startswith("error: 'nowhere' is neither")


def test_every_command_that_makes_a_file_can_make_it_on_stdout(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for line in (
        "patch receiver.st rho.st -l 0.5",
        "quantize receiver.st --bits 3",
        "quantize receiver.st --bits 3 --fake",
    ):
        piped = shell(f"qvec {line} -o -", folder)
        assert piped.returncode == 0
        call(*line.split(), "-o", "file.st", "-f")
        assert piped.stdout == (folder / "file.st").read_bytes()


def test_a_file_may_be_piped_in_any_way(folder: Path) -> None:
    for line in (
        "qvec inspect - --verify < rho.st",
        "cat rho.st | qvec inspect - --verify",
        "qvec inspect <(cat rho.st) --verify",
        "qvec inspect /dev/stdin --verify < rho.st",
    ):
        assert shell(line, folder).returncode == 0


def test_stdout_by_its_name_is_stdout(folder: Path) -> None:
    line = "qvec patch receiver.st rho.st -o"
    wanted = shell(f"{line} - | cat", folder).stdout
    for name in ("/dev/stdout", "/proc/self/fd/1"):
        assert shell(f"{line} {name} | cat", folder).stdout == wanted, name


WRONG = {
    "stdin twice": "patch - - -o x.st",
    "stdout twice": "patch receiver.st rho.st -o - --json",
    "an artefact and its metrics": "patch receiver.st rho.st -o - --metrics -",
    "a run beside a stream": "finetune receiver.st --data . -o -",
}


@pytest.mark.parametrize("case", WRONG)
def test_a_stream_holds_one_thing(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    done = call(*WRONG[case].split(), code=2)
    assert (done.out, len(done.errors)) == ("", 1)
    assert not (folder / "x.st").exists()


def test_a_closed_stdin_holds_nothing(folder: Path) -> None:
    done = shell("qvec inspect - <&-", folder)
    assert (done.returncode, done.stdout, len(errors(done))) == (2, b"", 1)


def on_a_terminal(args: list[str], fd: int) -> tuple[int, bytes]:
    """Exit code and stderr of a command that has a terminal as its stdin or stdout."""
    ours, theirs = pty.openpty()
    streams = {"stdin" if fd == 0 else "stdout": theirs}
    line = [sys.executable, "-m", "qvec_cli", *args]
    try:  # it would wait for ever for somebody to read
        done = subprocess.run(line, stderr=subprocess.PIPE, check=False, timeout=10, **streams)
    finally:
        os.close(ours)
        os.close(theirs)
    return done.returncode, done.stderr


def test_a_terminal_is_neither_read_as_a_file_nor_sent_binary_data(folder: Path) -> None:
    pair = [str(folder / "receiver.st"), str(folder / "rho.st")]
    code, said = on_a_terminal(["patch", *pair, "-o", "-"], 1)
    assert (code, said.count(b"error: ")) == (2, 1)
    assert b"terminal" in said
    code, said = on_a_terminal(["inspect", "-"], 0)
    assert (code, said.count(b"error: ")) == (2, 1)


def test_a_terminal_by_its_name_is_a_terminal(folder: Path) -> None:
    pair = [str(folder / "receiver.st"), str(folder / "rho.st")]
    assert on_a_terminal(["patch", *pair, "-o", "/dev/stdout"], 1)[0] == 2


def test_a_failure_sends_nothing_down_the_pipe(folder: Path) -> None:
    damaged = bytearray((folder / "rho.st").read_bytes())
    damaged[-1] ^= 1
    (folder / "bad.st").write_bytes(damaged)
    done = shell("qvec patch receiver.st bad.st -o -", folder)
    assert (done.returncode, done.stdout, len(errors(done))) == (1, b"", 1)


def test_streams_are_bounded_in_memory(tmp_path: Path) -> None:
    """A pair of 134 MB; the temporary files are the disk's."""
    plan = {f"layer.{i}": Entry("F32", (1 << 20,)) for i in range(32)}
    for name, role, value in (("a.st", "fp", 1.0), ("b.st", "qat", 2.0)):
        block = np.full(1 << 20, value, np.float32)
        card = Card(Kind.CHECKPOINT, role=role, base="0")
        write(tmp_path / name, plan, ((n, [block]) for n in plan), card, force=False)
    line = "qvec extract a.st b.st -o - --metrics e.json | qvec patch a.st - --metrics p.json -o "
    done = shell(line + "- | qvec inspect - --verify --json", tmp_path)
    assert done.returncode == 0
    documents = [json.loads((tmp_path / name).read_text()) for name in ("e.json", "p.json")]
    documents.append(json.loads(done.stdout))
    assert max(d["timing"]["peak_rss_bytes"] for d in documents) < 120e6


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("qvec patch receiver.st rho.st -o - > /dev/full", 1),
        ("qvec patch receiver.st rho.st -o - >&-", 1),
        ("qvec patch receiver.st rho.st -o p.st --json > /dev/full", 1),
        ("qvec patch receiver.st rho.st -o p.st 2>&-", 0),
        ("qvec patch receiver.st rho.st -o p.st <&-", 0),
        ("qvec patch receiver.st rho.st -o - | head -c 1 > /dev/null", 141),
        ("qvec inspect rho.st --json | head -c 1 > /dev/null", (0, 141)),
        ("qvec quantize --help | true", (0, 141)),
        ("qvec --help > /dev/full", 1),
    ],
)
def test_a_stream_that_is_closed_or_full_is_told(
    line: str, code: int | tuple[int, ...], folder: Path
) -> None:
    done = shell(line, folder)
    assert done.returncode in (code if isinstance(code, tuple) else (code,))
    assert len(errors(done)) == (1 if code == 1 else 0)
    if "p.st" in line:
        with Checkpoint(folder / "p.st") as ours:
            ours.settle()


@pytest.mark.parametrize(("number", "code"), [(3, 0), (7, 1)], ids=["null", "full"])
def test_a_device_is_written_to_and_stays_a_device(number: int, code: int, folder: Path) -> None:
    """A node of our own, because one that is taken for a file would be replaced."""
    try:
        os.mknod(folder / "device", 0o666 | stat.S_IFCHR, os.makedev(1, number))
        (folder / "device").open("wb").close()
    except OSError:
        pytest.skip("needs the right to make devices")
    for force in ("", "--force"):
        done = shell(f"qvec patch receiver.st rho.st -o device {force}", folder)
        assert (done.returncode, len(errors(done))) == (code, code)
        assert (folder / "device").is_char_device()


@pytest.mark.parametrize("stderr", ["2>&-", "2> /dev/full"])
def test_a_fault_that_nobody_hears_of_keeps_its_code(stderr: str, folder: Path) -> None:
    for line, code in (("qvec inspect nothing.st", 1), ("qvec inspect -x", 2)):
        done = shell(f"{line} {stderr}", folder)
        assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


# --- what a screen shows --------------------------------------------------------------------------

HOSTILE = '\x1b[31mred\x07\x9b2J\u202e\u2066[/bold]../..\n"\\'


def test_no_name_or_text_of_a_file_steers_a_terminal(tmp_path: Path) -> None:
    metadata = {HOSTILE: HOSTILE, "qvec.kind": "vector", "qvec.schema": "1"}
    card = {"op": HOSTILE, "parents": [{"as": HOSTILE, "name": HOSTILE, "kind": HOSTILE}]}
    metadata |= {"qvec.provenance": json.dumps(card), "qvec.role": HOSTILE, "qvec.base": HOSTILE}
    metadata |= {"qvec.data": json.dumps({"name": HOSTILE, "images": {HOSTILE: 1}})}
    tensors = {HOSTILE: np.ones(2, np.float32), f"{HOSTILE}.bias": np.ones(3, np.float32)}
    evil, other = tmp_path / "evil.st", tmp_path / "other.st"
    save_file(tensors, evil, metadata)
    save_file({**tensors, HOSTILE: np.ones(7, np.float32)}, other)
    for args in (
        *(("inspect", evil), ("inspect", evil, "--lineage"), ("inspect", evil, other)),
        *(("extract", other, evil, "-o", tmp_path / "x"), ("quantize", other, "--bits", 3)),
        *(("patch", other, evil, "-o", tmp_path / "x"), ("inspect", tmp_path / HOSTILE)),
        ("eval", evil, "--data", HOSTILE),
    ):
        shown = call(*args, code=None)
        assert shown.out or shown.err
        assert not STEERING.search(shown.out + shown.err)
    told = call("inspect", other, "--json")
    assert told.out.isascii()
    assert {tensor["name"] for tensor in told.json["results"]["tensors"]} == tensors.keys()


@pytest.mark.parametrize("mark", "\u061c\u200e\u200f\u202a\u202e\u2066\u2069", ids=ascii)
def test_no_mark_turns_text_around(mark: str) -> None:
    assert tame(f"a{mark}b") == f"a{ascii(mark)[1:-1]}b"


def test_a_name_with_line_breaks_forges_no_line(tmp_path: Path) -> None:
    names = ["a\nerror: forged", "b\rerror: forged", "c\x85error: forged"]
    save_file({name: np.ones(2, np.float32) for name in names}, tmp_path / "evil.st")
    shown = call("inspect", tmp_path / "evil.st", "--tensors").out.splitlines()
    assert not [line for line in shown if line.startswith("error: ")]
    assert len([line for line in shown if "forged" in line]) == len(names)


@pytest.mark.parametrize("question", [(), ("--lineage",)], ids=["inspect", "lineage"])
def test_a_card_of_long_texts_does_not_flood_the_screen(
    question: tuple[str, ...], drawer: Drawer, tmp_path: Path
) -> None:
    long = "x" * 10_000  # the longest that a card may have
    with Checkpoint(drawer.receiver) as ours:
        model = json.loads(ours.metadata["timm"])
    card = {"qvec.kind": "vector", "qvec.schema": "1", "qvec.role": long, "qvec.base": long}
    made = {"op": long, "parents": [{"name": long}]}
    texts = {"recipe": {long: long}, "data": {"name": long}, "provenance": made}
    card |= {f"qvec.{name}": json.dumps(text) for name, text in texts.items()}
    card["timm"] = json.dumps(model)
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "long.st", card)
    assert len(call("inspect", tmp_path / "long.st", *question).out) < 20_000
    for args in ({long: 1}, {"act_layer": long}):
        card["timm"] = json.dumps(model | {"model_args": args})
        save_file({"a": np.ones(2, np.float32)}, tmp_path / "long.st", card)
        shown = call("inspect", tmp_path / "long.st", *question, code=None)
        assert len(shown.out) + len(shown.err) < 20_000
    card["qvec.data"] = json.dumps({"name": "x" * 1_000_000})
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "long.st", card)
    refused = call("inspect", tmp_path / "long.st", *question, code=1)
    assert "its qvec card is damaged (a text of 1,000,000 letters)" in refused.errors[0]


def test_a_name_of_a_million_letters_does_not_flood_the_screen(tmp_path: Path) -> None:
    path = tmp_path / "x.st"
    text = json.dumps({"a" * 9000: {"dtype": "F8_E8M0", "shape": [], "data_offsets": [0, 1]}})
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + b"\0")
    assert len(call("inspect", path, code=1).err) < 3000


def test_a_file_may_have_any_name(folder: Path) -> None:
    name = b"\xff\x1b[31m new\nline".decode("utf-8", "surrogateescape")
    (folder / name).symlink_to(folder / "rho.st")
    done = shell('qvec inspect "$NAME" --verify', folder, NAME=name)
    assert done.returncode == 0
    told = call("inspect", "--", "-no-such-file", code=1)
    assert told.err.startswith("error: -no-such-file: no such file")
    done = shell('qvec patch receiver.st "$NAME" -o "$NAME.p"', folder, NAME=name)
    assert done.returncode == 0
    assert b"\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "environment",
    [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"CI": "1"}, {"TERM": "xterm", "FORCE_COLOR": "1"}],
    ids=["NO_COLOR", "dumb", "CI", "xterm"],
)
def test_what_is_no_terminal_gets_no_escape(
    environment: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for line in ("inspect rho.st", "inspect nothing.st", "patch --help", "patch", "help patch"):
        command, *words = line.split()
        shown = call(command, *(folder / w if "." in w else w for w in words), code=None)
        assert shown.out + shown.err
        assert "\x1b" not in shown.out + shown.err
    if "FORCE_COLOR" in environment:  # once in a process of its own, whose streams are real
        assert b"\x1b" not in (done := shell("qvec patch --help", folder, **environment)).stdout
        assert b"\x1b" not in done.stderr


def on_a_screen(monkeypatch: pytest.MonkeyPatch, label: str, **environment: str) -> bytes:
    """What a terminal gets to see of work with a progress and a note."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        with show.Terminal() as terminal:
            terminal.progress(label, 1, 2)
            terminal.note(HOSTILE)
        monkeypatch.undo()
    shown = b""
    with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
        while part := os.read(ours, 1 << 16):
            shown += part
    os.close(ours)
    return shown


@pytest.mark.parametrize(
    ("environment", "live"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({"NO_COLOR": "1"}, False)],
)
def test_a_terminal_gets_a_live_bar_unless_it_wants_none(
    environment: dict[str, str], live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = on_a_screen(monkeypatch, "eval", **{"TERM": "xterm", **environment})
    assert b"note: " in shown
    assert b"\x1b[31mred" not in shown
    assert (b"\x1b" in shown) == live


@pytest.mark.parametrize("label", ["a \x1b[31mred", "a [/bold]", "a [red]"], ids=ascii)
def test_a_label_steers_nothing(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tame(label).encode() in on_a_screen(monkeypatch, label, TERM="xterm")


def test_what_was_done_before_says_nothing_of_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a pipe a line each ten seconds; a run that goes on begins with eight of twelve cells."""
    clock = iter((0.0, 5.0, 12.0, 24.0, 30.0, 41.0))
    monkeypatch.setattr(show, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with show.Terminal() as terminal:
        cell = Stage(terminal, 8, 1, 12, "cell 9/12")
        cell.progress("lambda 0/2", 0, 2)
        cell.progress("lambda 1/2", 1, 2)
        cell.progress("lambda 2/2", 2, 2)
        Stage(Stage(terminal, 9, 3, 12), 1, 1, 3, "cell 11/12").progress("lambda 1/1", 1, 1)
        terminal.progress("another", 0, 4)
        terminal.progress("another", 2, 4)
    assert capsys.readouterr().err.splitlines() == [
        "cell 9/12: lambda 2/2: 75%, 0:00:36 left",
        "cell 11/12: lambda 1/1: 92%, 0:00:08 left",
        "another: 50%, 0:00:11 left",
    ]


def test_a_narrow_terminal_cuts_no_name_and_no_json(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    for columns in ("300", "20"):
        monkeypatch.setenv("COLUMNS", columns)
        text = call("inspect", folder / "rho.st").out
        text += call("inspect", folder / "rho.st", "--json").out
        shown.append(re.sub(r'"(wall_s|peak_rss_bytes)": [^\n]*', "", text))
    assert shown[0] == shown[1]


@pytest.mark.parametrize("line", ["PYTHONIOENCODING=ascii LC_ALL=C", "-i"])
def test_a_bare_environment_is_enough(line: str, folder: Path) -> None:
    (folder / "λ.st").symlink_to(folder / "rho.st")
    done = shell(f"env {line} {QVEC} inspect λ.st", folder)
    assert (done.returncode, done.stderr) == (0, b"")
    done = shell(f"env {line} {QVEC} inspect μ.st", folder)
    assert (done.returncode, len(errors(done))) == (1, 1)
    if "ascii" in line:
        assert errors(done)[0].startswith("error: \\u03bc.st: no such file")


def test_bytes_depend_on_nothing_but_the_inputs(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    surroundings = (
        ({"PYTHONHASHSEED": "0"}, "."),
        ({"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2", "LC_ALL": "C"}, "elsewhere"),
        ({"TZ": "Asia/Tokyo", "COLUMNS": "20", "TMPDIR": str(folder)}, "/"),
    )
    code = (
        "import sys; from qvec_cli.cli.app import run\n"
        "for line in sys.argv[1:]: assert run(line.split()) == 0, line"
    )
    written = []
    for i, (environment, place) in enumerate(surroundings):
        out = folder / f"out{i}"
        out.mkdir()
        files = {n: str(folder / f"{n}.st") for n in ("donor", "donor_qat", "receiver")}
        lines = (
            "extract {donor} {donor_qat} -o {out}/rho.st",
            "patch {receiver} {out}/rho.st -l 0.7 -o {out}/p.st",
            "quantize {out}/p.st -o {out}/q.st",
        )
        command = [sys.executable, "-c", code, *(line.format(**files, out=out) for line in lines)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        subprocess.run(command, cwd=folder / place, env=env, check=True, capture_output=True)
        written.append([path.read_bytes() for path in sorted(out.iterdir())])
    assert written[0] == written[1] == written[2]


def test_a_bug_is_not_dressed_up_as_the_users_fault(
    drawer: Drawer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qvec_cli.pipeline import inspect

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(inspect, "describe", broken)
    with pytest.raises(ZeroDivisionError):
        call("inspect", drawer.rho)


def test_the_tour_of_a_vector_survives_a_stock_tool(folder: Path) -> None:
    """What qvec wrote is read and written by the library, and then is a bare file."""
    call("patch", folder / "receiver.st", folder / "rho.st", "-o", folder / "p.st")
    save_file(load_file(folder / "p.st"), folder / "again.st")
    found = call("inspect", folder / "p.st", folder / "again.st", "--json").json["results"]
    assert found["same"]
    assert spawn("inspect", folder / "again.st", "--verify").code == 1
