"""Image folders: what is read, in which order, and what is refused."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from qvec_cli.data.folders import has_splits, layout, read_flat, read_folder
from qvec_cli.errors import DataError

PIXEL = Image.new("L", (1, 1), 7)


def plant(folder: Path, *names: str) -> Path:
    """Image files below a folder."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIXEL.save(path, "PPM" if path.suffix.lower() in {".ppm", ".pgm"} else None)
    return folder


def names(folder: Path, split: str) -> list[str]:
    return [Path(f).relative_to(folder).as_posix() for f in read_folder(folder).splits[split].files]  # type: ignore[attr-defined]


def test_classes_are_sorted_as_python_sorts(tmp_path: Path) -> None:
    plant(tmp_path, "train/b/1.png", "train/B/1.png", "train/10/1.png", "train/9/1.png")
    found = read_folder(tmp_path)
    assert found.classes == ("10", "9", "B", "b")
    assert list(found.splits["train"].labels) == [0, 1, 2, 3]


def test_files_are_sorted_within_a_class_and_found_at_any_depth(tmp_path: Path) -> None:
    plant(tmp_path, "test/a/z.png", "test/a/b/2.png", "test/a/b/c/1.png", "test/a/1.png")
    assert names(tmp_path, "test") == [
        "test/a/1.png",
        "test/a/b/2.png",
        "test/a/b/c/1.png",
        "test/a/z.png",
    ]


@pytest.mark.parametrize(
    "name", ["1.png", "1.JPG", "1.jpeg", "1.Bmp", "1.webp", "1.ppm", "1.pgm", "1.tif", "1.gif"]
)
def test_the_usual_extensions_count_in_any_case(tmp_path: Path, name: str) -> None:
    plant(tmp_path, f"train/a/{name}")
    assert len(read_folder(tmp_path).splits["train"]) == 1
    assert read_folder(tmp_path).splits["train"].load(0).size == (1, 1)


def test_hidden_files_and_files_of_other_kinds_are_left_out(tmp_path: Path) -> None:
    plant(tmp_path, "train/a/1.png", "train/a/.2.png", "train/a/.cache/3.png", "train/.b/4.png")
    (tmp_path / "train/a/notes.txt").touch()
    (tmp_path / "train/labels.csv").touch()
    (tmp_path / "README.md").touch()
    assert names(tmp_path, "train") == ["train/a/1.png"]


def test_linked_files_and_folders_are_followed(tmp_path: Path) -> None:
    plant(tmp_path / "store", "x/1.png", "y/2.png")
    (tmp_path / "set/train/a").mkdir(parents=True)
    (tmp_path / "set/train/a/1.png").symlink_to(tmp_path / "store/x/1.png")
    (tmp_path / "set/train/a/more").symlink_to(tmp_path / "store/y")
    (tmp_path / "set/train/b").symlink_to(tmp_path / "store/y")
    assert list(read_folder(tmp_path / "set").splits["train"].labels) == [0, 0, 1]


def test_links_that_lead_back_or_twice_to_a_folder_are_walked_once(tmp_path: Path) -> None:
    plant(tmp_path, "train/a/1.png", "train/a/x/2.png", "train/b/3.png")
    for link, target in (
        ("self", "."),
        ("up", ".."),
        ("top", "../.."),
        ("y", "x"),
        ("x/back", ".."),
    ):
        (tmp_path / "train/a" / link).symlink_to(target)
    (tmp_path / "train/b/a").symlink_to("../a")
    found = read_folder(tmp_path).splits["train"]
    files = [Path(file).relative_to(tmp_path / "train").as_posix() for file in found.files]
    assert files == ["a/1.png", "a/x/2.png", "b/3.png", "b/a/1.png", "b/a/x/2.png"]
    assert list(found.labels) == [0, 0, 1, 1, 1]
    assert len(read_flat(tmp_path).splits["train"]) == 3


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_validation_has_three_spellings(tmp_path: Path, name: str) -> None:
    plant(tmp_path, "train/a/1.png", f"{name}/a/1.png")
    assert set(read_folder(tmp_path).splits) == {"train", "val"}


def test_without_train_the_classes_are_those_that_are_there(tmp_path: Path) -> None:
    plant(tmp_path, "test/b/1.png", "val/a/1.png", "val/b/1.png")
    found = read_folder(tmp_path)
    assert found.classes == ("a", "b")
    assert list(found.splits["test"].labels) == [1]


def test_a_class_may_be_missing_from_test(tmp_path: Path) -> None:
    plant(tmp_path, "train/a/1.png", "train/b/1.png", "test/b/1.png")
    assert list(read_folder(tmp_path).splits["test"].labels) == [1]


def test_samples_travel_to_a_worker_process(tmp_path: Path) -> None:
    samples = read_folder(plant(tmp_path, "train/a/1.png")).splits["train"]
    assert pickle.loads(pickle.dumps(samples)).load(0).getpixel((0, 0)) == 7


def test_nothing_is_decoded_until_an_image_is_asked_for(tmp_path: Path) -> None:
    plant(tmp_path, "train/a/1.png")
    (tmp_path / "train/a/2.png").write_bytes(b"")
    samples = read_folder(tmp_path).splits["train"]
    assert len(samples) == 2
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/train/a/2.png: is empty")):
        samples.load(1)


def refusal(folder: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_folder(folder)
    return caught.value


def test_a_folder_without_splits_is_refused_with_the_layout(tmp_path: Path) -> None:
    error = refusal(plant(tmp_path, "cat/1.png", "dog/1.png"))
    assert "has no train, val or test folder" in str(error)
    assert f"{tmp_path}/{{train,val,test}}/<class>/*.png" in str(error.hint)
    assert layout(tmp_path) == error.hint


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "images.zip").touch()
    assert "is not a folder" in str(refusal(tmp_path / "images.zip"))


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, "train/a/1.png")
    (tmp_path / "test").mkdir()
    assert f"{tmp_path / 'test'}: is empty" in str(refusal(tmp_path))


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    plant(tmp_path, "train/a/1.png")
    (tmp_path / "train/b").mkdir()
    assert f"{tmp_path / 'train/b'}: this class has no image" in str(refusal(tmp_path))


def test_a_class_of_files_that_are_no_images_is_refused_with_what_they_are(tmp_path: Path) -> None:
    plant(tmp_path, "train/a/1.png")
    (tmp_path / "train/b").mkdir()
    (tmp_path / "train/b/1.heic").touch()
    error = refusal(tmp_path)
    assert "no image; it has .heic" in str(error)
    assert ".jpeg" in str(error.hint)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_train_does_not_have_is_refused(tmp_path: Path, split: str) -> None:
    plant(tmp_path, "train/a/1.png", f"{split}/a/1.png", f"{split}/b/1.png")
    error = refusal(tmp_path)
    assert f"{tmp_path / split}: class 'b' is not among the classes of train" in str(error)


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    plant(tmp_path, "train/a/1.png", "val/a/1.png", "validation/a/1.png")
    assert "has both val and validation" in str(refusal(tmp_path))


def test_a_folder_that_cannot_be_read_is_an_error_and_not_an_empty_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path, "train/a/1.png", "train/a/deep/2.png")
    closed = str(tmp_path / "train/a/deep")
    scandir = os.scandir

    def deny(path: str) -> object:
        if str(path) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    assert str(refusal(tmp_path)) == f"{closed}: Permission denied"


def test_any_split_makes_an_image_folder(tmp_path: Path) -> None:
    assert not has_splits(tmp_path)
    plant(tmp_path, "valid/a/1.png")
    assert has_splits(tmp_path)
    shutil.rmtree(tmp_path / "valid")
    assert not has_splits(tmp_path)
