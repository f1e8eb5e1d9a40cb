"""What the report shows of every feature, against firings counted by hand and worlds without position."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.positional import Positional
from temporallens.evaluation import features
from temporallens.evaluation.bins import populated_bins
from temporallens.evaluation.features import FeaturesPolicy, measure_features, rounded
from temporallens.evaluation.heldout import find_firings


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Axis 0 is high at position 2 only, axis 1 anywhere; tokens are numbered row by row."""
    generator = torch.Generator().manual_seed(0)
    x = 0.1 * torch.rand(300, 8, 4, generator=generator)
    x[:, :, 2] += 0.8  # so that no row is a sink
    x[:, 2, 0] += 2
    x[:, :, 1] += 2 * (torch.rand(300, 8, generator=generator) < 0.3)
    tokens = np.arange(2400).reshape(300, 8)
    return ActivationStore.from_arrays(x.numpy(), out=tmp_path_factory.mktemp("store") / "store", tokens=tokens)


@pytest.fixture
def dictionary():
    arm = Positional(features=4, k=1, groups=2)
    dictionary = arm.make(4, 8, torch.Generator())
    dictionary.encoder.data, dictionary.decoder.data = torch.eye(4), torch.eye(4)
    dictionary.threshold.fill_(1.0)
    dictionary.mask.logits.data[0, 3] = -1.0
    dictionary.restore_record({"mask_hard": True})
    return dictionary


def test_rates_masks_and_contexts_are_those_of_the_firings(store, dictionary):
    found = measure_features(dictionary, store, np.arange(300), FeaturesPolicy(contexts=2))
    firings = find_firings(dictionary, store, np.arange(300))
    assert found.first == found.last == [1, 2, 3, 4, 5, 6, 7]
    assert found.firings == firings.counts.tolist()
    assert found.rate[0] == [0, 1, 0, 0, 0, 0, 0]
    assert found.tokens == sum(found.bin_tokens) == 2100
    assert found.open is not None
    assert found.open[0] == [1] * 7
    assert min(found.open[3]) == 0 < max(found.open[3])
    assert len(found.contexts[0]) == 2
    for context in found.contexts[0]:
        assert context.position == 2
        assert context.tokens[context.place] % 8 == 2
    assert found.contexts[2] == []
    assert found.words == {}  # nothing is known of these tokens


def test_the_band_of_chance_holds_what_position_does_not_shape_and_not_what_it_does(store, dictionary):
    found = measure_features(dictionary, store, np.arange(300), FeaturesPolicy(draws=200))
    rate, low, high = np.array(found.rate), np.array(found.low), np.array(found.high)
    assert rate[0, 1] > high[0, 1] + 0.5
    assert (rate[0, 2:] < low[0, 2:]).all()
    assert ((low[1] <= rate[1]) & (rate[1] <= high[1])).sum() >= 5


def test_the_band_is_the_same_however_few_features_are_drawn_at_a_time(store, dictionary, monkeypatch):
    whole = measure_features(dictionary, store, np.arange(300), FeaturesPolicy(draws=40))
    monkeypatch.setattr(features, "CELLS", 3 * 40 * 7)
    parts = measure_features(dictionary, store, np.arange(300), FeaturesPolicy(draws=40))
    assert parts == whole


@given(count=st.integers(1, 400), most=st.integers(2, 40), start=st.integers(0, 5))
@settings(max_examples=200)
def test_bins_cover_every_position_once(count, most, start):
    positions = np.arange(start, start + count)
    first, last = populated_bins(positions, most)
    assert first[0] == start
    assert last[-1] == positions[-1]
    assert (first[1:] == last[:-1] + 1).all()
    assert (first <= last).all()
    assert len(first) <= max(most, 1) or len(first) == count <= 2 * most


def test_numbers_keep_three_digits():
    assert rounded(np.array([0.0, 1.0, 0.123456, 123456.0, -0.00098765])) == [0.0, 1.0, 0.123, 123000.0, -0.000988]
