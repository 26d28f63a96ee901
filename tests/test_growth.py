"""What arrives touches few files: rehearsed in a copy of the package, which then does it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from samples import written

PACKAGE = Path(__file__).parents[1] / "qvec_cli"

DOTS = '''"""The figure dots: accuracies as points."""

from qvec_cli.report.canvas import Drawing, FigureOptions, Sheet, styled
from qvec_cli.results.documents import ResultFiles
from qvec_cli.results.metrics_document import EvalResults


@styled
def dots(shares):
    sheet = Sheet(3, 2)
    sheet.axes(0.5, 0.2, 2, 1.3).plot(shares, "o")
    return sheet.figure


def draw_dots(files: ResultFiles, options: FigureOptions) -> Drawing:
    shares = [row.results.top1 for row in files.of(EvalResults)]
    return Drawing(dots(shares), f"{len(shares)} dots.")
'''


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package in a folder of its own."""
    ignore = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(PACKAGE, tmp_path / "copy" / "qvec_cli", ignore=ignore))


def add(file: Path, before: str, text: str) -> None:
    """Puts lines before the one line that starts so."""
    content = file.read_text()
    assert content.count(before) == 1, before
    file.write_text(content.replace(before, f"{text}\n{before}"))


def run(copy: Path, *args: str, cwd: Path) -> str:
    command = [sys.executable, "-m", "qvec_cli", *args]
    env = {**os.environ, "PYTHONPATH": str(copy.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_figure(copy: Path, tmp_path: Path) -> None:
    """Its file, its row in report/figures.py, and its word in the enum."""
    (copy / "report" / "dots.py").write_text(DOTS)
    figures = copy / "report" / "figures.py"
    add(figures, "from qvec_cli.report.heatmap", "from qvec_cli.report.dots import draw_dots")
    row = "    FigureKind.DOTS: FigureRow(draw_dots, (EvalResults,)),"
    add(figures, '}\n"""Every figure', row)
    add(copy / "specs.py", '    BARS = "bars"', '    DOTS = "dots"')
    written(tmp_path)
    files = ("own_qat.json", "fp.json")
    told = run(copy, "plot", *files, "--figure", "dots", "-o", "dots.svg", cwd=tmp_path)
    assert told.splitlines()[1] == "2 dots."
    assert ET.parse(tmp_path / "dots.svg").getroot().tag.endswith("svg")
