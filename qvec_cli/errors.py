"""The errors a user can cause: one sentence, one hint, one exit code."""

import contextlib
from collections.abc import Iterator


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


@contextlib.contextmanager
def located(place: object, kind: type[QvecError] = MismatchError) -> Iterator[None]:
    """Begins the message of a mismatch with the file or the tensor in which it was found.

    Or that of another ``kind`` of error, and of no other.
    """
    try:
        yield
    except kind as error:
        raise kind(f"{place}: {error}", hint=error.hint) from None
