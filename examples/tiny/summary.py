"""Prints the tables of the tiny example from the metrics in OUT; writes summary.json and demo.json.

    python summary.py OUT --bits B --scales GRID OTHER --receivers NAME... --donors NAME...

Every number is read from a metrics file that a qvec command wrote. The packed models were
measured by ``qvec eval``; they must score exactly what the sweep said of them.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

LEVELS = ("none", "proxy_images", "receiver_images", "receiver_labels")
"""What of a receiver's data a way can have used, the least first."""


def read(path: Path) -> dict[str, Any]:
    """A metrics document."""
    return json.loads(path.read_text())


def rows(out: Path, receiver: str, bits: int) -> dict[str, dict[str, Any]]:
    """The measured models of a receiver, by their key in the summary."""
    names = {
        "fp": "",
        "ptq": f"w{bits}",
        "ptq_other": f"other_w{bits}",
        "patched_unit": f"unit_w{bits}",
        "patched_best": f"best_w{bits}",
        "qat": f"qat_w{bits}",
        "plain": f"plain_w{bits}",
        "pictures": f"pictures_w{bits}",
        "advise": f"advise_w{bits}",
    }
    files = {key: f"{receiver}_{name}" if name else receiver for key, name in names.items()}
    return {key: read(out / f"{file}.json") for key, file in files.items()}


def summary(out: Path, receiver: str, donors: list[str], bits: int) -> dict[str, Any]:
    """The accuracies of a receiver, patched from the first donor, and of every other pair."""
    measured = rows(out, receiver, bits)
    sweeps = {donor: read(out / f"{receiver}_from_{donor}.json")["results"] for donor in donors}
    first = sweeps[donors[0]]
    shipped = {
        "fp": first["baselines"]["fp"],
        "ptq": first["baselines"]["ptq"],
        "patched_unit": first["zero_shot"],
        "patched_best": first["chosen"],
    }
    for key, swept in shipped.items():
        if measured[key]["results"]["n_correct"] != swept["test"]["n_correct"]:
            raise SystemExit(f"{receiver}: {key}: eval and sweep-lambda disagree")
    return {
        **{key: document["results"]["top1"] for key, document in measured.items()},
        "lambda_best": first["chosen"]["lambda"],
        "donor": donors[0],
        "data_use": {key: document["data_use"]["level"] for key, document in measured.items()},
        "standard_error": {
            key: document["results"]["standard_error"] for key, document in measured.items()
        },
        "pairs": {
            donor: {
                "patched_unit": swept["zero_shot"]["test"]["top1"],
                "patched_best": swept["chosen"]["test"]["top1"],
                "lambda_best": swept["chosen"]["lambda"],
            }
            for donor, swept in sweeps.items()
        },
    }


def table(receivers: dict[str, dict[str, Any]], bits: int, scales: list[str]) -> list[str]:
    """The pairs, a line each, between what the receiver has without a donor and its own QAT."""
    grid, other = scales
    lines = [f"top-1 on test; all but 'float' at {bits} bits, all but 'RTN {other}' on {grid}"]
    lines.append(
        f"{'receiver':<10}{'donor':<10}{'float':>7}{f'RTN {other}':>14}{f'RTN {grid}':>14}"
        f"{'lambda 1':>10}{'lambda*':>9}{'(at)':>6}{'own QAT':>9}"
    )
    for receiver, facts in receivers.items():
        for donor, pair in facts["pairs"].items():
            lines.append(
                f"{receiver:<10}{donor:<10}{facts['fp']:>7.3f}"
                f"{facts['ptq_other']:>14.3f}{facts['ptq']:>14.3f}"
                f"{pair['patched_unit']:>10.3f}{pair['patched_best']:>9.3f}"
                f"{pair['lambda_best']:>6.2f}{facts['qat']:>9.3f}"
            )
    keys = ("fp", "ptq_other", "ptq", "patched_unit", "patched_best", "qat")
    uses = [{f["data_use"][key] for f in receivers.values()} for key in keys]
    used = ["/".join(sorted(use)).replace("receiver_", "") for use in uses]
    widths = (7, 14, 14, 10, 9, 15)
    cells = "".join(f"{use:>{width}}" for use, width in zip(used, widths, strict=True))
    lines.append(f"{'receiver data used':<20}{cells}")
    pairs = [(f["ptq"], p) for f in receivers.values() for p in f["pairs"].values()]
    unit, best = (sum(p[k] > ptq for ptq, p in pairs) for k in ("patched_unit", "patched_best"))
    against = f"RTN {grid}"
    lines.append(
        f"pairs that beat {against}: {unit} of {len(pairs)} at lambda 1, {best} at lambda*"
    )
    return lines


def alone(receivers: dict[str, dict[str, Any]], bits: int, scale: str) -> list[str]:
    """What a receiver keeps without any donor, a line a way."""
    ways = {
        "fp": "float",
        "ptq": f"RTN {scale}, the paper's way" if scale == "absmax" else f"RTN {scale}",
        "plain": "qvec quantize, told no grid",
        "pictures": "qvec quantize --preset best",
        "advise": "qvec advise, donors' pictures",
        "qat": "own QAT",
    }
    title = f"{bits} bits, other ways"
    lines = [f"{title:<32}{''.join(f'{name:>9}' for name in receivers)}  receiver data used"]
    for key, way in ways.items():
        cells = "".join(f"{facts[key]:>9.3f}" for facts in receivers.values())
        uses = {facts["data_use"][key] for facts in receivers.values()}
        lines.append(f"{way:<32}{cells}  {'/'.join(sorted(uses)).replace('receiver_', '')}")
    return lines


def advice(out: Path, receivers: dict[str, dict[str, Any]]) -> str:
    """What advise decided, in a line."""
    documents = {name: read(out / f"{name}_advice.json") for name in receivers}
    decisions = Counter(document["results"]["decision"] for document in documents.values())
    decided = ", ".join(f"{decision} ({n})" for decision, n in decisions.items())
    told = (
        f"{name} {facts['advise']:.3f} of {facts['fp']:.3f}" for name, facts in receivers.items()
    )
    use = "/".join(sorted({facts["data_use"]["advise"] for facts in receivers.values()}))
    return f"qvec advise: {decided}; {', '.join(told)}; receiver data used: {use}"


def chart(receivers: dict[str, dict[str, Any]], bits: int, scale: str) -> dict[str, Any]:
    """Means over the receivers, as the document of kind ways that ``qvec plot`` draws as bars."""
    labels = {
        "ptq": "rounding, the paper's grid" if scale == "absmax" else "rounding, the vectors' grid",
        "plain": "qvec quantize, told no grid",
        "pair": "a donor's vector, lambda 1",
        "advise": "qvec advise",
        "qat": "the receiver's own QAT",
    }
    ways = []
    for key in ("fp", *labels):
        if key == "pair":  # every donor on every receiver; no data of a receiver
            top1 = [p["patched_unit"] for f in receivers.values() for p in f["pairs"].values()]
            use = "none"
        else:
            top1 = [facts[key] for facts in receivers.values()]
            use = max((f["data_use"][key] for f in receivers.values()), key=LEVELS.index)
        ways.append({"way": key, "top1": fmean(top1), "data_use": use})
    bars = [{"way": way, "label": label} for way, label in labels.items()]
    ways[0]["way"] = "float"
    table = {
        "title": f"{bits}-bit channel {scale}",
        "ways": ways,
        "bars": bars,
        "reference": "float",
    }
    head = f"A tiny ViT in {bits} bits, mean of {len(receivers)} receivers, one seed"
    return {"kind": "ways", "schema": 1, "title": head, "tables": [table]}


def main() -> None:
    """Parses the command line, prints the tables, and writes the summary and the chart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--scales", nargs=2, required=True)
    parser.add_argument("--receivers", nargs="+", required=True)
    parser.add_argument("--donors", nargs="+", required=True)
    args = parser.parse_args()
    receivers = {name: summary(args.out, name, args.donors, args.bits) for name in args.receivers}
    (args.out / "summary.json").write_text(json.dumps(receivers, indent=2, sort_keys=True) + "\n")
    print("\n".join(table(receivers, args.bits, args.scales)))
    print("\n".join(["", *alone(receivers, args.bits, args.scales[0])]))
    drawn = chart(receivers, args.bits, args.scales[0])
    (args.out / "demo.json").write_text(json.dumps(drawn, indent=1) + "\n")
    print("\n" + advice(args.out, receivers))


if __name__ == "__main__":
    main()
