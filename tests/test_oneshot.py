"""quantize --moments: the codes that images in memory give, no torch, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Drawer, bare, call, light
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

from qvec_cli.calibration.sequential import draw_images, linear_weights
from qvec_cli.calibration.walk import site_moments
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.write import write
from qvec_cli.inputs.files import model_of
from qvec_cli.inputs.network import load_network
from qvec_cli.model.build import normalise
from qvec_cli.quant.gptq import gptq
from qvec_cli.quant.moments import rounded
from qvec_cli.specs import Calibration, Grid, Loading, Scale, Silence

SMALL = ("--samples", 24, "--batch-size", 16, "--device", "cpu")
GPTQ = ("--bits", 3, "--method", "gptq")


@pytest.fixture(scope="module")
def files(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Moments of the donor, whole and by rank, of the base, and a vector that carries some."""
    root = tmp_path_factory.mktemp("moments")
    images = ("--data", drawer.donor_data, *SMALL)
    found = {name: root / f"{name}.st" for name in ("whole", "rank", "base", "own", "rho")}
    call("moments", drawer.donor, *images, "-o", found["whole"])
    call("moments", drawer.donor, *images, "--rank", 12, "-o", found["rank"])
    call("moments", drawer.base, *images, "-o", found["base"])
    call("moments", drawer.donor, "--data", drawer.receiver_data, *SMALL, "-o", found["own"])
    call("extract", drawer.donor, drawer.donor_qat, "--moments", found["whole"], "-o",
         found["rho"])  # fmt: skip
    return found


def in_memory(drawer: Drawer, grid: Grid, rank: int | None) -> dict[str, Any]:
    """Weights on the grid by GPTQ on moments that no file has held."""
    wanted = Calibration((str(drawer.donor_data),), 24, Loading(batch_size=16), "cpu")
    with Checkpoint(drawer.donor) as donor:
        model = model_of(donor)
        images = draw_images(donor, model, wanted, Silence())
        assert images
        network = load_network(donor, model, "cpu").eval()
        assert donor.card
        assert donor.card.targets
        weights = linear_weights(network, donor, donor.card.targets)
        decoded = images.images.decoded(Silence())
    batches = [normalise(model)(part) for part in torch.split(decoded, 16)]
    receiver, found = load_file(drawer.receiver), {}
    for site, inputs, _ in site_moments(network, weights, batches):
        for name in site.names:
            found[name] = gptq(receiver[name], grid, rounded(inputs, rank)).weight()
    return found


@pytest.mark.parametrize("rank", [None, 12])
@pytest.mark.parametrize(
    "grid", [Grid(2), Grid(3, scale=Scale.MSE_FULL), Grid(4, symmetric=False)], ids=str
)
def test_memory_and_file_give_the_same_codes(
    grid: Grid, rank: int | None, drawer: Drawer, files: dict[str, Path], tmp_path: Path
) -> None:
    out, packed = tmp_path / "f.st", tmp_path / "q.st"
    flags = ("--bits", grid.bits, "--scale", grid.scale,
             "--symmetric" if grid.symmetric else "--asymmetric")  # fmt: skip
    args = ("quantize", drawer.receiver, "--method", "gptq", *flags, "--moments")
    call(*args, files["rank" if rank else "whole"], "--fake", "-o", out)
    call(*args, files["rank" if rank else "whole"], "-o", packed)
    written, expected = load_file(out), in_memory(drawer, grid, rank)
    assert len(expected) == 24
    for name, weight in expected.items():
        assert np.array_equal(written[name], weight), name
    before = load_file(drawer.receiver)
    assert all(np.array_equal(written[n], before[n]) for n in before.keys() - expected.keys())
    shown = call("inspect", packed, "--json").json["results"]
    assert shown["card"]["provenance"]["moments"]["images"] == 24


def test_a_vector_that_carries_moments_quantizes_as_their_file_does(
    drawer: Drawer, files: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("whole", "rho"):
        call("quantize", drawer.receiver, *GPTQ, "--moments", files[name], "-o", tmp_path / name)
    first, second = (load_file(tmp_path / name) for name in ("whole", "rho"))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_no_torch_is_needed(drawer: Drawer, files: dict[str, Path], tmp_path: Path) -> None:
    rho, q, c = (tmp_path / f"{name}.st" for name in ("rho", "q", "c"))
    donors = (drawer.donor, drawer.donor_qat)
    assert light("extract", *donors, "--moments", files["rank"], "-o", rho)[:2] == (0, [])
    assert light("quantize", drawer.receiver, *GPTQ, "--moments", rho, "-o", q)[:2] == (0, [])
    assert light("quantize", drawer.receiver, "--bits", 3, "--bias-correction", "--moments", rho,
                 "-o", c)[:2] == (0, [])  # fmt: skip
    assert light("inspect", rho)[:2] == (0, [])


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("whole", {"level": "none", "counts": {"moments": 24}}),
        ("base", {"level": "none", "counts": {"moments": 24}}),
        ("own", {"level": "receiver_images", "counts": {"train": 24}}),
    ],
)
def test_what_it_has_cost_is_told(
    name: str, use: dict[str, Any], drawer: Drawer, files: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "q.st"
    args = ("quantize", drawer.receiver, *GPTQ, "--moments", files[name], "-o", out)
    found = call(*args, "--json").json
    assert found["data_use"] == use
    (source,) = found["parameters"]["moments"]["sources"]
    assert source["images"] == 24
    assert source["name"] in {"bars3", "bars4"}
    kind = "vector" if name == "rho" else "moments"
    assert [one["kind"] for one in found["inputs"]] == ["checkpoint", kind]
    later = call("eval", out, "--data", drawer.receiver_data, "--json").json
    assert later["data_use"] == use


def test_images_through_the_receiver_itself_are_proxies(drawer: Drawer, tmp_path: Path) -> None:
    moments = tmp_path / "m.st"
    call("moments", drawer.receiver, "--data", drawer.donor_data, *SMALL, "-o", moments)
    found = call("quantize", drawer.receiver, *GPTQ, "--moments", moments, "-o",
                 tmp_path / "q.st", "--json").json  # fmt: skip
    assert found["data_use"] == {"level": "proxy_images", "counts": {"proxy": 24}}


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_corrected_biases_keep_the_mean_output(
    method: str, dtype: torch.dtype, drawer: Drawer, tmp_path: Path
) -> None:
    theta, moments, out = (tmp_path / f"{name}.st" for name in ("theta", "m", "f"))
    flags = bare("vit", theta)
    call("moments", theta, *flags, "--data", drawer.donor_data, *SMALL, "-o", moments)
    save_tensors({n: t.to(dtype) for n, t in load_tensors(theta).items()}, theta)
    results = call("quantize", theta, "--bits", 3, "--method", method, "--bias-correction",
                   "--moments", moments, "--fake", "-o", out, "--json").json["results"]  # fmt: skip
    before, after, held = load_tensors(theta), load_tensors(out), load_file(moments)
    assert len(results["changed"]) == len(results["quantized"]) == 8
    for name in results["quantized"]:
        mean = held[f"moments/{name}/mean"].astype(np.float64)
        bias = name.removesuffix("weight") + "bias"
        assert after[bias].dtype == dtype
        old, new = (
            t[name].float().numpy().astype(np.float64) @ mean + t[bias].float().numpy()
            for t in (before, after)
        )
        tolerance = 1e-5 if dtype is torch.float32 else 1e-2
        np.testing.assert_allclose(old, new, atol=tolerance * np.abs(old).max())


def test_a_plan_foretells_the_size(drawer: Drawer, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "q.st"
    args = ("quantize", drawer.receiver, *GPTQ, "--moments", files["rho"], "-o", out)
    plan = call(*args, "--dry-run", "--json").json
    assert not out.exists()
    call(*args)
    assert plan["results"]["plan"]["bytes_out"] == out.stat().st_size
    assert [one["kind"] for one in plan["inputs"]] == ["checkpoint", "vector"]


def test_the_same_moments_give_the_same_bytes(
    drawer: Drawer, files: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        call("quantize", drawer.receiver, *GPTQ, "--moments", files["rank"], "-o", tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def spoiled(path: Path, part: str, change: Any) -> None:
    """Writes a file anew with one array changed or gone, and a digest that holds."""
    with Checkpoint(path) as file:
        card, arrays = file.card, {n: file.array(n) for n in file.attached}
    assert card
    changed = change(arrays.pop(part).copy())
    arrays |= {} if changed is None else {part: changed}
    from qvec_cli.checkpoint.header import Entry

    plan = {name: Entry("F32", array.shape) for name, array in arrays.items()}
    blocks = ((name, [array.reshape(-1)]) for name, array in arrays.items())
    write(path, plan, blocks, replace(card), force=True)


def poisoned(array: Any) -> Any:
    array[3] = np.nan
    return array


SITE = "moments/blocks.0.attn.qkv.weight"


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("second", poisoned, "nan at element 3"),
        ("second", lambda array: array[:-1], "belongs here"),
        ("second", lambda array: None, "second: is missing"),
        ("mean", lambda array: None, "mean: is missing"),
        ("mean", lambda array: array[:-1], "belongs here"),
    ],
)
def test_a_damaged_file_is_refused_by_the_name_of_the_tensor(
    part: str,
    change: Any,
    said: str,
    drawer: Drawer,
    files: dict[str, Path],
    tmp_path: Path,
) -> None:
    path, out = tmp_path / "m.st", tmp_path / "q.st"
    path.write_bytes(files["whole"].read_bytes())
    spoiled(path, f"{SITE}/{part}", change)
    for command in (
        ("quantize", drawer.receiver, *GPTQ),
        ("extract", drawer.donor, drawer.donor_qat),
    ):
        found = call(*command, "--moments", path, "-o", out, code=1)
        (error,) = found.errors
        assert f"{path}: {SITE}/" in error
        assert said in error
        assert not out.exists()


def test_a_digest_covers_the_moments(
    drawer: Drawer, files: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("whole", "rho"):
        path, out = tmp_path / f"{name}.st", tmp_path / "q.st"
        data = bytearray(files[name].read_bytes())
        with Checkpoint(files[name]) as file:
            place = file.attached[f"{SITE}/second"].start
        data[place] ^= 1
        path.write_bytes(data)
        for args in (
            ("inspect", path, "--verify"),
            ("quantize", drawer.receiver, *GPTQ, "--moments", path, "-o", out),
        ):
            (said,) = call(*args, code=1).errors
            assert "its tensors are not those that its card tells of" in said
        assert not out.exists()


def test_moments_of_another_base_are_refused(
    drawer: Drawer, files: dict[str, Path], tmp_path: Path
) -> None:
    """The base was trained from numbers of its own, which no moments are of."""
    out = tmp_path / "q.st"
    args = ("quantize", drawer.base, *GPTQ, "--moments", files["whole"], "-o", out)
    for dry in ([], ["--dry-run"]):
        (said,) = call(*args, *dry, code=1).errors
        assert "come from different bases" in said
    assert not out.exists()


def test_a_bare_receiver_is_taken_with_a_note(
    drawer: Drawer, files: dict[str, Path], tmp_path: Path
) -> None:
    theta = tmp_path / "bare.st"
    save_file(load_file(drawer.receiver), theta)
    args = ("quantize", theta, *GPTQ, "--moments", files["whole"], "-o", tmp_path / "q.st")
    found = call(*args, "--json")
    assert "does not say its base" in found.err
    assert found.json["data_use"]["level"] == "receiver_images"  # they may be its own


def test_a_target_without_moments_is_refused_by_name(drawer: Drawer, tmp_path: Path) -> None:
    moments, out = tmp_path / "m.st", tmp_path / "q.st"
    call("moments", drawer.donor, "--data", drawer.donor_data, *SMALL, "--targets", "*.qkv.weight",
         "-o", moments)  # fmt: skip
    args = ("quantize", drawer.receiver, *GPTQ, "--moments", moments, "-o", out)
    (said,) = call(*args, code=1).errors
    assert f"{moments}: has no moments of blocks.0.attn.proj.weight" in said
    assert call(*args, "--targets", "*.qkv.weight").code == 0


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("--method", "awq"), 2, "--method awq needs images"),
        (("--method", "rtn"), 2, "--moments is of no use to --method rtn"),
        (("--method", "gptq", "--calib", "x"), 2, "--calib does not go with --moments"),
        (
            ("--method", "gptq", "--calib-samples", 3),
            2,
            "--calib-samples does not go with --moments",
        ),
        (("--compare",), 2, "--moments does not go with --compare"),
    ],
)
def test_what_does_not_go_with_moments_is_refused_before_a_file_is_opened(
    args: tuple[object, ...], code: int, said: str, drawer: Drawer, tmp_path: Path
) -> None:
    out = () if "--compare" in args else ("-o", tmp_path / "q.st")
    found = call("quantize", drawer.receiver, "--bits", 3, "--moments", "none.st", *args, *out,
                 code=code)  # fmt: skip
    assert said in found.errors[0]


@pytest.mark.parametrize("what", ["receiver", "rho"])
def test_a_file_without_moments_is_refused(what: str, drawer: Drawer, tmp_path: Path) -> None:
    path = getattr(drawer, what)
    (said,) = call("quantize", drawer.receiver, *GPTQ, "--moments", path, "-o",
                   tmp_path / "q.st", code=1).errors  # fmt: skip
    assert path.name in said
