"""Interventions: what is changed is what was asked for, controls are as large, and what is not changed costs nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from headed_models import headed_model, random_dictionary, store_of
from temporallens.activations.store import ActivationStore
from temporallens.errors import TemporalLensError
from temporallens.evaluation.heldout import find_firings
from temporallens.evaluation.interventions.changes import Doing, activity, feature_change, matched, mean_change, turned, within
from temporallens.evaluation.interventions.section import (
    LISTED,
    MATCHED,
    MEANS,
    SECTION,
    TURNED,
    InterventionMeasures,
    InterventionsPolicy,
    measure_interventions,
)
from temporallens.serial import as_json

LAYER = 1


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    root = tmp_path_factory.mktemp("interventions")
    return store_of(headed_model("llama", root / "llama"), LAYER, root / "store")


def measured(store: ActivationStore, **asked: object) -> InterventionMeasures:
    policy = InterventionsPolicy.model_validate({"rows": 8, "bins": 3, "draws": 2, "resamples": 30} | asked)
    model = str(store.manifest.description.source["model"])
    return measure_interventions(random_dictionary(store.width), model, LAYER, store, np.arange(store.sequences), policy)


def test_changes_are_what_they_are_called(store: ActivationStore) -> None:
    dictionary, rows = random_dictionary(store.width), store.read(np.arange(3))
    firings = find_firings(dictionary, store, np.arange(store.sequences))
    power, strength = activity(firings)
    features = np.argsort(-power)[:2]
    codes = dictionary.encode(rows.x.float(), rows.position.long())
    ablated = feature_change(dictionary, features, Doing("ablate", 1.0), strength)
    chosen = torch.from_numpy(features.copy())
    torch.testing.assert_close(ablated(rows), -codes[:, chosen] @ dictionary.decoder[chosen], atol=1e-4, rtol=1e-4)
    added = feature_change(dictionary, features, Doing("add", 2.0), strength)
    expected = torch.from_numpy(2 * strength[features]).float() @ dictionary.decoder[chosen]
    torch.testing.assert_close(added(rows), expected.expand(len(rows.x), -1), atol=1e-4, rtol=1e-4)
    clamped = feature_change(dictionary, features, Doing("clamp", 1.0), strength)
    torch.testing.assert_close(clamped(rows) - ablated(rows), 0.5 * added(rows), atol=1e-4, rtol=1e-4)
    other = turned(ablated, store.width, np.random.default_rng(0))
    torch.testing.assert_close(other(rows).norm(dim=1), ablated(rows).norm(dim=1), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(other(rows), ablated(rows), atol=1e-3)
    assert not within(ablated, 5, 6)(rows)[rows.index < 5].any()
    torch.testing.assert_close(within(ablated, 5, None)(rows)[rows.index >= 5], ablated(rows)[rows.index >= 5])


def test_without_its_means_position_says_nothing(store: ActivationStore) -> None:
    rows, moments = store.read(np.arange(store.sequences)), store.moments
    kept = rows.excluded == 0
    x, position = (rows.x.float() + mean_change(moments)(rows))[kept], rows.position[kept].long()
    for value in position.unique()[:3]:
        torch.testing.assert_close(x[position == value].mean(0), moments.pooled_mean().float(), atol=1e-2, rtol=1e-2)


def test_others_are_as_active_and_none_of_the_chosen() -> None:
    power = np.concatenate([np.geomspace(1e-4, 1, 200), [0.0, 0.0]])
    chosen = np.array([20, 100, 180])
    for seed in range(5):
        found = matched(chosen, power, np.random.default_rng(seed))
        assert len(found) == 3 and not set(found) & set(chosen)
        assert np.abs(np.log(np.sort(power[found])) - np.log(power[chosen])).max() < 0.3
    assert len(matched(np.arange(199), power, np.random.default_rng(0))) == 1


def test_every_change_stands_beside_its_controls(store: ActivationStore) -> None:
    found = measured(store, features=[0, 1, 2, 3])
    features, means = found.interventions
    assert (features.name, features.features, means.name, means.features) == (LISTED, 4, MEANS, None)
    assert found.tied is None and found.loss == "cross-entropy"
    for one in (features, means):
        assert set(one.controls) == {TURNED, MATCHED} and one.found.kl.value is not None and one.found.kl.value > 0
        assert one.controls[TURNED].removed == pytest.approx(one.found.removed, rel=1e-3)
        turned_kl = one.controls[TURNED].kl.value
        assert turned_kl is not None and one.beyond[TURNED].value == pytest.approx(one.found.kl.value - turned_kl, abs=1e-9)
        assert sum(part.found.n for part in one.bins) == found.tokens
    assert means.found.removed < 1
    assert SECTION.read(as_json(found)) == found


def test_what_is_not_changed_costs_nothing(store: ActivationStore) -> None:
    for one in measured(store, features=[0, 1], first=500).interventions:
        assert one.found.removed == 0 and one.found.kl.value == pytest.approx(0, abs=1e-9)


def test_features_tied_to_position_are_those_of_the_positions_section(store: ActivationStore) -> None:
    found = measured(store)
    assert found.tied is not None
    names = [one.name for one in found.interventions]
    assert names[-1] == MEANS and len(names) == 1 + (found.tied > 0)


def test_what_cannot_be_changed_is_refused(store: ActivationStore, tmp_path: Path) -> None:
    with pytest.raises(TemporalLensError, match="there is no feature 100000 to change: this dictionary has"):
        measured(store, features=[100_000])
    for wrong in ({"features": []}, {"features": [1, 1]}, {"first": 5, "last": 4}, {"how": "cut"}):
        with pytest.raises(ValidationError):
            InterventionsPolicy.model_validate(wrong)
