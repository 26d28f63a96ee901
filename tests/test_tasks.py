"""The table of the paper's 22 tasks agrees with the paper and with torchvision."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from qvec_cli.data.samples import draw_validation
from qvec_cli.data.tasks import TASKS, PaperTask
from qvec_cli.data.torchvision_sets import open_torchvision
from qvec_cli.errors import DataError

# epochs, classes, HF id, training images after validation is drawn
PAPER = {
    "Cars": (35, 196, "tanganke/stanford_cars", 7330),
    "DTD": (76, 47, "tanganke/dtd", 3384),
    "EuroSAT": (12, 10, "tanganke/eurosat", 19440),
    "GTSRB": (11, 43, "tanganke/gtsrb", 23976),
    "MNIST": (5, 10, "ylecun/mnist", 55000),
    "RESISC45": (15, 45, "tanganke/resisc45", 17010),
    "SUN397": (14, 397, "tanganke/sun397", 17865),
    "SVHN": (4, 10, "ufldl-stanford/svhn", 68257),
    "CIFAR10": (6, 10, "uoft-cs/cifar10", 45000),
    "CIFAR100": (6, 100, "uoft-cs/cifar100", 45000),
    "STL10": (60, 10, "tanganke/stl10", 4500),
    "Food101": (4, 101, "ethz/food101", 70750),
    "Flowers102": (147, 102, "dpdl-benchmark/oxford_flowers102", 918),
    "FER2013": (10, 7, "clip-benchmark/wds_fer2013", 25839),
    "PCAM": (1, 2, "1aurent/PatchCamelyon", 257144),
    "OxfordIIITPet": (82, 37, "timm/oxford-iiit-pet", 3312),
    "RenderedSST2": (39, 2, "nateraw/rendered-sst2", 6228),
    "EMNIST": (2, 26, "tanganke/emnist_letters", 119800),
    "FashionMNIST": (5, 10, "zalando-datasets/fashion_mnist", 55000),
    "KMNIST": (5, 10, "tanganke/kmnist", 55000),
    "TinyImageNet": (4, 200, "zh-plus/tiny-imagenet", 95000),
    "ImageNet": (1, 1000, "ILSVRC/imagenet-1k", 1276167),
}

every_task = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
in_torchvision = pytest.mark.parametrize(
    "task", [task for task in TASKS.values() if task.vision], ids=lambda task: task.name
)


def vision_class(task: PaperTask) -> Any:
    import torchvision.datasets

    assert task.vision is not None
    return getattr(torchvision.datasets, task.vision.name)


def test_the_table_has_the_papers_tasks() -> None:
    assert set(TASKS) == set(PAPER)


@every_task
def test_a_row_agrees_with_the_paper(task: PaperTask) -> None:
    class Many:
        labels = ()

        def __len__(self) -> int:
            return task.train

        def load(self, index: int) -> Any: ...

    after = len(draw_validation(Many())[0])
    assert (task.epochs, task.classes, task.hub.id, after) == PAPER[task.name]


@every_task
def test_a_row_is_whole(task: PaperTask) -> None:
    assert task.classes > 1
    assert 0 < task.test < task.train * 7
    assert task.source.startswith("http")
    if task.names is not None:
        assert len(set(task.names)) == task.classes
    if task.idx:
        assert len(task.idx) == 2
        assert task.names is not None


@in_torchvision
def test_torchvision_has_the_class_and_takes_the_arguments(task: PaperTask, tmp_path: Path) -> None:
    assert task.vision is not None
    for arguments in (*task.vision.train, *task.vision.test):
        inspect.signature(vision_class(task)).bind(str(tmp_path), **arguments)
    with pytest.raises(DataError) as caught:  # the data are not there, but the split is known
        open_torchvision(task, tmp_path, download=False)
    assert "Unknown value" not in str(caught.value)
    assert "unexpected" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@in_torchvision
def test_what_is_said_to_be_fetched_can_be_fetched(task: PaperTask) -> None:
    assert task.vision is not None
    parameters = inspect.signature(vision_class(task)).parameters
    if task.vision.fetches:
        assert "download" in parameters or "kwargs" in parameters


@in_torchvision
def test_torchvision_names_the_place_where_it_looks(task: PaperTask) -> None:
    """A renamed folder would make qvec say that data are missing."""
    assert task.vision is not None
    source = inspect.getsource(inspect.getmodule(vision_class(task)))  # type: ignore[arg-type]
    first, *raw = task.vision.place.split("/")
    assert f'"{first}"' in source or raw == ["raw"]


@in_torchvision
def test_classes_without_splits_are_cut_into_splits_that_fit(task: PaperTask) -> None:
    assert task.vision is not None
    assert (task.vision.whole is None) == bool(task.vision.test)
    if task.vision.whole is not None:
        assert task.train + task.test <= task.vision.whole


def test_nothing_is_trained_on_images_without_labels() -> None:
    for task in TASKS.values():
        for arguments in (*task.vision.train, *task.vision.test) if task.vision else ():
            assert "unlabeled" not in str(arguments)


def test_no_official_validation_split_is_used_but_dtds_which_is_trained_on() -> None:
    users = {
        task.name
        for task in TASKS.values()
        if task.vision and any(a.get("split") == "val" for a in task.vision.train)
    }
    assert users == {"DTD"}
