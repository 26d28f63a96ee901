"""A pico ViT, two small tasks in image folders, and the files that the whole chain writes."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: sums differ with threads

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a background job, whose children ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)

MODEL = ("test_vit", "--img-size", "32")
"""timm's own test network: 265 thousand parameters at 32 pixels."""

NETWORKS: dict[str, tuple[str, int, dict[str, object]]] = {
    "vit": ("vit_tiny_patch16_224", 32, {"depth": 2, "embed_dim": 64, "num_heads": 2}),
    "deit": ("deit_tiny_distilled_patch16_224", 32, {"depth": 1, "embed_dim": 64, "num_heads": 2}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        64,
        {"depths": (1, 1), "embed_dim": 32, "num_heads": (2, 2), "window_size": 4},
    ),
}
"""Name, size of the images and arguments of one small network a family."""

FAST = ("--no-aug", "--lr", "1e-3", "--batch-size", "16", "--epochs", "2", "--device", "cpu")


LONG = (
    *("train", "export", "app", "readme", "survey", "report", "graph", "torchrun", "anchor"),
    *("qat", "calibration", "crash", "transfer", "advise", "cells", "fitted", "golden", "growth"),
)
"""Test files that take longest: they begin, so that no worker ends long after the other."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, each as a whole."""
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


@dataclass(frozen=True)
class Result:
    """What a command line left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error:")]


def call(*args: object, code: int | None = 0) -> Result:
    """Runs qvec in this process."""
    from qvec_cli.cli.app import run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = run([str(arg) for arg in args])
    result = Result(found, out.getvalue(), err.getvalue())
    assert code is None or found == code, result
    return result


def spawn(*args: object, env: dict[str, str] | None = None, **options: Any) -> Result:
    """Runs qvec in a process of its own."""
    command = [sys.executable, "-m", "qvec_cli", *map(str, args)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        check=False,
        **options,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def hearing() -> Iterator[list[tuple[str, float, float]]]:
    """What progress the terminal is told of meanwhile: what it is at, how much of how much."""
    from qvec_cli.cli.show import Terminal

    heard: list[tuple[str, float, float]] = []
    progress = Terminal.progress

    def told(self: Terminal, label: str, done: float, total: float, **facts: float) -> None:
        heard.append((label, done, total))
        progress(self, label, done, total, **facts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Terminal, "progress", told)
        yield heard


def one_bar(heard: Sequence[tuple[str, float, float]], total: float, first: float = 0) -> None:
    """All is told as one piece of work, which begins at ``first``, never falls, and is ended."""
    done = [part for _, part, _ in heard]
    assert {each for _, _, each in heard} == {total}
    assert (done[0], done[-1]) == (first, total)
    assert done == sorted(done)


LIGHT = """
import contextlib, io, json, os, sys, traceback
from importlib.machinery import PathFinder

orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
for fd in (0, 1):  # a command's own streams are others
    os.dup2(os.open(os.devnull, os.O_RDWR), fd)
tried = set()


class Guard:
    # finds heavy modules, for code that looks where they lie, and loads none

    def find_spec(self, name, path=None, target=None):
        if name not in {"torch", "timm", "torchvision", "transformers", "onnx", "onnxruntime"}:
            return None
        if spec := PathFinder.find_spec(name, path, target):
            spec.loader = self
        return spec

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        tried.add(module.__name__)
        raise ImportError(f"{module.__name__} is not to be imported here")


sys.meta_path.insert(0, Guard())
from qvec_cli.cli.app import run

for order in map(json.loads, orders):
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    tried.clear()
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            code = run(order["args"])
        except Exception:
            traceback.print_exc()
            code = -1
    print(json.dumps([code, sorted(tried), err.getvalue().splitlines()]), file=answers, flush=True)
"""
"""Runs command lines one after another, and lets none import torch or what imports it."""


@functools.cache
def _light_process() -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LIGHT]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def close() -> None:
        process.communicate(timeout=60)

    atexit.register(close)
    return process


def light(*args: object) -> tuple[int, list[str], list[str]]:
    """Exit code, heavy modules that were tried, and what stderr said, of a command.

    One process without torch runs them all.
    """
    process = _light_process()
    assert process.stdin
    assert process.stdout
    order = {"args": [*map(str, args)], "folder": str(Path.cwd()), "environment": dict(os.environ)}
    process.stdin.write(json.dumps(order) + "\n")
    process.stdin.flush()
    code, heavy, lines = json.loads(process.stdout.readline())
    return code, heavy, lines


OPENS = """
import contextlib, gc, sys, time
from pathlib import Path
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import CheckpointError
from qvec_cli.outputs.metrics import peak_rss_bytes

for line in sys.stdin:
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    started = time.process_time()
    try:
        said = f"opened {len(Checkpoint(Path(line[:-1])))}"
    except CheckpointError as error:
        said = f"refused: {str(error)[-60:]}"
    print(said, time.process_time() - started, peak_rss_bytes(), sep="\\t", flush=True)
"""


@contextlib.contextmanager
def opening() -> Iterator[Callable[[Path], tuple[str, float, float]]]:
    """A process that opens files, and says of each what came of it, its seconds and peak bytes."""
    command = [sys.executable, "-c", OPENS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdin
        assert process.stdout

        def opened(path: Path) -> tuple[str, float, float]:
            print(path, file=process.stdin, flush=True)
            said, seconds, peak = process.stdout.readline().rstrip("\n").split("\t")
            return said, float(seconds), float(peak)

        yield opened
        process.stdin.close()


@dataclass(frozen=True)
class Counts:
    """How often each checkpoint file was opened, and how many bytes of it were hashed."""

    opens: Counter[str]
    hashed: Counter[str]

    def once(self, paths: Iterable[Path]) -> set[str]:
        """Which of some files were read, each of which was opened once and hashed once at most."""
        from qvec_cli.checkpoint.read import Checkpoint

        known = {str(path): path for path in paths}
        found = known.keys() & self.opens.keys()
        assert {path: self.opens[path] for path in found} == dict.fromkeys(found, 1)
        for path in found:
            with Checkpoint(known[path]) as checkpoint:
                entries = [*checkpoint.values(), *checkpoint.attached.values()]
            assert self.hashed[path] <= sum(entry.nbytes for entry in entries), path
        return found


@contextlib.contextmanager
def counting() -> Iterator[Counts]:
    """Counts the opens and the hashed bytes of every checkpoint meanwhile."""
    from qvec_cli.checkpoint.read import Checkpoint, Hasher

    counts, names = Counts(Counter(), Counter()), dict[int, str]()
    begin, update = Checkpoint.__init__, Hasher.update

    def opening(self: Checkpoint, path: Path, *choice: Any) -> None:
        begin(self, path, *choice)
        counts.opens[str(path)] += 1
        names[id(self._hasher)] = str(path)

    def hashing(self: Hasher, name: str, block: Any) -> None:
        counts.hashed[names.get(id(self), "")] += block.nbytes
        update(self, name, block)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "__init__", opening)
        patch.setattr(Hasher, "update", hashing)
        yield counts


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that is filled once, whichever of pytest-xdist's workers needs it first."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, done = root / name, root / f"{name} is done"
    with (root / f"{name} is in work").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


WITHOUT = """
import contextlib, io, json, sys, traceback
from importlib.machinery import PathFinder
class Heavy:  # a finder that may say where a module lies, and a loader that refuses to run it
    def find_spec(self, name, path=None, target=None):
        if name in {"torch", "timm", "torchvision", "onnx", "matplotlib", "rich"}:
            spec = PathFinder.find_spec(name, path)
            spec.loader = self
            return spec
    def create_module(self, spec):
        raise AssertionError(f"{spec.name} is imported")
    exec_module = create_module
sys.meta_path.insert(0, Heavy())
from qvec_cli.cli.app import run
results = []
for words in json.load(sys.stdin):
    out, err, code = io.StringIO(), io.StringIO(), -1
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run(words)
        except Exception:
            traceback.print_exc()
    results.append((code, out.getvalue(), err.getvalue()))
json.dump(results, sys.stdout)
"""


def without_torch(lines: Sequence[Sequence[object]], folder: Path | None = None) -> list[Result]:
    """Runs command lines in one process of their own, in which nothing heavy can be imported."""
    words = json.dumps([[str(word) for word in line] for line in lines])
    command = [sys.executable, "-c", WITHOUT]
    done = subprocess.run(
        command, input=words, capture_output=True, text=True, check=True, cwd=folder
    )
    return [Result(*result) for result in json.loads(done.stdout)]


def draw(folder: Path, classes: Sequence[str], train: int, test: int, seed: int) -> Path:
    """An image folder whose classes are bars at different places, in noise."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("test", test)):
        for place, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (32, 32, 3))
                pixels[:, 6 * place : 6 * place + 6] += 100
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(folder / split / name / f"{number:03d}.png")
    return folder


def bare(family: str, path: Path, classes: int = 5) -> tuple[object, ...]:
    """Writes a network's random weights, which say nothing of it, and returns the flags that do.

    It is one of ``NETWORKS``, or timm's of that name in its own size.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    name, size, args = NETWORKS.get(family) or (family, int(family[-3:]), {})
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=classes, img_size=size, **args)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_file(network.state_dict(), path)
    pairs = [("--model-arg", f"{key}={value}") for key, value in args.items()]
    return ("--model", name, "--img-size", size, *(word for pair in pairs for word in pair))


@dataclass(frozen=True)
class Drawer:
    """The files of a donor and a receiver, as a user would have them."""

    donor_data: Path  # three classes
    receiver_data: Path  # four classes
    base: Path
    donor: Path
    donor_qat: Path
    receiver: Path
    rho: Path


@pytest.fixture(scope="session")
def drawer(tmp_path_factory: pytest.TempPathFactory) -> Drawer:
    """Trained once; tests only read it."""
    root = shared(tmp_path_factory, "drawer", lambda folder: _train(_drawer_in(folder)))
    return _drawer_in(root)


def _drawer_in(root: Path) -> Drawer:
    names = ("base", "donor", "donor_qat", "receiver", "rho")
    return Drawer(root / "bars3", root / "bars4", *(root / f"{name}.st" for name in names))


def _train(files: Drawer) -> None:
    draw(files.donor_data, ("left", "middle", "right"), 30, 12, seed=0)
    draw(files.receiver_data, ("a", "b", "c", "d"), 30, 12, seed=1)
    call("finetune", *MODEL, "--data", files.receiver_data, "-o", files.base, *FAST, "--seed", 7)
    donors = ("--data", files.donor_data, *FAST)
    call("finetune", files.base, *donors, "-o", files.donor)
    call("train-qat", files.base, *donors, "-o", files.donor_qat, "--bits", 3)
    call("finetune", files.base, "--data", files.receiver_data, "-o", files.receiver, *FAST)
    call("extract", files.donor, files.donor_qat, "-o", files.rho)


@dataclass(frozen=True)
class Planted:
    """Vectors that were made so that what they do about the receiver's damage is known."""

    whole: Path  # puts the receiver on the 2-bit grid of absmax by itself
    parts: tuple[Path, Path]  # half of it in attention and all of it, twice as long, elsewhere
    pictures: Path  # a flat folder, of images that are neither task's, some in a folder within


@pytest.fixture(scope="session")
def planted(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """At 2 bits; every row is moved to the ternary grid that is nearest to it."""
    name = "planted vectors"  # a path with a space, for quoting
    root = shared(tmp_path_factory, name, lambda folder: _plant(drawer, _planted_in(folder)))
    return _planted_in(root)


def _planted_in(root: Path) -> Planted:
    return Planted(root / "whole.st", (root / "one.st", root / "two.st"), root / "pictures")


def _plant(drawer: Drawer, files: Planted) -> None:
    rho = _repair(drawer)
    _vector(drawer, files.whole, rho)
    halves = {name: ("attn" in name, block) for name, block in rho.items()}
    for path, mine, length in zip(files.parts, (True, False), (0.5, 2.0), strict=True):
        parts = {n: length * b * (inside is mine) for n, (inside, b) in halves.items()}
        _vector(drawer, path, parts)
    _pictures(files.pictures, 90)


def _repair(drawer: Drawer) -> dict[str, Any]:
    from qvec_cli.checkpoint.read import Checkpoint

    with Checkpoint(drawer.receiver) as theta, Checkpoint(drawer.rho) as like:
        assert theta.card
        targets = set(theta.card.targets or ())
        return {n: _moved(theta.finite(n)) if n in targets else 0 * like.finite(n) for n in like}


def _moved(weight: Any) -> Any:
    """From each row to the nearest of s * {-1, 0, 1}, over some s."""
    most = np.abs(weight).max(axis=1, keepdims=True)
    found = [s * most * np.clip(np.rint(weight / (s * most)), -1, 1) for s in (0.3, 0.45, 0.6, 0.8)]
    errors = np.stack([np.square(one - weight).sum(axis=1) for one in found])
    best = np.stack(found)[errors.argmin(axis=0), np.arange(len(weight))]
    return (best - weight).astype(np.float32)


def _vector(drawer: Drawer, out: Path, blocks: dict[str, Any]) -> None:
    """A vector with the card of the donor's, but for its bits."""
    from dataclasses import replace

    from qvec_cli.checkpoint.read import Checkpoint
    from qvec_cli.checkpoint.write import write

    with Checkpoint(drawer.rho) as like:
        assert like.card
        assert like.card.quant
        card = replace(like.card, quant={**like.card.quant, "bits": 2})
        flat = ((name, [block.reshape(-1)]) for name, block in blocks.items())
        write(out, dict(like.items()), flat, card, force=False)


def _pictures(folder: Path, count: int) -> None:
    rng = np.random.default_rng(5)
    (folder / "more").mkdir(parents=True)
    for number in range(count):
        pixels = rng.integers(0, 60, (32, 32, 3))
        place, width = rng.integers(0, 26), rng.integers(3, 20)
        pixels[:, place : place + width] += rng.integers(0, 196, 3)
        image = Image.fromarray(pixels.astype(np.uint8))
        image.save(folder / ("more" if number % 3 else "") / f"{number:03d}.png")
