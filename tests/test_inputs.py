"""Inputs of a run: each file is opened once and hashed once, whatever the command does with it."""

from __future__ import annotations

from pathlib import Path

from conftest import Drawer, Planted, call, counting

GRID = """
receivers:
  bars: {{model: {receiver}, data: {data}, baselines: {{donor: {receiver}}}}}
donors:
  one: {{rho: {rho}, model: {donor}}}
base: {base}
"""


def lines(drawer: Drawer, planted: Planted, root: Path) -> dict[str, tuple[object, ...]]:
    """A run of every command that reads checkpoints, and the work that opens the most files.

    All but advise, whose tests count the opens of a run that they need anyway.
    """
    receiver, rho, bits, out = drawer.receiver, planted.whole, ("--bits", 2), root / "out.st"
    proxy = ("--proxy", planted.pictures, "--proxy-samples", 16)
    (root / "grid.yaml").write_text(
        GRID.format(receiver=receiver, data=drawer.receiver_data, rho=rho,
                    donor=drawer.donor, base=drawer.base)
    )  # fmt: skip
    return {
        "extract": ("extract", drawer.donor, drawer.donor_qat, "-o", out),
        "combine": ("combine", *planted.parts, "-o", out),
        "combine --fit": ("combine", *planted.parts, "--fit", "--receiver", receiver, *proxy, "-o",
                          out),
        "patch": ("patch", receiver, rho, "-o", out),
        "patch auto": ("patch", receiver, rho, "--lambda", "auto", *proxy, "-o", out),
        "quantize": ("quantize", receiver, *bits, "--anchor", rho, "-o", out),
        "quantize gptq": ("quantize", receiver, *bits, "--method", "gptq", "--calib",
                          planted.pictures, "--calib-samples", 8, "--refine", 2, *proxy, "-o", out),
        "eval": ("eval", receiver, "--data", drawer.receiver_data),
        "sweep": ("sweep-lambda", receiver, rho, "--data", drawer.receiver_data, *bits,
                  "--lambdas", "0,1", "-o", root / "s.json"),
        "agreement": ("sweep-lambda", receiver, *planted.parts, "--objective", "agreement", *proxy,
                      *bits, "--lambdas", "0,1", "-o", root / "a.json"),
        "transfer": ("transfer", root / "grid.yaml", *bits, "--lambdas", "0,1", "--nulls",
                     "random,taskvec", *proxy, "--cross-grid", "-o", root / "g.jsonl"),
        "inspect": ("inspect", receiver),
    }  # fmt: skip


def test_every_command_opens_each_file_once_and_hashes_it_once(
    drawer: Drawer, planted: Planted, tmp_path: Path
) -> None:
    inputs = {drawer.receiver, drawer.donor, drawer.donor_qat, drawer.base, planted.whole}
    for name, args in lines(drawer, planted, tmp_path).items():
        with counting() as counts:
            call(*args, *(["--force"] if "-o" in args else []))
        assert counts.once(inputs | {*planted.parts}), name
