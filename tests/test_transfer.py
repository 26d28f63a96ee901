"""transfer: cells are what sweep-lambda gives, and neither a kill nor a shard changes a byte."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST, Drawer, Result, call, draw, hearing, light, one_bar

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.replace import unfinished
from qvec_cli.checkpoint.write import write
from qvec_cli.errors import QvecError
from qvec_cli.transfer import cells
from qvec_cli.transfer import transfer as operation
from qvec_cli.transfer.slurm import folder, part_of

GRID = """\
bits: 2
cross-grid: true
lambdas: 0,0.75,1.5
device: cpu
nulls: random
null-donors: bars3
receivers:
  bars4: {{model: {receiver}, data: {receiver_data}, baselines: {{packed: {packed}}}}}
  bars3: {{model: {donor}, data: {donor_data}}}
donors:
  bars3: {{rho: {rho}, model: {donor}}}
  bars4: {own}
base: {base}
"""


@dataclass(frozen=True)
class Files:
    """A grid of two tasks, each with a vector, and what it comes to."""

    drawer: Drawer
    grid: Path
    out: Path
    document: dict[str, Any]

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.out.read_text().splitlines()]

    def line(self, **facts: object) -> dict[str, Any]:
        (found,) = [x for x in self.lines if facts.items() <= x.items()]
        return found


def run(files: Files | Path, out: Path, *extra: object, code: int = 0) -> Result:
    grid = files if isinstance(files, Path) else files.grid
    return call("transfer", grid, "-o", out, *extra, code=code)


@pytest.fixture(scope="module")
def files(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> Files:
    root = tmp_path_factory.mktemp("transfer")
    twin, own, packed = root / "twin.st", root / "own.st", root / "packed.st"
    data = ("--data", drawer.receiver_data)
    call("train-qat", drawer.base, *data, "-o", twin, *FAST, "--bits", 3)
    call("extract", drawer.receiver, twin, "-o", own)
    call("quantize", drawer.receiver, "--bits", 2, "--asymmetric", "--rotate", "-o", packed)
    grid = root / "grid.yaml"
    names = {f: getattr(drawer, f) for f in drawer.__dataclass_fields__}
    grid.write_text(GRID.format(**names, own=own, packed=packed))
    document = run(grid, root / "grid.jsonl", "--json").json
    return Files(drawer, grid, root / "grid.jsonl", document)


def test_there_is_a_line_for_the_run_each_receiver_each_cell_and_the_cosines(files: Files) -> None:
    kinds = [(x["kind"], x.get("receiver"), x.get("donor"), x.get("null")) for x in files.lines]
    assert kinds == [
        ("run", None, None, None),
        ("receiver", "bars4", None, None),
        ("cell", "bars4", "bars3", None),
        ("cell", "bars4", "bars4", None),
        ("cell", "bars4", "bars3", "random"),
        ("receiver", "bars3", None, None),
        ("cell", "bars3", "bars3", None),
        ("cell", "bars3", "bars4", None),
        ("cell", "bars3", "bars3", "random"),
        ("alignment", None, None, None),
    ]


def test_a_cell_is_what_sweep_lambda_gives(files: Files, tmp_path: Path) -> None:
    drawer = files.drawer
    flags = ("--bits", 2, "--cross-grid", "--lambdas", "0,0.75,1,1.5", "--device", "cpu", "--json")
    args = (drawer.receiver, drawer.rho, "--data", drawer.receiver_data, "-o", tmp_path / "s.json")
    swept = call("sweep-lambda", *args, *flags).json["results"]
    cell = files.line(kind="cell", receiver="bars4", donor="bars3", null=None)
    baselines = files.line(kind="receiver", receiver="bars4")["baselines"]

    def same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
        return ours.items() <= theirs.items() and {*theirs} - {*ours} == {"images_per_second"}

    for ours, theirs in zip(cell["curve"], swept["curve"], strict=True):
        assert ours["lambda"] == theirs["lambda"]
        assert same(ours["val"], theirs["val"])
    pairs = [
        (cell["chosen"]["val"], swept["chosen"]),
        (cell["fixed"][0], swept["zero_shot"]),
        (baselines["fp"], swept["baselines"]["fp"]),
        (baselines["ptq"], swept["baselines"]["ptq"]),
    ]
    for ours, theirs in pairs:
        assert same(ours["test"], theirs["test"])
        assert ours["data_use"] == theirs["data_use"]
    assert [row["lambda"] for row, _ in pairs[:2]] == [row["lambda"] for _, row in pairs[:2]]


def test_the_oracle_is_the_best_point_on_test(files: Files) -> None:
    for cell in (line for line in files.lines if line["kind"] == "cell"):
        right = [point["test"]["n_correct"] for point in cell["curve"]]
        assert cell["oracle"]["test"]["n_correct"] == max(right)
        assert cell["oracle"]["crossed"]["n_correct"] <= max(right)
        at = {point["lambda"]: point["test"] for point in cell["curve"]}
        assert at[cell["chosen"]["val"]["lambda"]] == cell["chosen"]["val"]["test"]


@pytest.mark.parametrize("name", ["packed", "rtn absmax asymmetric", "rtn mse", "rtn mse-full"])
def test_a_baseline_is_what_eval_gives(name: str, files: Files, tmp_path: Path) -> None:
    baselines = files.line(kind="receiver", receiver="bars4")["baselines"]
    flags = {
        "packed": ("--asymmetric", "--rotate"),
        "rtn absmax asymmetric": ("--asymmetric",),
        "rtn mse": ("--scale", "mse"),
        "rtn mse-full": ("--scale", "mse-full"),
    }[name]
    packed = tmp_path / "q.st"
    call("quantize", files.drawer.receiver, "--bits", 2, *flags, "-o", packed)
    data = ("--data", files.drawer.receiver_data, "--device", "cpu", "--json")
    found = call("eval", packed, *data).json["results"]
    assert baselines[name]["test"].items() <= found.items()
    assert baselines[name]["grid"] == found["grid"]


def test_each_half_of_the_test_images_is_scored_at_the_lambda_that_is_best_on_the_other() -> None:
    right = {0.0: 12, 0.5: 13, 1.0: 15}
    curve = [{"lambda": lam, "test": {"n": 20, "n_correct": count}} for lam, count in right.items()]
    oracle = cells._oracle(curve, {0.0: 5, 0.5: 9, 1.0: 7})  # at odd places 7, 4, 8
    assert oracle["lambda"] == 1.0
    assert oracle["crossed"] == {"n": 20, "n_correct": 4 + 7, "top1": 11 / 20}


def test_the_diagonal_is_told_by_data_and_kept_out_of_the_statistics(files: Files) -> None:
    own = {(x["receiver"], x["donor"]): x["diagonal"] for x in files.lines if x["kind"] == "cell"}
    assert own == {
        ("bars4", "bars3"): False,
        ("bars4", "bars4"): True,
        ("bars3", "bars3"): True,
        ("bars3", "bars4"): False,
    }
    summary = files.document["results"]["summary"]
    assert {way["pairs"] for way in summary["ways"].values()} == {2}
    assert set(summary["own_vector"]) == {"lambda 1", "val", "oracle", "crossed"}


def test_an_own_vector_has_cost_the_receivers_labels(files: Files) -> None:
    own = files.line(kind="cell", receiver="bars4", donor="bars4")
    other = files.line(kind="cell", receiver="bars4", donor="bars3", null=None)
    assert own["fixed"][0]["data_use"] == "receiver_labels"
    assert other["fixed"][0]["data_use"] == "none"
    assert other["chosen"]["val"]["data_use"] == "receiver_labels"


@pytest.mark.parametrize("done", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1))])
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
    stopped = run(files, out, code=130)
    assert not out.exists()
    state = unfinished(out)
    assert f"{state} is kept: the same command with --resume goes on" in stopped.err
    state.write_bytes(state.read_bytes() + b'{"kind": "cell", "rec')  # what a kill leaves
    assert "an unfinished run is there" in run(files, out, code=1).errors[0]
    kept = len(state.read_bytes().splitlines()) - 1
    monkeypatch.setattr(
        cells.MeasuredReceiver, "cell", lambda *args: (measured.append(args[1]), cell(*args))[1]
    )
    with hearing() as heard:
        run(files, out, "--resume")
    assert out.read_bytes() == files.out.read_bytes()
    assert len(measured) == 6
    lines = [line["kind"] for line in files.lines]
    one_bar(heard, lines.count("receiver") + lines.count("cell"), kept - 1)
    assert heard[-1][0].startswith("cell 6/6: ")
    assert kept >= 1 + done
    assert [path.name for path in tmp_path.iterdir()] == ["grid.jsonl"]


def test_shards_join_to_the_same_bytes_without_measuring_again(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [tmp_path / f"part{i}.jsonl" for i in (1, 2)]
    for i, part in enumerate(parts, start=1):
        run(files, part, "--shard", f"{i}/2")
        receivers = {json.loads(t).get("receiver") for t in part.read_text().splitlines()}
        assert receivers == {None, ("bars4", "bars3")[i - 1]}
    monkeypatch.setattr(cells.MeasuredReceiver, "cell", lambda *_: pytest.fail("measured again"))
    joined = [word for part in reversed(parts) for word in ("--join", part)]
    run(files, tmp_path / "grid.jsonl", *joined)
    assert (tmp_path / "grid.jsonl").read_bytes() == files.out.read_bytes()
    both = tmp_path / "both.jsonl"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    run(files, tmp_path / "again.jsonl", "--join", both)
    assert (tmp_path / "again.jsonl").read_bytes() == files.out.read_bytes()


def test_what_is_known_costs_no_torch(files: Files, tmp_path: Path) -> None:
    flags = ("--join", files.out, "-o", tmp_path / "grid.jsonl")
    code, heavy, _ = light("transfer", files.grid, *flags)
    assert (code, heavy) == (0, [])


def test_a_part_of_another_grid_is_refused(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "grid.jsonl"
    result = run(files, out, "--join", files.out, "--lambdas", "0,1", code=1)
    assert "is of another run: lambdas " in result.errors[0]
    assert not out.exists()


@pytest.mark.parametrize("key", ["curve", "fixed", "chosen", "receiver"])
def test_a_part_that_lacks_something_is_refused_before_anything_is_measured(
    key: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = files.lines
    del lines[2][key]
    part, out = tmp_path / "part.jsonl", tmp_path / "grid.jsonl"
    part.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(cells.MeasuredReceiver, "cell", lambda *_: pytest.fail("measured"))
    result = run(files, out, "--join", part, code=1)
    assert result.errors[0] == f"error: {part}:3: has no {key}"
    assert [path.name for path in tmp_path.iterdir()] == ["part.jsonl"]


def test_the_metrics_name_the_device_that_was_used(files: Files) -> None:
    assert files.document["environment"]["device"] == "cpu"
    assert {line["device"] for line in files.lines if line["kind"] == "receiver"} == {"cpu"}


def test_without_the_oracle_test_is_measured_at_what_is_reported_only(
    files: Files, tmp_path: Path
) -> None:
    out = tmp_path / "grid.jsonl"
    document = run(files, out, "--no-oracle", "--nulls", "", "--json").json
    for line in map(json.loads, out.read_text().splitlines()):
        if line["kind"] == "cell":
            whole = files.line(**{k: line[k] for k in ("kind", "receiver", "donor", "null")})
            assert line["oracle"] is None
            assert all("test" not in point for point in line["curve"])
            assert line["fixed"] == whole["fixed"]
            assert line["chosen"] == whole["chosen"]
    assert set(document["results"]["summary"]["ways"]) == {"lambda 1", "val"}


def test_a_plan_counts_the_images_that_would_go_through(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "grid.jsonl"
    plan = run(files, out, "--dry-run", "--json").json["results"]["plan"]
    runs = files.lines[0]["receivers"].values()
    assert plan["images"] == {
        "val": sum(r["images"]["val"] * (1 + 3 * 3) for r in runs),
        "test": sum(r["images"]["test"] * (5 + len(r["baselines"]) + 3 * 3) for r in runs),
    }
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("old", "new", "message", "code"),
    [
        ("bits: 2", "bist: 2", "'bist' is no flag here", 2),
        ("nulls: random", "nulls: rnadom", "--nulls 'rnadom' is none of random, shuffle", 2),
        ("null-donors: bars3", "null-donors: bars9", "--null-donors bars9 is no donor", 2),
        ("cross-grid: true", "cross-grid: false", "was made for 3-bit channel absmax, not", 1),
        ("lambdas: 0,0.75", "lambdas: 0,x", "--lambdas 'x' is not a number", 2),
        ("lambdas: 0", "method: gptq\nlambdas: 0", "--method gptq needs calibration images", 2),
        ("nulls: random\n", "nulls: taskvec\n", "--nulls taskvec needs the model of donor", 2),
        ("bars4: {{model: {receiver}", "bars4: {{model: {rho}", "is a vector, a checkpoint", 1),
        ("bars3: {{rho: {rho}", "bars3: {{rho: {donor}", "is a checkpoint, a vector", 1),
        ("data: {donor_data}", "data: {receiver_data}", "it does not know", 1),
        ("packed: {packed}", "packed: {donor}", "do not name the same classes", 1),
        ("model: {donor}, data: {donor_data}", "model: {donor}, data: nowhere", "nowhere", 2),
        ("{{model: {receiver}", "{{qat: {donor_qat}, model: {receiver}", "same classes", 1),
    ],
)
def test_a_fault_costs_a_line_and_no_file(
    old: str, new: str, message: str, code: int, files: Files, tmp_path: Path
) -> None:
    names = {f: getattr(files.drawer, f) for f in files.drawer.__dataclass_fields__}
    own, packed = files.grid.with_name("own.st"), files.grid.with_name("packed.st")
    assert old in GRID
    text = GRID.replace(old, new, 1)
    if "taskvec" in new:
        text = text.replace("null-donors: bars3", "null-donors: bars4")
    grid = tmp_path / "grid.yaml"
    grid.write_text(text.format(**names, own=own, packed=packed))
    result = run(grid, tmp_path / "out.jsonl", code=code)
    assert len(result.errors) == 1
    assert message in result.errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["grid.yaml"]


def test_resuming_takes_the_parts_of_jobs_and_measures_nothing_again(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "grid.jsonl"
    folder(out).mkdir()
    for place in (1, 2):
        run(files, part_of(out, place), "--shard", f"{place}/2")
    assert "parts of an unfinished run" in run(files, out, code=1).errors[0]
    dry = run(files, out, "--force", "--dry-run")
    assert "nothing was written" in dry.out
    assert len([*folder(out).iterdir()]) == 2
    monkeypatch.setattr(cells.MeasuredReceiver, "cell", lambda *_: pytest.fail("measured again"))
    run(files, out, "--resume")
    assert out.read_bytes() == files.out.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["grid.jsonl"]


def test_a_run_that_is_done_is_done_again_in_no_time(files: Files) -> None:
    before = files.out.stat()
    done = run(files, files.out, "--resume")
    assert "done already" in done.err
    assert files.out.stat() == before
    refused = run(files, files.out, "--lambdas", "0,0.5", "--resume", code=1)
    assert "is of another run: lambdas " in refused.errors[0]
    assert files.out.stat() == before
    assert not unfinished(files.out).exists()


def test_an_old_run_is_left_for_a_new_one_with_force(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "grid.jsonl"
    run(files, out, "--lambdas", "0,0.5", "--nulls", "", "--no-oracle")
    out.rename(unfinished(out))
    refused = run(files, out, "--resume", code=1)
    assert "is of another run: lambdas " in refused.errors[0]
    done = run(files, out, "--resume", "--force")
    assert "starting anew" in done.err
    assert out.read_bytes() == files.out.read_bytes()


@pytest.mark.parametrize("name", ["own.st", "packed.st", "grid.yaml"])
def test_an_output_that_is_an_input_is_refused(name: str, files: Files) -> None:
    path = files.grid.with_name(name)
    before = path.read_bytes()
    assert "is an input" in run(files, path, "--force", code=2).errors[0]
    assert path.read_bytes() == before


def test_a_fault_after_the_last_cell_loses_no_line(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "grid.jsonl"
    monkeypatch.setattr(
        operation, "summarise", lambda _: (_ for _ in ()).throw(QvecError("no summary"))
    )
    assert "no summary" in run(files, out, "--join", files.out, code=1).errors[0]
    assert not out.exists()
    assert unfinished(out).read_bytes() == files.out.read_bytes()


def shallow(source: Path, path: Path) -> None:
    """A model of the same task that lacks its last block, as its card says."""
    with Checkpoint(source) as whole:
        assert whole.card
        assert whole.card.model
        last = max(int(n.split(".")[1]) for n in whole if n.startswith("blocks."))
        names = [n for n in whole if not n.startswith(f"blocks.{last}.")]
        args = {**whole.card.model["model_args"], "depth": last}
        model = {**whole.card.model, "model_args": args}
        plan = {n: whole[n] for n in names}
        tensors = ((n, [whole.array(n).reshape(-1)]) for n in names)
        write(path, plan, tensors, replace(whole.card, model=model, targets=None), force=True)


def test_a_baseline_of_another_network_is_refused_before_anything_is_measured(
    files: Files, tmp_path: Path
) -> None:
    shallow(files.drawer.receiver, tmp_path / "shallow.st")
    text = files.grid.read_text().replace("packed:", f"shallow: {tmp_path / 'shallow.st'}, packed:")
    (tmp_path / "grid.yaml").write_text(text)
    result = run(tmp_path / "grid.yaml", tmp_path / "o.jsonl", code=1)
    assert "differ in architecture: depth" in result.errors[0]


@pytest.mark.parametrize("name", ["ptq", "fp", "qat", "rtn mse", "rtn x", "''"])
def test_a_baseline_cannot_take_the_name_of_another_row(
    name: str, files: Files, tmp_path: Path
) -> None:
    (tmp_path / "grid.yaml").write_text(files.grid.read_text().replace("packed:", f"{name}:"))
    result = run(tmp_path / "grid.yaml", tmp_path / "o.jsonl", code=2)
    assert "cannot be called" in result.errors[0]


@pytest.mark.parametrize(
    ("model", "base", "message", "code"),
    [
        ("{donor}", "nowhere.st", "nowhere.st: no such file", 1),
        ("nowhere.st", "{base}", "nowhere.st: no such file", 1),
        ("{receiver}", "{base}", "is not the donor that", 1),
        ("{donor}", "{rho}", "is a vector, a checkpoint belongs here", 1),
    ],
)
def test_a_task_vectors_files_are_checked_before_anything_is_measured(
    model: str, base: str, message: str, code: int, files: Files, tmp_path: Path
) -> None:
    names = {f: getattr(files.drawer, f) for f in files.drawer.__dataclass_fields__}
    text = files.grid.read_text().replace("nulls: random", "nulls: taskvec")
    old = f"{{rho: {names['rho']}, model: {names['donor']}}}"
    assert old in text
    text = text.replace(old, f"{{rho: {names['rho']}, model: {model.format(**names)}}}")
    text = text.replace(f"base: {names['base']}", f"base: {base.format(**names)}")
    (tmp_path / "grid.yaml").write_text(text)
    result = run(tmp_path / "grid.yaml", tmp_path / "o.jsonl", "--dry-run", code=code)
    assert message in result.errors[0]


def test_a_task_vector_is_of_the_digests_that_the_run_tells(files: Files, tmp_path: Path) -> None:
    text = files.grid.read_text().replace("nulls: random", "nulls: [random, taskvec]")
    (tmp_path / "grid.yaml").write_text(
        text.replace("null-donors: bars3", "null-donors: ' bars3 '")
    )
    out = tmp_path / "o.jsonl"
    run(tmp_path / "grid.yaml", out)
    first, *rest = map(json.loads, out.read_text().splitlines())
    assert first["base"]["path"] == str(files.drawer.base)
    assert set(first["models"]) == {"bars3"}
    assert sum(line.get("null") == "taskvec" for line in rest) == 2


def test_own_qat_must_be_of_the_receivers_images(files: Files, tmp_path: Path) -> None:
    twin, data = tmp_path / "twin.st", tmp_path / "bars4"
    draw(data, ("a", "b", "c", "d"), 30, 12, seed=9)
    call("train-qat", files.drawer.base, "--data", data, "-o", twin, *FAST, "--bits", 2)
    old = f"{{model: {files.drawer.receiver},"
    text = files.grid.read_text().replace(old, f"{{qat: {twin}, model: {files.drawer.receiver},")
    (tmp_path / "grid.yaml").write_text(text)
    result = run(tmp_path / "grid.yaml", tmp_path / "o.jsonl", code=1)
    assert "was trained on other images" in result.errors[0]


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "3/3"])
def test_a_shard_that_cannot_be_is_refused(shard: str, files: Files, tmp_path: Path) -> None:
    assert "--shard" in run(files, tmp_path / "o.jsonl", "--shard", shard, code=2).errors[0]


def test_own_qat_must_be_of_the_grid_that_is_measured(files: Files, tmp_path: Path) -> None:
    names = {f: getattr(files.drawer, f) for f in files.drawer.__dataclass_fields__}
    own, twin = files.grid.with_name("own.st"), files.grid.with_name("twin.st")
    packed = files.grid.with_name("packed.st")
    grid = tmp_path / "grid.yaml"
    text = GRID.replace("{{model: {receiver}", "{{qat: {twin}, model: {receiver}")
    grid.write_text(text.format(**names, own=own, packed=packed, twin=twin))
    result = run(grid, tmp_path / "o.jsonl", code=1)
    assert "was made for 3-bit channel absmax, the cells are on 2-bit" in result.errors[0]
    document = run(grid, tmp_path / "o.jsonl", "--bits", 3, "--json").json
    assert document["results"]["summary"]["baselines"]["qat"]["receivers"] == 1
    first = json.loads((tmp_path / "o.jsonl").read_text().splitlines()[1])
    call("quantize", twin, "--bits", 3, "-o", tmp_path / "q.st")
    data = ("--data", files.drawer.receiver_data, "--device", "cpu", "--json")
    found = call("eval", tmp_path / "q.st", *data).json["results"]
    assert first["baselines"]["qat"]["test"].items() <= found.items()
    assert first["baselines"]["qat"]["data_use"] == "receiver_labels"
