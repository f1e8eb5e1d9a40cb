"""The shuffling loader: batches of activations that keep their positions, in constant memory and in an order fixed by a seed.

Each epoch permutes whole sequences (of packed ones, the parts that are of one document) over the store. Consecutive sequences of that
permutation fill a window of bounded size, whose rows are permuted again and cut into batches. Both permutations are functions of (seed,
epoch, window) alone, so the loader's state is three integers and a resumed run sees exactly the batches that an uninterrupted one would
have seen. The next window is read by a thread while the current one is used. Several processes all see the same batches, and each works on
its share of every one (`training/views.py`).

With `whole`, for dictionaries that read sequences, a window is not permuted again: its sequences stay together, in the order of the
epoch's permutation, and as many as fit into `batch_size` rows, excluded ones counted, make a batch.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from temporallens.activations.context import UNKNOWN, Context, context_of
from temporallens.activations.store import ActivationStore
from temporallens.activations.writer import Rows
from temporallens.errors import TemporalLensError

WINDOW_BYTES = 128 << 20
"""Memory of one window; two are held at a time. 128 MiB mix about 900 sequences of 128 bfloat16 rows of width 576."""


class Batch(NamedTuple):
    """What a training step sees; every column goes wherever its row goes."""

    x: Float[Tensor, "N D"]  # float32 or bfloat16, as stored
    position: Int[Tensor, " N"]  # what the store's clock says
    sequence: Int[Tensor, " N"]  # id of the row of text
    token: Int[Tensor, " N"]  # token id, -1 where there is none
    token_before: Int[Tensor, " N"]  # that of the token before, in its sequence and document, excluded or not
    previous: Float[Tensor, "N D"] | None = None  # of the token before, in its sequence and document; the row itself where not paired
    paired: Bool[Tensor, " N"] | None = None  # whether the store has that token, and no rule excludes it
    previous_position: Int[Tensor, " N"] | None = None  # what the clock says of that token
    before: Int[Tensor, " N"] | None = None  # of whole sequences: number in the batch of the kept row before, -1 for none
    target: Float[Tensor, "N E"] | None = None  # what is to be given back, where the store has something else than x for it


class _Window(NamedTuple):
    """Shuffled rows from which batches are cut."""

    rows: Batch
    bounds: list[int]  # rows at which batches begin, and where the last one ends
    before: Int[Tensor, " M"] | None  # where in the window the token before each row is; the row itself where there is none
    following: "Cursor"  # where the next window is


class Cursor(NamedTuple):
    """Where the loader is: everything that it needs to go on."""

    epoch: int
    window: int
    row: int


class Mixing(NamedTuple):
    """How well a batch mixes, averaged over the batches that were looked at."""

    sequences_per_batch: float  # distinct sequences
    position_entropy: float  # entropy of positions in bits, over that of the store's positions; 1 is perfect


class Windows(ABC):
    """Where the rows of windows come from; asked by one thread at a time."""

    @abstractmethod
    def read(self, epoch: int, window: int) -> tuple[Rows, Float[Tensor, "N D"] | None, bool]:
        """Rows of whole sequences; what is to be given back of them, where it is something else; and whether the epoch ends here."""

    def close(self) -> None:  # noqa: B027 (most have nothing to stop)
        """No more windows are wanted, not even one that is being read."""


def window_rows(store: ActivationStore, batch_size: int, window_bytes: int = WINDOW_BYTES) -> int:
    """How many rows a window should have."""
    row_bytes = store.row_bytes + (0 if store.target is None else store.target.row_bytes)
    return max(window_bytes // row_bytes, 4 * batch_size)


class StoredWindows(Windows):
    """Windows of about so many rows from a store, of sequences that are permuted over all of it, anew in every epoch."""

    def __init__(self, store: ActivationStore, sequences: Int[np.ndarray, " n"], seed: int, rows: int, whole: bool) -> None:
        self._store, self._sequences, self._seed, self._whole = store, sequences, seed, whole
        mean_length = max(1.0, store.rows / store.sequences)
        self._size = max(1, min(len(sequences), math.ceil(rows / mean_length)))
        self._windows = max(1, len(sequences) // self._size)

    def read(self, epoch: int, window: int) -> tuple[Rows, Float[Tensor, "N D"] | None, bool]:
        order = np.random.default_rng((self._seed, epoch)).permutation(self._sequences)
        first, last = window * self._size, window == self._windows - 1
        entries = order[first : len(order) if last else first + self._size]
        entries = entries if self._whole else np.sort(entries)
        target = None if self._store.target is None else self._store.target.read(entries).x
        return self._store.read(entries), target, last


class Loader:
    """Endless shuffled batches of exactly `batch_size` kept rows (no sinks, no special tokens) of the given sequences, or, with `whole`, of
    the kept rows of as many whole sequences as have no more than `batch_size` rows.

    `windows` may come from elsewhere than from the store. With `neighbours`, the same batches also carry the activation of the token
    before each row: windows hold whole sequences.
    Raises TemporalLensError when the sequences hold fewer kept rows than one batch, or one of them has more rows than a batch.
    """

    def __init__(
        self,
        store: ActivationStore,
        sequences: Int[np.ndarray, " n"],
        batch_size: int,
        seed: int,
        *,
        window_bytes: int = WINDOW_BYTES,
        neighbours: bool = False,
        whole: bool = False,
        windows: "Windows | None" = None,
    ) -> None:
        self._store, self._sequences, self._batch_size, self._seed = store, np.asarray(sequences), batch_size, seed
        self._neighbours, self._whole = neighbours, whole
        self._cursor = Cursor(0, 0, 0)
        longest = int(store.sequence_table.length[self._sequences].max(initial=0))
        if whole and longest > batch_size:
            raise TemporalLensError(f"rows of {longest} tokens do not fit into batches of {batch_size}: raise training.batch_size")
        size = window_rows(store, batch_size, window_bytes)
        self._windows = windows or StoredWindows(store, self._sequences, seed, size, whole)
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._ahead: tuple[Cursor, Future[_Window]] | None = None
        self._current: _Window | None = None

    @property
    def cursor(self) -> Cursor:
        """State to save; `restore` takes it back."""
        return self._cursor

    def restore(self, cursor: Cursor) -> None:
        before, self._cursor = self._cursor, Cursor(*cursor)
        if before[:2] != self._cursor[:2]:
            self._current = None

    def _read(self, epoch: int, window: int) -> _Window:
        rows, target, last = self._windows.read(epoch, window)
        kept = (rows.excluded == 0).nonzero()[:, 0]
        if self._whole:
            ends = _whole_batches(runs_of(rows), self._batch_size)
            shuffled, bounds = kept, torch.searchsorted(kept, torch.from_numpy(ends)).tolist()
        else:
            # the 0 was a process's number once, and keeps the order of batches what it was
            shuffled = torch.from_numpy(np.random.default_rng((self._seed, epoch, window, 0)).permutation(kept.numpy()))
            bounds = list(range(0, len(kept) + 1, self._batch_size))
        context = context_of(rows)
        chain = _chained(context, kept) if self._whole else None
        context = context.rows(shuffled)
        chosen = Batch(rows.x[shuffled], rows.position[shuffled].long(), rows.sequence[shuffled], context.token, context.token_before)
        chosen = chosen._replace(before=chain, target=None if target is None else target[shuffled])
        following = Cursor(epoch + 1, 0, 0) if last else Cursor(epoch, window + 1, 0)
        return _Window(chosen, bounds, _before(rows, shuffled) if self._neighbours else None, following)

    def _window(self) -> _Window:
        if self._current is None:
            cursor = self._cursor._replace(row=0)
            if self._ahead is not None and self._ahead[0] == cursor:
                self._current = self._ahead[1].result()
            else:
                self._current = self._reader.submit(self._read, *cursor[:2]).result()  # behind a window that is not wanted any more
            if len(self._current.bounds) < 2:
                usable = len(self._current.rows.x)
                raise TemporalLensError(
                    f"a window of {self._store.folder} holds {usable} usable rows, fewer than one batch of {self._batch_size}"
                )
            following = self._current.following
            self._ahead = (following, self._reader.submit(self._read, following.epoch, following.window))
        return self._current

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows, bounds, before, following = self._window()
        number = bounds.index(self._cursor.row)
        first, last = bounds[number : number + 2]
        batch = _part(rows, first, last)
        if before is not None:
            earlier = before[first:last]
            batch = batch._replace(
                previous=rows.x[earlier],
                paired=earlier != torch.arange(first, last, device="cpu"),
                previous_position=rows.position[earlier],
            )
        if number + 2 < len(bounds):
            self._cursor = self._cursor._replace(row=last)
        else:  # a tail shorter than a batch is left out; another permutation leaves out other rows
            self._cursor, self._current = following, None
        return batch

    def close(self) -> None:
        self._windows.close()
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._current, self._ahead = None, None

    def mixing(self, batches: int = 4) -> Mixing:
        """Look at `batches` batches from the start of the first window, without moving the loader."""
        window, bounds, *_ = self._reader.submit(self._read, 0, 0).result()
        if len(bounds) < 2:
            usable = len(window.x)
            raise TemporalLensError(
                f"the training part of {self._store.folder} holds {usable} usable rows, fewer than one batch of {self._batch_size}"
            )
        parts = [slice(*bounds[number : number + 2]) for number in range(min(batches, len(bounds) - 1))]
        distinct = [len(window.sequence[part].unique()) for part in parts]
        whole = _entropy(self._store.moments.count)
        entropies = [_entropy(torch.bincount(window.position[part])) for part in parts]
        return Mixing(float(np.mean(distinct)), float(np.mean(entropies)) / whole if whole > 0 else 1.0)


def _part(rows: Batch, first: int, last: int) -> Batch:
    before = None if rows.before is None else (rows.before[first:last] - first).clamp(min=UNKNOWN)
    x, position, sequence, token, token_before = (column[first:last] for column in rows[:5])
    target = None if rows.target is None else rows.target[first:last]
    return Batch(x, position, sequence, token, token_before, before=before, target=target)


def runs_of(rows: Rows) -> Int64[np.ndarray, " n"]:
    """Lengths of the runs of rows that are of one sequence and document."""
    owners = torch.stack([rows.sequence, rows.document])
    return torch.unique_consecutive(owners, dim=1, return_counts=True)[1].numpy()


def _whole_batches(lengths: Int[np.ndarray, " n"], most: int) -> Int64[np.ndarray, " k"]:
    """Where batches of whole sequences of so many rows begin, and where the last one ends: each as full as it can be."""
    ends, begins, total = [0], 0, 0
    for length in lengths.tolist():
        if total + length - begins > most:
            ends.append(total)
            begins = total
        total += length
    if lengths.size and total + int(lengths.min()) - begins > most:  # otherwise a tail, which is left out
        ends.append(total)
    return np.array(ends, dtype=np.int64)


def _chained(context: Context, kept: Int[Tensor, " M"]) -> Int[Tensor, " M"]:
    """The kept row before each kept row, in its sequence and document, among the kept rows; -1 for none."""
    assert context.before is not None
    run = (context.before < 0).cumsum(0)[kept]
    before = torch.arange(-1, len(kept) - 1, device="cpu")
    return torch.where(run == run.roll(1), before, UNKNOWN)


def _before(rows: Rows, shuffled: Int[Tensor, " M"]) -> Int[Tensor, " M"]:
    """Where among the shuffled rows the token before each of them is, or the row itself where it is not among them."""
    shuffled_index = torch.arange(len(shuffled), device="cpu")
    index = torch.full((len(rows.x),), -1, dtype=torch.int64, device="cpu")
    index[shuffled] = shuffled_index
    earlier = (shuffled - 1).clamp(min=0)
    same = (rows.sequence[earlier] == rows.sequence[shuffled]) & (rows.document[earlier] == rows.document[shuffled])
    follows = same & (rows.index[earlier] == rows.index[shuffled] - 1)
    return torch.where(follows & (index[earlier] >= 0), index[earlier], shuffled_index)


def _entropy(counts: Int[Tensor, " P"]) -> float:
    share = counts[counts > 0].double() / counts.sum()
    return float(-(share * share.log2()).sum())


CHUNK_ROWS = 8192
"""Rows that evaluation reads at a time."""


def with_targets(
    store: ActivationStore, sequences: Int[np.ndarray, " n"], chunk_rows: int = CHUNK_ROWS
) -> Iterator[tuple[Rows, Float[Tensor, "N E"]]]:
    """The same as `sequential`, and beside the rows what a dictionary has to give of them: `x`, or what the store's target holds."""
    target = store.target
    targets = None if target is None else sequential(target, sequences, chunk_rows)
    for rows in sequential(store, sequences, chunk_rows):
        yield rows, rows.x if targets is None else next(targets).x


def sequential(store: ActivationStore, sequences: Int[np.ndarray, " n"], chunk_rows: int = CHUNK_ROWS) -> Iterator[Rows]:
    """All rows of these sequences, sinks included, in stored order and in chunks of whole sequences: what evaluation reads."""
    lengths = store.sequence_table.length[sequences]
    chunk = max(1, chunk_rows // max(1, int(lengths.mean()))) if len(sequences) else 1
    for first in range(0, len(sequences), chunk):
        yield store.read(sequences[first : first + chunk])
