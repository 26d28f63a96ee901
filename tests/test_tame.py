"""What files say reaches no terminal, page or figure as it is; printed commands can be pasted."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import call

from qvec_cli.tame import command, counted, tame

ROOT = Path(__file__).parents[1]
FIRST = ROOT / "tests" / "golden" / "first"
STEERING = "\x1b[31m\x07\0\x7f\x9b2J\u202egnp.\u2066\u2028\ufffe]]>--><!--$x$&<b>"
"""What steers a terminal, ends a comment, turns a text around or is no letter."""

SIGNS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2066\ud800-\udfff\ufffe]")
BYTES = os.fsdecode(b"\xff\x1b[31m \xe9")
"""A name that is no UTF-8."""

NAMES = ("-x.st", "--help", "a b.st", "it's.st", '"$HOME".st', "$(touch no).st", "`no`;no&.st", "*")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Golden files, to write beside."""
    shutil.copytree(FIRST, tmp_path, dirs_exist_ok=True)
    with contextlib.chdir(tmp_path):
        yield tmp_path


def steered(value: Any, key: str = "") -> Any:
    """A document with all that in the names of what it is of."""
    if isinstance(value, dict):
        names = key in ("receivers", "donors", "sqnr_db", "baselines")
        return {
            name + STEERING * (names and name not in ("fp", "ptq")): steered(inner, name)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [steered(each, key if isinstance(each, str) else "") for each in value]
    named = key in ("path", "name", "receiver", "donor", "donors", "rho", "quantized", "method")
    return value + STEERING if named and isinstance(value, str) else value


@pytest.mark.parametrize("name", ["sweep.json", "grid.jsonl", "quantize.json"])
def test_names_that_steer_reach_no_figure_page_or_terminal(name: str, folder: Path) -> None:
    lines = [steered(json.loads(line)) for line in _documents(folder / name)]
    (folder / name).write_text("\n".join(map(json.dumps, lines)) + "\n")
    for words in (
        ("plot", name, "-o", "f.svg"),
        ("report", name, "-o", "r.html", "--title", BYTES),
    ):
        done = call(*words)
        assert not SIGNS.search(done.out + done.err)
    ElementTree.fromstring((folder / "f.svg").read_bytes())
    assert not SIGNS.search((folder / "f.svg").read_text())
    assert not SIGNS.search((folder / "r.html").read_text())


def _documents(path: Path) -> list[str]:
    text = path.read_text()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


READING = """
inspect {model}
inspect receiver.st {model} --json
eval {model} --data spots -o {new}.json
patch {model} {rho} -o {new}.st --metrics {new}.json
combine {rho} rho_own.st -o {new}.st
extract {model} own_qat.st -o {new}.st
quantize {model} --bits 3 -o {new}.st --metrics {new}.json
quantize receiver.st --recipe {yaml} --bits 3 -o {new}.st
moments {model} --data spots -o {new}.st
rotate {model} -o {new}.st
export {model} --to timm -o {new}
import {model} -o {new}.st
finetune {model} --data spots --no-aug --epochs 1 -o {new}.st --metrics {new}.json
finetune {model} --data {data} --no-aug --epochs 1 -o {new}.st
sweep-lambda {model} {rho} --data spots --bits 3 --lambdas 0,1 -o {new}.json
transfer {yaml} --bits 3 --lambdas 0,1 -o {new}.jsonl
plot {json} -o {new}.svg
report {json} {model}.json -o {new}.html
"""
"""Every command, as it reads and writes such files."""


def named(folder: Path, name: str) -> dict[str, str]:
    """Files under a name of which the suffix is left, by kind."""
    kinds = {"model": "receiver.st", "rho": "rho.st", "yaml": "grid.yaml", "json": "sweep.json"}
    files = {kind: folder / f"{name}{kind}" for kind in kinds}
    for kind, path in files.items():
        shutil.copy(kinds[kind], path)
    shutil.copytree("spots", folder / f"{name}data")
    for split in ("train", "test"):
        data = folder / f"{name}data" / split
        (data / "near").rename(data / BYTES)
    files |= {"data": folder / f"{name}data", "new": folder / f"{name}new"}
    return {kind: path.name for kind, path in files.items()}


def test_a_file_name_that_is_no_utf8_is_read_or_refused_in_a_line(folder: Path) -> None:
    files = named(folder, BYTES)
    for line in filter(None, READING.splitlines()):
        for path in folder.glob(os.fsdecode(b"\xff*new*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        done = call(*(word.format(**files) for word in line.split()), code=None)
        assert done.code == 0 or (done.code in (1, 2) and len(done.errors) == 1), (line, done)
        shown = done.err + ("" if "--json" in line else done.out)
        assert not SIGNS.search(shown), line
        for path in folder.glob(os.fsdecode(b"\xff*new*")):
            if path.suffix in (".json", ".jsonl", ".html"):
                assert r"\ud" not in path.read_text().replace(r"\\ud", ""), line
            if path.suffix == ".st":
                assert call("inspect", path.name).code == 0


def test_tame_text_is_shown_as_it_is_and_stays_tame() -> None:
    plain = "a b\tc\nü é 日本 \N{GRINNING FACE} \\x1b %s {} $"
    assert tame(plain) == plain
    assert not SIGNS.search(tame(STEERING + BYTES))
    assert tame("\x1b\u202e\udcff") == r"\x1b\u202e\udcff"


def pasted(line: str, folder: Path) -> list[str]:
    """The words that a program gets from a line that is pasted into a shell."""
    for name in ("qvec", "mkdir", "python"):
        (folder / name).write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
        (folder / name).chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-c", line],
        env={"PATH": str(folder)},
        cwd=folder,
        capture_output=True,
        check=True,
    )
    return os.fsdecode(done.stdout).split("\0")[:-1]


@pytest.mark.parametrize("name", NAMES)
def test_a_printed_command_is_pasted_with_the_names_that_it_says(name: str, tmp_path: Path) -> None:
    words = pasted(command(["qvec", "eval", Path(name), "--data", name, Path("-")]), tmp_path)
    assert words == ["eval", f"./{name}" if name[0] == "-" else name, "--data", name, "-"]
    assert {each.name for each in tmp_path.iterdir()} == {"qvec", "mkdir", "python"}


def test_hints_and_advice_name_files_so_that_they_can_be_pasted(folder: Path) -> None:
    (folder / "bin").mkdir()
    for name in NAMES:
        shutil.copy("receiver.st", folder / name)
        shutil.copy("own_qat.st", folder / f"{name}q")
        plain, qat = (f"./{each}" for each in (name, f"{name}q"))
        hint = call("extract", qat, plain, "-o", "o.st", code=1).err.split("hint: ")[1]
        assert pasted(hint.replace(" ...", ""), folder / "bin")[1:] == _typed(name, f"{name}q")
        made = call("eval", plain, "--data", "spots", "-o", f"./{name}d/e.json", code=1)
        hint = made.err.split("with: ")[1]
        assert pasted(hint, folder / "bin") == ["-p", *_typed(f"{name}d")]
    name = "-a b$(no)'s.st"
    shutil.copy("receiver.st", folder / name)
    more = ("--proxy", "bars", "--proxy-samples", "18", "--refine", 0, "--json")
    done = call("advise", f"./{name}", "--bits", 3, *more).json
    for line in done["results"]["commands"]:
        assert f"./{name}" in pasted(line, folder / "bin"), line
    assert shlex.split(line)[0] == "qvec"


def _typed(*names: str) -> list[str]:
    return [f"./{name}" if name[0] == "-" else name for name in names]


def test_one_of_a_kind_is_told_in_the_singular() -> None:
    kinds = ("receiver", "class", "packed weight")
    for count, endings in ((0, ("s", "es", "s")), (1, ("", "", "")), (2, ("s", "es", "s"))):
        for noun, ending in zip(kinds, endings, strict=True):
            assert counted(count, noun) == f"{count} {noun}{ending}"
    assert counted(196608, "weight") == "196,608 weights"


def test_no_command_puts_a_number_before_a_plural_itself() -> None:
    """Else a grid of one receiver has "1 receivers"."""
    nouns = "receivers|donors|tensors|layers|lines|steps|epochs|classes|channels|pictures|weights"
    for file in (ROOT / "qvec_cli" / "cli").glob("*.py"):
        assert not re.findall(rf"\}} (?:{nouns})\b", file.read_text()), file.name


def test_a_grid_of_one_receiver_has_one_receiver(
    folder: Path,
) -> None:
    text = call("transfer", "grid.yaml", *("--bits", 3, "--lambdas", "0,1", "-o", "g.jsonl")).out
    assert text.splitlines()[0] == "g.jsonl: 5 lines, 1 receiver"
