"""Bits that are known beforehand, of firings whose dependence is known, against entropies worked out here."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.special import xlogy

from made_firings import POSITIONS, box, comb, firings_of, flat, sampled
from temporallens.activations.store import ActivationStore
from temporallens.errors import TemporalLensError
from temporallens.evaluation.bits import lengths
from temporallens.evaluation.bits.lengths import Known, Labelled, Persistent, folds_of, known_lengths, own_rates
from temporallens.evaluation.bits.section import (
    SECTION,
    BitsMeasures,
    BitsPolicy,
    Saved,
    bits_of,
    in_words,
    joined,
    measure_bits,
    of_others,
    rows_before,
    tables,
)
from temporallens.evaluation.firings import Firings
from temporallens.evaluation.heldout import find_firings
from temporallens.serial import as_json
from temporallens.training.finishing import TrainedArm

POLICY = BitsPolicy(draws=2, resamples=200)


def entropy(rate: np.ndarray | float) -> np.ndarray:
    """Bits of an event of this probability."""
    rate = np.asarray(rate)
    return -(xlogy(rate, rate) + xlogy(1 - rate, 1 - rate)) / math.log(2)


def measured(firings: Firings, training: np.ndarray | None = None) -> BitsMeasures:
    nothing = np.zeros(len(firings.position), dtype=bool)
    return bits_of(firings, {"document": firings.index}, nothing if training is None else training, POLICY)


def saved(found: BitsMeasures, name: str) -> Saved:
    one = found.saved[name]
    assert one is not None
    return one


def value(share: object) -> float:
    found = getattr(share, "value", None)
    assert isinstance(found, float)
    return found


def holds(share: object, true: float, more: float = 0.0) -> bool:
    low, high = getattr(share, "low", None), getattr(share, "high", None)
    assert isinstance(low, float) and isinstance(high, float)
    return low - more <= true <= high + more


# What theory says


@pytest.mark.parametrize("training", [False, True])
def test_position_saves_what_its_information_is_and_its_null_nothing(training: bool) -> None:
    rate = np.concatenate([np.stack([box(8, 15), box(1, 1, 0.9), comb(4, 1), box(20, 31, 0.05)]), flat(20)])
    firings = sampled(rate, 2400)
    found = measured(firings, firings.document % 2 == 0 if training else None)
    own = rate[:, 1:]
    plain, known = entropy(own.mean(1)).sum(), entropy(own).mean(1).sum()
    assert value(found.plain) == pytest.approx(plain, rel=0.02)
    position = saved(found, "position")
    assert value(position.bits) == pytest.approx(plain - known, rel=0.03)
    assert value(position.share) == pytest.approx(1 - known / plain, rel=0.03)
    assert abs(value(position.null)) < 1e-3 and holds(position.null, 0, 2e-4)
    assert value(position.over_null) == pytest.approx(value(position.share) - value(position.null))
    assert (found.counted_tokens > 0) == training
    assert found.tokens + found.counted_tokens == len(firings.position)


def test_what_depends_on_nothing_is_not_known_from_anything() -> None:
    found = measured(sampled(flat(30), 400))
    for name in ("position", "own_past"):
        share = saved(found, name).share
        assert abs(value(share)) < 1e-3 and holds(share, 0, 2e-4)


def chains(stay: float, begin: float, sequences: int = 1200, features: int = 12) -> Firings:
    """Every feature is a chain of two states, drawn from its stationary distribution at first."""
    generator = np.random.default_rng(0)
    fires = np.empty((sequences, POSITIONS - 1, features), dtype=bool)
    fires[:, 0] = generator.random((sequences, features)) < begin / (1 - stay + begin)
    for place in range(1, POSITIONS - 1):
        fires[:, place] = generator.random((sequences, features)) < np.where(fires[:, place - 1], stay, begin)
    return firings_of(fires, generator)


def test_the_own_past_saves_what_a_chain_of_two_states_has_and_that_of_others_nothing() -> None:
    stay, begin = 0.6, 0.05
    share = begin / (1 - stay + begin)
    chain = share * entropy(stay) + (1 - share) * entropy(begin)
    having_one = (POSITIONS - 2) / (POSITIONS - 1)  # the first row of a sequence has no past
    found = measured(chains(stay, begin))
    past = saved(found, "own_past")
    assert value(past.share) == pytest.approx(having_one * (1 - chain / entropy(share)), rel=0.03)
    assert abs(value(past.null)) < 1e-3 and holds(past.null, 0, 2e-4)
    assert abs(value(saved(found, "position").share)) < 1e-3


def test_detectors_of_tokens_are_known_from_the_token_and_from_what_always_stands_before_it() -> None:
    generator = np.random.default_rng(0)
    apart, sequences, vocabulary = POSITIONS - 1, 400, 10
    drawn = generator.integers(0, vocabulary, (sequences, apart))
    counting = (generator.integers(0, vocabulary, (sequences, 1)) + np.arange(apart)) % vocabulary
    for tokens, before in ((drawn, 0.0), (counting, (apart - 1) / apart)):
        firings = firings_of(tokens[:, :, None] == np.arange(vocabulary), generator)
        found = measured(firings._replace(token=(7 * tokens).reshape(-1).astype(np.int32)))
        assert value(found.plain) == pytest.approx(vocabulary * entropy(1 / vocabulary), rel=0.02)
        assert value(saved(found, "token").share) > 0.99
        assert value(saved(found, "previous_token").share) == pytest.approx(before, abs=0.01)
        for name in ("token", "previous_token"):
            assert abs(value(saved(found, name).null)) < 1e-3


# How it is counted


def dense(fires: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Bits of each row `[N, F]` at these rates."""
    return -np.log2(np.where(fires, rate, 1 - rate)).sum(1)


def dense_labelled(fires: np.ndarray, label: np.ndarray, fitted: np.ndarray, rate: np.ndarray, strength: float) -> np.ndarray:
    alike = (fitted & (label == one) for one in label)
    return dense(fires, np.stack([(fires[rows].sum(0) + strength * rate) / (rows.sum() + strength) for rows in alike]))


def dense_persistent(fires: np.ndarray, before: np.ndarray, fitted: np.ndarray, rate: np.ndarray, strength: float) -> np.ndarray:
    past, counted = fires[before], (fitted & (before >= 0))[:, None]
    alike = (counted & (past == state) for state in (True, False))
    return dense(fires, np.where(past, *(((fires & rows).sum(0) + strength * rate) / (rows.sum(0) + strength) for rows in alike)))


@pytest.mark.parametrize("strength", [0.25, 16.0])
@pytest.mark.parametrize("which", ["label", "past"])
def test_lengths_are_those_of_a_dense_table(monkeypatch: pytest.MonkeyPatch, which: str, strength: float) -> None:
    firings = sampled(np.concatenate([np.stack([box(8, 15), box(1, 1, 0.9)]), flat(5, 0.2)]), 20)
    fires = np.zeros((len(firings.position), firings.features), dtype=bool)
    fires[firings.row, firings.feature] = True
    label = np.where(firings.index % 7 == 0, -1, 3 * (firings.index % 5))
    fitted, rate = firings.document % 3 != 0, np.linspace(0.05, 0.4, firings.features)
    known: Known = Labelled(firings, label) if which == "label" else Persistent(firings, rows_before(firings))
    by_hand: Callable[..., np.ndarray] = dense_labelled if which == "label" else dense_persistent
    expected = by_hand(fires, label if which == "label" else rows_before(firings), fitted, rate, strength)
    for cells in (lengths.CELLS, 3 * firings.features):
        monkeypatch.setattr(lengths, "CELLS", cells)
        first, found = known.lengths(fitted, rate, [1.0, strength])
        np.testing.assert_allclose(found[known.labelled], expected[known.labelled], rtol=1e-12)
        assert not np.allclose(first[known.labelled], found[known.labelled])


@pytest.mark.parametrize("training", [False, True])
def test_what_is_scored_is_never_counted(training: bool) -> None:
    firings = sampled(flat(10), 40)
    counted = (firings.document >= 5) & training
    folds = folds_of(firings.document, counted, 5, np.random.default_rng(0))
    assert np.array_equal(np.sum([fold.scored for fold in folds], 0), ~counted)
    for number, fold in enumerate(folds):
        for one in (fold.scored, fold.tried, fold.rest):
            assert one.any() and not (set(firings.document[one]) & set(firings.document[~one]))
        assert not (fold.scored & fold.fitted).any() and np.array_equal(fold.tried ^ fold.rest, fold.fitted)
        kept = ~fold.scored[firings.row]
        without = firings._replace(row=firings.row[kept], feature=firings.feature[kept], value=firings.value[kept])
        rates, again = own_rates(firings, folds)[0][number], own_rates(without, folds)[0][number]
        assert np.array_equal(rates.fitted, again.fitted) and np.array_equal(rates.rest, again.rest)


def test_where_no_strength_can_be_chosen_rates_stay_as_they_are() -> None:
    firings = sampled(flat(10), 40)
    (fold,) = folds_of(firings.document, firings.document >= 5, 5, np.random.default_rng(0))
    rates, plain = own_rates(firings, [fold])
    label = np.where(fold.tried, -1, np.arange(len(firings.position)) % 50)
    bits = known_lengths([Labelled(firings, label)], [fold], rates, plain)
    np.testing.assert_allclose(bits[fold.scored], plain[fold.scored], rtol=1e-3)


def test_a_row_follows_the_one_right_before_it_in_its_own_sequence() -> None:
    firings = sampled(flat(2), 2).of_rows(np.delete(np.arange(62), 4))  # index 5 of the first sequence is left out
    before = rows_before(firings)
    assert np.flatnonzero(before < 0).tolist() == [0, 4, 30]
    assert (before[before >= 0] == np.flatnonzero(before >= 0) - 1).all()


def test_the_past_of_others_is_of_another_sequence_at_the_same_index_and_taken_once() -> None:
    firings = sampled(flat(2), 6)
    firings = firings.of_rows(np.flatnonzero((firings.index < 30) | (firings.sequence == 0)))
    before = rows_before(firings)
    taken = of_others(before, firings.index, np.random.default_rng(0))
    having = np.flatnonzero(taken >= 0)
    assert (taken[firings.index >= 30] == -1).all()  # one sequence alone gets so far
    assert np.array_equal(having, np.flatnonzero((before >= 0) & (firings.index < 30)))
    assert len(set(taken[having])) == len(having)
    assert (firings.index[taken[having]] == firings.index[having] - 1).all()
    assert (firings.sequence[taken[having]] != firings.sequence[having]).all()


def test_a_clock_that_tells_the_same_is_left_out() -> None:
    firings = sampled(flat(3), 20)
    nothing = np.zeros(len(firings.position), dtype=bool)
    assert set(measured(firings).saved) == {"position", "token", "previous_token", "own_past"}
    other = firings._replace(position=firings.position % 4)
    assert list(bits_of(other, {"document": firings.index + 31 * (firings.sequence % 4)}, nothing, POLICY).saved)[:3] == [
        "position",
        "index",
        "document",
    ]


def test_too_few_documents_are_refused() -> None:
    firings = sampled(flat(3), 12)
    one = firings.of_rows(np.flatnonzero(firings.document < 2))
    with pytest.raises(TemporalLensError, match="bits counts on 3 held-out documents or more and there are 2"):
        measured(one)
    with pytest.raises(TemporalLensError, match="bits counts on 2 training documents or more and there are 1"):
        measured(firings, firings.document == 0)


# Dictionaries


def test_firings_of_two_sets_of_sequences_are_those_of_both(store: ActivationStore, trained: dict[str, TrainedArm]) -> None:
    dictionary = trained["batchtopk"].dictionary
    whole = find_firings(dictionary, store, np.arange(60))
    both = joined(*(find_firings(dictionary, store, entries) for entries in (np.arange(20), np.arange(20, 60))))
    for name in ("row", "feature", "value", "position", "sequence", "document"):
        assert np.array_equal(getattr(both, name), getattr(whole, name))
    assert np.array_equal(np.diff(both.stretch) != 0, np.diff(whole.stretch) != 0)


@pytest.mark.parametrize("tokens", [0, 1000, 10**9])
def test_a_store_without_tokens_knows_position_and_past(store: ActivationStore, trained: dict[str, TrainedArm], tokens: int) -> None:
    held_out = store.split(0.25, 0).held_out
    found = measure_bits(trained["batchtopk"].dictionary, store, held_out, BitsPolicy(training_tokens=tokens, resamples=50))
    assert found.saved["token"] is None and found.saved["previous_token"] is None
    above = saved(found, "position").over_null.low
    assert above is not None and above > 0.005  # every other true feature lives in one half
    assert value(found.plain) > 5
    assert found.documents == 6 and found.tokens == 60 * 15
    assert found.counted_tokens == {0: 0, 1000: 63 * 15, 10**9: 180 * 15}[tokens]
    (table,) = tables({"a, seed 0": found})
    assert [row.head for row in table.rows] == [f"a, seed 0: {name}" for name in ("position", "token", "previous token", "own past")]
    assert table.rows[1].cells[1:] == ["–"] * 4
    assert "token" not in table.note.partition(". The null takes")[0].removeprefix("Bits per held-out token")


def test_measurements_are_read_as_they_were_written(store: ActivationStore, trained: dict[str, TrainedArm], tmp_path: Path) -> None:
    held_out = store.split(0.25, 0).held_out
    first, second = (measure_bits(trained["positional"].dictionary, store, held_out, POLICY, tmp_path) for _ in range(2))
    assert first == second
    assert SECTION.read(as_json(first)) == first


def test_words_give_what_is_saved_and_the_range_over_dictionaries() -> None:
    both = [measured(sampled(np.stack([box(8, 15, level), box(1, 9, level)]), 200)) for level in (0.3, 0.6)]
    shares = [f"{100 * value(saved(found, 'position').share):.0f}" for found in both]
    assert in_words(both[:1]).replace("\u00a0", " ").startswith(f"position {shares[0]} %")
    assert in_words(both).replace("\u00a0", " ").startswith(f"position {shares[0]} to {shares[1]} %")
    assert "token nothing" in in_words([measured(sampled(flat(5), 100))])
