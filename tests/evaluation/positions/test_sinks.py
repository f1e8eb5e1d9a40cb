"""Features that live on first tokens, on sinks, and early, on a store of which everything is known."""

from pathlib import Path

import numpy as np
import pytest
import torch

import temporallens as tl
from temporallens.dictionaries.arms.standard import Standard
from temporallens.dictionaries.base import Dictionary
from temporallens.evaluation.positions.sinks import SECTION, SinkMeasures, SinksPolicy, measure_sinks, tables
from temporallens.serial import as_json

SEQUENCES, LENGTH, WIDTH = 40, 32, 5
FIRST, SINK, EARLY, EVERYWHERE, SELDOM = range(WIDTH)


def axes() -> Dictionary:
    dictionary = Standard(features=WIDTH).make(WIDTH, LENGTH, torch.Generator())
    dictionary.load_state_dict({**dictionary.state_dict(), "encoder": torch.eye(WIDTH), "decoder": torch.eye(WIDTH)})
    return dictionary


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> SinkMeasures:
    """A sink at index 20 of every second sequence; one coordinate for each kind of place."""
    generator, index = np.random.default_rng(0), np.arange(LENGTH)
    x = np.zeros((SEQUENCES, LENGTH, WIDTH), dtype=np.float32)
    x[..., EVERYWHERE] = generator.random((SEQUENCES, LENGTH)) + 0.5
    x[..., FIRST] = index == 0
    x[:, 20, SINK] = np.where(np.arange(SEQUENCES) % 2, 0.0, 1000.0)
    x[..., EARLY] = (index >= 1) & (index <= 3)
    x[:, 5, EARLY] = 1.0
    x[:3, 9, SELDOM] = 1.0
    store = tl.ActivationStore.from_arrays(x, tmp_path_factory.mktemp("sinks") / "store", norm_multiple=10.0)
    return measure_sinks(axes(), store, np.arange(SEQUENCES), SinksPolicy())


def test_every_feature_is_found_where_it_lives(measured: SinkMeasures) -> None:
    assert measured.homes == [0, 1, 2, -1, -1]
    assert measured.asked == 4
    assert [place.where for place in measured.places] == ["first", "sink", "early"]
    assert [place.tokens for place in measured.places] == [SEQUENCES, SEQUENCES // 2, 3 * SEQUENCES]
    for place in measured.places:
        assert place.features == 1
        assert place.share.value == 0.25 and place.share.n == 4
        assert place.share.low == place.share.high == 0.25  # every document is like every other
        assert place.chance < 0.02
    assert measured.places[0].l0 == 2.0  # its own and the one that fires everywhere


def test_its_json_is_read_again_and_tabled(measured: SinkMeasures) -> None:
    content = as_json(measured)
    assert SECTION.read(content) == measured
    assert SECTION.read(SECTION.summary(content)).homes is None
    (table,) = tables({"arm": measured})
    assert {len(row.cells) for row in table.rows} == {len(table.columns) - 1}


def test_without_sinks_none_lives_there(tmp_path: Path) -> None:
    x = np.random.default_rng(1).random((SEQUENCES, LENGTH, WIDTH)).astype(np.float32)
    store = tl.ActivationStore.from_arrays(x, tmp_path / "store", norm_multiple=None)
    first, sink, early = measure_sinks(axes(), store, np.arange(SEQUENCES), SinksPolicy()).places
    assert (sink.tokens, sink.l0, sink.features) == (0, 0.0, 0)
    assert first.features == early.features == 0
