"""Hostile documents: whatever a file of text says, a command ends well or says in a line why not.

Real files are changed at random, from a fixed seed: values replaced, keys lost, texts cut.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import re
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import call

from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.json_text import encode, parse
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.write import write
from qvec_cli.errors import CheckpointError
from qvec_cli.inputs.yaml_text import MAX_BYTES

FIRST = Path(__file__).parent / "golden" / "first"
SECONDS, MEMORY = 10.0, 1 << 30
"""What a command may take, and by how much the process may grow meanwhile."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2**31, 2**63, 10**400, -(10**400), 0.5, -0.0, 1e308, 1e-320),
    *(
        float("nan"),
        float("inf"),
        "",
        "x",
        "0",
        "-x",
        "a" * 100_000,
        "\ud800",
        "\x1b[31m\x07",
        "\0",
    ),
    *("\u202egnp.exe", "a\nb", "/etc/passwd", "../..", "é" * 300, [], {}, [[]], [None], [1, "a"]),
    *([0] * 5000, {"": {}}, {"a": 1}, ["\udcff"], {"\ud800": "\x9b"}, 250, 900),
)
"""What a value is replaced by; the last two are so many lists in one another."""

TEXTS: tuple[bytes, ...] = (
    *(b"\xff", b"\xef\xbb\xbf", b"\0", b"\xed\xa0\x80", b"NaN", b"-Infinity", b"9" * 5000),
    *(
        b"[" * 3000,
        b'{"a":' * 3000,
        b'"\\ud800"',
        b'"',
        b"}",
        b"]",
        b",",
        b"\n",
        b"\r",
        b"\t",
        b"\\",
    ),
    *(b"1e999", b"&a [*a]", b"*a", b"!!python/object:os.system x", b"<<: {}", b"? [a]: b", b"- "),
)
"""What is put into a text."""


def hostile(dice: random.Random) -> Any:
    """One of the values, which may be changed again."""
    place = dice.randrange(len(VALUES))
    if place < len(VALUES) - 2:
        return copy.deepcopy(VALUES[place])
    value: Any = []
    for _ in range(VALUES[place]):
        value = [value]
    return value


def _places(value: Any, *place: Any) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a document."""
    yield place
    if isinstance(value, (dict, list)) and len(place) < 12:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(inner, *place, key)


def changed(value: Any, dice: random.Random) -> Any:
    """A JSON value with something hostile in one or two places."""
    for _ in range(dice.choice((1, 1, 2))):
        *above, last = ("", *dice.choice([*_places(value)]))
        if not above:
            return hostile(dice)
        holder = value
        for key in above[1:]:
            holder = holder[key]
        if isinstance(holder, dict) and dice.random() < 0.2:
            moved = holder.pop(last)
            if dice.random() < 0.5:
                holder[dice.choice(("", "x", "\x1b]0;\x07", "\ud800", *holder))] = moved
        else:
            holder[last] = hostile(dice)
    return value


def broken(text: bytes, dice: random.Random) -> bytes:
    """A text that is cut, or has something in it that does not belong there."""
    start, stop = sorted(dice.randrange(len(text) + 1) for _ in range(2))
    kind = dice.randrange(5)
    if kind == 0:
        return text[:start]
    if kind == 1:
        return text[:start] + text[stop:]
    if kind == 2:
        return text[:stop] + text[start:]
    return text[:start] + dice.choice(TEXTS) + text[start + dice.randrange(3) :]


def in_json(raw: bytes, dice: random.Random) -> bytes:
    """Of a document, or of one of the lines of a file."""
    if dice.random() < 0.25:
        return broken(raw, dice)
    try:
        return json.dumps(changed(json.loads(raw), dice)).encode()
    except ValueError:
        lines = [line for line in raw.split(b"\n") if line.endswith(b"}")]
        place = dice.randrange(len(lines))
        lines[place] = json.dumps(changed(json.loads(lines[place]), dice)).encode()
        return b"\n".join([*lines, b""])


def in_card(raw: bytes, dice: random.Random) -> bytes:
    """Of a safetensors file, one value of whose metadata is another."""
    stop = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:stop])
    card = header["__metadata__"]
    key = dice.choice(sorted(card))
    try:
        value = changed(json.loads(card[key]), dice)
        card[key] = json.dumps(value)
    except ValueError:
        card[key] = dice.choice(("", "x", "[]", "-1", "9" * 5000, "\x1b[2J\u202e", "a" * 100_000))
    if dice.random() < 0.1:
        card[key] = broken(card[key].encode(), dice).decode(errors="replace")
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + raw[stop:]


def in_text(raw: bytes, dice: random.Random) -> bytes:
    """Of YAML, or of a list of names."""
    for _ in range(dice.choice((1, 1, 2))):
        raw = broken(raw, dice)
    return raw


@dataclass(frozen=True)
class Row:
    """A file, how it is changed, and the commands that read it."""

    file: str
    change: Callable[[bytes, random.Random], bytes]
    lines: tuple[str, ...]


DRAWN = ("report {} -o out.html --force", "plot {} -o out.svg --force")
CHOICE = "patch receiver.st rho.st --lambda {} -o out.st --force"
MODEL = (
    *("inspect {}", "inspect {} --lineage", "inspect receiver.st {}", "eval {} --data spots"),
    *("quantize {} --bits 3 -o out.st --force", "patch {} rho.st -o out.st --force"),
    *("export {} --to timm -o out/ --force", "extract {} own_qat.st -o out.st --force"),
    "finetune {} --data spots -o out.st --force --epochs 1 --no-aug",
    "import {} -o out.st --force",
    "sweep-lambda {} rho.st --data spots --bits 3 --lambdas 0,1 -o out.json --force",
    "moments {} --data spots -o out.st --force",
    "quantize {} --bits 3 --method gptq --moments moments.st -o out.st --force",
    "rotate {} -o out.st --force",
)
VECTOR = (
    *("inspect {}", "inspect {} --lineage", "combine {} rho_own.st -o out.st --force"),
    *(
        "patch receiver.st {} -o out.st --force",
        "sweep-lambda receiver.st {} --data spots --bits 3 --lambdas 0,1 -o out.json --force",
    ),
)
MOMENTS = (
    *("inspect {}", "quantize receiver.st --bits 3 --method gptq --moments {} -o out.st --force"),
    "extract donor.st donor_qat.st --moments {} -o out.st --force",
)
TRAINED = (
    "finetune base.st --data spots --no-aug --lr 3e-2 --warmup-steps 2 --batch-size 8 --device cpu "
    "--epochs 12"
)
FINISHED = TRAINED.replace("spots", "bars").replace("12", "10")
SWEEP = (
    "sweep-lambda receiver.st rho.st --data spots --bits 3 --lambdas 0:1:0.5 -o sweep.json --resume"
)
NETWORK = (
    "--model vit_tiny_patch16_224 --img-size 8 --model-arg patch_size=4 --model-arg embed_dim=8 "
    "--model-arg depth=1 --model-arg num_heads=2"
)
ROWS = {
    **{
        f"{name}.json": Row(f"{name}.json", in_json, (*DRAWN, CHOICE))
        for name in (
            "sweep",
            "agree",
            "quantize",
            "compare",
            "eval",
            "finetune",
            "advise",
            "extract",
        )
    },
    "grid": Row("grid.jsonl", in_json, (*DRAWN, "plot {} --figure curve -o out.svg --force")),
    "journal": Row(
        "cut.jsonl.state",
        in_json,
        ("transfer grid.yaml --bits 3 --lambdas 0,1 --nulls random -o cut.jsonl --resume",),
    ),
    "grid file": Row("grid.yaml", in_text, ("transfer {} --bits 3 --dry-run -o out.jsonl",)),
    "recipe": Row(
        "recipe.yaml", in_text, ("finetune base.st --recipe {} --data spots -o out.st --force",)
    ),
    "class map": Row(
        "classes.txt",
        in_text,
        (f"eval plain/model.safetensors {NETWORK} --class-map {{}} --data spots",),
    ),
    "packed config": Row(
        "stock/config.json",
        in_json,
        ("inspect stock", "eval stock --data spots"),
    ),
    "config": Row(
        "plain/config.json",
        in_json,
        tuple(line.format("plain") for line in (MODEL[0], *MODEL[3:6], *MODEL[8:10])),
    ),
    "index": Row("shards/model.safetensors.index.json", in_json, ("inspect shards",)),
    "model": Row("receiver.st", in_card, MODEL),
    "own qat": Row("own_qat.st", in_card, ("extract receiver.st {} -o out.st --force", *MODEL[:1])),
    "packed": Row("packed.st", in_card, (*MODEL[:4], "export {} --to timm -o out/ --force")),
    "vector": Row("rho.st", in_card, VECTOR),
    "vector with moments": Row("rho_m.st", in_card, VECTOR),
    "moments": Row("moments.st", in_card, MOMENTS),
    "finished training": Row("donor.st", in_card, (f"{FINISHED} -o donor.st --resume",)),
    "finished sweep": Row("sweep.json", in_json, (SWEEP,)),
    "state": Row("cut.st.state", in_card, (f"{TRAINED} -o cut.st --resume", "inspect {}")),
}
"""Every kind of file with text in it that qvec reads."""


def prepare(folder: Path) -> Path:
    """A copy of the golden files, and beside them a folder of shards, a bare file, a recipe."""
    shutil.copytree(FIRST, folder, dirs_exist_ok=True)
    (folder / "recipe.yaml").write_text(
        "lr: 1e-3\n# words\nbatch_size: 8\nepochs: 1\nmean: [0.5, '0.5', \"0.5\"]\nno-aug: true\n"
    )
    (folder / "classes.txt").write_text("far\nnear\n")
    from safetensors.numpy import load_file, save_file

    for bare, like in (("plain", "timm"), ("stock", "packed")):
        shutil.copytree(folder / like, folder / bare)
        source = FIRST / ("receiver.st" if bare == "plain" else "packed/model.safetensors")
        save_file(load_file(source), folder / bare / "model.safetensors")
    tensors = load_file(FIRST / "receiver.st")
    (folder / "shards").mkdir()
    table = {}
    for place, names in enumerate((sorted(tensors)[:5], sorted(tensors)[5:])):
        name = f"model-0000{place + 1}-of-00002.safetensors"
        save_file({n: tensors[n] for n in names}, folder / "shards" / name)
        table |= dict.fromkeys(names, name)
    index = {"metadata": {"total_size": 1}, "weight_map": table}
    (folder / "shards/model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """A cap on what the process may map, so much above what it has."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def faults(row: Row, tries: int) -> Iterator[str]:
    """Where the law is broken: in which try, by which command, and how. Works in the folder."""
    raw = Path(row.file).read_bytes()
    for number in range(tries):
        dice = random.Random(f"{row.file} {number}")
        text, line = row.change(raw, dice), dice.choice(row.lines).format(row.file)
        for left in ("cut.jsonl", "cut.st"):
            Path(left).unlink(missing_ok=True)
        Path(row.file).write_bytes(text)
        started = time.process_time()
        try:
            with bounded():
                result = call(*line.split(), code=None)
            fine = result.code == 0 or (result.code in (1, 2) and len(result.errors) == 1)
            what = "" if fine and "enough memory" not in result.err else str(result)
        except Exception as fault:
            what = f"{type(fault).__name__}: {fault}"
        if (spent := time.process_time() - started) > SECONDS:
            what += f" {spent:.0f} seconds"
        if what:
            yield f"try {number}: {line}: {what[:300]}"
    Path(row.file).write_bytes(raw)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files, once libraries are loaded, which would not count as what a document takes."""
    folder = prepare(tmp_path_factory.mktemp("hostile"))
    with contextlib.chdir(folder):
        call("finetune", "base.st", "--data", "spots", "-o", "w.st", "--epochs", 1, "--no-aug")
        call("report", "sweep.json", "grid.jsonl", "-o", "w.html")
    return folder


@pytest.mark.parametrize("name", ROWS)
def test_a_hostile_document_is_read_or_refused_in_a_line(name: str, folder: Path) -> None:
    with contextlib.chdir(folder):
        assert [*faults(ROWS[name], 5)] == []


def test_where_a_run_stood_is_typed_and_of_a_run(folder: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    raw = (folder / "cut.st.state").read_bytes()
    tensors = load_file(folder / "cut.st.state")
    with safe_open(folder / "cut.st.state", "np") as file:
        metadata = file.metadata()
    card = json.loads(metadata["qvec.provenance"])
    changes: dict[str, dict[str, Any]] = {
        "correct: expected int, got array": {"correct": [[]]},
        "history[0]: expected object, got int": {"history": [1]},
        "its counts are of no run": {"step": -1},
        "its counts are of no run ": {"correct": 1},
        "has 1 epoch behind it, not 3": {"epoch": 3},
    }
    with contextlib.chdir(folder):
        for said, change in changes.items():
            changed = {**card, "progress": card["progress"] | change}
            header = {**metadata, "qvec.provenance": json.dumps(changed)}
            save_file(tensors, "cut.st.state", header)
            refused = call(*f"{TRAINED} -o cut.st --resume".split(), code=1)
            assert f"cut.st.state: progress: {said.strip()}" in refused.errors[0]
    (folder / "cut.st.state").write_bytes(raw)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_no_hostile_document_of_many_does_harm(name: str, folder: Path) -> None:
    with contextlib.chdir(folder):
        assert [*faults(ROWS[name], 500)] == []


REFUSED = {
    "a number of 401 digits": "1" + "0" * 400,
    "a number of 5,000 digits": "9" * 5000,
    "the number 1e999 is too large": "1e999",
    "NaN is not JSON": "NaN",
    "nested deeper than 256": "[" * 300 + "]" * 300,
    "nested too deep": "[" * 100_000 + "]" * 100_000,
    "a text of 100,000 letters": f'"{"a" * 100_000}"',
    "'\\ud800' is half a letter": '"\\ud800"',
    "'a' stands in it twice": '{"a": 1, "a": 1}',
}


@pytest.mark.parametrize("reason", REFUSED)
def test_json_of_no_bounds_is_refused_wherever_it_is_read(reason: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse(REFUSED[reason])
    files = {
        "sweep.json": DRAWN[0],
        "grid.jsonl": DRAWN[1],
        "agree.json": CHOICE,
        "plain/config.json": "inspect plain",
        "shards/model.safetensors.index.json": "inspect shards",
    }
    with contextlib.chdir(folder):
        for name, line in files.items():
            raw = Path(name).read_bytes()
            first = b"{\n" if raw.startswith(b"{\n") else b"{"
            value = b'%b"x": %b, ' % (first, REFUSED[reason].encode())
            Path(name).write_bytes(raw.replace(first, value, 1))
            done = call(*line.format(name).split(), code=1)
            assert reason in done.errors[0], name
            Path(name).write_bytes(raw)


def test_a_lineage_of_eighty_generations_is_read_and_no_longer_one_is_written(
    tmp_path: Path,
) -> None:
    lineage: dict[str, Any] = {"op": "finetune", "parents": []}
    entry = {"a": Entry("F32", (1,))}
    refusals = []
    for generation in range(90):
        path, card = tmp_path / f"{generation}.st", Card(Kind.CHECKPOINT, provenance=lineage)
        try:
            write(path, entry, iter([("a", [np.ones(1, np.float32)])]), card, force=False)
        except CheckpointError as error:
            refusals.append(str(error))
        else:
            assert Checkpoint(path).card.provenance == lineage
        lineage = {"op": "finetune", "parents": [{"as": "base", "provenance": lineage}]}
    assert call("inspect", tmp_path / "80.st", "--lineage").out.count("finetune") == 81
    assert not path.exists()
    assert 0 < len(refusals) < 9
    assert all("nested deeper" in each for each in refusals)


@pytest.mark.parametrize(
    "text", ["a", "é", "\N{GRINNING FACE}", "\\ud800", "\\\ud83d", "\ud800\udbff\\"]
)
def test_all_that_is_written_can_be_read(text: str) -> None:
    for value in (text, {text: [text, 1, -0.5, None, True]}):
        again = parse(encode(value))
        assert parse(encode(again)) == again
        whole = text == text.encode("utf-8", "replace").decode()
        assert (again == value) is whole


@pytest.mark.parametrize("piece", ["[],", "a,", '"",', "{},"])
def test_yaml_of_the_largest_size_takes_seconds(piece: str, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"bits: [{piece * ((MAX_BYTES - 10) // len(piece))}]")
    assert recipe.stat().st_size <= MAX_BYTES
    started = time.process_time()
    call("quantize", "x.st", "--recipe", recipe, "-o", "y.st", code=2)
    assert time.process_time() - started < SECONDS
