"""Prints what every grid and method makes of the receivers, from the metrics in OUT.

    python grids.py OUT --receivers NAME... --ways NAME... --images WHOSE...

Every number is read from a metrics file that a qvec command wrote; no donor takes part.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def read(path: Path) -> dict[str, Any]:
    """A metrics document."""
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def without_images(out: Path, receivers: list[str]) -> list[list[str]]:
    """A row for each grid that ``quantize --compare`` has tried."""
    documents = [read(out / f"{receiver}_grids.json")["results"] for receiver in receivers]
    rows = [["float, not quantized", "32", "none", *(f"{f['fp']['top1']:.3f}" for f in documents)]]
    for same in zip(*(f["compared"] for f in documents), strict=True):
        cost = f"{same[0]['bits_per_weight']:.3f}"
        rows.append([same[0]["name"], cost, "none", *(f"{r['test']['top1']:.3f}" for r in same)])
    return rows


def with_images(out: Path, receivers: list[str], way: str, whose: str) -> list[str]:
    """The row of one method that has seen images."""
    documents = [read(out / f"{receiver}_{way}_by_{whose}.json") for receiver in receivers]
    (use,) = {document["data_use"]["level"] for document in documents}
    grid = documents[0]["results"]["grid"]
    kind = "" if grid["symmetric"] else " asymmetric"
    name = f"{way.split('_', maxsplit=1)[0]} on {grid['scale']}{kind}, images of {whose}"
    return [name, "", use, *(f"{document['results']['top1']:.3f}" for document in documents)]


def main() -> None:
    """Parses the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--receivers", nargs="+", required=True)
    parser.add_argument("--ways", nargs="+", required=True)
    parser.add_argument("--images", nargs="+", required=True)
    args = parser.parse_args()
    rows = [["top-1 on test", "bits/weight", "receiver data used", *args.receivers]]
    rows += without_images(args.out, args.receivers)
    rows += [
        with_images(args.out, args.receivers, way, whose)
        for whose in args.images
        for way in args.ways
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = zip(row, widths, strict=True)
        print("  ".join(cell.ljust(width) for cell, width in cells).rstrip())


if __name__ == "__main__":
    main()
