"""Cells of a transfer grid with proxies: the choice without labels beside that of labels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST, Drawer, call

from qvec_cli.results.matrix import Matrix, lines_of, parse, pool
from qvec_cli.results.summary import summarise
from qvec_cli.selection.choose import NEGATIVE
from qvec_cli.transfer import cells

GRID = """\
bits: 2
cross-grid: true
lambdas: 0,0.75
device: cpu
proxy-samples: 30
receivers:
  bars4: {{model: {receiver}, data: {receiver_data}}}
  bars3: {{model: {donor}, data: {donor_data}}}
donors:
  bars3: {rho}
  bars4: {own}
"""


@dataclass(frozen=True)
class Files:
    """A grid of two tasks, run with each other's images as proxies and without."""

    drawer: Drawer
    grid: Path
    bare: Path
    out: Path
    own: Path
    document: dict[str, Any]

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.out.read_text().splitlines()]

    @property
    def cells(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["kind"] == "cell"]

    @property
    def pools(self) -> tuple[str, ...]:
        """Flags that name the images of both tasks."""
        return tuple(
            word
            for data in (self.drawer.donor_data, self.drawer.receiver_data)
            for word in ("--proxy", str(data))
        )


@pytest.fixture(scope="module")
def files(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> Files:
    root = tmp_path_factory.mktemp("cells")
    data = ("--data", drawer.receiver_data)
    call("train-qat", drawer.base, *data, "-o", root / "qat.st", *FAST, "--bits", 3)
    call("extract", drawer.receiver, root / "qat.st", "-o", root / "own.st")
    names = {name: getattr(drawer, name) for name in drawer.__dataclass_fields__}
    text = GRID.format(**names, own=root / "own.st")
    grid, bare = root / "grid.yaml", root / "bare.yaml"
    bare.write_text(text.replace("proxy-samples: 30\n", ""))
    grid.write_text(text)
    found = Files(drawer, grid, bare, root / "grid.jsonl", root / "own.st", {})
    document = call("transfer", grid, "-o", found.out, *found.pools, "--json").json
    return Files(drawer, grid, bare, found.out, found.own, document)


def test_every_cell_has_a_choice_a_score_and_distances(files: Files) -> None:
    assert len(files.cells) == 4
    for cell in files.cells:
        assert {*cell["chosen"]} == {"val", "agreement"}
        chosen = cell["chosen"]["agreement"]
        at = {point["lambda"]: point for point in cell["curve"]}
        assert chosen["test"] == at[chosen["lambda"]]["test"]
        assert all(point["distance"] >= 0 for point in cell["curve"])
        assert 0 <= cell["score"]["removed"] <= 1
        assert 0 <= cell["score"]["explained"] <= 1


def test_negative_lambdas_join_the_curve(files: Files) -> None:
    assert files.lines[0]["lambdas"] == sorted({*NEGATIVE, 0.0, 0.75, 1.0})


def test_a_cell_is_what_sweep_lambda_gives(files: Files, tmp_path: Path) -> None:
    drawer, out = files.drawer, tmp_path / "s.json"
    flags = ("--objective", "agreement", "--proxy", drawer.donor_data, "--proxy-samples", 30)
    grid = ("--bits", 2, "--cross-grid", "--lambdas", "0,0.75,1", "--device", "cpu", "--json")
    swept = call(
        *("sweep-lambda", drawer.receiver, drawer.rho, files.own, "-o", out), *flags, *grid
    ).json["results"]
    for donor, rho in (("bars3", drawer.rho), ("bars4", files.own)):
        (cell,) = (c for c in files.cells if (c["receiver"], c["donor"]) == ("bars4", donor))
        (row,) = (row for row in swept["donors"] if row["rho"] == str(rho))
        assert cell["score"] == row["score"]
        assert cell["chosen"]["agreement"]["lambda"] == row["chosen"]["lambda"]
        for ours, theirs in zip(cell["curve"], row["curve"], strict=True):
            assert ours["distance"] == theirs["distance"]


def test_the_receivers_own_images_are_left_out_of_its_pool(files: Files) -> None:
    receivers = files.lines[0]["receivers"]
    names = {n: [proxy["name"] for proxy in facts["proxies"]] for n, facts in receivers.items()}
    assert names == {"bars4": ["bars3"], "bars3": ["bars4"]}
    uses = {(c["receiver"], c["donor"]): c["chosen"]["agreement"]["data_use"] for c in files.cells}
    assert uses["bars4", "bars3"] == uses["bars3", "bars4"] == "proxy_images"
    assert uses["bars4", "bars4"] == uses["bars3", "bars3"] == "receiver_labels"  # its own QAT


def test_a_pool_of_only_its_own_images_is_refused(files: Files, tmp_path: Path) -> None:
    args = ("--proxy", files.drawer.donor_data, "-o", tmp_path / "g.jsonl")
    result = call("transfer", files.grid, *args, code=2)
    assert "bars3 has no images there but its own" in result.errors[0]
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--proxy", "noise", "--lambdas", "0", "--fixed", "0"), "has none above 0"),
        (("--proxy", "noise", "--proxy", "noise"), "--proxy noise stands twice"),
        ((), "--proxy is missing"),  # the file says how many
    ],
)
def test_a_mistake_costs_a_line_and_no_file(
    flags: tuple[str, ...], message: str, files: Files, tmp_path: Path
) -> None:
    result = call("transfer", files.grid, *flags, "-o", tmp_path / "g.jsonl", code=2)
    assert message in result.errors[0]
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("done", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(
    done: int, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, cell, measured = tmp_path / "grid.jsonl", cells.MeasuredReceiver.cell, []

    def counted(self: cells.MeasuredReceiver, vector: Any, listener: Any) -> Any:
        if len(measured) == done:
            raise KeyboardInterrupt
        measured.append(vector)
        return cell(self, vector, listener)

    monkeypatch.setattr(cells.MeasuredReceiver, "cell", counted)
    call("transfer", files.grid, *files.pools, "-o", out, code=130)
    monkeypatch.setattr(cells.MeasuredReceiver, "cell", cell)
    call("transfer", files.grid, *files.pools, "-o", out, "--resume")
    assert out.read_bytes() == files.out.read_bytes()


def test_lines_of_other_proxies_are_of_another_run(files: Files, tmp_path: Path) -> None:
    flags = ("--proxy", "noise", "--join", files.out, "-o", tmp_path / "g.jsonl")
    assert "is of another run" in call("transfer", files.grid, *flags, code=1).errors[0]


def test_without_proxies_lines_have_nothing_of_them(files: Files, tmp_path: Path) -> None:
    """As they were before there were any: old files and new ones are the same."""
    out = tmp_path / "grid.jsonl"
    call("transfer", files.bare, "--lambdas=-0.5,-0.25,0,0.75", "-o", out)
    for line in map(json.loads, out.read_text().splitlines()):
        if line["kind"] == "run":
            assert line["lambdas"] == files.lines[0]["lambdas"]
            assert all("proxies" not in facts for facts in line["receivers"].values())
        if line["kind"] == "cell":
            (whole,) = (
                cell
                for cell in files.cells
                if (cell["receiver"], cell["donor"]) == (line["receiver"], line["donor"])
            )
            for point in whole["curve"]:
                del point["distance"], point["standard_error"]
            del whole["score"], whole["chosen"]["agreement"]
            assert line == whole


def matrix(lines: list[dict[str, Any]]) -> Matrix:
    return parse(lines_of("".join(json.dumps(line) + "\n" for line in lines), "g"))


def test_a_grid_is_read_back_with_scores_and_distances(files: Files) -> None:
    found = matrix(files.lines)
    assert found.selectors == ("val", "agreement")
    for line in files.cells:
        cell = found.get(line["receiver"], line["donor"])
        assert cell
        assert cell.score
        assert cell.score.removed == line["score"]["removed"]
        assert [p.distance for p in cell.curve] == [p["distance"] for p in line["curve"]]


def test_runs_that_are_pooled_have_mean_scores_where_all_have_one(files: Files) -> None:
    lines = files.lines
    other = json.loads(json.dumps(lines))
    for line in other:
        if line["kind"] == "cell":
            line["score"]["removed"] /= 2
            for point in line["curve"]:
                point["distance"] *= 3
    whole = pool([matrix(lines), matrix(other)])
    for key, cell in matrix(lines).cells.items():
        assert cell.score
        found = whole.cells[key]
        assert found.score
        assert found.score.removed == pytest.approx(0.75 * cell.score.removed)
        for ours, theirs in zip(found.curve, cell.curve, strict=True):
            assert theirs.distance is not None
            assert ours.distance == pytest.approx(2 * theirs.distance)
    del other[2]["score"]
    lacking = pool([matrix(lines), matrix(other)])
    assert lacking.cells[other[2]["receiver"], other[2]["donor"], None].score is None


def test_the_summary_has_the_way_and_the_scores_need_three_pairs(files: Files) -> None:
    assert {*files.document["results"]["summary"]["ways"]} == {
        *("lambda 1", "val", "agreement", "oracle", "crossed")
    }
    assert summarise(matrix(files.lines))["donor_score"] is None  # two pairs


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_that_order_pairs_as_their_gains_do_have_rank_one(sign: int) -> None:
    from samples import TASKS, grid_lines, text

    lines = grid_lines(receivers=TASKS[:4], donors=TASKS[:4])
    plain = {
        line["receiver"]: line["baselines"]["ptq"]["test"]["top1"]
        for line in lines
        if line["kind"] == "receiver"
    }
    for line in lines:
        if line["kind"] == "cell":
            gain = line["oracle"]["test"]["top1"] - plain[line["receiver"]]
            line["score"] = {"removed": sign * gain / 2, "explained": gain + 1}
    score = summarise(parse(lines_of(text(lines), "g")))["donor_score"]
    assert score["removed"]["spearman"] == pytest.approx(sign)
    assert score["removed"]["within_receivers"] == pytest.approx(sign)
    assert score["explained"]["spearman"] == pytest.approx(1)
