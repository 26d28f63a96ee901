"""quantize --compare: each row is what quantize and eval give one after the other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Drawer, bare, call
from safetensors.numpy import load_file, save_file

from qvec_cli.specs import Grid


def typed(grid: Grid) -> tuple[object, ...]:
    size = ("--group-size", grid.group_size) if grid.group_size else ()
    kind = "--symmetric" if grid.symmetric else "--asymmetric"
    stored = ("--scale-dtype", grid.scale_dtype)
    return ("--bits", grid.bits, *size, "--scale", grid.scale, kind, *stored)


@pytest.mark.parametrize(
    ("bits", "held"),
    [(2, ("--granularity", "channel")), pytest.param(4, (), marks=pytest.mark.slow)],
    ids=["by channel", "all"],
)
def test_each_row_is_what_the_file_would_be(
    bits: int, held: tuple[str, ...], drawer: Drawer, tmp_path: Path
) -> None:
    found = call("quantize", drawer.receiver, "--bits", bits, "--compare", "--json", *held,
                 "--data", drawer.receiver_data, "--device", "cpu").json  # fmt: skip
    rows = found["results"]["compared"]
    assert len({row["name"] for row in rows}) == len(rows) == (9 if held else 18)
    assert found["data_use"] == {"level": "receiver_labels", "counts": {"val": 12}}
    float_ = call("eval", drawer.receiver, "--data", drawer.receiver_data, "--split", "val",
                  "--json").json["results"]  # fmt: skip
    assert found["results"]["fp"]["n_correct"] == float_["n_correct"]
    for row in (*[row for row in rows if not row["rotated"]][::3], rows[-1]):
        out, grid = tmp_path / f"{row['name']}.st", Grid.from_json(row["grid"])
        basis = ("--rotate",) if row["rotated"] else ()
        assert row["name"].endswith(", rotated") == bool(basis) == (row is rows[-1])
        made = call("quantize", drawer.receiver, *typed(grid), *basis, "-o", out,
                    "--json").json["results"]  # fmt: skip
        assert row["bits_per_weight"] == made["bits_per_weight"]
        sizes = {name: array.nbytes for name, array in load_file(out).items()}
        assert row["tensor_bytes"] == sum(n for k, n in sizes.items() if not k.endswith("_shape"))
        measured = call("eval", out, "--data", drawer.receiver_data, "--split", "val",
                        "--json").json["results"]  # fmt: skip
        assert (row["val"]["n_correct"], row["val"]["loss"]) == (
            measured["n_correct"],
            measured["loss"],
        )


def test_a_file_that_does_not_say_its_network_is_told(drawer: Drawer, tmp_path: Path) -> None:
    """And the network then chooses the targets, as it does for the file that is written."""
    theta, out = tmp_path / "theta.st", tmp_path / "q.st"
    flags = bare("swin", theta, classes=4)
    measured = ("--data", drawer.receiver_data, "--split", "test", "--device", "cpu", "--json")
    table = call("quantize", theta, *flags, "--bits", 3, "--compare", *measured, "--symmetric",
                 "--granularity", "channel", "--scale", "mse").json  # fmt: skip
    (row,) = table["results"]["compared"]
    made = call("quantize", theta, *flags, "--bits", 3, "--scale", "mse", "-o", out, "--json").json
    assert row["bits_per_weight"] == made["results"]["bits_per_weight"]
    found = call("eval", out, *measured).json["results"]
    assert (row["test"]["n_correct"], row["test"]["loss"]) == (found["n_correct"], found["loss"])
    (said,) = call("quantize", theta, "--bits", 3, "--compare", *measured, code=1).errors
    assert said == f"error: {theta}: does not say its architecture"


def test_the_noise_is_that_of_all_targets_together(drawer: Drawer, tmp_path: Path) -> None:
    fake = tmp_path / "f.st"
    made = call(
        "quantize",
        drawer.receiver,
        "--bits",
        3,
        "--scale",
        "absmax",
        "--fake",
        "-o",
        fake,
        "--json",
    ).json
    before, after = load_file(drawer.receiver), load_file(fake)
    names = made["results"]["quantized"]
    pairs = [(before[name].astype(np.float64), after[name]) for name in names]
    signal = sum(np.square(old).sum() for old, _ in pairs)
    noise = sum(np.square(old - new).sum() for old, new in pairs)
    one = ("--granularity", "channel", "--scale", "absmax", "--symmetric")
    found = call("quantize", drawer.receiver, "--bits", 3, "--compare", *one, "--json").json
    (row,) = found["results"]["compared"]
    assert row["name"] == "3-bit channel absmax"
    assert row["sqnr_db"] == pytest.approx(10 * np.log10(signal / noise))


def test_without_images_nothing_is_used_and_torch_is_not_loaded(drawer: Drawer) -> None:
    code = (
        "import sys; from qvec_cli.cli.app import run\n"
        f"words = ['quantize', {str(drawer.receiver)!r}, '--bits', '2', '--compare']\n"
        "code = run([*words, '--scale', 'absmax'])\n"
        "raise SystemExit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    table = done.stdout.splitlines()
    assert table[0] == "grid\tbits/weight\tsize\tSQNR"
    assert len(table) == 1 + 4 + 1
    assert table[-1] == "receiver data used: none"


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (("--scale", "mse"), {"channel mse", "group 64 mse float16", "channel mse asymmetric",
                              "group 64 mse asymmetric float16"}),
        (("--asymmetric", "--group-size", "16"), {f"group 16 {scale} asymmetric"
                                                  for scale in ("absmax", "mse", "hqq")}),
        (("--granularity", "tensor", "--symmetric", "--scale-dtype", "float16"),
         {f"tensor {scale} float16" for scale in ("absmax", "mse", "mse-full", "hqq")}),
    ],
)  # fmt: skip
def test_what_is_typed_holds_for_every_row(
    args: tuple[str, ...], names: set[str], drawer: Drawer
) -> None:
    found = call("quantize", drawer.receiver, "--bits", 3, "--compare", *args, "--json").json
    rows = {row["name"]: row["rotated"] for row in found["results"]["compared"]}
    assert {name for name, turned in rows.items() if not turned} == {f"3-bit {n}" for n in names}
    rules = ("mse asymmetric", "mse-full")
    best = {f"3-bit {n}, rotated" for n in names if n.removesuffix(" float16").endswith(rules)}
    assert {name for name, turned in rows.items() if turned} == best


def test_a_network_that_takes_no_usual_group_is_compared_without_groups(tmp_path: Path) -> None:
    bare = tmp_path / "bare.st"
    save_file({"fc1.weight": np.eye(7, dtype=np.float32)}, bare)
    args = ("quantize", bare, "--no-head", "--bits", 3, "--compare", "--json")
    rows = call(*args).json["results"]["compared"]
    assert len(rows) == 7


def test_scales_that_nobody_typed_and_weights_do_not_fit_have_no_row(tmp_path: Path) -> None:
    bare = tmp_path / "bare.st"
    save_file({"fc1.weight": np.eye(64, dtype=np.float32) * 1e9}, bare)
    args = ("quantize", bare, "--no-head", "--bits", 3, "--compare", "--json")
    told = call(*args)
    names = {row["name"] for row in told.json["results"]["compared"]}
    assert len(names) == 7
    assert not any("float16" in name for name in names)
    assert f"no row for 3-bit group 64 absmax float16: {bare}: fc1.weight" in told.err
    assert "too large for float16" in call(*args, "--scale-dtype", "float16", code=1).err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("-o", "q.st"), "-o does not go with --compare"),
        (("--fake",), "--fake does not go with --compare"),
        (("--method", "gptq"), "--method does not go with --compare"),
        (("--calib", "x/"), "--calib does not go with --compare"),
        (("--calib-samples", "9"), "--calib-samples does not go with --compare"),
        (("--split", "test"), "--split goes with --data"),
        (("--dry-run",), "--dry-run does not go with --compare"),
        (("--group-size", "7"), "--group-size 7 does not divide its 64 input features"),
        (("--data", "nowhere/"), "nowhere/: no such folder"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    args: tuple[str, ...], said: str, drawer: Drawer
) -> None:
    found = call("quantize", drawer.receiver, "--bits", 3, "--compare", *args, code=None)
    assert found.code in {1, 2}
    assert len(found.errors) == 1
    assert said in found.errors[0]


def test_without_compare_an_output_is_needed_and_data_has_no_use(
    drawer: Drawer, tmp_path: Path
) -> None:
    found = call("quantize", drawer.receiver, "--bits", 3, code=2)
    assert found.errors == ["error: -o FILE is missing"]
    found = call("quantize", drawer.receiver, "--bits", 3, "-o", tmp_path / "q.st", "--data", "x/",
                 code=2)  # fmt: skip
    assert found.errors == ["error: --data goes with --compare"]


def test_the_table_is_kept_by_metrics(drawer: Drawer, tmp_path: Path) -> None:
    kept = tmp_path / "table.json"
    one = ("--scale", "absmax", "--symmetric")
    call("quantize", drawer.receiver, "--bits", 3, "--compare", *one, "--metrics", kept)
    assert b'"compared"' in kept.read_bytes()
