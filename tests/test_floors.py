"""The rules of the house, read from its sources: floors, doors, circles and names."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "qvec_cli"
FILES = sorted(PACKAGE.rglob("*.py"))
FLOORS = {
    "cli": 9,
    "advise": 8,
    "pipeline": 7,
    "transfer": 7,
    "selection": 6,
    "calibration": 6,
    "export": 6,
    "report": 6,
    "inputs": 5,
    "results": 5,
    "outputs": 4,
    "model": 3,
    "learn": 2,
    "quant": 2,
    "vector": 2,
    "data": 1,
    "checkpoint": 1,
    "": 0,
}
"""Every room and its floor; imports go down only."""
ROOMS = {f"qvec_cli.{name}" for name in FLOORS}
EXTRAS = ("hfds", "onnx", "slurm", "plot")
DOORS = {
    "rich": {"cli/show.py"},
    "timm": {"model/build.py"},
    "yaml": {"inputs/yaml_text.py", "transfer/grid_file.py"},
    "submitit": {"transfer/slurm.py"},
    "typer": {"cli"},
    "torchvision": {"data"},
    "datasets": {"data"},
    "matplotlib": {"report"},
    "jinja2": {"report/page.py"},
    "onnxscript": {"export/graph.py"},
    "onnxruntime": {"export/onnx.py"},
}


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, in bodies and for type checkers too."""
    known = {module(file) for file in FILES}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else node.module


def inner(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] == "qvec_cli"}


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 2 or name in ROOMS else ""


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_go_down(path: Path) -> None:
    here = room(module(path))
    for name in inner(path):
        there = room(name)
        outside = module(path) == "qvec_cli.__main__"
        assert FLOORS[there] < FLOORS[here] or here == there or outside, (
            f"{module(path)} imports {name}"
        )


def test_no_imports_go_in_a_circle_not_even_inside_function_bodies() -> None:
    graph = {module(path): inner(path) - {module(path)} for path in FILES}
    order = tuple(graphlib.TopologicalSorter(graph).static_order())
    assert set(graph) <= set(order)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_files_and_vectors_are_numpys_even_inside_functions(path: Path) -> None:
    if room(module(path)) in {"checkpoint", "vector", ""} and path.name != "pickles.py":
        assert {name.split(".")[0] for name in imports(path)}.isdisjoint({"torch", "timm"})


def test_the_verbs_do_not_know_each_other() -> None:
    shared = {"session", "train_request"}
    for path in FILES:
        if room(module(path)) == "pipeline":
            known = {name.rsplit(".", 1)[1] for name in inner(path) if room(name) == "pipeline"}
            assert known <= shared, f"{path.name} imports {known - shared}"


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_one_door(library: str) -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if any(name.split(".")[0] == library for name in imports(path))
    }
    assert users
    for user in users:
        assert user in DOORS[library] or user.split("/")[0] in DOORS[library], user


def test_the_environment_is_read_in_one_place() -> None:
    readers = {p.name for p in FILES if "os.environ" in p.read_text() or "getenv" in p.read_text()}
    assert readers == {"app.py", "distributed.py"}


def test_only_the_terminal_is_written_to_by_show_and_main() -> None:
    for path in FILES:
        names = {
            f"{node.value.id}.{node.attr}"
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        if names & {"sys.stdout", "sys.stderr"}:
            assert path.name in {"show.py", "app.py"}, path


def test_every_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {
        text.split(">")[0].split("=")[0].strip().lower().replace("-", "_")
        for text in (*project["dependencies"], *(text for name in EXTRAS for text in extras[name]))
    }
    found = {name.split(".")[0] for path in FILES for name in imports(path)}
    found -= {"qvec_cli", *sys.stdlib_module_names}
    package = {"yaml": "pyyaml", "PIL": "pillow"}
    assert {package.get(name, name) for name in found} <= declared


def test_no_two_files_share_a_name_and_none_is_a_drawer() -> None:
    names = Counter(path.name for path in FILES if not path.name.startswith("__"))
    assert [name for name, count in names.items() if count > 1] == []
    assert not names.keys() & {"utils.py", "common.py", "helpers.py", "misc.py"}


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_file_says_what_it_is_and_is_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(tree(path)), "no docstring"
    assert len(text.splitlines()) <= 500


def test_the_top_level_is_the_owners() -> None:
    git = ["git", "ls-files"]
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= {
        "pyproject.toml",
        "README.md",
        "qvec_cli",
        "tests",
        "examples",
        "Makefile",
        "LICENSE",
    }


TORCHS_OWN = {
    f"qvec_cli.{name}"
    for name in (
        "calibration.layer_moments",
        "calibration.walk",
        "inputs.network",
        "learn.forward",
        "learn.batches",
        "learn.distill",
        "learn.fit",
        "model.qat",
        "pipeline.session",
        "selection.agreement",
        "selection.trial",
    )
}


def test_no_other_file_imports_torch_or_timm_before_a_function_needs_them() -> None:
    light = {module(path) for path in FILES} - TORCHS_OWN - {"qvec_cli.__main__"}
    code = f"import sys, {', '.join(sorted(light))}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "timm", "torchvision", "matplotlib", "rich", "onnx", "onnxruntime"}
    assert heavy & set(done.stdout.split()) == set()
