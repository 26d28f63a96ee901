"""How much of a transfer grid is spent in forward passes: the rest is what qvec itself takes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from timing import report, run

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny"
NAMES = [f"task{i}" for i in range(7)]
"""Seven names of one model: what a cell takes does not hang on what it holds."""


def transferring(folder: Path, qvec: list[str]) -> None:
    """A 7 x 7 grid with eleven lambdas of the tiny example's ViT, where forwards are cheapest."""
    images = folder / "images" / "greek"
    run([sys.executable, str(TINY / "images.py"), str(images.parent), "--tasks", "greek"])
    files = {name: folder / f"{name}.st" for name in ("fp", "qat", "rho")}
    train = ["--data", str(images), "--epochs", "1", "--no-aug", "--device", "cpu"]
    run([*qvec, "finetune", str(TINY / "base.st"), *train, "-o", str(files["fp"])])
    run([*qvec, "train-qat", str(TINY / "base.st"), *train, "--bits", "2", "-o", str(files["qat"])])
    run([*qvec, "extract", str(files["fp"]), str(files["qat"]), "-o", str(files["rho"])])
    grid = folder / "grid.yaml"
    receivers = [f"  {name}: {{model: {files['fp']}, data: {images}}}" for name in NAMES]
    donors = [f"  {name}: {files['rho']}" for name in NAMES]
    grid.write_text("\n".join(["receivers:", *receivers, "donors:", *donors, ""]))
    for scale in ("absmax", "mse-full"):
        whole, forward, points = _timed(grid, folder / f"{scale}.jsonl", scale)
        report(
            f"transfer, 7 x 7, 11 lambdas, {scale}: s, of them in {points} forwards",
            f"{whole:.0f}, {forward / whole:.0%}",
            "85%" if scale == "absmax" else "-",
        )


def _timed(grid: Path, out: Path, scale: str) -> tuple[float, float, int]:
    """Seconds of a whole grid, seconds of them in the network, and how often it was measured."""
    from qvec_cli.inputs.lambdas import parse_lambdas
    from qvec_cli.selection import trial
    from qvec_cli.specs import GridOptions, Loading, Scale, Silence
    from qvec_cli.transfer.grid_file import CellOptions
    from qvec_cli.transfer.transfer import TransferRequest, transfer

    measure, took = trial.measure, []

    def timed(*args: Any, **named: Any) -> Any:
        started = time.perf_counter()
        score = measure(*args, **named)
        took.append(time.perf_counter() - started)
        return score

    trial.measure = timed  # type: ignore[attr-defined]
    wanted = GridOptions(2, scale=Scale(scale), cross=True)
    wishes = CellOptions(wanted, parse_lambdas("0:1.5:0.15"), (1.0,), Loading(), device="cpu")
    started = time.perf_counter()
    transfer(TransferRequest(grid, out, wishes), Silence())
    whole = time.perf_counter() - started
    trial.measure = measure  # type: ignore[attr-defined]
    return whole, sum(took), len(took)
