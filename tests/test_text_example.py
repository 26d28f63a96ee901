"""The text example: how texts become a task, without any of the packages that carry them."""

from __future__ import annotations

import csv
import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

TEXT = Path(__file__).parents[1] / "examples" / "text"


@pytest.fixture(scope="module")
def texts() -> ModuleType:
    before = list(sys.path)
    sys.path.insert(0, str(TEXT))
    spec = importlib.util.spec_from_file_location("text_example", TEXT / "texts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["text_example"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def sentences(texts: ModuleType, label: str, count: int) -> list[object]:
    """Texts of a class that differ in their first letters."""
    words = [f"{a}{b}{label}" for a in "abcdefghij" for b in "abcdefghij"][:count]
    return [texts.Example(label, f"{word}, {'and some more words ' * 4}") for word in words]


def test_a_text_that_two_classes_share_is_in_neither_and_none_is_there_twice(
    texts: ModuleType,
) -> None:
    long = "a sentence that is said in more than one class, word for word"
    twice = "Another sentence, which one class says twice, in two spellings"
    examples = [("a", long), ("b", long), ("a", twice), ("a", twice.upper() + "!"), ("a", "short")]
    kept = texts.distinct(iter(texts.Example(*each) for each in examples))
    assert [(e.label, e.text) for e in kept] == [("a", twice)]


def test_splits_are_balanced_apart_and_the_same_in_any_order(texts: ModuleType) -> None:
    examples = [*sentences(texts, "a", 90), *sentences(texts, "b", 60)]
    kept = texts.distinct(iter(examples))
    train, test = texts.balanced(kept, "train", 50), texts.balanced(kept, "test", 20)
    assert set(Counter(e.label for e in train).values()) == {25}
    assert set(Counter(e.label for e in test).values()) == {10}
    assert {e.text for e in train}.isdisjoint(e.text for e in test)
    turned = texts.distinct(iter(examples[::-1]))
    assert texts.balanced(turned, "train", 50) == train


def test_a_long_text_is_cut_between_words(texts: ModuleType) -> None:
    whole = "word " * 200
    cut = texts.tidy(whole)
    assert len(cut) <= texts.LONGEST
    assert set(cut.split()) == {"word"}


def test_the_messages_of_a_catalogue_are_its_translations_without_markup(texts: ModuleType) -> None:
    po = (
        'msgid ""\nmsgstr ""\n"Language: gl\\n"\n\n'
        'msgid "One"\nmsgstr "Un %(name)s"\n\n'
        'msgid "Two %d"\nmsgid_plural "x"\nmsgstr[0] "Dous "\n"'
        '\\"tres\\""\nmsgstr[1] "<b>Catro</b>"\n'
    )
    assert [text.strip() for text in texts.messages(po)] == ["Un", 'Dous "tres"', "Catro"]


def test_prose_ends_before_the_first_example_and_names_are_cut_out(texts: ModuleType) -> None:
    docstring = """Return the sympy matrix of `x`.

    Examples
    ========

    >>> matrix(x)
    """
    assert texts.prose(docstring).split() == ["Return", "the", "sympy", "matrix", "of", "x", "."]
    assert texts.without("a SymPy thing of sympy.core", ("sympy",)).split() == [
        *("a", "thing", "of", ".core")
    ]


def test_what_is_written_is_read_back(texts: ModuleType, tmp_path: Path) -> None:
    examples = [texts.Example("a, b", 'with "quotes", and commas'), texts.Example("c", "é")]
    texts.write(examples, tmp_path / "train.csv")
    with (tmp_path / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = [(row["label"], row["text"]) for row in csv.DictReader(file)]
    assert rows == [(e.label, e.text) for e in examples]
    assert b"\r" not in (tmp_path / "train.csv").read_bytes()
