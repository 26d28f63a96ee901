"""Vectors on few bits: every command reads one as the vector whose numbers it stands for."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import Drawer, call, without_torch
from safetensors import safe_open
from safetensors.numpy import save_file

from qvec_cli.calibration.moments_file import StoredMoments
from qvec_cli.checkpoint.card import Card
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.write import write
from qvec_cli.inputs.files import opened
from qvec_cli.quant.scales import fake_quantize
from qvec_cli.specs import Granularity, Grid, Scale, ScaleDtype, Silence

Arrays = dict[str, np.ndarray]
FLAGS = ("--batch-size", 16, "--device", "cpu")


def numbers(path: Path) -> Arrays:
    with opened(path, Silence()) as file:
        return {name: file.finite(name) for name in file}


def in_float(path: Path, out: Path) -> Path:
    """The same numbers as an ordinary vector."""
    with opened(path, Silence()) as file:
        plan = {name: Entry("F32", entry.shape) for name, entry in file.items()}
        facts = {"role": "", "model": file.card.model, "quant": file.card.quant}
        card = Card(
            file.kind, **facts, targets=file.card.targets, data=file.card.data, base=file.card.base
        )
        blocks = ((name, [file.finite(name).reshape(-1)]) for name in plan)
        write(out, plan, blocks, card, force=False)
    return out


@pytest.fixture(scope="module")
def small(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("small") / "rho_w4.st"
    call("extract", drawer.donor, drawer.donor_qat, "--bits", 4, "-o", out)
    return out


@pytest.fixture(scope="module")
def plain(small: Path) -> Path:
    return in_float(small, small.with_name("plain.st"))


@pytest.mark.parametrize(("bits", "size"), [(2, 64), (4, 64), (3, 16), (8, 5)])
def test_matrices_are_rounded_on_the_grid_that_the_card_names_and_the_rest_to_bfloat16(
    bits: int, size: int, drawer: Drawer, tmp_path: Path
) -> None:
    out, flags = tmp_path / "small.st", ("--bits", bits, "--group-size", size)
    results = call("extract", drawer.donor, drawer.donor_qat, *flags, "-o", out, "--json").json
    exact, stored = numbers(drawer.rho), numbers(out)
    with opened(out, Silence()) as file:
        assert file.kind == "vector"
        named = Grid.from_json(file.card.storage or {})
        assert file.settle() == file.stated
    half = ScaleDtype.FLOAT16
    assert named == Grid(bits, Granularity.GROUP, size, Scale.MSE_FULL, scale_dtype=half)
    assert stored.keys() == exact.keys()
    apart = 0.0
    for name, rho in exact.items():
        if rho.ndim == 2:
            divisor = max(n for n in range(1, size + 1) if rho.shape[1] % n == 0)
            grid = Grid(bits, Granularity.GROUP, divisor, Scale.MSE_FULL, scale_dtype=half)
            assert np.array_equal(stored[name], fake_quantize(rho, grid)), name
        else:
            np.testing.assert_allclose(stored[name], rho, rtol=2**-8)
        apart += float(np.square(stored[name] - rho, dtype=np.float64).sum())
    norm = math.sqrt(sum(float(np.square(r, dtype=np.float64).sum()) for r in exact.values()))
    said = results["results"]["storage"]["relative_error"]
    assert said == pytest.approx(math.sqrt(apart) / norm, rel=1e-4)


def test_a_number_takes_its_bits_and_a_share_of_a_scale_or_two_bytes(
    drawer: Drawer, small: Path
) -> None:
    matrices, others = (
        sum(rho.size for rho in numbers(drawer.rho).values() if (rho.ndim == 2) is wanted)
        for wanted in (True, False)
    )
    with Checkpoint(small) as file:  # as it lies there
        stored = {name: entry.nbytes for name, entry in file.items()}
    shapes = sum(size for name, size in stored.items() if name.endswith("_shape"))
    assert sum(stored.values()) - shapes == matrices * (4 + 16 / 64) / 8 + others * 2


COMMANDS = {
    "patch": "patch {receiver} {rho} --lambda 0.7 -o {out}",
    "combine": "combine {rho} {other} -o {out}",
    "trimmed": "combine {rho} {other} --rule ties -o {out}",
    "quantize": "quantize {receiver} --bits 3 --anchor {rho} -o {out}",
}


@pytest.mark.parametrize("case", COMMANDS)
def test_arithmetic_is_that_of_the_numbers_and_needs_no_torch(
    case: str, drawer: Drawer, small: Path, plain: Path, tmp_path: Path
) -> None:
    outs, lines = [tmp_path / "a.st", tmp_path / "b.st"], []
    for rho, out in zip((small, plain), outs, strict=True):
        names = {"receiver": drawer.receiver, "rho": rho, "other": drawer.rho, "out": out}
        lines.append(COMMANDS[case].format(**names).split())
    assert [result.code for result in without_torch(lines, tmp_path)] == [0, 0]
    (ours, theirs) = map(numbers, outs)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    with Checkpoint(outs[0]) as made:
        assert made.card.storage is None  # what is made of it is float, or has a grid of its own


def test_measures_are_those_of_the_numbers(
    drawer: Drawer, small: Path, plain: Path, tmp_path: Path
) -> None:
    curves, kinds = [], ("loss", "n_correct")
    for rho in (small, plain):
        images, out = ("--data", drawer.receiver_data), ("-o", tmp_path / f"{rho.stem}.json")
        command = ("sweep-lambda", drawer.receiver, rho, *images, "--lambdas", "0,1", *out)
        curve = call(*command, "--device", "cpu", "--json").json["results"]["curve"]
        curves.append([[point["val"][kind] for kind in kinds] for point in curve])
    assert curves[0] == curves[1]


def test_advise_takes_it_as_it_takes_any(drawer: Drawer, small: Path, tmp_path: Path) -> None:
    command = ("advise", drawer.receiver, "--bits", 3, "--rho", small, "--refine", 0)
    proxies = ("--proxy", drawer.donor_data, "--proxy-samples", 16)
    out = ("--metrics", tmp_path / "advice.json", "--json")
    ways = call(*command, *proxies, *FLAGS, *out).json["results"]["candidates"]
    assert any("vector at lambda 1" in way["name"] for way in ways)


def test_it_carries_moments_like_any_vector(drawer: Drawer, tmp_path: Path) -> None:
    moments, out = tmp_path / "moments.st", tmp_path / "rho.st"
    call("moments", drawer.donor, "--data", drawer.donor_data, "--half", *FLAGS, "-o", moments)
    bits = ("--bits", 4, "--moments", moments)
    call("extract", drawer.donor, drawer.donor_qat, *bits, "-o", out)
    with opened(out, Silence()) as both, Checkpoint(moments) as alone:
        ours, theirs = StoredMoments(both), StoredMoments(alone)
        assert ours.facts == theirs.facts
        assert ours.facts.half
        assert {*both} == {*numbers(drawer.rho)}
        both.settle()


def test_inspect_tells_the_grid_and_compares_the_numbers(drawer: Drawer, small: Path) -> None:
    text = call("inspect", small).out
    assert "stored on: 4-bit group 64 mse-full float16" in text
    assert call("inspect", "--verify", small).code == 0
    error = call("inspect", drawer.rho, small, "--json").json["results"]["relative_norm"]
    with_json = call(
        "extract", drawer.donor, drawer.donor_qat, "--bits", 4, "--json", "-o", small.with_name("x")
    )
    assert error == pytest.approx(with_json.json["results"]["storage"]["relative_error"], rel=1e-4)


def test_a_plan_foretells_the_size(drawer: Drawer, small: Path) -> None:
    command = ("extract", drawer.donor, drawer.donor_qat, "--bits", 4, "--dry-run", "--json")
    plan = call(*command, "-o", small.with_name("planned.st")).json["results"]["plan"]
    assert plan["bytes_out"] == small.stat().st_size


def twins(folder: Path, **tensors: np.ndarray) -> tuple[Path, Path]:
    """Two bare files that differ by these."""
    paths = folder / "a.st", folder / "b.st"
    save_file({name: np.zeros_like(rho) for name, rho in tensors.items()}, paths[0])
    save_file(tensors, paths[1])
    return paths


MATRIX = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
REFUSED = {
    "no bits": ({"w": MATRIX}, ("--group-size", 32), "--group-size goes with --bits"),
    "nine bits": ({"w": MATRIX}, ("--bits", 9), "--bits must be 2 to 8"),
    "no matrix": ({"w": MATRIX[0]}, ("--bits", 4), "no matrix of it is smaller in 4 bits"),
    "too narrow": ({"w": MATRIX[:, :1]}, ("--bits", 4), "no matrix of it is smaller in 4 bits"),
    "too large": ({"w": MATRIX * 1e5}, ("--bits", 4), "w: rho is too large for float16 scales"),
    "a taken name": (
        {"w": MATRIX, "w_scale": MATRIX[0]},
        ("--bits", 4),
        "w_scale is a tensor, and would be a part",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_stored_so_is_refused_by_name(case: str, tmp_path: Path) -> None:
    tensors, flags, reason = REFUSED[case]
    out = tmp_path / "rho.st"
    refused = call(
        "extract", *twins(tmp_path, **tensors), "--no-head", *flags, "-o", out, code=None
    )
    assert refused.code in (1, 2)
    assert reason in refused.err
    assert not out.exists()


def test_what_bits_would_not_make_smaller_stays_in_bfloat16(tmp_path: Path) -> None:
    odd = np.ascontiguousarray(np.tile(MATRIX, 2)[:, :67])  # a prime: no group but of one number
    files, out = twins(tmp_path, w=MATRIX, odd=odd, none=MATRIX[:0]), tmp_path / "rho.st"
    call("extract", *files, "--no-head", "--bits", 4, "-o", out)
    with safe_open(out, "numpy") as raw:
        assert {*raw.keys()} == {"w_packed", "w_scale", "w_shape", "odd", "none"}
    np.testing.assert_allclose(numbers(out)["odd"], odd, rtol=2**-8)


def edited(path: Path, out: Path, **tensors: np.ndarray | None) -> Path:
    """A copy with other tensors, whose card tells no digest."""
    with safe_open(path, "numpy") as raw:
        arrays = {name: raw.get_tensor(name) for name in (*raw.keys(),)}
        card = {k: v for k, v in raw.metadata().items() if k != "qvec.digest"}
    arrays = {n: a for n, a in {**arrays, **tensors}.items() if a is not None}
    save_file(arrays, out, card)
    return out


DAMAGED = {
    "no scale": ({"w_scale": None}, "w: its parts do not belong together"),
    "no shape": ({"w_shape": None}, "w: w_shape is missing"),
    "no rows": ({"w_shape": np.array([0, 64])}, "w: w_shape [0, 64] is not the shape"),
    "another shape": ({"w_shape": np.array([1 << 30, 64])}, "w: w_packed is not the I32"),
    "too many scales": ({"w_scale": np.ones((64, 7), np.float16)}, "w: its parts do not belong"),
    "other scales": ({"w_scale": np.ones((64, 1))}, "w: w_scale is not the F16"),
    "twice": ({"w": MATRIX}, "w: its parts do not belong together"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_parts_that_do_not_fit_are_refused_by_name(case: str, tmp_path: Path) -> None:
    change, reason = DAMAGED[case]
    rho, bad = tmp_path / "rho.st", tmp_path / "bad.st"
    call("extract", *twins(tmp_path, w=MATRIX), "--no-head", "--bits", 4, "-o", rho)
    receiver = tmp_path / "b.st"
    edited(rho, bad, **change)
    refused = call("patch", receiver, bad, "--no-head", "-o", tmp_path / "p.st", code=1)
    assert f"{bad}: {reason}" in refused.errors[0]


def test_a_scale_that_is_no_number_is_found_in_the_tensor(tmp_path: Path) -> None:
    rho, bad, scale = tmp_path / "rho.st", tmp_path / "bad.st", np.ones((64, 1), np.float16)
    call("extract", *twins(tmp_path, w=MATRIX), "--no-head", "--bits", 4, "-o", rho)
    scale[3] = np.nan
    edited(rho, bad, w_scale=scale)
    refused = call("patch", tmp_path / "b.st", bad, "--no-head", "-o", tmp_path / "p.st", code=1)
    assert f"{bad}: w: nan at element 192" in refused.errors[0]


def test_an_unknown_grid_is_refused(small: Path, drawer: Drawer, tmp_path: Path) -> None:
    with Checkpoint(small) as file:
        storage = {**(file.card.storage or {}), "scale": "log"}
    data, bad = small.read_bytes(), tmp_path / "bad.st"
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["qvec.storage"] = json.dumps(storage)
    text = json.dumps(header).encode()
    bad.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    refused = call("patch", drawer.receiver, bad, "-o", tmp_path / "p.st", code=None)
    assert "does not know the grid" in refused.err
    assert refused.code in (1, 2)
