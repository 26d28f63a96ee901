"""Sets of the Hugging Face hub, with a stand-in for the package datasets."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qvec_cli.data.datasets import open_task
from qvec_cli.data.hub import installed, open_hub
from qvec_cli.data.tasks import TASKS
from qvec_cli.errors import DataError, SpecError


class Picture:
    """datasets.Image"""


class ClassLabel:
    def __init__(self, names: list[str]) -> None:
        self.names = names


class Rows:
    """datasets.Dataset, as far as qvec uses it."""

    def __init__(self, features: dict[str, Any], columns: dict[str, list[Any]]) -> None:
        self.features, self.columns = features, columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, str):
            return self.columns[key]
        row = {name: values[key] for name, values in self.columns.items()}
        if any(value == "broken" for value in row.values()):
            raise OSError("image file is truncated\n(3 bytes)")
        return row

    def select_columns(self, names: list[str]) -> Rows:
        return Rows(self.features, {name: self.columns[name] for name in names})


def rows(
    labels: list[Any], names: list[str] | None, image: str = "image", label: str = "label"
) -> Rows:
    pictures = [Image.new("L", (index + 1, 1)) for index in range(len(labels))]
    features = {image: Picture(), label: ClassLabel(names) if names else "int64", "id": "string"}
    return Rows(features, {image: pictures, label: labels, "id": labels})


class Fake(ModuleType):
    """The package: what was asked for, and under which switch."""

    Image, ClassLabel = Picture, ClassLabel

    def __init__(self) -> None:
        super().__init__("datasets")
        self.constants = SimpleNamespace(HF_HUB_OFFLINE=False)
        self.config = SimpleNamespace(HF_HUB_OFFLINE=False, constants=self.constants)
        self.sets: dict[str, Any] = {}
        self.asked: list[tuple[str, str | None, bool]] = []

    def load_dataset(self, name: str, config: str | None = None) -> Any:
        offline = self.config.HF_HUB_OFFLINE
        assert offline == self.constants.HF_HUB_OFFLINE
        self.asked.append((name, config, offline))
        if name not in self.sets:
            raise ConnectionError(f"Couldn't reach {name!r}\non the Hub")
        return self.sets[name]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    module = Fake()
    monkeypatch.setitem(sys.modules, "datasets", module)
    yield module
    assert not module.config.HF_HUB_OFFLINE
    assert not module.constants.HF_HUB_OFFLINE


def test_a_set_has_its_splits_names_and_images(fake: Fake) -> None:
    fake.sets["org/pets"] = {
        "train": rows([0, 1] * 10, ["Cat A", "dog"]),
        "validation": rows([1], ["Cat A", "dog"]),
        "test": rows([1, 0], ["Cat A", "dog"]),
        "extra": rows([0], ["Cat A", "dog"]),
    }
    task = open_task("hfds/org/pets", None)
    assert task.name == "hfds/org/pets"
    assert task.classes == ("cat_a", "dog")
    assert {name: len(split) for name, split in task.splits.items()} == {
        "train": 20,
        "val": 1,
        "test": 2,
    }
    assert list(task.split("test").labels) == [1, 0]
    assert task.split("test").load(1).width == 2


def test_without_a_validation_split_one_is_drawn(fake: Fake) -> None:
    fake.sets["org/pets"] = {"train": rows([0, 1] * 10, ["a", "b"])}
    task = open_task("hfds/org/pets", None)
    assert {name: len(split) for name, split in task.splits.items()} == {"train": 18, "val": 2}


@pytest.mark.parametrize("download", [False, True])
def test_the_network_is_asked_only_with_download(fake: Fake, download: bool) -> None:
    with pytest.raises(DataError, match="Couldn't reach 'org/gone' on the Hub") as caught:
        open_task("hfds/org/gone", None, download=download)
    assert fake.asked == [("org/gone", None, not download)]
    assert ("--dataset-download" in str(caught.value.hint)) is not download


def test_without_the_package_the_way_to_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert not installed()
    with pytest.raises(DataError, match="org/pets needs the package datasets") as caught:
        open_task("hfds/org/pets", None)
    assert caught.value.hint == "pip install 'qvec[hfds]'"


@pytest.mark.parametrize("spec", ["hfds/", "hfds/mnist", "hfds/a/b/c", "hfds//b"])
def test_an_id_has_two_parts(fake: Fake, spec: str) -> None:
    with pytest.raises(SpecError, match="is not hfds/ORG/NAME"):
        open_task(spec, None)
    assert not fake.asked


def paper_set(name: str, label: Callable[[int], Any] = lambda i: i) -> dict[str, Rows]:
    """A copy of a paper's task with two images a class in train and one in test."""
    task = TASKS[name]
    names = [f"Class {i}" for i in range(task.classes)] if task.names is None else None
    numbers = [label(i) for i in range(task.classes)]
    columns = {"image": task.hub.image, "label": task.hub.label}
    return {
        "train": rows(numbers * 10, names, **columns),
        task.hub.test: rows(numbers, names, **columns),
        "elsewhere": rows([0], names, **columns),
    }


@pytest.mark.parametrize("name", [name for name in TASKS if name != "EMNIST"])
def test_every_task_of_the_paper_has_its_columns_config_and_test_split(
    fake: Fake, name: str
) -> None:
    task = TASKS[name]
    fake.sets[task.hub.id] = paper_set(name)
    opened = open_task(name, None)
    assert fake.asked == [(task.hub.id, task.hub.config, True)]
    assert len(opened.classes) == task.classes
    assert list(opened.split("test").labels) == list(range(task.classes))
    assert opened.split("test").load(1).width == 2
    assert len(opened.split("val")) == task.classes
    assert task.names is None or opened.classes == task.names


@pytest.mark.parametrize("first", [0, 1])
def test_emnist_letters_start_at_0_and_stand_upright_however_they_are_counted(
    fake: Fake, first: int
) -> None:
    fake.sets["tanganke/emnist_letters"] = paper_set("EMNIST", lambda i: i + first)
    test = open_task("EMNIST", None).split("test")
    assert list(test.labels) == list(range(26))
    assert test.load(4).size == (1, 5)


def test_pcams_true_and_false_are_labels(fake: Fake) -> None:
    fake.sets["1aurent/PatchCamelyon"] = paper_set("PCAM", bool)
    labels = open_task("PCAM", None).split("test").labels
    assert list(labels) == [0, 1]
    assert all(type(label) is int for label in labels)


def test_an_id_of_the_paper_means_the_papers_splits_and_columns(fake: Fake) -> None:
    fake.sets["uoft-cs/cifar100"] = paper_set("CIFAR100")
    task = open_task("hfds/uoft-cs/cifar100", None)
    assert list(task.splits) == ["train", "val", "test"]


def test_unlabelled_rows_are_refused_when_their_split_is_opened(fake: Fake) -> None:
    fake.sets["org/pets"] = {"train": rows([0, 1] * 10, ["a", "b"]), "test": rows([-1], ["a", "b"])}
    task = open_task("hfds/org/pets", None)
    assert len(task.split("train")) == 18
    with pytest.raises(DataError, match="image 0 of test has the label -1"):
        task.split("test")


@pytest.mark.parametrize(("value", "reason"), [("broken", "truncated"), (None, "is NoneType")])
def test_a_broken_image_is_named(fake: Fake, value: Any, reason: str) -> None:
    split = rows([0, 1], ["a", "b"])
    split.columns["image"][1] = value
    fake.sets["org/pets"] = {"test": split}
    with pytest.raises(DataError, match=f"org/pets test: image 1 .*{reason}") as caught:
        open_task("hfds/org/pets", None).split("test").load(1)
    assert "\n" not in str(caught.value)


def test_number_labels_without_names_are_named_by_their_numbers(fake: Fake) -> None:
    fake.sets["org/digits"] = {"train": rows([2, 0, 1] * 10, None)}
    assert open_task("hfds/org/digits", None).classes == ("0", "1", "2")


def test_two_label_columns_are_refused_unless_one_is_called_label(fake: Fake) -> None:
    split = rows([0, 1], ["a", "b"], label="fine")
    split.features["coarse"] = ClassLabel(["c"])
    fake.sets["org/two"] = {"test": split}
    with pytest.raises(DataError, match="has 2 label columns among image, fine, id, coarse"):
        open_task("hfds/org/two", None)
    split = rows([0, 1], ["a", "b"])
    split.features["coarse"] = ClassLabel(["c"])
    fake.sets["org/two"] = {"test": split}
    assert open_task("hfds/org/two", None).classes == ("a", "b")


def texts(
    rows: list[tuple[Any, Any]], names: list[str] | None, text: str = "text", label: str = "label"
) -> Rows:
    kind = ClassLabel(names) if names else "string"
    columns = {text: [row[0] for row in rows], label: [row[1] for row in rows]}
    return Rows({"id": "string", text: "string", label: kind}, columns)


def test_a_set_without_images_or_texts_is_refused(fake: Fake) -> None:
    fake.sets["org/none"] = {"test": Rows({"words": "string", "label": ClassLabel(["a"])}, {})}
    with pytest.raises(DataError, match="has 0 image or text columns among words, label"):
        open_task("hfds/org/none", None)


def test_texts_have_the_names_and_the_order_of_their_classes(fake: Fake) -> None:
    rows = [("one", 1), ("two", 0), ("three", 2)]
    names = ["World", "Sci/Tech", "Sports"]
    fake.sets["org/news"] = {"train": texts(rows * 8, names), "test": texts(rows, names)}
    task = open_task("hfds/org/news", None)
    assert task.classes == tuple(names)
    assert {name: len(split) for name, split in task.splits.items()} == {
        "train": 22,
        "val": 2,
        "test": 3,
    }
    assert [*task.split("test").labels] == [1, 0, 2]
    assert [task.splits["test"].load(n) for n in range(3)] == ["one", "two", "three"]


@pytest.mark.parametrize("named", [False, True])
def test_the_rows_of_a_set_and_of_a_table_are_the_same_task(
    fake: Fake, named: bool, tmp_path: Path
) -> None:
    columns = ("text", "label") if not named else ("my text & more", "grade")
    suffix = "?text=my+text+%26+more&label=grade" if named else ""
    rows = [("one", "b"), ("two", "a")] * 10
    fake.sets["org/words"] = {"train": texts(rows, None, *columns)}
    with (tmp_path / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    lines = [json.dumps({**dict(zip(columns, row, strict=True)), "text": 1}) for row in rows]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    hub, table = (
        open_task(name + suffix, None) for name in ("hfds/org/words", f"{tmp_path}/train.csv")
    )
    assert hub.digest == table.digest
    assert hub.classes == ("a", "b")
    if named:
        lines_too = open_task(f"{tmp_path}/train.jsonl{suffix}", None)
        assert lines_too.digest == hub.digest


def test_rows_of_texts_without_a_label_are_refused_where_labels_count(fake: Fake) -> None:
    for names, label in ((["a", "b"], -1), (None, None), (None, ""), (None, 1.5)):
        split = texts([("x", 0 if names else "a"), ("y", 1 if names else "b")] * 10, names)
        fake.sets["org/words"] = {"train": split, "test": texts([("z", label)], names)}
        task = open_task("hfds/org/words", None)
        assert task.classes == ("a", "b")
        assert task.digest
        with pytest.raises(DataError, match="of test has the label -1"):
            task.split("test")
    bare = texts([("x", 0), ("y", 1)], None)
    del bare.features["label"], bare.columns["label"]
    fake.sets["org/words"] = {"train": bare}
    assert open_task("hfds/org/words", None).classes == ("unlabelled",)


def test_numbers_without_names_are_classes_in_their_order(fake: Fake) -> None:
    rows = [("x", 10), ("y", 2), ("z", True)]
    fake.sets["org/stars"] = {"test": texts(rows, None)}
    task = open_task("hfds/org/stars", None)
    assert (task.classes, [*task.split("test").labels]) == (("1", "2", "10"), [2, 1, 0])


COLUMN_FAULTS: dict[str, tuple[str, str]] = {
    "a column that is not there": ("?text=words", "has no column words, only id, text, label"),
    "a label that is not there": ("?label=grade", "has no column grade, only id, text, label"),
    "another word": ("?column=text", "is not text=COLUMN&label=COLUMN"),
    "nothing": ("?", "is not text=COLUMN&label=COLUMN"),
    "a word without a column": ("?text=", "is not text=COLUMN&label=COLUMN"),
    "a word twice": ("?text=a&text=b", "is not text=COLUMN&label=COLUMN"),
}


@pytest.mark.parametrize("fault", COLUMN_FAULTS)
def test_columns_that_cannot_be_are_refused_in_a_line(
    fault: str, fake: Fake, tmp_path: Path
) -> None:
    suffix, reason = COLUMN_FAULTS[fault]
    rows = [("x", "a"), ("y", "b")]
    fake.sets["org/words"] = {"test": texts(rows, None)}
    with (tmp_path / "words.tsv").open("w", newline="") as file:
        lines = [("id", "text", "label"), *((n, *row) for n, row in enumerate(rows))]
        csv.writer(file, delimiter="\t").writerows(lines)
    for name in ("hfds/org/words", f"{tmp_path}/words.tsv"):
        with pytest.raises((DataError, SpecError), match=re.escape(reason)) as caught:
            open_task(name + suffix, None)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["CIFAR10", "torch/CIFAR10", "."])
def test_columns_of_images_in_files_are_not_named(name: str) -> None:
    with pytest.raises(SpecError, match="columns are named of tables of texts and of hfds/"):
        open_task(f"{name}?label=label", None)


def test_one_of_two_label_columns_can_be_named_of_images_and_of_texts(fake: Fake) -> None:
    split = rows([0, 1], ["a", "b"], label="fine")
    split.features["coarse"], split.columns["coarse"] = ClassLabel(["c"]), [0, 0]
    fake.sets["org/two"] = {"test": split}
    for label, classes in (("fine", ("a", "b")), ("coarse", ("c",))):
        assert open_task(f"hfds/org/two?label={label}", None).classes == classes
    both = texts([("x", 0), ("y", 1)], ["a", "b"], label="fine")
    both.features["coarse"], both.columns["coarse"] = ClassLabel(["c"]), [0, 0]
    fake.sets["org/two"] = {"test": both}
    with pytest.raises(DataError, match="has 2 label columns among") as caught:
        open_task("hfds/org/two", None)
    assert "?text=COLUMN&label=COLUMN" in str(caught.value.hint)
    assert open_task("hfds/org/two?label=coarse", None).classes == ("c",)


@pytest.mark.parametrize("value", ["", " ", None, 3])
def test_a_row_without_a_text_is_named(fake: Fake, value: Any) -> None:
    fake.sets["org/words"] = {"test": texts([("x", "a"), (value, "b")], None)}
    with pytest.raises(DataError, match="org/words test: row 1: no text"):
        open_task("hfds/org/words", None)


def test_a_copy_without_the_columns_or_splits_of_the_table_is_refused(fake: Fake) -> None:
    fake.sets["uoft-cs/cifar10"] = {"train": rows([0], ["a"]), "test": rows([0], ["a"])}
    with pytest.raises(DataError, match="has no column img, only image, label, id"):
        open_hub("uoft-cs/cifar10", download=False)
    fake.sets["ethz/food101"] = {"train": rows([0], ["a"]), "test": rows([0], ["a"])}
    with pytest.raises(DataError, match="has the splits train, test, not train, validation"):
        open_hub("ethz/food101", download=False)


def test_a_set_without_known_splits_is_refused(fake: Fake) -> None:
    fake.sets["org/odd"] = {"all": rows([0], ["a"])}
    with pytest.raises(DataError, match="has the splits all, not train, validation or test"):
        open_task("hfds/org/odd", None)
    fake.sets["org/odd"] = [1, 2]
    with pytest.raises(DataError, match="org/odd: has no splits"):
        open_task("hfds/org/odd", None)


def test_numpy_labels_count_as_numbers(fake: Fake) -> None:
    fake.sets["org/pets"] = {"test": rows(list(np.array([1, 0])), ["a", "b"])}
    assert list(open_task("hfds/org/pets", None).split("test").labels) == [1, 0]
