"""The command line: its commands, and the one place where an error becomes an exit code."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import math
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Annotated, Any, Final, NoReturn

import typer

from qvec_cli.checkpoint.stop import STOP
from qvec_cli.cli import help_text, look, measurement, quantization, show, study, training, vectors
from qvec_cli.cli.signature import expand
from qvec_cli.errors import (
    FinishedError,
    QvecError,
    ReaderLeftError,
    SpecError,
    did_you_mean,
)
from qvec_cli.learn import distributed

_SIGNALS: Final = {
    128 + signal.SIGHUP: "stopped: the terminal has gone",
    128 + signal.SIGINT: "interrupted",
    128 + signal.SIGTERM: "stopped by SIGTERM",
}

_SHARED: Final = ("finetune", "train-qat")
"""What several processes can do together."""

_PATIENCE: Final = 1.0
"""Seconds that a clean-up has before a second signal is meant."""

_NO_MEMORY: Final = ("out of memory", "allocate memory")
"""What torch says on a GPU and on a CPU, in errors that have no class of their own."""

COMMANDS: Final[dict[str, dict[str, Callable[..., None]]]] = {
    "Begin": {"import": training.import_file},
    "Train": {"finetune": training.finetune, "train-qat": training.train_qat},
    "Vectors": {
        "extract": vectors.extract,
        "combine": vectors.combine,
        "moments": vectors.moments,
        "patch": vectors.patch,
    },
    "Quantize": {
        "rotate": quantization.rotate,
        "quantize": quantization.quantize,
        "advise": study.advise,
        "export": quantization.export,
    },
    "Measure": {
        "eval": measurement.evaluate,
        "compare": measurement.compare,
        "sweep-lambda": measurement.sweep_lambda,
    },
    "Study": {"transfer": study.transfer},
    "Look": {
        "inspect": look.inspect,
        "pictures": look.pictures,
        "plot": look.plot,
        "report": look.report,
        "help": help_text.manual,
    },
}
"""Every command in the order of use, by the section of ``qvec --help`` and ``qvec help``."""

_HELP: Final = """\
Quantization vectors: make Vision Transformers survive 2- to 4-bit quantization.

qvec COMMAND --help lists the flags of a command; qvec help COMMAND is its page of the manual.
"""


def program(sections: Mapping[str, Mapping[str, Callable[..., None]]]) -> typer.core.TyperGroup:
    """The command line whose commands are functions by section and name."""
    whole = typer.Typer(
        cls=help_text.PlainGroup,
        callback=common,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        help=_HELP,
    )
    for section, commands in sections.items():
        for name, function in commands.items():
            whole.command(name, cls=help_text.PlainCommand, rich_help_panel=section)(
                expand(function)
            )
    return typer.main.get_group(whole)


def _version(show_version: bool) -> None:
    if show_version:
        from qvec_cli.outputs.metrics import version

        typer.echo(f"qvec {version('qvec')}")
        raise typer.Exit


def common(
    context: typer.Context,
    _: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_version, is_eager=True, help="Say which qvec this is."
        ),
    ] = False,
) -> None:
    """Takes the options that stand before any command, and refuses what ranks cannot share."""
    command, size = context.invoked_subcommand, distributed.here().size
    if size > 1 and command not in _SHARED:
        raise SpecError(
            f"qvec {command} runs in one process, and {size} were started",
            hint="Start it without torchrun, which is for finetune and train-qat.",
        )


@functools.cache
def _program(first: str) -> typer.core.TyperGroup:
    """The command line of one command, or of all where the first word is none: building costs."""
    alone = {section: {first: row[first]} for section, row in COMMANDS.items() if first in row}
    return program(COMMANDS if first == "help" else alone or COMMANDS)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command line and exits: 0 done, 1 a fault, 2 usage, 130 interrupted."""
    try:
        _prepare()
        code = run(argv)
        if sys.stdout is not None:
            code = _closing(code)
    except (KeyboardInterrupt, SystemExit):  # between two lines of ours: nothing is left to clean
        code = STOP.code or 1
    if STOP.code is not None:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """Ends a stopped process at once: to take torch apart takes seconds."""
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def _closing(code: int) -> int:
    """The exit code once help texts, which are not ours to write, have left the buffer too."""
    try:
        show.result("")
    except ReaderLeftError as error:
        return error.exit_code
    except QvecError as error:
        if code == 0:  # else the first fault has been told
            show.complain(str(error), error.hint)
        return code or error.exit_code
    return code


def run(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code."""
    try:
        words = list(_split(sys.argv[1:] if argv is None else argv))
        code = _program("".join(words[:1]))(words, prog_name="qvec", standalone_mode=False)
    except SystemExit as exit_:
        left = isinstance(exit_.__context__, BrokenPipeError)  # rich ends with 1 there
        code = ReaderLeftError.exit_code if left else exit_.code
    except Exception as fault:
        if STOP.code is None:  # else a library made this of the stop
            distributed.wait_for_torchrun(_world(), fault)
            return _explain(fault)
        code = STOP.code
    if STOP.code is not None:
        gc.collect(1)  # ends contexts that were cut off before their blocks
        code = STOP.code
    if code in _SIGNALS and _world().size == 1:  # torchrun reports a signal itself
        show.complain(_SIGNALS[code], None)
    return code if isinstance(code, int) else 0


def _split(words: Iterable[str]) -> Iterator[str]:
    """What was typed, with -o=FILE in two words: click would name the file =FILE."""
    for word in words:
        yield from ("-o", word[3:]) if word.startswith("-o=") else (word,)


def _world() -> distributed.World:
    """The world, or this process alone if what is wrong is the world itself."""
    try:
        return distributed.here()
    except SpecError:
        return distributed.ALONE


def _explain(fault: Exception) -> int:
    """Turns what a user can cause into a line and an exit code; a bug keeps its traceback."""
    if os.environ.get("QVEC_TRACEBACK") == "1":
        raise fault
    if isinstance(fault, ReaderLeftError):
        show.drop_stdout()
        return fault.exit_code
    if isinstance(fault, QvecError):
        return _told(fault)
    if hasattr(fault, "format_message"):  # typer's own, and its classes are private
        return _usage(fault)
    if isinstance(fault, MemoryError) or any(text in str(fault) for text in _NO_MEMORY):
        show.complain("there is not enough memory", "A smaller --batch-size needs less.")
        return 1
    if str(fault).startswith("DataLoader worker"):
        show.complain("a process that decodes images died, mostly of no memory", "Try --workers 0.")
        return 1
    if isinstance(fault, OSError):
        show.drop_stdout()
        show.complain(f"{fault.filename or 'stdout'}: {fault.strerror or fault}", None)
        return 1
    raise fault


def _told(fault: QvecError) -> int:
    """A fault of ours on a line, and its exit code; that nothing was left to do is none."""
    if isinstance(fault, FinishedError):
        show.explain(" ".join(str(fault).split()))
    else:
        show.complain(str(fault), fault.hint)
    return fault.exit_code


def _usage(fault: Any) -> int:
    """A word that the command line does not know, on a line of its own."""
    message, context = fault.format_message(), getattr(fault, "ctx", None)
    if message.startswith("Usage:"):  # nothing was typed
        show.explain(message)
        return int(fault.exit_code)
    hint = f"{context.command_path} --help lists what it takes." if context else None
    message, better = _in_our_words(fault, message.rstrip(".\n "))
    show.complain(message, better or hint)
    return int(fault.exit_code)


_BOUNDS: Final = {"le": "at most", "lt": "below", "ge": "at least", "gt": "above"}
"""What a bound of a number is called."""


def _in_our_words(fault: Any, message: str) -> tuple[str, str | None]:
    """What is wrong with a flag's value without the words of typer's own parser, and a hint."""
    details: list[Any] = getattr(fault.__cause__, "errors", list)()  # pydantic's, which typer uses
    parameter = getattr(fault, "param", None)
    if not (details and parameter):
        return _of_the_line(message, parameter)
    flag, value = max(parameter.opts, key=len), str(details[0].get("input"))
    bounds = details[0].get("ctx") or {}
    for key, words in _BOUNDS.items():
        if key in bounds:
            return f"{flag} {value}: must be {words} {bounds[key]:g}", None
    if details[0]["type"].startswith(("int", "float")):
        kind = "whole number" if details[0]["type"].startswith("int") else "number"
        return f"{flag} {value!r} is no {kind}", None
    choices: list[str] = re.findall(r"'([^']*)'", message.partition(" is not one of ")[2])
    if choices:
        return f"{flag} {value!r} is none of {', '.join(choices)}", did_you_mean(value, choices)
    return message, None


_UNKNOWN: Final = re.compile(r"No such (option|command):? (\S+?)\.?(?: (?:Did|\(Poss)(.*))?")
_PLAIN: Final = {
    r"Option '(.*)' requires (?:an argument|\d+ arguments)": r"\1: its value is missing",
    r"Option '(.*)' does not take a value": r"\1 takes no value",
    r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)": r"\1: more than the command takes",
}
"""What typer's own parser says of a line's words, and what we say."""


def _of_the_line(message: str, parameter: Any) -> tuple[str, str | None]:
    """What is missing from a command line or unknown in it, and a hint of what may be meant."""
    if parameter and message.startswith("Missing "):
        named = parameter.param_type_name == "option"
        flag = f"{min(parameter.opts, key=len)} " if named else ""
        return f"{flag}{parameter.metavar} is missing", None
    if match := _UNKNOWN.fullmatch(message):
        kind, name, near = match.groups()
        close = re.findall(r"--?[a-z][\w-]*|(?<=')[a-z][\w-]*", near or "")
        hint = f"Did you mean {', '.join(close)}?" if close else None
        return f"there is no {'flag' if kind == 'option' else kind} {name.strip(chr(39))!r}", hint
    for theirs, ours in _PLAIN.items():
        if match := re.fullmatch(theirs, message):
            return match.expand(ours), None
    return message, None


def _prepare() -> None:
    """Streams that never fail on a letter, and signals that let the clean-up run."""
    for fd in range(3):  # or a file gets the number of a closed stream, and what libraries print
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if not _world().leads:  # what libraries say, the first rank's will have said
        show.drop_stdout()
        warnings.simplefilter("ignore")
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # it writes no file and ends at once
        return
    stop = _Stop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, stop)  # where nohup or a background job has not asked to ignore


class _Stop:
    """The first signal lets the clean-up run; one that comes much later ends the process at once.

    One that comes soon is not impatience: GNU timeout sends each signal twice.
    """

    _first = math.inf

    def __call__(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if now > self._first + _PATIENCE:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        elif self._first == math.inf:
            self._first = now
            sys.unraisablehook = lambda _: None  # what finalizers say of it is nobody's concern
            STOP.ask(number)
