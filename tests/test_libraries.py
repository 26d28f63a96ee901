"""torchvision's classes, read from small copies of their own layouts and from stand-ins."""

from __future__ import annotations

import gzip
import json
import pickle
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_idx import LETTERS, plant

from qvec_cli.data.idx import open_idx
from qvec_cli.data.samples import DataSource, assemble
from qvec_cli.data.tasks import TASKS, PaperTask
from qvec_cli.data.torchvision_sets import fetches, open_torchvision, present
from qvec_cli.errors import DataError

PIXEL = Image.new("RGB", (2, 1), (9, 9, 9))


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIXEL.save(path)


def opened(name: str, root: Path) -> DataSource:
    return open_torchvision(TASKS[name], root, download=False)


def stand_in(monkeypatch: pytest.MonkeyPatch, task: PaperTask, make: Callable[..., Any]) -> None:
    """Puts a function in the place of a class of torchvision."""
    import torchvision.datasets

    assert task.vision is not None
    monkeypatch.setattr(torchvision.datasets, task.vision.name, make)


# --- torchvision's own classes --------------------------------------------------------------------


def dtd(root: Path) -> None:
    for split, numbers in (("train1", "123"), ("val1", "45"), ("test1", "6")):
        names = [f"{kind}/{kind}_{n}.jpg" for n in numbers for kind in ("zigzagged", "banded")]
        for name in names:
            save(root / "dtd/dtd/images" / name)
        lists = root / "dtd/dtd/labels"
        lists.mkdir(exist_ok=True)
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")


def gtsrb(root: Path) -> None:
    base = root / "gtsrb"
    for label in range(3):
        for number in range(2):
            save(base / f"GTSRB/Training/{label:05d}/{number}.ppm")
        save(base / f"GTSRB/Final_Test/Images/{label}.ppm")
    rows = "".join(f"{label}.ppm;{label}\n" for label in (2, 0, 1))
    (base / "GT-final_test.csv").write_text("Filename;ClassId\n" + rows)


def sst2(root: Path) -> None:
    for split in ("train", "valid", "test"):
        for kind in ("negative", "positive"):
            save(root / f"rendered-sst2/{split}/{kind}/1.png")


def pets(root: Path) -> None:
    base = root / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    for split, number in (("trainval", 1), ("test", 2)):
        rows = [(f"Egyptian_Mau_{number}", 1), (f"american_bulldog_{number}", 2)]
        for name, _ in rows:
            save(base / f"images/{name}.jpg")
        text = "".join(f"{name} {label} 1 1\n" for name, label in rows)
        (base / f"annotations/{split}.txt").write_text(text)


def food(root: Path) -> None:
    for split, numbers in (("train", "12"), ("test", "3")):
        listed = {kind: [f"{kind}/{n}" for n in numbers] for kind in ("apple_pie", "sushi")}
        for name in chain.from_iterable(listed.values()):
            save(root / f"food-101/images/{name}.jpg")
        meta = root / "food-101/meta"
        meta.mkdir(exist_ok=True)
        (meta / f"{split}.json").write_text(json.dumps(listed))


def cars(root: Path) -> None:
    from scipy.io import savemat

    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    kinds = np.array(["AM General Hummer SUV 2000", "Audi TT"], dtype=object)
    savemat(base / "devkit/cars_meta.mat", {"class_names": kinds})
    places = {"cars_train": base / "devkit/cars_train_annos.mat"}
    places["cars_test"] = base / "cars_test_annos_withlabels.mat"
    for folder, lists in places.items():
        rows = np.array(
            [("1.jpg", 1), ("2.jpg", 2)], dtype=[("fname", object), ("class", np.uint8)]
        )
        savemat(lists, {"annotations": rows})
        for number in (1, 2):
            save(base / folder / f"{number}.jpg")


REAL: dict[str, tuple[Callable[[Path], None], tuple[str, ...] | None, list[int], list[int]]] = {
    "DTD": (dtd, ("banded", "zigzagged"), [1, 0] * 5, [1, 0]),
    "GTSRB": (gtsrb, None, [0, 0, 1, 1, 2, 2], [2, 0, 1]),
    "RenderedSST2": (sst2, ("negative", "positive"), [0, 1], [0, 1]),
    "OxfordIIITPet": (pets, ("egyptian_mau", "american_bulldog"), [0, 1], [0, 1]),
    "Food101": (food, ("apple_pie", "sushi"), [0, 0, 1, 1], [0, 1]),
    "Cars": (cars, ("am_general_hummer_suv_2000", "audi_tt"), [0, 1], [0, 1]),
}


@pytest.mark.parametrize("name", REAL)
def test_torchvisions_own_layout_is_read(name: str, tmp_path: Path) -> None:
    write, classes, train, test = REAL[name]
    write(tmp_path)
    assert present(TASKS[name], tmp_path)
    found = opened(name, tmp_path)
    assert found.classes == (classes or TASKS[name].names)
    assert list(found.splits["train"].labels) == train
    assert list(found.splits["test"].labels) == test
    assert found.splits["test"].load(0).size == (2, 1)
    assert pickle.loads(pickle.dumps(found.splits["train"])).load(0).size == (2, 1)


def test_a_broken_file_of_torchvisions_layout_is_named(tmp_path: Path) -> None:
    dtd(tmp_path)
    broken = tmp_path / "dtd/dtd/images/zigzagged/zigzagged_6.jpg"
    broken.write_bytes(b"")
    with pytest.raises(DataError, match=r"zigzagged_6\.jpg: is empty"):
        opened("DTD", tmp_path).splits["test"].load(0)


def test_emnist_through_torchvision_is_emnist_from_its_files(tmp_path: Path) -> None:
    raw = plant(tmp_path / "EMNIST/raw", LETTERS, first=1, classes=26)
    for path in raw.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    ours, theirs = open_idx(TASKS["EMNIST"], raw), opened("EMNIST", tmp_path)
    assert theirs.classes == ours.classes
    for split in ("train", "test"):
        mine, other = ours.splits[split], theirs.splits[split]
        assert list(other.labels) == list(mine.labels)
        for index in range(len(mine)):
            assert np.array_equal(np.asarray(other.load(index)), np.asarray(mine.load(index)))


def test_a_class_that_only_one_split_has_is_refused(tmp_path: Path) -> None:
    pets(tmp_path)
    lists = tmp_path / "oxford-iiit-pet/annotations/test.txt"
    lists.write_text(lists.read_text().splitlines()[0] + "\n")
    with pytest.raises(DataError, match="do not have the same classes"):
        opened("OxfordIIITPet", tmp_path)


# --- sets that come in one piece ------------------------------------------------------------------


def listing(task: PaperTask, seed: int) -> Any:
    """All images of a set, in an order of their own, as torchvision's object holds them."""
    assert task.vision is not None
    assert task.vision.whole is not None
    order = list(range(task.vision.whole))
    random.Random(seed).shuffle(order)
    labels = [number % task.classes for number in order]
    files = [Path(f"/set/{label:03d}/{n}.jpg") for n, label in zip(order, labels, strict=True)]
    classes = [f"c{label}" for label in range(task.classes)]
    if task.name == "SUN397":
        return SimpleNamespace(_image_files=files, _labels=labels, classes=classes)
    return SimpleNamespace(samples=list(zip(map(str, files), labels, strict=True)), classes=classes)


@pytest.mark.parametrize("name", ["EuroSAT", pytest.param("SUN397", marks=pytest.mark.slow)])
def test_a_set_in_one_piece_is_split_alike_whatever_the_order_of_its_files(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task, drawn = TASKS[name], []
    for seed in (1, 2):
        listed = listing(task, seed)
        stand_in(monkeypatch, task, lambda root, listed=listed: listed)
        splits: dict[str, Any] = opened(name, tmp_path).splits
        assert len(splits["train"]) == task.train
        assert len(splits["test"]) == task.test
        files = {key: [part.whole.files[i] for i in part.indices] for key, part in splits.items()}
        assert [int(file.split("/")[2]) for file in files["test"]] == splits["test"].labels
        assert not set(files["train"]) & set(files["test"])
        drawn.append(files)
    assert drawn[0] == drawn[1]


def test_a_set_in_one_piece_with_images_missing_is_refused(tmp_path: Path) -> None:
    for kind in ("Forest", "River"):
        save(tmp_path / f"eurosat/2750/{kind}/1.jpg")
    with pytest.raises(DataError, match="has 2 images, not 27000"):
        opened("EuroSAT", tmp_path)


def test_validation_is_drawn_from_the_train_part_of_a_set_in_one_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = TASKS["EuroSAT"]
    assert task.vision is not None
    small = replace(task, train=20, test=8, vision=replace(task.vision, whole=28))
    for number in range(28):
        save(tmp_path / f"eurosat/2750/{'Forest' if number % 2 else 'River'}/{number:02d}.jpg")
    made = assemble("toy", open_torchvision(small, tmp_path, download=False))
    assert {name: len(part) for name, part in made.splits.items()} == {
        "train": 18,
        "val": 2,
        "test": 8,
    }
    assert set(made.split("train").labels) == {0, 1}


# --- sets that are arrays -------------------------------------------------------------------------


class Arrays:
    """CIFAR, SVHN and STL10 as torchvision keeps them in memory."""

    def __init__(self, name: str, labels: Any, **more: Any) -> None:
        setattr(self, name, labels)
        self.__dict__.update(more)
        self.count = len(labels)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, None]:
        if index >= 5:
            raise OSError("page fault\nin the archive")
        return PIXEL, None


@pytest.mark.parametrize(
    ("name", "attribute", "labels"),
    [
        ("CIFAR10", "targets", [3, 1, 4]),
        ("SVHN", "labels", np.array([3, 1, 4])),
        ("STL10", "labels", np.array([3, 1, 4], np.uint8)),
    ],
)
def test_labels_of_arrays_become_plain_numbers(
    name: str, attribute: str, labels: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    classes = [f"c{i}" for i in range(10)]
    stand_in(monkeypatch, TASKS[name], lambda root, **_: Arrays(attribute, labels, classes=classes))
    test = opened(name, tmp_path).splits["test"]
    assert list(test.labels) == [3, 1, 4]
    assert all(type(label) is int for label in test.labels)
    assert test.load(0) == PIXEL


def test_fer2013_without_test_labels_trains_but_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def make(root: str, split: str) -> Any:
        labels = [i % 7 if split == "train" else None for i in range(30)]
        return SimpleNamespace(_samples=[(np.zeros((48, 48)), label) for label in labels])

    stand_in(monkeypatch, TASKS["FER2013"], make)
    made = assemble("FER2013", opened("FER2013", tmp_path))
    assert len(made.split("train")) == 27
    with pytest.raises(DataError, match="FER2013: image 0 of test has the label None"):
        made.split("test")


def test_unlabelled_images_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, TASKS["STL10"], lambda root, **_: Arrays("labels", [0, -1] * 5))
    with pytest.raises(DataError, match="image 1 of test has the label -1"):
        assemble("STL10", opened("STL10", tmp_path)).split("test")


def test_pcam_labels_are_read_without_decoding_its_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class File:
        def __init__(self, path: Path) -> None:
            if path.exists():
                raise OSError("file signature not found")

        def __enter__(self) -> dict[str, Any]:
            return {"y": np.array([0, 1, 1]).reshape(3, 1, 1, 1)}

        def __exit__(self, *_: object) -> None: ...

    def make(root: str, split: str) -> Any:
        files = {split: {"targets": ("y.h5", "", "")}}
        return SimpleNamespace(
            h5py=SimpleNamespace(File=File),
            _FILES=files,
            _split=split,
            _base_folder=Path(root) / "pcam",
        )

    stand_in(monkeypatch, TASKS["PCAM"], make)
    assert list(opened("PCAM", tmp_path).splits["train"].labels) == [0, 1, 1]
    (tmp_path / "pcam").mkdir()
    (tmp_path / "pcam/y.h5").touch()
    with pytest.raises(DataError, match="PCAM: its labels cannot be read: file signature"):
        opened("PCAM", tmp_path)


def test_imagenet_has_wordnet_ids_for_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def make(root: str, split: str) -> Any:
        return SimpleNamespace(
            samples=[("a.JPEG", 0), ("b.JPEG", 1)],
            wnids=["n02012849", "n03126707"],
            classes=[("crane",), ("crane",)],
        )

    stand_in(monkeypatch, TASKS["ImageNet"], make)
    assert opened("ImageNet", tmp_path).classes == ("n02012849", "n03126707")


def test_an_image_that_an_archive_cannot_give_is_an_error_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in(monkeypatch, TASKS["SVHN"], lambda root, **_: Arrays("labels", [0] * 9))
    with pytest.raises(DataError, match="SVHN: image 7 is broken: page fault in the archive"):
        opened("SVHN", tmp_path).splits["test"].load(7)


# --- what can go wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("download", [False, True])
def test_only_download_lets_torchvision_fetch(
    download: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []

    def make(root: str, **arguments: Any) -> Any:
        seen.append(arguments.get("download", False))
        return Arrays("labels", [0])

    for name in ("SVHN", "FER2013"):
        stand_in(monkeypatch, TASKS[name], make)
        open_torchvision(TASKS[name], tmp_path, download=download)
    assert seen == [download, download, False, False]
    assert not fetches(TASKS["FER2013"])


def test_what_torchvision_prints_is_not_a_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(root: str, **_: Any) -> Any:
        sys.stdout.write("Files already downloaded and verified")
        return Arrays("labels", [0])

    stand_in(monkeypatch, TASKS["SVHN"], make)
    opened("SVHN", tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("fault", "hint"),
    [
        (RuntimeError("Dataset not found.\nYou can download it"), "ufldl"),
        (OSError("HTTP Error 503"), "ufldl"),
        (AssertionError(), "ufldl"),
        (ModuleNotFoundError("No module named 'scipy'", name="scipy"), "pip install scipy"),
    ],
)
def test_a_fault_of_torchvision_is_one_line_with_a_way_out(
    fault: Exception, hint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def make(root: str, **_: Any) -> Any:
        raise fault

    stand_in(monkeypatch, TASKS["SVHN"], make)
    with pytest.raises(DataError) as caught:
        opened("SVHN", tmp_path)
    assert str(caught.value).startswith(f"SVHN: torchvision cannot open {tmp_path}/train_32x32.mat")
    assert "\n" not in str(caught.value)
    assert hint in str(caught.value.hint)


def test_an_empty_folder_that_a_failed_download_left_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "dtd").mkdir()
    assert not present(TASKS["DTD"], tmp_path)
    (tmp_path / "dtd/dtd").mkdir()
    assert present(TASKS["DTD"], tmp_path)
    assert not present(TASKS["RESISC45"], tmp_path)
    assert not present(TASKS["DTD"], None)
