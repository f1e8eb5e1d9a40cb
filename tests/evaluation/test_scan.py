"""The scan finds the variance that clocks explain: equal to its definition, and silent where there is nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from temporallens.activations.language.models import LanguageModel
from temporallens.errors import TemporalLensError
from temporallens.evaluation.bins import growing_starts
from temporallens.evaluation.scan import BIN_GROWTH, Scan, explained, scan, shuffled
from tiny_models import LAYERS, TEXTS, tiny_model

MANY = [f"{text} Number {number}. {text}" for number in range(8) for text in TEXTS]
SETTINGS = {"context_length": 32, "sequences": 40, "dtype": "float32"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: str(tiny_model(family, root / family)) for family in ("llama", "gpt2", "bert")}


def _direct_eta2(x: np.ndarray, labels: np.ndarray) -> float:
    """The definition: variance of the groups' means, weighted by their sizes, over the variance of all."""
    fitted = np.stack([x[labels == label].mean(0) for label in labels])
    return float(((fitted - x.mean(0)) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())


def test_eta2_is_its_definition(folders: dict[str, str]) -> None:
    result = scan(folders["llama"], text=[TEXTS[0] * 3, TEXTS[4] * 3], context_length=24, sequences=4, dtype="float32", norm_multiple=1e6)
    assert result.sequences == 4
    model = LanguageModel.load(folders["llama"])
    texts = [model.encode(text * 3) for text in (TEXTS[0], TEXTS[4])]
    assert result.tokens <= 4 * 24
    whole = scan(folders["llama"], text=[TEXTS[0] * 3, TEXTS[4] * 3], context_length=24, sequences=100, dtype="float32", norm_multiple=1e6)
    rows = [[model.bos, *tokens[start : start + 23]] for tokens in texts for start in range(0, len(tokens), 23)]
    assert whole.sequences == len(rows)
    streams = [model.residuals(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.bool), [2])[2][0] for row in rows]
    x = torch.cat([stream[1:] for stream in streams]).double().numpy()
    index = np.concatenate([np.arange(1, len(row)) for row in rows])
    place = whole.layers.index("2")
    clock = whole.clocks["index"]
    assert clock.eta2[place] == pytest.approx(_direct_eta2(x, index), rel=1e-5)
    late = index >= 8
    assert clock.late_eta2[place] == pytest.approx(_direct_eta2(x[late], index[late]), rel=1e-5)
    assert sum(clock.share[place]) == pytest.approx(1)
    assert clock.share[place][0] == 0
    norms = [np.mean([float(stream[index].norm()) for stream in streams if len(stream) > index]) for index in range(24)]
    assert whole.norm[place] == pytest.approx(norms, rel=1e-5)


def test_learned_positions_stand_out_in_the_index_clock(folders: dict[str, str]) -> None:
    learned, rotary = scan(folders["gpt2"], text=MANY, **SETTINGS), scan(folders["llama"], text=MANY, **SETTINGS)
    assert learned.layers == rotary.layers == ["embed", *map(str, range(LAYERS))]

    def excess(result: Scan) -> float:
        return result.clocks["index"].eta2[0] - result.clocks["index"].floor[0]

    assert excess(learned) > 2 * abs(excess(rotary)) + 0.1  # a few texts over and over: words come back at the same places


def test_scan_is_deterministic_and_survives_json(folders: dict[str, str], tmp_path: Path) -> None:
    first, second = (scan(folders["llama"], text=MANY, **SETTINGS) for _ in range(2))
    assert first == second
    assert Scan.from_json(json.loads(json.dumps(first.to_json(), allow_nan=False))) == first
    assert scan(folders["llama"], text=MANY, **SETTINGS, seed=1).norm != first.norm
    with pytest.raises(TemporalLensError, match="not a scan in format"):
        Scan.from_json({"format": "other"})
    with pytest.raises(TemporalLensError, match="'norm' is missing"):
        Scan.from_json({name: value for name, value in first.to_json().items() if name != "norm"})


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_every_clock_is_scanned_whatever_the_vocabulary(family: str, folders: dict[str, str]) -> None:
    result = scan(folders[family], text=MANY, **SETTINGS)
    assert sorted(result.clocks) == ["document", "index", "newline", "sentence"]
    assert all(len(clock.eta2) == LAYERS + 1 for clock in result.clocks.values())


def test_a_text_of_one_row_is_too_short(folders: dict[str, str]) -> None:
    with pytest.raises(TemporalLensError, match="has 1 row of 32 tokens; a scan needs at least 2"):
        scan(folders["llama"], text=["Short one."], **SETTINGS)


@given(st.integers(1, 40), st.integers(0, 100_000))
def test_bins_are_single_values_and_then_grow(exact: int, largest: int) -> None:
    bins = growing_starts(largest, exact, BIN_GROWTH)
    assert bins[: min(exact, largest + 1)].tolist() == list(range(min(exact, largest + 1)))
    assert (np.diff(bins) >= 1).all()
    assert bins[-1] <= largest
    assert len(bins) <= exact + 60


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(0, 100))
def test_shuffled_rows_keep_their_lengths(lengths: list[int], seed: int) -> None:
    labels = [np.arange(length) for length in lengths]
    worn = shuffled(labels, np.random.default_rng(seed))
    assert [len(row) for row in worn] == lengths
    assert all(set(row) <= set(range(max(lengths))) for row in worn)


def test_constant_activations_have_no_eta2() -> None:
    counts = torch.tensor([3.0, 5.0], dtype=torch.float64)
    sums = torch.stack([counts * 0, counts], dim=1)
    value, share = explained(sums, torch.tensor(0.0, dtype=torch.float64))
    assert value is None
    assert share.isnan().all()
