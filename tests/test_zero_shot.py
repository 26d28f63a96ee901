"""The zero-data studies: no image of a receiver is seen, and the table counts what it says."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import call
from test_studies import EXAMPLES, Study, require_known_flags, words

from qvec_cli.results.records import Score
from qvec_cli.transfer.grid_file import read_grid_file

STUDIES = {
    "tiny": Study(*("tiny", "zero.mk", "all", 3), {"absmax-2": "s1/absmax-2/grid.yaml"}),
    "real": Study(*("real", "Makefile", "zero", 1), {"absmax": "zero/absmax/grid.yaml"}),
}
NUMBERED = {"digits", "fashion", "mnist"}  # whose classes are called 0 to 9


def flags(line: list[str], flag: str) -> list[str]:
    return [line[place + 1] for place, word in enumerate(line) if word == flag]


def strangers(task: str, others: set[str]) -> set[str]:
    return others - {task} - (NUMBERED if task in NUMBERED else set())


@pytest.fixture(scope="module", params=STUDIES)
def planned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    study = STUDIES[request.param]
    return study.commands(tmp_path_factory.mktemp("plan") / "out")


def test_advice_has_the_vectors_of_all_strangers_and_of_nobody_else(planned) -> None:  # type: ignore[no-untyped-def]
    advised = [line for line in planned if line[0] == "advise"]
    tasks = {Path(line[1]).stem for line in advised}
    assert len(tasks) >= 6
    for line in advised:
        task = Path(line[1]).stem
        assert {Path(p).stem.removesuffix("_rho") for p in flags(line, "--rho")} == strangers(
            task, tasks
        )
        assert [Path(p).name for p in flags(line, "--proxy")] == [task]
        assert Path(flags(line, "--proxy")[0]).parent.name == "others"
        assert [Path(p).name for p in flags(line, "--data")] == [task]


def test_only_what_is_called_own_sees_the_receivers_images(planned) -> None:  # type: ignore[no-untyped-def]
    quantized = [line for line in planned if line[0] == "quantize"]
    assert quantized
    for line in quantized:
        seen = {Path(p).parent.name for p in flags(line, "--calib")}
        own = "_own" in Path(flags(line, "-o")[0]).stem
        assert seen == ({"images"} if own else {"others"} if seen else set())


def test_what_is_combined_for_a_receiver_is_of_strangers_only(tmp_path: Path) -> None:
    planned = STUDIES["tiny"].commands(tmp_path / "out", "RULES=ties dare")
    combined = [line for line in planned if line[0] == "combine"]
    tasks = {Path(line[1]).stem for line in planned if line[0] == "advise"}
    for line in combined:
        receiver = Path(flags(line, "-o")[0]).stem.split("_")[0]
        given = [Path(word).stem for word in line[1:] if word.endswith("_rho.st")]
        assert {name.split("_")[0] for name in given} == strangers(receiver, tasks)
        assert len(given) == len(set(given))
    ruled = {word for line in planned if line[0] == "sweep-lambda" for word in line[2:4]}
    assert ruled
    assert ruled <= {flags(line, "-o")[0] for line in combined}


@pytest.mark.parametrize("name", STUDIES)
def test_the_pictures_of_others_are_links_to_strangers(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = STUDIES[name].make("-n", f"OUT={out}", f"{out}/others/digits")
    links = re.findall(r"ln -s \S*/images/(\w+)/train \S*/others/digits/(\w+)", told)
    assert links
    assert all(first == second for first, second in links)
    assert {first for first, _ in links}.isdisjoint(NUMBERED)


def test_every_flag_is_one_of_its_command(planned) -> None:  # type: ignore[no-untyped-def]
    require_known_flags(planned)


@pytest.mark.parametrize("name", STUDIES)
def test_the_grid_file_names_files_that_the_study_makes(name: str, tmp_path: Path) -> None:
    study, out = STUDIES[name], tmp_path / "out"
    path = out / next(iter(study.grids.values()))
    study.make(f"OUT={out}", str(path))
    drawer = read_grid_file(path)
    made = {line[line.index("-o") + 1] for line in study.commands(out) if "-o" in line}
    assert set(drawer.donors) <= set(drawer.receivers)
    for receiver in drawer.receivers.values():
        files = (receiver.model, receiver.qat, *receiver.baselines.values())
        assert {str(file) for file in files} <= made
    assert {str(donor.rho) for donor in drawer.donors.values()} <= made
    refused = call("transfer", path, "-o", tmp_path / "grid.jsonl", code=1)
    assert "no such file" in refused.errors[0]


# --- the table ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table() -> ModuleType:
    path = EXAMPLES / "tiny" / "zero_shot.py"
    spec = importlib.util.spec_from_file_location("zero_shot", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["zero_shot"] = module
    spec.loader.exec_module(module)
    return module


GAPS = {"a": [0.4, 0.2], "b": [0.1, 0.1]}  # own QAT above rounding, of two seeds


def cells(table: ModuleType, share: float) -> list[object]:
    """What a way gives that closes a share of each receiver's gap; 1,000 images, rounding .5."""
    plain = Score.of(1000, 500)
    return [
        table.Cell(name, plain, Score.of(1000, 500 + round(1000 * share * gap)))
        for name, gaps in GAPS.items()
        for gap in gaps
    ]


@pytest.mark.parametrize(
    ("share", "closed", "worse"),
    [(0, "0%", "0.0%"), (1, "100%", "0.0%"), (0.5, "50%", "0.0%"), (-1, "-100%", "100.0%")],
)
def test_a_row_closes_the_share_of_the_gap_that_each_cell_does(
    table: ModuleType, share: float, closed: str, worse: str
) -> None:
    name, top1, found, between, lost, use = (
        table.Row("way", cells(table, share), "none").text(GAPS).split("\t")
    )
    assert (name, found, lost, use) == ("way", closed, worse, "none")
    assert float(top1) == pytest.approx(0.5 + share * 0.2)  # receivers count alike
    assert between == (f"{closed} to {closed}")


def test_a_cell_is_worse_by_more_than_a_standard_error_only(table: ModuleType) -> None:
    plain = Score.of(100, 50)  # the error of a difference is 7.07 points
    assert not table.Cell("a", plain, Score.of(100, 43)).worse
    assert table.Cell("a", plain, Score.of(100, 42)).worse


def test_what_agreement_gains_is_told_as_a_share_of_what_labels_gain(table: ModuleType) -> None:
    plain = Score.of(100, 50)
    pairs = [(plain, Score.of(100, 56), Score.of(100, 60)), (plain, plain, Score.of(100, 50))]
    told = table._of_labels(pairs)
    assert told.startswith("lambda by agreement: +3.0 points where labels gain +5.0 (60%)")
    assert "worse than lambda 0 in 0%" in told
    lost = (plain, Score.of(100, 30), Score.of(100, 45))
    assert "(-); worse than lambda 0 in 100%" in table._of_labels([lost])


def candidate(name: str, bits: float, correct: int, granularity: str = "channel") -> dict:  # type: ignore[type-arg]
    grid = {"granularity": granularity}
    test = {"n": 100, "n_correct": correct}
    return {"name": name, "bits_per_weight": bits, "grid": grid, "test": test}


def test_decisions_are_held_against_the_best_candidate_of_equal_bits(table: ModuleType) -> None:
    rows = [
        candidate("plain", 2.1, 60),
        candidate("gptq", 2.1, 90),
        candidate("group", 2.5, 99, "group"),  # dearer: nobody could take it
    ]
    told = {"candidates": rows, "best_plain": "plain", "decision": "calibrate"}
    right, wrong = ({"results": {**told, "chosen": name}} for name in ("gptq", "plain"))
    lines = list(table._decisions([("s0", "a", right), ("s0", "b", wrong)]))
    assert lines[0] == "advise: 2 calibrate"
    assert "in 50%, 15.0 points below it on average, 30.0 at most" in lines[1]
    assert "worse than the best plain grid in 0%" in lines[1]


def test_accuracy_is_averaged_over_the_candidates_that_keep_as_much(table: ModuleType) -> None:
    def told(full: int, *rows: tuple[float, int]) -> dict:  # type: ignore[type-arg]
        found = [{"kept": kept, "test": {"n": 100, "n_correct": n}} for kept, n in rows]
        return {"results": {"fp": {"n": 100, "n_correct": full}, "candidates": found}}

    files = [("s0", "a", told(80, (0.61, 40), (1.0, 80))), ("s0", "b", told(50, (0.69, 50)))]
    assert table._kept(files).endswith("from: 0.6 0.75 (0.50 to 1.00), 0.9 1.00 (1.00 to 1.00)")


def test_pictures_that_rank_as_labels_do_have_rank_one(table: ModuleType) -> None:
    rows = []
    for correct, near, far in ((50, 0.3, 0.1), (80, 0.2, 0.2), (90, 0.1, 0.3)):
        row = candidate(f"c{correct}", 2.4, correct)
        by = {"generated": near, "pictures": far}
        rows.append({**row, "distance": near, "distance_by": by})
    files = [("s0", "a", {"results": {"candidates": rows}})]
    assert table._judges(files).endswith(
        "generated +1.00 (least +1.00), pictures -1.00 (least -1.00), both +1.00 (least +1.00)"
    )


def test_a_rules_row_has_each_receivers_chosen_vector_against_its_own_rounding(
    table: ModuleType,
) -> None:
    def told(receiver: str, **correct: int) -> dict:  # type: ignore[type-arg]
        donors = [
            {"chosen": {"rho": f"out/{receiver}_{rule}.st", "test": {"n": 100, "n_correct": n}}}
            for rule, n in correct.items()
        ]
        return {
            "results": {
                "baselines": {"ptq": {"test": {"n": 100, "n_correct": 40}}},
                "donors": donors,  # best first, so in no order of rules
            }
        }

    files = [
        ("s0", "a", told("a", ties=50, dare=40)),
        ("s0", "b_c", told("b_c", dare=20, ties=60)),
    ]
    dare, ties = table._ruled(files)
    assert [row.name.split()[0] for row in (dare, ties)] == ["DARE", "TIES"]
    assert [cell.gain for cell in ties.cells] == pytest.approx([0.1, 0.2])
    assert [cell.gain for cell in dare.cells] == pytest.approx([0.0, -0.2])
    assert [cell.worse for cell in dare.cells] == [False, True]


@pytest.mark.parametrize("study", STUDIES)
def test_the_kept_document_is_the_kept_table_and_bars_are_drawn_from_it(
    study: str, table: ModuleType, tmp_path: Path
) -> None:
    kept = EXAMPLES / study / "results"
    document = json.loads((kept / "zero_shot.json").read_text())
    assert document == table.document(kept / "zero_shot.txt", document["title"])
    printed = (kept / "zero_shot.txt").read_text()
    for grid in document["tables"]:
        assert grid["title"] in printed
        for row in grid["ways"]:
            assert f"{row['way']}\t{row['top1']:.4f}\t{row['gap_closed']:.0%}\t" in printed
    assert len(re.findall(r"\t0\.\d{4}\t", printed)) == sum(
        len(t["ways"]) for t in document["tables"]
    )
    call("plot", kept / "zero_shot.json", "-o", tmp_path / "bars.svg")
    sizes = [
        re.search(r'viewBox="[^"]+"', path.read_text())
        for path in (tmp_path / "bars.svg", kept / "bars.svg")
    ]
    assert sizes[0]
    assert sizes[1]
    assert sizes[0][0] == sizes[1][0]


@pytest.mark.parametrize("study", STUDIES)
def test_every_line_of_the_readmes_tables_is_one_that_the_study_has_printed(study: str) -> None:
    printed = (EXAMPLES / study / "results" / "zero_shot.txt").read_text().splitlines()
    heads = [line for line in printed if re.search(r" receivers, \d+ seeds?$", line)]
    assert heads
    page = EXAMPLES / study / "README.md"
    blocks = re.findall(r"```text\n(.*?)```", page.read_text(), re.DOTALL)
    (block,) = [block for block in blocks if words(heads[0]) in map(words, block.splitlines())]
    shown = [words(line) for line in block.splitlines() if line]
    assert set(shown) <= set(map(words, printed))
    assert set(map(words, heads)) <= set(shown)
    for name in ("RTN", "own QAT", "advise", "GPTQ, donors' moments", "null random"):
        assert sum(line.startswith(name) for line in shown) >= len(heads), name
