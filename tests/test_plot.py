"""Figures: what they show is what was measured, and the same numbers give the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import call, light
from qvec_cli.report.heatmap_facts import heat_of
from qvec_cli.report.layer_facts import place_of, short, strips_of
from qvec_cli.report.plane_facts import break_even, costs_of, plane_of
from qvec_cli.report.spread import spread
from qvec_cli.results.agreement_sweep import Agreed
from samples import TASKS, grid_lines, text, written

from qvec_cli.report.canvas import (
    COLOURS,
    FORMATS,
    compact,
    ink_on,
    luminance,
    name,
    render,
    styled,
    two_lines,
    words_width,
    wrapped,
)
from qvec_cli.report.curve_facts import agreed_of, cells_of, spread_of
from qvec_cli.report.curves import curves, wilson
from qvec_cli.report.heatmap import GAINS, heatmap, signed
from qvec_cli.report.layers import strips
from qvec_cli.report.plane import crossing, plane
from qvec_cli.results.documents import Extraction, Layers, TrainingRecord, read
from qvec_cli.results.matrix import Matrix, lines_of, parse
from qvec_cli.specs import Cost


def matrix(**options: Any) -> Matrix:
    return parse(lines_of(text(grid_lines(**options)), "g.jsonl"))


def judged() -> Matrix:
    """With lambda by agreement."""
    return matrix(selectors=("val", "agreement"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of results, made up, in the working folder."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    return tmp_path


# --- the heatmap


def texts(axes: Any) -> dict[tuple[float, float], str]:
    """What is written in a panel, by row and column."""
    return {(round(t.get_position()[1], 2), t.get_position()[0]): t.get_text() for t in axes.texts}


@pytest.mark.parametrize("size", [1, 3, 8, 13, 22])
def test_the_numbers_in_the_cells_are_those_of_the_records(size: int) -> None:
    found = matrix(receivers=TASKS[:size], donors=TASKS[:size])
    figure = heatmap(heat_of(found))
    fixed, chosen, levels = map(texts, figure.axes[:3])
    decimal = size <= 12
    for r, receiver in enumerate(found.receivers):
        for d, donor in enumerate(found.donors):
            cell = found.cells[receiver, donor, None]
            gain = 100 * found.gain(receiver, cell.fixed[0].test)
            assert fixed[r, d] == signed(gain, decimal=decimal)
            gain = 100 * found.gain(receiver, cell.chosen["val"].test)
            lam = cell.chosen["val"].lam
            place = (r, d) if lam == 1 else (round(r - 0.14, 2), d)
            assert chosen[place] == signed(gain, decimal=decimal)
            if lam != 1:
                assert chosen[round(r + 0.27, 2), d] == f"{lam:g}"
        for k, key in enumerate(["fp", "ptq", "rtn mse", "rtn mse-full"]):
            share = 100 * found.baselines[receiver][key].test.top1
            assert levels[r, k] == f"{share:.1f}"


def test_more_than_a_screenful_of_cells_has_colours_only() -> None:
    names = tuple(f"task{i}" for i in range(23))
    figure = heatmap(heat_of(matrix(receivers=names, donors=names[:2], extra=())))
    assert texts(figure.axes[0]) == {}


def test_the_colour_of_no_change_is_the_middle_of_the_map() -> None:
    import matplotlib as mpl

    figure = heatmap(heat_of(matrix()))
    middle = mpl.colormaps[GAINS](0.5)
    scales = set()
    for panel in figure.axes[:2]:
        for mesh in panel.collections:
            assert mesh.cmap(mesh.norm(0.0)) == middle
            assert mesh.norm.vmin == -mesh.norm.vmax
            scales.add(mesh.norm.vmax)
    assert len(scales) == 1  # shared


def test_gain_and_loss_are_told_apart_by_their_colours() -> None:
    import matplotlib as mpl

    low, high = mpl.colormaps[GAINS](0.1), mpl.colormaps[GAINS](0.9)
    assert low[0] > low[2] + 0.2
    assert high[2] > high[0] + 0.2


@pytest.mark.parametrize("map_name", [GAINS, "cividis"])
def test_numbers_stand_out_from_every_colour_of_the_map(map_name: str) -> None:
    import matplotlib as mpl

    for value in np.linspace(0, 1, 101):
        colour = mpl.colormaps[map_name](value)
        paper, ink = luminance(colour), {"#000000": 0.0, "#ffffff": 1.0}[ink_on(colour)]
        assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) >= 4.5


def test_bold_is_what_lies_beyond_a_standard_error() -> None:
    found = matrix(receivers=TASKS[:6], donors=TASKS[:6])
    panel = heatmap(heat_of(found)).axes[0]
    weights = set()
    for word in panel.texts:
        column, row = word.get_position()
        if row > 5:
            continue  # the means
        receiver, donor = TASKS[int(row)], TASKS[int(column)]
        test, plain = found.cells[receiver, donor, None].fixed[0].test, found.plain(receiver)
        error = (test.standard_error**2 + plain.standard_error**2) ** 0.5
        assert (word.get_fontweight() == "bold") == (abs(test.top1 - plain.top1) > error)
        weights.add(word.get_fontweight())
    assert weights == {"bold", "normal"}


def test_what_has_not_run_is_hatched_and_no_zero() -> None:
    found = matrix(missing=((TASKS[0], TASKS[1]), (TASKS[2], TASKS[2])))
    heat = heat_of(found)
    panel = heatmap(heat).axes[0]
    hatched = {p.get_xy() for p in panel.patches if p.get_hatch()}
    assert hatched == {(0.5, -0.5), (1.5, 1.5), (0.5, 2.75)}  # and the mean that lacks one
    assert (0, 1) not in texts(panel)
    assert "7 of 9 pairs" in heat.subtitle
    assert "hatched: not measured" in heat.footnote
    assert "hatched" not in heat_of(matrix()).footnote


def test_means_leave_the_ceiling_out() -> None:
    found = matrix()
    panel = heatmap(heat_of(found)).axes[0]
    for d, donor in enumerate(found.donors):
        others = [
            100 * found.gain(r, found.cells[r, donor, None].fixed[0].test)
            for r in found.receivers
            if r != donor
        ]
        assert texts(panel)[3.25, d] == signed(float(np.mean(others)), decimal=True)


def test_the_own_vector_is_outlined() -> None:
    panel = heatmap(heat_of(matrix())).axes[0]
    outlined = {p.get_xy() for p in panel.patches if not p.get_hatch()}
    assert outlined == {(i - 0.46, i - 0.46) for i in range(3)}
    apart = matrix(receivers=TASKS[:2], donors=TASKS[5:7])
    assert heatmap(heat_of(apart)).axes[0].patches[:] == []
    assert "outlined" not in heat_of(apart).footnote


def test_each_selector_has_its_panel_and_says_what_it_used() -> None:
    heat = heat_of(matrix(selectors=("val", "entropy")))
    assert [(panel.title, panel.note) for panel in heat.panels] == [
        ("λ = 1", "no receiver data"),
        ("λ chosen on validation", "its labels"),
        ("λ by entropy", "images of others"),
    ]
    assert heat.columns[0] == "float"
    assert heat.columns[-1] == "own QAT (its labels)"


@pytest.mark.parametrize(
    ("points", "shown"), [(0.04, "0.0"), (-0.04, "0.0"), (1.25, "+1.2"), (-7, "\N{MINUS SIGN}7.0")]
)
def test_a_change_has_its_sign_and_none_has_none(points: float, shown: str) -> None:
    assert signed(points, decimal=True) == shown


def boxes(figure: Any) -> list[tuple[str, Any]]:
    """Words and where they stand, in pixels."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    found = [*figure.texts]
    for axes in figure.axes:
        found += axes.texts
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            found += [word for tick in ticks for word in (tick.label1, tick.label2)]
    words = [w for w in found if w.get_text() and w.get_visible()]
    return [(word.get_text(), word.get_window_extent(renderer)) for word in words]


FIGURES: dict[str, Any] = {
    "heatmap 1": lambda: heatmap(heat_of(matrix(receivers=TASKS[:1], donors=TASKS[3:4]))),
    "heatmap 3": lambda: heatmap(heat_of(matrix())),
    "heatmap 8": lambda: heatmap(heat_of(matrix(receivers=TASKS[:8], donors=TASKS[:8]))),
    "heatmap 13": lambda: heatmap(heat_of(matrix(receivers=TASKS[9:], donors=TASKS[9:14]))),
    "heatmap of long names": lambda: heatmap(
        heat_of(matrix(receivers=("a" * 90, "b c" * 30), donors=("d" * 90,)))
    ),
    "heatmap with selectors": lambda: heatmap(
        heat_of(matrix(selectors=("val", "entropy", "agreement"), extra=()))
    ),
    "curve of a pair": lambda: curves(cells_of(matrix(), TASKS[0], TASKS[1])),
    "curve of a receiver": lambda: curves(cells_of(matrix(), TASKS[0], None)),
    "curve of a donor": lambda: curves(cells_of(matrix(), None, TASKS[1])),
    "curve with distances": lambda: curves(cells_of(judged(), None, TASKS[1])),
    "curve of all with distances": lambda: spread(spread_of(judged())),
    "heatmap with agreement": lambda: heatmap(heat_of(judged())),
    "plane": lambda: plane(
        plane_of(
            matrix(extra=("gptq", "awq")),
            costs_of(matrix(), Cost.IMAGES, (), ()),
            Cost.IMAGES,
            None,
        )
    ),
}


@pytest.mark.parametrize("which", FIGURES)
def test_no_words_leave_the_figure(which: str) -> None:
    figure = FIGURES[which]()
    width, height = figure.get_size_inches() * figure.dpi
    for word, box in boxes(figure):
        assert box.x0 > -1, word
        assert box.y0 > -1, word
        assert box.x1 < width + 1, word
        assert box.y1 < height + 1, word


@pytest.mark.parametrize("which", [key for key in FIGURES if key.startswith("heatmap")])
def test_no_words_of_a_heatmap_lie_on_others(which: str) -> None:
    found = boxes(FIGURES[which]())
    for place, (word, box) in enumerate(found):
        for other, beside in found[:place]:
            apart = (
                box.x0 >= beside.x1 - 1
                or beside.x0 >= box.x1 - 1
                or box.y0 >= beside.y1 - 1
                or beside.y0 >= box.y1 - 1
            )
            assert apart, (word, other)


# --- curves


def test_a_curve_shows_validation_as_a_line_and_test_as_marks() -> None:
    found = matrix()
    cell = found.cells[TASKS[0], TASKS[1], None]
    axes = curves(cells_of(found, TASKS[0], TASKS[1])).axes[0]
    line = next(line for line in axes.lines if len(line.get_xdata()) == len(cell.curve))
    assert list(line.get_xdata()) == [point.lam for point in cell.curve]
    assert np.allclose(line.get_ydata(), [100 * point.val.top1 for point in cell.curve])
    marks = [line for line in axes.lines if line.get_marker() in {"o", "D"}]
    shown = {mark.get_xdata()[0]: mark.get_ydata()[0] for mark in marks}
    measured = {point.lam: 100 * point.test.top1 for point in cell.curve if point.test}
    assert shown == pytest.approx(measured)
    (picked,) = (mark for mark in marks if mark.get_marker() == "D")
    assert picked.get_xdata()[0] == cell.chosen["val"].lam
    words = [word.get_text() for word in axes.texts]
    rows = found.baselines[TASKS[0]]
    for label, key in (("float", "fp"), ("RTN", "ptq"), ("own QAT", "qat")):
        assert f"{label} {100 * rows[key].test.top1:.1f}" in words


def test_the_band_is_wilsons_interval() -> None:
    """Against the roots of (p - share)^2 = z^2 p (1 - p) / n, which define it."""
    for right, of in ((0, 10), (3, 10), (10, 10), (279, 500), (1, 1)):
        z2, share = 1.959963984540054**2, right / of
        roots = np.roots([1 + z2 / of, -(2 * share + z2 / of), share * share])
        assert np.allclose(wilson(right, of), sorted(roots.real), atol=1e-7)
        assert 0 <= wilson(right, of)[0] <= share <= wilson(right, of)[1] <= 1


def test_more_donors_than_colours_get_a_panel_each() -> None:
    many = matrix(receivers=TASKS[:1], donors=TASKS[:9])
    assert len(curves(cells_of(many, TASKS[0], None)).axes) == 9
    few = matrix(receivers=TASKS[:1], donors=TASKS[: len(COLOURS)])
    assert len(curves(cells_of(few, TASKS[0], None)).axes) == 1


def line_of(axes: Any, count: int) -> Any:
    """The curve among the lines of a panel."""
    (line,) = (line for line in axes.lines if len(line.get_xdata()) == count)
    return line


def test_distances_stand_below_accuracies_on_the_same_lambdas() -> None:
    found = judged()
    cell = found.cells[TASKS[0], TASKS[1], None]
    figure = curves(cells_of(found, TASKS[0], TASKS[1]))
    above, below = figure.axes
    line = line_of(below, len(cell.curve))
    assert list(line.get_xdata()) == [point.lam for point in cell.curve]
    assert list(line.get_ydata()) == [point.distance for point in cell.curve]
    assert above.get_xlim() == below.get_xlim()
    assert above.get_position().x0 == below.get_position().x0
    assert above.get_position().y0 > below.get_position().y1
    assert below.get_ylabel() == "KL, nats"
    lam = cell.chosen["agreement"].lam
    (mark,) = (line for line in below.lines if line.get_marker() == "v")
    assert mark.get_xdata()[0] == lam
    marks = {line.get_xdata()[0]: line.get_marker() for line in above.lines}
    assert marks[lam] == ("D" if lam == cell.chosen["val"].lam else "v")
    assert len(curves(cells_of(matrix(), TASKS[0], TASKS[1])).axes) == 1


@pytest.mark.parametrize(("file", "panels"), [("agreed.json", 1), ("judged.json", 2)])
def test_a_sweep_by_agreement_shows_what_it_has_chosen_by(
    file: str, panels: int, folder: Path
) -> None:
    """Without labels distances alone; with them accuracies too, and no lambda of theirs."""
    (sweep,) = read([folder / file]).of(Agreed)
    figure = curves(agreed_of([sweep]))
    assert len(figure.axes) == panels
    first, axes = sweep.rows[0], figure.axes[-1]
    line = next(line for line in axes.lines if len(line.get_xdata()) == len(first.curve))
    assert list(line.get_ydata()) == [point.mean for point in first.curve]
    marks = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "v"]
    assert marks == [row.chosen.lam for row in sweep.rows]
    words = " ".join(text.get_text() for text in figure.texts)
    assert "on which" not in words
    assert ("validation" in words) is (panels == 2)
    done = json.loads(json.dumps(call("plot", file, "-o", "f.svg", "--json").json))
    assert done["data_use"] == {"level": "proxy_images", "counts": {"proxy": 256}}


def test_agreement_is_the_third_panel_and_says_what_it_used() -> None:
    heat = heat_of(judged())
    assert [(panel.title, panel.note) for panel in heat.panels] == [
        ("λ = 1", "no receiver data"),
        ("λ chosen on validation", "its labels"),
        ("λ by agreement", "images of others"),
    ]


def test_the_damage_that_is_left_is_a_share_of_that_of_plain_rounding() -> None:
    found = judged()
    many = spread_of(found)
    rows = [[point.distance for point in cell.curve] for cell in found.transfers]
    assert many.left is not None
    assert np.allclose(many.left, [[value / row[0] for value in row] for row in rows])
    assert many.agreed == (0.6,) * 6
    assert len(spread(many).axes) == 4
    assert len(spread(spread_of(matrix())).axes) == 2


def test_the_curve_of_a_grid_is_the_median_over_transfers() -> None:
    found = matrix()
    many = spread_of(found)
    gains = np.array(
        [
            [100 * (point.val.top1 - cell.curve[0].val.top1) for point in cell.curve]
            for cell in found.cells.values()
            if cell.null is None and cell.receiver != cell.donor
        ]
    )
    assert np.allclose(many.val, gains)
    assert (many.val[:, 0] == 0).all()
    assert len(many.own) == 3
    assert len(many.chosen) == 6
    assert spread_of(matrix(oracle=False)).test is None


# --- the plane


def test_break_even_is_the_donors_cost_over_the_mean_receivers() -> None:
    found = matrix()
    own = {name: row.trained_images for name, row in found.receivers.items()}
    given = plane_of(found, costs_of(found, Cost.IMAGES, (), ()), Cost.IMAGES, TASKS[1])
    assert given.costs == tuple(own.values())
    taught = found.donors[TASKS[1]].trained_images
    even = given.donor[1] / np.mean(given.costs)
    assert given.donor[:2] == (f"vector of {TASKS[1]}", taught)
    assert f"N* = {even:.2f}" in given.words
    axes = plane(given).axes[-1]
    (mark,) = (line for line in axes.lines if line.get_marker() == "o")
    assert np.allclose([mark.get_xdata()[0], mark.get_ydata()[0]], [even, taught])


def test_the_order_of_receivers_brackets_the_break_even() -> None:
    costs, price = [1.0, 2.0, 3.0, 10.0], 6.0
    assert crossing(sorted(costs), price) == 3
    assert crossing(sorted(costs, reverse=True), price) == 1
    assert crossing(costs, 100) is None
    told = break_even("x", price, costs, "images")
    assert "from 3 on if the cheapest come first, from 1 on if the costliest do" in told
    assert "more than the 4 here" in break_even("x", 100, costs, "images")
    assert "only beyond 4 receivers" in break_even("x", 100, costs, "images")


def test_points_of_the_plane_are_means_over_receivers() -> None:
    found = matrix()
    given = plane_of(found, costs_of(found, Cost.IMAGES, (), ()), Cost.IMAGES, None)
    shares = {way.name: way for way in given.ways}
    plain = [found.plain(name).top1 for name in found.receivers]
    assert shares["RTN, this grid"].top1 == tuple(plain)
    assert set(shares["RTN, this grid"].costs) == {0}
    unit = shares["vector, λ = 1 (no receiver data)"]
    for receiver, share in zip(found.receivers, unit.top1, strict=True):
        cells = [c.fixed[0].test.top1 for c in found.transfers if c.receiver == receiver]
        assert share == pytest.approx(np.mean(cells))
    assert shares["own QAT (its labels)"].costs == given.costs
    marks = [line for line in plane(given).axes[0].lines if len(line.get_xdata()) == 1]
    assert marks[0].get_ydata()[0] == pytest.approx(100 * np.mean(plain))


def test_seconds_are_those_of_the_training_runs(folder: Path) -> None:
    files = [path.name for path in folder.glob("run_*.json")]
    done = call("plot", "g.jsonl", *files, "--figure", "plane", "--cost", "seconds", "-o", "p.svg")
    assert "of QAT" in done.out
    found = read([folder / "g.jsonl", *(folder / file for file in files)])
    assert found.matrix
    told = costs_of(found.matrix, Cost.SECONDS, found.of(TrainingRecord), found.of(Extraction))
    assert told[0] == {name: 60 + len(name) for name in TASKS[:3]}
    assert told[1] == dict.fromkeys(TASKS[:3], 100)


@pytest.mark.parametrize(
    ("value", "shown"), [(840, "840"), (16_200, "16.2 k"), (999_999, "1 M"), (1_276_167, "1.28 M")]
)
def test_counts_have_three_digits(value: float, shown: str) -> None:
    assert compact(value) == shown


# --- layers


def test_the_strips_hold_the_ratio_of_each_weight(folder: Path) -> None:
    models = read([folder / "q1.json", folder / "q2.json"]).of(Layers)
    given = strips_of(models)
    assert given.layers == ("qkv", "proj", "fc1", "fc2")
    assert given.blocks == tuple(map(str, range(4)))
    for model, strip in zip(models, given.strips, strict=True):
        for tensor, ratio in model.sqnr.items():
            numbers, words = place_of(tensor)
            place = given.layers.index(words[-1]), given.blocks.index(str(*numbers))
            assert strip.ratios[place] == (np.inf if ratio is None else ratio)
    first, second, _ = strips(given).axes
    assert texts(first)[0, 0] == f"{given.strips[0].ratios[0, 0]:.1f}"
    assert first.collections[0].norm.vmax == second.collections[0].norm.vmax
    assert texts(second)[3, 3] == "∞"


@pytest.mark.parametrize(
    ("tensor", "place"),
    [
        ("blocks.3.attn.qkv.weight", ((3,), ("attn", "qkv"))),
        ("layers.1.blocks.0.mlp.fc1.weight", ((1, 0), ("mlp", "fc1"))),
        ("layers.1.downsample.reduction.weight", ((1,), ("downsample", "reduction"))),
        ("trunk.proj.weight", ((), ("trunk", "proj"))),
        ("blocks.0.attn.in_proj_weight", ((0,), ("attn", "in_proj_weight"))),
        ("layers.0", ((0,), ("layers",))),
    ],
)
def test_a_weight_has_a_block_and_a_layer(tensor: str, place: object) -> None:
    assert place_of(tensor) == place


def test_layers_are_called_by_as_few_words_as_tell_them_apart() -> None:
    names = short([("attn", "proj"), ("attn", "qkv"), ("cross", "proj"), ("proj",)])
    assert list(names.values()) == ["attn.proj", "qkv", "cross.proj", "proj"]


# --- the command


@pytest.mark.parametrize(
    ("suffix", "args"),
    [
        *((suffix, ("g.jsonl",)) for suffix in FORMATS),
        ("svg", ("g.jsonl", "--figure", "curve")),
        ("png", ("g.jsonl", "--figure", "curve", "--receiver", "cars", "--donor", "dtd")),
        ("pdf", ("g.jsonl", "--figure", "plane")),
        ("svg", ("sweep1.json", "sweep2.json", "own_qat.json")),
        ("svg", ("agreed.json",)),
        ("svg", ("judged.json",)),
        ("svg", ("judged.jsonl", "--figure", "curve")),
        ("svg", ("judged.jsonl", "--figure", "curve", "--receiver", "cars")),
        ("svg", ("q1.json", "q2.json")),
    ],
    ids=str,
)
def test_the_same_numbers_give_the_same_bytes(
    args: tuple[str, ...], suffix: str, folder: Path
) -> None:
    written_ = []
    for place in range(2):
        call("plot", *args, "-o", f"f{place}.{suffix}")
        written_.append((folder / f"f{place}.{suffix}").read_bytes())
    assert written_[0] == written_[1]
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix]
    assert written_[0].startswith(start)
    assert not any(stamp in written_[0] for stamp in (b"CreationDate", b"<dc:date>", b"Matplotlib"))


def test_neither_settings_nor_hash_seeds_change_the_bytes(folder: Path) -> None:
    settings = folder / "matplotlibrc"
    settings.write_text("font.size: 20\nlines.linewidth: 9\nsavefig.bbox: tight\naxes.grid: True\n")
    digests = set()
    for seed, more in (("0", {}), ("7", {"MATPLOTLIBRC": str(settings)})):
        out = folder / f"{seed}.svg"
        command = [sys.executable, "-m", "qvec_cli", "plot", "g.jsonl", "-o", str(out)]
        env = {**os.environ, "PYTHONHASHSEED": seed, **more}
        subprocess.run(command, check=True, env=env, capture_output=True)
        digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_an_svg_is_xml_with_letters_as_paths(folder: Path) -> None:
    call("plot", "g.jsonl", "-o", "f.svg")
    root = ET.parse(folder / "f.svg").getroot()
    assert root.tag.endswith("}svg")
    kinds = {element.tag.rsplit("}", 1)[-1] for element in root.iter()}
    assert "text" not in kinds
    assert "path" in kinds


def test_plot_never_imports_torch(folder: Path) -> None:
    assert light("plot", "g.jsonl", "-o", "f.png") == (0, [], [])
    assert light("report", "g.jsonl", "q1.json", "-o", "f.html") == (0, [], [])


def test_stdin_is_a_file_of_results(folder: Path) -> None:
    command = [sys.executable, "-m", "qvec_cli", "plot", "-", "-o", "f.svg"]
    with (folder / "g.jsonl").open("rb") as lines:
        subprocess.run(command, check=True, stdin=lines, capture_output=True)
    call("plot", "g.jsonl", "-o", "same.svg")
    assert (folder / "f.svg").read_bytes() == (folder / "same.svg").read_bytes()


def test_what_was_drawn_is_told(folder: Path) -> None:
    done = call("plot", "g.jsonl", "-o", "f.png", "--metrics", "m.json", "--json").json
    assert done == json.loads((folder / "m.json").read_text())
    assert done["results"]["figure"] == "heatmap"
    assert done["results"]["cells"] == 9
    assert done["results"]["missing"] == 0
    assert done["results"]["bytes"] == (folder / "f.png").stat().st_size
    content = (folder / "g.jsonl").read_bytes()
    kept = {"path": "g.jsonl", "kind": "grid", "digest": hashlib.sha256(content).hexdigest()}
    assert done["inputs"] == [kept]
    assert done["data_use"]["level"] == "receiver_labels"
    found = matrix()
    labels = sum(row.images["val"] for row in found.receivers.values())
    assert done["data_use"]["counts"] == {"val": labels}
    alone = call("plot", "q1.json", "-o", "q.png", "--json").json
    assert alone["data_use"]["level"] == "none"
    assert alone["inputs"][0]["kind"] == "metrics"


def test_seeds_of_a_grid_are_drawn_together(folder: Path) -> None:
    done = call("plot", "g.jsonl", "g2.jsonl", "-o", "f.svg", "--json").json["results"]
    assert "9 pairs of 2 runs" in done["words"]


REFUSALS: dict[str, tuple[str, tuple[str, ...]]] = {
    "another suffix": ("written as .png, .svg, .pdf", ("g.jsonl", "-o", "f.jpg")),
    "no suffix": ("written as .png, .svg, .pdf", ("g.jsonl", "-o", "f")),
    "stdout, which has no suffix": ("written as .png", ("g.jsonl", "-o", "-")),
    "no such file": ("none.json: no such file", ("none.json", "-o", "f.png")),
    "a folder": ("is a directory", (".", "-o", "f.png")),
    "no text": ("noise.bin: is not text", ("noise.bin", "-o", "f.png")),
    "nothing": ("empty.json: is empty", ("empty.json", "-o", "f.png")),
    "no JSON": ("words.txt:1: is not JSON", ("words.txt", "-o", "f.png")),
    "a damaged document": ("damaged.json: is not JSON", ("damaged.json", "-o", "f.png")),
    "JSON of others": ("other.json: has no command", ("other.json", "-o", "f.png")),
    "results that nobody draws": ("is of qvec inspect", ("inspect.json", "-o", "f.png")),
    "a plan": ("is a plan", ("plan.json", "-o", "f.png")),
    "a newer document": ("newer qvec", ("newer.json", "-o", "f.png")),
    "one file twice": ("stands twice", ("g.jsonl", "g.jsonl", "-o", "f.png")),
    "two grids": (
        "the files are of 2 grids: 3-bit channel absmax (3 receivers) and 2-bit channel absmax",
        ("g.jsonl", "two_bits.jsonl", "-o", "f.png"),
    ),
    "what makes no figure": ("alone it makes no figure", ("own_qat.json", "-o", "f.png")),
    "a figure of something else": (
        "--figure plane is drawn from a transfer grid",
        ("q1.json", "--figure", "plane", "-o", "f.png"),
    ),
    "a document that the figure leaves out": (
        "q1.json: a heatmap shows nothing of quantize",
        ("g.jsonl", "q1.json", "-o", "f.png"),
    ),
    "a grid that the figure leaves out": (
        "a layers shows nothing of a transfer grid",
        ("g.jsonl", "q1.json", "--figure", "layers", "-o", "f.png"),
    ),
    "a grid and sweeps": (
        "a transfer grid and a sweep",
        ("g.jsonl", "sweep1.json", "--figure", "curve", "-o", "f.png"),
    ),
    "a receiver that the grid lacks": (
        "--receiver 'x' is not in the grid; it has cars",
        ("g.jsonl", "--figure", "curve", "--receiver", "x", "-o", "f.png"),
    ),
    "a donor that the grid lacks": (
        "--donor 'x' is not in the grid",
        ("g.jsonl", "--figure", "plane", "--donor", "x", "-o", "f.png"),
    ),
    "sweeps with labels and without": (
        "a sweep and a sweep by agreement",
        ("sweep1.json", "agreed.json", "-o", "f.png"),
    ),
    "a grid and a sweep by agreement": (
        "a transfer grid and a sweep by agreement",
        ("g.jsonl", "agreed.json", "--figure", "curve", "-o", "f.png"),
    ),
    "an evaluation beside a sweep by agreement": (
        "no place for the accuracy of a file",
        ("agreed.json", "own_qat.json", "-o", "f.png"),
    ),
    "a measure that is none": ("measure is 'entropy'", ("agreed_bad.json", "-o", "f.png")),
    "a receiver of sweeps": (
        "choose in a grid",
        ("sweep1.json", "--receiver", "cars", "-o", "f.png"),
    ),
    "a donor for a heatmap": ("--donor goes with", ("g.jsonl", "--donor", "dtd", "-o", "f.png")),
    "seconds for a curve": (
        "--cost seconds goes with --figure plane",
        ("g.jsonl", "--figure", "curve", "--cost", "seconds", "-o", "f.png"),
    ),
    "seconds that nobody told": (
        "what the QAT of receiver cars and of 2 more costs is not known",
        ("g.jsonl", "--figure", "plane", "--cost", "seconds", "-o", "f.png"),
    ),
    "costs that the grid does not tell": (
        "what the QAT of receiver cars costs is not known",
        ("uncosted.jsonl", "--figure", "plane", "-o", "f.png"),
    ),
    "sweeps on two grids": ("is on 2-bit", ("sweep1.json", "sweep_w2.json", "-o", "f.png")),
    "an evaluation that belongs to no sweep": (
        "fp.json: is no test accuracy of a receiver's own QAT",
        ("sweep1.json", "fp.json", "-o", "f.png"),
    ),
    "a sweep whose counts do not fit": ("top1 is not", ("sweep_bad.json", "-o", "f.png")),
    "an output that exists": ("there.png: exists", ("g.jsonl", "-o", "there.png")),
    "an output without a folder": ("folder does not exist", ("g.jsonl", "-o", "no/f.png")),
    "metrics that are the output": (
        "is the output itself",
        ("g.jsonl", "-o", "f.png", "--metrics", "f.png"),
    ),
    "an output that is an input": ("is an input", ("g.svg", "-o", "g.svg", "--force")),
}


@pytest.mark.parametrize("name_", REFUSALS)
def test_what_cannot_be_drawn_is_refused_in_one_line(name_: str, folder: Path) -> None:
    message, args = REFUSALS[name_]
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    done = call("plot", *args, code=None)
    assert done.code in {1, 2}
    (line,) = done.errors
    assert message in line
    assert len(done.err.splitlines()) <= 2
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert after == before  # nothing was written


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
@pytest.mark.parametrize("command", ["plot", "report"])
def test_without_the_packages_the_way_to_them_is_shown(
    package: str, command: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == package else real(name)
    )
    out = {"plot": "f.png", "report": "f.html"}[command]
    done = call(command, "g.jsonl", "-o", out, code=1)
    assert f"the package {package} is not installed" in done.err
    assert "hint: pip install 'qvec[plot]'" in done.err


def test_force_replaces_what_is_there(folder: Path) -> None:
    call("plot", "g.jsonl", "-o", "there.png", "--force")
    assert (folder / "there.png").read_bytes().startswith(b"\x89PNG")


# --- names


HOSTILE = ("$x^2$", "<script>alert(1)</script>", "a\nb\x1b[31m", "--><!--", "x" * 400, "&amp;")


def test_hostile_names_are_letters_and_no_more(tmp_path: Path) -> None:
    grid = tmp_path / "g.jsonl"
    grid.write_text(text(grid_lines(receivers=HOSTILE, donors=HOSTILE)))
    for out in ("f.svg", "f.png", "f.pdf"):
        call("plot", grid, "-o", tmp_path / out)
    ET.parse(tmp_path / "f.svg")
    figure = heatmap(heat_of(parse(lines_of(grid.read_text(), "g"))))
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown[0] == "$x^2$"
    assert "\n" not in "".join(shown)
    assert "\x1b" not in "".join(shown)
    assert max(map(len, shown)) <= 26


def test_letters_that_the_font_lacks_are_told(tmp_path: Path) -> None:
    grid = tmp_path / "g.jsonl"
    grid.write_text(text(grid_lines(receivers=("漢字", "b"), donors=("c",))))
    done = call("plot", grid, "-o", tmp_path / "f.png")
    assert "note: figures show boxes for letters that DejaVu lacks: 漢字" in done.err
    grid.write_text(text(grid_lines(receivers=("Ωmega", "b"), donors=("c",))))
    assert call("plot", grid, "-o", tmp_path / "g.png").err == ""


def test_names_are_cut_in_their_middle() -> None:
    assert name("short") == "short"
    assert name("a" * 20 + "b" * 20) == "a" * 12 + "…" + "b" * 12
    assert two_lines("own QAT (its labels)") == "own QAT\n(its labels)"
    assert two_lines("rtn mse") == "rtn mse"
    for line in wrapped("some words that do not fit into one line", 1.0, 7):
        assert words_width([line], 7) <= 1.0


def test_a_figure_leaves_no_setting_behind() -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    before = dict(mpl.rcParams)
    heatmap(heat_of(matrix()))

    @styled
    def fails() -> Figure:
        raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fails()
    render(Figure(), "png")
    assert dict(mpl.rcParams) == before
