"""Extract and patch of a ViT-S against other ways to do the same arithmetic on the same files."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from timing import Cost, inside, report, run

MERGEKIT = Path(__file__).resolve().parents[2] / ".bench" / "mergekit" / "bin"
"""An environment of its own, which ``make bench`` builds."""

_TORCH = """
import sys
from safetensors.torch import load_file, save_file

def work(donor, qat, receiver, rho, out):
    fp, qat = load_file(donor), load_file(qat)
    save_file({n: qat[n] - fp[n] for n in fp if not n.startswith("head.")}, rho)
    theta, vector = load_file(receiver), load_file(rho)
    save_file({n: t + 0.75 * vector[n] if n in vector else t for n, t in theta.items()}, out)
"""

_OURS = """
import sys
from pathlib import Path
from qvec_cli.pipeline.extract import extract
from qvec_cli.pipeline.patch import PatchRequest, patch
from qvec_cli.specs import Silence

def work(donor, qat, receiver, rho, out):
    extract(Path(donor), Path(qat), Path(rho), Silence(), force=True)
    patch(PatchRequest(Path(receiver), Path(rho), Path(out), "0.75", force=True), Silence())
"""

_MERGEKIT = """
import sys
from mergekit.scripts.merge_raw_pytorch import SimpleLoaderCache, main

def work(donor, qat, receiver, rho, out):
    for config, target in ((rho + ".yaml", rho), (out + ".yaml", out)):
        SimpleLoaderCache()._instance.loaders.clear()
        main.main([config, target + ".d"], standalone_mode=False)
"""


def _files(folder: Path, side: str) -> list[str]:
    """Donor, twin, receiver, and where one side puts its vector and its result."""
    names = ("donor", "donor_qat", "donor", f"rho_{side}", f"out_{side}")
    return [str(folder / f"{name}.safetensors") for name in names]  # mergekit goes by suffix


def _configure(folder: Path) -> None:
    """What mergekit reads: rho = 1 QAT - 1 donor, and receiver + 0.75 rho."""
    donor, qat, receiver, rho, out = _files(folder, "mergekit")
    made = f"{rho}.d/model.safetensors"
    for target, pairs in (
        (rho, ((qat, 1.0), (donor, -1.0))),
        (out, ((receiver, 1.0), (made, 0.75))),
    ):
        models = [{"model": model, "parameters": {"weight": w}} for model, w in pairs]
        config = {
            "merge_method": "linear",
            "models": models,
            "parameters": {"normalize": False},
            "dtype": "float32",
        }
        Path(target + ".yaml").write_text(json.dumps(config))  # JSON is YAML


def _commands(folder: Path, qvec: list[str]) -> dict[str, list[list[str]]]:
    """The processes that each side takes."""
    donor, qat, receiver, rho, out = _files(folder, "qvec")
    merged, patched = _files(folder, "mergekit")[3:]
    merge = str(MERGEKIT / "mergekit-pytorch")
    plain = _TORCH + "\nwork(*sys.argv[1:])"
    return {
        "qvec": [
            [*qvec, "extract", donor, qat, "-o", rho, "-f"],
            [*qvec, "patch", receiver, rho, "-l", "0.75", "-o", out, "-f"],
        ],
        "torch state dicts": [[sys.executable, "-c", plain, *_files(folder, "torch")]],
        "mergekit-pytorch 0.1.5": [
            [merge, merged + ".yaml", merged + ".d"],
            [merge, patched + ".yaml", patched + ".d"],
        ],
    }


def _whole(commands: list[list[str]]) -> Cost:
    costs = [run(command) for command in commands]
    return Cost(sum(c.wall for c in costs), sum(c.cpu for c in costs), max(c.peak for c in costs))


def _apart(folder: Path) -> float:
    """The largest difference between two sides' patched weights outside the head."""
    code = (
        "import sys; from safetensors.torch import load_file; a, b = map(load_file, sys.argv[1:]);"
        "print(max(float((a[n] - b[n]).abs().max()) for n in a if not n.startswith('head.')))"
    )
    files = [
        _files(folder, "qvec")[4],
        _files(folder, "mergekit")[4] + ".d/model.safetensors",
    ]
    return float(subprocess.check_output([sys.executable, "-c", code, *files], text=True))


def peers(folder: Path, qvec: list[str], write_pair: Callable[[Path, str], None]) -> None:
    """Wall time with start-up and without, and memory, side by side in turn."""
    write_pair(folder, "vit_small_patch16_224")
    for name in ("donor", "donor_qat"):
        (folder / f"{name}.st").rename(folder / f"{name}.safetensors")
    _configure(folder)
    sides = _commands(folder, qvec)
    workers = {
        "qvec": (sys.executable, _OURS, _files(folder, "qvec")),
        "torch state dicts": (sys.executable, _TORCH, _files(folder, "torch")),
        "mergekit-pytorch 0.1.5": (str(MERGEKIT / "python"), _MERGEKIT, _files(folder, "mergekit")),
    }
    if not MERGEKIT.is_dir():
        print("mergekit is not installed: make bench does it")
        del sides["mergekit-pytorch 0.1.5"], workers["mergekit-pytorch 0.1.5"]
    rounds = [{name: _whole(commands) for name, commands in sides.items()} for _ in range(4)][1:]
    warm = {name: inside(*args) for name, args in workers.items()}
    for name in sides:
        wall, cpu = (
            statistics.median(getattr(r[name], key) for r in rounds) for key in ("wall", "cpu")
        )
        ratio = statistics.median(r[name].wall / r["qvec"].wall for r in rounds)
        peak = max(r[name].peak for r in rounds) / 1e6
        report(
            f"extract + patch, ViT-S, {name}: s, CPU s, MB",
            f"{wall:.2f}, {cpu:.2f}, {peak:.0f}",
            f"- (x {ratio:.1f})",
        )
        report(
            "  without start-up: s", f"{warm[name]:.2f}", f"- (x {warm[name] / warm['qvec']:.1f})"
        )
    if "mergekit-pytorch 0.1.5" in sides:
        report("  largest difference between the two results", f"{_apart(folder):.1e}", "-")
