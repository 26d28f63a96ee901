"""sweep-lambda --objective agreement: what it chooses without labels, and what it tells."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import FAST, Drawer, Result, call, light

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.write import write
from qvec_cli.outputs.metrics import SCHEMA_FILE
from qvec_cli.selection.choose import NEGATIVE
from qvec_cli.specs import Null
from qvec_cli.transfer.nulls import null

VALIDATOR = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text()))
LAMBDAS = "0.5,1"
GRID = ("--bits", 2, "--cross-grid")


def sweep(drawer: Drawer, out: Path, *extra: object, code: int = 0) -> Result:
    """Of the receiver on the donor's images, unless others are typed."""
    proxy = () if "--proxy" in extra else ("--proxy", drawer.donor_data, "--proxy-samples", 40)
    rhos = () if any(str(e).endswith(".st") for e in extra) else (drawer.rho,)
    flags = ("--objective", "agreement", *proxy, "--lambdas", LAMBDAS, "--device", "cpu")
    return call("sweep-lambda", drawer.receiver, *rhos, *flags, *extra, "-o", out, code=code)


def stored(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


@pytest.fixture(scope="module")
def second(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vector of the receiver's own task, at 3 bits as the other."""
    root = tmp_path_factory.mktemp("second")
    data = ("--data", drawer.receiver_data)
    call("train-qat", drawer.base, *data, "-o", root / "qat.st", *FAST, "--bits", 3)
    call("extract", drawer.receiver, root / "qat.st", "-o", root / "own.st")
    return root / "own.st"


def rewritten(path: Path, out: Path, change: Any) -> Path:
    """A vector with other numbers and the same card."""
    with Checkpoint(path) as rho:
        assert rho.card
        changed = change({name: rho.finite(name) for name in rho})
        blocks = ((name, [block.reshape(-1)]) for name, block in changed.items())
        write(out, dict(rho.items()), blocks, rho.card, force=False)
    return out


@pytest.fixture(scope="module")
def alone(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("agree") / "sweep.json"
    sweep(drawer, out, *GRID)
    return stored(out)


@pytest.fixture(scope="module")
def judged(
    drawer: Drawer, second: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("agree") / "sweep.json"
    sweep(drawer, out, *GRID, drawer.rho, second, "--data", drawer.receiver_data)
    return stored(out)


def test_the_documents_are_valid(alone: dict[str, Any], judged: dict[str, Any]) -> None:
    for document in (alone, judged):
        VALIDATOR.validate(document)
        assert document["command"] == "sweep-lambda"
        assert document["results"]["objective"] == "agreement"


def test_a_document_that_lacks_a_distance_is_not_valid(alone: dict[str, Any]) -> None:
    document = json.loads(json.dumps(alone))
    del document["results"]["curve"][0]["distance"]
    assert not VALIDATOR.is_valid(document)


def test_zero_and_negative_lambdas_are_always_candidates(alone: dict[str, Any]) -> None:
    wanted = sorted({*NEGATIVE, 0.0, 0.5, 1.0})
    assert [point["lambda"] for point in alone["results"]["curve"]] == wanted
    assert alone["parameters"]["lambdas"] == wanted
    assert alone["results"]["chosen"]["lambda"] in wanted


def test_the_choice_is_a_point_of_the_best_donors_curve(judged: dict[str, Any]) -> None:
    results = judged["results"]
    assert results["curve"] == results["donors"][0]["curve"]
    assert results["chosen"] == results["donors"][0]["chosen"]
    for donor in results["donors"]:
        at = {point["lambda"]: point for point in donor["curve"]}
        chosen = donor["chosen"]
        assert chosen["distance"] == at[chosen["lambda"]]["distance"]
        least = min(point["distance"] for point in donor["curve"])
        removed = 1 - least / at[0.0]["distance"]
        assert donor["score"]["removed"] == pytest.approx(removed)
        assert chosen["lambda"] == 0 or chosen["distance"] == least
        assert 0 <= donor["score"]["explained"] <= 1


def test_donors_are_ranked_by_the_damage_that_they_remove(judged: dict[str, Any]) -> None:
    removed = [donor["score"]["removed"] for donor in judged["results"]["donors"]]
    assert removed == sorted(removed, reverse=True)
    assert len(removed) == 2


def test_the_choice_is_of_the_first_donor_that_is_of_use(judged: dict[str, Any]) -> None:
    results = judged["results"]
    useful = [donor for donor in results["donors"] if donor["chosen"]["lambda"] != 0]
    best = (useful or results["donors"])[0]
    assert results["chosen"] == best["chosen"]
    assert results["curve"] == best["curve"]


def test_all_donors_start_from_the_same_plain_quantization(judged: dict[str, Any]) -> None:
    plain = [d["curve"][2] for d in judged["results"]["donors"]]
    assert {p["lambda"] for p in plain} == {0.0}
    assert len({p["distance"] for p in plain}) == 1
    tests = judged["results"]["baselines"]["ptq"]["test"]
    for donor in judged["results"]["donors"]:
        if donor["chosen"]["lambda"] == 0:
            assert donor["chosen"]["test"]["n_correct"] == tests["n_correct"]


def test_a_donors_row_does_not_hang_on_its_company(
    alone: dict[str, Any], judged: dict[str, Any]
) -> None:
    single = alone["results"]["donors"][0]
    (row,) = (d for d in judged["results"]["donors"] if d["digest"] == single["digest"])
    assert row["score"] == single["score"]
    assert row["chosen"]["lambda"] == single["chosen"]["lambda"]
    for ours, theirs in zip(row["curve"], single["curve"], strict=True):
        assert theirs.items() <= ours.items()  # labels beside it, and no other distance


def test_labels_stand_beside_the_objective_and_count_as_sweeps_count(
    drawer: Drawer, judged: dict[str, Any], tmp_path: Path
) -> None:
    (row,) = (d for d in judged["results"]["donors"] if d["rho"] == str(drawer.rho))
    args = (drawer.receiver, drawer.rho, "--data", drawer.receiver_data, *GRID)
    flags = ("--lambdas=-0.5,-0.25,0,0.5,1", "--device", "cpu", "-o", tmp_path / "s.json", "--json")
    swept = call("sweep-lambda", *args, *flags).json["results"]
    counts = [point["val"]["n_correct"] for point in swept["curve"]]
    assert [point["val"]["n_correct"] for point in row["curve"]] == counts
    for name in ("fp", "ptq"):
        ours = judged["results"]["baselines"][name]["test"]
        assert ours["n_correct"] == swept["baselines"][name]["test"]["n_correct"]


def test_what_it_has_cost_is_told(alone: dict[str, Any], judged: dict[str, Any]) -> None:
    assert alone["data_use"] == {"level": "proxy_images", "counts": {"proxy": 40}}
    assert alone["results"]["chosen"]["data_use"] == "proxy_images"
    uses = {
        d["rho"].rsplit("/", 1)[-1]: d["chosen"]["data_use"] for d in judged["results"]["donors"]
    }
    assert uses == {"rho.st": "proxy_images", "own.st": "receiver_labels"}
    kinds = [entry["kind"] for entry in judged["inputs"]]
    assert kinds == ["checkpoint", "vector", "vector", "data", "data"]


def test_the_same_images_under_other_names_give_the_same_choice(
    drawer: Drawer, alone: dict[str, Any], tmp_path: Path
) -> None:
    """Another order, and one folder instead of classes: 40 of the 81 would be others, so all."""
    files = sorted((drawer.donor_data / "train").rglob("*.png"))
    found = []
    for seed in (1, 2):
        folder = tmp_path / f"pics{seed}"
        folder.mkdir()
        names = random.Random(seed).sample(range(len(files)), len(files))
        for name, file in zip(names, files, strict=True):
            (folder / f"{name:03d}.png").symlink_to(file)
        out = tmp_path / f"{seed}.json"
        sweep(drawer, out, *GRID, "--proxy", folder, "--proxy-samples", len(files))
        found.append(stored(out)["results"])
    first, again = found
    assert first["chosen"]["lambda"] == again["chosen"]["lambda"]
    assert first["proxies"]["n"] == len(files)
    for ours, theirs in zip(first["curve"], again["curve"], strict=True):
        assert ours["distance"] == pytest.approx(theirs["distance"], rel=1e-4)
    assert first["donors"][0]["score"] == pytest.approx(again["donors"][0]["score"], rel=1e-3)


def test_the_same_command_gives_the_same_bytes(
    drawer: Drawer, alone: dict[str, Any], tmp_path: Path
) -> None:
    sweep(drawer, tmp_path / "s.json", *GRID)
    again = stored(tmp_path / "s.json")
    for document in (alone, again):
        document.pop("timing", None)
    assert json.dumps(again) == json.dumps(alone)


@pytest.mark.parametrize("measure", ["kl", "features", "both"])
def test_a_measure_that_is_typed_is_taken(measure: str, drawer: Drawer, tmp_path: Path) -> None:
    sweep(drawer, tmp_path / "s.json", *GRID, "--measure", measure)
    document = stored(tmp_path / "s.json")
    VALIDATOR.validate(document)
    assert document["results"]["measure"] == measure


@pytest.mark.parametrize("kind", [Null.RANDOM, Null.SHUFFLE])
def test_a_null_direction_on_a_fine_grid_is_left_alone(
    kind: Null, drawer: Drawer, tmp_path: Path
) -> None:
    """At 8 bits there is nothing to recover, and nothing that carries nothing may recover it."""
    rho = rewritten(drawer.rho, tmp_path / "null.st", lambda rho: null(kind, rho, None, "0"))
    flags = ("--bits", 8, "--cross-grid", "--lambdas", "0:1.5:0.25")
    said = sweep(drawer, tmp_path / "s.json", rho, *flags)
    assert stored(tmp_path / "s.json")["results"]["chosen"]["lambda"] == 0
    assert "lambda 0: no vector is surely better than plain quantization here" in said.out


def test_noise_costs_nothing_and_is_told(drawer: Drawer, tmp_path: Path) -> None:
    said = sweep(drawer, tmp_path / "s.json", *GRID, "--proxy", "noise", "--proxy-samples", 16)
    document = stored(tmp_path / "s.json")
    VALIDATOR.validate(document)
    assert document["data_use"] == {"level": "none", "counts": {"noise": 16}}
    assert document["results"]["proxies"]["close_to_noise"] is True
    assert "a choice by noise is a rough one" in said.err


def test_the_receivers_own_images_are_known(drawer: Drawer, tmp_path: Path) -> None:
    flags = ("--proxy", drawer.receiver_data, "--proxy-samples", 16)
    sweep(drawer, tmp_path / "s.json", *GRID, *flags)
    use = {"level": "receiver_images", "counts": {"train": 16}}
    assert stored(tmp_path / "s.json")["data_use"] == use


def test_patch_takes_the_choice_its_cost_and_its_vector(
    drawer: Drawer, second: Path, judged: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps(judged))
    best = judged["results"]["chosen"]["rho"]
    (other,) = {str(drawer.rho), str(second)} - {best}
    flags = ("-l", path, "--json")
    done = call("patch", drawer.receiver, best, *flags, "-o", tmp_path / "p.st").json
    assert done["results"]["lambda"] == judged["results"]["chosen"]["lambda"]
    assert done["data_use"] == judged["data_use"]
    refused = call("patch", drawer.receiver, other, *flags, "-o", tmp_path / "q.st", code=1)
    assert f"was chosen for other files than {other}" in refused.errors[0]
    assert not (tmp_path / "q.st").exists()


def test_a_dry_run_plans_and_writes_nothing(drawer: Drawer, tmp_path: Path) -> None:
    plan = sweep(drawer, tmp_path / "s.json", *GRID, "--dry-run", "--json").json
    VALIDATOR.validate(plan)
    assert plan["results"]["plan"]["images"] == {"proxy": 40}
    assert [*tmp_path.iterdir()] == []


BAD_IMAGE = b"\x89PNG\r\n\x1a\nnot a picture"


def faults(drawer: Drawer, root: Path) -> dict[str, tuple[tuple[object, ...], str, int]]:
    """What is typed, what is said, and the exit code."""
    empty, broken, single = root / "empty", root / "broken", root / "single"
    for folder in (empty, broken, single):
        folder.mkdir()
    picture = next(drawer.donor_data.rglob("*.png")).read_bytes()
    (single / "a.png").write_bytes(picture)
    for name in "abc":
        (broken / f"{name}.png").write_bytes(picture if name == "a" else BAD_IMAGE)
    both, labelled = ("--objective", "agreement"), ("--data", drawer.receiver_data)
    proxy = (*both, "--proxy", drawer.donor_data)
    rho = drawer.rho
    return {
        "no proxy": ((rho, *both), "--proxy is missing", 2),
        "a proxy by labels": ((rho, *labelled, "--proxy", "noise"), "--proxy goes with --obj", 2),
        "samples by labels": ((rho, *labelled, "--proxy-samples", 9), "--proxy-samples goes", 2),
        "a measure by labels": ((rho, *labelled, "--measure", "kl"), "--measure goes with", 2),
        "nothing to choose by": ((rho,), "--data is missing", 2),
        "vectors by labels": ((rho, rho, *labelled), "2 vectors are given", 2),
        "resume": ((rho, *proxy, "--resume"), "--resume goes with --objective accuracy", 2),
        "no lambda above 0": ((rho, *proxy, "--lambdas=-1,0"), "--lambdas has none above 0", 2),
        "a method with images": (
            (rho, *proxy, "--method", "gptq"),
            "--method gptq needs calibration images",
            2,
        ),
        "a grid that is not its own": ((rho, *proxy, "--bits", 4), "was made for 3-bit", 1),
        "a receiver for a vector": ((drawer.donor, *proxy), "is a checkpoint", 1),
        "an unknown data set": ((rho, *both, "--proxy", "nosie"), "'nosie' is neither", 2),
        "a folder that is not there": ((rho, *both, "--proxy", "x/y"), "no such folder", 1),
        "a folder without images": ((rho, *both, "--proxy", empty), "has no image", 1),
        "one image": ((rho, *both, "--proxy", single), "has one image", 1),
        "a broken image": ((rho, *both, "--proxy", broken), ".png: is not an image", 1),
        "a proxy twice": ((rho, *proxy, "--proxy", drawer.donor_data), "stands twice", 2),
        "data of another task": ((rho, *proxy, "--data", drawer.donor_data), "does not know", 1),
    }


NAMES = (
    *("no proxy", "a proxy by labels", "samples by labels", "a measure by labels"),
    *("nothing to choose by", "vectors by labels", "resume", "no lambda above 0"),
    *("a method with images", "a grid that is not its own", "a receiver for a vector"),
    *("an unknown data set", "a folder that is not there", "a folder without images", "one image"),
    *("a broken image", "a proxy twice", "data of another task"),
)


@pytest.fixture(scope="module")
def mistakes(
    drawer: Drawer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[tuple[object, ...], str, int]]:
    found = faults(drawer, tmp_path_factory.mktemp("faults"))
    assert [*found] == [*NAMES]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_mistake_costs_a_line_and_no_file(
    name: str, mistakes: Any, drawer: Drawer, tmp_path: Path
) -> None:
    args, message, code = mistakes[name]
    out = tmp_path / "s.json"
    result = call("sweep-lambda", drawer.receiver, *args, "-o", out, code=code)
    assert len(result.errors) == 1
    assert message in result.errors[0]
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    "name", ["no proxy", "resume", "a folder without images", "no lambda above 0"]
)
def test_a_refusal_costs_no_torch(name: str, mistakes: Any, drawer: Drawer, tmp_path: Path) -> None:
    args, _, code = mistakes[name]
    found = light("sweep-lambda", drawer.receiver, *args, "-o", tmp_path / "s.json")
    assert found[:2] == (code, [])


def test_entropy_is_no_objective(drawer: Drawer, tmp_path: Path) -> None:
    """It has chosen wrongly in every pilot."""
    flags = ("--objective", "entropy", "--proxy", "noise", "-o", tmp_path / "s.json")
    assert "entropy" in call("sweep-lambda", drawer.receiver, drawer.rho, *flags, code=2).err


def test_vectors_for_two_grids_are_not_compared(drawer: Drawer, tmp_path: Path) -> None:
    data = ("--data", drawer.donor_data)
    call("train-qat", drawer.base, *data, "-o", tmp_path / "qat.st", *FAST, "--bits", 2)
    call("extract", drawer.donor, tmp_path / "qat.st", "-o", tmp_path / "two.st")
    out = tmp_path / "s.json"
    result = sweep(drawer, out, drawer.rho, tmp_path / "two.st", code=1)
    assert "was made for 2-bit channel absmax, " in result.errors[0]
    assert "--cross-grid" in result.err
    sweep(drawer, out, drawer.rho, tmp_path / "two.st", *GRID)
    assert len(stored(out)["results"]["donors"]) == 2


def test_the_lines_name_the_measure_the_curve_and_the_donors(
    drawer: Drawer, second: Path, tmp_path: Path
) -> None:
    flags = (drawer.rho, second, "--data", drawer.receiver_data)
    lines = sweep(drawer, tmp_path / "s.json", *GRID, *flags).out.splitlines()
    assert lines[0].startswith("distance to the float answers on 40 proxy images, ")
    assert lines[1] == "lambda\tdistance\tvalidation top-1"
    assert sum("<- chosen" in line for line in lines) == 1
    assert "donor\tdamage removed\tlambda\texplained\ttest top-1" in lines
    assert lines[-1].startswith("receiver data used: ")
