"""Every command's JSON document is valid under the schema that the package ships."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from conftest import FAST, Drawer, call
from safetensors.torch import load_file

from qvec_cli.errors import CheckpointError, SpecError
from qvec_cli.outputs.metrics import SCHEMA_FILE
from qvec_cli.report.canvas import FigureOptions
from qvec_cli.report.figures import drawn
from qvec_cli.results.documents import read
from qvec_cli.results.metrics_document import (
    RESULTS,
    AdviceResults,
    AgreementResults,
    ComparedResults,
    QuantizeResults,
    SweepResults,
)
from qvec_cli.results.schema import json_schema

SCHEMA = json.loads(SCHEMA_FILE.read_text())
GOLDEN = Path(__file__).with_name("golden")
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


@pytest.fixture(scope="module")
def documents(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One document of each command, as printed; and as written, where a file holds it too."""
    out = tmp_path_factory.mktemp("metrics")
    donor, receiver = ("--data", drawer.donor_data), ("--data", drawer.receiver_data)
    grid = out / "grid.yaml"
    names = f"{{r: {{model: {drawer.receiver}, data: {drawer.receiver_data}}}}}"
    grid.write_text(f"receivers: {names}\ndonors: {{d: {drawer.rho}}}\nlambdas: 0,1\n")
    torch.save(load_file(drawer.receiver), out / "bare.pth")
    commands: dict[str, tuple[object, ...]] = {
        "import": (out / "bare.pth",),
        "finetune": (drawer.base, *donor, *FAST),
        "train-qat": (drawer.base, *donor, *FAST, "--bits", 2),
        "extract": (drawer.donor, drawer.donor_qat),
        "combine": (drawer.rho, "--parts", "attn"),
        "moments": (drawer.donor, *donor, "--samples", 4),
        "patch": (drawer.receiver, drawer.rho),
        "rotate": (drawer.receiver,),
        "quantize": (drawer.receiver, "--bits", 2),
        "export": (drawer.receiver, "--to", "timm"),
        "sweep-lambda": (drawer.receiver, drawer.rho, *receiver, "--lambdas", "0,1"),
        "transfer": (grid,),
        "advise": (drawer.receiver, "--bits", 2, "--proxy-samples", 8, "--refine", 0),
        "eval": (drawer.receiver, *receiver),
        "compare": (out / "eval.json", out / "eval.json"),
        "inspect": (drawer.rho,),
        "pictures": ("--samples", 2, "--img-size", 16),
        "plot": (out / "sweep-lambda.json",),
        "report": (out / "sweep-lambda.json",),
    }
    suffixes = {"plot": "svg", "report": "html", "export": "timm"}
    found = {}
    for command, args in commands.items():
        written = out / f"{command}.json"
        made = out / f"{command}.{suffixes.get(command, 'st')}"
        files: tuple[object, ...] = ("-o", made, "--metrics", written)
        alone = {"inspect": (), "eval": ("-o", written), "compare": ("--metrics", written)}
        files = alone.get(command, files)
        if command == "sweep-lambda":
            files = ("-o", written)
        found[command] = call(command, *args, *files, "--json").json
        if files:
            assert json.loads(written.read_text())["results"] == found[command]["results"]
            assert written.read_text().endswith("}\n")
    return found


def test_the_schema_is_a_schema_and_the_one_that_the_structs_give() -> None:
    """If not: python -c "from qvec_cli.results.schema import publish; publish()"."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json_schema() == SCHEMA


def test_the_document_of_every_command_is_valid(documents: dict[str, Any]) -> None:
    assert documents.keys() == set(SCHEMA["properties"]["command"]["enum"])
    for command, document in documents.items():
        VALIDATOR.validate(document)
        assert document["command"] == command


DRAWN = {"advise", "eval", "quantize", "sweep-lambda", "transfer"}
"""Commands whose documents make a figure by themselves."""


def test_every_document_is_on_a_page_and_in_a_figure_or_says_what_shows_it(
    documents: dict[str, Any], old: Path, tmp_path: Path
) -> None:
    """Those of every command, and of an earlier version, which has each variant."""
    files = sorted(old.glob("*.json"))
    for command, document in documents.items():
        files.append(tmp_path / f"{command}.json")
        files[-1].write_text(json.dumps(document))
    for file in files:
        command = json.loads(file.read_text())["command"]
        if command in DRAWN:
            drawn(read([file]), FigureOptions())
            continue
        with pytest.raises(SpecError, match=f"alone {command} makes no figure") as fault:
            drawn(read([file]), FigureOptions())
        assert "qvec report has its facts" in (fault.value.hint or "")
    call("report", *files, "-o", tmp_path / "all.html")
    page = (tmp_path / "all.html").read_text()
    assert documents.keys() == RESULTS.keys()
    assert all(page.count(f"{file}</") for file in files)
    assert all(f"<td>{command}</td>" in page for command in RESULTS.keys() - DRAWN - {"extract"})


def test_the_schema_refuses_what_is_wrong(documents: dict[str, Any]) -> None:
    for command, path, value in (
        ("eval", ("schema",), 2),
        ("eval", ("command",), "frobnicate"),
        ("eval", ("data_use", "level"), "some"),
        ("eval", ("data_use", "counts"), {"val": -1}),
        ("eval", ("results", "top1"), 1.5),
        ("eval", ("inputs", 0, "digest"), "abc"),
        ("eval", ("extra",), 1),
        ("sweep-lambda", ("results", "curve", 0, "val", "loss"), None),
        ("quantize", ("results", "digest"), None),
        ("moments", ("results", "rank"), 0),
    ):
        document = json.loads(json.dumps(documents[command]))
        *parents, last = path
        place = document
        for step in parents:
            place = place[step]
        place[last] = value
        assert not VALIDATOR.is_valid(document), path


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of results as the first version of the package wrote them, in a folder."""
    folder = tmp_path_factory.mktemp("old")
    with zipfile.ZipFile(GOLDEN / "results_v1.zip") as kept:
        kept.extractall(folder)
    return folder


def test_documents_that_an_earlier_version_wrote_are_valid_and_read(old: Path) -> None:
    files = sorted(old.glob("*.json"))
    for file in files:
        VALIDATOR.validate(json.loads(file.read_text()))
    found = read(files)
    assert len(found.documents) == len(files)
    assert sorted(row.command for row in found.of(dict)) == ["combine", "moments", "patch"]
    assert found.of(AdviceResults)
    (sweep,), (agreement,) = found.of(SweepResults), found.of(AgreementResults)
    assert (sweep.name, str(sweep.grid), sweep.method) == (
        "receiver",
        "2-bit channel absmax",
        "rtn",
    )
    assert sweep.results.chosen.test.n_correct == 220
    assert [row.rho for row in agreement.results.donors] == ["rho_own.st", "rho.st"]
    (compared,) = found.of(ComparedResults)
    assert compared.results.compared[0].measured == compared.results.compared[0].val
    assert len(found.of(QuantizeResults)[0].results.ordered) == 16


def test_grids_that_an_earlier_version_wrote_are_read(old: Path) -> None:
    plain, agreed = (read([old / name]).matrix for name in ("grid.jsonl", "agreed.jsonl"))
    assert plain
    assert agreed
    assert {cell.null for cell in plain.cells.values()} == {None, "random", "shuffle"}
    assert plain.plain("digits").n_correct == 192
    assert plain.baselines["digits"]["qat"].use == "receiver_labels"
    assert (agreed.measures, agreed.selectors) == ({"digits": "features"}, ("val", "agreement"))


def test_a_document_that_is_damaged_is_named_with_the_path_of_its_fault(
    old: Path, tmp_path: Path
) -> None:
    whole = json.loads((old / "sweep.json").read_text())
    for message, path, value in (
        ("results.curve[1].val: has no n", ("results", "curve", 1, "val"), {}),
        (
            "results.baselines.ptq.test.n: expected int",
            ("results", "baselines", "ptq", "test", "n"),
            "",
        ),
        ("parameters.grid.bits: expected int", ("parameters", "grid", "bits"), None),
        ("parameters.grid: --bits must be 2 to 8, got 9", ("parameters", "grid", "bits"), 9),
        ("data_use.counts.val: expected int >= 0", ("data_use", "counts", "val"), -1),
        ("inputs: 0 are too few", ("inputs",), []),
        ("results: expected object, got array", ("results",), []),
        ("was written by a newer qvec: its schema is 2", ("schema",), 2),
    ):
        document = json.loads(json.dumps(whole))
        *parents, last = path
        place = document
        for step in parents:
            place = place[step]
        place[last] = value
        (tmp_path / "s.json").write_text(json.dumps(document))
        with pytest.raises(CheckpointError) as fault:
            read([tmp_path / "s.json"])
        assert str(fault.value).startswith(f"{tmp_path / 's.json'}: {message}")


def test_keys_that_a_later_version_adds_are_passed_over(old: Path, tmp_path: Path) -> None:
    document = json.loads((old / "sweep.json").read_text())
    later = {**document, "later": 1, "results": {**document["results"], "later": {"a": [1]}}}
    later["results"]["curve"] = [{**row, "later": 1} for row in document["results"]["curve"]]
    (tmp_path / "later.json").write_text(json.dumps(later))
    assert read([tmp_path / "later.json"]).documents[0].results == (
        read([old / "sweep.json"]).documents[0].results
    )


def test_what_a_number_has_cost_is_told(documents: dict[str, Any]) -> None:
    levels = {command: document["data_use"]["level"] for command, document in documents.items()}
    assert levels == {
        "import": "none",
        "finetune": "none",
        "train-qat": "receiver_labels",
        "extract": "none",
        "combine": "none",
        "moments": "none",
        "patch": "none",
        "rotate": "none",
        "quantize": "none",
        "export": "none",
        "sweep-lambda": "receiver_labels",
        "transfer": "receiver_labels",
        "advise": "none",
        "eval": "none",
        "compare": "none",
        "inspect": "none",
        "pictures": "none",
        "plot": "receiver_labels",
        "report": "receiver_labels",
    }


def test_the_cost_of_a_model_is_not_forgotten(drawer: Drawer, tmp_path: Path) -> None:
    """A receiver's own QAT has used its labels, however it is stored afterwards."""
    call("quantize", drawer.donor_qat, "--fake", "-o", tmp_path / "q.st")
    flags = ("--data", drawer.donor_data, "--json")
    for path in (drawer.donor_qat, tmp_path / "q.st"):
        assert call("eval", path, *flags).json["data_use"]["level"] == "receiver_labels"


def test_documents_carry_digests_of_their_inputs(drawer: Drawer, documents: dict[str, Any]) -> None:
    shown = call("inspect", drawer.receiver, "--json").json
    digest = shown["results"]["card"]["digest"]
    for command in ("patch", "quantize", "eval", "sweep-lambda"):
        assert documents[command]["inputs"][0]["digest"] == digest
