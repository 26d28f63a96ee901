"""export --to transformers.js: Node and a browser tell what eval tells."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import Drawer, call, light
from PIL import Image
from test_export import made

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import MismatchError
from qvec_cli.export import onnx as onnx_export
from qvec_cli.export.preparation import Preparation
from qvec_cli.inputs.files import model_of
from qvec_cli.inputs.network import load_network
from qvec_cli.model import build
from qvec_cli.model.configuration import Model
from qvec_cli.outputs.metrics import SCHEMA_FILE

ROOT = Path(__file__).parents[1]
NODE = ROOT / ".bench" / "node"
TINY = ROOT / "examples" / "tiny"
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
# No image is more than twice as high as wide: there Pillow 13 resizes columns before rows.
SIZES = ((28, 28), (29, 31), (33, 500), (90, 301), (64, 64), (5, 7))
TO = ("--to", "transformers.js")


def model(**data: Any) -> Model:
    """A network whose images are prepared so."""
    channels = data.pop("channels", 3)
    side = data.pop("side", (64, 64))
    numbers = {"mean": [0.485, 0.456, 0.4][:channels], "std": [0.2, 0.3, 0.4][:channels]}
    words = {"crop_mode": "center", "crop_pct": 0.9, "interpolation": "bicubic", **numbers, **data}
    return Model("test_vit", 4, {}, {"input_size": [channels, *side], **words})


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["center", "squash"])
def test_the_graph_prepares_the_very_pixels_of_eval(
    interpolation: str, channels: int, mode: str
) -> None:
    rng = np.random.default_rng(0)
    sides = ((28, 28), (47, 47)) if mode == "center" else ((32, 20),)
    for side, share in ((side, share) for side in sides for share in (0.875, 1.0)):
        words: dict[str, Any] = {"interpolation": interpolation, "crop_mode": mode}
        wanted = model(channels=channels, side=side, crop_pct=share, **words)
        graph = Preparation.of(wanted).graph().SerializeToString()
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        transform = build.transform(wanted, augment=False)
        for height, width in SIZES:
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
            ours = build.normalise(wanted)(transform(image)[None]).numpy()
            levels = pixels.transpose(2, 0, 1)[None].astype(np.float32)
            (theirs,) = session.run(None, {"pixel_values": levels})
            assert np.array_equal(theirs, ours), (side, share, height, width)


@pytest.fixture(scope="module")
def packed(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained receiver at 2 bits."""
    path = tmp_path_factory.mktemp("packed") / "receiver_w2.st"
    call("quantize", drawer.receiver, "--bits", 2, "-o", path)
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_folder_holds_the_graph_its_classes_and_a_processor_that_leaves_levels_alone(
    drawer: Drawer, packed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "web"
    document = call("export", packed, *TO, "-o", out, "--json").json
    jsonschema.validate(document, json.loads(SCHEMA_FILE.read_text()))
    results, files = document["results"], files_of(out)
    assert set(files) == {"config.json", "preprocessor_config.json", "onnx/model_q2.onnx"}
    assert (results["model"], results["dtype"]) == ("onnx/model_q2.onnx", "q2")
    assert results["bytes_after"] == sum(map(len, files.values()))
    assert results["check"]["max_abs_diff"] <= 1e-5 * results["check"]["max_abs_logit"]
    config = json.loads(files["config.json"])
    assert config["id2label"] == {"0": "a", "1": "b", "2": "c", "3": "d"}
    assert config["transformers.js_config"] == {"dtype": "q2"}
    assert config["model_type"] == "vit"
    processor = json.loads(files["preprocessor_config.json"])
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    assert [processor[step] for step in steps] == [False] * 4
    whole = onnx.load_model_from_string(files["onnx/model_q2.onnx"])
    onnx.checker.check_model(whole)
    assert [value.name for value in (*whole.graph.input, *whole.graph.output)] == [
        *("pixel_values", "logits")
    ]
    facts = {fact.key for fact in whole.metadata_props}
    assert {"qvec.digest", "classes"} < facts
    assert not facts & {"mean", "std"}

    again = tmp_path / "again"
    call("export", packed, *TO, "-o", again, "--no-check")
    assert files_of(again) == files
    # Graphs of other widths stand beside each other; what is written comes by --force only.
    assert "exists" in call("export", drawer.receiver, *TO, "-o", out, code=1).errors[0]
    assert files_of(out) == files
    (out / "mine.txt").write_text("mine")
    call("export", drawer.receiver, *TO, "-o", out, "--force")
    both = files_of(out)
    assert set(both) == {*files, "onnx/model.onnx", "mine.txt"}
    assert both["onnx/model_q2.onnx"] == files["onnx/model_q2.onnx"]
    assert json.loads(both["config.json"])["transformers.js_config"] == {"dtype": "fp32"}


def test_logits_that_would_be_others_are_a_fault_and_nothing_is_written(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "BOUND", 1e-12)
    refused = call("export", packed, *TO, "-o", tmp_path / "web", code=1)
    assert "its logits on random images would be off by" in refused.errors[0]
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_said_is_refused_before_torch(packed: Path, tmp_path: Path) -> None:
    pair, out = made("two channels", tmp_path / "pair.st"), tmp_path / "web"
    refusals: list[tuple[int, str, tuple[object, ...]]] = [
        (1, "pair.st: 2 channels: a graph cannot prepare", (pair, "-o", out)),
        (2, "no stream can take", (packed, "-o", "-")),
        (1, "is no folder", (packed, "-o", pair)),
    ]
    for code, reason, args in refusals:
        left, heavy, said = light("export", *args, *TO)
        assert (left, heavy) == (code, [])
        assert reason in said[0], said
    assert [path.name for path in tmp_path.iterdir()] == ["pair.st"]
    for words in ({"crop_mode": "border"}, {"crop_pct": 1.1}, {"interpolation": "lanczos"}):
        with pytest.raises(MismatchError, match="a graph cannot prepare images so"):
            Preparation.of(model(**words))


# --- Node and a browser, on the tiny example's images ---------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, str]]]:
    """A place with folders q2 and q4 and test images, and what eval's network says of each."""
    root = tmp_path_factory.mktemp("tiny")
    script = [sys.executable, str(TINY / "images.py"), str(root / "images"), "--tasks", "digits"]
    subprocess.run(script, check=True, capture_output=True)
    data, float_file = root / "images" / "digits", root / "digits.st"
    training = ("--recipe", TINY / "recipe.yaml", "--device", "cpu", "-o", float_file)
    call("finetune", TINY / "base.st", "--data", data, *training)
    answers: dict[str, dict[str, str]] = {}
    for name, bits in (("q2", 2), ("q4", 3)):
        source = root / f"{name}.st"
        call("quantize", float_file, "--bits", bits, "-o", source)
        call("export", source, *TO, "-o", root / name)
        answers[name] = eval_says(source, data)
    paths = sorted(answers["q2"])
    (root / "images.json").write_text(json.dumps(paths))
    return root, answers


def eval_says(source: Path, data: Path) -> dict[str, str]:
    """The class of each test image, whose number of right ones is eval's."""
    with Checkpoint(source) as checkpoint:
        wanted, classes = model_of(checkpoint), checkpoint.classes
        network = load_network(checkpoint, wanted, "cpu").eval()
    assert classes
    transform, normalise = build.transform(wanted, augment=False), build.normalise(wanted)
    paths = sorted((data / "test").glob("*/*.png"))
    images = torch.stack([transform(Image.open(path).convert("L")) for path in paths])
    with torch.inference_mode():
        places = network(normalise(images)).argmax(1).tolist()
    says = {
        str(path.relative_to(data / "test")): classes[place]
        for path, place in zip(paths, places, strict=True)
    }
    score = call("eval", source, "--data", data, "--json").json["results"]
    right = sum(Path(path).parent.name == name for path, name in says.items())
    assert (right, len(says)) == (score["n_correct"], score["n"])
    assert len(says) > right > len(says) / 2
    return says


CLASSIFY = """
env.allowRemoteModels = false;
env.allowLocalModels = true;
const answers = {};
for (const name of ["q2", "q4"]) {
  const classify = await pipeline("image-classification", name, options);
  answers[name] = {};
  for (const path of paths)
    answers[name][path] = (await classify(images + path, { top_k: 1 }))[0].label;
}
"""

NODE_SCRIPT = f"""
import fs from "node:fs";
import {{ pipeline, env }} from "@huggingface/transformers";
const [root, images, options] = [process.argv[2], process.argv[3], {{}}];
env.localModelPath = root;
const paths = JSON.parse(fs.readFileSync(root + "/images.json"));
{CLASSIFY}
fs.writeFileSync(root + "/node.json", JSON.stringify(answers));
"""

PAGE = f"""<!doctype html>
<script type="importmap">{{"imports": {{
  "onnxruntime-common": "/node_modules/onnxruntime-common/dist/esm/index.js",
  "onnxruntime-web/webgpu": "/node_modules/onnxruntime-web/dist/ort.webgpu.bundle.min.mjs",
  "@huggingface/transformers":
    "/node_modules/@huggingface/transformers/dist/transformers.web.min.js"
}}}}</script>
<script type="module">
const send = (it) => fetch("/answer", {{ method: "POST", body: JSON.stringify(it) }});
try {{
  const {{ pipeline, env }} = await import("@huggingface/transformers");
  const [images, options] = ["/images/digits/test/", {{ device: "wasm" }}];
  env.localModelPath = "/";
  env.backends.onnx.wasm.wasmPaths = "/node_modules/onnxruntime-web/dist/";
  const paths = await (await fetch("/images.json")).json();
  {CLASSIFY}
  await send(answers);
}} catch (fault) {{
  await send({{ fault: String(fault) }});
}}
</script>
"""


@pytest.fixture
def modules() -> Path:
    """Where npm has put transformers.js."""
    path = NODE / "node_modules"
    if not (path / "@huggingface" / "transformers").is_dir():
        pytest.skip("make slow installs transformers.js in .bench/node")
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_node_tells_what_eval_tells(
    tiny: tuple[Path, dict[str, dict[str, str]]], modules: Path
) -> None:
    root, ours = tiny
    script = NODE / "classify.mjs"  # beside the modules that it imports
    script.write_text(NODE_SCRIPT)
    images = str(root / "images" / "digits" / "test") + "/"
    subprocess.run([str(NODE / "bin" / "node"), script, f"{root}/", images], check=True)
    assert json.loads((root / "node.json").read_text()) == ours


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_page_tells_what_eval_tells(
    tiny: tuple[Path, dict[str, dict[str, str]]], modules: Path
) -> None:
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser is installed: one of {', '.join(BROWSERS)}")
    root, ours = tiny
    (root / "page.html").write_text(PAGE)
    (root / "node_modules").symlink_to(modules)
    with serving(root) as (address, answers, arrived):
        only_here = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        flags = ("--headless", "--no-sandbox", "--disable-gpu", only_here)
        process = subprocess.Popen(
            [browser, *flags, f"{address}/page.html"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            assert arrived.wait(600), "the page did not answer"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    assert answers == [ours]


@contextlib.contextmanager
def serving(root: Path) -> Iterator[tuple[str, list[Any], threading.Event]]:
    """A server of a folder; what a page posts to it, and when it has."""
    answers: list[Any] = []
    arrived = threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map: ClassVar[dict[str, str]] = {
            **http.server.SimpleHTTPRequestHandler.extensions_map,
            ".mjs": "text/javascript",
            ".wasm": "application/wasm",
        }

        def do_POST(self) -> None:
            answers.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            arrived.set()

        def log_message(self, *args: Any) -> None: ...

    handler = functools.partial(Handler, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", answers, arrived
        finally:
            server.shutdown()
            thread.join()
