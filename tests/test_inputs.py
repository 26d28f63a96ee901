"""Inputs of a run: each file is opened once and hashed once, whatever the command does with it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import Drawer, Planted, call

from qvec_cli.checkpoint import read
from qvec_cli.checkpoint.read import Checkpoint


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> tuple[Counter[str], Counter[str]]:
    """How often each checkpoint file was opened, and how many bytes of it were hashed."""
    opens: Counter[str] = Counter()
    hashed: Counter[str] = Counter()
    begin, update = Checkpoint.__init__, read.Hasher.update
    names: dict[int, str] = {}

    def opening(self: Checkpoint, path: Path) -> None:
        begin(self, path)
        opens[str(path)] += 1
        names[id(self._hasher)] = str(path)

    def hashing(self: read.Hasher, name: str, block: Any) -> None:
        hashed[names.get(id(self), "")] += block.nbytes
        update(self, name, block)

    monkeypatch.setattr(read.Checkpoint, "__init__", opening)
    monkeypatch.setattr(read.Hasher, "update", hashing)
    return opens, hashed


def size(path: Path) -> int:
    with Checkpoint(path) as checkpoint:
        entries = [*checkpoint.values(), *checkpoint.attached.values()]
        return sum(entry.nbytes for entry in entries)


GRID = """
receivers:
  bars: {{model: {receiver}, data: {data}, baselines: {{donor: {receiver}}}}}
donors:
  one: {{rho: {rho}, model: {donor}}}
base: {base}
"""


def lines(drawer: Drawer, planted: Planted, root: Path) -> dict[str, tuple[object, ...]]:
    """A run of every command that reads checkpoints, and the work that opens the most files."""
    receiver, rho, bits, out = drawer.receiver, planted.whole, ("--bits", 2), root / "out.st"
    proxy = ("--proxy", planted.pictures, "--proxy-samples", 16)
    (root / "grid.yaml").write_text(
        GRID.format(receiver=receiver, data=drawer.receiver_data, rho=rho,
                    donor=drawer.donor, base=drawer.base)
    )  # fmt: skip
    return {
        "extract": ("extract", drawer.donor, drawer.donor_qat, "-o", out),
        "combine": ("combine", *planted.parts, "-o", out),
        "combine --fit": ("combine", *planted.parts, "--fit", "--receiver", receiver, *proxy, "-o",
                          out),
        "patch": ("patch", receiver, rho, "-o", out),
        "patch auto": ("patch", receiver, rho, "--lambda", "auto", *proxy, "-o", out),
        "quantize": ("quantize", receiver, *bits, "--anchor", rho, "-o", out),
        "quantize gptq": ("quantize", receiver, *bits, "--method", "gptq", "--calib",
                          planted.pictures, "--calib-samples", 8, "--refine", 2, *proxy, "-o", out),
        "eval": ("eval", receiver, "--data", drawer.receiver_data),
        "sweep": ("sweep-lambda", receiver, rho, "--data", drawer.receiver_data, *bits,
                  "--lambdas", "0,1", "-o", root / "s.json"),
        "agreement": ("sweep-lambda", receiver, *planted.parts, "--objective", "agreement", *proxy,
                      *bits, "--lambdas", "0,1", "-o", root / "a.json"),
        "transfer": ("transfer", root / "grid.yaml", *bits, "--lambdas", "0,1", "--nulls",
                     "random,taskvec", *proxy, "--cross-grid", "-o", root / "g.jsonl"),
        "advise": ("advise", receiver, *bits, *(word for part in planted.parts
                                                for word in ("--rho", part)), *proxy, "--refine", 2,
                   "-o", out),
        "inspect": ("inspect", receiver),
    }  # fmt: skip


def test_every_command_opens_each_file_once_and_hashes_it_once(
    drawer: Drawer,
    planted: Planted,
    tmp_path: Path,
    counted: tuple[Counter[str], Counter[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    opens, hashed = counted
    inputs = {drawer.receiver, drawer.donor, drawer.donor_qat, drawer.base, planted.whole}
    sizes = {str(path): size(path) for path in inputs | {*planted.parts}}
    for name, args in lines(drawer, planted, tmp_path).items():
        opens.clear()
        hashed.clear()
        call(*args, *(["--force"] if "-o" in args else []))
        read_files = {path: count for path, count in opens.items() if path in sizes}
        assert read_files, name
        assert set(read_files.values()) == {1}, (name, read_files)
        for path in read_files:
            assert hashed[path] <= sizes[path], (name, path)
