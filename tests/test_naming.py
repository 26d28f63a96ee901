"""Copies of a data set agree on the names of its classes."""

from __future__ import annotations

import pytest

from qvec_cli.data.samples import fold, name_classes
from qvec_cli.data.tasks import TASKS


@pytest.mark.parametrize("name", ["FashionMNIST", "fashion-mnist", "fashion_MNIST"])
def test_a_name_is_known_without_case_and_punctuation(name: str) -> None:
    assert fold(name) == "fashionmnist"


def test_libraries_that_spell_differently_agree() -> None:
    torchvision = ["American Bulldog", "Egyptian Mau", "apartment_building/outdoor"]
    hub = ["american_bulldog", "egyptian mau", "Apartment building outdoor"]
    assert name_classes(torchvision) == name_classes(hub)


def test_the_shirt_of_every_library_is_the_official_one() -> None:
    official = TASKS["FashionMNIST"].names
    assert official is not None
    theirs = ["T - shirt / top", *(name.replace("_", " ").title() for name in official[1:])]
    assert name_classes(theirs, official) == official


def test_official_names_replace_numbers_and_words_of_another_kind() -> None:
    assert name_classes(["0", "1"], ("no_tumor", "tumor")) == ("no_tumor", "tumor")


def test_a_copy_in_another_order_keeps_its_order() -> None:
    assert name_classes(["Tumor", "no tumor"], ("no_tumor", "tumor")) == ("tumor", "no_tumor")


def test_two_classes_of_one_name_are_told_apart_by_their_label() -> None:
    assert name_classes(["crane", "bird", "Crane"]) == ("crane_0", "bird", "crane_2")


def test_names_in_other_scripts_survive() -> None:
    assert name_classes(["お", "き"]) == ("お", "き")
