"""Rotation leaves the function as it is: laws of the matrices, of every family, of the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import Drawer, call, without_torch
from safetensors.torch import load_file, save_file

from qvec_cli.calibration.moments_file import StoredMoments
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.inputs.rotated import rotated
from qvec_cli.model.configuration import Model
from qvec_cli.model.recognise import heads_of
from qvec_cli.quant.hadamard import Turn, has_hadamard
from qvec_cli.specs import Silence

ORDERS = (2, 12, 20, 24, 48, 64, 72, 88, 104, 192, 240, 384)
"""Of every kind: doublings of 1, and of Paley's 12, 20, 44, 60, 72 and 104."""

SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 96, "num_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "vit": ("vit_tiny_patch16_224", {**SMALL, "qk_norm": True}, ""),
    "averaged": ("vit_tiny_patch16_224", {**SMALL, "global_pool": "avg"}, ""),
    "deit": ("deit_tiny_distilled_patch16_224", SMALL, ""),
    "layer scale": ("deit3_small_patch16_224", SMALL, ""),
    "registers": ("vit_small_patch14_reg4_dinov2", {**SMALL, "img_size": 56}, ""),
    "attention pool": ("vit_base_patch16_siglip_224", SMALL, ""),
    "rms norm, qk norm": ("test_vit4", {}, ""),
    "hybrid": ("vit_tiny_r_s16_p8_224", SMALL, ""),
    "relative positions": ("vit_relpos_small_patch16_224", SMALL, ""),
    "beit": ("beit_base_patch16_224", SMALL, ""),
    "rope, swiglu": ("eva02_tiny_patch14_224", {**SMALL, "img_size": 56}, ""),
    "rope": ("vit_small_patch16_dinov3", {**SMALL, "img_size": 64}, ""),
    "class attention": ("cait_xxs24_224", SMALL, ""),
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (2, 2, 2, 2), "embed_dim": 48}, "stage 0"),
    "norm before": ("vit_base_patch16_clip_224", SMALL, "norm_pre stands before it"),
    "norm of patches": ("aimv2_large_patch14_224", {**SMALL, "img_size": 56}, "patch_embed.norm"),
    "norm after values": ("beit3_base_patch16_224", SMALL, "a norm follows them"),
    "largest of tokens": ("vit_tiny_patch16_224", {**SMALL, "global_pool": "max"}, "pools by max"),
    "no classifier": ("vit_tiny_patch16_224", {**SMALL, "num_classes": 0}, "no classifier"),
    "no such order": ("vit_tiny_patch16_224", {**SMALL, "embed_dim": 100}, "of order 100"),
}
"""A network of timm's of each kind, its arguments, and a word of what is not turned in it."""


def test_rotations_are_orthogonal_and_keep_the_vector_of_ones() -> None:
    for order in ORDERS:
        turn = Turn(order, seed=3)
        exact = turn.matrix().astype(np.float64)
        assert np.array_equal(exact, exact.T)
        whole = exact * order
        assert np.abs(whole - whole.round()).max() < 1e-4, "whole numbers up to a factor"
        rounded = whole.round() / order
        assert np.allclose(rounded @ rounded.T, np.eye(order), atol=1e-12)
        assert np.allclose(rounded.sum(axis=1), 1, atol=1e-12)
        per_head = Turn(order).matrix().astype(np.float64)
        assert np.allclose(per_head @ per_head.T, np.eye(order), atol=1e-6)
        assert not np.array_equal(turn.matrix(), Turn(order, seed=4).matrix()) or order == 2
    assert not any(map(has_hadamard, (3, 6, 28, 36, 100)))


def test_a_turn_is_its_matrix_along_any_axis() -> None:
    draws = np.random.default_rng(0)
    for order, seed, start in ((12, 0, 0), (16, None, 8), (24, 5, 24)):
        matrix = Turn(order, seed).matrix()
        for axis in range(3):
            shape = [5, 7, 3]
            shape[axis] = start + 2 * order
            array = draws.normal(size=shape).astype(np.float32)
            moved = np.moveaxis(array, axis, -1)
            blocks = [moved[..., start + n * order :][..., :order] @ matrix for n in range(2)]
            expected = np.concatenate([moved[..., :start], *blocks], axis=-1)
            turned = Turn(order, seed, start).along(array, axis)
            assert np.allclose(np.moveaxis(turned, axis, -1), expected, atol=1e-5)


def test_a_turn_is_exact_on_whole_numbers_whatever_lies_beside_them() -> None:
    """Sums of products in whole numbers, once more and elsewhere: no bit depends on their order."""
    draws = np.random.default_rng(0)
    for order in (*ORDERS, 768, 1024):
        numbers = draws.integers(-(1 << 20), 1 << 20, size=(3, order))
        whole = numbers.astype(np.float32)
        turn = Turn(order, seed=1)
        integers = (turn.matrix().astype(np.float64) * order).round().astype(np.int64)
        exact = ((numbers @ integers) / order).astype(np.float32)
        assert np.array_equal(turn.along(whole, 1), exact)
        assert np.array_equal(turn.along(whole.T.copy(), 0), exact.T)
        assert np.array_equal(turn.along(whole[:1], 1), exact[:1])
        tiled = np.tile(whole.T, (1, 1 + (1 << 18) // order))
        assert np.array_equal(turn.along(tiled, 0)[:, -3:], exact.T), "in another piece"


def test_small_vectors_are_turned_as_exactly_beside_large_ones() -> None:
    vectors = np.random.default_rng(0).normal(size=(4, 48)).astype(np.float32)
    sizes = np.array([1, 1e-12, 1e12, 0], np.float32)[:, None] ** np.float32(2)
    for turn in (Turn(48, 0), Turn(48)):
        exact = (vectors * sizes).astype(np.float64) @ turn.matrix().astype(np.float64)
        turned = turn.along(vectors * sizes, 1)
        assert (np.abs(turned - exact) <= 1e-6 * sizes).all()


def test_a_layernorm_without_affine_part_commutes_with_a_rotation() -> None:
    stream = torch.randn(50, 96, generator=torch.Generator().manual_seed(0)) + 3
    turn = torch.from_numpy(Turn(96, 0).matrix())
    norm = torch.nn.functional.layer_norm
    assert torch.allclose(norm(stream @ turn, (96,)), norm(stream, (96,)) @ turn, atol=1e-5)


def network_of(name: str, args: dict[str, Any], seed: int) -> torch.nn.Module:
    """A network none of whose vectors is at its start."""
    torch.manual_seed(seed)
    network = timm.create_model(name, **{"num_classes": 5, **args}).eval()
    with torch.no_grad():
        for parameter_name, parameter in network.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(0 if parameter_name.endswith("bias") else 1.2, 0.4)
            elif parameter_name.startswith("head"):
                parameter.normal_(0, 0.1)
    return network


@pytest.mark.parametrize("family", FAMILIES)
def test_the_function_stays_in_every_family(family: str, tmp_path: Path) -> None:
    name, args, kept = FAMILIES[family]
    network = network_of(name, args, seed=0)
    state = {n: t.clone() for n, t in network.state_dict().items()}
    path = tmp_path / "r.safetensors"
    save_file(state, path)
    side = args.get("img_size") or network.default_cfg["input_size"][-1]
    images = torch.randn(2, 3, side, side)
    listed = network.default_cfg["classifier"]
    heads = [listed] if isinstance(listed, str) else list(listed)
    seen: dict[str, torch.Tensor] = {}
    for head in (h for h in heads if isinstance(network.get_submodule(h), torch.nn.Linear)):
        network.get_submodule(head).register_forward_pre_hook(
            lambda _, args, head=head: seen.update({head: args[0]})
        )
    with torch.inference_mode():
        before = network(images)
    features, seen = seen, {}
    with Checkpoint(path) as theta:
        turned = rotated(theta, Model(name, 5, args, {}), 0, Silence())
        assert not kept or any(kept in reason for reason in turned.basis.kept)
        assert bool(turned.basis.turned) == (not kept or family in ("swin", "norm after values"))
        turned.place(network)
        with torch.inference_mode():
            network(images)
        for head, ours in seen.items():
            restored = torch.from_numpy(turned.restored(f"{head}.weight", ours.numpy()))
            largest = features[head].abs().max()
            assert (restored - features[head]).abs().max() < 1e-5 * largest
    changed = [n for n, t in network.state_dict().items() if not torch.equal(t, state[n])]
    with torch.inference_mode():
        apart = (network(images) - before).abs().max() / before.abs().max()
    assert len(changed) > len(state) / 3
    assert apart < 1e-5


def test_what_is_not_of_such_blocks_is_refused_by_name(drawer: Drawer, tmp_path: Path) -> None:
    assert heads_of("vit_base_patch16_rpn_224") is None, "its norms stand behind"
    assert heads_of("swin_tiny_patch4_window7_224") == [3, 6, 12, 24]
    network = timm.create_model("test_resnet", num_classes=3)
    save_file(network.state_dict(), tmp_path / "resnet.safetensors")
    save_file({"x.weight": torch.zeros(3, 4)}, tmp_path / "odd.safetensors")
    call("rotate", drawer.receiver, "-o", tmp_path / "r.st")
    call("quantize", drawer.receiver, "--bits", 2, "-o", tmp_path / "q.st")
    call("moments", drawer.donor, "--data", drawer.donor_data, "-o", tmp_path / "m.st")
    gptq = ("--bits", 2, "--method", "gptq", "--moments", tmp_path / "m.st")
    lines: dict[tuple[object, ...], str] = {
        ("rotate", tmp_path / "resnet.safetensors"): "test_resnet cannot be rotated: its blocks",
        ("rotate", tmp_path / "odd.safetensors"): "does not say its architecture",
        ("rotate", tmp_path / "r.st"): "is rotated already",
        ("rotate", tmp_path / "q.st"): "is quantized already",
        ("rotate", drawer.rho): "is a vector",
        ("quantize", tmp_path / "r.st", "--bits", 2, "--rotate"): "is rotated already",
        ("quantize", tmp_path / "r.st", *gptq): "is rotated, ",
        ("patch", tmp_path / "r.st", drawer.rho): "is rotated, ",
        ("extract", tmp_path / "r.st", drawer.donor_qat): "is rotated, ",
    }
    out = [[*map(str, line), "-o", str(tmp_path / "out.st")] for line in lines]
    for result, expected in zip(without_torch(out), lines.values(), strict=True):
        assert result.code == 1
        assert expected in result.err
        assert "hint: " in result.err
    assert "Patch first, then rotate" in without_torch([out[-2]])[0].err
    assert not (tmp_path / "out.st").exists()


ODD: dict[str, tuple[str, tuple[int, ...] | None]] = {
    "no norm": ("blocks.0.norm1.weight", None),
    "no reader": ("blocks.0.attn.qkv.weight", None),
    "no projection": ("blocks.0.attn.proj.weight", None),
    "a short norm": ("blocks.0.norm1.weight", (7,)),
    "a short bias of a norm": ("blocks.0.norm1.bias", (7,)),
    "a short bias": ("blocks.0.mlp.fc1.bias", (7,)),
    "a narrow matrix": ("blocks.0.attn.qkv.weight", (192, 50)),
    "a convolution": ("blocks.0.mlp.fc1.weight", (192, 64, 1, 1)),
    "a number": ("blocks.0.norm1.weight", ()),
    "nothing": ("blocks.0.norm1.weight", (0,)),
}
"""A tensor that is missing, or of another shape."""


def test_tensors_that_do_not_fit_are_refused_by_name_and_quantized_as_they_are(
    drawer: Drawer, tmp_path: Path
) -> None:
    with Checkpoint(drawer.receiver) as theta:
        state = {name: torch.from_numpy(theta.array(name)) for name in theta}
        header, args = theta.card.to_header(), dict(theta.card.model or {})
    header.pop("qvec.digest"), header.pop("qvec.targets")
    lines, named = [], []
    for place, (name, shape) in enumerate(ODD.values()):
        odd = {n: t for n, t in state.items() if n != name}
        if shape is not None:
            odd[name] = torch.ones(shape)
        save_file(odd, tmp_path / f"{place}.st", header)
        named.append("blocks.0.")
    for heads in (0, -3, 2.5, True, "x", []):
        model = {**args, "model_args": {**args["model_args"], "num_heads": heads}}
        path = tmp_path / f"{len(named)}.st"
        save_file(state, path, {**header, "timm": json.dumps(model)})
        named.append(f"num_heads {heads!r}")
    for place in range(len(named)):
        file, out = tmp_path / f"{place}.st", tmp_path / f"{place}_out.st"
        lines += [["rotate", file, "-o", out], ["quantize", file, "--bits", 3, "-o", out]]
    results = without_torch(lines)
    for name, refused, plain in zip(named, results[::2], results[1::2], strict=True):
        assert refused.code == 1
        assert refused.errors[0].startswith("error: ")
        assert name in refused.errors[0]
        assert plain.code == 0, plain


def test_what_overflows_if_rotated_is_quantized_as_it_is(drawer: Drawer, tmp_path: Path) -> None:
    with Checkpoint(drawer.receiver) as theta:
        state = {name: torch.from_numpy(theta.array(name)) for name in theta}
        header = theta.card.to_header()
    del header["qvec.digest"]
    for name in theta.card.targets or ():
        state[name] = state[name] / state[name].abs().max() * 3e38
    save_file(state, tmp_path / "large.st", header)
    refused = call("rotate", tmp_path / "large.st", "-o", tmp_path / "r.st", code=1)
    assert "overflows F32 if rotated" in refused.errors[0]
    flags = ("--bits", 3, "--scale-dtype", "float32")
    call("quantize", tmp_path / "large.st", *flags, "-o", tmp_path / "q.st", code=None)
    assert (tmp_path / "q.st").exists()


def test_rotate_then_quantize_is_quantize_rotate(drawer: Drawer, tmp_path: Path) -> None:
    """Without torch, and with images through the rotated network."""
    turned = tmp_path / "turned.st"
    call("rotate", drawer.receiver, "-o", turned)
    images = ("--method", "gptq", "--calib", "noise", "--calib-samples", 16)
    said = ("--bits", 3, "--scale", "mse")
    for flags in (("--bits", 3), said, (*said, *images), (*said, *images, "--target", "float")):
        call("quantize", turned, *flags, "-o", tmp_path / "first.st", "--force")
        call("quantize", drawer.receiver, *flags, "--rotate", "-o", tmp_path / "q.st", "--force")
        first, second = (load_file(tmp_path / name) for name in ("first.st", "q.st"))
        assert all(torch.equal(first[name], second[name]) for name in first)
        call("quantize", drawer.receiver, *flags, "-o", tmp_path / "plain.st", "--force")
        plain = load_file(tmp_path / "plain.st")
        assert not all(torch.equal(first[name], plain[name]) for name in first)


def test_a_vector_is_added_before(drawer: Drawer, tmp_path: Path) -> None:
    call("patch", drawer.receiver, drawer.rho, "-o", tmp_path / "patched.st")
    flags = ("--bits", 3, "--rotate", "--cross-grid", "-o")
    call("quantize", tmp_path / "patched.st", *flags, tmp_path / "chain.st")
    call("quantize", drawer.receiver, "--anchor", drawer.rho, *flags, tmp_path / "anchor.st")
    chain, anchor = (load_file(tmp_path / f"{name}.st") for name in ("chain", "anchor"))
    assert all(torch.equal(chain[name], anchor[name]) for name in chain)


def test_moments_are_carried_over(drawer: Drawer, tmp_path: Path) -> None:
    """In closed form they are those that the rotated network's images give."""
    data = ("--data", drawer.donor_data, "--samples", 16)
    call("rotate", drawer.donor, "-o", tmp_path / "turned.st")
    call("moments", drawer.donor, *data, "-o", tmp_path / "m.st")
    call("moments", tmp_path / "turned.st", *data, "-o", tmp_path / "turned_m.st")
    paths = (drawer.donor, tmp_path / "m.st", tmp_path / "turned_m.st")
    theta, plain, turned = map(Checkpoint, paths)
    source, stored, expected = (
        rotated(theta, None, 0, Silence()),
        StoredMoments(plain),
        StoredMoments(turned),
    )
    for name in theta.card.targets or ():
        carried, collected = source.inputs(name, stored.inputs(name)), expected.inputs(name)
        scale = np.abs(collected.moment).max()
        assert np.abs(carried.moment - collected.moment).max() < 1e-4 * scale, name
        assert np.abs(carried.mean - collected.mean).max() < 1e-3 * np.sqrt(scale), name
    for file in (theta, plain, turned):
        file.close()
    gptq = ("--bits", 2, "--method", "gptq", "--rotate", "--moments", tmp_path / "m.st")
    assert call("quantize", drawer.donor, *gptq, "-o", tmp_path / "q.st").code == 0


@pytest.mark.slow
def test_a_rotated_file_goes_through_every_command(drawer: Drawer, tmp_path: Path) -> None:
    turned, data = tmp_path / "turned.st", ("--data", drawer.receiver_data)
    document = call("rotate", drawer.receiver, "-o", turned, "--json").json
    assert document["results"]["turned"] == [64]
    assert document["data_use"]["level"] == "none"
    assert "rotated with seed 0" in call("inspect", turned).out
    first, second = (call("eval", path, *data, "--json").json for path in (drawer.receiver, turned))
    assert first["results"]["n_correct"] == second["results"]["n_correct"]
    assert call("export", turned, "-o", tmp_path / "t.onnx").code == 0
    call("export", turned, "--to", "timm", "-o", tmp_path / "timm")
    network = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    state = load_file(turned)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


@pytest.mark.slow
def test_advise_takes_a_rotated_receiver(drawer: Drawer, tmp_path: Path) -> None:
    """And leaves out what would rotate it again."""
    call("rotate", drawer.receiver, "-o", tmp_path / "r.st")
    flags = ("--bits", 3, "--proxy-samples", 16, "--refine", 0, "--json")
    results = call("advise", tmp_path / "r.st", *flags).json["results"]
    assert all("is rotated already" in row["reason"] for row in results["skipped"])
    assert len(results["skipped"]) == 1


def test_what_is_trained_in_a_rotated_basis_stays_in_it(drawer: Drawer, tmp_path: Path) -> None:
    """So twins that start from a rotated base give a vector for rotated receivers."""
    base, data = tmp_path / "base.st", ("--data", drawer.donor_data)
    call("rotate", drawer.base, "-o", base)
    fast = ("--no-aug", "--epochs", 1, "--batch-size", 45, "--device", "cpu")
    call("finetune", base, *data, *fast, "-o", tmp_path / "d.st")
    call("train-qat", base, *data, *fast, "--bits", 3, "-o", tmp_path / "q.st")
    call("finetune", base, "--data", drawer.receiver_data, *fast, "-o", tmp_path / "r.st")
    call("extract", tmp_path / "d.st", tmp_path / "q.st", "-o", tmp_path / "rho.st")
    done = call("patch", tmp_path / "r.st", tmp_path / "rho.st", "-o", tmp_path / "p.st")
    assert done.code == 0
    for name in ("d", "q", "r", "rho", "p"):
        with Checkpoint(tmp_path / f"{name}.st") as file:
            assert file.card.rotation == {"seed": 0, "turned": [64], "kept": []}
    refused = call("patch", drawer.receiver, tmp_path / "rho.st", "-o", tmp_path / "x.st", code=1)
    assert "is not: their tensors do not belong together" in refused.err


def test_a_basis_does_not_depend_on_threads_or_order(
    drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["rotate", str(drawer.receiver), "--force", "-o"]
    for threads in ("1", "2"):
        out = str(tmp_path / f"{threads}.st")
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", threads)
        (result,) = without_torch([[*line, out]])
        assert result.code == 0
    assert (tmp_path / "1.st").read_bytes() == (tmp_path / "2.st").read_bytes()
    with Checkpoint(drawer.receiver) as theta:
        turned = rotated(theta, None, 0, Silence())
        names = sorted(turned.basis.changes, reverse=True)
        arrays = {name: turned.finite(name) for name in names}
        with Checkpoint(tmp_path / "1.st") as written:
            assert all(np.array_equal(written.finite(n), arrays[n]) for n in names)
