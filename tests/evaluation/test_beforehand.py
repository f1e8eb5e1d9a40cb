"""What is known beforehand: made activations whose answers are known, and scans that ask for it."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from made_results import make_beforehand
from temporallens.activations.clocks import CLOCKS, TokenRow
from temporallens.errors import TemporalLensError
from temporallens.evaluation.beforehand import (
    BEFORE,
    INDEX,
    LAST,
    PAIR,
    PAST,
    RUNNING,
    TOKEN,
    Beforehand,
    BeforehandPolicy,
    gather,
    in_words,
    measure,
    prepare,
)
from temporallens.evaluation.history import earlier, history_of, looked_at
from temporallens.evaluation.scan import Scan, ScanPolicy, scan, shuffled
from tiny_models import TEXTS, tiny_model

ROWS, LENGTH, WIDTH, VOCABULARY = 60, 40, 6, 12
MANY = [f"{text} Number {number}. {text}" for number in range(8) for text in TEXTS]


def rows_of(tokens: np.ndarray) -> list[TokenRow]:
    index, none = np.arange(LENGTH), np.zeros(LENGTH, dtype=bool)
    return [TokenRow(row, np.full(LENGTH, document), index, none, none) for document, row in enumerate(tokens)]


def known(x: np.ndarray, tokens: np.ndarray, embeddings: bool = False) -> Beforehand:
    """Of one layer, floors included; row 0 of every row of text is left out, as scans do."""
    kept = np.ones((ROWS, LENGTH), dtype=bool)
    kept[:, 0] = False
    labels = [np.arange(LENGTH)] * ROWS
    generator = np.random.default_rng(1)
    clocks = {name: (labels, shuffled(labels, generator)) for name in CLOCKS}
    table = torch.randn(VOCABULARY, 3, generator=torch.Generator().manual_seed(0)) if embeddings else None
    text = prepare(rows_of(tokens), kept, clocks, table, BeforehandPolicy(resamples=50), 0)
    return gather([measure(torch.from_numpy(x).float(), text)], text, encoder=False)


@pytest.fixture(scope="module")
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def unit(values: np.ndarray) -> np.ndarray:
    """About their mean, with a variance of 1 in all."""
    values = values - values.mean(tuple(range(values.ndim - 1)))
    return values / np.sqrt(np.square(values).sum(-1).mean())


@pytest.mark.parametrize("embeddings", [False, True])
def test_shares_are_those_by_which_a_world_was_made(random: np.random.Generator, embeddings: bool) -> None:
    tokens = random.integers(0, VOCABULARY, (ROWS, LENGTH))
    of_token = unit(random.normal(size=(VOCABULARY, WIDTH)))[tokens]
    of_position = np.broadcast_to(unit(random.normal(size=(LENGTH, WIDTH))), of_token.shape)
    of_before = np.roll(unit(random.normal(size=(VOCABULARY, WIDTH)))[tokens], 1, 1)
    noise = unit(random.normal(size=of_token.shape))
    x = np.sqrt(0.5) * of_token + np.sqrt(0.15) * of_position + np.sqrt(0.1) * of_before + np.sqrt(0.25) * noise
    found = known(x, tokens, embeddings)
    for share, wanted in (
        (found.alone[TOKEN], 0.5),
        (found.alone[INDEX], 0.15),
        (found.added[INDEX], 0.15),
        (found.alone[BEFORE], 0.1),
        (found.together[INDEX], 0.65),
        (found.together[BEFORE], 0.75),
        (found.added[PAST], 0.0),
    ):
        assert share.share[0] == pytest.approx(wanted, abs=0.05)
        assert share.low[0] < share.share[0] < share.high[0]
    for part in (found.alone, found.added):
        for name, share in part.items():
            assert share.floor[0] == pytest.approx(0, abs=0.02), name


def test_tokens_that_mean_nothing_explain_nothing(random: np.random.Generator) -> None:
    found = known(random.normal(size=(ROWS, LENGTH, WIDTH)), random.integers(0, VOCABULARY, (ROWS, LENGTH)))
    for name, share in {**found.alone, **found.added, **found.together}.items():
        assert share.share[0] == pytest.approx(0, abs=0.02), name


def test_a_packed_document_begins_with_no_token_before(random: np.random.Generator) -> None:
    tokens = random.integers(1, VOCABULARY, (ROWS, LENGTH))
    half = np.arange(LENGTH) >= LENGTH // 2
    rows = [row._replace(document=row.document + ROWS * half) for row in rows_of(tokens)]
    text = prepare(rows, np.ones((ROWS, LENGTH), dtype=bool), {}, None, BeforehandPolicy(resamples=50), 0)
    for side, of in ((text.fitted, text.told[PAIR].fitted), (text.held_out, text.told[PAIR].held_out)):
        begins = side % (LENGTH // 2) == 0
        assert bool((of.token_before[begins] == -1).all()) and bool((of.token_before[~begins] >= 0).all())


def test_the_past_of_an_autoregression_explains_its_coefficient_squared(random: np.random.Generator) -> None:
    x = random.normal(size=(ROWS, LENGTH, WIDTH))
    for step in range(1, LENGTH):
        x[:, step] = 0.7 * x[:, step - 1] + np.sqrt(1 - 0.7**2) * x[:, step]
    found = known(x, random.integers(0, VOCABULARY, (ROWS, LENGTH)))
    for explained in (found.alone[PAST], found.alone[LAST], found.added[PAST]):
        assert explained.share[0] == pytest.approx(0.49, abs=0.06)
    assert 0 < found.alone[RUNNING].share[0] < 0.3
    history = found.history
    assert history.autocorrelation[0][:2] == pytest.approx([0.7, 0.49], abs=0.08)
    assert history.other_rows[0][:2] == pytest.approx([0, 0], abs=0.08)
    assert history.rank[0][3] < history.shuffled_rank[0][3]


def test_earlier_means_are_those_of_a_loop(random: np.random.Generator) -> None:
    kept = random.random((5, 9)) < 0.7
    y = random.normal(size=(5, 9, 2)) * kept[..., None]
    mean, exponential = (earlier(torch.from_numpy(y), torch.from_numpy(kept), decay).numpy() for decay in (None, 0.8))
    for row in range(5):
        state = np.zeros(2)
        for step in range(9):
            before = y[row, :step][kept[row, :step]]
            np.testing.assert_allclose(mean[row, step], before.mean(0) if len(before) else 0, atol=1e-12)
            np.testing.assert_allclose(exponential[row, step], state, atol=1e-12)
            state = 0.8 * state + 0.2 * y[row, step]


def test_history_is_that_of_a_loop(random: np.random.Generator) -> None:
    kept = random.random((7, 12)) < 0.8
    y = (random.normal(size=(7, 12, 3)) * kept[..., None]).astype(np.float32)
    found = history_of(torch.from_numpy(y), torch.from_numpy(kept), torch.Generator().manual_seed(0))
    lags, lengths = looked_at(12)
    variance = np.square(y).sum() / kept.sum()
    for lag, value in zip(lags, found.autocorrelation, strict=True):
        products = [y[r, t] @ y[r, t - lag] for r in range(7) for t in range(lag, 12) if kept[r, t] and kept[r, t - lag]]
        assert value == pytest.approx(np.mean(products) / variance, abs=1e-5)
    for length, value in zip(lengths, found.rank, strict=True):
        ratios = []
        for row in range(7):
            own = y[row][kept[row]][:length].astype(np.float64)
            if len(own) == length:
                values = np.linalg.eigvalsh(own @ own.T)
                ratios.append(values.sum() ** 2 / np.square(values).sum())
        assert np.isnan(value) if not ratios else value == pytest.approx(np.mean(ratios), rel=1e-4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: str(tiny_model(family, root / family)) for family in ("llama", "bert")}


def scanned(model: str, text: Any = MANY, **policy: Any) -> Scan:
    return scan(model, text=text, context_length=24, sequences=30, **policy)


def test_a_scan_that_asks_for_it_has_it_and_is_else_the_same(folders: dict[str, str]) -> None:
    plain, asked = scanned(folders["llama"]), scanned(folders["llama"], beforehand={})
    assert asked.beforehand is not None
    clocks = {name: replace(clock, structure=None, structure_floor=None) for name, clock in asked.clocks.items()}
    assert replace(asked, beforehand=None, clocks=clocks) == plain
    assert all(len(clock.structure or []) == len(clock.structure_floor or []) == len(asked.layers) for clock in asked.clocks.values())
    assert "beforehand" not in plain.to_json()
    assert "beforehand" not in ScanPolicy(model="m").model_dump(mode="json")
    assert Scan.from_json(json.loads(json.dumps(asked.to_json(), allow_nan=False))) == asked
    assert asked.beforehand.alone[TOKEN].share[0] == pytest.approx(1, abs=0.01)  # the embedding of a model with rotary positions
    assert asked.beforehand == scanned(folders["llama"], beforehand={}).beforehand
    assert asked.beforehand.fitted_documents + asked.beforehand.held_out_documents == 30


def test_a_damaged_part_is_refused(folders: dict[str, str]) -> None:
    content = scanned(folders["llama"]).to_json()
    for part, sentence in (({"format": "other"}, "not in format"), ({"format": "temporallens.beforehand/1"}, "is damaged")):
        with pytest.raises(TemporalLensError, match=sentence):
            Scan.from_json(content | {"beforehand": part})


def test_an_encoder_is_said_to_see_both_sides(folders: dict[str, str]) -> None:
    found = scanned(folders["bert"], beforehand={})
    assert found.beforehand is not None
    assert "sees both sides" in in_words("m", found.layers, found.beforehand)


def test_the_sentence_says_what_is_known_and_what_is_not() -> None:
    layers = ["embed", *map(str, range(7))]
    said = in_words("m", layers, make_beforehand()).replace("\u00a0", " ")
    assert said.startswith("m, after layer 3: token 60 %, previous token 4.0 % more, position 1.0 %, sentence clock 1.0 %")
    assert "the true past at most 3.0 % more" in said
    nothing = make_beforehand(token=0.002)
    assert "token nothing" in in_words("m", layers, nothing)


def test_a_text_of_one_document_is_scanned_without_it(folders: dict[str, str]) -> None:
    assert scanned(folders["llama"], [TEXTS[0] * 6], beforehand={}).beforehand is None
