"""A process that is cut off from all others notices that it waits for an answer in vain."""

import threading
import time

import pytest
from torch import distributed as dist

from temporallens import heartbeats
from temporallens.heartbeats import Heartbeats


def test_a_store_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The other end of a cut cable: calls neither return nor fail."""
    monkeypatch.setattr(heartbeats, "SILENCE", 1.0)
    monkeypatch.setattr(heartbeats, "EVERY", 0.1)
    monkeypatch.setattr(heartbeats, "GRACE", 0.1)
    exits: list[int] = []
    monkeypatch.setattr(heartbeats.os, "_exit", exits.append)
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    forever, cut = threading.Event(), threading.Event()
    exchange = Heartbeats._exchange

    def answered(beats: Heartbeats, now: float) -> None:
        if cut.is_set():
            forever.wait()
        exchange(beats, now)

    monkeypatch.setattr(Heartbeats, "_exchange", answered)
    beats = Heartbeats(1, 2)
    time.sleep(0.3)
    assert not exits
    cut.set()
    deadline = time.monotonic() + 30
    while not exits and time.monotonic() < deadline:
        time.sleep(0.05)
    assert exits[0] == heartbeats.FAILED and beats.speaks
    assert "error: the machine of process 0 cannot be reached any more; " in capsys.readouterr().err
    forever.set()
    beats.stop()
