"""Activations straight from a model: the rows, batches and dictionaries that a store of the same text would give."""

import json
from pathlib import Path

import pytest
import torch

from temporallens.activations.language.harvest import HarvestPolicy, harvest_policy
from temporallens.activations.language.streams import StreamedWindows
from temporallens.activations.loader import Cursor, Loader, runs_of
from temporallens.activations.store import ActivationStore
from temporallens.activations.writer import Rows
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.training.policy import TrainingPolicy
from temporallens.training.trainee import ArmRun
from temporallens.training.trainer import train_arms
from tiny_studies import documents

ROWS = 40 * 16
"""Of a window: two batches of 32 rows of 16 tokens, rounded down to one."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text(documents(40))
    return path


def policy_of(sources: dict[str, Path], text: Path, **more: object) -> HarvestPolicy:
    return HarvestPolicy.model_validate({"model": str(sources["model"]), "text": str(text), "layer": 1, "context_length": 16} | more)


@pytest.fixture(scope="module")
def stored(sources, text, tmp_path_factory) -> ActivationStore:
    """A store of what the stream reads: every document but each fourth."""
    folder = tmp_path_factory.mktemp("stored")
    lines = text.read_text().splitlines(keepends=True)
    (folder / "text.jsonl").write_text("".join(line for number, line in enumerate(lines) if number % 4))
    return harvest_policy([policy_of(sources, folder / "text.jsonl")], [folder / "store"])[0]


def stream_of(sources: dict[str, Path], text: Path, whole: bool = False, rows: int = ROWS) -> StreamedWindows:
    return StreamedWindows(policy_of(sources, text, stream=True, stored_every=4), 0, rows, whole)


def same_rows(one: Rows, other: Rows) -> bool:
    return all(torch.equal(left.to(right.dtype), right) for left, right in zip(one, other, strict=True))


def test_windows_hold_the_bits_of_a_store_window_after_window(sources, text, stored):
    windows, found, last = stream_of(sources, text), [], False
    while not last:
        rows, target, last = windows.read(0, len(found))
        assert target is None
        found.append(rows)
    assert len(found) > 2 and all(len(rows.x) <= 3 * ROWS for rows in found)
    everything = stored.read(torch.arange(stored.sequences).numpy())
    assert same_rows(Rows(*(torch.cat(column) for column in zip(*found, strict=True))), everything)
    assert same_rows(windows.read(1, 0)[0], found[0])  # the text begins again
    again = stream_of(sources, text)
    assert same_rows(again.read(0, 2)[0], found[2])


def test_whole_sequences_are_permuted_in_their_window(sources, text):
    plain, permuted = stream_of(sources, text).read(0, 1)[0], stream_of(sources, text, whole=True).read(0, 1)[0]
    assert sorted(runs_of(plain)) == sorted(runs_of(permuted))
    assert torch.equal(plain.sequence.unique(), permuted.sequence.unique()) and not torch.equal(plain.sequence, permuted.sequence)
    assert not same_rows(permuted, stream_of(sources, text, whole=True).read(1, 1)[0])


def test_a_loader_goes_on_in_the_middle_of_a_stream(sources, text, stored):
    whole = Loader(stored, torch.arange(stored.sequences).numpy(), 64, 0, windows=stream_of(sources, text))
    batches = [next(whole) for _ in range(110)]
    assert whole.cursor.epoch > 0
    whole.close()
    cut = Loader(stored, torch.arange(stored.sequences).numpy(), 64, 0, windows=stream_of(sources, text))
    for _ in range(13):
        next(cut)
    cursor = cut.cursor
    cut.close()
    assert cursor.window > 0
    resumed = Loader(stored, torch.arange(stored.sequences).numpy(), 64, 0, windows=stream_of(sources, text))
    resumed.restore(Cursor(*cursor))
    for batch in batches[13:]:
        found = next(resumed)
        assert torch.equal(found.x, batch.x) and torch.equal(found.position, batch.position) and torch.equal(found.token, batch.token)
    resumed.close()


def test_a_dictionary_learns_from_a_stream_and_goes_on_with_the_same_bits(sources, text, tmp_path, monkeypatch):
    monkeypatch.setattr("temporallens.training.trainer.window_rows", lambda *_: ROWS)
    policy = policy_of(sources, text, stream=True, stored_every=4)
    (store,) = harvest_policy([policy], [tmp_path / "store"])
    assert store.documents == 10 and store.manifest.description.policies["stored_every"] == 4
    training = TrainingPolicy(steps=30, batch_size=64, log_every=5, checkpoint_every=10, held_out=0.5)
    runs = [ArmRun("batchtopk", BatchTopK(features=32, k=4), 0)]
    whole = train_arms(store, runs, training, tmp_path / "whole", stream=policy)["batchtopk"]
    read, reads = StreamedWindows.read, []

    def interrupted(windows: StreamedWindows, epoch: int, window: int):
        reads.append((epoch, window))
        if len(reads) == 5:
            raise KeyboardInterrupt
        return read(windows, epoch, window)

    monkeypatch.setattr(StreamedWindows, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_arms(store, runs, training, tmp_path / "cut", stream=policy)
    monkeypatch.setattr(StreamedWindows, "read", read)
    assert list((tmp_path / "cut").glob("checkpoint-*"))
    cut = train_arms(store, runs, training, tmp_path / "cut", stream=policy)["batchtopk"]
    assert json.dumps(cut.summary) == json.dumps(whole.summary)
    files = [path.relative_to(whole.folder) for path in whole.folder.rglob("*.safetensors")]
    assert files and all((cut.folder / file).read_bytes() == (whole.folder / file).read_bytes() for file in files)


def test_a_stream_shares_its_tokens_with_its_store(sources, text, tmp_path):
    limit = policy_of(sources, text, stream=True, stored_every=4, max_tokens=800)
    (store,) = harvest_policy([limit], [tmp_path / "store"])
    assert 150 < store.rows <= 200
    rows, _, last = StreamedWindows(limit, 0, 10**6, whole=False).read(0, 0)
    assert last and 550 < len(rows.x) <= 600


def test_transcoders_are_not_trained_from_a_stream(sources, text):
    with pytest.raises(ValueError, match="a stream trains, and transcoders are not trained here"):
        policy_of(sources, text, stream=True, target="blocks.0.hook_mlp_out")
