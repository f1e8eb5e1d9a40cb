"""Stopping at a good moment: inside `held_signals`, SIGINT and SIGTERM wait until the work says that it is safe to stop."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held_signals() -> Iterator[Callable[[], bool]]:
    """Hold back SIGINT and SIGTERM; yields a function that says whether one has come. On leaving it is delivered.

    The work may have stopped half way when one has come, so what follows is never reached then: where the signal's own handler
    returns, KeyboardInterrupt is raised. A signal that the process ignores (SIGINT, in the background of a script) stays ignored,
    and outside the main thread, where Python delivers no signals, nothing is held.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in {signal.SIG_IGN, None}}
    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])
        raise KeyboardInterrupt
