"""Length: features that fire otherwise beyond the trained context, and the loss that reconstructions recover there."""

from pathlib import Path

import numpy as np
import pytest
import torch

from headed_models import identity, random_dictionary, with_text
from temporallens.activations.language.harvest import harvest
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.positions.length import SECTION, LengthMeasures, LengthPolicy, in_words, measure_length, tables
from temporallens.evaluation.statistics import Estimate
from temporallens.serial import as_json

TRAINED, LONGER = 8, 32
POLICY = LengthPolicy(contexts=(16, LONGER), documents=16, rows_per_document=4, spliced=6, least=4, resamples=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_text(tmp_path_factory.mktemp("length"))


@pytest.fixture(scope="module")
def store(folder: Path) -> ActivationStore:
    text, shared = folder / "text.jsonl", {"dtype": "float32", "norm_multiple": None, "batch_size": 8}
    return harvest(str(folder / "model"), 1, text, out=folder / "store", context_length=TRAINED, **shared)


def measured(folder: Path, store: ActivationStore, dictionary: Dictionary) -> LengthMeasures:
    return measure_length(dictionary, str(folder / "model"), 1, store, np.arange(store.sequences), POLICY, folder / "cache")


def test_what_a_perfect_dictionary_gives_back_loses_nothing_at_any_length(folder: Path, store: ActivationStore) -> None:
    found = measured(folder, store, identity(store.width))
    assert [(run.first, run.last, run.beyond) for run in found.recovered][-2:] == [(8, 15, True), (16, 31, True)]
    runs = (*found.recovered, found.recovered_as_trained)
    shares = [one.value for run in runs for one in (run.recovered_zero, run.recovered_mean) if one.value is not None]
    assert shares and shares == pytest.approx([1.0] * len(shares), abs=1e-3)  # ablations that cost this random model nothing have none
    assert found.recovered_as_trained.first == 4 and found.drift.trained == TRAINED
    assert SECTION.read(as_json(found)) == found
    lengths, features = tables({"perfect": found})
    assert all(len(row.cells) == len(lengths.columns) - 1 for row in lengths.rows)
    assert all(len(row.cells) == len(features.columns) - 1 for row in features.rows)


def test_features_that_stop_or_begin_beyond_are_found(folder: Path, store: ActivationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary = random_dictionary(store.width, 3)

    def codes(x: torch.Tensor, positions: torch.Tensor | None, tokens: object = None) -> torch.Tensor:
        assert positions is not None
        beyond = (positions.reshape(-1) >= TRAINED).float()
        made = torch.stack([1 - beyond, beyond, torch.ones_like(beyond)], 1)
        return made.reshape(*x.shape[:-1], 3)

    monkeypatch.setattr(dictionary, "encode", codes)
    found = measured(folder, store, dictionary).features
    assert (found.asked, found.more, found.less, found.silent) == (3, 1, 1, 1)
    assert found.by_chance <= 1


def test_the_sentence_says_what_the_interval_does() -> None:
    drift = measured_drift(-0.004, -0.005, -0.003)
    assert "Beyond position 7 it explains 0.0040 less (0.0030 to 0.0050 FVE)" in in_words("it", drift)
    assert "as much as before" in in_words("it", measured_drift(0.001, -0.002, 0.003))


def measured_drift(value: float, low: float, high: float) -> LengthMeasures:
    from temporallens.evaluation.positions.drift import DriftMeasures, Octave
    from temporallens.evaluation.positions.length import FeaturesBeyond, RecoveredRun

    one = Estimate(0.5, 0.4, 0.6, 10)
    octave = Octave(4, 7, False, one, one)
    drift = DriftMeasures(8, 32, 4, [octave], octave, Estimate(value, low, high, 10), one)
    run = RecoveredRun(4, 7, False, one, one)
    return LengthMeasures(drift, FeaturesBeyond(5, 1, 2, 0, 0, 0), [run], run, "cross-entropy")


@pytest.mark.parametrize("contexts", [(), (3,), (16, 8), (8, 8)])
def test_contexts_ascend(contexts: tuple[int, ...]) -> None:
    with pytest.raises(TemporalLensError, match="contexts"):
        LengthPolicy(contexts=contexts)
