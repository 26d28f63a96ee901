"""Help texts: sections in the order of use, 80 columns, no library's words, examples that run."""

from __future__ import annotations

import contextlib
import re
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
import typer
from conftest import Drawer, call, draw, without_torch
from safetensors.torch import load_file

from qvec_cli import specs
from qvec_cli.cli.app import COMMANDS, program
from qvec_cli.cli.help_text import summary
from qvec_cli.cli.options import OutputFlags
from qvec_cli.cli.signature import Adapted, typed_flags

FUNCTIONS = {name: command for commands in COMMANDS.values() for name, command in commands.items()}
PARAMETERS: dict[str, list[Any]] = {
    name: command.params for name, command in program(COMMANDS).commands.items()
}
CHOICES = {
    "|".join(words) for words in vars(specs).values() if isinstance(words, type(StrEnum))
} | {"train|val|test", "slurm|local", "NUMBER|FILE|auto", "FILE|FOLDER/", "FILE|FOLDER"}

every_command = pytest.mark.parametrize("name", FUNCTIONS)


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """The help text of every command, and of the whole under the name of nothing."""
    results = without_torch([[name, "--help"] for name in FUNCTIONS] + [["--help"]])
    assert all((result.code, result.err) == (0, "") for result in results), results
    return dict(zip((*FUNCTIONS, ""), (result.out for result in results), strict=True))


def sections(text: str) -> dict[str, str]:
    """The indented lines below each heading."""
    found = re.findall(r"^([A-Z][\w ]*):\n((?:  .*\n)+)", text + "\n", re.MULTILINE)
    return dict(found)


def examples(text: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in sections(text)["Examples"].splitlines()]


def test_no_line_is_longer_than_a_terminal_and_none_is_cut(helps: dict[str, str]) -> None:
    for text in helps.values():
        assert max(map(len, text.splitlines())) <= 80
        assert "..." not in re.sub(r"(RHO|FILE|CHECKPOINT)\.\.\.", "", text)
        assert "\xa0" not in text


@pytest.mark.parametrize(("columns", "width"), [("300", 80), ("60", 60), ("20", 50)])
def test_a_narrow_terminal_gets_narrow_help(
    columns: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    prose = call("patch", "--help").out.split("Examples:")[0]
    assert width - 12 <= max(map(len, prose.splitlines())) <= width


def test_the_whole_lists_each_command_with_its_summary_in_the_order_of_use(
    helps: dict[str, str],
) -> None:
    shown = sections(helps[""])
    assert list(shown) == [*COMMANDS, "Options"]
    for section, commands in COMMANDS.items():
        rows = [line.strip().split(maxsplit=1) for line in shown[section].splitlines()]
        assert rows == [[name, summary(f.__doc__ or "")] for name, f in commands.items()]


@every_command
def test_every_flag_stands_once_in_a_section_with_its_value_and_its_default(
    name: str, helps: dict[str, str]
) -> None:
    text = helps[name]
    assert text.startswith(f"Usage: qvec {name} ")
    body = "".join(lines for head, lines in sections(text).items() if head != "Examples")
    for parameter in PARAMETERS[name]:
        names = ", ".join([*sorted(parameter.opts, key=len), *parameter.secondary_opts])
        if parameter.param_type_name == "argument":
            names = parameter.metavar
        elif not parameter.is_flag:
            names += f" {parameter.metavar}"
        assert len(re.findall(rf"^  {re.escape(names)}(?=\s)", body, re.MULTILINE)) == 1, names
        if parameter.default not in (None, False, ""):
            assert isinstance(parameter.show_default, str), names
    defaults = [p.show_default for p in PARAMETERS[name] if isinstance(p.show_default, str)]
    assert re.findall(r"\[default: ([^]]*)]", body) == defaults


@every_command
def test_a_value_is_a_word_in_capitals_or_the_choices(name: str) -> None:
    for parameter in PARAMETERS[name]:
        if not getattr(parameter, "is_flag", False):
            word = parameter.metavar
            assert word in CHOICES or re.fullmatch(r"[A-Z][A-Z_=/]*(\.\.\.)?", word), word
            assert word not in {"PATH", "TEXT", "INTEGER", "FLOAT", "BOOLEAN"}
            assert re.sub(r"\W", "", str(parameter.rich_help_panel)), word


def test_flags_stand_in_sections(helps: dict[str, str]) -> None:
    assert list(sections(helps["quantize"])) == [
        *("Input", "Grid", "Method", "Proxy images", "Comparison", "Images"),
        *("Files without a card", "Output", "Options", "Examples"),
    ]
    for name, text in helps.items():
        if name:
            row = "  -h, --help              Show this message and exit.\n"
            assert sections(text)["Options"] == row


@pytest.fixture(scope="module")
def folder(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the examples name."""
    folder = tmp_path_factory.mktemp("examples")
    rhos = dict.fromkeys(("rho", "rho_a", "a"), drawer.rho)
    models = dict.fromkeys(("receiver", "r"), drawer.receiver)
    models |= {name: getattr(drawer, name) for name in ("base", "donor", "donor_qat")}
    for name, path in (rhos | models).items():
        (folder / f"{name}.st").symlink_to(path)
    bare = load_file(drawer.receiver)
    torch.save(bare, folder / "weights.pth")
    torch.save({"arch": "test_vit", "state_dict": bare}, folder / "model_best.pth.tar")
    (folder / "images").mkdir()
    (folder / "images" / "greek").symlink_to(drawer.donor_data)
    (folder / "images" / "digits").symlink_to(drawer.receiver_data)
    draw(folder / "pictures", ("x",), 520, 1, seed=2)
    (folder / "grid.yaml").write_text(
        "receivers:\n  digits: {model: receiver.st, data: images/digits}\n"
        "donors:\n  greek: rho.st\n  latin: rho_a.st\n"
    )
    with contextlib.chdir(folder):
        for line in (
            "combine rho.st --rule weighted --mix 0.5 -o rho_b.st",
            "combine rho.st --rule weighted --mix 0.6 -o b.st",
            "patch receiver.st rho.st -o patched.st",
            "quantize receiver.st --bits 3 -o receiver_w3.st --metrics quantized.json",
            "sweep-lambda receiver.st rho.st --data images/digits --lambdas 0,1 -o sweep.json",
            "moments receiver.st --data images/digits --samples 16 -o moments.st",
            "eval receiver.st --data images/digits -o before.json",
            "eval receiver.st --data images/digits -o after.json",
        ):
            call(*line.split())
    return folder


@every_command
def test_the_examples_run(
    name: str, helps: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --dry-run where the command has it."""
    monkeypatch.chdir(folder)
    lines = examples(helps[name])
    assert len(lines) == 2
    for words in lines:
        assert words[0] == name
        dry = any("--dry-run" in parameter.opts for parameter in PARAMETERS[name])
        force = any("--force" in parameter.opts for parameter in PARAMETERS[name])
        call(*words, *(["--dry-run"] if dry else []), *(["--force"] if force else []))


def test_a_command_is_a_function_and_a_line_of_the_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is shown, and what the function gets, follow from its signature."""
    got: list[object] = []

    def hello(
        name: Annotated[str, typer.Argument(help="Whom to greet.")],
        *,
        writing: Annotated[OutputFlags, Adapted(without=("metrics",), defaults={"force": True})],
    ) -> None:
        """Greet NAME.

        Examples:
            qvec hello you
        """
        got.extend((name, writing))

    whole = program({**COMMANDS, "Toys": {"hello": hello}})
    whole(["--help"], standalone_mode=False)
    assert sections(capsys.readouterr().out)["Toys"].split() == ["hello", "Greet", "NAME."]
    whole(["hello", "--help"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "--json" in shown
    assert "--metrics" not in shown
    whole(["hello", "you", "--json"], standalone_mode=False)
    assert got == ["you", OutputFlags(force=True, as_json=True)]
    assert set(typed_flags(OutputFlags(force=True, as_json=True))) == {"force", "as_json"}
