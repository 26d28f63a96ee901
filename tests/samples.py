"""Made-up results of a transfer grid: numbers that nobody has measured, for tests of figures."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

LAMBDAS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0, 1.05, 1.2, 1.35, 1.5)
TASKS = (
    *("cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn", "cifar10"),
    *("cifar100", "stl10", "food101", "flowers102", "fer2013", "pcam", "oxford-pets", "rsst2"),
    *("emnist", "fashion-mnist", "kmnist", "tiny-imagenet", "imagenet"),
)
GRID: dict[str, Any] = {
    "bits": 3,
    "granularity": "channel",
    "group_size": None,
    "scale": "absmax",
    "symmetric": True,
}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def score(top1: float, n: int) -> dict[str, Any]:
    """A score of a metrics document, whose counts are whole."""
    right = min(n, max(0, round(top1 * n)))
    top1, fifth = right / n, min(n, right + n // 10)
    return {
        "n": n,
        "n_correct": right,
        "top1": top1,
        "n_correct_top5": fifth,
        "top5": fifth / n,
        "loss": 1.5 - top1,
        "standard_error": (top1 * (1 - top1) / n) ** 0.5,
        "images_per_second": 1000.0,
    }


def grid_lines(
    *,
    receivers: tuple[str, ...] = TASKS[:3],
    donors: tuple[str, ...] = TASKS[:3],
    missing: tuple[tuple[str, str], ...] = (),
    extra: tuple[str, ...] = ("rtn mse", "rtn mse-full", "rtn absmax asymmetric"),
    selectors: tuple[str, ...] = ("val",),
    seed: int = 0,
    oracle: bool = True,
    qat: bool = True,
) -> list[dict[str, Any]]:
    """The lines that a run of that size would have left behind."""
    dice, sizes_ = random.Random(seed), random.Random(0)  # a seed draws other models, not data
    tests = {name: sizes_.randrange(800, 4000) for name in receivers}
    vals = {name: tests[name] // 4 for name in receivers}
    levels = {name: (dice.uniform(0.6, 0.99), dice.uniform(0.05, 0.5)) for name in receivers}
    lines = [_run(receivers, donors, tests, vals, oracle, dice)]
    for name, facts in lines[0]["receivers"].items():
        facts["digest"] = digest(f"{name}{seed or ''}")
    lines += [_receiver(n, tests[n], levels[n], extra, qat, dice) for n in receivers]
    if "agreement" in selectors:
        lines[1:] = [{**line, "proxies": {"measure": "kl", "n": 256}} for line in lines[1:]]
    for name in receivers:
        for donor in donors:
            if (name, donor) in missing:
                continue
            sizes = vals[name], tests[name]
            lines.append(_cell((name, donor, None), sizes, levels[name], selectors, oracle, dice))
    for name in receivers:
        sizes = vals[name], tests[name]
        lines.append(
            _cell((name, donors[0], "random"), sizes, levels[name], selectors, oracle, dice)
        )
    cosines = [
        [1.0 if a == b else round(0.02 + 0.01 * (len(a) + len(b)) / 9, 4) for b in donors]
        for a in donors
    ]
    lines.append({"kind": "alignment", "donors": list(donors), "global": cosines, "rows": cosines})
    return lines


def _run(
    receivers: tuple[str, ...],
    donors: tuple[str, ...],
    tests: dict[str, int],
    vals: dict[str, int],
    oracle: bool,
    dice: random.Random,
) -> dict[str, Any]:
    return {
        "kind": "run",
        "schema": 1,
        "command": "transfer",
        "version": "0.1.0",
        "grid": GRID,
        "method": "rtn",
        "lambdas": list(LAMBDAS),
        "fixed": [1.0],
        "oracle": oracle,
        "nulls": {"random": [donors[0]]},
        "seed": 0,
        "batch_size": 128,
        "device": "cpu",
        "receivers": {
            name: {
                "model": f"models/{name}.st",
                "digest": digest(name),
                "data": f"images/{name}",
                "data_digest": digest(f"data {name}"),
                "images": {"val": vals[name], "test": tests[name]},
                "trained_images": 10 * dice.randrange(900, 90_000),
                "qat": {"path": f"models/{name}_qat.st", "digest": digest(f"qat {name}")},
                "baselines": {},
            }
            for name in receivers
        },
        "donors": {
            name: {
                "rho": f"rho/{name}.st",
                "digest": digest(f"rho {name}"),
                "trained_images": 10 * dice.randrange(20_000, 130_000),
            }
            for name in donors
        },
        "environment": {"python": "3.11.7", "torch": "2.14.1", "timm": "1.0.31", "device": "cpu"},
    }


def _receiver(
    name: str,
    n: int,
    level: tuple[float, float],
    extra: tuple[str, ...],
    qat: bool,
    dice: random.Random,
) -> dict[str, Any]:
    high, low = level
    rows: dict[str, Any] = {
        "fp": {"grid": None, "test": score(high, n), "data_use": "none"},
        "ptq": {"grid": GRID, "test": score(low, n), "data_use": "none"},
    }
    for key in extra:
        grid = {**GRID, "scale": key.split()[1]} if key.startswith("rtn ") else GRID
        if key.endswith("asymmetric"):
            grid = {**grid, "symmetric": False}
        use = "none" if key.startswith("rtn ") else "receiver_images"
        value = low + dice.uniform(0, 0.8) * (high - low)
        rows[key] = {"grid": grid, "test": score(value, n), "data_use": use}
    if qat:
        value = low + 0.9 * (high - low)
        rows["qat"] = {"grid": GRID, "test": score(value, n), "data_use": "receiver_labels"}
    return {"kind": "receiver", "receiver": name, "baselines": rows}


def _cell(
    names: tuple[str, str, str | None],
    sizes: tuple[int, int],
    level: tuple[float, float],
    selectors: tuple[str, ...],
    oracle: bool,
    dice: random.Random,
) -> dict[str, Any]:
    """An accuracy that rises to a peak and falls again, with what counting adds."""
    name, donor, null = names
    (high, low), (n_val, n_test) = level, sizes
    peak, height = dice.uniform(0.3, 1.3), dice.uniform(-0.1, 0.6) * (high - low)
    if name == donor:
        peak, height = 1.0, 0.9 * (high - low)
    if null:
        height = -0.1 * (high - low)

    def curve(lam: float) -> float:
        return low + height * (1 - ((lam - peak) / peak) ** 2)

    vals = {x: score(curve(x) + dice.gauss(0, 0.01), n_val) for x in LAMBDAS}
    tests = {x: score(curve(x) + dice.gauss(0, 0.004), n_test) for x in LAMBDAS}
    tests[0.0] = score(low, n_test)  # plain rounding
    points: list[dict[str, Any]] = [{"lambda": x, "val": vals[x]} for x in LAMBDAS]
    if oracle:
        points = [{**point, "test": tests[point["lambda"]]} for point in points]
    best = min(LAMBDAS, key=lambda x: (-vals[x]["n_correct"], x))
    chosen: dict[str, Any] = {
        key: {
            "lambda": best if key == "val" else 0.6,
            "test": tests[best if key == "val" else 0.6],
            "data_use": "receiver_labels" if key == "val" else "proxy_images",
        }
        for key in selectors
    }
    if "val" in chosen:
        chosen["val"]["val"] = vals[best]
    own = "receiver_labels" if name == donor else "none"  # its own QAT has seen its labels
    top = max(LAMBDAS, key=lambda x: tests[x]["n_correct"])
    judged: dict[str, Any] = {}
    if "agreement" in selectors:
        judged = {"score": {"removed": peak / 4, "explained": peak / 5}}
        points = [{**point, **far(point["lambda"], peak)} for point in points]
    return {
        **judged,
        "kind": "cell",
        "receiver": name,
        "donor": donor,
        "null": null,
        "diagonal": name == donor,
        "curve": points,
        "fixed": [{"lambda": 1.0, "test": tests[1.0], "data_use": own}],
        "chosen": chosen,
        "oracle": {"lambda": top, "test": tests[top]} if oracle else None,
    }


def far(lam: float, peak: float) -> dict[str, float]:
    """A distance to the float answers that is least where accuracy peaks."""
    return {"distance": 0.3 + 0.4 * (lam - peak) ** 2, "standard_error": 0.02}


def text(lines: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def document(command: str, inputs: list[tuple[str, str]], **parts: Any) -> dict[str, Any]:
    """A metrics document; what a part does not say is what most have."""
    return {
        "schema": 1,
        "command": command,
        "version": "0.1.0",
        "inputs": [{"path": p, "kind": kind, "digest": digest(p)} for p, kind in inputs],
        "parameters": {},
        "results": {},
        "data_use": {"level": "none", "counts": {}},
        "environment": {
            "python": "3.11.7",
            "torch": "2.14.1",
            "timm": "1.0.31",
            "device": "cpu",
            "threads": 1,
            "seed": None,
        },
        "timing": {"wall_s": 12.5, "peak_rss_bytes": 1000},
        **parts,
    }


def swept(receiver: str, donor: str, seed: int = 0, bits: int = 3) -> dict[str, Any]:
    """What sweep-lambda would have written; its data are the receiver's."""
    cell = _cell(
        (receiver, donor, None), (129, 500), (0.9, 0.4), ("val",), True, random.Random(seed)
    )
    points = {point["lambda"]: point for point in cell["curve"]}
    use = {"level": "receiver_labels", "counts": {"val": 129}}
    return document(
        "sweep-lambda",
        [(f"{receiver}.st", "checkpoint"), (f"{donor}.st", "vector"), (f"{receiver}/", "data")],
        parameters={"grid": {**GRID, "bits": bits}, "method": "rtn", "data": f"{receiver}/"},
        results={
            "curve": [{"lambda": x, "val": points[x]["val"]} for x in LAMBDAS],
            "chosen": cell["chosen"]["val"],
            "zero_shot": {**points[1.0], "data_use": "none"},
            "baselines": {
                "fp": {"test": score(0.9, 500), "data_use": "none"},
                "ptq": {**points[0.0], "data_use": "none"},
            },
        },
        data_use=use,
    )


def agreed(receiver: str, donors: tuple[str, ...], *, labelled: bool = False) -> dict[str, Any]:
    """What sweep-lambda --objective agreement would have written."""
    lambdas = (-0.5, -0.25, *LAMBDAS)
    rows = []
    for place, donor in enumerate(donors):
        peak = (0.6, 0.3, 0.9)[place % 3]
        curve: list[dict[str, Any]] = [{"lambda": lam, **far(lam, peak)} for lam in lambdas]
        if labelled:
            curve = [{**p, "val": score(0.8 - p["distance"] / 2, 129)} for p in curve]
        name = {"rho": f"{donor}.st", "digest": digest(f"{donor}.st")}
        chosen = {**curve[lambdas.index(peak)], **name, "data_use": "proxy_images"}
        if labelled:
            chosen["test"] = score(0.6, 500)
        scored = {"removed": 0.5 - place / 10, "explained": 0.4, "fitted_lambda": peak}
        rows.append({**name, "curve": curve, "chosen": chosen, "score": scored})
    inputs = [(f"{receiver}.st", "checkpoint"), *((f"{d}.st", "vector") for d in donors)]
    fp, ptq = ({"test": score(top1, 500), "data_use": "none"} for top1 in (0.9, 0.4))
    return document(
        "sweep-lambda",
        [*inputs, ("others/", "data")],
        parameters={"grid": GRID, "method": "rtn", "lambdas": list(lambdas)},
        results={
            "objective": "agreement",
            "measure": "kl",
            "proxies": {
                "n": 256,
                "information": 0.5,
                "diversity": 0.9,
                "diversity_of_noise": 0.1,
                "close_to_noise": False,
                "sources": [{"name": "others", "digest": digest("others/"), "samples": 256}],
            },
            "curve": rows[0]["curve"],
            "chosen": rows[0]["chosen"],
            "donors": rows,
            **({"baselines": {"fp": fp, "ptq": ptq}} if labelled else {}),
        },
        data_use={"level": "proxy_images", "counts": {"proxy": 256}},
    )


def quantized(model: str, seed: int = 0, exact: bool = False) -> dict[str, Any]:
    """What quantize --metrics would have written of a ViT of four blocks."""
    dice = random.Random(seed)
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    names = [f"blocks.{block}.{layer}.weight" for block in range(4) for layer in layers]
    ratios: dict[str, float | None] = {name: dice.uniform(2, 9) for name in names}
    if exact:
        ratios[names[-1]] = None
    return document(
        "quantize",
        [(f"{model}.st", "checkpoint")],
        parameters={"grid": GRID, "method": "rtn", "fake": False},
        results={
            "output": f"{model}_w3.st",
            "digest": digest(f"{model} quantized"),
            "quantized": names,
            "sqnr_db": dict(sorted(ratios.items())),
            "bits_per_weight": 3.375,
            "bytes_before": 827_000,
            "bytes_after": 102_000,
        },
    )


def evaluated(model: str, role: str, top1: float, n: int = 500) -> dict[str, Any]:
    """What eval would have written, on data of the name that the model starts with."""
    data = f"{model.split('_', maxsplit=1)[0]}/"
    grid = None if role == "fp" else GRID
    return document(
        "eval",
        [(f"{model}.st", "quantized"), (data, "data")],
        results={**score(top1, n), "split": "test", "role": role, "grid": grid},
    )


def advised(model: str, *, labelled: bool = False) -> dict[str, Any]:
    """What advise would have written: of three ways the best one is chosen."""
    ways = (
        ("rtn, channel absmax", "plain", 0.5, 0.21, "none"),
        ("gptq on moments, channel mse asymmetric", "moments", 0.05, 0.83, "none"),
        ("gptq on proxies, float target, channel mse", "images", 0.02, 0.91, "proxy_images"),
    )
    rows = [
        {
            "name": name,
            "family": family,
            "grid": GRID,
            "bits_per_weight": 3.0625 + place / 100,
            "distance": distance,
            "standard_error": 0.003,
            "kept": kept,
            "data_use": {"level": level, "counts": {}},
            "seconds": 1.5,
            "commands": [f"qvec quantize {model}.st --bits 3 -o OUT.st"],
            **({"test": score(kept - 0.02, 500)} if labelled else {}),
        }
        for place, (name, family, distance, kept, level) in enumerate(ways)
    ]
    results = {
        "decision": "calibrate",
        "chosen": ways[-1][0],
        "best_plain": ways[0][0],
        "sure": "sure",
        "why": "it keeps 91.0% of the float answers, the best plain grid 21.0%",
        "commands": rows[-1]["commands"],
        "measure": "kl",
        "proxies": agreed(model, ("x",))["results"]["proxies"],
        "candidates": rows,
        "skipped": [{"name": "rotated", "reason": "it has no LayerNorm"}],
        "expected": [0.75, 1.0],
        **({"fp": score(0.96, 500)} if labelled else {}),
    }
    spent = {"level": "proxy_images", "counts": {"proxy": 64}}
    return document("advise", [(f"{model}.st", "checkpoint")], results=results, data_use=spent)


def compared(model: str, *, labelled: bool = False) -> dict[str, Any]:
    """What quantize --compare would have written; a ratio of 2 bits can be negative."""
    rows = [
        {
            "name": f"2-bit channel {scale}",
            "grid": {**GRID, "bits": 2, "scale": scale},
            "bits_per_weight": 2.0625,
            "sqnr_db": ratio,
            **({"val": score(top1, 129)} if labelled else {}),
        }
        for scale, ratio, top1 in (("absmax", -0.4, 0.31), ("mse", 6.2, 0.62))
    ]
    fp = {"fp": score(0.9, 129)} if labelled else {}
    files = [(f"{model}.st", "checkpoint")]
    return document("quantize", files, results={"compared": rows, **fp})


def summed(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What transfer --metrics would have written beside the lines of a grid."""
    from qvec_cli.results.matrix import lines_of, parse
    from qvec_cli.results.summary import summarise

    summary = summarise(parse(lines_of(text(lines), "g")))
    return document(
        "transfer",
        [(f"models/{TASKS[0]}.st", "checkpoint")],
        parameters={"grid": GRID, "method": "rtn"},
        results={"output": "g.jsonl", "lines": len(lines), "summary": summary},
    )


def trained(command: str, output: str, made: str, seconds: float) -> dict[str, Any]:
    """What finetune or train-qat would have written; ``made`` is the digest of its output."""
    results = {"output": output, "digest": made}
    timing = {"wall_s": seconds, "peak_rss_bytes": 1000}
    return document(command, [("base.st", "checkpoint")], results=results, timing=timing)


def extracted(donor: str) -> dict[str, Any]:
    """What extract would have written of a donor of ``grid_lines``."""
    results = {"output": f"rho/{donor}.st", "digest": digest(f"rho {donor}")}
    files = [(f"{donor}.st", "checkpoint"), (f"{donor}_qat.st", "checkpoint")]
    return document("extract", files, results=results)


def use(level: str, images: int) -> dict[str, Any]:
    """What of the receiver's data a document has used."""
    return {"level": level, "counts": {"proxy": images}}


def tabled() -> dict[str, Any]:
    """A study's table of ways, of which three are bars."""
    ways = {
        "float": (0.9, "none"),
        "RTN": (0.04, "none"),
        "own QAT": (0.7, "receiver_labels"),
        "calibrated": (0.8, "proxy_images"),
        "best on test": (0.85, None),
    }
    rows = [{"way": way, "top1": top1, "data_use": level} for way, (top1, level) in ways.items()]
    bars = [{"way": way, "label": f"{way}!"} for way in ("RTN", "calibrated", "own QAT")]
    table = {"title": "3-bit channel absmax, 2 receivers", "reference": "float"}
    tables = [{**table, "ways": rows, "bars": bars}, {"title": "another grid", "ways": rows}]
    return {"kind": "ways", "schema": 1, "title": "Ways", "tables": tables}


def written(folder: Path) -> None:
    """Files of each kind, and of what is none."""
    lines = grid_lines()
    run, sweep = lines[0], swept("cars", "dtd")
    untold = {**run["receivers"], "cars": {**run["receivers"]["cars"], "trained_images": None}}
    documents: dict[str, Any] = {
        "sweep1.json": sweep,
        "sweep2.json": swept("cars", "mnist", 1),
        "sweep_w2.json": swept("cars", "mnist", 1, bits=2),
        "sweep_bad.json": {
            **sweep,
            "results": {**sweep["results"], "chosen": {**sweep["results"]["chosen"]}},
        },
        "agreed.json": agreed("cars", ("dtd", "mnist")),
        "judged.json": agreed("cars", ("dtd",), labelled=True),
        "agreed_bad.json": {
            **agreed("cars", ("dtd",)),
            "results": {**agreed("cars", ("dtd",))["results"], "measure": "entropy"},
        },
        "own_qat.json": evaluated("cars_qat", "qat", 0.85),
        "fp.json": evaluated("cars", "fp", 0.9),
        "q1.json": quantized("cars"),
        "q2.json": quantized("cars_patched", 1, exact=True),
        "inspect.json": document("inspect", []),
        "plan.json": document("quantize", [("a.st", "checkpoint")], results={"plan": {}}),
        "newer.json": {**sweep, "schema": 2},
        "other.json": {"rows": []},
        "ways.json": tabled(),
        "w3.json": {**evaluated("cars_w3", "qat", 0.4), "data_use": use("proxy_images", 8)},
        "elsewhere.json": evaluated("dtd", "fp", 0.9),
        "advised.json": advised("cars"),
        "advised_test.json": advised("dtd", labelled=True),
        "compared.json": compared("cars"),
        "compared_val.json": compared("cars", labelled=True),
        "silent.json": {**compared("cars"), "results": {"compared": []}},
        "summed.json": summed(grid_lines(selectors=("val", "agreement"))),
        "odd.json": document("frobnicate", []),
        "kind.json": {"kind": "page", "schema": 1},
        "list.json": [1, 2],
        "barless.json": {**tabled(), "tables": [{**tabled()["tables"][0], "bars": []}]},
    }
    documents["sweep_bad.json"]["results"]["chosen"]["test"] = {**score(0.5, 500), "top1": 0.7}
    for name in TASKS[:3]:
        own, donors = digest(f"qat {name}"), digest(f"{name}_qat.st")
        documents[f"run_{name}.json"] = trained("train-qat", "x.st", own, 60 + len(name))
        documents[f"run_{name}_donor.json"] = trained("train-qat", "y.st", donors, 100)
        documents[f"run_{name}_rho.json"] = extracted(name)
    for name, value in documents.items():
        (folder / name).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    (folder / "g.jsonl").write_text(text(lines))
    (folder / "g2.jsonl").write_text(text(grid_lines(seed=1)))
    run, *rest = grid_lines(seed=2)
    two_bits = {**run, "grid": {**run["grid"], "bits": 2}}
    (folder / "two_bits.jsonl").write_text(text([two_bits, *rest]))
    (folder / "uncosted.jsonl").write_text(text([{**run, "receivers": untold}, *lines[1:]]))
    both = grid_lines(selectors=("val", "agreement"))
    (folder / "judged.jsonl").write_text(text(both))
    (folder / "g.svg").write_text(text(lines) + "\n")
    (folder / "damaged.json").write_text(json.dumps(sweep, indent=2)[:-30])
    (folder / "words.txt").write_text("no figure\n")
    (folder / "noise.bin").write_bytes(bytes(range(256)))
    (folder / "empty.json").write_text(" \n")
    (folder / "there.png").write_bytes(b"old")
