"""README and the manual are run: their console blocks in empty folders, and their links resolve."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qvec_cli.cli.app import COMMANDS
from qvec_cli.cli.app import run as qvec

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MANUAL = ROOT / "qvec_cli" / "manual"
STUDIES = sorted((ROOT / "examples").glob("*/README.md"))
DOCUMENTS = [
    ROOT / "README.md",
    *sorted(MANUAL.glob("*.md")),
    *STUDIES,
    ROOT / "tests" / "bench" / "README.md",
]
AWAITED: set[Path] = set()
"""What is linked before it is there."""

every_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix()
)


def console_blocks(document: Path) -> list[tuple[str, list[str]]]:
    """The commands of a page in order, each with the lines that it prints."""
    pairs: list[tuple[str, list[str]]] = []
    text = document.read_text(encoding="utf-8")
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                pairs.append((line[2:], []))
            else:
                pairs[-1][1].append(line)
    return pairs


class Screen(io.StringIO):
    """A terminal, whose columns COLUMNS tells."""

    def isatty(self) -> bool:
        return True


def shape(line: str) -> str:
    """A line without its numbers and without what hangs on them: they differ by training."""
    line = re.sub(r"\b[0-9a-f]{12,64}\b", "#", line)
    line = re.sub(r"\s+<- chosen|(?<= proxy images, )(both|features)", "", line)
    line = re.sub(r"[-+]?\d[\d,.]*(e[-+]\d+)?", "#", line)
    line = re.sub(r"(?<=# )(epoch|step|image|picture)s\b", r"\1", line)  # one is enough here
    return re.sub(r" {2,}|\t", "  ", line).strip()  # columns are as wide as their numbers


def pattern_of(line: str) -> str:
    """What a printed line has to be: of a name that is cut in its middle, the ends."""
    return re.escape(shape(line)).replace(r"\.\.\.", ".*")


def shown(command: str, *, failing: bool) -> str:
    """What a command prints, on stderr if it should fail; commands of qvec run in this process."""
    program, *args = shlex.split(command)
    if "|" in args:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        shell = ["bash", "-o", "pipefail", "-c", command]
        env = {**os.environ, "PATH": path}
        done = subprocess.run(shell, capture_output=True, text=True, check=True, env=env)
        return done.stderr + done.stdout
    if program == "python":
        done = subprocess.run([sys.executable, *args], capture_output=True, text=True, check=True)
        return done.stdout
    assert program == "qvec", command
    out, err = Screen(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = qvec(args)
    assert (code != 0) == failing, err.getvalue()
    return (err if failing else out).getvalue()


def python_block(document: Path) -> str:
    """The Python blocks of a page as one script."""
    text = document.read_text(encoding="utf-8")
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


def run_python(source: str) -> int:
    """Runs a script in which expressions have their value behind them; counts those."""
    names: dict[str, object] = {}
    seen = 0
    for node in ast.parse(source).body:
        _, _, wanted = source.splitlines()[node.end_lineno - 1].partition("  # ")
        if isinstance(node, ast.Expr) and wanted:
            value = eval(compile(ast.Expression(node.value), "page", "eval"), names)
            assert shape(str(value)) == shape(wanted), ast.unparse(node)
            seen += 1
        else:
            exec(compile(ast.Module([node], []), "page", "exec"), names)
    return seen


def run(document: Path) -> int:
    """Runs the blocks of a page in the working folder, and counts their commands."""
    pairs = console_blocks(document)
    for command, expected in pairs:
        cut = expected[-1:] == ["..."]
        wanted = expected[:-1] if cut else expected
        printed = shown(command, failing=expected[0].startswith("error:"))
        lines = printed.splitlines()[: len(wanted) if cut else None]
        assert len(lines) == len(wanted), (command, printed)
        for line, pattern in zip(map(shape, lines), map(pattern_of, wanted), strict=True):
            assert re.fullmatch(pattern, line), (command, line, pattern)
    return len(pairs)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder beside the example, with one epoch to train and fewer pictures."""
    shutil.copytree(
        ROOT / "examples" / "tiny",
        tmp_path / "examples" / "tiny",
        ignore=shutil.ignore_patterns("out", "out-*"),
    )
    for name, number, less in (
        ("recipe.yaml", r"(?<=epochs: )\d+", "1"),
        ("images.py", r"(?<=test: int = )\d+", "100"),
        ("images.py", r"(?<=test_size=)\d+", "100"),
    ):
        file = tmp_path / "examples" / "tiny" / name
        text, count = re.subn(number, less, file.read_text())
        assert count == 1
        file.write_text(text)
    receiver, donor = "digits: {model: receiver.st, data: images/digits}", "greek: rho.st"
    (tmp_path / "grid.yaml").write_text(f"receivers: {{{receiver}}}\ndonors: {{{donor}}}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def test_the_console_blocks_of_readme_and_studies_print_what_they_say(folder: Path) -> None:
    assert run(ROOT / "README.md") >= 1
    for study in STUDIES:
        run(study)


def test_the_console_blocks_of_the_manual_print_what_they_say(folder: Path) -> None:
    """The tour runs first: other pages use the files that it makes, and fewer of its images."""
    tour = MANUAL / "tour.md"
    assert run(tour) > 30
    for name in (folder / "images").glob("*/train/*"):
        for file in sorted(name.iterdir())[8:]:
            file.unlink()
    assert sum(run(page) for page in sorted(MANUAL.glob("*.md")) if page != tour) > 10
    assert run_python(python_block(MANUAL / "python.md")) > 15


def test_every_command_is_shown_as_a_function_which_needs_no_terminal() -> None:
    source = python_block(MANUAL / "python.md")
    commands = {name for section in COMMANDS.values() for name in section} - {"help"}
    assert commands <= set(re.findall(r"^# qvec ([a-z-]+)$", source, re.MULTILINE))
    nodes = [n for n in ast.parse(source).body if isinstance(n, (ast.Import, ast.ImportFrom))]
    lines = [*map(ast.unparse, nodes), "import sys"]
    code = "\n".join((*lines, "print({'typer', 'rich', 'torch'} & {*sys.modules})"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_readme_is_a_front_page() -> None:
    assert 10_000 <= len(README.encode()) <= 14_000
    assert any(re.search(r"\bqvec [a-z]", line) for line in README.splitlines()[:40])
    commands = [n for n, line in enumerate(README.splitlines(), 1) if line.startswith("qvec ")]
    assert commands[0] <= 40


@every_document
def test_every_make_target_that_is_named_exists(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = re.compile(r"(?:`|^)make ([a-z]+(?:-[a-z]+)*)", re.MULTILINE)
    for target in named.findall(document.read_text(encoding="utf-8")):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_accuracies_of_readme_are_those_that_the_studies_keep() -> None:
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \| (0\.\d{4}) \| (0\.\d{4}) \|$", README, re.MULTILINE)
    assert len(rows) > 10
    for study, column in zip(("tiny", "real"), zip(*rows, strict=True), strict=True):
        kept = (ROOT / "examples" / study / "results" / "zero_shot.txt").read_text()
        first, *_ = kept.split("regret of")
        assert set(column) <= set(re.findall(r"\t(0\.\d{4})\t", first)), study


def test_readme_names_the_targets_of_a_fresh_machine() -> None:
    assert {"demo", "test", "bench"} <= set(re.findall(r"\bmake ([a-z]+)", README))


@every_document
def test_every_link_to_a_file_resolves(document: Path) -> None:
    prose = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = set(re.findall(r"\]\(([^)\s]+)\)", prose))
    for link in links - {link for link in links if "://" in link}:
        name, _, heading = link.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists() or path in AWAITED, link
        assert not heading or heading in headings(path), link


def headings(document: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@every_document
def test_a_document_is_finished(document: Path) -> None:
    assert not re.search(r"@@|\bXX\b|TODO|TBD|FIXME", document.read_text(encoding="utf-8"))


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
