"""What rests on BOS: rows opened in three ways, against plain passes and dictionaries of which it is known what they follow."""

from pathlib import Path

import numpy as np
import pytest
import torch

from headed_models import DOCUMENTS, headed_model, identity, random_dictionary, store_of
from temporallens.activations.store import ActivationStore
from temporallens.errors import TemporalLensError
from temporallens.evaluation.model.passes import open_model
from temporallens.evaluation.positions import bos
from temporallens.evaluation.positions.bos import SECTION, BosMeasures, BosPolicy, measure_bos
from temporallens.serial import as_json

POLICY = BosPolicy(rows=12, tokens=10, least=2, resamples=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bos")
    headed_model("llama", folder / "model")
    return folder


@pytest.fixture(scope="module")
def store(folder: Path) -> ActivationStore:
    return store_of(folder / "model", 1, folder / "store")


def entries(store: ActivationStore) -> np.ndarray:
    return np.arange(store.sequences)


def measure(store: ActivationStore, folder: Path, policy: BosPolicy = POLICY) -> BosMeasures:
    return measure_bos(random_dictionary(), store, entries(store), policy, folder / "cache")


def test_readings_are_what_the_model_makes_of_these_rows(store: ActivationStore, folder: Path) -> None:
    found = measure(store, folder)
    chosen = bos.choose_rows(store, entries(store), POLICY.rows, 6, "bos")
    opened = bos._opened_stores(store, entries(store), chosen, POLICY, folder / "cache")
    model = open_model(str(folder / "model"), 1)
    special = set(model.tokenizer.all_special_ids)
    for opening, read in opened.items():
        for number in range(len(chosen.length)):
            tokens = chosen.of(slice(number, number + 1)).token[: POLICY.tokens].clone()
            rows = read.read(np.flatnonzero(read.sequence_table.sequence == number))
            if opening == "none":
                tokens = tokens[1:]
            if opening == "other":
                assert int(rows.token[0]) not in special and int(tokens[0]) in special
                tokens[0] = rows.token[0]
            assert torch.equal(rows.token, tokens.to(rows.token.dtype))
            whole = model.residuals(tokens[None].long(), torch.ones(1, len(tokens), dtype=torch.bool), [1])[1][0]
            torch.testing.assert_close(rows.x, whole, rtol=1e-4, atol=1e-5)
    assert [reading.opening for reading in found.readings] == ["harvested", "none", "other"]
    assert [(place.first, place.last) for place in found.readings[0].places] == [(1, 1), (2, 2), (3, 3), (4, 9)]
    assert [place.fve.n for reading in found.readings for place in reading.places[:3]] == [12] * 9


def test_as_harvested_nothing_changes_and_summaries_are_read_back(store: ActivationStore, folder: Path) -> None:
    found = measure(store, folder)
    for estimate in (found.readings[0].there, found.readings[0].tokens):
        assert estimate.value == 1.0 or found.tied == 0
    assert SECTION.read(as_json(found)) == found
    places, tied = bos.tables({"a": found})
    assert len(places.rows) == len(tied.rows) == 3 and len(places.columns) == 1 + 4 * 3


def test_features_of_a_place_of_a_token_and_of_bos_are_told_apart(store: ActivationStore, folder: Path) -> None:
    chosen = bos.choose_rows(store, entries(store), POLICY.rows, 6, "bos")
    opened = bos._opened_stores(store, entries(store), chosen, POLICY, folder / "cache")
    read = {name: bos._read(identity(), one, folder / "cache") for name, one in opened.items()}
    own = read["harvested"].firings

    def rates(fires: dict[str, np.ndarray]) -> dict[str, tuple[float | None, float | None]]:
        """What a feature that fires on these rows of each reading keeps."""
        firings = {
            name: read[name].firings._replace(
                row=np.flatnonzero(rows).astype(np.int32),
                feature=np.zeros(int(rows.sum()), dtype=np.int32),
                value=np.ones(int(rows.sum()), dtype=np.float32),
            )
            for name, rows in fires.items()
        }
        numbers = np.unique(own.document)
        tied = np.arange(own.features) == 0
        kept = bos._Rates(firings["harvested"], tied, numbers, np.ones((1, len(numbers))))
        return {name: (kept.there(one).value, kept.on_tokens(one, int(name == "none")).value) for name, one in firings.items()}

    place = rates({name: one.firings.index == 2 for name, one in read.items()})
    assert place["harvested"] == (1.0, 1.0) and place["other"] == (1.0, 1.0)
    assert place["none"][0] == pytest.approx(1.0) and place["none"][1] == 1.0
    text = rates({name: one.firings.index == 3 - int(name == "none") for name, one in read.items()})
    assert text["none"] == (1.0, 1.0) and text["other"] == (1.0, 1.0)
    third = rates({name: one.firings.index == 3 for name, one in read.items()})
    assert third["none"] == (pytest.approx(1.0), 0.0)  # follows the place, not the text
    rests = rates({name: (one.firings.index == 2) & (name == "harvested") for name, one in read.items()})
    assert rests["none"] == (0.0, 0.0) and rests["other"] == (0.0, 0.0)


def test_stores_that_say_nothing_of_it_are_refused(store: ActivationStore, folder: Path) -> None:
    for settings, sentence in (
        ({"bos": False}, "do not open with BOS, so nothing rests on it: leave bos out"),
        ({"clock": "document"}, "bos goes by the index in the row"),
    ):
        other = store_of(folder / "model", 1, folder / str(settings), **settings)
        with pytest.raises(TemporalLensError, match=sentence):
            measure(other, folder)


def test_an_encoder_loses_its_first_token_and_keeps_its_last(tmp_path: Path) -> None:
    headed_model("bert", tmp_path / "model")
    store = store_of(tmp_path / "model", 1, tmp_path / "store")
    found = measure(store, tmp_path)
    assert found.readings[1].places[-1].last == found.readings[0].places[-1].last - 1
    assert found.rows == 12 and found.documents <= len(DOCUMENTS)
