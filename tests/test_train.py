"""Training runs: twins, resuming, faults and what the files say afterwards."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAST, MODEL, Drawer, call, draw
from safetensors.numpy import load_file, save_file

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.replace import unfinished
from qvec_cli.data.datasets import open_task
from qvec_cli.inputs.files import InputFiles
from qvec_cli.learn import fit
from qvec_cli.learn.batches import NO_LABEL, TrainingBatches
from qvec_cli.learn.distributed import World
from qvec_cli.learn.forward import training_fault
from qvec_cli.pipeline.session import Session
from qvec_cli.pipeline.train_request import TrainRequest
from qvec_cli.specs import Grid, Loading, Recipe, Silence


def session(drawer: Drawer, out: Path, grid: Grid | None) -> Session:
    recipe = Recipe(epochs=1, batch_size=16, seed=3)
    request = TrainRequest(
        str(drawer.base), str(drawer.donor_data), out, recipe, Loading(), grid, device="cpu"
    )
    task = open_task(str(drawer.donor_data), None)
    return Session(request, task, InputFiles(Silence()), Silence())


def digest(path: Path) -> str:
    with Checkpoint(path) as checkpoint:
        return checkpoint.contents()


def test_twins_share_head_and_random_stream_and_data(drawer: Drawer, tmp_path: Path) -> None:
    plain = session(drawer, tmp_path / "a.st", None)
    stream = torch.get_rng_state()
    twin = session(drawer, tmp_path / "b.st", Grid(3))
    assert torch.equal(torch.get_rng_state(), stream)
    head = {n: p for n, p in plain.network.named_parameters() if n.startswith("head")}
    assert head
    for name, parameter in twin.network.named_parameters():
        if name in head:
            assert torch.equal(parameter, head[name])
    assert plain.card.base == twin.card.base
    ours, theirs = (list(s.fit.batches.epoch(0)) for s in (plain, twin))
    assert len(ours) == len(theirs) > 1
    for (images, labels), (twins_images, twins_labels) in zip(ours, theirs, strict=True):
        assert torch.equal(images, twins_images)
        assert torch.equal(labels, twins_labels)


def test_twins_have_the_same_tensors(drawer: Drawer) -> None:
    with Checkpoint(drawer.donor) as plain, Checkpoint(drawer.donor_qat) as twin:
        assert {n: (e.dtype, e.shape) for n, e in plain.items()} == {
            n: (e.dtype, e.shape) for n, e in twin.items()
        }
        assert plain.card is not None
        assert twin.card is not None
        assert (plain.card.role, twin.card.role) == ("fp", "qat")
        assert plain.card.recipe == twin.card.recipe
        assert plain.card.targets == twin.card.targets


class CutOffError(Exception):
    """Stands for a power cut."""


def dropping(command: str, drawer: Drawer) -> list[object]:
    """With augmentation and dropped paths, so that every random stream is needed."""
    args: list[object] = [command, *MODEL, "--data", drawer.donor_data, "--epochs", 2]
    args += ["--batch-size", 16, "--lr", "1e-3", "--device", "cpu"]
    return [*args, "--model-arg", "drop_path_rate=0.2"]


@pytest.fixture(scope="module")
def whole(drawer: Drawer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What runs come to that are not cut off."""
    root = tmp_path_factory.mktemp("whole")
    paths = {command: root / f"{command}.st" for command in ("finetune", "train-qat")}
    for command, path in paths.items():
        call(*dropping(command, drawer), "-o", path)
    return paths


@pytest.mark.parametrize(
    ("command", "steps"),
    [
        ("finetune", 1),
        ("train-qat", 6),
        ("finetune", 8),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (("train-qat", 1), ("finetune", 6), ("train-qat", 8))
        ),
    ],
)
def test_a_run_cut_off_at_any_step_resumes_to_the_same_bytes(
    command: str,
    steps: int,
    whole: dict[str, Path],
    drawer: Drawer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = dropping(command, drawer)
    monkeypatch.setattr(fit, "SAVE_SECONDS", 0.0)
    step, taken = fit.TrainingRun._step, []

    def counted(self: fit.TrainingRun, *batch: torch.Tensor) -> None:
        if len(taken) == steps:
            raise CutOffError
        taken.append(0)
        step(self, *batch)

    monkeypatch.setattr(fit.TrainingRun, "_step", counted)
    with pytest.raises(CutOffError):
        call(*args, "-o", tmp_path / "cut.st")
    assert [path.name for path in tmp_path.iterdir()] == ["cut.st.state"]
    assert_fields_of_old_states(unfinished(tmp_path / "cut.st"))

    monkeypatch.setattr(fit.TrainingRun, "_step", step)
    refused = call(*args, "-o", tmp_path / "cut.st", code=1)
    assert "an unfinished run is there" in refused.err
    resumed = call(*args, "-o", tmp_path / "cut.st", "--resume")
    assert "resumed at epoch" in resumed.err
    assert (tmp_path / "cut.st").read_bytes() == whole[command].read_bytes()
    assert not unfinished(tmp_path / "cut.st").exists()


RUN = {
    *("amp", "base", "batch_size", "clip_grad", "data", "device", "epochs", "grid", "lr", "model"),
    *("no_aug", "seed", "smoothing", "warmup_steps", "weight_decay"),
}
PROGRESS = {"correct", "epoch", "history", "loss_sum", "seen", "step"}
MODEL_FIELDS = {"architecture", "model_args", "num_classes", "pretrained_cfg"}


def assert_fields_of_old_states(state: Path) -> None:
    """Those that qvec 0.1 wrote: with others its states would count as of another run."""
    with Checkpoint(state) as saved:
        place, names = saved.card.provenance, {name.split(".")[0] for name in saved}
    assert (set(place["run"]), set(place["progress"])) == (RUN, PROGRESS)
    assert set(place["run"]["model"]) == MODEL_FIELDS
    assert names <= {"network", "adam", "rng"}


@pytest.mark.slow
def test_a_run_that_was_killed_resumes_to_the_same_bytes(drawer: Drawer, tmp_path: Path) -> None:
    args = ["finetune", str(drawer.base), "--data", str(drawer.donor_data), "--epochs", "5"]
    args += ["--batch-size", "16", "--device", "cpu", "--no-aug"]
    call(*args, "-o", tmp_path / "whole.st")
    out = tmp_path / "killed.st"
    process = subprocess.Popen(
        [sys.executable, "-m", "qvec_cli", *args, "-o", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    while process.poll() is None and not unfinished(out).exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    call(*args, "-o", out, "--resume")
    assert out.read_bytes() == (tmp_path / "whole.st").read_bytes()


def test_a_state_of_another_run_is_refused(
    drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["finetune", drawer.base, "--data", drawer.donor_data, *FAST, "-o", tmp_path / "x.st"]
    monkeypatch.setattr(fit.TrainingRun, "_summary", lambda *_: exec("raise ZeroDivisionError"))
    monkeypatch.setattr(fit, "SAVE_SECONDS", 0.0)
    with pytest.raises(ZeroDivisionError):
        call(*args)
    monkeypatch.undo()
    refused = call(*args, "--seed", 5, "--resume", code=1)
    assert "seed 0 vs 5" in refused.err
    unfinished(tmp_path / "x.st").write_bytes(drawer.rho.read_bytes())
    assert "is not the state of a run" in call(*args, "--resume", code=1).err


@pytest.mark.parametrize("grid", [(), ("--bits", 3)], ids=["finetune", "train-qat"])
def test_a_run_that_is_done_is_done_again_in_no_time(
    grid: tuple[object, ...], drawer: Drawer
) -> None:
    name, out = ("train-qat", drawer.donor_qat) if grid else ("finetune", drawer.donor)
    args = (name, drawer.base, "--data", drawer.donor_data, *FAST, *grid, "-o", out, "--resume")
    before = out.stat()
    assert "done already" in call(*args).err
    refused = call(*args, "--seed", 5, code=1)
    assert "seed" in refused.errors[0]
    assert out.stat() == before
    assert not unfinished(out).exists()


def test_a_loss_that_is_no_number_stops_at_once(drawer: Drawer, tmp_path: Path) -> None:
    out = tmp_path / "x.st"
    args = ["finetune", drawer.base, "--data", drawer.donor_data, "-o", out, "--no-aug"]
    args += ["--warmup-steps", 0, "--epochs", 50, "--batch-size", 16]
    result = call(*args, "--lr", "1e30", code=1)
    assert re.match(
        r"error: (loss|gradient norm) is (nan|inf) at epoch 1, step \d of 6 \(lr 1e\+30\); "
        r"the last good state is in .*x\.st\.state$",
        result.errors[0],
    )
    assert len(result.errors) == 1
    assert not out.exists()
    arrays = load_file(unfinished(out))
    weights = [a for n, a in arrays.items() if n.startswith("network.")]
    assert weights
    assert all(np.isfinite(array).all() for array in weights)


def test_a_network_that_validation_finds_broken_stops_the_run(
    drawer: Drawer, tmp_path: Path
) -> None:
    args = ["finetune", drawer.base, "--data", drawer.donor_data, "-o", tmp_path / "x.st"]
    args += ["--no-aug", "--warmup-steps", 0, "--batch-size", 128]  # one step an epoch
    result = call(*args, "--lr", "1e30", code=1)
    assert "the network's outputs are not finite" in result.errors[0]
    assert "after epoch 1, step 1 (lr 1e+30)" in result.errors[0]
    assert list(tmp_path.iterdir()) == []


def test_a_warm_up_longer_than_the_run_is_shortened_and_said(
    drawer: Drawer, tmp_path: Path
) -> None:
    result = call(
        *("finetune", drawer.base, "--data", drawer.donor_data, *FAST, "-o", tmp_path / "x.st"),
        *("--metrics", tmp_path / "x.json"),
    )
    assert "warm-up shortened from 500 to 1" in result.err


def test_a_head_is_replaced_when_class_counts_differ_and_kept_when_not(
    drawer: Drawer, tmp_path: Path
) -> None:
    still = ("--epochs", 1, "--lr", "1e-30", "--weight-decay", 0, "--no-aug", "--device", "cpu")
    other = call(
        "finetune", drawer.base, "--data", drawer.donor_data, *still, "-o", tmp_path / "a.st"
    )
    assert "its head is replaced by a new one with 3 classes" in other.err
    same = call(
        "finetune", drawer.base, "--data", drawer.receiver_data, *still, "-o", tmp_path / "b.st"
    )
    assert "replaced" not in same.err
    base, kept, replaced = (
        load_file(p) for p in (drawer.base, tmp_path / "b.st", tmp_path / "a.st")
    )
    assert np.allclose(base["head.weight"], kept["head.weight"], atol=1e-12)
    assert replaced["head.weight"].shape[0] == 3
    body = [name for name in base if not name.startswith("head")]
    assert all(np.allclose(base[name], replaced[name], atol=1e-12) for name in body)


def test_a_bare_file_starts_a_named_network(drawer: Drawer, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(load_file(drawer.base), tmp_path / "bare.st")
    flags = ("--data", drawer.donor_data, *FAST)
    named = call("finetune", tmp_path / "bare.st", *flags, "-o", tmp_path / "x.st", code=1)
    assert "does not say its architecture" in named.err
    assert "--initial-checkpoint" in named.err
    start = ("--initial-checkpoint", tmp_path / "bare.st")
    call("finetune", *MODEL, *start, *flags, "-o", tmp_path / "x.st")
    with Checkpoint(tmp_path / "x.st") as ours, Checkpoint(drawer.donor) as theirs:
        assert ours.card is not None
        assert theirs.card is not None
        assert ours.card.base == theirs.card.base


def test_another_backbone_is_refused(drawer: Drawer, tmp_path: Path) -> None:
    result = call(
        *("finetune", "test_vit2", "--img-size", 32, "--initial-checkpoint", drawer.base),
        *("--data", drawer.donor_data, "-o", tmp_path / "x.st"),
        code=1,
    )
    assert "do not fit the network" in result.err


def test_twins_start_from_one_base_at_another_size_with_other_channels(
    drawer: Drawer, tmp_path: Path
) -> None:
    """Two starts, and what their plans say: a base that tells its network, and a file by name."""
    shape = ("--img-size", 64, "--in-chans", 1, "--data", drawer.donor_data, *FAST)
    shape = (*shape, "--epochs", 1)
    told = ("position embeddings resampled from 2x2 to 4x4", "adapted from 3 channels to 1")
    out = {name: tmp_path / f"{name}.st" for name in ("fp", "qat", "named")}
    runs = (
        call("finetune", drawer.base, *shape, "-o", out["fp"]),
        call("train-qat", drawer.base, *shape, "-o", out["qat"]),
        call(
            "finetune", "test_vit", "--initial-checkpoint", drawer.base, *shape, "-o", out["named"]
        ),
        call("finetune", drawer.base, *shape, "-o", tmp_path / "x.st", "--dry-run"),
    )
    for run in runs:
        assert all(words in run.err for words in told), run.err
    assert out["named"].read_bytes() == out["fp"].read_bytes()
    with Checkpoint(out["fp"]) as fp, Checkpoint(out["qat"]) as quantized:
        assert fp.card.base == quantized.card.base
        model = fp.card.model
    assert model is not None
    assert model["model_args"] == {"img_size": 64, "in_chans": 1}
    assert model["pretrained_cfg"]["input_size"] == [1, 64, 64]
    assert len(model["pretrained_cfg"]["mean"]) == 1
    call("extract", out["fp"], out["qat"], "-o", tmp_path / "rho.st")
    measured = call("eval", out["fp"], "--data", drawer.donor_data, "--json").json
    assert measured["results"]["n"] == 36


def test_a_network_without_targets_is_not_trained_for_a_grid(
    drawer: Drawer, tmp_path: Path
) -> None:
    flags = ("--img-size", 32, "--data", drawer.donor_data, "-o", tmp_path / "x.st")
    result = call("train-qat", "test_efficientnet", *flags, code=1)
    assert "test_efficientnet: no weight to quantize" in result.errors[0]


def test_a_group_size_that_does_not_divide_is_refused_before_training(
    drawer: Drawer, tmp_path: Path
) -> None:
    flags = ("--data", drawer.donor_data, "-o", tmp_path / "x.st", "--group-size", 5)
    result = call("train-qat", drawer.base, *flags, code=1)
    assert "blocks.0.attn.qkv.weight: --group-size 5 does not divide" in result.errors[0]


@pytest.mark.parametrize(
    "name", ["test_convnext", pytest.param("test_vit", marks=pytest.mark.slow)]
)
def test_twins_of_any_architecture_train_in_reduced_precision(
    name: str, drawer: Drawer, tmp_path: Path
) -> None:
    flags = (name, "--img-size", 32, "--data", drawer.donor_data, *FAST, "--amp")
    call("train-qat", *flags, "-o", tmp_path / "q.st", "--bits", 4)
    call("quantize", tmp_path / "q.st", "-o", tmp_path / "packed.st")
    args = ("--data", drawer.donor_data, "--json")
    assert call("eval", tmp_path / "packed.st", *args).json["results"]["n"] == 36


def test_grey_images_train_a_network_with_one_channel(tmp_path: Path) -> None:
    from PIL import Image

    data = draw(tmp_path / "data", ("x", "y"), 20, 4, seed=5)
    for path in data.rglob("*.png"):
        with Image.open(path) as image:
            image.convert("L").save(path)
    call("finetune", *MODEL, "--in-chans", 1, "--data", data, *FAST, "-o", tmp_path / "x.st")
    assert load_file(tmp_path / "x.st")["patch_embed.proj.weight"].shape[1] == 1
    assert call("eval", tmp_path / "x.st", "--data", data, "--json").json["results"]["n"] == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_stops_the_run_and_is_named(tmp_path: Path, workers: int) -> None:
    data = draw(tmp_path / "data", ("x", "y"), 20, 4, seed=5)
    bad = data / "train" / "y" / "007.png"
    bad.write_bytes(bad.read_bytes()[:200])
    result = call(
        *("finetune", *MODEL, "--data", data, "--epochs", 1, "--workers", workers),
        *("-o", tmp_path / "x.st"),
        code=1,
    )
    assert str(bad) in result.errors[0]
    assert not (tmp_path / "x.st").exists()


def test_the_paper_s_tasks_have_the_paper_s_epochs() -> None:
    from qvec_cli.pipeline.finetune import EPOCHS, default_epochs

    assert default_epochs("Cars") == 35
    assert default_epochs("./Cars") == EPOCHS


def test_a_run_cut_off_while_it_validates_resumes_to_the_same_bytes(
    drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps of the epoch are saved; a tuple among the arguments is a list in a file."""
    args = ["finetune", *MODEL, "--model-arg", "patch_size=(8,8)", "--data", drawer.donor_data]
    args += [*FAST]
    call(*args, "-o", tmp_path / "whole.st")
    monkeypatch.setattr(fit, "SAVE_SECONDS", 0.0)

    def cut(_: Session) -> None:
        raise CutOffError

    with monkeypatch.context() as patch:
        patch.setattr(Session, "_validate", cut)
        with pytest.raises(CutOffError):
            call(*args, "-o", tmp_path / "cut.st")
    call(*args, "-o", tmp_path / "cut.st", "--resume")
    assert (tmp_path / "cut.st").read_bytes() == (tmp_path / "whole.st").read_bytes()


def test_the_last_good_state_of_a_network_with_running_means_is_good(
    drawer: Drawer, tmp_path: Path
) -> None:
    out = tmp_path / "x.st"
    args = ["finetune", "test_byobnet", "--img-size", 32, "--data", drawer.donor_data, "-o", out]
    args += ["--no-aug", "--warmup-steps", 0, "--batch-size", 27, "--lr", "1e37", "--device", "cpu"]
    assert "the last good state is in" in call(*args, code=1).errors[0]
    arrays = load_file(unfinished(out))
    assert any(name.endswith("running_mean") for name in arrays)
    for name, array in arrays.items():
        assert np.isfinite(array).all() or name.startswith("adam."), name


def test_a_batch_too_small_for_a_batch_norm_is_a_line(drawer: Drawer, tmp_path: Path) -> None:
    args = ["finetune", "test_resnet", "--img-size", 32, "--data", drawer.donor_data, "--no-aug"]
    args += ["--batch-size", 16, "-o", tmp_path / "x.st"]  # 81 images
    result, plan = call(*args, code=1), call(*args, "--dry-run", code=1)
    assert "the last batch of an epoch is one image, too few for test_resnet" in result.errors[0]
    assert "--batch-size" in result.err
    assert plan.err == result.err
    assert "epoch 1" not in result.err
    call(*args, "--batch-size", 27, "--dry-run")


def test_images_that_a_network_cannot_run_on_are_a_line(drawer: Drawer, tmp_path: Path) -> None:
    for name, size, grid in (("efficientformer_l1", 64, ()), ("levit_128s", 50, ("--bits", 4))):
        command = "train-qat" if grid else "finetune"
        args = [command, name, "--img-size", size, *grid, "--data", drawer.donor_data, *FAST]
        args += ["-o", tmp_path / "x.st"]
        result, plan = call(*args, code=1), call(*args, "--dry-run", code=1)
        for said in (result, plan):  # torch has words of its own for the meta device
            assert f"{name} cannot run on images of {size} px: " in said.errors[0]
            assert said.err.splitlines()[1:] == ["hint: Choose another --img-size."]
    assert list(tmp_path.iterdir()) == []


def test_the_forward_before_a_run_changes_nothing() -> None:
    """Dropout draws, running means move and gradients grow in a step, and not here."""
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Dropout(0.5), torch.nn.Flatten()
    )
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for shape, amp in (((2, 3, 8, 8), False), ((2, 3, 8, 8), True), ((2, 1, 8, 8), False)):
        torch.manual_seed(3)
        stream = torch.get_rng_state()
        fault = training_fault(network, shape, amp=amp)
        assert (fault is None) == (shape[1] == 3)
        assert torch.equal(torch.get_rng_state(), stream)
        assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters())
    network.eval()
    assert training_fault(network, (1, 3, 3, 3), amp=False) is not None  # one value a channel
    assert not network.training


def test_what_the_meta_device_cannot_is_no_fault_of_a_network() -> None:
    class Looking(torch.nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) if float(images.sum()) == 0 else images

    network = Looking(4, 4)
    assert training_fault(network, (2, 4), amp=False) is None
    assert training_fault(network, (2, 3), amp=False) is not None
    assert training_fault(network.to("meta"), (2, 4), amp=True) is None


def test_force_starts_anew_where_resume_cannot_go_on(
    drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both flags together, as a Makefile has them."""
    args = ["finetune", drawer.base, "--data", drawer.donor_data, *FAST, "-o", tmp_path / "x.st"]
    monkeypatch.setattr(fit, "SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Session, "_validate", lambda _: exec("raise ZeroDivisionError"))
        with pytest.raises(ZeroDivisionError):
            call(*args)
    result = call(*args, "--seed", 5, "--resume", "--force")
    assert "is of another run: seed 0 vs 5: starting anew" in result.err
    call(*args[:-1], tmp_path / "y.st", "--seed", 5)
    assert (tmp_path / "x.st").read_bytes() == (tmp_path / "y.st").read_bytes()


def test_a_state_whose_card_tells_no_place_is_refused(drawer: Drawer, tmp_path: Path) -> None:
    args = ("finetune", drawer.base, "--data", drawer.donor_data, "-o", tmp_path / "x.st", *FAST)
    metadata = {"qvec.kind": "train-state", "qvec.schema": "1", "qvec.provenance": "{}"}
    save_file({"w": np.ones(2, np.float32)}, tmp_path / "x.st.state", metadata)
    assert "its qvec card is damaged" in call(*args, "--resume", code=1).errors[0]


def test_a_teacher_in_place_of_labels_is_a_divergence_over_all_ranks() -> None:
    torch.manual_seed(0)
    logits, answers = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    labels = torch.tensor([0, 1, NO_LABEL, 2, 3, NO_LABEL, 4])
    counted = labels != NO_LABEL
    chances = answers.softmax(1)
    expected = (chances * (answers.log_softmax(1) - logits.log_softmax(1))).sum(1)[counted].mean()
    shares = [
        fit.share_of_divergence(logits[at], answers[at], labels[at], 5, World(rank, 2))
        for rank, at in enumerate((slice(0, 4), slice(4, 7)))
    ]
    torch.testing.assert_close(sum(shares) / 2, expected)


def test_with_a_teacher_nothing_is_learned_from_labels(
    drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("train-qat", drawer.base, "--data", drawer.donor_data, *FAST, "--bits", 3)
    args = (*args, "--teacher", drawer.donor)
    done = call(*args, "-o", tmp_path / "a.st", "--json").json
    assert done["data_use"]["level"] == "receiver_images"
    epoch = TrainingBatches.epoch

    def mislabelled(self: TrainingBatches, number: int, skip: int = 0) -> Any:
        for images, labels in epoch(self, number, skip):
            yield images, torch.zeros_like(labels)

    monkeypatch.setattr(TrainingBatches, "epoch", mislabelled)
    call(*args, "-o", tmp_path / "b.st")
    ours, theirs, labelled = (
        load_file(path) for path in (tmp_path / "a.st", tmp_path / "b.st", drawer.donor_qat)
    )
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert any(not np.array_equal(ours[name], labelled[name]) for name in ours)
    with Checkpoint(tmp_path / "a.st") as written, Checkpoint(drawer.donor) as teacher:
        parents = {each["as"]: each["digest"] for each in written.card.provenance["parents"]}
        assert parents["teacher"] == teacher.settle()
    assert "done already" in call(*args, "-o", tmp_path / "a.st", "--resume").err
    refused = call(*args[:-2], "-o", tmp_path / "a.st", "--resume", code=1)
    assert "teacher" in refused.errors[0]


def test_a_teacher_of_other_classes_is_refused(drawer: Drawer, tmp_path: Path) -> None:
    args = ("train-qat", drawer.base, "--data", drawer.donor_data, *FAST, "--bits", 3)
    args = (*args, "-o", tmp_path / "x.st", "--teacher")
    for dry in ((), ("--dry-run",)):
        refused = call(*args, drawer.receiver, *dry, code=1)
        assert "its classes are not those of" in refused.errors[0]
    assert "is a vector" in call(*args, drawer.rho, code=1).errors[0]
