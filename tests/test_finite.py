"""A lambda at which the network is not finite is left out of its curve; all else is as without."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from conftest import Drawer, Result, call

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.write import write
from qvec_cli.errors import CheckpointError
from qvec_cli.inputs.files import InputFiles
from qvec_cli.inputs.images import ProxyOptions
from qvec_cli.outputs.metrics import SCHEMA_FILE
from qvec_cli.results.matrix import lines_of, parse, pool
from qvec_cli.results.summary import summarise
from qvec_cli.selection.by_agreement import RAY, AgreementOptions, FitOptions, fit_mix
from qvec_cli.specs import Loading, Measure, Silence

Tensors = dict[str, Any]

VALIDATOR = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text()))
CPU = ("--device", "cpu")
OUTPUTS = "the network's outputs are not finite"
WEIGHT = "norm.bias overflows F32"
LEFT_OUT = [{"lambda": 1.25, "reason": OUTPUTS}, {"lambda": 1.5, "reason": WEIGHT}]
"""What ``Files.rho`` does to ``Files.receiver``."""


@dataclass(frozen=True)
class Files:
    """A receiver, and vectors that are too much for it."""

    drawer: Drawer
    receiver: Path  # its classifier takes 1.3 times the first feature, for every class
    rho: Path  # that feature is 2.5e38 at lambda 1: logits overflow above 1.04, the bias above 1.36
    other: Path  # nearly the same
    huge: Path  # nothing is finite with it

    @property
    def base(self) -> tuple[object, ...]:
        return ("--data", self.drawer.receiver_data, *CPU)

    @property
    def images(self) -> tuple[object, ...]:
        flags = ("--proxy", self.drawer.donor_data, "--proxy-samples", 24)
        return (*flags, "--batch-size", 24, *CPU)


def rewritten(path: Path, out: Path, change: Callable[[Tensors], None]) -> Path:
    """A file with other numbers and the same card."""
    with Checkpoint(path) as source:
        tensors = {name: source.finite(name) for name in source}
        change(tensors)
        blocks = ((name, [tensor.reshape(-1)]) for name, tensor in tensors.items())
        write(out, dict(source.items()), blocks, source.card, force=False)
    return out


@pytest.fixture(scope="module")
def files(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> Files:
    root = tmp_path_factory.mktemp("finite")

    def classifier(theta: Tensors) -> None:
        theta["head.weight"][:, 0] = 1.3

    def bias(rho: Tensors) -> None:
        rho["norm.bias"][0] = 2.5e38

    def another(rho: Tensors) -> None:
        bias(rho)
        rho["norm.bias"][1] += 1

    def everything(rho: Tensors) -> None:
        rho.update({name: np.float32(1e34) * block for name, block in rho.items()})

    return Files(
        drawer,
        rewritten(drawer.receiver, root / "receiver.st", classifier),
        rewritten(drawer.rho, root / "rho.st", bias),
        rewritten(drawer.rho, root / "other.st", another),
        rewritten(drawer.rho, root / "huge.st", everything),
    )


class Notes(Silence):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def told(result: Result) -> list[str]:
    return [line for line in result.err.splitlines() if "is left out" in line]


def bare(value: Any) -> Any:
    """Without what differs each time that it is measured."""
    if isinstance(value, dict):
        return {k: bare(v) for k, v in value.items() if k != "images_per_second"}
    return [bare(each) for each in value] if isinstance(value, list) else value


def without(results: dict[str, Any]) -> Any:
    return bare({key: value for key, value in results.items() if key != "skipped"})


def test_a_sweep_by_labels_goes_on(files: Files, tmp_path: Path) -> None:
    args = ("sweep-lambda", files.receiver, files.rho, *files.base, "--json")
    all_four = call(*args, "--lambdas", "0,1,1.25,1.5", "-o", tmp_path / "a.json")
    two = call(*args, "--lambdas", "0,1", "-o", tmp_path / "b.json")
    VALIDATOR.validate(all_four.json)
    assert all_four.json["results"]["skipped"] == LEFT_OUT
    assert told(all_four) == [
        f"note: lambda 1.25 is left out: {OUTPUTS}",
        f"note: lambda 1.5 is left out: {WEIGHT}",
    ]
    assert "skipped" not in two.json["results"]
    assert without(all_four.json["results"]) == bare(two.json["results"])
    huge = call(*args[:2], files.huge, *args[3:], "--lambdas", "0.5,1,2", "-o", tmp_path / "c.json")
    results = huge.json["results"]
    VALIDATOR.validate(huge.json)
    assert [point["lambda"] for point in results["curve"]] == [0.0]
    assert results["chosen"]["lambda"] == 0
    assert "zero_shot" not in results
    assert [row["lambda"] for row in results["skipped"]] == [0.5, 1, 2]
    call("plot", tmp_path / "c.json", "-o", tmp_path / "c.svg")
    call("report", tmp_path / "c.json", tmp_path / "a.json", "-o", tmp_path / "c.html")
    shown = call(*args[:-1], "--lambdas", "0,1.5", "-o", tmp_path / "d.json", "--force")
    assert "1.5" not in shown.out


def test_a_sweep_by_agreement_goes_on_with_labels_too(files: Files, tmp_path: Path) -> None:
    args = ("sweep-lambda", files.receiver, files.rho, files.huge, "--objective", "agreement")
    args = (*args, *files.images, "--measure", "kl", "--data", files.drawer.receiver_data, "--json")
    all_four = call(*args, "--lambdas", "1,1.25,1.5", "-o", tmp_path / "a.json")
    two = call(*args, "--lambdas", "1", "-o", tmp_path / "b.json")
    VALIDATOR.validate(all_four.json)
    ours, theirs = (
        {Path(row["rho"]).name: row for row in result.json["results"]["donors"]}
        for result in (all_four, two)
    )
    assert ours["rho.st"]["skipped"] == LEFT_OUT
    assert without(ours["rho.st"]) == bare(theirs["rho.st"])
    assert [point["lambda"] for point in ours["huge.st"]["curve"]] == [0.0]
    assert ours["huge.st"]["chosen"]["lambda"] == 0
    assert [row["lambda"] for row in ours["huge.st"]["skipped"]] == [-0.5, -0.25, 1, 1.25, 1.5]
    assert f"note: {files.rho}: lambda 1.25 is left out: {OUTPUTS}" in told(all_four)
    call("plot", tmp_path / "a.json", "-o", tmp_path / "a.svg")


def test_lambda_auto_goes_on(files: Files, tmp_path: Path) -> None:
    auto = ("patch", files.receiver, files.rho, "--lambda", "auto", *files.images, "--json")
    patched = call(*auto, "-o", tmp_path / "p.st")
    results = patched.json["results"]
    lambdas = [row["lambda"] for row in results["skipped"]]
    assert lambdas == [1.05, 1.2, 1.35, 1.5]
    kept = ",".join(str(p["lambda"]) for p in results["curve"] if p["lambda"] > 0)
    swept = ("sweep-lambda", files.receiver, files.rho, "--objective", "agreement", *files.images)
    alone = call(*swept, "--lambdas", kept, "-o", tmp_path / "s.json", "--json").json["results"]
    assert results["curve"] == alone["curve"]
    assert results["lambda"] == alone["chosen"]["lambda"]


def test_a_fit_goes_on(files: Files, tmp_path: Path) -> None:
    """The curve of the mean is that of the file; a vector that is too much has coefficient 0."""
    listener, images = (
        Notes(),
        ProxyOptions((str(files.drawer.donor_data),), 24, Loading(batch_size=24)),
    )
    options = AgreementOptions(RAY, images, measure=Measure.KL, device="cpu")
    with InputFiles(listener) as opened:
        vectors = [opened.open(path) for path in (files.rho, files.other, files.huge)]
        fitted = fit_mix(FitOptions(files.receiver, options), vectors[:2], opened, listener)
        with_huge = fit_mix(FitOptions(files.receiver, options), vectors[1:], opened, listener)
    mean, flags = tmp_path / "mean.st", ("--objective", "agreement", *files.images)
    call("combine", files.rho, files.other, "-o", mean)
    args = ("sweep-lambda", files.receiver, mean, *flags, "--lambdas", "0.25,0.5,0.75,1")
    alone = call(*args, "--measure", "kl", "-o", tmp_path / "m.json", "--json").json["results"]
    assert fitted.facts["mean"] == alone["curve"]
    lost = [(row["vector"], row["lambda"]) for row in fitted.facts["skipped"]]
    assert lost[:3] == [("mean vector", lam) for lam in (1.25, 1.5, 2.0)]
    assert with_huge.facts["coefficients"][1] == 0
    assert (str(files.huge), 0.25) in [
        (r["vector"], r["lambda"]) for r in with_huge.facts["skipped"]
    ]
    assert any(note.startswith("mean vector: lambda 1.25 is left out") for note in listener.notes)


@pytest.mark.slow
def test_advise_goes_on(files: Files, tmp_path: Path) -> None:
    def advised(*words: object, out: str) -> Any:
        flags = (*files.images, "--bits", 3, "--refine", 0, "--json")
        found = call("advise", files.receiver, *words, *flags, "-o", tmp_path / out).json
        VALIDATOR.validate(found)
        return found["results"]

    measured = []
    for rho, lost in ((files.rho, (1.25, 1.5, 2)), (files.huge, (-0.5, -0.25, *RAY[1:]))):
        results = advised("--rho", rho, out=f"{rho.stem}.out.st")
        reasons = {row["name"]: row["reason"] for row in results["skipped"]}
        assert {f"vector at lambda {lam:g}" for lam in lost} <= reasons.keys()
        measured.append({row["name"]: row["distance"] for row in results["candidates"]})
    patched = [[name for name in rows if name.startswith("vector at")] for rows in measured]
    assert any(name.startswith("vector at lambda 1,") for name in patched[0])
    assert patched[1] == []
    assert any(name.startswith("vector at lambda 1,") for name in reasons)
    others = [{n: x for n, x in rows.items() if n in measured[1]} for rows in measured]
    assert others[0] == others[1] == measured[1]


GRID = """\
bits: 3
cross-grid: true
lambdas: {lambdas}
fixed: {fixed}
device: cpu
batch-size: 24
receivers:
  bars4: {{model: {receiver}, data: {data}}}
donors:
  bars3: {rho}
  huge: {huge}
"""


def test_transfer_goes_on_and_its_files_are_read(files: Files, tmp_path: Path) -> None:
    def cells(name: str, lambdas: str, fixed: str, *flags: object) -> dict[str, Any]:
        grid, out = tmp_path / f"{name}.yaml", tmp_path / f"{name}.jsonl"
        places = {"receiver": files.receiver, "rho": files.rho, "huge": files.huge}
        data = files.drawer.receiver_data
        grid.write_text(GRID.format(lambdas=lambdas, fixed=fixed, data=data, **places))
        proxy = ("--proxy", files.drawer.donor_data, "--proxy-samples", 24)
        call("transfer", grid, "-o", out, *proxy, *flags, "--json")
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        return {line["donor"]: line for line in lines if line["kind"] == "cell"}

    ours, theirs = cells("a", "0,1,1.25,1.5", "1,1.25"), cells("b", "0,1", "1")
    assert ours["bars3"]["skipped"] == LEFT_OUT
    assert without(ours["bars3"]) == theirs["bars3"]
    assert [row["lambda"] for row in ours["huge"]["skipped"]] == [-0.5, -0.25, 1, 1.25, 1.5]
    assert [point["lambda"] for point in ours["huge"]["curve"]] == [0]
    assert ours["huge"]["fixed"] == []
    assert {row["lambda"] for row in ours["huge"]["chosen"].values()} == {0}
    whole = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl").rename(tmp_path / "a.jsonl.state")
    assert cells("a", "0,1,1.25,1.5", "1,1.25", "--resume") == ours
    assert (tmp_path / "a.jsonl").read_bytes() == whole
    matrix = parse(lines_of(whole.decode(), "a"))
    facts = summarise(matrix)
    pairs = {way: row["pairs"] for way, row in facts["ways"].items()}
    assert pairs == {"lambda 1": 1, "val": 2, "agreement": 2, "oracle": 2, "crossed": 2}
    pooled = pool([matrix, parse(lines_of((tmp_path / "a.jsonl").read_text(), "b"))])
    assert pooled.cells.keys() == matrix.cells.keys()
    call("plot", tmp_path / "a.jsonl", "-o", tmp_path / "a.svg")
    call("report", tmp_path / "a.jsonl", "-o", tmp_path / "a.html")
    damaged = whole.replace(b'"lambda": 1.25, "reason"', b'"lambda": 1.75, "reason"')
    with pytest.raises(CheckpointError, match="do not hold the lambdas of the run"):
        parse(lines_of(damaged.decode(), "a"))


def test_a_receiver_that_is_not_finite_itself_is_an_error(files: Files, tmp_path: Path) -> None:
    """As it is, or rounded: its logits are beyond float32."""

    def broken(theta: Tensors) -> None:
        theta["norm.bias"][0] = theta["head.weight"][:, 0] = 3e38

    receiver = rewritten(files.drawer.receiver, tmp_path / "broken.st", broken)
    rho, agreement = files.drawer.rho, ("--objective", "agreement", *files.images)
    for words in (
        ("sweep-lambda", receiver, rho, *files.base),
        ("sweep-lambda", receiver, rho, *agreement),
        ("patch", receiver, rho, "--lambda", "auto", *files.images),
        ("combine", rho, files.rho, "--fit", "--receiver", receiver, *files.images),
        ("advise", receiver, "--bits", 3, *files.images),
    ):
        refused = call(*words, "-o", tmp_path / "x", code=1)
        assert refused.errors == [f"error: {receiver}: {OUTPUTS}"], words
    assert [path.name for path in tmp_path.iterdir()] == ["broken.st"]
