"""--recipe: a YAML file says what flags say, and never more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import MODEL, Drawer, call

from qvec_cli.cli.options import key_values, load_recipe
from qvec_cli.errors import CheckpointError, SpecError
from qvec_cli.inputs.yaml_text import MAX_BYTES

NAMES = {"epochs": "epochs", "lr": "lr", "no-aug": "no_aug", "model-arg": "model_arg"}


def parsed(tmp_path: Path, text: str | bytes) -> dict[str, Any]:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return dict(load_recipe(path, NAMES))


def test_a_recipe_is_typed_for_the_user_and_flags_win(drawer: Drawer, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {drawer.donor_data}\nepochs: 1\nlr: 1e-3\nno-aug: yes\nseed: 010\n"
        "batch_size: 16\nmodel-arg: {drop_path_rate: 0.1}\ndevice: cpu\n"
    )
    args = (*MODEL, "--recipe", recipe, "-o", tmp_path / "x.st", "--lr", "5e-4", "--json")
    parameters = call("finetune", *args).json["parameters"]
    assert parameters["lr"] == 5e-4
    assert (parameters["epochs"], parameters["batch_size"]) == (1, 16)
    assert parameters["no_aug"] is True
    assert parameters["seed"] == 10  # as typed, not octal
    assert parameters["model_args"] == {"drop_path_rate": 0.1}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("# nothing\n", {}),
        ("lr: 1e-5", {"lr": "1e-5"}),
        ("\ufefflr: 1", {"lr": "1"}),
        ("no_aug: no", {"no_aug": "no"}),
        ("epochs: 12:30", {"epochs": "12:30"}),
        ("model-arg: [a=1, b=2]", {"model_arg": ["a=1", "b=2"]}),
        ("model-arg:\n  depth: 4\n", {"model_arg": ["depth=4"]}),
    ],
)
def test_values_are_text_as_if_typed(text: str, values: object, tmp_path: Path) -> None:
    assert parsed(tmp_path, text) == values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("true", True), ("True", True), ("yes", True), ("on", True)),
        *(("false", False), ("False", False), ("no", False), ("off", False)),
        *(("null", None), ("None", None), ("4", 4), ("0.5", 0.5), ("(8, 8)", (8, 8))),
        *(("gelu", "gelu"), ("'no'", "no"), ("-" * 4000 + "1", "-" * 4000 + "1")),
    ],
    ids=lambda value: str(value)[:9],
)
def test_an_argument_of_the_network_has_its_type(text: str, value: object, tmp_path: Path) -> None:
    assert key_values([f"key={text}"]) == {"key": value}
    if not text.startswith(("-", "'", "(")):
        assert key_values(parsed(tmp_path, f"model-arg: {{key: {text}}}")["model_arg"]) == {
            "key": value
        }


FAULTS = {
    "an unknown key": ("epocks: 3", "recipe.yaml:1: 'epocks' is no flag here"),
    "a key of the second line": ("lr: 1\nfoo: 3", "recipe.yaml:2"),
    "a key twice": ("lr: 1\nlr: 2", "recipe.yaml:2: 'lr' stands in it twice"),
    "a key in two spellings": ("no-aug: 1\nno_aug: 1", "stands in it twice"),
    "a recipe in a recipe": ("recipe: x.yaml", "is no flag here"),
    "a list": ("- lr", "is not a mapping"),
    "plain text": ("hello", "is not a mapping"),
    "two documents": ("lr: 1\n---\nlr: 2", "is not YAML"),
    "a tab": ("lr:\n\t1", "is not YAML"),
    "not UTF-8": (b"lr: \xff", "is not YAML"),
    "a tree": ("model-arg: {a: {b: 1}}", "a plain value belongs here"),
    "a Python object": (
        "lr: !!python/object/apply:os.system ['touch canary']",
        "a plain value belongs here",
    ),
    "a Python name": ("lr: !!python/name:os.system x", "a plain value belongs here"),
    "a tag of its own": ("lr: !money 3", "a plain value belongs here"),
    "deep nesting": ("lr: " + "[" * 5000, "is not YAML"),
    "an alias bomb": (
        "lr: &a [x, x]\nepochs: &b [*a, *a, *a]\nno-aug: [*b, *b, *b]",
        "a plain value belongs here",
    ),
    "too much": (b"#" * (MAX_BYTES + 1), "is not read"),
    "an output": ("output: x.st", "--output is for the command line"),
    "metrics": ("metrics: x.json", "--metrics is for the command line"),
    "what may be lost": ("force: true", "--force is for the command line"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_anything_else_is_refused_and_nothing_runs(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text, reason = FAULTS[case]
    with pytest.raises(SpecError) as caught:
        parsed(tmp_path, text)
    assert reason in str(caught.value)
    assert not (tmp_path / "canary").exists()


def test_a_value_of_another_type_is_a_usage_error(drawer: Drawer, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("epochs: 1.5\n")
    args = (*MODEL, "--data", drawer.donor_data, "--recipe", tmp_path / "r.yaml")
    refused = call("finetune", *args, "-o", tmp_path / "x.st", code=2)
    assert "--epochs '1.5' is no whole number" in refused.err


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_recipe(tmp_path / "nothing.yaml", NAMES)
