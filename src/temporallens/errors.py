"""The one exception that reaches a user: a sentence saying what is wrong, where, and what would be right."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""Characters that a terminal obeys."""

GO_ON = "what is finished is kept; give the same command again to go on from there"
"""What a user is told of work that was cut short."""


class TemporalLensError(Exception):
    """A mistake a user can mend. The command line prints its sentence and exits with code 2, without a traceback."""

    def __init__(self, sentence: str) -> None:
        whole = sentence.encode(errors="backslashreplace").decode()  # names that a damaged file gives may hold half characters,
        super().__init__(
            CONTROL.sub(lambda found: repr(found[0])[1:-1], " ".join(whole.split("\n")))
        )  # line breaks, and what moves a cursor


class CannotWriteError(TemporalLensError):
    """The system refused to write a file. What was written before it is whole, and is gone on from once there is room."""


class DivergedError(TemporalLensError):
    """A training that cannot go on, because of the one of its arms that `run` names."""

    def __init__(self, sentence: str, run: str) -> None:
        super().__init__(sentence)
        self.run = run


class WorthlessError(TemporalLensError):
    """A dictionary with which nothing can be measured: nothing fires, or what it gives back is no number."""


class TemporalLensWarning(UserWarning):
    """Something that a user should know of a result. The command line prints its sentence."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return `; did you mean 'x'?`, or the whole list of options when nothing is near."""
    known = sorted(options)
    nearest = get_close_matches(name, known, n=1, cutoff=0.6)
    if nearest:
        return f"; did you mean '{nearest[0]}'?"
    return f"; it is one of: {', '.join(known)}" if known else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, as a part of a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__
