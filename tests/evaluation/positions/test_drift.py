"""Drift: a dictionary is measured on rows longer than those of its training, octave by octave."""

import json
from pathlib import Path

import numpy as np
import pytest

from headed_models import DOCUMENTS, headed_model, random_dictionary, store_of
from temporallens.activations.language import token_rows
from temporallens.activations.language.harvest import harvest
from temporallens.activations.language.models import LanguageModel
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.positions import drift
from temporallens.evaluation.positions.drift import SECTION, DriftMeasures, DriftPolicy, measure_drift
from tiny_models import tiny_model

TRAINED, LONGER = 8, 32
HELD_OUT_DOCUMENTS = [2, 5, 7]
POLICY = DriftPolicy(documents=8, resamples=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drift")
    headed_model("llama", folder / "model")
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return folder


def harvested(folder: Path, name: str, context_length: int, **policy: str) -> ActivationStore:
    text, shared = folder / "text.jsonl", {"dtype": "float32", "norm_multiple": None, "batch_size": 8}
    return harvest(str(folder / "model"), 1, text, out=folder / name, context_length=context_length, **shared, **policy)


def measure(
    folder: Path, dictionary: Dictionary, store: ActivationStore, held_out: np.ndarray, policy: DriftPolicy, cache: Path
) -> DriftMeasures:
    return measure_drift(dictionary, str(folder / "model"), 1, store, held_out, policy, cache)


@pytest.fixture(scope="module")
def store(folder: Path) -> ActivationStore:
    return harvested(folder, "store", TRAINED)


@pytest.fixture(scope="module")
def held_out(store: ActivationStore) -> np.ndarray:
    return np.flatnonzero(np.isin(store.documents_of(np.arange(store.sequences)), HELD_OUT_DOCUMENTS))


def test_octaves_are_those_of_a_plain_pass_and_end_where_training_did(folder: Path, store: ActivationStore, held_out: np.ndarray) -> None:
    dictionary = random_dictionary()
    measured = measure(folder, dictionary, store, held_out, POLICY, folder / "cache")
    assert [(octave.first, octave.last, octave.beyond) for octave in measured.octaves] == [
        (1, 1, False), (2, 3, False), (4, 7, False), (8, 15, True), (16, 31, True),
    ]  # fmt: skip
    whole = harvested(folder, "whole", LONGER, rows="document")
    rows = whole.read(np.flatnonzero(np.isin(whole.documents_of(np.arange(whole.sequences)), HELD_OUT_DOCUMENTS)))
    usable = rows.excluded == 0
    x, position = rows.x[usable].double(), rows.position[usable].long()
    codes = dictionary.encode(x.float(), position)
    error = (x - dictionary.decode(codes, position)).square().sum(1).detach()
    square = (x - x.mean(0)).square().sum(1)
    for octave in measured.octaves:
        inside = (position >= octave.first) & (position <= octave.last)
        assert octave.fve.value == pytest.approx(float(1 - error[inside].sum() / square[inside].sum()), rel=1e-5)
        assert octave.l0.value == pytest.approx(float((codes[inside] > 0).sum(1).double().mean()))
        assert octave.fve.n == int(inside.sum())
    last, beyond = (position >= 4) & (position < TRAINED), position >= TRAINED
    fve = [float(1 - error[inside].sum() / square[inside].sum()) for inside in (last, beyond)]
    assert measured.fve_change.value == pytest.approx(fve[1] - fve[0], abs=1e-5)
    assert measured.fve_change.low is not None and measured.documents == len(HELD_OUT_DOCUMENTS)


def test_held_out_documents_are_those_of_the_store_and_nothing_behind_them_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of control characters has no tokens under BERT's normalizer, and so no number in the store."""
    path, read = tmp_path / "text.jsonl", []
    texts = ["\x01\x02", *DOCUMENTS, *DOCUMENTS]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    policy = {"context_length": TRAINED, "rows": "document", "dtype": "float32", "norm_multiple": None}
    store = harvest(str(tiny_model("bert", tmp_path / "bert")), 1, path, out=tmp_path / "store", max_tokens=TRAINED * 8, **policy)
    held_out = np.flatnonzero(np.isin(store.documents_of(np.arange(store.sequences)), HELD_OUT_DOCUMENTS))
    opened = drift.open_corpus
    monkeypatch.setattr(drift, "open_corpus", lambda text, *of: read.append(text) or opened(text, *of))
    monkeypatch.setattr(token_rows, "GROUP_CHARACTERS", 1)
    tokenised: list[str] = []
    encode_all = LanguageModel.encode_all
    monkeypatch.setattr(LanguageModel, "encode_all", lambda self, own: tokenised.extend(own) or encode_all(self, own))
    drift.longer_store(store, held_out, POLICY, tmp_path / "cache")
    assert read[1] == [DOCUMENTS[number] for number in HELD_OUT_DOCUMENTS]
    assert tokenised[: len(texts)].count(DOCUMENTS[9]) == 0


def test_another_dictionary_reads_no_model(
    folder: Path, store: ActivationStore, held_out: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(folder, random_dictionary(), store, held_out, POLICY, folder / "cache")

    def refuse(*_: object) -> None:
        raise AssertionError("the model was opened again")

    monkeypatch.setattr(drift, "open_model", refuse)
    measure(folder, random_dictionary(features=32), store, held_out, POLICY, folder / "cache")


def test_the_table_marks_what_lies_beyond(folder: Path, store: ActivationStore, held_out: np.ndarray) -> None:
    measured = measure(folder, random_dictionary(), store, held_out, POLICY, folder / "cache")
    assert SECTION.tables is not None
    (table,) = SECTION.tables({"a": measured})
    assert [row.head for row in table.rows][-3:] == [
        "a: 8 to 15 (beyond)",
        "a: 16 to 31 (beyond)",
        "a: beyond, less the last trained octave",
    ]
    assert {len(row.cells) for row in table.rows} == {3}


def test_what_cannot_be_read_longer_is_refused(folder: Path, store: ActivationStore, held_out: np.ndarray, tmp_path: Path) -> None:
    dictionary = random_dictionary()
    with pytest.raises(TemporalLensError, match="rows of 8 tokens are no longer than those of training"):
        measure(folder, dictionary, store, held_out, DriftPolicy(context_length=8), tmp_path)
    with pytest.raises(TemporalLensError, match="context"):
        measure(folder, dictionary, store, held_out, DriftPolicy(context_length=1 << 20), tmp_path)
    given = store_of(folder / "model", 1, tmp_path / "given")
    with pytest.raises(TemporalLensError, match="was harvested from texts given in Python"):
        measure(folder, dictionary, given, np.arange(given.sequences), POLICY, tmp_path)
    with pytest.raises(TemporalLensError, match=r"the longest held-out document of .* has .* tokens"):
        measure(folder, dictionary, store, held_out[:1], POLICY, tmp_path)
    sentences = harvested(folder, "sentences", TRAINED, clock="sentence")
    with pytest.raises(TemporalLensError, match=r"drift goes by the index in the row, and .* has the clock 'sentence'"):
        measure(folder, dictionary, sentences, held_out, POLICY, tmp_path)
    arrays = ActivationStore.from_arrays(np.random.default_rng(0).normal(size=(6, 5, dictionary.width)), out=tmp_path / "arrays")
    with pytest.raises(TemporalLensError, match="was not harvested from a language model"):
        measure(folder, dictionary, arrays, np.arange(2), POLICY, tmp_path)
    changed = harvested(folder, "changed", TRAINED)
    with (folder / "text.jsonl").open("a") as file:
        file.write(json.dumps({"text": "One more."}) + "\n")
    with pytest.raises(TemporalLensError, match=r"has changed since .* was harvested from it"):
        measure(folder, dictionary, changed, held_out, POLICY, tmp_path)
