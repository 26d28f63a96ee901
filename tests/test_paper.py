"""The paper's recipes: what they say, what their Makefile runs, and what they cost."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Result, call, spawn
from PIL import Image

from qvec_cli.data.samples import draw_validation
from qvec_cli.data.tasks import TASKS
from qvec_cli.errors import SpecError
from qvec_cli.model.build import NetworkOptions, create
from qvec_cli.pipeline.train_request import TrainRequest
from qvec_cli.specs import Grid, Recipe

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "examples" / "paper"
RECIPES = sorted(PAPER.glob("*.yaml"))
TRAINING = ("finetune", "train-qat")

every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)

# Steps as the authors' repository counts them, method and table independent of ours.
STEPS = {
    "Cars": 2030,
    "DTD": 2052,
    "EuroSAT": 1824,
    "GTSRB": 2068,
    "MNIST": 2150,
    "RESISC45": 1995,
    "SUN397": 1960,
    "SVHN": 2136,
    "CIFAR10": 2112,
    "CIFAR100": 2112,
    "STL10": 2160,
    "Food101": 2212,
    "Flowers102": 1176,
    "FER2013": 2020,
    "PCAM": 2009,
    "OxfordIIITPet": 2132,
    "RenderedSST2": 1911,
    "EMNIST": 1872,
    "FashionMNIST": 2150,
    "KMNIST": 2150,
    "TinyImageNet": 2972,
    "ImageNet": 9971,
}


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("budget", PAPER / "budget.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["budget"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


budget = load()


SMALL = tuple(path for path in RECIPES if path.stem.startswith(("vit_tiny", "vit_small")))


@cache
def counted(recipe: str) -> Any:
    """What counting tells of a recipe's network; seconds for a small one, a minute for all."""
    return budget.counted(recipe)


def typed(words: list[object], monkeypatch: pytest.MonkeyPatch) -> TrainRequest:
    """What a training command has understood; nothing is trained."""
    heard: list[TrainRequest] = []

    def stop(request: TrainRequest, *_: object) -> None:
        heard.append(request)
        raise SpecError("understood")

    monkeypatch.setattr("qvec_cli.pipeline.finetune.train", stop)
    call(*words, code=SpecError.exit_code)
    return heard[0]


# --- the recipes ---


def test_there_is_a_recipe_for_every_family_and_size() -> None:
    families = {"vit": ("tiny", "small", "base", "large")}
    families |= {"deit3": ("base", "large"), "swin": ("base", "large")}
    wanted = {f"{family}_{size}" for family, sizes in families.items() for size in sizes}
    assert {path.stem.split("_patch")[0] for path in RECIPES} == wanted
    assert len(RECIPES) == len(wanted)


@pytest.mark.parametrize(("start", "command"), [(0, 0), (1, 1)], ids=TRAINING)
def test_the_commands_that_a_recipe_opens_with_have_the_papers_values(
    start: int, command: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words of both commands differ in the command alone, so every other one is carried out."""
    monkeypatch.chdir(PAPER)
    for recipe in RECIPES:
        opening = recipe.read_text().replace("\\\n#", "")
        words = [re.search(rf"^# +qvec {kind} (.*)$", opening, re.MULTILINE) for kind in TRAINING]
        assert all(words), "a recipe opens with its commands"
        assert words[1][1].startswith(recipe.stem)  # type: ignore[index]
        assert "epochs" not in yaml.safe_load(recipe.read_text()), "qvec knows them by task"
        if RECIPES.index(recipe) % 2 != start:
            continue
        name, line = TRAINING[command], words[command]
        request = typed([name, *shlex.split(line[1])], monkeypatch)  # type: ignore[index]
        assert (request.model, request.data) == (recipe.stem, "Cars")
        assert request.recipe == Recipe(epochs=35, seed=2038)  # all else is the paper's by default
        assert request.grid == (Grid(3) if name == "train-qat" else None)
        assert request.network.pretrained


def test_timm_has_the_weights_that_a_recipe_starts_from_at_224_pixels() -> None:
    import timm

    pretrained = set(timm.list_pretrained())
    for recipe in RECIPES:
        assert recipe.stem in pretrained
        assert timm.get_pretrained_cfg(recipe.stem).input_size == (3, 224, 224)


def check_opening(recipe: Path) -> None:
    """It says hardware, time and what to expect; so does its row of the README."""
    comment = [line for line in recipe.read_text().splitlines() if line.startswith("#")]
    short = recipe.stem.split("_patch")[0]
    assert any(f"make MODEL={short} " in line for line in comment)
    heading = budget.heading(counted(recipe.stem))
    place = comment.index(heading[0])
    assert comment[place : place + len(heading)] == heading
    said = " ".join(comment)
    assert "not ours" in said or "no number" in said
    readme = (PAPER / "README.md").read_text().splitlines()
    for line in (*budget.heads(), budget.overview(counted(recipe.stem))):
        assert line.rstrip() in readme
    network = counted(recipe.stem)
    assert 2.97 < network.step / network.forward < 3  # less the gradient of the image


def test_small_recipes_and_the_readme_say_what_the_budget_prints() -> None:
    for recipe in SMALL:
        check_opening(recipe)


@pytest.mark.slow
def test_every_recipe_and_the_readme_say_what_the_budget_prints() -> None:
    for recipe in RECIPES:
        check_opening(recipe)


# --- the Makefile ---


def made(*words: str, folder: Path = PAPER, env: dict[str, str] | None = None) -> str:
    command = ["make", "--no-print-directory", f"BIN={Path(sys.executable).parent}", *words]
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def planned(tmp_path: Path, *words: str) -> list[list[str]]:
    """The qvec commands that make would run, as lists of words."""
    lines = made("-n", f"OUT={tmp_path}", *words).splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("qvec ")]


def output(words: list[str]) -> Path:
    return Path(words[words.index("-o") + 1])


def test_a_dry_run_has_every_task_with_its_epochs_for_both_twins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PAPER)
    commands = planned(tmp_path, "MODEL=vit_large", "BITS=2", "DATA_DIR=/data")
    by_kind = {kind: [c for c in commands if c[0] == kind] for kind in (*TRAINING, "extract")}
    assert [len(found) for found in by_kind.values()] == [22, 22, 22]
    for kind in TRAINING:
        by_task = {words[words.index("--data") + 1]: words for words in by_kind[kind]}
        assert set(by_task) == set(TASKS)
        of_one = [word.replace("Cars", "TASK") for word in by_task["Cars"]]
        assert all(
            [word.replace(task, "TASK") for word in words] == of_one
            for task, words in by_task.items()
        )
        for task in ("Cars", "MNIST", "PCAM"):
            request = typed(list(by_task[task]), monkeypatch)
            assert request.recipe == Recipe(epochs=TASKS[task].epochs, seed=2038)
            assert request.model == "vit_large_patch16_224.orig_in21k"
            assert request.loading.data_dir == "/data"
            assert request.grid == (Grid(2) if kind == "train-qat" else None)


def test_every_vector_is_of_a_task_and_its_twin_and_the_grid_comes_last(tmp_path: Path) -> None:
    commands = planned(tmp_path, "BITS=3")
    folder = tmp_path / "vit_base"
    done: set[Path] = set()
    for words in commands:
        if words[0] == "extract":
            task = re.fullmatch(r"(.*)_rho_w3\.st", output(words).name)
            assert task
            twins = [folder / f"{task[1]}.st", folder / f"{task[1]}_qat_w3.st"]
            assert list(map(Path, words[1:3])) == twins
            assert done.issuperset(twins)
        done.add(output(words))
    assert commands[-1][:3] == ["transfer", f"{folder}/grid_w3.yaml", "--no-oracle"]
    assert output(commands[-1]) == folder / "grid_w3.jsonl"


def test_the_grid_names_what_was_trained(tmp_path: Path) -> None:
    picked = ("DONORS=Cars DTD", "RECEIVERS=Cars MNIST", "BITS=4", "DATA_DIR=/data")
    folder = tmp_path / "vit_base"
    made(f"OUT={tmp_path}", *picked, f"{folder}/grid_w4.yaml")
    grid = yaml.safe_load((folder / "grid_w4.yaml").read_text())
    assert grid == {
        "receivers": {
            "Cars": {
                "model": f"{folder}/Cars.st",
                "data": "Cars",
                "qat": f"{folder}/Cars_qat_w4.st",
            },
            "MNIST": {"model": f"{folder}/MNIST.st", "data": "MNIST"},
        },
        "donors": {name: {"rho": f"{folder}/{name}_rho_w4.st"} for name in ("Cars", "DTD")},
        "bits": 4,
        "lambdas": "0.15,0.3,0.45,0.6,0.75,0.9,1,1.05,1.2,1.35,1.5",
        "fixed": 1,
        "data-dir": "/data",
    }
    trained = {str(output(words)) for words in planned(tmp_path, *picked)}
    rows = [*grid["receivers"].values(), *grid["donors"].values()]
    paths = {value for row in rows for value in row.values() if value.endswith(".st")}
    assert paths <= trained
    assert not any("MNIST_qat" in path for path in trained), "nobody asked for it"


def test_the_grid_is_touched_only_when_something_in_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "vit_base" / "grid_w3.yaml"
    made(f"OUT={tmp_path}", "TASKS=Cars", str(path))
    os.utime(path, (1, 1))
    made(f"OUT={tmp_path}", "TASKS=Cars", str(path))
    assert path.stat().st_mtime == 1
    made(f"OUT={tmp_path}", "TASKS=Cars DTD", str(path))
    assert path.stat().st_mtime > 1
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_model_that_is_not_one_recipe_is_refused() -> None:
    for model, count in (("vit", 4), ("resnet", 0)):
        command = ["make", "-n", f"MODEL={model}"]
        done = subprocess.run(command, cwd=PAPER, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert f"MODEL={model} is the beginning of {count} recipes here" in done.stderr


def test_flags_reach_both_trainings_and_nothing_else(tmp_path: Path) -> None:
    for words in planned(tmp_path, "TASKS=Cars", "FLAGS=--workers 7"):
        assert ("--workers" in words) == (words[0] in TRAINING)


# --- what it costs ---


def test_steps_are_the_authors_and_validation_is_what_qvec_draws() -> None:
    assert set(STEPS) == set(TASKS)
    for name, row in TASKS.items():
        task = budget.Task(row)
        assert task.steps == STEPS[name]
        whole: Any = range(row.train)  # of samples, only the count is asked for
        train, val = draw_validation(whole)
        assert (task.train, task.val) == (len(train), len(val))


def test_an_hour_is_what_the_rate_says() -> None:
    network = budget.Network("any", parameters=10, forward=1, step=3, saved=2)
    task = budget.Task(TASKS["PCAM"])  # one epoch of 257,144 images, 5,000 to validate
    rate = budget.Rate(plain=100.0, qat=50.0)
    assert rate.hours(network, task, qat=False) == pytest.approx((257144 + 5000 / 3) / 100 / 3600)
    assert rate.hours(network, task, qat=True) == pytest.approx((257144 + 10000 / 3) / 50 / 3600)
    assert network.memory == 5 * 4 * 10 + 128 * 2
    # a pair: rounding and 11 lambdas on validation; six baselines and two lambdas on test
    assert budget.paired([task]) == 12 * 5000 + 8 * 32768


def test_a_network_without_numbers_counts_as_one_that_has_them() -> None:
    found = counted("vit_tiny_patch16_224.augreg_in21k")
    network, _ = create(NetworkOptions("vit_tiny_patch16_224", budget.CLASSES))
    assert budget._saved(network.train(), torch.zeros(1, 3, 224, 224)) == found.saved
    assert sum(p.numel() for p in network.parameters()) == found.parameters
    width, depth, tokens, patch = 192, 12, 197, 3 * 16 * 16
    products = depth * (12 * tokens * width**2 + 2 * tokens**2 * width) + 196 * patch * width
    assert found.forward == 2 * (products + width * budget.CLASSES)


def test_a_rate_is_measured_on_steps_that_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "PIXELS", 160)  # of timm's test network
    rate = budget.measured("test_vit", batch=2, steps=2, device="cpu")
    assert rate.plain > 0
    assert rate.qat > 0
    assert budget.prepared("test_vit", count=2) > 0


def test_the_first_step_warms_up_and_does_not_count() -> None:
    ticks = iter([0.0, 9.0, 10.0, 11.0, 13.0])
    clock = budget.Clock(lambda: next(ticks))
    for done in range(4):
        clock.progress("epoch", done, 4)
    assert clock.median() == 1.0


def test_a_task_that_is_none_is_refused() -> None:
    command = [sys.executable, PAPER / "budget.py", "vit_tiny", "--tasks", "Cats"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "invalid choice: 'Cats'" in done.stderr


# --- two steps of each, through the command line ---


def planted(cache: Path, model: str) -> Path:
    """Random weights where the hub's cache would have timm's; the file."""
    import timm
    from huggingface_hub.file_download import repo_folder_name
    from safetensors.torch import save_file

    config = timm.get_pretrained_cfg(model)
    commit = "0" * 40
    repo = cache / repo_folder_name(repo_id=config.hf_hub_id, repo_type="model")
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    torch.manual_seed(1)
    network = timm.create_model(model, num_classes=config.num_classes)
    save_file(network.state_dict(), snapshot / "model.safetensors")
    return snapshot / "model.safetensors"


def offline(cache: Path) -> dict[str, str]:
    return {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}


def photographed(folder: Path) -> Path:
    """Two classes: four images to train on, two to validate, two to test, at 224 pixels."""
    rng = np.random.default_rng(0)
    for split, each in (("train", 2), ("val", 1), ("test", 1)):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for number in range(each):
                pixels = rng.integers(0, 256, (224, 224, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1500)
@every_recipe
def test_a_recipe_trains_two_steps_of_both_twins_and_gives_a_vector(
    recipe: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    start = planted(tmp_path / "hub", recipe.stem)
    common = (recipe.stem, "--recipe", recipe, "--data", photographed(tmp_path / "images"))
    common = (*common, "--batch-size", 2, "--epochs", 1, "--json")

    def run(command: str, out: str) -> Result:
        result = spawn(command, *common, "-o", tmp_path / out, env=offline(tmp_path / "hub"))
        assert result.code == 0, result.err
        assert result.json["results"]["steps"] == 2
        return result

    run("finetune", "fp.st")
    assert run("train-qat", "qat.st").json["parameters"]["grid"]["bits"] == 3
    vector = call("extract", tmp_path / "fp.st", tmp_path / "qat.st", "-o", tmp_path / "rho.st")
    assert "left out: head" in vector.out
    before, after = load_file(start), load_file(tmp_path / "fp.st")
    name = next(name for name in before if name.endswith("mlp.fc1.weight"))
    moved = (before[name] - after[name]).abs().max()
    assert 0 < moved < 1e-4, "two steps from the weights of the cache"
    shutil.rmtree(tmp_path)  # gigabytes


def engraved(folder: Path) -> Path:
    """MNIST and KMNIST of 22 images each, in their idx files."""
    rng = np.random.default_rng(0)
    for task in ("MNIST", "KMNIST"):
        home = folder / task / "raw"
        home.mkdir(parents=True)
        for stem, count in (("train", 22), ("t10k", 10)):
            images = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8).tobytes()
            labels = bytes(index % 10 for index in range(count))
            shape = struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28)
            (home / f"{stem}-images-idx3-ubyte").write_bytes(shape + images)
            length = struct.pack(">4BI", 0, 0, 8, 1, count)
            (home / f"{stem}-labels-idx1-ubyte").write_bytes(length + labels)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_make_runs_two_tasks_and_their_grid_and_then_has_nothing_left_to_do(
    tmp_path: Path,
) -> None:
    example = tmp_path / "paper"
    shutil.copytree(PAPER, example, ignore=shutil.ignore_patterns("out"))
    planted(tmp_path / "hub", "vit_tiny_patch16_224.augreg_in21k")
    words = ["MODEL=vit_tiny", "TASKS=MNIST KMNIST", "LAMBDAS=0.5,1"]
    words += [f"DATA_DIR={engraved(tmp_path / 'data')}", "FLAGS=--epochs 1 --batch-size 10"]
    env = {**offline(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}
    made(*words, folder=example, env=env)
    out = example / "out" / "vit_tiny"
    kinds = ("", "_qat_w3", "_rho_w3")
    trained = {f"{task}{kind}.st" for task in ("MNIST", "KMNIST") for kind in kinds}
    assert {p.name for p in out.iterdir()} == trained | {"grid_w3.yaml", "grid_w3.jsonl"}
    lines = [json.loads(line) for line in (out / "grid_w3.jsonl").read_text().splitlines()]
    cells = {(x["receiver"], x["donor"]): x for x in lines if x["kind"] == "cell"}
    assert len(cells) == 4
    for (receiver, donor), found in cells.items():
        assert found["diagonal"] == (receiver == donor)
        assert [point["lambda"] for point in found["curve"]] == [0, 0.5, 1]
    for row in (x for x in lines if x["kind"] == "receiver"):
        assert len(row["baselines"]) == budget.BASELINES
        assert row["baselines"]["qat"]["data_use"] == "receiver_labels"
    assert "qvec" not in made(*words, folder=example, env=env)
