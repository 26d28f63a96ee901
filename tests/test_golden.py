"""Files of the first version are read for ever, and mean what they meant when they were written.

``golden/make.py`` tells how the files of ``golden/first`` came about. Beside them it keeps what the
code that wrote them said: of each file, and of what other commands then made of it.
"""

from __future__ import annotations

import contextlib
import json
import re
import runpy
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import call

FIRST = Path(__file__).parent / "golden" / "first"
MAKE = runpy.run_path(str(FIRST.parent / "make.py"))
SAID: dict[str, Any] = {}
for text in (FIRST / "said.jsonl").read_text().splitlines():
    SAID.update(json.loads(text))
FREE = {"digest", "words", "bytes", "bytes_after", "figures", "tables"}
"""Results that may differ: they follow from rounding, wording, what a header says, the version of
matplotlib, or from how many figures and tables a page has."""
CLOSE, TRAINED = (1e-4, 1e-6), (1e-3, 1e-3)
"""Share of a number, and size, that is only rounding; of one that was trained, whose rounding grows
from step to step and is another on every kind of processor (3e-4 was seen)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, for outputs to stand beside."""
    return Path(shutil.copytree(FIRST, tmp_path_factory.mktemp("golden") / "first"))


@pytest.fixture(autouse=True)
def _inside(folder: Path) -> Iterator[None]:
    with contextlib.chdir(folder):
        yield


def differences(
    old: Any, new: Any, place: str = "", close: tuple[float, float] = CLOSE
) -> Iterator[str]:
    """What an old answer said that a new one does not say; new keys may join."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        free = FREE if place.startswith("/results") else set()
        for key in old.keys() - free:
            yield from differences(old[key], new.get(key, "nothing"), f"{place}/{key}", close)
    elif isinstance(old, float) and isinstance(new, float):
        if new != pytest.approx(old, rel=close[0], abs=close[1]):
            yield f"{place}: {old} was said, {new} is"
    elif old != new:
        yield f"{place}: {old} was said, {new} is"


def test_the_answers_that_are_kept_are_those_of_the_lines() -> None:
    assert [*SAID] == [line for line in MAKE["READ"].splitlines() if line]


@pytest.mark.parametrize("line", SAID, ids=lambda line: " ".join(line.split()[:6]))
def test_what_was_said_of_an_old_file_is_said_today(line: str) -> None:
    words = shlex.split(line)
    new = MAKE["without_times"](call(*words).json)
    assert [*differences(SAID[line]["said"], new)] == []
    if SAID[line]["tensors"]:
        out = Path(words[words.index("-o") + 1])
        close = TRAINED if words[0] in ("finetune", "train-qat") else CLOSE
        assert [*differences(SAID[line]["tensors"], MAKE["tensors"](out), close=close)] == []


def test_an_old_state_is_gone_on_with_and_not_begun_anew(folder: Path) -> None:
    state = (FIRST / "cut.st.state").read_bytes()
    (folder / "again.st.state").write_bytes(state)
    done = call(*shlex.split(f"{MAKE['TRAINED']} -o again.st --resume"))
    resumed = re.search(r"resumed at epoch (\d+)", done.err)
    assert resumed
    assert f"epoch {resumed[1]}/" in done.err
    assert "epoch 1/" not in done.err


def test_the_lines_of_an_old_grid_that_was_cut_off_are_kept(folder: Path) -> None:
    """Each as it stands, though one was changed by hand; the others are computed again."""
    *whole, torn = (FIRST / "cut.jsonl.state").read_text().splitlines()
    assert len(whole) > 1
    assert not torn.endswith("}")
    kept = [json.loads(line) for line in whole]
    kept[1]["baselines"]["ptq"]["test"]["loss"] = 12.5
    lines = [*(json.dumps(line) for line in kept), torn]
    (folder / "edited.jsonl.state").write_text("\n".join(lines))
    flags = "--bits 3 --lambdas 0,1 --nulls random -o edited.jsonl --resume"
    call("transfer", "grid.yaml", *flags.split())
    new = [json.loads(line) for line in (folder / "edited.jsonl").read_text().splitlines()]
    old = [json.loads(line) for line in (FIRST / "grid.jsonl").read_text().splitlines()]
    old[1]["baselines"]["ptq"]["test"]["loss"] = 12.5
    without = MAKE["without_times"]
    assert [*differences(without(old), without(new))] == []


def test_metrics_of_each_command_still_fit_the_published_schema() -> None:
    import jsonschema

    import qvec_cli.outputs

    path = Path(qvec_cli.outputs.__file__).with_name("metrics.schema.json")
    schema = json.loads(path.read_text())
    documents = {file.name: json.loads(file.read_text()) for file in FIRST.glob("*.json")}
    commands = {document["command"] for document in documents.values()}
    assert commands >= {
        *("finetune", "train-qat", "extract", "moments", "combine", "patch", "quantize", "export"),
        *("eval", "sweep-lambda", "advise"),
    }
    for document in documents.values():
        jsonschema.validate(document, schema)
