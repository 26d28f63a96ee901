"""The errors a user can cause: one sentence, one hint, one exit code."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class QvecError(Exception):
    """A fault that its message explains.

    Args:
        message: one line that names the file, the tensor or flag, and the reason.
        hint: the way out, one line, or nothing.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class SpecError(QvecError):
    """A value outside its range: wrong usage, known before any work is done."""

    exit_code = 2


class CheckpointError(QvecError):
    """A file that is not what it should be, or cannot be read or written."""


class ReaderLeftError(QvecError):
    """The other end of a pipe has gone, as ``head`` does: the end, and nobody needs to be told."""

    exit_code = 141  # 128 + SIGPIPE, as a shell has it


class FinishedError(QvecError):
    """A run that is to be resumed is finished: nothing is left to do, and that is no fault."""

    exit_code = 0


class FellShortError(QvecError):
    """A result that is less than what was demanded of it: everything ran, and nothing is broken."""

    exit_code = 3


class MismatchError(QvecError):
    """Two things that do not belong together: checkpoints, a head and a data set, two grids."""


class DataError(QvecError):
    """Images or labels that are missing, broken or out of range."""


class NotFiniteError(QvecError):
    """A network whose output is not a number."""


class RankError(QvecError):
    """Another process of the same run has failed or gone."""


class TrainingError(QvecError):
    """A run that cannot go on, for example because its loss is no longer a number."""


def did_you_mean(word: str, known: Iterable[str], count: int = 1) -> str | None:
    """The hint for a word that is not known: names that begin as it does, then those like it."""
    names, low = sorted(known), word.lower()
    begun = [name for name in names if low and name.lower().startswith(low)]
    alike = difflib.get_close_matches(low, [name.lower() for name in names], count)
    close = [name for match in alike for name in names if name.lower() == match]
    near = [*dict.fromkeys((*sorted(begun, key=len), *close))][:count]
    return f"Did you mean {', '.join(near)}?" if near else None


@contextlib.contextmanager
def located(place: object, kind: type[QvecError] = MismatchError) -> Iterator[None]:
    """Begins the message of a mismatch with the file or the tensor in which it was found.

    Or that of another ``kind`` of error, and of no other.
    """
    try:
        yield
    except kind as error:
        raise kind(f"{place}: {error}", hint=error.hint) from None
