"""What features say of tokens, on dictionaries whose answer is known."""

from pathlib import Path

import numpy as np
import pytest
import torch

import temporallens as tl
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.expectations.policy import ExpectationPolicy
from temporallens.errors import TemporalLensError
from temporallens.evaluation import passage
from temporallens.evaluation.heldout import HeldOut
from temporallens.evaluation.passage import passage_of, starts
from temporallens.evaluation.tokens import SECTION, TokenMeasures, TokensPolicy, measure_tokens, tables
from temporallens.serial import as_json

SEQUENCES, LENGTH, TOKENS = 40, 16, 4


def detectors() -> Dictionary:
    """Feature 0 fires on token 0 alone, 1 on tokens 0 and 1, 2 for eight rows at a time."""
    dictionary = tl.BatchTopK(features=3, k=2).build(3, LENGTH, torch.Generator().manual_seed(0))
    with torch.no_grad():
        dictionary.encoder.copy_(torch.eye(3))
        dictionary.decoder.copy_(torch.eye(3))
        dictionary.threshold.fill_(0.5)  # type: ignore[operator]
    return dictionary.eval()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tl.ActivationStore:
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, TOKENS, (SEQUENCES, LENGTH))
    x = np.stack([tokens == 0, tokens <= 1, np.broadcast_to(np.arange(LENGTH) < 8, tokens.shape)], 2).astype(np.float32)
    return tl.ActivationStore.from_arrays(x, tmp_path_factory.mktemp("tokens") / "store", tokens=tokens, norm_multiple=None)


@pytest.fixture(scope="module")
def measured(store: tl.ActivationStore) -> TokenMeasures:
    return measure_tokens(detectors(), store, np.arange(SEQUENCES), TokensPolicy())


def test_detectors_of_one_token_are_found(measured: TokenMeasures) -> None:
    assert measured.purities is not None and measured.tokens is not None
    assert measured.purities[0] == 1.0 and measured.tokens[0] == 0
    assert measured.purities[1] == pytest.approx(0.5, abs=0.05)
    assert measured.purities[2] == pytest.approx(0.25, abs=0.06)
    assert measured.one_token.value == pytest.approx(1 / 3, abs=0.34)
    assert measured.chance_purity < 0.4 and measured.chance_one_token == 0
    assert measured.known is None


def test_features_that_go_on_are_told_from_those_that_do_not(measured: TokenMeasures) -> None:
    assert measured.persistences is not None
    lasting, passing = measured.persistences[2], measured.persistences[0]
    assert lasting == 1.0  # position 0 is excluded, so it fires at 1 to 7, and always before, too
    assert passing == pytest.approx(1 / TOKENS, abs=0.1)
    assert measured.persistence.low is not None and measured.chance_persistence < measured.persistence.low


def test_what_is_known_without_codes(store: tl.ActivationStore, tmp_path: Path) -> None:
    arm = tl.BatchTopK(features=8, k=1, expectation=ExpectationPolicy(embedding=False))
    trained = tl.train(store, arm, 20, tmp_path / "arm", batch_size=64).dictionary
    known = measure_tokens(trained, store, np.arange(SEQUENCES), TokensPolicy(least=2)).known
    assert known is not None and known.value is not None
    rows = store.read(np.arange(SEQUENCES))
    x = rows.x[rows.excluded == 0].double()
    token = rows.token[rows.excluded == 0]
    means = torch.stack([x[token == value].mean(0) for value in range(TOKENS)])
    best = 1 - float((x - means[token]).square().sum() / (x - x.mean(0)).square().sum())
    assert known.value == pytest.approx(best, abs=0.1)


def test_a_passage_says_what_was_known_of_every_token(store: tl.ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure_tokens(detectors(), store, np.arange(SEQUENCES), TokensPolicy()).passage is None  # no words are known
    monkeypatch.setattr(passage, "words_of", lambda store, tokens: {token: f" w{token}" for token in tokens})
    monkeypatch.setattr(passage, "TOKENS", 6)
    arm = tl.BatchTopK(features=8, k=1, expectation=ExpectationPolicy(token="pair", embedding=False))
    trained = tl.train(store, arm, 20, tmp_path / "arm", batch_size=64).dictionary
    found = passage_of(trained, HeldOut(store, np.arange(SEQUENCES), None))
    assert found is not None and found.token is not None and found.before is not None
    assert found.indices == list(range(8, 14)) and len(found.words) == 6
    rows = store.read(np.array([0]))
    x, kept = rows.x, store.read(np.arange(SEQUENCES))
    back = trained(x[None], tokens=rows.token[None].long())[0]
    mean = kept.x[kept.excluded == 0].mean(0)
    explained = 1 - (x - back).square().sum(1) / (x - mean).square().sum(1)
    parts = np.array([found.token, found.before, found.codes]).sum(0)
    np.testing.assert_allclose(parts, explained[8:14].detach().numpy(), atol=1e-4)
    assert found.fired == (trained.encode(x[None], tokens=rows.token[None].long())[0, 8:14] > 0).sum(1).tolist()
    assert passage_of(detectors(), HeldOut(store, np.arange(SEQUENCES), None))._replace(codes=[]).token is None  # type: ignore[union-attr]


def test_a_passage_begins_with_a_sentence(store: tl.ActivationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = store.read(np.array([0]))
    words = [" a"] * LENGTH
    words[9] = " end."
    monkeypatch.setattr(passage, "TOKENS", 6)
    assert starts(rows, words) == [10, 8]


def test_its_json_is_read_again_and_tabled(measured: TokenMeasures) -> None:
    content = as_json(measured)
    assert SECTION.read(content) == measured
    assert SECTION.read(SECTION.summary(content)).purities is None
    (table,) = tables({"arm": measured})
    assert len(table.rows[0].cells) == len(table.columns) - 1


def test_a_store_without_tokens_is_refused(tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(8, LENGTH, 3)).astype(np.float32)
    untold = tl.ActivationStore.from_arrays(x, tmp_path / "store")
    with pytest.raises(TemporalLensError, match="holds no tokens"):
        measure_tokens(detectors(), untold, np.arange(8), TokensPolicy())


def test_rows_without_a_token_are_of_none(tmp_path: Path) -> None:
    tokens = np.random.default_rng(2).integers(0, TOKENS, (SEQUENCES, LENGTH))
    x = np.stack([tokens == 0, tokens <= 1, tokens == 2], 2).astype(np.float32)
    ids = np.where((tokens == 0) | ((tokens == 1) & (np.arange(LENGTH) % 2 == 0)), -1, tokens)
    partly = tl.ActivationStore.from_arrays(x, tmp_path / "store", tokens=ids, norm_multiple=None)
    found = measure_tokens(detectors(), partly, np.arange(SEQUENCES), TokensPolicy())
    assert found.tokens == [-1, 1, 2]  # the first fires where no token is known, the second mostly there
    assert found.purities == [None, 1.0, 1.0]
    assert found.one_token.value == 1.0 and SECTION.read(as_json(found)) == found
