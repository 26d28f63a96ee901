"""What quantize takes: beside llm-compressor on the same file, and part by part with GPTQ."""

from __future__ import annotations

import functools
import json
import pkgutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from timing import Cost, inside, report, run, spread

PEER = Path(__file__).resolve().parents[2] / ".bench" / "llmc" / "bin" / "python"
"""An environment of its own, which ``make bench`` builds."""

LABEL = "llm-compressor 0.14.0.1"

_OURS = """
from pathlib import Path
from qvec_cli.pipeline.quantize import QuantizeRequest, quantize
from qvec_cli.specs import GridOptions, Silence

def work(source, out):
    quantize(QuantizeRequest(Path(source), Path(out), GridOptions(3), force=True), Silence())
"""

_THEIRS = """
import json, sys
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import model_free_ptq

def work(source, out, ignored):
    weights = QuantizationArgs(num_bits=3, type="int", strategy="channel", symmetric=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    model_free_ptq(source, out, scheme=scheme, ignore=json.loads(ignored), device="cpu")
"""

_WHOLE = "\nimport sys\nwork(*sys.argv[1:])"


class _Case(NamedTuple):
    """One file that both sides quantize."""

    name: str  # for the report
    source: Path  # a folder of the hub: theirs takes no file
    ignored: str  # modules that ours leaves as they are, as JSON

    @property
    def file(self) -> Path:
        return self.source / "model.safetensors"

    @property
    def ours(self) -> Path:
        return self.source.with_name("ours.safetensors")

    @property
    def theirs(self) -> Path:
        return self.source.with_name("theirs")


def quantizing(folder: Path, qvec: list[str], write_pair: Callable[[Path, str], None]) -> None:
    """Time and memory of whole processes in turn, without start-up, bytes and weight error."""
    for name, architecture, pairs in (
        ("ViT-S", "vit_small_patch16_224", 5),
        ("ViT-L", "vit_large_patch16_224", 3),
    ):
        case = _prepared(folder / name, name, architecture, qvec, write_pair)
        ours = [
            *qvec,
            "quantize",
            str(case.file),
            "--bits",
            "3",
            "--symmetric",
            "-o",
            str(case.ours),
            "-f",
        ]
        if not PEER.exists():
            print("llm-compressor is not installed: make bench does it")
            _show(f"quantize --bits 3, {name}, qvec", [run(ours) for _ in range(pairs)])
            continue
        given = [str(case.source), str(case.theirs), case.ignored]
        theirs = [str(PEER), "-c", _THEIRS + _WHOLE, *given]
        rounds = [(run(ours), run(theirs)) for _ in range(pairs + 1)][1:]  # the first one warms
        warm = (
            inside(sys.executable, _OURS, [str(case.file), str(case.ours)], pairs),
            inside(str(PEER), _THEIRS, given, pairs),
        )
        _compare(case, rounds, warm)
        for file in case.source.parent.rglob("*.safetensors"):
            file.unlink()  # a ViT-L takes room


def _prepared(
    folder: Path,
    name: str,
    architecture: str,
    qvec: list[str],
    write_pair: Callable[[Path, str], None],
) -> _Case:
    """Writes the file, and asks qvec what it would leave as it is."""
    source, plan = folder / "hub", folder / "plan.json"
    source.mkdir(parents=True)
    write_pair(folder, architecture)
    (folder / "donor_qat.st").unlink()
    file = (folder / "donor.st").rename(source / "model.safetensors")
    (source / "config.json").write_text("{}")
    out = ["-o", str(folder / "ours.safetensors"), "--metrics", str(plan)]
    run([*qvec, "quantize", str(file), "--bits", "3", "--symmetric", *out])
    left = json.loads(plan.read_text())["results"]["left"]
    ignored = [n.removesuffix(".weight") for n in left if n.endswith(".weight")]
    return _Case(name, source, json.dumps(ignored))


def _show(what: str, costs: list[Cost]) -> None:
    wall, cpu = (statistics.median(getattr(c, key) for c in costs) for key in ("wall", "cpu"))
    peak = max(cost.peak for cost in costs) / 1e6
    report(f"{what}: s, CPU s, MB", f"{wall:.2f}, {cpu:.2f}, {peak:.0f}", "-")


def _compare(case: _Case, rounds: list[tuple[Cost, Cost]], warm: tuple[float, float]) -> None:
    done = [sys.executable, __file__, "--outcome", str(case.file), str(case.ours)]
    # In a process of its own: a child's peak memory begins with its parent's.
    found = json.loads(subprocess.check_output([*done, str(case.theirs / "model.safetensors")]))
    for side, label in enumerate(("qvec", LABEL)):
        _show(f"quantize --bits 3, {case.name}, {label}", [pair[side] for pair in rounds])
        report("  without start-up: s", f"{warm[side]:.2f}", "-")
        size, error = found["bytes"][side] / 1e6, found["error"][side]
        report("  bytes of the file, weight MSE", f"{size:.2f} MB, {error:.4f}", "-")
    both = f"quantize, {case.name}, qvec / llm-compressor"
    report(f"{both}, s", spread([a.wall / b.wall for a, b in rounds]), "0.50")
    report(f"{both}, peak memory", spread([a.peak / b.peak for a, b in rounds]), "0.20")
    report(f"{both}, without start-up, s", f"{warm[0] / warm[1]:.2f}", "-")


def outcome(source: Path, ours: Path, theirs: Path) -> dict[str, Any]:
    """Bytes and weight MSE of both sides, once they are seen to have done the same work.

    The same weights are packed into arrays of the same shapes and types, all else is as it was,
    and a scale of theirs is 3 / 3.5 of ours: their steps span max|w| / 3.5.
    """
    import numpy as np
    from safetensors import safe_open

    errors, count = [0.0, 0.0], 0
    opened = [safe_open(path, "numpy") for path in (source, ours, theirs)]
    plain, *made = opened
    assert set(made[0].keys()) == set(made[1].keys()), "the two sides packed different weights"
    for name in plain.keys():  # noqa: SIM118 - not a mapping
        kept = [side for side in made if name in side.keys()]  # noqa: SIM118
        weight = plain.get_tensor(name)
        if kept:
            assert all(np.array_equal(weight, side.get_tensor(name)) for side in made), name
            continue
        count += weight.size
        parts = [[side.get_tensor(name + p) for p in ("_packed", "_scale")] for side in made]
        for a, b in zip(*parts, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype), f"{name}: {a.dtype} {b.dtype}"
        assert np.allclose(parts[0][1] * (3 / 3.5), parts[1][1], rtol=1e-5), f"{name}: scales"
        for side, (packed, scale) in enumerate(parts):
            errors[side] += _squared(weight, packed, scale)
    sizes = [path.stat().st_size for path in (ours, theirs)]
    return {"bytes": sizes, "error": [error / count for error in errors]}


def _squared(weight: Any, packed: Any, scale: Any) -> float:
    import numpy as np

    from qvec_cli.quant.pack import unpack

    apart = unpack(packed, weight.shape[1], 3) * scale - weight
    return float(np.square(apart, dtype=np.float64).sum())


PARTS = {
    "qvec_cli.inputs.network:load_network": "building the network",
    "qvec_cli.inputs.images:Examples.decoded": "decoding images",
    "qvec_cli.calibration.walk:Walk._reach": "forwards",
    "qvec_cli.calibration.walk:_Forward.go_on": "forwards",
    "qvec_cli.calibration.walk:MomentSums.add": "moments of inputs",
    "qvec_cli.quant.gptq:_factor": "factorisation",
    "qvec_cli.quant.gptq:_tries": "scales to try",
    "qvec_cli.quant.gptq:_feed_back": "columns",
    "qvec_cli.pipeline.quantize:write_output": "packing and writing",
}
"""Functions of qvec, and under which name their seconds count; what they call counts apart."""


class _Clock:
    """Where the seconds of a process go."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._within = 0.0  # seconds of timed functions that the one at work has called

    def timed(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose seconds count from now on."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            outside, self._within, started = self._within, 0.0, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - started
                self.seconds[label] += took - self._within
                self._within = outside + took

        return run

    def watch(self, place: str, label: str) -> None:
        """Counts the seconds of a function of qvec, wherever it is called from."""
        owner, _, name = place.replace(":", ".").rpartition(".")
        home = pkgutil.resolve_name(owner)
        setattr(home, name, self.timed(label, getattr(home, name)))


def watched(source: Path, images: Path, out: Path, scale: str) -> dict[str, float]:
    """GPTQ in this process, from imports to the file on disk: seconds of each part."""
    clock, started = _Clock(), time.perf_counter()
    clock.timed("imports", _import)()
    for place, label in PARTS.items():
        clock.watch(place, label)

    from qvec_cli.pipeline.quantize import QuantizeRequest, quantize
    from qvec_cli.specs import Calibration, GridOptions, Method, Scale, Silence

    wanted, seen = GridOptions(3, scale=Scale(scale)), Calibration((str(images),), 512)
    quantize(
        QuantizeRequest(source, out, wanted, Method.GPTQ, calibration=seen, force=True), Silence()
    )
    clock.seconds["all else"] = time.perf_counter() - started - clock.seconds.total()
    return clock.seconds


def _import() -> None:
    from qvec_cli.learn import batches  # noqa: F401
    from qvec_cli.model import build

    build.create(build.NetworkOptions("test_vit", 2))  # loads timm


def calibrating(folder: Path, write_pair: Callable[[Path, str], None], threads: int = 2) -> None:
    """GPTQ of a ViT-S with 512 images, on two grids."""
    write_pair(folder, "vit_small_patch16_224")
    images, spent, this = folder / "images", folder / "spent.json", [sys.executable, __file__]
    run([*this, "--draw", str(images)])
    for scale in ("absmax", "mse-full"):
        files = [str(folder / "donor.st"), str(images), str(folder / "out.st"), scale]
        cost = run(["env", f"OMP_NUM_THREADS={threads}", *this, "--gptq", str(spent), *files])
        report(
            f"gptq, ViT-S, 512 images, {scale}, {threads} threads: s, CPU s, MB",
            f"{cost.wall:.0f}, {cost.cpu:.0f}, {cost.peak / 1e6:.0f}",
            "-",
        )
        for label, seconds in json.loads(spent.read_text()).items():
            report(f"  {label}: s", f"{seconds:.1f}", "-")


def draw(folder: Path) -> None:
    """512 small images of noise in two classes."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in "ab":
        place = folder / "train" / label
        place.mkdir(parents=True)
        for i in range(256):
            pixels = rng.integers(0, 256, (64, 64, 3), np.uint8)
            Image.fromarray(pixels).save(place / f"{i}.png")


def main() -> None:
    """The work that needs a process of its own."""
    match sys.argv[1:]:
        case ["--outcome", *files]:
            print(json.dumps(outcome(*map(Path, files))))
        case ["--draw", folder]:
            draw(Path(folder))
        case ["--gptq", spent, source, images, out, scale]:
            seconds = watched(Path(source), Path(images), Path(out), scale)
            Path(spent).write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
