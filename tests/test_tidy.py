"""One row a measurement: tables of results against their JSON, and two results side by side."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Drawer, call

from qvec_cli.results.tidy import COLUMNS

LAMBDAS = "0,0.5,1"


@pytest.fixture(scope="module")
def files(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid with a null and its table, a sweep, evaluations of the receiver and of its codes."""
    out = tmp_path_factory.mktemp("tidy")
    names = f"{{r: {{model: {drawer.receiver}, data: {drawer.receiver_data}}}}}"
    grid = f"receivers: {names}\ndonors: {{d: {drawer.rho}}}\nlambdas: {LAMBDAS}\nnulls: random\n"
    (out / "grid.yaml").write_text(grid)
    call("transfer", out / "grid.yaml", "-o", out / "grid.jsonl", "--table", out / "grid.csv")
    data = ("--data", drawer.receiver_data)
    call(
        "sweep-lambda", drawer.receiver, drawer.rho, *data, "-l", LAMBDAS, "-o", out / "sweep.json"
    )
    call("patch", drawer.receiver, drawer.rho, "--lambda", 60, "-o", out / "far.st")
    call("quantize", out / "far.st", "--bits", 2, "--cross-grid", "-o", out / "w2.st")
    for name, model in (("fp", drawer.receiver), ("w2", out / "w2.st")):
        call("eval", model, *data, "-o", out / f"{name}.json")
    return out


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def scores(value: Any) -> Iterator[tuple[int, float]]:
    """Every score anywhere in a JSON value, as its two counts."""
    if isinstance(value, dict):
        if "n_correct" in value:
            yield value["n"], value["n_correct"]
        for part in value.values():
            yield from scores(part)
    elif isinstance(value, list):
        for part in value:
            yield from scores(part)


def counts(rows: list[dict[str, str]]) -> list[tuple[int, float]]:
    return sorted((int(row["n"]), float(row["correct"])) for row in rows)


def test_the_table_of_a_grid_has_each_score_of_its_lines_once(files: Path) -> None:
    lines = [json.loads(line) for line in (files / "grid.jsonl").read_text().splitlines()]
    rows = table(files / "grid.csv")
    assert list(rows[0]) == list(COLUMNS)
    assert counts(rows) == sorted(score for line in lines for score in scores(line))
    assert all(float(r["top1"]) == float(r["correct"]) / int(r["n"]) for r in rows)


def test_a_row_says_what_was_measured(files: Path) -> None:
    rows = table(files / "grid.csv")
    keys = [tuple(row[key] for key in ("donor", "null", "lambda", "way", "split")) for row in rows]
    assert len(set(keys)) == len(keys)
    by_key = dict(zip(keys, rows, strict=True))
    plain, at_zero = by_key["", "", "", "ptq", "test"], by_key["d", "", "0.0", "curve", "test"]
    assert plain["top1"] == at_zero["top1"]
    assert {row["seed"] for row in rows if not row["null"]} == {""}
    assert {row["seed"] for row in rows if row["null"]} == {"0"}
    assert (plain["bits"], by_key["", "", "", "fp", "test"]["bits"]) == ("3", "")
    used = {row["way"]: row["data_use"] for row in rows}
    assert (used["fixed"], used["val"], used["oracle"]) == ("none", "receiver_labels", "")


def test_a_report_has_the_same_rows_as_the_grid_and_those_of_documents(files: Path) -> None:
    results = [files / name for name in ("grid.jsonl", "sweep.json", "fp.json", "w2.json")]
    call("report", *results, "-o", files / "all.html", "--csv", files / "all.csv")
    rows = table(files / "all.csv")
    of = {path.name: [row for row in rows if row["file"] == str(path)] for path in results}
    without_file = [{**row, "file": ""} for row in of["grid.jsonl"]]
    assert without_file == [{**row, "file": ""} for row in table(files / "grid.csv")]
    sweep = json.loads((files / "sweep.json").read_text())["results"]
    assert sweep["baselines"]["ptq"].pop("val") == sweep["curve"][0]["val"]  # which stands once
    assert counts(of["sweep.json"]) == sorted(scores(sweep))
    assert [row["way"] for row in of["fp.json"] + of["w2.json"]] == ["eval", "eval"]
    assert [row["bits"] for row in of["fp.json"] + of["w2.json"]] == ["", "2"]


@pytest.mark.parametrize("command", ["report", "transfer"])
def test_a_table_replaces_no_file_that_it_was_not_told_to(files: Path, command: str) -> None:
    kept = files / "kept.csv"
    kept.write_text("mine\n")
    source, flag = ("sweep.json", "--csv") if command == "report" else ("grid.yaml", "--table")
    made = files / f"again_{command}.html"
    result = call(command, files / source, "-o", made, flag, kept, code=1)
    assert "exists" in result.err
    assert (kept.read_text(), made.exists()) == ("mine\n", False)
    result = call(command, files / source, "-o", made, flag, files / source, "-f", code=2)
    assert "is an input" in result.err


@pytest.mark.parametrize("command", ["report", "transfer"])
@pytest.mark.parametrize("other", ["-o", "--metrics"])
def test_a_table_is_another_file_than_the_other_outputs(
    files: Path, command: str, other: str
) -> None:
    source, flag = ("sweep.json", "--csv") if command == "report" else ("grid.yaml", "--table")
    made, metrics = files / "same.html", files / "same.json"
    same = made if other == "-o" else metrics
    flags = ("-o", made, "--metrics", metrics, flag, files / "." / same.name, "-f")
    result = call(command, files / source, *flags, code=2)
    assert "two outputs cannot be one file" in result.err
    assert not same.exists()


def compared(first: Path, second: Path, *flags: object, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = call("compare", first, second, *flags, "--json", code=code).json
    return found["results"]


def test_the_points_between_two_evaluations_are_those_of_their_counts(files: Path) -> None:
    first, second = (json.loads((files / f"{n}.json").read_text())["results"] for n in ("fp", "w2"))
    found = compared(files / "fp.json", files / "w2.json")
    (row,) = found["compared"]
    points = 100 * (second["top1"] - first["top1"])
    assert row["points"] == pytest.approx(points, abs=1e-9)
    assert points < 0, "the receiver loses something at 2 bits"
    assert found["largest_drop"] == pytest.approx(-points)
    back = compared(files / "w2.json", files / "fp.json")
    assert (back["compared"][0]["points"], back["largest_drop"]) == (pytest.approx(-points), 0)


def test_a_drop_is_taken_up_to_its_bound_and_exits_with_3_beyond(files: Path) -> None:
    pair = (files / "fp.json", files / "w2.json")
    drop = compared(*pair)["largest_drop"]
    assert compared(*pair, "--max-drop", drop + 0.01) == compared(*pair)
    result = call("compare", *pair, "--max-drop", drop - 0.01, code=3)
    assert result.err.startswith("error: eval test fell by")
    assert "eval test" in result.out, "the table is shown all the same"


def test_a_drop_as_large_as_its_bound_is_taken(files: Path) -> None:
    """Of 1,000 images .95 and .945: as shares these are a last bit more than half a point apart."""
    document = json.loads((files / "fp.json").read_text())
    for name, correct in (("before", 950), ("after", 945)):
        counts = {"n": 1000, "n_correct": correct, "top1": correct / 1000}
        changed = {**document, "results": {**document["results"], **counts}}
        (files / f"{name}.json").write_text(json.dumps(changed))
    assert 100 * (0.95 - 0.945) > 0.5
    pair = (files / "before.json", files / "after.json")
    assert compared(*pair, "--max-drop", 0.5)["largest_drop"] == 0.5
    assert "fell by 0.50 points" in call("compare", *pair, "--max-drop", 0.49, code=3).err


def test_a_measurement_that_the_second_file_lacks_fails(files: Path) -> None:
    lines = (files / "grid.jsonl").read_text().splitlines(keepends=True)
    cut = files / "cut.jsonl"
    cut.write_text("".join(line for line in lines if '"null": "random"' not in line))
    pair = (files / "grid.jsonl", cut)
    if len(lines) == len(cut.read_text().splitlines()):
        pytest.fail("nothing was cut")
    found = compared(*pair)
    assert {row["points"] for row in found["compared"]} == {0}
    assert all("random" in name for name in found["only_in_first"])
    assert "in the first file only" in call("compare", *pair, "--max-drop", 9, code=3).err
    assert "only in the second" in call("compare", *reversed(pair), "--max-drop", 9).out


def test_other_images_and_other_commands_are_refused(files: Path, drawer: Drawer) -> None:
    call("eval", drawer.donor, "--data", drawer.donor_data, "-o", files / "donor.json")
    other = call("compare", files / "fp.json", files / "donor.json", code=1)
    assert "were measured on other images" in other.err
    alone = call("compare", files / "fp.json", files / "sweep.json", code=1)
    assert "no measurement in common" in alone.err


@pytest.mark.parametrize(("least", "code"), [(0.0, 0), (1.0, 3)])
def test_the_least_accuracy_is_demanded_after_the_result_is_written(
    files: Path, drawer: Drawer, tmp_path: Path, least: float, code: int
) -> None:
    data = ("--data", drawer.receiver_data, "-o", tmp_path / "out.json")
    result = call("eval", files / "w2.st", *data, "--min-top1", least, code=code)
    assert json.loads((tmp_path / "out.json").read_text())["results"]["n"] > 0
    assert ("less than --min-top1 1" in result.err) == (code == 3)
