"""What the design promises of growth, rehearsed: each arrival touches the places named, no other.

Each test copies the package, writes the new thing into the copy as a contributor would, and runs
the commands of the copy on the small files of ``golden/first``.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

PACKAGE = Path(__file__).parents[1] / "qvec_cli"
FIRST = Path(__file__).parent / "golden" / "first"


@dataclass(frozen=True)
class House:
    """A copy of the package, and files to run its commands on."""

    package: Path
    files: Path

    def write(self, name: str, text: str) -> None:
        """A new file."""
        path = self.package / name
        assert not path.exists()
        path.write_text(text)

    def insert(self, name: str, at: str, text: str, *, above: bool = False) -> None:
        """Text below the one line that a pattern matches, or above it."""
        path = self.package / name
        lines = path.read_text().splitlines(keepends=True)
        places = [place for place, line in enumerate(lines) if re.search(at, line)]
        assert len(places) == 1, f"{name}: {at} stands {len(places)} times"
        lines.insert(places[0] + (not above), text)
        path.write_text("".join(lines))

    def add_row(self, name: str, table: str, row: str, function: str) -> None:
        """A function above a table, and a row that names it as the first of the table."""
        self.insert(name, rf"^{table}\b.*\{{$", f"    {row},\n")
        self.insert(name, rf"^{table}\b.*\{{$", f"{function.lstrip()}\n\n", above=True)

    def append(self, name: str, text: str) -> None:
        """A function at the end of a file."""
        path = self.package / name
        path.write_text(f"{path.read_text()}\n\n{text}")

    def touched(self) -> set[str]:
        """Files that are new or changed."""
        paths = [path for path in self.package.rglob("*") if path.is_file()]
        names = {path.relative_to(self.package).as_posix() for path in paths}
        _, changed, new = filecmp.cmpfiles(self.package, PACKAGE, names, shallow=False)
        return {name for name in (*changed, *new) if "__pycache__" not in name}

    def qvec(self, *lines: str) -> list[str]:
        """Stdout of commands of the copy, run in one process, which must end well."""
        done = subprocess.run(
            [sys.executable, "-c", RUN, *lines],
            cwd=self.files,
            env={**os.environ, "PYTHONPATH": str(self.package.parent), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        texts: list[str] = json.loads(done.stdout)
        return texts


RUN = """
import contextlib, io, json, shlex, sys
from qvec_cli.cli.app import run
texts = []
for line in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        if run(shlex.split(line)):
            sys.exit(line)
    texts.append(out.getvalue())
print(json.dumps(texts))
"""


@pytest.fixture
def house(tmp_path: Path) -> House:
    shutil.copytree(PACKAGE, tmp_path / "copy" / "qvec_cli")
    shutil.copytree(FIRST, tmp_path / "files")
    return House(tmp_path / "copy" / "qvec_cli", tmp_path / "files")


def home_of(name: str) -> str:
    """The file in which a class stands, as a path below the package."""
    pattern = re.compile(rf"^class {name}\b", re.MULTILINE)
    paths = [path for path in PACKAGE.rglob("*.py") if pattern.search(path.read_text())]
    assert len(paths) == 1
    return paths[0].relative_to(PACKAGE).as_posix()


LARGEST = '''
def _largest(blocks: Sequence[Array], merge: Merge, streams: Streams) -> Array:
    """Of each number the one of largest magnitude, the first of equals."""
    stacked = np.stack(blocks)
    places = np.abs(stacked).argmax(axis=0)
    return np.take_along_axis(stacked, places[None], axis=0)[0].astype(np.float64)
'''


def test_a_merge_rule_is_a_function_and_its_row(house: House) -> None:
    """With its word in the enum of rules; the command line offers it then."""
    words = home_of("Rule")
    house.insert(words, r'^    DARE = "dare"', '    LARGEST = "largest"\n')
    row = 'Rule.LARGEST: Merger(_largest, "of each number the largest")'
    house.add_row("vector/arithmetic.py", "RULES", row, LARGEST)
    assert house.touched() == {words, "vector/arithmetic.py"}
    usage, said, _, about = house.qvec(
        "combine --help",
        "combine rho.st rho_own.st --rule largest -o o.st --json",
        "patch receiver.st o.st -o p.st",
        "inspect o.st",
    )
    assert "largest" in usage
    assert "largest" in about
    assert json.loads(said)["results"]["rule"] == "largest"
    one, other, new = (load_file(house.files / name) for name in ("rho.st", "rho_own.st", "o.st"))
    assert new.keys() == one.keys()
    for name, tensor in new.items():
        first = np.abs(one[name]) >= np.abs(other[name])
        np.testing.assert_array_equal(tensor, np.where(first, one[name], other[name]))


CITY = '''
def _city_block(teacher: Outputs, student: Outputs) -> Array:
    """Sum of absolute changes of the class probabilities, float64 [N]."""
    ours, theirs = (np.exp(log_softmax(answers.logits)) for answers in (teacher, student))
    return np.asarray(np.abs(ours - theirs).sum(axis=1))
'''


@pytest.mark.slow
def test_a_label_free_measure_is_a_function_and_its_row(house: House) -> None:
    """From the outputs of two networks to distances [N]; sweeps, figures and advise take it."""
    words = home_of("Measure")
    house.insert(words, r'^    FEATURES = "features"', '    CITY = "city"\n')
    house.add_row("selection/trial.py", "MEASURES", "Measure.CITY: _city_block", CITY)
    assert house.touched() == {words, "selection/trial.py"}
    flags = "--bits 3 --proxy bars --measure city"
    house.qvec(
        f"sweep-lambda receiver.st rho.st --objective agreement {flags} --lambdas 0,1 -o s.json",
        "plot s.json -o s.svg",
        "report s.json -o r.html",
        f"patch receiver.st rho.st --lambda auto {flags} -o p.st",
    )
    results = json.loads((house.files / "s.json").read_text())["results"]
    assert results["measure"] == "city"
    distances = [point["distance"] for point in results["curve"]]
    assert all(0 < distance <= 2 for distance in distances)
    assert results["chosen"]["lambda"] in (0, 1)


VERB = '''"""How many numbers a checkpoint holds."""

from __future__ import annotations

import time
from pathlib import Path

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.outputs.metrics import Input, Metrics
from qvec_cli.specs import Listener


def count(path: Path, listener: Listener) -> Metrics:
    """Counts the numbers of all tensors.

    Raises:
        CheckpointError: a file that cannot be read.
    """
    started = time.perf_counter()
    with Checkpoint(path) as checkpoint:
        results = {"numbers": sum(entry.size for entry in checkpoint.values())}
        return Metrics("count", (Input.of(checkpoint),), {}, results, started=started)
'''

FUNCTION = '''def count(
    file: Annotated[Path, typer.Argument(readable=False, help="Any checkpoint.")],
    *,
    showing: Annotated[OutputFlags, Adapted(without=("force", "dry_run", "metrics"))],
) -> None:
    """Say how many numbers FILE holds.

    Examples:
        qvec count rho.st
    """
    from qvec_cli.pipeline import count as verb

    show.deliver(partial(verb.count, file), count_text, showing, inputs=(file,), data_use=False)


def count_text(results: Facts) -> Iterator[str]:
    """The number."""
    yield f"{results['numbers']:,} numbers"
'''

PAGE = """# qvec count

Says how many numbers a checkpoint holds.

```sh
qvec count rho.st
```

`--json` prints the metrics as JSON.
"""


def test_a_command_is_a_verb_its_function_with_words_and_its_page(house: House) -> None:
    """Three files, and a row in the table of commands."""
    house.write("pipeline/count.py", VERB)
    house.append("cli/look.py", FUNCTION)
    house.write("manual/count.md", PAGE)
    house.insert("cli/app.py", r'^ +"inspect": look', '        "count": look.count,\n')
    assert house.touched() == {
        *("pipeline/count.py", "cli/look.py", "manual/count.md", "cli/app.py")
    }
    numbers = sum(tensor.size for tensor in load_file(FIRST / "rho.st").values())
    words, said, usage, commands, page, pages = house.qvec(
        "count rho.st", "count rho.st --json", "count --help", "--help", "help count", "help"
    )
    assert words == f"{numbers:,} numbers\n"
    document = json.loads(said)
    assert document["command"] == "count"
    assert document["results"] == {"numbers": numbers}
    assert "Say how many numbers FILE holds" in usage
    assert "count" in commands
    assert page == PAGE
    assert "- `count`: Says how many numbers a checkpoint holds." in pages


FLOOR = '''"""Rounds every code down."""

from typing import Any

import numpy as np

from qvec_cli.quant.affine import block_shape
from qvec_cli.quant.qtensor import QTensor, of_blocks
from qvec_cli.quant.scales import choose_qparams
from qvec_cli.specs import Grid


def floor(weight: Any, grid: Grid) -> QTensor:
    """Quantizes a weight [out, in], every code the first below its weight."""
    blocks = weight.reshape(block_shape(weight.shape, grid))
    params = choose_qparams(blocks, grid)
    codes = np.clip(np.floor(blocks / params.scale), grid.quant_min, grid.quant_max)
    return of_blocks(codes, params, weight.shape, grid)
'''


def test_a_quantizer_is_its_file_its_row_and_its_word(house: House) -> None:
    """The command line offers it then, and cards name it."""
    words, table = home_of("Method"), "quant/methods.py"
    house.write("quant/floor.py", FLOOR)
    house.insert(words, r'^    RTN = "rtn"', '    FLOOR = "floor"\n')
    house.insert(table, r"^QUANTIZERS\b", '    Method.FLOOR: Quantizer(floor, "round down"),\n')
    house.insert(table, r"^from qvec_cli\.quant\.awq", "from qvec_cli.quant.floor import floor\n")
    assert house.touched() == {words, table, "quant/floor.py"}
    usage, *_, about = house.qvec(
        "quantize --help",
        "quantize receiver.st --bits 3 --preset paper --method floor --fake -o f.st",
        "quantize receiver.st --bits 3 --preset paper --method floor -o q.st",
        "inspect q.st --lineage --json",
    )
    assert "floor" in usage
    assert json.loads(about)["results"]["provenance"]["method"] == "floor"
    before, after = (load_file(house.files / name) for name in ("receiver.st", "f.st"))
    name = next(name for name in before if name.endswith("fc1.weight"))
    step = np.abs(before[name]).max(axis=1, keepdims=True) / 3
    codes = np.floor((before[name] / step).astype(np.float64) + 1e-6)
    np.testing.assert_allclose(after[name], codes * step, atol=1e-5)


DOTS = '''"""The figure dots: accuracies as points."""

from qvec_cli.report.canvas import Drawing, FigureOptions, Sheet, style
from qvec_cli.results.documents import ResultFiles
from qvec_cli.results.metrics_document import EvalResults
from qvec_cli.specs import NOTHING


@style()
def dots(shares):
    sheet = Sheet(3, 2, "Dots")
    sheet.axes(0.5, 0.2, 2, 1.3).plot(shares, "o")
    return sheet.figure


def draw_dots(files: ResultFiles, options: FigureOptions) -> Drawing:
    shares = [row.results.top1 for row in files.of(EvalResults)]
    return Drawing(dots(shares), f"{len(shares)} dots.", {}, NOTHING)
'''


def test_a_figure_is_its_file_and_its_row(house: House) -> None:
    """With its word in the enum of figures."""
    house.write("report/dots.py", DOTS)
    imported = "from qvec_cli.report.dots import draw_dots\n"
    house.insert("report/figures.py", r"^from qvec_cli.report.heatmap", imported, above=True)
    row = "    FigureKind.DOTS: FigureRow(draw_dots, (metrics.EvalResults,)),\n"
    house.insert("report/figures.py", r"^}$", row, above=True)
    words = home_of("FigureKind")
    house.insert(words, r'^    BARS = "bars"', '    DOTS = "dots"\n')
    assert house.touched() == {words, "report/dots.py", "report/figures.py"}
    (words_printed,) = house.qvec("plot eval.json --figure dots -o dots.svg")
    assert words_printed.splitlines()[1] == "1 dots."
    assert ET.parse(house.files / "dots.svg").getroot().tag.endswith("svg")
