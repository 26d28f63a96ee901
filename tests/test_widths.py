"""Widths of single layers: within a budget, by hand, of the head and of embeddings."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Drawer, call, without_torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import nn

from qvec_cli.calibration.damage import _squared_gradients
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import SpecError
from qvec_cli.inputs.foreign import load_packed
from qvec_cli.quant.allocation import Option, allocate
from qvec_cli.specs import Grid, Scale

PARTS = ("_packed", "_scale", "_zero_point")


def problem(draw: random.Random) -> tuple[dict[str, list[Option]], int]:
    """Layers of random sizes and damages, some of which grow with bits, and a budget."""
    sizes = {f"layer {n}": draw.choice((100, 200, 431)) for n in range(5)}
    options = {
        name: [Option(bits, bits * size, size * draw.uniform(0.2, 2) * 3.0**-bits) for bits in BITS]
        for name, size in sizes.items()
    }
    least, most = (bits * sum(sizes.values()) for bits in (min(BITS), max(BITS)))
    return options, draw.randint(least, most)


BITS = (2, 3, 4, 6)


def test_no_choice_within_the_budget_does_less_damage() -> None:
    draw = random.Random(0)
    for _ in range(200):
        options, budget = problem(draw)
        found = allocate(options, budget)
        choices = itertools.product(*options.values())
        fitting = [c for c in choices if sum(option.cost for option in c) <= budget]
        best = min(sum(option.damage for option in choice) for choice in fitting)
        chosen = [next(o for o in options[n] if o.bits == bits) for n, bits in found.bits.items()]
        assert found.cost == sum(option.cost for option in chosen) <= budget
        assert found.damage == pytest.approx(sum(option.damage for option in chosen))
        assert found.damage == pytest.approx(best)
        assert found.bound <= best + 1e-12
        assert 0 <= found.gap < 1


def test_a_budget_that_nothing_meets_is_refused_with_what_is_needed() -> None:
    with pytest.raises(SpecError, match=r"at least 1,000 are needed, and the budget is 999"):
        allocate({"layer": [Option(2, 1000, 1.0), Option(3, 1500, 0.5)]}, 999)


def test_a_grid_with_widths_of_its_own_goes_through_json() -> None:
    grid = Grid(2, scale=Scale.MSE, layers=(("b", 4), ("a", 3), ("c", 2)))
    assert grid.layers == (("a", 3), ("b", 4))  # in one order, and without what is no exception
    assert Grid.from_json(json.loads(json.dumps(grid.to_json()))) == grid
    assert [grid.of(name).bits for name in "abcd"] == [3, 4, 2, 2]
    assert grid.of("a") == Grid(3, scale=Scale.MSE)
    assert str(grid) == "2, 3 and 4-bit channel mse"
    assert "layers" not in Grid(2).to_json()
    for layers in ({"a": 9}, {"a": 2.5}, {"a": True}, ["a"]):
        with pytest.raises(SpecError):
            Grid.from_json({**Grid(2).to_json(), "layers": layers})


def test_squared_gradients_are_those_of_each_layers_outputs() -> None:
    """Against a backward pass that is asked for them directly, an image at a time."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3))
    weights = {name: p for name, p in network.named_parameters() if name.endswith("weight")}
    batches = [torch.randn(4, 6), torch.randn(3, 6)]
    squares = _squared_gradients(network, weights, batches)
    draw, expected = torch.Generator().manual_seed(0), dict.fromkeys(weights, 0.0)
    for batch in batches:
        classes = torch.multinomial(network(batch).softmax(1), 1, generator=draw)[:, 0]
        for image, label in zip(batch, classes, strict=True):
            hidden = network[0](image)
            logits = network[2](network[1](hidden))
            loss = nn.functional.cross_entropy(logits[None], label[None])
            gradients = torch.autograd.grad(loss, [hidden, logits])
            for name, gradient in zip(expected, gradients, strict=True):
                expected[name] = expected[name] + gradient.square().double() / 7
    for name, square in squares.items():
        np.testing.assert_allclose(square, expected[name], rtol=1e-4)


def mean_width(results: Mapping[str, object], theta: Path) -> float:
    widths = results["widths"]
    assert isinstance(widths, dict)
    with Checkpoint(theta) as checkpoint:
        sizes = {name: checkpoint[name].size for name in widths}
    return sum(widths[name] * size for name, size in sizes.items()) / sum(sizes.values())


HOW: dict[str, tuple[object, ...]] = {
    "weights": (),
    "moments": ("--method", "gptq", "--moments", "{moments}"),
    "images": ("--method", "gptq", "--calib", "generated", "--calib-samples", 16),
    "images alone": ("--calib", "generated", "--calib-samples", 16),
}


@pytest.fixture(scope="module")
def moments(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("moments") / "moments.st"
    call("moments", drawer.receiver, "--data", drawer.donor_data, "-o", out)
    return out


@pytest.mark.parametrize("by", HOW)
def test_an_average_is_met_and_the_budget_used(
    by: str, drawer: Drawer, moments: Path, tmp_path: Path
) -> None:
    words = [str(word).format(moments=moments) for word in HOW[by]]
    gains = []
    for bits in (2.25, 2.5, 3.75):
        out = tmp_path / f"{bits}.st"
        results = call(
            "quantize", drawer.receiver, "--bits", bits, *words, "-o", out, "--json"
        ).json["results"]
        assert results["budget"]["by"] == by.split(maxsplit=1)[0]
        assert results["calibrated"] == ("--method" in words)
        assert bits - 0.1 < mean_width(results, drawer.receiver) <= bits
        assert results["budget"]["bound"] <= results["budget"]["damage"]
        gains.append(results["budget"]["damage"])
    assert gains == sorted(gains, reverse=True)


def test_each_layer_is_what_it_is_where_all_have_its_width(drawer: Drawer, tmp_path: Path) -> None:
    grid = ("--scale", "mse", "--asymmetric")
    mixed = tmp_path / "mixed.st"
    results = call("quantize", drawer.receiver, "--bits", 2.5, *grid, "-o", mixed, "--json").json[
        "results"
    ]
    assert len(set(results["widths"].values())) > 1
    uniform = {}
    for bits in set(results["widths"].values()):
        out = tmp_path / f"{bits}.st"
        call("quantize", drawer.receiver, "--bits", bits, *grid, "-o", out)
        uniform[bits] = load_file(out)
    for name, array in load_file(mixed).items():
        weight = next((name.removesuffix(p) for p in PARTS if name.endswith(p)), name)
        bits = results["widths"].get(weight, 2)
        assert np.array_equal(array, uniform[bits][name]), name


@pytest.mark.parametrize("size", [400_000, 350_001, "340kB", "370KiB"])
@pytest.mark.parametrize("folder", [False, True])
def test_a_size_is_met(size: object, folder: bool, drawer: Drawer, tmp_path: Path) -> None:
    out = tmp_path / "q.st"
    target = f"{tmp_path}/q/" if folder else out
    words = ("--target-size", size, "--head-bits", 8)
    call("quantize", drawer.receiver, *words, "-o", target)
    files = [*(tmp_path / "q").iterdir()] if folder else [out]
    most = {"340kB": 340_000, "370KiB": 378_880}.get(str(size), size)
    assert isinstance(most, int)
    assert 0.93 * most < sum(file.stat().st_size for file in files) <= most


@pytest.mark.parametrize("folder", [False, True])
def test_a_size_that_the_smallest_width_just_meets_is_met(
    folder: bool, drawer: Drawer, tmp_path: Path
) -> None:
    """Though a card or config.json that lists layers of other widths would be too long."""
    target = f"{tmp_path}/q/" if folder else tmp_path / "q.st"
    refused = call("quantize", drawer.receiver, "--target-size", 0, "-o", target, code=2)
    needed = int(refused.err.split("at 2 bits it takes ")[1].split()[0].replace(",", ""))
    for size, code in ((needed + 900, 0), (needed - 400, 2)):
        words = ("--target-size", size, "-o", target, "--force")
        call("quantize", drawer.receiver, *words, code=code)
    files = [*(tmp_path / "q").iterdir()] if folder else [tmp_path / "q.st"]
    assert needed - 400 < sum(file.stat().st_size for file in files) <= needed + 900


def test_a_size_that_groups_do_not_meet_has_a_scale_a_row(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    layers = {f"blocks.{place}.mlp.fc1.weight": draw.normal(size=(64, 512)) for place in range(4)}
    source, out = tmp_path / "m.safetensors", tmp_path / "q.st"
    save_file({name: weight.astype(np.float32) for name, weight in layers.items()}, source)
    args = ("quantize", source, "--no-head")
    call(*args, "--bits", 2, "--granularity", "channel", "-o", out)
    size = out.stat().st_size + 1000  # of groups, the scales alone take more
    told = call(*args, "--target-size", size, "-o", out, "--force", "--json")
    assert "a scale a row" in told.err
    assert told.json["parameters"]["grid"]["granularity"] == "channel"
    assert out.stat().st_size <= size
    groups = ("--group-size", 64, "--target-size", size)
    assert "is too small" in call(*args, *groups, "-o", out, "--force", code=2).err


def test_the_width_of_all_said_twice_changes_nothing_of_a_folder(
    drawer: Drawer, tmp_path: Path
) -> None:
    for bits in (3, 8):
        words = ("quantize", drawer.receiver, "--bits", bits, "-o")
        plain = call(*words, f"{tmp_path}/plain{bits}/", "--json")
        again = call(*words, f"{tmp_path}/again{bits}/", "--bits-for", f"*={bits}", "--json")
        assert plain.json["parameters"]["grid"] == again.json["parameters"]["grid"]
        with Checkpoint(tmp_path / f"plain{bits}") as folder:
            assert folder.card.quant == plain.json["parameters"]["grid"]


def test_queries_keys_and_values_get_one_width(tmp_path: Path) -> None:
    from qvec_cli.calibration.widths import _ALIKE

    alike = {
        "encoder.layer.0.attention.attention.*.weight": ("query", "key", "value"),
        "blocks.1.attn.*_proj.weight": ("q", "k", "v"),
        "transformer.layer.2.attention.*_lin.weight": ("q", "k", "v"),
    }
    for pattern, words in alike.items():
        names = [pattern.replace("*", word) for word in words]
        assert {_ALIKE.sub("*", name) for name in names} == {pattern}
    for name in ("blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight", "attn.out_proj.weight"):
        assert _ALIKE.sub("*", name) == name


def test_widths_are_said_by_hand_and_the_last_word_counts(drawer: Drawer, tmp_path: Path) -> None:
    words = ("--bits-for", "blocks.*=4", "--bits-for", "blocks.0.*=8", "--bits", 2)
    results = call("quantize", drawer.receiver, *words, "-o", tmp_path / "q.st", "--json").json[
        "results"
    ]
    expected = {n: 8 if n.startswith("blocks.0.") else 4 for n in results["quantized"]}
    assert results["widths"] == expected
    assert "budget" not in results


def test_beside_a_budget_a_width_by_hand_stays(drawer: Drawer, tmp_path: Path) -> None:
    words = ("--bits-for", "blocks.3.*=6", "--bits", 3.5)
    results = call("quantize", drawer.receiver, *words, "-o", tmp_path / "q.st", "--json").json[
        "results"
    ]
    by_hand = {bits for name, bits in results["widths"].items() if name.startswith("blocks.3.")}
    assert by_hand == {6}
    assert 3.3 < mean_width(results, drawer.receiver) <= 3.5


def test_head_and_embeddings_are_packed_and_come_back_in_their_shapes(
    drawer: Drawer, tmp_path: Path
) -> None:
    out = tmp_path / "q.st"
    words = ("--bits", 3, "--head-bits", 8, "--embed-bits", 6)
    results = call("quantize", drawer.receiver, *words, "-o", out, "--json").json["results"]
    theta = load_file(drawer.receiver)
    extra = {"head.weight": 8, "patch_embed.proj.weight": 6, "pos_embed": 6}
    assert {n: b for n, b in results["widths"].items() if b != 3} == extra
    with Checkpoint(out) as packed:
        for name, bits in extra.items():
            codes, weight = load_packed(packed, name), theta[name]
            restored = codes.weight()
            assert restored.shape == weight.shape
            assert codes.grid.bits == bits
            blocks = np.abs(restored - weight).reshape(codes.scale.size, -1)
            assert (blocks <= 0.55 * codes.scale.reshape(-1, 1)).all(), name
    assert "head.bias" in results["left"]
    accuracies = [
        call("eval", file, "--data", drawer.receiver_data, "--json").json["results"]["top1"]
        for file in (out, drawer.receiver)
    ]
    assert accuracies[0] > accuracies[1] - 0.2


def test_an_embedding_that_groups_do_not_fit_has_a_scale_a_row(
    drawer: Drawer, tmp_path: Path
) -> None:
    """As patches of 14 pixels have it: 588 input features, and groups of 64."""
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(64, 3, 14, 14)).astype(np.float32)
    theta = load_file(drawer.receiver) | {"patch_embed.proj.weight": patches}
    save_file(theta, tmp_path / "x.st")
    call("quantize", tmp_path / "x.st", "--bits", 3, "--embed-bits", 6, "-o", tmp_path / "q.st")
    with Checkpoint(tmp_path / "q.st") as packed:
        embedding, layer = (
            load_packed(packed, name)
            for name in ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
        )
    assert embedding.scale.shape == (len(embedding.codes), 1)
    assert layer.scale.shape == (len(layer.codes), layer.codes.shape[1] // 64)
    rows = np.abs(embedding.weight() - patches).reshape(len(patches), -1)
    assert (rows <= 0.55 * embedding.scale).all()


def test_a_fake_twin_has_the_numbers_of_the_packed_file(drawer: Drawer, tmp_path: Path) -> None:
    words = ("--bits", 2.5, "--head-bits", 8, "--embed-bits", 8)
    for out, more in (("packed.st", ()), ("fake.st", ("--fake",))):
        call("quantize", drawer.receiver, *words, *more, "-o", tmp_path / out)
    fake = load_file(tmp_path / "fake.st")
    with Checkpoint(tmp_path / "packed.st") as packed:
        names = [name.removesuffix("_packed") for name in packed if name.endswith("_packed")]
        for name in names:
            assert np.array_equal(load_packed(packed, name).weight(), fake[name]), name
    assert {"head.weight", "pos_embed"} <= {*names}


def test_a_folder_names_a_group_a_width(drawer: Drawer, tmp_path: Path) -> None:
    words = ("--bits", 2.5, "--head-bits", 8)
    results = call("quantize", drawer.receiver, *words, "-o", f"{tmp_path}/", "--json").json
    scheme = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    groups = [(g["weights"]["num_bits"], g["targets"]) for g in scheme["config_groups"].values()]
    named = {name: bits for bits, names in groups for name in names}
    widths = results["results"]["widths"].items()
    assert named == {f"timm_model.{n.removesuffix('.weight')}": bits for n, bits in widths}
    assert len({bits for bits, _ in groups}) == len(groups) > 2
    assert not {*named} & {*scheme["ignore"]}
    assert results["parameters"]["grid"]["symmetric"]  # which alone the stock loader takes


def test_zero_points_beside_different_widths_are_for_single_files(
    drawer: Drawer, tmp_path: Path
) -> None:
    words = ("--bits", 2.5, "--asymmetric", "-o")
    text = call("quantize", drawer.receiver, *words, f"{tmp_path}/q/", code=1).err
    assert "zero points beside layers of different widths" in text
    call("quantize", drawer.receiver, *words, tmp_path / "q.st")


def test_an_embedding_is_no_linear_layer_of_a_folder(drawer: Drawer, tmp_path: Path) -> None:
    words = ("--bits", 3, "--embed-bits", 8, "-o", f"{tmp_path}/q/")
    text = call("quantize", drawer.receiver, *words, code=1).err
    assert "looks like an embedding" in text
    assert "-o FILE" in text
    assert not (tmp_path / "q").exists()


WRONG: dict[str, tuple[int, str, tuple[object, ...]]] = {
    "two budgets": (2, "--target-size and --bits", ("--bits", 3, "--target-size", "1MB")),
    "no size": (2, "--target-size 'big' is no size", ("--target-size", "big")),
    "no size that is": (2, "99' is no size", ("--target-size", "9" * 400)),
    "a size of floats": (2, "is met with every layer in float", ("--target-size", "1GB")),
    "no width": (2, "--bits-for 'blocks.*'", ("--bits", 3, "--bits-for", "blocks.*")),
    "a wide one": (2, "--bits-for 'a=9'", ("--bits", 3, "--bits-for", "a=9")),
    "a glob of nothing": (1, "'nothing*' matches no", ("--bits", 3, "--bits-for", "nothing*=4")),
    "a fake size": (2, "--target-size goes without", ("--target-size", "1MB", "--fake")),
    "too small": (2, "is too small: at 2 bits it takes", ("--target-size", "10kB")),
    "all are said": (
        2,
        "--bits-for names every weight",
        ("--bits", 2.5, "--bits-for", "*=4"),
    ),
    "an average of grids": (2, "--bits does not go with --compare", ("--bits", 2.5, "--compare")),
}


def test_a_mistake_costs_a_line_and_no_torch(drawer: Drawer, tmp_path: Path) -> None:
    lines = [
        ["quantize", drawer.receiver, *words, *(() if "--compare" in words else ("-o", "x.st"))]
        for _, _, words in WRONG.values()
    ]
    answers = without_torch(lines, tmp_path)
    for (case, (code, text, _)), answer in zip(WRONG.items(), answers, strict=True):
        assert (answer.code, text in answer.errors[0]) == (code, True), (case, answer.errors)
    assert not (tmp_path / "x.st").exists()


def test_a_file_that_was_made_for_a_grid_keeps_its_widths(drawer: Drawer, tmp_path: Path) -> None:
    words = ("--bits", 2.5, "-o", tmp_path / "q.st")
    text = call("quantize", drawer.donor_qat, *words, code=1).err
    assert "was made for" in text
    assert "--cross-grid" in text
    call("quantize", drawer.donor_qat, *words, "--cross-grid")


def test_what_was_made_for_widths_of_its_own_follows_its_card(
    drawer: Drawer, tmp_path: Path
) -> None:
    trained, out = tmp_path / "trained.st", tmp_path / "q.st"
    with safe_open(drawer.donor_qat, "numpy") as file:
        facts = file.metadata()
    grid = {**json.loads(facts["qvec.quant"]), "layers": {"blocks.1.attn.qkv.weight": 5}}
    save_file(load_file(drawer.donor_qat), trained, {**facts, "qvec.quant": json.dumps(grid)})
    results = call("quantize", trained, "-o", out, "--json").json["results"]
    odd = {name: bits for name, bits in results["widths"].items() if bits != grid["bits"]}
    assert odd == {"blocks.1.attn.qkv.weight": 5}
    with Checkpoint(out) as packed:
        assert packed.card.quant == grid
    words = ("--head-bits", 8, "-o", tmp_path / "h.st", "--json")
    with_head = call("quantize", trained, *words).json["results"]["widths"]
    assert with_head == {**results["widths"], "head.weight": 8}
    words = ("--bits-for", "*.fc1.*=6", "-o", tmp_path / "f.st")
    assert "was made for" in call("quantize", trained, *words, code=1).err
    rho = tmp_path / "rho.st"
    call("extract", drawer.donor, trained, "-o", rho)
    text = call("combine", drawer.rho, rho, "-o", tmp_path / "c.st", code=1).err
    assert "and 5-bit channel" in text
    patched, quantized = tmp_path / "p.st", tmp_path / "pq.st"
    call("patch", drawer.receiver, rho, "-o", patched)
    results = call("quantize", patched, "-o", quantized, "--json").json["results"]
    assert {n for n, bits in results["widths"].items() if bits == 5} == {*odd}


def test_advise_meets_a_size_by_the_command_that_it_prints(drawer: Drawer, tmp_path: Path) -> None:
    out, again = tmp_path / "q.st", tmp_path / "again.st"
    words = ("--target-size", "400kB", "--head-bits", 8, "--proxy-samples", 32, "--refine", 0)
    results = call("advise", drawer.receiver, *words, "-o", out, "--json").json["results"]
    assert out.stat().st_size <= 400_000
    (command,) = results["commands"]
    assert "--target-size 400000 --head-bits 8" in command
    call(*command.replace(str(out), str(again)).split()[1:])
    assert out.read_bytes() == again.read_bytes()
    chosen = next(row for row in results["candidates"] if row["name"] == results["chosen"])
    assert chosen["grid"]["layers"]
    flags = ("--proxy-samples", 32, "--refine", 0, "--resume", "-o", out)
    for other in (("--target-size", "400kB"), ("--target-size", "390kB", "--head-bits", 8)):
        assert "another run" in call("advise", drawer.receiver, *other, *flags, code=None).err
    same = call("advise", drawer.receiver, *words, "--resume", "-o", out)
    assert "done already" in same.out + same.err


def test_advise_takes_no_vector_beside_a_budget(drawer: Drawer, tmp_path: Path) -> None:
    call("extract", drawer.donor, drawer.donor_qat, "-o", tmp_path / "rho.st")
    words = ("--bits", 2.5, "--rho", tmp_path / "rho.st")
    assert "--rho goes with one width" in call("advise", drawer.receiver, *words, code=2).errors[0]


def test_training_has_no_average(drawer: Drawer) -> None:
    words = ("--data", drawer.donor_data, "--bits", 2.5, "-o", "x.st")
    assert "--bits" in call("train-qat", drawer.donor, *words, code=2).errors[0]


def test_widths_of_a_grid_are_those_of_its_weights() -> None:
    grid = Grid(3, layers=(("a", 2),))
    assert grid.widths == (2, 3)
    assert replace(grid, bits=2).layers == ()
