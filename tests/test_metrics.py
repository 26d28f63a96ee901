"""Every command's JSON document is valid under the schema that the package ships."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import FAST, Drawer, call

from qvec_cli.outputs.metrics import SCHEMA_FILE

SCHEMA = json.loads(SCHEMA_FILE.read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


@pytest.fixture(scope="module")
def documents(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One document of each command, as printed; and as written, where a file holds it too."""
    out = tmp_path_factory.mktemp("metrics")
    donor, receiver = ("--data", drawer.donor_data), ("--data", drawer.receiver_data)
    grid = out / "grid.yaml"
    names = f"{{r: {{model: {drawer.receiver}, data: {drawer.receiver_data}}}}}"
    grid.write_text(f"receivers: {names}\ndonors: {{d: {drawer.rho}}}\nlambdas: 0,1\n")
    commands: dict[str, tuple[object, ...]] = {
        "finetune": (drawer.base, *donor, *FAST),
        "train-qat": (drawer.base, *donor, *FAST, "--bits", 2),
        "extract": (drawer.donor, drawer.donor_qat),
        "combine": (drawer.rho, "--parts", "attn"),
        "moments": (drawer.donor, *donor, "--samples", 4),
        "patch": (drawer.receiver, drawer.rho),
        "quantize": (drawer.receiver, "--bits", 2),
        "export": (drawer.receiver, "--to", "onnx"),
        "sweep-lambda": (drawer.receiver, drawer.rho, *receiver, "--lambdas", "0,1"),
        "transfer": (grid,),
        "advise": (drawer.receiver, "--bits", 8, "--proxy-samples", 8),
        "eval": (drawer.receiver, *receiver),
        "inspect": (drawer.rho,),
        "plot": (out / "sweep-lambda.json",),
        "report": (out / "sweep-lambda.json",),
    }
    suffixes = {"plot": "svg", "report": "html"}
    found = {}
    for command, args in commands.items():
        written = out / f"{command}.json"
        made = out / f"{command}.{suffixes.get(command, 'st')}"
        files: tuple[object, ...] = ("-o", made, "--metrics", written)
        files = {"inspect": (), "eval": ("-o", written)}.get(command, files)
        if command == "sweep-lambda":
            files = ("-o", written)
        found[command] = call(command, *args, *files, "--json").json
        if files:
            assert json.loads(written.read_text())["results"] == found[command]["results"]
            assert written.read_text().endswith("}\n")
    return found


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("command", SCHEMA["properties"]["command"]["enum"])
def test_a_commands_document_is_valid(command: str, documents: dict[str, Any]) -> None:
    VALIDATOR.validate(documents[command])
    assert documents[command]["command"] == command


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), 2),
        (("command",), "frobnicate"),
        (("data_use", "level"), "some"),
        (("data_use", "counts"), {"val": -1}),
        (("results", "top1"), 1.5),
        (("inputs", 0, "digest"), "abc"),
        (("extra",), 1),
    ],
)
def test_the_schema_refuses_what_is_wrong(
    path: tuple[Any, ...], value: object, documents: dict[str, Any]
) -> None:
    document = json.loads(json.dumps(documents["eval"]))
    *parents, last = path
    place = document
    for step in parents:
        place = place[step]
    place[last] = value
    assert not VALIDATOR.is_valid(document)


def test_what_a_number_has_cost_is_told(documents: dict[str, Any]) -> None:
    levels = {command: document["data_use"]["level"] for command, document in documents.items()}
    assert levels == {
        "finetune": "none",
        "train-qat": "receiver_labels",
        "extract": "none",
        "combine": "none",
        "moments": "none",
        "patch": "none",
        "quantize": "none",
        "export": "none",
        "sweep-lambda": "receiver_labels",
        "transfer": "receiver_labels",
        "advise": "none",
        "eval": "none",
        "inspect": "none",
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
