"""What a mask made after training closes for free: exact against decoding anew, and on features with known places."""

from pathlib import Path

import numpy as np
import pytest
import torch

import temporallens as tl
from temporallens.dictionaries.arms.pretrained import Pretrained
from temporallens.dictionaries.arms.standard import Standard
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.expectations.policy import ExpectationPolicy
from temporallens.dictionaries.masks import group_of_position
from temporallens.errors import TemporalLensError
from temporallens.evaluation.heldout import HeldOut
from temporallens.evaluation.positions import closing
from temporallens.evaluation.positions.closing import SECTION, ClosingPolicy, measure_closing, tables
from temporallens.serial import as_json

SEQUENCES, LENGTH, WIDTH, GROUPS = 80, 32, 6, 4


def random_dictionary(**settings: str) -> Dictionary:
    """Codes of a ReLU, decoder rows of any norm."""
    dictionary = Pretrained(path="x", features=12, subtracts_bias=True, **settings).make(WIDTH, LENGTH, torch.Generator())
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in dictionary.state_dict().items()
    }
    state["threshold"] = torch.full_like(state["threshold"], 0.5)
    dictionary.load_state_dict(state)
    return dictionary


@pytest.mark.parametrize("form", ["raw", "layer_norm", "unit_norm"])
def test_harm_is_that_of_decoding_what_is_left(form: str, tmp_path: Path) -> None:
    dictionary = random_dictionary(input=form)
    x = np.random.default_rng(0).standard_normal((SEQUENCES, LENGTH, WIDTH)).astype(np.float32)
    store = tl.ActivationStore.from_arrays(x, tmp_path / "store", norm_multiple=None)
    group_of = group_of_position(LENGTH, GROUPS).numpy()
    entries = closing._entries(dictionary, HeldOut(store, np.arange(SEQUENCES)), group_of)
    closed = np.random.default_rng(1).random((GROUPS, 12)) < 0.3
    own = np.arange(SEQUENCES) % 3 > 0
    found = closing._Closing(entries, dictionary, GROUPS, 0.0).done(closed, own, entries.group)
    rows = store.read(np.arange(SEQUENCES))
    kept = rows.excluded == 0
    with torch.no_grad():
        codes = dictionary.encode(rows.x[kept])
        shut = torch.from_numpy(closed)[torch.from_numpy(group_of)[rows.position[kept].long()]]
        errors = [(rows.x[kept] - dictionary.decode(kind)).square().sum(1).double() for kind in (codes, codes * ~shut)]
    document = rows.document[kept].numpy()
    harm = np.bincount(document, (errors[1] - errors[0]).numpy()) * own
    assert found.harm == pytest.approx(harm, rel=1e-4, abs=1e-2)
    assert found.codes.sum() == int(((codes > 0) & shut)[torch.from_numpy(own[document])].sum())


def axes(features: int) -> Dictionary:
    dictionary = Standard(features=features).make(features, LENGTH, torch.Generator())
    dictionary.load_state_dict({**dictionary.state_dict(), "encoder": torch.eye(features), "decoder": torch.eye(features)})
    return dictionary


def measured_on(rate: np.ndarray, folder: Path) -> closing.ClosingMeasures:
    """Features that fire at these rates `[F, P]`, each along its own coordinate."""
    x = (np.random.default_rng(0).random((SEQUENCES, LENGTH, len(rate))) < rate.T).astype(np.float32)
    store = tl.ActivationStore.from_arrays(x, folder, norm_multiple=None)
    return measure_closing(axes(len(rate)), store, np.arange(SEQUENCES), ClosingPolicy(groups=GROUPS))


def test_features_that_live_late_are_closed_early_at_no_cost(tmp_path: Path) -> None:
    late = np.where(np.arange(LENGTH) >= 16, 0.5, 0.0)
    found = measured_on(np.stack([late, np.full(LENGTH, 0.5)]), tmp_path / "store")
    silent = sum(1 for group in range(GROUPS) if not late[group_of_position(LENGTH, GROUPS).numpy() == group].any())
    assert silent >= 2 and found.groups == GROUPS and found.features == 2
    assert found.closed == silent / (2 * GROUPS)
    assert found.chance == 0.0
    assert found.fve_change.value == 0.0 and found.codes.value == 0.0


def test_what_is_seldom_is_closed_by_chance_too(tmp_path: Path) -> None:
    found = measured_on(np.stack([np.full(LENGTH, 0.003), np.full(LENGTH, 0.5)]), tmp_path / "store")
    assert found.closed > 0 and found.chance > 0
    assert abs(found.closed - found.chance) < 0.2
    assert found.fve_change.value is not None and found.fve_change.value <= 0
    assert SECTION.read(as_json(found)) == found
    (table,) = tables({"arm": found})
    assert len(table.rows[0].cells) == len(table.columns) - 1


def test_reconstructions_that_are_fed_back_are_refused(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 4, (SEQUENCES, LENGTH))
    x = np.random.default_rng(0).standard_normal((SEQUENCES, LENGTH, WIDTH)).astype(np.float32)
    store = tl.ActivationStore.from_arrays(x, tmp_path / "store", tokens=tokens, norm_multiple=None)
    arm = tl.BatchTopK(features=8, k=1, expectation=ExpectationPolicy(past=("previous",), embedding=False))
    trained = tl.train(store, arm, 5, tmp_path / "arm", batch_size=64).dictionary
    with pytest.raises(TemporalLensError, match="goes into later codes: leave closing out"):
        measure_closing(trained, store, np.arange(SEQUENCES), ClosingPolicy())
