"""What a data set promises: checked labels, named splits, and the paper's draw of validation."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image

from qvec_cli.data.samples import DataSource, Subset, Task, assemble, draw_validation
from qvec_cli.errors import DataError


@dataclass
class Numbers:
    """Images that are as wide as their place in the set."""

    labels: Any

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Image.Image:
        return Image.new("L", (index + 1, 1))


def task(labels: Any, classes: int = 3) -> Task:
    return Task("toy", tuple("abcdefgh"[:classes]), {"test": Numbers(labels)})


@pytest.mark.parametrize("count", [10, 11, 57, 3760, 60000])
def test_validation_is_drawn_as_random_split_draws_it(count: int) -> None:
    import torch
    from torch.utils.data import random_split

    val = min(int(0.1 * count), 5000)
    seeded = torch.Generator().manual_seed(0)
    theirs = random_split(range(count), [count - val, val], generator=seeded)  # type: ignore[arg-type]
    ours = draw_validation(Numbers(range(count)))
    assert [list(part.labels) for part in ours] == [list(part) for part in theirs]
    assert [len(part) for part in ours] == [count - val, val]


def test_the_draw_does_not_move_torchs_own_generator() -> None:
    import torch

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert draw_validation(Numbers(range(20)))[0].labels
    assert torch.rand(1) == expected


def test_a_drawn_part_loads_the_image_that_its_label_belongs_to() -> None:
    for part in draw_validation(Numbers(range(40))):
        assert [part.load(i).width - 1 for i in range(len(part))] == list(part.labels)


def test_a_drawn_part_travels_to_a_worker_process() -> None:
    part = draw_validation(Numbers(list(range(40))))[1]
    again = pickle.loads(pickle.dumps(part))
    assert again.labels == part.labels


@pytest.mark.parametrize("count", [0, 1, 9])
def test_too_few_images_to_draw_from_are_refused(count: int) -> None:
    with pytest.raises(DataError, match=f"of {count} images is too small") as caught:
        draw_validation(Numbers([0] * count))
    assert "val split" in str(caught.value.hint)


def test_val_is_missed_by_those_who_use_it_and_named_with_the_data_set() -> None:
    made = assemble("toy", DataSource(("a",), {"train": Numbers([0, 0, 0]), "test": Numbers([0])}))
    assert len(made.split("test")) == 1
    assert [made.split("train").load(i).width for i in range(3)] == [1, 2, 3]
    with pytest.raises(DataError, match="toy: a train split of 3 images"):
        made.split("val")


def test_a_val_split_that_is_there_is_not_drawn_again() -> None:
    train, val = Numbers([0] * 30), Numbers([0] * 4)
    made = assemble("toy", DataSource(("a",), {"val": val, "train": train}))
    assert made.splits == {"train": train, "val": val}
    assert list(made.splits) == ["train", "val"]


def test_splits_come_in_their_usual_order_whatever_the_source() -> None:
    found = DataSource(("a",), {"test": Numbers([0]), "train": Numbers([0] * 10)})
    assert list(assemble("toy", found).splits) == ["train", "val", "test"]


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="toy: the test split is empty"):
        assemble("toy", DataSource(("a",), {"test": Numbers([])}))
    made = assemble("toy", DataSource(("a",), {"test": Numbers([]), "val": Numbers([0])}))
    assert len(made.split("val")) == 1
    with pytest.raises(DataError, match="toy: the test split is empty"):
        made.split("test")


def test_a_mistyped_split_is_answered_with_the_real_ones() -> None:
    made = assemble("toy", DataSource(("a",), {"train": Numbers([0] * 10), "test": Numbers([0])}))
    with pytest.raises(DataError, match="no split 'tets'; it has train, val, test") as caught:
        made.split("tets")
    assert caught.value.hint == "Did you mean test?"


@pytest.mark.parametrize("bad", [-1, 3, 255, None, 1.5, "a"])
def test_a_label_that_is_no_class_is_refused_with_its_place(bad: object) -> None:
    with pytest.raises(DataError, match=f"toy: image 2 of test has the label {bad}; .* 0 to 2"):
        task([0, 1, bad, 2]).split("test")


def test_labels_that_are_classes_pass() -> None:
    assert list(task([0, 1, 2]).split("test").labels) == [0, 1, 2]


def test_a_bad_label_is_found_in_the_whole_of_a_drawn_split() -> None:
    labels = [0] * 20
    labels[13] = 7
    made = assemble("toy", DataSource(("a",), {"train": Numbers(labels)}))
    for split in ("train", "val"):
        with pytest.raises(DataError, match=f"image 13 of {split} has the label 7"):
            made.split(split)


def test_parts_of_one_whole_do_not_overlap() -> None:
    whole = Numbers(range(30))
    first, second = Subset(whole, 0, 12), Subset(whole, 12, 30)
    assert sorted([*first.labels, *second.labels]) == list(range(30))
