"""Bins that widen with the logarithm: every kind covers its positions once, in order."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from temporallens.evaluation.bins import drawn_starts, growing_starts, log_spaced, octaves, profile_starts, sink_starts


def test_octaves_double_from_position_one_on() -> None:
    assert octaves(9) == [(1, 2), (2, 4), (4, 8), (8, 9)]
    assert octaves(9, 0) == [(0, 1), *octaves(9)]
    assert octaves(0) == octaves(1) == [] and octaves(1, 0) == [(0, 1)]


@given(positions=st.integers(2, 5000), bins=st.integers(2, 128))
def test_starts_ascend_and_stay_among_the_positions(positions: int, bins: int) -> None:
    for starts, first, last in (
        (drawn_starts(positions, bins), 0, positions - 1),
        (sink_starts(positions, bins), 0, positions - 1),
        (profile_starts(3, positions + 3, bins), 3, positions + 3),
        (growing_starts(positions, bins, 1.25), 0, positions),
    ):
        assert starts[0] == first and starts[-1] <= last
        assert (np.diff(starts) > 0).all()
    assert len(drawn_starts(positions, bins)) <= 2 * bins


@pytest.mark.parametrize(("count", "limit"), [(0, 5), (1, 5), (4, 5), (300, 16)])
def test_a_few_positions_are_chosen_the_first_and_the_last_among_them(count: int, limit: int) -> None:
    positions = np.arange(7, 7 + count)
    chosen = log_spaced(positions, limit).tolist()
    assert len(chosen) <= limit and set(chosen) <= set(positions.tolist())
    assert not count or (chosen[0], chosen[-1]) == (7, 6 + count)
