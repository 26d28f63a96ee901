"""Prints what vectors and moments lose when they are stored small, and how small they become.

    python small_vectors.py OUT --tasks NAME... --seeds N... --numbered NAME...

OUT is the folder of the zero-data study: OUT/sN/TASK.st, OUT/sN/absmax-2/TASK_qat.st, images/TASK
and the base's moments, card*.st. Every number is what qvec's own functions return.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from safetensors.numpy import load_file

from qvec_cli.calibration.moments_file import MomentsOptions
from qvec_cli.pipeline.combine import CombineRequest, combine
from qvec_cli.pipeline.evaluate import EvaluateRequest, evaluate
from qvec_cli.pipeline.extract import ExtractRequest, extract
from qvec_cli.pipeline.patch import PatchRequest, patch
from qvec_cli.pipeline.quantize import QuantizeRequest, quantize
from qvec_cli.quant.qtensor import energy, stored_bits
from qvec_cli.quant.scales import fake_quantize
from qvec_cli.specs import (
    Granularity,
    Grid,
    GridOptions,
    Method,
    Preset,
    Scale,
    ScaleDtype,
    Silence,
)

WIDTHS = (None, 8, 4, 3, 2)
CARDS = {
    "float32": "card",
    "float16": "card_half",
    "rank 16": "card_rank",
    "rank 16, float16": "card_rank_half",
}
KINDS = (
    (Scale.ABSMAX, True),
    (Scale.MSE, True),
    (Scale.MSE_FULL, True),
    (Scale.ABSMAX, False),
    (Scale.MSE, False),
)
QUIET = Silence()
PAPER = GridOptions(bits=2, preset=Preset.PAPER)


@dataclass
class Row:
    """What one way of storing gives, over all receivers and seeds."""

    sizes: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    top1: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


@dataclass(frozen=True)
class Study:
    """The files, and a folder for what is made of them."""

    out: Path
    tasks: Sequence[str]
    numbered: Sequence[str]  # tasks whose classes have the same names
    work: Path

    def strangers(self, task: str) -> list[str]:
        """The tasks that may help another, the next one of the circle first."""
        place = self.tasks.index(task)
        same = self.numbered if task in self.numbered else [task]
        return [t for t in (*self.tasks[place + 1 :], *self.tasks[:place]) if t not in same]

    def model(self, task: str, seed: int) -> Path:
        """A receiver, which is also a donor."""
        return self.out / f"s{seed}" / f"{task}.st"

    def accuracy(self, task: str, model: Path) -> float:
        """Top-1 on the task's test images."""
        document = evaluate(EvaluateRequest(model, f"{self.out}/images/{task}"), QUIET)
        return float(document.results["top1"])

    def vector(self, task: str, seed: int, bits: int | None, row: Row) -> Path:
        """The vector of one donor, stored on so many bits."""
        out = self.work / f"{seed}_{task}_{bits}.st"
        qat = self.out / f"s{seed}" / "absmax-2" / f"{task}_qat.st"
        request = ExtractRequest(self.model(task, seed), qat, out, bits=bits, force=True)
        made = extract(request, QUIET).results
        row.sizes.append(out.stat().st_size)
        row.errors.append(made["storage"]["relative_error"] if made["storage"] else 0.0)
        return out

    def patched(self, task: str, seed: int, rho: Path) -> float:
        """Top-1 of a receiver that a vector was added to, rounded on the paper's grid."""
        whole, packed = self.work / "patched.st", self.work / "packed.st"
        patch(PatchRequest(self.model(task, seed), rho, whole, "1", force=True), QUIET)
        quantize(QuantizeRequest(whole, packed, PAPER, force=True), QUIET)
        return self.accuracy(task, packed)

    def vectors(self, seeds: Sequence[int]) -> Iterator[list[str]]:
        """A line for each width."""
        yield ["vector", "file", "error", "a donor's", "mean of all others'", "the receiver's own"]
        for bits in WIDTHS:
            row = Row()
            for seed in seeds:
                rhos = {task: self.vector(task, seed, bits, row) for task in self.tasks}
                for task in self.tasks:
                    others = [rhos[other] for other in self.strangers(task)]
                    mean = self.work / "mean.st"
                    combine(CombineRequest(tuple(others), mean, force=True), QUIET)
                    for name, rho in (("a", others[0]), ("mean", mean), ("own", rhos[task])):
                        row.top1[name].append(self.patched(task, seed, rho))
            name = "float32" if bits is None else f"{bits} bits"
            scores = (f"{fmean(row.top1[kind]):.4f}" for kind in ("a", "mean", "own"))
            error = f"{fmean(row.errors):.4f}" if bits else "0"
            yield [name, f"{fmean(row.sizes) / 1000:.0f} kB", error, *scores]

    def grids(self, seed: int) -> Iterator[list[str]]:
        """A line for each grid that matrices could be stored on: what they take, and the error."""
        yield ["a scale for 64 numbers", "4 bits", "error", "3 bits", "error"]
        rhos = [load_file(self.vector(task, seed, None, Row())) for task in self.tasks]
        matrices = [rho for one in rhos for rho in one.values() if rho.ndim == 2]
        for scale, symmetric in KINDS:
            cells = []
            for bits in (4, 3):
                kind = Granularity.GROUP, 64, scale, symmetric, ScaleDtype.FLOAT16
                grid = Grid(bits, *kind)
                apart = sum(energy(fake_quantize(rho, grid) - rho) for rho in matrices)
                size = sum(stored_bits(rho.shape, grid) for rho in matrices)
                error = (apart / sum(map(energy, matrices))) ** 0.5
                cells += [f"{size / sum(rho.size for rho in matrices):.3f}", f"{error:.4f}"]
            yield [f"{scale}{'' if symmetric else ', zero point'}", *cells]

    def moments(self, seeds: Sequence[int]) -> Iterator[list[str]]:
        """A line for each way of storing the base's moments."""
        yield ["moments of the base", "file", "gptq on them"]
        grid, packed = GridOptions(bits=2, scale=Scale.MSE_FULL), self.work / "packed.st"
        for name, stem in CARDS.items():
            card, scores = self.out / f"{stem}.st", []
            for seed in seeds:
                for task in self.tasks:
                    theta, used = self.model(task, seed), MomentsOptions(card)
                    request = QuantizeRequest(
                        theta, packed, grid, Method.GPTQ, moments=used, force=True
                    )
                    quantize(request, QUIET)
                    scores.append(self.accuracy(task, packed))
            yield [name, f"{card.stat().st_size / 1000:.0f} kB", f"{fmean(scores):.4f}"]


def show(rows: Sequence[Sequence[str]]) -> None:
    """Columns of one width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def main() -> None:
    """Parses the command line and prints three tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--numbered", nargs="+", default=[])
    parser.add_argument("--seeds", nargs="+", type=int, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        study = Study(args.out, args.tasks, args.numbered, Path(work))
        count = f"{len(args.tasks)} receivers, {len(args.seeds)} seeds"
        print(f"vectors for 2 bits on absmax, patched at lambda 1, mean top-1 of {count}")
        show([*study.vectors(args.seeds)])
        print(f"\n2-bit channel mse-full, no vector, mean top-1 of {count}")
        show([*study.moments(args.seeds)])
        print(
            f"\nmatrices of {len(args.tasks)} vectors, seed {args.seeds[0]}: bits a number, error"
        )
        show([*study.grids(args.seeds[0])])


if __name__ == "__main__":
    main()
