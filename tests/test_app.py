"""The command contract: exit codes, streams, one-line errors, and nothing heavy for a refusal."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import MODEL, Drawer, Result, call, spawn, without_torch
from safetensors.numpy import save_file

from qvec_cli.checkpoint.stop import STOP
from qvec_cli.cli import app, show


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert call("--version").out == f"qvec {version('qvec')}\n"


REFUSALS = {
    "no such file": (1, "no such file", "extract", "nothing.st", "{donor}", "-o", "x.st"),
    "a vector where a checkpoint belongs": (1, "is a vector", "quantize", "{rho}", "-o", "x.st"),
    "a checkpoint where a vector belongs": (
        *(1, "is a checkpoint, a vector belongs here"),
        *("patch", "{receiver}", "{donor}", "-o", "x.st"),
    ),
    "arguments swapped": (1, "swapped", "extract", "{donor_qat}", "{donor}", "-o", "x.st"),
    "a file with itself": (1, "rho would be zero", "extract", "{donor}", "{donor}", "-o", "x.st"),
    "bits 1": (2, "--bits", "quantize", "{donor}", "--bits", 1, "-o", "x.st"),
    "bits 9": (2, "--bits", "quantize", "{donor}", "--bits", 9, "-o", "x.st"),
    "bits missing": (2, "--bits is missing", "quantize", "{donor}", "-o", "x.st"),
    "bits of train-qat": (
        *(2, "--bits", "train-qat", *MODEL, "--data", "{donor_data}"),
        *("--bits", 9, "-o", "x.st"),
    ),
    "a group size that does not divide": (
        *(1, "--group-size 5 does not divide its 64 input features"),
        *("quantize", "{donor}", "--bits", 3, "--group-size", 5, "-o", "x.st"),
    ),
    "a group size without groups": (
        *(2, "goes with --granularity group", "quantize", "{donor}", "--bits", 3),
        *("--group-size", 8, "--granularity", "channel", "-o", "x.st"),
    ),
    "groups without a size": (
        *(2, "needs --group-size", "quantize", "{donor}", "--bits", 3),
        *("--granularity", "group", "-o", "x.st"),
    ),
    "targets that match nothing": (
        *(1, "matches no matrix", "quantize", "{donor}", "--bits", 3),
        *("--targets", "nothing.*", "-o", "x.st"),
    ),
    "lambda nan": (2, "must be finite", "patch", "{receiver}", "{rho}", "-l", "nan", "-o", "x.st"),
    "lambda inf": (2, "must be finite", "patch", "{receiver}", "{rho}", "-l", "inf", "-o", "x.st"),
    "lambda of letters": (2, "not a number", "patch", "{receiver}", "{rho}", "-l", "a", "-o", "x"),
    "lambda from a file that is no sweep": (
        *(1, "is not the result of qvec sweep-lambda"),
        *("patch", "{receiver}", "{rho}", "-l", "{junk_json}", "-o", "x.st"),
    ),
    "lambdas reversed": (
        *(2, "needs a step above 0", "sweep-lambda", "{receiver}", "{rho}"),
        *("--data", "{receiver_data}", "--lambdas", "2:0:0.5", "-o", "x.json"),
    ),
    "output exists": (1, "exists", "extract", "{donor}", "{donor_qat}", "-o", "{rho}"),
    "output folder missing": (
        *(1, "its folder does not exist", "extract", "{donor}", "{donor_qat}"),
        *("-o", "no/such/x.st"),
    ),
    "output is a folder": (1, "is a folder", "extract", "{donor}", "{donor_qat}", "-o", "."),
    "metrics over the output": (
        *(2, "is the output itself", "extract", "{donor}", "{donor_qat}"),
        *("-o", "x.st", "--metrics", "x.st"),
    ),
    "metrics that exist": (
        *(1, "exists", "extract", "{donor}", "{donor_qat}"),
        *("-o", "x.st", "--metrics", "{junk_json}"),
    ),
    "no data set there": (
        *(1, "no/such/folder", "finetune", *MODEL, "--data", "./no/such/folder", "-o", "x.st"),
    ),
    "a data set that nobody knows": (
        *(2, "FashionMNIST", "finetune", *MODEL, "--data", "FashonMNIST", "-o", "x.st"),
    ),
    "a named data set that is not there": (
        *(1, "MNIST", "eval", "{donor}", "--data", "MNIST", "--data-dir", "{empty}"),
    ),
    "an empty data folder": (1, "{empty}", "finetune", *MODEL, "--data", "{empty}", "-o", "x.st"),
    "a mistyped split": (
        *(1, "train, val, test", "eval", "{donor}", "--data", "{donor_data}", "--split", "tset"),
    ),
    "a model that timm does not know": (
        *(2, "vit_tiny_patch16_224", "finetune", "vit_tiny_patch16_225"),
        *("--data", "{donor_data}", "-o", "x.st"),
    ),
    "a checkpoint to start from that is not there": (
        *(1, "no such file", "finetune", "nothing.st", "--data", "{donor_data}", "-o", "x.st"),
    ),
    "pretrained weights for a file": (
        *(2, "--pretrained", "finetune", "{base}", "--pretrained"),
        *("--data", "{donor_data}", "-o", "x.st"),
    ),
    "another argument than the file's": (
        *(1, "depth None, not 3", "finetune", "{base}", "--model-arg", "depth=3"),
        *("--data", "{donor_data}", "-o", "x.st"),
    ),
    "a vector to start from": (
        *(1, "is a vector", "finetune", "{rho}", "--data", "{donor_data}", "-o", "x.st"),
    ),
    "batch size 0": (
        *(2, "--batch-size", "finetune", *MODEL, "--data", "{donor_data}"),
        *("--batch-size", 0, "-o", "x.st"),
    ),
    "workers -1": (
        *(2, "--workers", "eval", "{donor}", "--data", "{donor_data}", "--workers", -1),
    ),
    "epochs 1.5": (
        *(2, "--epochs", "finetune", *MODEL, "--data", "{donor_data}"),
        *("--epochs", 1.5, "-o", "x.st"),
    ),
    "a learning rate of zero": (
        *(2, "--lr", "finetune", *MODEL, "--data", "{donor_data}", "--lr", 0, "-o", "x.st"),
    ),
    "a learning rate that is no number": (
        *(2, "--lr", "finetune", *MODEL, "--data", "{donor_data}", "--lr", "nan", "-o", "x.st"),
    ),
    "a model argument without a value": (
        *(2, "KEY=VALUE", "finetune", *MODEL, "--data", "{donor_data}"),
        *("--model-arg", "depth", "-o", "x.st"),
    ),
    "classes that the head does not know": (
        *(1, "4 classes, the head of", "eval", "{donor}", "--data", "{receiver_data}"),
    ),
    "a class map for a head that names its classes": (
        *(1, "leave --class-map out", "eval", "{donor}", "--data", "{donor_data}"),
        *("--class-map", "{junk_json}"),
    ),
    "a shape for a file that has one": (
        *(1, "knows its own --img-size", "eval", "{donor}", "--data", "{donor_data}"),
        *("--model", "test_vit", "--img-size", 64),
    ),
    "a model argument that has a flag": (
        *(2, "--in-chans", "finetune", *MODEL, "--data", "{donor_data}"),
        *("--model-arg", "in_chans=1", "-o", "x.st"),
    ),
    "a model argument that opens a file": (
        *(2, "--initial-checkpoint", "finetune", *MODEL, "--data", "{donor_data}"),
        *("--model-arg", "checkpoint_path=x.pt", "-o", "x.st"),
    ),
    "a seed beyond 64 bits": (
        *(2, "--seed must be below 2^63", "finetune", *MODEL, "--data", "{donor_data}"),
        *("--seed", "9" * 23, "-o", "x.st"),
    ),
    "a learning rate beyond float32": (
        *(2, "--lr", "finetune", *MODEL, "--data", "{donor_data}", "--lr", "1e300", "-o", "x.st"),
    ),
    "metrics over an input": (
        *(2, "is an input", "extract", "{donor}", "{donor_qat}", "-o", "x.st"),
        *("--metrics", "{donor}", "--force"),
    ),
    "a vector over its donor": (
        *(2, "is an input", "extract", "{donor}", "{donor_qat}", "-o", "{donor}", "--force"),
    ),
    "a model over the vector that mends it": (
        *(2, "is an input", "patch", "{receiver}", "{rho}", "-o", "{rho}", "--force"),
    ),
    "a training over its start": (
        *(2, "is an input", "finetune", "{base}", "--data", "{donor_data}", "-o", "{base}"),
        "--force",
    ),
    "a result over the model": (
        *(2, "is an input", "eval", "{donor}", "--data", "{donor_data}", "-o", "{donor}"),
        "--force",
    ),
    "a sweep over the vector": (
        *(2, "is an input", "sweep-lambda", "{receiver}", "{rho}", "--data", "{receiver_data}"),
        *("-o", "{rho}", "--force"),
    ),
    "a name too long for its state": (
        *(1, "name too long", "finetune", *MODEL, "--data", "{donor_data}"),
        *("-o", "x" * 251),
    ),
    "a link to itself": (
        *(1, "link to itself", "extract", "{donor}", "{donor_qat}", "-o", "x.st"),
        *("--metrics", "{loop}"),
    ),
    "a device that is none": (
        *(2, "--device 'meta' is none of", "eval", "{donor}", "--data", "{donor_data}"),
        *("--device", "meta"),
    ),
    "a group size that does not divide, to train with": (
        *(1, "--group-size 5 does not divide", "train-qat", "{base}", "--data", "{donor_data}"),
        *("--group-size", 5, "-o", "x.st"),
    ),
    "nothing at all of a command": (2, "FILE... is missing", "inspect"),
    "a vector to evaluate": (1, "not a model", "eval", "{rho}", "--data", "{donor_data}"),
    "another architecture than the file's": (
        *(1, "is a test_vit, not a vit_tiny", "eval", "{donor}", "--data", "{donor_data}"),
        *("--model", "vit_tiny_patch16_224"),
    ),
    "a recipe with an unknown key": (
        *(2, "is no flag here", "finetune", *MODEL, "--data", "{donor_data}"),
        *("--recipe", "{bad_recipe}", "-o", "x.st"),
    ),
    "a word that is none of a choice": (
        *(2, "--method 'gtpq' is none of rtn, gptq, awq hint: Did you mean gptq?", "quantize"),
        *("{donor}", "--bits", 3, "--method", "gtpq", "-o", "x.st"),
    ),
    "a number beyond its bound": (
        *(2, "--bits 99: must be at most 8", "quantize", "{donor}", "--bits", 99, "-o", "x.st"),
    ),
    "a number below its bound": (
        *(2, "--calib-samples 0: must be at least 1", "quantize", "{donor}", "--bits", 3),
        *("--calib-samples", 0, "-o", "x.st"),
    ),
    "a word for a number": (
        *(2, "--bits 'three' is no number", "quantize", "{donor}", "--bits", "three"),
    ),
    "the beginning of a network's name": (
        *(2, "hint: Did you mean vit_tiny_patch16_224, ", "finetune", "vit_tiny"),
        *("--data", "{donor_data}", "-o", "x.st"),
    ),
    "an address": (1, "no such file hint: Of the hub: hf-hub:", "inspect", "https://a.b/c.st"),
    "no output": (2, "-o FILE is missing", "patch", "{receiver}", "{rho}"),
    "no value of a flag": (2, "-o: its value is missing", "patch", "{receiver}", "{rho}", "-o"),
    "a value for a flag that takes none": (2, "--force takes no value", "patch", "--force=1"),
    "one file too many": (
        *(2, "{donor}: more than the command takes", "patch", "{receiver}", "{rho}", "{donor}"),
        *("-o", "x.st"),
    ),
    "a flag that is nearly one": (
        *(2, "there is no flag '--asymetric' hint: Did you mean --asymmetric, ", "quantize"),
        *("{donor}", "--asymetric", "-o", "x.st"),
    ),
    "a command that is nearly one": (
        *(2, "there is no command 'quantise' hint: Did you mean quantize?", "quantise"),
    ),
    "a file named as a folder is": (
        *(2, "-o x/: names a folder hint: Name a file with -o.", "patch", "{receiver}", "{rho}"),
        *("-o", "x/"),
    ),
    "a folder named as a file is": (
        *(2, "-o x.st: a folder belongs here", "quantize", "{donor}", "{receiver}"),
        *("--bits", 3, "-o", "x.st"),
    ),
    "a folder of pictures named as one": (2, "x.png: is named like", "pictures", "-o", "x.png"),
    "a lambda that is a word": (
        *(2, "--lambda 'one' is not a number", "patch", "{receiver}", "{rho}", "--lambda", "one"),
        *("-o", "x.st"),
    ),
    "a split by another name": (
        *(1, "has no split 'validation'", "eval", "{donor}", "--data", "{donor_data}"),
        *("--split", "validation"),
    ),
    "results to look into": (1, "hint: qvec report shows results", "inspect", "{results}"),
    "weights to compare as results": (
        *(1, "is not text hint: Results are JSON", "compare", "{donor}", "{donor}"),
    ),
    "a grid with a bracket left open": (
        *(2, "open.yaml:2: is not YAML: expected ',' or '}}', but got ':'", "transfer", "{open}"),
        *("-o", "x.jsonl"),
    ),
    "an unknown command": (2, "there is no command 'extrct'", "extrct"),
    "an unknown flag": (2, "there is no flag '--jsn'", "inspect", "{rho}", "--jsn"),
}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def refused(
    drawer: Drawer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[str, Result]]:
    """What each refusal said, and what it ought to have said; one process runs them all."""
    folder = tmp_path_factory.mktemp("refusals")
    names = {"empty": "empty", "junk_json": "junk.json", "bad_recipe": "bad.yaml"}
    names |= {"results": "eval.json", "open": "open.yaml"}
    (folder / "empty").mkdir()
    (folder / "junk.json").write_text("{}")
    (folder / "bad.yaml").write_text("epocks: 3\n")
    (folder / "eval.json").write_text('{"command": "eval"}')
    (folder / "open.yaml").write_text("receivers: {a: b\ndonors: c\n")
    (folder / "loop.json").symlink_to("loop.json")
    paths = {name: folder / file for name, file in {**names, "loop": "loop.json"}.items()}
    words = {name: str(path) for name, path in (vars(drawer) | paths).items()}
    lines = [[str(arg).format(**words) for arg in args] for _, _, *args in REFUSALS.values()]
    before = snapshot(folder), snapshot(drawer.rho.parent)
    results = without_torch(lines, folder)
    assert (snapshot(folder), snapshot(drawer.rho.parent)) == before
    reasons = [str(reason).format(**words) for _, reason, *_ in REFUSALS.values()]
    return dict(zip(REFUSALS, zip(reasons, results, strict=True), strict=True))


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_one_line_loses_nothing_and_needs_no_torch(
    case: str, refused: dict[str, tuple[str, Result]]
) -> None:
    reason, result = refused[case]
    assert result.code == REFUSALS[case][0], result
    assert len(result.errors) == 1
    assert len([line for line in result.err.splitlines() if line.startswith("hint: ")]) <= 1
    assert reason in " ".join(result.err.splitlines())


def test_an_input_by_another_name_is_not_replaced(
    drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hard link, a symbolic one, the folder that holds it, and a folder by its weights."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("folder/model.safetensors").write_bytes(drawer.receiver.read_bytes())
    Path("hard.st").hardlink_to("folder/model.safetensors")
    Path("soft.st").symlink_to("hard.st")
    files = ("hard.st", "soft.st", "folder/model.safetensors", "folder/", "folder")
    before = snapshot(tmp_path)
    for source in files:
        for out in files:
            done = call("quantize", source, "--bits", 3, "-o", out, "--force", code=2)
            assert "is an input, and the output would replace it" in done.errors[0], (source, out)
    assert snapshot(tmp_path) == before
    call("quantize", "hard.st", "--bits", 3, "-o", "other.st", "--force")


def test_arithmetic_on_files_needs_no_torch(drawer: Drawer, tmp_path: Path) -> None:
    lines = (
        f"extract {drawer.donor} {drawer.donor_qat} -o rho.st",
        f"combine rho.st {drawer.rho} -o mean.st",
        f"patch {drawer.receiver} rho.st -l 0.5 -o patched.st",
        "quantize patched.st -o packed.st",
        "quantize patched.st -o folder/",
        "inspect packed.st",
        "inspect folder",
    )
    results = without_torch([line.split() for line in lines], tmp_path)
    assert [result.code for result in results] == [0] * len(lines), results


def test_an_output_after_an_equals_sign_has_the_name_that_was_typed(
    drawer: Drawer, tmp_path: Path
) -> None:
    lines = (f"quantize {drawer.donor} --bits 3 {flag}" for flag in ("-o=a.st", "-ob.st"))
    results = without_torch([line.split() for line in lines], tmp_path)
    assert [result.code for result in results] == [0, 0], results
    assert (tmp_path / "a.st").read_bytes() == (tmp_path / "b.st").read_bytes()


def test_json_is_the_only_thing_on_stdout(drawer: Drawer, tmp_path: Path) -> None:
    out = call("quantize", drawer.donor, "--bits", 3, "-o", tmp_path / "q.st", "--json")
    assert out.json["command"] == "quantize"
    assert call("inspect", drawer.rho, "--json").json["results"]["kind"] == "vector"


def test_a_traceback_is_shown_on_request_only() -> None:
    assert "Traceback" not in call("inspect", "nothing.st", code=1).err
    assert "Traceback" in spawn("inspect", "nothing.st", env={"QVEC_TRACEBACK": "1"}).err


def test_names_in_a_file_cannot_steer_the_terminal(tmp_path: Path) -> None:
    save_file({"\x1b[31mred\x07\u202e": np.zeros(2, np.float32)}, tmp_path / "evil.st")
    shown = call("inspect", tmp_path / "evil.st", "--tensors")
    assert not set("\x1b\x07\u202e") & set(shown.out)
    assert "\\x1b[31mred" in shown.out


@pytest.mark.parametrize("where", ["/dev/full", "closed"])
def test_a_result_that_cannot_be_shown_is_a_fault(drawer: Drawer, where: str) -> None:
    with Path(os.devnull if where == "closed" else where).open("w") as stdout:
        close = (lambda: os.close(1)) if where == "closed" else None
        done = subprocess.run(
            [sys.executable, "-m", "qvec_cli", "inspect", str(drawer.rho)],
            stdout=stdout,
            stderr=subprocess.PIPE,
            preexec_fn=close,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "cannot be written to stdout" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_left_is_no_fault_of_ours(drawer: Drawer) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "qvec_cli", "inspect", str(drawer.rho), "--json"],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


HEARD = (  # whatever the tests themselves were started with: nohup, a background job
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "for number in (signal.SIGTERM, signal.SIGHUP): signal.signal(number, signal.SIG_DFL)\n"
)


@pytest.mark.slow
def test_training_stopped_by_a_signal_leaves_no_half_file_and_resumes_to_the_same_bytes(
    drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun in another folder and process, with other string hashing; images are augmented."""
    args = ["finetune", str(drawer.base), "--data", str(drawer.donor_data), "--epochs", "4"]
    args += ["--batch-size", "16", "--device", "cpu"]
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    with started(*args, "-o", "x.st", folder=tmp_path) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "x.st.state").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert time.monotonic() - begun < 5
    assert (process.returncode, errors.splitlines()[-1]) == (143, "error: stopped by SIGTERM")
    assert "Traceback" not in errors
    assert "x.st.state is kept: the same command with --resume goes on from there" in errors
    assert {path.name for path in tmp_path.iterdir()} == {"x.st.state"}
    call(*args, "-o", tmp_path / "x.st", "--resume")
    call(*args, "--workers", 2, "-o", tmp_path / "whole.st")
    assert (tmp_path / "x.st").read_bytes() == (tmp_path / "whole.st").read_bytes()


@pytest.mark.parametrize(
    ("number", "raised"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit), (signal.SIGHUP, SystemExit)],
)
def test_a_signal_that_a_library_swallows_stops_the_work_at_its_next_step(
    number: signal.Signals, raised: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch does while it starts or ends the processes that decode images."""
    monkeypatch.setattr(STOP, "number", None)
    with show.Terminal() as terminal:
        terminal.progress("epoch", 1, 3)
        with contextlib.suppress(BaseException):
            app._Stop()(number, None)
        with pytest.raises(raised) as fault:
            terminal.progress("epoch", 2, 3)
    assert number == signal.SIGINT or fault.value.args == (128 + number,)


@contextlib.contextmanager
def started(*args: str, folder: Path, **streams: int) -> Iterator[subprocess.Popen[str]]:
    """A command that runs and that hears signals."""
    code = HEARD + "import runpy; runpy.run_module('qvec_cli', run_name='__main__')"
    command = [sys.executable, "-c", code, *args]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=folder, **streams
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "stopped by SIGTERM"),
        (signal.SIGHUP, 129, "stopped: the terminal has gone"),
    ],
)
def test_each_signal_ends_a_command_with_its_code(
    number: signal.Signals, code: int, said: str, drawer: Drawer, tmp_path: Path
) -> None:
    """It waits for the second half of its input, of which a temporary file has the first."""
    body = drawer.donor.read_bytes()
    args = ["extract", "-", str(drawer.donor_qat), "-o", "x.st"]
    with started(*args, folder=tmp_path, stdin=subprocess.PIPE) as process:
        assert process.stdin
        os.write(process.stdin.fileno(), body[: len(body) // 2])  # returns once most is read
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (code, f"error: {said}\n")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_modules_are_imported_shows_no_traceback() -> None:
    code = HEARD + (
        "import sys\n"
        "class Early:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'qvec_cli.cli.app': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Early())\n"
        "from qvec_cli.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


def test_a_terminal_that_has_gone_does_not_stop_the_work(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        bare = tmp_path / "bare.st"
        save_file({"w": np.ones(3, np.float32)}, bare)
        save_file({"w": np.zeros(3, np.float32)}, tmp_path / "bare2.st")
        args = ["extract", str(tmp_path / "bare2.st"), str(bare), "--no-head", "-o"]
        args += [str(tmp_path / "x.st")]
        done = subprocess.run([sys.executable, "-m", "qvec_cli", *args], stderr=full, check=False)
    assert done.returncode == 0  # although it had notes to make
    assert (tmp_path / "x.st").exists()


def test_a_hang_up_that_the_user_asked_to_ignore_is_ignored() -> None:
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from qvec_cli.cli.app import _prepare; _prepare()\n"
        "raise SystemExit(signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGHUP)),
    ],
)
def test_a_clean_up_that_hangs_is_ended_by_a_later_signal(number: signal.Signals) -> None:
    code = (
        HEARD + "import time; from qvec_cli.cli.app import _prepare; _prepare()\n"
        "try: print(flush=True); time.sleep(60)\n"
        "finally: print(flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        process.stdout.readline()
        process.send_signal(number)  # at once: GNU timeout sends twice
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(number)
        assert (process.wait(timeout=30), process.communicate()[1]) == (-number, "")
