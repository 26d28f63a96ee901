"""The two studies: what their Makefiles would run, and the grid files that they write."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import call

from qvec_cli.cli import app
from qvec_cli.transfer.grid_file import read_grid_file

COMMANDS = app.program(app.COMMANDS).commands
EXAMPLES = Path(__file__).parents[1] / "examples"


@dataclass(frozen=True)
class Study:
    """A Makefile, and what it is of."""

    folder: str
    file: str
    target: str
    seeds: int
    grids: dict[str, str]  # by name, the file that lists its members

    def make(self, *words: str) -> str:
        command = ["make", "-C", str(EXAMPLES / self.folder), "-f", self.file, "BIN=/bin", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout

    def commands(self, out: Path, *words: str) -> list[list[str]]:
        """What a dry run would start, flags on one line."""
        plan = self.make("-n", f"OUT={out}", *words, self.target).replace("\\\n", " ")
        return [shlex.split(line)[1:] for line in plan.splitlines() if line.startswith("qvec ")]


STUDIES = {
    "tiny": Study(
        *("tiny", "study.mk", "all", 3),
        {name: f"s0/{name}/grid.yaml" for name in ("absmax", "mse-full", "asymmetric")},
    ),
    "real": Study(
        *("real", "Makefile", "all", 1), {name: f"{name}.yaml" for name in ("absmax", "asymmetric")}
    ),
}
GRIDS = [(study, grid) for study, found in STUDIES.items() for grid in found.grids]


def task_of(path: str) -> str:
    return re.split(r"_(?:qat|rho|gptq|absmax|asymmetric|mse-full)", Path(path).stem)[0]


def require_known_flags(commands: list[list[str]]) -> None:
    """Every flag is one that its command has: from the command line itself, not from its help."""
    for command, *words in commands:
        typed = {word for word in words if word[:2] == "--"}
        known = {
            flag
            for parameter in COMMANDS[command].params
            for flag in (*parameter.opts, *parameter.secondary_opts)
        }
        assert typed <= known, (command, typed - known)


@pytest.fixture(scope="module", params=STUDIES)
def planned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    study = STUDIES[request.param]
    return study, study.commands(tmp_path_factory.mktemp("plan") / "out")


def test_every_task_is_donor_and_receiver_on_every_grid_and_seed(planned) -> None:  # type: ignore[no-untyped-def]
    study, commands = planned
    outputs = {name: [] for name in ("finetune", "train-qat", "extract", "quantize")}
    for command, *words in commands:
        outputs.setdefault(command, []).append(words[words.index("-o") + 1])
    tasks = {task_of(path) for path in outputs["finetune"]}
    assert len(tasks) >= 6
    assert len(set(outputs["finetune"])) == len(tasks) * study.seeds
    for command in ("train-qat", "extract", "quantize"):
        assert len(set(outputs[command])) == len(tasks) * study.seeds * len(study.grids), command


def test_twins_share_seed_recipe_and_start(planned) -> None:  # type: ignore[no-untyped-def]
    _, commands = planned
    runs = {"finetune": set(), "train-qat": set()}
    for command, *words in commands:
        if command in runs:
            flags = {key: words[words.index(key) + 1] for key in ("--data", "--seed", "--recipe")}
            runs[command].add((words[0], *flags.values()))
    assert runs["finetune"] == runs["train-qat"]


def test_gptq_never_sees_the_receivers_images(planned) -> None:  # type: ignore[no-untyped-def]
    _, commands = planned
    calibrated = [words for command, *words in commands if command == "quantize"]
    assert calibrated
    for words in calibrated:
        assert Path(words[words.index("--calib") + 1]).name != task_of(words[0])


def test_every_flag_is_one_of_its_command(planned) -> None:  # type: ignore[no-untyped-def]
    _, commands = planned
    require_known_flags(commands)


@pytest.mark.parametrize(("name", "grid"), GRIDS)
def test_a_grid_file_names_files_that_the_study_makes(name: str, grid: str, tmp_path: Path) -> None:
    study, out = STUDIES[name], tmp_path / "out"
    path = out / study.grids[grid]
    study.make(f"OUT={out}", str(path))
    drawer = read_grid_file(path)
    made = {words[words.index("-o") + 1] for _, *words in study.commands(out) if "-o" in words}
    assert set(drawer.receivers) == set(drawer.donors)
    for receiver in drawer.receivers.values():
        assert {str(receiver.model), str(receiver.qat)} <= made
        assert {str(file) for file in receiver.baselines.values()} <= made
    assert {str(donor.rho) for donor in drawer.donors.values()} <= made
    refused = call("transfer", path, "-o", tmp_path / "grid.jsonl", code=1)
    assert "no such file" in refused.errors[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tiny_study_runs_and_a_second_make_has_nothing_left_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(EXAMPLES / "tiny", folder, ignore=shutil.ignore_patterns("out*"))
    words = ["SEEDS=0", "GRIDS=absmax", "TASKS=digits greek cyrillic", "NULL_DONORS=greek"]
    command = ["make", "-C", str(folder), "-f", "study.mk", f"BIN={Path(sys.executable).parent}"]
    told = subprocess.run([*command, *words, "study"], capture_output=True, text=True, check=True)
    assert "2-bit channel absmax, 3 receivers" in told.stdout
    lines = (folder / "out-study/s0/absmax/grid.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 3 * (1 + 3 + 3) + 1
    assert (folder / "out-study/report.html").exists()
    again = subprocess.run([*command, *words, "all"], capture_output=True, text=True, check=True)
    assert "qvec" not in again.stdout


def words(line: str) -> str:
    return " ".join(line.split())


@pytest.mark.parametrize("study", STUDIES)
def test_every_line_of_the_readmes_tables_is_one_that_the_study_has_printed(study: str) -> None:
    printed = (EXAMPLES / study / "results" / "table.txt").read_text().splitlines()
    heads = [line for line in printed if re.search(r" receivers(, \d runs)?$", line)]
    assert len(heads) == len(STUDIES[study].grids)
    page = EXAMPLES / study / "README.md"
    blocks = re.findall(r"```text\n(.*?)```", page.read_text(), re.DOTALL)
    (block,) = [block for block in blocks if words(heads[0]) in map(words, block.splitlines())]
    shown = [words(line) for line in block.splitlines() if line]
    assert set(shown) <= set(map(words, printed))
    assert set(map(words, heads)) <= set(shown)
    for name in ("RTN", "own QAT", "gptq", "lambda 1", "lambda* (labels)", "null random"):
        assert sum(line.startswith(name) for line in shown) >= len(heads), name


@pytest.mark.parametrize("study", STUDIES)
def test_every_figure_of_a_study_is_there_and_shown(study: str) -> None:
    results = EXAMPLES / study / "results"
    page = EXAMPLES / study / "README.md"
    shown = re.findall(r"\]\(results/([\w-]+\.svg)\)", page.read_text())
    assert shown
    assert set(shown) <= {path.name for path in results.glob("*.svg")}


def test_the_far_receivers_are_advised_without_their_images(tmp_path: Path) -> None:
    """Three draws of the other tasks' pictures for each receiver and width; labels only judge."""
    far = Study("real", "Makefile", "far-all", 1, {})
    commands = far.commands(tmp_path / "out")
    require_known_flags(commands)
    advised = [words for command, *words in commands if command == "advise"]
    draws = {
        (words[0], *(words[words.index(k) + 1] for k in ("--bits", "--draw"))) for words in advised
    }
    receivers = {receiver for receiver, _, _ in draws}
    assert len(receivers) == 3
    assert len(draws) == len(advised) == 3 * 2 * 3
    for words in advised:
        assert Path(words[words.index("--proxy") + 1]).name == "far"
        assert Path(words[words.index("--data") + 1]).name == Path(words[0]).stem
    mixed = next(
        line
        for line in far.make("-n", f"OUT={tmp_path}/o", f"{tmp_path}/o/others/far").splitlines()
        if "ln -s" in line
    )
    assert not any(Path(receiver).stem in mixed for receiver in receivers)


def test_the_far_table_is_what_its_documents_say(tmp_path: Path) -> None:
    """Means over draws and receivers, the range of draws, and how often a choice is a loss."""
    grid = {"granularity": "channel"}

    def row(name: str, way: str, family: str, distance: float, correct: int) -> dict[str, object]:
        test = {"n": 100, "n_correct": correct}
        by = {"pictures": distance, "generated": 1 - distance}
        facts = {"name": name, "way": way, "family": family, "grid": grid, "test": test}
        more = {"distance": distance, "kept": 0.9, "bits_per_weight": 3.0, "distance_by": by}
        return {**facts, **more, "data_use": {"level": "none"}}

    folder = tmp_path / "3"
    folder.mkdir()
    for receiver, draws in {"a": (80, 60), "b": (50, 46)}.items():
        for draw, correct in enumerate(draws):
            rows = [
                row("rtn, channel absmax", "rtn", "plain", 0.9, 10),
                row("rtn, channel mse", "rtn", "plain", 0.5, 45),
                row("gptq", "float", "images", 0.1, correct),
            ]
            results = {"candidates": rows, "chosen": "gptq", "expected": [0.8, 1.0]}
            results["fp"] = {"n": 100, "n_correct": 90}
            path = folder / f"{receiver}_advise_{draw}.json"
            path.write_text(json.dumps({"results": results}))
        for kind in ("default", "own", "qat", "best_0", "best_1"):
            scored = {"results": {"n": 100, "n_correct": 70}}
            (folder / f"{receiver}_{kind}.json").write_text(json.dumps(scored))
    command = [sys.executable, str(EXAMPLES / "real/far.py"), str(tmp_path), "3"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    table = {line.split("\t")[0]: line.split("\t")[1:] for line in told.splitlines()}
    assert table["float"] == ["0.900", "0.900", "0.900", "-", "none"]
    assert table["RTN"][2] == "0.100"
    assert table["best plain grid"][:3] == ["0.450", "0.450", "0.450"]
    taken = ["0.700", "0.480", "0.590", "0.530 to 0.650", "none"]
    assert table["GPTQ, others' images"] == table["advise"] == taken
    assert table["own QAT"][:2] == ["0.700", "0.700"]
    assert "worse than the best plain grid on test in 0 of 4" in told
    assert "pictures +1.00, generated -1.00, both +1.00" in told
    assert "a 0.90, 0.80 to 1.00: 0.89 (in); a 0.90, 0.80 to 1.00: 0.67 (out of)" in told


def test_the_readmes_far_table_is_the_one_that_is_kept() -> None:
    def cells(line: str) -> list[str]:
        return re.split(r"\t|  +", line.strip())

    kept = (EXAMPLES / "real/results/far.txt").read_text().splitlines()
    page = (EXAMPLES / "real/README.md").read_text()
    (block,) = (
        b for b in re.findall(r"```text\n(.*?)```", page, re.DOTALL) if "far receivers" in b
    )
    shown = [cells(line) for line in block.splitlines() if line]
    told = [cells(line) for line in kept if not line.startswith("kept on the pictures")]
    assert shown == told
