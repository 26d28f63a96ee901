"""The commands that look at what is there: inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvec_cli.cli import show
from qvec_cli.cli.options import AsJson


def inspect(
    file: Annotated[Path, typer.Argument(readable=False, help="Any safetensors file.")],
    as_json: AsJson = False,
) -> None:
    """Say what FILE is: kind, architecture, grid, lineage, tensors and norms."""
    from qvec_cli.ops.describe import describe

    show.deliver(lambda _: describe(file), as_json=as_json)
