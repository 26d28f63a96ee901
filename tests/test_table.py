"""Tables on a terminal: columns, points under points, and the terminal's width."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

from conftest import Drawer

from qvec_cli.cli.table import aligned

LONG = "gptq on generated and diversified proxies, float target, channel mse asymmetric"
ADVICE = [
    "distance to the float answers on 256 proxy images, kl",
    "candidate\tbits/weight\tdistance\tkept\treceiver data used\ttest top-1",
    f"{LONG}\t2.40\t0.0748 +- 0.0015\t62.5%\tproxy_images\t0.5550\t<-",
    "rtn, channel absmax\t12.38\t1.3 +- 0.021\t6.2%\tnone\t0.2370",
    "decision: calibrate (sure)",
]


def shown(width: int, lines: list[str] = ADVICE) -> list[str]:
    return list(aligned(lines, width))


def test_cells_stand_in_columns_and_numbers_on_their_points() -> None:
    lines = shown(200)
    assert lines[0] == ADVICE[0]
    assert lines[-1] == ADVICE[-1]
    assert "\t" not in "".join(lines)
    head, first, second = lines[1:4]
    assert first.index("2.40") == second.index("12.38") + 1
    assert first.index("0.0748") == second.index("1.3 +-")
    assert first.index("62.5%") + 1 == second.index("6.2%") + 0
    assert head.index("receiver data used") == first.index("proxy_images") == second.index("none")
    assert [cell for line in lines[1:4] for cell in line.split()] == [
        cell for line in ADVICE[1:4] for cell in line.split()
    ]


def test_a_narrow_terminal_gets_what_matters_most() -> None:
    """Columns of little use go first, which a line says; then names are cut in their middle."""
    for width in (66, 80, 100, 140):
        lines = shown(width)
        assert all(len(line) <= width for line in lines[1:4]), width
        assert any(line.endswith("<-") for line in lines)
        for word in ("candidate", "distance", "kept", "test top-1"):
            assert word in lines[1]
    narrow = shown(80)
    assert narrow[4] == (
        "(left out for the width: bits/weight, receiver data used; a pipe has all)"
    )
    assert narrow[2].startswith("gptq on ")
    assert "..." in narrow[2]
    assert "asymmetric" in narrow[2]


def test_names_that_differ_are_told_apart_at_any_width() -> None:
    grids = [
        f"2-bit {b} {s}{z}"
        for b in ("channel", "group 64")
        for s in ("mse", "hqq", "absmax")
        for z in ("", " asymmetric", " asymmetric, rotated")
    ]
    lines = ["grid\tbits/weight\tsize\tSQNR\ttest top-1"]
    lines += [f"{name}\t2.375\t92.2 kB\t8.8 dB\t0.5580 +- 0.0222 (279/500)" for name in grids]
    for width in range(40, 120, 8):
        rows = [line.split("  ")[0] for line in shown(width, lines)[1 : len(lines)]]
        assert len(set(rows)) == len(grids), width


def test_a_table_of_another_width_begins_anew() -> None:
    lines = ["a\tb", "1\t2", "long name\tx\ty\tz", "2\t3\t4\t5"]
    assert shown(80, lines) == ["a  b", "1  2", "long name  x  y  z", "2          3  4  5"]


def test_a_row_without_its_score_stays_in_its_table() -> None:
    assert shown(80, ["a\tb\tc", "long name\t2", "1\t2\t3\t<-"]) == [
        "a          b  c",
        "long name  2",
        "1          2  3  <-",
    ]


def test_wide_letters_count_as_what_they_take() -> None:
    first, second = shown(80, ["名前\tx", "ab\tx"])
    assert first == "名前  x"
    assert second == "ab    x"


def test_a_terminal_shows_columns_and_a_pipe_gets_tabs(drawer: Drawer) -> None:
    command = [sys.executable, "-m", "qvec_cli", "inspect", str(drawer.receiver), "--tensors"]
    reader, writer = pty.openpty()
    process = os.posix_spawn(
        sys.executable,
        command,
        {**os.environ, "COLUMNS": "100"},
        file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)],
    )
    os.close(writer)
    text = b""
    while True:
        try:
            block = os.read(reader, 1 << 16)
        except OSError:  # its end
            break
        if not block:
            break
        text += block
    os.close(reader)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert b"tensor  " in text
    assert b"\t" not in text
    piped = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "tensor\tdtype\tshape\tnorm" in piped
