"""The loader: what goes in comes out with its columns, in an order that its cursor alone determines."""

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from temporallens.activations.loader import Batch, Cursor, Loader, StoredWindows, sequential
from temporallens.activations.store import ActivationStore
from temporallens.errors import TemporalLensError


def small(store, **options):
    options = {"batch_size": 64, "seed": 1, "window_bytes": 1} | options
    return Loader(store, np.arange(store.sequences), **options)


def same(left: Batch, right: Batch) -> bool:
    """Whether the columns that both have hold the same bits."""
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True) if a is not None and b is not None)


def test_every_column_follows_its_row_through_the_shuffle(store, world):
    loader = small(store)
    for _ in range(100):
        batch = next(loader)
        assert torch.equal(batch.x, torch.from_numpy(world)[batch.sequence, batch.position])
    loader.close()


def test_position_zero_and_sinks_never_reach_training(store):
    loader = small(store)
    assert all(int(next(loader).position.min()) > 0 for _ in range(60))
    loader.close()


def test_an_epoch_sees_rows_at_most_once_and_nearly_all_of_them(store):
    loader = small(store)
    seen = []
    while loader.cursor.epoch == 0:
        batch = next(loader)
        seen += list(zip(batch.sequence.tolist(), batch.position.tolist(), strict=True))
    loader.close()
    usable = int(store.moments.count.sum())
    assert len(set(seen)) == len(seen)
    assert len(seen) > 0.7 * usable


@given(before=st.integers(0, 120), seed=st.integers(0, 5))
@settings(max_examples=15)
def test_a_restored_loader_goes_on_exactly(store, before, seed):
    whole, cut = small(store, seed=seed), small(store, seed=seed)
    for _ in range(before):
        next(whole)
    for _ in range(before):
        next(cut)
    restored = small(store, seed=seed)
    restored.restore(Cursor(*cut.cursor))
    for _ in range(5):
        assert same(next(whole), next(restored))
    for loader in (whole, cut, restored):
        loader.close()


def test_windows_are_read_one_at_a_time_also_where_the_loader_goes_back(store, monkeypatch):
    """A window of a stream is a matter of all processes, and of a text that is read in its order."""
    read, reading = StoredWindows.read, []

    def slowly(windows, epoch, window):
        reading.append(window)
        assert len(reading) == 1
        time.sleep(0.05)
        found = read(windows, epoch, window)
        reading.pop()
        return found

    monkeypatch.setattr(StoredWindows, "read", slowly)
    loader = small(store)
    first = next(loader)
    while loader.cursor.window == 0:
        next(loader)
    next(loader)  # another window begins, and the one after it is being read
    loader.restore(Cursor(0, 0, 0))
    assert same(next(loader), first)
    loader.mixing()
    loader.close()


def test_mixing_is_reported(store):
    loader = small(store, window_bytes=1 << 20)
    mixing = loader.mixing()
    loader.close()
    assert mixing.sequences_per_batch > 50
    assert 0.9 < mixing.position_entropy <= 1


def test_neighbours_are_the_tokens_before_and_change_no_batch(store, world):
    plain, paired = small(store), small(store, neighbours=True)
    x, seen = torch.from_numpy(world), 0
    for _ in range(60):
        without, batch = next(plain), next(paired)
        assert without.previous is None
        assert without.paired is None
        assert same(without, batch)
        assert torch.equal(batch.paired, batch.position > 1)  # what stands before position 1 is a sink, and excluded
        before = torch.where(batch.paired, batch.position - 1, batch.position)
        assert torch.equal(batch.previous, x[batch.sequence, before])
        assert torch.equal(batch.previous_position.long(), before)
        seen += int(batch.paired.sum())
    plain.close()
    paired.close()
    assert seen > 0.9 * 60 * 64 * 14 / 15


def test_a_token_that_the_store_lacks_or_a_rule_excludes_is_no_neighbour(tmp_path):
    generator = np.random.default_rng(0)
    x, lengths = generator.normal(size=(40, 6, 4)).astype(np.float32), generator.integers(3, 7, 40)
    mask = np.arange(6) < lengths[:, None]
    x[5, 3] *= 1000  # a sink by the norm rule
    kept = ActivationStore.from_arrays(x, tmp_path / "store", mask=mask)
    loader = small(kept, batch_size=32, neighbours=True)
    seen = set()
    while loader.cursor.epoch < 4:
        batch = next(loader)
        for sequence, position, has in zip(batch.sequence.tolist(), batch.position.tolist(), batch.paired.tolist(), strict=True):
            seen.add((sequence, position))
            assert has == (position > 1 and (sequence, position) != (5, 4))
    loader.close()
    assert (5, 4) in seen
    assert (5, 3) not in seen


def test_neighbours_across_a_hole_are_no_neighbours(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 6, 4)).astype(np.float32)
    mask = np.ones((40, 6), bool)
    mask[:, 3] = False
    loader = small(ActivationStore.from_arrays(x, tmp_path / "store", mask=mask), batch_size=32, neighbours=True)
    for _ in range(20):
        batch = next(loader)
        assert set(batch.position.tolist()) == {1, 2, 4, 5}
        assert torch.equal(batch.paired, (batch.position == 2) | (batch.position == 5))
    loader.close()


def test_too_little_for_one_batch_is_said(tmp_path):
    tiny = ActivationStore.from_arrays(np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32), tmp_path / "store")
    loader = Loader(tiny, np.arange(3), batch_size=64, seed=0)
    with pytest.raises(TemporalLensError, match="holds 9 usable rows, fewer than one batch of 64"):
        next(loader)
    with pytest.raises(TemporalLensError, match="fewer than one batch"):
        loader.mixing()
    loader.close()


def test_sequential_reading_gives_every_row_once_in_order(store, world):
    x = torch.cat([rows.x for rows in sequential(store, np.arange(store.sequences), chunk_rows=100)])
    assert torch.equal(x, torch.from_numpy(world).flatten(0, 1))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's high-water mark is Linux'")
def test_a_large_store_trains_in_memory_that_does_not_grow_with_it(tmp_path):
    """A store of 1 GB; `python -m benchmarks.loader_memory` measures one of 4 GB."""
    command = [sys.executable, "-m", "benchmarks.loader_memory", "--gigabytes", "1", "--steps", "300", "--folder", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    found = re.search(r"above the start: ([\d.]+) GB", finished.stdout)
    assert found is not None, finished.stdout
    assert float(found.group(1)) < 0.9


def test_whole_sequences_stay_together_without_what_is_excluded(store, world):
    loader, seen = small(store, batch_size=70, whole=True), []
    while loader.cursor.epoch == 0:
        batch = next(loader)
        assert torch.equal(batch.x, torch.from_numpy(world)[batch.sequence, batch.position])
        assert len(batch.x) == 4 * 15  # 4 rows of 16 fit into 70, and the first token of each is a sink
        looks_back = batch.before >= 0
        assert torch.equal(looks_back, batch.position > 1)
        rows = looks_back.nonzero()[:, 0]
        assert torch.equal(batch.sequence[batch.before[rows]], batch.sequence[rows])
        assert torch.equal(batch.position[batch.before[rows]], batch.position[rows] - 1)
        seen += batch.sequence.unique().tolist()
    loader.close()
    assert store.sequences >= len(seen) == len(set(seen)) > 0.85 * store.sequences  # windows have tails
    assert seen[:60] != sorted(seen[:60])


def test_sequences_of_different_lengths_fill_batches_as_far_as_they_go(tmp_path):
    lengths = np.random.default_rng(0).integers(3, 12, 60)
    mask = np.arange(12) < lengths[:, None]
    store = ActivationStore.from_arrays(np.ones((60, 12, 4), dtype=np.float32), tmp_path / "store", mask=mask)
    loader, first = small(store, batch_size=30, whole=True), Cursor(0, 0, 0)
    while loader.cursor.epoch == 0:
        batch = next(loader)
        whole = lengths[batch.sequence.unique().numpy()].sum()
        assert 30 - 11 < whole <= 30
        assert len(batch.x) == whole - len(batch.sequence.unique())
    loader.restore(first)
    again = small(store, batch_size=30, whole=True)
    assert all(same(next(loader), next(again)) for _ in range(20))
    halfway = small(store, batch_size=30, whole=True)
    halfway.restore(loader.cursor)
    assert all(same(next(loader), next(halfway)) for _ in range(20))
    for one in (loader, again, halfway):
        one.close()
    with pytest.raises(TemporalLensError, match=r"rows of 11 tokens do not fit into batches of 10: raise training.batch_size"):
        small(store, batch_size=10, whole=True)
