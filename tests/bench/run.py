"""Prints the ratios of README's "How fast", each pair of things measured side by side in one run.

    make bench, or: python tests/bench/run.py [startup|files|sweep|qat]...

Ratios are medians over pairs taken in turn (A B A B ...), so that a machine that slows down slows
both. Nothing is cached between the two sides but what the operating system caches for both.
"""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # threads that compete for two cores measure each other

QVEC = [sys.executable, "-m", "qvec_cli"]


class Cost(NamedTuple):
    """What a process took."""

    wall: float  # seconds
    cpu: float
    peak: int  # bytes resident


def run(command: list[str], ok: int = 0) -> Cost:
    """Runs a command to its end."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == ok, f"{shlex.join(command)} ended with {process.returncode}"
    wall = time.perf_counter() - started
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def ratio(ours: Callable[[], float], theirs: Callable[[], float], pairs: int = 5) -> str:
    """The median ratio of two timings, and its range."""
    ours(), theirs()
    found = sorted(ours() / theirs() for _ in range(pairs))
    return f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


def report(what: str, value: str, goal: str) -> None:
    """One line."""
    print(f"{what:<62}{value:>22}   goal {goal}", flush=True)


def startup(_: Path) -> None:
    """Help and a refusal."""
    for what, args, code in (
        ("qvec --help, CPU s", ["--help"], 0),
        ("a refusal (no such file), CPU s", ["extract", "a.st", "b.st", "-o", "c.st"], 1),
    ):
        costs = sorted(run([*QVEC, *args], ok=code).cpu for _ in range(7))
        report(what, f"{costs[3]:.2f}", "0.30")


def write_pair(folder: Path, name: str) -> None:
    """A network of timm and its twin, as train and train-qat would have left them."""
    import numpy as np
    import torch

    from qvec_cli.checkpoint.card import Card, Kind
    from qvec_cli.checkpoint.header import Entry
    from qvec_cli.checkpoint.write import write
    from qvec_cli.model.build import Wish, create

    with torch.device("meta"):
        network, model = create(Wish(name, 1000))
    plan = {n: Entry("F32", tuple(t.shape)) for n, t in network.state_dict().items()}
    rng = np.random.default_rng(0)
    for file, role in (("donor.st", "fp"), ("donor_qat.st", "qat")):
        tensors = ((n, [rng.standard_normal(e.size, np.float32)]) for n, e in plan.items())
        card = Card(Kind.CHECKPOINT, role=role, model=model, base="0")
        write(folder / file, plan, tensors, card, force=True)


def _forget(*paths: Path) -> None:
    """Drops files from the page cache, so that the next to read them reads from disk."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def files(folder: Path) -> None:
    """extract and patch against reading the one and copying the other, from disk and memory."""
    # in a process of its own: a child's peak memory begins with that of its parent
    run([sys.executable, __file__, "--write-pair", str(folder), "vit_large_patch16_224"])
    donor, twin = folder / "donor.st", folder / "donor_qat.st"
    rho, out, copy = folder / "rho.st", folder / "out.st", folder / "copy"
    for name, other, args, made in (
        ("extract", twin, (), rho),
        ("patch", rho, ("-l", "0.75"), out),
    ):
        ours = [*QVEC, name, str(donor), str(other), *args, "-o", str(made)]
        theirs = ["sh", "-c", f"cat {donor} > /dev/null; cp {other} {copy}"]
        report(f"{name} of a ViT-B pair, peak memory MB", f"{run(ours).peak / 1e6:.0f}", "120")

        def timed(command: list[str], target: Path, *, cold: bool, b: Path = other) -> float:
            target.unlink(missing_ok=True)
            if cold:
                _forget(donor, b)
            return run(command).wall

        for where in ("disk", "the page cache"):
            cold = where == "disk"
            found = ratio(
                lambda a=ours, m=made, c=cold, t=timed: t(a, m, cold=c),
                lambda a=theirs, c=cold, t=timed: t(a, copy, cold=c),
            )
            report(f"{name} / (cat A > /dev/null; cp B out), wall, from {where}", found, "1.5")


def _draw(data: Path) -> Path:
    """Noise in two classes, 224 pixels wide."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 64), ("test", 16)):
        for label in "ab":
            (data / split / label).mkdir(parents=True)
            for i in range(count // 2):
                pixels = rng.integers(0, 256, (224, 224, 3), np.uint8)
                Image.fromarray(pixels).save(data / split / label / f"{i}.png")
    return data


def sweep(folder: Path) -> None:
    """Eleven lambdas in one process against twelve evaluations of decoded images."""
    from qvec_cli.checkpoint.read import Checkpoint
    from qvec_cli.learn.accuracy import measure
    from qvec_cli.model.build import normalise
    from qvec_cli.ops import sweep as swept
    from qvec_cli.ops.examples import open_for
    from qvec_cli.ops.state import load_network
    from qvec_cli.specs import Loading, Silence, Wanted, parse_lambdas

    data = _draw(folder / "images")
    names = {name: str(folder / f"s_{name}.st") for name in ("base", "fp", "qat", "rho")}
    train = ["--data", str(data), "--epochs", "1", "--batch-size", "8", "--no-aug"]
    run(
        [
            *QVEC,
            "finetune",
            "vit_tiny_patch16_224",
            *train,
            "-o",
            names["base"],
        ]
    )
    run([*QVEC, "finetune", names["base"], *train, "-o", names["fp"]])
    run([*QVEC, "train-qat", names["base"], *train, "-o", names["qat"]])
    run([*QVEC, "extract", names["fp"], names["qat"], "-o", names["rho"]])

    loading = Loading(batch_size=64)
    with Checkpoint(Path(names["fp"])) as checkpoint:
        assert checkpoint.card is not None
        model = checkpoint.card.model
        assert model is not None
        network = load_network(checkpoint, model, "cpu")
        examples = open_for(checkpoint, model, str(data), loading)
    images, labels = examples.decoded("val", Silence())

    def bare() -> float:
        started = time.perf_counter()
        for _ in range(12):
            measure(network, images, labels, normalise=normalise(model), batch_size=64)
        return time.perf_counter() - started

    def ours() -> float:
        request = swept.Request(
            Path(names["fp"]),
            Path(names["rho"]),
            str(data),
            folder / "out.json",
            parse_lambdas("0:1.5:0.15"),
            Wanted(3),
            loading,
            device="cpu",
        )
        metrics = swept.sweep(request, Silence())
        return float(metrics.document()["timing"]["wall_s"])

    report(
        "sweep-lambda, ViT-T, 11 x 64 val + 4 x 16 test / 12 x 64 bare",
        ratio(ours, bare, pairs=2),
        "1.15",
    )


def qat(_: Path) -> None:
    """A training step through fake-quantized weights against a plain one, ViT-S, batch 32."""
    import torch

    from qvec_cli.learn.fit import make_optimizer
    from qvec_cli.model import build
    from qvec_cli.model import qat as fake
    from qvec_cli.specs import Grid, Recipe

    def stepper(grid: Grid | None) -> Callable[[], float]:
        torch.manual_seed(0)
        network, model = build.create(build.Wish("vit_small_patch16_224", 10))
        if grid:
            fake.prepare(network, model, grid)
        optimizer = make_optimizer(network, Recipe())
        images, labels = torch.rand(32, 3, 224, 224), torch.randint(0, 10, (32,))

        def step() -> float:
            started = time.perf_counter()
            loss = torch.nn.functional.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            return time.perf_counter() - started

        return step

    report(
        "QAT step / FP step, ViT-S at batch 32",
        ratio(stepper(Grid(3)), stepper(None), pairs=3),
        "1.25",
    )


PARTS = {"startup": startup, "files": files, "sweep": sweep, "qat": qat}


def main() -> None:
    """Measures the parts that are named, or all."""
    if sys.argv[1:2] == ["--write-pair"]:
        write_pair(Path(sys.argv[2]), sys.argv[3])
        return
    for name in sys.argv[1:] or PARTS:
        with tempfile.TemporaryDirectory(prefix="qvec-bench-") as folder:
            PARTS[name](Path(folder))


if __name__ == "__main__":
    main()
