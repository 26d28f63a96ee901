"""Where work that was cut off waits for --resume: a file beside the output."""

from __future__ import annotations

from pathlib import Path

from qvec_cli.checkpoint.replace import check_target, is_stream
from qvec_cli.errors import CheckpointError, SpecError


def unfinished(out: Path) -> Path:
    """The state file of an output; gone when the output is there."""
    return out.with_name(out.name + ".state")


def check_unfinished(out: Path, *, resume: bool, force: bool) -> None:
    """Refuses to lose work that was cut off, unless told what to do with it."""
    if is_stream(out):
        raise SpecError(f"-o {out}: the state of a run is kept beside its output: name a file")
    check_target(unfinished(out), force=True)
    if unfinished(out).exists() and not (resume or force):
        raise CheckpointError(
            f"{unfinished(out)}: an unfinished run is there",
            hint="Pass --resume to go on with it, or --force to start anew.",
        )
