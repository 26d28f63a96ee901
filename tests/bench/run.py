"""Prints the ratios of README's "How fast", each pair of things measured side by side in one run.

    make bench, or: python tests/bench/run.py [PART]..., of

    startup files rotate hashing many peers pack sweep transfer qat quantize gptq ship zero

Ratios are medians over pairs taken in turn (A B A B ...), so that a machine that slows down slows
both. Nothing is cached between the two sides but what the operating system caches for both.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from packing import packing
from peers import peers
from quantizing import calibrating, quantizing
from shipping import shipping
from timing import ratio, report, run, spread
from transferring import transferring
from withoutdata import Tools, without_data

if TYPE_CHECKING:
    from qvec_cli.specs import Grid

os.environ["OMP_NUM_THREADS"] = "1"  # threads that compete for two cores measure each other

QVEC = [sys.executable, "-m", "qvec_cli"]


def startup(_: Path) -> None:
    """Help and a refusal."""
    for what, args, code in (
        ("qvec --help, CPU s", ["--help"], 0),
        ("a refusal (no such file), CPU s", ["extract", "a.st", "b.st", "-o", "c.st"], 1),
    ):
        costs = sorted(run([*QVEC, *args], ok=code).cpu for _ in range(7))
        report(what, f"{costs[3]:.2f}", "0.30")


def write_pair(folder: Path, name: str, side: int | None = None) -> None:
    """A network of timm and its twin, as train and train-qat would have left them."""
    import numpy as np
    import torch

    from qvec_cli.checkpoint.card import Card, Kind
    from qvec_cli.checkpoint.header import Entry
    from qvec_cli.checkpoint.write import write
    from qvec_cli.model.build import NetworkOptions, create

    with torch.device("meta"):
        network, model = create(NetworkOptions(name, 1000, img_size=side))
    plan = {n: Entry("F32", tuple(t.shape)) for n, t in network.state_dict().items()}
    rng = np.random.default_rng(0)
    for file, role in (("donor.st", "fp"), ("donor_qat.st", "qat")):
        tensors = ((n, [rng.standard_normal(e.size, np.float32)]) for n, e in plan.items())
        card = Card(Kind.CHECKPOINT, role=role, model=model.to_json(), base="0")
        write(folder / file, plan, tensors, card, force=True)


def _forget(*paths: Path) -> None:
    """Drops files from the page cache, so that the next to read them reads from disk."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _pair(folder: Path, name: str, *side: int) -> None:
    """Writes a pair in a process of its own: a child's peak memory begins with its parent's."""
    run([sys.executable, __file__, "--write-pair", str(folder), name, *map(str, side)])


def files(folder: Path) -> None:
    """extract and patch against reading the one and copying the other, from disk and memory."""
    donor, twin = folder / "donor.st", folder / "donor_qat.st"
    rho, out, copy = folder / "rho.st", folder / "out.st", folder / "copy"
    _pair(folder, "vit_small_patch16_224")
    small = run([*QVEC, "extract", str(donor), str(twin), "-o", str(rho)]).peak
    report("extract of a ViT-S pair (2 x 88 MB), peak memory MB", f"{small / 1e6:.0f}", "120")
    rho.unlink()
    _pair(folder, "vit_large_patch16_224")
    copying = f"cat {donor} > /dev/null; cp {{other}} {copy}"
    for name, other, args, made in (
        ("extract", twin, (), rho),
        ("patch", rho, ("-l", "0.75"), out),
    ):
        ours = [*QVEC, name, str(donor), str(other), *args, "-o", str(made)]
        peak = run(ours).peak / 1e6
        report(f"{name} of a ViT-L pair (2 x 1.2 GB), peak memory MB", f"{peak:.0f}", "120")

        def timed(command: list[str], target: Path, *, cold: bool, b: Path = other) -> float:
            target.unlink(missing_ok=True)
            if cold:
                _forget(donor, b)
            return run(command).wall

        for where, end in (("disk", ""), ("the page cache", ""), ("the page cache", "; sync {}")):
            cold, goal = where == "disk", "-" if end else "1.5"
            theirs = ["sh", "-c", copying.format(other=other) + end.format(copy)]
            found = ratio(
                lambda a=ours, m=made, c=cold, t=timed: t(a, m, cold=c),
                lambda a=theirs, c=cold, t=timed: t(a, copy, cold=c),
            )
            report(f"{name} / (cat A > /dev/null; cp B C{end.format('C')}), {where}", found, goal)


def rotating(folder: Path) -> None:
    """rotate against reading a file and copying it; quantize with a rotation and without."""
    donor, out, copy = folder / "donor.st", folder / "out.st", folder / "copy"
    start = f"{sys.executable} -m qvec_cli rotate --help"
    for name in ("vit_small_patch16_224", "vit_large_patch16_224"):
        _pair(folder, name)
        peak = run([*QVEC, "rotate", str(donor), "-o", str(out), "--force"]).peak / 1e6
        report(f"rotate of {name}, peak memory MB", f"{peak:.0f}", "-")
    theirs = ["sh", "-c", f"{start} > /dev/null; cat {donor} > /dev/null; cp {donor} {copy}"]
    ours = [*QVEC, "rotate", str(donor), "-o", str(out), "--force"]
    found = ratio(lambda: run(ours).wall, lambda: run(theirs).wall)
    report("rotate of a ViT-L / (start-up; cat A > /dev/null; cp A B)", found, "3.0")
    _pair(folder, "vit_base_patch16_224")
    base = [*QVEC, "quantize", str(donor), "--bits", "3", "-o", str(out), "--force"]
    mse = ("--scale", "mse", "--asymmetric")
    for label, first, second, goal in (
        ("quantize --rotate / quantize", (*mse, "--rotate"), mse, "1.5"),
        ("quantize --scale mse --asymmetric / absmax", mse, ("--asymmetric",), "2.0"),
    ):
        found = ratio(lambda a=first: run([*base, *a]).wall, lambda a=second: run([*base, *a]).wall)
        report(f"{label}, ViT-B", found, goal)


def hashing(_: Path) -> None:
    """How fast this machine hashes: what checking three files of 1.2 GB costs in CPU."""
    import hashlib

    block = bytes(1 << 20)
    started = time.perf_counter()
    for _ in range(1024):
        hashlib.sha256(block).digest()
    report("sha256, GB/s on one core", f"{1.07 / (time.perf_counter() - started):.2f}", "-")


def many(folder: Path) -> None:
    """extract and patch of a hundred thousand tiny tensors."""
    run([sys.executable, __file__, "--write-many", str(folder)])
    donor, twin, rho, out = (str(folder / f"{n}.st") for n in ("donor", "donor_qat", "rho", "out"))
    for name, args in (
        ("extract", [donor, twin, "-o", rho]),
        ("patch", [donor, rho, "-o", out]),
    ):
        cost = run([*QVEC, name, *args])
        report(
            f"{name}, 100,000 tensors of 4 numbers: s, MB",
            f"{cost.wall:.1f}, {cost.peak / 1e6:.0f}",
            "15, 500",
        )


def write_many(folder: Path) -> None:
    """Two files of very many tensors."""
    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    for file in ("donor.st", "donor_qat.st"):
        numbers = rng.standard_normal((100_000, 4), np.float32)
        save_file({f"tensor.{i}": row for i, row in enumerate(numbers)}, folder / file)


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
    from qvec_cli.inputs.images import open_for
    from qvec_cli.inputs.lambdas import parse_lambdas
    from qvec_cli.inputs.network import load_network
    from qvec_cli.learn.forward import measure
    from qvec_cli.model.build import normalise
    from qvec_cli.model.configuration import Model
    from qvec_cli.selection import by_labels as swept
    from qvec_cli.specs import GridOptions, Loading, Silence

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
        model = Model.from_json(checkpoint.card.model or {})
        network = load_network(checkpoint, model, "cpu")
        examples = open_for(checkpoint, model, str(data), loading, Silence())
    images, labels = examples.decoded("val", Silence())

    def bare() -> float:
        started = time.perf_counter()
        for _ in range(12):
            measure(network, images, labels, normalise=normalise(model), batch_size=64)
        return time.perf_counter() - started

    def ours() -> float:
        request = swept.SweepRequest(
            Path(names["fp"]),
            Path(names["rho"]),
            str(data),
            folder / "out.json",
            parse_lambdas("0:1.5:0.15"),
            GridOptions(3),
            loading,
            device="cpu",
            force=True,  # the points of the pair before, which the command line would clear away
        )
        metrics = swept.sweep(request, Silence())
        return float(metrics.document()["timing"]["wall_s"])

    report(
        "sweep-lambda, ViT-T, 11 x 64 val + 4 x 16 test / 12 x 64 bare",
        ratio(ours, bare, pairs=2),
        "1.15",
    )


def _grids() -> list[Grid]:
    """Every kind of grid at 3 bits: rules of scales, zero points, groups, rounded scales."""
    from qvec_cli.specs import Granularity, Grid, Scale, ScaleDtype

    return [
        *(Grid(3, scale=scale) for scale in Scale),
        *(Grid(3, scale=scale, symmetric=False) for scale in (Scale.ABSMAX, Scale.MSE)),
        Grid(3, Granularity.GROUP, 32),
        Grid(3, scale_dtype=ScaleDtype.FLOAT16),
    ]


def _stepper(name: str, side: int = 224) -> Callable[[Grid | None, int], float]:
    """CPU seconds of a training step of one network on a grid or none, with so many images."""
    import torch

    from qvec_cli.learn.fit import make_optimizer
    from qvec_cli.model import build, qat
    from qvec_cli.specs import Recipe

    torch.manual_seed(0)
    network, model = build.create(build.NetworkOptions(name, 10, img_size=side))
    optimizer = make_optimizer(network, Recipe())  # wrappers hold the very same parameters

    def step(grid: Grid | None, batch: int) -> float:
        images, labels = torch.rand(batch, 3, side, side), torch.randint(0, 10, (batch,))
        if grid:
            qat.prepare(network, model, grid)
        started = time.process_time()
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        took = time.process_time() - started
        qat.strip(network)
        return took

    return step


def qat(_: Path) -> None:
    """A training step through fake-quantized weights against the plain ones before and after.

    In CPU seconds, since steps are long, hence few, and neighbours would show. The grid that has
    a goal is measured three times.
    """
    grids, step = _grids(), _stepper("vit_small_patch16_224")
    for grid in (None, *grids):
        step(grid, 2)
    found: dict[Grid, list[float]] = {grid: [] for grid in grids}
    turns, before = [*grids, grids[0], grids[0]], step(None, 32)
    for some in (turns[i : i + 2] for i in range(0, len(turns), 2)):
        took = [step(grid, 32) for grid in some]
        after = step(None, 32)
        for grid, seconds in zip(some, took, strict=True):
            found[grid].append(2 * seconds / (before + after))
        before = after
    for grid, ratios in found.items():
        goal = "1.10" if grid == grids[0] else "-"
        report(f"QAT / FP step, ViT-S at batch 32, {grid}", spread(ratios), goal)


PARTS = {
    "startup": startup,
    "files": files,
    "rotate": rotating,
    "hashing": hashing,
    "many": many,
    "peers": lambda folder: peers(folder, QVEC, _pair),
    "pack": packing,
    "sweep": sweep,
    "transfer": lambda folder: transferring(folder, QVEC),
    "qat": qat,
    "quantize": lambda folder: quantizing(folder, QVEC, _pair),
    "gptq": lambda folder: calibrating(folder, _pair),
    "ship": lambda folder: shipping(folder, QVEC, _pair),
    "zero": lambda folder: without_data(folder, Tools(QVEC, _pair, _stepper)),
}


def main() -> None:
    """Measures the parts that are named, or all."""
    match sys.argv[1:]:
        case ["--write-pair", folder, name, *side]:
            write_pair(Path(folder), name, *map(int, side))
        case ["--write-many", folder]:
            write_many(Path(folder))
        case [name]:
            with tempfile.TemporaryDirectory(prefix="qvec-bench-") as folder:
                PARTS[name](Path(folder))
        case names:  # each in a process of its own: a child's peak memory begins with its parent's
            for name in names or PARTS:
                subprocess.run([sys.executable, __file__, name], check=True)


if __name__ == "__main__":
    main()
