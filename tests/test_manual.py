"""The manual: a page for each command and topic, what the pages promise, and how they are shown."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import call, without_torch

from qvec_cli.cli import app
from qvec_cli.cli.help_text import TOPICS, PlainGroup, listing, page, sentence
from qvec_cli.errors import SpecError

MANUAL = Path(__file__).parents[1] / "qvec_cli" / "manual"
PROGRAM = app.program(app.COMMANDS)
assert isinstance(PROGRAM, PlainGroup)
COMMANDS: dict[str, Any] = dict(PROGRAM.commands)
SECTIONS = {**PROGRAM.sections(), "Topics": list(TOPICS)}
PAGES = [name for names in SECTIONS.values() for name in names]
FLAGS = {
    name: {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}
    for name, command in COMMANDS.items()
}
EVERY_FLAG = {flag for flags in FLAGS.values() for flag in flags} | {"--help", "--version"}
FOREIGN = {"--nproc-per-node", "--tasks"}
"""Flags of other programs that a page names."""

every_page = pytest.mark.parametrize("topic", PAGES)


def examples(text: str) -> list[list[str]]:
    """The command lines of qvec in the blocks of a page, as words."""
    blocks = re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in line.split("|")]
    return [part.split() for part in parts if re.match("qvec [a-z]", part)]


def test_every_command_has_a_page_and_every_page_is_listed() -> None:
    assert len(PAGES) == len(set(PAGES)) == len(COMMANDS) + len(TOPICS)
    assert {path.stem for path in MANUAL.iterdir()} == set(PAGES)


@every_page
def test_a_page_opens_with_its_name_and_one_sentence(topic: str) -> None:
    first, *_ = page(topic).splitlines()
    assert first == (f"# qvec {topic}" if topic in COMMANDS else f"# {topic}")
    said = sentence(page(topic))
    assert re.fullmatch(r"[A-Z][^\n]*\.", said)
    assert ". " not in said
    assert len(said) <= 150
    assert not re.search(r"[\[\]|]", said), "a link or a table"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_a_command_starts_with_example_lines_of_it(command: str) -> None:
    opening = page(command).split("\n\n")[2]
    assert opening.startswith(("```sh\n", "```console\n"))
    shown = examples(opening + "\n```")
    assert 1 <= len(shown) <= 3
    assert all(words[1] == command for words in shown)


@pytest.mark.parametrize("command", COMMANDS)
def test_there_is_a_word_on_every_flag_in_its_page_and_in_its_help(command: str) -> None:
    text = page(command)
    for parameter in COMMANDS[command].params:
        assert parameter.help, parameter.name
        for flag in (*parameter.opts, *parameter.secondary_opts):
            if flag.startswith("--") and flag not in {"--output", "--help"}:
                assert re.search(rf"{flag}(?![\w-])", text), flag


@every_page
def test_every_flag_that_a_page_names_exists(topic: str) -> None:
    text = page(topic)
    for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]", text):
        assert flag in EVERY_FLAG | FOREIGN, flag
    for words in examples(text):
        known = FLAGS[words[1]] | {"--help"}
        assert {w for w in words[2:] if re.match(r"--?[a-z]", w)} <= known, words


@every_page
def test_a_page_points_to_pages_that_exist(topic: str) -> None:
    for name in re.findall(r"qvec help ([a-z][a-z-]*)", page(topic)):
        assert name in PAGES, name


def test_the_list_has_each_page_with_its_sentence_in_the_order_of_use() -> None:
    shown = call("help").out
    assert shown == listing(SECTIONS)
    rows = re.findall(r"^- `([a-z-]+)`: (.*)$", shown, re.MULTILINE)
    assert [name for name, _ in rows] == PAGES
    assert all(said == sentence(page(name)) for name, said in rows)
    assert re.findall(r"^## (\w+)$", shown, re.MULTILINE) == list(SECTIONS)


@every_page
def test_a_pipe_gets_the_page_as_it_is(topic: str) -> None:
    assert call("help", topic).out == (MANUAL / f"{topic}.md").read_text(encoding="utf-8")


def test_a_pipe_gets_a_page_without_torch_or_rich() -> None:
    results = without_torch([["help"], ["help", "quantize"]])
    assert [(result.code, result.err) for result in results] == [(0, ""), (0, "")], results


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("quantise", "quantize"), ("sweep", "sweep-lambda"), ("Train_QAT", "train-qat")],
)
def test_an_unknown_topic_is_an_error_that_names_the_closest(typed: str, meant: str) -> None:
    result = call("help", typed, code=2)
    error, hint = result.err.splitlines()
    assert error == f"error: the manual has no page {typed!r}"
    assert hint.startswith("hint: Did you mean ")
    assert meant in hint
    assert result.out == ""


def test_a_topic_is_a_name_and_no_path() -> None:
    for typed in ("../errors", "quantize.md", "/etc/hostname", ""):
        with pytest.raises(SpecError, match="the manual has no page"):
            page(typed)


def on_a_terminal(*words: str, **environment: str) -> str:
    """What qvec writes to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    env = {
        key: value for key, value in os.environ.items() if key not in {"NO_COLOR", "FORCE_COLOR"}
    }
    env |= {"COLUMNS": "80", "TERM": "xterm", **environment}
    line = [sys.executable, "-m", "qvec_cli", *words]
    with subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=theirs, env=env) as process:
        os.close(theirs)
        received = b""
        with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
            while block := os.read(ours, 1 << 16):
                received += block
    os.close(ours)
    assert process.returncode == 0
    return received.decode()


def test_a_terminal_gets_the_page_formatted() -> None:
    shown = on_a_terminal("help", "quantize")
    assert "\x1b[" in shown
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "qvec quantize" in plain
    assert "# qvec quantize" not in plain
    assert "```" not in plain


def test_no_color_leaves_colours_out() -> None:
    shown = on_a_terminal("help", "quantize", NO_COLOR="1")
    codes = {code for group in re.findall(r"\x1b\[([0-9;]*)m", shown) for code in group.split(";")}
    assert not codes & {str(number) for number in (*range(30, 38), *range(40, 48))}


def test_without_anything_close_the_hint_is_the_list() -> None:
    assert call("help", "nothing at all", code=2).err.endswith("hint: qvec help lists all pages.\n")
