"""The rules of the house, read from its sources: floors, doors, circles, names and sizes.

``python tests/test_floors.py`` (or ``make floors``) prints the figures that the rules limit.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
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
"""Every room and its floor; imports go down only. The room "" is the files beside the rooms."""
ROOMS = {f"qvec_cli.{name}" for name in FLOORS}
MOST_FILES, MOST_LINES = 176, 35_000
LARGEST_ROOM, MOST_FILES_IN_A_ROOM = 0.15, 16
IMPORTS = 0.08
SHORTEST, LONGEST = 60, 500
EXTRAS = ("hf", "hfds", "onnx", "openvino", "slurm", "plot")
DOORS = {
    "rich": {"cli/show.py"},
    "timm": {"model/build.py"},
    "transformers": {"model/transformers_networks.py"},
    "yaml": {"inputs/yaml_text.py", "transfer/grid_file.py"},
    "submitit": {"transfer/slurm.py"},
    "typer": {"cli"},
    "torchvision": {"data"},
    "datasets": {"data"},
    "matplotlib": {"report"},
    "jinja2": {"report/page.py"},
    "msgspec": {"results", "selection/by_labels.py"},
    "onnxscript": {"export/graph.py"},
    "onnx": {"export/preparation.py"},
    "onnxruntime": {"export/onnx.py"},
    "openvino": {"export/openvino.py"},
    "huggingface_hub": {"checkpoint/fetch.py"},
    "safetensors": {"checkpoint/write.py"},
    "array_api_compat": {"quant"},
    "PIL": {"data", "learn/batches.py", "model/build.py"},
}


@cache
def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def length(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@cache
def imports(path: Path) -> frozenset[str]:
    """Every module that a file imports, in bodies and for type checkers too."""
    known = {module(file) for file in FILES}
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in known else node.module for name in whole}
    return frozenset(names)


def import_lines(path: Path) -> int:
    """How many lines of a file are part of an import."""
    kinds = (ast.Import, ast.ImportFrom)
    nodes = [node for node in ast.walk(tree(path)) if isinstance(node, kinds)]
    return len({n for node in nodes for n in range(node.lineno, (node.end_lineno or 0) + 1)})


def libraries(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def inner(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] == "qvec_cli"}


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 2 or name in ROOMS else ""


def rooms() -> dict[str, list[Path]]:
    """The files of each room."""
    files = defaultdict(list)
    for path in FILES:
        files[room(module(path))].append(path)
    return dict(files)


def importers() -> Counter[str]:
    """How many files of the package import each module."""
    return Counter(name for path in FILES for name in inner(path) - {module(path)})


# --- floors and doors -----------------------------------------------------------------------------


def test_imports_go_down() -> None:
    up = [
        f"{module(path)} imports {name}"
        for path in FILES
        for name in sorted(inner(path))
        if FLOORS[room(name)] >= FLOORS[room(module(path))] and room(name) != room(module(path))
    ]
    assert [line for line in up if not line.startswith("qvec_cli.__main__ ")] == []


def test_no_imports_go_in_a_circle_not_even_inside_function_bodies() -> None:
    graph = {module(path): inner(path) - {module(path)} for path in FILES}
    order = tuple(graphlib.TopologicalSorter(graph).static_order())
    assert set(graph) <= set(order)


def test_files_and_vectors_are_numpys_even_inside_functions() -> None:
    numpys = [path for name in ("checkpoint", "vector", "") for path in rooms()[name]]
    heavy = {path.name for path in numpys if {"torch", "timm"} & libraries(path)}
    assert heavy <= {"pickles.py"}


def test_the_verbs_do_not_know_each_other() -> None:
    shared = {"session", "train_request"}
    for path in rooms()["pipeline"]:
        known = {name.rsplit(".", 1)[1] for name in inner(path) if room(name) == "pipeline"}
        assert known <= shared, f"{path.name} imports {known - shared}"


def test_each_library_has_one_door() -> None:
    used = {name for path in FILES for name in libraries(path)}
    assert used - {"qvec_cli", "numpy", "torch", *sys.stdlib_module_names} == DOORS.keys()
    for library, doors in DOORS.items():
        paths = [path for path in FILES if library in libraries(path)]
        users = {path.relative_to(PACKAGE).as_posix() for path in paths}
        outside = {user for user in users if not {user, user.split("/")[0]} & doors}
        assert outside == set(), f"{library} is imported by {outside}"


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
    names = {name for path in FILES for name in libraries(path)}
    names -= {"qvec_cli", *sys.stdlib_module_names}
    package = {"yaml": "pyyaml", "PIL": "pillow"}
    assert {package.get(name, name) for name in names} <= declared


# --- names ----------------------------------------------------------------------------------------


def test_no_two_files_share_a_name_and_none_is_a_drawer() -> None:
    names = Counter(path.name for path in FILES if not path.name.startswith("__"))
    assert [name for name, count in names.items() if count > 1] == []
    assert not names.keys() & {"utils.py", "common.py", "helpers.py", "misc.py"}


def test_no_two_classes_share_a_name() -> None:
    places = defaultdict(list)
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module(path))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_every_file_and_every_room_says_what_it_is() -> None:
    assert [module(path) for path in FILES if not ast.get_docstring(tree(path))] == []
    sentences = {name: PACKAGE / name / "__init__.py" for name in FLOORS}
    assert [name for name, path in sentences.items() if not path.exists()] == []
    assert rooms().keys() == FLOORS.keys()


# --- sizes ----------------------------------------------------------------------------------------


def test_the_house_is_small() -> None:
    total = sum(map(length, FILES))
    assert len(FILES) <= MOST_FILES
    assert total <= MOST_LINES
    assert sum(map(import_lines, FILES)) < IMPORTS * total


def test_no_room_is_large() -> None:
    total = sum(map(length, FILES))
    lines = {name: sum(map(length, files)) for name, files in rooms().items()}
    assert {name: n for name, n in lines.items() if n > LARGEST_ROOM * total} == {}
    counts = {name: len(files) for name, files in rooms().items()}
    assert {name: n for name, n in counts.items() if n > MOST_FILES_IN_A_ROOM} == {}


def test_a_file_ends_where_its_subject_ends() -> None:
    """A short one has two importers, or it would stand in the file that needs it."""
    lengths = {path: length(path) for path in FILES if not path.name.startswith("__")}
    assert {module(path): n for path, n in lengths.items() if n > LONGEST} == {}
    users = importers()
    short = {module(path): n for path, n in lengths.items() if n < SHORTEST}
    assert {name: n for name, n in short.items() if users[name] < 2} == {}


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
        "calibration.trace",
        "calibration.walk",
        "inputs.network",
        "learn.forward",
        "learn.batches",
        "learn.distill",
        "learn.fit",
        "model.qat",
        "model.transformers_networks",
        "pipeline.session",
        "selection.trial",
    )
}


def test_no_other_file_imports_torch_or_timm_before_a_function_needs_them() -> None:
    light = {module(path) for path in FILES} - TORCHS_OWN - {"qvec_cli.__main__"}
    code = f"import sys, {', '.join(sorted(light))}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "timm", "torchvision", "matplotlib", "rich", "onnx", "onnxruntime"}
    assert heavy & set(done.stdout.split()) == set()


def figures() -> Iterator[str]:
    """The measures that the rules above limit, a line each, and a line a room."""
    total, files = sum(map(length, FILES)), len(FILES)
    shares = {name: sum(map(length, paths)) / total for name, paths in rooms().items()}
    largest = max(shares, key=lambda name: shares[name])
    longest = max(FILES, key=length)
    imported = sum(map(import_lines, FILES)) / total
    yield f"files          {files:7,}  (at most {MOST_FILES})"
    yield f"lines          {total:7,}  (at most {MOST_LINES:,})"
    yield f"import lines   {imported:7.1%}  (below {IMPORTS:.0%})"
    yield f"largest room   {shares[largest]:7.1%}  {largest} (at most {LARGEST_ROOM:.0%})"
    yield f"longest file   {length(longest):7,}  {module(longest)} (at most {LONGEST})"
    yield f"README bytes   {(ROOT / 'README.md').stat().st_size:7,}"
    yield f"\n{'room':<12} floor files  lines  share"
    for name, floor in FLOORS.items():
        paths = rooms()[name]
        lines = sum(map(length, paths))
        row = f"{floor:>5} {len(paths):>5} {lines:>6,} {shares[name]:>6.1%}"
        yield f"{name or 'beside them':<12} {row}"


def test_the_figures_name_every_room() -> None:
    text = "\n".join(figures())
    assert all(f"\n{name} " in text for name in FLOORS if name)


if __name__ == "__main__":
    print(*figures(), sep="\n")
