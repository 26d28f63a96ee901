"""The page: one file, every number of its inputs, no script and no address to load."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import call
from samples import TASKS, grid_lines, text, written

from qvec_cli.report.canvas import signed
from qvec_cli.report.page import Section, embedded, inline, page
from qvec_cli.report.tables import Table, tables_of
from qvec_cli.results.matrix import lines_of, parse
from qvec_cli.results.summary import summarise

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Reader(HTMLParser):
    """Elements, attributes, words and what scripts hold; every element must be closed."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.words.append(data)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of results, written once; tests only read them."""
    folder = tmp_path_factory.mktemp("results")
    written(folder)
    return folder


@pytest.fixture
def folder(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for path in results.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


@dataclass(frozen=True)
class Made:
    """A page, and what its command printed."""

    content: str
    facts: Any

    @property
    def reader(self) -> Reader:
        return Reader(self.content)


def made(folder: Path, *files: str) -> Made:
    with contextlib.chdir(folder):
        facts = call("report", *files, "-o", "r.html", "--force", "--json").json
        content = (folder / "r.html").read_bytes()
        (folder / "r.html").unlink()
    assert facts["results"]["bytes"] == len(content)
    return Made(content.decode(), facts)


@pytest.fixture(scope="module")
def grid_page(results: Path) -> Made:
    """Of a grid alone."""
    return made(results, "g.jsonl")


@pytest.fixture(scope="module")
def whole_page(results: Path) -> Made:
    """Of files of most kinds."""
    return made(results, *ALL)


ALL = (
    *("g.jsonl", "sweep1.json", "sweep2.json", "sweep_w2.json", "q1.json", "q2.json"),
    *("own_qat.json", "fp.json", "run_cars.json", "ways.json", "agreed.json", "judged.json"),
)


def test_the_page_loads_nothing_and_runs_nothing(whole_page: Made) -> None:
    content, page_ = whole_page.content, whole_page.reader
    assert "http:" not in content
    assert "https:" not in content
    scripts = [attrs for tag, attrs in page_.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}]
    forbidden = {"link", "img", "iframe", "object", "embed", "base", "form", "video", "audio"}
    assert forbidden.isdisjoint(tag for tag, _ in page_.tags)
    for _, attrs in page_.tags:
        assert not any(key.startswith("on") or key in {"src", "srcdoc", "action"} for key in attrs)
        assert (attrs.get("href") or "#").startswith("#")
    assert not re.search(r"@import|url\((?!#)", content)
    (policy,) = (a["content"] for t, a in page_.tags if a.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_every_number_of_the_grid_stands_in_the_tables(grid_page: Made) -> None:
    words = " ".join(grid_page.reader.words)
    for line in grid_lines()[1:]:
        scores = [row["test"] for row in line.get("baselines", {}).values()]
        scores += [row["test"] for row in line.get("fixed", [])]
        scores += [row["test"] for row in line.get("chosen", {}).values()]
        scores += [row[split] for row in line.get("curve", []) for split in ("val", "test")]
        for score in scores:
            assert f"{100 * score['top1']:.2f}" in words
        for name in (line.get("receiver"), line.get("donor"), line.get("null")):
            assert (name or "") in words
        for row in line.get("rows", []):
            assert all(f"{value:.4f}" in words for value in row)


def test_the_page_tells_what_transfer_tells(grid_page: Made) -> None:
    facts = summarise(parse(lines_of(text(grid_lines()), "g")))
    words = grid_page.reader.words
    found = facts["ways"]["lambda 1"]
    assert words[words.index("λ = 1") + 1] == signed(100 * found["mean"])
    assert f"{found['gap_closed']['share']:.0%}" in words
    assert {"null random, λ = 1", "own vector, λ = 1", "λ best on test"} <= set(words)


def test_the_json_in_the_page_is_what_it_was_drawn_from(whole_page: Made, results: Path) -> None:
    data = json.loads("".join(whole_page.reader.scripts))
    assert [file["path"] for file in data["files"]] == list(ALL)
    assert data["files"][0]["content"] == grid_lines()
    for file in data["files"][1:]:
        assert file["content"] == json.loads((results / file["path"]).read_text())


def test_ids_are_one_each_and_references_lead_somewhere(whole_page: Made) -> None:
    content, page_ = whole_page.content, whole_page.reader
    ids = [attrs["id"] for _, attrs in page_.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    targets = {str(attrs["href"])[1:] for _, attrs in page_.tags if attrs.get("href")}
    targets |= set(re.findall(r"url\(#([^)]+)\)", content))
    assert targets <= set(ids)
    pictures = len([tag for tag, _ in page_.tags if tag == "svg"])
    assert pictures == whole_page.facts["results"]["figures"]
    # grid, sweeps on two grids, by agreement, layers, ways, evaluations
    assert pictures == 2 + 2 + 2 + 1 + 1 + 1


def test_what_each_number_used_stands_beside_it(grid_page: Made) -> None:
    words = " ".join(grid_page.reader.words)
    assert "own QAT (its labels)" in words
    assert "vector, λ = 1 (no receiver data)" in words
    assert "vector, λ chosen on validation (its labels)" in words
    assert "receiver_labels" in words


HOSTILE = '<script>alert("1")</script>'
MORE = ("</script><!--", "]]>&lt;<b>", '" onload="x', "{{ 7 * 7 }}", "\u2028\x00")


def test_hostile_names_are_text(tmp_path: Path) -> None:
    names = (HOSTILE, *MORE)
    grid = tmp_path / "g.jsonl"
    grid.write_text(text(grid_lines(receivers=(*names, "b"), donors=names[:1])))
    call("report", grid, "-o", tmp_path / "r.html", "--title", HOSTILE)
    page_ = Reader((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert [attrs for tag, attrs in page_.tags if tag == "script"] == [
        {"type": "application/json", "id": "data"}
    ]
    assert "b" not in {tag for tag, _ in page_.tags}
    assert not any("onload" in attrs for _, attrs in page_.tags)
    assert "49" not in page_.words
    data = json.loads("".join(page_.scripts))
    assert {*names} <= {*data["files"][0]["content"][0]["receivers"]}
    assert {name for name in names if "\x00" not in name} <= {*page_.words}


def test_a_script_element_can_hold_any_json() -> None:
    value = {"a": "</script><!-- & \u2028", "b": [1.5, None, True]}
    text_ = embedded(value)
    assert json.loads(text_) == value
    assert not set("<>&\u2028") & set(text_)


def test_pages_follow_light_and_dark_and_print_without_either(grid_page: Made) -> None:
    assert "@media (prefers-color-scheme: dark)" in grid_page.content
    assert '<meta name="color-scheme" content="light dark">' in grid_page.content
    assert "@media print" in grid_page.content
    assert ".card { background: #ffffff" in grid_page.content  # figures have dark ink in either


def test_the_same_files_give_the_same_page(grid_page: Made, results: Path) -> None:
    assert made(results, "g.jsonl").content == grid_page.content


def test_a_figure_that_lacks_something_is_told_and_the_others_are_there(results: Path) -> None:
    page_ = made(results, "uncosted.jsonl").reader
    words = " ".join(page_.words)
    assert "Not drawn: what the QAT of receiver cars costs is not known." in words
    assert len([tag for tag, _ in page_.tags if tag == "svg"]) == 1


def test_every_kind_of_file_makes_a_page(results: Path) -> None:
    for file in ("sweep1.json", "q1.json", "own_qat.json", "run_cars.json", "ways.json"):
        page_ = made(results, file)
        assert page_.facts["command"] == "report"
        assert page_.facts["results"]["tables"] > 0
        assert page_.reader.words


def test_pictures_are_told_to_those_who_do_not_see_them(grid_page: Made) -> None:
    tags = grid_page.reader.tags
    labels = [attrs.get("aria-label") for _, attrs in tags if attrs.get("role") == "img"]
    assert len(labels) == 2
    assert all(label and len(label) > 40 for label in labels)


def test_seeds_of_a_grid_share_a_section_and_another_grid_has_its_own(folder: Path) -> None:
    grids = [("3-bit channel absmax", 2), ("2-bit channel absmax", 1)]
    files = ("g.jsonl", "two_bits.jsonl", "g2.jsonl")
    printed = call("report", *files, "-o", "r.html", "--metrics", "r.json").out
    done = json.loads((folder / "r.json").read_text())["results"]
    assert [(grid["grid"], grid["runs"]) for grid in done["grids"]] == grids
    assert done["sections"][1:-1] == [f"Transfer, {grid}" for grid, _ in grids]
    for grid, runs in grids:
        many = f", {runs} runs" if runs > 1 else ""
        assert f"\n{grid}, 3 receivers{many}\n" in printed


REFUSALS: dict[str, tuple[str, tuple[str, ...]]] = {
    "another suffix": ("written as .html", ("g.jsonl", "-o", "r.pdf")),
    "no such file": ("no such file", ("none.json", "-o", "r.html")),
    "what is no result": ("has no command", ("other.json", "-o", "r.html")),
    "an output that exists": ("exists", ("g.jsonl", "-o", "words.html")),
    "an output that is an input": ("is an input", ("g.html", "-o", "g.html", "--force")),
}


def test_what_makes_no_page_is_refused_in_one_line(folder: Path) -> None:
    (folder / "words.html").write_text("old")
    (folder / "g.html").write_text(text(grid_lines()))
    for name, (message, args) in REFUSALS.items():
        done = call("report", *args, code=None)
        assert done.code in {1, 2}, name
        assert len(done.errors) == 1, name
        assert message in done.errors[0], name
        assert not (folder / "r.html").exists(), name
        assert (folder / "words.html").read_text() == "old", name


def test_a_page_can_go_down_a_pipe(folder: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "qvec_cli", "report", "q1.json", "-o", "-"]
    done = subprocess.run(command, check=True, capture_output=True)
    Reader(done.stdout.decode())
    assert b"-: 1 figure, " in done.stderr


# --- its parts


def test_drawings_get_names_of_their_own() -> None:
    svg = (
        b'<?xml version="1.0"?><!DOCTYPE svg PUBLIC "a" "b"><svg xmlns="u" width="9pt" '
        b'viewBox="0 0 9 9"><metadata>x</metadata><defs><style type="text/css">*{}</style>'
        b'<clipPath id="p1"/></defs><!-- word --><g id="g" clip-path="url(#p1)">'
        b'<use xlink:href="#p1"/></g></svg>'
    )
    text_ = inline(svg, "f0")
    assert 'id="f0-p1"' in text_
    assert 'clip-path="url(#f0-p1)"' in text_
    assert '<use href="#f0-p1"/>' in text_
    assert all(word not in text_ for word in ("xml", "DOCTYPE", "metadata", "word", "*{}", "xmlns"))
    assert 'viewBox="0 0 9 9"' in text_


def test_a_page_of_nothing_but_words_is_a_page() -> None:
    table = Table("c", ("a", "b"), (("1", "2"),), "note", folded=True)
    made_ = page("t", "l", [Section("s", (), (table,), ("n",))], {}, "f")
    reader = Reader(made_.decode())
    assert {"t", "l", "s", "c", "a", "b", "1", "2", "note", "n", "f"} <= set(reader.words)
    assert "nav" not in {tag for tag, _ in reader.tags}  # for one section


def test_own_stands_beside_receivers_own_vectors_and_beside_no_null() -> None:
    matrix = parse(lines_of(text(grid_lines()), "g"))
    tables = list(tables_of(matrix))
    (nulls,) = (table for table in tables if table.caption.startswith("Vectors of the same norm"))
    assert nulls.rows
    assert not any("own" in cell for row in nulls.rows for cell in row)
    pairs = next(table for table in tables if table.caption.startswith("Each pair"))
    owns = {(row[0], pairs.head[k]) for row in pairs.rows for k, c in enumerate(row) if "own" in c}
    assert owns == {(task, task) for task in TASKS[:3]}


def test_every_task_has_its_row(grid_page: Made) -> None:
    words = grid_page.reader.words
    assert all(words.count(task) > 2 for task in TASKS[:3])


def verdict(page_: Made) -> list[list[str]]:
    """The rows of the table that the page opens with."""
    assert page_.facts["results"]["sections"][0] == "Verdict"
    (table, *_) = re.findall(r"<tbody>(.*?)</tbody>", page_.content, re.DOTALL)
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_the_page_opens_with_the_best_way_of_each_amount_of_receiver_data(grid_page: Made) -> None:
    """By hand: means over receivers; more data is named only where it gives more."""
    lines = grid_lines()
    receivers = [line["baselines"] for line in lines if line["kind"] == "receiver"]
    cells = [c for c in lines if c["kind"] == "cell" and not c["null"] and not c["diagonal"]]

    def mean(scores: list[float]) -> float:
        return sum(scores) / len(scores)

    def top1(row: dict[str, Any]) -> float:
        return float(row["test"]["top1"])

    fp, *free = (mean([top1(rows[key]) for rows in receivers]) for key in receivers[0])
    free.pop()  # own QAT, with labels
    free.append(mean([top1(cell["fixed"][0]) for cell in cells]))  # as many donors for each
    labels = [mean([top1(rows["qat"]) for rows in receivers])]
    labels.append(mean([top1(cell["chosen"]["val"]) for cell in cells]))
    first, last = verdict(grid_page)
    of, size = "3 receivers, 3-bit channel absmax", "3"
    for row, best, used in ((first, max(free), "none"), (last, max(labels), "receiver_labels")):
        points = signed(100 * (best - fp))
        assert (row[0], *row[2:]) == (of, f"{100 * best:.1f}", points, size, used)
    assert last[1] == "own QAT (its labels)"


def test_every_kind_of_comparison_has_its_verdict(results: Path) -> None:
    for files, rows in {
        ("advised.json",): [("-", "keeps 91.0% of its answers", "3.08", "proxy_images")],
        ("advised_test.json",): [("89.0", "\N{MINUS SIGN}7.0", "3.08", "proxy_images")],
        ("compared_val.json",): [("62.0", "\N{MINUS SIGN}27.9", "2.06", "none")],
        ("ways.json",): [
            ("4.0", "\N{MINUS SIGN}86.0", "-", "none"),
            ("80.0", "\N{MINUS SIGN}10.0", "-", "proxy_images"),
        ],
        ("fp.json", "own_qat.json", "w3.json"): [("85.0", "\N{MINUS SIGN}5.0", "3", "none")],
    }.items():
        assert [tuple(row[2:]) for row in verdict(made(results, *files))] == rows, files
    assert verdict(made(results, "summed.json"))[-1][-1] == "receiver_labels"
    (sweep,) = verdict(made(results, "sweep1.json"))  # what is chosen on validation tests no better
    assert sweep[0] == "cars, 3-bit channel absmax"
    for file in (
        "q1.json",
        "compared.json",
        "silent.json",
        "run_cars.json",
    ):  # nothing was measured
        assert "Verdict" not in made(results, file).facts["results"]["sections"]


def test_an_evaluation_that_nothing_compares_with_stands_at_the_top(results: Path) -> None:
    """One model, or one beside a sweep: what was right, of which images, in how many bits."""
    scores = {"fp.json": "90.00 \N{PLUS-MINUS SIGN} 1.34 (450/500)", "w3.json": "40.00 "}
    for file, *rest in (("fp.json", "float", "none"), ("w3.json", "3", "proxy_images")):
        ((_, images, top1, *shown),) = verdict(made(results, file))
        assert shown == rest
        assert images.endswith(", test, n = 500")
        assert top1.startswith(scores[file])
    page_ = made(results, "sweep1.json", "w3.json")
    assert len(verdict(page_)) == 1
    top, table = map(page_.reader.words.index, ("What was measured", "Accuracies"))
    assert top < table
    page_ = made(results, "fp.json", "w3.json")
    assert "What was measured" not in page_.reader.words  # the one is compared with the other


def test_a_column_is_there_only_for_what_was_measured(results: Path) -> None:
    heads = [made(results, f).reader.words for f in ("compared.json", "compared_val.json")]
    assert "top-1 on val, %" in heads[1]
    assert not any("top-1" in word for word in heads[0])


def test_json_of_others_is_left_out_with_a_note_and_no_page_is_made_of_it_alone(
    folder: Path,
) -> None:
    others = ("other.json", "odd.json", "kind.json", "list.json", "plan.json")
    done = call("report", "q1.json", *others, "-o", "r.html")
    page_ = Reader((folder / "r.html").read_text())
    for file in others:
        assert f"note: left out: {file}: " in done.err
        assert file not in page_.words
    assert "cars" in page_.words
    for file in ("damaged.json", "sweep_bad.json", "newer.json"):  # ours, and not whole
        call("report", "q1.json", file, "-o", "none.html", code=1)
    call("report", *others, "-o", "none.html", code=1)
    assert not (folder / "none.html").exists()


def test_numbers_have_one_minus_sign(results: Path) -> None:
    files = ("agreed.json", "compared.json", "judged.jsonl", "ways.json", "advised_test.json")
    words = made(results, *files).reader.words
    assert not [word for word in words if re.search(r"(?<![\w.])-\d", word)]
    assert any(re.search(r"\N{MINUS SIGN}0\.5", word) for word in words)
    assert "\N{MINUS SIGN}0.4 dB" in words


def test_a_table_of_ways_has_every_number(whole_page: Made) -> None:
    words = whole_page.reader.words
    assert {"Ways to low bits", "another grid", "calibrated", "0.8000", "proxy_images"} <= {*words}


def test_lambda_by_agreement_has_its_tables(results: Path) -> None:
    words = " ".join(made(results, "agreed.json", "judged.json", "judged.jsonl").reader.words)
    for told in (
        "Sweeps without labels",
        "λ by agreement",
        "vector, λ by agreement (images of others)",
        "distance to the float answers on proxy images, by λ",
        "2 sweeps without labels",
    ):
        assert told in words
    for row in json.loads((results / "agreed.json").read_text())["results"]["donors"]:
        assert f"{100 * row['score']['removed']:.1f}" in words
        assert f"{row['curve'][0]['distance']:.5g} ± 0.02" in words
