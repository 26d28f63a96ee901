"""Grid files: who takes part, each fault with its file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvec_cli.errors import SpecError
from qvec_cli.transfer.grid_file import GridDonor, GridReceiver, read_grid_file

WHOLE = """\
bits: 2
base: base.st
receivers:
  digits: {model: digits.st, data: images/digits, qat: q.st, baselines: {gptq: g.st, awq: a.st}}
  greek:
    model: greek.st
    data: FashionMNIST
donors:
  greek: rho.st
  no: {rho: other.st, model: no.st}
"""


def read(tmp_path: Path, text: str) -> object:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    return read_grid_file(path)


def test_a_grid_file_names_receivers_donors_and_their_base(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(WHOLE)
    drawer = read_grid_file(tmp_path / "grid.yaml")
    baselines = {"gptq": Path("g.st"), "awq": Path("a.st")}
    assert drawer.base == Path("base.st")
    assert drawer.receivers == {
        "digits": GridReceiver(Path("digits.st"), "images/digits", Path("q.st"), baselines),
        "greek": GridReceiver(Path("greek.st"), "FashionMNIST"),
    }
    assert drawer.donors == {
        "greek": GridDonor(Path("rho.st")),
        "no": GridDonor(Path("other.st"), Path("no.st")),
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("receivers:\n", "receiver:\n", "has no receivers"),
        ("donors:\n", "donor:\n", "has no donors"),
        ("greek: rho.st", "greek: [rho.st]", ":9: a plain value belongs here"),
        ("greek: rho.st", "greek: {model: a.st}", ":9: greek has no rho"),
        ("greek: rho.st", "greek: {rho: a, modle: b}", "'modle' is no key of greek"),
        ("    model: greek.st\n", "", "greek has no model"),
        ("    data: FashionMNIST\n", "", "greek has no data"),
        ("    data: FashionMNIST", "    data: {a: b}", "a plain value belongs here"),
        ("  no: {", "  greek: {", ":10: 'greek' stands in donors twice"),
        ("bits: 2\n", "base: x.st\n", "'base' stands in it twice"),
        ("baselines: {gptq: g.st, awq: a.st}", "baselines: g.st", "baselines is not a mapping"),
        ("receivers:", "receivers: {}\nx:", ":3: receivers is empty"),
    ],
)
def test_a_fault_is_told_with_its_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in WHOLE
    with pytest.raises(SpecError) as caught:
        read(tmp_path, WHOLE.replace(old, new, 1))
    assert str(tmp_path / "grid.yaml") in str(caught.value)
    assert message in str(caught.value)


def test_a_misspelt_key_gets_a_hint(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        read(tmp_path, WHOLE.replace("qat: q.st", "qta: q.st"))
    assert caught.value.hint == "Did you mean qat?"


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "\x00"])
def test_what_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError):
        read(tmp_path, text)
