"""Stock transformers with compressed-tensors, in a venv of its own, loads folders to our logits."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import NETWORKS, Drawer, bare, call
from PIL import Image
from safetensors.torch import load_file, save_file

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.inputs.files import model_of
from qvec_cli.inputs.network import load_network
from qvec_cli.model import build

PEER = Path(__file__).parents[1] / ".bench" / "ct" / "bin" / "python"
BITS = (2, 3, 4, 8)
BLOCKS: dict[str, tuple[object, ...]] = {
    "channel": ("--granularity", "channel"),
    "group": ("--group-size", 16),
    "tensor": ("--granularity", "tensor"),
}
GRIDS: dict[str, tuple[object, ...]] = {
    f"{bits}-bit {block}{zero}": ("--bits", bits, *flags, f"--{zero.strip() or 'symmetric'}")
    for bits in BITS
    for block, flags in BLOCKS.items()
    for zero in ("", " asymmetric")
}
GRIDS["3-bit float16 scales"] = ("--bits", 3, "--symmetric", "--scale-dtype", "float16")
GRIDS["2-bit mse-full"] = ("--bits", 2, "--scale", "mse-full", "--granularity", "channel")
GRIDS |= {f"{bits}-bit, nothing else said": ("--bits", bits) for bits in (2, 3)}
GRIDS["some targets"] = ("--bits", 3, "--targets", "*.fc1.weight")
GRIDS["fake"] = ("--bits", 3, "--fake")
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
REAL = tuple(name for name, _, _ in NETWORKS.values())
"""In their own size, where products with one image hang on where in memory a matrix starts."""

ASKED = [name for name in GRIDS if name.endswith((" channel", " group"))]
FAMILIES = {
    **{family: list(GRIDS) for family in [*NETWORKS, *HALVES, "carded"]},
    **dict.fromkeys(REAL, ASKED),
    "swinv2_tiny_window8_256": ["3-bit channel"],  # asks for its weights before the first forward
}
CASES = [f"{family}, {grid}" for family, grids in FAMILIES.items() for grid in grids]

_LOAD = """
import json, logging, sys, warnings
from pathlib import Path
import numpy, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

complaints = []
class Listening(logging.Handler):
    def emit(self, record):
        complaints.append(record.getMessage())
for name in ("transformers", "compressed_tensors"):
    logging.getLogger(name).addHandler(Listening(logging.WARNING))
torch.set_num_threads(1)
for folder in map(Path, sys.argv[1:]):
    complaints.clear()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        network, info = AutoModelForImageClassification.from_pretrained(
            folder, output_loading_info=True
        )
        network.eval()
        images = torch.from_numpy(numpy.load(folder.parent / "images.npy"))
        with torch.no_grad():
            logits = torch.cat([network(images).logits, network(images[:1]).logits])
    heard = [*complaints, *(str(warning.message) for warning in warned)]
    processor = AutoImageProcessor.from_pretrained(folder)
    with Image.open(folder.parent / "image.png") as image:
        pixels = processor(image)["pixel_values"]
    numpy.savez(folder / "theirs.npz", logits=logits.numpy(), pixels=pixels.numpy())
    facts = {
        "info": {key: sorted(map(str, value)) for key, value in info.items() if value},
        "complaints": heard,
        "labels": list(network.config.id2label.values()),
    }
    (folder / "theirs.json").write_text(json.dumps(facts))
"""


@dataclass(frozen=True)
class Loaded:
    """One folder, as both sides have it."""

    ours: np.ndarray[Any, Any]
    theirs: np.ndarray[Any, Any]
    our_pixels: np.ndarray[Any, Any]
    their_pixels: np.ndarray[Any, Any]
    facts: dict[str, Any]


def source(family: str, root: Path, drawer: Drawer) -> tuple[object, ...]:
    """A float file, and the flags that tell its network."""
    if family == "carded":
        return (drawer.receiver,)
    path = root / f"{family}.st"
    flags = bare("vit" if family in HALVES else family, path)
    if family in HALVES:
        save_file({n: t.to(HALVES[family]) for n, t in load_file(path).items()}, path)
    return (path, *flags)


@pytest.fixture(scope="module")
def loaded(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    """Every case, loaded by one process of the peer."""
    root, ours, folders = tmp_path_factory.mktemp("stock"), {}, {}
    rng = np.random.default_rng(0)
    for family, grids in FAMILIES.items():
        home = root / family
        home.mkdir()
        size = NETWORKS[family][1] if family in NETWORKS else 32
        size = int(family[-3:]) if family[-3:].isdigit() else size
        images = rng.normal(size=(3, 3, size, size)).astype(np.float32)
        np.save(home / "images.npy", images)
        picture = Image.fromarray(rng.integers(0, 256, (90, 120, 3)).astype(np.uint8))
        picture.save(home / "image.png")
        float_file = source(family, root, drawer)
        for grid in grids:
            folder = home / grid.replace(" ", "-")
            call("quantize", *float_file, *GRIDS[grid], "-o", f"{folder}/")
            with Checkpoint(folder) as checkpoint, torch.no_grad():
                model = model_of(checkpoint)
                network = load_network(checkpoint, model, "cpu").eval()
                batch = torch.from_numpy(images)
                logits = torch.cat([network(batch), network(batch[:1])]).numpy()
            raw = build.transform(model, augment=False)(picture)
            pixels = build.normalise(model)(torch.as_tensor(raw)[None]).numpy()
            folders[f"{family}, {grid}"] = folder
            ours[f"{family}, {grid}"] = logits, pixels
    command = [str(PEER), "-c", _LOAD, *map(str, folders.values())]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    results = {}
    for case, folder in folders.items():
        with np.load(folder / "theirs.npz") as theirs:
            arrays = theirs["logits"], theirs["pixels"]
        facts = json.loads((folder / "theirs.json").read_text())
        results[case] = Loaded(ours[case][0], arrays[0], ours[case][1], arrays[1], facts)
    return results


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),  # the first test waits for all folders
    pytest.mark.skipif(not PEER.exists(), reason="no .bench/ct, where make slow puts the peer"),
]


@pytest.mark.parametrize("case", CASES)
def test_the_stock_loader_gives_the_logits_of_eval_bit_for_bit(
    case: str, loaded: dict[str, Loaded]
) -> None:
    pair = loaded[case]
    assert pair.ours.std() > 0
    assert pair.theirs.dtype == np.float32
    np.testing.assert_array_equal(pair.theirs, pair.ours)


@pytest.mark.parametrize("case", CASES)
def test_the_stock_loader_misses_nothing_and_finds_nothing_strange(
    case: str, loaded: dict[str, Loaded]
) -> None:
    assert loaded[case].facts["info"] == {}
    assert loaded[case].facts["complaints"] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_its_image_processor_prepares_images_as_eval_does(
    family: str, loaded: dict[str, Loaded]
) -> None:
    pair = loaded[f"{family}, 3-bit channel"]
    np.testing.assert_array_equal(pair.their_pixels, pair.our_pixels)


def test_its_labels_are_the_classes_of_the_card(loaded: dict[str, Loaded]) -> None:
    assert loaded["carded, 3-bit channel"].facts["labels"] == ["a", "b", "c", "d"]


def test_grids_differ_in_their_logits(loaded: dict[str, Loaded]) -> None:
    """Or equal logits would say little."""
    for family, grids in FAMILIES.items():
        logits = [loaded[f"{family}, {grid}"].ours.tobytes() for grid in grids if grid != "fake"]
        assert len(set(logits)) == len(logits)
