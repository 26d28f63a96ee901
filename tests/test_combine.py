"""combine and --parts on files: what is written, what it is said to be, and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FAST, Drawer, call, light
from safetensors.numpy import load_file, save_file

from qvec_cli.checkpoint.card import Card
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import BLOCK, Checkpoint
from qvec_cli.checkpoint.write import write
from qvec_cli.specs import Grid, Part, Rule
from qvec_cli.vector.arithmetic import Merge, draws, merged
from qvec_cli.vector.pairing import part_of

Arrays = dict[str, np.ndarray]
RULES: dict[Rule, tuple[str, ...]] = {
    Rule.MEAN: (),
    Rule.WEIGHTED: ("--mix", "0.5,-0.25,2"),
    Rule.TIES: ("--density", "0.3"),
    Rule.DARE: ("--density", "0.4", "--seed", "7"),
}
MERGES = {
    Rule.MEAN: Merge(),
    Rule.WEIGHTED: Merge(Rule.WEIGHTED, (0.5, -0.25, 2.0)),
    Rule.TIES: Merge(Rule.TIES, density=0.3),
    Rule.DARE: Merge(Rule.DARE, density=0.4, seed=7),
}
every_rule = pytest.mark.parametrize("rule", Rule)


@dataclass(frozen=True)
class Vectors:
    """Three vectors of one base, and what tells a fourth from them."""

    rho: Path  # of the donor's data
    second: Path  # of the donor's data again
    own: Path  # of the receiver's data

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        return self.rho, self.second, self.own


@pytest.fixture(scope="module")
def vectors(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    root = tmp_path_factory.mktemp("vectors")
    made = Vectors(drawer.rho, root / "second.st", root / "own.st")
    args = ("--data", drawer.donor_data, *FAST, "--bits", 3, "--smoothing", 0.1)
    call("train-qat", drawer.base, *args, "-o", root / "a.st")
    call("extract", drawer.donor, root / "a.st", "-o", made.second)
    args = ("--data", drawer.receiver_data, *FAST, "--bits", 3)
    call("train-qat", drawer.base, *args, "-o", root / "b.st")
    call("extract", drawer.receiver, root / "b.st", "-o", made.own)
    return made


def card_of(path: Path) -> Card:
    with Checkpoint(path) as checkpoint:
        assert checkpoint.card is not None
        return checkpoint.card


def changed(source: Path, target: Path, arrays: Arrays | None = None, **facts: Any) -> Path:
    """A vector with other tensors, or with a card that says something else."""
    arrays = load_file(source) if arrays is None else arrays
    plan = {name: Entry("F32", array.shape) for name, array in arrays.items()}
    blocks = ((name, [array.reshape(-1)]) for name, array in arrays.items())
    write(target, plan, blocks, replace(card_of(source), **facts), force=True)
    return target


def made(out: Path, *args: object) -> Arrays:
    call("combine", *args, "-o", out, "--force")
    return load_file(out)


def use(path: Path) -> Any:
    return call("inspect", path, "--json").json["data_use"]


@every_rule
def test_a_file_is_the_rule_over_every_tensor(rule: Rule, vectors: Vectors, tmp_path: Path) -> None:
    found = made(tmp_path / "c.st", *vectors.paths, "--rule", rule, *RULES[rule])
    arrays = [load_file(path) for path in vectors.paths]
    assert found.keys() == arrays[0].keys()
    for name, array in found.items():
        blocks = [a[name].reshape(-1) for a in arrays]
        wanted = merged(blocks, MERGES[rule], draws(MERGES[rule], name, 3)).reshape(array.shape)
        assert array.dtype == np.float32
        assert np.array_equal(array, wanted), name


@every_rule
def test_tensors_longer_than_a_block_are_the_whole(
    rule: Rule, vectors: Vectors, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    sizes = {"a.weight": (3, BLOCK // 2 + 7), "b": (BLOCK,), "c": (0, 4), "d": ()}
    arrays = [
        {n: np.asarray(rng.standard_normal(s), np.float32) for n, s in sizes.items()}
        for _ in range(3)
    ]
    paths = [changed(vectors.rho, tmp_path / f"{i}.st", a) for i, a in enumerate(arrays)]
    found = made(tmp_path / "c.st", *paths, "--rule", rule, *RULES[rule])
    for name, array in found.items():
        blocks = [a[name].reshape(-1) for a in arrays]
        wanted = merged(blocks, MERGES[rule], draws(MERGES[rule], name, 3)).reshape(array.shape)
        assert np.array_equal(array, wanted), name


@every_rule
def test_one_vector_is_itself(rule: Rule, vectors: Vectors, tmp_path: Path) -> None:
    mix = ("--mix", "1") if rule is Rule.WEIGHTED else ()
    made(tmp_path / "c.st", vectors.rho, "--rule", rule, *mix)
    ours, theirs = card_of(tmp_path / "c.st"), card_of(vectors.rho)
    assert ours.digest == theirs.digest
    assert replace(ours, provenance={}) == replace(theirs, provenance={})


@every_rule
def test_shards_are_the_whole(rule: Rule, vectors: Vectors, tmp_path: Path) -> None:
    with Checkpoint(vectors.own) as checkpoint:
        metadata = checkpoint.metadata
    arrays, folder = load_file(vectors.own), tmp_path / "own"
    folder.mkdir()
    names = {f"{i}.safetensors": sorted(arrays)[i::2] for i in (0, 1)}
    for file, held in names.items():
        save_file({name: arrays[name] for name in held}, folder / file, metadata)
    table = {name: file for file, held in names.items() for name in held}
    index = {"metadata": {}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    whole = made(tmp_path / "a.st", *vectors.paths, "--rule", rule, *RULES[rule])
    pieces = made(tmp_path / "b.st", *vectors.paths[:2], folder, "--rule", rule, *RULES[rule])
    assert all(np.array_equal(whole[name], pieces[name]) for name in whole)


def test_the_same_inputs_and_flags_give_the_same_bytes(vectors: Vectors, tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.st" for i in range(3)]
    for file in files[:2]:
        made(file, *vectors.paths, "--rule", "dare", "--seed", 3)
    made(files[2], *vectors.paths, "--rule", "dare", "--seed", 4)
    first, second, third = (file.read_bytes() for file in files)
    assert first == second != third


def test_the_card_tells_rule_parts_parents_and_what_all_agree_on(
    vectors: Vectors, tmp_path: Path
) -> None:
    flags = ("--rule", "weighted", "--mix", "0.5,1", "--parts", "mlp,attn")
    made(tmp_path / "c.st", vectors.rho, vectors.own, *flags)
    card, first = card_of(tmp_path / "c.st"), card_of(vectors.rho)
    assert (card.kind, card.base, card.quant, card.targets, card.model) == (
        *(first.kind, first.base, first.quant, first.targets, first.model),
    )
    assert card.recipe is None
    assert card.data is not None
    assert [one["name"] for one in card.data["joined"]] == ["bars3", "bars4"]
    lineage = card.provenance
    assert (lineage["op"], lineage["rule"], lineage["mix"]) == ("combine", "weighted", [0.5, 1.0])
    assert lineage["parts"] == ["attn", "mlp"]
    digests = [card_of(path).digest for path in (vectors.rho, vectors.own)]
    assert [parent["digest"] for parent in lineage["parents"]] == digests
    shown = call("inspect", tmp_path / "c.st").out
    for words in ("combine by weighted of attn, mlp", "rho 2 own.st", "data: bars3 + bars4"):
        assert words in shown
    assert call("inspect", tmp_path / "c.st", "--verify").code == 0


def test_what_came_out_is_told(vectors: Vectors, tmp_path: Path) -> None:
    args = ("combine", *vectors.paths, "--rule", "dare", "--parts", "attn")
    shown = call(*args, "-o", tmp_path / "a.st").out
    assert "dare (density 0.1, seed 0) of 3 vectors" in shown
    assert "zeros outside attn: " in shown
    document = call(*args, "-o", tmp_path / "b.st", "--json").json
    assert document["environment"]["seed"] == 0
    results, arrays = document["results"], load_file(tmp_path / "b.st")
    assert results["tensors"] + len(results["zeros"]) == len(arrays)
    norm = np.sqrt(sum(np.square(a, dtype=np.float64).sum() for a in arrays.values()))
    assert results["norm"] == pytest.approx(norm, rel=1e-5)
    assert len(results["norms"]) == 3


@pytest.mark.parametrize("part", Part)
def test_a_part_keeps_its_numbers_and_the_rest_are_zeros(
    part: Part, vectors: Vectors, tmp_path: Path
) -> None:
    whole = made(tmp_path / "whole.st", *vectors.paths)
    found = made(tmp_path / "part.st", *vectors.paths, "--parts", part)
    with Checkpoint(tmp_path / "whole.st") as outline:
        parts = {name: part_of(name, outline) for name in whole}
    assert part in parts.values()
    for name, array in found.items():
        assert np.array_equal(array, whole[name] if parts[name] is part else 0 * whole[name]), name


def test_a_patch_with_parts_is_one_with_a_vector_of_those_parts(
    vectors: Vectors, drawer: Drawer, tmp_path: Path
) -> None:
    args = ("patch", drawer.receiver, "-l", "0.7")
    made(tmp_path / "c.st", vectors.rho, "--parts", "attn,bias")
    call(*args[:2], tmp_path / "c.st", *args[2:], "-o", tmp_path / "a.st")
    flags = ("--parts", "bias,attn", "-o", tmp_path / "b.st", "--json")
    results = call(*args[:2], vectors.rho, *args[2:], *flags).json["results"]
    ours, theirs, plain = (
        load_file(path) for path in (tmp_path / "a.st", tmp_path / "b.st", drawer.receiver)
    )
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    for name in results["kept"]:
        assert theirs[name].tobytes() == plain[name].tobytes()
    assert results["parts"] == ["attn", "bias"]
    assert results["tensors"] + len(results["kept"]) == len(plain)
    assert card_of(tmp_path / "b.st").provenance["parts"] == ["attn", "bias"]
    assert "at lambda 0.7 of attn, bias" in call("inspect", tmp_path / "b.st", "--lineage").out


def test_lambda_zero_and_no_parts_are_as_they_were(drawer: Drawer, tmp_path: Path) -> None:
    args = (drawer.receiver, drawer.rho, "-l", 0)
    call("patch", *args, "--parts", "mlp", "-o", tmp_path / "a.st")
    assert card_of(tmp_path / "a.st").digest == card_of(drawer.receiver).digest
    call("patch", *args, "-o", tmp_path / "b.st")
    assert "parts" not in card_of(tmp_path / "b.st").provenance


def test_a_combination_with_the_receivers_own_qat_has_cost_its_labels(
    vectors: Vectors, drawer: Drawer, tmp_path: Path
) -> None:
    made(tmp_path / "once.st", vectors.rho, vectors.own)
    made(tmp_path / "twice.st", tmp_path / "once.st", vectors.second)
    made(tmp_path / "foreign.st", vectors.rho, vectors.second)
    own = {"level": "receiver_labels", "counts": {"train": 108, "val": 12}}
    for name, wanted in (("once", own), ("twice", own), ("foreign", {"level": "none"})):
        call("patch", drawer.receiver, tmp_path / f"{name}.st", "-o", tmp_path / f"{name}_p.st")
        assert wanted.items() <= use(tmp_path / f"{name}_p.st").items()
    assert use(tmp_path / "once.st")["level"] == "none"  # of no receiver yet
    call("patch", drawer.donor, tmp_path / "foreign.st", "-o", tmp_path / "p.st")
    assert use(tmp_path / "p.st")["level"] == "receiver_labels"


def test_what_a_vector_has_cost_is_what_a_patch_with_it_has(
    vectors: Vectors, drawer: Drawer, tmp_path: Path
) -> None:
    cost = {"data_use": "proxy_images", "counts": {"proxy": 256}}
    lineage = {**card_of(vectors.rho).provenance, **cost}
    fitted = changed(vectors.rho, tmp_path / "f.st", provenance=lineage)
    made(tmp_path / "c.st", fitted, vectors.second)
    for rho in (fitted, tmp_path / "c.st"):
        call("patch", drawer.receiver, rho, "-o", tmp_path / "p.st", "--force")
        assert use(tmp_path / "p.st") == {"level": "proxy_images", "counts": {"proxy": 256}}


def test_a_vector_is_recognised_inside_a_combination(
    vectors: Vectors, drawer: Drawer, tmp_path: Path
) -> None:
    made(tmp_path / "c.st", vectors.rho, vectors.second)
    steps = ((tmp_path / "c.st", vectors.rho), (vectors.second, tmp_path / "c.st"))
    for first, then in steps:
        call("patch", drawer.receiver, first, "-o", tmp_path / "p.st", "--force")
        said = call("patch", tmp_path / "p.st", then, "-o", tmp_path / "q.st", "--force").err
        assert "was patched with" in said
    call("patch", drawer.receiver, tmp_path / "c.st", "-o", tmp_path / "p.st", "--force")
    said = call("patch", tmp_path / "p.st", vectors.own, "-o", tmp_path / "q.st", "--force").err
    assert "was patched with" not in said


def test_a_combination_patches_and_sweeps_like_any_vector(
    vectors: Vectors, drawer: Drawer, tmp_path: Path
) -> None:
    made(tmp_path / "c.st", vectors.rho, vectors.second)
    args = (drawer.receiver, tmp_path / "c.st", "--data", drawer.receiver_data)
    call("sweep-lambda", *args, "--lambdas", "0,1", "-o", tmp_path / "s.json")
    call("patch", *args[:2], "-l", tmp_path / "s.json", "-o", tmp_path / "p.st")
    call("quantize", tmp_path / "p.st", "-o", tmp_path / "q.st")  # to the vectors' own grid


def test_combining_needs_no_torch(vectors: Vectors, tmp_path: Path) -> None:
    for rule in (Rule.DARE, Rule.TIES):
        out = ("-o", tmp_path / f"{rule}.st")
        assert light("combine", *vectors.paths, "--rule", rule, *out)[:2] == (0, [])
    refused = light("combine", vectors.rho, vectors.rho, "-o", tmp_path / "x.st")
    assert refused[:2] == (1, [])


def test_a_plan_tells_what_becomes_of_each_tensor(vectors: Vectors, tmp_path: Path) -> None:
    args = ("combine", *vectors.paths, "--rule", "ties", "--parts", "norm", "-o", tmp_path / "c.st")
    plan = call(*args, "--dry-run", "--json").json["results"]["plan"]
    assert list(tmp_path.iterdir()) == []
    results = call(*args, "--json").json["results"]
    zeros = [t["name"] for t in plan["tensors"] if t["fate"].startswith("zero")]
    assert sorted(zeros) == sorted(results["zeros"])
    assert plan["bytes_out"] == (tmp_path / "c.st").stat().st_size


MESSAGES: dict[str, tuple[int, str, tuple[str, ...]]] = {
    "no vectors": (2, "RHO... is missing", ()),
    "a checkpoint": (1, "is a checkpoint, a vector belongs here", ("{rho}", "{donor}")),
    "one file twice": (1, "are one file", ("{rho}", "{own}", "{rho}")),
    "another base": (1, "come from different bases", ("{rho}", "{base}")),
    "another grid": (1, "for 2-bit channel absmax", ("{rho}", "{grid}")),
    "other targets": (1, "trained to quantize different weights", ("{rho}", "{targets}")),
    "another name": (1, "extra: only in", ("{rho}", "{name}")),
    "another shape": (1, "do not pair up", ("{rho}", "{shape}")),
    "another architecture": (1, "differ in architecture", ("{rho}", "{model}")),
    "not a number": (1, "norm.weight: nan at element 3", ("{rho}", "{nan}")),
    "what cancels out": (1, "rho would be zero", ("{rho}", "{minus}")),
    "too large": (
        *(1, "overflows float32"),
        ("{rho}", "{own}", "--rule", "weighted", "--mix", "1,1e60"),
    ),
    "a mix of another length": (
        *(2, "--mix has 1 numbers for 2 vectors"),
        ("{rho}", "{own}", "--rule", "weighted", "--mix", "1"),
    ),
    "a mix of words": (
        *(2, "'x' is not a number"),
        ("{rho}", "{own}", "--rule", "weighted", "--mix", "1,x"),
    ),
    "a mix without its rule": (
        *(2, "--mix goes with --rule weighted"),
        ("{rho}", "{own}", "--mix", "1,2"),
    ),
    "a rule without its mix": (2, "needs --mix", ("{rho}", "{own}", "--rule", "weighted")),
    "a rule nobody knows": (2, "fisher", ("{rho}", "{own}", "--rule", "fisher")),
    "density 0": (2, "--density must be", ("{rho}", "{own}", "--rule", "ties", "--density", "0")),
    "density 2": (2, "--density must be", ("{rho}", "{own}", "--rule", "dare", "--density", "2")),
    "density of a mean": (2, "--density goes with", ("{rho}", "{own}", "--density", "1")),
    "seed of a mean": (2, "--seed goes with", ("{rho}", "{own}", "--seed", "1")),
    "an unknown part": (2, "--parts 'head' is none of", ("{rho}", "--parts", "attn,head")),
    "no part": (2, "--parts names no part", ("{rho}", "--parts", ",")),
}


@pytest.fixture(scope="module")
def odd(
    vectors: Vectors, drawer: Drawer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The vectors, and some with which nothing can be combined."""
    root, rho = tmp_path_factory.mktemp("odd"), vectors.rho
    arrays, card = load_file(rho), card_of(rho)
    assert card.model is not None
    assert card.targets is not None
    model = {**card.model, "architecture": "test_vit2"}
    broken = {**arrays, "norm.weight": arrays["norm.weight"].copy()}
    broken["norm.weight"][3] = np.nan
    files = {
        "base": changed(rho, root / "base.st", base="0" * 64),
        "grid": changed(rho, root / "grid.st", quant=Grid(2).to_json()),
        "targets": changed(rho, root / "targets.st", targets=card.targets[1:]),
        "model": changed(rho, root / "model.st", model=model),
        "name": changed(rho, root / "name.st", {**arrays, "extra": np.ones(3, np.float32)}),
        "shape": changed(rho, root / "s.st", {**arrays, "norm.bias": np.ones(9, np.float32)}),
        "nan": changed(rho, root / "nan.st", broken),
        "minus": changed(rho, root / "minus.st", {n: -a for n, a in arrays.items()}),
        "rho": rho,
        "own": vectors.own,
        "donor": drawer.donor,
    }
    return {name: str(path) for name, path in files.items()}


@pytest.mark.parametrize("case", MESSAGES)
def test_what_cannot_be_combined_is_one_line(
    case: str, odd: dict[str, str], tmp_path: Path
) -> None:
    code, reason, args = MESSAGES[case]
    words = [arg.format(**odd) for arg in args]
    result = call("combine", *words, "-o", tmp_path / "c.st", code=code)
    assert len(result.errors) == 1
    assert reason in result.errors[0]
    assert list(tmp_path.iterdir()) == []


def test_two_grids_are_crossed_only_when_asked_and_the_first_one_counts(
    odd: dict[str, str], tmp_path: Path
) -> None:
    said = call("combine", odd["rho"], odd["grid"], "--cross-grid", "-o", tmp_path / "c.st").err
    assert "counts as made for 3-bit channel absmax" in said
    assert card_of(tmp_path / "c.st").quant == card_of(Path(odd["rho"])).quant


def test_a_copy_counts_twice_and_is_noted(vectors: Vectors, tmp_path: Path) -> None:
    copied = tmp_path / "copy.st"
    copied.write_bytes(vectors.rho.read_bytes())
    said = call("combine", vectors.rho, copied, "-o", tmp_path / "c.st").err
    assert "are the same vector: it counts twice" in said
    assert card_of(tmp_path / "c.st").digest == card_of(vectors.rho).digest


def test_a_patch_of_a_part_that_is_not_there_is_refused(tmp_path: Path) -> None:
    arrays = {"fc1.weight": np.ones((3, 2), np.float32)}
    for name, factor in (("a", 1), ("b", 2)):
        save_file({n: a * np.float32(factor) for n, a in arrays.items()}, tmp_path / f"{name}.st")
    call("extract", tmp_path / "a.st", tmp_path / "b.st", "--no-head", "-o", tmp_path / "rho.st")
    args = (tmp_path / "a.st", tmp_path / "rho.st", "--no-head", "--parts", "norm")
    refused = call("patch", *args, "-o", tmp_path / "p.st", code=1)
    assert "--parts norm: no tensor is of these parts" in refused.errors[0]
