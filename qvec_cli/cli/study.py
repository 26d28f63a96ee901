"""The commands that look at what is there: inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvec_cli.cli import show
from qvec_cli.cli.options import AsJson
from qvec_cli.errors import SpecError


def inspect(
    file: Annotated[Path, typer.Argument(readable=False, help="Any checkpoint, or - for stdin.")],
    other: Annotated[
        Path | None, typer.Argument(readable=False, help="A second one, to compare.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the tensors with the digest of the card.")
    ] = False,
    lineage: Annotated[bool, typer.Option("--lineage", help="Print the family tree.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what FILE is: kind, architecture, grid, lineage, tensors and norms."""
    from qvec_cli.ops import describe
    from qvec_cli.ops.compare import compare

    if verify + lineage + (other is not None) > 1:
        raise SpecError("--verify, --lineage and a second file are three questions: ask one")
    work = describe.verify if verify else describe.lineage if lineage else describe.describe
    show.deliver(
        lambda heard: compare(file, other, heard) if other else work(file, heard),
        as_json=as_json,
        inputs=(file, other) if other else (file,),
    )
