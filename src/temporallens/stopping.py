"""Stopping: inside `signals_stop` SIGINT and SIGTERM raise, and neither is lost; inside `held_signals` they wait until the work says that
it is safe to stop."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
A_MOMENT = 0.05
"""Seconds; a finaliser has ended by then, or the signal is sent once more."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, as an exception: what lower floors do to stop cleanly at Ctrl-C serves both."""


def _raise_terminated(_number: int, _frame: FrameType | None) -> None:
    raise Terminated


@contextmanager
def signals_stop() -> Iterator[None]:
    """SIGTERM raises as SIGINT does, and neither is lost.

    What a signal raises while Python is in a finaliser or in a callback of its collector goes no further than that: Python
    reports it as unraisable and runs on. The signal is sent again a moment later then, at the latest on leaving.
    """
    handler, report = signal.signal(signal.SIGTERM, _raise_terminated), sys.unraisablehook
    again: list[threading.Timer] = []

    def send_again(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            number = signal.SIGTERM if isinstance(unraisable.exc_value, Terminated) else signal.SIGINT
            again.append(threading.Timer(A_MOMENT, os.kill, [os.getpid(), number]))  # of this process, so that its first thread wakes
            again[-1].start()
        else:
            report(unraisable)

    sys.unraisablehook = send_again
    try:
        yield
    finally:
        try:
            for timer in again:
                timer.join()
        finally:
            sys.unraisablehook = report
            signal.signal(signal.SIGTERM, handler)


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
