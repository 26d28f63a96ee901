"""quantize: what is written, what is left, and what it is said to cost."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Drawer, call
from safetensors.numpy import load_file, save_file

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.quant.scales import fake_quantize
from qvec_cli.specs import Granularity, Grid, Scale, ScaleDtype

GRIDS = [
    *(Grid(bits) for bits in (2, 3, 5, 8)),
    Grid(6, Granularity.TENSOR),
    Grid(2, scale=Scale.MSE),
    Grid(3, scale=Scale.MSE_FULL),
    Grid(2, scale=Scale.HQQ),
    Grid(4, Granularity.GROUP, 64),
    Grid(3, Granularity.CHANNEL, symmetric=False),
    Grid(4, Granularity.GROUP, 8, symmetric=False, scale_dtype=ScaleDtype.FLOAT16),
    Grid(7, Granularity.TENSOR, symmetric=False, scale_dtype=ScaleDtype.FLOAT16),
]


def flags(grid: Grid) -> tuple[object, ...]:
    size = ("--group-size", grid.group_size) if grid.group_size else ()
    kind = "--symmetric" if grid.symmetric else "--asymmetric"
    words = ("--scale", grid.scale, "--scale-dtype", grid.scale_dtype, kind)
    return ("--bits", grid.bits, "--granularity", grid.granularity, *size, *words)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_fake_weights_are_the_grid_and_the_rest_is_untouched(
    grid: Grid, drawer: Drawer, tmp_path: Path
) -> None:
    out = tmp_path / "q.st"
    results = call("quantize", drawer.receiver, *flags(grid), "--fake", "-o", out, "--json").json
    before, after = load_file(drawer.receiver), load_file(out)
    quantized = set(results["results"]["quantized"])
    assert before.keys() == after.keys()
    for name, array in after.items():
        expected = before[name]
        if name in quantized:
            expected = fake_quantize(torch.from_numpy(expected), grid).numpy()
        assert np.array_equal(array, expected), name


IN_GROUPS = Grid(3, Granularity.GROUP, 64, symmetric=False, scale_dtype=ScaleDtype.FLOAT16)
SAID: dict[tuple[object, ...], Grid] = {
    ("--bits", 2): replace(IN_GROUPS, bits=2),
    ("--bits", 3): IN_GROUPS,
    ("--bits", 4): Grid(4, symmetric=False),
    ("--bits", 8): Grid(8, symmetric=False),
    ("--bits", 3, "--granularity", "channel"): Grid(3, symmetric=False),
    ("--bits", 3, "--group-size", 32): Grid(3, Granularity.GROUP, 32, symmetric=False),
    ("--bits", 3, "--scale-dtype", "float32"): replace(IN_GROUPS, scale_dtype=ScaleDtype.FLOAT32),
    ("--bits", 3, "--scale", "mse"): Grid(3, scale=Scale.MSE),
    ("--bits", 3, "--asymmetric"): Grid(3, symmetric=False),
    ("--bits", 3, "--preset", "paper"): Grid(3),
    ("--bits", 3, "--rotate"): Grid(3, scale=Scale.MSE, symmetric=False),
}
"""The grid of a file that was made for none, by what is said of it."""


@pytest.mark.parametrize("words", SAID, ids=lambda words: " ".join(map(str, words[1:])))
def test_what_nobody_says_of_the_grid_is_the_best_that_needs_nothing(
    words: tuple[object, ...], drawer: Drawer, tmp_path: Path
) -> None:
    done = call("quantize", drawer.receiver, *words, "-o", tmp_path / "q.st")
    with Checkpoint(tmp_path / "q.st") as packed:
        assert packed.card.quant == SAID[words].to_json()
    chosen = words in [*SAID][:2] or "--scale-dtype" in words
    _, _, blocks = str(SAID[words]).partition(" ")
    assert (f"was made for no grid: {blocks}\n" in done.err) == chosen


@pytest.mark.parametrize(("factor", "word"), [(1e7, "large"), (1e-5, "small")])
def test_weights_that_float16_scales_do_not_fit_are_refused_by_name(
    factor: float, word: str, drawer: Drawer, tmp_path: Path
) -> None:
    name, path = "blocks.1.mlp.fc1.weight", tmp_path / "x.st"
    state = load_file(drawer.receiver)
    save_file(state | {name: state[name] * np.float32(factor)}, path)
    args = ("quantize", path, "--bits", 3, "-o", tmp_path / "q.st")
    refused = call(*args, code=1)
    assert refused.errors[0] == (
        f"error: {path}: {name}: its weights are too {word} for float16 scales"
    )
    call(*args, "--scale-dtype", "float32")


def test_a_file_that_was_made_for_a_grid_keeps_it(drawer: Drawer, tmp_path: Path) -> None:
    call("patch", drawer.receiver, drawer.rho, "-o", tmp_path / "patched.st")
    for words in ((), ("--bits", 3)):
        args = (tmp_path / "patched.st", *words, "-o", tmp_path / "q.st", "--force")
        assert "no grid" not in call("quantize", *args).err
        with Checkpoint(tmp_path / "q.st") as packed:
            assert packed.card.quant == Grid(3).to_json()


@pytest.mark.parametrize(
    ("columns", "size"), [((64, 256), 64), ((96, 384), 32), ((128, 96), 32), ((64, 40), None)]
)
def test_groups_are_of_a_size_that_fits_every_layer(
    columns: tuple[int, int], size: int | None, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    weights = {f"blocks.{n}.fc.weight": rng.normal(size=(8, c)) for n, c in enumerate(columns)}
    save_file({n: w.astype(np.float32) for n, w in weights.items()}, tmp_path / "x.st")
    call("quantize", tmp_path / "x.st", "--no-head", "--bits", 3, "-o", tmp_path / "q.st")
    with Checkpoint(tmp_path / "q.st") as packed:
        assert Grid.from_json(packed.card.quant or {}).group_size == size


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_reported_cost_is_that_of_the_file(grid: Grid, drawer: Drawer, tmp_path: Path) -> None:
    out = tmp_path / "q.st"
    results = call("quantize", drawer.receiver, *flags(grid), "-o", out, "--json").json["results"]
    assert results["bytes_before"] == drawer.receiver.stat().st_size
    assert results["bytes_after"] == out.stat().st_size
    with Checkpoint(out) as packed:
        stored = sum(
            packed[name + part].nbytes
            for name in results["quantized"]
            for part in ("_packed", "_scale", *(() if grid.symmetric else ("_zero_point",)))
        )
        assert {n.removesuffix("_packed") for n in packed if n.endswith("_packed")} == set(
            results["quantized"]
        )
    assert results["bits_per_weight"] == pytest.approx(8 * stored / results["weights"])
    assert set(results["left"]).isdisjoint(results["quantized"])


def test_the_linear_weights_are_quantized_and_head_and_embedding_are_left(
    drawer: Drawer, tmp_path: Path
) -> None:
    results = call(
        "quantize", drawer.receiver, "--bits", 3, "-o", tmp_path / "q.st", "--json"
    ).json["results"]
    network_names = {
        f"blocks.{block}.{part}.weight"
        for block in range(6)
        for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert set(results["quantized"]) == network_names
    assert {"head.weight", "patch_embed.proj.weight", "pos_embed"} <= set(results["left"])


def test_the_signal_to_noise_ratio_is_its_definition(drawer: Drawer, tmp_path: Path) -> None:
    out = tmp_path / "q.st"
    ratios = call("quantize", drawer.receiver, "--bits", 4, "--fake", "-o", out, "--json").json[
        "results"
    ]["sqnr_db"]
    before, after = load_file(drawer.receiver), load_file(out)
    for name, ratio in ratios.items():
        w, q = (a[name].astype(np.float64) for a in (before, after))
        assert ratio == pytest.approx(
            10 * math.log10((w**2).sum() / ((w - q) ** 2).sum()), abs=1e-6
        )


def test_more_bits_mean_less_noise(drawer: Drawer, tmp_path: Path) -> None:
    means = []
    for bits in range(2, 9):
        args = ("--bits", bits, "-o", tmp_path / f"{bits}.st", "--json")
        ratios = call("quantize", drawer.receiver, *args).json["results"]["sqnr_db"].values()
        means.append(sum(ratios) / len(ratios))
    assert means == sorted(means)
    assert all(after - before > 4 for before, after in pairwise(means[1:]))  # 6 dB a bit


def test_quantizing_what_is_quantized_is_refused(drawer: Drawer, tmp_path: Path) -> None:
    for extra in ((), ("--fake",)):
        path = tmp_path / f"q{len(extra)}.st"
        call("quantize", drawer.receiver, "--bits", 3, "--preset", "paper", *extra, "-o", path)
        result = call("quantize", path, "--bits", 3, "-o", tmp_path / "x.st", code=1)
        assert "is quantized already, to 3-bit channel absmax" in result.errors[0]


def test_without_bits_the_grid_of_the_vector_counts(drawer: Drawer, tmp_path: Path) -> None:
    call("patch", drawer.receiver, drawer.rho, "-o", tmp_path / "p.st")
    made = call("quantize", tmp_path / "p.st", "-o", tmp_path / "q.st", "--json").json
    assert made["parameters"]["grid"]["bits"] == 3
    other = ("quantize", tmp_path / "p.st", "--bits", 2, "-o", tmp_path / "x.st")
    refused = call(*other, code=1)
    assert "was made for 3-bit channel absmax, not for 2-bit channel absmax" in refused.errors[0]
    call(*other, "--cross-grid")


def test_targets_can_be_named_and_are_remembered(drawer: Drawer, tmp_path: Path) -> None:
    out = tmp_path / "q.st"
    call("quantize", drawer.receiver, "--bits", 3, "--targets", "*.qkv.weight", "-o", out)
    shown = call("inspect", out, "--json").json["results"]["card"]
    assert len(shown["targets"]) == 6
    assert all(name.endswith("qkv.weight") for name in shown["targets"])


def test_a_bare_file_is_quantized_by_rule_and_says_so(drawer: Drawer, tmp_path: Path) -> None:
    save_file(load_file(drawer.receiver), tmp_path / "bare.st")
    args = ("--bits", 3, "-o", tmp_path / "q.st", "--json")
    ruled = call("quantize", tmp_path / "bare.st", *args)
    assert "24 matrices chosen by name and shape" in ruled.err
    carded = call("quantize", drawer.receiver, "--bits", 3, "-o", tmp_path / "r.st", "--json")
    assert ruled.json["results"]["sqnr_db"] == carded.json["results"]["sqnr_db"]


def test_a_row_of_zeros_comes_back_as_zeros(tmp_path: Path) -> None:
    weight = np.zeros((4, 8), np.float32)
    weight[1] = np.linspace(-1, 1, 8)
    save_file({"blocks.0.fc.weight": weight}, tmp_path / "z.st")
    args = ("--no-head", "--bits", 2, "--preset", "paper", "--fake", "-o", tmp_path / "q.st")
    call("quantize", tmp_path / "z.st", *args)
    after = load_file(tmp_path / "q.st")["blocks.0.fc.weight"]
    assert not after[[0, 2, 3]].any()
    assert set(np.abs(after[1]).tolist()) <= {0.0, 1.0}


def test_half_precision_weights_are_upcast_before_their_scale(tmp_path: Path) -> None:
    """1e-8, the least absmax, is zero in float16."""
    weight = np.full((2, 8), 6e-8, np.float16)
    save_file({"blocks.0.fc.weight": weight}, tmp_path / "z.st")
    args = ("--no-head", "--bits", 3, "--fake", "-o", tmp_path / "q.st")
    call("quantize", tmp_path / "z.st", *args)
    after = load_file(tmp_path / "q.st")["blocks.0.fc.weight"]
    assert np.allclose(after, weight.astype(np.float32))
