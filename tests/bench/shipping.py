"""What a buyer asks of a packed model: size, load time, memory and latency in three runtimes."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

NETWORKS = {"ViT-S": "vit_small_patch16_224", "ViT-B": "vit_base_patch16_224"}
WIDTHS = (32, 8, 4, 3, 2)  # 32: float
BATCHES = (1, 16)
THREADS = 2
TIMES = {1: 7, 16: 2}

Run = Callable[[Any], Any]
"""Of images, float32 [N, 3, 224, 224], the logits."""


def onnxruntime(path: str) -> Run:
    """A file, as its own runtime loads it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def openvino(path: str) -> Run:
    """The same in IR."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": THREADS, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda images: compiled([images])[0]


def transformers(path: str) -> Run:
    """A folder; weights that are unpacked at the first forward are unpacked."""
    import torch
    from transformers import AutoModelForImageClassification

    torch.set_num_threads(THREADS)
    network = AutoModelForImageClassification.from_pretrained(path).eval()

    def run(images: Any) -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(images)).logits.numpy()

    run(_images(1))
    return run


RUNTIMES = {"onnxruntime": onnxruntime, "openvino": openvino, "transformers": transformers}


def _images(batch: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).standard_normal((batch, 3, 224, 224), np.float32)


def child(runtime: str, path: str) -> None:
    """Measures one file in this process."""
    __import__("torch" if runtime == "transformers" else runtime)  # no part of a model's loading
    started = time.perf_counter()
    work = RUNTIMES[runtime](path)
    facts = {"load": time.perf_counter() - started}
    for batch in BATCHES:
        images = _images(batch)
        work(images)
        took = []
        for _ in range(TIMES[batch]):
            started = time.perf_counter()
            work(images)
            took.append(time.perf_counter() - started)
        facts[str(batch)] = statistics.median(took)
    facts["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(json.dumps(facts))


class Shipped(NamedTuple):
    """One file or folder, and what runs it."""

    runtime: str
    bits: int
    path: Path

    @property
    def megabytes(self) -> float:
        """Of all its files; of an .xml, with the .bin beside it."""
        files = [self.path, self.path.with_suffix(".bin")]
        files = [*self.path.iterdir()] if self.path.is_dir() else files
        return sum(file.stat().st_size for file in files if file.exists()) / 1e6

    def measured(self) -> dict[str, Any]:
        """Seconds and megabytes, in a process of its own."""
        words = [sys.executable, __file__, self.runtime, str(self.path)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return facts


def shipping(folder: Path, qvec: list[str], pair: Callable[..., None]) -> None:
    """Every width in every runtime, one after the other, each in a process of its own."""
    print(f"on {THREADS} threads, float32 arithmetic; medians of {TIMES} forwards", flush=True)
    print(f"{'':34}{'file':>9}{'load':>9}{'peak':>9}{'1 image':>10}{'16':>10}", flush=True)
    print(f"{'':34}{'MB':>9}{'s':>9}{'MB':>9}{'ms':>10}{'ms':>10}", flush=True)
    for label, name in NETWORKS.items():
        pair(folder, name)
        for model in _models(folder, qvec):
            took = model.measured()
            kind = "float32" if model.bits == max(WIDTHS) else f"{model.bits} bits"
            print(
                f"{f'{label}, {model.runtime}, {kind}':34}{model.megabytes:9.1f}"
                f"{took['load']:9.2f}{took['peak']:9.0f}"
                f"{1e3 * took['1']:10.1f}{1e3 * took['16']:10.1f}",
                flush=True,
            )


def _models(folder: Path, qvec: list[str]) -> Iterator[Shipped]:
    """The donor in every form, float and at each width."""

    def run(*words: str | Path) -> None:
        done = [*qvec, *map(str, words), "--force", "--quiet"]
        subprocess.run(done, check=True, stdout=subprocess.DEVNULL)

    source = folder / "donor.st"
    for bits in WIDTHS:
        packed, hub = folder / f"w{bits}.st", folder / f"hub{bits}"
        if bits == max(WIDTHS):
            packed = source
            run("quantize", source, "--bits", "8", "--fake", "-o", f"{hub}/")
        else:
            run("quantize", source, "--bits", str(bits), "-o", packed)
            run("quantize", source, "--bits", str(bits), "-o", f"{hub}/")
        run("export", packed, "--no-check", "-o", folder / f"onnx{bits}.onnx")
        run("export", packed, "--no-check", "-o", folder / f"ir{bits}.xml")
        yield Shipped("onnxruntime", bits, folder / f"onnx{bits}.onnx")
        yield Shipped("openvino", bits, folder / f"ir{bits}.xml")
        yield Shipped("transformers", bits, hub)


if __name__ == "__main__":
    child(*sys.argv[1:])
