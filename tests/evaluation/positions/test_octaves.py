"""FVE by octave: a dictionary that is blind at some positions, and one that is not."""

from pathlib import Path

import numpy as np
import pytest
import torch

import temporallens as tl
from temporallens.dictionaries.arms.standard import Standard
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.positions.octaves import SECTION, OctavesPolicy, measure_octaves, tables
from temporallens.serial import as_json

SEQUENCES, LENGTH, WIDTH = 60, 32, 4
POLICY = OctavesPolicy(draws=60, resamples=40)


def half_blind() -> Dictionary:
    """Gives back the first two coordinates."""
    dictionary = Standard(features=4).make(WIDTH, LENGTH, torch.Generator())
    seen = torch.eye(WIDTH)[:2]
    axes = torch.cat([seen, -seen])
    dictionary.load_state_dict({**dictionary.state_dict(), "encoder": axes, "decoder": axes.clone()})
    return dictionary


def store_of(folder: Path, unseen: np.ndarray) -> tl.ActivationStore:
    """Noise of deviation 1 in what is seen, and so much of it in the rest, by position."""
    x = np.random.default_rng(0).standard_normal((SEQUENCES, LENGTH, WIDTH)).astype(np.float32)
    x[..., 2:] *= unseen[None, :, None]
    return tl.ActivationStore.from_arrays(x, folder, norm_multiple=None)


def test_positions_that_are_explained_worse_are_found(tmp_path: Path) -> None:
    unseen = np.where(np.arange(LENGTH) < 8, 1.0, 0.1)
    store = store_of(tmp_path / "store", unseen)
    found = measure_octaves(half_blind(), store, np.arange(SEQUENCES), POLICY, tmp_path / "cache")
    assert [(octave.first, octave.last) for octave in found.octaves] == [(1, 1), (2, 3), (4, 7), (8, 15), (16, 31)]
    assert found.octaves[found.worst].last < 8 <= found.octaves[found.best].first
    assert found.octaves[2].fve.value == pytest.approx(0.5, abs=0.05)
    assert found.octaves[4].fve.value == pytest.approx(1 - 0.01 / 1.01, abs=0.01)
    assert found.gap.low is not None and found.gap.low > 0.3 > found.chance_gap > 0
    assert found.p == pytest.approx(1 / 61)
    rows = store.read(np.arange(SEQUENCES))
    own = (rows.position >= 4) & (rows.position < 8)
    kept = rows.x[rows.excluded == 0].double()
    square = (rows.x[own].double() - kept.mean(0)).square().sum()
    assert found.octaves[2].fve.value == pytest.approx(1 - float(rows.x[own, 2:].double().square().sum() / square))
    assert found.octaves[2].fve.n == int(own.sum())


def test_where_positions_mean_nothing_the_gap_is_that_of_chance(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", np.ones(LENGTH))
    found = measure_octaves(half_blind(), store, np.arange(SEQUENCES), POLICY)
    assert found.p > 0.05
    assert found.gap.value == pytest.approx(found.chance_gap, abs=0.1)
    assert SECTION.read(as_json(found)) == found
    (table,) = tables({"arm": found})
    assert {len(row.cells) for row in table.rows} == {len(table.columns) - 1}


def test_two_octaves_need_tokens(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", np.ones(LENGTH))
    with pytest.raises(TemporalLensError, match=r"1 octaves of positions .* have 700 held-out tokens, and two are needed"):
        measure_octaves(half_blind(), store, np.arange(SEQUENCES), OctavesPolicy(least_tokens=700))
