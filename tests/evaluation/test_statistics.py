"""Ranks and correlations are SciPy's; what threads compute comes in order."""

import numpy as np
import pytest
from scipy import stats

from temporallens.evaluation.statistics import correlation, ranks
from temporallens.evaluation.threads import TOGETHER, on_threads


@pytest.mark.parametrize("shape", [(40, 25), (3, 1), (0, 5), (4, 0)])
def test_ranks_are_those_of_scipy_ties_included(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    values = generator.integers(0, 8, shape) / 8
    assert np.array_equal(ranks(values), stats.rankdata(values, axis=1) if values.size else values)
    other = generator.random((40, 25))
    if shape == other.shape:
        expected = [stats.spearmanr(*pair).statistic for pair in zip(values, other, strict=True)]
        np.testing.assert_allclose(correlation(ranks(values), ranks(other)), expected, atol=1e-12)


def test_threads_give_results_in_order_and_take_few_items_at_a_time() -> None:
    taken = []

    def items() -> object:
        for number in range(1000):
            taken.append(number)
            yield number

    found = on_threads(lambda number: number**2, items())
    assert next(found) == 0 and len(taken) < 1000 and len(taken) % TOGETHER == 0
    assert list(found) == [number**2 for number in range(1, 1000)]


def test_a_mistake_on_a_thread_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(on_threads(lambda number: 1 // number, [1, 0]))
