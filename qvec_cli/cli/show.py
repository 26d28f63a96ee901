"""The terminal: results on stdout, everything else on stderr; the only user of rich."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from qvec_cli.checkpoint.stop import STOP
from qvec_cli.cli.text import Facts, data_use_text, plan_text
from qvec_cli.errors import QvecError, ReaderLeftError, SpecError
from qvec_cli.specs import Listener, Silence
from qvec_cli.tame import tame

if TYPE_CHECKING:
    from rich.progress import Progress

    from qvec_cli.cli.options import OutputFlags
    from qvec_cli.outputs.metrics import Metrics


_LONGEST: Final = 2000
"""Characters of a message: a name from a hostile file may have millions."""

_BAR: Final = 14
"""Characters of a live bar: on a line of 80 there is room for what the work is at."""

_QUIET_SECONDS: Final = 10.0
"""Without a live display, progress is a line this often."""


def deliver(
    work: Callable[[Listener], Metrics],
    words: Callable[[Facts], Iterator[str]],
    flags: OutputFlags,
    *,
    inputs: tuple[Path, ...] = (),
    out: Path | None = None,
    document: Path | None = None,
    data_use: bool = True,
    one_line: bool = False,
    silent: bool = False,
    state: Path | None = None,
    written: Callable[[], object] = lambda: None,
) -> Facts:
    """Runs a command's work, shows what came out, and returns the results.

    Args:
        work: does it, and tells a listener how it goes.
        words: a result as lines of text.
        flags: whether files may be replaced, work is only planned, and where the document goes.
        inputs: files that the document must not replace.
        out: the command's artefact, which must be another file than the document.
        document: the file for the JSON document, where that is the artefact itself.
        data_use: whether the lines end with what of the receiver's data the result has used.
        one_line: whether that stands on the result's only line, behind a tab.
        silent: whether another process of the same run shows what came out.
        state: what is kept to go on with by --resume; removed once all is written.
        written: called then.
    """
    if silent:
        return work(Silence()).results
    from qvec_cli.checkpoint.replace import dump, write_json
    from qvec_cli.outputs.metrics import check_documents

    document = document or flags.metrics
    outputs = [path for path in (out, document) if path]
    streamed = _streams(inputs, outputs, as_json=flags.as_json)
    check_documents(document, out, inputs, force=flags.force)
    with _resumable(state), Terminal(quiet=flags.quiet) as terminal:
        metrics = work(terminal)
    whole = metrics.document()
    if not flags.dry_run:
        if document is not None:
            write_json(document, whole, force=flags.force)
        if state is not None:
            state.unlink(missing_ok=True)
        written()
    lines = [_row(line) for line in _lines(metrics, words, data_use=data_use)]
    if one_line and not flags.dry_run:
        lines = ["\t".join(lines)]
    text = dump(whole) if flags.as_json else "\n".join(_for_people(lines)) + "\n"
    if streamed and not flags.dry_run:
        explain(text.rstrip("\n"))  # stdout has the artefact
    else:
        result(text)
    return metrics.results


@contextlib.contextmanager
def _resumable(state: Path | None) -> Iterator[None]:
    """Tells of a command that a signal stops that it can go on, if something is kept."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if state is not None and state.exists():
            explain(f"{state} is kept: the same command with --resume goes on from there")
        raise


def _lines(
    metrics: Metrics, words: Callable[[Facts], Iterator[str]], *, data_use: bool
) -> Iterator[str]:
    if "plan" in metrics.results:
        yield from plan_text(metrics.results["plan"])
        return
    yield from words(metrics.results)
    if data_use:
        yield data_use_text(metrics.use)


def _streams(inputs: tuple[Path, ...], outputs: list[Path], *, as_json: bool) -> bool:
    """Whether stdout gets an artefact; it and stdin can hold one thing."""
    from qvec_cli.checkpoint.replace import is_stdout
    from qvec_cli.checkpoint.source import STREAM

    piped = sum(map(is_stdout, outputs))
    if inputs.count(STREAM) > 1:
        raise SpecError("- stands for stdin, which holds one file")
    if piped + as_json > 1:
        raise SpecError("stdout holds one thing: -o -, --metrics - or --json")
    if piped and sys.stdout is None:
        raise QvecError("stdout is closed")
    return piped > 0


def result(text: str) -> None:
    """Writes to stdout and makes sure that it arrives; QvecError or ReaderLeftError if not."""
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        drop_stdout()
        raise ReaderLeftError("the reader of stdout has left") from None
    except OSError as fault:
        drop_stdout()
        reason = (fault.strerror or "closed").lower()
        raise QvecError(f"the result cannot be written to stdout: {reason}") from None


def page(markdown: str) -> None:
    """Shows a page of the manual: formatted on a terminal, the Markdown text itself in a pipe."""
    terminal = sys.stdout is not None and sys.stdout.isatty()
    result(_formatted(markdown) if terminal else markdown)


def _formatted(markdown: str) -> str:
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    with console.capture() as captured:
        console.print(Markdown(markdown, code_theme="ansi_dark"))
    return captured.get()


def drop_stdout() -> None:
    """Lets the interpreter's own last flush succeed."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _row(text: str) -> str:
    """A line of a result, which no name in it can break into two."""
    return tame(text).replace("\n", "\\n")


def _for_people(lines: Iterable[str]) -> Iterable[str]:
    """Tables in columns on a terminal; in a pipe their tabs stay."""
    if sys.stdout is None or not sys.stdout.isatty():
        return lines
    from qvec_cli.cli.table import aligned

    return aligned(lines, shutil.get_terminal_size().columns)


def complain(message: str, hint: str | None) -> None:
    """An error on one line of stderr, and the way out on another."""
    explain(f"error: {_one_line(message)}")
    if hint:
        explain(f"hint: {_one_line(hint)}")


class Terminal:
    """A listener that writes to stderr: a live bar where one can be shown, else lines."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet  # whether only errors are told
        self._noted: set[str] = set()
        self._bar: Progress | None = None
        self._task: Any = None
        self._done, self._total = 0.0, 0.0
        self._began, self._first, self._spoke = 0.0, 0.0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def note(self, text: str, about: str | None = None) -> None:
        """Something the user should know, once; ``about`` is what it is about, if not its text."""
        if (key := about or text) in self._noted:
            return
        self._noted.add(key)
        self.milestone(f"note: {_one_line(text)}")

    def milestone(self, text: str) -> None:
        """A line of its own, above the bar if there is one."""
        if self._quiet:
            return
        if self._bar is None:
            explain(text)
        else:
            self._bar.console.print(tame(text), markup=False, highlight=False, soft_wrap=True)

    def progress(self, label: str, done: float, total: float, **facts: float) -> None:
        """How far the work is, with the numbers of the moment and the time left.

        A bar begins where the work is another one: with another total, or from further back. What
        is done by then says nothing of the speed.
        """
        STOP.check()
        if self._quiet:
            return
        now = time.monotonic()
        if total != self._total or done < self._done:
            self._total, self._began, self._first, self._spoke = total, now, done, now
            self._bar = self._bar or _bar()
            if self._bar is not None:
                self._turn(total)
        self._done = done
        words = [f"{key} {value:.4g}" for key, value in facts.items()]
        if done > self._first:
            left = (now - self._began) / (done - self._first) * (total - done)
            words.append(f"{timedelta(seconds=round(left))} left")
        if self._bar is not None:
            text = ", ".join(words)
            self._bar.update(self._task, completed=done, description=_row(label), facts=text)
        elif now - self._spoke >= _QUIET_SECONDS:
            self._spoke = now
            explain(f"{label}: {', '.join([f'{done / total:.0%}', *words])}")

    def _turn(self, total: float) -> None:
        assert self._bar is not None
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task("", total=total, facts="")


def _bar() -> Progress | None:
    """A live display, or None where stderr is no terminal or colour is unwanted."""
    if not (sys.stderr and sys.stderr.isatty()):
        return None
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

    console = Console(stderr=True)
    if console.no_color or console.is_dumb_terminal:
        return None
    words = TextColumn("{task.description}", markup=False)
    facts = TextColumn("{task.fields[facts]}", markup=False)
    columns = SpinnerColumn(), words, BarColumn(_BAR), TaskProgressColumn(), facts
    bar = Progress(*columns, console=console, transient=True)
    bar.start()
    return bar


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def explain(text: str) -> None:
    """A line on stderr, if anybody can hear of it."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):  # work goes on when nobody can hear of it
            sys.stderr.write(tame(text) + "\n")
            sys.stderr.flush()
