"""Firings and profiles against the dense codes that they stand for."""

import numpy as np
import pytest
import torch

from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.topk import TopK
from temporallens.errors import TemporalLensError
from temporallens.evaluation.firings import profile
from temporallens.evaluation.heldout import find_firings


@pytest.fixture
def store(tmp_path):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 9, (40, 1), generator=generator)
    x = torch.randn(40, 8, 6, generator=generator)
    mask = torch.arange(8)[None] < lengths
    return ActivationStore.from_arrays(x.numpy(), out=tmp_path / "store", mask=mask.numpy(), documents=np.arange(40) // 2)


@pytest.fixture
def dictionary():
    return TopK(features=16, k=3).make(6, 8, torch.Generator().manual_seed(1))


def test_firings_are_the_codes_of_kept_rows(store, dictionary):
    entries = np.array([3, 4, 11, 30])
    firings = find_firings(dictionary, store, entries)
    rows = store.read(entries)
    kept = rows.excluded == 0
    codes = dictionary.encode(rows.x[kept], rows.position[kept]).detach().numpy()
    dense = np.zeros_like(codes)
    dense[firings.row, firings.feature] = firings.value
    np.testing.assert_array_equal(dense, codes)
    assert (firings.position > 0).all()  # position 0 is left out
    np.testing.assert_array_equal(firings.document, rows.document[kept])
    np.testing.assert_array_equal(np.unique(firings.sequence), entries)
    assert (firings.value > 0).all()


def test_profile_is_rate_and_mean_by_position(store, dictionary):
    firings = find_firings(dictionary, store, np.arange(40))
    found = profile(firings)
    dense = np.zeros((len(firings.position), 16))
    dense[firings.row, firings.feature] = firings.value
    for position in range(1, 8):
        here = dense[firings.position == position]
        np.testing.assert_allclose(found.rate[position], (here > 0).mean(0))
        np.testing.assert_allclose(found.mean[position], here.mean(0))
        assert found.count[position] == len(here)
    np.testing.assert_array_equal(found.firings, (dense > 0).sum(0))
    assert found.count[0] == 0 and not found.rate[0].any()


def test_rows_can_be_divided(store, dictionary):
    firings = find_firings(dictionary, store, np.arange(40))
    first = np.flatnonzero(firings.document % 2 == 0)
    second = np.flatnonzero(firings.document % 2 == 1)
    halves = firings.of_rows(first), firings.of_rows(second)
    np.testing.assert_array_equal(halves[0].counts + halves[1].counts, firings.counts)
    np.testing.assert_array_equal(np.unique(halves[0].document), np.unique(firings.document[first]))
    np.testing.assert_array_equal(profile(halves[0]).count + profile(halves[1]).count, profile(firings).count)


def test_a_dictionary_that_never_fires_is_refused(store, dictionary):
    with torch.no_grad():
        dictionary.encoder.zero_()
        dictionary.encoder_bias.fill_(-1)
    with pytest.raises(TemporalLensError, match="no feature fires"):
        find_firings(dictionary, store, np.arange(4))
