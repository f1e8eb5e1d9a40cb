"""Families against baselines by position: differences that were put in, at equal L0, with intervals that hold them."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from temporallens.evaluation.bins import bands
from temporallens.evaluation.comparison import RunScores, compare
from temporallens.evaluation.document_errors import DocumentErrors
from temporallens.evaluation.paired import Banded, Paired, banded, pair
from temporallens.evaluation.statistics import holm

DOCUMENTS, POSITIONS, SQUARE = 24, 16, 100.0
BANDS = [*bands(POSITIONS, first=1, named=False), (0, POSITIONS)]


def errors(unexplained: float, l0: float, more: np.ndarray, seed: int, spread: float = 0.05) -> DocumentErrors:
    """Documents that are harder or easier by chance, alike for all dictionaries of a seed but for a little noise of its own."""
    shared, own = np.random.default_rng(99), np.random.default_rng((seed, int(l0)))
    tokens = np.tile(np.append(0, np.ones(POSITIONS - 1)), (DOCUMENTS, 1)) * shared.integers(1, 5, (DOCUMENTS, 1))
    harder = 1 + 0.3 * shared.normal(size=(DOCUMENTS, 1)) + spread * own.normal(size=(DOCUMENTS, 1))
    error = SQUARE * tokens * (unexplained * harder + more)
    return DocumentErrors(tokens, error, SQUARE * tokens, SQUARE * tokens, l0 * tokens)


def run(
    family: str, l0: float, unexplained: float, seed: int, more: np.ndarray | float = 0.0, noise: int | None = None
) -> tuple[RunScores, Banded]:
    found = errors(unexplained, l0, np.zeros(POSITIONS) + more, seed if noise is None else noise)
    fve = float(found.fve()[0])
    return RunScores(family, family, seed, l0, fve, fve), banded(found, BANDS)


def paired(runs: list[tuple[RunScores, Banded]], levels: tuple[float, ...] = (16,)) -> list[Paired]:
    return pair(runs, compare([scores for scores, _ in runs], levels), BANDS)


def lost_at_one(by: float) -> np.ndarray:
    return np.where(np.arange(POSITIONS) == 1, by, 0.0)


def test_a_loss_at_the_first_position_is_seen_there_and_nowhere_else() -> None:
    runs = [run("batchtopk", 16, 0.2, seed) for seed in range(3)]
    runs += [run("positional", 16, 0.2, seed, lost_at_one(0.02)) for seed in range(3)]
    (found,) = paired(runs)
    assert (found.family, found.baseline, found.seeds, found.documents) == ("positional", "batchtopk", 3, DOCUMENTS)
    assert [(band.first, band.last) for band in found.bands] == [(1, 1), (2, 3), (4, 7), (8, 15)]
    first, *others = found.bands
    assert first.fve.value == pytest.approx(-0.02, abs=1e-9)
    assert all(band.fve.value == pytest.approx(0, abs=1e-9) for band in others)
    assert found.fve.value == pytest.approx(-0.02 / 15, abs=1e-9)
    assert sum(band.tokens for band in found.bands) == int(runs[0][1].tokens[:, -1].sum())


def test_errors_are_read_at_the_same_l0_between_levels() -> None:
    runs = [run("batchtopk", l0, unexplained, 0) for l0, unexplained in ((8, 0.4), (32, 0.2))]
    runs += [run("positional", l0, unexplained, 0) for l0, unexplained in ((8, 0.3), (32, 0.2))]
    (found,) = paired(runs)
    comparison = compare([scores for scores, _ in runs], (16,))
    (against,) = comparison.against
    assert found.fve.value == pytest.approx(against.fve.value) and 0.03 < against.fve.value < 0.07
    assert found.bands[0].l0.value == pytest.approx(0)
    assert found.verdict == "one seed" and found.p is None and found.fve.low is not None


def test_a_single_seed_has_the_interval_of_its_documents() -> None:
    runs = [run("batchtopk", 16, 0.2, 0), run("positional", 16, 0.2, 0, noise=7)]
    (found,) = paired(runs)
    ours, theirs = (errors for _, errors in reversed(runs))
    by_document = (theirs.error - ours.error)[:, -1]
    share = by_document.sum() / ours.square[:, -1].sum()
    error = np.sqrt(np.square(by_document - share * ours.square[:, -1]).sum()) / ours.square[:, -1].sum()
    assert found.fve.value == pytest.approx(share)
    half = stats.t.ppf(0.975, DOCUMENTS - 1) * error
    assert found.fve.high is not None and found.fve.high - share == pytest.approx(half, rel=0.1)


def test_seeds_and_documents_both_widen_the_interval_and_holm_judges() -> None:
    steady = [run("batchtopk", 16, 0.2, seed) for seed in range(4)] + [run("positional", 16, 0.19, seed) for seed in range(4)]
    shaken = [run("batchtopk", 16, 0.2, seed) for seed in range(4)]
    shaken += [run("positional", 16, 0.19 + 0.02 * (-1) ** seed, seed) for seed in range(4)]
    (sure,), (unsure,) = paired(steady), paired(shaken)
    assert sure.verdict == "above" and unsure.verdict == "no difference"
    assert sure.p is not None and sure.p == sure.p_holm and sure.p < 1e-3
    both = paired([*steady, *(run("topk", 16, 0.2, seed, 0.0) for seed in range(4))])
    assert {one.family for one in both} == {"positional", "topk"}
    assert [one.p_holm for one in both] == holm([one.p for one in both if one.p is not None])


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_what_its_definition_says(p: list[float]) -> None:
    corrected = holm(p)
    for level in (0.01, 0.05, 0.3):
        rejected = 0
        for rank, value in enumerate(sorted(p)):
            if value * (len(p) - rank) > level:
                break
            rejected += 1
        assert sum(value <= level for value in corrected) == rejected
