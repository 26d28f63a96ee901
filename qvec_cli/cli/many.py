"""One command over several files: each has an output of its own name in one folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from qvec_cli.checkpoint.replace import check_target
from qvec_cli.checkpoint.source import STREAM
from qvec_cli.cli import options, show
from qvec_cli.cli.options import OutputFlags
from qvec_cli.cli.text import Facts
from qvec_cli.errors import SpecError
from qvec_cli.specs import Listener, Silence

if TYPE_CHECKING:
    from qvec_cli.outputs.metrics import Metrics

Suffix = Annotated[
    str | None,
    typer.Option(
        metavar="WORD",
        help="Behind the names of outputs in the folder -o, which has one for each input.",
        rich_help_panel=options.OUTPUT,
    ),
]


_FILES: Final = (".st", ".safetensors", ".json")
"""Endings of names that nobody means a new folder by."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done with one file, and how that is shown; fields as ``show.deliver`` has."""

    work: Callable[[Listener], Metrics]
    words: Callable[[Facts], Iterator[str]]
    inputs: tuple[Path, ...]
    out: Path | None = None
    document: Path | None = None
    data_use: bool = True
    one_line: bool = False

    def deliver(self, flags: OutputFlags) -> Facts:
        """Does it and shows what came out."""
        return show.deliver(
            self.work,
            self.words,
            flags,
            inputs=self.inputs,
            out=self.out,
            document=self.document,
            data_use=self.data_use,
            one_line=self.one_line,
        )


Planner = Callable[[Path, str | None, OutputFlags], Job]
"""Makes the job of an input: where its output goes as it was typed, and flags."""


def each(
    files: Sequence[Path],
    output: str | None,
    flags: OutputFlags,
    job: Planner,
    *,
    kind: str = ".st",
    suffix: str | None = None,
    whole: bool = False,
) -> list[Facts]:
    """Runs a command on one file, or on several with a folder as their output.

    All of several are planned before the first is written, so that what can be refused is refused
    then. ``kind`` is the ending of the outputs; ``whole``: FOLDER/ is the output of one file, not
    where it belongs.
    Raises SpecError: outputs of one name, no folder, a flag that is for one file.
    """
    in_folder = not whole and output is not None and output.endswith(os.sep)
    if len(files) == 1 and suffix is None and not in_folder:
        return [job(files[0], output, flags).deliver(flags)]
    if flags.metrics is not None:
        raise SpecError(
            "--metrics is for one file", hint="--json prints the document of each, jq -s takes it."
        )
    outputs = _outputs(files, output, f"{suffix or ''}{kind}")
    with _folder(output):
        rehearsal = replace(flags, dry_run=True)
        for made in filter(None, outputs):
            check_target(Path(made), force=flags.force)
        for file, out in zip(files, outputs, strict=True):
            job(file, out, rehearsal).work(Silence())
        return [job(f, o, flags).deliver(flags) for f, o in zip(files, outputs, strict=True)]


def _outputs(files: Sequence[Path], output: str | None, ending: str) -> list[str | None]:
    """Where the output of each goes; None where none is wanted."""
    if STREAM in files:
        raise SpecError("- stands for stdin, which has no name for an output: name one file")
    if output is None:
        return [None] * len(files)
    is_file = Path(output).exists() or Path(output).suffix in _FILES
    if output == "-" or (is_file and not Path(output).is_dir()):
        raise SpecError(f"-o {output}: a folder belongs here, for the outputs of all files")
    places: dict[str, Path] = {}
    for file in files:
        name = file.name if file.is_dir() else file.stem
        place = str(Path(output) / f"{name}{ending}")
        if place in places:
            raise SpecError(
                f"{places[place]} and {file} would both be written to {place}",
                hint="Give them in two commands, with another folder or --suffix.",
            )
        places[place] = file
    return [*places]


@contextlib.contextmanager
def _folder(output: str | None) -> Iterator[None]:
    """A folder for the outputs, which is gone afterwards if it was made for none."""
    if output is None or Path(output).is_dir():
        yield
        return
    try:
        Path(output).mkdir(parents=True)
    except OSError as fault:
        reason = (fault.strerror or "cannot be made").lower()
        raise SpecError(f"-o {output}: {reason}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it has outputs in it
            Path(output).rmdir()


def is_folder(typed: str) -> bool:
    """Whether an output is one: by its last letter, which a path forgets, or on the disk."""
    if typed in ("", "-"):  # a variable that is not set, and stdout
        return False
    try:
        return typed.endswith(os.sep) or Path(typed).is_dir()
    except OSError:  # closed to us, or no name that can be: writing to it will tell
        return False
