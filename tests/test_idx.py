"""idx files: read exactly or refused, and never mistaken for another task's."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from qvec_cli.data.datasets import open_task
from qvec_cli.data.idx import find_idx, open_idx, read_idx
from qvec_cli.data.tasks import TASKS
from qvec_cli.errors import DataError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
MNIST, FASHION, KMNIST, EMNIST = (
    TASKS[name] for name in ("MNIST", "FashionMNIST", "KMNIST", "EMNIST")
)
LETTERS = ("emnist-letters-train", "emnist-letters-test")


def encode(array: NDArray[np.uint8]) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def plant(
    home: Path, stems: tuple[str, str] = ("train", "t10k"), *, first: int = 0, classes: int = 10
) -> Path:
    """The four files of a task: 3 images a class in train, 1 in test; pixel [0, 1] is the label."""
    home.mkdir(parents=True, exist_ok=True)
    for stem, each in zip(stems, (3, 1), strict=True):
        labels = np.tile(np.arange(first, first + classes, dtype=np.uint8), each)
        images = np.zeros((len(labels), 5, 4), np.uint8)
        images[:, 0, 1] = labels
        (home / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(encode(images)))
        (home / f"{stem}-labels-idx1-ubyte").write_bytes(encode(labels))
    return home


@given(arrays(np.uint8, array_shapes(min_dims=1, max_dims=3, max_side=5)), st.booleans())
def test_an_array_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, array: NDArray[np.uint8], zipped: bool
) -> None:
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(gzip.compress(encode(array)) if zipped else encode(array))
    again = read_idx(path)
    assert again.dtype == np.uint8
    assert np.array_equal(again, array)


WHOLE = encode(np.arange(12, dtype=np.uint8).reshape(3, 4))
DAMAGED = {
    "empty": (b"", "is not an idx file"),
    "text": (b"hello, world", "is not an idx file"),
    "rank 0": (b"\0\0\x08\0", "is not an idx file"),
    "floats": (b"\0\0\x0d\x01" + WHOLE[4:], "type 0x0d"),
    "cut header": (WHOLE[:9], "ends inside its header"),
    "cut values": (WHOLE[:-1], "has 11 values where its header says 3 x 4"),
    "too long": (WHOLE + b"x", "has 13 values where its header says 3 x 4"),
    "huge": (b"\0\0\x08\x02" + b"\xff" * 8, "has 0 values"),
    "cut gzip": (gzip.compress(WHOLE)[:-9], "cannot be read"),
    "damaged gzip": (gzip.compress(WHOLE)[:12] + b"\xff" * 30, "cannot be read"),
    "gzip checksum": (gzip.compress(WHOLE)[:-8] + b"\0" * 8, "cannot be read"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_named(tmp_path: Path, case: str) -> None:
    content, reason = DAMAGED[case]
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: ") as caught:
        read_idx(path)
    assert reason in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone: cannot be read: No such file"):
        read_idx(tmp_path / "gone")


def test_a_task_has_its_images_labels_and_official_names(tmp_path: Path) -> None:
    found = open_idx(FASHION, plant(tmp_path))
    assert found.classes == FASHION.names
    test = found.splits["test"]
    assert list(test.labels) == list(range(10))
    assert [np.asarray(test.load(i))[0, 1] for i in range(10)] == list(range(10))
    assert test.load(0).mode == "L"
    assert test.load(0).size == (4, 5)


def test_emnist_letters_start_at_0_and_stand_upright(tmp_path: Path) -> None:
    found = open_idx(EMNIST, plant(tmp_path, LETTERS, first=1, classes=26))
    assert found.classes[0] == "a"
    test = found.splits["test"]
    assert list(test.labels) == list(range(26))
    assert test.load(3).size == (5, 4)
    assert np.asarray(test.load(3))[1, 0] == 4  # label 4 of the file, across the diagonal


def test_emnist_files_with_a_label_0_are_refused(tmp_path: Path) -> None:
    plant(tmp_path / "EMNIST", LETTERS, first=0, classes=26)
    with pytest.raises(DataError, match="EMNIST: image 0 of train has the label -1"):
        open_task("EMNIST", tmp_path)


def test_images_and_labels_that_differ_in_number_are_refused(tmp_path: Path) -> None:
    plant(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(encode(np.zeros(9, np.uint8)))
    with pytest.raises(DataError, match=r"has 10 images, .*t10k-labels-idx1-ubyte 9 labels"):
        open_idx(MNIST, tmp_path)


def test_labels_in_the_place_of_images_are_refused(tmp_path: Path) -> None:
    plant(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(encode(np.zeros(30, np.uint8)))
    with pytest.raises(DataError, match="train-images-idx3-ubyte: has 1 dimensions, not 3"):
        open_idx(MNIST, tmp_path)


@pytest.mark.parametrize("gone", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte"])
def test_half_a_pair_is_refused_with_the_other_half(tmp_path: Path, gone: str) -> None:
    plant(tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(DataError, match=f"{gone.removesuffix('.gz')} is missing"):
        open_idx(MNIST, tmp_path)


def test_a_test_split_alone_can_be_measured_on(tmp_path: Path) -> None:
    for path in plant(tmp_path / "MNIST").glob("train-*"):
        path.unlink()
    assert list(open_task("MNIST", tmp_path).splits) == ["test"]


def test_a_label_beyond_the_classes_is_refused(tmp_path: Path) -> None:
    plant(tmp_path / "MNIST", classes=11)
    with pytest.raises(DataError, match="MNIST: image 10 of train has the label 10"):
        open_task("MNIST", tmp_path)


def test_too_few_classes_are_refused(tmp_path: Path) -> None:
    plant(tmp_path / "MNIST", classes=9)
    with pytest.raises(DataError, match="MNIST has 10 classes, but 9 were found"):
        open_task("MNIST", tmp_path)


@pytest.mark.parametrize(
    "place", ["FashionMNIST", "FashionMNIST/raw", "fashion-mnist", "fashion_mnist", "raw", "."]
)
def test_the_folder_of_a_task_is_found_by_its_name(tmp_path: Path, place: str) -> None:
    home = plant(tmp_path / "images" / place)
    assert find_idx(FASHION, tmp_path / "images") == home


@pytest.mark.parametrize("name", ["fashion-mnist", "FashionMNIST", "fashionmnist"])
def test_a_folder_named_for_the_task_is_taken_with_other_files_in_it(
    tmp_path: Path, name: str
) -> None:
    home = plant(tmp_path / name)
    (home / "README").touch()
    assert find_idx(FASHION, home) == home
    assert find_idx(FASHION, plant(tmp_path / name / "raw")) == home / "raw"


@pytest.mark.parametrize("task", [MNIST, KMNIST], ids=lambda task: task.name)
def test_the_folder_of_another_task_is_not_taken(tmp_path: Path, task: object) -> None:
    home = plant(tmp_path / "fashion-mnist")
    raw = plant(tmp_path / "FashionMNIST/raw")
    for folder in (home, raw, raw.parent, tmp_path):
        assert find_idx(task, folder) is None  # type: ignore[arg-type]


def test_a_nameless_folder_is_taken_only_if_nothing_else_is_in_it(tmp_path: Path) -> None:
    home = plant(tmp_path / "stuff")
    assert find_idx(KMNIST, home) == home
    (home / ".hidden").touch()
    assert find_idx(KMNIST, home) == home
    (home / "kmnist_classmap.csv").touch()
    assert find_idx(KMNIST, home) is None


def test_emnist_files_name_their_task_themselves(tmp_path: Path) -> None:
    home = plant(tmp_path / "stuff", LETTERS, first=1, classes=26)
    (home / "README").touch()
    assert find_idx(EMNIST, home) == home
    assert find_idx(MNIST, home) is None


def test_files_with_the_old_dots_are_found(tmp_path: Path) -> None:
    for path in plant(tmp_path / "MNIST").iterdir():
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert len(open_task("MNIST", tmp_path).splits["test"]) == 10


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
@pytest.mark.parametrize("folder", [DEBIAN, DEBIAN.parent])
def test_debians_fashion_mnist_opens_from_its_folder_and_from_above(folder: Path) -> None:
    task = open_task("FashionMNIST", folder)
    assert {name: len(split) for name, split in task.splits.items()} == {
        "train": 55000,
        "val": 5000,
        "test": 10000,
    }
    assert list(task.split("test").labels[:4]) == [9, 2, 1, 1]
    with pytest.raises(DataError, match="MNIST is not in"):
        open_task("MNIST", folder)
