"""Several files at once: the same as one by one, and nothing if one of them is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Drawer, call
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_several_are_quantized_to_the_bytes_of_each_alone(drawer: Drawer, tmp_path: Path) -> None:
    pair = (drawer.receiver, drawer.donor)
    call("quantize", *pair, "--bits", 3, "--suffix", "_w3", "-o", tmp_path / "all")
    assert files_in(tmp_path / "all") == ["donor_w3.st", "receiver_w3.st"]
    for path in pair:
        call("quantize", path, "--bits", 3, "-o", tmp_path / "one.st", "--force")
        made = tmp_path / "all" / f"{path.stem}_w3.st"
        assert made.read_bytes() == (tmp_path / "one.st").read_bytes()


def test_one_with_a_suffix_goes_into_the_folder_too(drawer: Drawer, tmp_path: Path) -> None:
    """So that a loop over files of a shell writes what one command does."""
    call("quantize", drawer.receiver, "--bits", 3, "--suffix", "_w3", "-o", tmp_path / "q")
    assert files_in(tmp_path / "q") == ["receiver_w3.st"]


def test_several_evaluations_are_those_of_each_alone(drawer: Drawer, tmp_path: Path) -> None:
    pair, data = (drawer.receiver, drawer.base), ("--data", drawer.receiver_data)
    shown = call("eval", *pair, *data, "-o", tmp_path / "out").out.splitlines()
    assert files_in(tmp_path / "out") == ["base.json", "receiver.json"]
    for line, path in zip(shown, pair, strict=True):
        alone = call("eval", path, *data).out.splitlines()
        cells = line.split("\t")
        assert cells[0] == str(path)
        assert cells[1].replace("top-1 ", "top-1: ") == alone[0]
        assert cells[-1] == alone[-1] == "receiver data used: none"


def test_several_are_imported_under_their_own_names(drawer: Drawer, tmp_path: Path) -> None:
    for name in ("a", "b"):
        torch.save({"arch": "test_vit", "state_dict": load_torch(drawer.receiver)}, tmp_path / name)
    call("import", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out")
    assert files_in(tmp_path / "out") == ["a.st", "b.st"]


REFUSED = {
    "a file that is not there": ("{receiver}", "no.st", "no such file"),
    "a vector among models": ("{receiver}", "{rho}", "is a vector"),
    "two of one name": ("{receiver}", "{copy}", "would both be written to"),
    "stdin": ("{receiver}", "-", "has no name for an output"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_nothing_is_written_if_one_is_refused(case: str, drawer: Drawer, tmp_path: Path) -> None:
    first, second, reason = REFUSED[case]
    (tmp_path / "other").mkdir()
    copy = shutil.copy(drawer.receiver, tmp_path / "other")
    names = {"receiver": drawer.receiver, "rho": drawer.rho, "copy": copy}
    pair = (first.format(**names), second.format(**names))
    result = call("quantize", *pair, "--bits", 3, "-o", tmp_path / "q", code=None)
    assert result.code in (1, 2)
    assert reason in result.err
    assert not (tmp_path / "q").exists()


def test_outputs_that_exist_are_kept_whole(drawer: Drawer, tmp_path: Path) -> None:
    (tmp_path / "donor.st").write_bytes(b"mine")
    pair = (drawer.receiver, drawer.donor)
    assert "exists" in call("quantize", *pair, "--bits", 3, "-o", tmp_path, code=1).err
    assert (files_in(tmp_path), (tmp_path / "donor.st").read_bytes()) == (["donor.st"], b"mine")
    (tmp_path / "donor.json").write_bytes(b"mine")
    data = ("--data", drawer.receiver_data, "-o", tmp_path)
    assert "donor.json: exists" in call("eval", drawer.receiver, drawer.donor, *data, code=1).err
    assert files_in(tmp_path) == ["donor.json", "donor.st"]
    (tmp_path / "file").write_text("x")
    refused = call("quantize", *pair, "--bits", 3, "-o", tmp_path / "file", code=2)
    assert "a folder belongs here" in refused.err
    one = call("quantize", *pair, "--bits", 3, "-o", tmp_path / "q", "--metrics", "m", code=2)
    assert "--metrics is for one file" in one.err
    assert "--compare is for one" in call("quantize", *pair, "--bits", 3, "--compare", code=2).err


def test_a_folder_as_output_of_one_has_a_file_of_its_name(drawer: Drawer, tmp_path: Path) -> None:
    call("eval", drawer.receiver, "--data", drawer.receiver_data, "-o", f"{tmp_path}/new/")
    assert files_in(tmp_path / "new") == ["receiver.json"]


def test_a_dry_run_of_several_leaves_no_folder(drawer: Drawer, tmp_path: Path) -> None:
    flags = ("--bits", 3, "-o", tmp_path / "q", "--dry-run")
    shown = call("quantize", drawer.receiver, drawer.donor, *flags).out
    assert shown.count("nothing was written") == 2
    assert not (tmp_path / "q").exists()


def test_quiet_tells_results_and_errors_alone(drawer: Drawer, tmp_path: Path) -> None:
    loud, quiet = (
        call("quantize", drawer.receiver, "--bits", 3, "-o", tmp_path / "q.st", "--force", *flags)
        for flags in ((), ("-q",))
    )
    assert loud.err
    assert quiet.err == ""
    assert quiet.out == loud.out
    assert (
        "exists"
        in call("quantize", drawer.receiver, "--bits", 2, "-o", tmp_path / "q.st", "-q", code=1).err
    )


def test_what_is_skipped_stays_float_whoever_chose_the_rest(drawer: Drawer, tmp_path: Path) -> None:
    before, q = load_file(drawer.receiver), tmp_path / "q.st"
    for targets in ((), ("--targets", "*.qkv.weight,*.fc?.weight")):
        flags = ("--bits", 3, "-f", "-o", q, *targets)
        call("quantize", drawer.receiver, *flags)
        all_of_them = {name for name in load_file(q) if name.endswith("_packed")}
        call("quantize", drawer.receiver, *flags, "--skip", "*.fc1.*,blocks.0.*")
        after = load_file(q)
        left = {name for name in all_of_them if ".fc1." in name or name.startswith("blocks.0.")}
        assert 0 < len(left) < len(all_of_them)
        assert {name for name in after if name.endswith("_packed")} == all_of_them - left
        for name in left:
            weight = name.removesuffix("_packed")
            assert np.array_equal(after[weight], before[weight])
    unset = call("quantize", drawer.receiver, "--bits", 3, "--targets", "", "-f", "-o", q, code=1)
    assert "--targets '' matches no matrix" in unset.err
    globs = (("*.fc9.*", "matches no weight"), ("", "matches no weight"), ("*", "leaves no weight"))
    for glob, reason in globs:
        refused = call("quantize", drawer.receiver, *flags, "--skip", glob, code=1)
        assert reason in refused.err


def test_a_packed_file_is_compared_as_the_weights_that_it_stands_for(
    drawer: Drawer, tmp_path: Path
) -> None:
    packed, fake = tmp_path / "q.st", tmp_path / "fake.st"
    call("quantize", drawer.receiver, "--bits", 3, "-o", packed)
    call("quantize", drawer.receiver, "--bits", 3, "--fake", "-o", fake)
    ours, theirs = (
        call("inspect", drawer.receiver, other, "--json").json["results"]
        for other in (packed, fake)
    )
    assert ours["norm"] == pytest.approx(theirs["norm"], rel=1e-6)
    assert ours["norm"] > 0
    norms = [{row["name"]: row["norm"] for row in found["tensors"]} for found in (ours, theirs)]
    assert norms[0] == pytest.approx(norms[1])
    assert ours["only_in_first"] == ours["only_in_second"] == []
    back = call("inspect", packed, drawer.receiver, "--json").json["results"]
    assert back["norm"] == pytest.approx(ours["norm"])
    assert call("inspect", packed, fake, "--json").json["results"]["norm"] == 0


def test_many_files_are_a_table_of_their_headers(drawer: Drawer, tmp_path: Path) -> None:
    call("quantize", drawer.receiver, "--bits", 3, "-o", tmp_path / "q.st")
    files = (drawer.receiver, drawer.rho, tmp_path / "q.st")
    head, *rows = (line.split("\t") for line in call("inspect", *files).out.splitlines())
    assert head[:3] == ["file", "kind", "architecture"]
    assert [row[0] for row in rows] == [str(file) for file in files]
    assert [row[1] for row in rows] == ["checkpoint, fp", "vector", "quantized"]
    assert {row[2] for row in rows} == {"test_vit"}


def test_what_lies_beside_the_weights_does_not_count_as_their_size(
    drawer: Drawer, tmp_path: Path
) -> None:
    state = load_torch(drawer.receiver)
    torch.save(state, tmp_path / "plain.pth")
    heavy = {"state_dict": state, "optimizer": {"exp_avg": [torch.zeros(1_000_000)]}}
    torch.save({**heavy, "arch": "test_vit"}, tmp_path / "heavy.pth")
    sizes = []
    for name in ("plain", "heavy"):
        flags = (
            "--bits",
            3,
            "--model",
            "test_vit",
            "--img-size",
            32,
            "-o",
            tmp_path / "q.st",
            "-f",
        )
        done = call("quantize", tmp_path / f"{name}.pth", *flags, "--json")
        sizes.append(done.json["results"]["bytes_before"])
    assert sizes[0] == sizes[1] == sum(t.numel() * t.element_size() for t in state.values())


def test_the_data_of_a_bare_file_can_be_told(drawer: Drawer, tmp_path: Path) -> None:
    """After that other images are no longer taken for the receiver's own."""
    save_file(load_file(drawer.receiver), tmp_path / "bare.st")
    network = ("--model", "test_vit", "--img-size", 32)
    plain, told = tmp_path / "plain.st", tmp_path / "told.st"
    call("import", tmp_path / "bare.st", *network, "-o", plain)
    data = ("--receiver-data", drawer.receiver_data)
    call("import", tmp_path / "bare.st", *network, *data, "-o", told)
    cards = [call("inspect", p, "--json").json["results"]["card"] for p in (told, drawer.receiver)]
    assert cards[0]["data"] == cards[1]["data"]
    levels = {}
    for model in (plain, told):
        for name, images in (("own", drawer.receiver_data), ("other", drawer.donor_data)):
            flags = ("--bits", 3, "--method", "gptq", "--calib", images, "--calib-samples", 4)
            done = call("quantize", model, *flags, "-o", tmp_path / "q.st", "-f", "--json")
            levels[model.stem, name] = done.json["data_use"]["level"]
    assert levels == {
        ("plain", "own"): "receiver_images",
        ("plain", "other"): "receiver_images",
        ("told", "own"): "receiver_images",
        ("told", "other"): "proxy_images",
    }
    wrong = ("--receiver-data", drawer.donor_data, "-o", tmp_path / "x.st")
    assert "has 3 classes" in call("import", tmp_path / "bare.st", *network, *wrong, code=1).err


def test_several_between_commas_are_the_same_as_the_flag_repeated(
    drawer: Drawer, tmp_path: Path
) -> None:
    gptq = ("--bits", 3, "--method", "gptq", "--calib-samples", 4, "-f", "-o", tmp_path / "q.st")
    both = (drawer.donor_data, drawer.receiver_data)
    call("quantize", drawer.receiver, *gptq, "--calib", both[0], "--calib", both[1])
    once = (tmp_path / "q.st").read_bytes()
    call("quantize", drawer.receiver, *gptq, "--calib", ",".join(map(str, both)))
    assert (tmp_path / "q.st").read_bytes() == once
    (tmp_path / "a,b").symlink_to(drawer.donor_data)
    named = call("quantize", drawer.receiver, *gptq, "--calib", tmp_path / "a,b", "--json").json
    assert named["inputs"][1]["path"] == str(tmp_path / "a,b")


def test_named_data_sets_are_looked_for_where_the_environment_says(
    drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QVEC_DATA_DIR", str(tmp_path / "here"))
    missing = call("eval", drawer.receiver, "--data", "torch/MNIST", code=1)
    assert f"MNIST is not in {tmp_path / 'here'}" in missing.err
    flag = ("--data-dir", tmp_path / "there")
    missing = call("eval", drawer.receiver, "--data", "torch/MNIST", *flag, code=1)
    assert f"MNIST is not in {tmp_path / 'there'}" in missing.err


def test_noise_of_weights_is_no_measure_of_what_is_calibrated(
    drawer: Drawer, tmp_path: Path
) -> None:
    flags = ("--bits", 3, "-o", tmp_path / "q.st", "-f")
    assert "quantization noise" in call("quantize", drawer.receiver, *flags).out
    gptq = ("--method", "gptq", "--calib", "generated", "--calib-samples", 4)
    assert "quantization noise" not in call("quantize", drawer.receiver, *flags, *gptq).out
