"""README is run: its console blocks in one empty folder, and every command stands in it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import call

from qvec_cli.cli.app import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    (info.name or info.callback.__name__).replace("_", "-") for info in app.registered_commands
]


def console_blocks() -> list[list[tuple[str, list[str]]]]:
    """Each block as pairs of a command and the lines that it prints."""
    blocks = []
    for text in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        pairs: list[tuple[str, list[str]]] = []
        for line in text.splitlines():
            if line.startswith("$ "):
                pairs.append((line[2:], []))
            else:
                pairs[-1][1].append(line)
        blocks.append(pairs)
    return blocks


def shape(line: str) -> str:
    """A line without its numbers and without what hangs on them: they differ by training."""
    line = re.sub(r"\b[0-9a-f]{12,64}\b", "#", line)
    line = re.sub(r"\t<- chosen|(?<= proxy images, )(kl|features)", "", line)
    return re.sub(r"-?\d[\d,.]*(e[-+]\d+)?", "#", line)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder beside the example, whose recipe is cut to one epoch."""
    shutil.copytree(
        ROOT / "examples" / "tiny",
        tmp_path / "examples" / "tiny",
        ignore=shutil.ignore_patterns("out"),
    )
    recipe = tmp_path / "examples" / "tiny" / "recipe.yaml"
    text, count = re.subn(r"epochs: \d+", "epochs: 1", recipe.read_text())
    assert count == 1
    recipe.write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_console_blocks_print_what_readme_says(folder: Path) -> None:
    blocks = console_blocks()
    assert sum(len(pairs) for pairs in blocks) > 10
    for command, expected in (pair for pairs in blocks for pair in pairs):
        program, *args = shlex.split(command)
        if "|" in args:
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            shell = ["bash", "-o", "pipefail", "-c", command]
            env = {**os.environ, "PATH": path}
            done = subprocess.run(shell, capture_output=True, text=True, check=True, env=env)
            shown = done.stderr + done.stdout
        elif program == "python":
            done = subprocess.run(
                [sys.executable, *args], capture_output=True, text=True, check=True
            )
            shown = done.stdout
        else:
            assert program == "qvec", command
            failing = expected[0].startswith("error:")
            result = call(*args, code=None)
            assert (result.code != 0) == failing, result
            shown = result.err if failing else result.out
        cut = expected[-1:] == ["..."]
        wanted = expected[:-1] if cut else expected
        lines = shown.splitlines()[: len(wanted) if cut else None]
        assert [shape(line) for line in lines] == [shape(line) for line in wanted], command


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_stands_in_readme(command: str) -> None:
    assert f"`qvec {command} " in README


def test_every_make_target_that_readme_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"`?make ([a-z]+(?:-[a-z]+)*)", README))
    assert {"demo", "test", "bench"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_ci_calls_the_test_command_of_readme() -> None:
    script = [
        line
        for line in (ROOT / ".ci" / "run").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert script[-1] == "make test"
    assert "\nmake test " in README


def test_no_path_of_a_machine_stands_in_a_tracked_file() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    homes = [str(ROOT).encode(), str(Path.home()).encode() + b"/"]
    for name in filter(None, listed.stdout.split(b"\0")):
        content = (ROOT / name.decode()).read_bytes()
        assert not any(home in content for home in homes), name


def test_readme_is_finished() -> None:
    assert not re.search(r"@@|TODO|TBD|FIXME", README)
