"""Drift: a dictionary is measured on rows longer than those of its training, octave by octave."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headed_models import DOCUMENTS, random_dictionary, store_of, with_text
from temporallens.activations.clocks import TokenRow
from temporallens.activations.language import token_rows
from temporallens.activations.language.harvest import harvest
from temporallens.activations.language.models import LanguageModel
from temporallens.activations.language.token_rows import RowShape
from temporallens.activations.store import ActivationStore
from temporallens.activations.writer import Rows
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
    return with_text(tmp_path_factory.mktemp("drift"))


def harvested(folder: Path, name: str, context_length: int, **policy: Any) -> ActivationStore:
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


def sums_of(dictionary: Dictionary, rows: Rows, first: int, end: int) -> tuple[float, float, int]:
    """FVE about the mean of all usable rows, L0 and tokens at some positions, by a plain pass."""
    usable = rows.excluded == 0
    x, position = rows.x[usable].double(), rows.position[usable].long()
    codes = dictionary.encode(x.float(), position)
    error = (x - dictionary.decode(codes, position)).square().sum(1).detach()
    square = (x - x.mean(0)).square().sum(1)
    inside = (position >= first) & (position < end)
    l0 = float((codes[inside] > 0).sum(1).double().mean())
    return float(1 - error[inside].sum() / square[inside].sum()), l0, int(inside.sum())


def of_documents(store: ActivationStore) -> np.ndarray:
    return np.flatnonzero(np.isin(store.documents_of(np.arange(store.sequences)), HELD_OUT_DOCUMENTS))


@pytest.mark.parametrize("policy", [{}, {"rows": "document"}])
def test_octaves_are_those_of_a_plain_pass_over_rows_as_training_had_them(folder: Path, policy: dict[str, Any]) -> None:
    dictionary, name = random_dictionary(), str(policy)
    store = harvested(folder, f"store {name}", TRAINED, **policy)
    every = POLICY.model_copy(update={"rows_per_document": 99})
    measured = measure(folder, dictionary, store, of_documents(store), every, folder / "cache")
    assert [(octave.first, octave.last, octave.beyond) for octave in measured.octaves] == [
        (1, 1, False), (2, 3, False), (4, 7, False), (8, 15, True), (16, 31, True),
    ]  # fmt: skip
    whole = harvested(folder, f"whole {name}", LONGER, **policy)
    rows = whole.read(np.intersect1d(of_documents(whole), np.flatnonzero(whole.sequence_table.length > TRAINED)))
    for octave in measured.octaves:
        fve, l0, tokens = sums_of(dictionary, rows, octave.first, octave.last + 1)
        assert octave.fve.value == pytest.approx(fve, rel=1e-5)
        assert octave.l0.value == pytest.approx(l0)
        assert octave.fve.n == tokens
    assert measured.documents == len(HELD_OUT_DOCUMENTS)


def test_what_stands_beyond_is_compared_with_itself_in_rows_of_the_trained_length(
    folder: Path, store: ActivationStore, held_out: np.ndarray
) -> None:
    dictionary = random_dictionary()
    measured = measure(folder, dictionary, store, held_out, POLICY, folder / "cache")
    read = drift.longer_store(store, held_out, POLICY, folder / "cache")
    longer = read.sequence_table.length > TRAINED
    long, short = (read.read(np.flatnonzero(own)) for own in (longer, ~longer))
    beyond, before = (
        sorted(zip(rows.document[own].tolist(), rows.document_position[own].tolist(), rows.token[own].tolist(), strict=True))
        for rows, own in ((long, long.position >= TRAINED), (short, short.position >= TRAINED // 2))
    )
    assert beyond == before and len(beyond) == measured.fve_change.n
    assert (measured.as_trained.first, measured.as_trained.last, measured.as_trained.beyond) == (4, 7, False)
    later, again = sums_of(dictionary, long, TRAINED, LONGER), sums_of(dictionary, short, TRAINED // 2, TRAINED)
    assert measured.as_trained.fve.value == pytest.approx(again[0], rel=1e-5)
    assert measured.fve_change.value == pytest.approx(later[0] - again[0], abs=1e-5)
    assert measured.l0_change.value == pytest.approx(later[1] - again[1])
    assert measured.fve_change.low is not None


@pytest.mark.parametrize("closing", [0, 1])
@pytest.mark.parametrize("trained", [4, 7, 8])
@pytest.mark.parametrize("length", range(9, 24))
def test_every_token_beyond_stands_once_in_the_later_half(length: int, trained: int, closing: int) -> None:
    shape = RowShape(24, opening=0, closing=1 if closing else None, separator=None)
    tokens, zeros = np.arange(100, 100 + length), np.zeros(length, dtype=np.int64)
    row = TokenRow(tokens, zeros, zeros, zeros > 0, zeros > 0)
    rows = list(drift.as_trained(row, shape, trained))
    half = trained - trained // 2
    seen = [token for own in rows for token in own.tokens[half : len(own.tokens) - closing]]
    assert seen == [*tokens[trained : length - closing]]
    for own in rows:
        assert len(own.tokens) <= trained and own.tokens[0] == tokens[0] and (not closing or own.tokens[-1] == tokens[-1])
        assert (np.diff(own.tokens[1 : len(own.tokens) - closing]) == 1).all()


@pytest.mark.parametrize(("most", "of_store", "expected"), [(1, None, 1), (9, None, 9), (9, 1, 1)])
def test_documents_give_as_many_rows_as_the_policy_allows_and_the_store_has(
    folder: Path, tmp_path: Path, most: int, of_store: int | None, expected: int
) -> None:
    store = harvested(folder, f"some {of_store}", TRAINED, rows_per_document=of_store)
    policy = POLICY.model_copy(update={"rows_per_document": most})
    read = drift.longer_store(store, of_documents(store), policy, tmp_path)
    longer = read.sequence_table.length > TRAINED
    assert np.bincount(read.sequence_table.document[longer]).max() == expected


def test_packed_rows_are_read_packed(folder: Path) -> None:
    store = harvested(folder, "packed", TRAINED, rows="packed")
    measured = measure(folder, random_dictionary(), store, of_documents(store), POLICY, folder / "packed cache")
    assert measured.documents == len(HELD_OUT_DOCUMENTS)
    assert measured.fve_change.low is not None


def test_held_out_documents_are_those_of_the_store_and_nothing_behind_them_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of control characters has no tokens under BERT's normalizer, and so no number in the store."""
    path = tmp_path / "text.jsonl"
    texts = ["\x01\x02", *DOCUMENTS, *DOCUMENTS]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    policy = {"context_length": TRAINED, "rows": "document", "dtype": "float32", "norm_multiple": None}
    store = harvest(str(tiny_model("bert", tmp_path / "bert")), 1, path, out=tmp_path / "store", max_tokens=TRAINED * 8, **policy)
    held_out = np.flatnonzero(np.isin(store.documents_of(np.arange(store.sequences)), HELD_OUT_DOCUMENTS))
    monkeypatch.setattr(token_rows, "GROUP_CHARACTERS", 1)
    tokenised: list[str] = []
    encode_all = LanguageModel.encode_all
    monkeypatch.setattr(LanguageModel, "encode_all", lambda self, own: tokenised.extend(own) or encode_all(self, own))
    drift.longer_store(store, held_out, POLICY, tmp_path / "cache")
    assert tokenised[-3:] == [DOCUMENTS[number] for number in HELD_OUT_DOCUMENTS]
    assert tokenised[: len(texts)].count(DOCUMENTS[9]) == 0


def test_another_dictionary_reads_no_model(
    folder: Path, store: ActivationStore, held_out: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(folder, random_dictionary(), store, held_out, POLICY, folder / "cache")

    def refuse(*_: object) -> None:
        raise AssertionError("the model was opened again")

    monkeypatch.setattr(drift, "model_of", refuse)
    measure(folder, random_dictionary(features=32), store, held_out, POLICY, folder / "cache")


def test_the_table_marks_what_lies_beyond(folder: Path, store: ActivationStore, held_out: np.ndarray) -> None:
    measured = measure(folder, random_dictionary(), store, held_out, POLICY, folder / "cache")
    assert SECTION.tables is not None
    (table,) = SECTION.tables({"a": measured})
    assert [row.head for row in table.rows][-4:] == [
        "a: 8 to 15 (beyond)",
        "a: 16 to 31 (beyond)",
        "a: the tokens beyond at 4 to 7",
        "a: beyond, less the same tokens there",
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
    with pytest.raises(TemporalLensError, match=r"1 of the held-out documents of .* give rows of more than 8 tokens"):
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
