"""Image folders: what is read, in which order, and what is refused."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qvec_cli.data.folders import has_splits, layout, read_flat, read_folder
from qvec_cli.data.pixels import SUFFIXES, to_mode
from qvec_cli.data.samples import assemble
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


def test_the_usual_extensions_count_in_any_case(tmp_path: Path) -> None:
    """They are those that PIL itself gives to a format which it writes here."""
    known = Image.registered_extensions()
    (tmp_path / "train/a").mkdir(parents=True)
    for suffix in SUFFIXES:
        kind, name = {".pnm": "PPM", ".pbm": "PPM"}.get(suffix, known[suffix]), f"1{suffix}"
        for place in (name, name.upper()):
            Image.new("L", (16, 16), 7).save(tmp_path / "train/a" / place, kind)
    samples = read_folder(tmp_path).splits["train"]
    assert len(samples) == 2 * len(SUFFIXES)
    for place in range(len(samples)):
        pixels = np.asarray(to_mode(samples.load(place), 1))
        assert pixels.shape == (16, 16)
        assert abs(pixels.astype(int) - 7).max() <= 1
    assert SUFFIXES.isdisjoint({".eps", ".ps", ".pdf", ".wmf", ".emf", ".mpeg", ".h5"})


def test_hidden_files_and_files_of_other_kinds_are_left_out(tmp_path: Path) -> None:
    plant(tmp_path, "train/a/1.png", "train/a/.2.png", "train/a/.cache/3.png", "train/.b/4.png")
    (tmp_path / "train/a/notes.txt").touch()
    (tmp_path / "train/labels.csv").touch()
    (tmp_path / "README.md").touch()
    assert names(tmp_path, "train") == ["train/a/1.png"]
    assert read_folder(tmp_path).notes == (f"{tmp_path}: left out 2 files: 1 .csv, 1 .txt",)


def test_what_is_left_out_is_counted_over_the_whole_data_set(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "test") for name in "ab"))
    assert read_folder(tmp_path).notes == ()
    for home in tmp_path.glob("*/*"):
        for name in ("1.txt", "2.TXT", "boxes.json", "README", ".DS_Store"):
            (home / name).touch()
    plant(tmp_path, "train/stray.png")
    counts = "8 .txt, 4 .json, 4 without a suffix, 1 .png"
    assert read_folder(tmp_path).notes == (f"{tmp_path}: left out 17 files: {counts}",)
    counts = "8 .txt, 4 .json, 4 without a suffix"
    assert read_flat(tmp_path).notes == (f"{tmp_path}: left out 16 files: {counts}",)


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


def test_a_class_that_is_a_link_upwards_or_to_another_class_is_refused(tmp_path: Path) -> None:
    plant(tmp_path / "set", "train/a/1.png", "train/b/2.png")
    plant(tmp_path / "store", "x/3.png", "x/deep/4.png")
    train = tmp_path / "set/train"
    for target in (".", "..", "../..", str(train), str(tmp_path)):
        (train / "loop").symlink_to(target)
        message = str(refusal(tmp_path / "set"))
        assert message.startswith(f"{train / 'loop'}: is a link to {(train / target).resolve()}, ")
        (train / "loop").unlink()
    (train / "c").symlink_to(tmp_path / "store/x")
    assert len(read_folder(tmp_path / "set").splits["train"]) == 4
    for target in ("a", "c", str(tmp_path / "store/x/deep"), str(tmp_path / "store")):
        (train / "d").symlink_to(target)
        message = str(refusal(tmp_path / "set"))
        assert f"the classes {'a' if target == 'a' else 'c'} and d lead to the" in message
        (train / "d").unlink()


def test_a_split_that_is_a_link_is_not_entered_twice(tmp_path: Path) -> None:
    """Its classes may lead to the data set, which is no parent of theirs on the disk."""
    plant(tmp_path / "store", "a/1.png", "b/2.png", "b/deep/3.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train").symlink_to(tmp_path / "store")
    for target in (tmp_path / "set", tmp_path / "set/train"):
        (tmp_path / "store/a/back").symlink_to(target)
        assert list(read_folder(tmp_path / "set").splits["train"].labels) == [0, 1, 1]
        (tmp_path / "store/a/back").unlink()
    (tmp_path / "store/loop").symlink_to(tmp_path / "set")
    assert "store/loop" not in str(refusal(tmp_path / "set"))
    assert f"{tmp_path / 'set/train/loop'}: is a link" in str(refusal(tmp_path / "set"))


E_COMPOSED, E_APART = "caf\u00e9", "cafe\u0301"


def test_classes_are_one_however_unicode_composes_their_names(tmp_path: Path) -> None:
    plant(tmp_path, f"train/{E_COMPOSED}/1.png", "train/b/1.png", f"test/{E_APART}/1.png")
    found = read_folder(tmp_path)
    assert found.classes == ("b", E_COMPOSED)
    assert list(found.splits["test"].labels) == [1]
    (tmp_path / "train").rename(tmp_path / "val")
    assert read_folder(tmp_path).classes == ("b", E_COMPOSED)


def test_two_classes_of_one_split_that_look_alike_are_told_apart(tmp_path: Path) -> None:
    plant(tmp_path, f"train/{E_COMPOSED}/1.png", f"train/{E_APART}/1.png")
    message = str(refusal(tmp_path))
    assert r"'caf\xe9'" in message
    assert r"'cafe\u0301'" in message


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


def refusal(folder: Path, split: str = "train") -> DataError:
    """What is said of a folder, or of a split when it is used."""
    with pytest.raises(DataError) as caught:
        assemble(folder.name, read_folder(folder)).split(split)
    return caught.value


def test_a_folder_without_splits_is_refused_with_the_layout(tmp_path: Path) -> None:
    error = refusal(plant(tmp_path, "cat/1.png", "dog/1.png"))
    assert "has no train, val or test folder" in str(error)
    assert f"{tmp_path}/{{train,val,test}}/<class>/*.png" in str(error.hint)
    assert layout(tmp_path) == error.hint


def test_a_split_or_class_in_place_of_the_data_set_is_answered_with_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = plant(tmp_path / "digits", "train/a/1.png", "test/a/1.png", "valid/a/1.png")
    for split, way in (("test", "with --split test"), ("valid", "with --split val")):
        assert refusal(home / split).hint == f"Did you mean {home}, {way}?"
    assert refusal(home / "train").hint == f"Did you mean {home}, whose train split this is?"
    assert refusal(home / "test/a").hint == f"Did you mean {home}, of which this is a class?"
    monkeypatch.chdir(home / "test")
    assert refusal(Path()).hint == f"Did you mean {home}, with --split test?"


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "images.zip").touch()
    assert "is not a folder" in str(refusal(tmp_path / "images.zip"))


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, "train/a/1.png")
    (tmp_path / "test").mkdir()
    assert f"{tmp_path / 'test'}: is empty" in str(refusal(tmp_path, "test"))
    (tmp_path / "train").rename(tmp_path / "val")
    (tmp_path / "val/a").rename(tmp_path / "a")
    assert f"{tmp_path / 'val'}: is empty" in str(refusal(tmp_path))


def test_an_empty_class_or_split_stops_only_those_who_use_it(tmp_path: Path) -> None:
    plant(tmp_path, *(f"train/{name}/{i}.png" for name in "ab" for i in range(10)), "test/a/1.png")
    whole = assemble("d", read_folder(tmp_path))
    (tmp_path / "test/b").mkdir()
    task = assemble("d", read_folder(tmp_path))
    assert [len(task.split(split)) for split in ("train", "val")] == [18, 2]
    assert f"{tmp_path / 'test/b'}: this class has no image" in str(refusal(tmp_path, "test"))
    assert task.digest == whole.digest
    shutil.rmtree(tmp_path / "test")
    (tmp_path / "test").mkdir()
    assert len(assemble("d", read_folder(tmp_path)).split("train")) == 18
    for file in (tmp_path / "train/b").iterdir():
        file.unlink()
    plant(tmp_path, "test/b/1.png")
    task = assemble("d", read_folder(tmp_path))
    assert list(task.split("test").labels) == [1]
    for split in ("train", "val"):  # val is drawn from train
        assert f"{tmp_path / 'train/b'}: this class has no image" in str(refusal(tmp_path, split))
    shutil.rmtree(tmp_path / "train")
    (tmp_path / "train").mkdir()
    assert assemble("d", read_folder(tmp_path)).classes == ("b",)


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    plant(tmp_path, "train/a/1.png")
    (tmp_path / "train/b").mkdir()
    assert f"{tmp_path / 'train/b'}: this class has no image" in str(refusal(tmp_path))


def test_a_class_of_files_that_are_no_images_is_refused_with_what_they_are(tmp_path: Path) -> None:
    plant(tmp_path, "train/a/1.png")
    (tmp_path / "train/b").mkdir()
    (tmp_path / "train/b/1.heic").touch()
    error = refusal(tmp_path)
    assert "no image; it has 1 .heic" in str(error)
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
