"""Progress bars with a rate and the time left, on standard error, where that is a terminal; and notes, wherever it leads. Of several
processes one shows them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from temporallens.processes import speaks


@contextmanager
def progress(title: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """Show a bar of `total` units (None: not known); yields a function that advances it by a number of units."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f} {unit}/s")

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not (console.is_terminal and speaks())) as bars:
        task = bars.add_task(title, total=total)
        yield lambda amount: bars.advance(task, amount)


def note(sentence: str) -> None:
    """One line on standard error, on a terminal or not: what a user should know of the work that begins."""
    if not speaks():
        return
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, markup=False, highlight=False, emoji=False).print(sentence)
