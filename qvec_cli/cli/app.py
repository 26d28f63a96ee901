"""The command line: its commands, and the one place where an error becomes an exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, NoReturn

import typer

from qvec_cli.cli import measurement, quantization, show, study, training, vectors
from qvec_cli.errors import QvecError

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Quantization vectors: make Vision Transformers survive 2- to 4-bit quantization.",
)
app.command()(training.finetune)
app.command()(training.train_qat)
app.command()(vectors.extract)
app.command()(vectors.patch)
app.command()(quantization.quantize)
app.command("eval")(measurement.evaluate)
app.command()(measurement.sweep_lambda)
app.command()(study.inspect)


def _version(wanted: bool) -> None:
    if wanted:
        from qvec_cli.ops.metrics import version

        typer.echo(f"qvec {version('qvec')}")
        raise typer.Exit


@app.callback()
def common(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Say which qvec this is."),
    ] = False,
) -> None:
    """Takes the options that stand before any command."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command line and exits: 0 done, 1 a fault, 2 usage, 130 interrupted."""
    _prepare()
    code = run(argv)
    if sys.stdout is not None:
        code = _closing(code)
    sys.exit(code)


def _closing(code: int) -> int:
    """The exit code once help texts, which are not ours to write, have left the buffer too."""
    try:
        show.result("")
    except QvecError as error:
        show.complain(str(error), error.hint)
        return error.exit_code
    return code


def run(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code."""
    try:
        app(argv, prog_name="qvec")
    except QvecError as error:
        if os.environ.get("QVEC_TRACEBACK") == "1":
            raise
        show.complain(str(error), error.hint)
        return error.exit_code
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 1
        if code == 128 + signal.SIGINT:
            show.complain("interrupted", None)
        return code
    return 0


def _prepare() -> None:
    """Streams that never fail on a letter, and signals that let the clean-up run."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has asked to ignore it
            signal.signal(number, _stop)


def _stop(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
