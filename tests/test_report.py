"""The page: one file, every number of its inputs, no script and no address to load."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import call
from samples import TASKS, grid_lines, text, written

from qvec_cli.report.canvas import signed
from qvec_cli.report.page import Page, Section, Table, embedded, inline, page
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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    return tmp_path


def made(folder: Path, *files: str) -> tuple[str, Reader]:
    call("report", *files, "-o", "r.html", "--force")
    content = (folder / "r.html").read_text(encoding="utf-8")
    return content, Reader(content)


ALL = ("g.jsonl", "sweep1.json", "sweep_w2.json", "q1.json", "q2.json", "own_qat.json", "fp.json")


def test_the_page_loads_nothing_and_runs_nothing(folder: Path) -> None:
    content, page_ = made(folder, *ALL)
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


def test_every_number_of_the_grid_stands_in_the_tables(folder: Path) -> None:
    words = " ".join(made(folder, "g.jsonl")[1].words)
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


def test_the_page_tells_what_transfer_tells(folder: Path) -> None:
    facts = summarise(parse(lines_of(text(grid_lines()), "g")))
    words = made(folder, "g.jsonl")[1].words
    found = facts["ways"]["lambda 1"]
    assert words[words.index("λ = 1") + 1] == signed(100 * found["mean"])
    assert f"{found['gap_closed']['share']:.0%}" in words
    assert {"null random, λ = 1", "own vector, λ = 1", "λ best on test"} <= set(words)


def test_the_json_in_the_page_is_what_it_was_drawn_from(folder: Path) -> None:
    data = json.loads("".join(made(folder, *ALL)[1].scripts))
    assert [file["path"] for file in data["files"]] == list(ALL)
    assert data["files"][0]["content"] == grid_lines()
    assert data["files"][3]["content"] == json.loads((folder / "q1.json").read_text())


def test_ids_are_one_each_and_references_lead_somewhere(folder: Path) -> None:
    content, page_ = made(folder, *ALL)
    ids = [attrs["id"] for _, attrs in page_.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    targets = {str(attrs["href"])[1:] for _, attrs in page_.tags if attrs.get("href")}
    targets |= set(re.findall(r"url\(#([^)]+)\)", content))
    assert targets <= set(ids)
    assert len([tag for tag, _ in page_.tags if tag == "svg"]) == 6


def test_what_each_number_used_stands_beside_it(folder: Path) -> None:
    words = " ".join(made(folder, "g.jsonl")[1].words)
    assert "own QAT (its labels)" in words
    assert "vector, λ = 1 (no receiver data)" in words
    assert "vector, λ chosen on validation (its labels)" in words
    assert "receiver_labels" in words


HOSTILE = '<script>alert("1")</script>'
MORE = ("</script><!--", "]]>&lt;<b>", '" onload="x', "{{ 7 * 7 }}", "\u2028\x00")


@pytest.mark.parametrize("name", [HOSTILE, *MORE])
def test_a_hostile_name_is_text(name: str, tmp_path: Path) -> None:
    grid = tmp_path / "g.jsonl"
    grid.write_text(text(grid_lines(receivers=(name, "b"), donors=(name,))))
    call("report", grid, "-o", tmp_path / "r.html", "--title", name)
    content = (tmp_path / "r.html").read_text(encoding="utf-8")
    page_ = Reader(content)
    assert [attrs for tag, attrs in page_.tags if tag == "script"] == [
        {"type": "application/json", "id": "data"}
    ]
    assert "b" not in {tag for tag, _ in page_.tags}
    assert not any("onload" in attrs for _, attrs in page_.tags)
    assert "49" not in page_.words
    data = json.loads("".join(page_.scripts))
    assert name in data["files"][0]["content"][0]["receivers"]
    if "\x00" not in name:
        assert name in page_.words


def test_a_script_element_can_hold_any_json() -> None:
    value = {"a": "</script><!-- & \u2028", "b": [1.5, None, True]}
    text_ = embedded(value)
    assert json.loads(text_) == value
    assert not set("<>&\u2028") & set(text_)


def test_pages_follow_light_and_dark_and_print_without_either(folder: Path) -> None:
    content, _ = made(folder, "g.jsonl")
    assert "@media (prefers-color-scheme: dark)" in content
    assert '<meta name="color-scheme" content="light dark">' in content
    assert "@media print" in content
    assert ".card { background: #ffffff" in content  # figures have dark ink in either


def test_the_same_files_give_the_same_page(folder: Path) -> None:
    assert made(folder, *ALL)[0] == made(folder, *ALL)[0]


def test_a_figure_that_lacks_something_is_told_and_the_others_are_there(folder: Path) -> None:
    _, page_ = made(folder, "uncosted.jsonl")
    words = " ".join(page_.words)
    assert "Not drawn: what the QAT of receiver cars costs is not known." in words
    assert len([tag for tag, _ in page_.tags if tag == "svg"]) == 2


def test_sweeps_on_two_grids_are_two_figures(folder: Path) -> None:
    _, page_ = made(folder, "sweep1.json", "sweep2.json", "sweep_w2.json")
    assert len([tag for tag, _ in page_.tags if tag == "svg"]) == 2


@pytest.mark.parametrize("file", ["sweep1.json", "q1.json", "own_qat.json", "run_cars.json"])
def test_every_kind_of_file_makes_a_page(file: str, folder: Path) -> None:
    done = call("report", file, "-o", "r.html", "--json").json
    assert done["command"] == "report"
    assert done["results"]["tables"] > 0
    assert done["results"]["bytes"] == (folder / "r.html").stat().st_size
    Reader((folder / "r.html").read_text())


def test_pictures_are_told_to_those_who_do_not_see_them(folder: Path) -> None:
    _, page_ = made(folder, "g.jsonl")
    labels = [attrs.get("aria-label") for _, attrs in page_.tags if attrs.get("role") == "img"]
    assert len(labels) == 3
    assert all(label and len(label) > 40 for label in labels)


@pytest.mark.parametrize(
    ("files", "grids"),
    [
        (("g.jsonl", "g2.jsonl"), [("3-bit channel absmax", 2)]),
        (
            ("g.jsonl", "two_bits.jsonl", "g2.jsonl"),
            [("3-bit channel absmax", 2), ("2-bit channel absmax", 1)],
        ),
    ],
)
def test_seeds_of_a_grid_share_a_section_and_another_grid_has_its_own(
    files: tuple[str, ...], grids: list[tuple[str, int]], folder: Path
) -> None:
    done = call("report", *files, "-o", "r.html", "--json").json["results"]
    assert [(grid["grid"], grid["runs"]) for grid in done["grids"]] == grids
    assert done["sections"][:-1] == [f"Transfer, {grid}" for grid, _ in grids]
    (folder / "r.html").unlink()
    told = call("report", *files, "-o", "r.html").out
    for grid, runs in grids:
        many = f", {runs} runs" if runs > 1 else ""
        assert f"\n{grid}, 3 receivers{many}\n" in told


REFUSALS: dict[str, tuple[str, tuple[str, ...]]] = {
    "another suffix": ("written as .html", ("g.jsonl", "-o", "r.pdf")),
    "no such file": ("no such file", ("none.json", "-o", "r.html")),
    "what is no result": ("has no command", ("other.json", "-o", "r.html")),
    "an output that exists": ("exists", ("g.jsonl", "-o", "words.html")),
    "an output that is an input": ("is an input", ("g.html", "-o", "g.html", "--force")),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_makes_no_page_is_refused_in_one_line(name: str, folder: Path) -> None:
    (folder / "words.html").write_text("old")
    (folder / "g.html").write_text(text(grid_lines()))
    message, args = REFUSALS[name]
    done = call("report", *args, code=None)
    assert done.code in {1, 2}
    assert len(done.errors) == 1
    assert message in done.errors[0]
    assert not (folder / "r.html").exists()
    assert (folder / "words.html").read_text() == "old"


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
    made_ = page(Page("t", "l", (Section("s", (), (table,), ("n",)),), {}, "f"))
    reader = Reader(made_.decode())
    assert {"t", "l", "s", "c", "a", "b", "1", "2", "note", "n", "f"} <= set(reader.words)
    assert "nav" not in {tag for tag, _ in reader.tags}  # for one section


def test_every_task_has_its_row(folder: Path) -> None:
    _, page_ = made(folder, "g.jsonl")
    assert all(page_.words.count(task) > 2 for task in TASKS[:3])


def test_lambda_by_agreement_has_its_tables(folder: Path) -> None:
    call("report", "agreed.json", "judged.json", "judged.jsonl", "-o", "r.html")
    words = " ".join(Reader((folder / "r.html").read_text()).words)
    for told in (
        "Sweeps without labels",
        "λ by agreement",
        "vector, λ by agreement (images of others)",
        "distance to the float answers on proxy images, by λ",
        "2 sweeps without labels",
    ):
        assert told in words
    for row in json.loads((folder / "agreed.json").read_text())["results"]["donors"]:
        assert f"{100 * row['score']['removed']:.1f}" in words
        assert f"{row['curve'][0]['distance']:.5g} ± 0.02" in words
