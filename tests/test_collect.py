"""qvec moments: one pass sees what a plain forward shows, layers that share inputs once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import NETWORKS, Drawer, bare, call
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors
from test_architectures import ROWS
from test_calibrate import calm, plain_inputs

from qvec_cli.calibration.moments_file import StoredMoments
from qvec_cli.calibration.walk import site_moments
from qvec_cli.checkpoint.read import Checkpoint

SMALL = ("--samples", 24, "--batch-size", 16, "--device", "cpu")


@pytest.mark.parametrize("name", ROWS)
def test_one_pass_sees_what_a_plain_forward_shows(name: str) -> None:
    network, weights, batches = calm(name)
    visited = []
    for site, inputs, tokens in site_moments(network, weights, batches):
        for weight in site.weights:
            moment, mean, magnitude = plain_inputs(network, weight, batches)
            atol = 2e-6 * max(np.abs(moment).max(), magnitude.max())
            np.testing.assert_allclose(inputs.moment, moment, rtol=2e-5, atol=atol)
            np.testing.assert_allclose(inputs.mean, mean, rtol=2e-5, atol=atol)
            np.testing.assert_allclose(inputs.magnitude, magnitude, rtol=2e-5, atol=atol)
        assert tokens > 0
        visited.extend(site.names)
    assert sorted(visited) == sorted(weights)


def test_queries_keys_and_values_are_held_once(
    drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theta, out, q = tmp_path / "theta.st", tmp_path / "m.st", tmp_path / "q.st"
    small = {"depth": 1, "embed_dim": 64, "num_heads": 2}
    monkeypatch.setitem(NETWORKS, "eva", ("eva02_base_patch14_448", 28, small))
    flags = bare("eva", theta)
    call("moments", theta, *flags, "--data", drawer.donor_data, "--samples", 2, "-o", out)
    first, *others = (f"blocks.0.attn.{part}_proj.weight" for part in "qkv")
    with Checkpoint(out) as file:
        carried = StoredMoments(file)
        assert {n for n, site in carried.facts.aliases.items() if site == first} == {*others}
        assert not any(n.startswith(f"moments/{alias}/") for alias in others for n in file.attached)
        for name in others:
            assert np.array_equal(carried.inputs(name).moment, carried.inputs(first).moment)
        targets = carried.facts.targets
    found = call("quantize", theta, *flags, "--bits", 3, "--method", "gptq", "--moments", out,
                 "-o", q, "--json").json  # fmt: skip
    assert {*found["results"]["quantized"]} == targets


@pytest.mark.parametrize("family", NETWORKS)
def test_every_family_can_be_quantized_on_its_moments(
    family: str, drawer: Drawer, tmp_path: Path
) -> None:
    theta, out = tmp_path / "theta.st", tmp_path / "m.st"
    flags = bare(family, theta)
    call("moments", theta, *flags, "--data", drawer.donor_data, *SMALL, "--rank", 8, "-o", out)
    found = call("quantize", theta, *flags, "--bits", 3, "--method", "gptq", "--moments", out,
                 "-o", tmp_path / "q.st", "--json").json  # fmt: skip
    assert found["results"]["quantized"]


def test_its_document_says_what_it_costs(drawer: Drawer, tmp_path: Path) -> None:
    out = tmp_path / "m.st"
    args = ("moments", drawer.donor, "--data", drawer.donor_data, *SMALL, "-o", out)
    found = call(*args, "--json").json
    results = found["results"]
    assert results["bytes"] == out.stat().st_size
    assert results["model_bytes"] == drawer.donor.stat().st_size
    assert (results["images"], results["layers"]) == (24, 24)
    assert found["data_use"] == {"level": "none", "counts": {"moments": 24}}
    floats = sum(array.size for array in load_file(out).values())
    widths = [e.shape[1] for n, e in outline(drawer.donor) if n in results["tokens"]]
    assert floats == sum(w * (w + 1) // 2 + 2 * w for w in widths)
    shown = call(*args, "-f").out
    assert "24 images (bars3), whole for 24 layers" in shown
    assert "of the model's" in shown


def outline(path: Path) -> list[tuple[str, Any]]:
    with Checkpoint(path) as checkpoint:
        return [*checkpoint.items()]


def test_the_same_images_give_the_same_bytes_and_more_images_others(
    drawer: Drawer, tmp_path: Path
) -> None:
    args = ("moments", drawer.donor, "--data", drawer.donor_data, "--rank", 8, "--device", "cpu")
    for name, samples in (("a", 24), ("b", 24), ("c", 23)):
        call(*args, "--samples", samples, "-o", tmp_path / name)
    first, second, third = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second
    assert first != third


def test_the_base_itself_is_the_base_of_what_was_fine_tuned_from_it(
    drawer: Drawer, tmp_path: Path
) -> None:
    out = tmp_path / "m.st"
    call("moments", drawer.base, "--data", drawer.donor_data, *SMALL, "-o", out)
    with Checkpoint(out) as file, Checkpoint(drawer.receiver) as receiver:
        (source,) = StoredMoments(file).facts.sources
        assert receiver.card
        assert source.start == receiver.card.base
        assert source.base != source.start


def test_a_plan_writes_nothing(drawer: Drawer, tmp_path: Path) -> None:
    args = ("moments", drawer.donor, "--data", drawer.donor_data, *SMALL, "-o", tmp_path / "m.st")
    plan = call(*args, "--dry-run", "--json").json["results"]["plan"]
    assert plan["images"] == {"train": 24}
    assert sum(t["fate"] == "inputs are measured" for t in plan["tensors"]) == 24
    assert list(tmp_path.iterdir()) == []


def overflowing(path: Path) -> None:
    tensors = load_tensors(path)
    tensors["blocks.0.mlp.fc1.weight"] *= 1e30
    save_tensors(tensors, path)


@pytest.mark.parametrize(
    ("args", "spoil", "said"),
    [
        (("--rank", 500), None, "--rank 500: the widest layer has 256 inputs"),
        (("--split", "tset"), None, "has no split 'tset'"),
        (("--targets", "nothing*"), None, "matches no matrix"),
        (("--targets", "pos_embed*"), None, "matches no matrix"),
        ((), overflowing, "blocks.0.mlp.fc2.weight: "),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    args: tuple[object, ...],
    spoil: Callable[[Path], None] | None,
    said: str,
    drawer: Drawer,
    tmp_path: Path,
) -> None:
    theta, out = tmp_path / "theta.st", tmp_path / "m.st"
    flags = bare("vit", theta)
    if spoil:
        spoil(theta)
    found = call("moments", theta, *flags, "--data", drawer.donor_data, *SMALL, *args, "-o", out,
                 code=1)  # fmt: skip
    assert len(found.errors) == 1
    assert said in found.errors[0]
    assert not out.exists()


@pytest.mark.parametrize("what", ["rho", "packed", "moments"])
def test_moments_are_of_float_models(what: str, drawer: Drawer, tmp_path: Path) -> None:
    path = tmp_path / "x.st"
    if what == "rho":
        path = drawer.rho
    elif what == "packed":
        call("quantize", drawer.donor, "--bits", 3, "-o", path)
    else:
        call("moments", drawer.donor, "--data", drawer.donor_data, *SMALL, "-o", path)
    out = tmp_path / "m.st"
    (said,) = call("moments", path, "--data", drawer.donor_data, "-o", out, code=1).errors
    assert path.name in said
    assert not out.exists()
