"""Moments inside other files: no arithmetic meets them; extract and combine put them in."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FAST, Drawer, bare, call
from safetensors.numpy import load_file, save_file

from qvec_cli.calibration.moments_file import PooledMoments, StoredMoments
from qvec_cli.checkpoint.read import Checkpoint

FLAGS = ("--batch-size", 16, "--device", "cpu")
PREFIX = "moments/"


@pytest.fixture(scope="module")
def images(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two folders without labels, and one with the images of both."""
    root = tmp_path_factory.mktemp("images")
    found = {name: root / name for name in ("first", "second", "both")}
    pools = {
        "first": sorted(drawer.donor_data.glob("train/*/*.png"))[::6],
        "second": sorted(drawer.receiver_data.glob("train/*/*.png"))[::9],
    }
    pools["both"] = [*pools["first"], *pools["second"]]
    for name, files in pools.items():
        for split, some in (("train", files), ("val", files[:1])):
            (found[name] / split / "any").mkdir(parents=True)
            for place, file in enumerate(some):
                shutil.copy(file, found[name] / split / "any" / f"{place:03d}.png")
    return found


@pytest.fixture(scope="module")
def files(
    drawer: Drawer, images: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Moments of each folder, whole and by rank, and vectors that carry them."""
    root = tmp_path_factory.mktemp("files")
    found = {}
    for name, folder in images.items():
        for kind, rank in (("", ()), ("_rank", ("--rank", 16))):
            found[name + kind] = root / f"{name}{kind}.st"
            call("moments", drawer.donor, "--data", folder, *FLAGS, *rank, "-o",
                 found[name + kind])  # fmt: skip
    for name in ("first", "second", "first_rank"):
        found[f"rho_{name}"] = root / f"rho_{name}.st"
        call("extract", drawer.donor, drawer.donor_qat, "--moments", found[name], "-o",
             found[f"rho_{name}"])  # fmt: skip
    return found


def carried(path: Path) -> dict[str, Any]:
    return {name: array for name, array in load_file(path).items() if name.startswith(PREFIX)}


def test_a_vector_with_moments_is_the_vector_and_the_moments(
    drawer: Drawer, files: dict[str, Path]
) -> None:
    whole, rho, moments = map(load_file, (files["rho_first"], drawer.rho, files["first"]))
    assert whole.keys() == rho.keys() | moments.keys()
    for name, array in whole.items():
        assert np.array_equal(array, {**rho, **moments}[name])


def test_as_a_mapping_it_is_the_vector_alone(drawer: Drawer, files: dict[str, Path]) -> None:
    with Checkpoint(files["rho_first"]) as both, Checkpoint(drawer.rho) as rho:
        assert [*both] == [*rho]
        assert len(both) == len(rho)
        assert not any(name.startswith(PREFIX) for name in both)
        assert {*both.attached} == {*carried(files["first"])}
        for name in both.attached:
            assert np.array_equal(both.array(name), both.finite(name))
        assert both.settle() == both.stated


def test_moments_change_nothing_of_what_a_vector_does(
    drawer: Drawer, files: dict[str, Path], tmp_path: Path
) -> None:
    out, plain = tmp_path / "a.st", tmp_path / "b.st"
    for rho, path in ((files["rho_first"], out), (drawer.rho, plain)):
        call("patch", drawer.receiver, rho, "--lambda", 0.7, "-o", path)
    assert call("inspect", out, plain, "--json").json["results"]["same"]
    sweep = ("sweep-lambda", drawer.receiver, "--data", drawer.receiver_data, "--lambdas", "0,1")
    first, second = (
        call(*sweep, rho, "-o", tmp_path / f"{rho.stem}.json", "--json").json["results"]["curve"]
        for rho in (files["rho_first"], drawer.rho)
    )
    for one, other in zip(first, second, strict=True):
        assert one["val"]["n_correct"] == other["val"]["n_correct"]
        assert one["val"]["loss"] == other["val"]["loss"]


def test_a_bare_file_may_have_such_names_itself(tmp_path: Path) -> None:
    save_file({"moments/w/mean": np.ones(3, np.float32)}, tmp_path / "bare.st")
    with Checkpoint(tmp_path / "bare.st") as file:
        assert [*file] == ["moments/w/mean"]
        assert not file.attached


def test_inspect_tells_of_them(files: dict[str, Path]) -> None:
    for name, kept in (("rho_first", "whole"), ("rho_first_rank", "rank 16 and diagonal")):
        shown = call("inspect", files[name], "--tensors")
        assert f"carries moments of 15 images (first), {kept}" in shown.out
        assert "moments/blocks.0.attn.qkv.weight/mean\tF32\t[64]" in shown.out
    results = call("inspect", files["first"], "--json").json["results"]
    assert (results["kind"], results["tensors"]) == ("moments", [])
    assert results["digest_holds"]
    assert not call("inspect", files["first"], files["second"], "--json").json["results"]["same"]


@pytest.mark.parametrize("command", ["patch", "eval", "quantize", "finetune", "combine", "sweep"])
def test_a_file_of_moments_is_no_model_and_no_vector(
    command: str, drawer: Drawer, files: dict[str, Path], tmp_path: Path
) -> None:
    images, out = ("--data", drawer.receiver_data), ("-o", tmp_path / "x")
    args: dict[str, tuple[object, ...]] = {
        "patch": ("patch", drawer.receiver, files["first"]),
        "eval": ("eval", files["first"], *images),
        "quantize": ("quantize", files["first"], "--bits", 3),
        "finetune": ("finetune", files["first"], *images, *FAST),
        "combine": ("combine", files["first"], drawer.rho),
        "sweep": ("sweep-lambda", drawer.receiver, files["first"], *images),
    }
    (said,) = call(*args[command], *out, code=1).errors
    assert f"{files['first']}: is a file of moments" in said


@pytest.mark.parametrize("kind", ["", "_rank"])
def test_averaging_is_pooling_the_images(kind: str, files: dict[str, Path]) -> None:
    paths = [files[name + kind] for name in ("first", "second")]
    with Checkpoint(paths[0]) as a, Checkpoint(paths[1]) as b, Checkpoint(files["both"]) as c:
        pooled, both = PooledMoments([StoredMoments(a), StoredMoments(b)]), StoredMoments(c)
        assert pooled.facts.images == both.facts.images
        assert pooled.facts.sites == both.facts.sites
        found = {name: np.concatenate([*blocks]) for name, blocks in pooled.blocks()}
        assert {n: x.size for n, x in found.items()} == {n: e.size for n, e in pooled.plan.items()}
        for site in both.facts.sites:
            for part in ("mean", "magnitude", *(() if kind else ("second",))):
                name = f"{PREFIX}{site}/{part}"
                expected = both.checkpoint.array(name)
                scale = np.abs(expected).max()
                np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=2e-6 * scale)


def test_combine_pools_what_vectors_carry(
    drawer: Drawer, files: dict[str, Path], tmp_path: Path
) -> None:
    """The two vectors have one rho, so that only what they carry differs."""
    out, q = tmp_path / "rho.st", tmp_path / "q.st"
    found = call("combine", files["rho_first"], files["rho_second"], "-o", out, "--json").json
    told = found["results"]["moments"]
    assert told["images"] == 15 + 14
    assert [one["name"] for one in told["sources"]] == ["first", "second"]
    expected = load_file(files["both"])
    for name, array in carried(out).items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=2e-6 * scale)
    call("quantize", drawer.receiver, "--bits", 3, "--method", "gptq", "--moments", out, "-o", q)
    assert call("inspect", out, "--verify").code == 0


def test_the_same_moments_count_once(
    files: dict[str, Path], drawer: Drawer, tmp_path: Path
) -> None:
    """As those of a base do, that every vector carries."""
    half, out = tmp_path / "half.st", tmp_path / "rho.st"
    other = tmp_path / "other.st"
    call("train-qat", drawer.base, "--data", drawer.donor_data, *FAST, "--bits", 3, "--seed", 1,
         "-o", half)  # fmt: skip
    call("extract", drawer.donor, half, "--moments", files["first"], "-o", other)
    call("combine", files["rho_first"], other, "-o", out)
    first, found = carried(files["first"]), carried(out)
    assert first.keys() == found.keys()
    assert all(np.array_equal(first[name], found[name]) for name in first)


def test_ranks_are_pooled_to_the_largest_and_whole_moments_to_whole(
    files: dict[str, Path],
) -> None:
    for names, rank in (
        (("first_rank", "second_rank"), 16),
        (("first_rank", "second"), None),
    ):
        with Checkpoint(files[names[0]]) as a, Checkpoint(files[names[1]]) as b:
            assert PooledMoments([StoredMoments(a), StoredMoments(b)]).facts.rank == rank


def test_a_vector_without_moments_is_noted(
    drawer: Drawer, files: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "rho.st"
    found = call("combine", files["rho_first"], drawer.rho, "-o", out)
    assert "1 of 2 vectors carry moments" in found.err
    assert carried(out).keys() == carried(files["first"]).keys()


def test_a_plan_of_extract_foretells_the_size(
    drawer: Drawer, files: dict[str, Path], tmp_path: Path
) -> None:
    args = ("extract", drawer.donor, drawer.donor_qat, "--moments", files["first"], "-o",
            tmp_path / "x.st", "--dry-run", "--json")  # fmt: skip
    plan = call(*args).json["results"]["plan"]
    assert plan["bytes_out"] == files["rho_first"].stat().st_size
    assert sum(tensor["fate"] == "carried" for tensor in plan["tensors"]) == 72


@pytest.mark.parametrize("targets", ["*.qkv.weight", "blocks.[0-3].*"])
def test_a_vector_carries_moments_of_all_its_targets(
    targets: str, drawer: Drawer, tmp_path: Path
) -> None:
    moments, out = tmp_path / "m.st", tmp_path / "rho.st"
    call("moments", drawer.donor, "--data", drawer.donor_data, "--samples", 4, *FLAGS,
         "--targets", targets, "-o", moments)  # fmt: skip
    found = call("extract", drawer.donor, drawer.donor_qat, "--moments", moments, "-o", out, code=1)
    assert "has no moments of blocks." in found.errors[0]
    assert not out.exists()


def test_moments_of_another_network_are_refused(drawer: Drawer, tmp_path: Path) -> None:
    theta, moments, out = tmp_path / "t.st", tmp_path / "m.st", tmp_path / "rho.st"
    flags = bare("vit", theta)
    images = ("--data", drawer.donor_data, "--samples", 4, *FLAGS)
    call("moments", theta, *flags, *images, "-o", moments)
    found = call("extract", drawer.donor, drawer.donor_qat, "--moments", moments, "-o", out, code=1)
    assert "differ in architecture" in found.errors[0]
    call("moments", drawer.base, *images, "-f", "-o", moments)
    assert call("extract", drawer.donor, drawer.donor_qat, "--moments", moments, "-o", out)
    stranger = tmp_path / "stranger.st"
    call("finetune", "test_vit", "--img-size", 32, "--data", drawer.donor_data, *FAST, "--seed", 9,
         "-o", stranger)  # fmt: skip
    call("moments", stranger, *images, "-f", "-o", moments)
    found = call("extract", drawer.donor, drawer.donor_qat, "--moments", moments, "-o",
                 tmp_path / "y.st", code=1)  # fmt: skip
    assert "come from different bases" in found.errors[0]
