"""Export as a folder for transformers.js, in Node and in browsers.

Its image processor only decodes: the graph prepares the images (export/preparation.py), because
Node resizes them with one library, a browser with its canvas, and neither as networks are trained.
So their answers are those of ``qvec eval``.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qvec_cli.checkpoint.locate import PROCESSOR
from qvec_cli.checkpoint.replace import dump, replacing
from qvec_cli.checkpoint.whole_folder import replacing_folder
from qvec_cli.data.noise import NoiseImages
from qvec_cli.data.pixels import to_mode
from qvec_cli.errors import MismatchError, located
from qvec_cli.export import onnx
from qvec_cli.export.form import IMAGES, ExportSource, ExportTarget, Form, compare
from qvec_cli.export.preparation import Preparation
from qvec_cli.model import build
from qvec_cli.model.configuration import Model
from qvec_cli.outputs.hf_folder import CONFIG, check_output
from qvec_cli.specs import Listener

if TYPE_CHECKING:
    from torch import Tensor, nn

GRAPHS: Final = "onnx"
"""The folder in the folder."""

_DTYPES: Final = {0: ("fp32", ""), 2: ("q2", "_q2"), 4: ("q4", "_q4"), 8: ("q8", "_quantized")}
"""By the widest field of packed weights: transformers.js's word, and how its file's name ends."""

_KIND: Final = "vit"
"""transformers.js chooses by it a class that runs one graph from pixel_values to logits, and
refuses words that it does not know, as those of most networks. Nothing else hangs on it."""

_PROCESSOR: Final = {
    "image_processor_type": "ViTImageProcessor",
    "do_convert_rgb": True,
    "do_resize": False,
    "do_center_crop": False,
    "do_rescale": False,
    "do_normalize": False,
}


def refuse(target: ExportTarget) -> None:
    """Refuses a folder that could not be written afterwards."""
    check_output(target.out, folder=True, force=target.force, names=(CONFIG, PROCESSOR))


def require(source: ExportSource) -> None:
    """Refuses a network that tells no classes apart, or whose images no graph prepares."""
    if source.model.num_classes == 0:
        raise MismatchError(
            f"{source.checkpoint.path}: has no classes, which transformers.js is to tell apart",
            hint="--to onnx takes it.",
        )
    with located(source.checkpoint.path):
        Preparation.of(source.model)


def config(source: ExportSource, dtype: str) -> dict[str, Any]:
    """The document of the network."""
    names = source.classes or [f"LABEL_{index}" for index in range(source.model.num_classes)]
    return {
        "model_type": _KIND,
        "architectures": ["ViTForImageClassification"],
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        "transformers.js_config": {"dtype": dtype},
    }


def write(
    source: ExportSource, network: nn.Module, target: ExportTarget, listener: Listener
) -> dict[str, Any]:
    """Writes the folder once onnxruntime has answered as our network does, from levels on.
    Raises QvecError: a network that cannot be exported, or is another one afterwards.
    """
    graph = onnx.exported(source, network, listener)
    content = Preparation.of(source.model).prepended(graph.content)
    listener.progress("part 2/3: check", onnx.GRAPH, onnx.WHOLE)
    checked = None
    if onnx.is_run(target, listener):
        levels, prepared = _pictures(source.model)
        theirs = onnx.answers(content)
        checked = compare(target, prepared, network, lambda _: theirs(levels), onnx.BOUND)
    listener.progress("part 3/3: file", onnx.GRAPH + 1, onnx.WHOLE)
    dtype, suffix = _DTYPES[max((form.bits for form in graph.layouts.values()), default=0)]
    name = f"model{suffix}.onnx"
    files = {CONFIG: config(source, dtype), PROCESSOR: _PROCESSOR}
    size = _write(target, {n: dump(file).encode() for n, file in files.items()}, name, content)
    listener.progress("written", onnx.WHOLE, onnx.WHOLE)
    return {
        "digest": hashlib.sha256(content).hexdigest(),
        "bytes_after": size,
        "model": f"{GRAPHS}/{name}",
        "dtype": dtype,
        **graph.facts(),
        "check": checked,
    }


FORM: Final = Form(refuse, onnx.fate, write, needs=("onnx", "onnxscript"), require=require)


def _write(target: ExportTarget, files: Mapping[str, bytes], name: str, graph: bytes) -> int:
    """Writes the files, the graph among other graphs that are there; returns their bytes."""
    with replacing_folder(target.out, force=target.force) as new:
        graphs, others = new / GRAPHS, target.out / GRAPHS
        if others.is_dir():
            shutil.copytree(others, graphs, symlinks=True)
        graphs.mkdir(exist_ok=True)
        for path, content in {**files, f"{GRAPHS}/{name}": graph}.items():
            with replacing(new / path, force=True) as file:
                file.write(content)
    return len(graph) + sum(map(len, files.values()))


def _pictures(model: Model) -> tuple[Tensor, Tensor]:
    """Pictures as levels [N, 3, H, W], and as ``eval`` shows them to the network."""
    import torch

    noise = NoiseImages(max(model.input_size[1:]) + 9)  # so that they are resized, and cropped
    pictures = [noise.load(index) for index in range(IMAGES)]
    transform, normalise = build.transform(model, augment=False), build.normalise(model)
    prepared = [transform(to_mode(picture, model.channels)) for picture in pictures]
    levels = [torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures]
    return torch.stack(levels).float(), normalise(torch.stack(prepared))
