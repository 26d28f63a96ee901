"""extract and patch: the identities of the arithmetic, on files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from conftest import Drawer, call
from safetensors.numpy import load_file, save_file

from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import BLOCK, Checkpoint
from qvec_cli.checkpoint.write import write

Arrays = dict[str, np.ndarray]


def body(arrays: Mapping[str, np.ndarray]) -> Arrays:
    return {name: array for name, array in arrays.items() if not name.startswith("head.")}


def random(seed: int, scale: float = 1.0, **extra: np.ndarray) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes = {"blocks.0.fc.weight": (8, 6), "blocks.0.fc.bias": (8,), "pos_embed": (1, 5, 6)}
    arrays = {n: (scale * rng.standard_normal(s)).astype(np.float32) for n, s in shapes.items()}
    return {**arrays, **extra}


def with_head(arrays: Arrays, classes: int) -> Arrays:
    return {**arrays, "head.weight": np.ones((classes, 6), np.float32)}


def save(path: Path, arrays: Arrays) -> Path:
    save_file(arrays, path)
    return path


def test_rho_is_the_difference_of_every_floating_tensor_but_the_head(drawer: Drawer) -> None:
    fp, qat, rho = (load_file(p) for p in (drawer.donor, drawer.donor_qat, drawer.rho))
    assert rho.keys() == body(fp).keys()
    for name, array in rho.items():
        assert array.dtype == np.float32
        assert np.array_equal(array, qat[name] - fp[name])


def test_a_donor_plus_its_own_vector_is_its_twin_to_the_last_place(
    drawer: Drawer, tmp_path: Path
) -> None:
    call("patch", drawer.donor, drawer.rho, "--lambda", 1, "-o", tmp_path / "p.st")
    donor, patched, twin = (
        load_file(p) for p in (drawer.donor, tmp_path / "p.st", drawer.donor_qat)
    )
    for name, array in body(patched).items():
        # rho is rounded once, the sum once more: an ulp of the larger of the three at most
        ulp = np.spacing(np.maximum(np.abs(donor[name]), np.abs(twin[name])))
        assert (np.abs(array - twin[name]) <= ulp).all(), name
    assert np.array_equal(patched["head.weight"], donor["head.weight"])


def test_lambda_zero_leaves_the_receiver_bit_for_bit(drawer: Drawer, tmp_path: Path) -> None:
    call("patch", drawer.receiver, drawer.rho, "--lambda", 0, "-o", tmp_path / "p.st")
    with Checkpoint(drawer.receiver) as receiver, Checkpoint(tmp_path / "p.st") as patched:
        assert patched.settle() == receiver.settle()
        assert list(patched.items()) != []


@pytest.mark.parametrize("lam", ["0.75", "-0.5", "2", "1e-3"])
def test_patch_is_the_formula_in_float32(drawer: Drawer, tmp_path: Path, lam: str) -> None:
    call("patch", drawer.receiver, drawer.rho, "--lambda", lam, "-o", tmp_path / "p.st")
    theta, rho, patched = (load_file(p) for p in (drawer.receiver, drawer.rho, tmp_path / "p.st"))
    for name, array in patched.items():
        expected = theta[name] + np.float32(lam) * rho[name] if name in rho else theta[name]
        assert np.array_equal(array, expected), name
    assert patched["head.weight"].shape[0] == 4  # another class count than the donor's 3


def test_tensors_longer_than_a_block_are_the_same_formula(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = {"a.weight": (3, BLOCK // 2 + 7), "b": (BLOCK,), "c": (0, 4), "d": ()}
    fp, qat, receiver = (
        {n: np.asarray(rng.standard_normal(s), np.float32) for n, s in sizes.items()}
        for _ in range(3)
    )
    paths = [save(tmp_path / f"{i}.st", arrays) for i, arrays in enumerate((fp, qat, receiver))]
    call("extract", *paths[:2], "--no-head", "-o", tmp_path / "rho.st")
    call("patch", paths[2], tmp_path / "rho.st", "--no-head", "-l", "0.3", "-o", tmp_path / "p.st")
    for name, array in load_file(tmp_path / "p.st").items():
        assert np.array_equal(array, receiver[name] + np.float32(0.3) * (qat[name] - fp[name]))


HEADS = {f"{head}.{part}" for head in ("head", "head_dist") for part in ("weight", "bias")}


def distilled(path: Path, classes: int, seed: int, role: str) -> Arrays:
    """A tiny DeiT with two heads; without a role, its file says nothing but names."""
    import torch

    from qvec_cli.model.build import NetworkOptions, create

    args = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    torch.manual_seed(seed)
    wish = NetworkOptions("deit_tiny_distilled_patch16_224", classes, img_size=32, args=args)
    network, model = create(wish)
    arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    if not role:
        save(path, arrays)
        return arrays
    plan = {name: Entry("F32", array.shape) for name, array in arrays.items()}
    card = Card(Kind.CHECKPOINT, role, model.to_json())
    write(path, plan, ((n, [a.reshape(-1)]) for n, a in arrays.items()), card, force=False)
    return arrays


@pytest.mark.parametrize("roles", [("fp", "qat"), ("", "")], ids=["carded", "bare"])
def test_both_heads_of_a_distilled_deit_stay_the_receivers(
    roles: tuple[str, str], tmp_path: Path
) -> None:
    a, b, r, rho, out = (tmp_path / f"{name}.st" for name in ("a", "b", "r", "rho", "out"))
    fp, qat = distilled(a, 3, 0, roles[0]), distilled(b, 3, 1, roles[1])
    receiver = distilled(r, 5, 2, roles[0])  # another number of classes
    left_out = call("extract", a, b, "-o", rho, "--json").json["results"]["left_out"]
    assert set(left_out) == HEADS
    assert load_file(rho).keys() == fp.keys() - HEADS
    kept = call("patch", r, rho, "-o", out, "--json").json["results"]["kept"]
    assert set(kept) == HEADS
    for name, array in load_file(out).items():
        moved = receiver[name] if name in HEADS else receiver[name] + (qat[name] - fp[name])
        assert np.array_equal(array, moved), name
    call("quantize", out, "--bits", 3, "--fake", "-o", tmp_path / "q.st")
    quantized, patched = load_file(tmp_path / "q.st"), load_file(out)
    changed = {name for name in patched if not np.array_equal(quantized[name], patched[name])}
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert changed == {f"blocks.{i}.{part}.weight" for i in (0, 1) for part in parts}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_the_receiver_keeps_its_number_format(dtype: type, tmp_path: Path) -> None:
    """Arithmetic in float32, the result rounded once to nearest."""
    fp, qat = random(1), random(2)
    call(
        "extract",
        "--no-head",
        save(tmp_path / "a", fp),
        save(tmp_path / "b", qat),
        "-o",
        tmp_path / "rho.st",
    )
    receiver = {name: array.astype(dtype) for name, array in random(3).items()}
    save(tmp_path / "r.st", receiver)
    call(
        "patch",
        "--no-head",
        tmp_path / "r.st",
        tmp_path / "rho.st",
        "-l",
        "0.7",
        "-o",
        tmp_path / "p.st",
    )
    for name, array in load_file(tmp_path / "p.st").items():
        exact = receiver[name].astype(np.float32) + np.float32(0.7) * (qat[name] - fp[name])
        assert array.dtype == dtype
        assert np.array_equal(array, exact.astype(dtype))


def test_half_precision_donors_get_a_warning(tmp_path: Path) -> None:
    halves = [
        save(tmp_path / f"{seed}.st", {n: a.astype(np.float16) for n, a in random(seed).items()})
        for seed in (1, 2)
    ]
    result = call("extract", "--no-head", *halves, "-o", tmp_path / "rho.st")
    assert "rho from half precision is mostly rounding error" in result.err
    assert load_file(tmp_path / "rho.st")["pos_embed"].dtype == np.float32


def test_buffers_are_the_receivers(tmp_path: Path) -> None:
    buffers = [{"index": np.array([i, 9]), "mask": np.array([i == 1])} for i in range(3)]
    files = [save(tmp_path / f"{i}.st", random(i, **buffers[i])) for i in range(3)]
    call("extract", "--no-head", *files[:2], "-o", tmp_path / "rho.st")
    assert "index" not in load_file(tmp_path / "rho.st")
    call("patch", "--no-head", files[2], tmp_path / "rho.st", "-o", tmp_path / "p.st")
    patched = load_file(tmp_path / "p.st")
    assert patched["index"].tolist() == [2, 9]
    assert patched["mask"].tolist() == [False]


Change = Callable[[Arrays], Arrays]

MISMATCHES: dict[str, tuple[Change, str]] = {
    "a missing tensor": (
        lambda a: {n: v for n, v in a.items() if n != "pos_embed"},
        "pos_embed: only in {}/a.st",
    ),
    "a tensor too many": (lambda a: {**a, "extra": a["pos_embed"]}, "extra: only in {}/b.st"),
    "another shape": (
        lambda a: {**a, "pos_embed": np.ones((1, 7, 6), np.float32)},
        "pos_embed: [1, 5, 6] vs [1, 7, 6]",
    ),
    "integers for floats": (
        lambda a: {**a, "pos_embed": np.ones((1, 5, 6), np.int32)},
        "pos_embed: F32 vs I32",
    ),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_tensors_that_do_not_pair_up_are_named(case: str, tmp_path: Path) -> None:
    change, reason = MISMATCHES[case]
    a = save(tmp_path / "a.st", with_head(random(1), 3))
    b = save(tmp_path / "b.st", with_head(change(random(2)), 4))
    refused = call("extract", a, b, "-o", tmp_path / "rho.st", code=1).errors[0]
    assert reason.format(tmp_path) in refused
    assert not (tmp_path / "rho.st").exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["donor", "donor_qat", "receiver", "rho"])
def test_weights_that_are_no_numbers_are_refused_by_name(
    where: str, bad: float, tmp_path: Path
) -> None:
    names = ("donor", "donor_qat", "receiver")
    files = {n: save(tmp_path / f"{n}.st", random(i)) for i, n in enumerate(names)}
    files["rho"] = tmp_path / "rho.st"
    if where in ("receiver", "rho"):
        call("extract", "--no-head", files["donor"], files["donor_qat"], "-o", files["rho"])
    raw = bytearray(files[where].read_bytes())
    with Checkpoint(files[where]) as checkpoint:
        start = checkpoint["pos_embed"].start + 4 * 11
    raw[start : start + 4] = np.float32(bad).tobytes()
    files[where].write_bytes(raw)
    out = tmp_path / "out.st"
    args = ("patch", "--no-head", files["receiver"], files["rho"], "-l", 0)
    if where.startswith("donor"):
        args = ("extract", "--no-head", files["donor"], files["donor_qat"])
    result = call(*args, "-o", out, code=1)
    assert f"{files[where]}: pos_embed: {bad} at element 11" in result.errors[0]
    assert not out.exists()


def test_a_patch_that_overflows_the_receivers_format_is_refused(tmp_path: Path) -> None:
    a, b = save(tmp_path / "a", random(1)), save(tmp_path / "b", random(2, scale=1e6))
    call("extract", "--no-head", a, b, "-o", tmp_path / "rho.st")
    half = {name: array.astype(np.float16) for name, array in random(3).items()}
    save(tmp_path / "r.st", half)
    args = (tmp_path / "r.st", tmp_path / "rho.st", "-o", tmp_path / "p.st")
    result = call("patch", "--no-head", *args, code=1)
    assert "overflows F16 at lambda 1" in result.errors[0]


def test_equal_files_without_cards_are_refused(tmp_path: Path) -> None:
    a, b = save(tmp_path / "a.st", random(1)), save(tmp_path / "b.st", random(1))
    refused = call("extract", "--no-head", a, b, "-o", tmp_path / "r.st", code=1)
    assert "rho would be zero" in refused.errors[0]


def test_another_base_is_refused(drawer: Drawer, tmp_path: Path) -> None:
    """The donor's base was fine-tuned; a twin that starts elsewhere has nothing to do with it."""
    from conftest import FAST, MODEL

    stranger = tmp_path / "stranger.st"
    call("finetune", *MODEL, "--data", drawer.donor_data, *FAST, "-o", stranger)
    for args in (("extract", stranger, drawer.donor_qat), ("patch", stranger, drawer.rho)):
        result = call(*args, "-o", tmp_path / "x.st", code=1)
        assert "come from different bases" in result.errors[0]


def test_another_architecture_is_refused(drawer: Drawer, tmp_path: Path) -> None:
    from conftest import FAST

    stranger = tmp_path / "stranger.st"
    flags = ("test_vit2", "--img-size", 32, "--data", drawer.donor_data)
    call("finetune", *flags, *FAST, "-o", stranger)
    result = call("patch", stranger, drawer.rho, "-o", tmp_path / "x.st", code=1)
    assert "differ in architecture: architecture test_vit2 vs test_vit" in result.errors[0]


def test_twins_that_were_trained_differently_get_a_note(drawer: Drawer, tmp_path: Path) -> None:
    from conftest import FAST

    flags = ("--data", drawer.donor_data, *FAST, "--seed", 9)
    call("train-qat", drawer.base, *flags, "-o", tmp_path / "q.st")
    result = call("extract", drawer.donor, tmp_path / "q.st", "-o", tmp_path / "rho.st")
    assert "the twins were trained differently (seed 0 vs 9)" in result.err


def test_twins_of_other_data_are_refused_unless_told(drawer: Drawer, tmp_path: Path) -> None:
    pair = (drawer.receiver, drawer.donor_qat, "-o", tmp_path / "rho.st")
    result = call("extract", *pair, code=1)
    assert "was trained on bars4" in result.err
    assert "on bars3: rho would hold the difference of the tasks" in result.err
    assert not (tmp_path / "rho.st").exists()
    call("extract", *pair, "--cross-data")
    assert (tmp_path / "rho.st").exists()


def test_the_lineage_names_parents_and_lambda(drawer: Drawer, tmp_path: Path) -> None:
    call("patch", drawer.receiver, drawer.rho, "-l", "0.5", "-o", tmp_path / "p.st")
    with Checkpoint(tmp_path / "p.st") as patched:
        assert patched.card is not None
        lineage = patched.card.provenance
        assert patched.card.digest == patched.contents()
    assert (lineage["op"], lineage["lambda"]) == ("patch", 0.5)
    digests = []
    for path in (drawer.receiver, drawer.rho):
        with Checkpoint(path) as parent:
            digests.append(parent.contents())
    assert [parent["digest"] for parent in lineage["parents"]] == digests
    assert str(tmp_path) not in (tmp_path / "p.st").read_bytes().decode("latin-1")
