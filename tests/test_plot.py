"""Figures: what they show is what was measured, and the same numbers give the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import call, light
from matplotlib.collections import LineCollection, PolyCollection
from samples import TASKS, grid_lines, text, written

from qvec_cli.report.bars import (
    Bar,
    BarChart,
    BarPanel,
    bars,
    chart_of,
    chart_of_advice,
    chart_of_evaluations,
    chart_of_grids,
    chart_of_summaries,
)
from qvec_cli.report.canvas import (
    COLOURS,
    compact,
    ink_on,
    luminance,
    name,
    render,
    signed,
    style,
    two_lines,
    words_width,
    wrapped,
)
from qvec_cli.report.curves import agreed_of, cells_of, curves, wilson
from qvec_cli.report.heatmap import GAINS, heat_of, heatmap
from qvec_cli.report.layers import place_of, short, strips, strips_of
from qvec_cli.report.plane import break_even, costs_of, crossing, plane, plane_of
from qvec_cli.results.documents import WaysDocument, read
from qvec_cli.results.matrix import Matrix, lines_of, parse
from qvec_cli.results.metrics_document import (
    AdviceResults,
    AgreementResults,
    ComparedResults,
    EvalResults,
    ExtractResults,
    QuantizeResults,
    TrainingResults,
)
from qvec_cli.results.records import TransferResults
from qvec_cli.results.summary import summarise
from qvec_cli.specs import Cost, DataUse


def matrix(**options: Any) -> Matrix:
    return parse(lines_of(text(grid_lines(**options)), "g.jsonl"))


def judged() -> Matrix:
    """With lambda by agreement."""
    return matrix(selectors=("val", "agreement"))


@pytest.fixture
def folder(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of results, made up, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for path in results.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, written once; tests only read them."""
    folder = tmp_path_factory.mktemp("results")
    written(folder)
    return folder


# --- the heatmap


def texts(axes: Any) -> dict[tuple[float, float], str]:
    """What is written in a panel, by row and column."""
    return {(round(t.get_position()[1], 2), t.get_position()[0]): t.get_text() for t in axes.texts}


@pytest.mark.parametrize("size", [1, 8, 13])
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


def test_numbers_stand_out_from_every_colour_of_the_maps() -> None:
    import matplotlib as mpl

    for value in np.linspace(0, 1, 101):
        for colours in (mpl.colormaps[GAINS], mpl.colormaps["cividis"]):
            paper = luminance(colours(value))
            ink = {"#000000": 0.0, "#ffffff": 1.0}[ink_on(colours(value))]
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
    outlined = {p.get_xy() for p in panel.patches if not p.get_hatch() and not corner(p)}
    assert outlined == {(i - 0.46, i - 0.46) for i in range(3)}
    apart = matrix(receivers=TASKS[:2], donors=TASKS[5:7])
    assert heatmap(heat_of(apart)).axes[0].patches[:] == []
    assert "outlined" not in heat_of(apart).footnote


def corner(patch: Any) -> bool:
    """Whether a patch is the mark of a number beyond the scale."""
    return isinstance(patch.get_xy(), np.ndarray)


def test_the_scale_is_that_of_other_pairs_and_what_lies_beyond_has_its_corner_cut() -> None:
    """Own vectors gain most by far: on their scale all pairs that count would be pale."""
    found = matrix()
    heat = heat_of(found)
    gains = {
        pair: [100 * found.gain(pair[0], choice.test) for choice in choices]
        for pair, cell in found.cells.items()
        if pair[2] is None
        for choices in [(cell.fixed[0], cell.chosen["val"])]
    }
    most = max(abs(g) for pair, both in gains.items() if pair[0] != pair[1] for g in both)
    assert heat.limit == pytest.approx(most)
    for place, axes in enumerate(heatmap(heat).axes[:2]):
        assert axes.collections[0].norm.vmax == heat.limit
        cut = [tuple(np.round(p.get_xy().mean(axis=0))) for p in axes.patches if corner(p)]
        beyond = [pair for pair, both in gains.items() if abs(both[place]) > most]
        names = list(found.receivers)
        assert sorted(cut) == sorted((names.index(d), names.index(r)) for r, d, _ in beyond)
        assert cut
    assert "cut corner" in heat.footnote
    others = heat_of(matrix(receivers=TASKS[:2], donors=TASKS[5:7]))
    assert "cut corner" not in others.footnote
    alone = matrix(receivers=TASKS[:1], donors=TASKS[:1])  # its own vector is all there is
    assert heat_of(alone).limit > 40


def test_each_selector_has_its_panel_and_says_what_it_used() -> None:
    heat = heat_of(matrix(selectors=("val", "entropy")))
    assert [(panel.title, panel.note) for panel in heat.panels] == [
        ("λ = 1", "no receiver data"),
        ("λ chosen on validation", "its labels"),
        ("λ by entropy", "images of others"),
    ]
    assert heat.columns[0] == "float"
    assert heat.columns[-1] == "own QAT (its labels)"


def test_a_change_has_its_sign_and_none_has_none() -> None:
    minus = "\N{MINUS SIGN}"
    for points, shown in ((0.04, "0.0"), (-0.04, "0.0"), (1.25, "+1.2"), (-7, f"{minus}7.0")):
        assert signed(points) == shown


def boxes(figure: Any) -> list[tuple[str, Any]]:
    """Words and where they stand, in pixels."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    found = [*figure.texts, *(word for legend in figure.legends for word in legend.get_texts())]
    for axes in figure.axes:
        found += axes.texts
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            found += [word for tick in ticks for word in (tick.label1, tick.label2)]
    words = [w for w in found if w.get_text() and w.get_visible()]
    return [(word.get_text(), word.get_window_extent(renderer)) for word in words]


LONG = f"gptq on generated and diversified proxies, {'float target, channel mse ' * 3}asymmetric"
ROWS = [
    *(("b" * 90, 1, DataUse.NONE, 2.0625), ("a way", 99, DataUse.RECEIVER_IMAGES, 2.1, True)),
    *((LONG, 14, DataUse.PROXY_IMAGES, 3.0), (LONG, 16, DataUse.RECEIVER_LABELS)),
]
PANEL = BarPanel("one", tuple(Bar(*row) for row in ROWS), ("l" * 90, 99.5))
NOISE = BarPanel("two", (Bar("c", -1.5, DataUse.NONE), Bar("d", 9, DataUse.NONE)), axis="dB")
BARS = BarChart("Bars", (PANEL, PANEL, NOISE))


TELEPHONE = 420
"""Pixels of a narrow screen, on which letters of figures have more than six."""

FIGURES: dict[str, Any] = {
    "heatmap 1": lambda: heatmap(heat_of(matrix(receivers=TASKS[:1], donors=TASKS[3:4]))),
    "heatmap 3": lambda: heatmap(heat_of(matrix())),
    "heatmap 8": lambda: heatmap(heat_of(matrix(receivers=TASKS[:8], donors=TASKS[:4]))),
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
    "bars": lambda: bars(BARS),
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
def test_no_words_leave_the_figure_or_lie_on_others_and_a_telephone_shows_them(
    which: str,
) -> None:
    figure = FIGURES[which]()
    width, height = figure.get_size_inches() * figure.dpi
    found = boxes(figure)
    for word, box in found:
        assert box.x0 > -1, word
        assert box.y0 > -1, word
        assert box.x1 < width + 1, word
        assert box.y1 < height + 1, word
    # of what is read: a lambda that is no fixed one may stand smaller in its cell
    sizes = [text_.get_fontsize() for axes in figure.axes for text_ in axes.get_xticklabels()]
    sizes += [text_.get_fontsize() for text_ in figure.texts]
    if which != "bars":  # whose ways may be long
        assert min(sizes) * TELEPHONE / (width / figure.dpi * 72) > 6
    assert not re.search(r"(?<!\w)-\d", " ".join(word for word, _ in found))
    if not which.startswith(("heatmap", "bars")):
        return
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


def test_a_curve_alone_has_a_band_and_several_have_whiskers() -> None:
    """Wilson's interval of every point, either way; the curve of each stands where it was."""
    found = judged()
    for receiver, donor in ((TASKS[0], TASKS[1]), (TASKS[0], None)):
        content = cells_of(found, receiver, donor)
        axes = curves(content).axes[0]
        (panel,) = content.panels
        bands = [c for c in axes.collections if isinstance(c, PolyCollection)]
        lines = [c for c in axes.collections if isinstance(c, LineCollection)]
        lines = [c for c in lines if len(c.get_segments()) == len(panel.traces[0].val)]
        assert (len(bands), len(lines)) == ((1, 0) if donor else (0, 3))
        for trace, whiskers in zip(panel.traces, lines, strict=False):
            for (lam, score), ((x, low), (_, high)) in zip(
                trace.val, whiskers.get_segments(), strict=True
            ):
                assert (low, high) == pytest.approx(
                    [100 * end for end in wilson(score.n_correct, score.n)]
                )
                assert abs(x - lam) < 0.05
        if donor:
            ends = {round(y, 9) for y in bands[0].get_paths()[0].vertices[:, 1]}
            known = [wilson(score.n_correct, score.n) for _, score in panel.traces[0].val]
            assert {round(100 * end, 9) for pair in known for end in pair} <= ends


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
    (sweep,) = read([folder / file]).of(AgreementResults)
    figure = curves(agreed_of([sweep]))
    assert len(figure.axes) == panels
    rows, axes = sweep.results.donors, figure.axes[-1]
    first = rows[0]
    line = next(line for line in axes.lines if len(line.get_xdata()) == len(first.curve))
    assert list(line.get_ydata()) == [point.mean for point in first.curve]
    marks = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "v"]
    assert marks == [row.chosen.lam for row in rows]
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


def test_the_plane_shows_points_from_each_receivers_own_float_and_their_means() -> None:
    found = matrix()
    given = plane_of(found, costs_of(found, Cost.IMAGES, (), ()), Cost.IMAGES, None)
    shares = {way.name: way for way in given.ways}
    fp = {name: 100 * rows["fp"].test.top1 for name, rows in found.baselines.items()}
    plain = [100 * found.plain(name).top1 - fp[name] for name in found.receivers]
    assert shares["RTN, this grid"].points == pytest.approx(plain)
    assert set(shares["RTN, this grid"].costs) == {0}
    unit = shares["vector, λ = 1 (no receiver data)"]
    for receiver, points in zip(found.receivers, unit.points, strict=True):
        cells = [c.fixed[0].test.top1 for c in found.transfers if c.receiver == receiver]
        assert points == pytest.approx(100 * np.mean(cells) - fp[receiver])
    assert shares["own QAT (its labels)"].costs == given.costs
    marks = [line for line in plane(given).axes[0].lines if len(line.get_xdata()) == 1]
    assert marks[0].get_ydata()[0] == pytest.approx(np.mean(plain))


def test_seconds_are_those_of_the_training_runs(folder: Path) -> None:
    files = [path.name for path in folder.glob("run_*.json")]
    done = call("plot", "g.jsonl", *files, "--figure", "plane", "--cost", "seconds", "-o", "p.svg")
    assert "of QAT" in done.out
    found = read([folder / "g.jsonl", *(folder / file for file in files)])
    assert found.matrix
    told = costs_of(found.matrix, Cost.SECONDS, found.of(TrainingResults), found.of(ExtractResults))
    assert told[0] == {name: 60 + len(name) for name in TASKS[:3]}
    assert told[1] == dict.fromkeys(TASKS[:3], 100)


def test_counts_have_three_digits() -> None:
    for value, shown in (
        *((840, "840"), (16_200, "16.2 k"), (999_999, "1 M"), (1_276_167, "1.28 M")),
    ):
        assert compact(value) == shown


# --- bars


def test_bars_are_the_ways_that_a_table_names_in_its_order(folder: Path) -> None:
    """With the colour of the receiver data that each used, and float as a line."""
    (document,) = read([folder / "ways.json"]).of(WaysDocument)
    (panel,) = chart_of([document]).panels  # the other table names no bar
    assert [(bar.label, bar.value, bar.use) for bar in panel.bars] == [
        ("RTN!", 4, DataUse.NONE),
        ("calibrated!", 80, DataUse.PROXY_IMAGES),
        ("own QAT!", 70, DataUse.RECEIVER_LABELS),
    ]
    figure = bars(chart_of([document]))
    (axes,) = figure.axes
    widths = [patch.get_width() for patch in axes.patches]
    assert widths == pytest.approx([4, 80, 70])
    assert len({patch.get_facecolor() for patch in axes.patches}) == 3
    (line,) = axes.lines
    assert line.get_xdata()[0] == pytest.approx(90)
    words = [text_.get_text() for text_ in axes.texts]
    assert words == ["4.0", "80.0", "70.0", "float 90.0"]
    (legend,) = figure.legends
    assert [text_.get_text() for text_ in legend.get_texts()] == [
        "no receiver data",
        "images of other tasks",
        "the receiver's labels",
    ]
    done = call("plot", "ways.json", "-o", "f.svg", "--json").json
    assert done["data_use"]["level"] == "receiver_labels"
    assert done["results"]["figure"] == "bars"


def test_bars_of_evaluations_are_called_by_their_files_and_float_is_a_line(folder: Path) -> None:
    files = [folder / name_ for name_ in ("own_qat.json", "w3.json", "fp.json")]
    (panel,) = chart_of_evaluations(read(files).of(EvalResults)).panels
    assert [(bar.label, bar.value) for bar in panel.bars] == [("own_qat", 85), ("w3", 40)]
    assert panel.line == ("fp", 90)
    (alone,) = chart_of_evaluations(read(files[2:]).of(EvalResults)).panels
    assert ([bar.label for bar in alone.bars], alone.line) == (["fp"], None)
    done = call("plot", *files, "--figure", "bars", "-o", "f.png", "--json").json
    assert done["data_use"] == {"level": "proxy_images", "counts": {"proxy": 8}}


def test_bars_of_advice_are_its_ways_with_their_bits_and_the_chosen_one_framed(
    folder: Path,
) -> None:
    documents = read([folder / "advised.json", folder / "advised_test.json"]).of(AdviceResults)
    chart = chart_of_advice(documents)
    for document, panel in zip(documents, chart.panels, strict=True):
        rows = sorted(document.results.candidates, key=lambda row: row.distance)
        assert [(bar.label, bar.value, bar.bits, bar.use) for bar in panel.bars] == [
            (row.name, 100 * row.kept, row.bits_per_weight, row.data_use.level) for row in rows
        ]
        assert panel.title == f"{document.name}: calibrate (sure)"
    axes = bars(chart).axes[0]
    assert [patch.get_linewidth() > 0 for patch in axes.patches] == [True, False, False]
    words = [text_.get_text() for text_ in axes.texts]
    assert words == ["91.0", "83.0", "21.0", "3.08", "3.07", "3.06", "bits"]
    done = call("plot", "advised.json", "-o", "f.svg", "--json").json
    assert done["data_use"]["level"] == "proxy_images"
    assert "cars: calibrate (sure)" in done["results"]["words"]


def test_bars_of_grids_are_accuracies_and_without_them_ratios(folder: Path) -> None:
    for file, unit, values, line in (
        ("compared.json", "signal to quantization noise, dB", [-0.4, 6.2], None),
        ("compared_val.json", "top-1 on val, %", [100 * 40 / 129, 100 * 80 / 129], "float"),
    ):
        (panel,) = chart_of_grids(read([folder / file]).of(ComparedResults)).panels
        assert [bar.value for bar in panel.bars] == pytest.approx(values)
        assert (panel.axis, panel.line and panel.line[0]) == (unit, line)


def test_bars_of_a_summary_are_the_means_of_its_grid(folder: Path) -> None:
    """What is chosen on test is no bar: nobody can take it."""
    summary = summarise(judged())
    (panel,) = chart_of_summaries(read([folder / "summed.json"]).of(TransferResults)).panels
    shown = {bar.label: bar for bar in panel.bars}
    for name_, key, level in (
        ("vector, λ = 1", "lambda 1", DataUse.NONE),
        ("vector, λ chosen on validation", "val", DataUse.RECEIVER_LABELS),
        ("vector, λ by agreement", "agreement", DataUse.PROXY_IMAGES),
    ):
        assert shown[name_].value == 100 * summary["ways"][key]["top1"]
        assert shown[name_].use is level
    plain, own = summary["baselines"]["ptq"], summary["baselines"]["qat"]
    assert (shown["RTN, this grid"].value, shown["own QAT"].value) == (
        100 * plain["top1"],
        100 * own["top1"],
    )
    assert not any("best" in label for label in shown)
    assert panel.line == ("float", 100 * summary["baselines"]["fp"]["top1"])


# --- layers


def test_the_strips_hold_the_ratio_of_each_weight(folder: Path) -> None:
    models = read([folder / "q1.json", folder / "q2.json"]).of(QuantizeResults)
    given = strips_of(models)
    assert given.layers == ("qkv", "proj", "fc1", "fc2")
    assert given.blocks == tuple(map(str, range(4)))
    for model, strip in zip(models, given.strips, strict=True):
        for tensor, ratio in model.results.sqnr_db.items():
            numbers, words = place_of(tensor)
            place = given.layers.index(words[-1]), given.blocks.index(str(*numbers))
            assert strip.ratios[place] == (np.inf if ratio is None else ratio)
    first, second, _ = strips(given).axes
    assert texts(first)[0, 0] == f"{given.strips[0].ratios[0, 0]:.1f}"
    assert first.collections[0].norm.vmax == second.collections[0].norm.vmax
    assert texts(second)[3, 3] == "∞"


def test_a_weight_has_a_block_and_a_layer() -> None:
    for tensor, place in {
        "blocks.3.attn.qkv.weight": ((3,), ("attn", "qkv")),
        "layers.1.blocks.0.mlp.fc1.weight": ((1, 0), ("mlp", "fc1")),
        "layers.1.downsample.reduction.weight": ((1,), ("downsample", "reduction")),
        "trunk.proj.weight": ((), ("trunk", "proj")),
        "blocks.0.attn.in_proj_weight": ((0,), ("attn", "in_proj_weight")),
        "layers.0": ((0,), ("layers",)),
    }.items():
        assert place_of(tensor) == place


def test_layers_are_called_by_as_few_words_as_tell_them_apart() -> None:
    names = short([("attn", "proj"), ("attn", "qkv"), ("cross", "proj"), ("proj",)])
    assert list(names.values()) == ["attn.proj", "qkv", "cross.proj", "proj"]


# --- the command


DRAWN: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("svg", ("g.jsonl",)),
    ("svg", ("g.jsonl", "--figure", "plane")),
    ("svg", ("sweep1.json", "sweep2.json", "own_qat.json")),
    ("png", ("judged.json",)),
    ("svg", ("judged.jsonl", "--figure", "curve", "--receiver", "cars")),
    ("png", ("q1.json", "q2.json")),
    ("pdf", ("ways.json",)),
)


RUN = """
import sys
from qvec_cli.cli.app import run
for line in sys.argv[1:]:
    assert run([*line.split(), "--force"]) == 0, line
"""


@pytest.mark.slow
def test_neither_settings_nor_hash_seeds_nor_a_pipe_change_the_bytes(folder: Path) -> None:
    """Each figure here, and in a process whose surroundings differ."""
    settings = folder / "matplotlibrc"
    settings.write_text("font.size: 20\nlines.linewidth: 9\nsavefig.bbox: tight\naxes.grid: True\n")
    lines = [
        f"plot {' '.join(args)} -o there{n}.{suffix}" for n, (suffix, args) in enumerate(DRAWN)
    ]
    env = {**os.environ, "PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(settings)}
    with (folder / "q1.json").open("rb") as file:
        command = [sys.executable, "-c", RUN, *lines, "plot - -o piped.svg"]
        subprocess.run(command, check=True, env=env, stdin=file, capture_output=True)
    for number, (suffix, args) in enumerate((*DRAWN, ("svg", ("q1.json",)))):
        call("plot", *args, "-o", f"here.{suffix}", "--force")
        here = (folder / f"here.{suffix}").read_bytes()
        there = folder / (f"there{number}.{suffix}" if number < len(DRAWN) else "piped.svg")
        assert here == there.read_bytes(), args
        start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix]
        assert here.startswith(start), args
        stamps = (b"CreationDate", b"<dc:date>", b"Matplotlib")
        assert not any(stamp in here for stamp in stamps), args


def test_an_svg_is_xml_with_letters_as_paths(folder: Path) -> None:
    call("plot", "q1.json", "-o", "f.svg")
    root = ET.parse(folder / "f.svg").getroot()
    assert root.tag.endswith("}svg")
    kinds = {element.tag.rsplit("}", 1)[-1] for element in root.iter()}
    assert "text" not in kinds
    assert "path" in kinds


def test_neither_plot_nor_report_imports_torch(folder: Path) -> None:
    assert light("plot", "q1.json", "-o", "f.svg") == (0, [], [])
    assert light("report", "q1.json", "-o", "f.html") == (0, [], [])


def test_what_was_drawn_is_told(folder: Path) -> None:
    done = call("plot", "g.jsonl", "-o", "f.svg", "--metrics", "m.json", "--json").json
    assert done == json.loads((folder / "m.json").read_text())
    assert done["results"]["figure"] == "heatmap"
    assert done["results"]["cells"] == 9
    assert done["results"]["missing"] == 0
    assert done["results"]["bytes"] == (folder / "f.svg").stat().st_size
    content = (folder / "g.jsonl").read_bytes()
    kept = {"path": "g.jsonl", "kind": "grid", "digest": hashlib.sha256(content).hexdigest()}
    assert done["inputs"] == [kept]
    assert done["data_use"]["level"] == "receiver_labels"
    found = matrix()
    labels = sum(row.images["val"] for row in found.receivers.values())
    assert done["data_use"]["counts"] == {"val": labels}
    alone = call("plot", "q1.json", "-o", "q.svg", "--json").json
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
    "results that no figure shows": (
        "alone inspect makes no figure",
        ("inspect.json", "-o", "f.png"),
    ),
    "a command that nobody knows": ("this version does not know", ("odd.json", "-o", "f.png")),
    "a list": ("list.json: is a JSON list", ("list.json", "-o", "f.png")),
    "what is of another kind": ("is no grid and no table", ("kind.json", "-o", "f.png")),
    "grids of which nothing is known": (
        "tells neither top-1 nor noise",
        ("silent.json", "-o", "f.png"),
    ),
    "a plan": ("is a plan", ("plan.json", "-o", "f.png")),
    "a newer document": ("newer qvec", ("newer.json", "-o", "f.png")),
    "one file twice": ("stands twice", ("g.jsonl", "g.jsonl", "-o", "f.png")),
    "two grids": (
        "the files are of 2 grids: 3-bit channel absmax (3 receivers) and 2-bit channel absmax",
        ("g.jsonl", "two_bits.jsonl", "-o", "f.png"),
    ),
    "what makes no figure": ("alone train-qat makes no figure", ("run_cars.json", "-o", "f.png")),
    "a grid without a choice": (
        "choose with --receiver, --donor or both",
        ("g.jsonl", "--figure", "curve", "-o", "f.png"),
    ),
    "evaluations of two data sets": (
        "elsewhere.json: is of other images than fp.json",
        ("fp.json", "elsewhere.json", "-o", "f.png"),
    ),
    "a table that says of no way that it is a bar": (
        "barless.json: no table says which of its ways are bars",
        ("barless.json", "-o", "f.png"),
    ),
    "two tables of ways": (
        "one table of ways at a time",
        ("ways.json", "barless.json", "-o", "f.png"),
    ),
    "a table of ways and an evaluation": (
        "the files hold a table of ways and eval",
        ("ways.json", "fp.json", "-o", "f.png"),
    ),
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
    "a measure that is none": (
        "results.measure: invalid enum value 'entropy'",
        ("agreed_bad.json", "-o", "f.png"),
    ),
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
    "a sweep whose counts do not fit": (
        "results.chosen.test: top1 is not 250 of 500",
        ("sweep_bad.json", "-o", "f.png"),
    ),
    "an output that exists": ("there.png: exists", ("g.jsonl", "-o", "there.png")),
    "an output without a folder": ("folder does not exist", ("g.jsonl", "-o", "no/f.png")),
    "metrics that are the output": (
        "is the output itself",
        ("g.jsonl", "-o", "f.png", "--metrics", "f.png"),
    ),
    "an output that is an input": ("is an input", ("g.svg", "-o", "g.svg", "--force")),
}


def test_what_cannot_be_drawn_is_refused_in_one_line(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for name_, (message, args) in REFUSALS.items():
        done = call("plot", *args, code=None)
        assert done.code in {1, 2}, name_
        (line,) = done.errors
        assert message in line, name_
        assert len(done.err.splitlines()) <= 2, name_
        after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        assert after == before, name_  # nothing was written


def test_without_the_packages_the_way_to_them_is_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    for package in ("matplotlib", "jinja2"):
        monkeypatch.setattr(
            "importlib.util.find_spec",
            lambda name, missing=package: None if name == missing else real(name),
        )
        for command, out in (("plot", "f.png"), ("report", "f.html")):
            done = call(command, "q1.json", "-o", out, code=1)
            assert f"the package {package} is not installed" in done.err
            assert "hint: pip install 'qvec[plot]'" in done.err


def test_force_replaces_what_is_there(folder: Path) -> None:
    (folder / "old.png").write_bytes(b"old")
    call("plot", "q1.json", "-o", "old.png", "--force")
    assert (folder / "old.png").read_bytes().startswith(b"\x89PNG")


# --- names


HOSTILE = ("$x^2$", "<script>alert(1)</script>", "a\nb\x1b[31m", "--><!--", "x" * 400, "&amp;")


def test_hostile_names_are_letters_and_no_more(tmp_path: Path) -> None:
    grid = tmp_path / "g.jsonl"
    grid.write_text(text(grid_lines(receivers=HOSTILE, donors=HOSTILE[:1])))
    for out in ("f.svg", "f.pdf"):
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
    done = call("plot", grid, "-o", tmp_path / "f.svg")
    assert "note: figures show boxes for letters that DejaVu lacks: 漢字" in done.err
    grid.write_text(text(grid_lines(receivers=("Ωmega", "b"), donors=("c",))))
    assert call("plot", grid, "-o", tmp_path / "g.svg").err == ""


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

    @style()
    def fails() -> Figure:
        raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fails()
    render(Figure(), "png")
    assert dict(mpl.rcParams) == before
