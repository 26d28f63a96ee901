"""What --data means: paths, the paper's tasks, torch/ and hfds/ names, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_idx import plant as plant_idx

from qvec_cli.data import hub, torchvision_sets
from qvec_cli.data.datasets import open_task
from qvec_cli.data.samples import DataSource
from qvec_cli.data.tasks import TASKS
from qvec_cli.errors import DataError, QvecError, SpecError

every_task = pytest.mark.parametrize("name", TASKS)


def plant(folder: Path, *splits: str, classes: int = 2, each: int = 5) -> Path:
    """An image folder with classes c000, c001 and so on."""
    for split in splits:
        for label in range(classes):
            home = folder / split / f"c{label:03d}"
            home.mkdir(parents=True)
            for number in range(each):
                Image.new("L", (1, 1)).save(home / f"{number}.png")
    return folder


def lengths(spec: object, folder: Path | None = None) -> dict[str, int]:
    return {name: len(split) for name, split in open_task(str(spec), folder).splits.items()}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)


# --- paths ----------------------------------------------------------------------------------------


def test_a_path_is_an_image_folder_and_val_is_drawn_from_train(tmp_path: Path) -> None:
    task = open_task(str(plant(tmp_path / "toy", "train", "test")), None)
    assert task.name == "toy"
    assert task.classes == ("c000", "c001")
    assert {name: len(split) for name, split in task.splits.items()} == {
        "train": 9,
        "val": 1,
        "test": 10,
    }


def test_a_data_set_is_named_by_its_folder_however_it_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(plant(tmp_path / "toy", "test"))
    assert {open_task(spec, None).name for spec in (".", "./", "../toy", "../toy/")} == {"toy"}


def test_a_name_of_the_paper_wins_over_a_folder_unless_it_is_written_as_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plant(tmp_path / "MNIST", "test")
    plant(tmp_path / "mine", "test")
    plant(tmp_path / "torch/cifar10", "test")
    with pytest.raises(DataError, match="MNIST is not here: no --data-dir"):
        open_task("MNIST", None)
    assert lengths("./MNIST") == {"test": 10}
    assert lengths("mine") == {"test": 10}
    assert lengths("torch/cifar10") == {"test": 10}


def test_a_missing_path_is_answered_with_the_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder") as caught:
        open_task(str(tmp_path / "gone"), None)
    assert f"{tmp_path}/gone/{{train,val,test}}/<class>/*.png" in str(caught.value.hint)


def test_a_mistyped_path_is_answered_with_the_folder_that_is_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = plant(tmp_path / "images/digits", "test")
    for spec in ("images/digts", "imags/digits", "imags/digits/test", "images/digits/tets"):
        with pytest.raises(DataError, match=f"{spec}: no such folder") as caught:
            open_task(str(tmp_path / spec), None)
        near = home / "test" if len(spec) > 16 else home
        assert caught.value.hint == f"Did you mean {near}?"
    monkeypatch.chdir(tmp_path / "images")
    with pytest.raises(SpecError) as wrong:
        open_task("digts", None)
    assert wrong.value.hint == "Did you mean digits?"


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("cifar10", "Did you mean CIFAR10 or CIFAR100?"),
        ("fashion-mnist", "Did you mean FashionMNIST"),
        ("Food", "Did you mean Food101"),
        ("zzz", "Known are Cars, DTD"),
        ("", "Known are Cars, DTD"),
        ("torch/cifar-11", "cifar10"),
        ("torch/RESISC45", "Known are cars"),
        ("x" * 5000, "Known are Cars"),
        ("a\0b", "Known are Cars"),
    ],
)
def test_an_unknown_name_is_wrong_usage_with_near_ones(spec: str, hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        open_task(spec, None)
    assert caught.value.exit_code == 2
    assert hint in str(caught.value.hint)


# --- the paper's tasks ----------------------------------------------------------------------------


@every_task
def test_a_task_that_is_not_there_is_answered_with_where_to_put_it(
    name: str, tmp_path: Path
) -> None:
    task = TASKS[name]
    with pytest.raises(DataError, match=f"{name} is not in {tmp_path}") as caught:
        open_task(name, tmp_path)
    hint = str(caught.value.hint)
    assert f"{tmp_path}/{name}/{{train," in hint
    assert task.hub.id in hint
    assert task.source in hint
    assert "--dataset-download" in hint
    assert "pip install 'qvec[hfds]'" in hint
    assert task.vision is None or f"{tmp_path}/{task.vision.place}" in hint
    assert ("(torchvision" in hint) == torchvision_sets.fetches(task)
    assert "\n" not in hint


@every_task
def test_a_task_without_a_data_dir_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="no --data-dir is given") as caught:
        open_task(name, None)
    assert TASKS[name].hub.id in str(caught.value.hint)


def test_a_data_dir_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    for name in ("MNIST", "DTD", "RESISC45"):
        with pytest.raises(DataError, match=f"{name} is not in {tmp_path}/gone"):
            open_task(name, tmp_path / "gone")


@pytest.mark.parametrize("place", ["RESISC45", "resisc45", "RESISC-45"])
def test_an_image_folder_is_found_inside_the_data_dir_and_as_it(place: str, tmp_path: Path) -> None:
    home = plant(tmp_path / place, "train", "test", classes=45, each=1)
    expected = {"train": 41, "val": 4, "test": 45}
    assert lengths("RESISC45", tmp_path) == expected
    assert lengths("RESISC45", home) == expected


def test_the_data_dir_of_another_task_is_not_taken(tmp_path: Path) -> None:
    home = plant(tmp_path / "flowers", "train", "test", classes=45, each=1)
    with pytest.raises(DataError, match="RESISC45 is not in"):
        open_task("RESISC45", home)


def test_an_image_folder_wins_over_idx_files(tmp_path: Path) -> None:
    plant(plant_idx(tmp_path / "MNIST"), "train", classes=10, each=1)
    assert lengths("MNIST", tmp_path) == {"train": 9, "val": 1}


def test_a_val_folder_of_its_own_is_used(tmp_path: Path) -> None:
    plant(tmp_path / "DTD", "train", "val", "test", classes=47, each=1)
    assert lengths("DTD", tmp_path) == {"train": 47, "val": 47, "test": 47}


@pytest.mark.parametrize("val", ["val", "validation"])
def test_imagenets_validation_is_its_test(val: str, tmp_path: Path) -> None:
    plant(tmp_path / "tiny_imagenet", "train", val, classes=200, each=1)
    assert lengths("TinyImageNet", tmp_path) == {"train": 180, "val": 20, "test": 200}


def test_rendered_sst2_as_torchvision_has_it_keeps_its_official_validation_out(
    tmp_path: Path,
) -> None:
    home = plant(tmp_path / "rendered-sst2", "train", "valid", "test", classes=2)
    for split in home.iterdir():
        for old, new in (("c000", "negative"), ("c001", "positive")):
            (split / old).rename(split / new)
    assert lengths("RenderedSST2", tmp_path) == {"train": 9, "val": 1, "test": 10}
    home.rename(tmp_path / "RenderedSST2")
    assert lengths("RenderedSST2", tmp_path) == {"train": 10, "val": 10, "test": 10}


def test_imagenets_empty_classes_move_with_its_validation(tmp_path: Path) -> None:
    plant(tmp_path / "tiny_imagenet", "train", "val", classes=200, each=1)
    (tmp_path / "tiny_imagenet/val/c007/0.png").unlink()
    task = open_task("TinyImageNet", tmp_path)
    assert len(task.split("val")) == 20
    with pytest.raises(DataError, match="val/c007: this class has no image"):
        task.split("test")


@pytest.mark.parametrize("classes", [44, 46])
def test_another_number_of_classes_is_refused(classes: int, tmp_path: Path) -> None:
    plant(tmp_path / "RESISC45", "train", "test", classes=classes, each=1)
    with pytest.raises(DataError, match=f"RESISC45 has 45 classes, but {classes} were found"):
        open_task("RESISC45", tmp_path)


def test_a_broken_image_folder_is_refused_and_nothing_else_is_tried(tmp_path: Path) -> None:
    plant(plant_idx(tmp_path / "MNIST"), "train", classes=10, each=1)
    (tmp_path / "MNIST/train/empty").mkdir()
    with pytest.raises(DataError, match="MNIST/train/empty: this class has no image"):
        open_task("MNIST", tmp_path)


# --- torchvision and the hub ----------------------------------------------------------------------


class Stage:
    """Stand-ins for torchvision and the hub that note when they are asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.calls: list[tuple[str, bool]] = []
        self.faults: dict[str, str] = {}
        self.found = DataSource(tuple("0123456789"), {"test": self})
        self.labels = list(range(10))
        monkeypatch.setattr(torchvision_sets, "open_torchvision", self.torchvision)
        monkeypatch.setattr(hub, "open_hub", self.hub)
        monkeypatch.setattr(hub, "installed", lambda: True)

    def __len__(self) -> int:
        return 10

    def load(self, index: int) -> Any: ...

    def torchvision(self, task: object, root: Path, *, download: bool) -> DataSource:
        return self._answer("torchvision", download)

    def hub(self, name: str, *, download: bool) -> DataSource:
        return self._answer("hub", download)

    def _answer(self, who: str, download: bool) -> DataSource:
        self.calls.append((who, download))
        if who in self.faults:
            raise DataError(self.faults[who])
        return self.found


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stage:
    return Stage(monkeypatch, tmp_path)


def test_torchvision_is_asked_first_if_it_has_something(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "train_32x32.mat").touch()
    assert lengths("SVHN", tmp_path) == {"test": 10}
    assert stage.calls == [("torchvision", False)]


def test_the_cache_of_the_hub_is_asked_if_the_data_dir_has_nothing(
    stage: Stage, tmp_path: Path
) -> None:
    assert lengths("SVHN", tmp_path) == {"test": 10}
    assert lengths("SVHN") == {"test": 10}
    assert stage.calls == [("hub", False)] * 2


def test_broken_files_in_the_data_dir_are_not_passed_over_for_the_hub(
    stage: Stage, tmp_path: Path
) -> None:
    (tmp_path / "train_32x32.mat").touch()
    stage.faults["torchvision"] = "train_32x32.mat is corrupt"
    with pytest.raises(DataError, match="is corrupt"):
        open_task("SVHN", tmp_path)
    assert stage.calls == [("torchvision", False)]


def test_a_download_that_fails_is_tried_at_the_hub(stage: Stage, tmp_path: Path) -> None:
    stage.faults["torchvision"] = "HTTP 503"
    assert len(open_task("SVHN", tmp_path, download=True).split("test")) == 10
    assert stage.calls == [("torchvision", True), ("hub", True)]


def test_if_every_download_fails_the_first_reason_is_told(stage: Stage, tmp_path: Path) -> None:
    stage.faults.update(torchvision="HTTP 503", hub="no network")
    with pytest.raises(DataError, match="HTTP 503"):
        open_task("SVHN", tmp_path, download=True)


def test_what_torchvision_cannot_fetch_is_fetched_from_the_hub(
    stage: Stage, tmp_path: Path
) -> None:
    assert len(open_task("KMNIST", tmp_path, download=True).classes) == 10
    assert stage.calls == [("hub", True)]


@pytest.mark.parametrize(
    "name", ["cifar10", "CIFAR100", "mnist", "kmnist", "fashion_mnist", "imagenet", "svhn", "pcam"]
)
def test_timms_names_go_to_torchvision_and_nowhere_else(
    name: str, stage: Stage, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="is not in"):
        open_task(f"torch/{name}", tmp_path)
    with pytest.raises(DataError, match="no --data-dir"):
        open_task(f"torch/{name}", None, download=True)
    assert stage.calls == []


def test_torch_names_open_the_task_that_they_mean(stage: Stage, tmp_path: Path) -> None:
    assert open_task("torch/fashion_mnist", tmp_path, download=True).name == "FashionMNIST"
    assert stage.calls == [("torchvision", True)]


# --- what is not imported -------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from qvec_cli.errors import QvecError
from qvec_cli.data.datasets import open_task

root = Path(sys.argv[1])
toy = open_task(str(root / "toy"), None)
assert [len(toy.split(name)) for name in ("train", "val", "test")] == [9, 1, 10]
assert len(open_task("MNIST", root).split("val")) == 3

refused = 0
for spec in (
    *("CIFAR10", "DTD", "KMNIST", "RESISC45", "ImageNet", "cifar", "torch/cifar10", "torch/x"),
    *(str(root / "gone"), str(root / "empty"), str(root / "toy/train"), "hfds/a/b"),
):
    try:
        open_task(spec, root).split("train")
    except QvecError:
        refused += 1
try:
    toy.split("tset")
except QvecError:
    refused += 1
assert refused == 13
assert not {"torch", "torchvision", "timm"} & set(sys.modules)
toy.split("val").labels
assert "torch" in sys.modules
"""


def test_torch_waits_for_the_draw_and_no_refusal_imports_it(tmp_path: Path) -> None:
    plant(tmp_path / "toy", "train", "test")
    plant_idx(tmp_path / "MNIST")
    (plant(tmp_path / "empty", "train") / "train/none").mkdir()
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_refusal_is_always_a_qvec_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(self: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    (tmp_path / "dtd").mkdir()
    monkeypatch.setattr(Path, "iterdir", deny)
    for spec in ("MNIST", "torch/dtd"):
        with pytest.raises(QvecError, match=f"^{tmp_path}.*: Permission denied"):
            open_task(spec, tmp_path)
