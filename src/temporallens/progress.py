"""How far work is: a bar with a rate and the time left on standard error where that is a terminal, else a plain line every half minute;
and notes, wherever it leads. Of several processes one shows them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from temporallens.processes import speaks

EVERY = 30.0
"""Seconds between two plain lines."""


class Advance(Protocol):
    """Says that so many more units are done, and in a few words how it goes; without words, the last ones stand."""

    def __call__(self, amount: int, words: str = "", /) -> None: ...


@contextmanager
def progress(title: str, total: int | None, unit: str) -> Iterator[Advance]:
    """Show the progress of `total` units (None: not known); yields a function that advances it."""
    from rich.console import Console

    console = Console(stderr=True)
    if not speaks():
        yield lambda amount, words="", /: None
    elif console.is_terminal:
        with _bar(title, total, unit) as advance:
            yield advance
    else:
        yield _Lines(title, total, unit).advance


@contextmanager
def _bar(title: str, total: int | None, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f} {unit}/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=total, words="")

        def advance(amount: int, words: str = "", /) -> None:
            bars.advance(task, amount)
            if words:
                bars.update(task, words=words)

        yield advance


class _Lines:
    """Lines for a file, with the rate since the line before."""

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self._title, self._total, self._unit, self._words = title, total, unit, ""
        self._done = self._before = 0
        self._last = time.monotonic()

    def advance(self, amount: int, words: str = "", /) -> None:
        self._done, self._words = self._done + amount, words or self._words
        passed = time.monotonic() - self._last
        if passed < EVERY:
            return
        rate = (self._done - self._before) / passed
        parts = [
            f"{self._done:,} {self._unit}" if self._total is None else f"{self._done / self._total:.0%} of {self._total:,} {self._unit}"
        ]
        parts.append(f"{rate:,.0f} {self._unit}/s")
        if self._total is not None and rate > 0:
            parts.append(f"{(self._total - self._done) / rate / 60:.0f} min left")
        note(f"{self._title}: {', '.join([*parts, *filter(None, [self._words])])}")
        self._before, self._last = self._done, time.monotonic()


def note(sentence: str) -> None:
    """One line on standard error, on a terminal or not: what a user should know of the work that begins."""
    if not speaks():
        return
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, markup=False, highlight=False, emoji=False, force_jupyter=False).print(sentence)
