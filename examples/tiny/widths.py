"""The table of widths: accuracy and size of each way, means over receivers.

python widths.py FOLDER WAY...: FOLDER/WAY/**/NAME.json is what qvec eval has written, and
NAME.json.quantize beside it what qvec quantize has, unless the way is float.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

Json = dict[str, Any]

PAIRS = (
    *((f"alone-{bits}", f"rows-{bits}") for bits in ("2", "2.5", "3", "3.5")),
    *((f"pictures-{bits}", f"alone-{bits}") for bits in ("2.5", "3.5")),
    ("alone-2.5", "alone-2"),
    ("alone-3", "float"),
    ("best-2.5", "best-2"),
    ("best-2.5", "best-2-groups"),
    ("best-2.5", "best-3"),
    *((f"{way}-3-groups", f"{way}-3") for way in ("best", "others")),
    *((f"{way}-3-groups", "float") for way in ("best", "others", "own")),
)
"""Ways whose accuracies are compared, receiver by receiver."""


def cells(folder: Path, way: str) -> dict[str, tuple[float, Json]]:
    """Accuracy, and the results of quantize, by receiver."""
    rows = {}
    for path in sorted((folder / way).rglob("*.json")):
        measured = json.loads(path.read_text())["results"]
        name = str(path.relative_to(folder / way))
        if way == "float":
            other = next(folder.glob(f"*/{name}.quantize"))  # which says its size before
            before = json.loads(other.read_text())["results"]["bytes_before"]
            quantized = {"bytes_after": before, "bits_per_weight": 32.0, "data_use": "none"}
        else:
            beside = path.with_name(f"{path.name}.quantize")
            document = json.loads(beside.read_text())
            quantized = document["results"] | {"data_use": document["data_use"]["level"]}
        rows[name] = measured["top1"], quantized
    return rows


def _data_used(all_cells: dict[str, dict[str, tuple[float, Json]]]) -> str:
    used: dict[str, list[str]] = {}
    for way, rows in all_cells.items():
        for use in sorted({str(q["data_use"]) for _, q in rows.values()} - {"none"}):
            used.setdefault(use.replace("_", " "), []).append(way)
    told = "; ".join(f"{use} used by {', '.join(ways)}" for use, ways in used.items())
    return told or "none of their data used"


def table(folder: Path, ways: Sequence[str]) -> Iterator[str]:
    """A line a way, then a line a pair of ways."""
    all_cells = {way: cells(folder, way) for way in ways}
    counts = {len(rows) for rows in all_cells.values()}
    if len(counts) != 1:
        raise SystemExit(f"ways have different receivers: {counts}")
    yield f"{counts.pop()} receivers, {_data_used(all_cells)}"
    yield f"{'way':18}{'top-1':>8}{'kB':>9}{'bits/weight':>13}  widths by"
    for way, rows in all_cells.items():
        size = fmean(q["bytes_after"] for _, q in rows.values()) / 1000
        bits = fmean(q["bits_per_weight"] for _, q in rows.values())
        by = {q["budget"]["by"] if "budget" in q else "-" for _, q in rows.values()}
        top1 = fmean(top1 for top1, _ in rows.values())
        yield f"{way:18}{top1:8.4f}{size:9.1f}{bits:13.3f}  {', '.join(sorted(by))}"
    for one, other in (pair for pair in PAIRS if {*pair} <= {*ways}):
        apart = [top1 - all_cells[other][name][0] for name, (top1, _) in all_cells[one].items()]
        error = stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else float("nan")
        better = sum(points > 0 for points in apart)
        yield (
            f"{one} less {other}: {100 * fmean(apart):+.1f} points +- {100 * error:.1f}, "
            f"better on {better} of {len(apart)}"
        )


if __name__ == "__main__":
    print("\n".join(table(Path(sys.argv[1]), sys.argv[2:])))
