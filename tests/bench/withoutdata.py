"""What it costs to do without the receiver's data: a choice of lambda, and GPTQ on moments."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from timing import Cost, report, run

if TYPE_CHECKING:
    from qvec_cli.specs import Grid

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny"

STEPS = 2000
"""Steps of 128 images that the paper trains a receiver for."""

SIDE = 112
"""Pixels of the images of the ViT-T."""

_NO_TORCH = """
import sys
from qvec_cli.cli.app import run
code = run(sys.argv[1:])
assert "torch" not in sys.modules
raise SystemExit(code)
"""
"""The command line, which fails where torch has been imported."""

_BASE = "0"
"""What files of ``write_pair`` say of their base."""


class Tools(NamedTuple):
    """What the other parts have too."""

    qvec: list[str]  # the command
    write_pair: Callable[..., None]  # donor.st and donor_qat.st of a network, random
    stepper: Callable[..., Callable[[Grid | None, int], float]]  # CPU s of a training step


def without_data(folder: Path, tools: Tools) -> None:
    """GPTQ first: a child's peak memory begins with its parent's, which grows in training."""
    _on_moments(folder, tools)
    _tiny(folder, tools.qvec)
    _choice(folder, tools)


def _on_moments(folder: Path, tools: Tools, name: str = "vit_base_patch16_224") -> None:
    """GPTQ of a ViT-B on whole moments; memory should hang on its widest layer alone."""
    tools.write_pair(folder, name)
    (folder / "donor_qat.st").unlink()
    source, held, out = (folder / f"{n}.st" for n in ("donor", "moments", "out"))
    run([sys.executable, __file__, "--moments", str(source), str(held)])
    ours = [sys.executable, "-c", _NO_TORCH, "quantize", str(source), "--bits", "3", "-f"]
    ours += ["--scale", "mse-full", "--method", "gptq", "--moments", str(held), "-o", str(out)]
    start = run([*ours, "--dry-run"]).peak
    cost = run(ours)
    report("gptq on moments, ViT-B, mse-full: s, CPU s", f"{cost.wall:.0f}, {cost.cpu:.0f}", "-")
    report("  peak memory MB; no torch", f"{cost.peak / 1e6:.0f}", _bound(start))
    files = (path.stat().st_size / 1e6 for path in (source, held))
    report("  the checkpoint, the moments: MB", "{:.0f}, {:.0f}".format(*files), "-")
    source.unlink()


def _bound(start: int, width: int = 3072) -> str:
    """MB of a start, and twice the moment and the factor of the widest layer in float64."""
    return f"{(start + 2 * 2 * 8 * width**2) / 1e6:.0f}"


def write_moments(source: Path, out: Path) -> None:
    """Whole moments of random positive definite matrices, as ``qvec moments`` lays them out."""
    from qvec_cli.calibration.moments_file import MomentsFacts, MomentsSource, plan
    from qvec_cli.checkpoint.card import Card, Kind
    from qvec_cli.checkpoint.read import Checkpoint
    from qvec_cli.checkpoint.write import write
    from qvec_cli.inputs.grids import targets_in
    from qvec_cli.model.configuration import Model
    from qvec_cli.specs import Silence

    with Checkpoint(source) as theta:
        model = theta.card.model
        targets = targets_in(theta, Model.from_json(model or {}), (), Silence())
        widths = {name: theta[name].shape[1] for name in targets}
    made = MomentsSource("noise", "1", "2", 64, "3", "4", _BASE)
    facts = MomentsFacts(None, dict.fromkeys(targets, 64 * 197), {}, (made,))
    card = Card(Kind.MOMENTS, model=model, targets=targets, base=_BASE, moments=facts.to_json())
    write(out, plan(widths, None), _random(widths), card, force=True)


def _random(widths: dict[str, int]) -> Iterator[tuple[str, Any]]:
    import numpy as np

    from qvec_cli.calibration.moments_file import packed
    from qvec_cli.quant.moments import Inputs

    rng = np.random.default_rng(0)
    for name, width in widths.items():
        rows = rng.standard_normal((32, width))
        moment = rows.T @ rows + np.diag(rng.uniform(0.1, 1, width))
        magnitude = np.sqrt(np.diag(moment) * 2 / np.pi)
        yield from packed(name, Inputs(moment, np.zeros(width), magnitude), None)


def _sweep(qvec: list[str], folder: Path, names: list[str], proxy: str, bits: int) -> Cost:
    """The command that chooses lambda: 13 of them, negative ones included."""
    fp, qat = (str(folder / name) for name in names)
    rho, out = str(folder / "rho.st"), str(folder / "sweep.json")
    run([*qvec, "extract", fp, qat, "-o", rho, "-f"])
    choosing = ["--objective", "agreement", "--proxy", proxy, "--bits", str(bits), "--cross-grid"]
    return run([*qvec, "sweep-lambda", fp, rho, *choosing, "--device", "cpu", "-o", out, "-f"])


def _tiny(folder: Path, qvec: list[str]) -> None:
    """The tiny example: its training of a receiver through 2 bits against a choice, as commands."""
    images, names = folder / "images", ["fp.st", "qat.st"]
    run([sys.executable, str(TINY / "images.py"), str(images), "--tasks", "digits", "greek"])
    base, data = str(TINY / "base.st"), ["--data", str(images / "digits")]
    recipe = ["--recipe", str(TINY / "recipe.yaml")]
    run([*qvec, "finetune", base, *data, *recipe, "--epochs", "1", "-o", str(folder / names[0])])
    training = [*qvec, "train-qat", base, *data, *recipe, "--bits", "2"]
    trained = run([*training, "-o", str(folder / names[1])])
    chosen = _sweep(qvec, folder, names, str(images / "greek"), 2)
    report(
        "tiny example, sweep-lambda --proxy, train-qat: CPU s",
        f"{chosen.cpu:.1f}, {trained.cpu:.1f}",
        "-",
    )
    report("  the choice / the receiver's own QAT", f"{chosen.cpu / trained.cpu:.0%}", "-")


def _choice(folder: Path, tools: Tools, name: str = "vit_tiny_patch16_224") -> None:
    """A ViT-T: a whole choice, start-up included, against a step of QAT, taken for all steps.

    At 112 pixels both take a fourth of what they do at 224; of start-up that is as much as there,
    so that the share is rather too large.
    """
    from qvec_cli.specs import Grid

    tools.write_pair(folder, name, SIDE)
    chosen = _sweep(tools.qvec, folder, ["donor.st", "donor_qat.st"], "noise", 3)
    step = tools.stepper(name, SIDE)
    step(Grid(3), 2)
    took = statistics.median(step(Grid(3), 128) for _ in range(3))
    what = f"sweep-lambda --proxy noise, ViT-T at {SIDE} pixels: CPU s"
    report(what, f"{chosen.cpu:.0f}", "-")
    report(f"QAT step of 128 images, ViT-T at {SIDE} pixels: CPU s", f"{took:.1f}", "-")
    share = chosen.cpu / (STEPS * took)
    report(f"  the choice / {STEPS:,} such steps (extrapolated)", f"{share:.2%}", "5%")


def main() -> None:
    """The work that needs a process of its own."""
    match sys.argv[1:]:
        case ["--moments", source, out]:
            write_moments(Path(source), Path(out))


if __name__ == "__main__":
    main()
