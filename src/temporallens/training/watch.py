"""What is said of a training while it runs: what it explains, what is dead, how much of the time it waits for data, and its memory."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from temporallens.memory import most_memory
from temporallens.training.trainee import Trainee


class Watch:
    """Measures the time between two lines of the history."""

    def __init__(self) -> None:
        self._begun, self._waited = time.perf_counter(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def words(self, trainees: Sequence[Trainee]) -> str:
        """On the time since this was asked last, and on what was logged last. Inputs have a variance of D, so the FVE of a batch is 1 less
        the squared error over D; of several dictionaries it is the mean."""
        passed = max(time.perf_counter() - self._begun, 1e-9)
        explained = sum(1 - one.history.last("mse_loss") / one.dictionary.width for one in trainees) / len(trainees)
        dead = sum(one.history.last("dead_features") for one in trainees) / sum(one.dictionary.features for one in trainees)
        said = f"FVE {explained:.3f}, {dead:.1%} dead, {self._waited / passed:.0%} waiting for data, {most_memory() / 1e9:.1f} GB at most"
        self._begun, self._waited = time.perf_counter(), 0.0
        return said
