"""Who of several processes still lives: each says every second that it does, where all can read it, and looks at the others.

A process that ends early writes down why, and waits until the one that speaks has read it. One that was killed, or whose machine was cut
off, is noticed by its silence. Then the first process that lives says in one sentence which it was, and all end. What they all read is a
store of PyTorch's, of `torchrun` or of process 0.
"""

import os
import socket
import sys
import threading
import time

from torch import distributed as dist

from temporallens.errors import GO_ON, TemporalLensError

EVERY = 1.0
"""Seconds between two signs of life."""
SILENCE = 20.0
"""Seconds without one after which a process is given up: with those 30 that `torchrun` gives a stopped one it makes less than a minute."""
SHORT_SILENCE = 5.0
"""The same once a connection is broken."""
JOINING = 600.0
"""Seconds in which all have to come."""
GRACE = 3.0
"""Seconds in which a process that knows of another's end should end by itself."""
ENDED = "ended: "
FAILED = 2


class Heartbeats:
    """Those of one process, which begin at once."""

    def __init__(self, rank: int, count: int) -> None:
        self._rank, self._count = rank, count
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False)
        self._store = dist.PrefixStore(f"temporallens/{attempt}", store)
        now = time.monotonic()
        self._heard = [now + JOINING] * count  # when each was heard of last
        self._said = [""] * count
        self._host = socket.gethostname()
        self._beats, self._changes = 0, [0] * count
        self._own_end: str | None = None
        self._cause: str | None = None
        self._silent: set[int] = set()
        self._looked = now  # when the last look at the others began
        self._hurry, self._known, self._over = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._look, name="heartbeats", daemon=True)
        self._thread.start()
        threading.Thread(target=self._guard, name="heartbeats' guard", daemon=True).start()

    @property
    def speaks(self) -> bool:
        """Whether all processes before this one are gone without a word."""
        return self._silent.issuperset(range(self._rank))

    def stop(self) -> None:
        """The work is done."""
        self._over.set()
        self._thread.join(GRACE)

    def cause(self) -> str | None:
        """After a connection broke: who is the cause; None where everybody lives."""
        self._hurry.set()
        before, deadline = self._lives(), time.monotonic() + SHORT_SILENCE + 3 * EVERY
        while not self._known.wait(EVERY / 10) and time.monotonic() < deadline:
            lives = zip(self._said, before, self._lives(), strict=True)
            if all(said.startswith(ENDED) or now >= then + 2 for said, then, now in lives):  # the first may have been on its way
                break
        return self._cause

    def _lives(self) -> list[int]:
        """How often each was heard of."""
        return [self._beats if rank == self._rank else self._changes[rank] for rank in range(self._count)]

    def end(self, error: BaseException) -> None:
        """Say why this process ends, and give the first one time to hear of it. Raises TemporalLensError where another is the cause: a
        signal to end comes from `torchrun` too when one of its processes died."""
        if isinstance(error, KeyboardInterrupt) and (cause := self.cause()):
            raise TemporalLensError(cause) from error
        interrupted = isinstance(error, KeyboardInterrupt)
        self._own_end = "" if interrupted else str(error) or type(error).__name__
        deadline = time.monotonic() + 2 * GRACE
        while not self.speaks and not interrupted and not self._said[0].startswith(ENDED) and time.monotonic() < deadline:
            time.sleep(EVERY / 10)
        self._over.set()
        self._thread.join(GRACE)

    def _look(self) -> None:
        while not self._over.is_set():
            started = self._looked = time.monotonic()
            try:
                self._exchange(started)
            except RuntimeError:  # the store's errors are of this class
                self._lose_store()
            if self._cause is None:
                self._judge(time.monotonic())
            if self._cause is not None:
                self._tell()
            self._over.wait(EVERY)
            if time.monotonic() - started > SHORT_SILENCE:  # this process was stopped itself, and so perhaps were all
                self._heard = [max(heard, time.monotonic()) for heard in self._heard]
        try:
            self._beat()
        except RuntimeError:
            return

    def _guard(self) -> None:
        """Look after the thread that looks: on a machine that was cut off, it waits for the store's answer for ever."""
        woken = time.monotonic()
        while not self._over.wait(EVERY):
            now = time.monotonic()
            if now - woken > SHORT_SILENCE:  # this process was stopped itself
                self._looked = now
            woken = now
            if now - self._looked > SILENCE:
                self._lose_store()
                self._tell()

    def _lose_store(self) -> None:
        self._cause = self._cause or f"the machine of process 0 cannot be reached any more; {GO_ON}"
        self._silent |= set(range(self._rank))

    def _tell(self) -> None:
        """Let the main thread know the cause, and end the process where it does not do so itself."""
        self._known.set()
        if not self._over.wait(GRACE):
            self._end_all()

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(str(self._rank), f"{self._host} {self._beats}" if self._own_end is None else f"{ENDED}{self._host} {self._own_end}")

    def _exchange(self, now: float) -> None:
        self._beat()
        for rank in range(self._count):
            if self._store.check([str(rank)]):
                said = self._store.get(str(rank)).decode()
                if said != self._said[rank]:
                    self._said[rank], self._heard[rank] = said, now
                    self._changes[rank] += 1

    def _judge(self, now: float) -> None:
        """Whether one of the others is lost."""
        patience = SHORT_SILENCE if self._hurry.is_set() else SILENCE
        for rank in range(self._count):
            if rank == self._rank or not self._said[rank]:
                continue
            name = f"process {rank} of {self._count}"
            if self._said[rank].startswith(ENDED):
                host, _, reason = self._said[rank].removeprefix(ENDED).partition(" ")
                if reason:
                    self._cause = f"{name} on {host} ended: {reason}"
            elif now - self._heard[rank] > patience:
                self._silent.add(rank)
                host = self._said[rank].partition(" ")[0]
                self._cause = f"{name} on {host} has not been heard of for {now - self._heard[rank]:.0f} seconds; {GO_ON}"

    def _end_all(self) -> None:
        """The main thread may be waiting for a process that is no more."""
        if self.speaks:
            sys.stderr.write(f"error: {self._cause}\n")
            sys.stderr.flush()
        os._exit(FAILED)
