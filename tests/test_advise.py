"""advise: it tries what its commands say, decides by what it measured, writes the same bytes."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import Counts, Drawer, Planted, Result, call, counting, hearing, light, one_bar

from qvec_cli.advise import advise as operation
from qvec_cli.advise.candidates import AdviseRequest, Ways
from qvec_cli.advise.decision import Family
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.write import write
from qvec_cli.errors import MismatchError
from qvec_cli.outputs.metrics import SCHEMA_FILE
from qvec_cli.selection import by_agreement, trial
from qvec_cli.specs import ScaleDtype

VALIDATOR = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text()))
FLAGS = ("--device", "cpu", "--proxy-samples", 40, "--batch-size", 16, "--refine", 2)


@dataclass(frozen=True)
class Run:
    """What one command said, wrote, and made on the way."""

    found: Result
    out: Path
    made: dict[str, bytes]  # of each candidate
    ways: list[str]  # what progress calls each
    counts: Counts

    @property
    def results(self) -> Any:
        return self.found.json["results"]

    @property
    def rows(self) -> dict[str, Any]:
        return {row["name"]: row for row in self.results["candidates"]}


@pytest.fixture(scope="session")
def own_temp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where temporary files go meanwhile."""
    folder = tmp_path_factory.mktemp("temp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


def advise(drawer: Drawer, *args: object, out: Path, trusted: bool = True) -> Run:
    """Runs it, and keeps every candidate; ``trusted``: all images count as pictures."""
    made, ways = [], []

    def kept(request: Any, listener: Any, files: Any) -> Any:
        done = quantize(request, listener, files)
        if not request.dry_run:
            made.append(request.out.read_bytes())
            ways.extend([listener.stage.label] if isinstance(listener, operation.InWay) else [])
        return done

    quantize = operation.quantize
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operation, "quantize", kept)
        if trusted:
            patch.setattr(trial, "_CLOSE", 0.0)
        with counting() as counts:
            found = call("advise", drawer.receiver, *FLAGS, *args, "-o", out, "--json")
    names = [row["name"] for row in found.json["results"]["candidates"]]
    assert len(made) == len(names) + 1
    return Run(found, out, dict(zip(names, made, strict=False)), ways, counts)


@pytest.fixture(scope="session")
def moments(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("moments") / "moments.st"
    call("moments", drawer.donor, "--data", drawer.donor_data, "--samples", 8, "-o", out)
    return out


@pytest.fixture(scope="session")
def full(
    drawer: Drawer,
    planted: Planted,
    moments: Path,
    own_temp: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """Two vectors, statistics, pictures of two places and labels: every way takes part."""
    rhos = [word for path in planted.parts for word in ("--rho", path)]
    pictures = ("--proxy", planted.pictures, "--proxy", drawer.donor_data)
    args = (*rhos, "--moments", moments, *pictures, "--bits", 2)
    out = tmp_path_factory.mktemp("an output") / "out.st"
    return advise(drawer, *args, "--data", drawer.receiver_data, out=out)


@pytest.fixture(scope="session")
def by_noise(
    drawer: Drawer, moments: Path, own_temp: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """One vector that carries statistics, and no image."""
    folder = tmp_path_factory.mktemp("noise")
    rho = folder / "carrier.st"
    call("extract", drawer.donor, drawer.donor_qat, "--moments", moments, "-o", rho)
    args = ("--rho", rho, "--bits", 3, "--proxy", "noise")
    return advise(drawer, *args, out=folder / "out.st", trusted=False)


@pytest.fixture(scope="session")
def by_generated(drawer: Drawer, own_temp: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The receiver and nothing else."""
    out = tmp_path_factory.mktemp("nothing") / "out.st"
    return advise(drawer, "--bits", 2, out=out)


@pytest.fixture(scope="session")
def alone(
    drawer: Drawer, planted: Planted, own_temp: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """The receiver and pictures, at 8 bits."""
    out = tmp_path_factory.mktemp("alone") / "out.st"
    return advise(drawer, "--proxy", planted.pictures, "--bits", 8, out=out)


@pytest.fixture(params=["full", "by_noise", "by_generated", "alone"])
def run(request: pytest.FixtureRequest) -> Run:
    found: Run = request.getfixturevalue(request.param)
    return found


def test_the_document_is_valid(run: Run) -> None:
    VALIDATOR.validate(run.found.json)


def test_progress_tells_which_way_of_how_many_is_tried(run: Run) -> None:
    numbers, most = zip(*(re.findall(r"\d+", way) for way in run.ways), strict=True)
    assert [*map(int, numbers)] == sorted({*map(int, numbers)})  # what cannot be made leaves a gap
    assert len({*most}) == 1
    assert len(run.made) <= int(numbers[-1]) <= int(most[0])


def test_the_output_is_what_the_printed_commands_write(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed(run.results["commands"])
    named = shlex.split(run.results["commands"][-1])[-1]
    assert named == str(run.out)
    assert run.results["output"] == str(run.out)


def typed(commands: list[str], out: Path | None = None) -> None:
    """Types the lines; the last one writes to ``out``, or where it says, over what is there."""
    for line in commands:
        program, *words = shlex.split(line)
        assert program == "qvec"
        if line == commands[-1] and out:
            words[-1] = str(out)
        elif line == commands[-1]:
            before = Path(words[-1]).read_bytes()
            call(*words, "--force")
            assert Path(words[-1]).read_bytes() == before
            return
        if not Path(words[-1]).exists():
            call(*words)


def test_every_candidate_is_what_its_commands_write(
    full: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grids that cross, lambdas, fits and paths with a space among them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trial, "_CLOSE", 0.0)  # the card of a fit says what proxies are
    for place, (name, row) in enumerate(full.rows.items()):
        out = tmp_path / f"{place}.st"
        typed(row["commands"], out)
        assert out.read_bytes() == full.made[name], name


def test_each_input_is_opened_once_and_hashed_once(
    full: Run, drawer: Drawer, planted: Planted, moments: Path
) -> None:
    inputs = {drawer.receiver, *planted.parts, moments}
    assert full.counts.once(inputs) == {str(path) for path in inputs}


def test_every_way_takes_part(full: Run) -> None:
    rows = full.results["candidates"]
    assert {row["way"] for row in rows if not row["way"].endswith(" rotated")} == {
        *("rtn", "unit", "chosen", "fitted", "moments", "float", "float mixed", "refined"),
    }
    # in place of noise and of generated pictures alone, which take part in the mixed ones
    assert {row["family"] for row in rows} == set(Family) - {Family.NOISE, Family.GENERATED}
    assert full.results["skipped"] == []


def test_calibration_is_tried_in_a_rotated_basis_where_rounding_gains_by_one(run: Run) -> None:
    rows = run.results["candidates"]
    equal = [row for row in rows if row["grid"]["granularity"] == "channel"]
    plain = min(row["distance"] for row in equal if row["family"] == "plain")
    (turned,) = (row["distance"] for row in rows if row["family"] == "rotated")
    ways = {row["way"] for row in rows if row["way"].endswith(" rotated")} - {"rtn rotated"}
    pictures = run.results["proxies"]["sources"][0]["name"] != "noise"
    assert len(ways) == (turned < plain and pictures)


def test_what_is_recommended_is_measured_no_worse_than_the_best_plain_grid(run: Run) -> None:
    rows, results = run.rows, run.results
    chosen, plain = rows[results["chosen"]], rows[results["best_plain"]]
    assert plain["way"] == "rtn"
    assert chosen["distance"] <= plain["distance"]
    assert chosen["commands"][:-1] == results["commands"][:-1]


def test_a_repair_by_vectors_is_seen(full: Run) -> None:
    """More answers are kept than by plain absmax, on whose grid they put the receiver."""
    rows = {row["way"]: row for row in full.results["candidates"]}
    plain = full.rows["rtn, channel absmax"]
    assert max(rows[way]["kept"] for way in ("unit", "chosen", "fitted")) >= plain["kept"]


def test_data_use_stands_behind_each_row(full: Run, by_noise: Run, by_generated: Run) -> None:
    levels = {(row["way"], row["data_use"]["level"]) for row in full.results["candidates"]}
    costly = {way for way, level in levels if level == "proxy_images"}
    of_images = {"float", "float mixed", "float mixed rotated", "moments rotated"}
    assert costly - of_images == {"chosen", "fitted", "refined"}
    free = {way for way, level in levels if level == "none"}
    assert free - of_images == {"rtn", "rtn rotated", "unit", "moments"}
    drawn = next(r for r in by_generated.results["candidates"] if r["family"] == "generated")
    assert drawn["data_use"] == {"level": "none", "counts": {"generated": 40}}
    assert full.found.json["data_use"]["level"] == "proxy_images"
    assert by_noise.found.json["data_use"]["level"] == "none"


def test_labels_judge_and_do_not_choose(
    alone: Run, drawer: Drawer, planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_CLOSE", 0.0)
    flags = ("--proxy", planted.pictures, "--bits", 8, "--data", drawer.receiver_data)
    ours = call("advise", drawer.receiver, *FLAGS, *flags, "--json").json["results"]
    other = alone.results
    assert "fp" in ours
    assert "fp" not in other
    assert ours["commands"][:-1] == other["commands"][:-1]
    for key in ("decision", "chosen", "best_plain", "sure", "why", "proxies", "measure", "skipped"):
        assert other[key] == ours[key]
    for row, twin in zip(other["candidates"], ours["candidates"], strict=True):
        assert set(twin) - set(row) == {"test"}
        keys = set(row) - {"seconds"}
        assert {key: row[key] for key in keys} == {key: twin[key] for key in keys}


def test_at_8_bits_there_is_nothing_to_recover(alone: Run) -> None:
    assert alone.results["decision"] == "nothing to recover"
    assert alone.results["sure"] == "sure"
    assert "100.0%" in alone.results["why"]


def test_noise_is_no_judge(by_noise: Run) -> None:
    assert by_noise.results["proxies"]["close_to_noise"]
    assert by_noise.results["sure"] in {"not sure", "likely, by noise alone"}
    assert by_noise.rows[by_noise.results["chosen"]]["family"] in {"plain", "moments"}
    assert "a choice by noise is a rough one" in by_noise.found.err


def test_with_nothing_but_the_receiver_generated_pictures_calibrate_and_judge(
    by_generated: Run,
) -> None:
    """Others than those that calibrate; no choice is called sure."""
    results = by_generated.results
    assert by_generated.found.json["data_use"] == {"level": "none", "counts": {"generated": 40}}
    assert {row["family"] for row in results["candidates"]} == {
        *("plain", "rotated", "generated", "refined")
    }
    assert results["sure"] != "sure"
    (source,) = results["proxies"]["sources"]
    assert source["name"] == "generated"
    assert all(
        "--calib generated" in row["commands"][-1]
        for row in results["candidates"]
        if row["family"] == "generated"
    )


def test_what_is_kept_is_told_of_the_pictures_that_keep_fewest(full: Run) -> None:
    names = [source["name"] for source in full.results["proxies"]["sources"]]
    assert names[-1] == "generated"
    assert len(names) == 3
    for row in full.results["candidates"]:
        assert row["kept"] == min(row["kept_by"].values())
        assert set(row["kept_by"]) == set(row["distance_by"]) == {"pictures", "generated"}
        # as many generated pictures judge as real ones
        assert row["distance"] == pytest.approx(sum(row["distance_by"].values()) / 2)


def test_a_vectors_own_statistics_are_taken(by_noise: Run) -> None:
    rows = [row for row in by_noise.results["candidates"] if row["way"] == "moments"]
    assert len(rows) == 1
    assert all("carrier.st" in row["commands"][-1] for row in rows)
    assert not any(row["way"] in {"images", "noise"} for row in by_noise.results["candidates"])


def test_what_is_no_candidate_is_told_with_its_reason(by_noise: Run) -> None:
    skipped = {row["name"]: row["reason"] for row in by_noise.results["skipped"]}
    rows = [row["way"] for row in by_noise.results["candidates"]]
    assert ("vector at a chosen lambda" in skipped) is ("chosen" not in rows)


def test_nothing_is_left_behind(run: Run, own_temp: Path) -> None:
    assert list(own_temp.iterdir()) == []
    assert [path.name for path in run.out.parent.iterdir() if path.suffix != ".st"] == []


def test_a_way_that_fails_is_left_out_and_the_others_go_on(
    drawer: Drawer, planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise MismatchError("no combination is surely better")

    def picky(request: Any, *others: Any) -> Any:
        if request.calibration:
            raise MismatchError("a moment is not a number")
        return quantize(request, *others)

    quantize = operation.quantize
    monkeypatch.setattr(operation, "quantize", picky)
    monkeypatch.setattr(by_agreement, "fit_mix", broken)
    rhos = [word for path in planted.parts for word in ("--rho", path)]
    args = ("advise", drawer.receiver, "--bits", 2, *rhos, *FLAGS)
    shown = call(*args)
    assert "left out: fitted vectors: no combination is surely better" in shown.out
    lost = "gptq on generated pictures, float target, channel mse asymmetric"
    assert f"left out: {lost}: a moment is" in shown.out
    assert "decision: " in shown.out
    assert shown.out.count("\t<-") == 1


def test_a_dry_run_plans_and_writes_nothing(
    drawer: Drawer, planted: Planted, tmp_path: Path, own_temp: Path
) -> None:
    args = ("--rho", planted.whole, "--proxy", planted.pictures, "--bits", 2, *FLAGS)
    out = ("-o", tmp_path / "out.st", "--dry-run", "--json")
    found = call("advise", drawer.receiver, *args, *out).json
    VALIDATOR.validate(found)
    assert found["results"]["plan"]["images"] == {"proxy": 80}  # 20 of them are generated
    assert list(tmp_path.iterdir()) == []
    assert list(own_temp.iterdir()) == []


def without_time(document: Any) -> Any:
    """A document without what differs each time that it is made."""
    if isinstance(document, dict):
        times = {"seconds", "timing", "images_per_second"}
        return {key: without_time(v) for key, v in document.items() if key not in times}
    return [without_time(v) for v in document] if isinstance(document, list) else document


@contextlib.contextmanager
def stopping(after: float = math.inf) -> Iterator[list[str]]:
    """The ways that are made meanwhile; Ctrl-C comes after so many."""
    made: list[str] = []

    def stopped(request: Any, listener: Any, files: Any) -> Any:
        if isinstance(listener, operation.InWay):
            if len(made) == after:
                raise KeyboardInterrupt
            made.append(listener.stage.label)
        return quantize(request, listener, files)

    quantize = operation.quantize
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operation, "quantize", stopped)
        yield made


def goes_on_to_the_same_bytes(
    args: tuple[object, ...], root: Path, cuts: Callable[[int], Sequence[int]]
) -> None:
    """A run that is stopped again and again, after so many more ways each time."""
    outputs = ("-o", "out.st", "--metrics", "out.json")
    (whole := root / "whole").mkdir()
    (cut := root / "cut").mkdir()
    with contextlib.chdir(whole), stopping() as ways, hearing() as heard:
        call("advise", *args, *outputs)
    steps = [step for step in heard if step[0].startswith(("way", "the recommended"))]
    one_bar(steps, steps[0][2], first=steps[0][1])
    with contextlib.chdir(cut):
        all_made: list[str] = []
        for after in cuts(len(ways)):
            with stopping(after) as made:
                resumed = ("--resume",) if all_made else ()
                found = call("advise", *args, *outputs, *resumed, code=130)
            all_made += made
            assert "out.st.state is kept: the same command with --resume goes on" in found.err
            assert [path.name for path in Path().iterdir()] == ["out.st.state"]
        assert "an unfinished run is there" in call("advise", *args, *outputs, code=1).err
        other = call("advise", *args, *outputs, "--resume", "--draw", 1, code=1)
        assert "is of another run: draw 0 vs 1" in other.err
        with stopping() as made:
            call("advise", *args, *outputs, "--resume")
        assert all_made + made == ways  # each was made once
        assert Path("out.st").read_bytes() == (whole / "out.st").read_bytes()
        ours, theirs = (json.loads((p / "out.json").read_text()) for p in (cut, whole))
        assert without_time(ours) == without_time(theirs)
        assert {path.name for path in Path().iterdir()} == {"out.st", "out.json"}
        with stopping() as made:
            assert "done already" in call("advise", *args, *outputs, "--resume").err
            more = call("advise", *args, *outputs, "--resume", "--refine", 9, code=1)
            assert re.search(r"is of another run: .*refine \d vs 9", more.err)
        assert made == []


SMALL = ("--bits", 2, "--device", "cpu", "--proxy-samples", 8, "--batch-size", 16)


def test_a_run_cut_off_goes_on_to_the_same_bytes(drawer: Drawer, tmp_path: Path) -> None:
    args = (drawer.receiver, *SMALL, "--refine", 0)
    goes_on_to_the_same_bytes(args, tmp_path, lambda ways: (1, ways - 2))
    model = ("-o", tmp_path / "cut" / "out.st", "--resume")
    assert "out.st: done already" in call("advise", *args, *model).err
    other = call("advise", *args, *model, "--bits", 3, code=1)
    assert "out.st: is of another run: bits 2 vs 3" in other.err


def test_a_finished_model_is_of_the_run_whose_files_and_images_it_has_used(
    drawer: Drawer, planted: Planted, moments: Path, tmp_path: Path
) -> None:
    """Each flag whose value a model can tell, as the commands of advise write it."""
    mean, (one, two) = tmp_path / "mean.st", planted.parts
    call("combine", one, two, "-o", mean)
    bits, many = ("--bits", 2), ("--rho", one, "--rho", two)
    drawn = ("--calib", "generated", "--calib-samples", 8, "--target", "float")
    gptq = (*bits, "--method", "gptq", "--scale", "mse", "--asymmetric")
    learned = ("--refine", 2, "--proxy", "generated", "--proxy-samples", 8)
    mixed = ("--calib", "generated", "--calib", planted.pictures, *drawn[2:], "--diversify")
    none, pictures = ("--refine", 0), ("--proxy", planted.pictures, "--refine", 0)
    ways: dict[str, tuple[tuple[object, ...], ...]] = {
        "images of calibration": ((*gptq, *drawn), none, (*none, "--proxy-samples", 10), pictures),
        "images of calibration again": ((*gptq, *mixed), pictures, (*pictures, "--draw", 1), none),
        "refine": ((*gptq, *drawn, *learned), ("--refine", 2), ("--refine", 3), none),
        "rho": ((*bits, "--anchor", mean), many, ("--rho", one), ()),
        "moments": ((*gptq, "--moments", moments), ("--moments", moments), (), many),
    }
    for name, (way, same, *others) in ways.items():
        out = tmp_path / f"{name}.st"
        call("quantize", drawer.receiver, *way, "--device", "cpu", "--cross-grid", "-o", out)
        before = out.read_bytes()
        advise = partial(call, "advise", drawer.receiver, *SMALL, "--resume", "-o", out)
        assert f"{out}: done already" in advise(*same).err
        for flags in others:
            error = advise(*flags, code=1).errors[0]
            assert f"{out}: is of another run: " in error, (name, flags)
            assert name.removesuffix(" again") in error, (name, flags)
        assert out.read_bytes() == before


@pytest.mark.slow
def test_a_run_cut_off_after_each_way_goes_on_to_the_same_bytes(
    drawer: Drawer, planted: Planted, moments: Path, tmp_path: Path
) -> None:
    rhos = [word for path in planted.parts for word in ("--rho", path)]
    flags = (*rhos, "--moments", moments, "--proxy", planted.pictures, "--refine", 2)
    args = (drawer.receiver, *SMALL, *flags, "--data", drawer.receiver_data)
    goes_on_to_the_same_bytes(args, tmp_path, lambda ways: [1] * (ways - 1))


def test_a_state_that_is_garbage_is_a_line(drawer: Drawer, tmp_path: Path) -> None:
    args = ("advise", drawer.receiver, *SMALL, "--refine", 0, "-o", tmp_path / "out.st")
    state = tmp_path / "out.st.state"
    with stopping(1):
        call(*args, code=130)
    header, way = map(json.loads, state.read_text().splitlines())
    faults = (
        ({"same": way["same"][1:]}, "is not of 8 images"),
        ({"distances": ["far"]}, "distances[0]: expected float, got str"),
    )
    for change, said in faults:
        state.write_text("".join(json.dumps(line) + "\n" for line in (header, way | change)))
        shown = call(*args, "--resume", code=1)
        assert (len(shown.errors), said in shown.err, "Traceback" in shown.err) == (1, True, False)
    for text, said in (("x\n", "is not JSON"), ("{}\n", "is no line of a journal")):
        state.write_text(text)
        shown = call(*args, "--resume", code=1)
        assert (len(shown.errors), said in shown.err, state.read_text()) == (1, True, text)


def test_to_go_on_needs_a_file_to_keep_what_is_measured_beside(drawer: Drawer) -> None:
    for out in ((), ("-o", "-")):
        code, heavy, lines = light("advise", drawer.receiver, "--bits", 2, *out, "--resume")
        assert (code, heavy, len(lines)) == (2, [], 2)
        assert "--resume needs -o FILE or --metrics FILE" in lines[0]


def test_half_of_few_pictures_are_used_unless_their_number_is_typed(
    drawer: Drawer, planted: Planted, tmp_path: Path
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for place, path in enumerate(sorted(planted.pictures.rglob("*.png"))[:40]):
        shutil.copy(path, few / f"{place}.png")
    cases: dict[tuple[object, ...], tuple[int, str]] = {
        (planted.pictures,): (45, f"{planted.pictures}: has 90 images: 45 are used, and others"),
        (planted.pictures, "--proxy", few): (40, f"{few}: has 40 images: 20 of each data set are"),
        ("generated",): (256, ""),
        (planted.pictures, "--proxy-samples", 60): (60, ""),
    }
    for words, (samples, note) in cases.items():
        told = call(
            "advise", drawer.receiver, "--bits", 2, "--dry-run", "--json", "--proxy", *words
        )
        assert told.json["parameters"]["samples"] == samples
        assert note in told.err
        assert bool(note) == ("others judge" in told.err)


@pytest.mark.parametrize("folder", [False, True])
def test_groups_are_judged_as_the_output_stores_them(
    folder: bool, drawer: Drawer, tmp_path: Path
) -> None:
    request = AdviseRequest(drawer.receiver, 3, folder=folder)
    shapes = {"fc1.weight": (64, 64)}
    grids = [each.grid for each in Ways(request, tmp_path).plain(3, shapes)]
    (groups,) = [grid for grid in grids if grid.group_size]
    assert groups.scale_dtype is (ScaleDtype.FLOAT32 if folder else ScaleDtype.FLOAT16)


FAULTS: dict[str, tuple[tuple[str, ...], str]] = {
    "pictures twice": (("--proxy", "PICTURES", "--proxy", "PICTURES"), "stands twice"),
    "a vector of other bits": (("--rho", "RHO3"), "was made for 3-bit channel absmax, not for 2"),
    "vectors of two grids": (("--rho", "WHOLE", "--rho", "RHO3"), "was made for 3-bit"),
    "another base": (("--rho", "OTHER"), "come from different bases"),
    "no vector": (("--rho", "DONOR"), "is a checkpoint, a vector belongs here"),
    "no moments": (("--moments", "DONOR"), "donor.st"),
    "no file of moments": (("--moments", "nowhere.st"), "nowhere.st: no such file"),
    "none held back": (("--proxy", "PICTURES", "--proxy-samples", "80"), "has 90 images, too few"),
    "no image": (("--proxy", "nowhere"), "nowhere"),
    "no data": (("--data", "nowhere"), "nowhere"),
    "out exists": (("-o", "DONOR"), "exists"),
    "too few": (("--proxy-samples", "1"), "--proxy-samples"),
    "nine bits": (("--bits", "9"), "--bits"),
}


@pytest.fixture(scope="module")
def files(
    drawer: Drawer, planted: Planted, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("files")
    other = root / "other.st"
    named = {"PICTURES": planted.pictures, "RHO3": drawer.rho, "WHOLE": planted.whole,
             "DONOR": shutil.copy(drawer.donor, root / "donor.st"), "OTHER": other}  # fmt: skip
    with Checkpoint(planted.whole) as rho:
        assert rho.card
        card = replace(rho.card, base="0" * 64)
        blocks = ((name, [rho.finite(name).reshape(-1)]) for name in rho)
        write(other, dict(rho.items()), blocks, card, force=False)
    return named


@pytest.mark.parametrize("fault", FAULTS)
def test_a_mistake_costs_a_line_and_no_file(
    fault: str, files: dict[str, Path], drawer: Drawer, tmp_path: Path, own_temp: Path
) -> None:
    words, said = FAULTS[fault]
    args = [str(files.get(word, word)) for word in words]
    for dry in ([], ["--dry-run"]):
        flags = ["--bits", "2", "--proxy-samples", "40", "--device", "cpu"]
        out = [] if "-o" in words else ["-o", tmp_path / "out.st"]
        found = call("advise", drawer.receiver, *flags, *out, *args, *dry, code=None)
        assert found.code in {1, 2}
        assert len(found.errors) == 1 or found.code == 2
        assert said in found.err
        assert "Traceback" not in found.err
    assert list(tmp_path.iterdir()) == []
    assert list(own_temp.iterdir()) == []


@pytest.mark.parametrize("fault", [f for f in FAULTS if f not in {"no data", "no image"}])
def test_a_refusal_costs_no_torch(
    fault: str, files: dict[str, Path], drawer: Drawer, tmp_path: Path
) -> None:
    args = [str(files.get(word, word)) for word in FAULTS[fault][0]]
    flags = ["--bits", "2", "--proxy-samples", "40"]
    code, heavy, _ = light("advise", drawer.receiver, *flags, "-o", tmp_path / "out.st", *args)
    assert (code in {1, 2}, heavy) == (True, [])


def test_bits_are_asked_for(drawer: Drawer) -> None:
    assert "--bits" in call("advise", drawer.receiver, code=2).err
