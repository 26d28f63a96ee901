"""The tiny example: its images are the same everywhere, its table says what was measured."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import call
from PIL import Image

from qvec_cli.data.datasets import open_task

TINY = Path(__file__).parents[1] / "examples" / "tiny"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TINY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


images, summary = load("images"), load("summary")

COUNTS = {"digits": (10, 1297, 500), "latin": (26, 2000, 800), "greek": (25, 2000, 800)}
COUNTS |= {"cyrillic": (32, 2000, 800), "georgian": (33, 2000, 800), "armenian": (38, 2000, 800)}


@pytest.mark.parametrize("task", COUNTS)
def test_a_task_has_the_classes_and_counts_that_its_table_says(task: str) -> None:
    classes, train, test = COUNTS[task]
    row = re.search(rf"^{task} .* {classes} +{train:,} +{test}$", images.__doc__, re.MULTILINE)
    assert row, "the table in images.py says something else"
    if task == "digits":
        drawn = {split: [p.label for p in images.digits(split)] for split in ("train", "test")}
        assert (len(drawn["train"]), len(drawn["test"])) == (train, test)
        assert len(set(drawn["train"])) == len(set(drawn["test"])) == classes
    else:
        script = images.SCRIPTS[task]
        assert (len(images.alphabet(script)), script.train, script.test) == (classes, train, test)


def test_the_same_pictures_are_drawn_every_time() -> None:
    def first(count: int) -> list[bytes]:
        drawn = images.drawn("greek", "test")
        return [next(drawn).image.tobytes() for _ in range(count)]

    assert first(20) == first(20)
    assert len(set(first(20))) == 20


def test_no_letter_of_a_task_is_among_the_glyphs_of_the_base() -> None:
    base = set(images.alphabet(images.SCRIPTS["base"]))
    for name, script in images.SCRIPTS.items():
        if name != "base":
            assert base.isdisjoint(images.alphabet(script))


def test_what_is_written_is_an_image_folder(tmp_path: Path) -> None:
    images.write(images.digits("test"), tmp_path / "digits" / "test")
    task = open_task(str(tmp_path / "digits"), None)
    assert task.classes == tuple("0123456789")
    assert len(task.split("test")) == 500
    assert isinstance(task.split("test").load(0), Image.Image)


def test_the_committed_base_is_small_and_says_what_it_is() -> None:
    assert (TINY / "base.st").stat().st_size < 2_000_000
    card = call("inspect", TINY / "base.st", "--json").json["results"]["card"]
    assert card["model"]["num_classes"] == len(card["data"]["classes"]) == 400
    assert card["provenance"]["op"] == "finetune"


def document(right: int, level: str = "none") -> dict[str, Any]:
    results = {"top1": right / 500, "n_correct": right, "standard_error": 0.01}
    return {"results": results, "data_use": {"level": level}}


def written(out: Path, unit: int) -> None:
    """The files of one receiver and one donor, as the commands would leave them."""
    rows = {"fp": 480, "w2": 250, "other_w2": 280, "qat_w2": 470, "unit_w2": 300, "best_w2": 320}
    rows |= {"plain_w2": 410, "pictures_w2": 460, "advise_w2": 465}
    (out / "r.json").write_text(json.dumps(document(rows.pop("fp"))))
    for name, right in rows.items():
        (out / f"r_{name}.json").write_text(json.dumps(document(right)))
    (out / "r_advice.json").write_text(json.dumps({"results": {"decision": "calibrate"}}))
    point = {
        key: {"test": {"n_correct": n, "top1": n / 500}}
        for key, n in {"fp": 480, "ptq": 250, "unit": unit, "best": 320}.items()
    }
    sweep = {
        "baselines": {"fp": point["fp"], "ptq": point["ptq"]},
        "zero_shot": point["unit"],
        "chosen": {**point["best"], "lambda": 0.6},
    }
    (out / "r_from_d.json").write_text(json.dumps({"results": sweep}))


def test_the_summary_holds_what_was_measured(tmp_path: Path) -> None:
    written(tmp_path, unit=300)
    found = summary.summary(tmp_path, "r", ["d"], 2)
    keys = ("fp", "ptq", "ptq_other", "patched_unit", "patched_best", "lambda_best", "qat")
    assert [found[key] for key in keys] == [0.96, 0.5, 0.56, 0.6, 0.64, 0.6, 0.94]
    lines = summary.table({"r": found}, 2, ["absmax", "mse-full"])
    assert lines[2].split() == [
        "r",
        "d",
        "0.960",
        "0.560",
        "0.500",
        "0.600",
        "0.640",
        "0.60",
        "0.940",
    ]
    assert lines[-1] == "pairs that beat RTN absmax: 1 of 1 at lambda 1, 1 at lambda*"
    cells = [line.split()[-2:] for line in summary.alone({"r": found}, 2, "absmax")[1:]]
    rows = ("0.960", "0.500", "0.820", "0.920", "0.930", "0.940")
    assert cells == [[top1, "none"] for top1 in rows]
    assert summary.advice(tmp_path, {"r": found}) == (
        "qvec advise: calibrate (1); r 0.930 of 0.960; receiver data used: none"
    )


def test_the_chart_is_one_that_plot_draws(tmp_path: Path) -> None:
    written(tmp_path, unit=300)
    facts = {"r": summary.summary(tmp_path, "r", ["d"], 2)}
    drawn = tmp_path / "demo.json"
    drawn.write_text(json.dumps(summary.chart(facts, 2, "absmax")))
    shown = call("plot", drawn, "-o", tmp_path / "demo.svg").out
    for bar in ("rounding, the paper's grid 50.0", "lambda 1 60.0", "advise 93.0", "QAT 94.0"):
        assert bar in shown


def test_the_summary_refuses_numbers_that_disagree(tmp_path: Path) -> None:
    written(tmp_path, unit=301)
    with pytest.raises(SystemExit, match="patched_unit: eval and sweep-lambda disagree"):
        summary.summary(tmp_path, "r", ["d"], 2)


@pytest.mark.slow
def test_the_demo_runs_on_one_pair(tmp_path: Path) -> None:
    """With one epoch; the whole is ``make demo``."""
    example = tmp_path / "tiny"
    shutil.copytree(TINY, example, ignore=shutil.ignore_patterns("out"))
    recipe = example / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("epochs: 8", "epochs: 1"))
    command = [
        "make",
        "--no-print-directory",
        "demo",
        f"BIN={Path(sys.executable).parent}",
        "DONORS=greek",
    ]
    done = subprocess.run(
        [*command, "RECEIVERS=digits"], cwd=example, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "qvec extract out/greek.st out/greek_qat.st -o out/rho_greek.st" in done.stdout
    assert set(json.loads((example / "out" / "summary.json").read_text())) == {"digits"}
    advice, figure, page = done.stdout.splitlines()[-3:]
    assert re.match(r"qvec advise: .*; digits 0\.\d+ of 0\.\d+; receiver data used: \w+$", advice)
    assert figure == "figure: examples/tiny/out/demo.svg"
    assert page == "page:   examples/tiny/out/demo.html"
    assert all((example / "out" / f"demo.{kind}").exists() for kind in ("svg", "html"))
