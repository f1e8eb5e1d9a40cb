"""Windows of activations straight from a model, for trainings whose data no disk would hold.

A text is read in its order, without the documents that the store of the stream has; so many batches of the harvest's schedule make a
window, of which one is trained on while the next is read. What a window holds depends on its number alone, and the last one of an epoch
takes what is left: then the text begins again. To go on at a window, the text before it is cut into tokens, and not read by the model.
"""

import itertools
from collections.abc import Iterator
from threading import Event

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from temporallens import processes
from temporallens.activations.language.corpora import open_corpus
from temporallens.activations.language.harvest import HarvestPolicy, Reading, TokenBatch, open_source, rows_together, store_rows
from temporallens.activations.loader import Windows, runs_of
from temporallens.activations.writer import Rows
from temporallens.precision import DTYPES

SHUFFLING = 0x73747265
"""Tells the order of a window's sequences from that of its rows."""


class StreamedWindows(Windows):
    """Windows of about so many rows. With `whole`, their sequences come in an order that the seed gives, each in one piece."""

    def __init__(self, policy: HarvestPolicy, seed: int, rows: int, whole: bool) -> None:
        self._policy, self._seed, self._whole = policy, seed, whole
        model = open_source(policy, policy.layer)
        self._reading = Reading(policy, model, open_corpus(policy.text, policy.column, policy.split), streamed=True)
        self._batches = max(1, round(rows / (rows_together(policy.batch_size) * policy.context_length)))
        self._waiting: Iterator[tuple[list[TokenBatch], bool]] = iter(())
        self._next = (-1, -1)  # epoch and window that come next of those waiting
        self._stopped = Event()

    def read(self, epoch: int, window: int) -> tuple[Rows, Float[Tensor, "N D"] | None, bool]:
        """See `Windows`."""
        if self._next != (epoch, window):
            self._waiting = itertools.islice(self._cut(), window, None)
        batches, last = next(self._waiting)
        found = list(processes.spread(batches, self._work, self._stopped.is_set))
        if len(found) < len(batches):
            raise InterruptedError("no window is wanted any more")
        self._next = (epoch, window + 1)
        rows = Rows(*(torch.cat(columns) for columns in zip(*found, strict=True)))
        return (self._shuffled(rows, epoch, window) if self._whole else rows), None, last

    def close(self) -> None:
        """Stop at the next batch."""
        self._stopped.set()

    def _cut(self) -> Iterator[tuple[list[TokenBatch], bool]]:
        """The batches of every window of an epoch, and whether it is the last."""
        batches = self._reading.batches(self._reading.rows())
        current = list(itertools.islice(batches, self._batches))
        while True:
            following = list(itertools.islice(batches, self._batches))
            if len(following) < self._batches:
                yield current + following, True
                return
            yield current, False
            current = following

    def _work(self, batch: TokenBatch) -> list[Tensor]:
        """Rows as a store would hold them."""
        reading, layer = self._reading, self._policy.layer
        rows = store_rows(reading.streams(batch, [layer])[layer], batch, reading.columns(batch), self._policy.norm_multiple)
        return list(rows._replace(x=rows.x.to(DTYPES[self._policy.dtype])))

    def _shuffled(self, rows: Rows, epoch: int, window: int) -> Rows:
        lengths = runs_of(rows)
        order = np.random.default_rng((SHUFFLING, self._seed, epoch, window)).permutation(len(lengths))
        pieces = torch.arange(len(rows.x)).split(lengths.tolist())
        chosen = torch.cat([pieces[piece] for piece in order])
        return Rows(*(column[chosen] for column in rows))
